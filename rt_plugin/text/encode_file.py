"""Turns text into the pieces that fairseq-preprocess reads: one line out for each line in, blank lines included.

Example: rt-plugin encode-text --tokenizer runs/tokenizer examples/quickstart/valid.txt runs/valid.pieces
"""

import argparse
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.console.files import check_output, writing
from rt_plugin.console.progress import Progress
from rt_plugin.model_folder.files import NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text.raw import COMPRESSED, read_lines
from rt_plugin.text.records import refuse_records
from rt_plugin.text.tokenizer import Tokenizer


@dataclass
class EncodingCounts:
    """What `encode_file` went through: lines, documents (separated by blank lines), pieces, unknown pieces."""

    lines: int = 0
    documents: int = 0
    pieces: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        share = 100 * self.unknown / max(1, self.pieces)
        return (
            f"{self.lines:,} lines, {self.documents:,} documents, {self.pieces:,} pieces, "
            f"{self.unknown:,} of them unknown ({share:.2f} %)"
        )


def encode_file(
    tokenizer: Tokenizer,
    source: str | os.PathLike,
    target: str | os.PathLike,
    report: Callable[[str], None] = commands.report,
) -> EncodingCounts:
    """Write the pieces of a text file, separated by spaces: one line for each input line.

    Blank lines stay, as document boundaries. The target appears when it is complete.

    Args:
        report: takes lines of progress, see `Progress`.

    Raises:
        UserError: see `read_lines` and `refuse_records`; or the target cannot be written, or is the source itself.
    """
    refuse_records(Path(source))
    check_output(Path(target), Path(source))
    counts = EncodingCounts()
    lines = _with_progress(read_lines(source), Path(source), report)
    with writing(target) as file:
        for line in _encode_lines(tokenizer, lines, counts):
            file.write(f"{line}\n".encode())
    return counts


def _encode_lines(tokenizer: Tokenizer, lines: Iterable[str], counts: EncodingCounts) -> Iterator[str]:
    is_unknown = functools.lru_cache(maxsize=None)(tokenizer.is_unknown)
    between_documents = True
    for line in lines:
        pieces = tokenizer.encode(line)
        counts.lines += 1
        counts.documents += bool(pieces) and between_documents
        counts.pieces += len(pieces)
        counts.unknown += sum(map(is_unknown, pieces))
        between_documents = not pieces
        yield " ".join(pieces)


def _with_progress(lines: Iterable[str], source: Path, report: Callable[[str], None]) -> Iterator[str]:
    size = None if source.suffix in COMPRESSED or not source.is_file() else source.stat().st_size
    with Progress(str(source), size, "B", report) as progress:
        for line in lines:
            yield line
            progress.advance(len(line.encode()) + 1)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("encode-text", __doc__)
    parser.add_argument("source", metavar="TEXT", help="UTF-8 text, one sentence or paragraph a line")
    parser.add_argument("target", metavar="PIECES", help="the file to write")
    parser.add_argument(
        "--tokenizer", required=True, metavar="FOLDER", help=f"holds {TOKENIZER_FILE} and {NORMALIZATION_FILE}"
    )
    return parser.parse_args(argv)


def _encode(args: argparse.Namespace) -> None:
    print(f"{args.target}: {encode_file(Tokenizer.load(args.tokenizer), args.source, args.target)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("encode-text", lambda: _encode(args))
