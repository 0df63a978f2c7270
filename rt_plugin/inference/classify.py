"""The labels that a fine-tuned model gives to sentences, or to pairs of them.

A line for each: label, probability, the text, separated by tabs; --format jsonl has the same as JSON, and the number of
the text, or of its line in FILE, from 1 on: line, label, probability, text. Blank lines of FILE are passed over. A pair
is a text with a tab between its two sentences. What is longer than fine-tuning allowed is cut as there. For the
official files of GLUE's tasks, their metrics, scores and submissions there is rt-plugin predict-glue.

Example: rt-plugin classify --file reviews.txt --model runs/sst2 --out labels.tsv
"""

import argparse
import itertools
from collections.abc import Sequence

from rt_plugin.console import commands
from rt_plugin.console.progress import Progress
from rt_plugin.inference.arguments import LINES_AT_A_TIME, add_model, add_texts, load_model, output, place, read_texts


def classify(args: argparse.Namespace) -> None:
    """The command's work."""
    with output(args) as write, Progress("classifying", unit="texts") as progress:
        texts = read_texts(args)
        first = list(itertools.islice(texts, 1))  # an error in how the command was called comes before the model
        model = load_model(args)
        texts = itertools.chain(first, texts)
        while chunk := list(itertools.islice(texts, LINES_AT_A_TIME)):
            sentences = [tuple(text.split("\t")) for _, text in chunk]
            for (number, _), sentence in zip(chunk, sentences, strict=True):
                model.check_texts(sentence, place(args, number), "a tab stands between the texts of a pair")
            found = model.classify(sentences, head=args.head, exact=args.exact)
            for (number, text), (label, probability) in zip(chunk, found, strict=True):
                row = {"line": number, "label": label, "probability": probability, "text": text}
                write(f"{label}\t{probability:.4f}\t{text}\n", row)
            progress.advance(len(chunk))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("classify", __doc__)
    add_texts(parser, "a sentence, or two with a tab between them")
    add_model(parser)
    parser.add_argument(
        "--head", default="sentence_classification_head", metavar="NAME", help="of the model (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("classify", lambda: classify(args))
