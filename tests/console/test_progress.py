"""Progress: lines with the time left in a log, a bar in a terminal."""

import io
import sys
from collections.abc import Callable

import pytest

from rt_plugin.console import commands
from rt_plugin.console.progress import Progress, duration, track


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """Lets time pass, which else stands still."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def lines() -> list[str]:
    return []


def test_lines_every_few_seconds(clock, lines):
    with Progress("texts", 400, report=lines.append, seconds=5) as progress:
        for _ in range(10):
            clock(2)
            progress.advance(10)
    assert lines == [
        "texts: 8% of 400 rows, 5 rows a second, about 1 min 14 s left",
        "texts: 15% of 400 rows, 5 rows a second, about 1 min 08 s left",
        "texts: 22% of 400 rows, 5 rows a second, about 1 min 02 s left",
    ]


def test_work_of_an_earlier_run_does_not_count_for_the_speed(clock, lines):
    progress = Progress("data", 100 * 2**20, "B", lines.append)
    progress.skip_to(50 * 2**20)
    assert progress.time_left() == ""
    clock(10)
    progress.reach(60 * 2**20, "two files")
    progress.reach(55 * 2**20)  # a result that comes late
    assert lines == ["data: 60% of 100.0 MiB, 1.0 MiB a second, about 40 s left, two files"]
    assert progress.time_left() == "about 40 s left"
    progress.reach(100 * 2**20)
    assert progress.time_left() == ""


def test_without_a_total_there_is_no_time_left(clock, lines):
    for _ in track(range(30), "rows of a file", report=lines.append):
        clock(1)
    assert lines[0] == "rows of a file: 5 rows, 1 rows a second"
    assert len(lines) == 6


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_in_a_terminal_and_lines_above_it(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("texts", 4) as progress:
        progress.advance()
        commands.report("a row is broken")
        progress.advance(2)
    shown = screen.getvalue()
    assert "texts:  25%|" in shown and "0/4" in shown.replace(".00", "")
    above = shown[: shown.index("a row is broken")]
    assert above.endswith("\r"), "the bar stays in the line"
    assert "\n" in shown and not shown.rstrip("\r ").endswith("it/s]")


def test_no_bar_where_somebody_else_takes_the_lines(monkeypatch, lines):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with Progress("texts", 4, report=lines.append, seconds=0) as progress:
        progress.advance()
    assert len(lines) == 1 and not screen.getvalue()


def test_no_bar_in_a_log(capsys):
    with Progress("texts", 4, seconds=0) as progress:
        progress.advance()
    shown = capsys.readouterr().err
    assert shown.startswith("texts: 25% of 4 rows, ") and shown.count("\n") == 1 and "\r" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (90, "1 min 30 s"), (3599, "59 min 59 s"), (3661, "1 h 01 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
