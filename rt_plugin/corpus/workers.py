"""Pools of worker processes that end with the work, however it ends."""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from rt_plugin.console.processes import end_with_parent
from rt_plugin.errors import UserError


@contextlib.contextmanager
def pool_of(processes: int, start: Callable | None = None, arguments: tuple = ()) -> Iterator[ProcessPoolExecutor]:
    """Some worker processes. Where the block does not end well they are killed: what they write has to appear whole.

    Args:
        start: called in each before its first work, with `arguments`.

    Raises:
        UserError: a worker was killed.
    """
    # fork spares each worker the import of torch; macOS' system libraries do not survive it
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    others = set(multiprocessing.active_children())
    try:
        with ProcessPoolExecutor(processes, context, _start, (start, arguments)) as pool:
            try:
                yield pool
            except BaseException:
                for process in set(multiprocessing.active_children()) - others:
                    process.kill()  # a file of a terabyte is not read to its end first
                raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; run the same command again with fewer "
            "--workers: it continues"
        ) from None


def _start(start: Callable | None, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the first one ends the others
    end_with_parent()
    if start is not None:
        start(*arguments)
