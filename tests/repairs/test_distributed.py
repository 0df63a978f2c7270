"""Repairs of several processes: each works, and the very same thing breaks without it."""

import argparse
import copy
import subprocess
import sys
import time

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.models import distributed_fairseq_model
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from conftest import REPOSITORY
from repair_cases import with_and_without

BROADCAST = """
import contextlib, sys, torch
from rt_plugin.repairs import registry
from fairseq.distributed import utils
from omegaconf import OmegaConf
rank, store, repair = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
state = {"cfg": OmegaConf.create({"a": 1}), "model": torch.arange(3)} if rank == 0 else None
with registry.without(repair) if repair else contextlib.nullcontext():
    state = utils.broadcast_object(state, 0, torch.distributed.group.WORLD)
assert state["cfg"].a == 1 and state["model"].tolist() == [0, 1, 2]
torch.distributed.destroy_process_group()  # left open, it now and then aborts the interpreter's end
"""


NEW_PROCESS = """
import contextlib, multiprocessing, sys
import rt_plugin, fairseq
from rt_plugin.repairs import registry
method, repair = sys.argv[1:]
code = "import sys; assert 'rt_plugin' in sys.modules; assert 'fairseq' not in sys.modules"
with registry.without(repair) if repair else contextlib.nullcontext():
    process = multiprocessing.get_context(method).Process(target=exec, args=(code,))
    process.start()
    process.join(120)
sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_plugin_in_new_processes(method):
    """From a process of its own: this one's fork server may have been started by another test, with imports."""
    codes = [
        subprocess.run([sys.executable, "-c", NEW_PROCESS, method, repair], cwd=REPOSITORY, timeout=200).returncode
        for repair in ("", "plugin_in_new_processes")
    ]
    assert codes == [0, 1]


def test_one_process_on_a_cpu(monkeypatch):
    """As on a machine with two GPUs; processes that are asked for are started."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def processes(*words, cpu=True) -> int:
        started = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.multiprocessing, "spawn", lambda fn, args, nprocs, join: started.append(nprocs))
            patch.setattr(sys, "argv", ["fairseq-train", *words])
            cfg = OmegaConf.structured(FairseqConfig())
            cfg.distributed_training.distributed_world_size = 2
            cfg.common.cpu = cpu
            distributed_utils.call_main(cfg, lambda cfg: started.append(1))
        return started[0]

    def alone():
        assert processes() == 1

    assert isinstance(with_and_without("one_process_on_a_cpu", alone), AssertionError)
    assert processes("--distributed-world-size", "2") == processes("--distributed-world-size=2") == 2
    assert processes("distributed_training.distributed_world_size=2") == 2
    assert processes(cpu=False) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes() == 2


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


def test_weights_without_gradients(tmp_path):
    """The second of two updates of a model half of which has no part in the loss, as torch's DDP makes them."""
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.task = {"_name": "rt_glue"}
    cfg.common.cpu = True
    cfg.distributed_training.distributed_world_size = 1

    def two_updates():
        halves = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
        halves.forward = lambda x: halves["body"](x)
        trainer = Trainer(copy.deepcopy(cfg), None, halves, torch.nn.Identity())
        model = distributed_fairseq_model.DistributedFairseqModel(
            trainer.cfg.distributed_training, halves, torch.distributed.group.WORLD, torch.device("cpu")
        )
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        error = with_and_without("weights_without_gradients", two_updates)
    finally:
        torch.distributed.destroy_process_group()
    assert "Expected to have finished reduction in the prior iteration" in str(error)


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
