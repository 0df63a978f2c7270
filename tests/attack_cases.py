"""Checkpoints whose configuration wants to run code, and a folder to put them in; see tests/attacks.

All of them pass torch's `weights_only`: the code stands in strings, which fairseq evaluates when it builds what the
configuration names. Each leaves a mark when it succeeds.
"""

import argparse
import copy
import shutil

import torch

from conftest import REPOSITORY

MODEL = REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini"


def read_honest() -> dict:
    """The checkpoint of the committed model, as torch reads it."""
    return torch.load(MODEL / "checkpoint_best.pt", weights_only=True)


def make_folder(folder):
    """A model folder without a checkpoint."""
    folder.mkdir()
    for name in ("dict.txt", "sentencepiece.bpe.model", "text_normalization.json"):
        shutil.copyfile(MODEL / name, folder / name)
    return folder


def expression(mark) -> str:
    return f"[__import__('pathlib').Path({str(mark)!r}).touch()]"


def flat(state, **options) -> argparse.Namespace:
    """The configuration as an old fairseq stored it."""
    return argparse.Namespace(**{**vars(state["cfg"]["model"]), "task": "rt_masked_lm", "lr": 1e-3, **options})


def wav2vec2(state, code):
    state["cfg"]["model"] = {"_name": "wav2vec2", "conv_feature_layers": code}


def fconv(state, code):
    state["cfg"]["model"] = argparse.Namespace(arch="fconv_lm", decoder_layers=code)


def two_names(state, code):
    state["cfg"]["model"] = {"arch": "roberta", "_name": "wav2vec2", "conv_feature_layers": code}


def nested(state, code):
    state["cfg"]["model"] = {"wav2vec2": {"conv_feature_layers": code}}


def old_args(state, code):
    state["args"], state["cfg"] = flat(state, arch="fconv_lm", decoder_layers=code), None


def old_args_beside(state, code):
    state["args"] = flat(state, arch="fconv_lm", decoder_layers=code)


def options_of_attention(state, code):
    """Within an architecture that is let in: fairseq's attention evaluates this option."""
    vars(state["cfg"]["model"])["encoder_xformers_att_config"] = code


def old_options_of_attention(state, code):
    state["args"], state["cfg"] = flat(state, encoder_xformers_att_config=code), None


ATTACKS = [
    wav2vec2,
    fconv,
    two_names,
    nested,
    old_args,
    old_args_beside,
    options_of_attention,
    old_options_of_attention,
]


def written(folder, honest, attack, mark):
    state = copy.copy(honest)
    state["cfg"] = copy.deepcopy(honest["cfg"])
    attack(state, expression(mark))
    torch.save(state, folder / "checkpoint_best.pt")
    return folder / "checkpoint_best.pt"
