"""What the commands of this package share: a user's mistake is one line, an interruption is no crash."""

import logging
import signal
import sys
from collections.abc import Callable

from rt_plugin.errors import UserError

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def run(name: str, action: Callable[[], None], when_stopped: str = "stopped") -> int:
    """Do the work of the command `name`; returns its exit status.

    A `UserError` is printed to standard error in one line, and `when_stopped` after Ctrl-C. SIGTERM and the end of the
    terminal (SIGHUP, unless nohup has it ignored) count as Ctrl-C, so that `finally` blocks run.
    """
    heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupt) for number in heeded}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG, and matplotlib then lists every font
    try:
        action()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: {when_stopped}", file=sys.stderr, flush=True)
        return INTERRUPTED
    finally:
        root.setLevel(level)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def report(line: str) -> None:
    """Progress goes to standard error, at once; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number
