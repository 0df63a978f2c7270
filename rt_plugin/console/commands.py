"""What the verbs of `rt-plugin` share: a user's mistake is one line, an interruption is no crash."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from rt_plugin._version import __version__
from rt_plugin.console import requirements
from rt_plugin.errors import UserError, traces_are_wanted

STANDARD_OUTPUT = "standard output"
NOBODY_READS = 141  # what a shell reports for a program whose output goes to one that has ended, such as head
INTERRUPTED = 130  # what a shell reports for Ctrl-C
STOPPED = 75  # asked to end by a signal of a scheduler, and has saved: EX_TEMPFAIL of sysexits.h, "try again later"
_SHORTEST = len("--xx")  # argparse takes the beginning of an option for the option
STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def parser(verb: str, description: str, **options) -> argparse.ArgumentParser:
    """The parser of a verb, which prints its description as it stands; `options` go to ArgumentParser."""
    made = argparse.ArgumentParser(
        prog=f"rt-plugin {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    add_version(made)
    return made


def add_version(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option `--version`."""
    parser.add_argument("--version", action="version", version=f"rt-plugin {__version__}")


def run(verb: str, action: Callable[[], object], when_stopped: str | None = None) -> int:
    """Do the work of `rt-plugin VERB`; returns its exit status: the number that `action` returns, or 0.

    A `UserError` is printed to standard error in one line, and so are a file, or standard output, that cannot be read
    or written and a package that is missing; `when_stopped` after Ctrl-C. `STOPPING_SIGNALS` and the end of
    the terminal (SIGHUP) count as Ctrl-C, so that `finally` blocks run, unless they are ignored (nohup). After the
    former the exit status is `STOPPED` where the verb gives `when_stopped`, as those do that go on when they are
    started again.
    """
    heeded = [s for s in (*STOPPING_SIGNALS, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupt) for number in heeded}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG, and matplotlib then lists every font
    try:
        status = action()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:
        return leave_quietly()
    except UserError as error:
        if isinstance(error.__context__, BrokenPipeError):  # taken for a file that cannot be written
            return leave_quietly()
        show_trace()
        print(f"rt-plugin {verb}: error: {error}", file=sys.stderr, flush=True)
        return 1
    except (OSError, UnicodeEncodeError) as error:
        return tell_of_output(f"rt-plugin {verb}", error)
    except ModuleNotFoundError as error:
        return tell_of_missing(f"rt-plugin {verb}", error)
    except KeyboardInterrupt as interrupt:
        print(f"\nrt-plugin {verb}: {when_stopped or 'stopped'}", file=sys.stderr, flush=True)
        return STOPPED if when_stopped and interrupt.args and interrupt.args[0] in STOPPING_SIGNALS else INTERRUPTED
    finally:
        root.setLevel(level)
        for number, handler in previous.items():
            signal.signal(number, handler)


def show_trace() -> None:
    """Print where the error that is being handled comes from, if that is wanted: above the line that tells of it."""
    if traces_are_wanted():
        traceback.print_exc()


def leave_quietly() -> int:
    """Give up printing, since nobody reads it any more; returns the exit status."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is still waiting there is flushed at the end
    return NOBODY_READS


def tell_of_output(who: str, error: OSError | UnicodeEncodeError, place: str = "") -> int:
    """Print one line on a file, or standard output, that cannot be read or written; returns the exit status.

    Args:
        who: prints it.
        error: that is being handled; raised again where it is not of that kind.
        place: where it was, if the error does not say.
    """
    if isinstance(error, UnicodeEncodeError):
        if error.encoding == "utf-8":  # half characters, whatever they were to be written to
            raise error
        character = error.object[error.start]
        line = f"{STANDARD_OUTPUT}, or a file's name: {error.encoding} has no {character!a}; set PYTHONUTF8=1"
    else:
        place = error.filename or (place if _output_works() else STANDARD_OUTPUT)
        line = f"{place}: {error.strerror or error}" if place else error.strerror or str(error)
    show_trace()
    print(f"{who}: error: {line}", file=sys.stderr, flush=True)
    return 1


def tell_of_missing(who: str, error: ModuleNotFoundError) -> int:
    """Print one line on a package that is not there; returns the exit status.

    Args:
        who: prints it.
        error: that is being handled; raised again where the package is none of `requirements.INSTALL`.
    """
    package = (error.name or "").partition(".")[0]
    if package not in requirements.INSTALL:
        raise error
    show_trace()
    print(f"{who}: error: {requirements.missing(package)}", file=sys.stderr, flush=True)
    return 1


def _output_works() -> bool:
    """Whether what waits to be printed can be; else it is given up, or the end of the process would try again."""
    try:
        sys.stdout.flush()
    except OSError:
        leave_quietly()
        return False
    return True


def closed_output() -> TextIO:
    """In the place of a standard output that was closed before the start: whatever is printed fails, nothing else."""
    return open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


def _interrupt(number: int, frame) -> NoReturn:
    raise KeyboardInterrupt(number)


def report(line: str) -> None:
    """Progress goes to standard error, at once, above a bar where one is drawn; standard output is for results."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def split_at_dashes(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A command line cut at its first `--`: (what this program reads, what it hands on).

    Args:
        argv: without the program's name; None for that of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def refuse_options(words: Sequence[str], reasons: dict[str, str]) -> None:
    """Refuse options that are handed on to another program, and that this one sets itself.

    Args:
        words: what comes behind the `--`.
        reasons: option, or how some begin, up to a "-" -> the rest of the error's sentence.

    Raises:
        UserError: one of them is there.
    """
    for word in words:
        option = word.split("=")[0]
        for name, reason in reasons.items():
            begins = name.endswith("-") and option.startswith(name)
            shortened = not name.endswith("-") and len(option) > _SHORTEST and name.startswith(option)
            if option == name or begins or shortened:
                raise UserError(f"{name if shortened else option} {reason}")
