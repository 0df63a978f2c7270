"""What fairseq does differently with the plugin, on purpose: nothing here was broken."""

import functools
from pathlib import Path

import numpy as np
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from fairseq.models.roberta import model as roberta

from rt_plugin.console.checksums import forget
from rt_plugin.encoder import OneLookEncoder
from rt_plugin.model_folder.checkpoint import checkpoint_names
from rt_plugin.model_folder.files import BESIDE_CHECKPOINTS
from rt_plugin.repairs.registry import Patches, changed_behaviour


@changed_behaviour(
    patches=["fairseq.data.data_utils.batch_by_size"],
    threads=["facebookresearch/fairseq#5036"],
    until="fairseq has an option to keep it",
)
def last_batch(patches: Patches) -> None:
    """The last batch of every data set, validation too, is dropped where its length is no multiple of
    `--required-batch-size-multiple` (default 8): up to 7 samples, in a small data set all. They are kept.
    """
    batch_by_size = data_utils.batch_by_size

    @functools.wraps(batch_by_size)
    def batch_all(indices, *args, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        batches = list(batch_by_size(indices, *args, **kwargs)) if len(indices) else []
        rest = indices[sum(map(len, batches)) :]  # batches follow the order of the indices
        return [*batches, rest] if len(rest) else batches

    patches.set(data_utils, "batch_by_size", batch_all)


@changed_behaviour(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    until="fairseq tells tasks where the checkpoints go",
)
def complete_model_folder(patches: Patches) -> None:
    """`--save-dir` holds checkpoints alone, which nobody can use without the dictionary and the tokenizer. The plugin's
    tasks copy them there when training begins.

    checkpoint_utils.load_checkpoint is called by training alone, once, and is the first place that knows both the task
    and the folder. Tasks take part by a method `write_model_folder(save_dir)`.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_checkpoint_beside_its_files(cfg, trainer, **kwargs):
        writes = hasattr(trainer.task, "write_model_folder") and trainer.data_parallel_rank == 0 and not cfg.no_save
        if writes:
            trainer.task.write_model_folder(cfg.save_dir)
        loaded = load_checkpoint(cfg, trainer, **kwargs)
        if writes:  # an exported folder's list of checksums: these files will be others
            forget(Path(cfg.save_dir), [*BESIDE_CHECKPOINTS, *checkpoint_names(cfg.save_dir)])
        return loaded

    patches.set(checkpoint_utils, "load_checkpoint", load_checkpoint_beside_its_files)


@changed_behaviour(
    patches=["fairseq.models.roberta.model.TransformerEncoder"],
    until="fairseq's encoder decides once whether a batch holds padding",
)
def one_look_for_padding(patches: Patches) -> None:
    """fairseq's roberta asks in each layer whether the batch holds padding: a GPU is waited for that often, and a graph
    of torch.compile breaks there. It is asked once, and the results are the same.
    """
    patches.set(roberta, "TransformerEncoder", OneLookEncoder)
