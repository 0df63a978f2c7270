"""Lines of text -> the token ids that fairseq-preprocess would write, for sentencepiece models and GPT-2 BPE files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text.normalization import TextNormalizer
from rt_plugin.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fairseq.data import Dictionary

GPT2_FILES = ("encoder.json", "vocab.bpe")
TOKENIZER_FILES = (DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE, *GPT2_FILES)


class LineEncoder:
    """Lines of text -> token ids, each line ending with </s>.

    Args:
        tokenizer_ids: lines -> for each a list of the tokenizer's own ids, from 0 on.
        symbols: the dictionary's symbol for each of these ids.
        dictionary: fairseq's.
    """

    def __init__(
        self, tokenizer_ids: Callable[[list[str]], list[list[int]]], symbols: list[str], dictionary: Dictionary
    ):
        from fairseq.data.indexed_dataset import best_fitting_int_dtype

        self._tokenizer_ids = tokenizer_ids
        self._end = len(symbols)  # an id of our own, for </s>
        self._table = np.array([*(dictionary.index(symbol) for symbol in symbols), dictionary.eos()])
        self.unknown = dictionary.unk()
        self.dtype = np.dtype(best_fitting_int_dtype(len(dictionary)))

    def encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens,) of all lines, in the type of the data set, and (lines,) int32, the length of each; a blank line is
        one </s>."""
        ids = self._tokenizer_ids(lines)
        for line in ids:
            line.append(self._end)
        lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
        flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
        return self._table[flat].astype(self.dtype), lengths


def load_line_encoder(folder: Path) -> LineEncoder:
    """The encoder of a data folder: its sentencepiece model or GPT-2 BPE files, normalisation and dictionary.

    Raises:
        UserError: a file is missing or broken, or tokenizer and dictionary do not belong together.
    """
    from rt_plugin.model_folder.dictionary import load_dictionary

    dictionary_path = folder / DICTIONARY_FILE
    dictionary = load_dictionary(dictionary_path)
    if all((folder / name).is_file() for name in GPT2_FILES):
        return _gpt2_line_encoder(folder, dictionary)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_dictionary(dictionary.symbols, str(dictionary_path))
    return LineEncoder(tokenizer.encode_ids, tokenizer.pieces(), dictionary)


def gpt2_dictionary(folder: Path) -> str:
    """A fairseq dictionary of all GPT-2 tokens, in their order; fairseq writes such a token as its decimal number."""
    return "".join(f"{i} 1\n" for i in range(len(_load_gpt2(folder).encoder)))


def _gpt2_line_encoder(folder: Path, dictionary: Dictionary) -> LineEncoder:
    gpt2 = _load_gpt2(folder)
    symbols = [str(i) for i in range(max(gpt2.decoder) + 1)]
    if not any(symbol in dictionary.indices for symbol in symbols):
        raise UserError(
            f"{folder / DICTIONARY_FILE}: no token of GPT-2 in it; expected lines such as '262 1', as in fairseq's own "
            "dictionary for GPT-2 BPE"
        )
    normalize = TextNormalizer.load(folder / NORMALIZATION_FILE).normalize
    return LineEncoder(lambda lines: [gpt2.encode(normalize(line)) for line in lines], symbols, dictionary)


def _load_gpt2(folder: Path):
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    paths = [str(folder / name) for name in GPT2_FILES]
    try:
        gpt2 = get_encoder(*paths)
        if not gpt2.decoder or not all(isinstance(number, int) for number in gpt2.decoder):
            raise ValueError("expected tokens and their numbers in the first")
        return gpt2
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{' and '.join(paths)}: not GPT-2 BPE files ({error}); copy them again") from None
