#!/usr/bin/env python
"""The trials that options of fine-tuning are chosen by, and fine-tunings with what was chosen.

Recipes are in the plan below, data and not code: one sweep of finetune-glue each, on a part held out of GLUE's train
sets; the same command goes on where it was stopped, and skips what is finished. After each sweep, RESULTS/trials.csv
has the rows of all of them, with their recipe, beside those that it had of others, and RESULTS/report.md the tables of
docs/glue.md: last epochs' scores.
A file held_out_floor.csv in RESULTS (rt-plugin glue-baselines --hold-out) is put beside them.

What is chosen: for a task the recipe with the highest mean over the models, at one learning rate and seed; with that
recipe, for each model, the learning rate with the highest mean over seeds, of those that --rates tries. --chosen
fine-tunes so, on data prepared without --hold-out, and writes RESULTS/MODEL.csv, for report-glue --scores last; what
is there of tasks other than --tasks stays.

Example:
    rt-plugin prepare-glue runs/glue runs/held-out --hold-out 0.2 --subsets --model examples/checkpoints/roberta_mini
    nice python scripts/finetuning_trials.py runs/held-out runs/trials docs/results/finetuning-trials
    nice python scripts/finetuning_trials.py runs/held-out runs/trials docs/results/finetuning-trials \\
      --rates 1e-4 3e-4 1e-3
    nice python scripts/finetuning_trials.py runs/glue-data runs/final docs/results/glue-mini \\
      --chosen docs/results/finetuning-trials/trials.csv
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import checkout
from rt_plugin.console import commands
from rt_plugin.console.files import replacing
from rt_plugin.console.tables import markdown_table, read_csv, write_csv
from rt_plugin.errors import UserError
from rt_plugin.glue import finetune
from rt_plugin.glue.results import CSV_FILE, UNDEFINED, run_folder
from rt_plugin.glue.results import write_csv as write_results

CHECKPOINTS = Path("examples/checkpoints")
MODELS = ("roberta_mini", "recurrent_roberta_mini")  # that recipes are chosen by
ALL_MODELS = (*MODELS, "recurrent_roberta_mini_alternate")


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        pooling: see --pooling.
        epochs: passes over the train set.
        options: others of fairseq-train.
        first: a task that the encoder is fine-tuned on before, for two epochs with the same pooling and marks; or none.
        marks: mark shared tokens.
    """

    pooling: str
    epochs: int = 2
    options: tuple[str, ...] = ()
    first: str | None = None
    marks: bool = False


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
    "apart": Recipe("apart"),
    "apart-4epochs": Recipe("apart", epochs=4),
    "apart-10epochs": Recipe("apart", epochs=10),
    "aligned": Recipe("aligned"),
    "aligned-4epochs": Recipe("aligned", epochs=4),
    "aligned-10epochs": Recipe("aligned", epochs=10),
    "pair-mnli": Recipe("pair", first="MNLI"),
    "pair-qqp": Recipe("pair", first="QQP"),
    "aligned-mnli": Recipe("aligned", first="MNLI"),
    "aligned-qqp-4epochs": Recipe("aligned", epochs=4, first="QQP"),
    "aligned-qqp-10epochs": Recipe("aligned", epochs=10, first="QQP"),
    "pair-marked": Recipe("pair", marks=True),
    "apart-marked": Recipe("apart", marks=True),
    "apart-marked-4epochs": Recipe("apart", epochs=4, marks=True),
    "aligned-marked": Recipe("aligned", marks=True),
    "aligned-marked-4epochs": Recipe("aligned", epochs=4, marks=True),
    "aligned-marked-10epochs": Recipe("aligned", epochs=10, marks=True),
    "aligned-marked-qqp-4epochs": Recipe("aligned", epochs=4, first="QQP", marks=True),
    "aligned-marked-qqp-10epochs": Recipe("aligned", epochs=10, first="QQP", marks=True),
}
LR, SEED = "3e-4", "1"  # of the comparison of recipes, and of the task before
SEEDS = {"STS-B": 3, "RTE": 5, "MRPC": 5, "CoLA": 3, "SST-2": 3}  # of the fine-tunings with what was chosen
# task -> recipes, in the order in which they are run; single sentences have no pair
TOGETHER = ("pair", "first", "mean", "max", "pair-decay0.8", "pair-4epochs", "pair-10epochs", "pair-mnli", "pair-qqp")
PLAN = {
    "STS-B": (
        *(*TOGETHER, "apart", "apart-10epochs", "aligned", "aligned-10epochs", "aligned-qqp-10epochs"),
        *("aligned-marked-10epochs", "aligned-marked-qqp-10epochs"),
    ),
    "RTE": (
        *(*TOGETHER, "apart", "apart-4epochs", "aligned", "aligned-4epochs", "aligned-mnli"),
        *("pair-marked", "apart-marked", "aligned-marked", "aligned-marked-4epochs"),
    ),
    "MRPC": (
        *(*TOGETHER, "apart", "apart-4epochs", "aligned", "aligned-4epochs", "aligned-qqp-4epochs"),
        *("pair-marked", "apart-marked-4epochs", "aligned-marked-4epochs", "aligned-marked-qqp-4epochs"),
    ),
    "QNLI": ("pair", "apart", "aligned", "aligned-marked"),
    "CoLA": ("first", "mean", "max", "mean-decay0.8", "mean-4epochs", "mean-10epochs"),
    "SST-2": ("first", "mean", "max", "mean-4epochs"),
}
ROWS_FILE, FLOOR_FILE = "trials.csv", "held_out_floor.csv"
OF_A_RUN = ("recipe", "model", "task", "lr", "seed")
COLUMNS = (*OF_A_RUN, "epochs", "last_score", "best_score", "failed", "seconds")


def run(data: Path, out: Path, task: str, recipe: str, model: str, rates: list[str], seeds: list[str]) -> int:
    """One sweep; returns the exit status."""
    r, encoder = RECIPES[recipe], CHECKPOINTS / model
    if r.first:
        before = folder_before(out / model, r)
        recipe_before = Recipe(r.pooling, marks=r.marks)
        if status := sweep(data, before, r.first, recipe_before, encoder, model, [LR], [SEED], "best"):
            return status
        encoder = run_folder(before, r.first, float(LR), int(SEED))
    return sweep(data, out / model / recipe, task, r, encoder, model, rates, seeds, "none")


def sweep(
    data: Path, out: Path, task: str, r: Recipe, encoder: Path, name: str, rates: list[str], seeds: list[str], keep: str
) -> int:
    """A sweep of finetune-glue from an encoder's folder; returns the exit status."""
    return finetune.main(
        [
            *(str(data), str(out), "--model", str(encoder), "--name", name, "--tasks", task, "--lr", *rates),
            *("--seeds", *seeds, "--epochs", str(r.epochs), "--threads", "1", "--keep", keep),
            *("--", "--bf16", "--pooling", r.pooling, *(["--mark-shared"] if r.marks else []), *r.options),
        ]
    )


def folder_before(folder: Path, r: Recipe) -> Path:
    """Of the sweep on the task that a recipe fine-tunes on before, below the folder of a model."""
    return folder / f"{r.first}-{r.pooling}{'-marked' if r.marks else ''}"


def write_rows(out: Path, results: Path) -> None:
    """All rows of all sweeps so far, and those that the file has of others, in the order of the plan."""
    there = read_csv(results / ROWS_FILE) if (results / ROWS_FILE).is_file() else []
    found = [{"recipe": recipe, **row} for model in ALL_MODELS for recipe, row in rows_of(out / model)]
    rows = {tuple(row[name] for name in OF_A_RUN): row for row in (*there, *found)}
    ordered = sorted(rows.values(), key=_place)
    write_csv(results / ROWS_FILE, COLUMNS, ({name: row[name] for name in COLUMNS} for row in ordered))


def _place(row: dict[str, str]) -> tuple:
    """Of a row among all: by task, model and recipe as they stand above, learning rate, seed."""
    names = (list(PLAN), "task"), (ALL_MODELS, "model"), (list(RECIPES), "recipe")
    return (*(known.index(row[column]) for known, column in names), float(row["lr"]), int(row["seed"]))


def rows_of(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(recipe, row) of all sweeps of a model."""
    for recipe in RECIPES:
        if (found := folder / recipe / CSV_FILE).is_file():
            for row in read_csv(found):
                yield recipe, row


def chosen_rows(folder: Path, trials: "Trials") -> Iterator[dict[str, str]]:
    """Of all sweeps of a model, the rows with the recipe and the learning rate that the trials choose.

    Their checkpoint is the one that was pretrained, also where another task came before.
    """
    for recipe, row in rows_of(folder):
        task, model = row["task"], row["model"]
        if recipe != trials.recipe(task) or float(row["lr"]) != float(trials.rate(task, model)):
            continue
        if RECIPES[recipe].first:
            before = read_csv(folder_before(folder, RECIPES[recipe]) / CSV_FILE)
            row = {**row, "checkpoint": before[0]["checkpoint"]}
        yield row


@dataclass(frozen=True)
class Trials:
    """Rows of trials.csv."""

    rows: list[dict[str, str]]

    @classmethod
    def read(cls, path: Path) -> "Trials":
        """Those of a file.

        Raises:
            UserError: there is none.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the {ROWS_FILE} of trials, without --rates and --chosen")
        return cls(read_csv(path))

    def matching(self, **values: str) -> list[dict[str, str]]:
        """The rows with these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in values.items())]

    def scores(self, **values: str) -> list[float]:
        """Last scores of the rows with these values, points of 100; an undefined one counts as 0."""
        found = [row["last_score"] for row in self.matching(**values)]
        return [0.0 if score == UNDEFINED else 100 * float(score) for score in found]

    def compared(self, **values: str) -> list[float]:
        """`scores` at the learning rate and seed that recipes are compared at."""
        return self.scores(lr=f"{float(LR):g}", seed=SEED, **values)

    def tasks(self) -> list[str]:
        return [task for task in PLAN if self.matching(task=task)]

    def recipe(self, task: str) -> str:
        """The recipe of a task: the highest mean over `MODELS`, of those that all of them have.

        Raises:
            UserError: there is none.
        """
        if not (means := self._means(task)):
            raise UserError(f"{task}: no recipe was tried with {' and '.join(MODELS)}, at {LR} and seed {SEED}")
        return max(means, key=means.get)

    def has_recipe(self, task: str) -> bool:
        """Whether `MODELS` have one in common, which the first trials of a task have not."""
        return bool(self._means(task))

    def _means(self, task: str) -> dict[str, float]:
        means = {}
        for recipe in PLAN[task]:
            found = [self.compared(task=task, model=model, recipe=recipe) for model in MODELS]
            if all(found):
                means[recipe] = fmean(map(fmean, found))
        return means

    def rates(self, task: str, model: str) -> dict[str, list[float]]:
        """Learning rate -> scores of a model with the task's recipe."""
        chosen = {"task": task, "model": model, "recipe": self.recipe(task)}
        rates = {row["lr"] for row in self.matching(**chosen)}
        return {lr: self.scores(lr=lr, **chosen) for lr in sorted(rates, key=float)}

    def rate(self, task: str, model: str) -> str:
        """The learning rate of a model: the highest mean over seeds."""
        rates = self.rates(task, model)
        if not rates:
            raise UserError(f"{task}: {self.recipe(task)} was not tried with {model}")
        return max(rates, key=lambda lr: fmean(rates[lr]))


def write_report(folder: Path, out: Path) -> str:
    """Write report.md of a folder's rows into `out`; returns the text."""
    trials = Trials.read(folder / ROWS_FILE)
    floors = read_csv(folder / FLOOR_FILE) if (folder / FLOOR_FILE).is_file() else []
    parts = [
        "# Trials of fine-tuning",
        "Points of 100 on held-out rows of the train sets, after the last epoch.",
        f"Recipes, at a learning rate of {LR}, seed {SEED}; bold: the highest mean over the models.",
        recipes_table(trials),
        "Learning rates with that recipe, means over seeds; bold: the best one of a model; floor: the highest score "
        "without an encoder.",
        rates_table(trials, floors),
    ]
    text = "\n\n".join(parts) + "\n"
    with replacing(out / "report.md") as file:
        file.write(text.encode())
    return text


def recipes_table(trials: Trials) -> str:
    """A row a recipe that was tried, a column a model."""
    lines = []
    for task in trials.tasks():
        best = trials.recipe(task) if trials.has_recipe(task) else None
        for recipe in PLAN[task]:
            found = [trials.compared(task=task, model=model, recipe=recipe) for model in MODELS]
            if any(found):
                mean = [fmean(map(fmean, found))] if all(found) else []
                lines.append((task, recipe, *map(cell, found), cell(mean, bold=recipe == best)))
    return markdown_table(("task", "recipe", *MODELS, "mean"), lines, left=(0, 1))


def rates_table(trials: Trials, floors: list[dict[str, str]]) -> str:
    """A column a learning rate, for the recipe of each task; `floors`: rows of what needs no encoder."""
    known = sorted({row["lr"] for row in trials.rows}, key=float)
    lines = []
    for task in filter(trials.has_recipe, trials.tasks()):
        scores = Trials(floors).scores(task=task)
        floor = f"{max(scores):.1f}" if scores else ""
        for model in ALL_MODELS:
            if rates := trials.rates(task, model):
                best = trials.rate(task, model)
                cells = (cell(rates.get(lr, []), lr == best) for lr in known)
                lines.append((task, model, trials.recipe(task), *cells, max(map(len, rates.values())), floor))
    return markdown_table(("task", "model", "recipe", *known, "seeds", "floor"), lines, left=(0, 1, 2))


def cell(scores: list[float], bold: bool = False) -> str:
    """Of a table: the mean; nothing without scores."""
    text = f"{fmean(scores):.1f}" if scores else ""
    return f"**{text}**" if text and bold else text


def try_recipes(args: argparse.Namespace) -> int:
    """The trials, of recipes or of the chosen one's learning rates; returns the exit status."""
    for task in args.tasks or (SEEDS if args.rates else PLAN):
        recipes = [name for name in PLAN[task] if name in args.recipes]
        if args.rates:
            recipes = [Trials.read(args.results / ROWS_FILE).recipe(task)]
        for recipe in recipes:
            for model in args.models:
                if status := run(args.data, args.out, task, recipe, model, args.rates or [LR], args.seeds):
                    return status
                write_rows(args.out, args.results)
                write_report(args.results, args.results)
    return 0


def finetune_chosen(args: argparse.Namespace) -> int:
    """Fine-tunings with what the trials chose; returns the exit status."""
    trials = Trials.read(args.chosen)
    if without := [task for task in args.tasks or () if task not in SEEDS]:
        raise UserError(f"--chosen: {without[0]} is only compared, not fine-tuned; expected some of {', '.join(SEEDS)}")
    tasks = args.tasks or list(SEEDS)
    for task in tasks:
        for model in args.models:
            seeds = [str(seed) for seed in range(1, SEEDS[task] + 1)]
            if status := run(args.data, args.out, task, trials.recipe(task), model, [trials.rate(task, model)], seeds):
                return status
            file = args.results / f"{model}.csv"
            others = [row for row in read_csv(file) if row["task"] not in tasks] if file.is_file() else []
            write_results(file, [*others, *chosen_rows(args.out / model, trials)])
    return 0


def main() -> int:
    parser = checkout.parser(__doc__)
    parser.add_argument("data", metavar="DATA", type=Path, help="the OUT folder of rt-plugin prepare-glue")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the sweeps")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder for all rows, and the report")
    parser.add_argument("--tasks", nargs="+", choices=list(PLAN), help="default: all of the plan")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument("--models", nargs="+", choices=ALL_MODELS, default=MODELS, help="default: %(default)s")
    parser.add_argument("--rates", nargs="+", metavar="LR", help="try these with the recipes that were chosen")
    parser.add_argument("--seeds", nargs="+", default=[SEED], help="default: %(default)s")
    parser.add_argument("--chosen", metavar="TRIALS.csv", type=Path, help="fine-tune with what these trials chose")
    args = parser.parse_args()
    return commands.run("finetuning_trials.py", lambda: finetune_chosen(args) if args.chosen else try_recipes(args))


if __name__ == "__main__":
    sys.exit(main())
