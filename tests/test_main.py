"""One command with verbs: the list, the help of each, mistakes; and none of it loads what only the work needs."""

import json
import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY, run_command, user_error
from rt_plugin.__main__ import VERBS, main
from rt_plugin.console import requirements
from rt_plugin.console.requirements import FAIRSEQ_VERSION

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


@pytest.mark.parametrize("words", [[], ["pretrain", "--help"]])
def test_output_that_nobody_reads(words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "rt_plugin", *words]
    result = subprocess.run(command, cwd=REPOSITORY, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert result.stderr == ""
    assert result.returncode in (141, 0), "argparse, too, may notice it, and says nothing"


@pytest.mark.parametrize("words", [["--version"], ["backends"], ["pretrain", "--help"], ["plot", "--version"]])
@pytest.mark.parametrize(
    ("shell", "reason"),
    [('exec "$@" >/dev/full', "No space left on device"), ('exec "$@" >&-', "Bad file descriptor")],
    ids=["full", "closed"],
)
def test_output_that_cannot_be_written(words, shell, reason):
    command = ["bash", "-c", shell, "bash", sys.executable, "-m", "rt_plugin", *words]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # argparse passes over what cannot be written at once
    result = subprocess.run(command, cwd=REPOSITORY, env=buffered, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"rt-plugin: error: standard output: {reason}\n")
    result = subprocess.run(
        command, cwd=REPOSITORY, env={**buffered, "PYTHONUNBUFFERED": "1"}, capture_output=True, text=True
    )
    swallowed = "full" in shell and words[-1] in ("--help", "--version") and len(words) > 1  # by argparse, as said
    assert (result.returncode, result.stderr.count("\n")) == ((0, 0) if swallowed else (1, 1)), result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_fairseq_is_none_of_standard_output(monkeypatch):
    def fail():
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("fairseq_cli.validate.cli_main", fail)
    monkeypatch.setattr(sys, "argv", ["rt-plugin"])
    with pytest.raises(OSError, match="Address already in use"):
        main(["fairseq", "validate"])


def test_debug_shows_where_an_error_comes_from(capsys, monkeypatch):
    monkeypatch.setenv("RT_PLUGIN_DEBUG", "0")
    words = ["plot", "no-such-run", "--out", "curves.png"]
    assert main(words) == 1
    line = capsys.readouterr().err
    assert main(["--debug", *words]) == 1
    traced = capsys.readouterr().err
    assert line.count("\n") == 1 and traced.startswith("Traceback") and traced.endswith(line)


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
    assert [line.split()[0] for line in others] == ["cpu", "cuda", "fairseq", "--user-dir"]
    assert others[2].split()[1] == FAIRSEQ_VERSION
    assert others[3].split()[1] == str(REPOSITORY / "rt_plugin")


def test_backends_without_fairseq(tmp_path, monkeypatch, capsys):
    """A name that is found, and one whose version stands in another file, as in fairseq's own checkout."""
    monkeypatch.setitem(sys.modules, "fairseq", None)  # imports of it are forbidden
    assert main(["backends"]) == 0
    assert f"\nfairseq is not installed; run: {requirements.INSTALL['fairseq']}\n" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "fairseq")
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").touch()
    (tmp_path / "fairseq" / "version.txt").write_text("0.12.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["backends"]) == 0
    assert "\nfairseq 0.12.2; the plugin is written for 0.12.3.1\n" in capsys.readouterr().out


def test_the_user_dir_works_from_any_folder(tmp_path):
    """The path is printed by itself, and quickly: a shell puts it into the command."""
    code = "from rt_plugin.__main__ import main; import sys; main(['backends', '--user-dir']); print(*sys.modules)"
    path, modules = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert not {"torch", "fairseq"} & set(modules.split())
    options = ("--task", "rt_masked_lm", "--criterion", "rt_masked_lm", "--arch", "recurrent_roberta_tiny", "--cpu")
    result = run_command(
        "fairseq-train", "nowhere", "--user-dir", path, "--batch-size", "1", *options, cwd=tmp_path, ok=False
    )
    assert "data folder nowhere: no such folder" in user_error(result)
