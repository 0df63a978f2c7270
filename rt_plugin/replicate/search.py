"""The search for learning rates: the grid as it grows for all arms, each arm's best rate, those at an edge."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rt_plugin.replicate.plan import Plan, Run
from rt_plugin.replicate.runs import BROKE_OFF, DONE, last_loss, read_curve, read_ending

Losses = Mapping[str, Mapping[float, float]]  # arm -> learning rate -> validation loss at the end, bits


def has_ended(run: Run, out: Path) -> bool:
    """Whether a run need not be begun any more; one that broke off for no fault of its own must."""
    ending = read_ending(run, out)
    return ending is not None and ending.failed != BROKE_OFF


def search_losses(plan: Plan, learning_rates: Sequence[float], out: Path) -> Losses:
    """The losses that the search has so far, means over its seeds; infinite where a run diverged."""
    found: dict[str, dict[float, list[float]]] = {arm: {} for arm in plan.search.arms}
    for run in plan.search_runs(learning_rates):
        if has_ended(run, out):
            loss = last_loss(read_curve(run.folder(out))) if read_ending(run, out).failed == DONE else math.inf
            found[run.arm.name].setdefault(run.learning_rate, []).append(loss)
    return {arm: {rate: sum(x) / len(x) for rate, x in rates.items()} for arm, rates in found.items()}


def best_rates(losses: Losses) -> dict[str, float]:
    """Each arm's learning rate with the lowest loss; arms of which no run ended well are left out."""
    finite = {arm: {r: x for r, x in rates.items() if math.isfinite(x)} for arm, rates in losses.items()}
    return {arm: min(rates, key=rates.get) for arm, rates in finite.items() if rates}


def at_edge(losses: Losses) -> dict[str, float]:
    """The arms whose best rate is the lowest or the highest that was tried, so that the optimum may lie beyond."""
    best = best_rates(losses)
    tried = sorted({rate for rates in losses.values() for rate in rates})
    return {arm: rate for arm, rate in best.items() if rate in (tried[0], tried[-1])}


def learning_rates(plan: Plan, out: Path) -> list[float]:
    """The grid: the plan's rates, and those beyond an edge at which an arm's best one was found, for all arms alike.

    It grows only when all runs of the smaller grid have ended, so that it is the same whoever asks.
    """
    rates = list(plan.search.learning_rates)
    for _ in range(plan.search.extensions):
        if not all(has_ended(run, out) for run in plan.search_runs(rates)):
            break
        edges = set(at_edge(search_losses(plan, rates, out)).values())
        lower = [rates[0] / plan.search.extend_by] if rates[0] in edges else []
        higher = [rates[-1] * plan.search.extend_by] if rates[-1] in edges else []
        if not lower and not higher:
            break
        rates = [*lower, *rates, *higher]
    return rates
