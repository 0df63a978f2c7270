"""Texts with <mask> in them: their token ids, and the text with what was found for a mask put in its place."""

import torch
from torch import Tensor

from rt_plugin.errors import UserError
from rt_plugin.inference.likelihood import MASK
from rt_plugin.inference.sentences import SentenceReader

Filled = tuple[str, float, str]  # the sentence with the token in it, its probability, the token


def check_mask(text: str, where: str) -> None:
    """Raise a `UserError`, which begins with where it stands, for a text without a mask."""
    if not isinstance(text, str) or MASK not in text:
        raise UserError(f"{where}: found no {MASK} in {str(text)[:60]!r}, expected at least one")


class MaskFiller:
    """`fill_mask` but for the model in the middle.

    Args:
        reader: of the model.
    """

    def __init__(self, reader: SentenceReader):
        self._reader = reader
        self.mask = reader.dictionary.index(MASK)

    def never_proposed(self) -> list[int]:
        """Ids of special tokens, and of those that fill the dictionary up."""
        dictionary = self._reader.dictionary
        filler = [i for i, symbol in enumerate(dictionary.symbols) if symbol.startswith("madeupword")]
        return [*range(dictionary.nspecial), self.mask, *filler]

    def check_topk(self, topk: int) -> None:
        """Raise a `UserError` where there are not so many tokens to propose."""
        allowed = len(self._reader.dictionary) - len(self.never_proposed())
        if not 1 <= topk <= allowed:
            raise UserError(f"fill_mask: topk is {topk}, expected 1 to {allowed:,}, the tokens that can be proposed")

    def whole(self, text: str) -> list[int]:
        """Token ids of a text with its masks, of whatever length."""
        dictionary = self._reader.dictionary
        *spans, last = text.split(MASK)
        ids = [dictionary.bos()]
        for place, span in enumerate(spans):
            ids += [*self._reader.ids(span.rstrip(), behind_word=place > 0), self.mask]
        return [*ids, *self._reader.ids(last, behind_word=True), dictionary.eos()]

    def ids(self, text: str, where: str, limit: int, truncate: bool = False, option: str = "") -> Tensor:
        """(length,) token ids of a text with its masks.

        Args:
            where: it stands, for errors.
            limit: the model's positions.
            truncate: cut what is longer.
            option: what lets the user do so, for errors; "": nothing does.

        Raises:
            UserError: it has no mask, or no position for one, or is too long.
        """
        check_mask(text, where)
        ids = self.whole(text)
        if len(ids) > limit and not truncate:
            other = f", or use {option}" if option else ""
            raise UserError(f"{where} has {len(ids)} tokens, the model has positions for {limit}: shorten it{other}")
        kept = ids if len(ids) <= limit else [*ids[: limit - 1], self._reader.dictionary.eos()]
        if kept.count(self.mask) < ids.count(self.mask):
            raise UserError(f"{where} has a {MASK} behind its first {limit} tokens; shorten it")
        return torch.tensor(kept)

    def fill(self, text: str, best: list[list[int]], values: list[list[float]]) -> list[Filled] | list[list[Filled]]:
        """What `fill_mask` gives for a text.

        Args:
            best, values: for each mask, the tokens' ids and their probabilities, most probable first.

        Returns:
            a list for each mask; the list alone where there is one.
        """
        spans, filled = text.split(MASK), []
        for place, (ids, probabilities) in enumerate(zip(best, values, strict=True), start=1):
            before, after = MASK.join(spans[:place]), MASK.join(spans[place:])
            pieces = (self._reader.dictionary[i] for i in ids)
            filled.append(
                [self._filled(before, piece, after, p) for piece, p in zip(pieces, probabilities, strict=True)]
            )
        return filled[0] if len(filled) == 1 else filled

    def _filled(self, before: str, piece: str, after: str, probability: float) -> Filled:
        token = self._reader.join([piece])
        if piece.startswith("\u2581"):
            token = " " + token
        return (before.rstrip() + token + after).lstrip(), probability, token
