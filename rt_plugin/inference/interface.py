"""What a loaded model can do with sentences: encode, fill_mask, extract_features, embed, score, predict, classify.

Everywhere one sentence gives one result, and a list of them a list, in its order, or an array with a row for each.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from fairseq import utils
from fairseq.models.roberta import RobertaHubInterface
from torch import Tensor

from rt_plugin.errors import UserError
from rt_plugin.inference.batches import equal_length_batches, lay_out_alike, logits_at
from rt_plugin.inference.likelihood import PseudoLikelihood
from rt_plugin.inference.masks import Filled, MaskFiller
from rt_plugin.inference.projections import are_quicker, prepare, quick_projections
from rt_plugin.inference.sentences import Sentence, SentenceReader
from rt_plugin.text.tokenizer import Tokenizer

CLASSIFICATION_HEAD = "sentence_classification_head"
POOLINGS = ("mean", "first")


class RecurrentRobertaHubInterface(RobertaHubInterface):
    """A loaded model folder: the recurrent RoBERTa of this package, or fairseq's own.

    A sentence is a text, a tuple of two texts (a pair), or the (length,) token ids of either. A list of sentences is
    read in batches of equal length, so that nothing is padded, and the results come in the order of the list. What a
    model has no positions for is refused, in a line that names both lengths; `truncate=True` cuts it.

    The result for a sentence does not depend on the others of a list, up to rounding (1e-6 of its largest number); with
    `exact=True` each sentence is read alone, and its result is the same to the last bit wherever it stands, on the same
    machine and with the same number of threads.

    Move it with `.to("cuda")`, and use half precision with `.half()` or `.bfloat16()`; embed, score,
    fill_mask and classify give their results in float32 all the same.

    Args:
        cfg, task, model: what fairseq's hub_utils returns.
        text: normalisation and sentencepiece, or None where fairseq's own tokenizer `cfg.bpe` is used.
    """

    def __init__(self, cfg, task, model, text: Tokenizer | None):
        super().__init__(cfg, task, model)
        self.text = text
        if text is not None:
            text.check_dictionary(task.source_dictionary.symbols, "the checkpoint's dictionary")
        self._reader = SentenceReader(task.source_dictionary, self._pieces, self._text)
        self.masks = MaskFiller(self._reader)  # what fill_mask reads, also for commands that look before they fill
        lay_out_alike(model)
        if are_quicker():
            prepare(model)

    def encode(
        self,
        sentence: str | Sequence[Sentence],
        *addl_sentences: str | Sequence[str],
        no_separator: bool = False,
        truncate: bool = False,
    ) -> Tensor | list[Tensor]:
        """Token ids of one sentence, `<s> a </s>`, or of several, `<s> a </s> </s> b </s>`, normalised as in training.

        Args:
            sentence: a text; or a list of sentences, see the class.
            addl_sentences: what follows it; lists where `sentence` is one.
            no_separator: leave out the second `</s>` between them.
            truncate: cut what the model has no positions for; of a pair, the longer text first.

        Returns:
            (length,) int64; a list of them for a list.

        >>> from rt_plugin.model import RecurrentRobertaModel
        >>> model = RecurrentRobertaModel.from_pretrained("examples/checkpoints/recurrent_roberta_mini")
        >>> model.encode("It works.").tolist()
        [0, 81, 1634, 6, 2]
        >>> [tokens.tolist() for tokens in model.encode(["It works.", ("It", "works.")])]
        [[0, 81, 1634, 6, 2], [0, 81, 2, 2, 1634, 6, 2]]
        """
        sentences, single = self._reader.listed(sentence, addl_sentences)
        limit = self.model.max_positions() if truncate else None
        encoded = [self._reader.encode(one, number, limit, no_separator) for number, one in enumerate(sentences)]
        return encoded[0] if single else encoded

    def decode(self, tokens: Tensor | Sequence[Tensor]) -> str | list[str] | list[str | list[str]]:
        """The text of (length,) token ids; a list where they are several sentences; a list of these for a list."""
        if not isinstance(tokens, Tensor):
            return [self.decode(one) for one in tokens]
        return self._reader.decode(tokens)

    def fill_mask(
        self, masked_input: str | Sequence[str], topk: int = 5, truncate: bool = False, exact: bool = False
    ) -> list[Filled] | list[list[Filled]] | list[list[Filled] | list[list[Filled]]]:
        """The `topk` most probable tokens for each `<mask>` in a sentence.

        Several masks are read at once, and each is filled by itself, the others left as they are.

        Args:
            masked_input: a text, or a list of them.
            topk: how many.
            truncate, exact: see the class.

        Returns:
            (sentence with the token filled in, its probability over the whole vocabulary, the token, with a space in
            front where it begins a word), most probable first. Special tokens are never proposed. For a sentence with
            several masks, a list of such lists, one a mask; for a list of sentences, a list of what each has alone.

        Raises:
            UserError: a sentence holds no <mask>, or has no positions for one.

        >>> from rt_plugin.model import RecurrentRobertaModel
        >>> model = RecurrentRobertaModel.from_pretrained("examples/checkpoints/recurrent_roberta_mini")
        >>> ((sentence, probability, token),) = model.fill_mask("She lives in the <mask> States.", topk=1)
        >>> sentence, token, probability > 0.9
        ('She lives in the United States.', ' United', True)
        >>> [filled[0][2] for filled in model.fill_mask("She was <mask> in the United <mask> in 1930.")]
        [' born', ' States']
        """
        texts = [masked_input] if isinstance(masked_input, str) else list(masked_input)
        limit = self.model.max_positions()
        ids = [
            self.masks.ids(text, f"fill_mask: sentence {number}", limit, truncate, "truncate=True")
            for number, text in enumerate(texts)
        ]
        self.masks.check_topk(topk)
        best = self._batched(ids, lambda tokens: self._best_at_masks(tokens, topk), exact)
        filled = [self.masks.fill(text, *values) for text, values in zip(texts, best, strict=True)]
        return filled[0] if isinstance(masked_input, str) else filled

    def extract_features(
        self,
        tokens: Sentence | Sequence[Sentence],
        return_all_hiddens: bool = False,
        truncate: bool = False,
        exact: bool = False,
    ) -> Tensor | list:
        """The encoder's output for every token.

        Args:
            tokens: (length,) or (batch, length) token ids, padded at the right, as in fairseq; or a text; or a list of
                sentences, see the class.
            return_all_hiddens: the embeddings and every layer's output, in a list, in place of the last layer's.
            truncate, exact: see the class.

        Returns:
            (1, length, d) or (batch, length, d) for ids, with 0 at padding; (length, d) for a text; a list of (length,
            d) for a list. Gradients flow, unless the caller says otherwise.

        >>> from rt_plugin.model import RecurrentRobertaModel
        >>> model = RecurrentRobertaModel.from_pretrained("examples/checkpoints/recurrent_roberta_mini")
        >>> [tuple(features.shape) for features in model.extract_features(["It works.", "It does."])]
        [(5, 256), (5, 256)]
        """
        listed, single = self._reader.tokens(tokens, (), truncate, self.model.max_positions())
        layers = self._batched(listed, lambda batch: self._layers(batch, return_all_hiddens), exact)
        if isinstance(tokens, Tensor):
            length = tokens.shape[-1]
            rows = [torch.stack([_padded(one, length) for one in layer]) for layer in zip(*layers, strict=True)]
            return rows if return_all_hiddens else rows[0]
        found = [list(one) if return_all_hiddens else one[0] for one in layers]
        return found[0] if single else found

    @torch.inference_mode()
    def embed(
        self,
        sentences: Sentence | Sequence[Sentence],
        *addl_sentences: str | Sequence[str],
        pooling: str = "mean",
        truncate: bool = False,
        exact: bool = False,
    ) -> np.ndarray:
        """One vector for each sentence.

        Args:
            sentences: see the class.
            addl_sentences: second texts of pairs.
            pooling: "mean" (default) of all tokens' features, `<s>` and `</s>` among them, or "first": of `<s>`.
            truncate, exact: see the class.

        Returns:
            (d,) float32 for a sentence, (N, d) for a list.

        >>> from rt_plugin.model import RecurrentRobertaModel
        >>> model = RecurrentRobertaModel.from_pretrained("examples/checkpoints/recurrent_roberta_mini")
        >>> model.embed(["A dog barks.", "A cat sleeps.", "Shares fell in London."]).shape
        (3, 256)
        """
        if pooling not in POOLINGS:
            raise UserError(f"embed: pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
        listed, single = self._reader.tokens(sentences, addl_sentences, truncate, self.model.max_positions())
        with utils.model_eval(self.model):
            rows = self._batched(listed, lambda batch: self._pooled(batch, pooling), exact)
        width = self.model.encoder.sentence_encoder.embed_tokens.embedding_dim
        array = np.stack(rows) if rows else np.zeros((0, width), np.float32)
        return array[0] if single else array

    def score(self, sentences: str | Sequence[str], mask: str = "token", exact: bool = False) -> float | np.ndarray:
        """Pseudo-log-likelihood: how probable the model finds each sentence, in nats; see `inference.likelihood`.

        Args:
            sentences: a text, or a list of them.
            mask: "token" (default): one token is hidden at a time; "word": also those that follow it in its word.
            exact: see the class.

        Returns:
            a number for a sentence, (N,) float64 for a list; the higher, the more probable.

        >>> from rt_plugin.model import RecurrentRobertaModel
        >>> model = RecurrentRobertaModel.from_pretrained("examples/checkpoints/recurrent_roberta_mini")
        >>> good, bad = model.score(["The dogs bark at night.", "The dogs barks at night."])
        >>> bool(good > bad)
        True
        """
        scorer = PseudoLikelihood(self, mask)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        encoded = []
        for number, text in enumerate(texts):
            try:
                encoded.append(scorer.encode(text))
            except UserError as error:
                raise UserError(f"score: sentence {number}: {error}") from None
        with utils.model_eval(self.model):
            found = [scorer([one])[0] for one in encoded] if exact else scorer(encoded)
        values = np.array([value.sum() for value in found], dtype=np.float64)
        return float(values[0]) if isinstance(sentences, str) else values

    def classify(
        self,
        sentence: Sentence | Sequence[Sentence],
        *addl_sentences: str | Sequence[str],
        head: str = CLASSIFICATION_HEAD,
        truncate: bool = True,
        exact: bool = False,
    ) -> tuple[str, float] | list[tuple[str, float]]:
        """The most probable label of a sentence or sentence pair, by name, and its probability.

        What is longer than fine-tuning allowed (--max-positions) is cut as there: of a pair, the longer text first.

        Args:
            sentence: see the class.
            addl_sentences: the second text; a list where `sentence` is one.
            head: the classification head.
            truncate: False: refuse what is longer.
            exact: see the class.

        Returns:
            (label, probability); a list of them for a list.

        Raises:
            UserError: the model has no labels, or a sentence not as many texts as it was fine-tuned on.
        """
        names = getattr(self.task, "label_names", None)
        if not names:
            raise UserError(
                "classify: this checkpoint has no class labels; for the score of a regression use rt-plugin "
                "predict-glue rows, or predict(..., return_logits=True) in Python, else a model fine-tuned on classes"
            )
        listed, single = self._reader.listed(sentence, addl_sentences)
        for number, one in enumerate(listed):
            self.check_texts(one, f"classify: sentence {number}", "a pair is a tuple of two texts")
        given = listed[0] if single else listed
        listed, single = self._reader.tokens(given, (), truncate, self._head_positions())
        with utils.model_eval(self.model), torch.inference_mode():
            rows = self._outputs(head, listed, exact)
        found = []
        for row in rows:
            value, index = row.float().softmax(dim=-1).max(dim=-1)
            found.append((names[index], value.item()))
        return found[0] if single else found

    def check_texts(self, sentence: Sentence, where: str, advice: str) -> None:
        """Compare how many texts a sentence has with what the model was fine-tuned on, where that is known.

        Args:
            sentence: of token ids nothing is compared.
            where: it stands, for errors.
            advice: how a pair is written.

        Raises:
            UserError: it has more, or fewer.
        """
        glue_task = getattr(self.task, "glue_task", None)
        if glue_task is None or not glue_task.texts or not isinstance(sentence, (str, tuple)):
            return
        found, expected = 1 if isinstance(sentence, str) else len(sentence), len(glue_task.texts)
        if found != expected:
            raise UserError(
                f"{where}: found {found} text{'s'[: found != 1]}, expected {expected}, as {glue_task.name} has "
                f"({', '.join(glue_task.texts)}); {advice}"
            )

    def predict(
        self,
        head: str,
        tokens: Sentence | Sequence[Sentence],
        return_logits: bool = False,
        truncate: bool = False,
        exact: bool = False,
    ) -> Tensor:
        """Log-probabilities (or logits) of a classification head.

        Args:
            head: its name.
            tokens: (length,) or (batch, length) token ids as in fairseq, or sentences, see the class.
            return_logits: what the head says, as it is; must be True for a regression.
            truncate: cut as in fine-tuning.
            exact: see the class.

        Returns:
            (1, classes) for one sentence, (N, classes) for several.

        Raises:
            UserError: there is no such head; a sentence is too long; or the head gives one number, a score, whose
                log-probability would be 0 whatever it is.
        """
        self._check_head(head)
        classes = self.model.classification_heads[head].out_proj.out_features
        if classes == 1 and not return_logits:
            raise UserError(
                f"predict: the head {head!r} gives a score, which has no log-probability; use return_logits=True"
            )
        limit = self._head_positions() if truncate else self.model.max_positions()
        listed, _ = self._reader.tokens(tokens, (), truncate, limit)
        rows = self._outputs(head, listed, exact)
        if not rows:
            return torch.zeros(0, classes, device=self.device)
        logits = torch.stack(rows)
        return logits if return_logits else logits.log_softmax(dim=-1)

    def _batched(self, tokens: list[Tensor], function: Callable[[Tensor], Sequence], exact: bool) -> list:
        """`function` of (B, L) token ids, which returns B results, over sentences of equal length; in their order."""
        results: list = [None] * len(tokens)
        batches = list(equal_length_batches([len(ids) for ids in tokens], alone=exact))
        with quick_projections(many=len(batches) > 1):
            for numbers in batches:
                batch = torch.stack([tokens[number] for number in numbers]).to(self.device)
                for number, result in zip(numbers, function(batch), strict=True):
                    results[number] = result
        return results

    def _layers(self, tokens: Tensor, all_of_them: bool) -> list[tuple[Tensor, ...]]:
        """For each row, (L, d) of the last layer, or of the embeddings and every layer."""
        features, extra = self.model(tokens, features_only=True, return_all_hiddens=all_of_them)
        layers = [state.transpose(0, 1) for state in extra["inner_states"]] if all_of_them else [features]
        return list(zip(*layers, strict=True))

    def _pooled(self, tokens: Tensor, pooling: str) -> np.ndarray:
        features, _ = self.model(tokens, features_only=True)
        pooled = (
            features[:, 0].float() if pooling == "first" else features.contiguous().mean(dim=1, dtype=torch.float32)
        )
        return pooled.cpu().numpy()

    def _outputs(self, head: str, tokens: list[Tensor], exact: bool) -> list[Tensor]:
        """(classes,) logits of each sentence."""
        self._check_head(head)
        options = {"features_only": True, "classification_head_name": head}
        return self._batched(tokens, lambda batch: self.model(batch, **options)[0], exact)

    def _check_head(self, head: str) -> None:
        if head not in self.model.classification_heads:
            known = ", ".join(self.model.classification_heads) or "none"
            raise UserError(f"predict: no classification head {head!r} in this checkpoint; heads: {known}")

    def _head_positions(self) -> int:
        """What a fine-tuning, on classes or a score, allowed; it may be less than the model has positions for."""
        allowed = self.task.max_positions() if hasattr(self.task, "glue_task") else None
        return min(allowed or self.model.max_positions(), self.model.max_positions())

    @torch.inference_mode()
    def _best_at_masks(self, tokens: Tensor, topk: int) -> list[tuple[list[list[int]], list[list[float]]]]:
        """For each row, ids and probabilities of the best tokens, one list for each of its masks."""
        masked = tokens.eq(self.masks.mask)
        with utils.model_eval(self.model):
            probabilities = logits_at(self.model, tokens, masked).softmax(dim=-1)
        probabilities[:, self.masks.never_proposed()] = -1
        values, best = probabilities.topk(topk)
        counts = masked.sum(dim=1).tolist()
        return [
            (ids.tolist(), found.tolist()) for ids, found in zip(best.split(counts), values.split(counts), strict=True)
        ]

    def _pieces(self, text: str, behind_word: bool) -> list[str]:
        return self.text.encode(text, behind_word) if self.text else self.bpe.encode(text).split()

    def _text(self, pieces: list[str]) -> str:
        return self.text.decode(pieces) if self.text else self.bpe.decode(" ".join(pieces))


def _padded(features: Tensor, length: int) -> Tensor:
    """(L, d) filled up with zeros to (length, d)."""
    return torch.nn.functional.pad(features, (0, 0, 0, length - len(features)))
