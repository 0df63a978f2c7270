"""The statistics of a replication against worked examples and definitions."""

import math

import numpy as np
import pytest

from rt_plugin.replicate.statistics import compare, good_range, holm, wilson


def test_holm_is_the_worked_example():
    # Holm 1979: each p times the number of hypotheses left, never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_counts_comparisons_without_a_p_value():
    corrected = holm([0.01, math.nan])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1])


def test_compare_is_welchs_test():
    a, b = [7.02, 7.05, 7.01], [7.31, 7.22, 7.40]
    (found,) = compare([(a, b)])
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    from scipy import stats

    half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.p_holm == found.p == pytest.approx(2 * stats.t.sf(abs(found.difference) / math.sqrt(va + vb), freedom))


def test_compare_corrects_over_the_family():
    far, near = ([1.0, 1.1, 0.9], [5.0, 5.1, 4.9]), ([1.0, 1.1, 0.9], [1.2, 1.3, 1.1])
    alone = compare([near])[0].p
    first, second = compare([far, near])
    assert first.p_holm == pytest.approx(2 * first.p)
    assert second.p_holm == pytest.approx(alone)


@pytest.mark.parametrize("pair", [([1.0], [2.0]), ([1.0, 1.0], [2.0, 2.0]), ([1.0, 1.0 + 1e-14], [2.0, 2.0])])
def test_no_interval_without_spread(pair):
    (found,) = compare([pair])
    assert found.difference == pytest.approx(-1)
    assert all(map(math.isnan, (found.low, found.high, found.p, found.p_holm)))


def test_wilson_is_the_textbook_interval():
    assert wilson(2, 10) == pytest.approx((0.0567, 0.5098), abs=1e-4)
    assert wilson(0, 10)[0] == 0


def test_good_range_interpolates_in_the_logarithm():
    # 2 points lost in a decade on the left: a point is half a decade; 4 on the right: a quarter
    scores = {1e-5: [48.0], 1e-4: [50.0], 1e-3: [46.0]}
    r = good_range(scores, 1.0)
    assert (r.best, r.decades, r.open) == (1e-4, pytest.approx(0.75), False)
    assert (r.low, r.high) == pytest.approx((10**-4.5, 10**-3.75))
    assert math.isnan(r.decades_low) and math.isnan(r.decades_high)


def test_good_range_ends_where_scores_fall_even_if_they_rise_again():
    r = good_range({1e-6: [50.0], 1e-5: [40.0], 1e-4: [50.5], 1e-3: [50.0], 1e-2: [30.0]}, 1.0)
    assert 1e-5 < r.low < 1e-4 and 1e-3 < r.high < 1e-2 and not r.open


def test_good_range_that_reaches_the_end_of_the_grid_is_open():
    r = good_range({1e-5: [50.0], 1e-4: [50.2], 1e-3: [30.0]}, 1.0)
    assert r.low == pytest.approx(1e-5) and r.open


def test_good_range_ends_before_a_rate_at_which_runs_failed():
    """Whose score, the majority's, may be within the margin."""
    r = good_range({1e-5: [49.8], 1e-4: [50.0], 1e-3: [49.9], 1e-2: [49.9]}, 1.0, failed={1e-3})
    assert (r.low, r.high) == pytest.approx((1e-5, 1e-4)) and r.open


def test_good_range_takes_the_median_over_seeds():
    steady = {1e-5: [48.0] * 3, 1e-4: [50.0] * 3, 1e-3: [46.0] * 3}
    lucky = {**steady, 1e-5: [48.0, 48.0, 90.0]}
    assert good_range(lucky, 1.0).decades == pytest.approx(good_range(steady, 1.0).decades)
    assert good_range(steady, 1.0).decades_low == good_range(steady, 1.0).decades_high == pytest.approx(0.75)


def test_good_range_is_surer_with_more_seeds():
    random = np.random.default_rng(1)
    centers = {1e-5: 45.0, 1e-4: 50.0, 1e-3: 50.0, 1e-2: 40.0}
    widths = []
    for n in (4, 40):
        r = good_range({rate: list(random.normal(c, 0.5, n)) for rate, c in centers.items()}, 1.0)
        assert 0 <= r.decades_low <= r.decades <= r.decades_high <= 3
        widths.append(r.decades_high - r.decades_low)
    assert widths[1] < widths[0] / 2
