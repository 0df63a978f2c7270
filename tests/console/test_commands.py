"""How a verb ends, and which part of a command line is its own."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rt_plugin.console import commands
from rt_plugin.errors import UserError


def fail():
    raise UserError("nothing there")


def use_matplotlib():
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.pyplot")


def signalled(number):
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.fixture(autouse=True)
def sighup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("action", "status", "said"),
    [
        (lambda: None, 0, ""),
        (fail, 1, "rt-plugin pretrain: error: nothing there\n"),
        (
            use_matplotlib,
            1,
            "rt-plugin pretrain: error: matplotlib is not installed, which this needs; run: pip install matplotlib\n",
        ),
        (Path("/nowhere/x").read_text, 1, "rt-plugin pretrain: error: /nowhere/x: No such file or directory\n"),
        (lambda: 7, 7, ""),
        (lambda: signalled(signal.SIGTERM), commands.STOPPED, "\nrt-plugin pretrain: resume it\n"),
        (lambda: signalled(signal.SIGUSR1), commands.STOPPED, "\nrt-plugin pretrain: resume it\n"),
        (lambda: signalled(signal.SIGHUP), commands.INTERRUPTED, "\nrt-plugin pretrain: resume it\n"),
    ],
    ids=["done", "mistake", "no extra", "no file", "own status", "SIGTERM", "SIGUSR1", "SIGHUP"],
)
def test_ends_with_a_status_and_one_line(action, status, said, capsys):
    assert commands.run("pretrain", action, "resume it") == status
    assert capsys.readouterr().err == said


def test_a_verb_that_cannot_go_on_is_only_interrupted():
    assert commands.run("plot", lambda: signalled(signal.SIGTERM)) == commands.INTERRUPTED


def test_a_trace_on_request(monkeypatch, capsys):
    monkeypatch.setenv("RT_PLUGIN_DEBUG", "1")
    assert commands.run("plot", fail) == 1
    first, *_, source, last, line = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):" and "raise UserError" in source
    assert last.endswith("UserError: nothing there") and line == "rt-plugin plot: error: nothing there"


def take_it_for_a_file():
    try:
        print("x" * 100_000)
    except OSError:
        raise UserError("cannot be written") from None


@pytest.mark.parametrize("action", [lambda: print("x"), take_it_for_a_file], ids=["print", "print in a try"])
def test_output_that_nobody_reads(action, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert commands.run("plot", action) == commands.NOBODY_READS
    assert capsys.readouterr().err == ""


def test_output_whose_encoding_lacks_a_letter(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert commands.run("plot", lambda: print("a \u2265 b")) == 1
    line = "standard output, or a file's name: latin-1 has no '\\u2265'; set PYTHONUTF8=1"
    assert capsys.readouterr().err == f"rt-plugin plot: error: {line}\n"


def test_output_that_is_full():
    """The verb names it, and nothing is left that the end of the process would print."""
    code = "from rt_plugin.console import commands; raise SystemExit(commands.run('plot', lambda: print('x')))"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", code]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, env=buffered, text=True)
    assert result.stderr == "rt-plugin plot: error: standard output: No space left on device\n"
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("argv", "ours", "rest"),
    [
        (["a", "--b"], ["a", "--b"], []),
        (["a", "--"], ["a"], []),
        (["a", "--", "-x", "--", "y"], ["a"], ["-x", "--", "y"]),
        (["--"], [], []),
    ],
)
def test_command_line_is_cut_at_its_first_dashes(argv, ours, rest):
    assert commands.split_at_dashes(argv) == (ours, rest)


REASONS = {"--lr": "is ours", "--distributed-": "is worked out"}


@pytest.mark.parametrize("words", [[], ["--lr-scheduler", "x"], ["--fp16"], ["--distributed"], ["lr"]])
def test_options_that_may_be_handed_on(words):
    commands.refuse_options(words, REASONS)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--fp16", "--lr", "1"], "--lr is ours"),
        (["--lr=1"], "--lr is ours"),
        (["--distributed-port=1"], "--distributed-port is worked out"),
    ],
)
def test_options_that_may_not_be_handed_on(words, error):
    with pytest.raises(UserError, match=f"^{error}$"):
        commands.refuse_options(words, REASONS)
