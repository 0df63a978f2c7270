"""Repairs of half precision and of trainings that diverge: each works, and the very same thing breaks without it."""

import functools
import time

import pytest
import torch
from fairseq.distributed import utils as distributed_utils
from omegaconf import OmegaConf

from conftest import TRAINING, run_command
from repair_cases import with_and_without
from rt_plugin import UserError


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


@pytest.mark.parametrize("flags", [("--bf16",), ("--fp16",), ("--memory-efficient-fp16",), ("--amp",)], ids=" ".join)
def test_half_precision_trains_saves_and_resumes_on_the_cpu(flags, data_bin, tmp_path):
    options = (data_bin, *TRAINING, *flags, "--save-dir", tmp_path, "--disable-validation")
    run_command("fairseq-train", *options, "--max-update", "2")
    resumed = run_command("fairseq-train", *options, "--max-update", "3")
    assert "@ 2 updates" in resumed.stdout


@pytest.mark.parametrize("optimizer", ["adam", "fused_adam"])
def test_gradients_unscaled_once(optimizer, train_here, monkeypatch):
    """A loss scale is a power of two: with it the updates are the same, to the last bit."""
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", functools.partial(torch.amp.GradScaler, "cpu"))
    options = ("--optimizer", optimizer, "--adam-eps", "1e-3", "--max-update", "3")

    def weights(*flags):
        folder = train_here(*options, *flags)
        return torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]

    plain = weights()

    def train():
        scaled = weights("--amp")
        assert [name for name in plain if not torch.equal(plain[name], scaled[name])] == []

    assert isinstance(with_and_without("gradients_unscaled_once", train), AssertionError)


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


@pytest.mark.parametrize("precision", ["--fp16", pytest.param("--bf16", marks=pytest.mark.slow)])
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
