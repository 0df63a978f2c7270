"""Corpora as they are published, JSON lines or parquet with a field of text, read as text: a document a record."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rt_plugin.errors import UserError
from rt_plugin.text.raw import COMPRESSED, open_text, read_lines

JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
LONGEST_RECORD = 1 << 28  # bytes; it is held in memory
_ROWS = 1000  # of a parquet file that are held at once


def kind_of(path: Path) -> str:
    """ "parquet", "json" or "text", by the file's name, whatever it is compressed with."""
    if path.suffix == PARQUET:
        return "parquet"
    return "json" if Path(path.stem if path.suffix in COMPRESSED else path).suffix in JSON_LINES else "text"


def refuse_records(path: Path) -> None:
    """Refuse a file of records where lines of text are read.

    Raises:
        UserError: it is one, by its name.
    """
    if kind_of(path) != "text":
        raise UserError(f"{path}: holds records, expected lines of text; rt-plugin prepare-corpus reads such files")


@contextlib.contextmanager
def open_documents(
    path: Path, text_field: str = "text", document_per_line: bool = False, digest=None
) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    r"""A corpus file as text, and, below it, the file on disk, whose `tell()` says about how much of it is read.

    A record becomes the lines of its text without the blank ones, and a blank line; or, where a document is a line, one
    line. A record without text, or with null in its place, becomes nothing.

    Args:
        path: of a text file, JSON lines (.jsonl, .ndjson, .json; each compressed or not) or a .parquet file.
        text_field: the field, or column, with the text.
        document_per_line: each line is a document; else blank lines separate documents.
        digest: an object of hashlib, for the bytes of the file; not for parquet, which is not read from front to end.

    Raises:
        UserError: the file cannot be read (see `open_text`), a record has no such text, or pyarrow, which reads
            parquet, is missing.
    """
    kind = kind_of(path)
    if kind == "parquet":
        try:
            opened = path.open("rb")
        except OSError as error:
            raise UserError(f"{path}: cannot read the file ({error.strerror}); give an existing one") from None
        with opened as raw:
            yield _as_file(_parquet_texts(path, raw, text_field), document_per_line), raw
        return
    with open_text(path, digest) as (file, raw):
        if kind == "json":
            yield _as_file(_json_texts(path, file, text_field), document_per_line), raw
        else:
            yield file, raw


def read_document_lines(path: Path, text_field: str = "text") -> Iterator[str]:
    """The lines of a corpus file, for training a tokenizer; see `open_documents`."""
    if kind_of(path) == "text":
        yield from read_lines(path)
        return
    with open_documents(path, text_field) as (file, _):
        for line in file:
            yield line.decode("utf-8").removesuffix("\n")


def _json_texts(path: Path, file: BinaryIO, field: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_RECORD + 1), b""), start=1):
        if len(line) > LONGEST_RECORD:
            raise UserError(f"{path}, line {number}: longer than {LONGEST_RECORD >> 20} MiB; expected an object a line")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from None
        if not isinstance(record, dict) or field not in record:
            there = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise UserError(
                f"{path}, line {number}: no text in a field {field!r} (there: {there[:200] or 'nothing'}); name the "
                "field with --text-field"
            )
        yield _text(record[field], f"{path}, line {number}: field {field!r}")


def _text(value: Any, where: str) -> str:
    """The text of a record, "" where it is null: a record without text."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} holds {type(value).__name__}, expected text; name another one with --text-field")
    return value or ""


def _parquet_texts(path: Path, raw: BinaryIO, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs the package pyarrow; run: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(raw)
        if field not in file.schema_arrow.names:
            there = ", ".join(file.schema_arrow.names)[:200]
            raise UserError(f"{path}: no column {field!r} (there: {there}); name the column with --text-field")
        for batch in file.iter_batches(_ROWS, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield _text(value, f"{path}: column {field!r}")
    except (ArrowException, OSError) as error:
        raise UserError(
            f"{path}: the parquet file is broken or cut off ({str(error).splitlines()[0]}); copy the file again"
        ) from None


def _as_file(texts: Iterable[str], document_per_line: bool) -> BinaryIO:
    return io.BufferedReader(_Joined(_document(text, document_per_line) for text in texts), 1 << 17)


def _document(text: str, is_line: bool) -> bytes:
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    if not lines:
        return b""
    joined = " ".join(lines) + "\n" if is_line else "\n".join(lines) + "\n\n"
    return joined.encode("utf-8", "replace")  # half a surrogate pair is no character: JSON can hold one


class _Joined(io.RawIOBase):
    """Pieces of bytes, one after the other, as a file."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            try:
                self._rest = next(self._pieces)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
