r"""Where SGD settles around a minimum of any model: covariance of the parameters, and what it costs in loss.

Near a minimum with Hessian H (weight decay included) and minibatch gradients of covariance C, the parameters
fluctuate with the covariance :math:`\Sigma` that solves

.. math:: (1-\mu)(M\Sigma+\Sigma M^T)-\tfrac{1+\mu^2}{1-\mu^2}M\Sigma M^T
          +\tfrac{\mu}{1-\mu^2}(M^2\Sigma+\Sigma M^{T2})=\eta^2C,\quad M=\eta H,

with momentum :math:`\mu`. In the eigenbasis of H it separates, and the mean loss lies above its minimum by

.. math:: \tfrac12\mathrm{Tr}[H\Sigma]=\frac{\eta(1+\mu)}{2(1-\mu)}\sum_i\frac{C_{ii}}{2(1+\mu)-\eta h_i}
          \;\approx\;\frac{\eta}{4(1-\mu)}\mathrm{Tr}\,C .

Exact in the step size for a quadratic loss whose noise does not depend on the parameters. For a network both
are the leading order in C: corrections are of relative order :math:`\Sigma` times third and fourth
derivatives, and times the spread of the samples' Hessians. The approximation on the right needs nothing but
the trace of the noise; steep directions pay more, in proportion to :math:`1/(1-\eta h/2(1+\mu))`. Directions
of curvature h reach their share only after about :math:`(1-\mu)/(2\eta h)` steps, which flat ones may never.

Source: arXiv 2102.05375, the general equation of the parameters' covariance; re-derived, and the sum over the
spectrum is ours.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from symdyn_core.errors import InputError

Array = NDArray[np.float64]

SYMMETRY_TOLERANCE = 1e-9  # relative to the largest entry
FLAT = 1e-13  # of the largest eigenvalue: below it an eigenvalue is rounding
ROUNDING = 1e-6  # of a trace and its parts, which may come from float32, relative


def stationary_covariance(
    hessian: ArrayLike, noise: ArrayLike, learning_rate: float, momentum: float = 0.0
) -> Array:
    r"""Return the stationary covariance :math:`\Sigma` of the parameters around a minimum.

    Args:
        hessian: H of the mean loss with its weight decay, shape (p, p), positive definite.
        noise: C, covariance of the minibatch gradient (not of one sample's), shape (p, p).
        learning_rate: :math:`\eta>0`, below :math:`2(1+\mu)/h_{max}`.
        momentum: :math:`\mu` in [0, 1), of torch's SGD.

    Returns:
        Shape (p, p).

    Raises:
        InputError: matrices that are not symmetric or do not fit, a Hessian that is not positive definite, or
            a learning rate beyond the edge, with the number.

    One parameter: :math:`\Sigma=\eta C/(h(2-\eta h))`.

    >>> stationary_covariance([[2.0]], [[3.0]], learning_rate=0.5).tolist()
    [[0.75]]
    """
    curvature, spread = symmetric("hessian", hessian), symmetric("noise", noise)
    if curvature.shape != spread.shape:
        raise InputError(f"hessian and noise must have one shape, got {curvature.shape} and {spread.shape}")
    values, vectors = np.linalg.eigh(curvature)
    _check(values, learning_rate, momentum)
    variances = np.linalg.eigvalsh(spread)
    if variances[0] < -ROUNDING * max(variances[-1], -variances[0]):
        raise InputError(f"noise must be positive semidefinite, got the eigenvalue {variances[0]:.6g}")
    turned = learning_rate**2 * (vectors.T @ spread @ vectors) / damping(learning_rate * values, momentum)
    covariance: Array = vectors @ turned @ vectors.T
    return (covariance + covariance.T) / 2


def stationary_loss_gap(
    noise_trace: float,
    learning_rate: float,
    momentum: float = 0.0,
    *,
    curvatures: ArrayLike = (),
    noise_along: ArrayLike = (),
) -> float:
    r"""Return by how much the stationary mean loss exceeds its minimum, :math:`\frac12\mathrm{Tr}[H\Sigma]`.

    .. math:: \frac{\eta}{4(1-\mu)}\Big[\mathrm{Tr}\,C+\sum_i C_{ii}\frac{\eta h_i}{2(1+\mu)-\eta h_i}\Big]

    Args:
        noise_trace: trace of C, the covariance of the minibatch gradient.
        learning_rate: :math:`\eta>0`.
        momentum: :math:`\mu` in [0, 1).
        curvatures: eigenvalues :math:`h_i>0` of the Hessian of the loss with its weight decay, the largest
            ones, shape (k,); what is left out is treated as flat. With all of them the result is exact.
        noise_along: :math:`C_{ii}=v_i^TCv_i` along their eigenvectors, shape (k,).

    Raises:
        InputError: values out of range or that do not fit, or a learning rate beyond the edge.

    >>> stationary_loss_gap(3.0, 0.5), stationary_loss_gap(3.0, 0.5, curvatures=[2.0], noise_along=[3.0])
    (0.375, 0.75)
    """
    values, along = np.asarray(curvatures, dtype=float), np.asarray(noise_along, dtype=float)
    if not (math.isfinite(noise_trace) and noise_trace >= 0):
        raise InputError(f"noise_trace must be finite and >= 0, got {noise_trace}")
    if values.ndim != 1 or values.shape != along.shape:
        raise InputError(
            f"curvatures and noise_along must be vectors of one length, got {values.shape} and {along.shape}"
        )
    slack = ROUNDING * noise_trace
    if not (np.isfinite(values).all() and np.isfinite(along).all() and (along >= -slack).all()):
        raise InputError("curvatures and noise_along must be finite, and noise_along >= 0")
    if along.sum() > noise_trace + slack:
        raise InputError(
            f"noise_along must sum to at most noise_trace={noise_trace:.6g}, got {along.sum():.6g}"
        )
    _check(values, learning_rate, momentum)
    steps = learning_rate * values
    steep = float((along * steps / (2 * (1 + momentum) - steps)).sum())
    return learning_rate / (4 * (1 - momentum)) * (noise_trace + steep)


def learning_rate_for_loss_gap(
    loss_gap: float,
    noise_trace: float,
    momentum: float = 0.0,
    *,
    curvatures: ArrayLike = (),
    noise_along: ArrayLike = (),
) -> float:
    r"""Return the learning rate with a given :func:`stationary_loss_gap`: the one for another batch size.

    Args:
        loss_gap: > 0.
        noise_trace: trace of C at the new batch size, > 0.
        momentum: :math:`\mu` in [0, 1).
        curvatures: see :func:`stationary_loss_gap`.
        noise_along: at the new batch size.

    Raises:
        InputError: values out of range or that do not fit, or a loss gap that no stable learning rate has.

    Four times the batch size, a quarter of the noise: four times the learning rate where everything is flat,
    less where it is steep.

    >>> learning_rate_for_loss_gap(stationary_loss_gap(4.0, 0.1), 1.0)
    0.4
    >>> gap = stationary_loss_gap(4.0, 0.1, curvatures=[2.0], noise_along=[4.0])
    >>> round(learning_rate_for_loss_gap(gap, 1.0, curvatures=[2.0], noise_along=[1.0]), 9)
    0.307692308
    """
    if not (math.isfinite(loss_gap) and loss_gap > 0):
        raise InputError(f"loss_gap must be finite and > 0, got {loss_gap}")
    if not noise_trace > 0:
        raise InputError(f"noise_trace must be > 0, got {noise_trace}")

    def gap(learning_rate: float) -> float:
        return stationary_loss_gap(
            noise_trace, learning_rate, momentum, curvatures=curvatures, noise_along=noise_along
        )

    values = np.asarray(curvatures, dtype=float)
    edge = max_learning_rate(float(values.max()), momentum) if values.size else math.inf
    # Steep directions only add, so that the answer is at most what it is without them.
    high = min(4 * (1 - momentum) * loss_gap / noise_trace, edge * (1 - 1e-12))
    reached = gap(high)
    if reached < loss_gap * (1 - ROUNDING):
        raise InputError(
            f"no learning rate below the edge {edge:.6g} has a loss gap of {loss_gap:.6g}, "
            f"but at most {reached:.6g}"
        )
    if reached <= loss_gap:
        return high
    return float(optimize.brentq(lambda rate: gap(rate) - loss_gap, 1e-12 * high, high, rtol=1e-14))


def max_learning_rate(curvature: float, momentum: float = 0.0) -> float:
    r"""Return :math:`2(1+\mu)/h`, beyond which the mean leaves the minimum whatever the noise.

    >>> max_learning_rate(4.0, momentum=0.5)
    0.75
    """
    if not (math.isfinite(curvature) and curvature > 0):
        raise InputError(f"curvature must be finite and > 0, got {curvature}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    return 2 * (1 + momentum) / curvature


def damping(steps: Array, momentum: float) -> Array:
    r"""Return what multiplies :math:`\Sigma_{ij}` on the left of the equation, in the eigenbasis of M.

    Args:
        steps: eigenvalues :math:`\eta h_i` of M, shape (p,).
        momentum: :math:`\mu` in [0, 1).

    Returns:
        Shape (p, p); without momentum :math:`1-(1-\eta h_i)(1-\eta h_j)`.

    >>> damping(np.array([0.5, 1.0]), 0.0).tolist()
    [[0.75, 1.0], [1.0, 1.0]]
    """
    mu, products = momentum, np.outer(steps, steps)
    return np.asarray(
        (1 - mu) * np.add.outer(steps, steps)
        - (1 + mu**2) / (1 - mu**2) * products
        + mu / (1 - mu**2) * np.add.outer(steps**2, steps**2)
    )


def symmetric(what: str, values: ArrayLike) -> Array:
    """Return a symmetric float64 matrix, or raise InputError naming ``what``.

    >>> symmetric("hessian", [[1, 2], [2, 1]]).tolist()
    [[1.0, 2.0], [2.0, 1.0]]
    """
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise InputError(f"{what} must be a square matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InputError(f"{what} must be finite, got NaN or infinite entries")
    error, scale = np.abs(matrix - matrix.T).max(), np.abs(matrix).max()
    if error > SYMMETRY_TOLERANCE * scale:
        raise InputError(f"{what} must be symmetric, got entries that differ by {error:.3g}")
    symmetrised: Array = (matrix + matrix.T) / 2
    return symmetrised


def _check(curvatures: Array, learning_rate: float, momentum: float) -> None:
    """Raise InputError unless the mean converges to the minimum."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    if not curvatures.size:
        return
    if not curvatures.min() > FLAT * curvatures.max():
        raise InputError(
            f"the Hessian must be positive definite at a minimum, got the eigenvalue {curvatures.min():.6g}; "
            "without weight decay, symmetries leave flat directions"
        )
    if not learning_rate < (edge := max_learning_rate(float(curvatures.max()), momentum)):
        raise InputError(
            f"learning_rate must be below 2 (1 + momentum) / largest curvature = {edge:.6g}, "
            f"got {learning_rate:.6g}"
        )
