"""One vector for each line of a text file, as a numpy array on disk: numpy.load(OUT) has the shape (lines, d).

Row i is for line i, blank lines too, whose row is that of <s></s>. FILE may be of any size, also .gz, .xz or .zst; it
is read twice, in parts, and memory does not grow with it. Stopped or killed, the same command goes on where it was, and
ends with the same bytes. What is done so far stands beside OUT, in .<name>.<16 digits>.partial, until OUT is complete;
the digits are for the model, the text and the options: where one of these is another, the work begins anew.

Example: rt-plugin embed sentences.txt vectors.npy --model examples/checkpoints/recurrent_roberta_mini
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import glob
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from rt_plugin.console import commands
from rt_plugin.console.files import sha256
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.inference.arguments import LINES_AT_A_TIME, add_model, load_model
from rt_plugin.model_folder.files import BESIDE_CHECKPOINTS, CONFIGURATION_FILE
from rt_plugin.text.raw import read_lines

if TYPE_CHECKING:
    from rt_plugin.inference.interface import RecurrentRobertaHubInterface

POOLINGS = ("mean", "first")
PRECISIONS = ("float32", "float16", "bfloat16")


def embed(args: argparse.Namespace) -> None:
    """The command's work."""
    if args.out.suffix != ".npy" or args.out.is_dir():
        raise UserError(f"{args.out}: expected the name of a file that ends with .npy")
    if args.file.exists() and not args.file.is_file():
        raise UserError(f"{args.file}: expected a file, which is read twice; write what comes from a pipe to one first")
    lines, text = _count_and_hash(args.file)
    model = load_model(args)
    if args.precision != "float32":
        import torch

        model = model.to(getattr(torch, args.precision))
    width = model.embed("", pooling=args.pooling).shape[0]
    header = _header(lines, width)
    try:
        with _partial(args, text, model.device.type) as (file, path):
            done = _rows_done(file, len(header), width)
            file.seek(len(header) + done * width * 4)
            file.truncate()
            if not done:
                file.seek(0)
                file.write(header)
            _write_rows(args, model, file, done, lines)
            os.replace(path, args.out)
    except OSError as error:
        raise UserError(
            f"{args.out}: cannot be written ({error.strerror}); make room and run the same command again, it goes on"
        ) from None
    print(f"{args.out}: {lines:,} vectors of {width} numbers, {args.out.stat().st_size / 1e6:,.1f} MB")


def _count_and_hash(path: Path) -> tuple[int, str]:
    """How many lines a text file has, and the SHA-256 of them all."""
    digest, lines = hashlib.sha256(), 0
    for lines, line in enumerate(read_lines(path), start=1):  # noqa: B007
        digest.update(line.encode() + b"\n")
    return lines, digest.hexdigest()


def _header(rows: int, width: int) -> bytes:
    """What a .npy file of (rows, width) float32 begins with."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return buffer.getvalue()


@contextlib.contextmanager
def _partial(args: argparse.Namespace, text: str, device: str) -> Iterator[tuple[BinaryIO, Path]]:
    """The file of what is done so far, made if needed, and locked as long as this runs; others of OUT are removed."""
    from rt_plugin.model_folder.checkpoint import find_checkpoint

    used = [
        find_checkpoint(args.model, args.checkpoint),
        *(args.model / name for name in (CONFIGURATION_FILE, *BESIDE_CHECKPOINTS)),
    ]
    settings = {
        **{"version": 1, "model": sha256(*filter(Path.is_file, used)), "text": text},
        **{name: getattr(args, name) for name in ("pooling", "precision", "exact", "truncate")},
        **{"device": device, "lines": LINES_AT_A_TIME},
    }
    digits = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = args.out.with_name(f".{args.out.name}.{digits}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{args.out}: another rt-plugin embed is writing it; wait for it, or stop it") from None
        for other in path.parent.glob(f".{glob.escape(args.out.name)}.{'[0-9a-f]' * 16}.partial"):
            if other != path:
                other.unlink(missing_ok=True)
        yield file, path


def _rows_done(file: BinaryIO, header: int, width: int) -> int:
    """Rows of whole parts; the last part is done again, because what a crashed machine wrote last may be lost."""
    rows = max(0, os.fstat(file.fileno()).st_size - header) // (4 * width)
    return max(0, rows // LINES_AT_A_TIME - 1) * LINES_AT_A_TIME


def _write_rows(
    args: argparse.Namespace, model: RecurrentRobertaHubInterface, file: BinaryIO, done: int, total: int
) -> None:
    lines = itertools.islice(enumerate(read_lines(args.file), start=1), done, None)
    with Progress(str(args.file), total, "lines") as progress:
        progress.skip_to(done)
        if done:
            commands.report(f"{args.out}: goes on after line {done:,}")
        while chunk := list(itertools.islice(lines, LINES_AT_A_TIME)):
            rows = _embed_lines(args, model, chunk)
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
            progress.advance(len(chunk))


def _embed_lines(
    args: argparse.Namespace, model: RecurrentRobertaHubInterface, chunk: list[tuple[int, str]]
) -> np.ndarray:
    tokens = model.encode([line for _, line in chunk], truncate=args.truncate)
    limit = model.model.max_positions()
    for (number, _), ids in zip(chunk, tokens, strict=True):
        if len(ids) > limit:
            raise UserError(
                f"{args.file}, line {number}: found {len(ids)} tokens, the model has positions for {limit}; shorten "
                "the line, or use --truncate"
            )
    return model.embed(tokens, pooling=args.pooling, exact=args.exact)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("embed", __doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="UTF-8 text, one sentence a line")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .npy file to write")
    add_model(parser)
    parser.add_argument(
        "--pooling", choices=POOLINGS, default=POOLINGS[0], help="mean of all tokens, or <s> (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="default: %(default)s")
    parser.add_argument("--truncate", action="store_true", help="cut lines that the model has no positions for")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    stopped = f"stopped; the same command goes on with {args.out}"
    return commands.run("embed", lambda: embed(args), when_stopped=stopped)
