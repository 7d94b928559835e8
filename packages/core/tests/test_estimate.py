import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from symdyn_core.estimate import Estimate, counted, geometric_mean, mean, median, proportion, quantile, slope

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=2, max_size=30)


@given(samples)
def test_mean_is_the_textbook_t_interval(values):
    found = mean(values)
    if np.ptp(values) < 1e-6:
        return
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert found.low == pytest.approx(low, rel=1e-9, abs=1e-6)
    assert found.high == pytest.approx(high, rel=1e-9, abs=1e-6)


@given(samples, st.floats(0.1, 10), numbers)
def test_mean_moves_with_units_and_origin(values, scale, shift):
    before, after = mean(values), mean([scale * value + shift for value in values])
    tolerance = 1e-6 * (1 + scale) + 1e-9 * abs(shift)
    assert after.low == pytest.approx(scale * before.low + shift, rel=1e-6, abs=tolerance)
    assert after.high == pytest.approx(scale * before.high + shift, rel=1e-6, abs=tolerance)


@given(samples, st.randoms())
def test_order_of_repetitions_is_irrelevant(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    for estimator in (median, quantile(0.25)):
        assert estimator(shuffled) == estimator(values)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
def test_geometric_mean_is_the_mean_of_logarithms(values):
    found, logs = geometric_mean(values), mean(np.log(values).tolist())
    assert math.log(found.value) == pytest.approx(logs.value, abs=1e-9)
    assert math.log(found.low) == pytest.approx(logs.low, abs=1e-9)


def test_geometric_mean_of_inverses_is_the_inverse():
    values = [0.5, 2.0, 3.0, 10.0]
    direct, inverse = geometric_mean(values), geometric_mean([1 / value for value in values])
    assert inverse.low == pytest.approx(1 / direct.high)
    assert inverse.high == pytest.approx(1 / direct.low)


@given(st.lists(numbers, min_size=10, max_size=60, unique=True), st.floats(0.2, 0.8))
def test_quantile_follows_a_monotone_change_of_scale(values, q):
    before, after = quantile(q)(values), quantile(q)([math.atan(value / 1e6) for value in values])
    for bound, image in ((before.low, after.low), (before.high, after.high)):
        if math.isfinite(bound) and bound in values:
            assert image == pytest.approx(math.atan(bound / 1e6))


def test_median_of_few_values_is_unbounded():
    found = median([1.0, 2.0, 3.0])
    assert (found.low, found.value, found.high) == (-math.inf, 2.0, math.inf)


@pytest.mark.parametrize(
    ("estimator", "draw", "truth"),
    [
        (mean, lambda rng: rng.normal(2.0, 3.0, 8), 2.0),
        (geometric_mean, lambda rng: rng.lognormal(0.5, 1.0, 8), math.exp(0.5)),
        (median, lambda rng: rng.standard_cauchy((8, 25)), 0.0),
        (quantile(0.9), lambda rng: rng.exponential(1.0, (8, 25)), math.log(10)),
        (proportion, lambda rng: rng.random((8, 25)) < 0.3, 0.3),
        (
            slope,
            lambda rng: [np.c_[np.arange(5.0), 2 * np.arange(5) + rng.normal(size=5)] for _ in range(8)],
            2.0,
        ),
    ],
    ids=["mean", "geometric_mean", "median", "quantile", "proportion", "slope"],
)
def test_intervals_cover_the_truth_as_often_as_they_say(estimator, draw, truth):
    rng = np.random.default_rng(1)
    trials = 1000
    covered = sum((e := estimator(draw(rng))).low <= truth <= e.high for _ in range(trials))
    # 95 % or (discrete ones) a little more; 0.93 is three standard errors below.
    assert 0.93 <= covered / trials <= 0.995


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_proportion_of_the_complement_is_the_mirror_image(outcomes):
    found, mirror = proportion(outcomes), proportion([not outcome for outcome in outcomes])
    assert mirror.low == pytest.approx(1 - found.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_proportion_refuses_what_is_no_outcome():
    with pytest.raises(ValueError, match="must be 0 or 1, got 0.5"):
        proportion([0, 1, 0.5])


def test_slope_matches_the_library_for_one_set_of_points():
    rng = np.random.default_rng(0)
    points = [np.c_[rng.normal(size=9), rng.normal(size=9)] for _ in range(3)]
    expected = np.mean([stats.linregress(*p.T).slope for p in points])
    assert slope(points).value == pytest.approx(expected)


def test_slope_of_a_vertical_line_is_undefined():
    assert not slope([[(1, 0), (1, 1)], [(1, 2), (1, 3)]]).defined


@pytest.mark.parametrize("estimator", [mean, geometric_mean, median, proportion])
def test_nan_makes_the_estimate_undefined(estimator):
    assert not estimator([1.0, math.nan, 1.0]).defined
    assert not estimator([]).defined


def test_an_interval_contains_its_value():
    with pytest.raises(ValueError, match="low <= value <= high"):
        Estimate(1.0, 2.0, 3.0, 5)


@pytest.mark.parametrize(
    "pairs", [[(3, 2)], [(-1, 2)], [(0, 0)], [(0.5, 2)]], ids=["more", "negative", "none", "half"]
)
def test_counts_that_are_none_are_refused(pairs):
    with pytest.raises(ValueError, match=r"expected whole numbers \(successes, trials\)"):
        counted(pairs)


def test_no_counts_estimate_nothing():
    assert not counted([]).defined
    assert not counted([(float("nan"), 2)]).defined
