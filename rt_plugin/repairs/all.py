"""The repairs that fairseq 0.12.3.1 needs on today's Python, torch and numpy, each with its reason.

A repair is a function that replaces attributes of fairseq, numpy or torch through the `Patches` it is given, so that it
can be taken back: the tests switch every repair off (`without`) and show what breaks.
"""

import argparse
import contextlib
import functools
import importlib.util
import logging
import os
import pickle
import shutil
import sys
import time
import types
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from fairseq import checkpoint_utils, distributed, utils
from fairseq.data import data_utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models import distributed_fairseq_model
from fairseq.nan_detector import NanDetector
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin
from fairseq.trainer import Trainer

from rt_plugin.console.files import replacing
from rt_plugin.errors import DivergenceError, UserError

logger = logging.getLogger(__name__)


class Patches:
    """Replaces attributes and remembers how to take that back."""

    def __init__(self):
        self._undo: list[Callable[[], None]] = []

    def set(self, owner, name: str, value) -> None:
        if hasattr(owner, name):
            self._undo.append(functools.partial(setattr, owner, name, owner.__dict__[name]))
        else:
            self._undo.append(functools.partial(delattr, owner, name))
        setattr(owner, name, value)

    def on_undo(self, action: Callable[[], None]) -> None:
        self._undo.append(action)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


REPAIRS: dict[str, Callable[[Patches], None]] = {}
_applied: dict[str, Patches] = {}


def _repair(function: Callable[[Patches], None]) -> Callable[[Patches], None]:
    REPAIRS[function.__name__] = function
    return function


def apply_all() -> None:
    """Make every repair that is not made yet."""
    for name in REPAIRS:
        if name not in _applied:
            _apply(name)


def _apply(name: str) -> None:
    patches = Patches()
    REPAIRS[name](patches)
    _applied[name] = patches


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Take one repair back for the length of a block (for tests, and to see whether a newer fairseq still needs it)."""
    _replace_all([other for other in REPAIRS if other != name])
    try:
        yield
    finally:
        _replace_all(REPAIRS)


def _replace_all(names: Iterable[str]) -> None:
    """Two repairs may wrap one function; taken back in the reverse order, neither brings the other's wrapper back."""
    for name in reversed(list(_applied)):
        _applied.pop(name).undo()
    for name in names:
        _apply(name)


@_repair
def checkpoint_types(patches: Patches) -> None:
    """torch >= 2.6 reads checkpoints with weights_only on and refuses what fairseq stores beside the weights:
    argparse.Namespace in the configuration, numpy numbers in best scores. Exactly these are declared safe."""
    before = torch.serialization.get_safe_globals()
    scalar = np.float64(0).__reduce__()[0]  # its module is numpy._core since numpy 2, numpy.core before
    number_types = {type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.bool_)}
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.dtype, *number_types, scalar, (scalar, "numpy.core.multiarray.scalar")]
    )

    def restore():
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    patches.on_undo(restore)


@_repair
def numpy_compat_long(patches: Patches) -> None:
    """`--sample-break-mode eos` asks for np.compat.long; numpy 2 has no np.compat."""
    if not hasattr(np, "compat"):
        patches.set(np, "compat", types.SimpleNamespace(long=int))


@_repair
def warnings_for_fairseq(patches: Patches) -> None:
    """Every fairseq command prints a screen of warnings of hydra and torch that only fairseq could act on."""
    before = list(warnings.filters)
    for message in (
        r"hydra\.experimental",
        r"\s*The version_base parameter is not specified",
        r"In 'config': Usage of deprecated keyword",
        r"\s*'config' is validated against ConfigStore schema",
        r"\s*The strict flag in the compose API is deprecated",
        r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated",
        r"'pin_memory' argument is set as true but no accelerator is found",
        r"`broadcast_buffers` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
    patches.on_undo(functools.partial(setattr, warnings, "filters", before))


@_repair
def half_precision_flags(patches: Patches) -> None:
    """`--bf16` switches fairseq's TPU flag on; where no XLA is installed, bfloat16 is meant for the GPU or CPU.
    `--fp16` on a CPU flattens the gradients into a CUDA tensor; there they must stay as they are.

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


@_repair
def process_groups_left_open(patches: Patches) -> None:
    """fairseq leaves torch's process group to the end of the interpreter. With gloo a thread of it may still be running
    then, and a process that has trained and saved ends with SIGABRT (pytorch issue 190489). Closed after success only:
    after an error the other processes may be waiting for this one."""
    distributed_main = distributed_utils.distributed_main

    @functools.wraps(distributed_main)
    def distributed_main_to_the_end(*args, **kwargs):
        distributed_main(*args, **kwargs)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            vars(distributed_utils.get_global_group).pop("_global_group", None)

    patches.set(distributed_utils, "distributed_main", distributed_main_to_the_end)


@_repair
def launches_without_training(patches: Patches) -> None:
    """Two launches on a CPU go wrong without a word: torchrun without a world size, where every process trains by
    itself, all into one folder; and a world size without --distributed-no-spawn, where no process is started.

    The second place is fairseq-hydra-train's, which imports the plugin after call_main: too late for the second launch.
    """
    call_main, init_trainer = distributed_utils.call_main, Trainer.__init__

    @functools.wraps(call_main)
    def call_main_if_it_trains(cfg, main, **kwargs):
        refuse_useless_launch(cfg.distributed_training)
        return call_main(cfg, main, **kwargs)

    @functools.wraps(init_trainer)
    def init_trainer_if_it_trains(self, cfg, *args, **kwargs):
        refuse_useless_launch(cfg.distributed_training)
        init_trainer(self, cfg, *args, **kwargs)

    patches.set(distributed_utils, "call_main", call_main_if_it_trains)
    patches.set(Trainer, "__init__", init_trainer_if_it_trains)


def refuse_useless_launch(cfg) -> None:
    """Refuse a launch that trains several times into one folder, or not at all.

    Args:
        cfg: fairseq's distributed_training group.

    Raises:
        UserError: it is one of the two.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if processes > 1 and cfg.distributed_world_size == 1:
        raise UserError(
            f"torchrun started {processes} processes, but the world size is 1: each would train by itself; use "
            "rt-plugin pretrain --processes, or see docs/pretraining.md for the options"
        )
    spawns = cfg.distributed_init_method is not None and not cfg.distributed_no_spawn
    if spawns and not torch.cuda.is_available():
        raise UserError(
            f"--distributed-world-size {cfg.distributed_world_size} without a GPU: fairseq would start no process and "
            "train nothing; use rt-plugin pretrain --processes, or see docs/pretraining.md for the options"
        )


@_repair
def fully_sharded_without_means(patches: Patches) -> None:
    """`--ddp-backend fully_sharded` needs fairscale, and GPUs: without them it ends in a traceback, sooner or later."""
    fsdp_enable_wrap = distributed.fsdp_enable_wrap

    @functools.wraps(fsdp_enable_wrap)
    def enable_wrap_where_possible(cfg):
        missing = [] if torch.cuda.is_available() else ["a GPU"]
        missing += [] if importlib.util.find_spec("fairscale") else ["the package fairscale (pip install fairscale)"]
        if missing:
            raise UserError(
                f"--ddp-backend fully_sharded needs {' and '.join(missing)}, not found here; leave the option out: "
                "--memory-efficient-fp16, --checkpoint-activations and --update-freq save memory everywhere"
            )
        return fsdp_enable_wrap(cfg)

    def put(function):
        distributed.fsdp_enable_wrap = function
        for name in ("fairseq_cli.train", "__main__"):  # training takes it by name when it is imported, before or after
            if hasattr(sys.modules.get(name), "fsdp_enable_wrap"):
                sys.modules[name].fsdp_enable_wrap = function

    put(enable_wrap_where_possible)
    patches.on_undo(functools.partial(put, fsdp_enable_wrap))


@_repair
def training_that_diverges(patches: Patches) -> None:
    """Where gradients are not finite, fairseq looks for the layer that made them so; with torch's hooks of today the
    search ends in a StopIteration that hides what happened. The line says at which update it was, and what to do."""
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
                f"update {self.get_num_updates() + 1}: {_first_line(error)} (the log above names the layer where "
                f"it began, if a second pass found it); {_what_diverged_training_can_do(self.cfg.checkpoint.save_dir)}"
            ) from error

    patches.set(NanDetector, "add_hooks", add_hooks)
    patches.set(Trainer, "train_step", train_step_with_update)


def _what_diverged_training_can_do(folder: str) -> str:
    names = sorted(path.name for path in Path(folder).glob("checkpoint*.pt"))  # crash.pt is what diverged
    saved = f"resume from the checkpoints of before ({', '.join(names)} in {folder})" if names else "start again"
    return f"{saved} with a lower --lr, a longer --warmup-updates, --clip-norm 1, or --bf16 instead of --fp16"


@_repair
def overflow_on_cpu(patches: Patches) -> None:
    """After an overflow in half precision fairseq lowers the loss scale, skips the update, and asks for a CUDA tensor:
    on a CPU training ends there."""
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


@_repair
def no_checkpoint_of_broken_weights(patches: Patches) -> None:
    """Weights that are not finite would take the place of the last good checkpoint."""
    save_checkpoint = Trainer.save_checkpoint

    @functools.wraps(save_checkpoint)
    def save_finite_checkpoint(self, filename, extra_state):
        broken = [n for n, p in self.get_model().named_parameters() if not torch.isfinite(p).all()]
        if broken and os.path.basename(filename) != "crash.pt":
            raise UserError(
                f"update {self.get_num_updates()}: {len(broken)} weights are not finite ({broken[0]} is the first), so "
                f"{os.path.basename(filename)} is not written; "
                f"{_what_diverged_training_can_do(os.path.dirname(filename))}"
            )
        return save_checkpoint(self, filename, extra_state)

    patches.set(Trainer, "save_checkpoint", save_finite_checkpoint)


@_repair
def full_precision_weights_on_resume(patches: Patches) -> None:
    """With --fp16 and --bf16 the optimizer updates a copy of the weights in full precision, but checkpoints hold the
    rounded ones alone: a resumed training goes another way. The copy is saved with the optimizer's state."""
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


@_repair
def last_batch(patches: Patches) -> None:
    """fairseq drops the last batch of every data set, validation too, where its length is no multiple of
    `--required-batch-size-multiple` (default 8): up to 7 samples, in a small data set all. They are kept."""
    batch_by_size = data_utils.batch_by_size

    @functools.wraps(batch_by_size)
    def batch_all(indices, *args, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        batches = list(batch_by_size(indices, *args, **kwargs)) if len(indices) else []
        rest = indices[sum(map(len, batches)) :]  # batches follow the order of the indices
        return [*batches, rest] if len(rest) else batches

    patches.set(data_utils, "batch_by_size", batch_all)


@_repair
def broadcast_between_processes(patches: Patches) -> None:
    """A checkpoint's configuration is sent from the first process to the others as a file of torch.save, which
    torch >= 2.6 refuses to read (weights_only): resuming with several processes fails. torch's own way is used."""
    broadcast = distributed_utils._broadcast_object_slow

    @functools.wraps(broadcast)
    def broadcast_object(obj, src_rank, group, dist_device):
        if not isinstance(group, torch.distributed.ProcessGroup):  # XLA's groups
            return broadcast(obj, src_rank, group, dist_device)
        objects = [obj]
        source = torch.distributed.get_global_rank(group, src_rank)
        torch.distributed.broadcast_object_list(objects, source, group, dist_device)
        return objects[0]

    patches.set(distributed_utils, "_broadcast_object_slow", broadcast_object)


@_repair
def logs_of_several_processes(patches: Patches) -> None:
    """fairseq-validate gathers the logs of its processes in a CUDA buffer of 16 KB for each (--all-gather-list-size):
    on a CPU there is none, and a hundred batches do not fit. torch's own way has neither limit."""
    all_gather_list = distributed_utils.all_gather_list

    @functools.wraps(all_gather_list)
    def gather(data, group=None, max_size=16384):
        group = distributed_utils.get_global_group() if group is None else group
        if not isinstance(group, torch.distributed.ProcessGroup):  # XLA's groups
            return all_gather_list(data, group, max_size)
        gathered = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, utils.move_to_cpu(data), group)
        return gathered

    patches.set(distributed_utils, "all_gather_list", gather)


@_repair
def process_count_on_resume(patches: Patches) -> None:
    """A checkpoint tells how many batches each process has read of an epoch, not how many processes there were, nor
    what batches: resumed with others, data are lost or read twice. The number of processes is stored, and the place
    is found; other batches are refused."""
    state_dict, load_state_dict = EpochBatchIterator.state_dict, EpochBatchIterator.load_state_dict

    @functools.wraps(state_dict)
    def state_with_processes(self):
        return {**state_dict(self), "num_shards": self.num_shards, "batches": _fingerprint_of_batches(self)}

    @functools.wraps(load_state_dict)
    def load_state_of_any_processes(self, state):
        load_state_dict(self, {**state, "iterations_in_epoch": _batches_of_each_process(state, self)})

    patches.set(EpochBatchIterator, "state_dict", state_with_processes)
    patches.set(EpochBatchIterator, "load_state_dict", load_state_of_any_processes)


def _fingerprint_of_batches(iterator: EpochBatchIterator) -> tuple[int, int, int]:
    """How many batches an epoch has, a checksum of their sizes, and the seed of their order."""
    batches = iterator.frozen_batches
    sizes = batches.sizes if hasattr(batches, "sizes") else np.fromiter(map(len, batches), dtype=np.int64)
    return len(sizes), zlib.crc32(sizes.tobytes()), iterator.seed


def _batches_of_each_process(state: dict, iterator: EpochBatchIterator) -> int:
    """How many batches of the epoch each process has to skip. The order of all batches does not depend on the number of
    processes, which read them in turn."""
    now = iterator.num_shards
    before = state.get("num_shards", now)  # checkpoints of fairseq itself do not have it
    batches = before * state.get("iterations_in_epoch", 0)
    if batches and "batches" in state and tuple(state["batches"]) != _fingerprint_of_batches(iterator):
        raise UserError(
            f"the checkpoint was saved within an epoch, after {batches:,} of {state['batches'][0]:,} batches; with the "
            f"options and data of now there are {len(iterator.frozen_batches):,} others, and data would be lost and "
            "repeated; give the options of that training, --max-tokens, --batch-size and --seed among them "
            "(rt-plugin pretrain: --tokens-per-device, --processes), or begin the epoch again with --reset-dataloader"
        )
    if before != now and batches and (batches % now or iterator.grouped_shuffling):
        usable = [str(n) for n in range(1, max(before, now) + 1) if batches % n == 0]
        why = "with --grouped-shuffling" if iterator.grouped_shuffling else f"{batches} is no multiple of {now}"
        raise UserError(
            f"the checkpoint was saved within an epoch, after {batches} batches on {before} processes; {now} processes "
            f"cannot go on there without losing or repeating data ({why}); resume with "
            f"{before if iterator.grouped_shuffling else ' or '.join(usable)} of them, or begin the epoch again with "
            "--reset-dataloader"
        )
    return batches // now


@_repair
def ddp_on_cpu(patches: Patches) -> None:
    """`--ddp-backend pytorch_ddp` passes device_ids, which torch refuses for a model on the CPU."""

    class DistributedDataParallel(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module, device_ids=None, output_device=None, **kwargs):
            if next(module.parameters()).device.type == "cpu":
                device_ids = output_device = None
            super().__init__(module, device_ids=device_ids, output_device=output_device, **kwargs)

    patches.set(distributed_fairseq_model, "DistributedDataParallel", DistributedDataParallel)


@_repair
def missing_start_checkpoint(patches: Patches) -> None:
    """`--restore-file` with a path that does not exist: fairseq logs a line and trains from scratch. Refused.

    checkpoint_utils.load_checkpoint is called by training alone, once, and is the first place that knows both the task
    and the save folder: a task that wants its model folder complete (`write_model_folder`) and a model that wants to
    see the checkpoint first (`check_start_checkpoint`) are called here as well.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_existing_checkpoint(cfg, trainer, **kwargs):
        start = _start_checkpoint(cfg)
        if start is not None and hasattr(trainer.get_model(), "check_start_checkpoint"):
            trainer.get_model().check_start_checkpoint(start)
        if hasattr(trainer.task, "write_model_folder") and trainer.data_parallel_rank == 0 and not cfg.no_save:
            trainer.task.write_model_folder(cfg.save_dir)
        try:
            return load_checkpoint(cfg, trainer, **kwargs)
        except Exception as error:
            if "Cannot load model parameters" not in str(error):
                raise
            raise UserError(
                f"{str(error).split(';')[0]}: its model differs from the one asked for "
                f"({_first_line(error.__context__)}); use the architecture and options of that checkpoint, "
                "or another --save-dir"
            ) from error

    patches.set(checkpoint_utils, "load_checkpoint", load_existing_checkpoint)


def _start_checkpoint(cfg) -> str | None:
    """The checkpoint that training will start from; None: from scratch."""
    last = os.path.join(cfg.save_dir, "checkpoint_last.pt")
    if cfg.restore_file != "checkpoint_last.pt":
        option, wanted = "--restore-file", cfg.restore_file
    elif PathManager.exists(last):
        return last
    elif cfg.finetune_from_model is not None:
        option, wanted = "--finetune-from-model", cfg.finetune_from_model
    else:
        return None
    if not PathManager.isfile(wanted):
        raise UserError(f"{option} {wanted}: no such file; give the path of a checkpoint, or leave the option out")
    return wanted


@_repair
def unreadable_checkpoint(patches: Patches) -> None:
    """A checkpoint that is cut off, or is none, ends in a torch traceback; say which file it is and what to do."""
    load_to_cpu = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load_to_cpu)
    def load_readable_checkpoint(path, *args, **kwargs):
        try:
            return load_to_cpu(path, *args, **kwargs)
        except FileNotFoundError:
            raise
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            others = sorted(p.name for p in Path(path).parent.glob("checkpoint*.pt") if p.name != Path(path).name)
            raise UserError(
                f"checkpoint {path} cannot be read ({os.path.getsize(path):,} bytes; {_first_line(error)}): "
                f"it is cut off, or not a checkpoint; use another (in the same folder: {', '.join(others) or 'none'}), "
                f"for example with `ln -f ANOTHER {Path(path).name}` there"
            ) from error

    patches.set(checkpoint_utils, "load_checkpoint_to_cpu", load_readable_checkpoint)


@_repair
def atomic_checkpoint_copies(patches: Patches) -> None:
    """fairseq writes a checkpoint once and copies it over its other names (best, last) in place: a kill or a full disk
    in between leaves them cut off. A hard link, or a complete copy where links are not possible, takes their place."""

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        temporary = dst_path + ".tmp"
        Path(temporary).unlink(missing_ok=True)
        try:
            try:
                os.link(src_path, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(src_path, temporary)
            os.replace(temporary, dst_path)
        except OSError as error:
            raise _cannot_write(dst_path, error) from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True

    patches.set(PathManager, "copy", staticmethod(copy))


@_repair
def atomic_checkpoint_writes(patches: Patches) -> None:
    """fairseq retries a failed write into the same file handle without emptying it, and leaves the .tmp file behind."""
    save = checkpoint_utils.torch_persistent_save

    @functools.wraps(save)
    def save_completely(obj, filename, async_write=False):
        if async_write:
            return save(obj, filename, async_write=True)
        for attempts_left in (2, 1, 0):
            try:
                with replacing(filename) as file:
                    return torch.save(obj, file)
            except (OSError, RuntimeError) as error:
                if not attempts_left:
                    raise _cannot_write(filename, error) from error
                logger.warning("writing %s failed (%s), trying again", filename, _first_line(error))
                time.sleep(1)

    patches.set(checkpoint_utils, "torch_persistent_save", save_completely)


def _cannot_write(path: str, error: Exception) -> UserError:
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    return UserError(
        f"checkpoint {path} cannot be written ({_first_line(error)}; {free / 2**20:,.0f} MiB free there); the "
        "checkpoints saved before are unharmed: make room and run the same command again, it resumes"
    )


def _first_line(error: BaseException | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(error).__name__
