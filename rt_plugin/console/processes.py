"""What keeps processes from outliving those that started them, what new ones begin with, which of several is first."""

import contextlib
import ctypes
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

handed_down: dict[str, object] = {}  # what this process lets those that it starts know: they find it here, too

_PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


def usable_cores() -> int:
    """The CPU cores that this process may use; all of the machine where the system, such as macOS, does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_first_of_machine() -> bool:
    """Whether this process is the only one of a job on this machine, or the first: what is done once is done by it.

    Known for processes that a launcher started (LOCAL_RANK), and for one a GPU that have found each other.
    """
    if rank := os.environ.get("LOCAL_RANK", ""):
        return not rank.isdecimal() or int(rank) == 0
    torch = sys.modules.get("torch")  # without it there are no others
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return True
    return torch.distributed.get_rank() % max(1, torch.cuda.device_count()) == 0


def end_with_parent() -> None:
    """End this process, with status 1 and at once, as soon as the one that started it is gone.

    For children of a process that may be killed (kill -9, no memory) before it can stop them: a worker would wait for
    work for ever, a training would write into the folder of the next attempt.
    """
    threading.Thread(target=_end_after_parent, args=(os.getppid(),), daemon=True).start()


def _end_after_parent(process: int) -> None:
    if parent := multiprocessing.parent_process():
        parent.join()  # with a fork server, the process above this one is the server
    while parent is None and os.getppid() == process:
        time.sleep(0.5)
    os._exit(1)


def plugin_first(process: multiprocessing.process.BaseProcess) -> tuple:
    """How to pickle a process for one that starts from nothing: what is read first is this module.

    The plugin is imported by that, and whatever the process is given comes after it: fairseq's data sets, too.
    """
    _, (kind,), attributes, *_ = object.__reduce_ex__(process, 2)
    return _empty_process, (kind, handed_down), attributes


def _empty_process(kind: type, from_parent: dict[str, object]) -> multiprocessing.process.BaseProcess:
    handed_down.update(from_parent)
    return kind.__new__(kind)


def children_of(process: int) -> list[int]:
    """The processes that a process has started, by Linux' /proc; empty where that does not tell."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    with contextlib.suppress(OSError):  # it may have ended
        return [int(word) for path in lists for word in path.read_text().split()]
    return []


def signalled_with_parent(number: int) -> Callable[[], None] | None:
    """A `preexec_fn` for subprocess: the child gets the signal `number` when this process ends, however it ends.

    For other programs, which cannot call `end_with_parent`. Linux alone knows this; elsewhere None, and the child may
    outlive a parent that is killed. To be called in the main thread: it is the end of the calling thread that counts.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # ended before it could be asked
            os._exit(1)

    return ask
