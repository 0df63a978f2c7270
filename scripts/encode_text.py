#!/usr/bin/env python
"""Turn text into the pieces that fairseq-preprocess reads: one line out for each line in, blank lines included.

Example: python scripts/encode_text.py --tokenizer runs/tokenizer examples/quickstart/valid.txt runs/valid.pieces
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.errors import UserError
from rt_plugin.text import tokenizer as text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="TEXT", help="UTF-8 text, one sentence or paragraph a line")
    parser.add_argument("target", metavar="PIECES", help="the file to write")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="FOLDER",
        help=f"holds {text.TOKENIZER_FILE} and {text.NORMALIZATION_FILE}",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    counts = text.encode_file(text.TextEncoder.load(args.tokenizer), args.source, args.target)
    print(f"{args.target}: {counts}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"encode_text.py: error: {error}")
