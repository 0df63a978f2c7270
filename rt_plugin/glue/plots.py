"""The two figures of a report: how scores depend on the learning rate, and how the runs of each task scatter."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rt_plugin.console import figures
from rt_plugin.glue.specs import task_rank
from rt_plugin.glue.statistics import Results, averaged

_FLOOR = {"color": "black", "ls": ":", "lw": 1}
_FLOOR_LABEL = "best without an encoder"


def plot_learning_rates(results: Results, path: Path, floors: Mapping[str, float] | None = None) -> None:
    """One panel a task: every run a point, the median over seeds a line, from the worst to the best seed a band.

    The panels' scales have the same length, so that distances can be compared between tasks.

    Args:
        results: of the models.
        path: of the figure.
        floors: task -> a score to draw as a dotted line.

    Raises:
        UserError: matplotlib is not installed.
    """
    names = _tasks(results)
    colours = figures.colours(list(results))
    title = "Dev score against learning rate: every run, median and range over seeds"
    with figures.panels(path, len(names), title) as panels:
        for axes, name in zip(panels, names, strict=True):
            for model, tasks in results.items():
                if name in tasks:
                    _draw_spread(axes, tasks[name].scores, colours[model], model)
            if name in (floors or {}):
                axes.axhline(floors[name], label=_FLOOR_LABEL, **_FLOOR)
            rates = sorted({lr for tasks in results.values() if name in tasks for lr in tasks[name].scores})
            axes.set_xscale("log")
            axes.set_xticks(rates, [f"{lr:g}" for lr in rates])
            axes.minorticks_off()
            axes.set(title=name, xlabel="learning rate")
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel("dev score")
        figures.share_span(panels)


def _draw_spread(axes, scores: dict[float, dict[int, float]], colour: str, model: str) -> None:
    lrs = sorted(scores)
    values = [list(scores[lr].values()) for lr in lrs]
    axes.plot(lrs, [np.median(v) for v in values], color=colour, label=model)
    axes.fill_between(lrs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0)
    for lr, own in zip(lrs, values, strict=True):
        axes.plot([lr] * len(own), own, ".", color=colour, alpha=0.6)


def plot_boxes(results: Results, path: Path, floors: Mapping[str, float] | None = None) -> None:
    """All runs of a task in one box a model, over learning rates and seeds: how much depends on choosing them well.

    A box goes from the first to the third quartile, its line is the median; the whiskers end at the last run within 1.5
    times its height, and runs beyond are dots.

    Args:
        results: of the models.
        path: of the figure.
        floors: task -> a score to draw as a dotted line.

    Raises:
        UserError: matplotlib is not installed.
    """
    names = _tasks(results)
    colours = figures.colours(list(results))
    width = 0.8 / len(results)
    title = "Dev scores of all runs, over learning rates and seeds"
    with figures.panels(path, 1, title, height=3) as (axes,):
        for i, (model, tasks) in enumerate(results.items()):
            places = [j for j, name in enumerate(names) if name in tasks]
            axes.boxplot(
                [[score for by_seed in tasks[names[j]].scores.values() for score in by_seed.values()] for j in places],
                positions=[j + (i - (len(results) - 1) / 2) * width for j in places],
                widths=0.8 * width,
                manage_ticks=False,
                patch_artist=True,
                boxprops={"facecolor": colours[model], "alpha": 0.5},
                medianprops={"color": "black"},
                flierprops={"marker": ".", "markeredgecolor": colours[model], "markerfacecolor": colours[model]},
            )
            axes.plot([], [], color=colours[model], lw=6, alpha=0.5, label=model)
        for j, name in enumerate(names):
            if name in (floors or {}):
                axes.plot([j - 0.45, j + 0.45], [floors[name]] * 2, label=_FLOOR_LABEL, **_FLOOR)
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.set(ylabel="dev score")


def _tasks(results: Results) -> list[str]:
    """The tasks that any model has, in the order of the task table; without second dev sets."""
    names = {name for tasks in results.values() for name in averaged(tasks)}
    return sorted(names, key=task_rank)
