"""Repair of trainings that do not fit into a device's memory."""

import functools

import torch
from fairseq.trainer import Trainer

from rt_plugin.errors import UserError
from rt_plugin.repairs.messages import first_line
from rt_plugin.repairs.registry import Patches, repair


@repair(
    patches=["fairseq.trainer.Trainer.train_step"],
    threads=["facebookresearch/fairseq#708", "facebookresearch/metaseq#314"],
    until="fairseq ends a training whose batches do not fit into memory",
)
def out_of_memory(patches: Patches) -> None:
    """A batch that does not fit into memory is left out with a warning in the log: where none fits, a training makes no
    update and never ends, and several processes wait for each other. Training ends with one line: the update, the
    option to lower.

    A caller that asks for the error itself (`raise_oom`) gets it.
    """
    train_step = Trainer.train_step

    @functools.wraps(train_step)
    def train_step_that_fits(self, samples, raise_oom=False):
        try:
            return train_step(self, samples, raise_oom=True)
        except RuntimeError as error:
            is_full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
            if raise_oom or not is_full:
                raise
            raise UserError(
                f"update {self.get_num_updates() + 1}: {first_line(error)}; lower {_batch_options(self.cfg.dataset)}"
            ) from error

    patches.set(Trainer, "train_step", train_step_that_fits)


def _batch_options(cfg) -> str:
    """What a batch's size was set with; `cfg`: fairseq's dataset group."""
    words = [f"--batch-size {cfg.batch_size}"] if cfg.batch_size else []
    if cfg.max_tokens:
        words.append(f"--max-tokens {cfg.max_tokens} (of rt-plugin pretrain: --tokens-per-device)")
    return " or ".join(words)
