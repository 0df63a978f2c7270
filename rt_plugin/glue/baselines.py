"""A floor for GLUE tables: what the most frequent class, and linear models over words, reach without an encoder.

Three models, whose rows have the columns of a fine-tuning sweep, without a learning rate:

    majority   the most frequent class of the train set; for scores, their mean
    cosine     only for scores: the cosine of the two texts' TF-IDF vectors of characters; nothing is trained
    tf-idf     logistic regression, or ridge regression for scores, over TF-IDF vectors of words and of characters; for
               pairs of texts over their overlap and cosines, too

Which features, how strong the regularisation is and whether classes are weighted is chosen by 5-fold
cross-validation within the train set, by the task's headline metric, on at most 10,000 rows. The dev set is read once.
With --hold-out, of the same share as that of prepare-glue, it is the floor under what is chosen on those rows.

Example: rt-plugin glue-baselines GLUE_DIR runs/floor.csv
         rt-plugin report-glue runs/floor.csv runs/ffn/results.csv
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.console.files import check_output
from rt_plugin.console.tables import markdown_table
from rt_plugin.errors import UserError
from rt_plugin.glue.hold_out import add_option as add_hold_out
from rt_plugin.glue.hold_out import needed_splits
from rt_plugin.glue.prepare import chosen_tasks
from rt_plugin.glue.readers import source_files
from rt_plugin.glue.results import SCORE, WHEN, write_csv
from rt_plugin.glue.specs import GlueTask


def task_rows(task: GlueTask, files: dict[str, Path], hold_out: float = 0.0) -> Iterator[tuple[dict, str]]:
    """The CSV rows of a task, each with what was chosen for it.

    Args:
        files: split -> path; those of train and dev sets are read.
        hold_out: share of the train rows that takes the place of the dev set (see `is_held_out`); 0: the official one.

    Raises:
        UserError: see `Split.read` and `Split.divide`.
    """
    import numpy as np

    from rt_plugin.glue.linear_models import Split, evaluate, predict

    train = Split.read(task, "train", files["train"])
    if hold_out:
        train, held_out = train.divide(hold_out, files["train"])
        splits = {"valid": held_out}
    else:
        dev_sets = {name: path for name, path in files.items() if name.startswith("valid")}
        splits = {name: Split.read(task, name, path) for name, path in dev_sets.items()}
    began = time.monotonic()
    for model, choice, outputs in predict(task, train, list(splits.values())):
        row = {"model": model, "task": task.name, "lr": None, "seed": 0, "epochs": 0, "failed": 0}
        if not task.is_regression:
            row["majority"] = np.bincount(splits["valid"].labels).max() / len(splits["valid"].labels)
        for (name, split), values in zip(splits.items(), outputs, strict=True):
            scores = evaluate(task, values, split.labels, split.groups)
            ending = name.removeprefix("valid")
            row.update({f"{when}_{metric}{ending}": value for metric, value in scores.items() for when in WHEN})
        row["seconds"] = round(time.monotonic() - began, 1)
        yield row, choice


def run(args: argparse.Namespace) -> None:
    """The command's work."""
    check_output(args.out)
    needed = needed_splits(args.hold_out)
    trained = [(task, folder) for task, folder in chosen_tasks(args.tasks, args.glue_dir) if "train" in task.files]
    if not trained:
        raise UserError(f"{args.glue_dir}: no task with a train set there; name others with --tasks")
    jobs = [(task, source_files(task, folder, args.subsets, needed)) for task, folder in trained]
    if without := [task.name for task, files in jobs if not args.hold_out and "valid" not in files]:
        raise UserError(
            f"{without[0]}: has no dev set to read the floor on; hold rows of the train set out: --hold-out"
        )
    rows = []
    for task, files in jobs:
        commands.report(f"{task.name}: {files['train']}")
        rows += task_rows(task, files, args.hold_out)
        _write(args.out, [row for row, _ in rows])
    print(markdown_table(["task", "model", SCORE, "chosen"], [_cells(*row) for row in rows], left=(0, 1, 3)))
    commands.report(f"{args.out}: {len(rows)} rows")


def _write(path: Path, rows: Sequence[dict]) -> None:
    try:
        write_csv(path, rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another OUT.csv") from None


def _cells(row: dict, choice: str) -> list[str]:
    score = row[f"best_{SCORE}"]
    return [row["task"], row["model"], "-" if math.isnan(score) else f"{100 * score:.1f}", choice]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("glue-baselines", __doc__)
    parser.add_argument("glue_dir", metavar="GLUE_DIR", type=Path, help="folder with the official files")
    parser.add_argument("out", metavar="OUT.csv", type=Path, help="the file to write")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all that are there")
    parser.add_argument(
        "--subsets", action="store_true", help="take reduced files such as train_subset.tsv where they are there"
    )
    add_hold_out(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("glue-baselines", lambda: run(args))
