#!/usr/bin/env python
"""Train a sentencepiece tokenizer: writes sentencepiece.bpe.model, text_normalization.json and dict.txt into a folder.

Example: python scripts/train_tokenizer.py examples/quickstart/train.txt --folder runs/tokenizer --vocab-size 8000
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.errors import UserError
from rt_plugin.text import tokenizer as text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="TEXT", help="UTF-8 text, one sentence or paragraph a line")
    parser.add_argument("--folder", required=True, help="where the three files go; made if needed")
    parser.add_argument(
        "--vocab-size", type=int, required=True, help="pieces, with sentencepiece's own <unk>, <s> and </s>"
    )
    parser.add_argument(
        "--normalization",
        choices=text.NORMALIZATIONS,
        default="moses",
        help="what is done to text first, here and wherever the tokenizer is used (default: %(default)s, "
        "Moses' punctuation normalisation)",
    )
    parser.add_argument("--language", default="en", help="for Moses' rules (default: %(default)s)")
    parser.add_argument("--model-type", choices=text.MODEL_TYPES, default="unigram", help="default: %(default)s")
    parser.add_argument(
        "--max-sentences",
        type=int,
        default=5_000_000,
        help="train on a random sample of this many lines, 0 for all (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of that sample (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="default: %(default)s; another number may change a tie")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    text.train_sentencepiece(**vars(args))
    print(f"{args.folder}: a tokenizer of {args.vocab_size:,} pieces ({args.model_type}, {args.normalization})")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"train_tokenizer.py: error: {error}")
