r"""How long SGD stays in a valley whose noise is in proportion to its loss: powers, not exponentials.

For the mean-square loss the gradient noise is about :math:`2L(\theta)H/B`, larger where the loss is larger.
In the time :math:`d\tau=L\,dt` the same walk is Langevin dynamics on :math:`\log L` at the constant
temperature :math:`T=\eta h^*/B`, with :math:`h^*` the curvature of the valley along its way out. Hence a
stationary law and an escape rate that are powers of losses, where noise frozen at the minimum would give
exponentials of their differences (Arrhenius and Kramers).

**How far this holds.** The noise of one direction of Gaussian data is larger than this by up to a factor 2
far from the minimum; only its trace over many directions is right. So the exponent describes the bulk of the
law, not the tail of one-dimensional regression: see :func:`symdyn_core.dynamics.tails.tail_index` for that.

Source: arXiv 2105.09557, stationary distribution, escape rate and condition on the effective dimension.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError


def power_law_exponent(curvature: float, learning_rate: float, batch_size: int) -> float:
    r"""Return :math:`\phi=1+\frac{B}{\eta h^*}` of the stationary law :math:`P\propto L(\theta)^{-\phi}`.

    Args:
        curvature: :math:`h^*>0`, the outlier eigenvalue of the Hessian.
        learning_rate: :math:`\eta>0`.
        batch_size: B >= 1.

    Raises:
        InputError: a value out of range.

    >>> power_law_exponent(2.0, learning_rate=0.1, batch_size=1)
    6.0
    """
    for name, value in (("curvature", curvature), ("learning_rate", learning_rate)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be finite and > 0, got {value}")
    if batch_size < 1:
        raise InputError(f"batch_size must be >= 1, got {batch_size}")
    return 1 + batch_size / (learning_rate * curvature)


def critical_effective_dimension(curvature: float, learning_rate: float, batch_size: int) -> float:
    r"""Return :math:`n_c=2\phi`: a minimum with this many outlier eigenvalues or more does not hold SGD.

    The stationary law cannot be normalised there. Arguments and errors as of :func:`power_law_exponent`.

    >>> critical_effective_dimension(2.0, learning_rate=0.1, batch_size=1)
    12.0
    """
    return 2 * power_law_exponent(curvature, learning_rate, batch_size)


def log_loss_stationary(
    losses: ArrayLike, curvature: float, learning_rate: float, batch_size: int
) -> NDArray[np.float64]:
    r"""Return the logarithm of the stationary density, :math:`-\phi\log L(\theta)`, up to a constant.

    Args:
        losses: :math:`L(\theta)>0` wherever the density is wanted, any shape.
        curvature: :math:`h^*>0`.
        learning_rate: :math:`\eta>0`.
        batch_size: B >= 1.

    Raises:
        InputError: a value out of range; a loss of zero, where SGD with this noise stays for ever.

    >>> log_loss_stationary([1.0, 2.0], curvature=1.0, learning_rate=1.0, batch_size=1).round(4).tolist()
    [-0.0, -1.3863]
    """
    values = np.asarray(losses, dtype=float)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"losses must be finite and > 0, got {values.min()}")
    density: NDArray[np.float64] = -power_law_exponent(curvature, learning_rate, batch_size) * np.log(values)
    return density


def escape_power(curvature: float, learning_rate: float, batch_size: int, outliers: int = 1) -> float:
    r"""Return the power of the loss ratio by which an escape is slow, :math:`\frac{B}{\eta h^*}+1-\frac n2`.

    The rate of escape goes as the ratio of the losses at the saddle and at the minimum to minus this power;
    so does, for a quadratic valley, the time to reach a loss that is many times the least.

    Args:
        curvature: :math:`h^*>0`.
        learning_rate: :math:`\eta>0`.
        batch_size: B >= 1.
        outliers: n >= 1, outlier eigenvalues of the Hessian at the minimum.

    Raises:
        InputError: a value out of range, or as many outliers as the minimum does not hold.

    >>> escape_power(2.0, learning_rate=0.1, batch_size=1, outliers=2)
    5.0
    """
    if outliers < 1:
        raise InputError(f"outliers must be >= 1, got {outliers}")
    critical = critical_effective_dimension(curvature, learning_rate, batch_size)
    if outliers >= critical:
        raise InputError(
            f"the minimum does not hold SGD: outliers < 2 (1 + batch_size / (learning_rate * curvature)) "
            f"= {critical:.4g} fails, got {outliers}"
        )
    return critical / 2 - outliers / 2


def log_escape_rate(
    loss_minimum: float,
    loss_saddle: float,
    curvature_minimum: float,
    curvature_saddle: float,
    learning_rate: float,
    batch_size: int,
    *,
    outliers: int = 1,
    determinant_ratio: float | None = None,
) -> float:
    r"""Return :math:`\log\kappa`, the rate at which SGD leaves a valley over a saddle, per unit of time.

    Time is :math:`\eta` times the number of steps: add :math:`\log\eta` for the rate per step.

    .. math:: \kappa=\frac{|h_e^s|}{2\pi}\sqrt{\frac{\det\hat H^*}{|\det\hat H^s|}}
              \Big[\frac{L^s}{L^*}\Big]^{-(\frac B{\eta h^*}+1-\frac n2)}

    An asymptotic law, for rates that are small against the curvatures: 5 % too high where the power is 13
    and the losses are as 3 to 2.

    Args:
        loss_minimum: :math:`L^*>0`.
        loss_saddle: :math:`L^s>L^*`.
        curvature_minimum: :math:`h^*>0`, along the way out if outliers differ.
        curvature_saddle: :math:`h_e^s<0`, the negative eigenvalue at the saddle.
        learning_rate: :math:`\eta>0`.
        batch_size: B >= 1.
        outliers: n >= 1.
        determinant_ratio: :math:`\det\hat H^*/|\det\hat H^s|` over the outlier directions; by default the
            others are as steep at the saddle as at the minimum.

    Raises:
        InputError: a value out of range, with the condition that fails; a minimum of loss zero, which is
            never left.

    Source: arXiv 2105.09557, escape rate in one and in n dimensions.

    >>> round(log_escape_rate(0.5, 0.75, 2.0, -1.0, learning_rate=0.04, batch_size=1), 3)  # T = 0.08
    -6.762
    """
    if not (math.isfinite(loss_saddle) and 0 < loss_minimum < loss_saddle):
        raise InputError(
            f"0 < loss_minimum < loss_saddle must hold, got {loss_minimum} and {loss_saddle}; "
            "a minimum of loss zero has no noise and is never left"
        )
    if not (math.isfinite(curvature_saddle) and curvature_saddle < 0):
        raise InputError(f"curvature_saddle must be < 0, got {curvature_saddle}")
    power = escape_power(curvature_minimum, learning_rate, batch_size, outliers)
    ratio = curvature_minimum / -curvature_saddle if determinant_ratio is None else determinant_ratio
    if not (math.isfinite(ratio) and ratio > 0):
        raise InputError(f"determinant_ratio must be finite and > 0, got {ratio}")
    prefactor = math.log(-curvature_saddle / (2 * math.pi)) + math.log(ratio) / 2
    return prefactor - power * math.log(loss_saddle / loss_minimum)


def escape_rate(
    loss_minimum: float,
    loss_saddle: float,
    curvature_minimum: float,
    curvature_saddle: float,
    learning_rate: float,
    batch_size: int,
    *,
    outliers: int = 1,
    determinant_ratio: float | None = None,
) -> float:
    r"""Return :math:`\kappa` of :func:`log_escape_rate`, per unit of time; times :math:`\eta` it is per step.

    Args: as there. Zero where it is below the smallest number.

    >>> round(escape_rate(0.5, 0.75, 2.0, -1.0, learning_rate=0.04, batch_size=1), 7)
    0.0011565
    """
    return math.exp(
        log_escape_rate(
            loss_minimum,
            loss_saddle,
            curvature_minimum,
            curvature_saddle,
            learning_rate,
            batch_size,
            outliers=outliers,
            determinant_ratio=determinant_ratio,
        )
    )
