"""Where blocks of text begin and end: fairseq's rules, over sentences of any number, a chunk of them at a time."""

import numpy as np
from fairseq.data.token_block_utils_fast import _get_slice_indices_fast

CHUNK = 1 << 22  # sentences that are looked at together
_SEPARATOR = 1  # tokens of a blank line, which ends a document


def cut_blocks(
    sizes: np.ndarray, block_length: int, break_mode: str, chunk: int = CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """The blocks of a text as fairseq's TokenBlockDataset cuts them, but that longer sentences are split first.

    Args:
        sizes: (sentences,) tokens of each, `</s>` included.
        block_length: the most tokens of a block.
        break_mode: "none", "complete", "complete_doc" or "eos", as --sample-break-mode.
        chunk: sentences that are looked at together; a matter of memory alone.

    Returns:
        (blocks,) int64: the first token of each, counted over the whole text; (blocks,) uint16 or uint32: the length of
        each, in tokens.
    """
    dtype = np.uint16 if block_length < 65535 else np.uint32
    if break_mode == "none":
        total = int(sizes.sum(dtype=np.int64))
        starts = np.arange(0, total, block_length, dtype=np.int64)
        return starts, np.minimum(block_length, total - starts).astype(dtype)
    starts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, dtype)]
    rest, token = np.zeros(0, np.int64), 0  # the parts that no finished block has, and the token that they begin at
    for first in range(0, len(sizes), chunk):
        parts = np.concatenate([rest, split_sentences(sizes[first : first + chunk], block_length)])
        slices = _slices(parts, block_length, break_mode)
        ends = np.cumsum(parts)
        used = len(parts)
        if first + chunk < len(sizes):  # the last block may go on in the next chunk; a block's start is a fresh start
            restart = int(slices[-1, 0]) if len(slices) else 0
            slices, used = slices[:-1], int(np.searchsorted(ends, restart, side="right"))
        starts.append(slices[:, 0] + token)
        lengths.append((slices[:, 1] - slices[:, 0]).astype(dtype))
        token += int(ends[used - 1]) if used else 0
        rest = parts[used:]
    return np.concatenate(starts), np.concatenate(lengths)


def _slices(parts: np.ndarray, block_length: int, break_mode: str) -> np.ndarray:
    """(blocks, 2) the first token of each block, and the one after its last."""
    try:
        return np.asarray(_get_slice_indices_fast(parts, break_mode, block_length, _SEPARATOR))
    except ValueError:  # fairseq's way to say that there is no block, such as between blank lines
        return np.zeros((0, 2), np.int64)


def split_sentences(sizes: np.ndarray, max_length: int) -> np.ndarray:
    """The lengths of sentences, the longer ones cut into nearly equal parts of at most `max_length` tokens.

    Equal parts, because a part of one token would read as the end of a document.

    Args:
        sizes: (sentences,) tokens of each.
        max_length: tokens, at least 3.

    Returns:
        (parts,) int64; `sizes` itself where no sentence is longer.
    """
    if not len(sizes) or sizes.max() <= max_length:
        return sizes
    sizes = sizes.astype(np.int64)
    parts = np.maximum(1, -(-sizes // max_length))
    whole = np.repeat(sizes, parts)
    of = np.repeat(parts, parts)
    number = np.arange(len(whole)) - np.repeat(np.cumsum(parts) - parts, parts)
    return (number + 1) * whole // of - number * whole // of
