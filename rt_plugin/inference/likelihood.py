"""Pseudo-log-likelihood: how probable a masked language model finds a sentence, one hidden token after the other.

PLL(w) = sum over t of log P(w_t | w with position t masked), Salazar et al. 2020, arXiv 1910.14659. For words of
several tokens this is too high, because the tokens left in sight give the hidden one away; PLL-word-l2r also masks
those that follow it in the same word (Kauf and Ivanova 2023, arXiv 2305.10588).

A word is what sentencepiece takes for one: it begins with U+2581, and a comma or a full stop written close to it is
part of it. <s> and </s> are neither masked nor counted. Probabilities are over the whole dictionary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fairseq.models.roberta import RobertaHubInterface
from torch import Tensor

from rt_plugin.errors import UserError
from rt_plugin.inference import MASKS
from rt_plugin.inference.batches import TOKENS_PER_BATCH, logits_at

MASK = "<mask>"
_WORD_BEGINS = "\u2581"


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
            UserError: there are none, or more than the model has positions for.
        """
        pieces = self._model.text.encode(text)
        if not pieces:
            raise UserError("found no text, expected a sentence")
        if len(pieces) > self.max_tokens:
            raise UserError(f"found {len(pieces)} tokens, expected at most {self.max_tokens}, the model's positions")
        ids = tuple(self._dictionary.index(piece) for piece in pieces)
        begins = [piece.startswith(_WORD_BEGINS) for piece in pieces[1:]]
        words = (0, *np.cumsum(begins, dtype=int).tolist())
        return Sentence(ids, words, ids.count(self._dictionary.unk()))

    def __call__(
        self, sentences: Sequence[Sentence], advance: Callable[[float], object] | None = None
    ) -> list[np.ndarray]:
        """The log-probability of every token of every sentence.

        Args:
            sentences: see `encode`.
            advance: is told after each batch what share of the work it was, from 0 to 1.

        Returns:
            for each sentence, in order, (tokens,) float64 natural logarithms; their sum is its score.
        """
        groups = defaultdict(dict)  # length -> the different sentences of that length; a dict keeps their order
        for sentence in sentences:
            groups[len(sentence.ids)][sentence.ids, sentence.words] = None
        total = sum(length * len(group) for length, group in groups.items())
        scores = {}
        for length, group in sorted(groups.items()):
            batches = []
            for values in self._read(list(group)):
                batches.append(values)
                if advance:
                    advance(len(values) / total)
            scores.update(zip(group, np.concatenate(batches).reshape(-1, length), strict=True))
        return [scores[sentence.ids, sentence.words] for sentence in sentences]

    @torch.inference_mode()
    def _read(self, group: list[tuple]) -> Iterator[np.ndarray]:
        """The log-probabilities of all tokens of (ids, words) of equal length n, one batch after the other."""
        ids, words = (torch.tensor(column) for column in zip(*group, strict=True))  # (S, n) each
        count, length = ids.shape
        edge = ids.new_empty(count, 1)
        bos, eos = self._dictionary.bos(), self._dictionary.eos()
        tokens = torch.cat([torch.full_like(edge, bos), ids, torch.full_like(edge, eos)], dim=1)  # (S, n + 2)
        words = torch.cat([torch.full_like(edge, -1), words, torch.full_like(edge, -1)], dim=1)
        # copy r hides token r % n of sentence r // n
        for copies in torch.arange(count * length).split(max(1, self._tokens_per_batch // (length + 2))):
            rows, places = copies // length, 1 + copies % length
            yield self._log_probabilities(tokens[rows], words[rows], places)

    def _log_probabilities(self, tokens: Tensor, words: Tensor, places: Tensor) -> np.ndarray:
        """log P of the token at each row's place, (R,), from (R, n + 2) tokens and word numbers and (R,) places."""
        positions = torch.arange(tokens.shape[1])
        wanted = positions == places.unsqueeze(1)
        hidden = wanted
        if self.mask == "word":
            same_word = words == words.gather(1, places.unsqueeze(1))
            hidden = same_word & (positions >= places.unsqueeze(1))
        masked = tokens.masked_fill(hidden, self._dictionary.index(MASK))
        device = self._model.device
        logits = logits_at(self._model.model, masked.to(device), wanted.to(device))  # (R, vocabulary)
        target = logits.gather(1, tokens[wanted].unsqueeze(1).to(device)).squeeze(1)
        return (target - logits.logsumexp(dim=1)).double().cpu().numpy()
