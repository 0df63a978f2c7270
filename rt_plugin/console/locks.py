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

from rt_plugin.console.files import appending
from rt_plugin.errors import UserError

_held: set[int] = set()  # descriptors of this process's locks, but those of `handed_on`


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
        descriptor = _acquire(file)
    except BlockingIOError:
        raise UserError(f"{folder}: {refusal}") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from None
    try:
        yield
    finally:
        _release(descriptor)


@contextlib.contextmanager
def in_turn(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until nobody else holds the lock `file`, then hold it.

    For what another process is about to end, such as a training whose launcher was killed just now.

    Args:
        waiting: called once where another process holds the lock.

    Raises:
        OSError: the file cannot be written, or is a symbolic link.
    """
    try:
        descriptor = _acquire(file)
    except BlockingIOError:
        waiting()
        descriptor = _acquire(file, wait=True)
    try:
        yield
    finally:
        _release(descriptor)


def _acquire(file: Path, wait: bool = False) -> int:
    """Lock a file, made if needed, neither emptied nor followed where it is a link; returns its descriptor.

    Raises:
        BlockingIOError: somebody else has it, and this is not to wait.
        OSError: the file cannot be written.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:  # Ctrl-C, too
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def _release(descriptor: int) -> None:
    if descriptor in _held:  # not in a child that was forked
        _held.remove(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _leave_to_parent() -> None:
    """In a child that was forked: or it would hold the parent's locks when that is killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def handed_on(folder: Path, name: str, refusal: str) -> Iterator[int]:
    """A lock for a child process to inherit and to outlive this one: the folder is taken as long as either runs.

    Yields:
        The open lock file, for `pass_fds` of subprocess; what is written into it, by `note_holder`, is for the refusal.

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
