#!/usr/bin/env python
"""Make all reports, tables and figures of docs/results again from the CSV files there.

    python scripts/remake_results.py                      # all of them, beside their CSV files
    python scripts/remake_results.py docs/results/laptop  # one

What a folder holds says what is made of it: the results of rt-plugin replicate (plan.json), of fine-tunings and their
floor (floor.csv), of scripts/finetuning_trials.py (trials.csv), of rt-plugin show-recurrence (layers.csv), or of
rt-plugin minimal-pairs (settings.json), which is put beside those of the folders next to it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import finetuning_trials

import checkout
from rt_plugin.console import commands
from rt_plugin.errors import UserError
from rt_plugin.evaluation import minimal_pairs, pairs_report, recurrence_report
from rt_plugin.evaluation.recurrence_tables import LAYERS_FILE
from rt_plugin.glue import report as glue_report
from rt_plugin.replicate import report as replication_report
from rt_plugin.replicate.results import PLAN_FILE

RESULTS = checkout.REPOSITORY / "docs" / "results"
FLOOR_FILE = "floor.csv"
SWEEPS = [f"{model}.csv" for model in finetuning_trials.MODELS]  # the baseline first


def remake_sweeps(folder: Path, out: Path) -> None:
    """The report on fine-tunings with what trials chose, beside what is reached without an encoder."""
    glue_report.write_report_of([folder / name for name in (FLOOR_FILE, *SWEEPS)], out, scores="last")


def remake_pairs(folder: Path, out: Path) -> None:
    """The report on a model's minimal pairs, beside the other models in folders next to its own."""
    folder = folder.resolve()  # "." has neighbours, too
    others = sorted(path.parent for path in folder.parent.glob(f"*/{minimal_pairs.SETTINGS_FILE}"))
    others.remove(folder)
    pairs_report.write_report([minimal_pairs.read_run(path) for path in (folder, *others)], out)


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    PLAN_FILE: replication_report.write_report,
    FLOOR_FILE: remake_sweeps,
    finetuning_trials.ROWS_FILE: finetuning_trials.write_report,
    LAYERS_FILE: recurrence_report.write_report,
    minimal_pairs.SETTINGS_FILE: remake_pairs,
}


def folders(top: Path = RESULTS) -> list[Path]:
    """The folders with results below one."""
    return sorted(path.parent for name in MAKERS for path in top.rglob(name))


def remake(folder: Path, out: Path) -> None:
    """Write the reports and figures of a folder of results into `out`.

    Raises:
        UserError: the folder holds no results; or see those who write them.
    """
    make = next((make for name, make in MAKERS.items() if (folder / name).is_file()), None)
    if make is None:
        raise UserError(f"{folder}: found no results, expected one of {', '.join(MAKERS)}")
    make(folder, out)


def main() -> int:
    parser = checkout.parser(__doc__)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", type=Path, help="default: all of docs/results")
    args = parser.parse_args()

    def run() -> None:
        for folder in args.folders or folders():
            remake(folder, folder)
            print(folder)

    return commands.run("remake_results.py", run)


if __name__ == "__main__":
    sys.exit(main())
