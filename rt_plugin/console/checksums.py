"""The SHA-256 of a folder's files, listed in its file SHA256SUMS, which `sha256sum --check` reads, too.

Exported models and prepared data have one. It finds damage, not intent: who changes a file can change the list.
"""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from rt_plugin.console.files import replacing, sha256
from rt_plugin.errors import UserError

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0]+)")
_MOST_BYTES = 1 << 20
_DIGITS = 16  # of 64, shown to people
_HOW_TO_LIST = f"if the change is meant, list the files anew (sha256sum FILES > {CHECKSUMS_FILE})"


def shown(digest: str) -> str:
    """The beginning of a checksum, for people."""
    return f"{digest[:_DIGITS]}..."


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does, or is another: length, times of changes of content and of status, inode."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits; read once a process for as long as the file stays the same.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(os.path.abspath(path))
    try:
        return _digest(path, stamp(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


@functools.lru_cache(maxsize=256)
def _digest(path: Path, _: tuple[int, ...]) -> str:
    return sha256(path)


def write_checksums(folder: Path, digests: dict[str, str]) -> None:
    """Write the list of a folder: name -> SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(folder / CHECKSUMS_FILE) as file:
        file.write("".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode())


def read_checksums(folder: Path) -> dict[str, str]:
    """The list of a folder, name -> SHA-256; empty where there is none.

    Raises:
        UserError: it is no such list.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected lines as sha256sum writes them") from None
    listed = {}
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if not found:
            raise UserError(
                f"{path}, line {number}: found {line[:80]!r}, expected a SHA-256 and a name, as sha256sum writes them"
            )
        listed[found[2]] = found[1]
    return listed


def check_listed(folder: Path, names: Iterable[str]) -> None:
    """Compare files of a folder with its list, where that names them.

    Raises:
        UserError: one is another, or is missing; the line has both checksums.
    """
    listed = read_checksums(folder)
    for name in names:
        if name in listed:
            check_digest(folder / name, listed[name])


def check_digest(path: Path, expected: str) -> None:
    """Compare a file with the checksum that the list of its folder has."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, and {CHECKSUMS_FILE} beside it names one; get it again; {_HOW_TO_LIST}")
    if (found := digest(path)) != expected:
        raise UserError(
            f"{path}: SHA-256 is {shown(found)}, expected {shown(expected)} as {CHECKSUMS_FILE} beside it says: it is "
            f"damaged, or another file; get it again; {_HOW_TO_LIST}"
        )


def forget(folder: Path, changing: Iterable[str]) -> None:
    """Take files that are going to change off the list of their folder.

    Raises:
        OSError: it cannot be written.
    """
    listed = read_checksums(folder)
    kept = {name: digest for name, digest in listed.items() if name not in {*changing}}
    if not kept:
        (folder / CHECKSUMS_FILE).unlink(missing_ok=True)
    elif kept != listed:
        write_checksums(folder, kept)
