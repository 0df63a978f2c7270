"""What the quickstart reads from logs and writes as its table, on a log like fairseq's."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def log_line(kind, **values):
    values = {name: str(value) for name, value in values.items()}
    return f"2026-01-01 00:00:00 | INFO | {kind} | {json.dumps(values)}\n"


def pretraining_line(kind, prefix, loss, per_cent, **values):
    values |= {f"{prefix}loss": loss, f"{prefix}ppl": 2**loss, f"{prefix}accuracy": per_cent, f"{prefix}masked": 15}
    return log_line(kind, **values)


PRETRAINING = (
    "2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. shared model params: 1,466,242 (num. trained: 1,466,242)\n"
    + pretraining_line("train_inner", "", 11, 4, num_updates=20, ups=2, wall=10)
    + pretraining_line("train_inner", "", 10, 6, num_updates=30, ups=2, wall=20)[:80]
    + "\n"
    + pretraining_line("train_inner", "", 10, 8, num_updates=40, ups=2, wall=80)
    + pretraining_line("valid", "valid_", 9, 10, valid_num_updates=40)
    + pretraining_line("train", "train_", 10, 6, train_num_updates=40, train_wall=90)
)
FINETUNING = (
    log_line("valid", valid_loss=1, valid_accuracy=0.4, valid_num_updates=10)
    + log_line("valid", valid_loss=0.9, valid_accuracy=0.6, valid_num_updates=20)
    + log_line("train", train_loss=1, train_num_updates=20, train_wall=30)
)


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("quickstart_report", SCRIPTS / "quickstart_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quickstart():
    return importlib.import_module("quickstart")


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "pretraining.log").write_text(PRETRAINING)
    (tmp_path / "finetuning.log").write_text(FINETUNING)
    (tmp_path / "unigram.json").write_text('{"unigram_bits": 10, "unigram_perplexity": 1024}')
    (tmp_path / "dev.tsv").write_text(
        "index\tquestion\tsentence\tlabel\n0\tq\ts\ta\n1\tq\ts\ta\n2\tq\ts\ta\n3\tq\ts\tb\n"
    )
    return tmp_path


def test_log_is_read_past_a_line_cut_in_half(report, run_folder):
    training = report.read_training(run_folder / "pretraining.log")
    assert training["parameters"] == 1_466_242
    assert training["seconds"] == 90
    assert sorted(training["train"]) == [20, 40]
    assert training["train"][20]["accuracy"] == pytest.approx(0.04)
    assert training["valid"][40]["perplexity"] == 512


def test_table_holds_the_last_validation_of_each_training(report, run_folder, capsys):
    logs = {"recurrent_roberta_tiny": (run_folder / "pretraining.log", run_folder / "finetuning.log")}
    report.write_report(run_folder, logs, run_folder / "dev.tsv")
    expected = {
        "model": "recurrent_roberta_tiny",
        "parameters": 1_466_242,
        "pretraining_updates": 40,
        "validation_loss_bits": 9,
        "perplexity": 512,
        "unigram_perplexity": 1024,
        "finetuning_updates": 20,
        "dev_accuracy": 0.6,
        "majority_class": 0.75,
        "pretraining_minutes": 1.5,
        "finetuning_minutes": 0.5,
    }
    assert json.loads((run_folder / "results.json").read_text()) == [expected]
    with (run_folder / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row.pop("model") == expected["model"]
    assert {key: float(value) for key, value in row.items()} == {k: v for k, v in expected.items() if k != "model"}
    table = " ".join((run_folder / "results.md").read_text().split())  # columns are aligned by spaces
    assert "| recurrent_roberta_tiny | 1,466,242 | 40 |" in table
    assert (run_folder / "results.txt").read_text() in capsys.readouterr().out
    assert (run_folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_option_is_refused_before_anything_is_installed():
    command = [sys.executable, SCRIPTS / "quickstart.py", "--check-options", "--size", "huge"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--size: invalid choice: 'huge'" in done.stderr


def test_another_device_in_the_folder_is_told(quickstart, tmp_path):
    """Half precision cannot go on from single precision."""
    settings = quickstart.SETTINGS["tiny"]
    for _ in range(2):
        quickstart.Run(tmp_path / "run", settings, gpu=False).start(fresh=False)
    with pytest.raises(quickstart.StageError, match="made with other settings; start over with --fresh"):
        quickstart.Run(tmp_path / "run", settings, gpu=True).start(fresh=False)
    quickstart.Run(tmp_path / "run", settings, gpu=True).start(fresh=True)


@pytest.mark.parametrize(
    ("python", "start"), [((3, 13), "fairseq-{}"), ((3, 14), f"{sys.executable} -m rt_plugin fairseq {{}}")]
)
def test_fairseqs_commands_are_started_as_this_python_can(python, start, quickstart, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(quickstart, "run_command", lambda command, *_: commands.append(command))
    monkeypatch.setattr(sys, "version_info", python)
    run = quickstart.Run(tmp_path, quickstart.SETTINGS["tiny"], gpu=False)
    run.prepare_text()
    run.pretrain("roberta")
    assert [command for command in commands if command.startswith(f"{start.format('preprocess')} --only-source ")]
    assert commands[-1].startswith(f"{start.format('train')} --user-dir rt_plugin ")


def test_a_training_takes_one_gpu(quickstart, tmp_path, monkeypatch):
    """fairseq-train by itself takes all that it sees, and then other batches than those of the settings."""
    commands = []
    monkeypatch.setattr(quickstart.Run, "stage", lambda self, title, *words, **_: commands.extend(words))
    for gpu in (True, False):
        run = quickstart.Run(tmp_path, quickstart.SETTINGS["tiny"], gpu=gpu)
        run.pretrain("roberta")
        run.finetune("roberta")
    assert ["--distributed-world-size 1" in command for command in commands] == [True, True, False, False]
