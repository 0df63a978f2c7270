"""Pseudo-log-likelihood: how probable a masked language model finds a sentence, one hidden token after the other.

PLL(w) = sum over t of log P(w_t | w with position t masked), Salazar et al. 2020, arXiv 1910.14659. For words of
several tokens this is too high, because the tokens left in sight give the hidden one away; PLL-word-l2r also masks
those that follow it in the same word (Kauf and Ivanova 2023, arXiv 2305.10588).

A word is what sentencepiece takes for one: it begins with U+2581, and a comma or a full stop written close to it is
part of it. <s> and </s> are neither masked nor counted. Probabilities are over the whole dictionary.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fairseq.models.roberta import RobertaHubInterface

from rt_plugin.errors import NoTextError, UserError
from rt_plugin.inference import MASKS
from rt_plugin.inference.batches import TOKENS_PER_BATCH, equal_length_batches, logits_at

MASK = "<mask>"
_WORD_BEGINS = "\u2581"
Copy = tuple[tuple[int, ...], int, int]  # a sentence's ids, the place that is asked for, and where what is hidden ends


@dataclass(frozen=True)
class Sentence:
    """A sentence as the model reads it, without <s> and </s>.

    Attributes:
        ids: of its tokens.
        words: for each token, the number of its word, from 0 on.
        unknown: how many of the tokens are <unk>.
    """

    ids: tuple[int, ...]
    words: tuple[int, ...]
    unknown: int


class PseudoLikelihood:
    """Scores sentences with a masked language model.

    Sentences of equal length share batches, so that nothing is ever padded, and logits are computed at the one position
    that each masked copy is for. Equal sentences have equal scores, to the last bit.

    Args:
        model: a loaded model folder, see `loading.from_pretrained`; in eval mode.
        mask: "token" (default): one position at a time; "word": also the tokens that follow it in its word.
        tokens_per_batch: size of a batch; it changes the speed, and the scores by rounding errors only.

    Raises:
        UserError: `mask` is unknown, or the model's tokenizer is not sentencepiece.
    """

    def __init__(
        self,
        model: RobertaHubInterface,
        mask: str = "token",
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ):
        if mask not in MASKS:
            raise UserError(f"pseudo-log-likelihood: mask is {mask!r}, expected one of {', '.join(MASKS)}")
        if model.text is None:
            raise UserError(
                "pseudo-log-likelihood: found another tokenizer than sentencepiece, which is expected: it tells words"
            )
        self.mask = mask
        self.max_tokens = model.model.max_positions() - 2  # of a sentence
        self._model = model
        self._dictionary = model.task.source_dictionary
        self._tokens_per_batch = tokens_per_batch

    def encode(self, text: str) -> Sentence:
        """The tokens of a text, normalised as in training; a line end in it counts as a space.

        Raises:
            NoTextError: there are none.
            UserError: there are more than the model has positions for.
        """
        pieces = self._model.text.encode(text)
        if not pieces:
            raise NoTextError("found no text, expected a sentence")
        if len(pieces) > self.max_tokens:
            raise UserError(f"found {len(pieces)} tokens, expected at most {self.max_tokens}, the model's positions")
        ids = tuple(self._dictionary.index(piece) for piece in pieces)
        begins = [piece.startswith(_WORD_BEGINS) for piece in pieces[1:]]
        words = (0, *np.cumsum(begins, dtype=int).tolist())
        return Sentence(ids, words, ids.count(self._dictionary.unk()))

    def __call__(
        self,
        sentences: Sequence[Sentence],
        advance: Callable[[float], object] | None = None,
        known: dict[Copy, float] | None = None,
    ) -> list[np.ndarray]:
        """The log-probability of every token of every sentence.

        Args:
            sentences: see `encode`.
            advance: is told after each batch what share of the work it was, from 0 to 1.
            known: what was found before, and gets what is found now: with the same dict, another way of masking the
                same sentences by the same model reads only those copies that differ.

        Returns:
            for each sentence, in order, (tokens,) float64 natural logarithms; their sum is its score.
        """
        known = {} if known is None else known
        copies = [self._copies(sentence) for sentence in sentences]
        # a dict has each once, and keeps the order
        fresh = list(dict.fromkeys(copy for copy in itertools.chain.from_iterable(copies) if copy not in known))
        lengths = [len(ids) + 2 for ids, _, _ in fresh]
        for numbers in equal_length_batches(lengths, tokens_per_batch=self._tokens_per_batch):
            batch = [fresh[number] for number in numbers]
            known.update(zip(batch, self._log_probabilities(batch), strict=True))
            if advance:
                advance(len(batch) / len(fresh))
        if advance and not fresh:
            advance(1.0)
        return [np.array([known[copy] for copy in of_sentence]) for of_sentence in copies]

    def _copies(self, sentence: Sentence) -> list[Copy]:
        """What is hidden for each token of a sentence."""
        places = range(len(sentence.ids))
        if self.mask == "token":
            return [(sentence.ids, place, place + 1) for place in places]
        return [(sentence.ids, place, bisect_right(sentence.words, sentence.words[place])) for place in places]

    @torch.inference_mode()
    def _log_probabilities(self, copies: list[Copy]) -> list[float]:
        """log P of the token at each copy's place, of R copies of n tokens."""
        ids, places, ends = (torch.tensor(column) for column in zip(*copies, strict=True))  # (R, n), (R,), (R,)
        edge = ids.new_empty(len(ids), 1)
        bos, eos = self._dictionary.bos(), self._dictionary.eos()
        tokens = torch.cat([torch.full_like(edge, bos), ids, torch.full_like(edge, eos)], dim=1)  # (R, n + 2)
        positions = torch.arange(tokens.shape[1]) - 1
        wanted = positions == places.unsqueeze(1)
        hidden = (positions >= places.unsqueeze(1)) & (positions < ends.unsqueeze(1))
        masked = tokens.masked_fill(hidden, self._dictionary.index(MASK))
        device = self._model.device
        logits = logits_at(self._model.model, masked.to(device), wanted.to(device))  # (R, vocabulary)
        target = logits.gather(1, tokens[wanted].unsqueeze(1).to(device)).squeeze(1)
        return (target - logits.logsumexp(dim=1)).tolist()
