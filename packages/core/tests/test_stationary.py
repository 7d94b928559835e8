"""The stationary covariance around a minimum and its cost in loss, against the moments step by step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.dynamics.stationary import (
    learning_rate_for_loss_gap,
    max_learning_rate,
    stationary_covariance,
    stationary_loss_gap,
)
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator


def matrix(seed, name, size):
    factor = numpy_generator(seed, name).standard_normal((size, size + 2))
    return factor @ factor.T / size + 0.05 * np.eye(size)


def fixed_point(hessian, noise, learning_rate, momentum):
    """Covariance of theta of the linear recursion of (theta, buffer), as torch.optim.SGD takes its steps."""
    size = len(hessian)
    eye = np.eye(size)
    step = np.block(
        [[eye - learning_rate * hessian, -learning_rate * momentum * eye], [hessian, momentum * eye]]
    )
    kick = np.vstack([-learning_rate * eye, eye])
    operator = np.eye(4 * size**2) - np.kron(step, step)
    moments = np.linalg.solve(operator, (kick @ noise @ kick.T).ravel()).reshape(2 * size, 2 * size)
    return moments[:size, :size]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    fraction=st.floats(0.001, 0.95),
)
def test_covariance_and_gap_are_those_of_the_recursion(seed, size, momentum, fraction):
    hessian, noise = matrix(seed, "hessian", size), matrix(seed, "noise", size)
    values, vectors = np.linalg.eigh(hessian)
    rate = fraction * max_learning_rate(float(values[-1]), momentum)
    expected = fixed_point(hessian, noise, rate, momentum)
    covariance = stationary_covariance(hessian, noise, rate, momentum)
    np.testing.assert_allclose(covariance, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    along = np.diag(vectors.T @ noise @ vectors)
    gap = stationary_loss_gap(np.trace(noise), rate, momentum, curvatures=values, noise_along=along)
    assert gap == pytest.approx(np.trace(hessian @ expected) / 2, rel=1e-7)
    partial = [
        stationary_loss_gap(np.trace(noise), rate, momentum, curvatures=values[k:], noise_along=along[k:])
        for k in range(size + 1)
    ]
    assert partial == sorted(partial, reverse=True)  # each further direction can only add
    found = learning_rate_for_loss_gap(gap, np.trace(noise), momentum, curvatures=values, noise_along=along)
    assert found == pytest.approx(rate, rel=1e-7)


def test_small_steps_need_the_trace_of_the_noise_only():
    hessian, noise = matrix(0, "hessian", 4), matrix(0, "noise", 4)
    covariance = stationary_covariance(hessian, noise, 1e-5, 0.5)
    assert np.trace(hessian @ covariance) / 2 == pytest.approx(1e-5 / 2 * np.trace(noise), rel=1e-3)
    assert stationary_loss_gap(np.trace(noise), 1e-5, 0.5) == pytest.approx(1e-5 / 2 * np.trace(noise))


def test_recursion_settles_at_the_gap():
    hessian, noise = matrix(1, "hessian", 3), matrix(1, "noise", 3)
    rate, momentum = 0.4 / np.linalg.eigvalsh(hessian)[-1], 0.5
    root = np.linalg.cholesky(noise)
    generator = numpy_generator(0, "recursion")
    theta, buffer = np.zeros((2, 4000, 3))
    gaps = []
    for _ in range(400):
        buffer = momentum * buffer + theta @ hessian + generator.standard_normal(theta.shape) @ root.T
        theta = theta - rate * buffer
        gaps.append(float(np.einsum("ri,ij,rj->r", theta, hessian, theta).mean() / 2))
    values, vectors = np.linalg.eigh(hessian)
    along = np.diag(vectors.T @ noise @ vectors)
    gap = stationary_loss_gap(np.trace(noise), rate, momentum, curvatures=values, noise_along=along)
    assert np.mean(gaps[100:]) == pytest.approx(gap, rel=0.02)
    assert stationary_loss_gap(np.trace(noise), rate, momentum) < 0.95 * gap


def test_bad_input_is_named():
    eye = np.eye(2)
    with pytest.raises(InputError, match=r"hessian and noise must have one shape, got \(2, 2\) and \(3, 3\)"):
        stationary_covariance(eye, np.eye(3), 0.1)
    with pytest.raises(InputError, match="hessian must be symmetric, got entries that differ by 1"):
        stationary_covariance([[1.0, 1.0], [0.0, 1.0]], eye, 0.1)
    with pytest.raises(InputError, match="noise must be finite"):
        stationary_covariance(eye, np.nan * eye, 0.1)
    with pytest.raises(InputError, match="noise must be positive semidefinite, got the eigenvalue -1"):
        stationary_covariance(eye, -eye, 0.1)
    with pytest.raises(InputError, match="must be positive definite at a minimum, got the eigenvalue 1e-18"):
        stationary_covariance(np.diag([1.0, 1e-18]), eye, 0.1)
    with pytest.raises(
        InputError, match="positive definite at a minimum, got the eigenvalue -1; without weight"
    ):
        stationary_covariance(np.diag([1.0, -1.0]), eye, 0.1)
    with pytest.raises(InputError, match=r"largest curvature = 0.5, got 0.6"):
        stationary_covariance(4 * eye, eye, 0.6)
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got 0"):
        stationary_covariance(eye, eye, 0.0)
    with pytest.raises(InputError, match=r"momentum must be in \[0, 1\), got 1"):
        stationary_loss_gap(1.0, 0.1, 1.0)
    with pytest.raises(InputError, match="noise_trace must be finite and >= 0, got -1"):
        stationary_loss_gap(-1.0, 0.1)
    with pytest.raises(InputError, match="vectors of one length"):
        stationary_loss_gap(1.0, 0.1, curvatures=[1.0])
    with pytest.raises(InputError, match="noise_along must be finite, and noise_along >= 0"):
        stationary_loss_gap(1.0, 0.1, curvatures=[1.0], noise_along=[-0.5])
    with pytest.raises(InputError, match="must sum to at most noise_trace=1, got 2"):
        stationary_loss_gap(1.0, 0.1, curvatures=[1.0], noise_along=[2.0])
    with pytest.raises(InputError, match="loss_gap must be finite and > 0, got 0"):
        learning_rate_for_loss_gap(0.0, 1.0)
    with pytest.raises(
        InputError, match="no learning rate below the edge 0.5 has a loss gap of 3, but at most"
    ):
        learning_rate_for_loss_gap(3.0, 1.0, curvatures=[4.0], noise_along=[0.0])
    with pytest.raises(InputError, match="noise_trace must be > 0, got 0"):
        learning_rate_for_loss_gap(1.0, 0.0)
    with pytest.raises(InputError, match="curvature must be finite and > 0, got 0"):
        max_learning_rate(0.0)
