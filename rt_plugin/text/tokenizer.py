"""From text to the pieces a model reads, and back: normalisation, sentencepiece, and the files that keep both.

The tokenizer and the normalisation are stored together, so that data preparation, fine-tuning and the hub treat text
alike. Imports the standard library only; sentencepiece and sacremoses are loaded when first needed.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rt_plugin.console import commands
from rt_plugin.console.files import replacing
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text.raw import COMPRESSED, read_lines

NORMALIZATIONS = ("none", "moses", "moses-tokenize")
MODEL_TYPES = ("unigram", "bpe")

_NORMALIZATION_VERSION = 1
# sentencepiece's own <unk>, <s> and </s>; fairseq's dictionary has these (and <pad>) without being told.
_CONTROL_PIECES = 3
_DICTIONARY_SPECIALS = frozenset(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
_DICTIONARY_FILLER = re.compile(r"madeupword\d{4,}")


class TextNormalizer:
    """Brings text into the form that the tokenizer was trained on.

    Every choice turns each run of white space, line separators such as U+2028 and U+0085 included, into one space:
    fairseq splits an encoded line at any of these characters, so no piece may hold one.

    Args:
        choice: "none" (white space only), "moses" (Moses punctuation normalisation) or "moses-tokenize" (that, then
            the Moses tokenizer without HTML escapes and without splitting at dashes).
        language: two-letter code, default "en"; Moses' rules depend on it.

    Raises:
        UserError: the choice is unknown, or sacremoses is not installed.
    """

    def __init__(self, choice: str = "none", language: str = "en"):
        if choice not in NORMALIZATIONS:
            raise UserError(f"text normalisation is {choice!r}, expected one of {', '.join(NORMALIZATIONS)}")
        self.choice = choice
        self.language = language
        if choice == "none":
            return
        moses = _import("sacremoses")
        self._punctuation = moses.MosesPunctNormalizer(lang=language)
        if choice == "moses-tokenize":
            self._tokenizer = moses.MosesTokenizer(lang=language)
            self._detokenizer = moses.MosesDetokenizer(lang=language)

    def normalize(self, text: str) -> str:
        """The text as the tokenizer shall see it, on one line."""
        text = " ".join(text.split())  # before Moses, which would join the words around some of these characters
        if self.choice != "none":
            text = self._punctuation.normalize(text)
        if self.choice == "moses-tokenize":
            text = self._tokenizer.tokenize(text, aggressive_dash_splits=False, escape=False, return_str=True)
        return " ".join(text.split())

    def restore(self, text: str) -> str:
        """Text for people from normalised text; what punctuation normalisation changed stays changed."""
        if self.choice == "moses-tokenize":
            return self._detokenizer.detokenize(text.split(), unescape=False)
        return text

    def to_json(self) -> str:
        """What `text_normalization.json` holds."""
        settings = {"version": _NORMALIZATION_VERSION, "normalization": self.choice, "language": self.language}
        return json.dumps(settings, indent=2) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TextNormalizer":
        """Read `text_normalization.json`; a file that is not there means "none" (a tokenizer from elsewhere)."""
        path = Path(path)
        if not path.exists():
            return cls()
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            version, choice, language = (settings[key] for key in ("version", "normalization", "language"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a text normalisation file ({error}); expected JSON with version, normalization and "
                "language; copy the file that lies beside the tokenizer's original"
            ) from None
        if version != _NORMALIZATION_VERSION:
            raise UserError(
                f"{path}: version {version!r}, expected {_NORMALIZATION_VERSION}; use the version of rt-plugin "
                "that wrote the file"
            )
        try:
            return cls(choice, language)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


class TextEncoder:
    """text -> normalised text -> sentencepiece pieces.

    Args:
        model_path: a sentencepiece model.
        normalization, language: see `TextNormalizer`.

    Raises:
        UserError: the model is missing or is no sentencepiece model, or the normalisation is unknown.
    """

    def __init__(self, model_path: str | os.PathLike, normalization: str = "none", language: str = "en"):
        self.normalizer = TextNormalizer(normalization, language)
        self._processor = _load_sentencepiece(Path(model_path))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TextEncoder":
        """Read the tokenizer and the normalisation of a model or data folder."""
        folder = Path(folder)
        normalizer = TextNormalizer.load(folder / NORMALIZATION_FILE)
        return cls(folder / TOKENIZER_FILE, normalizer.choice, normalizer.language)

    def save(self, folder: str | os.PathLike) -> None:
        """Write tokenizer and normalisation into a folder, made if needed; an interruption leaves no half file."""
        files = {
            NORMALIZATION_FILE: self.normalizer.to_json().encode(),
            TOKENIZER_FILE: self._processor.serialized_model_proto(),
        }
        for name, content in files.items():
            _write_file(Path(folder) / name, content)

    def normalize(self, text: str) -> str:
        """The text as sentencepiece sees it."""
        return self.normalizer.normalize(text)

    def encode(self, text: str) -> list[str]:
        """The text's pieces; a character the tokenizer does not know is a piece that no dictionary holds."""
        return self._processor.encode(self.normalize(text), out_type=str)

    def encode_ids(self, texts: list[str]) -> list[list[int]]:
        """The sentencepiece ids of many texts, on one thread: `encode` in batches, several times as fast."""
        return self._processor.encode([self.normalize(text) for text in texts], out_type=int, num_threads=1)

    def pieces(self) -> list[str]:
        """The tokenizer's pieces; a piece's place is its sentencepiece id."""
        return _pieces(self._processor)

    def dictionary(self) -> str:
        """What dict.txt holds: the pieces from sentencepiece id 3 on, in order, each with the count 1."""
        return _dictionary(self.pieces())

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


def train_sentencepiece(
    inputs: Iterable[str | os.PathLike],
    folder: str | os.PathLike,
    vocab_size: int,
    normalization: str = "moses",
    language: str = "en",
    model_type: str = "unigram",
    max_sentences: int = 5_000_000,
    seed: int = 1,
    threads: int = 4,
) -> TextEncoder:
    """Train a tokenizer and write tokenizer, normalisation and dictionary into a folder.

    The same inputs and arguments give the same files. `dict.txt` lists the pieces from sentencepiece id 3 on, so that
    fairseq's ids are those of XLM-R: <s> 0, <pad> 1, </s> 2, <unk> 3, pieces from 4 on. Its counts are all 1; fairseq
    reads them only for `--freq-weighted-replacement`.

    Args:
        inputs: text files, UTF-8, one sentence or paragraph a line.
        vocab_size: pieces including sentencepiece's <unk>, <s> and </s>.
        normalization, language: see `TextNormalizer`.
        model_type: "unigram" (default) or "bpe".
        max_sentences: train on a random sample of this many lines, default 5,000,000; 0 for all (memory grows).
        seed: of that sample, default 1.
        threads: default 4; the result may depend on it, so it does not follow the machine.

    Returns:
        The encoder.

    Raises:
        UserError: an input is missing, empty or not UTF-8, or the vocabulary does not fit the text.
    """
    if model_type not in MODEL_TYPES:
        raise UserError(f"sentencepiece model type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    spm = _import("sentencepiece")
    normalizer = TextNormalizer(normalization, language)
    model = io.BytesIO()
    input_errors: list[UserError] = []
    spm.set_random_generator_seed(seed)
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_normalized_sentences(inputs, normalizer, input_errors),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            input_sentence_size=max_sentences,
            shuffle_input_sentence=True,
            num_threads=threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise (input_errors or [UserError(_why_training_failed(error, vocab_size))])[0] from None
    return _save_trained(model.getvalue(), normalizer, Path(folder))


def _normalized_sentences(
    inputs: Iterable[str | os.PathLike], normalizer: TextNormalizer, errors: list[UserError]
) -> Iterator[str]:
    """The non-blank lines of all inputs; a mistake goes into `errors`, too: sentencepiece stops, but hides it."""
    try:
        for path in inputs:
            for line in read_lines(path):
                sentence = normalizer.normalize(line)
                if sentence:
                    yield sentence
    except UserError as error:
        errors.append(error)
        raise


def _why_training_failed(error: Exception, vocab_size: int) -> str:
    message = str(error)
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocabulary size {vocab_size} is below the {found[1]} characters that the text needs; "
            "choose a larger --vocab-size"
        )
    if found := re.search(r"value <= (\d+)", message):
        return f"vocabulary size {vocab_size} is more than the text can fill; choose --vocab-size {found[1]} or less"
    return f"sentencepiece could not train a tokenizer of {vocab_size} pieces: {' '.join(message.split())}"


def _save_trained(model: bytes, normalizer: TextNormalizer, folder: Path) -> TextEncoder:
    # The old tokenizer goes first and the new one comes last: whoever finds a tokenizer finds the dictionary and the
    # normalisation of the same training beside it, also after an interruption.
    (folder / TOKENIZER_FILE).unlink(missing_ok=True)
    pieces = _pieces(_import("sentencepiece").SentencePieceProcessor(model_proto=model))
    _write_file(folder / DICTIONARY_FILE, _dictionary(pieces).encode())
    _write_file(folder / NORMALIZATION_FILE, normalizer.to_json().encode())
    _write_file(folder / TOKENIZER_FILE, model)
    return TextEncoder.load(folder)


def _pieces(processor: Any) -> list[str]:
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def _dictionary(pieces: list[str]) -> str:
    return "".join(f"{piece} 1\n" for piece in pieces[_CONTROL_PIECES:])


@dataclass
class EncodingCounts:
    """What `encode_file` went through: lines, documents (separated by blank lines), pieces, unknown pieces."""

    lines: int = 0
    documents: int = 0
    pieces: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        share = 100 * self.unknown / max(1, self.pieces)
        return (
            f"{self.lines:,} lines, {self.documents:,} documents, {self.pieces:,} pieces, "
            f"{self.unknown:,} of them unknown ({share:.2f} %)"
        )


def encode_file(
    encoder: TextEncoder,
    source: str | os.PathLike,
    target: str | os.PathLike,
    report: Callable[[str], None] = commands.report,
) -> EncodingCounts:
    """Write the pieces of a text file, separated by spaces: one line for each input line.

    Blank lines stay, as document boundaries. The target appears when it is complete.

    Args:
        report: takes lines of progress, see `Progress`.

    Raises:
        UserError: see `read_lines`; or the target cannot be written.
    """
    counts = EncodingCounts()
    lines = _with_progress(read_lines(source), Path(source), report)
    with _replacing(Path(target)) as file:
        for line in _encode_lines(encoder, lines, counts):
            file.write(f"{line}\n".encode())
    return counts


def _encode_lines(encoder: TextEncoder, lines: Iterable[str], counts: EncodingCounts) -> Iterator[str]:
    is_unknown = functools.lru_cache(maxsize=None)(encoder.is_unknown)
    between_documents = True
    for line in lines:
        pieces = encoder.encode(line)
        counts.lines += 1
        counts.documents += bool(pieces) and between_documents
        counts.pieces += len(pieces)
        counts.unknown += sum(map(is_unknown, pieces))
        between_documents = not pieces
        yield " ".join(pieces)


def _with_progress(lines: Iterable[str], source: Path, report: Callable[[str], None]) -> Iterator[str]:
    size = None if source.suffix in COMPRESSED or not source.is_file() else source.stat().st_size
    with Progress(str(source), size, "B", report) as progress:
        for line in lines:
            yield line
            progress.advance(len(line.encode()) + 1)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """`replacing`, with an error that a user can act on."""
    try:
        with replacing(target) as file:
            yield file
    except OSError as error:
        raise UserError(f"{target}: cannot write the file ({error.strerror}); is the disk full or read-only?") from None


def _write_file(path: Path, content: bytes) -> None:
    with _replacing(path) as file:
        file.write(content)


def _load_sentencepiece(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"{path}: no sentencepiece model there; give the folder that holds {TOKENIZER_FILE}, "
            "or make one with scripts/train_tokenizer.py"
        )
    try:
        return _import("sentencepiece").SentencePieceProcessor(model_proto=path.read_bytes())
    except (RuntimeError, OSError):
        raise UserError(f"{path}: not a sentencepiece model; copy the file again or train a new one") from None


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"{name} is not installed and the text needs it; run: pip install {name}") from None
