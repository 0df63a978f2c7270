"""Files and folders that appear whole or not at all, checksums of files, and what a log ends with."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from rt_plugin.errors import UserError

# O_EXCL: a name that is there already, a link to somewhere else too, is never written to
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def replacing(target: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the target's place when the block ends well; until then, and on failure, the target stays.

    Until then its name is `temporary_name(target)`. What killed processes left is removed by the next attempt.

    Raises:
        UserError: the target is a pipe or a device, which a file would take the place of.
        OSError: the file cannot be written.
    """
    target = Path(target)
    _refuse_special(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    partial, descriptor = _held_file(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _held_file(target: Path) -> tuple[Path, int]:
    """A new temporary file, and its descriptor, locked: that says that its process lives."""
    while True:
        partial = temporary_name(target)
        descriptor = os.open(partial, _NEW_FILE, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nobody could tell later that the file is left over
            os.close(descriptor)
            partial.unlink(missing_ok=True)
            raise
        if os.fstat(descriptor).st_nlink:  # else another process took it for one that was left over, just before
            return partial, descriptor
        os.close(descriptor)


def temporary_name(target: str | os.PathLike) -> Path:
    """A name beside the target that nobody can guess, and that says what it was: `.<target>.<16 digits>.tmp`."""
    target = Path(target)
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


def _remove_left_over(target: Path) -> None:
    """Remove the temporary files of processes that were killed: nobody holds them any more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):
            # for writing: NFS locks nothing else against others
            held = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(held)


def _refuse_special(target: Path) -> None:
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UserError(
            f"{target}: is a pipe or a device, expected a file or nothing; give the name of a file to write"
        )


def check_output(target: Path, source: Path | None = None) -> None:
    """Refuse the name of a file to write before any work is done for it.

    Args:
        target: of the file.
        source: the text that is read meanwhile, if any.

    Raises:
        UserError: the target is a folder, a pipe or a device, or the source itself, under whatever name.
    """
    _refuse_special(target)
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give the name of the file to write")
    if source and target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target}: is the input itself; give another file to write")


@contextlib.contextmanager
def writing(target: str | os.PathLike) -> Iterator[BinaryIO]:
    """`replacing` for a file that the user named.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(target) as file:
            yield file
    except OSError as error:
        raise UserError(f"{target}: cannot write the file ({error.strerror}); is the disk full or read-only?") from None


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the target's place when the block ends well; until then, and on failure, the target stays.

    What a killed process leaves, `.<target>.partial`, is removed by the next attempt.

    Raises:
        UserError: the target is a symbolic link: a folder in its place would leave what it points to as it was.
        OSError: the folder cannot be written.
    """
    if target.is_symlink():
        raise UserError(f"{target}: is a symbolic link, expected a folder or nothing; remove it, or name that folder")
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)  # one folder cannot take another's place in one step
        os.replace(partial, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def appending(path: str | os.PathLike) -> BinaryIO:
    """A file of a command's own, made if needed, to be read and to be written at its end: never what a link points to.

    Raises:
        UserError: it is a symbolic link.
        OSError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: is a symbolic link, expected a file of this command's own; remove it") from None
    return os.fdopen(descriptor, "a+b")


def continue_log(path: str | os.PathLike, keep_rest: bool) -> TextIO:
    """A log opened to go on with it, in a line of its own.

    A full disk, or a kill, may have cut off what was written last: half a record would take the next one with it.

    Args:
        path: of the log, made if needed.
        keep_rest: end the line that was cut off; else it is removed.

    Raises:
        UserError: it is a symbolic link.
        OSError: the file cannot be written.
    """
    with appending(path) as file:
        size = file.seek(0, os.SEEK_END)
        whole = size
        while whole:
            start = max(0, whole - 4096)
            file.seek(start)
            end = file.read(whole - start).rfind(b"\n") + 1
            whole = start + end
            if end:
                break
        if whole < size:
            file.write(b"\n") if keep_rest else file.truncate(whole)
    return io.TextIOWrapper(appending(path), encoding="utf-8")


def sha256(*paths: Path) -> str:
    """The SHA-256 of files, one after the other, in hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def last_line(path: Path, otherwise: str) -> str:
    """The last line of a log that is not blank, stripped; `otherwise` where there is none, or no file."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), otherwise)
