"""The perplexity of a data set's validation text under a unigram model: what is reached by knowing word counts only.

The same blocks as in pretraining and the same tokens: all that can be masked, which <s>, </s> and <pad> cannot.
Probabilities come from counts over the training blocks of all folders, plus one for each symbol that can be masked;
perplexity is 2 to the mean negative base-2 logarithm over those tokens of the validation blocks. Prints (and with --out
writes) one JSON object.

Example: rt-plugin unigram runs/quickstart-tiny/data-bin --tokens-per-sample 128
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rt_plugin.console import commands
from rt_plugin.console.files import check_output, writing
from rt_plugin.console.options import check_values
from rt_plugin.model_folder.files import data_folders


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("unigram", __doc__)
    parser.add_argument(
        "data",
        help="folder written by fairseq-preprocess, or several joined by colons: train in each, valid in the first",
    )
    parser.add_argument("--tokens-per-sample", type=int, default=512, help="as in pretraining (default: %(default)s)")
    parser.add_argument(
        "--sample-break-mode",
        choices=("none", "complete", "complete_doc", "eos"),
        default="none",
        help="as in pretraining (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    return parser.parse_args(argv)


def token_counts(task, split: str, shards: int = 1) -> np.ndarray:
    """(symbols,) int64: how often each symbol that can be masked occurs in a split of an rt_masked_lm task.

    Args:
        shards: the folders that the split is spread over, of which every epoch reads one.
    """
    dictionary = task.source_dictionary
    counts = np.zeros(len(dictionary), dtype=np.int64)
    for epoch in range(1, shards + 1):
        for block in task._load_dataset_split(split, epoch=epoch, combine=False):
            counts += np.bincount(block.numpy(), minlength=len(counts))
    return np.delete(counts, [dictionary.bos(), dictionary.pad(), dictionary.eos()])


def unigram_bits(train_counts: np.ndarray, valid_counts: np.ndarray) -> float:
    """Bits a token of the validation text: cross-entropy to the add-one smoothed frequencies of the training text."""
    probabilities = (train_counts + 1) / (train_counts + 1).sum()
    return float(-(valid_counts * np.log2(probabilities)).sum() / valid_counts.sum())


def measure(args: argparse.Namespace) -> None:
    """Print and write what the command line asks for.

    Raises:
        UserError: the data are missing or broken, or the length of a block cannot be meant.
    """
    check_values({"tokens_per_sample": args.tokens_per_sample})
    if args.out:
        check_output(args.out)
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    logging.disable(logging.INFO)  # the output is one line of JSON
    name = "rt_masked_lm"
    options = {"tokens_per_sample": args.tokens_per_sample, "sample_break_mode": args.sample_break_mode}
    task = TASK_REGISTRY[name].setup_task(TASK_DATACLASS_REGISTRY[name](data=args.data, **options))
    train = token_counts(task, "train", shards=len(data_folders(args.data)))
    valid = token_counts(task, "valid")  # of the first folder, as in pretraining
    bits = unigram_bits(train, valid)
    result = {
        "unigram_bits": bits,
        "unigram_perplexity": 2**bits,
        "train_tokens": int(train.sum()),
        "valid_tokens": int(valid.sum()),
        "symbols": len(train),
    }
    print(json.dumps(result))
    if args.out:
        with writing(args.out) as file:
            file.write(f"{json.dumps(result, indent=2)}\n".encode())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("unigram", lambda: measure(args))
