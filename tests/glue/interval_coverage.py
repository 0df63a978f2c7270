"""How often the report's 95 % intervals hold the true difference of two models, which is 0, in simulations.

Scores are normally distributed around the same mean: `python tests/glue/interval_coverage.py 10000` prints the table of
docs/glue.md, for three learning rates and five tasks.
"""

import itertools
import sys
from collections import defaultdict

import numpy as np

from rt_plugin.console.tables import markdown_table
from rt_plugin.glue.results import Run
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.glue.statistics import collect, differences

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
TASKS = ("CoLA", "SST-2", "MRPC", "STS-B", "RTE")


def coverage(
    repetitions: int, seeds: int, deviations: tuple[float, float] = (2.0, 2.0), tasks: tuple[str, ...] = TASKS
) -> dict[tuple[str, str], float]:
    """Simulate two sweeps many times over.

    Args:
        repetitions: how often.
        seeds: runs at each learning rate.
        deviations: standard deviations of the two models' scores, in points of 100.
        tasks: by name.

    Returns:
        (which runs are compared, task or "average") -> share of the intervals that hold 0.
    """
    random = np.random.default_rng(1)
    grid = list(itertools.product((0, 1), tasks, LEARNING_RATES, range(seeds)))
    scatter = np.array([deviations[model] / 100 for model, *_ in grid])
    holds = defaultdict(list)
    for _ in range(repetitions):
        runs = [
            Run(f"model {model}", BY_NAME[task], lr, seed, failed=False, values={"best_score": score})
            for (model, task, lr, seed), score in zip(grid, random.normal(0.7, scatter), strict=True)
        ]
        for found in differences(collect(runs)):
            holds[found.runs, found.task].append(found.low <= 0 <= found.high)
    return {key: float(np.mean(values)) for key, values in holds.items()}


def main(repetitions: int) -> None:
    rows = []
    for deviations, seeds in itertools.product(((2.0, 2.0), (4.0, 1.0)), (3, 5)):
        shares = coverage(repetitions, seeds, deviations)
        cells = []
        for runs in ("all learning rates", "best learning rate"):
            cells.append(np.mean([shares[runs, task] for task in TASKS]))
            cells.append(shares[runs, "average"])
        rows.append(["{:g} and {:g}".format(*deviations), str(seeds), *(f"{100 * cell:.1f} %" for cell in cells)])
    headings = ("standard deviations", "seeds", "all rates: task", "average", "best rate: task", "average")
    print(markdown_table(headings, rows))


if __name__ == "__main__":
    main(int(sys.argv[1]))
