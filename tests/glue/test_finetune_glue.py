"""A sweep over tasks, learning rates and seeds: its CSV, its model folders, going on after a kill, and bad input."""

import argparse
import csv
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY, run_command
from rt_plugin.console.commands import STOPPED
from rt_plugin.errors import UserError
from rt_plugin.glue import run
from rt_plugin.glue.finetune import main, parse_arguments
from rt_plugin.glue.plan import PlannedRun, plan
from rt_plugin.glue.results import COLUMNS, read_csv, summarize, write_csv
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.glue.sweep import fork_server
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder.checkpoint import model_options

EPOCHS = 4


@pytest.fixture
def sweep(glue_dir, pretrained, monkeypatch):
    """Runs the command in this process; arguments after OUT."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(out, *arguments):
        options = ("--model", pretrained, *arguments)
        return main([str(a) for a in (glue_dir / "out", out, *options)])

    return run


GRID = (
    *("--tasks", "QNLI", "STS-B", "--lr", "1e-3", "1e-4", "--seeds", "3", "--batch-size", "16"),
    *("--epochs", EPOCHS, "--threads", "1", "--name", "tiny"),
)


@pytest.fixture(scope="module")
def finished(glue_dir, pretrained, tmp_path_factory):
    """The OUT folder of an undisturbed sweep, by the script, two runs at a time."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    result = run_command(
        *("rt-plugin", "finetune-glue", glue_dir / "out", out, "--model", pretrained, *GRID, "--jobs", "2"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert result.stdout == f"{out}/results.csv\n"
    assert "[4/4] " in result.stderr and ", about " in result.stderr and " left" in result.stderr
    return out


def read_rows(out: Path) -> list[dict]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def error_of(capsys) -> str:
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("rt-plugin finetune-glue: error: ")
    return last


def without_seconds(out: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_rows(out)]


def test_a_row_for_every_run_in_a_fixed_order(finished):
    rows = read_rows(finished)
    assert [(row["task"], row["lr"], row["seed"]) for row in rows] == [
        (task, lr, seed) for task in ("STS-B", "QNLI") for lr in ("0.0001", "0.001") for seed in ("3",)
    ]
    for row in rows:
        folder = finished / row["task"] / f"lr{row['lr']}-seed{row['seed']}"
        entries = [json.loads(line) for line in (folder / "dev_metrics.jsonl").read_text().splitlines()]
        assert [entry["epoch"] for entry in entries] == list(range(1, EPOCHS + 1))
        scores = [-math.inf if entry["score"] is None else entry["score"] for entry in entries]
        assert (row["model"], row["epochs"]) == ("tiny", str(EPOCHS))
        assert float(row["best_score"]) == max(scores) == scores[int(row["best_epoch"]) - 1]
        assert float(row["last_score"]) == scores[-1]
        assert float(row["train_loss"]) == entries[-1]["train_loss"] > 0
        assert (row["best_accuracy"] == "") == (row["task"] == "STS-B") == (row["majority"] == "")


def test_a_finished_run_is_a_model_folder_with_its_best_checkpoint(finished):
    for folder in finished.glob("*/lr*"):
        assert [path.name for path in folder.glob("*.pt")] == ["checkpoint_best.pt"]
    model = RecurrentRobertaModel.from_pretrained(str(finished / "QNLI" / "lr0.001-seed3"))
    assert model.classify("Who won?", "They won.")[0] in ("entailment", "not_entailment")


def test_the_logged_command_repeats_the_run(finished, tmp_path):
    """In a process of its own, which was not forked: forking changes no result."""
    folder = finished / "QNLI" / "lr0.001-seed3"
    line = (folder / "train.log").read_text().splitlines()[0]
    name, *arguments = shlex.split(line.removeprefix("$ ").replace(str(folder), str(tmp_path)))
    run_command(name, *arguments)
    assert (tmp_path / "dev_metrics.jsonl").read_text() == (folder / "dev_metrics.jsonl").read_text()


def test_finished_runs_are_not_run_again(finished, sweep, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/*/*")}
    assert sweep(finished, *GRID) == 0
    assert "4 runs, 4 of them finished before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*/*/*")} == before


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_at_work(folder: Path) -> bool:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_killed_in_the_middle_and_started_again(finished, sweep, glue_dir, pretrained, tmp_path):
    command = [
        sys.executable,
        "-m",
        "rt_plugin",
        "finetune-glue",
        glue_dir / "out",
        tmp_path,
        "--model",
        pretrained,
        *GRID,
    ]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    second = tmp_path / "STS-B" / "lr0.001-seed3"
    wait_for((second / "checkpoint_last.pt").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not is_at_work(second))  # the training, which nobody told, has ended as well
    assert not (second / "result.json").exists()
    assert len(read_rows(tmp_path)) == 1

    assert sweep(tmp_path, *GRID) == 0
    assert f"Loaded checkpoint {second / 'checkpoint_last.pt'}" in (second / "train.log").read_text()
    assert without_seconds(tmp_path) == without_seconds(finished)


def test_both_dev_sets_of_mnli(sweep, tmp_path):
    assert sweep(tmp_path, "--tasks", "MNLI", "--lr", "1e-3", "--seeds", "1", "--epochs", "1", "--keep", "none") == 0
    (row,) = read_rows(tmp_path)
    matched, mismatched = (
        json.loads(line) for line in (tmp_path / "MNLI/lr0.001-seed1/dev_metrics.jsonl").read_text().splitlines()
    )
    assert (matched["split"], mismatched["split"]) == ("valid", "valid_mismatched")
    assert float(row["best_accuracy"]) == float(row["last_score"]) == matched["accuracy"]
    assert float(row["best_accuracy_mismatched"]) == float(row["last_score_mismatched"]) == mismatched["accuracy"]
    assert not list(tmp_path.glob("**/*.pt"))


def test_a_training_that_diverges_is_a_failed_run(sweep, tmp_path, capsys):
    options = ("--tasks", "QNLI", "--seeds", "1", "--epochs", "2", "--lr", "1e38")
    capsys.readouterr()
    for _ in range(2):  # finished before, it says so again
        assert sweep(tmp_path, *options, "--", "--warmup-updates", "0") == 1
        said = capsys.readouterr().err
        assert "error: no run has a score (1 diverged" in said and "use a lower --lr" in said and "nan" not in said
    (row,) = read_rows(tmp_path)
    assert (row["failed"], row["last_score"], row["train_loss"]) == ("1", "undefined", "undefined")


def count_threads_of_parent(path: str) -> None:
    Path(path).write_text(str(len(os.listdir(f"/proc/{os.getppid()}/task"))))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs the /proc file system of Linux")
def test_runs_are_forked_from_a_process_without_threads(sweep, tmp_path):
    process = fork_server().Process(target=count_threads_of_parent, args=(str(tmp_path / "threads"),))
    process.start()
    process.join()
    assert (tmp_path / "threads").read_text() == "1"


def write_visible_gpus(folder: Path, gpu: str | None) -> None:
    run.cli_main = lambda: (folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    run.train(["fairseq-train"], folder, 1, gpu)


@pytest.mark.parametrize("gpu", [None, "3", "MIG-8d0a6ed9"])
def test_a_run_sees_its_gpu_alone(gpu, tmp_path, monkeypatch):
    """The process that it is forked from sees none: on some machines counting them would take CUDA from the run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    process = fork_server().Process(target=write_visible_gpus, args=(tmp_path, gpu))
    process.start()
    process.join()
    assert (process.exitcode, (tmp_path / "gpus").read_text()) == (0, gpu or "")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop(number, sweep, tmp_path, capsys):
    """As by a scheduler: it ends in one line, with its runs, and goes on when started again."""
    grid = ("--tasks", "QNLI", "--lr", "1e-3", "--seeds", "1", "--epochs", "1", "--keep", "none", "--threads", "1")
    folder = tmp_path / "QNLI" / "lr0.001-seed1"
    folder.mkdir(parents=True)

    def signal_this_process():
        wait_for((folder / "train.log").exists)
        os.kill(os.getpid(), number)

    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the run waits for it before it begins
        killer = threading.Thread(target=signal_this_process)
        killer.start()
        assert sweep(tmp_path, *grid) == STOPPED
        killer.join()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "rt-plugin finetune-glue: stopped; the same command goes on from here"
    )
    assert not is_at_work(folder) and not (folder / "result.json").exists()
    assert sweep(tmp_path, *grid) == 0
    assert [row["seed"] for row in read_rows(tmp_path)] == ["1"]


def write_parent(path: str) -> None:
    Path(path).write_text(str(os.getppid()))


def test_the_process_that_runs_are_forked_from_is_killed(sweep, tmp_path, capsys):
    """Its runs cannot be watched any more: they end, the sweep says so in one line, and goes on when started again."""
    process = fork_server().Process(target=write_parent, args=(str(tmp_path / "server"),))
    process.start()
    process.join()
    grid = ("--tasks", "QNLI", "--lr", "1e-3", "--seeds", "1", "2", "--epochs", "1", "--keep", "none", "--threads", "1")
    first = tmp_path / "out" / "QNLI" / "lr0.001-seed1"

    def kill():
        wait_for((first / "train.log").exists)
        os.kill(int((tmp_path / "server").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert sweep(tmp_path / "out", *grid) == 1
    killer.join()
    assert "the process that the runs are forked from was killed" in error_of(capsys)
    wait_for(lambda: not is_at_work(first))  # it is told to end, and saves before
    assert sweep(tmp_path / "out", *grid) == 0
    assert [row["seed"] for row in read_rows(tmp_path / "out")] == ["1", "2"]


class TestOneModelAndOneSetOfOptionsInAFolder:
    """Everything but tasks, learning rates, seeds, and how many runs there are at a time."""

    @pytest.fixture
    def out(self, finished, tmp_path):
        return shutil.copytree(finished, tmp_path / "out")

    @pytest.fixture
    def model(self, pretrained, tmp_path):
        return shutil.copytree(pretrained, tmp_path / "mine")

    def test_runs_of_another_model_are_refused(self, out, model, sweep, capsys):
        options = ("--lr", "3e-4", "--epochs", "2", "--batch-size", "4", "--name", "B")
        state = torch.load(model / "checkpoint_best.pt", weights_only=False)
        state["model"]["encoder.lm_head.bias"] += 1
        torch.save(state, model / "checkpoint_best.pt")
        assert sweep(out, *GRID, "--tasks", "QNLI", "--model", model, *options) == 1
        error = error_of(capsys)
        assert "out: was begun with name tiny, checkpoint " in error and "another OUT folder" in error
        for name, before, now in (("name", "tiny", "B"), ("epochs", 4, 2), ("batch size", 16, 4)):
            begun, found = error.split("found now ")
            assert f"{name} {before}" in begun and f"{name} {now}" in found
        assert {row["model"] for row in read_rows(out)} == {"tiny"}

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            (("--epochs", "3"), "begun with epochs 4, found now epochs 3;"),
            (("--", "--fp16"), "begun with fairseq options none, found now fairseq options --fp16;"),
        ],
    )
    def test_other_options_for_further_seeds_are_refused(self, out, sweep, capsys, options, difference):
        assert sweep(out, *GRID, "--tasks", "QNLI", "--lr", "1e-3", "--seeds", "4", *options) == 1
        assert difference in error_of(capsys)

    def test_a_folder_without_record_is_judged_by_its_runs(self, out, sweep, capsys):
        """As earlier versions left it."""
        record = json.loads((out / "sweep.json").read_text())
        (out / "sweep.json").unlink()
        assert sweep(out, *GRID, "--tasks", "QNLI", "--lr", "1e-3", "--seeds", "4", "--epochs", "3") == 1
        error = error_of(capsys)
        assert "was begun with --max-epoch 4, found now --max-epoch 3;" in error
        assert not (out / "sweep.json").exists()
        assert sweep(out, *GRID) == 0
        assert "4 runs, 4 of them finished before" in capsys.readouterr().err
        assert json.loads((out / "sweep.json").read_text()) == record

    def test_checkpoint_or_data_that_changed_are_refused(self, model, sweep, glue_dir, tmp_path, capsys):
        data, out = shutil.copytree(glue_dir / "out", tmp_path / "data"), tmp_path / "out"
        grid = ("--model", model, "--tasks", "QNLI", "--lr", "1e-3", "--epochs", "1")

        def run(*options):
            return main([str(part) for part in (data, out, *grid, *options)])

        assert sweep(out, "--seeds", "1", *grid) == 0
        paths = {"QNLI data sha256": data / "QNLI" / "glue.json", "checkpoint sha256": model / "checkpoint_best.pt"}
        for what, path in paths.items():
            before = path.read_bytes()
            path.write_bytes(before + b" ")
            capsys.readouterr()
            assert run("--seeds", "2") == 1
            assert f"out: was begun with {what} " in error_of(capsys)
            path.write_bytes(before)
        assert run("--seeds", "2", "--jobs", "2", "--threads", "1", "--keep", "none") == 0
        rows = read_rows(out)
        assert [(row["model"], row["seed"]) for row in rows] == [("mine", "1"), ("mine", "2")]
        record = json.loads((out / "sweep.json").read_text())
        assert {row["checkpoint"] for row in rows} == {record["checkpoint sha256"]}

    def test_the_same_files_by_other_paths(self, out, model, sweep, glue_dir, capsys, monkeypatch, tmp_path):
        """From another folder, or with the model and the data moved: the checksums tell that nothing has changed."""
        data = shutil.copytree(glue_dir / "out", tmp_path / "data")
        monkeypatch.chdir(tmp_path)
        assert main([str(part) for part in (data.name, out.name, "--model", model.name, *GRID)]) == 0
        assert "4 runs, 4 of them finished before" in capsys.readouterr().err
        assert sweep(out, *GRID) == 0

    def test_cpu_and_gpu_are_free(self, out, sweep, glue_dir, pretrained, capsys):
        """A run's command takes one GPU, also by hand, where fairseq-train would take all."""
        assert sweep(out, *GRID, "--gpus", "3") == 0
        assert "4 runs, 4 of them finished before" in capsys.readouterr().err
        words = (glue_dir / "out", out, "--model", pretrained, *GRID, "--gpus", "3")
        for planned in plan(parse_arguments([str(word) for word in words])):
            assert "--distributed-world-size 1" in shlex.join(planned.command) and "--cpu" not in planned.command

    def test_a_record_that_is_no_json(self, out, sweep, capsys):
        (out / "sweep.json").write_text("{")
        assert sweep(out, *GRID) == 1
        assert "sweep.json: " in error_of(capsys)


class TestFailedOrNot:
    @staticmethod
    def is_failed(task: str, last: dict, **options) -> int:
        labels = {} if task == "STS-B" else {"0": 3, "1": 7}
        good = {"accuracy": 0.9, "pearson": 0.5, "mcc": 0.5}
        entries = [
            {"split": "valid", "epoch": epoch, "updates": epoch, "score": 0.5, "train_loss": 1.0, **metrics}
            for epoch, metrics in enumerate((good, last), start=1)
        ]
        return summarize(BY_NAME[task], entries, labels, **options)["failed"]

    def test_no_better_than_the_majority_class_at_the_end(self):
        assert self.is_failed("RTE", {"accuracy": 0.7}) and self.is_failed("RTE", {"accuracy": 0.6})
        assert not self.is_failed("RTE", {"accuracy": 0.71})

    def test_a_choice_that_is_right_more_often_than_a_blind_one(self):
        assert not self.is_failed("COPA", {"accuracy": 0.5, "choice_accuracy": 0.8})

    def test_where_the_majority_class_is_most_of_the_rows_the_correlation_counts(self):
        assert self.is_failed("CoLA", {"accuracy": 0.7, "mcc": 0.0}) and self.is_failed("CoLA", {"accuracy": 0.7})
        assert not self.is_failed("CoLA", {"accuracy": 0.65, "mcc": 0.15})

    def test_correlation_undefined_or_not_positive(self):
        assert self.is_failed("STS-B", {"pearson": None}) and self.is_failed("STS-B", {"pearson": 0.0})
        assert not self.is_failed("STS-B", {"pearson": 0.01})

    def test_diverged(self):
        assert self.is_failed("RTE", {"accuracy": 0.9}, diverged=True)


def test_an_undefined_score_is_never_the_best():
    entries = [
        {"split": "valid", "epoch": epoch, "updates": epoch, "score": score, "pearson": score, "train_loss": 1.0}
        for epoch, score in ((1, None), (2, -0.2), (3, None))
    ]
    row = summarize(BY_NAME["STS-B"], entries, {})
    assert (row["best_epoch"], row["best_score"]) == (2, -0.2)
    assert math.isnan(row["last_score"])


def test_csv_is_read_as_it_was_written(tmp_path):
    row = {"model": "m", "task": "STS-B", "lr": 1e-4, "seed": 3, "failed": 1, "seconds": 1.5}
    row |= {"best_score": 0.1 + 0.2, "last_score": math.nan}
    others = [{**row, "seed": 10}, {**row, "lr": 3e-5, "seed": 11}, {**row, "task": "CoLA", "lr": 1.0}]
    write_csv(tmp_path / "results.csv", [others[0], row, *others[1:]])
    runs = read_csv(tmp_path / "results.csv")
    order = [("CoLA", 1.0, 3), ("STS-B", 3e-5, 11), ("STS-B", 1e-4, 3), ("STS-B", 1e-4, 10)]
    assert [(run.task.name, run.lr, run.seed) for run in runs] == order
    run = runs[2]
    assert (run.model, run.task.name, run.lr, run.seed, run.failed) == ("m", "STS-B", 1e-4, 3, True)
    assert run.values["best_score"] == 0.1 + 0.2 and math.isnan(run.values["last_score"])
    assert run.values.keys() == {"best_score", "last_score"}


def test_work_left_counts_the_part_of_an_epoch_that_is_done(tmp_path):
    run = PlannedRun(BY_NAME["QNLI"], 1e-3, 1, tmp_path, [], epochs=4, rows=100, labels={})
    assert run.work_left() == 400
    line = 'INFO | train_inner | {{"epoch": 3, "update": {}, "loss": "0.9", "num_updates": "50"}}\n'
    (tmp_path / "train.log").write_text("$ fairseq-train\n" + line.format(1.25) + line.format(2.5) + "done\n")
    assert run.work_left() == pytest.approx(150)
    (tmp_path / "dev_metrics.jsonl").write_text('{"split": "valid", "epoch": 3, "updates": 12, "score": 1}\n')
    assert run.work_left() == 100


def test_structure_of_the_checkpoint_becomes_options(pretrained, tmp_path):
    state = torch.load(pretrained / "checkpoint_best.pt", weights_only=True)
    assert model_options(pretrained / "checkpoint_best.pt") == ["--arch", "recurrent_roberta_tiny"]
    model = argparse.Namespace(**vars(state["cfg"]["model"]))
    model.recurrence_direction, model.encoder_normalize_before, model.dropout = "alternate", True, 0.3
    torch.save({"cfg": {"model": model}, "model": {}}, tmp_path / "other.pt")
    assert model_options(tmp_path / "other.pt") == [
        *("--arch", "recurrent_roberta_tiny", "--encoder-normalize-before", "--recurrence-direction", "alternate")
    ]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "instead"),
        [
            (("--batch-size", "4"), "give --batch-size before --"),
            (("--max-sentences=4",), "give --batch-size before --"),
            (("--max-epoch", "2"), "give --epochs before --"),
            (("--max-update", "9"), "give --epochs before --"),
            (("--fp16", "--lr", "1"), "give --lr before --"),
            (("--seed", "7"), "give --seeds before --"),
            (("--save-dir", "x"), "give OUT before --"),
            (("--finetune-from-model", "x.pt"), "give --model before --"),
            (("--update-freq", "2"), "worked out from --epochs and --batch-size"),
            (("--max-tokens", "512"), "worked out from --epochs and --batch-size"),
            (("--total-num-update", "5"), "worked out from --epochs and --batch-size"),
        ],
    )
    def test_options_after_the_dashes_that_would_break_the_schedule(self, sweep, tmp_path, capsys, options, instead):
        assert sweep(tmp_path / "out", "--tasks", "QNLI", "--seeds", "1", "--lr", "1", "--", *options) == 1
        option = next(word for word in options if word != "--fp16").split("=")[0]
        assert f"error: {option} after --: " in (error := error_of(capsys)) and instead in error
        assert not (tmp_path / "out").exists()

    def test_data_of_another_tokenizer(self, pretrained, sweep, tmp_path, capsys):
        model = shutil.copytree(pretrained, tmp_path / "model")
        state = torch.load(model / "checkpoint_best.pt", weights_only=True)
        (model / "checkpoint_best.pt").unlink()  # an older one, which has no checksums: else these are looked at first
        torch.save({**state, "task_state": {}}, model / "checkpoint_best.pt")
        options = ("--tasks", "QNLI", "--lr", "1e-3", "--seeds", "1", "--epochs", "1", "--model", model)
        first, second, *rest = (model / "dict.txt").read_text().splitlines(keepends=True)
        for name, content in (
            ("dict.txt", "".join((second, first, *rest)).encode()),
            ("sentencepiece.bpe.model", (model / "sentencepiece.bpe.model").read_bytes() + b" "),
        ):
            before = (model / name).read_bytes()
            (model / name).write_bytes(content)
            assert sweep(tmp_path / "out", *options) == 1
            error = error_of(capsys)
            assert f"QNLI: was prepared with another {name} than that in {model}" in error
            assert f"rt-plugin prepare-glue --model {model}" in error
            (model / name).write_bytes(before)

    def test_counts_in_the_dictionary_do_not_matter(self, pretrained, glue_dir, tmp_path, monkeypatch):
        model = shutil.copytree(pretrained, tmp_path / "model")
        lines = (model / "dict.txt").read_text().splitlines()
        (model / "dict.txt").write_text("".join(f"{line.split()[0]} 7\n" for line in lines))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        arguments = (glue_dir / "out", tmp_path / "out", "--model", model)
        assert plan(parse_arguments([str(part) for part in arguments]))

    def test_threads_where_a_process_cannot_ask_for_its_cores(self, monkeypatch):
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS has none
        assert parse_arguments(["data", "out", "--model", "m", "--jobs", "1", "--gpus"]).threads == os.cpu_count()

    def test_out_is_a_file(self, sweep, tmp_path, capsys):
        (tmp_path / "file").write_text("text")
        assert sweep(tmp_path / "file", "--tasks", "QNLI") == 1
        assert "file: cannot be written (File exists); give another folder" in error_of(capsys)
        assert sweep(tmp_path / "file" / "in", "--tasks", "QNLI") == 1
        assert "in: cannot be written (Not a directory)" in error_of(capsys)

    def test_task_that_is_not_prepared(self, sweep, tmp_path, capsys):
        assert sweep(tmp_path, "--tasks", "CoLA") == 1
        assert "no prepared train and dev set of CoLA" in error_of(capsys)

    def test_missing_checkpoint(self, sweep, tmp_path, capsys):
        assert sweep(tmp_path, "--checkpoint", "gone.pt") == 1
        assert "gone.pt: no such checkpoint" in error_of(capsys)

    def test_file_that_is_no_checkpoint(self, tmp_path):
        (tmp_path / "model.pt").write_text("text")
        with pytest.raises(UserError, match=r"model.pt: not a fairseq checkpoint"):
            model_options(tmp_path / "model.pt")

    def test_two_sweeps_in_one_folder(self, finished, sweep, capsys):
        with (finished / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sweep(finished, *GRID) == 1
        assert "another sweep is at work" in error_of(capsys)

    def test_a_run_that_breaks_off_says_why_and_stops_the_sweep(self, sweep, tmp_path, capsys):
        assert (
            sweep(tmp_path, "--tasks", "QNLI", "--lr", "1e-3", "--seeds", "1", "2", "--", "--max-positions", "3") == 1
        )
        lines = capsys.readouterr().err.splitlines()
        assert "QNLI lr 0.001 seed 1 broke off with status 1: rt_plugin: error: --max-positions is 3" in lines[-2]
        assert lines[-1].startswith("rt-plugin finetune-glue: error: 1 runs broke off, 1 were not begun")

    def test_csv_of_something_else(self, tmp_path):
        (tmp_path / "a.csv").write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match="a.csv, line 1: no column model"):
            read_csv(tmp_path / "a.csv")
        (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\nm,SQuAD,1,1,1,1,1,1,1,1\n")
        with pytest.raises(UserError, match="a.csv, line 2: fewer columns than line 1 has"):
            read_csv(tmp_path / "a.csv")


# begins a sweep's record beside a run, as UTF-8 wrote it
RECORD = """
import sys
from pathlib import Path
from rt_plugin.glue.plan import PlannedRun
from rt_plugin.glue.record import record_sweep
from rt_plugin.glue.specs import BY_NAME
command = ["fairseq-train", "--arch", "caf\\u00e9"]
folder = Path(sys.argv[1]) / "QNLI" / "lr1e-05-seed1"
folder.mkdir(parents=True)
(folder / "command.txt").write_text(" ".join(command), encoding="utf-8")
run = PlannedRun(BY_NAME["QNLI"], 1e-5, 1, folder, command, epochs=1, rows=1, labels={})
record_sweep(Path(sys.argv[1]), {"checkpoint sha256": "0"}, [run])
"""


def test_commands_of_runs_are_read_as_they_were_written(tmp_path):
    """Where the machine's own encoding is not UTF-8."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", RECORD, str(tmp_path)]
    result = subprocess.run(words, cwd=REPOSITORY, env={**os.environ, **ascii_alone}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
