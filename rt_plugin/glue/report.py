"""Reports on fine-tuning sweeps: tables, differences between models, and how scores depend on the learning rate.

Scores are dev set scores of the task table's headline metrics, times 100; an undefined one (a correlation with a
constant) counts as 0. A model's best learning rate for a task is the one with the highest median over its seeds. It is
chosen on the same dev set, so numbers at it are optimistic, and more so for the model whose runs scatter more.

Differences are of means over seeds, over all learning rates that both models have, and at each model's best one, with
the 95 % intervals of Welch's t test; docs/glue.md says how often they are right. They tell of the luck of the runs,
not of the choice of the dev set's rows. With one seed, or where no two runs differ, there is no interval. MNLI-mm,
MNLI's second dev set, is shown at MNLI's best learning rate, and is no part of the average.

Where every model has one learning rate a task, such as one chosen on rows held out of the train set, no rate is chosen
on the dev set, and the report has each table once; with --scores last, no epoch is either.

A file of rt-plugin glue-baselines among the CSV files is a floor: its rows come first, the plots have the highest one
as a dotted line, and the report says where a model does not reach it.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.console.files import replacing
from rt_plugin.console.tables import markdown_table, write_csv
from rt_plugin.errors import UserError
from rt_plugin.glue.plots import plot_boxes, plot_learning_rates
from rt_plugin.glue.results import WHEN, read_csv
from rt_plugin.glue.statistics import (
    Difference,
    Results,
    averaged,
    collect,
    common_tasks,
    differences,
    has_one_rate,
    highest_floors,
    table,
)

_OF_EPOCH = dict(zip(WHEN, ("of each run's best epoch", "after each run's last epoch"), strict=True))
_BEST_RATE = 'at the learning rate with the highest median over seeds; with "all": over all learning rates and seeds'
_ONE_RATE = "over seeds; each model has one learning rate a task"
_CHOSEN_HERE = (
    "The best learning rate is chosen on the same dev set, which favours the model whose runs scatter more, or that "
    "has more learning rates: the comparison over all learning rates is free of that. "
)
_HEADINGS = ("model", "task", "best lr", "median", "mean", "std", "best", "failed")


def write_report(results: Results, out: Path, floors: Results | None = None, scores: str = WHEN[0]) -> str:
    """Write report.md, table.csv, differences.csv, learning_rates.png and boxes.png into a folder.

    Args:
        results: of the models.
        out: the folder, made if needed.
        floors: of what needs no encoder.
        scores: what they were collected by, one of `WHEN`.

    Returns:
        the Markdown text.

    Raises:
        UserError: matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    floors = floors or {}
    rows, between = table(results, floors), differences(results)
    write_csv(out / "table.csv", list(rows[0]), rows)
    write_csv(out / "differences.csv", [field.name for field in fields(Difference)], map(asdict, between))
    text = _markdown(results, rows, between, floors, scores)
    with replacing(out / "report.md") as file:
        file.write(text.encode())
    lines = {task: score for task, (_, score) in highest_floors(floors).items()}
    plot_learning_rates(results, out / "learning_rates.png", lines)
    plot_boxes(results, out / "boxes.png", lines)
    return text


def write_report_of(tables: Sequence[Path], out: Path, scores: str = WHEN[0]) -> str:
    """Write the report on CSV files of sweeps and floors, the baseline first; see `write_report`.

    Args:
        scores: of the best epoch or of the last, one of `WHEN`.

    Raises:
        UserError: a file cannot be read or holds something else; or see `write_report`.
    """
    runs = list(itertools.chain.from_iterable(map(read_csv, tables)))
    floors = [run for run in runs if run.lr is None]
    results = collect((run for run in runs if run.lr is not None), scores)
    return write_report(results, out, collect(floors, scores) if floors else None, scores)


def _markdown(
    results: Results, rows: Sequence[dict], between: Sequence[Difference], floors: Results, scores: str
) -> str:
    shared = averaged(common_tasks(results))
    one = has_one_rate(results)
    headings = _HEADINGS if not one else ["lr" if name == "best lr" else name for name in _HEADINGS]
    overall = [] if one else [f"all: {name}" for name in _HEADINGS[3:]]
    parts = [
        "# Fine-tuning results",
        f"Dev set scores {_OF_EPOCH[scores]}, times 100, {_ONE_RATE if one else _BEST_RATE}. "
        f"The average is over {len(shared)} tasks: {', '.join(shared) or 'none'}; its row has the mean of each column, "
        "and the sum of the runs.",
        markdown_table([*headings, *overall], [_cells(row, not one) for row in rows]),
    ]
    if floors:
        parts.append(floors_named(results, floors))
    if between:
        parts += [
            "## Differences",
            "Mean over seeds of the first model minus the second, with the 95 % interval of Welch's t test. "
            f"{'' if one else _CHOSEN_HERE}"
            "The intervals tell of the luck of the runs, not of the choice of the dev set's rows.",
            markdown_table(
                ["models", "task", "runs", "difference", "interval", "seeds"], map(_difference_cells, between)
            ),
        ]
    parts.append("![Score against learning rate](learning_rates.png)\n\n![Scores of all runs](boxes.png)")
    return "\n\n".join(parts) + "\n"


def floors_named(results: Results, floors: Results) -> str:
    """What is a floor, and for each model on which tasks it does not reach the highest one."""
    return f"{', '.join(floors)}: without an encoder. {' '.join(_below(results, floors))}"


def _below(results: Results, floors: Results) -> Iterator[str]:
    """A sentence a model: the tasks on which it does not reach the highest floor."""
    highest = highest_floors(floors)
    for model, tasks in results.items():
        medians = {name: task.at([task.best_lr]).median for name, task in tasks.items() if name in highest}
        below = [name for name, median in medians.items() if median <= highest[name][1]]
        shown = ", ".join(f"{name} ({medians[name]:.1f}; {highest[name][0]} {highest[name][1]:.1f})" for name in below)
        every = "every task" if len(medians) == len(tasks) else f"every task that has one ({', '.join(medians)})"
        if medians:
            yield f"{model} is not above them on {shown}." if below else f"{model} is above them on {every}."


def _difference_cells(d: Difference) -> list[str]:
    interval = "-" if math.isnan(d.low) else f"{d.low:+.1f} to {d.high:+.1f}"
    return [f"{d.model} - {d.other}", d.task, d.runs, f"{d.difference:+.1f}", interval, d.seeds]


def _cells(row: dict, overall: bool) -> list[str]:
    lr = "" if row["best_lr"] is None else f"{row['best_lr']:g}"
    cells = [row["model"], row["task"], lr]
    for before in ("", "all_") if overall else ("",):
        cells += [_number(row[before + name]) for name in ("median", "mean", "std", "best")]
        cells.append(f"{row[before + 'failed']}/{row[before + 'runs']}")
    return cells


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("report-glue", __doc__)
    parser.add_argument(
        "csv", nargs="+", metavar="CSV", type=Path, help="results.csv of rt-plugin finetune-glue; the baseline first"
    )
    parser.add_argument("--out", type=Path, default=Path("glue-report"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--scores", choices=WHEN, default="best", help="of the best or the last epoch (default: %(default)s)"
    )
    return parser.parse_args(argv)


def report(args: argparse.Namespace) -> None:
    """Write the report that the command line asks for and print it."""
    try:
        print(write_report_of(args.csv, args.out, args.scores))
    except OSError as error:
        raise UserError(f"{args.out}: the report cannot be written ({error.strerror}); choose another --out") from None
    commands.report(f"{args.out}: report.md, table.csv, differences.csv, learning_rates.png, boxes.png")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("report-glue", lambda: report(args))
