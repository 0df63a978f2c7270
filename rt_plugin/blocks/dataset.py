"""Blocks of tokens as a fairseq data set, read from the mapped files of a data folder."""

import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, _code_to_dtype
from torch import Tensor

from rt_plugin.blocks.cutting import cut_blocks
from rt_plugin.blocks.stored import stored_arrays
from rt_plugin.errors import UserError

FOLDER = "blocks"  # within a data folder: what is worked out of it
_HEADER = struct.Struct("<9sQBQ")  # of an .idx file: magic, version, type, number of sentences
_CHECKED = 1 << 22  # sentences that are checked together
_LOOKED_AT = 1 << 28  # tokens: 20 ms of a processor, and a second for a disk that reads 500 MB in one


@dataclass(frozen=True)
class BlockOptions:
    """What the blocks of a split depend on, beside its files.

    Attributes:
        block_length: the most tokens of a block, `<s>` not included.
        break_mode: as --sample-break-mode.
    """

    block_length: int
    break_mode: str

    def key(self, files: "TokenFiles") -> dict:
        """What the blocks of `files` depend on."""
        return {"data": files.identity(), **asdict(self)}


class TokenFiles:
    """A split in fairseq's `mmap` format: PREFIX.idx, the sentences' lengths, and PREFIX.bin, their tokens in a row.

    Nothing is read but the header. (fairseq's own reader reads both files through when it opens them.)

    Args:
        prefix: path of both without the ending.

    Raises:
        UserError: the .bin is missing, or the .idx is not as long as it says.
    """

    def __init__(self, prefix: Path):
        self.index, self.data = (prefix.with_name(prefix.name + ending) for ending in (".idx", ".bin"))
        with self.index.open("rb") as file:
            header = file.read(_HEADER.size)
        _, _, code, self.sentences = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 0, 0, 0)
        expected = _HEADER.size + self.sentences * 12  # 4 bytes for the length of each, 8 for its place
        if code not in _code_to_dtype or self.index.stat().st_size != expected:
            raise UserError(
                f"{self.index} has {self.index.stat().st_size:,} bytes, expected {expected:,} for {self.sentences:,} "
                "sentences: it is damaged or cut off; binarise the split again"
            )
        self.dtype = np.dtype(_code_to_dtype[code])
        if not self.data.is_file():
            raise UserError(f"{self.data}: no such file; binarise the split again, or copy the file that is missing")

    @classmethod
    def are_there(cls, prefix: Path) -> bool:
        """Whether a split is there in this format."""
        try:
            with prefix.with_name(f"{prefix.name}.idx").open("rb") as file:
                return file.read(len(MMapIndexedDataset.Index._HDR_MAGIC)) == MMapIndexedDataset.Index._HDR_MAGIC
        except FileNotFoundError:
            return False

    @property
    def sizes(self) -> np.ndarray:
        """(sentences,) int32 tokens of each, mapped."""
        return self._mapped(np.int32, _HEADER.size)

    def identity(self) -> list[int]:
        """What changes when the files do: their lengths in bytes and the times of their last changes."""
        return [value for path in (self.index, self.data) for value in _length_and_time(path)]

    def check(self) -> None:
        """Raise a `UserError` where the tokens of the sentences do not lie in a row in the .bin, or it is cut off."""
        sizes, pointers = self.sizes, self._mapped(np.int64, _HEADER.size + 4 * self.sentences)
        expected = 0
        for first in range(0, self.sentences, _CHECKED):
            ends = expected + np.cumsum(sizes[first : first + _CHECKED], dtype=np.int64) * self.dtype.itemsize
            starts = np.concatenate([[expected], ends[:-1]])
            if not np.array_equal(starts, pointers[first : first + _CHECKED]):
                raise UserError(
                    f"{self.index}: the sentences do not lie in a row in {self.data.name}; binarise it again"
                )
            expected = int(ends[-1])
        if expected != self.data.stat().st_size:
            raise UserError(
                f"{self.data} has {self.data.stat().st_size:,} bytes, {self.index.name} tells of {expected:,}: one of "
                "them is cut off, or of other data; binarise the split again"
            )

    def check_ids(self, symbols: int) -> None:
        """Raise a `UserError` where a token is none of the dictionary's; the first 268 M tokens are looked at."""
        if not (length := self.data.stat().st_size // self.dtype.itemsize):
            return
        tokens = np.memmap(self.data, self.dtype, mode="r", shape=(min(length, _LOOKED_AT),))
        if (highest := int(tokens.max())) >= symbols:
            raise UserError(
                f"{self.data}: found token id {highest}, and the dictionary has {symbols} symbols: cut off, or of "
                "other data; take the dict.txt that the split was binarised with"
            )

    def _mapped(self, dtype, offset: int) -> np.ndarray:
        if not self.sentences:
            return np.empty(0, dtype)
        return np.asarray(np.memmap(self.index, dtype, mode="r", offset=offset, shape=(self.sentences,)))


def _length_and_time(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class BlockDataset(FairseqDataset):
    """The blocks of a split: items are (length,) int64 tokens, `<s>` first.

    A block is a run of tokens of the .bin, so that where it begins and how long it is are all that has to be known.

    Args:
        prefix: the split's files, without the ending.
        options: how it is cut.
        folder: where beginnings and lengths are kept; see `stored_arrays`.
        bos, eos: ids of `<s>` and `</s>`.
        mark_documents: `<s>` in place of the `</s>` of every blank line: where documents share a block, each begins
            with `<s>`.

    Raises:
        UserError: the files are damaged, or there is no block in them.
    """

    def __init__(
        self, prefix: Path, options: BlockOptions, folder: Path, bos: int, eos: int, mark_documents: bool = False
    ):
        super().__init__()
        self.files, self.folder, self.name = TokenFiles(prefix), folder, prefix.name
        self._bos, self._eos, self._mark_documents = bos, eos, mark_documents
        self.key = options.key(self.files)
        arrays = stored_arrays(folder, f"{self.name}.blocks", self.key, lambda: _blocks(self.files, options))
        self._starts, self.sizes = arrays["starts"], arrays["sizes"]
        if not len(self.sizes):
            raise UserError(f"{self.files.data}: no block of text in it (--sample-break-mode {options.break_mode})")
        self._tokens = None

    def __getitem__(self, index: int) -> Tensor:
        if self._tokens is None:  # not before: a process that only counts blocks does not map them
            self._tokens = np.memmap(self.files.data, self.files.dtype, mode="r")
        start, end = int(self._starts[index]), int(self._starts[index]) + int(self.sizes[index]) - 1
        ids = np.empty(end - start + 1, np.int64)
        ids[0] = self._bos
        ids[1:] = self._tokens[start:end]
        if self._mark_documents:
            before = self._tokens[start - 1] if start else self._eos
            ended = np.concatenate([[before], ids[1:-1]]) == self._eos  # the token before ends a sentence
            ids[1:][ended & (ids[1:] == self._eos)] = self._bos
        return torch.from_numpy(ids)

    def __len__(self) -> int:
        return len(self.sizes)

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tokens": None}


def _blocks(files: TokenFiles, options: BlockOptions) -> dict[str, np.ndarray]:
    """starts: (blocks,) the first token of each in the .bin; sizes: (blocks,) tokens of each, `<s>` included."""
    files.check()
    starts, lengths = cut_blocks(files.sizes, options.block_length, options.break_mode)
    return {"starts": starts, "sizes": lengths + lengths.dtype.type(1)}
