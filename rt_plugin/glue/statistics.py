"""The statistics of fine-tuning results: medians, means, best learning rates, and differences with 95 % intervals.

Scores are dev set scores of the task table's headline metrics, times 100. An undefined score (a correlation with a
constant) counts as 0 in every statistic. A model's best learning rate for a task is the one with the highest median
over its seeds. MNLI-mm, MNLI's second dev set, is shown at MNLI's best learning rate, and is no part of the average.

Differences are of means over seeds: for a task with the interval of Welch's t test (Welch 1947, Biometrika 34), for the
average over tasks with the same formula over all of its means (Satterthwaite 1946, Biometrics Bulletin 2). Seeds are
taken for independent, between models and between tasks. With one seed, or where no two runs differ, there is no
interval. The intervals tell of the luck of the runs, not of the choice of the dev set's rows.

What needs no encoder (`rt-plugin glue-baselines`) is a floor: it has no learning rate and no luck, and is no part of
the differences.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rt_plugin.errors import UserError
from rt_plugin.glue.results import Run
from rt_plugin.glue.specs import task_rank

AVERAGE = "average"
SECOND_DEV_SET = "-mm"  # after a task's name
CONFIDENCE = 0.95
_RENAME = "give models different names with rt-plugin finetune-glue --name (a finished one first in its sweep.json)"
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
            lr = "" if run.lr is None else f", lr {run.lr:g}"
            raise UserError(f"{run.model}, {run.task.name}{lr}, seed {run.seed} is there twice; {_RENAME}")
        if run.checkpoint and run.checkpoint != (first := checkpoints.setdefault(run.model, run.checkpoint)):
            raise UserError(f"{run.model}: its runs are of two checkpoints, {first} and {run.checkpoint}; {_RENAME}")
        seen.add(key)
        grouped[run.model][run.task.name].append(run)
    if not grouped:
        raise UserError("the CSV files hold no runs; wait until rt-plugin finetune-glue has finished one")
    return {
        model: dict(itertools.chain(*(_dev_sets(tasks[name], when) for name in sorted(tasks, key=task_rank))))
        for model, tasks in grouped.items()
    }


def _dev_sets(runs: Sequence[Run], when: str) -> Iterator[tuple[str, TaskResult]]:
    """The results of one task: on its dev set and, where there are any, on the second one."""
    name, second = runs[0].task.name, f"{when}_score_mismatched"
    result = TaskResult.of(runs, f"{when}_score")
    yield name, result
    if any(second in run.values for run in runs):
        yield name + SECOND_DEV_SET, TaskResult.of(runs, second, result.best_lr)


def has_one_rate(results: Results) -> bool:
    """Whether every model has one learning rate a task, so that none was chosen on the dev set."""
    return all(len(task.scores) == 1 for tasks in results.values() for task in tasks.values())


def common_tasks(results: Results) -> list[str]:
    """The tasks that all models have, in order; with second dev sets."""
    first, *others = results.values()
    return [task for task in first if all(task in tasks for tasks in others)]


def averaged(tasks: Iterable[str]) -> list[str]:
    """Those that are part of the average."""
    return [task for task in tasks if not task.endswith(SECOND_DEV_SET)]


def table(results: Results, floors: Results | None = None) -> list[dict]:
    """A row for each model and task, and the average over the tasks that all models have; floors first.

    Args:
        results: of models.
        floors: of what needs no encoder; one without some of the tasks has no average.

    Returns:
        rows with model, task, best_lr, `Summary`'s fields at the best learning rate and, with `all_` before, over all.
    """
    rows = []
    names = averaged(common_tasks(results))
    for model, tasks in [*(floors or {}).items(), *results.items()]:
        parts = {name: (task.at([task.best_lr]), task.at(task.scores)) for name, task in tasks.items()}
        for name, (best, overall) in parts.items():
            rows.append(_row(model, name, tasks[name].best_lr, best, overall))
        shared = [parts[name] for name in names if name in parts]
        if shared and len(shared) == len(names):
            rows.append(_row(model, AVERAGE, None, *map(Summary.average, zip(*shared, strict=True))))
    return rows


def _row(model: str, task: str, lr: float | None, best: Summary, overall: Summary) -> dict:
    everywhere = {f"all_{name}": value for name, value in asdict(overall).items()}
    return {"model": model, "task": task, "best_lr": lr, **asdict(best), **everywhere}


def highest_floors(floors: Results) -> dict[str, tuple[str, float]]:
    """Task -> (which floor is the highest one there, its score)."""
    found: dict[str, tuple[str, float]] = {}
    for name, tasks in floors.items():
        for task, result in tasks.items():
            score = result.at(result.scores).median
            if task not in found or score > found[task][1]:
                found[task] = (name, score)
    return found


def differences(results: Results) -> list[Difference]:
    """All pairs of models, task by task and on average, over all common learning rates and at the best; or, where there
    is nothing to choose from (see `has_one_rate`), at each one's own.
    """
    found = []
    for (model, a), (other, b) in itertools.combinations(reversed(results.items()), 2):
        tasks = common_tasks({model: a, other: b})
        at_best = [(a[t].seed_means([a[t].best_lr]), b[t].seed_means([b[t].best_lr])) for t in tasks]
        everywhere = [_over_common_rates(a[t], b[t]) for t in tasks]
        kinds = {"all learning rates": everywhere, "best learning rate": at_best}
        if has_one_rate(results):
            kinds = {"one learning rate": at_best}
        for kind, pairs in kinds.items():
            found += _differences_of_pair(model, other, kind, dict(zip(tasks, pairs, strict=True)))
    return found


def _over_common_rates(a: TaskResult, b: TaskResult) -> tuple[list[float], list[float]]:
    lrs = sorted(set(a.scores) & set(b.scores))
    return a.seed_means(lrs), b.seed_means(lrs)


def _differences_of_pair(
    model: str, other: str, kind: str, pairs: dict[str, tuple[list[float], list[float]]]
) -> Iterator[Difference]:
    means, variances = [], []
    for task, (a, b) in pairs.items():
        if not a or not b:
            continue
        mean = float(np.mean(a) - np.mean(b))
        parts = [variance_of_mean(a), variance_of_mean(b)]
        yield Difference(model, other, task, kind, mean, *interval(mean, parts), f"{len(a)} and {len(b)}")
        if averaged([task]):
            means.append(mean)
            variances += parts
    if means:
        mean = float(np.mean(means))
        parts = [(variance / len(means) ** 2, freedom) for variance, freedom in variances]
        yield Difference(model, other, AVERAGE, kind, mean, *interval(mean, parts), f"{len(means)} tasks")


def variance_of_mean(scores: Sequence[float]) -> tuple[float, int]:
    """s^2 / n, the variance of the mean of n scores, and its degrees of freedom, n - 1; nan for one score."""
    n = len(scores)
    return (float(np.var(scores, ddof=1)) / n if n > 1 else math.nan), n - 1


def interval(center: float, parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Student's t interval around a sum of independent means, with the degrees of freedom of Welch and Satterthwaite.

    For the difference of two means it is the interval of Welch's t test.

    Args:
        center: the sum.
        parts: the means' variances with their degrees of freedom.

    Returns:
        its ends; nan where a variance is nan, or where there is none.
    """
    variance = sum(part for part, _ in parts)
    if not variance > _NO_VARIANCE:
        return math.nan, math.nan
    from scipy import stats  # takes a second to import

    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    low, high = stats.t.interval(CONFIDENCE, freedom, loc=center, scale=math.sqrt(variance))
    return float(low), float(high)
