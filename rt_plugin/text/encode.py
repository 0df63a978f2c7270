"""Text -> token ids, and the ids of one or two texts joined as RoBERTa reads them."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq.data import Dictionary

from rt_plugin.errors import UserError
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE
from rt_plugin.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class IdEncoder:
    """What turns a text into token ids: a model folder's tokenizer, its dictionary, and the dictionary's file."""

    tokenizer: Tokenizer
    dictionary: Dictionary
    dictionary_path: Path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "IdEncoder":
        """Read a model folder.

        Raises:
            UserError: a file is missing, or tokenizer and dictionary do not belong together.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"--model {folder}: no such folder; give the folder with the checkpoint's tokenizer")
        tokenizer = Tokenizer.load(folder)
        path = folder / DICTIONARY_FILE
        dictionary = load_dictionary(path)
        tokenizer.check_dictionary(dictionary.symbols, str(path))
        return cls(tokenizer, dictionary, path)

    def encode(self, text: str) -> torch.Tensor:
        """(length,) int32 token ids of a text, with </s> at the end."""
        return self.dictionary.encode_line(" ".join(self.tokenizer.encode(text)), add_if_not_exist=False)


def join_texts(texts: list[torch.Tensor], dictionary: Dictionary, max_positions: int) -> torch.Tensor:
    """`<s> a </s>` or `<s> a </s> </s> b </s>`, cut to `max_positions`: (length,) int64, from the texts' token ids."""
    lengths = cut_lengths([len(text) for text in texts], max_positions - 2 * len(texts))
    bos, eos = dictionary.bos(), dictionary.eos()
    tokens = []
    for text, length, first in zip(texts, lengths, (bos, eos), strict=False):
        tokens += [torch.tensor([first]), text[:length], torch.tensor([eos])]
    return torch.cat(tokens).long()


def cut_lengths(lengths: list[int], room: int) -> list[int]:
    """Lengths of one or two texts that fit into `room` tokens: the longer one loses first, then both alike."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    shorter = min(min(lengths), room // 2)
    first, second = lengths
    if first <= second:
        return [shorter, min(second, room - shorter)]
    return [min(first, room - shorter), shorter]
