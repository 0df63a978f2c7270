"""Repair of trainings that do not fit into a device's memory."""

import contextlib
import functools
from collections.abc import Iterator

import torch
from fairseq.trainer import Trainer

from rt_plugin.errors import UserError
from rt_plugin.repairs.messages import first_line
from rt_plugin.repairs.registry import Patches, repair


@repair(
    patches=["fairseq.trainer.Trainer.train_step", "fairseq.trainer.Trainer.valid_step"],
    threads=["facebookresearch/fairseq#708", "facebookresearch/metaseq#314"],
    until="fairseq ends a training whose batches do not fit into memory",
)
def out_of_memory(patches: Patches) -> None:
    """A batch that does not fit into memory is left out with a warning in the log: where none fits, a training makes no
    update and never ends, and several processes wait for each other. One of a validation is tried twice and then ends
    in a traceback. Training ends with one line: the update, the option to lower.

    A caller that asks for the error itself (`raise_oom`) gets it.
    """
    train_step, valid_step = Trainer.train_step, Trainer.valid_step

    @functools.wraps(train_step)
    def train_step_that_fits(self, samples, raise_oom=False):
        with _in_one_line(raise_oom, f"update {self.get_num_updates() + 1}", self.cfg.dataset):
            return train_step(self, samples, raise_oom=True)

    @functools.wraps(valid_step)
    def valid_step_that_fits(self, sample, raise_oom=False):
        with _in_one_line(raise_oom, f"validation after update {self.get_num_updates()}", self.cfg.dataset, "_valid"):
            return valid_step(self, sample, raise_oom)  # fairseq's second try calls this function, with raise_oom

    patches.set(Trainer, "train_step", train_step_that_fits)
    patches.set(Trainer, "valid_step", valid_step_that_fits)


@contextlib.contextmanager
def _in_one_line(raise_oom: bool, where: str, cfg, split: str = "") -> Iterator[None]:
    """Turn the error of a full memory into one line, unless the caller asks for it; `cfg`, `split`: as below."""
    try:
        yield
    except RuntimeError as error:
        is_full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
        if raise_oom or not is_full:
            raise
        raise UserError(f"{where}: {first_line(error)}; lower {_batch_options(cfg, split)}") from error


def _batch_options(cfg, split: str = "") -> str:
    """What a batch's size was set with.

    Args:
        cfg: fairseq's dataset group.
        split: "_valid" for the options of validation, which are those of training unless given.
    """
    size, tokens = cfg[f"batch_size{split}"], cfg[f"max_tokens{split}"]
    words = [f"--batch-size{split.replace('_', '-')} {size}"] if size else []
    if tokens:
        launcher = "" if split else " (of rt-plugin pretrain: --tokens-per-device)"
        words.append(f"--max-tokens{split.replace('_', '-')} {tokens}{launcher}")
    return " or ".join(words)
