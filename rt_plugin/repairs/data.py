"""Repairs of the way through the data."""

import functools
import zlib

import numpy as np
from fairseq.data.iterators import EpochBatchIterator

from rt_plugin.errors import UserError
from rt_plugin.repairs.registry import Patches, repair

# fairseq counts epochs from 1 again, whatever epoch the checkpoint was in
_BEGIN_AGAIN = (
    "begin again at epoch 1 with --reset-dataloader, for one start: order and masks of epoch 1 come once more, and "
    "shards from the first one on"
)


@repair(
    patches=[
        "fairseq.data.iterators.EpochBatchIterator.state_dict",
        "fairseq.data.iterators.EpochBatchIterator.load_state_dict",
    ],
    threads=["facebookresearch/fairseq#781"],
    until="fairseq's checkpoints tell how many processes there were, and what batches",
)
def process_count_on_resume(patches: Patches) -> None:
    """Resuming within an epoch with another number of processes, or with other batches (`--max-tokens`, `--seed`),
    loses or repeats data, silently: a checkpoint tells only how many batches each process has read. The place is found,
    or the resume is refused where there is none.
    """
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
            f"(rt-plugin pretrain: --tokens-per-device, --processes), or {_BEGIN_AGAIN}"
        )
    if before != now and batches and (batches % now or iterator.grouped_shuffling):
        usable = [str(n) for n in range(1, max(before, now) + 1) if batches % n == 0]
        why = "with --grouped-shuffling" if iterator.grouped_shuffling else f"{batches} is no multiple of {now}"
        raise UserError(
            f"the checkpoint was saved within an epoch, after {batches} batches on {before} processes; {now} processes "
            f"cannot go on there without losing or repeating data ({why}); resume with "
            f"{before if iterator.grouped_shuffling else ' or '.join(usable)} of them, or {_BEGIN_AGAIN}"
        )
    return batches // now
