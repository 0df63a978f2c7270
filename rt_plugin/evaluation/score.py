"""The pseudo-log-likelihood of sentences, one a line: how probable a masked language model finds them.

Each token is hidden in turn and predicted from the others; the score is the sum of the logarithms (Salazar et al.
2020, arXiv 1910.14659). --mask word hides the tokens that follow it in its word, too (PLL-word-l2r, Kauf and Ivanova
2023, arXiv 2305.10588), which does not reward rare words for having been cut into pieces. Scores are natural
logarithms (nats); --unit bits has them to the base 2. Longer sentences have lower scores: compare sentences of about
equal length, or divide by the number of tokens.

One row for each line that is not blank: line, tokens, unknown (of the tokens), pll_nats or pll_bits, sentence. A line
of which the tokenizer leaves nothing has an empty score. FILE may be of any size, also .gz, .xz or .zst; rows are in
its order. The last line on standard error has the pseudo-perplexity, exp(-sum of scores / tokens). Cells of --format
tsv have no quotes; a tab in a sentence is written as a space.

Example: rt-plugin score sentences.txt --model examples/checkpoints/recurrent_roberta_mini --out scores.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO

from rt_plugin.console import commands
from rt_plugin.console.files import check_output, replacing
from rt_plugin.console.progress import Progress
from rt_plugin.errors import NoTextError, UserError
from rt_plugin.inference import MASKS
from rt_plugin.inference.arguments import add_checkpoint
from rt_plugin.text.raw import read_lines

if TYPE_CHECKING:
    from rt_plugin.inference.likelihood import PseudoLikelihood, Sentence

FORMATS = ("csv", "tsv", "jsonl")
UNITS = {"nats": 1.0, "bits": math.log(2)}  # how many nats one is
_SPACES = str.maketrans("\t\r", "  ")  # what would end a cell or a line
_CHUNK = 2048  # lines at a time: enough for sentences of equal length to fill batches


class _Totals:
    """What went by so far: sentences, tokens, unknown tokens, lines too long or without text, and the sum of scores."""

    def __init__(self):
        self.sentences = self.tokens = self.unknown = self.skipped = self.empty = 0
        self.nats = 0.0

    def __str__(self) -> str:
        if not self.tokens:
            return "no sentence was scored"
        text = f"{self.sentences:,} sentences, {self.tokens:,} tokens, {self.unknown:,} of them unknown"
        if self.skipped:
            text += f", {self.skipped:,} lines too long"
        if self.empty:
            text += f", {self.empty:,} lines without text"
        return f"{text}; pseudo-perplexity {math.exp(-self.nats / self.tokens):,.2f}"


def score_lines(
    scorer: PseudoLikelihood, path: Path, unit: str, skip_long: bool, totals: _Totals
) -> Iterator[dict[str, int | float | str | None]]:
    """A row for each line of a text file that is not blank, in order.

    Raises:
        UserError: the file cannot be read, or a line is too long for the model (file and line).
    """
    lines = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())
    with Progress(str(path), unit="sentences") as progress:
        while chunk := list(itertools.islice(lines, _CHUNK)):
            sentences = [_encode(scorer, path, number, line, skip_long, totals) for number, line in chunk]
            scores = iter(_scores([sentence for sentence in sentences if sentence], scorer, progress))
            for (number, line), sentence in zip(chunk, sentences, strict=True):
                yield _row(number, line, sentence, next(scores) if sentence else None, unit, totals)


def _scores(sentences: Sequence[Sentence], scorer: PseudoLikelihood, progress: Progress) -> list[float]:
    values = scorer(sentences, lambda share: progress.advance(share * len(sentences)))
    return [float(value.sum()) for value in values]


def _encode(
    scorer: PseudoLikelihood, path: Path, number: int, line: str, skip_long: bool, totals: _Totals
) -> Sentence | None:
    """The sentence; None where it has no score."""
    try:
        return scorer.encode(line)
    except NoTextError:
        totals.empty += 1
        return None
    except UserError as error:
        if skip_long:
            totals.skipped += 1
            return None
        raise UserError(f"{path}, line {number}: {error}; shorten the line, or use --skip-long") from None


def _row(number: int, line: str, sentence: Sentence | None, nats: float | None, unit: str, totals: _Totals) -> dict:
    if sentence is None:
        return {"line": number, "tokens": None, "unknown": None, f"pll_{unit}": None, "sentence": line}
    totals.sentences += 1
    totals.tokens += len(sentence.ids)
    totals.unknown += sentence.unknown
    totals.nats += nats
    score = round(nats / UNITS[unit], 6)
    return {
        **{"line": number, "tokens": len(sentence.ids), "unknown": sentence.unknown},
        **{f"pll_{unit}": score, "sentence": line},
    }


def write_rows(rows: Iterable[dict], form: str, file: BinaryIO) -> None:
    """Write rows in one of `FORMATS`, each at once."""

    def write(text: str) -> None:
        file.write(text.encode())

    writer = csv.writer(SimpleNamespace(write=write), lineterminator="\n")
    write_cells = writer.writerow if form == "csv" else lambda cells: write(_tsv_line(cells))
    for number, row in enumerate(rows):
        if form == "jsonl":
            write(json.dumps(row, ensure_ascii=False) + "\n")
            continue
        if number == 0:
            write_cells(row)
        write_cells(row.values())


def _tsv_line(cells: Iterable[int | float | str | None]) -> str:
    return "\t".join("" if cell is None else str(cell).translate(_SPACES) for cell in cells) + "\n"


def score(args: argparse.Namespace) -> None:
    """The command's work."""
    form = args.format or _format_of(args.out)
    if args.out:
        check_output(args.out, args.file)
    import torch

    from rt_plugin import hub
    from rt_plugin.inference.likelihood import PseudoLikelihood

    model = hub.from_pretrained(str(args.model), args.checkpoint)
    if torch.cuda.is_available() and not args.cpu:
        model = model.cuda()
    totals = _Totals()
    rows = score_lines(PseudoLikelihood(model, args.mask), args.file, args.unit, args.skip_long, totals)
    if args.out is None:
        write_rows(rows, form, sys.stdout.buffer)
    else:
        _write(rows, form, args.out)
    commands.report(f"{args.out or args.file}: {totals}")


def _write(rows: Iterable[dict], form: str, out: Path) -> None:
    try:
        with replacing(out) as file:
            write_rows(rows, form, file)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out, or make room") from None


def _format_of(out: Path | None) -> str:
    suffix = out.suffix[1:] if out else ""
    return suffix if suffix in FORMATS else "csv"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("score", __doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="UTF-8 text, one sentence a line")
    parser.add_argument("--model", required=True, metavar="DIR", type=Path, help="a model folder")
    add_checkpoint(parser)
    parser.add_argument("--mask", choices=MASKS, default=MASKS[0], help="what is hidden (default: %(default)s)")
    parser.add_argument("--unit", choices=tuple(UNITS), default="nats", help="of the scores (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: standard output")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of --out, else csv")
    parser.add_argument(
        "--skip-long", action="store_true", help="leave the score of lines empty that the model has no positions for"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("score", lambda: score(args))
