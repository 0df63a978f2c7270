#!/usr/bin/env python
"""The trials that options of fine-tuning are chosen by: recipes x models on a part held out of GLUE's train sets.

Recipes are in the plan below, data and not code: one sweep of finetune-glue each; the same command goes on where
it was stopped, and skips what is finished. After each sweep, RESULTS/trials.csv has the rows of all of them, with their
recipe, and RESULTS/report.md the table of docs/glue.md: the last epoch's score, the mean over seeds and learning rates.

Example:
    rt-plugin prepare-glue runs/glue runs/held-out --hold-out 0.2 --subsets --model examples/checkpoints/roberta_mini
    nice python scripts/finetuning_trials.py runs/held-out runs/trials docs/results/finetuning-trials
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import checkout
from rt_plugin.console.files import replacing
from rt_plugin.console.tables import markdown_table, read_csv, write_csv
from rt_plugin.glue import finetune
from rt_plugin.glue.plan import run_folder
from rt_plugin.glue.results import CSV_FILE, UNDEFINED

CHECKPOINTS = Path("examples/checkpoints")
MODELS = ("roberta_mini", "recurrent_roberta_mini")


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        pooling: see --pooling.
        epochs: passes over the train set.
        options: others of fairseq-train.
        first: a task that the encoder is fine-tuned on before, for two epochs with the same pooling; or none.
    """

    pooling: str
    epochs: int = 2
    options: tuple[str, ...] = ()
    first: str | None = None


RECIPES = {
    "pair": Recipe("pair"),
    "mean": Recipe("mean"),
    "first": Recipe("first"),
    "max": Recipe("max"),
    "pair-decay0.8": Recipe("pair", options=("--layer-lr-decay", "0.8")),
    "mean-decay0.8": Recipe("mean", options=("--layer-lr-decay", "0.8")),
    "pair-4epochs": Recipe("pair", epochs=4),
    "mean-4epochs": Recipe("mean", epochs=4),
    "pair-10epochs": Recipe("pair", epochs=10),
    "mean-10epochs": Recipe("mean", epochs=10),
    "pair-mnli": Recipe("pair", first="MNLI"),
    "pair-qqp": Recipe("pair", first="QQP"),
}
FIRST_LR, FIRST_SEED = "3e-4", "1"  # of the task before
# task -> recipes, in the order in which they are run; single sentences have no pair
OF_PAIRS = ("pair", "first", "mean", "max", "pair-decay0.8", "pair-4epochs", "pair-10epochs", "pair-mnli", "pair-qqp")
PLAN = {
    "STS-B": OF_PAIRS,
    "RTE": OF_PAIRS,
    "MRPC": OF_PAIRS,
    "CoLA": ("first", "mean", "max", "mean-decay0.8", "mean-4epochs", "mean-10epochs"),
    "SST-2": ("first", "mean", "max"),
}
ROWS_FILE = "trials.csv"
COLUMNS = ("recipe", "model", "task", "lr", "seed", "epochs", "last_score", "best_score", "failed", "seconds")


def run(data: Path, out: Path, task: str, recipe: str, model: str, rates: list[str], seeds: list[str]) -> int:
    """One sweep; returns the exit status."""
    r, encoder = RECIPES[recipe], CHECKPOINTS / model
    if r.first:
        before = out / model / f"{r.first}-{r.pooling}"
        if status := sweep(data, before, r.first, Recipe(r.pooling), encoder, model, [FIRST_LR], [FIRST_SEED], "best"):
            return status
        encoder = run_folder(before, r.first, float(FIRST_LR), int(FIRST_SEED))
    return sweep(data, out / model / recipe, task, r, encoder, model, rates, seeds, "none")


def sweep(
    data: Path, out: Path, task: str, r: Recipe, encoder: Path, name: str, rates: list[str], seeds: list[str], keep: str
) -> int:
    """A sweep of finetune-glue from an encoder's folder; returns the exit status."""
    return finetune.main(
        [
            *(str(data), str(out), "--model", str(encoder), "--name", name, "--tasks", task, "--lr", *rates),
            *("--seeds", *seeds, "--epochs", str(r.epochs), "--threads", "1", "--keep", keep),
            *("--", "--bf16", "--pooling", r.pooling, *r.options),
        ]
    )


def write_rows(out: Path, results: Path) -> None:
    """All rows of all sweeps so far, in the order of the plan."""
    rows = []
    for recipe in RECIPES:
        for model in MODELS:
            found = out / model / recipe / CSV_FILE
            if found.is_file():
                rows += [{"recipe": recipe, **row} for row in read_csv(found)]
    rows.sort(key=lambda row: (list(PLAN).index(row["task"]), MODELS.index(row["model"])))
    write_csv(results / ROWS_FILE, COLUMNS, ({name: row[name] for name in COLUMNS} for row in rows))


def write_report(folder: Path, out: Path) -> str:
    """Write report.md of a folder's rows into `out`; returns the text."""
    heading = "# Trials of fine-tuning\n\nPoints of 100 on held-out rows of the train sets."
    text = f"{heading}\n\n{table(folder / ROWS_FILE)}\n"
    with replacing(out / "report.md") as file:
        file.write(text.encode())
    return text


def table(path: Path) -> str:
    """Points of 100 on the held-out rows, a column a recipe that was tried."""
    rows = read_csv(path)
    recipes = [name for name in RECIPES if any(row["recipe"] == name for row in rows)]
    lines = []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in rows):
        cells = {name: [] for name in recipes}
        for row in rows:
            if (row["task"], row["model"]) == (task, model):
                cells[row["recipe"]].append(row["last_score"])
        lines.append((task, model, *map(cell, cells.values())))
    return markdown_table(("task", "model", *recipes), lines, left=(0, 1))


def cell(scores: list[str]) -> str:
    """Of the table: the mean, `UNDEFINED` if one of the scores is, nothing without scores."""
    if not scores or UNDEFINED in scores:
        return UNDEFINED if scores else ""
    return f"{100 * fmean(map(float, scores)):.1f}"


def main() -> int:
    parser = checkout.parser(__doc__)
    parser.add_argument("data", metavar="DATA", type=Path, help="the OUT folder of rt-plugin prepare-glue --hold-out")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the sweeps")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder for all rows, and the report")
    parser.add_argument("--tasks", nargs="+", choices=list(PLAN), default=list(PLAN), help="default: all")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: %(default)s")
    parser.add_argument("--lr", nargs="+", default=["3e-4"], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", default=["1"], help="default: %(default)s")
    args = parser.parse_args()
    for task in args.tasks:
        for recipe in (name for name in PLAN[task] if name in args.recipes):
            for model in args.models:
                if status := run(args.data, args.out, task, recipe, model, args.lr, args.seeds):
                    return status
                write_rows(args.out, args.results)
                write_report(args.results, args.results)
    print(table(args.results / ROWS_FILE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
