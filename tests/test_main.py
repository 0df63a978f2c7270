"""One command with verbs: the list, the help of each, mistakes; and none of it loads what only the work needs."""

import json
import subprocess
import sys

import pytest

from conftest import REPOSITORY, run_command
from rt_plugin.__main__ import VERBS, main

HEAVY = {"fairseq", "torch", "matplotlib", "scipy", "sklearn", "pandas", "sentencepiece", "sacremoses"}
LOADED = """
import contextlib, io, json, sys
from rt_plugin.__main__ import main
for verb in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([verb, "--help"])
print(json.dumps([name for name in sys.modules if "." not in name]))
"""


def test_list_of_verbs(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "rt-plugin 0.1.0\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: rt-plugin {verb} ")


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_options_are_told_with_the_verb(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--no-such-option"])
    assert end.value.code == 2
    assert f"rt-plugin {verb}" in capsys.readouterr().err.splitlines()[-1].partition("error: ")[0]


@pytest.mark.parametrize(
    ("word", "advice"), [("pretrian", "did you mean pretrain?"), ("x", "expected one of backends,")]
)
def test_unknown_verb(word, advice, capsys):
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rt-plugin: error: there is no verb '{word}'; {advice}") and error.count("\n") == 1


def test_help_loads_no_fairseq_and_nothing_else_that_takes_long():
    result = subprocess.run([sys.executable, "-c", LOADED, *VERBS], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert HEAVY & set(json.loads(result.stdout)) == set()


def test_the_same_from_a_checkout_and_installed():
    module = subprocess.run([sys.executable, "-m", "rt_plugin"], cwd=REPOSITORY, capture_output=True, text=True)
    assert module.stdout == run_command("rt-plugin").stdout
    status = run_command("rt-plugin", "encode-text", "gone.txt", "out", "--tokenizer", "gone", ok=False)
    assert status.returncode == 1
    assert status.stderr.startswith(
        "rt-plugin encode-text: error: gone/sentencepiece.bpe.model: no sentencepiece model"
    )


def test_backends(capsys):
    assert main(["backends"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("rt_plugin 0.1.0, torch ")
    assert [line.split()[0] for line in others] == ["cpu", "cuda"]
