"""The tokenizer of a recurrent RoBERTa for transformers: normalisation, sentencepiece, and fairseq's dictionary."""

import importlib
import json
from pathlib import Path
from typing import ClassVar

import sentencepiece
from transformers import AddedToken, PreTrainedTokenizer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the first ids of every dictionary of fairseq
OVERWRITE = "#fairseq:overwrite"
WORD = "word"  # letters that no language abbreviates so: Moses' tokenizer parts it from a full stop
# normalizer_spec.add_dummy_prefix = false, as protobuf writes it: what is appended to a message is merged into it
NO_SPACE_IN_FRONT = b"\x1a\x02\x18\x00"
BEHIND_MASK = "\ud800"  # marks text for `_tokenize`: half a character, which no text in UTF-8 holds
NAMES = {
    "vocab_file": "sentencepiece.bpe.model",
    "dictionary_file": "dict.txt",
    "normalization_file": "text_normalization.json",
}


class RecurrentRobertaTokenizer(PreTrainedTokenizer):
    """Text -> the ids that the model was trained on: `<s> a </s>`, or `<s> a </s> </s> b </s>` of a pair.

    Args:
        vocab_file: the sentencepiece model.
        dictionary_file: fairseq's dict.txt: a piece's id is its line, after the four special ones.
        normalization_file: what is done to text before: "none" (white space only), "moses" or "moses-tokenize", by
            sacremoses; where the file is missing, "none".
    """

    vocab_files_names = NAMES
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file,
        dictionary_file,
        normalization_file=None,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        **kwargs,
    ):
        paths = (vocab_file, dictionary_file, normalization_file)
        self._files = {
            name: Path(path).read_bytes() for name, path in zip(NAMES.values(), paths, strict=True) if path is not None
        }
        model = self._files[NAMES["vocab_file"]]
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._without_space = sentencepiece.SentencePieceProcessor(model_proto=model + NO_SPACE_IN_FRONT)
        self._symbols = _symbols(self._files[NAMES["dictionary_file"]].decode("utf-8"))
        self._ids = {symbol: i for i, symbol in enumerate(self._symbols)}
        self._set_normalization()
        if isinstance(mask_token, str):
            mask_token = AddedToken(mask_token, lstrip=True, special=True, normalized=False)
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_token,
            **kwargs,
        )

    def _set_normalization(self):
        text = self._files.get(NAMES["normalization_file"])
        settings = json.loads(text) if text else {"version": 1, "normalization": "none", "language": "en"}
        self._normalization = settings["normalization"]
        if settings["version"] != 1 or self._normalization not in ("none", "moses", "moses-tokenize"):
            raise ValueError(f"text_normalization.json: {settings} is not known here; export the model again")
        if self._normalization == "none":
            return
        # in an import statement transformers sees it, and refuses without it also where nothing is normalised
        try:
            sacremoses = importlib.import_module("sacremoses")
        except ModuleNotFoundError:
            raise ImportError("the text normalisation of this model needs sacremoses: pip install sacremoses") from None
        self._punctuation = sacremoses.MosesPunctNormalizer(lang=settings["language"])
        if self._normalization == "moses-tokenize":
            self._words = sacremoses.MosesTokenizer(lang=settings["language"])
            self._joined = sacremoses.MosesDetokenizer(lang=settings["language"])

    def normalize(self, text):
        """The text as sentencepiece sees it, on one line."""
        text = " ".join(text.split())
        if self._normalization != "none":
            text = self._punctuation.normalize(text)
        if self._normalization == "moses-tokenize":
            text = self._words.tokenize(text, aggressive_dash_splits=False, escape=False, return_str=True)
        return " ".join(text.split())

    @property
    def vocab_size(self):
        return len(self._symbols)

    def get_vocab(self):
        return {**self._ids, **self.added_tokens_encoder}

    def tokenize(self, text, **kwargs):
        """transformers' own, but that text behind a mask is read as it would be behind a word.

        Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.
        """
        text = text.encode("utf-8", "replace").decode()
        if self.mask_token and not kwargs.get("split_special_tokens", self.split_special_tokens):
            text = text.replace(str(self.mask_token), str(self.mask_token) + BEHIND_MASK)
        return super().tokenize(text, **kwargs)

    def _tokenize(self, text, **kwargs):
        if not text.startswith(BEHIND_MASK):
            return self._processor.encode(self.normalize(text), out_type=str)
        # what normalisation does at the seam depends on both sides: "word" and "(a)" become "word (a)"
        rest = self.normalize(WORD + text.removeprefix(BEHIND_MASK)).removeprefix(WORD)
        processor = self._processor if rest.startswith(" ") else self._without_space
        return processor.encode(rest.lstrip(" "), out_type=str)

    def _convert_token_to_id(self, token):
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index):
        return self._symbols[index]

    def convert_tokens_to_string(self, tokens):
        special = {*SPECIAL, str(self.mask_token)}
        texts, pieces = [], []
        for token in [*tokens, None]:
            if token is not None and token not in special:
                pieces.append(token)
                continue
            if pieces:
                texts.append(self._text(pieces))
            texts += [] if token is None else [token]
            pieces = []
        return " ".join(texts)

    def _text(self, pieces):
        text = self._processor.decode_pieces(pieces)
        if self._normalization == "moses-tokenize":
            return self._joined.detokenize(text.split(), unescape=False)
        return text

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        second = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1, self.sep_token_id]
        return [self.cls_token_id, *token_ids_0, self.sep_token_id, *second]

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        second = [] if token_ids_1 is None else [1, *[0] * len(token_ids_1), 1]
        return [1, *[0] * len(token_ids_0), 1, *second]

    def create_token_type_ids_from_sequences(self, token_ids_0, token_ids_1=None):
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def truncate_sequences(
        self, ids, pair_ids=None, num_tokens_to_remove=0, truncation_strategy="longest_first", stride=0
    ):
        """transformers' own, but that of a pair the same tokens stay as in fine-tuning."""
        strategy = str(getattr(truncation_strategy, "value", truncation_strategy))
        if pair_ids is None or strategy != "longest_first" or num_tokens_to_remove <= 0:
            return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, truncation_strategy, stride)
        room = max(0, len(ids) + len(pair_ids) - num_tokens_to_remove)
        shorter = min(len(ids), len(pair_ids), room // 2)
        if len(ids) <= len(pair_ids):
            return ids[:shorter], pair_ids[: room - shorter], []
        return ids[: room - shorter], pair_ids[:shorter], []

    def save_vocabulary(self, save_directory, filename_prefix=None):
        paths = []
        for name, content in self._files.items():
            path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
            path.write_bytes(content)
            paths.append(str(path))
        return tuple(paths)


def _symbols(dictionary):
    """The symbols of a dict.txt in the order of their ids, <mask> at the end."""
    symbols = list(SPECIAL)
    for line in dictionary.split("\n"):  # not splitlines: a piece may hold other ends of lines
        line = line.rstrip().removesuffix(OVERWRITE).rstrip()
        if line:
            symbols.append(line.rpartition(" ")[0])
    return symbols if "<mask>" in symbols else [*symbols, "<mask>"]
