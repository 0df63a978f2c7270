"""Each repair of fairseq: what works with it, and that the very same thing breaks without it."""

import argparse
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import TokenBlockDataset, data_utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass.configs import CheckpointConfig, FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models import distributed_fairseq_model
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from fairseq_cli import train as train_command
from omegaconf import OmegaConf

from conftest import REPOSITORY, TRAINING, run_command, user_error
from rt_plugin import UserError
from rt_plugin.repairs import all as compat


def with_and_without(name, action):
    """Run `action` with all repairs; return what it raises without the repair `name`."""
    action()
    with compat.without(name), pytest.raises(Exception) as caught:
        action()
    action()
    return caught.value


def test_every_repair_is_tested_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in compat.REPAIRS if f'"{name}"' not in source] == []


def test_checkpoint_types(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {"args": argparse.Namespace(a=1), "best": [np.float64(1.5), np.float32(2), np.int64(3), np.bool_(True)]}
    torch.save(state, path)

    def load():
        assert torch.load(path, weights_only=True) == state

    assert "Unsupported global" in str(with_and_without("checkpoint_types", load))


def test_checkpoint_types_are_no_more_than_needed(tmp_path):
    torch.save({"command": os.system}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)


def test_numpy_compat_long():
    sentences = [torch.tensor([5, 6, 2]), torch.tensor([7, 2])]
    error = with_and_without(
        "numpy_compat_long",
        lambda: TokenBlockDataset(sentences, [3, 2], block_size=8, pad=1, eos=2, break_mode="eos")[1],
    )
    assert "compat" in str(error)


def test_warnings_for_fairseq():
    def warn():
        warnings.warn("hydra.experimental.compose() is no longer experimental. Use hydra.compose()", stacklevel=1)

    compat._applied["warnings_for_fairseq"].undo()  # pytest sets the filters anew for every test
    compat._apply("warnings_for_fairseq")
    warnings.filterwarnings("error", message="another")
    warn()
    with compat.without("warnings_for_fairseq"), pytest.warns(UserWarning, match="experimental"):
        warn()


def test_half_precision_flags():
    cfg = OmegaConf.create(
        {"common": {"bf16": True, "tpu": True, "cpu": True, "fp16_no_flatten_grads": False}, "optimizer": {"tpu": True}}
    )
    cfg.distributed_training = {
        "distributed_init_method": "",
        "distributed_world_size": 1,
        "distributed_no_spawn": True,
        "device_id": 0,
    }

    def flags():
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed_utils, "distributed_main", lambda i, main, cfg, kwargs: main(cfg))
            copy = OmegaConf.create(OmegaConf.to_container(cfg))
            distributed_utils.call_main(
                copy, lambda c: seen.extend([c.common.tpu, c.optimizer.tpu, c.common.fp16_no_flatten_grads])
            )
        assert seen == [False, False, True]

    assert isinstance(with_and_without("half_precision_flags", flags), AssertionError)


@pytest.mark.parametrize("rows", [0, 5, 13, 40, 277])
@pytest.mark.parametrize(
    "limits", [{"max_sentences": 32}, {"max_tokens": 200}, {"max_tokens": 64, "max_sentences": 20}]
)
def test_no_row_is_dropped(rows, limits):
    batches = data_utils.batch_by_size(
        np.arange(rows), lambda i: 10, np.full(rows, 10), required_batch_size_multiple=8, **limits
    )
    assert [i for batch in batches for i in batch] == list(range(rows))
    assert all(len(batch) <= limits.get("max_sentences", 20) for batch in batches)
    assert all(10 * len(batch) <= limits.get("max_tokens", 320) for batch in batches)


def test_last_batch():
    def all_rows():
        batches = data_utils.batch_by_size(
            np.arange(13), lambda i: 1, np.ones(13, dtype=np.int64), max_sentences=32, required_batch_size_multiple=8
        )
        assert sum(map(len, batches)) == 13

    assert isinstance(with_and_without("last_batch", all_rows), AssertionError)


BROADCAST = """
import contextlib, sys, torch
from fairseq.distributed import utils
from omegaconf import OmegaConf
from rt_plugin.repairs import all as compat
rank, store, repair = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
state = {"cfg": OmegaConf.create({"a": 1}), "model": torch.arange(3)} if rank == 0 else None
with compat.without(repair) if repair else contextlib.nullcontext():
    state = utils.broadcast_object(state, 0, torch.distributed.group.WORLD)
assert state["cfg"].a == 1 and state["model"].tolist() == [0, 1, 2]
"""


@pytest.mark.parametrize("repair", ["", "broadcast_between_processes"])
def test_broadcast_between_processes(repair, tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BROADCAST, str(rank), str(tmp_path / "store"), repair],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    if repair:
        assert "Unsupported global" in errors[1]
    else:
        assert [process.returncode for process in processes] == [0, 0], errors


def test_ddp_on_cpu(tmp_path):
    args = argparse.Namespace(
        ddp_backend="pytorch_ddp",
        device_id=0,
        broadcast_buffers=False,
        bucket_cap_mb=25,
        find_unused_parameters=False,
        gradient_as_bucket_view=False,
        ddp_comm_hook="none",
        heartbeat_timeout=-1,
        tpu=False,
    )
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        error = with_and_without(
            "ddp_on_cpu",
            lambda: distributed_fairseq_model.DistributedFairseqModel(
                args, torch.nn.Linear(2, 2), torch.distributed.group.WORLD, torch.device("cpu")
            ),
        )
    finally:
        torch.distributed.destroy_process_group()
    assert "device_ids" in str(error)


@pytest.mark.parametrize("option", ["restore_file", "finetune_from_model"])
def test_missing_start_checkpoint(option, tmp_path):
    """Without the repair the trainer is reached: --restore-file would train from scratch."""
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))
    cfg[option] = str(tmp_path / "nowhere.pt")

    def load():
        with pytest.raises(UserError, match=r"nowhere\.pt: no such file"):
            checkpoint_utils.load_checkpoint(cfg, argparse.Namespace(checkpoint_suffix=""))

    error = with_and_without("missing_start_checkpoint", load)
    if option == "restore_file":
        assert "load_checkpoint" in str(error)  # the trainer's


def test_unreadable_checkpoint(tmp_path):
    whole, half = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint_best.pt"
    torch.save({"model": torch.zeros(5000)}, whole)
    half.write_bytes(whole.read_bytes()[:9000])

    def load():
        with pytest.raises(UserError, match=r"checkpoint_best\.pt cannot be read \(9,000 bytes; .*checkpoint_last\.pt"):
            checkpoint_utils.load_checkpoint_to_cpu(str(half))

    assert not isinstance(with_and_without("unreadable_checkpoint", load), UserError)


def test_atomic_checkpoint_copies(tmp_path, monkeypatch):
    """A copy that fails half-way leaves the file of that name as it was."""
    source, target = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    source.write_bytes(b"new" * 1000)

    def no_links(*_):
        raise OSError("no hard links here")

    def copy_half(src, dst, **_):
        with open(dst, "wb") as file:
            file.write(b"new")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "copyfile", copy_half)

    def copy():
        target.write_bytes(b"old")
        with pytest.raises(OSError if target.read_bytes() == b"" else Exception):
            PathManager.copy(str(source), str(target), overwrite=True)
        assert target.read_bytes() == b"old"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint1.pt", "checkpoint_last.pt"]

    assert isinstance(with_and_without("atomic_checkpoint_copies", copy), AssertionError)


@pytest.mark.parametrize("links", [True, False])
def test_checkpoint_copies_are_complete(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    for content in (b"first", b"second"):
        checkpoint_utils.torch_persistent_save({"x": content}, str(source))
        for _ in range(2):  # twice: both names are one file then
            assert PathManager.copy(str(source), str(target), overwrite=True)
        assert torch.load(target, weights_only=True) == {"x": content}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_atomic_checkpoint_writes(tmp_path, monkeypatch):
    """A first attempt that fails half-way must not spoil the second one, nor leave a .tmp file when all fail."""
    monkeypatch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    path, save, failures = tmp_path / "checkpoint_last.pt", torch.save, []

    def save_half_at_first(obj, file, **kwargs):
        if not failures:
            failures.append(1)
            file.write(b"x" * 1000)
            raise OSError(28, "No space left on device")
        save(obj, file, **kwargs)

    def write():
        failures.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "save", save_half_at_first)
            checkpoint_utils.torch_persistent_save({"x": 1}, str(path))
        assert path.read_bytes()[:2] == b"PK"
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_last.pt"]

    assert isinstance(with_and_without("atomic_checkpoint_writes", write), AssertionError)


def test_full_disk_leaves_the_checkpoint_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(compat.time, "sleep", lambda seconds: None)
    path = tmp_path / "checkpoint_last.pt"
    path.write_bytes(b"old")

    def full(obj, file, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left on device.*saved before are unharmed"):
        checkpoint_utils.torch_persistent_save({"x": 1}, str(path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_last.pt"]


@pytest.mark.parametrize("flags", [("--bf16",), ("--fp16",), ("--memory-efficient-fp16",), ("--amp",)], ids=" ".join)
def test_half_precision_trains_saves_and_resumes_on_the_cpu(flags, data_bin, tmp_path):
    options = (data_bin, *TRAINING, *flags, "--save-dir", tmp_path, "--disable-validation")
    run_command("fairseq-train", *options, "--max-update", "2")
    resumed = run_command("fairseq-train", *options, "--max-update", "3")
    assert "@ 2 updates" in resumed.stdout


@pytest.mark.parametrize("option", [("--recurrence-direction", "alternate"), ("--recurrence-step-size", "2")], ids=str)
def test_other_recurrence_than_the_checkpoint_is_refused(option, pretrained, data_bin, tmp_path):
    """The weights fit, so nothing else would notice."""
    arguments = (data_bin, *TRAINING, "--save-dir", tmp_path, *option)
    start = ("--finetune-from-model", pretrained / "checkpoint_last.pt")
    error = user_error(run_command("fairseq-train", *arguments, *start, ok=False))
    assert f"this run has {' '.join(option)}" in error
    assert "add --recurrence-" in error


def test_other_architecture_in_the_same_folder_is_named(pretrained, data_bin):
    arguments = (data_bin, *TRAINING, "--save-dir", pretrained, "--max-update", "9", "--encoder-embed-dim", "64")
    assert "its model differs from the one asked for" in user_error(run_command("fairseq-train", *arguments, ok=False))


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return index


def read_numbers(processes, iterations=None, states=None, batch_size=2, **options):
    """What all processes read of an epoch of 48 numbers, and their states afterwards."""
    read, after = [], []
    for rank in range(processes):
        batches = [list(range(i, i + batch_size)) for i in range(0, 48, batch_size)]
        iterator = EpochBatchIterator(
            Numbers(), list, batches, num_shards=processes, shard_id=rank, disable_shuffling=False, **options
        )
        if states:
            iterator.load_state_dict(states[0])
        epoch = iterator.next_epoch_itr()
        read += [n for batch in itertools.islice(epoch, iterations) for n in batch]
        after.append(iterator.state_dict())
    return read, after


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize(("before", "iterations", "now"), [(2, 3, 1), (1, 4, 2), (2, 4, 4), (4, 3, 3), (3, 2, 3)])
def test_process_count_on_resume(before, iterations, now):
    def resume():
        read, states = read_numbers(before, iterations)
        rest, _ = read_numbers(now, states=states)
        if sorted(read + rest) != list(range(48)):
            raise AssertionError("lost or repeated")

    if before == now:
        return resume()
    assert "lost or repeated" in str(with_and_without("process_count_on_resume", resume))


def test_logs_of_several_processes(tmp_path):
    log = {"loss": torch.tensor(2.0), "text": "x" * 20_000}
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        error = with_and_without("logs_of_several_processes", lambda: distributed_utils.all_gather_list(log, group))
        assert distributed_utils.all_gather_list(log, group) == [log]
    finally:
        torch.distributed.destroy_process_group()
    # by torch: one without CUDA, with CUDA and no driver, with a GPU
    assert any(words in str(error) for words in ("ByteTensor", "NVIDIA driver", "encoded data size"))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("change", [{"batch_size": 4}, {"batch_size": 1}, {"seed": 5}], ids=str)
def test_other_batches_within_an_epoch_are_refused(change):
    """As another --max-tokens or --seed gives: what has been read of the epoch cannot be told by counting."""

    def resume():
        read, states = read_numbers(1, 8)
        rest, _ = read_numbers(1, states=states, **change)
        if sorted(read + rest) != list(range(48)):
            raise AssertionError("lost or repeated")

    with pytest.raises(UserError, match="give the options of that training, .* or begin the epoch again"):
        resume()
    with compat.without("process_count_on_resume"), pytest.raises(AssertionError, match="lost or repeated"):
        resume()
    _, states = read_numbers(1)  # at the end of an epoch nothing is in the way
    assert len(read_numbers(1, states=states, **change)[0]) == 48


def test_process_count_without_a_place_to_go_on_is_refused():
    _, states = read_numbers(1, 3)
    with pytest.raises(UserError, match=r"after 3 batches on 1 processes; 2 processes .* resume with 1 of them"):
        read_numbers(2, states=states)
    _, states = read_numbers(2, 2, grouped_shuffling=True)
    with pytest.raises(UserError, match=r"with --grouped-shuffling\); resume with 2 of them"):
        read_numbers(1, states=states, grouped_shuffling=True)


def test_process_count_is_free_between_epochs():
    _, states = read_numbers(3)
    assert sorted(read_numbers(2, states=states)[0]) == list(range(48))


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, {}, "each would train by itself"),
        (
            {},
            {"distributed_world_size": 2, "distributed_init_method": "tcp://localhost:1"},
            "fairseq would start no process",
        ),
    ],
)
def test_launches_without_training(environment, options, message, monkeypatch):
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.distributed_training.distributed_world_size = 1
    cfg.distributed_training.update(options)
    cfg.common.cpu = True
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    trained = []

    def launch():
        with pytest.raises(UserError, match=message):
            distributed_utils.call_main(cfg, lambda cfg: trained.append(1))

    assert "DID NOT RAISE" in str(with_and_without("launches_without_training", lambda: _as_exception(launch)))


def test_a_hydra_launch_is_checked_when_the_trainer_is_made(monkeypatch):
    """fairseq-hydra-train has called call_main before it imports the plugin."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="each would train by itself"):
        Trainer(OmegaConf.structured(FairseqConfig()), None, None, None)


def _as_exception(action):
    try:
        action()
    except pytest.fail.Exception as failure:  # is no Exception
        raise AssertionError(str(failure)) from None


@pytest.fixture
def train_here(data_bin, monkeypatch, tmp_path):
    """fairseq-train in this process, where repairs can be taken back; returns the folder of the checkpoints."""
    number = itertools.count()

    def train(*options, save_dir=None):
        save_dir = save_dir or tmp_path / f"run{next(number)}"
        words = ["fairseq-train", data_bin, *TRAINING[2:], "--save-dir", save_dir, "--disable-validation", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        train_command.cli_main()
        return save_dir

    return train


def test_training_that_diverges(train_here, tmp_path):
    """The update is named, and the checkpoint before it is still there; without the repair a StopIteration hides it."""

    def diverge():
        folder = tmp_path / f"{time.monotonic_ns()}"
        options = ("--lr", "1e12", "--warmup-updates", "1", "--save-interval-updates", "1")
        message = r"gradients are Nan/Inf .*resume from the checkpoints of before \(checkpoint_1_1.pt, checkpoint_1"
        with pytest.raises(UserError, match=message) as caught:
            train_here(*options, save_dir=folder)
        state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
        assert str(caught.value).startswith(f"update {state['optimizer_history'][-1]['num_updates'] + 1}: ")
        assert all(torch.isfinite(weight).all() for weight in state["model"].values())

    assert isinstance(with_and_without("training_that_diverges", diverge), StopIteration)


@pytest.mark.skipif(torch.cuda.is_available(), reason="without the repair, fairseq takes the GPU's tensor")
def test_overflow_on_cpu(train_here):
    """The scale is lowered until gradients fit, and training goes on."""

    def train():
        folder = train_here("--fp16", "--fp16-init-scale", 2**24, "--max-update", "2")
        state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
        assert state["last_optimizer_state"]["loss_scale"] < 2**24
        assert state["optimizer_history"][-1]["num_updates"] == 2

    error = str(with_and_without("overflow_on_cpu", train))
    assert "CUDA" in error or "NVIDIA" in error


def test_no_checkpoint_of_broken_weights(train_here, monkeypatch):
    """As after an update that overflowed the weights themselves, right before a checkpoint is due."""
    optimizer_step = FairseqTask.optimizer_step

    def break_weights_at_4(self, optimizer, model, update_num):
        optimizer_step(self, optimizer, model, update_num)
        if update_num == 3:
            model.encoder.lm_head.bias.data[3] = float("nan")

    monkeypatch.setattr(FairseqTask, "optimizer_step", break_weights_at_4)
    message = (
        r"^update 4: 1 weights are not finite \(encoder.lm_head.bias .* checkpoint_1_4.pt is not .*\(checkpoint_1_2"
    )

    def train():
        with pytest.raises(UserError, match=message):
            train_here("--max-update", "4", "--save-interval-updates", "2")

    assert "DID NOT RAISE" in str(with_and_without("no_checkpoint_of_broken_weights", lambda: _as_exception(train)))


@pytest.mark.parametrize("precision", ["--fp16", "--bf16"])
def test_full_precision_weights_on_resume(train_here, precision):
    """Three updates, an interruption and three more give the weights of six."""

    def train():
        options = ("--fp16-init-scale", "4", precision, "--max-update")
        through, resumed = train_here(*options, "6"), train_here(*options, "3")
        train_here(*options, "6", save_dir=resumed)
        a, b = (torch.load(folder / "checkpoint_last.pt", weights_only=True) for folder in (through, resumed))
        assert [name for name in a["model"] if not torch.equal(a["model"][name], b["model"][name])] == []
        copies = zip(a["last_optimizer_state"]["fp32_params"], b["last_optimizer_state"]["fp32_params"], strict=True)
        assert all(torch.equal(x, y) for x, y in copies)

    assert isinstance(with_and_without("full_precision_weights_on_resume", train), AssertionError)


def test_fully_sharded_without_means(train_here, monkeypatch):
    def train():
        with pytest.raises(UserError, match="fully_sharded needs a GPU and the package fairscale"):
            train_here("--ddp-backend", "fully_sharded")

    assert "Cannot find FullyShardedDataParallel" in str(with_and_without("fully_sharded_without_means", train))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="fully_sharded needs the package fairscale"):
        train_command.fsdp_enable_wrap(None)


def test_process_groups_left_open(train_here, tmp_path):
    def train():
        where = (
            "--distributed-init-method",
            f"file://{tmp_path}/{time.monotonic_ns()}",
            "--distributed-backend",
            "gloo",
        )
        train_here("--max-update", "1", *where, "--distributed-no-spawn", "--distributed-rank", "0")
        left_open = torch.distributed.is_initialized()
        if left_open:
            torch.distributed.destroy_process_group()
            del distributed_utils.get_global_group._global_group
        assert not left_open

    assert isinstance(with_and_without("process_groups_left_open", train), AssertionError)
