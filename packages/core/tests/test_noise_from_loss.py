"""Noise from loss and curvature: the closure, and what it says of regression on a fixed set of samples."""

import numpy as np
import pytest

from symdyn_core.dynamics.linear_sgd import LinearSGD
from symdyn_core.dynamics.noise_from_loss import (
    approximate_noise_covariance,
    expected_residual_variance,
    finite_data_fluctuation,
    finite_data_max_learning_rate,
)
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator


def exact_moments(x, y, learning_rate, batch_size):
    """Growth and fixed point of Cov[w] for batches drawn with replacement, from all samples one by one."""
    n, size = x.shape
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    residuals = y - x @ best
    hessian = x.T @ x / n
    contraction = np.eye(size) - learning_rate * hessian
    operator = np.kron(contraction, contraction) - learning_rate**2 / batch_size * np.kron(hessian, hessian)
    for sample in x:
        one = np.outer(sample, sample)
        operator += learning_rate**2 / batch_size / n * np.kron(one, one)
    source = learning_rate**2 / batch_size * (x.T * residuals**2) @ x / n
    covariance = np.linalg.solve(np.eye(size**2) - operator, source.ravel()).reshape(size, size)
    return np.abs(np.linalg.eigvalsh(operator)).max(), float(np.trace(hessian @ covariance)), residuals


def regression(seed, n, size):
    generator = numpy_generator(seed, "regression")
    return generator.standard_normal((n, size)), generator.standard_normal(n)


@pytest.mark.parametrize("seed", [0, 1])
def test_fluctuation_on_a_fixed_set_of_samples(seed):
    """The note's case, D = 20 and N = 60; of leading order in 1/D, so a few per cent off."""
    x, y = regression(seed, 60, 20)
    growth, exact, residuals = exact_moments(x, y, 0.15, 5)
    assert growth < 1
    found = finite_data_fluctuation(x.T @ x / 60, 0.15, 5, float((residuals**2).mean()))
    assert found == pytest.approx(exact, rel=0.08)
    # The rival is fresh samples of the same moments: they would never be fitted.
    fresh = LinearSGD(x.T @ x / 60, 0.15, 5, 1.0)
    assert 2 * fresh.test_loss() > 1.3 * exact
    assert expected_residual_variance(1.0, 60, 20) == pytest.approx((residuals**2).mean(), rel=0.4)


def test_edge_on_a_fixed_set_of_samples():
    x, y = regression(2, 120, 24)
    edge = finite_data_max_learning_rate(x.T @ x / 120, 3)
    # Of leading order in 1 / D: about ten per cent too high here.
    assert exact_moments(x, y, 0.8 * edge, 3)[0] < 1 < exact_moments(x, y, 1.05 * edge, 3)[0]
    values = np.linalg.eigvalsh(x.T @ x / 120)
    assert (1 / (2 / (edge * values) - 1 + 1 / 3)).sum() == pytest.approx(3)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_learning_rates_scale_like_one_over_the_width(batch_size):
    for size in (100, 1000):
        edge = finite_data_max_learning_rate(np.eye(size), batch_size)
        assert edge == pytest.approx(2 * batch_size / size, rel=10 * batch_size / size)


def test_noise_of_a_regression_is_loss_times_hessian():
    generator = numpy_generator(0, "closure")
    x, noise = generator.standard_normal((100_000, 3)) * [1.0, 0.7, 0.4], generator.standard_normal(100_000)
    gradients = -noise[:, None] * x
    loss, hessian = float((noise**2).mean() / 2), x.T @ x / len(x)
    approximate = approximate_noise_covariance(loss, hessian, 4)
    np.testing.assert_allclose(approximate, np.cov(gradients.T) / 4, atol=0.01 * np.abs(approximate).max())


def test_overparametrised_regression_does_not_fluctuate():
    x, y = regression(3, 10, 20)
    variance = expected_residual_variance(1.0, 10, 20)
    assert finite_data_fluctuation(x.T @ x / 10, 0.01, 2, variance) == 0.0
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.abs(y - x @ best).max() < 1e-10


def test_bad_input_is_named():
    eye = np.eye(2)
    with pytest.raises(InputError, match="loss must be finite and >= 0, got -1"):
        approximate_noise_covariance(-1.0, eye, 1)
    with pytest.raises(InputError, match=r"gradient must be finite and of shape \(2,\), got \(3,\)"):
        approximate_noise_covariance(1.0, eye, 1, np.ones(3))
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        finite_data_max_learning_rate(eye, 0)
    with pytest.raises(InputError, match="second_moment must be positive semi-definite .* eigenvalue -1"):
        finite_data_max_learning_rate(-eye, 1)
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got -1"):
        finite_data_fluctuation(eye, -1.0, 1, 1.0)
    with pytest.raises(InputError, match=r"beyond the edge 1: q < 1 fails: q = 1\.2"):
        finite_data_fluctuation(eye, 1.2, 1, 1.0)
    with pytest.raises(InputError, match=r"G > 0 fails: its smallest eigenvalue is -1"):
        finite_data_fluctuation([[1.0]], 6.0, 2, 1.0)
    with pytest.raises(InputError, match="residual_variance must be finite and >= 0, got nan"):
        finite_data_fluctuation(eye, 0.1, 1, np.nan)
    with pytest.raises(InputError, match="n_samples and dimension must be >= 1, got 0 and 2"):
        expected_residual_variance(1.0, 0, 2)
    with pytest.raises(InputError, match="label_noise_variance must be finite and >= 0, got -1"):
        expected_residual_variance(-1.0, 3, 2)
