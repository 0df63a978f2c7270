"""Masking: which tokens of a block the model has to guess, and what stands in their places."""

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset, Dictionary
from torch import Tensor

from rt_plugin.errors import UserError

WORD_START = "\u2581"  # sentencepiece's mark of a space


class Masker:
    """Hides tokens as BERT does; the choice is a function of (seed, epoch, index) alone.

    Of the chosen tokens a share stays as it is, a share becomes a random token, the rest <mask>. <s>, </s> and <pad>
    are never chosen: BERT does not, and fairseq's masked_lm, which does, has the model guess <s> at every start and
    </s> behind every full stop, which teaches nothing and lowers the loss. They, <unk> and <mask> are no random tokens.

    Args:
        dictionary: with <mask>.
        mask_index: the id of <mask>.
        seed: any whole number.
        mask_prob: share of the tokens (or words) that are chosen; the number is rounded at random.
        leave_unmasked_prob, random_token_prob: shares of the chosen ones.
        freq_weighted_replacement: draw random tokens by their counts in the dictionary, else all alike.
        whole_words: choose words, with all their pieces; a word begins at a piece that begins with a space.
        span_length, span_stdev: choose spans of this mean length and standard deviation, in tokens (or words), until
            `mask_prob` of all are chosen; spans may overlap, so that fewer are hidden.

    Raises:
        UserError: a share is out of range.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        mask_index: int,
        seed: int = 1,
        mask_prob: float = 0.15,
        leave_unmasked_prob: float = 0.1,
        random_token_prob: float = 0.1,
        freq_weighted_replacement: bool = False,
        whole_words: bool = False,
        span_length: int = 1,
        span_stdev: float = 0.0,
    ):
        _check_shares(mask_prob, leave_unmasked_prob, random_token_prob, span_length, span_stdev)
        self.pad_index = dictionary.pad()
        self.mask_index = mask_index
        self.seed = seed
        self.mask_prob = mask_prob
        self.leave_unmasked_prob = leave_unmasked_prob
        self.random_token_prob = random_token_prob
        self.span_length = span_length
        self.span_stdev = span_stdev
        self._special = np.zeros(len(dictionary), dtype=bool)
        self._special[[dictionary.bos(), dictionary.pad(), dictionary.eos()]] = True
        weights = np.array(dictionary.count if freq_weighted_replacement else np.ones(len(dictionary)), dtype=float)
        weights[: dictionary.nspecial] = weights[mask_index] = 0
        self._cumulative = np.cumsum(weights)
        self._cumulative /= self._cumulative[-1]  # exactly 1 at the end, above every random number
        self._begins_word = None
        if whole_words:
            starts = [i < dictionary.nspecial or s.startswith(WORD_START) for i, s in enumerate(dictionary.symbols)]
            self._begins_word = np.array(starts)

    def __call__(self, tokens: Tensor, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """(length,) int64 tokens -> what the model reads, and what it has to guess (<pad> elsewhere), both alike."""
        rng = np.random.default_rng((self.seed % 2**32, epoch, index))
        ids = tokens.numpy()
        positions, words = self._maskable(ids)
        number = words[-1] + 1 if len(words) else 0
        chosen, fate = self._choose(number, rng)[words], rng.random(number)[words]
        unchanged = fate < self.leave_unmasked_prob
        at_random = ~unchanged & (fate < self.leave_unmasked_prob + self.random_token_prob)
        source, target = ids.copy(), np.full_like(ids, self.pad_index)
        target[positions[chosen]] = ids[positions[chosen]]
        source[positions[chosen & ~unchanged]] = self.mask_index
        replaced = positions[chosen & at_random]
        source[replaced] = np.searchsorted(self._cumulative, rng.random(len(replaced)), side="right")
        return torch.from_numpy(source), torch.from_numpy(target)

    def _maskable(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positions that may be chosen, and for each the number of its word (or of itself)."""
        positions = np.flatnonzero(~self._special[ids])
        if self._begins_word is None:
            return positions, np.arange(len(positions))
        # behind a special token a word begins, whatever the piece: a block may begin within a word
        begins = self._begins_word[ids[positions]] | (np.diff(positions, prepend=-2) > 1)
        return positions, np.cumsum(begins) - 1

    def _choose(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """(number,) which of so many tokens, or words, are chosen."""
        spans = int(self.mask_prob * number / self.span_length + rng.random())
        starts = rng.choice(number, spans, replace=False)
        lengths = np.full(spans, self.span_length)
        if self.span_stdev:
            lengths = np.maximum(0, np.rint(rng.normal(self.span_length, self.span_stdev, spans))).astype(int)
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = np.repeat(starts, lengths) + offsets
        chosen = np.zeros(number, dtype=bool)
        chosen[places[places < number]] = True
        return chosen


def _check_shares(mask_prob, leave_unmasked_prob, random_token_prob, span_length, span_stdev) -> None:
    checks = (
        ("--mask-prob", mask_prob, 0 < mask_prob < 1, "a number between 0 and 1"),
        ("--leave-unmasked-prob", leave_unmasked_prob, 0 <= leave_unmasked_prob <= 1, "a number from 0 to 1"),
        (
            "--random-token-prob",
            random_token_prob,
            0 <= random_token_prob <= 1 - leave_unmasked_prob,
            "a number from 0 to 1, at most 1 together with --leave-unmasked-prob",
        ),
        ("--mask-multiple-length", span_length, span_length >= 1, "a whole number, at least 1"),
        ("--mask-stdev", span_stdev, span_stdev >= 0, "a number, at least 0"),
    )
    for option, value, right, expected in checks:
        if not right:
            raise UserError(f"{option} {value}: expected {expected}")


class MaskedDataset(BaseWrapperDataset):
    """Blocks of tokens with their masks: items are (source, target).

    The last item is kept, by epoch and index, because a batch asks for it several times.
    """

    def __init__(self, blocks, masker: Masker):
        super().__init__(blocks)
        self._masker = masker
        self._epoch = 0
        self._last = (None, None)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        key = (self._epoch, index)
        if self._last[0] != key:
            self._last = (key, self._masker(self.dataset[index], self._epoch, int(index)))
        return self._last[1]

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True  # the masks change, the lengths do not


class Side(BaseWrapperDataset):
    """One side of a `MaskedDataset`: 0, what the model reads, or 1, what it has to guess."""

    def __init__(self, masked: MaskedDataset, side: int):
        super().__init__(masked)
        self._side = side

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index][self._side]
