"""The statistics of a replication: Welch's intervals, Holm's correction, and the range of good learning rates.

Sources: Welch 1947, Biometrika 34; Holm 1979, Scandinavian Journal of Statistics 6; Wilson 1927, Journal of the
American Statistical Association 22. scipy computes the first and the last.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
COMPARISON_HEADINGS = ("comparison", "difference", "95 % interval (Welch)", "p", "p (Holm)")
_ROUNDING = 1e-9  # of bits and of points: values that differ by less are the same
_RANDOM_SEED = 20220523  # any: the same input gives the same interval


@dataclass(frozen=True)
class Comparison:
    """The difference of two means, a's minus b's.

    Attributes:
        difference: of the means.
        low, high: Welch's interval at 95 %; nan with one value each, or where no two differ.
        p: of Welch's t test, two-sided; nan as above.
        p_holm: corrected for all comparisons of the family; nan as above.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def compare(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Comparison]:
    """Compare the means of each pair (a, b), as one family of tests.

    A comparison without a p-value still counts as one of the family.
    """
    from scipy import stats  # takes a second to import

    found = []
    for a, b in pairs:
        low = high = p = math.nan
        if min(len(a), len(b)) > 1 and max(np.ptp(a), np.ptp(b)) > _ROUNDING:
            test = stats.ttest_ind(a, b, equal_var=False)
            p, (low, high) = float(test.pvalue), map(float, test.confidence_interval(CONFIDENCE))
        found.append((float(np.mean(a) - np.mean(b)), low, high, p))
    corrected = holm([p for *_, p in found])
    return [Comparison(*values, p) for values, p in zip(found, corrected, strict=True)]


def judged(c: Comparison, least: float) -> str:
    """What a comparison says: nothing below the least difference, nor where it may be chance."""
    if abs(c.difference) < least:
        return "no difference"
    if not c.p_holm < 1 - CONFIDENCE:
        return "not told apart"
    return "lower" if c.difference < 0 else "higher"


def comparison_cells(c: Comparison) -> list[str]:
    """A comparison as cells of a table, below the headings from the second on; "-" for nan."""
    interval = "-" if math.isnan(c.low) else f"{c.low:+.4f} to {c.high:+.4f}"
    return ["-" if math.isnan(c.difference) else f"{c.difference:+.4f}", interval, _p(c.p), _p(c.p_holm)]


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p-value times the number of those not smaller, never below one before it.

    nan stays nan and counts among the largest.
    """
    count = len(p_values)
    corrected, highest = [math.nan] * count, 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * p))
        corrected[i] = highest
    return corrected


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class GoodRange:
    """The learning rates around the best one whose median score stays within a margin of the best median.

    Attributes:
        best: the learning rate of the highest median.
        low, high: ends of the range.
        decades: its width, log10(high / low).
        decades_low, decades_high: 95 % interval of the width; nan with one seed.
        open: the range reaches an end of the grid, so that it may be wider.
    """

    best: float
    low: float
    high: float
    decades: float
    decades_low: float
    decades_high: float
    open: bool


def good_range(scores: Mapping[float, Sequence[float]], margin: float, failed: Collection[float] = ()) -> GoodRange:
    """How wide the range of good learning rates is.

    Between two rates of the grid, medians are interpolated linearly in the rate's logarithm. The interval is
    width +- t * error: the error is the standard deviation of the width over resamples of the seeds at each rate, times
    sqrt(n / (n - 1)) since n seeds scatter too little when they are resampled, t is Student's with n - 1 degrees of
    freedom for the smallest n; it ends at 0 and at the width of the grid.

    Of an uneven curve the width comes out too narrow, as the best median is one of several and a plateau breaks where
    seeds scatter: by up to a seventh where their standard deviation is half a margin, by half and more where it is
    one and a half margins and the plateau wide; and the interval, which knows nothing of that, then misses it
    (tests/replicate/stability_coverage.py prints how often). It knows nothing of another pretraining either.

    Args:
        scores: learning rate -> score of each seed, in the unit of the margin.
        margin: how far below the best median is still good.
        failed: learning rates that are not good whatever their median.
    """
    rates = np.array(sorted(scores))
    logs = np.log10(rates)
    lost = np.where(np.isin(rates, list(failed)), -np.inf, 0.0)
    medians = np.array([np.median(scores[rate]) for rate in rates]) + lost
    low, high = (x[0] for x in _ranges(logs, medians[None], margin))
    n = min(map(len, scores.values()))
    width, interval = high - low, (math.nan, math.nan)
    if n > 1:
        half = _student(n) * math.sqrt(n / (n - 1)) * _width_error(scores, rates, logs, lost, margin)
        interval = (max(0.0, width - half), min(float(np.ptp(logs)), width + half))
    is_open = bool(low == logs[0] or high == logs[-1])
    best = float(rates[medians.argmax()])
    return GoodRange(best, float(10**low), float(10**high), float(width), *map(float, interval), is_open)


def _width_error(scores: Mapping[float, Sequence[float]], rates, logs, lost, margin: float) -> float:
    random = np.random.default_rng(_RANDOM_SEED)
    resampled = []
    for rate in rates:
        values = np.array(scores[rate], dtype=float)
        resampled.append(np.median(values[random.integers(len(values), size=(RESAMPLES, len(values)))], axis=1))
    low, high = _ranges(logs, np.stack(resampled, axis=1) + lost, margin)
    return float(np.std(high - low))


def _student(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


def _ranges(logs: np.ndarray, medians: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the range of good rates, as logarithms, for each row of (N, rates) medians."""
    above = medians - (medians.max(axis=1, keepdims=True) - margin)  # 0 or more: good
    best = medians.argmax(axis=1)
    return _end(logs, above, best, -1), _end(logs, above, best, 1)


def _end(logs: np.ndarray, above: np.ndarray, best: np.ndarray, step: int) -> np.ndarray:
    rows, place = np.arange(len(above)), best.copy()
    end = logs[place]
    going = np.ones(len(above), dtype=bool)
    for _ in range(len(logs) - 1):
        ahead = place + step
        going &= (ahead >= 0) & (ahead < len(logs))
        ahead = np.clip(ahead, 0, len(logs) - 1)
        here, there = above[rows, place], above[rows, ahead]
        good = there >= 0
        share = np.where(good, 1.0, here / np.where(good, 1.0, here - there))  # where the line between them is 0
        end = np.where(going, logs[place] + share * (logs[ahead] - logs[place]), end)
        going &= good
        place = np.where(going, ahead, place)
    return end
