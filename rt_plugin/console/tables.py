"""Tables: for people, of cells that are text already, and as CSV files."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rt_plugin.console.files import replacing


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A Markdown table; the columns of these numbers, from 0 on, are aligned to the left, the others to the right."""
    return _table(headings, list(rows), left, "pipe", headers=list(headings))


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A table for the terminal, without rules; columns are aligned as by `markdown_table`."""
    # as headings, tabulate would make them two wider than their words
    return _table(headings, [headings, *rows], left, "plain")


def _table(headings: Sequence[str], rows: list[Sequence[str]], left: Collection[int], form: str, **options) -> str:
    from tabulate import tabulate

    sides = ["left" if i in left else "right" for i in range(len(headings))]
    table = tabulate(rows, tablefmt=form, disable_numparse=True, colalign=sides, **options)
    return "\n".join(line.rstrip() for line in table.splitlines())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Column -> cell, for each row of a CSV file.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: it cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping], cell: Callable[[object], object] | None = None
) -> None:
    """Write a CSV file, whole or not at all, with lines that end in a line feed.

    Args:
        columns: their names, in order.
        rows: column -> value.
        cell: what is written for a value (default: itself).

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row if cell is None else {name: cell(value) for name, value in row.items()})
    with replacing(path) as file:
        file.write(text.getvalue().encode())
