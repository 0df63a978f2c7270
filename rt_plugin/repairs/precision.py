"""Repairs of training in half precision, and of trainings whose numbers are no longer finite."""

import functools
import importlib.util

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.nan_detector import NanDetector
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin
from fairseq.trainer import Trainer

from rt_plugin.errors import DivergenceError
from rt_plugin.repairs.messages import after_divergence, first_line
from rt_plugin.repairs.registry import Patches, repair


@repair(
    patches=["fairseq.distributed.utils.call_main", "fairseq.trainer.Trainer.__init__"],
    threads=["facebookresearch/fairseq#4696"],
    until="fairseq keeps `--bf16` and the TPU flag apart, and flattens gradients on their own device",
)
def half_precision_flags(patches: Patches) -> None:
    """`--bf16` turns fairseq's TPU flag on, also where no XLA is installed and bfloat16 is meant for the GPU or CPU.
    `--fp16` on a CPU flattens the gradients into a CUDA tensor.

    Two places: fairseq-train imports the plugin before call_main, fairseq-hydra-train after it.
    """
    call_main, init_trainer = distributed_utils.call_main, Trainer.__init__

    @functools.wraps(call_main)
    def call_main_with_right_flags(cfg, main, **kwargs):
        _set_half_precision_flags(cfg)
        return call_main(cfg, main, **kwargs)

    @functools.wraps(init_trainer)
    def init_trainer_with_right_flags(self, cfg, *args, **kwargs):
        _set_half_precision_flags(cfg)
        init_trainer(self, cfg, *args, **kwargs)

    patches.set(distributed_utils, "call_main", call_main_with_right_flags)
    patches.set(Trainer, "__init__", init_trainer_with_right_flags)


def _set_half_precision_flags(cfg) -> None:
    if cfg.common.bf16 and importlib.util.find_spec("torch_xla") is None:
        for group in cfg.values():  # the flag is copied into criterion, optimiser and others
            if hasattr(group, "get") and group.get("tpu"):
                group.tpu = False
    if cfg.common.cpu or not torch.cuda.is_available():
        cfg.common.fp16_no_flatten_grads = True


@repair(
    patches=["fairseq.nan_detector.NanDetector.add_hooks", "fairseq.trainer.Trainer.train_step"],
    until="fairseq's NanDetector works with the hooks of torch 2",
)
def training_that_diverges(patches: Patches) -> None:
    """Gradients that are not finite start a search for the layer, which dies of a StopIteration with today's hooks of
    torch and hides what happened. Training ends with one line: the update, the checkpoints before it, what helps.
    """
    train_step = Trainer.train_step

    def add_hooks(self, module):
        def watch(module, inputs, output):
            self.fhook_fn(module, inputs, output)
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if torch.is_tensor(tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.bhook_fn(module, (), gradient))

        self.fhooks.append(module.register_forward_hook(watch))

    @functools.wraps(train_step)
    def train_step_with_update(self, *args, **kwargs):
        try:
            return train_step(self, *args, **kwargs)
        except FloatingPointError as error:
            if "inconsistent between workers" in str(error):  # not a matter of size
                raise
            raise DivergenceError(
                f"update {self.get_num_updates() + 1}: {first_line(error)} (the log above names the layer where "
                f"it began, if a second pass found it); {after_divergence(self.cfg.checkpoint.save_dir)}"
            ) from error

    patches.set(NanDetector, "add_hooks", add_hooks)
    patches.set(Trainer, "train_step", train_step_with_update)


@repair(
    patches=["fairseq.trainer.Trainer.train_step"],
    until="fairseq's train_step makes its empty gradient norm on the trainer's device",
)
def overflow_on_cpu(patches: Patches) -> None:
    """After an overflow in half precision fairseq lowers the loss scale, skips the update, and asks for a CUDA tensor:
    on a CPU training ends there.
    """
    train_step = Trainer.train_step

    @functools.wraps(train_step)
    def train_step_on_any_device(self, *args, **kwargs):
        try:
            return train_step(self, *args, **kwargs)
        except (AssertionError, RuntimeError) as error:
            if self.cuda or not isinstance(error.__context__, OverflowError):
                raise
            self.zero_grad()
            return None

    patches.set(Trainer, "train_step", train_step_on_any_device)


@repair(
    patches=["fairseq.optim.amp_optimizer.AMPOptimizer.step"],
    until="fairseq's AMPOptimizer steps what it has unscaled",
)
def gradients_unscaled_once(patches: Patches) -> None:
    """`--amp` divides the gradients by the loss scale twice, which makes Adam's eps larger by that factor: to clip, the
    optimizer is unscaled; to step, fairseq's wrapper of it, of which the scaler knows nothing yet.
    """

    def step(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()

    patches.set(AMPOptimizer, "step", step)


@repair(
    patches=[
        "fairseq.optim.fp16_optimizer._FP16OptimizerMixin.state_dict",
        "fairseq.optim.fp16_optimizer._FP16OptimizerMixin.load_state_dict",
    ],
    until="fairseq saves the optimizer's copy of the weights",
)
def full_precision_weights_on_resume(patches: Patches) -> None:
    """`--fp16` and `--bf16` resume from rounded weights, and training goes another way: the copy in full precision that
    the optimizer updates is not saved. Now it is part of the optimizer's state.
    """
    state_dict, load_state_dict = _FP16OptimizerMixin.state_dict, _FP16OptimizerMixin.load_state_dict

    def full_precision(optimizer) -> list[torch.Tensor]:
        weights = optimizer.fp32_params
        weights = weights.values() if isinstance(weights, dict) else [weights] if torch.is_tensor(weights) else weights
        return [weight.detach() for weight in weights]

    @functools.wraps(state_dict)
    def state_with_weights(self):
        return {**state_dict(self), "fp32_params": full_precision(self)}

    @functools.wraps(load_state_dict)
    def load_state_with_weights(self, state, optimizer_overrides=None):
        saved = state.get("fp32_params", [])  # checkpoints of fairseq itself have none
        load_state_dict(self, {k: v for k, v in state.items() if k != "fp32_params"}, optimizer_overrides)
        for weight, value in zip(full_precision(self), saved, strict=bool(saved)):
            weight.copy_(value)

    patches.set(_FP16OptimizerMixin, "state_dict", state_with_weights)
    patches.set(_FP16OptimizerMixin, "load_state_dict", load_state_with_weights)
