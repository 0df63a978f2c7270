"""How a verb ends, and which part of a command line is its own."""

import os
import signal
import time

import pytest

from rt_plugin.console import commands
from rt_plugin.errors import UserError


def fail():
    raise UserError("nothing there")


def use_matplotlib():
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.pyplot")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


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
        (terminate, 130, "\nrt-plugin pretrain: resume it\n"),
    ],
    ids=["done", "mistake", "no extra", "stopped"],
)
def test_ends_with_a_status_and_one_line(action, status, said, capsys):
    assert commands.run("pretrain", action, "resume it") == status
    assert capsys.readouterr().err == said


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
