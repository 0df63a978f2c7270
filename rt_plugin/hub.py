"""Loading a model folder for inference, and what the loaded model can do: fill in, classify, predict. No network."""

from pathlib import Path

import torch
from fairseq import hub_utils, utils
from fairseq.models.roberta import RobertaHubInterface
from torch import Tensor

from rt_plugin.errors import UserError
from rt_plugin.model_folder.checkpoint import find_checkpoint
from rt_plugin.model_folder.files import BEST_CHECKPOINT, NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text.encode import join_texts
from rt_plugin.text.tokenizer import Tokenizer

MASK = "<mask>"
CLASSIFICATION_HEAD = "sentence_classification_head"


def from_pretrained(
    model_folder: str,
    checkpoint_file: str = BEST_CHECKPOINT,
    data: str = ".",
    bpe: str = "sentencepiece",
    **overrides,
) -> "RecurrentRobertaHubInterface":
    """Load a checkpoint with its dictionary and tokenizer, ready for inference (in eval mode, on the CPU).

    Args:
        model_folder: the `--save-dir` of a training, or a copy of it.
        checkpoint_file: the name of a checkpoint in the folder, default "checkpoint_best.pt".
        data: the folder with dict.txt (and label_dict.txt), relative to the model folder; default: the model folder.
        bpe: fairseq's name of the tokenizer, default "sentencepiece": sentencepiece.bpe.model of the model folder or
            of the data folder. Others (such as "gpt2") take their files through `overrides`.
        overrides: values that replace those stored in the checkpoint, by their names.

    Raises:
        UserError: a folder or a file is missing, or tokenizer and dictionary do not belong together.
    """
    folder = Path(model_folder)
    data_folder = folder / data  # an absolute path stays what it is
    for place in (folder, data_folder):
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; give the folder that holds checkpoint, dict.txt and tokenizer")
    find_checkpoint(folder, checkpoint_file)
    text = None
    if bpe == "sentencepiece":
        tokenizer_folder = _tokenizer_folder(folder, data_folder)
        text = Tokenizer.load(tokenizer_folder)
        overrides.setdefault("sentencepiece_model", str(tokenizer_folder / TOKENIZER_FILE))
    loaded = hub_utils.from_pretrained(
        str(folder.resolve()),
        checkpoint_file,
        str(data_folder.resolve()),
        bpe=bpe,
        load_checkpoint_heads=True,
        **overrides,
    )
    interface = RecurrentRobertaHubInterface(loaded["args"], loaded["task"], loaded["models"][0], text)
    return interface.eval()


def _tokenizer_folder(*folders: Path) -> Path:
    for folder in folders:
        if (folder / TOKENIZER_FILE).is_file():
            return folder
    raise UserError(
        f"{folders[0]}: no {TOKENIZER_FILE} there; copy it (and {NORMALIZATION_FILE}) from the data folder that the "
        "model was trained on, or name another tokenizer with bpe=..."
    )


class RecurrentRobertaHubInterface(RobertaHubInterface):
    """A loaded model: encode, decode, fill_mask, extract_features, predict, classify.

    Args:
        cfg, task, model: what fairseq's hub_utils returns.
        text: normalisation and sentencepiece, or None where fairseq's own tokenizer `cfg.bpe` is used.
    """

    def __init__(self, cfg, task, model, text: Tokenizer | None):
        super().__init__(cfg, task, model)
        self.text = text
        if text is not None:
            text.check_dictionary(task.source_dictionary.symbols, "the checkpoint's dictionary")

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> Tensor:
        """Token ids of one sentence, `<s> a </s>`, or of several, `<s> a </s> </s> b </s>`, normalised as in training.

        Returns:
            (length,) int64.
        """
        dictionary = self.task.source_dictionary
        ids = [dictionary.bos(), *self._ids(sentence), dictionary.eos()]
        for other in addl_sentences:
            separator = [] if no_separator else [dictionary.eos()]
            ids += [*separator, *self._ids(other), dictionary.eos()]
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, tokens: Tensor) -> str | list[str]:
        """The text of (length,) token ids; a list where they are several sentences."""
        dictionary = self.task.source_dictionary
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
        texts = [self._text(pieces) for pieces in sentences] or [""]
        return texts[0] if len(texts) == 1 else texts

    def fill_mask(self, masked_input: str, topk: int = 5) -> list[tuple[str, float, str]]:
        """The `topk` most probable tokens for the one `<mask>` in a sentence.

        Returns:
            (sentence with the token filled in, its probability over the whole vocabulary, the token, with a space in
            front where it begins a word), most probable first. Special tokens are never proposed.

        Raises:
            UserError: the sentence does not hold exactly one <mask>.
        """
        if masked_input.count(MASK) != 1:
            raise UserError(f"fill_mask: {masked_input!r} holds {masked_input.count(MASK)} times {MASK}, expected once")
        dictionary = self.task.source_dictionary
        before, after = masked_input.split(MASK)
        ids = [
            dictionary.bos(),
            *self._ids(before.rstrip()),
            dictionary.index(MASK),
            *self._ids(after),
            dictionary.eos(),
        ]
        tokens = torch.tensor([ids], device=self.device)
        masked = tokens.eq(dictionary.index(MASK))
        with utils.model_eval(self.model), torch.no_grad():
            logits, _ = self.model(tokens, masked_tokens=masked)
        probabilities = logits[0].float().softmax(dim=-1)
        probabilities[self._never_proposed()] = -1
        values, best = probabilities.topk(topk)
        return [
            self._filled(before, dictionary[i], after, p) for i, p in zip(best.tolist(), values.tolist(), strict=True)
        ]

    def classify(self, sentence: str, *addl_sentences: str, head: str = CLASSIFICATION_HEAD) -> tuple[str, float]:
        """The most probable label of a sentence or sentence pair, by name, and its probability.

        What is longer than fine-tuning allowed (--max-positions) is cut as there: of a pair, the longer text first.
        """
        names = getattr(self.task, "label_names", None)
        if not names:
            raise UserError(
                "classify: this checkpoint has no class labels; use predict, or a model fine-tuned on classes"
            )
        texts = [torch.tensor(self._ids(text), dtype=torch.long) for text in (sentence, *addl_sentences)]
        tokens = join_texts(texts, self.task.source_dictionary, self.task.max_positions())
        with utils.model_eval(self.model), torch.no_grad():
            probabilities = self.predict(head, tokens).exp()[0]
        value, index = probabilities.max(dim=-1)
        return names[index], value.item()

    def predict(self, head: str, tokens: Tensor, return_logits: bool = False) -> Tensor:
        """Log-probabilities (or logits) of a classification head for (length,) or (batch, length) token ids."""
        if head not in self.model.classification_heads:
            known = ", ".join(self.model.classification_heads) or "none"
            raise UserError(f"predict: no classification head {head!r} in this checkpoint; heads: {known}")
        return super().predict(head, tokens, return_logits)

    def _ids(self, text: str) -> list[int]:
        pieces = self.text.encode(text) if self.text else self.bpe.encode(text).split()
        return [self.task.source_dictionary.index(piece) for piece in pieces]

    def _text(self, pieces: list[str]) -> str:
        return self.text.decode(pieces) if self.text else self.bpe.decode(" ".join(pieces))

    def _filled(self, before: str, piece: str, after: str, probability: float) -> tuple[str, float, str]:
        token = self._text([piece])
        if piece.startswith("\u2581"):
            token = " " + token
        return (before.rstrip() + token + after).lstrip(), probability, token

    def _never_proposed(self) -> list[int]:
        dictionary = self.task.source_dictionary
        filler = [i for i, symbol in enumerate(dictionary.symbols) if symbol.startswith("madeupword")]
        return [*range(dictionary.nspecial), dictionary.index(MASK), *filler]
