"""The launcher: options for the devices there are, several processes like one, resuming, dry run, refusals."""

import contextlib
import errno
import fcntl
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from conftest import ENVIRONMENT, REPOSITORY, free_port
from rt_plugin import ops
from rt_plugin.console.commands import STOPPED
from rt_plugin.console.processes import children_of
from rt_plugin.pretrain import launch
from rt_plugin.pretrain.fairseq import command_line
from rt_plugin.pretrain.recipes import RECIPES
from rt_plugin.pretrain.revision import revision

SCHEDULE = ("--updates", "6", "--warmup-updates", "2", "--save-interval", "3", "--log-interval", "1")
SMALL = ("--recipe", "tiny", "--tokens-per-sample", "32", "--batch-tokens", "512", "--tokens-per-device", "256")
TENSORBOARD = importlib.util.find_spec("tensorboardX") is not None


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def pretrain(*arguments, ok=True):
    """Run the script; returns its output."""
    result = subprocess.run(
        [sys.executable, "-m", "rt_plugin", "pretrain", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode == 0) == ok, result.stdout[-2000:] + result.stderr[-2000:]
    return result


def printed_options(capsys, *arguments) -> dict[str, str]:
    """The options in the command that would be started."""
    assert launch.main(["data", "--save-dir", "run", "--print-only", *arguments]) == 0
    words = capsys.readouterr().out.splitlines()[-1].split()
    return {a: b for a, b in itertools.pairwise([*words, ""]) if a.startswith("--")} | {"program": words[1]}


def fake_training(folder: Path, script: str) -> str:
    """Write a shell script that is started as the training; returns what `sys.executable` has to be for that."""
    folder.mkdir(exist_ok=True)
    python = folder / "python"
    program = folder / "fairseq-train" if sys.version_info < (3, 14) else python  # which starts it from there on
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(python)


def error_of(capsys, *arguments) -> str:
    assert launch.main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("gpus", [1, 4, 8, 64])
@pytest.mark.parametrize("recipe", ["small", "medium", "base", "large", "bert-base", "bert-large"])
def test_batch_is_the_recipes_on_any_number_of_gpus(recipe, gpus, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    options = printed_options(capsys, "--recipe", recipe)
    tokens, steps = int(options["--max-tokens"]), int(options["--update-freq"])
    assert gpus * tokens * steps == RECIPES[recipe].batch_tokens
    assert RECIPES[recipe].tokens_per_sample <= tokens <= 16_384
    assert options["program"] == (command_line("train")[0] if gpus == 1 else "torchrun")
    assert options.get("--distributed-world-size") == ("1" if gpus == 1 else None)
    assert "--fp16" in options
    assert "--cpu" not in options
    assert 1 <= int(options["--num-workers"]) <= max(1, os.cpu_count() // gpus)  # processes that read, for each GPU


def test_one_process_trains_on_one_gpu_of_several(capsys, monkeypatch):
    """fairseq-train would take all that it sees."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    options = printed_options(capsys, "--recipe", "base", "--processes", "1")
    assert (options["program"], options["--distributed-world-size"]) == (command_line("train")[0], "1")


def test_batch_that_cannot_be_split_evenly_is_nearly_the_recipes(capsys):
    options = printed_options(capsys, "--recipe", "small", "--processes", "7")
    batch = 7 * int(options["--max-tokens"]) * int(options["--update-freq"])
    assert 0.999 * 32_768 < batch <= 32_768


def test_recipes_are_those_of_the_papers(capsys):
    """The numbers as fairseq gets them, against the papers' tables: BERT, appendix A.2; RoBERTa, table 9."""
    bert = printed_options(capsys, "--recipe", "bert-base")
    roberta = printed_options(capsys, "--recipe", "large", "--model", "roberta")
    names = ("--lr", "--warmup-updates", "--max-update", "--weight-decay", "--dropout", "--arch")
    assert [bert[n] for n in names] == ["0.0001", "10000", "1000000", "0.01", "0.1", "recurrent_roberta_base"]
    assert [roberta[n] for n in names] == ["0.0004", "30000", "500000", "0.01", "0.1", "roberta_large"]


def test_own_values_replace_the_recipes(capsys):
    options = printed_options(
        capsys, "--recipe", "mini", "--updates", "100", "--learning-rate", "3e-3", "--", "--clip-norm", "7"
    )
    assert [options[n] for n in ("--max-update", "--warmup-updates", "--lr")] == ["100", "10", "0.003"]
    assert options["--clip-norm"] == "7"


def test_another_way_to_share_the_work_reaches_fairseq(capsys, monkeypatch):
    """Sharded parameters, say; which way is there on a CPU is fairseq's to tell, or the repairs'."""
    words = ("--recipe", "tiny", "--processes", "2")
    assert printed_options(capsys, *words)["--ddp-backend"] == "legacy_ddp"
    assert printed_options(capsys, *words, "--", "--ddp-backend", "fully_sharded")["--ddp-backend"] == "fully_sharded"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    options = printed_options(capsys, "--recipe", "base", "--", "--ddp-backend", "fully_sharded")
    assert (options["--ddp-backend"], options["program"]) == ("fully_sharded", "torchrun")


def test_several_nodes(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    where = ("--nodes", "4", "--node-rank", "2", "--master-addr", "node0", "--master-port", "29500")
    assert launch.main(["data", "--save-dir", "run", "--recipe", "base", "--print-only", *where]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert "torchrun --nproc-per-node=8 --nnodes=4 --node-rank=2 --master-addr=node0 --master-port=29500 " in command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processes", 0), "--processes 0: expected a whole number, at least 1"),
        (("--updates", -5), "--updates -5: expected a number above 0"),
        (("--nodes", 2), "several nodes need --master-addr and --master-port"),
        (("--node-rank", 3), "--node-rank 3: expected 0 to 0, as --nodes 1 counts from 0"),
        (("--nodes", 2, "--node-rank", -1), "--node-rank -1: expected 0 to 1, as --nodes 2 counts from 0"),
        (("--tokens-per-device", 64), "--tokens-per-device 64: below the 128 tokens of one sequence"),
        (("--batch-tokens", 200, "--processes", 2), "a batch of 200 tokens is less than one sequence of 128 tokens"),
        (("--", "--distributed-world-size", 2), "--distributed-world-size is worked out from --processes"),
        (("--", "--update-freq=4"), "--update-freq is worked out from"),
        (("--", "--max-tok", 99), "--max-tokens is worked out from"),  # as argparse takes it
        (("--", "--lr", "1e-4"), "--lr behind the -- is set by this program; use --learning-rate before the --"),
        (("--", "--batch-size", 1), "--batch-size behind the -- is set by this program; use --batch-tokens and"),
        (("--", "--tokens-per-sample", 64), "--tokens-per-sample behind the -- is set by this program; use"),
        (("--", "--arch", "roberta_base"), "--arch behind the -- is set by this program; use --model and --recipe"),
        (("--", "-a", "roberta_base"), "-a behind the -- is set by this program; use --model and --recipe"),
        (("--", "--bf16"), "--bf16 behind the -- is set by this program; use --precision"),
        (("--", "--max-update", 5), "--max-update behind the -- is set by this program; use --updates"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message, capsys, data_bin):
    assert message in error_of(capsys, data_bin, "--recipe", "tiny", "--save-dir", "run", *options)


@pytest.mark.parametrize("value", ["0", "-5"])
@pytest.mark.parametrize("option", ["--tokens-per-device", "--save-interval", "--log-interval"])
def test_numbers_that_nothing_can_be_done_with_are_named(option, value, capsys):
    with pytest.raises(SystemExit) as end:
        launch.main(["data", "--recipe", "tiny", "--save-dir", "run", "--print-only", option, value])
    assert end.value.code == 2
    assert f"argument {option}: invalid positive value: '{value}'" in capsys.readouterr().err


def test_tensorboard_without_its_package_is_named(capsys, monkeypatch, data_bin):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert "pip install tensorboardX" in error_of(
        capsys, data_bin, *SMALL, "--save-dir", "run", "--tensorboard", "logs"
    )


def test_data_that_are_not_there_are_named(data_bin, tmp_path, capsys):
    rest = ("--recipe", "tiny", "--save-dir", tmp_path / "run")
    assert "no such folder" in error_of(capsys, f"{data_bin}:{tmp_path / 'shard1'}", *rest)
    (tmp_path / "shard1").mkdir()
    assert "shard1: no train.bin there" in error_of(capsys, f"{data_bin}:{tmp_path / 'shard1'}", *rest)
    assert "expected train.bin, train.idx, dict.txt, valid.bin" in error_of(capsys, tmp_path / "shard1", *rest)
    (tmp_path / "shard1" / "train.bin").touch()
    (tmp_path / "shard1" / "train.idx").touch()
    assert "shard1: train.bin is empty" in error_of(capsys, f"{data_bin}:{tmp_path / 'shard1'}", *rest)


def test_a_colon_in_the_name_of_a_folder_above(data_bin, tmp_path):
    launch.check_data(str(shutil.copytree(data_bin, tmp_path / "12:30" / "data")))


def test_torchrun_around_the_launcher_is_refused(data_bin, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "run it without torchrun" in error_of(capsys, data_bin, "--recipe", "tiny", "--save-dir", "run")


def test_second_training_in_the_folder_is_refused(data_bin, tmp_path, capsys):
    with (tmp_path / ".lock0").open("w") as lock:  # as a training holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("123")
        lock.flush()
        error = error_of(capsys, data_bin, "--recipe", "tiny", "--save-dir", tmp_path)
        assert "another training writes there (process 123); wait for it, or stop it" in error
    assert not (tmp_path / "command.txt").exists()


def test_save_dir_that_cannot_be_made_is_named(data_bin, tmp_path, capsys):
    (tmp_path / "file").touch()
    error = error_of(capsys, data_bin, "--recipe", "tiny", "--save-dir", tmp_path / "file" / "run")
    assert "file/run: cannot be written (Not a directory)" in error


def test_dry_run_trains_and_leaves_nothing(data_bin, tmp_path):
    tensorboard = ("--tensorboard", tmp_path / "logs") if TENSORBOARD else ()
    result = pretrain(data_bin, *SMALL, "--save-dir", tmp_path / "run", *tensorboard, "--dry-run")
    last = result.stdout.splitlines()[-1]
    assert last.startswith("dry run: 3 updates of ")
    assert "5,000 updates will take about" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gpus", "reason", "options", "warned"),
    [
        (1, "it was not built; build it", (), True),
        (2, "it was not built; build it", ("--", "--recurrence-type", "swish-rnn"), True),
        (1, "", (), False),
        (0, "it was not built; build it", (), False),
        (1, "it was not built; build it", ("--model", "roberta"), False),
        (1, "it was not built; build it", ("--", "--recurrence-type=short-conv"), False),
    ],
)
def test_a_gpu_without_the_compiled_operation_is_told(
    gpus, reason, options, warned, data_bin, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(ops, "native_backends", lambda: {"cpu": "", "cuda": reason})
    monkeypatch.setattr(launch, "dry_run", lambda *_: None)
    assert launch.main([str(data_bin), *SMALL, "--save-dir", str(tmp_path / "run"), "--dry-run", *options]) == 0
    said = capsys.readouterr().err
    line = "rt-plugin pretrain: warning: the recurrence runs in plain PyTorch on the GPU, position after position, "
    assert said == (f"{line}which is slow: {reason}\n" if warned else "")


def test_dry_run_that_a_scheduler_stops_says_so(data_bin, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "executable", fake_training(tmp_path / "bin", "sleep 1\nkill -TERM $PPID\nexec sleep 60"))
    assert launch.main([str(data_bin), *SMALL, "--save-dir", str(tmp_path / "run"), "--dry-run"]) == STOPPED
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "rt-plugin pretrain: stopped before an update was logged; the same command starts again"
    assert not (tmp_path / "run").exists()


def test_a_stopped_training_says_how_it_resumes(data_bin, tmp_path, capfd, monkeypatch):
    line = "WARNING | stopping | stopped by SIGTERM after update 6, saved; leave --restore-file out to resume"
    monkeypatch.setattr(sys, "executable", fake_training(tmp_path / "bin", f"echo '{line}'; exit {STOPPED}"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    options = (data_bin, *SMALL, "--save-dir", tmp_path / "run", "--", "--restore-file", "x.pt")
    assert launch.main([str(option) for option in options]) == STOPPED
    said = "rt-plugin pretrain: stopped by SIGTERM after update 6, saved; leave --restore-file out to resume"
    assert capfd.readouterr().err.splitlines()[-1] == said


def test_dry_run_without_room_for_its_files_is_one_line(data_bin, tmp_path, capsys, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(launch.tempfile, "TemporaryDirectory", full)
    (line,) = error_of(capsys, data_bin, *SMALL, "--save-dir", tmp_path / "run", "--dry-run").splitlines()
    assert "--dry-run: cannot write its temporary files (No space left on device)" in line and "--save-dir" not in line


def test_error_in_every_process_is_one_line(data_bin, tmp_path):
    result = pretrain(data_bin, *SMALL, "--save-dir", tmp_path, "--processes", 2, "--", "--mask-prob", 7, ok=False)
    assert (
        result.stderr.splitlines()[-1]
        == "rt-plugin pretrain: error: --mask-prob 7.0: expected a number between 0 and 1"
    )


@pytest.fixture(scope="module")
def trained(data_bin, tmp_path_factory):
    """One training of six updates by one process and by two; dropout is 0."""
    folder = tmp_path_factory.mktemp("trained")

    def train(name, processes, *options):
        pretrain(data_bin, *SMALL, *SCHEDULE, "--save-dir", folder / name, "--processes", processes, *options)

    train("one", 1, *(("--tensorboard", folder / "logs") if TENSORBOARD else ()))
    train("two", 2)
    # the one process' training as it was after three updates, taken up by two
    (folder / "changed").mkdir()
    shutil.copy(folder / "one" / "checkpoint_1_3.pt", folder / "changed" / "checkpoint_last.pt")
    train("changed", 2)
    return folder


def last_state(folder):
    import fairseq  # noqa: F401  (with it comes what lets torch read its checkpoints)

    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


def mean_loss(folder) -> float:
    """The training loss over all updates, in bits, without rounding, as the checkpoint keeps it."""
    meters = {name: state for _, name, _, state in last_state(folder)["extra_state"]["metrics"]["train"]}
    return meters["loss"]["sum"] / meters["loss"]["count"]


@pytest.mark.parametrize("other", ["two", "changed"])
def test_two_processes_train_as_one_with_two_steps(other, trained):
    one, two = last_state(trained / "one"), last_state(trained / other)
    assert one["extra_state"]["train_iterator"]["num_shards"] == 1
    assert two["extra_state"]["train_iterator"]["num_shards"] == 2
    assert mean_loss(trained / other) == pytest.approx(mean_loss(trained / "one"), rel=1e-5)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=0, atol=1e-5)


def test_other_batches_of_another_number_of_processes_are_refused(trained, data_bin, tmp_path):
    """One process had half of the batch at a time, two would have a quarter of it each."""
    shutil.copy(trained / "one" / "checkpoint_1_3.pt", tmp_path / "checkpoint_last.pt")
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    options = (data_bin, *SMALL[:-1], "128", *SCHEDULE, "--save-dir", tmp_path, "--processes", 2)
    error = pretrain(*options, ok=False).stderr.splitlines()
    assert len(error) == 1 and "saved within an epoch, after 6 of " in error[0], error
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before


def test_two_nodes_train_as_two_processes(trained, data_bin, tmp_path):
    """Two launchers at the same moment and with the same folder, as on a cluster."""
    where = ("--nodes", 2, "--master-port", free_port(), "--node-rank")
    options = (data_bin, *SMALL, *SCHEDULE, "--save-dir", tmp_path, *where)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: pretrain(*options, rank), (0, 1))
    assert "update 6/6" in first.stdout and "update 6/6" not in second.stdout
    nodes, processes = last_state(tmp_path)["model"], last_state(trained / "two")["model"]
    assert [name for name in processes if not torch.equal(nodes[name], processes[name])] == []
    assert "--node-rank=0" in (tmp_path / "command.txt").read_text()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(
        (trained / "two" / "log.jsonl").read_text().splitlines()
    )
    assert (tmp_path / "train1.log").stat().st_size


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, STOPPED, r"rt-plugin pretrain: stopped by SIGTERM after update \d+, saved; the same command"),
        (signal.SIGHUP, 130, "rt-plugin pretrain: interrupted; the same command resumes"),  # the terminal is closed
    ],
)
def test_training_saves_and_ends_with_its_launcher(number, status, said, data_bin, tmp_path):
    options = (data_bin, *SMALL, "--updates", 1000, "--save-interval", 1000, "--log-interval", 1)
    script = [sys.executable, "-m", "rt_plugin", "pretrain", *options, "--save-dir", tmp_path]
    launcher = subprocess.Popen(
        list(map(str, script)),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup it is ignored
    )
    assert any("update 1/" in line for line in launcher.stdout)
    launcher.send_signal(number)
    last = launcher.communicate(timeout=120)[1].splitlines()[-1]
    assert launcher.returncode == status and re.match(said, last), last
    assert 1 <= last_state(tmp_path)["optimizer_history"][-1]["num_updates"] < 1000
    with (tmp_path / ".lock0").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it


# on the path of Python it is imported at every start: the second process waits after two updates until a signal comes
WAIT_FOR_A_SIGNAL = """
import os
from rt_plugin._after_import import AfterImport

def patch():
    import time
    from fairseq import trainer
    from rt_plugin.repairs import stopping
    train_step = trainer.Trainer.train_step

    def train_step_after_signal(self, *args, **kwargs):
        while self.get_num_updates() == 2 and stopping._training.signal is None:
            time.sleep(0.01)
        return train_step(self, *args, **kwargs)

    trainer.Trainer.train_step = train_step_after_signal

if os.environ.get("RANK") == "1":
    AfterImport("fairseq", "of_no_package", patch).start()
"""


def descendants(process: int) -> list[int]:
    return [process, *(below for child in children_of(process) for below in descendants(child))]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize(
    ("to", "number"),
    [("one rank", signal.SIGTERM), pytest.param("all", signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_two_stopped_processes_go_on_as_if_undisturbed(to, number, trained, data_bin, tmp_path):
    """Told one of them or all, launcher and torchrun too, they stop after the same update, and have saved it."""
    options = (data_bin, *SMALL, *SCHEDULE, "--save-dir", tmp_path / "run", "--processes", "2")
    (tmp_path / "sitecustomize.py").write_text(WAIT_FOR_A_SIGNAL)
    paths = os.pathsep.join(map(str, (tmp_path, REPOSITORY)))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "rt_plugin", "pretrain", *map(str, options)],
        env={**ENVIRONMENT, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any("update 2/6" in line for line in launcher.stdout)
    launcher_, torchrun, *ranks = descendants(launcher.pid)
    second = next(rank for rank in ranks if b"\0RANK=1\0" in Path(f"/proc/{rank}/environ").read_bytes())
    for process in [second] if to == "one rank" else [*ranks, torchrun, launcher_]:
        os.kill(process, number)
    last = launcher.communicate(timeout=120)[1].splitlines()[-1]
    assert launcher.returncode == STOPPED and "after update 3, saved; the same command resumes" in last, last
    resumed = pretrain(*options).stdout
    assert "valid update 3/6" in resumed and "update 4/6" in resumed and "train update 3/6" not in resumed
    stopped, undisturbed = last_state(tmp_path / "run")["model"], last_state(trained / "two")["model"]
    assert [name for name in undisturbed if not torch.equal(stopped[name], undisturbed[name])] == []


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_two_killed_processes_go_on_as_if_undisturbed(trained, data_bin, tmp_path):
    """kill -9 of launcher and torchrun after a checkpoint: resumed, training ends with the same bits."""
    options = (data_bin, *SMALL, *SCHEDULE, "--processes", "2", "--save-dir")
    for attempt in range(5):  # an update takes milliseconds: training may end before it is killed
        save_dir = tmp_path / str(attempt)
        script = [sys.executable, "-m", "rt_plugin", "pretrain", *options, save_dir]
        launcher = subprocess.Popen(list(map(str, script)), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (save_dir / "checkpoint_1_3.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        torchrun = children_of(launcher.pid)
        workers = [worker for process in torchrun for worker in children_of(process)]
        for process in (launcher.pid, *torchrun):
            with contextlib.suppress(ProcessLookupError):  # torchrun ends with its launcher
                os.kill(process, signal.SIGKILL)
        assert launcher.wait() in (-signal.SIGKILL, 0)
        while any(Path(f"/proc/{worker}/exe").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.01)  # they end with torchrun
        if not (save_dir / "checkpoint_1_6.pt").exists():
            break
    assert "update 4/6" in pretrain(*options, save_dir).stdout
    killed, undisturbed = last_state(save_dir)["model"], last_state(trained / "two")["model"]
    assert [name for name in undisturbed if not torch.equal(killed[name], undisturbed[name])] == []


def test_ctrl_c_under_torchrun_is_one_line(capsys, monkeypatch):
    from fairseq_cli import train

    from rt_plugin.pretrain import process

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "cli_main", interrupt)
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(sys, "argv", ["process.py"])
    with pytest.raises(SystemExit) as end:
        process.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "rt_plugin: interrupted; the same command resumes\n"


@pytest.mark.skipif(not TENSORBOARD, reason="tensorboardX is not installed")
def test_training_is_logged_to_tensorboard(trained):
    assert {path.parent.name for path in (trained / "logs").glob("*/events.*")} >= {"train_inner", "valid"}


def test_log_has_what_people_look_at(trained):
    records = [json.loads(line) for line in (trained / "two" / "log.jsonl").read_text().splitlines()]
    by_split = {split: [r for r in records if r["split"] == split] for split in ("train", "valid")}
    assert [r["update"] for r in by_split["train"]] == [1, 2, 3, 4, 5, 6]
    assert [r["update"] for r in by_split["valid"]] == [3, 6]
    for record in records:
        assert record["perplexity"] == pytest.approx(2 ** record["loss"], rel=1e-2)
        assert 5 < record["masked_per_cent"] < 25
    for record in by_split["valid"]:
        assert record["mask_perplexity"] == pytest.approx(2 ** record["mask_loss"], rel=1e-2)
    assert all(r["tokens_per_update"] > 200 for r in by_split["train"])
    assert by_split["train"][-1]["loss"] < by_split["train"][0]["loss"]
    assert {r["commit"] for r in records} == {revision()}
    assert "torchrun" in (trained / "two" / "command.txt").read_text()


def test_a_training_that_was_finished_before_is_told(data_bin, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "executable", fake_training(tmp_path / "bin", "echo nothing to do"))
    assert launch.main([str(data_bin), *SMALL, "--save-dir", str(tmp_path / "run")]) == 0
    assert f"{tmp_path / 'run'}: trained before, no update is left to make\n" in capfd.readouterr().out


def test_the_log_goes_on_in_a_new_line_after_a_full_disk(data_bin, tmp_path, capfd, monkeypatch):
    """What a full disk cut off in the middle of a record goes, so that the next record is a line of its own."""
    record = '2026-11-21 12:00:00 | INFO | train_inner | {"epoch": 1, "loss": "9.5", "num_updates": "%d"}'
    python = fake_training(tmp_path / "bin", f"echo '{record % 3}'\necho '{record % 4}'")
    monkeypatch.setattr(sys, "executable", python)
    run = tmp_path / "run"
    run.mkdir()
    whole = '{"update": 1, "loss": 9.7, "split": "train"}\n'
    (run / "log.jsonl").write_text(whole + '{"update": 2, "lo')
    (run / "train.log").write_text(f"{record % 1}\n{(record % 2)[:70]}")
    assert launch.main([str(data_bin), *SMALL, "--save-dir", str(run)]) == 0, capfd.readouterr().err
    assert [json.loads(line)["update"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 3, 4]
    assert (run / "train.log").read_text().splitlines() == [*(record % 1, (record % 2)[:70], record % 3, record % 4)]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process when its parent has ended")
def test_a_training_ends_with_its_killed_launcher(data_bin, tmp_path):
    """kill -9 of the launcher alone: nobody would read what the training says, and nobody else could start it."""
    save_dir, pid = tmp_path / "run", tmp_path / "pid"
    python = fake_training(tmp_path / "bin", f"echo $$ > {pid}.new\nmv {pid}.new {pid}\nexec sleep 120")
    start = "import sys; from rt_plugin.pretrain import launch; sys.executable = sys.argv.pop(1); launch.main()"
    arguments = [data_bin, *SMALL, "--save-dir", save_dir, "--cpu"]
    launcher = subprocess.Popen([sys.executable, "-c", start, python, *map(str, arguments)], env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not pid.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.kill()
    assert launcher.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    with (save_dir / ".lock0").open() as lock:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    pytest.fail("the training outlives its launcher, and has the folder")
