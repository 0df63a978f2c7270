"""Reports on fine-tuning sweeps: tables, differences between models, and how scores depend on the learning rate.

Scores are dev set scores of the task table's headline metrics, times 100. An undefined score (a correlation with a
constant) counts as 0 in every statistic. A model's best learning rate for a task is the one with the highest median
over its seeds. It is chosen on the same dev set, so numbers at it are optimistic, and more so for the less stable
model: of two with equal means, one with a standard deviation of 4 points comes out 1.3 points above one with 1, at the
best of three learning rates with three seeds. MNLI-mm, MNLI's second dev set, is shown at MNLI's best learning rate,
and is no part of the average.

Differences are of means over seeds: over all learning rates that both models have, and at each model's best one. Their
95 % intervals are difference +- t * error. The error is the standard deviation of the means of 10,000 bootstrap
resamples (fixed random numbers), times sqrt(n / (n - 1)), since resamples of n seeds scatter too little; t is
Student's, with Welch's degrees of freedom (Hesterberg 2015, arXiv 1411.5279; Welch 1947, Biometrika 34). Percentiles of
the resamples hold the true difference in only 75 to 88 % of simulations with normally distributed scores and three or
five seeds; these intervals in 94 to 97 % over all learning rates, and at the best of three in 97 to 99 %, as long as
the models scatter alike; with standard deviations of 4 and 1, in 92 to 94 % for a task and 85 to 87 % for five on
average.

Each model's seeds, and those of each task, are drawn on their own. With one seed, or where no two runs differ, there is
no interval. The intervals tell of the luck of a training, not of the choice of the dev set's rows.
"""

import argparse
import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy import stats

from rt_plugin.console import commands
from rt_plugin.console.tables import markdown_table
from rt_plugin.errors import UserError
from rt_plugin.glue.results import WHEN, Run, read_csv
from rt_plugin.glue.specs import TASKS

AVERAGE = "average"
SECOND_DEV_SET = "-mm"  # after a task's name
RESAMPLES = 10_000
CONFIDENCE = 0.95
_RENAME = "give models different names with finetune_glue.py --name (a finished one first in its sweep.json)"
_HEADINGS = ("model", "task", "best lr", "median", "mean", "std", "best", "failed")
_RANDOM_SEED = 20220523  # any: the same input gives the same report
_NO_VARIANCE = 1e-12  # of a mean, in points of 100: rounding errors


@dataclass(frozen=True)
class Summary:
    """Statistics of some runs; std is the sample standard deviation, nan for one run."""

    runs: int
    median: float
    mean: float
    std: float
    best: float
    failed: int

    @classmethod
    def of(cls, scores: Sequence[float], failed: int) -> "Summary":
        std = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
        return cls(len(scores), float(np.median(scores)), float(np.mean(scores)), std, float(max(scores)), failed)

    @classmethod
    def average(cls, parts: Sequence["Summary"]) -> "Summary":
        """Means over tasks; runs and failed runs are added up."""
        median, mean, std, best = (
            float(np.mean([getattr(part, name) for part in parts])) for name in ("median", "mean", "std", "best")
        )
        return cls(sum(p.runs for p in parts), median, mean, std, best, sum(p.failed for p in parts))


@dataclass(frozen=True)
class TaskResult:
    """A model on a task: learning rate -> seed -> score, which runs failed, and the best learning rate."""

    scores: dict[float, dict[int, float]]
    failed: frozenset[tuple[float, int]]
    best_lr: float

    @classmethod
    def of(cls, runs: Sequence[Run], column: str, best_lr: float | None = None) -> "TaskResult":
        """Scores from a column of the runs; the best learning rate is that of the highest median, or as given."""
        scores = defaultdict(dict)
        for run in runs:
            score = run.values.get(column, math.nan)
            scores[run.lr][run.seed] = 0.0 if math.isnan(score) else 100 * score
        if best_lr is None:
            best_lr = max(sorted(scores), key=lambda lr: np.median(list(scores[lr].values())))
        return cls(dict(scores), frozenset((run.lr, run.seed) for run in runs if run.failed), best_lr)

    def at(self, lrs: Iterable[float]) -> Summary:
        runs = [(lr, seed) for lr in lrs for seed in self.scores[lr]]
        return Summary.of([self.scores[lr][seed] for lr, seed in runs], len(self.failed & set(runs)))

    def seed_means(self, lrs: Iterable[float]) -> list[float]:
        """The mean score over learning rates of each seed that all of them have."""
        rows = [self.scores[lr] for lr in lrs]
        seeds = set.intersection(*map(set, rows)) if rows else ()
        return [float(np.mean([row[seed] for row in rows])) for seed in sorted(seeds)]


@dataclass(frozen=True)
class Difference:
    """Mean score of `model` minus that of `other`, with its 95 % interval (nan: there is none); points of 100."""

    model: str
    other: str
    task: str
    runs: str
    difference: float
    low: float
    high: float
    seeds: str


Results = dict[str, dict[str, TaskResult]]  # model -> task -> result, both in order


def collect(runs: Iterable[Run], when: str = "best") -> Results:
    """Sort runs by model (as they come) and task (as in the task table).

    Args:
        when: "best": scores of each run's best epoch; "last": after its last one.

    Raises:
        UserError: a model has the same run twice, is two checkpoints, or has no runs.
    """
    grouped: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    checkpoints: dict[str, str] = {}
    seen = set()
    for run in runs:
        key = (run.model, run.task.name, run.lr, run.seed)
        if key in seen:
            raise UserError(f"{run.model}, {run.task.name}, lr {run.lr:g}, seed {run.seed} is there twice; {_RENAME}")
        if run.checkpoint and run.checkpoint != (first := checkpoints.setdefault(run.model, run.checkpoint)):
            raise UserError(f"{run.model}: its runs are of two checkpoints, {first} and {run.checkpoint}; {_RENAME}")
        seen.add(key)
        grouped[run.model][run.task.name].append(run)
    if not grouped:
        raise UserError("the CSV files hold no runs; wait until finetune_glue.py has finished one")
    return {
        model: dict(itertools.chain(*(_dev_sets(tasks[task.name], when) for task in TASKS if task.name in tasks)))
        for model, tasks in grouped.items()
    }


def _dev_sets(runs: Sequence[Run], when: str) -> Iterator[tuple[str, TaskResult]]:
    """The results of one task: on its dev set and, where there are any, on the second one."""
    name, second = runs[0].task.name, f"{when}_score_mismatched"
    result = TaskResult.of(runs, f"{when}_score")
    yield name, result
    if any(second in run.values for run in runs):
        yield name + SECOND_DEV_SET, TaskResult.of(runs, second, result.best_lr)


def common_tasks(results: Results) -> list[str]:
    """The tasks that all models have, in order; with second dev sets."""
    first, *others = results.values()
    return [task for task in first if all(task in tasks for tasks in others)]


def averaged(tasks: Iterable[str]) -> list[str]:
    """Those that are part of the average."""
    return [task for task in tasks if not task.endswith(SECOND_DEV_SET)]


def table(results: Results) -> list[dict]:
    """A row for each model and task, and the average over the tasks that all models have.

    Returns:
        rows with model, task, best_lr, `Summary`'s fields at the best learning rate and, with `all_` before, over all.
    """
    rows = []
    for model, tasks in results.items():
        parts = {name: (task.at([task.best_lr]), task.at(task.scores)) for name, task in tasks.items()}
        for name, (best, overall) in parts.items():
            rows.append(_row(model, name, tasks[name].best_lr, best, overall))
        shared = [parts[name] for name in averaged(common_tasks(results))]
        if shared:
            rows.append(_row(model, AVERAGE, None, *map(Summary.average, zip(*shared, strict=True))))
    return rows


def _row(model: str, task: str, lr: float | None, best: Summary, overall: Summary) -> dict:
    everywhere = {f"all_{name}": value for name, value in asdict(overall).items()}
    return {"model": model, "task": task, "best_lr": lr, **asdict(best), **everywhere}


def differences(results: Results) -> list[Difference]:
    """All pairs of models, task by task and on average, over all common learning rates and at the best."""
    found = []
    for (model, a), (other, b) in itertools.combinations(reversed(results.items()), 2):
        tasks = common_tasks({model: a, other: b})
        kinds = {
            "all learning rates": [_over_common_rates(a[t], b[t]) for t in tasks],
            "best learning rate": [(a[t].seed_means([a[t].best_lr]), b[t].seed_means([b[t].best_lr])) for t in tasks],
        }
        for kind, pairs in kinds.items():
            found += _differences_of_pair(model, other, kind, dict(zip(tasks, pairs, strict=True)))
    return found


def _over_common_rates(a: TaskResult, b: TaskResult) -> tuple[list[float], list[float]]:
    lrs = sorted(set(a.scores) & set(b.scores))
    return a.seed_means(lrs), b.seed_means(lrs)


def _differences_of_pair(
    model: str, other: str, kind: str, pairs: dict[str, tuple[list[float], list[float]]]
) -> Iterator[Difference]:
    random = np.random.default_rng(_RANDOM_SEED)
    means, errors = [], []
    for task, (a, b) in pairs.items():
        if not a or not b:
            continue
        mean = float(np.mean(a) - np.mean(b))
        parts = [bootstrap_variance(a, random), bootstrap_variance(b, random)]
        yield Difference(model, other, task, kind, mean, *interval(mean, parts), f"{len(a)} and {len(b)}")
        if averaged([task]):
            means.append(mean)
            errors += parts
    if means:
        mean = float(np.mean(means))
        parts = [(variance / len(means) ** 2, freedom) for variance, freedom in errors]
        yield Difference(model, other, AVERAGE, kind, mean, *interval(mean, parts), f"{len(means)} tasks")


def bootstrap_variance(scores: Sequence[float], random: np.random.Generator) -> tuple[float, int]:
    """Variance of the mean by resampling, corrected for its n / (n - 1), and its degrees of freedom; nan for one."""
    n = len(scores)
    if n < 2:
        return math.nan, 0
    means = np.array(scores)[random.integers(n, size=(RESAMPLES, n))].mean(axis=1)
    return float(means.var()) * n / (n - 1), n - 1


def interval(center: float, parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Student's t interval around a sum, from the variances of its parts and their degrees of freedom (Welch).

    nan where a variance is, or where there is none.
    """
    variance = sum(part for part, _ in parts)
    if not variance > _NO_VARIANCE:
        return math.nan, math.nan
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return center - half, center + half


def write_report(results: Results, out: Path) -> str:
    """Write report.md, table.csv, differences.csv, learning_rates.png and boxes.png into a folder.

    Returns:
        the Markdown text.

    Raises:
        UserError: matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, between = table(results), differences(results)
    _write_csv(out / "table.csv", list(rows[0]), rows)
    _write_csv(out / "differences.csv", [field.name for field in fields(Difference)], map(asdict, between))
    text = _markdown(results, rows, between)
    (out / "report.md").write_text(text, encoding="utf-8")
    _plot(results, out / "learning_rates.png", _plot_spread)
    _plot(results, out / "boxes.png", _plot_boxes)
    return text


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _markdown(results: Results, rows: Sequence[dict], between: Sequence[Difference]) -> str:
    shared = averaged(common_tasks(results))
    parts = [
        "# Fine-tuning results",
        'Dev set scores, times 100, at the learning rate with the highest median over seeds; with "all": over all '
        f"learning rates and seeds. The average is over {len(shared)} tasks: {', '.join(shared) or 'none'}.",
        markdown_table([*_HEADINGS, *(f"all: {name}" for name in _HEADINGS[3:])], [_cells(row) for row in rows]),
    ]
    if between:
        parts += [
            "## Differences",
            "Mean over seeds of the first model minus the second, with a 95 % interval (bootstrap standard error, "
            "Student's t). The best learning rate is chosen on the same dev set, which favours the model whose runs "
            "scatter more, or that has more learning rates: the comparison over all learning rates is free of that. "
            "The intervals tell of the luck of a training, not of the choice of the dev set's rows.",
            markdown_table(
                ["models", "task", "runs", "difference", "interval", "seeds"], map(_difference_cells, between)
            ),
        ]
    parts.append("![Score against learning rate](learning_rates.png)\n\n![Scores by learning rate](boxes.png)")
    return "\n\n".join(parts) + "\n"


def _difference_cells(d: Difference) -> list[str]:
    interval = "-" if math.isnan(d.low) else f"{d.low:+.1f} to {d.high:+.1f}"
    return [f"{d.model} - {d.other}", d.task, d.runs, f"{d.difference:+.1f}", interval, d.seeds]


def _cells(row: dict) -> list[str]:
    lr = "" if row["best_lr"] is None else f"{row['best_lr']:g}"
    cells = [row["model"], row["task"], lr]
    for before in ("", "all_"):
        cells += [_number(row[before + name]) for name in ("median", "mean", "std", "best")]
        cells.append(f"{row[before + 'failed']}/{row[before + 'runs']}")
    return cells


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _plot(results: Results, path: Path, draw) -> None:
    """One panel a task, drawn by `draw(axes, task, results)`."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError(f"matplotlib is not installed, so {path} is missing; run: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [task.name for task in TASKS if any(task.name in tasks for tasks in results.values())]
    columns = min(3, len(names))
    figure, panels = pyplot.subplots(
        -(-len(names) // columns),
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(4.5 * columns, 3.4 * -(-len(names) // columns)),
    )
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(panels.flat, names, strict=False):
        draw(axes, name, results)
        axes.set(title=name, xlabel="learning rate", ylabel="dev score")
        axes.grid(alpha=0.3)
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _learning_rates(results: Results, task: str) -> list[float]:
    return sorted({lr for tasks in results.values() if task in tasks for lr in tasks[task].scores})


def _plot_spread(axes, name: str, results: Results) -> None:
    """Every run as a point, the median over seeds as a line, from the worst to the best seed as a band."""
    for i, (model, tasks) in enumerate(results.items()):
        if name not in tasks:
            continue
        lrs = sorted(tasks[name].scores)
        scores = [list(tasks[name].scores[lr].values()) for lr in lrs]
        axes.plot(lrs, [np.median(s) for s in scores], color=f"C{i}", label=model)
        axes.fill_between(lrs, [min(s) for s in scores], [max(s) for s in scores], color=f"C{i}", alpha=0.15, lw=0)
        for lr, values in zip(lrs, scores, strict=True):
            axes.plot([lr] * len(values), values, ".", color=f"C{i}", alpha=0.6)
    rates = _learning_rates(results, name)
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{lr:g}" for lr in rates])
    axes.minorticks_off()


def _plot_boxes(axes, name: str, results: Results) -> None:
    """Models side by side at every learning rate; a box from the first to the third quartile over seeds."""
    lrs = _learning_rates(results, name)
    width = 0.8 / len(results)
    for i, (model, tasks) in enumerate(results.items()):
        if name not in tasks:
            continue
        scores = tasks[name].scores
        places = [j for j, lr in enumerate(lrs) if lr in scores]
        axes.boxplot(
            [list(scores[lrs[j]].values()) for j in places],
            positions=[j + (i - (len(results) - 1) / 2) * width for j in places],
            widths=0.8 * width,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": f"C{i}", "alpha": 0.5},
            medianprops={"color": "black"},
        )
        axes.plot([], [], color=f"C{i}", lw=6, alpha=0.5, label=model)
    axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("report-glue", __doc__)
    parser.add_argument(
        "csv", nargs="+", metavar="CSV", type=Path, help="results.csv of finetune_glue.py; the baseline first"
    )
    parser.add_argument("--out", type=Path, default=Path("glue-report"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--scores", choices=WHEN, default="best", help="of the best or the last epoch (default: %(default)s)"
    )
    return parser.parse_args(argv)


def report(args: argparse.Namespace) -> None:
    """Write the report that the command line asks for and print it."""
    results = collect(itertools.chain.from_iterable(map(read_csv, args.csv)), args.scores)
    try:
        print(write_report(results, args.out))
    except OSError as error:
        raise UserError(f"{args.out}: the report cannot be written ({error.strerror}); choose another --out") from None
    commands.report(f"{args.out}: report.md, table.csv, differences.csv, learning_rates.png, boxes.png")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("report-glue", lambda: report(args))
