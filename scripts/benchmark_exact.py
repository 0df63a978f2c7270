#!/usr/bin/env python
"""What `exact=True` costs, and how far results without it depend on the batch: 1,000 real sentences, three models.

Processor seconds of `embed` on one thread, the best of several rounds, and the largest differences between a sentence
in a list and alone: of embeddings, and of all tokens' features.

Example: python scripts/benchmark_exact.py --rounds 3
"""

import argparse
import itertools
import time

import numpy as np
import torch

import checkout
from rt_plugin import hub
from rt_plugin.console.tables import markdown_table

MODELS = ("recurrent_roberta_mini", "recurrent_roberta_mini_alternate", "roberta_mini")
HEADER = ("model", "in lists, s", "exact, s", "ratio", "largest difference", "of features", "features up to")


def parse_arguments() -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--sentences", type=int, default=1000, metavar="N", help="default: %(default)s")
    return parser.parse_args()


def seconds(action, rounds: int) -> float:
    """Processor time, the best of several rounds."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def measure(name: str, sentences: list[str], rounds: int) -> list[str]:
    """A row of the table."""
    model = hub.from_pretrained(str(checkout.REPOSITORY / "examples" / "checkpoints" / name))
    tokens = model.encode(sentences, truncate=True)
    lists = seconds(lambda: model.embed(tokens), rounds)
    exact = seconds(lambda: model.embed(tokens, exact=True), rounds)
    difference = np.abs(model.embed(tokens) - model.embed(tokens, exact=True)).max()
    with torch.no_grad():
        pairs = list(zip(model.extract_features(tokens), model.extract_features(tokens, exact=True), strict=True))
    of_features = max((one - other).abs().max().item() for one, other in pairs)
    largest = max(other.abs().max().item() for _, other in pairs)
    times = (f"{lists:.2f}", f"{exact:.2f}", f"{exact / lists:.2f}")
    return [name, *times, f"{difference:.1e}", f"{of_features:.1e}", f"{largest:.1f}"]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    texts = [checkout.REPOSITORY / "examples" / "quickstart" / name for name in ("valid.txt", "train.txt")]
    lines = (line for text in texts for line in text.read_text(encoding="utf-8").splitlines())
    sentences = list(itertools.islice(filter(str.strip, lines), args.sentences))
    rows = [measure(name, sentences, args.rounds) for name in MODELS]
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
