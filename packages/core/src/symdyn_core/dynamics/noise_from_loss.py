r"""Gradient noise read off from loss and curvature alone, and what it says of overparametrised regression.

For losses :math:`\ell=\frac12r^2` whose residuals are independent of the gradients of the model, the noise of
one sample is :math:`\mathbb E[r^2\nabla f\nabla f^T]\approx 2L_0H_0`: no noise where the loss is zero. This
holds to leading order and for such losses; a network trained by cross-entropy may be far from it, and
:func:`symdyn_core.dynamics.gradient_noise.gradient_noise` measures the noise itself.

**Not the exact noise of Gaussian data**, which has :math:`+H\Sigma H` where this closure, put to use near a
minimum of loss zero, has :math:`-H\Sigma H` (:class:`symdyn_core.dynamics.linear_sgd.LinearSGD`). The two
differ by one part in the dimension.

Source: arXiv 2102.05375, noise at general minima; stationary fluctuation and stability of high-dimensional
linear regression on a fixed set of samples.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from symdyn_core.dynamics.stationary import symmetric
from symdyn_core.errors import InputError

Array = NDArray[np.float64]

RANK_TOLERANCE = 1e-12  # eigenvalues below this fraction of the largest carry no data


def approximate_noise_covariance(
    loss: float, hessian: ArrayLike, batch_size: int, gradient: ArrayLike | None = None
) -> Array:
    r"""Return the minibatch gradient's covariance :math:`\approx\frac1S(2L_0H_0-\nabla L_0\nabla L_0^T)`.

    Args:
        loss: :math:`L_0\ge0`, the mean loss without penalty.
        hessian: its Hessian :math:`H_0`, shape (p, p).
        batch_size: :math:`S\ge1`, drawn with replacement.
        gradient: of the loss without penalty, shape (p,); zero at its minimum, but not at that of a penalised
            loss, where it is :math:`-2\gamma\theta`.

    Raises:
        InputError: values out of range, not finite or of another shape.

    >>> approximate_noise_covariance(0.5, [[4.0]], batch_size=2, gradient=[1.0]).tolist()
    [[1.5]]
    """
    curvature = symmetric("hessian", hessian)
    _check(loss, "loss", batch_size)
    slope = np.zeros(len(curvature)) if gradient is None else np.asarray(gradient, dtype=float)
    if slope.shape != (len(curvature),) or not np.isfinite(slope).all():
        raise InputError(f"gradient must be finite and of shape ({len(curvature)},), got {slope.shape}")
    covariance: Array = (2 * loss * curvature - np.outer(slope, slope)) / batch_size
    return covariance


def finite_data_fluctuation(
    second_moment: ArrayLike, learning_rate: float, batch_size: int, residual_variance: float
) -> float:
    r"""Return :math:`\mathrm{Tr}[\hat A\Sigma]` of SGD on a fixed set of samples: twice the loss gap.

    .. math:: 2L_*\frac{q}{1-q},\quad q=\frac\eta S\mathrm{Tr}[\hat G^{-1}\hat A],\quad
              \hat G=2I-\eta\big(1-\tfrac1S\big)\hat A,

    for linear regression in many dimensions, sampled with replacement. With 20 dimensions and 60 samples it
    is a few per cent too low, because samples differ in length: more, the closer to the edge.

    Args:
        second_moment: :math:`\hat A=\frac1N\sum xx^T` of the samples, shape (d, d).
        learning_rate: :math:`\eta>0`, below :func:`finite_data_max_learning_rate`.
        batch_size: :math:`S\ge1`.
        residual_variance: mean squared residual :math:`2L_*\ge0` of the least-squares solution; see
            :func:`expected_residual_variance`.

    Raises:
        InputError: values out of range, or a learning rate beyond the edge, with the condition that fails.

    >>> finite_data_fluctuation([[1.0]], learning_rate=0.5, batch_size=1, residual_variance=1.0)
    0.333...
    """
    values = _spectrum(second_moment)
    _check(residual_variance, "residual_variance", batch_size)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    room = 2 - learning_rate * (1 - 1 / batch_size) * values
    feedback = learning_rate / batch_size * float((values / room).sum())
    if not (room.min() > 0 and feedback < 1):
        edge = finite_data_max_learning_rate(second_moment, batch_size)
        failure = f"q = {feedback:.6g}" if room.min() > 0 else f"its smallest eigenvalue is {room.min():.6g}"
        raise InputError(
            f"no stationary fluctuation at learning_rate={learning_rate:.6g}, beyond the edge {edge:.6g}: "
            f"{'q < 1' if room.min() > 0 else 'G > 0'} fails: {failure}"
        )
    return residual_variance * feedback / (1 - feedback)


def finite_data_max_learning_rate(second_moment: ArrayLike, batch_size: int) -> float:
    r"""Return the edge of stability, :math:`\sum_i\big(\frac{2}{\eta a_i}-1+\frac1S\big)^{-1}=S`.

    For d equal eigenvalues a and large d it is about :math:`2S/(ad)`: learning rates scale as 1/width. Of
    leading order in 1/d: with 24 Gaussian inputs and 120 samples about ten per cent too high.

    Args:
        second_moment: :math:`\hat A` of the samples, shape (d, d).
        batch_size: :math:`S\ge1`.

    Raises:
        InputError: a matrix that is not symmetric positive semi-definite, or a batch size below 1.

    Batches of one in d equal directions: :math:`\eta ad=2`.

    >>> round(finite_data_max_learning_rate([[2.0, 0.0], [0.0, 2.0]], batch_size=1), 9)
    0.5
    """
    values = _spectrum(second_moment)
    _check(0.0, "", batch_size)
    high = 2 / float(values.max())  # with a single direction; further ones can only lower it

    def excess(learning_rate: float) -> float:
        return float((1 / (2 / (learning_rate * values) - 1 + 1 / batch_size)).sum()) - batch_size

    return float(optimize.brentq(excess, 1e-12 * high, high, rtol=1e-13)) if excess(high) > 0 else high


def expected_residual_variance(label_noise_variance: float, n_samples: int, dimension: int) -> float:
    r"""Return the mean squared residual of least squares, :math:`\sigma^2\max(0,1-d/N)`.

    With as many parameters as samples the fit is perfect, and nothing fluctuates.

    >>> expected_residual_variance(1.0, n_samples=60, dimension=20)
    0.666...
    >>> expected_residual_variance(1.0, n_samples=10, dimension=20)
    0.0
    """
    if n_samples < 1 or dimension < 1:
        raise InputError(f"n_samples and dimension must be >= 1, got {n_samples} and {dimension}")
    if not (math.isfinite(label_noise_variance) and label_noise_variance >= 0):
        raise InputError(f"label_noise_variance must be finite and >= 0, got {label_noise_variance}")
    return label_noise_variance * max(0.0, 1 - dimension / n_samples)


def _spectrum(second_moment: ArrayLike) -> Array:
    """Return the eigenvalues that are not zero."""
    values = np.linalg.eigvalsh(symmetric("second_moment", second_moment))
    if values[0] < -RANK_TOLERANCE * abs(values[-1]) or values[-1] <= 0:
        raise InputError(
            f"second_moment must be positive semi-definite and not zero, got the eigenvalue {values[0]:.6g}"
        )
    seen: Array = values[values > RANK_TOLERANCE * values[-1]]
    return seen


def _check(value: float, name: str, batch_size: int) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be finite and >= 0, got {value}")
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
