"""--hold-out: part of a train set in the place of the dev set, to choose options by; which rows those are."""

import argparse
import hashlib


def is_held_out(text: str, share: float) -> bool:
    """Whether rows with this first text are held out: by the SHA-256 of the text, so that it is always the same rows,
    and all rows with that text (MultiRC's questions about a passage, COPA's candidates for a premise) stay on one side;
    not so the passages of QNLI and BoolQ, whose first text is the question.

    Args:
        text: the first text of a row, as the file has it.
        share: of all texts that are held out, about.
    """
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()  # JSON can hold half a surrogate pair
    return int.from_bytes(digest[:8], "big") < share * 2**64


def needed_splits(share: float) -> tuple[str, ...]:
    """The splits whose official files are read, with that share of the train rows held out; 0: none are."""
    return ("train",) if share else ("train", "valid")


def add_option(parser: argparse.ArgumentParser) -> None:
    """--hold-out SHARE, 0 without it."""
    parser.add_argument(
        "--hold-out",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="part of the train rows that takes the place of the dev set, such as 0.1, to choose options by; the "
        "official dev and test sets are not read",
    )


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected a share between 0 and 1, such as 0.1")
    return share
