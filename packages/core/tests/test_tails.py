"""The index of the power-law tail of one parameter under SGD, exact and approximate, and its estimate."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from symdyn_core.dynamics.linear_sgd import LinearSGD
from symdyn_core.dynamics.tails import explain_tail, hill_estimator, kesten_exponent, tail_index
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator


@pytest.mark.parametrize(
    ("step", "batch_size", "exact"),
    [(1.0, 1, 1.09), (1.0, 2, 2.0), (1.0, 4, 3.51), (1.0, 8, 6.20), (0.5, 4, 9.98), (0.9, 1, 1.294)],
)
def test_gaussian_index_solves_kestens_equation(step, batch_size, exact):
    index = tail_index(2.0, step / 2, batch_size)
    assert index == pytest.approx(exact, abs=0.006)

    def integrand(y):  # of a chi-square variable, by an adaptive rule that knows the kink
        return abs(1 - step * y / batch_size) ** index * stats.chi2.pdf(y, batch_size)

    kink = batch_size / step
    moment = sum(
        integrate.quad(integrand, *ends, limit=200, epsabs=1e-10)[0]
        for ends in itertools.pairwise((0.0, kink / 2, kink, 2 * kink, 8 * kink, 30 * kink + 200))
    )
    assert moment == pytest.approx(1.0, abs=1e-7)
    for method in ("variance_matched", "continuous"):
        if exact != 2.0:
            assert abs(tail_index(2.0, step / 2, batch_size, method) - exact) > 0.05


@settings(max_examples=15)
@given(batch_size=st.integers(1, 200), curvature=st.floats(0.1, 10))
def test_index_is_two_where_the_variance_diverges(batch_size, curvature):
    edge = LinearSGD([[curvature]], 0.01, batch_size).max_learning_rate()
    assert edge * curvature == pytest.approx(2 * batch_size / (batch_size + 2))
    for method in ("kesten", "variance_matched"):
        assert tail_index(curvature, edge, batch_size, method) == pytest.approx(2.0, abs=1e-8)
    assert tail_index(curvature, 0.9 * edge, batch_size) > 2 > tail_index(curvature, 1.05 * edge, batch_size)


@settings(max_examples=10)
@given(even=st.integers(2, 4), batch_size=st.integers(1, 20))
def test_even_moments_are_polynomials(even, batch_size):
    """At a step where E m^(2k) = 1, by the moments of chi-square, the index is 2k."""
    moments = [1.0]
    for j in range(2 * even):
        moments.append(moments[-1] * (batch_size + 2 * j) / batch_size)
    signed = [(-1) ** j * math.comb(2 * even, j) * moments[j] for j in range(2 * even + 1)]
    coefficients = [*signed[:0:-1]]  # of (E (1 - s y)^2k - 1) / s, highest power first
    roots = np.roots(coefficients)
    real = roots[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0)].real
    assert tail_index(1.0, float(real.min()), batch_size) == pytest.approx(2 * even, rel=1e-6)


def test_small_steps_have_neither_the_index_of_continuous_time_nor_the_papers():
    assert 1.795 * np.log(2 * 1.795) == pytest.approx(1.795 + 0.5, abs=1e-3)
    for step, tolerance in ((1e-2, 0.03), (1e-3, 0.003)):
        for batch_size in (1, 5):
            scaled = tail_index(1.0, step, batch_size) * step / batch_size
            assert scaled == pytest.approx(1.795, rel=2 * tolerance + 0.002)


def test_no_stationary_law_and_all_moments():
    def mean_log(step):
        parts = (0.0, 1 / step, 2 / step, 60.0)
        return sum(
            integrate.quad(lambda y: np.log(abs(1 - step * y)) * stats.chi2.pdf(y, 1), *ends, limit=200)[0]
            for ends in itertools.pairwise(parts)
        )

    edge = optimize.brentq(mean_log, 2.0, 3.0, xtol=1e-5)
    assert 0 < tail_index(1.0, 0.999 * edge) < 0.01
    assert tail_index(1.0, 1.001 * edge) == 0.0
    assert tail_index([1.0, 1.5], 1.3) == math.inf
    assert tail_index([-1.0, 0.5], 0.1) == 0.0
    assert explain_tail(0.0).startswith("no stationary law")
    assert explain_tail(math.inf).startswith("every moment")
    assert "not even the mean" in explain_tail(1.0)
    assert "erratic" in explain_tail(3.0)
    assert explain_tail(7.5) == "moments up to order 7.5 are finite"


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_listed_batches_are_all_batches(batch_size):
    curvatures = np.array([0.2, 1.0, 3.1, 4.0])
    multipliers = [1 - 0.7 * np.mean(batch) for batch in itertools.product(curvatures, repeat=batch_size)]
    index = tail_index(curvatures, 0.7, batch_size)
    assert np.mean(np.abs(multipliers) ** index) == pytest.approx(1.0, abs=1e-10)
    assert index == pytest.approx(kesten_exponent(multipliers), rel=1e-9)


def test_drawn_batches_agree_with_the_law_they_come_from():
    squares = numpy_generator(0, "squares").standard_normal(400_000) ** 2
    for batch_size in (1, 4):
        # The variance of the squares is off by 0.6 % (one standard error), higher moments by more.
        for method, tolerance in (("kesten", 0.06), ("variance_matched", 0.05), ("continuous", 0.03)):
            exact = tail_index(1.0, 1.0, batch_size, method)
            assert tail_index(squares, 1.0, batch_size, method) == pytest.approx(exact, rel=tolerance)
    assert tail_index(squares, 1.0, 4) == tail_index(squares, 1.0, 4, seed=0)
    assert tail_index(squares, 1.0, 4) != tail_index(squares, 1.0, 4, seed=1)


@given(
    sizes=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=8),
    weights=st.lists(st.floats(0.01, 1.0), min_size=8, max_size=8),
)
def test_kesten_exponent_is_a_root_or_says_why_there_is_none(sizes, weights):
    sizes, weights = np.array(sizes), np.array(weights[: len(sizes)])
    exponent = kesten_exponent(sizes, weights)
    chances = weights / weights.sum()
    if exponent == math.inf:
        # In floating point, a size that exceeds 1 by nothing needs an order without end.
        assert sizes.max() <= 1 + 1e-6
    elif exponent == 0.0:
        assert sizes.min() == 0 or chances @ np.log(sizes) > -1e-8
    else:
        assert chances @ sizes**exponent == pytest.approx(1.0, abs=1e-7)


def test_weights_count_as_copies():
    assert kesten_exponent([0.5, 1.4], [2, 1]) == pytest.approx(kesten_exponent([0.5, 0.5, 1.4]))
    assert kesten_exponent([0.5, 9.0], [1, 0]) == math.inf


@pytest.mark.parametrize("index", [0.7, 1.5, 4.0])
def test_hill_interval_covers_the_index_of_a_power_law(index):
    generator = numpy_generator(1, "pareto")
    covered = 0
    for _ in range(300):
        samples = generator.uniform(size=2000) ** (-1 / index) * generator.choice([-1, 1], size=2000)
        estimate = hill_estimator(samples, k=100)
        covered += estimate.low <= index <= estimate.high
    assert 270 <= covered <= 297  # 285 expected, four standard deviations


def test_simulated_tail_has_kestens_index_and_not_the_papers():
    """One weight, Gaussian data, batches of one: note's case, index 1.294 against the paper's 1.222."""
    generator = numpy_generator(2, "recursion")
    w = np.zeros(100_000)
    for _ in range(120):
        x, noise = generator.standard_normal((2, w.size))
        w -= 0.9 * (w * x - noise) * x
    estimate = hill_estimator(w, k=1500)
    assert tail_index(1.0, 0.9) == pytest.approx(estimate.value, abs=0.08)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="unknown method 'kestn'; did you mean kesten"):
        tail_index(1.0, 0.1, 1, "kestn")
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got 0"):
        tail_index(1.0, 0.0)
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        tail_index(1.0, 0.1, 0)
    with pytest.raises(InputError, match="curvature must be > 0, got -1"):
        tail_index(-1.0, 0.1)
    with pytest.raises(InputError, match=r"curvature must be a number or a vector, got shape \(0,\)"):
        tail_index([], 0.1)
    with pytest.raises(InputError, match="curvature must be finite, got NaN"):
        tail_index([1.0, np.nan], 0.1)
    with pytest.raises(InputError, match="curvature must not be zero throughout"):
        tail_index([0.0, 0.0], 0.1)
    with pytest.raises(InputError, match="vectors of one length"):
        kesten_exponent([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="must be finite, got NaN"):
        kesten_exponent([1.0, np.nan])
    with pytest.raises(InputError, match="weights must be >= 0 and not all zero"):
        kesten_exponent([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(InputError, match=r"k must be in \[2, n_samples - 1=3\], got 4"):
        hill_estimator([1.0, 2.0, 3.0, 4.0], k=4)
    with pytest.raises(InputError, match="samples must be a finite vector"):
        hill_estimator([1.0, np.inf, 2.0])
    with pytest.raises(InputError, match="more than k=2 samples must differ from zero"):
        hill_estimator([1.0, 2.0, 0.0, 0.0], k=2)
    with pytest.raises(InputError, match="largest samples must differ"):
        hill_estimator([1.0, 1.0, 1.0, 0.0], k=2)
    with pytest.raises(InputError, match="confidence must be in"):
        hill_estimator([1.0, 2.0, 3.0], k=2, confidence=1.0)
    with pytest.raises(InputError, match="index must be >= 0"):
        explain_tail(-1.0)
