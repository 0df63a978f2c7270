"""What the verbs of `rt-plugin` share: a user's mistake is one line, an interruption is no crash."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence

from rt_plugin._version import __version__
from rt_plugin.console import requirements
from rt_plugin.errors import UserError

INTERRUPTED = 130  # what a shell reports for Ctrl-C


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


def run(verb: str, action: Callable[[], None], when_stopped: str = "stopped") -> int:
    """Do the work of `rt-plugin VERB`; returns its exit status.

    A `UserError` is printed to standard error in one line, and so is a package that is missing, an optional one;
    `when_stopped` after Ctrl-C. SIGTERM and the end of the
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
        print(f"rt-plugin {verb}: error: {error}", file=sys.stderr, flush=True)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in requirements.INSTALL:
            raise
        print(f"rt-plugin {verb}: error: {requirements.missing(package)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nrt-plugin {verb}: {when_stopped}", file=sys.stderr, flush=True)
        return INTERRUPTED
    finally:
        root.setLevel(level)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


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
            if option == name or (name.endswith("-") and option.startswith(name)):
                raise UserError(f"{option} {reason}")
