"""Simulations of the report's stability section: how wide a range of good learning rates comes out, how often its
interval holds the true width, and how often that of a difference of shortfalls holds the true one, which is 0.

Scores are normally distributed around true curves over the seven rates of the plan `laptop`, the margin is 1 point:
`python tests/replicate/stability_coverage.py 400` prints the tables of docs/replicating.md.
"""

import itertools
import sys

import numpy as np

from rt_plugin.console.tables import markdown_table
from rt_plugin.glue.results import Run
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.glue.statistics import collect
from rt_plugin.replicate.plan import load_plan
from rt_plugin.replicate.stability import MARGIN, shortfalls
from rt_plugin.replicate.statistics import compare, good_range

CURVES = {
    "one rate is best": (-30, -20, -10, 0, -10, -20, -30),
    "three rates are": (-20, -10, 0, 0, 0, -10, -20),
    "five rates are": (-10, 0, 0, 0, 0, 0, -10),
    "all rates are": (0, 0, 0, 0, 0, 0, 0),
}

RATES = load_plan("laptop").finetuning.learning_rates


def of_width(curve: tuple[float, ...], deviation: float, seeds: int, repetitions: int) -> tuple[float, float, float]:
    """Returns: the true width, the mean of those found, both in decades, and the share of intervals that hold it."""
    true = good_range({rate: [score] for rate, score in zip(RATES, curve, strict=True)}, MARGIN).decades
    random = np.random.default_rng(1)
    widths, holds = [], []
    for _ in range(repetitions):
        scores = {rate: random.normal(score, deviation, seeds) for rate, score in zip(RATES, curve, strict=True)}
        found = good_range(scores, MARGIN)
        widths.append(found.decades)
        holds.append(found.decades_low <= true + 1e-9 and true - 1e-9 <= found.decades_high)
    return true, float(np.mean(widths)), float(np.mean(holds))


def of_shortfall(
    curve: tuple[float, ...], deviations: tuple[float, float], seeds: int, repetitions: int
) -> tuple[float, float]:
    """Two arms with the same true curve. Returns: the mean difference, and the share of intervals that hold 0."""
    random = np.random.default_rng(1)
    grid = [(rate, score, seed) for rate, score in zip(RATES, curve, strict=True) for seed in range(seeds)]
    differences, holds = [], []
    for _ in range(repetitions):
        runs = [
            Run(str(arm), BY_NAME["RTE"], rate, seed, False, {"last_score": random.normal(score, deviation) / 100})
            for arm, deviation in enumerate(deviations)
            for rate, score, seed in grid
        ]
        (found,) = compare([tuple(shortfalls(tasks["RTE"]) for tasks in collect(runs, "last").values())])
        differences.append(found.difference)
        holds.append(found.low <= 0 <= found.high)
    return float(np.mean(differences)), float(np.mean(holds))


def main(repetitions: int) -> None:
    widths, differences = [], []
    for (name, curve), seeds in itertools.product(CURVES.items(), (3, 5)):
        found = [of_width(curve, deviation, seeds, repetitions) for deviation in (0.5, 1.5, 2.5)]
        widths.append([name, f"{found[0][0]:.2f}", str(seeds), *(_cell(*values) for _, *values in found)])
        found = [of_shortfall(curve, pair, seeds, repetitions) for pair in ((0.5, 0.5), (2.5, 2.5), (1, 3))]
        differences.append([name, str(seeds), *(_cell(*values) for values in found)])
    print(markdown_table(["true curve", "width", "seeds", "sd 0.5", "sd 1.5", "sd 2.5"], widths), end="\n\n")
    print(markdown_table(["true curve", "seeds", "sd 0.5", "sd 2.5", "sd 1 and 3"], differences))


def _cell(mean: float, share: float) -> str:
    return f"{mean:.2f} ({100 * share:.0f} %)"


if __name__ == "__main__":
    main(int(sys.argv[1]))
