"""From text to the pieces that a model reads, and back: normalisation and sentencepiece, stored together.

Imports the standard library only; sentencepiece is loaded when first needed.
"""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from rt_plugin.console.files import writing
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text.normalization import TextNormalizer

_DICTIONARY_SPECIALS = frozenset(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
_DICTIONARY_FILLER = re.compile(r"madeupword\d{4,}")
_WORD = "word"  # letters that no language abbreviates so: Moses' tokenizer parts it from a full stop
# normalizer_spec.add_dummy_prefix = false, as protobuf writes it: what is appended to a message is merged into it
_NO_SPACE_IN_FRONT = b"\x1a\x02\x18\x00"


class Tokenizer:
    """text -> normalised text -> sentencepiece pieces, and back.

    Args:
        model: the content of a sentencepiece model.
        normalizer: of the text before.

    Raises:
        RuntimeError: that is no sentencepiece model.
    """

    def __init__(self, model: bytes, normalizer: TextNormalizer):
        import sentencepiece

        self.normalizer = normalizer
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def read(cls, path: str | os.PathLike, normalizer: TextNormalizer) -> "Tokenizer":
        """Read a sentencepiece model.

        Raises:
            UserError: it is missing, or is none.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no sentencepiece model there; give the folder that holds {TOKENIZER_FILE}, "
                "or make one with rt-plugin train-tokenizer"
            )
        try:
            return cls(path.read_bytes(), normalizer)
        except (RuntimeError, OSError):
            raise UserError(f"{path}: not a sentencepiece model; copy the file again or train a new one") from None

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Read the tokenizer and the normalisation of a model or data folder.

        Raises:
            UserError: see `read` and `TextNormalizer.load`.
        """
        folder = Path(folder)
        return cls.read(folder / TOKENIZER_FILE, TextNormalizer.load(folder / NORMALIZATION_FILE))

    def save(self, folder: str | os.PathLike) -> None:
        """Write tokenizer and normalisation into a folder, made if needed; an interruption leaves no half file."""
        files = {
            NORMALIZATION_FILE: self.normalizer.to_json().encode(),
            TOKENIZER_FILE: self._processor.serialized_model_proto(),
        }
        for name, content in files.items():
            with writing(Path(folder) / name) as file:
                file.write(content)

    def normalize(self, text: str) -> str:
        """The text as sentencepiece sees it."""
        return self.normalizer.normalize(text)

    def encode(self, text: str, behind_word: bool = False) -> list[str]:
        """The text's pieces; a character the tokenizer does not know is a piece that no dictionary holds.

        Args:
            behind_word: the text goes on behind a word that is not given: its pieces are those that it has there. With
                no white space between them its first piece lacks the space in front that a whole text gets.
        """
        if not behind_word:
            return self._processor.encode(self.normalize(text), out_type=str)
        # what normalisation does at the seam depends on both sides: "word" and "(a)" become "word (a)"
        rest = self.normalize(_WORD + text).removeprefix(_WORD)
        processor = self._processor if rest.startswith(" ") else self._without_space
        return processor.encode(rest.lstrip(" "), out_type=str)

    @functools.cached_property
    def _without_space(self):
        """sentencepiece with the same pieces, which puts no space in front of a text."""
        import sentencepiece

        model = self._processor.serialized_model_proto() + _NO_SPACE_IN_FRONT
        return sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode_ids(self, texts: list[str]) -> list[list[int]]:
        """The sentencepiece ids of many texts, on one thread: `encode` in batches, several times as fast."""
        return self._processor.encode([self.normalize(text) for text in texts], out_type=int, num_threads=1)

    def pieces(self) -> list[str]:
        """The tokenizer's pieces; a piece's place is its sentencepiece id."""
        return [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]

    def dictionary(self) -> str:
        """What dict.txt holds: the pieces that text can have, in order, each with the count 1.

        Not <unk>, <s> and </s>, which begin a model of `train_sentencepiece`: fairseq has them without being told.
        """
        model = self._processor
        left_out = (model.is_control, model.is_unknown, model.is_unused)
        return "".join(f"{piece} 1\n" for i, piece in enumerate(self.pieces()) if not any(kind(i) for kind in left_out))

    def decode(self, pieces: Iterable[str]) -> str:
        """The text of pieces; equals `normalize(text)` for the pieces of a text, up to sentencepiece's own NFKC."""
        return self.normalizer.restore(self._processor.decode_pieces(list(pieces)))

    def is_unknown(self, piece: str) -> bool:
        """Whether the tokenizer lacks the piece; fairseq then reads <unk>."""
        return self._processor.piece_to_id(piece) == self._processor.unk_id()

    def check_dictionary(self, symbols: Iterable[str], where: str) -> None:
        """Refuse a dictionary made for another tokenizer.

        Pieces that the dictionary lacks are fine: `fairseq-preprocess` without `--srcdict` leaves rare ones out.

        Args:
            symbols: the dictionary's symbols; fairseq's specials, fillers and <mask> are passed over.
            where: the dictionary's name in the error, usually its path.

        Raises:
            UserError: symbols that are not pieces of the tokenizer.
        """
        symbols = [s for s in symbols if s not in _DICTIONARY_SPECIALS and not _DICTIONARY_FILLER.fullmatch(s)]
        foreign = [s for s in symbols if self.is_unknown(s)]
        if foreign:
            raise UserError(
                f"{where}: {len(foreign)} of {len(symbols)} symbols are not pieces of the sentencepiece model "
                f"(for example {foreign[0]!r}); use the {TOKENIZER_FILE} and {DICTIONARY_FILE} that were made together"
            )
