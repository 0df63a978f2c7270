"""SIGTERM and SIGUSR1: training saves and stops, all processes after one update, and goes on as if undisturbed."""

import argparse
import contextlib
import gc
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from conftest import ENVIRONMENT, REPOSITORY, TRAINING
from rt_plugin.console.commands import STOPPED, STOPPING_SIGNALS
from rt_plugin.repairs import registry, stopping

OPTIONS = (
    *("--max-update", "10", "--save-interval-updates", "4", "--validate-interval-updates", "4"),
    *("--batch-size", "8", "--log-interval", "1", "--max-epoch", "99", "--keep-interval-updates", "2"),
)


class SignalCame(Exception):
    """What a signal does here where the training does not listen."""


@pytest.fixture(autouse=True)
def signals_raise(monkeypatch):
    def fail(number, frame):
        raise SignalCame(number)

    stopping._to_the_end.close()  # of trainings that other tests began in this process without an end
    before = {number: signal.signal(number, fail) for number in STOPPING_SIGNALS}
    yield
    assert all(signal.getsignal(number) is fail for number in STOPPING_SIGNALS), "a training listens no more at its end"
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train(data_bin, fairseq_train, caplog):
    """fairseq-train in this process; returns its exit status and the updates that it made and those it validated."""
    caplog.set_level("INFO")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(folder, *options, data=data_bin):
        caplog.clear()
        try:
            status = fairseq_train(data, *TRAINING[2:], *OPTIONS, "--save-dir", folder, *options)
        except SystemExit as end:
            status = end.code
        records = {name: [r for r in caplog.records if r.name == name] for name in ("train_inner", "valid")}
        updates = [int(json.loads(record.getMessage())["num_updates"]) for record in records["train_inner"]]
        validated = [int(json.loads(record.getMessage())["valid_num_updates"]) for record in records["valid"]]
        return status or 0, updates, validated

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def undisturbed(train, tmp_path_factory):
    """The folder of the same training in one go; made once."""
    folder = tmp_path_factory.getbasetemp() / "undisturbed"
    if not folder.exists():
        assert train(folder) == (0, list(range(1, 11)), [4, 8, 10])
    return folder


def state_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


def differences(a, b, place="") -> list[str]:
    """Where two nested states differ, but for times."""
    if isinstance(a, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), f"{place}/{key}")]
    if torch.is_tensor(a):
        return [] if torch.equal(a, b) else [place]
    return [] if a == b else [f"{place}: {a!r} and {b!r}"]


def assert_as_undisturbed(folder, undisturbed):
    ours, theirs = state_of(folder), state_of(undisturbed)
    for state in (ours, theirs):
        for name in ("metrics", "previous_training_time"):
            del state["extra_state"][name]
        del state["cfg"], state["optimizer_history"]  # which has an entry for every attempt
    assert differences(ours, theirs) == []
    for name in ("checkpoint_best.pt", "checkpoint_1_8.pt"):
        assert (folder / name).exists() == (undisturbed / name).exists()


def send_at(monkeypatch, method: str, update: int, number=signal.SIGTERM, call=1):
    """Have a signal come while the trainer is in one of its methods, for the `call`th time after an update."""
    original, calls = getattr(Trainer, method), itertools.count(1)

    def with_signal(self, *args, **kwargs):
        if self.get_num_updates() == update and next(calls) == call:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, method, with_signal)


def test_between_updates(train, undisturbed, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        send_at(patch, "train_step", 5)
        status, updates, validated = train(tmp_path)
    assert (status, updates, validated) == (STOPPED, [1, 2, 3, 4, 5, 6], [4])
    assert "stopped by SIGTERM after update 6, saved; the same command resumes" in caplog.text
    assert train(tmp_path) == (0, [7, 8, 9, 10], [8, 10])
    assert_as_undisturbed(tmp_path, undisturbed)


def test_a_start_that_the_same_command_would_make_again(train, undisturbed, tmp_path, monkeypatch, caplog):
    start = ("--restore-file", undisturbed / "checkpoint_1_4.pt")
    for options, out in ((start, "--restore-file"), ((*start, "--reset-meters"), "--restore-file, --reset-meters")):
        folder = tmp_path / str(len(options))
        with monkeypatch.context() as patch:
            send_at(patch, "train_step", 5)
            assert train(folder, *options) == (STOPPED, [5, 6], [])
        assert f"stopped by SIGTERM after update 6, saved; leave {out} out to resume" in caplog.text
        assert train(folder) == (0, [7, 8, 9, 10], [8, 10])


def test_in_validation(train, undisturbed, tmp_path, monkeypatch):
    """The validation is broken off, and is made when training goes on; that is stopped again in the last one."""
    with monkeypatch.context() as patch:
        send_at(patch, "valid_step", 4, signal.SIGUSR1, call=2)
        assert train(tmp_path) == (STOPPED, [1, 2, 3, 4], [])
    with monkeypatch.context() as patch:
        send_at(patch, "valid_step", 10)
        assert train(tmp_path) == (STOPPED, [5, 6, 7, 8, 9, 10], [4, 8])
    assert train(tmp_path) == (0, [], [10])
    assert_as_undisturbed(tmp_path, undisturbed)
    assert train(tmp_path) == (0, [], [])


def test_at_the_end_of_an_epoch(train, data_bin, tmp_path, monkeypatch):
    """What is due there is done first, and so is what ends the training."""
    small = shutil.copytree(data_bin, tmp_path / "data", ignore=shutil.ignore_patterns("train.*", "blocks"))
    for name in ("train.bin", "train.idx"):
        shutil.copy(small / name.replace("train", "valid"), small / name)
    options = ("--max-epoch", "2", "--max-update", "99", "--batch-size", "64")
    options = (*options, "--save-interval-updates", "99", "--validate-interval-updates", "99")
    status, updates, validated = train(tmp_path / "undisturbed", *options, data=small)
    last = len(updates) // 2
    assert status == 0 and last > 1 and validated == [last, 2 * last]
    with monkeypatch.context() as patch:
        send_at(patch, "train_step", last - 1)
        assert train(tmp_path / "stopped", *options, data=small) == (STOPPED, updates[:last], [last])
    with monkeypatch.context() as patch:
        send_at(patch, "valid_step", 2 * last)
        assert train(tmp_path / "stopped", *options, data=small) == (0, updates[last:], [2 * last])
    assert_as_undisturbed(tmp_path / "stopped", tmp_path / "undisturbed")


def test_fine_tuning(glue_dir, pretrained, tmp_path, fairseq_train, monkeypatch):
    """Stopped within an epoch, it goes on there, with the same weights and the same metrics in the end."""
    options = ("--task", "rt_glue", "--criterion", "rt_glue", "--arch", "recurrent_roberta_tiny", "--cpu")
    options += ("--finetune-from-model", pretrained / "checkpoint_last.pt", "--batch-size", "16", "--max-epoch", "2")
    options += ("--optimizer", "adam", "--lr", "1e-3", "--no-epoch-checkpoints", "--group-by-length", "32")
    options += ("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric", "--num-workers", "0")

    def tune(folder):
        fairseq_train(glue_dir / "out" / "QNLI", "--user-dir", "rt_plugin", *options, "--save-dir", folder)

    tune(tmp_path / "undisturbed")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        send_at(patch, "train_step", 5)
        tune(tmp_path / "stopped")
    assert end.value.code == STOPPED
    tune(tmp_path / "stopped")
    stopped, undisturbed = (tmp_path / name / "dev_metrics.jsonl" for name in ("stopped", "undisturbed"))
    assert stopped.read_text() == undisturbed.read_text()
    assert_as_undisturbed(tmp_path / "stopped", tmp_path / "undisturbed")


def test_without_the_repair_training_ends_at_once(train, tmp_path, monkeypatch):
    with registry.without("stopping_when_asked"), monkeypatch.context() as patch:
        send_at(patch, "train_step", 1)
        with pytest.raises(SignalCame):
            train(tmp_path)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("method", [pytest.param("fork", marks=pytest.mark.slow), "forkserver"])
def test_workers_that_are_told_to_stop(method, train, tmp_path, monkeypatch):
    """A signal to all processes of a job reaches the processes that read data, too; without them nothing can go on."""
    options = ("--num-workers", "1", "--disable-validation", "--max-update", "4", "--data-buffer-size", "0")

    def train_with_signalled_workers(folder):
        with monkeypatch.context() as patch:
            original = Trainer.train_step

            def signal_workers(self, *args, **kwargs):
                workers = [worker.pid for worker in multiprocessing.active_children()]
                assert workers
                for process in [*workers, *([FORK_SERVER._forkserver_pid] if method == "forkserver" else [])]:
                    os.kill(process, signal.SIGTERM)
                return original(self, *args, **kwargs)

            patch.setattr(Trainer, "train_step", signal_workers)
            return train(folder, *options)

    with started_by(method):
        assert train_with_signalled_workers(tmp_path / "with") == (0, [1, 2, 3, 4], [])
        if method == "fork":  # what starts from nothing has all repairs
            # "DataLoader worker is killed", or its socket is closed while it hands over a batch
            ended = pytest.raises((RuntimeError, OSError, EOFError), match="DataLoader wor|[Cc]onnection|pipe|file|^$")
            with registry.without("workers_that_are_told_to_stop"), ended:
                train_with_signalled_workers(tmp_path / "without")


FORK_SERVER = multiprocessing.forkserver._forkserver


@contextlib.contextmanager
def started_by(method):
    """Start processes in another way than this Python's own; a fork server is a new one, which ends with the block."""
    before = multiprocessing.get_start_method(allow_none=True)
    FORK_SERVER._stop()
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)
        FORK_SERVER._stop()


def test_a_training_that_starts_elsewhere_is_listened_to(tmp_path):
    """As by fairseq-hydra-train, and in processes that fairseq starts: both reach load_checkpoint first."""
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))
    trainer = argparse.Namespace(checkpoint_suffix="", task=None, data_parallel_rank=0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(AttributeError, match="load_checkpoint"):  # this trainer has none
            checkpoint_utils.load_checkpoint(cfg, trainer)
        gc.collect()
        assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        stopping._to_the_end.close()
    assert signal.getsignal(signal.SIGTERM) is before


BY_FAIRSEQ = """
import atexit, rt_plugin, torch
from fairseq_cli import train
from rt_plugin.repairs import registry

refused = registry.without("launches_without_training")  # where there is no GPU
refused.__enter__()
atexit.register(refused.__exit__, None, None, None)
if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2  # so many processes fairseq starts; they see no GPU, and train on the CPU
    train.cli_main()
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would train on GPUs")
def test_processes_that_fairseq_has_started(data_bin, tmp_path):
    """The signal comes to the process that has started them, and trains nothing."""
    (tmp_path / "two.py").write_text(BY_FAIRSEQ)
    options = ("--distributed-world-size", "2", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp")
    words = (tmp_path / "two.py", data_bin, *TRAINING, *options, "--log-interval", "1", "--max-update", "9999")
    process = subprocess.Popen(
        [sys.executable, *map(str, words), "--save-dir", str(tmp_path), "--disable-validation"],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert any('"num_updates": "2"' in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == STOPPED, said[-3000:]
    assert "stopped by SIGTERM after update" in said and "Traceback" not in said
    assert state_of(tmp_path)["extra_state"]["train_iterator"]["num_shards"] == 2
