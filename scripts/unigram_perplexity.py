#!/usr/bin/env python
"""The perplexity of a data set's validation text under a unigram model: what is reached by knowing word counts only.

The same blocks as in pretraining and the same tokens: all that can be masked, which <s>, </s> and <pad> cannot.
Probabilities come from counts over the training blocks, plus one for each symbol that can be masked; perplexity is 2 to
the mean negative base-2 logarithm over those tokens of the validation blocks. Prints (and with --out writes) one JSON
object.

Example: python scripts/unigram_perplexity.py runs/quickstart-tiny/data-bin --tokens-per-sample 128
"""

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

import numpy as np

from rt_plugin.errors import UserError
from rt_plugin.tasks.rt_masked_lm import RtMaskedLMConfig, RtMaskedLMTask


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder written by fairseq-preprocess, with the splits train and valid")
    parser.add_argument("--tokens-per-sample", type=int, default=512, help="as in pretraining (default: %(default)s)")
    parser.add_argument("--sample-break-mode", default="none", help="as in pretraining (default: %(default)s)")
    parser.add_argument("--out", help="JSON file to write")
    return parser.parse_args()


def token_counts(task: RtMaskedLMTask, split: str) -> np.ndarray:
    """(symbols,) int64: how often each symbol that can be masked occurs in the blocks of a split."""
    dictionary = task.source_dictionary
    counts = np.zeros(len(dictionary), dtype=np.int64)
    for block in task._load_dataset_split(split, epoch=1, combine=False):
        counts += np.bincount(block.numpy(), minlength=len(counts))
    return np.delete(counts, [dictionary.bos(), dictionary.pad(), dictionary.eos()])


def unigram_bits(train_counts: np.ndarray, valid_counts: np.ndarray) -> float:
    """Bits a token of the validation text: cross-entropy to the add-one smoothed frequencies of the training text."""
    probabilities = (train_counts + 1) / (train_counts + 1).sum()
    return float(-(valid_counts * np.log2(probabilities)).sum() / valid_counts.sum())


def main() -> None:
    args = parse_arguments()
    logging.disable(logging.INFO)  # the output is one line of JSON
    task = RtMaskedLMTask.setup_task(
        RtMaskedLMConfig(
            data=args.data, tokens_per_sample=args.tokens_per_sample, sample_break_mode=args.sample_break_mode
        )
    )
    train, valid = (token_counts(task, split) for split in ("train", "valid"))
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
        Path(args.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"unigram_perplexity.py: error: {error}")
