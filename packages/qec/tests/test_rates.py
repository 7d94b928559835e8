import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from symdyn_core.errors import InputError
from symdyn_qec.pairing import sign_test
from symdyn_qec.rates import block_to_per_logical, clopper_pearson

exactly = settings(derandomize=True, deadline=None, max_examples=100)


@exactly
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_agree_with_scipy(counts):
    failures, shots = counts
    expected = stats.binomtest(failures, shots).proportion_ci(0.95, method="exact")
    assert clopper_pearson(failures, shots) == pytest.approx((expected.low, expected.high), abs=1e-9)


@exactly
@given(st.integers(1, 12), st.integers(1, 20), st.floats(1e-6, 0.4))
def test_conversion_inverts_the_chain_of_rounds(k, rounds, p):
    flipped = 0.0
    for _ in range(rounds):
        flipped = flipped * (1 - p) + (1 - flipped) * p
    block = 1 - math.prod([1 - flipped] * k)
    # Near saturation the inverse amplifies rounding by the inverse of what is left of the signal.
    tolerance = 1e-12 / (1 - 2 * flipped)
    assert block_to_per_logical(block, k, rounds) == pytest.approx(p, abs=tolerance)


def test_worse_than_guessing_is_guessing():
    assert block_to_per_logical(0.7, k=1, rounds=5) == 0.5
    assert block_to_per_logical(1.0, k=12, rounds=6) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clopper_pearson(3, 2), "failures must be in .*, got 3 of 2"),
        (lambda: clopper_pearson(0, 0), "shots at least 1, got 0 of 0"),
        (lambda: clopper_pearson(0, 5, confidence=1.0), r"confidence must be in \(0, 1\), got 1.0"),
        (lambda: block_to_per_logical(1.5, 1, 1), r"rate must be in \[0, 1\], got 1.5"),
        (lambda: block_to_per_logical(0.5, 0, 1), "at least 1, got 0 and 1"),
    ],
)
def test_impossible_counts_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@exactly
@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_tests_agree_with_scipy(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert sign_test(first, second) == pytest.approx(expected)


def test_negative_counts_are_refused():
    with pytest.raises(InputError, match="counts must be at least 0, got -1 and 2"):
        sign_test(-1, 2)
