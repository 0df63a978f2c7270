"""Models for `transformers`: the code that lies in an exported folder, the way there and the way back.

The three files `*_recurrent_roberta.py` are copied into every exported folder and run there without this package; they
import torch, transformers and sentencepiece (sacremoses where the text is normalised by it) alone.
"""
