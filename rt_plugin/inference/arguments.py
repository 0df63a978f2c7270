"""What the commands that use a model share: their options, the model that these name, and the texts."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rt_plugin.console.files import check_output, writing
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import BEST_CHECKPOINT
from rt_plugin.text.raw import read_lines

if TYPE_CHECKING:
    from rt_plugin.inference.interface import RecurrentRobertaHubInterface

FORMATS = ("text", "jsonl")
LINES_AT_A_TIME = 2048  # enough for sentences of equal length to fill batches


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, --checkpoint, --cpu, --exact."""
    parser.add_argument("--model", required=True, metavar="DIR", type=Path, help="a model folder")
    add_checkpoint(parser)
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="read each line alone: its result is the same in every file, to the last bit",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint, of the model folder that another argument names."""
    parser.add_argument(
        "--checkpoint", default=BEST_CHECKPOINT, metavar="FILE", help="its name in that folder (default: %(default)s)"
    )


def add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    """TEXT ... or --file, --out, --format."""
    parser.add_argument("texts", metavar="TEXT", nargs="*", help=what)
    parser.add_argument(
        "--file", metavar="FILE", type=Path, help="UTF-8, also .gz, .xz or .zst: such texts, one a line"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: standard output")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of --out, else %(default)s")


def load_model(args: argparse.Namespace) -> RecurrentRobertaHubInterface:
    """The model that the options name, on the first GPU where there is one."""
    import torch

    from rt_plugin.inference.loading import from_pretrained

    model = from_pretrained(str(args.model), args.checkpoint)
    return model.cuda() if torch.cuda.is_available() and not args.cpu else model


def read_texts(args: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """(number from 1 on, text) of the texts given or of the file's lines that are not blank.

    Raises:
        UserError: neither or both are given, or the file cannot be read.
    """
    if bool(args.texts) == (args.file is not None):
        raise UserError("expected either TEXT, in quotation marks, or --file FILE with one text a line")
    lines = enumerate(args.texts if args.file is None else read_lines(args.file), start=1)
    yield from ((number, line) for number, line in lines if args.file is None or line.strip())


def place(args: argparse.Namespace, number: int) -> str:
    """Where a text of `read_texts` stands, for errors."""
    return f"text {number}" if args.file is None else f"{args.file}, line {number}"


@contextlib.contextmanager
def output(args: argparse.Namespace) -> Iterator[Callable[[str, dict], None]]:
    """A function that writes a result, given as text and as what a line of JSON holds: to --out, which appears when
    all is done, or to standard output.

    Raises:
        UserError: the file cannot be written.
    """
    if args.out:
        check_output(args.out, args.file)
    form = args.format or ("jsonl" if args.out and args.out.suffix == ".jsonl" else "text")
    with writing(args.out) if args.out else contextlib.nullcontext(sys.stdout.buffer) as file:
        yield lambda text, row: _write(file, text if form == "text" else json.dumps(row, ensure_ascii=False) + "\n")


def _write(file: BinaryIO | io.BufferedIOBase, text: str) -> None:
    file.write(text.encode())
    file.flush()
