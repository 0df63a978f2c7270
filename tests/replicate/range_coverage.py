"""How wide a range of good learning rates comes out, and how often its interval holds the true width, in simulations.

Scores are normally distributed around true curves over the seven rates of the plan `laptop`, the margin is 1 point:
`python tests/replicate/range_coverage.py 200` prints the table of docs/replicating.md.
"""

import itertools
import sys

import numpy as np

from rt_plugin.console.tables import markdown_table
from rt_plugin.replicate import statistics
from rt_plugin.replicate.plan import load_plan

CURVES = {
    "one rate is best": (-30, -20, -10, 0, -10, -20, -30),
    "three rates are": (-20, -10, 0, 0, 0, -10, -20),
    "five rates are": (-10, 0, 0, 0, 0, 0, -10),
    "all rates are": (0, 0, 0, 0, 0, 0, 0),
}

DEVIATIONS = (0.5, 1.5, 2.5)  # of scores over seeds, in points


def simulate(curve: tuple[float, ...], deviation: float, seeds: int, repetitions: int) -> tuple[float, float, float]:
    """Returns: the true width, the mean of those found, both in decades, and the share of intervals that hold it."""
    rates = load_plan("laptop").finetuning.learning_rates
    true = statistics.good_range({rate: [score] for rate, score in zip(rates, curve, strict=True)}, margin=1).decades
    random = np.random.default_rng(1)
    widths, holds = [], []
    for _ in range(repetitions):
        scores = {rate: random.normal(score, deviation, seeds) for rate, score in zip(rates, curve, strict=True)}
        found = statistics.good_range(scores, margin=1)
        widths.append(found.decades)
        holds.append(found.decades_low <= true + 1e-9 and true - 1e-9 <= found.decades_high)
    return true, float(np.mean(widths)), float(np.mean(holds))


def main(repetitions: int) -> None:
    rows = []
    for (name, curve), seeds in itertools.product(CURVES.items(), (3, 5)):
        found = [simulate(curve, deviation, seeds, repetitions) for deviation in DEVIATIONS]
        cells = [f"{width:.2f} ({100 * share:.0f} %)" for _, width, share in found]
        rows.append([name, f"{found[0][0]:.2f}", str(seeds), *cells])
    print(markdown_table(["true curve", "width", "seeds", *(f"sd {deviation:g}" for deviation in DEVIATIONS)], rows))


if __name__ == "__main__":
    main(int(sys.argv[1]))
