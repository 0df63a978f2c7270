"""After a plain `pip install`, torch there and fairseq not: help and versions work, the rest names what is missing."""

import json
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import ENVIRONMENT, REPOSITORY, SAMPLE
from rt_plugin.__main__ import VERBS, main
from rt_plugin.console import requirements
from rt_plugin.export.command import FORMATS

MODEL = REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini"
DATA_FILES = ("train.bin", "train.idx", "valid.bin", "valid.idx", "dict.txt")
SCRIPTS = REPOSITORY / "scripts"
NEED_NO_FAIRSEQ = {
    *("backends", "train-tokenizer", "encode-text", "plot", "report-glue", "glue-baselines", "replicate-report")
}
HIDE = """
import sys
class NoFairseq:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "fairseq":
            raise ModuleNotFoundError("No module named 'fairseq'", name=name)
sys.meta_path.insert(0, NoFairseq)
"""
# Runs what standard input tells, and prints status and standard error of each.
RUN = """
import contextlib, io, json, sys
from rt_plugin.__main__ import main
results = []
for argv in json.load(sys.stdin):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        results.append((main(argv), error.getvalue()))
print(json.dumps(results))
"""


def commands_that_need_fairseq(data):
    """Command lines that come as far as fairseq; of every verb that needs it, and of each format."""
    model, text, out = MODEL, data / "valid.txt", data / "out"
    commands = [
        ["prepare-corpus", text, "--valid", text, "--out", out, "--tokenizer", model],
        ["pretrain", data, "--recipe", "tiny", "--save-dir", out],
        ["fairseq", "train", data],
        ["unigram", data],
        *(["export", model, out, "--format", form] for form in FORMATS),
        ["import-huggingface", model, out],
        ["fill-mask", "It is a <mask>.", "--model", model, "--out", data / "filled.txt"],
        ["embed", text, data / "vectors.npy", "--model", model],
        ["classify", "It is.", "--model", model, "--out", data / "classes.txt"],
        ["prepare-glue", SAMPLE, out, "--model", model, "--tasks", "QNLI"],
        ["finetune-glue", data, out, "--model", model],
        ["predict-glue", "rows", model, text, data / "predictions.tsv"],
        ["predict-glue", "submission", SAMPLE, data / "submission.zip", model],
        ["score", text, "--model", model],
        ["minimal-pairs", model, REPOSITORY / "examples" / "minimal_pairs", "--out", out],
        ["show-recurrence", model, text, "--out", out],
        ["replicate", "smoke", "--data", data, "--out", data / "replication"],
        ["time-updates", "smoke", "--data", data, "--out", data / "steps.csv"],
        ["held-out", model, "--data", data, "--out", out],
    ]
    return [[*map(str, words)] for words in commands]


@pytest.fixture(scope="module")
def needing(tmp_path_factory):
    """The files are empty: nothing of them is read before fairseq is asked for."""
    folder = tmp_path_factory.mktemp("needing")
    for name in DATA_FILES:
        (folder / name).touch()
    shutil.copy(SAMPLE / "valid.txt", folder)
    return commands_that_need_fairseq(folder)


def assert_one_line(verb, status, error):
    *_, last = error.rstrip().splitlines()
    assert status == 1 and "Traceback" not in error, error[-2000:]
    assert last == f"rt-plugin {verb}: error: {requirements.missing('fairseq')}", error[-2000:]


def assert_all_name_the_command(needing, python, code, cwd):
    result = subprocess.run(
        [python, "-c", code],
        input=json.dumps(needing),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    for words, (status, error) in zip(needing, json.loads(result.stdout.splitlines()[-1]), strict=True):
        assert_one_line(words[0], status, error)


def test_every_verb_that_needs_fairseq_names_the_command_that_installs_it(needing):
    assert {words[0] for words in needing} | NEED_NO_FAIRSEQ == set(VERBS)
    assert_all_name_the_command(needing, sys.executable, HIDE + RUN, REPOSITORY)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torch", ["backends"]),
        ("numpy", ["embed", "in.txt", "out.npy", "--model", MODEL]),
        ("sentencepiece", ["encode-text", SAMPLE / "valid.txt", "out.txt", "--tokenizer", MODEL]),
        ("sacremoses", ["encode-text", SAMPLE / "valid.txt", "out.txt", "--tokenizer", MODEL]),
    ],
)
def test_a_checkout_without_what_an_installation_brings(package, words, tmp_path):
    code = HIDE.replace('"fairseq"', repr(package)).replace("'fairseq'", repr(package)) + RUN
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([[*map(str, words)]]),
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    ((status, error),) = json.loads(result.stdout.splitlines()[-1])
    expected = f"{package} is not installed, which this needs; run: {requirements.INSTALL[package]}"
    assert (status, error) == (1, f"rt-plugin {words[0]}: error: {expected}\n")


@pytest.fixture
def plain_install(tmp_path):
    """The programs' folder of an environment with what `pip install rt-plugin` brings; it is linked from this one."""
    sources = tmp_path / "sources"  # setuptools writes into the folder it builds from
    for name in ("rt_plugin", "tasks", "criterions"):
        shutil.copytree(REPOSITORY / name, sources / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    venv.create(tmp_path / "plain", symlinks=True)
    python = tmp_path / "plain" / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    for path in files_of(required_by("rt-plugin")):
        (site / path.name).symlink_to(path)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        sources,
    ]
    subprocess.run(wheel, check=True, env={**ENVIRONMENT, "RT_BUILD_CPU": "0", "RT_BUILD_CUDA": "0"}, timeout=600)
    subprocess.run([*pip, next(tmp_path.glob("*.whl"))], check=True, timeout=600)
    return python.parent


def required_by(name, found=()):
    """The distributions that one of this environment brings with it, without its extras."""
    found = set(found)
    for requirement in map(Requirement, metadata.requires(name) or ()):
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found |= {requirement.name} | required_by(requirement.name, {*found, requirement.name})
    return found


def files_of(distributions):
    """What lies in site-packages of them: packages, modules, metadata."""
    tops = set()
    for name in distributions:
        distribution = metadata.distribution(name)
        tops |= {Path(distribution.locate_file(file.parts[0])) for file in distribution.files if file.parts[0] != ".."}
    return sorted(path for path in tops if path.name != "__pycache__" and path.suffix != ".pth")


@pytest.mark.slow
def test_an_environment_without_fairseq(plain_install, needing, tmp_path):
    """A real one, in which nothing is hidden: whatever else is imported and not required is missing, too."""
    python = plain_install / "python"
    absent = [python, "-c", "import importlib.util as u; assert u.find_spec('torch') and not u.find_spec('fairseq')"]
    subprocess.run(absent, check=True)
    for words in ([], *([verb] for verb in VERBS)):
        for option in ("--help", "--version"):
            command = [plain_install / "rt-plugin", *words, option]
            result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
            assert result.returncode == 0 and result.stdout and not result.stderr, (command, result.stderr)
    command = [plain_install / "rt-plugin", "fairseq", "train", needing[0][1]]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert_one_line("fairseq", result.returncode, result.stderr)
    assert_all_name_the_command(needing, python, RUN, tmp_path)


def test_the_command_installs_the_version_that_everything_else_names():
    version = re.escape(f"fairseq-fixed=={requirements.FAIRSEQ_VERSION}")
    for name in ("pyproject.toml", "scripts/setup.sh", "docs/install.md"):
        assert re.search(rf"{version}\b", (REPOSITORY / name).read_text(encoding="utf-8")), name
    assert re.search(rf"--no-build-isolation {version}$", requirements.INSTALL["fairseq"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_version(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"rt-plugin {metadata.version('rt-plugin')}\n"


def test_parts_of_a_verb_have_a_version(capsys):
    for part in ("rows", "submission"):
        with pytest.raises(SystemExit) as end:
            main(["predict-glue", part, "--version"])
        assert end.value.code == 0 and capsys.readouterr().out.startswith("rt-plugin ")


# Those that only other scripts import, or that read no options.
NO_OPTIONS = {"architecture.py", "checkout.py", "options.sh", "quickstart_report.py"}


def test_every_script_has_help_and_a_version():
    """Python's in one process; those for the shell as they are called."""
    names = sorted({path.name for path in SCRIPTS.glob("*.py")} - NO_OPTIONS)
    code = """
import contextlib, io, json, runpy, sys
results = {}
for name in json.load(sys.stdin):
    for option in ("--version", "--help"):
        sys.argv = [name, option]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                runpy.run_path(name, run_name="__main__")
                status = "no end"
            except SystemExit as end:
                status = end.code
        results[f"{name} {option}"] = (status, out.getvalue())
print(json.dumps(results))
"""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n{code}"],
        input=json.dumps([str(SCRIPTS / name) for name in names]),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    for call, (status, out) in json.loads(result.stdout).items():
        assert status == 0, call
        expected = f"rt-plugin {metadata.version('rt-plugin')}\n" if call.endswith("--version") else "usage: "
        assert out.startswith(expected), (call, out)


@pytest.mark.parametrize("name", sorted({path.name for path in SCRIPTS.glob("*.sh")} - NO_OPTIONS))
def test_every_shell_script_has_help_and_a_version(name):
    """Before anything else: nothing is set up for it."""
    for option, expected in (("--version", f"rt-plugin {metadata.version('rt-plugin')}\n"), ("--help", "")):
        result = subprocess.run(
            ["bash", SCRIPTS / name, option],
            env={**ENVIRONMENT, "VIRTUAL_ENV": sys.prefix},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.startswith(expected) and result.stdout.strip(), result.stdout
        assert "setup.sh:" not in result.stdout
