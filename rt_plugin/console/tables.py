"""Tables for people, of cells that are text already."""

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned to the left, the others to the right."""
    return _table(headings, rows, left, "pipe")


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table for the terminal, without rules; the first `left` columns to the left, the others to the right."""
    return _table(headings, rows, left, "plain")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int, form: str) -> str:
    from tabulate import tabulate

    sides = ["left" if i < left else "right" for i in range(len(headings))]
    return tabulate(list(rows), list(headings), form, disable_numparse=True, colalign=sides)
