"""How stable fine-tuning is over learning rates: how wide the range of good ones is, and how many runs fail."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rt_plugin.console.tables import markdown_table
from rt_plugin.glue.results import read_csv
from rt_plugin.replicate.figures import Figure, Panel, Series
from rt_plugin.replicate.results import FINETUNING_FILE
from rt_plugin.replicate.statistics import good_range, wilson

MARGIN = 1.0  # points of 100


@dataclass
class Sweep:
    """A model on a task: learning rate -> score of each seed, points of 100; (learning rate, failed) of each run."""

    scores: dict[float, list[float]]
    failed: list[tuple[float, bool]]

    def failed_at(self, rate: float) -> bool:
        """Whether more than half of the runs at a learning rate failed."""
        found = [failed for at, failed in self.failed if at == rate]
        return 2 * sum(found) > len(found)


def read_sweeps(file: Path) -> dict[tuple[str, str], Sweep]:
    """(task, model) -> its runs at the end of training; an undefined score, as of a run that diverged, counts as 0.

    Raises:
        UserError: the file is missing or broken.
    """
    sweeps = defaultdict(lambda: Sweep(defaultdict(list), []))
    for run in read_csv(file):
        score = 100 * run.values.get("last_score", 0.0)
        sweep = sweeps[run.task.name, run.model]
        sweep.scores[run.lr].append(0.0 if math.isnan(score) else score)
        sweep.failed.append((run.lr, run.failed))
    return dict(sweeps)


def stability_section(folder: Path) -> list[str]:
    """A row for each task and model; empty without fine-tunings."""
    if not (folder / FINETUNING_FILE).is_file():
        return []
    sweeps = read_sweeps(folder / FINETUNING_FILE)
    rows = [[task, model, *_cells(sweep)] for (task, model), sweep in sweeps.items()]
    headings = ["task", "model", "best rate", "median there", f"within {MARGIN:g} point", "decades", "95 %"]
    return [
        "## Stability of fine-tuning",
        "Dev scores at the end of training. The range of learning rates around the best one whose median over seeds is "
        f"within {MARGIN:g} point of the best median, interpolated between rates, and its width in powers of ten; the "
        "share of failed runs, no better than the majority class, over all rates. No width where the runs at the best "
        "rate failed: then all rates are alike. The intervals are of the luck of fine-tuning one encoder, not of "
        "pretraining another.",
        markdown_table([*headings, "failed", "share failed, 95 %"], rows),
    ]


def _cells(sweep: Sweep) -> list[str]:
    r = good_range(sweep.scores, MARGIN)
    bad = sum(failed for _, failed in sweep.failed)
    low, high = wilson(bad, len(sweep.failed))
    width = [f"{r.low:.1e} to {r.high:.1e}", f"{r.decades:.2f}" + (" or more" if r.open else "")]
    width.append(f"{r.decades_low:.2f} to {r.decades_high:.2f}")
    if sweep.failed_at(r.best):
        width = ["-"] * len(width)
    share = [f"{bad}/{len(sweep.failed)}", f"{100 * low:.0f} to {100 * high:.0f} %"]
    return [f"{r.best:g}", f"{np.median(sweep.scores[r.best]):.1f}", *width, *share]


def stability_figure(folder: Path) -> list[Figure]:
    """Score against learning rate by task: medians over seeds, from the worst to the best seed."""
    if not (folder / FINETUNING_FILE).is_file():
        return []
    panels = defaultdict(list)
    for (task, model), sweep in read_sweeps(folder / FINETUNING_FILE).items():
        rates = sorted(sweep.scores)
        ends = ([float(end(sweep.scores[rate])) for rate in rates] for end in (np.median, min, max))
        panels[task].append(Series(model, rates, *ends))
    return [Figure("stability", [Panel(task, "learning rate", "dev score", s, "log") for task, s in panels.items()])]
