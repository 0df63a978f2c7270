"""Small data folders in fairseq's indexed format, and the pretraining task over them."""

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from omegaconf import OmegaConf

from rt_plugin.tasks.rt_masked_lm import RtMaskedLMConfig, RtMaskedLMTask

WORDS = 50


def sentence_lengths(number, seed=0):
    """Tokens of sentences, `</s>` included: some longer than a block, blank lines between documents, some in a row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 25, number)
    lengths[rng.random(number) < 0.05] = 70
    lengths[rng.random(number) < 0.15] = 1
    lengths[:2], lengths[-2:] = 1, 1
    return lengths.astype(np.int32)


def write_split(folder, split, lengths, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = Dictionary()
    for i in range(WORDS):
        dictionary.add_symbol(f"w{i}", n=WORDS - i)
    dictionary.save(str(folder / "dict.txt"))
    rng = np.random.default_rng(seed)
    builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.bin"), dtype=np.uint16)
    for length in lengths:
        ids = rng.integers(dictionary.nspecial, dictionary.nspecial + WORDS, length)
        ids[-1] = dictionary.eos()
        builder.add_item(torch.from_numpy(ids))
    builder.finalize(str(folder / f"{split}.idx"))
    return folder


def make_task(*folders, **options):
    options = {"tokens_per_sample": 32, "sample_break_mode": "complete_doc", "seed": 3, **options}
    cfg = OmegaConf.structured(RtMaskedLMConfig(data=":".join(map(str, folders)), **options))
    return RtMaskedLMTask.setup_task(cfg)


def batch_iterator(task, epoch=1, **options):
    task.load_dataset("train", epoch=epoch, combine=True)
    options = {"max_tokens": 200, "max_positions": 32, "ignore_invalid_inputs": True, "seed": 3, **options}
    return task.get_batch_iterator(task.dataset("train"), epoch=epoch, **options)
