"""How far some work is and how long the rest will take: a bar in a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rt_plugin.console import commands

T = TypeVar("T")


class Progress:
    """Progress of some work, as a context manager: a bar if standard error is a terminal, else lines.

    Args:
        what: the work, as the lines name it.
        total: how much there is of it; None where nobody knows.
        unit: of the amounts; "B" for bytes, which are shown in MiB.
        report: takes the lines; only with `commands.report`, the default, there is a bar.
        seconds: between lines, default 5.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        unit: str = "rows",
        report: Callable[[str], None] = commands.report,
        seconds: float = 5.0,
    ):
        self._what, self._total, self._unit = what, total, unit
        self._report, self._seconds = report, seconds
        self._done = self._skipped = 0
        self._began = self._reported = time.monotonic()
        self._bar = _bar(what, total, unit) if report is commands.report and sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """So much more is done; `note`: what else there is to say."""
        self.reach(self._done + amount, note)

    def reach(self, position: float, note: str = "") -> None:
        """So much is done in all; what is done stays done."""
        position = max(position, self._done)
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(position - self._done)
        self._done = position
        now = time.monotonic()
        if self._bar is None and now - self._reported >= self._seconds:
            self._reported = now
            self._report(self._line(note))

    def skip_to(self, position: float) -> None:
        """The work up to there was done by an earlier run, and says nothing about the speed."""
        skipped = max(0, position - self._done)
        self._skipped += skipped
        if self._bar is not None:
            self._bar.initial += skipped
        self.reach(position)

    def time_left(self) -> str:
        """How long the rest will take at the speed so far, in words; empty where nothing can be said."""
        done, left = self._done - self._skipped, (self._total or 0) - self._done
        if done <= 0 or left <= 0:
            return ""
        return f"about {duration((time.monotonic() - self._began) * left / done)} left"

    def _line(self, note: str) -> str:
        speed = (self._done - self._skipped) / max(1e-9, time.monotonic() - self._began)
        if self._total:
            amount = f"{min(1, self._done / self._total):.0%} of {self._amount(self._total)}"
        else:
            amount = self._amount(self._done)
        words = [amount, f"{self._amount(speed)} a second" if speed else "", self.time_left(), note]
        return f"{self._what}: {', '.join(filter(None, words))}"

    def _amount(self, number: float) -> str:
        if self._unit == "B":
            return f"{number / 2**20:,.1f} MiB"
        return f"{number:,.0f} {self._unit}" if number >= 10 else f"{number:.2g} {self._unit}"


def track(
    items: Iterable[T],
    what: str,
    total: float | None = None,
    unit: str = "rows",
    report: Callable[[str], None] = commands.report,
) -> Iterator[T]:
    """The items as they are, with `Progress` by their number."""
    with Progress(what, total, unit, report) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """A time in its two largest units: "1 h 05 min", "3 min 07 s", "12 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def _bar(what: str, total: float | None, unit: str):
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # seconds; else tqdm starts a thread, which does not go with forking

    scale = {"unit_scale": True, "unit_divisor": 1024 if unit == "B" else 1000}
    spaced = unit if unit == "B" else f" {unit}"
    return Bar(
        desc=what, total=total, unit=spaced, file=sys.stderr, leave=False, dynamic_ncols=True, smoothing=0, **scale
    )
