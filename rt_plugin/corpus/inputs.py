"""What is known of the input files: checksums, where they are cut into chunks, their documents. Read once and kept."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from rt_plugin.console.files import replacing, sha256
from rt_plugin.console.progress import Progress
from rt_plugin.corpus.workers import pool_of
from rt_plugin.errors import UserError
from rt_plugin.text.raw import Chunk, read_chunks
from rt_plugin.text.records import kind_of, open_documents

_TOGETHER = 2**28  # bytes of files that are looked through, and remembered, together
_WORTH_KEEPING = 2**26  # bytes: less is read again sooner than written down
_CUT_FIELDS = ("start", "length", "first_line", "ends_document", "ends_file", "bytes_read", "has_text", "documents")


@dataclass(frozen=True)
class Form:
    """How files are read as text.

    Attributes:
        document_per_line: each line is a document; else blank lines separate documents.
        text_field: of records (JSON lines, parquet).
        chunk_bytes: of text that is read and encoded together.
        count_documents: whether the documents are counted, which means reading line by line.
        compare_documents: whether a checksum of each document is taken, which finds those that occur twice.
    """

    document_per_line: bool
    text_field: str
    chunk_bytes: int
    count_documents: bool = False
    compare_documents: bool = False

    def open(self, path: Path, digest=None):
        """The file as text; see `open_documents`."""
        return open_documents(path, self.text_field, self.document_per_line, digest)


@dataclass(frozen=True)
class Cut:
    """A chunk of a file, without its text.

    Attributes:
        start, length: bytes of text, decompressed.
        first_line, ends_document, ends_file, bytes_read: as of `Chunk`.
        has_text: whether it is more than white space.
        documents: that begin in it; 0 where they are not counted.
    """

    start: int
    length: int
    first_line: int
    ends_document: bool
    ends_file: bool
    bytes_read: int
    has_text: bool
    documents: int


@dataclass(frozen=True)
class Input:
    """An input file, looked through.

    Attributes:
        sha256: of the file on disk.
        cuts: (cuts, 8) int64, the fields of each `Cut`.
        documents: (documents,) uint64 checksums, if documents are compared.
    """

    path: Path
    sha256: str
    cuts: np.ndarray
    documents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def __iter__(self) -> Iterator[Cut]:
        for start, length, line, ends_document, ends_file, read, has_text, documents in self.cuts.tolist():
            yield Cut(start, length, line, bool(ends_document), bool(ends_file), read, bool(has_text), documents)


def look_through(
    files: Sequence[Path], form: Form, folder: Path, processes: int, report: Callable[[str], None]
) -> list[Input]:
    """Read files for what is to be known of them; what was found before, of files that are the same still, is kept.

    Args:
        files: that exist.
        folder: for what is found.
        processes: that read at once.
        report: takes lines of progress.

    Raises:
        UserError: a file cannot be read; where documents are counted also: is not UTF-8.
        OSError: the folder cannot be written.
    """
    groups = list(_groups(files))
    sizes = [sum(path.stat().st_size for path in group) for group in groups]
    kept = [folder if size >= _WORTH_KEEPING else None for size in sizes]
    jobs = [(group, form, place) for group, place in zip(groups, kept, strict=True)]
    found = []
    with (
        Progress("looking through the text", sum(sizes), "B", report) as progress,
        _mapping(min(processes, len(groups)) if sum(sizes) >= _WORTH_KEEPING else 1) as mapped,
    ):
        for inputs, size in zip(mapped(_look_through_group, jobs), sizes, strict=True):
            found += inputs
            progress.advance(size)
    return found


@contextlib.contextmanager
def _mapping(processes: int) -> Iterator[Callable]:
    """`map`, by so many processes."""
    if processes <= 1:
        yield map
        return
    with pool_of(processes) as pool:
        yield pool.map


def _groups(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Small files together: a record for each would take longer than reading it."""
    group, size = [], 0
    for path in files:
        bytes_here = path.stat().st_size
        if group and size + bytes_here > _TOGETHER:
            yield group
            group, size = [], 0
        group, size = [*group, path], size + bytes_here
    if group:
        yield group


def _look_through_group(job: tuple[list[Path], Form, Path | None]) -> list[Input]:
    files, form, folder = job
    key = json.dumps([*map(state_of, files), asdict(form)])
    record = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz" if folder else None
    if record is not None and record.is_file():
        with contextlib.suppress(ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: made anew
            return _read_record(record, files)
    found = [_look_through_file(path, form) for path in files]
    if record is not None:
        arrays = {f"{name}{i}": getattr(x, name) for i, x in enumerate(found) for name in ("cuts", "documents")}
        with replacing(record) as file:
            np.savez(file, sha256=np.array([x.sha256 for x in found]), **arrays)
    return found


def _read_record(record: Path, files: list[Path]) -> list[Input]:
    with np.load(record) as data:
        return [
            Input(path, str(digest), data[f"cuts{i}"], data[f"documents{i}"])
            for i, (path, digest) in enumerate(zip(files, data["sha256"], strict=True))
        ]


def state_of(path: Path) -> list:
    """What changes when a file does: its path, its length in bytes, the time of its last change."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _look_through_file(path: Path, form: Form) -> Input:
    digest = None if kind_of(path) == "parquet" else hashlib.sha256()
    cuts, checksums, start, documents = [], _Checksums(form), 0, 0
    inside = False
    for chunk in read_chunks(path, form.chunk_bytes, form.document_per_line, lambda p: form.open(p, digest)):
        if form.count_documents or form.compare_documents:
            lines = chunk.lines()
            begun = documents_begun(lines, form.document_per_line, 0, inside)
            documents = begun[-1]
            checksums.add(lines, begun[1:])
        cuts.append((start, len(chunk.data), chunk.first_line, chunk.ends_document, chunk.ends_file))
        cuts[-1] += (chunk.bytes_read, bool(chunk.data.strip()), documents)
        start, inside = start + len(chunk.data), not chunk.ends_document
    sha = sha256(path) if digest is None else digest.hexdigest()
    return Input(path, sha, np.array(cuts, np.int64).reshape(-1, len(_CUT_FIELDS)), checksums.all())


class _Checksums:
    """A checksum of each document, from its lines that are not blank."""

    def __init__(self, form: Form):
        self._form, self._digest, self._found = form, None, []

    def add(self, lines: list[str], begun: Sequence[int]) -> None:
        """Take the lines of a chunk; `begun`: for each how many documents have begun in it."""
        if not self._form.compare_documents:
            return
        before = 0
        for line, number in zip(lines, begun, strict=True):
            if number > before:
                self._end()
                self._digest, before = hashlib.blake2b(digest_size=8), number
            if line.strip():
                self._digest.update(line.encode() + b"\n")

    def all(self) -> np.ndarray:
        """(documents,) uint64 of the file."""
        self._end()
        return np.array(self._found, dtype=np.uint64)

    def _end(self) -> None:
        if self._digest is not None:
            self._found.append(int.from_bytes(self._digest.digest(), "little"))
            self._digest = None


def documents_begun(lines: Iterable[str], document_per_line: bool, before: int = 0, inside: bool = False) -> list[int]:
    """For each line how many documents have begun with it; one more entry at the front: `before`."""
    begun = [before]
    for line in lines:
        blank = not line.strip()
        begun.append(begun[-1] + (not blank and (document_per_line or not inside)))
        inside = not blank
    return begun


def repeated_documents(inputs: Sequence[Input]) -> np.ndarray:
    """The numbers, from 1 on over all files, of the documents that are equal to an earlier one.

    Equal checksums of 64 bits count as equal documents: of a billion different ones, one in thirty runs loses one.
    """
    checksums = np.concatenate([x.documents for x in inputs]) if inputs else np.zeros(0, np.uint64)
    _, first = np.unique(checksums, return_index=True)
    repeated = np.ones(len(checksums), dtype=bool)
    repeated[first] = False
    return np.flatnonzero(repeated) + 1


def read_cuts(path: Path, cuts: Iterable[Cut], form: Form) -> Iterator[Chunk]:
    """The chunks of some cuts of a file, in order. What stands before them is read only where it is compressed.

    Raises:
        UserError: the file cannot be read, or is shorter than it was.
    """
    with form.open(path) as (file, raw):
        position = 0
        for cut in cuts:
            if file is raw:
                file.seek(cut.start)
            else:
                _skip(file, cut.start - position)
            data = b"".join(_read(file, cut.length))
            if len(data) != cut.length:
                raise UserError(f"{path}: has changed while it was read; run the same command again with --fresh")
            position = cut.start + cut.length
            yield Chunk(path, data, cut.first_line, cut.ends_document, cut.ends_file, cut.bytes_read)


def _read(file, size: int) -> Iterator[bytes]:
    while size and (block := file.read(min(size, 1 << 22))):
        size -= len(block)
        yield block


def _skip(file, size: int) -> None:
    for _ in _read(file, size):
        pass
