"""Raw text files of any size and compression: read by lines, or in chunks that end where a document ends."""

import contextlib
import gzip
import importlib
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rt_plugin.errors import UserError

COMPRESSED = (".gz", ".xz", ".zst")
_NOT_READ = (".bz2", ".zip", ".7z", ".lz4")  # else taken for text that is not UTF-8
LONGEST_LINE = 8 << 20  # bytes; a worker of prepare-corpus needs some 50 times as much for a line
_BROKEN_ARCHIVE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@contextlib.contextmanager
def open_text(path: str | os.PathLike, digest=None) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A text file and, below it, the file on disk, whose `tell()` says how much of it is read.

    Files named .gz, .xz and .zst are decompressed on the way; .zst needs Python 3.14 or the package backports.zstd.

    Args:
        path: of the file.
        digest: an object of hashlib, which gets the bytes of the file on disk; all of them, where the block ends well.

    Raises:
        UserError: the file is missing, unreadable, a broken archive or one of another kind, or the package for .zst is
            missing.
    """
    path = Path(path)
    if path.suffix in _NOT_READ:
        raise UserError(f"{path}: {path.suffix} is not read; expected text, or text packed as {', '.join(COMPRESSED)}")
    broken = _BROKEN_ARCHIVE
    try:
        with _open(path, digest) as raw:
            if path.suffix == ".zst":
                broken = (*broken, _zstd(path).ZstdError)
            yield _decompressed(raw, path), raw
            while digest is not None and raw.read(1 << 20):  # what stands behind the end of an archive
                pass
    except broken as error:
        raise UserError(f"{path}: the archive is broken or cut off ({error}); copy the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the text file ({error.strerror}); give an existing UTF-8 file") from None


def _open(path: Path, digest) -> BinaryIO:
    return path.open("rb") if digest is None else io.BufferedReader(_Digested(path, digest), 1 << 17)


class _Digested(io.FileIO):
    """A file that is read from front to end, and its checksum with it."""

    def __init__(self, path: Path, digest):
        super().__init__(path)
        self._digest = digest

    def readinto(self, buffer) -> int:
        size = super().readinto(buffer)
        self._digest.update(memoryview(buffer)[:size])
        return size

    def seekable(self) -> bool:
        return False


def _decompressed(raw: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix == ".zst":
        return io.BufferedReader(_zstd(path).ZstdFile(raw), 1 << 17)  # lines come twice as fast through it
    return raw


def _zstd(path: Path):
    """The standard library's module, or its twin for Pythons before 3.14."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise UserError(f"{path}: reading .zst needs the package backports.zstd; run: pip install backports.zstd")


def read_lines(path: str | os.PathLike) -> Iterator[str]:
    r"""The lines of a UTF-8 text file, without their line ends.

    Only "\n" (or "\r\n") ends a line: U+2028, U+0085 and the like are white space inside a line.

    Raises:
        UserError: see `open_text`; or the file is without any text, or not UTF-8 (names line and byte), or a line is
            longer than `LONGEST_LINE`.
    """
    path = Path(path)
    has_text = False
    with open_text(path) as (file, _):
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 2), b""), start=1):  # 2: its end
            if number == 1 and not raw.endswith(b"\n"):
                _refuse_old_line_ends(path, raw)
            line = _decode_line(raw, path, number)
            has_text = has_text or bool(line.strip())
            yield line
    if not has_text:
        raise UserError(f"{path}: the text file is empty; expected UTF-8 text, one sentence or paragraph a line")


def _decode_line(raw: bytes, path: Path, number: int) -> str:
    if len(raw) > LONGEST_LINE and len(raw.removesuffix(b"\n").removesuffix(b"\r")) > LONGEST_LINE:
        raise _too_long(path, number)
    try:
        # a byte-order mark at the start of the file belongs to the encoding, not to the text
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}); "
            "convert the file, for example with iconv -t UTF-8"
        ) from None
    return line.removesuffix("\n").removesuffix("\r")


def _refuse_old_line_ends(path: Path, only_line: bytes) -> None:
    """Refuse a file whose lines end with CR alone: it would be one line. `only_line`: of the file, without its end."""
    if b"\r" in only_line.strip():
        raise UserError(
            f"{path}: its only line holds carriage returns, as the line ends of old files are; expected lines that end "
            "with a line feed: convert it, for example with tr '\\r' '\\n'"
        )


def _too_long(path: Path, number: int) -> UserError:
    return UserError(
        f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; expected text, one sentence or paragraph a "
        "line: break it into lines"
    )


@dataclass(frozen=True)
class Chunk:
    """Successive lines of a text file.

    Attributes:
        path: of the file.
        data: whole lines, as they stand in the (decompressed) file.
        first_line: the number of the first one, from 1 on.
        ends_document: whether the next chunk begins a new document.
        ends_file: whether this is the file's last chunk.
        bytes_read: of the file on disk, up to here.
    """

    path: Path
    data: bytes
    first_line: int
    ends_document: bool
    ends_file: bool
    bytes_read: int

    def lines(self) -> list[str]:
        """The lines without their ends.

        Raises:
            UserError: a line is not UTF-8, or longer than `LONGEST_LINE`.
        """
        raw_lines = self.data.split(b"\n")
        if not raw_lines[-1]:  # what follows the last line's end is no line
            raw_lines.pop()
        if self.first_line == 1 and self.ends_file and len(raw_lines) == 1 and not self.data.endswith(b"\n"):
            _refuse_old_line_ends(self.path, raw_lines[0])
        if len(self.data) > LONGEST_LINE:
            for i, raw in enumerate(raw_lines):
                if len(raw.removesuffix(b"\r")) > LONGEST_LINE:
                    raise _too_long(self.path, self.first_line + i)
        try:
            text = self.data.decode("utf-8-sig" if self.first_line == 1 else "utf-8")
        except UnicodeDecodeError:
            return [_decode_line(raw, self.path, self.first_line + i) for i, raw in enumerate(raw_lines)]
        return [line.removesuffix("\r") for line in text.split("\n")[: len(raw_lines)]]


def read_chunks(path: str | os.PathLike, size: int, document_per_line: bool, opened=open_text) -> Iterator[Chunk]:
    """A text file as chunks of about `size` bytes, each ending with a document where the documents are smaller.

    A document larger than two chunks is cut between lines, so that memory stays bounded.

    Args:
        size: bytes of decompressed text.
        document_per_line: each line is a document; else blank lines separate documents.
        opened: opens the file, see `open_text`.

    Raises:
        UserError: see `open_text`; or a line is longer than `LONGEST_LINE` (where it is in one chunk with its end,
            `Chunk.lines` says so).
    """
    path = Path(path)
    first_line, rest = 1, b""
    with opened(path) as (file, raw):
        while block := file.read(size):
            rest += block
            if len(rest) - (rest.rfind(b"\n") + 1) > LONGEST_LINE + 1:  # 1: of its end
                raise _too_long(path, first_line + rest.count(b"\n"))
            end, ends_document = _last_boundary(rest, document_per_line, must_cut=len(rest) >= 2 * size)
            if end:
                yield Chunk(path, rest[:end], first_line, ends_document, False, raw.tell())
                first_line += rest.count(b"\n", 0, end)
                rest = rest[end:]
        yield Chunk(path, rest, first_line, True, True, raw.tell())


def _last_boundary(data: bytes, document_per_line: bool, must_cut: bool) -> tuple[int, bool]:
    """Where to cut, behind a line end (0: nowhere yet), and whether a document ends there."""
    last_line_end = data.rfind(b"\n") + 1
    if document_per_line:
        return last_line_end, True
    end = last_line_end
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if not data[start:end].strip():
            return end, True
        end = start
    return (last_line_end, False) if must_cut else (0, False)
