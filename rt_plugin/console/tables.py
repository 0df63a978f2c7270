"""Tables for people, of cells that are text already."""

from collections.abc import Collection, Iterable, Sequence


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
