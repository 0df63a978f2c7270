"""Sentences as they are given (texts, pairs, token ids, lists of these) as token ids, and token ids as text again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rt_plugin.errors import UserError
from rt_plugin.text.encode import join_texts

Sentence = str | tuple[str, ...] | Tensor  # a text, a pair of texts, or the token ids of either


class SentenceReader:
    """What a model reads, and what it says, by one tokenizer and one dictionary.

    Args:
        dictionary: fairseq's.
        split: a text, and whether it goes on behind a word -> its pieces, as the dictionary has them.
        join: pieces -> the text.
    """

    def __init__(self, dictionary, split: Callable[[str, bool], list[str]], join: Callable[[list[str]], str]):
        self.dictionary = dictionary
        self._split = split
        self.join = join

    def ids(self, text: str, behind_word: bool = False) -> list[int]:
        """Of a text, without <s> and </s>; or of one that goes on behind a word, see `Tokenizer.encode`."""
        return [self.dictionary.index(piece) for piece in self._split(text, behind_word)]

    def listed(self, sentence: Sentence | Sequence[Sentence], others: tuple) -> tuple[list[Sentence], bool]:
        """The sentences as a list, and whether it was one alone.

        Args:
            sentence: one, a list of them, or (B, L) token ids.
            others: texts that follow it; lists where `sentence` is one.

        Raises:
            UserError: the lists differ in length.
        """
        if isinstance(sentence, Tensor):
            if sentence.dim() == 1:
                return [sentence], True
            pad = self.dictionary.pad()
            return [row[: len(row) - _trailing(row, pad)] for row in sentence], False
        single = isinstance(sentence, (str, tuple))
        listed = [sentence] if single else list(sentence)
        columns = [[other] if single else list(other) for other in others]
        for column in columns:
            if len(column) != len(listed):
                raise UserError(f"found {len(listed)} first and {len(column)} second texts, expected as many of both")
        return [
            (*_texts(one), *more) for one, *more in zip(listed, *columns, strict=True)
        ] if others else listed, single

    def tokens(self, sentences, others: tuple, truncate: bool, limit: int) -> tuple[list[Tensor], bool]:
        """(length,) token ids of each sentence, none longer than `limit`, and whether it was one alone.

        Args:
            sentences, others: see `listed`.
            truncate: cut what is longer.

        Raises:
            UserError: one is longer; the line names both lengths.
        """
        listed, single = self.listed(sentences, others)
        tokens = [self.encode(one, number, limit if truncate else None) for number, one in enumerate(listed)]
        for number, ids in enumerate(tokens):
            if len(ids) > limit:
                where = "" if single else f"sentence {number} has "
                raise UserError(
                    f"{where}{len(ids)} tokens, the model has positions for {limit}: shorten it, or use truncate=True"
                )
        return tokens, single

    def encode(self, sentence: Sentence, number: int, limit: int | None, no_separator: bool = False) -> Tensor:
        """(length,) token ids of one sentence.

        Args:
            number: its place in the list, for errors.
            limit: cut it to so many; None: whatever it has.
            no_separator: one </s> between two texts, not two.

        Raises:
            UserError: it is no sentence.
        """
        dictionary = self.dictionary
        if isinstance(sentence, Tensor):
            if sentence.dim() != 1 or sentence.is_floating_point():
                raise UserError(
                    f"sentence {number} is a tensor of shape {tuple(sentence.shape)} and type {sentence.dtype}, "
                    "expected (length,) token ids"
                )
            tokens = sentence.long()
        else:
            texts = [self.ids(text) for text in _texts(sentence, number)]
            if limit is not None and len(texts) <= 2 and not no_separator:
                return join_texts([torch.tensor(ids, dtype=torch.long) for ids in texts], dictionary, limit)
            ids = [dictionary.bos(), *texts[0], dictionary.eos()]
            for other in texts[1:]:
                separator = [] if no_separator else [dictionary.eos()]
                ids += [*separator, *other, dictionary.eos()]
            tokens = torch.tensor(ids, dtype=torch.long)
        if limit is None or len(tokens) <= limit:
            return tokens
        return torch.cat([tokens[: limit - 1], tokens[-1:]])  # the last is </s>

    def decode(self, tokens: Tensor) -> str | list[str]:
        """The text of (length,) token ids; a list where they are several sentences."""
        dictionary = self.dictionary
        ids = tokens.tolist()
        if ids and ids[0] == dictionary.bos():
            ids = ids[1:]
        sentences, current = [], []
        for i, token in enumerate(ids):
            if token == dictionary.eos():
                if i and ids[i - 1] == dictionary.eos():  # </s> </s> stands between two sentences
                    continue
                sentences.append(current)
                current = []
            elif token != dictionary.pad():
                current.append(dictionary[token])
        if current:
            sentences.append(current)
        texts = [self.join(pieces) for pieces in sentences] or [""]
        return texts[0] if len(texts) == 1 else texts


def _texts(sentence: Sentence, number: int = 0) -> tuple[str, ...]:
    texts = (sentence,) if isinstance(sentence, str) else sentence
    if not isinstance(texts, tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"sentence {number} is {str(sentence)[:60]!r} of type {type(sentence).__name__}, expected a text, a tuple "
            "of texts (a pair), or a tensor of token ids"
        )
    return texts


def _trailing(row: Tensor, pad: int) -> int:
    """How many of the last tokens are padding."""
    kept = row.ne(pad).nonzero()
    return len(row) - 1 - int(kept[-1]) if len(kept) else len(row) - 1
