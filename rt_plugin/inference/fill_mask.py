"""What a masked language model fills in: the most probable tokens for each <mask> of a sentence.

A line for each: its probability, and the sentence with the token filled in; of several masks each is filled by itself,
the others left as they are. --format jsonl has one line of JSON for each mask: line (the number of the text, or of its
line in FILE, from 1 on), sentence, mask (from 0), tokens, each with probability and the sentence filled. Blank lines of
FILE are passed over.

Example: rt-plugin fill-mask "The president of the <mask> States." --model examples/checkpoints/recurrent_roberta_mini
"""

import argparse
import itertools
from collections.abc import Sequence

from rt_plugin.console import commands
from rt_plugin.inference.arguments import LINES_AT_A_TIME, add_model, add_texts, load_model, output, place, read_texts


def fill_mask(args: argparse.Namespace) -> None:
    """The command's work."""
    with output(args) as write:
        texts = read_texts(args)
        first = list(itertools.islice(texts, 1))  # an error in how the command was called comes before the model
        model = load_model(args)
        texts = itertools.chain(first, texts)
        while chunk := list(itertools.islice(texts, LINES_AT_A_TIME)):
            for number, text in chunk:
                model.masks.ids(text, place(args, number), model.model.max_positions(), args.truncate, "--truncate")
            sentences = [text for _, text in chunk]
            found = model.fill_mask(sentences, args.topk, truncate=args.truncate, exact=args.exact)
            for (number, sentence), filled in zip(chunk, found, strict=True):
                for mask, best in enumerate([filled] if isinstance(filled[0], tuple) else filled):
                    tokens = [{"token": token, "probability": p, "sentence": whole} for whole, p, token in best]
                    lines = "".join(f"{one['probability']:.4f}  {one['sentence']}\n" for one in tokens)
                    write(lines, {"line": number, "sentence": sentence, "mask": mask, "tokens": tokens})


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("fill-mask", __doc__)
    add_texts(parser, "a sentence with one <mask> or several")
    add_model(parser)
    parser.add_argument(
        "--topk", type=commands.positive, default=5, metavar="K", help="tokens a mask (default: %(default)s)"
    )
    parser.add_argument("--truncate", action="store_true", help="cut what the model has no positions for")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("fill-mask", lambda: fill_mask(args))
