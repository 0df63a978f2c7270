"""How stable fine-tuning is over learning rates: what other rates than the best one cost, how wide the range of good
ones is, and how many runs fail."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from rt_plugin.console.tables import markdown_table
from rt_plugin.glue.specs import task_rank
from rt_plugin.glue.statistics import Results, TaskResult, highest_floors
from rt_plugin.replicate.figures import DOTTED, Figure, Panel, Series
from rt_plugin.replicate.finetunings import fine_tuned, left, tasks_of
from rt_plugin.replicate.plan import Plan
from rt_plugin.replicate.statistics import COMPARISON_HEADINGS, compare, comparison_cells, good_range, judged, wilson

MARGIN = 1.0  # points of 100
LEAST_TASKS = 2  # on which an arm has to be the more stable one, and on none the less stable one

_MEASURES = f"""\
Dev scores at the end of training, points of 100; an undefined one counts as 0. Shortfall: how far the mean over all
rates is below the score at the best rate, which has the highest median; low is stable. Then the range of learning
rates around the best one whose median is within {MARGIN:g} point of the best median, interpolated between rates, and
its width in powers of ten; rates at which more than half of the runs failed are outside, and there is no width where
that is so of the best one. The more seeds scatter, the narrower a range comes out: with standard deviations above half
a point widths are no measure. Failed: no better than the majority class at the end, over these rates. All intervals are
of the luck of fine-tuning one encoder, not of pretraining another."""

_COMPARED = f"""\
Difference of mean shortfalls; negative: the first arm is the more stable. p (Holm) is corrected for all {{}}
comparisons. Below {MARGIN:g} point counts as none. An arm is the more stable one if it is so on {LEAST_TASKS} tasks
and the less stable one on none. Not read: a task where more than half of an arm's runs failed at its
best rate, as what has learned nothing is the same at every rate."""


def has_failed(sweep: TaskResult, rate: float) -> bool:
    """Whether more than half of the runs at a learning rate failed."""
    return 2 * sum(at == rate for at, _ in sweep.failed) > len(sweep.scores[rate])


def shortfalls(sweep: TaskResult) -> list[float]:
    """Of each seed that all rates have, the score at the best rate less the mean over all; points of 100."""
    seeds = sorted(set.intersection(*map(set, sweep.scores.values())))
    means = sweep.seed_means(sweep.scores)
    return [sweep.scores[sweep.best_lr][seed] - mean for seed, mean in zip(seeds, means, strict=True)]


def stability_section(plan: Plan, sweeps: Results, failed: Collection[str] = ()) -> list[str]:
    """A row for each task and arm, and the plan's comparisons of these arms; empty without fine-tunings.

    Args:
        sweeps: see `read_sweeps`.
        failed: arms whose encoder did not end well, so that there is nothing to fine-tune.
    """
    if not sweeps:
        return []
    found = [(task, arm, sweep) for arm, tasks in sweeps.items() for task, sweep in tasks.items()]
    found.sort(key=lambda row: task_rank(row[0]))
    headings = ["task", "arm", "best rate", "median there", "sd over seeds", "shortfall", f"within {MARGIN:g} point"]
    headings += ["decades", "95 %", "failed", "share failed, 95 %"]
    parts = ["## Stability of fine-tuning", _MEASURES.replace("\n", " ")]
    parts.append(markdown_table(headings, [[task, arm, *_cells(sweep)] for task, arm, sweep in found]))
    edges = [
        f"{arm} on {task} ({s.best_lr:g})" for task, arm, s in found if s.best_lr in (min(s.scores), max(s.scores))
    ]
    if edges:
        parts.append(f"**At an edge of the grid, the optimum may lie beyond: {', '.join(edges)}.**")
    return [*parts, *_compared(plan, sweeps, failed)]


def _cells(sweep: TaskResult) -> list[str]:
    scores = {rate: list(by_seed.values()) for rate, by_seed in sweep.scores.items()}
    runs = sum(map(len, scores.values()))
    low, high = wilson(len(sweep.failed), runs)
    width = ["-"] * 3
    if not has_failed(sweep, sweep.best_lr):
        r = good_range(scores, MARGIN, {rate for rate in scores if has_failed(sweep, rate)})
        more = " or more" if r.open else ""
        interval = "-" if math.isnan(r.decades_low) else f"{r.decades_low:.2f} to {r.decades_high:.2f}{more}"
        width = [f"{r.low:.1e} to {r.high:.1e}", f"{r.decades:.2f}{more}", interval]
    several = [values for values in scores.values() if len(values) > 1]
    spread = f"{np.sqrt(np.mean([np.var(values, ddof=1) for values in several])):.1f}" if several else "-"
    return [
        *(f"{sweep.best_lr:g}", f"{np.median(scores[sweep.best_lr]):.1f}", spread, _shortfall(sweep)),
        *(*width, f"{len(sweep.failed)}/{runs}", f"{100 * low:.0f} to {100 * high:.0f} %"),
    ]


def _shortfall(sweep: TaskResult) -> str:
    found = shortfalls(sweep)
    return f"{np.mean(found):.1f}" if found else "-"


def _compared(plan: Plan, sweeps: Results, failed: Collection[str]) -> list[str]:
    """The plan's comparisons of what is fine-tuned, task by task, as one family; none before all runs have ended."""
    if runs := left(plan, sweeps, failed):
        return [f"**{runs} fine-tunings are left: nothing is compared before all have ended.**"]
    names = fine_tuned(plan, failed)
    pairs = [(a, b) for a, b in plan.finetuning.comparisons if a in names and b in names] if plan.finetuning else []
    if not pairs:
        return []
    family = [(task, a, b) for task in tasks_of(plan.finetuning) for a, b in pairs]
    found = compare([_both(sweeps[a][task], sweeps[b][task]) for task, a, b in family])
    words = {"lower": "more stable", "higher": "less stable"}
    rows, judgements = [], defaultdict(list)
    for (task, a, b), c in zip(family, found, strict=True):
        said = "not read" if math.isnan(c.difference) else judged(c, MARGIN)
        judgements[a, b].append(words.get(said, said))
        rows.append([task, f"{a} - {b}", *comparison_cells(c), judgements[a, b][-1]])
    parts = [_COMPARED.replace("\n", " ").format(len(family))]
    parts.append(markdown_table(["task", *COMPARISON_HEADINGS, "judged"], rows))
    parts += [_verdict(f"{a} against {b}", said) for (a, b), said in judgements.items()]
    return parts


def _verdict(who: str, said: Sequence[str]) -> str:
    more, less, unread = (said.count(word) for word in ("more stable", "less stable", "not read"))
    verdict = "not told apart"
    if not (more and less) and max(more, less) >= LEAST_TASKS:
        verdict = "more stable" if more else "less stable"
    return f"**{who}: {verdict} (more on {more} of {len(said)} tasks, less on {less}, {unread} not read).**"


def _both(a: TaskResult, b: TaskResult) -> tuple[list[float], list[float]]:
    """The shortfalls of two arms; nan where the task is not read."""
    if any(has_failed(sweep, sweep.best_lr) for sweep in (a, b)):
        return [math.nan], [math.nan]
    return shortfalls(a), shortfalls(b)


def stability_figure(sweeps: Results, floors: Results) -> list[Figure]:
    """Score against learning rate by task: medians over seeds, from the worst to the best seed; dotted: the highest
    floor.

    Args:
        sweeps, floors: see `read_sweeps`.
    """
    panels = defaultdict(list)
    for arm, tasks in sweeps.items():
        for task, sweep in tasks.items():
            rates = sorted(sweep.scores)
            scores = [list(sweep.scores[rate].values()) for rate in rates]
            ends = ([float(end(values)) for values in scores] for end in (np.median, min, max))
            panels[task].append(Series(arm, rates, *ends))
    for task, (name, score) in highest_floors(floors).items():
        if series := panels.get(task):
            rates = [rate for s in series for rate in s.x]
            series.append(Series(name, [min(rates), max(rates)], [score] * 2, style=DOTTED))
    drawn = [Panel(task, "learning rate", "dev score", panels[task], "log") for task in sorted(panels, key=task_rank)]
    return [Figure("stability", drawn)] if drawn else []
