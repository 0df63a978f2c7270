"""Sentences and sentence pairs as RoBERTa reads them, cut to the model's length and put into batches."""

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils

from rt_plugin.text.encode import join_texts


class GlueDataset(FairseqDataset):
    """Sentences or sentence pairs as one input each: `<s> a </s>` or `<s> a </s> </s> b </s>`.

    Args:
        inputs: one or two indexed data sets of N rows, each row ending with </s>.
        dictionary: of the inputs.
        max_positions: longer inputs are cut to this length; of a pair, the longer text first.
        targets: (N,) class indices or scores from 0 to 1; None without labels.
        groups: (N,) the group of each row, or None.
        shuffle_seed: rows come in a new random order each epoch, a function of (seed, epoch); None: by length.
        sorted_rows: as many rows of the random order at a time are sorted by length, so that a batch, cut from
            neighbours, needs less padding; 0: none. The trainer draws the order of the batches.
    """

    def __init__(self, inputs, dictionary, max_positions, targets=None, groups=None, shuffle_seed=None, sorted_rows=0):
        self.inputs = inputs
        self.dictionary = dictionary
        self.max_positions = max_positions
        self.targets = targets
        self.groups = groups
        self.shuffle_seed = shuffle_seed
        self.sorted_rows = sorted_rows
        self.epoch = 1
        # every input brings <s> or a second </s> in addition to its own </s>
        self.sizes = np.minimum(sum(np.asarray(i.sizes) + 1 for i in inputs), max_positions)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict:
        texts = [dataset[index][:-1] for dataset in self.inputs]
        return {"id": index, "tokens": join_texts(texts, self.dictionary, self.max_positions)}

    def collater(self, samples: list[dict]) -> dict:
        """A batch; target: (B,) int64 classes or float64 scores, absent without labels."""
        if not samples:
            return {}
        ids = torch.tensor([sample["id"] for sample in samples])
        tokens = [sample["tokens"] for sample in samples]
        batch = {
            "id": ids,
            "net_input": {
                "src_tokens": data_utils.collate_tokens(tokens, self.dictionary.pad()),
                "src_lengths": torch.tensor([len(t) for t in tokens]),
            },
            "nsentences": len(samples),
            "ntokens": sum(len(t) for t in tokens),
        }
        if self.targets is not None:
            batch["target"] = torch.from_numpy(self.targets[ids.numpy()])
        return batch

    def num_tokens(self, index: int) -> int:
        return self.sizes[index]

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return self.sizes[index]

    def ordered_indices(self) -> np.ndarray:
        if self.shuffle_seed is None:
            return np.argsort(self.sizes, kind="stable")
        with data_utils.numpy_seed(self.shuffle_seed, self.epoch):
            order = np.random.permutation(len(self))
        if not self.sorted_rows:
            return order
        pool = np.arange(len(self)) // self.sorted_rows
        return order[np.lexsort((self.sizes[order], pool))]

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return self.shuffle_seed is None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
