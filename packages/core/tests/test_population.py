"""Finite-population corrections by enumerating every possible batch."""

import itertools
import math

import numpy as np
import pytest

from symdyn_core.dynamics.population import batch_covariance_factor, check_population, squared_mean
from symdyn_core.errors import InputError

GRADIENTS = np.array([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0], [-1.0, 1.0], [4.0, 2.5]])


def covariance_of_means(batches: list[tuple[int, ...]]) -> np.ndarray:
    """Exact covariance of the batch mean when every batch listed is equally likely."""
    means = np.array([GRADIENTS[list(batch)].mean(axis=0) for batch in batches])
    centred = means - GRADIENTS.mean(axis=0)
    return centred.T @ centred / len(batches)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("replacement", [True, False])
def test_factor_is_that_of_all_batches(batch_size: int, replacement: bool) -> None:
    indices = range(len(GRADIENTS))
    if replacement:
        batches = list(itertools.product(indices, repeat=batch_size))
    else:
        batches = list(itertools.permutations(indices, batch_size))
    factor = batch_covariance_factor(batch_size, len(GRADIENTS), replacement=replacement)
    expected = covariance_of_means(batches)
    assert np.allclose(factor * np.cov(GRADIENTS.T, ddof=1), expected, atol=1e-13)


def test_the_rivals_fail() -> None:
    # Neither 1/B nor 1/B (1 - B/N) on the covariance with divisor N is the enumerated covariance.
    expected = covariance_of_means(list(itertools.permutations(range(5), 2)))
    assert not np.allclose(np.cov(GRADIENTS.T, ddof=1) / 2, expected, rtol=0.1)
    assert not np.allclose(np.cov(GRADIENTS.T, ddof=0) * (1 - 2 / 5) / 2, expected, rtol=0.1)


def test_covariance_and_squared_mean_of_a_subset_have_no_bias() -> None:
    subsets = list(itertools.combinations(range(5), 3))
    covariances = [np.cov(GRADIENTS[list(subset)].T, ddof=1) for subset in subsets]
    assert np.allclose(np.mean(covariances, axis=0), np.cov(GRADIENTS.T, ddof=1))
    squares = [
        squared_mean(
            float((GRADIENTS[list(subset)].mean(axis=0) ** 2).sum()), float(np.trace(covariance)), 3, 5
        )
        for subset, covariance in zip(subsets, covariances, strict=True)
    ]
    assert np.mean(squares) == pytest.approx(float((GRADIENTS.mean(axis=0) ** 2).sum()))


def test_limits() -> None:
    assert batch_covariance_factor(4) == batch_covariance_factor(4, replacement=True) == 0.25
    assert batch_covariance_factor(4, 4) == 0
    assert batch_covariance_factor(8, 4, replacement=True) == pytest.approx(0.75 / 8)
    assert squared_mean(2.0, 8.0, 5, 5) == 2.0


def test_bad_input() -> None:
    with pytest.raises(
        InputError, match=r"batch_size must be in \[1, population=4\] without replacement, got 5"
    ):
        batch_covariance_factor(5, 4)
    with pytest.raises(InputError, match=r"batch_size must be a whole number >= 1, got 0"):
        batch_covariance_factor(0, 4)
    with pytest.raises(InputError, match=r"batch_size must be a whole number >= 1, got 1.5"):
        batch_covariance_factor(1.5, 4)
    with pytest.raises(InputError, match=r"population must be a whole number or infinite, got 4.5"):
        batch_covariance_factor(1, 4.5)
    with pytest.raises(InputError, match=r"population must be a whole number or infinite, got nan"):
        batch_covariance_factor(1, math.nan)
    with pytest.raises(InputError, match=r"population must be at least n_samples=10"):
        squared_mean(1.0, 1.0, 10, 9)
    with pytest.raises(InputError, match=r"n_samples must be at least 1, got 0"):
        check_population(9, 0)
