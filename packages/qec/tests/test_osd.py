"""Ordered statistics decoding against exhaustive search."""

import itertools

import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.osd import OrderedStatistics


def exhaustive(checks, odds, syndrome):
    """Return the least weight of any flips that have the syndrome."""
    patterns = np.array(list(itertools.product([0, 1], repeat=checks.shape[1])))
    fits = ((patterns @ checks.T) % 2 == syndrome).all(axis=1)
    return (np.abs(odds) * (patterns[fits] != (odds > 0))).sum(axis=1).min()


def test_small_codes_are_solved_exactly():
    generator = np.random.default_rng(0)
    for _ in range(20):
        checks = generator.integers(0, 2, (5, 10)).astype(np.uint8)
        odds = generator.normal(-1, 2, (6, 10)).astype(np.float32)
        syndromes = (generator.integers(0, 2, (6, 10)) @ checks.T % 2).astype(np.uint8)
        flips, weights = OrderedStatistics(checks, order=10).decode(odds, syndromes)
        assert (flips @ checks.T % 2 == syndromes).all()
        for shot in range(6):
            weight = np.abs(odds[shot])[flips[shot] != (odds[shot] > 0)].sum()
            assert weights[shot] == pytest.approx(weight, abs=1e-5)
            best = exhaustive(checks, odds[shot], syndromes[shot])
            assert weight >= best - 1e-5
            # Pairs of the kept qubits are all tried; only rare best patterns need three of them.
            assert weight <= 1.6 * best + 1e-5


def test_suggestions_that_explain_the_checks_are_kept():
    code = bivariate_bicycle("bb72")
    generator = np.random.default_rng(1)
    truth = (generator.random((50, 72)) < 0.05).astype(np.uint8)
    odds = np.where(truth, 3.0, -3.0) + generator.normal(0, 0.5, truth.shape)
    flips, weights = OrderedStatistics(code.hz).decode(odds, truth @ code.hz.T % 2)
    assert (flips == truth).all()
    assert (weights == 0).all()


def test_a_doubtful_qubit_is_turned_round():
    code = bivariate_bicycle("bb72")
    truth = np.zeros((1, 72), np.uint8)
    truth[0, [3, 40]] = 1
    odds = np.where(truth, 4.0, -4.0)
    odds[0, 40] = -0.5
    flips, weights = OrderedStatistics(code.hz).decode(odds, truth @ code.hz.T % 2)
    assert (flips == truth).all()
    assert weights.tolist() == [0.5]


@pytest.mark.parametrize(
    ("odds", "syndromes", "message"),
    [
        (np.zeros((1, 4)), [[0, 0]], r"log odds of shape \(shots, 3\)"),
        (np.zeros((2, 3)), [[0, 0]], r"got \(2, 3\) and \(1, 2\)"),
        (np.full((1, 3), np.nan), [[0, 0]], "log odds must be finite"),
        (-np.ones((1, 3)), [[1, 0]], "not in the span of the checks"),
    ],
)
def test_bad_input(odds, syndromes, message):
    with pytest.raises(InputError, match=message):
        OrderedStatistics([[1, 1, 0], [1, 1, 0]]).decode(odds, syndromes)


def test_bad_order():
    with pytest.raises(InputError, match="order must be at least 0, got -1"):
        OrderedStatistics([[1, 1]], order=-1)
