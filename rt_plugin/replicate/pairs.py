"""The second outcome: minimal pairs of the final encoders, by phenomenon and over all paradigms."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rt_plugin.console.tables import markdown_table
from rt_plugin.errors import UserError
from rt_plugin.replicate.figures import Figure, points_panel
from rt_plugin.replicate.results import PAIRS_FILE, read_csv

MEAN_OF_PARADIGMS = "mean over paradigms"  # as rt-plugin minimal-pairs calls it

Judgements = Mapping[str, Mapping[str, Sequence[float]]]
"""Phenomenon or mean -> arm -> points of 100 that each seed has right."""


def read_pairs(folder: Path) -> dict[tuple[str, str], Judgements]:
    """(data, mask) -> what was judged; empty without minimal pairs.

    Raises:
        UserError: the file is broken, or lacks the means over paradigms.
    """
    file = folder / PAIRS_FILE
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in read_csv(file, ("arm", "seed", "data", "mask", "phenomenon", "accuracy")):
        found[row["data"], row["mask"]][row["phenomenon"]][row["arm"]].append(100 * float(row["accuracy"]))
    for (data, mask), judgements in found.items():
        if MEAN_OF_PARADIGMS not in judgements:
            raise UserError(f"{file}: no row {MEAN_OF_PARADIGMS!r} for {data} and {mask}; make it anew with --pairs")
    return dict(found)


def phenomena_table(judgements: Judgements) -> str:
    """A row a phenomenon, a column an arm, means over seeds; empty where the data have no phenomena."""
    if judgements.keys() == {MEAN_OF_PARADIGMS}:
        return ""
    arms = list(dict.fromkeys(arm for values in judgements.values() for arm in values))
    rows = [
        [name.replace("_", " "), *(f"{np.mean(values[arm]):.1f}" if arm in values else "-" for arm in arms)]
        for name, values in judgements.items()
    ]
    return markdown_table(["phenomenon", *arms], rows)


def pairs_figure(folder: Path) -> list[Figure]:
    """A panel for each data and way of masking: a point a run, the mean over paradigms; empty without pairs."""
    panels = [
        points_panel(f"{data}, {mask}", "per cent right", judgements[MEAN_OF_PARADIGMS])
        for (data, mask), judgements in read_pairs(folder).items()
    ]
    return [Figure("minimal_pairs", panels)] if panels else []
