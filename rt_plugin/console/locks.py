"""Locks that keep processes out of each other's folders.

All of them are `flock`s, which the kernel frees with their last holder, however it ends. The lock files stay: one that
is removed while another process waits for it would be locked twice.
"""

import contextlib
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import filelock

from rt_plugin.console.files import appending
from rt_plugin.errors import UserError


@contextlib.contextmanager
def only_user_of(folder: Path, refusal: str, file: Path | None = None) -> Iterator[None]:
    """Keep a second run out of a folder, which is made if needed. No child process inherits the lock.

    Args:
        refusal: what to tell the second run, after the folder's name.
        file: the lock; default: `.lock` in the folder.

    Raises:
        UserError: another process is at work there, or the folder cannot be written.
    """
    file = file or folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(file).acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(f"{folder}: {refusal}") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from None
    with lock:
        yield


@contextlib.contextmanager
def in_turn(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until nobody else holds the lock `file`, then hold it.

    For what another process is about to end, such as a training whose launcher was killed just now.

    Args:
        waiting: called once where another process holds the lock.
    """
    lock = filelock.FileLock(file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def handed_on(folder: Path, name: str, refusal: str) -> Iterator[int]:
    """A lock for a child process to inherit and to outlive this one: the folder is taken as long as either runs.

    Yields:
        The open lock file, for `pass_fds` of subprocess; what is written into it, by `note_holder`, is for the refusal.
        filelock gives no such file away: it closes its own in every child.

    Args:
        folder: made if needed.
        name: of the lock file in it.
        refusal: what to tell who comes second, after the folder's name; {process}: what the file holds.

    Raises:
        UserError: another process has the lock.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / name) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{folder}: {refusal.format(process=lock.read().strip() or 'not known')}") from None
        lock.truncate(0)  # of the holder before, and not earlier: until now it may have been another's
        yield lock.fileno()


def _opened(file: Path) -> TextIO:
    """A lock file, made if needed; never what a link points to, and not emptied."""
    return io.TextIOWrapper(appending(file))


def note_holder(lock: int, process: int) -> None:
    """Write the id of the process that holds a lock of `handed_on` into its file."""
    os.write(lock, str(process).encode())
