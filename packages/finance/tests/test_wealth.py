import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_finance.wealth import gini, herfindahl, wealth_alpha

fortunes = st.lists(st.floats(0.001, 1000), min_size=1, max_size=20).map(np.array)


@settings(derandomize=True, deadline=None)
@given(fortunes)
def test_gini_is_the_mean_difference(w):
    naive = np.abs(w[:, None] - w[None, :]).sum() / (2 * w.size * w.sum())
    assert gini(w) == pytest.approx(naive, abs=1e-12)


@settings(derandomize=True, deadline=None)
@given(fortunes, st.floats(0.01, 100))
def test_inequality_has_no_unit_and_no_order(w, scale):
    shuffled = scale * w[::-1]
    assert gini(shuffled) == pytest.approx(gini(w), abs=1e-12)
    assert herfindahl(shuffled) == pytest.approx(herfindahl(w), rel=1e-12)
    assert wealth_alpha(shuffled) == pytest.approx(wealth_alpha(w), rel=1e-6) or w.std() < 1e-5 * w.mean()


def test_extremes():
    assert gini(np.ones(10)) == 0
    assert gini([0] * 9 + [1]) == pytest.approx(0.9)
    assert herfindahl([0, 0, 5]) == 1
    assert wealth_alpha([2.0, 2.0]) == float("inf")
    assert wealth_alpha(np.ones(100), "hill") == float("inf")


@pytest.mark.parametrize("alpha", [1.6, 2.5, 4.0])
def test_both_estimators_find_the_exponent_of_an_inverse_gamma(alpha):
    w = (alpha - 1) / np.random.default_rng(0).gamma(alpha, size=400_000)
    assert wealth_alpha(w) == pytest.approx(alpha, rel=0.02)
    # Hill sees the tail only: 400 agents, a relative error of 5 % each way, and a bias from the body.
    assert wealth_alpha(w, "hill", tail=0.001) == pytest.approx(alpha, rel=0.15)


def test_hill_of_an_exact_pareto_law():
    n = 100_000
    w = ((np.arange(n) + 0.5) / n) ** (-1 / 3.0)
    assert wealth_alpha(w, "hill", tail=0.1) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gini([]), "list of numbers"),
        (lambda: gini([[1.0]]), "list of numbers"),
        (lambda: herfindahl([-1.0, 2.0]), ">= 0"),
        (lambda: gini([0.0, 0.0]), "not all zero"),
        (lambda: gini([np.nan, 1.0]), "finite"),
        (lambda: wealth_alpha([0.0, 1.0]), "must be positive"),
        (lambda: wealth_alpha([1.0, 2.0], "guess"), "method must be"),
        (lambda: wealth_alpha([1.0, 2.0], "hill", tail=0.1), "at least one of the 2 agents"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
