"""Files and folders that appear whole or not at all, checksums of files, and what a log ends with."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rt_plugin.errors import UserError


@contextlib.contextmanager
def replacing(target: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the target's place when the block ends well; until then, and on failure, the target stays.

    What a killed process leaves, `<target>.tmp`, is overwritten by the next attempt.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(target)
    partial = target.with_name(f"{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


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
        OSError: the folder cannot be written.
    """
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
