#!/usr/bin/env python
"""Load a pretrained and a fine-tuned model folder; fill masks in a few sentences, classify a few sentence pairs.

Example: python examples/quickstart/use_models.py runs/quickstart-tiny/pretrained runs/quickstart-tiny/finetuned
"""

import argparse
import csv
import itertools
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # an uninstalled checkout works, too

from rt_plugin.model import RecurrentRobertaModel

DEV_PAIRS = Path(__file__).resolve().parent / "QNLI" / "dev.tsv"
SENTENCES = [
    "He was born in New <mask> City.",
    "The film was directed <mask> Steven Spielberg.",
    "It is the capital and largest city of the <mask> States.",
    "She won the award for Best <mask> in 2011.",
]


def fill_masks(folder: str, checkpoint: str) -> None:
    model = RecurrentRobertaModel.from_pretrained(folder, checkpoint)
    for sentence in SENTENCES:
        guesses = ", ".join(f"{token} {probability:.0%}" for _, probability, token in model.fill_mask(sentence, topk=5))
        print(f"{sentence}\n    {guesses}")


def classify_pairs(folder: str, checkpoint: str, pairs: int) -> None:
    model = RecurrentRobertaModel.from_pretrained(folder, checkpoint)
    with DEV_PAIRS.open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), pairs))
    for row in rows:
        label, probability = model.classify(row["question"], row["sentence"])
        verdict = "right" if label == row["label"] else "wrong"
        print(f"{row['question']}\n  {row['sentence']}\n    {label} {probability:.0%} ({verdict})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pretrained", help="--save-dir of the pretraining")
    parser.add_argument("finetuned", help="--save-dir of the fine-tuning on QNLI")
    parser.add_argument("--checkpoint", default="checkpoint_last.pt", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of the dev set to classify (default: %(default)s)")
    args = parser.parse_args()
    logging.disable(logging.INFO)  # fairseq tells much while it loads
    fill_masks(args.pretrained, args.checkpoint)
    classify_pairs(args.finetuned, args.checkpoint, args.pairs)


if __name__ == "__main__":
    main()
