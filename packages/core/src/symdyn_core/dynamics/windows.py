r"""The learning rates at which a stationary point attracts SGD, although it may be a saddle or a maximum.

Along one direction with curvature h of the minibatch the logarithm of the distance drifts by
:math:`\Lambda(\eta)=\mathbb E\log|1-\eta h|` a step. At a minimum :math:`\Lambda<0` for small steps; where
:math:`\mathbb E h<0` a point attracts from about :math:`\eta=-2\mathbb E h/\mathbb E h^2` on. With a finite
set of curvatures :math:`\Lambda=-\infty` at every :math:`1/h_i`, so that windows of stability accumulate
there.

Source: arXiv 2303.13093 and 2107.11774; the windows of finite data are derived here.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from symdyn_core.dynamics.random_products import SPREAD_STEPS, as_samples, check_step, sampled_exponents
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator

Array = NDArray[np.float64]
Exponents = Callable[[Array], Array]
"""Learning rates, shape (r,), to the exponents there; with the same random numbers for all of them."""

# The learning rates are scanned from this fraction of the second-order estimate of the transition to where a
# step multiplies by about this number, at so many points per factor of e.
_SCAN_FROM, _SCAN_TO, _SCAN_DENSITY = 0.05, 40.0, 10
_POINTS = 33  # learning rates at once, when the place of a change of sign is narrowed down
_RESOLVED = 1e-12  # relative distance to a pole that floating point resolves


def attracting_learning_rates(
    curvatures: ArrayLike | Tensor, weight_decay: float = 0.0, *, seed: int = 0
) -> tuple[float, float] | None:
    r"""Return the first interval of learning rates at which a point attracts SGD.

    Args:
        curvatures: minibatch Hessians across the mirror, or along the directions in question, shape (n,) or
            (n, k, k).
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        seed: of the order of the matrices.

    Returns:
        Lower and upper end of the interval in which
        :func:`~symdyn_core.dynamics.stability.lyapunov_exponent` is negative; the lower end is 0 if every
        small learning rate attracts. None if no learning rate does. Windows thinner than the scan, a tenth
        of a learning rate, are overlooked: :func:`attractive_learning_rate_intervals` finds them all.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    A minimum without noise attracts up to :math:`2/h`:

    >>> low, high = attracting_learning_rates([4.0, 4.0])
    >>> low, round(high, 6)
    (0.0, 0.5)
    """
    samples = as_samples(curvatures)
    check_step(1.0, weight_decay)
    decayed = samples + 2 * weight_decay * np.eye(samples.shape[1])
    slope = -float(np.linalg.eigvalsh(decayed.mean(axis=0))[0])  # of the exponent at learning rate zero
    size = math.sqrt(float(np.square(np.linalg.norm(decayed, ord=2, axis=(1, 2))).mean()))

    def exponents(learning_rates: Array) -> Array:
        return sampled_exponents(
            decayed, learning_rates, numpy_generator(seed, "collapse", "order"), SPREAD_STEPS
        )

    return scan(exponents, slope, size)


def critical_learning_rate(
    curvatures: ArrayLike | Tensor, weight_decay: float = 0.0, *, seed: int = 0
) -> float | None:
    r"""Return the smallest learning rate above which a point attracts SGD, or None if there is none.

    The lower end of :func:`attracting_learning_rates`: 0 where the mean loss with its decay is convex across
    the mirror, the root of the exponent where the mirror is a saddle.

    Args:
        curvatures: minibatch Hessians across the mirror, or along the directions in question, shape (n,) or
            (n, k, k).
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        seed: of the order of the matrices.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    For :math:`\ell=(uwx-y)^2` with :math:`xy=c\pm\varsigma` the curvatures along u = w are
    :math:`-2(c\pm\varsigma)` and the root is :math:`c/(\varsigma^2-c^2)`; here 0.3/0.91:

    >>> round(critical_learning_rate([-2.6, 1.4]), 5)
    0.32967
    >>> critical_learning_rate([-1.0, -1.0]) is None
    True
    """
    window = attracting_learning_rates(curvatures, weight_decay, seed=seed)
    return None if window is None else window[0]


def attractive_learning_rate_intervals(
    h_values: ArrayLike,
    probabilities: ArrayLike | None = None,
    *,
    weight_decay: float = 0.0,
    thinnest: float = 0.0,
) -> list[tuple[float, float]]:
    r"""Return every interval of learning rates at which a point with these curvatures attracts SGD.

    Exact for a finite set of curvatures, one sample a step: between two successive poles :math:`1/h_i` the
    exponent :math:`\sum_ip_i\log|1-\eta h_i|` is concave and falls to minus infinity at both, so that it is
    positive on one interval at most, whose ends are found by bisection.

    Args:
        h_values: curvatures, shape (n,).
        probabilities: shape (n,), > 0 up to a factor; equal if left out.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        thinnest: intervals shorter than this fraction of their upper end are left out.

    Returns:
        Open intervals in ascending order; the first starts at 0 if every small learning rate attracts.
        Empty if none does. Gaps and intervals of a relative width below 1e-9 and 1e-12 are not resolved.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    The maximum of :math:`x(1-\cos w)` with x = 1 or -2 attracts where :math:`|1-\eta|(1+2\eta)<1`, up to
    :math:`(1+\sqrt{17})/4`:

    >>> [(round(low, 6), round(high, 6)) for low, high in attractive_learning_rate_intervals([1.0, -2.0])]
    [(0.5, 1.280776)]

    The smaller of two curvatures opens a window of its own, around 1/0.1:

    >>> [(round(low, 2), round(high, 2)) for low, high in attractive_learning_rate_intervals([4.0, 0.1])]
    [(0.0, 0.51), (9.74, 10.25)]
    """
    values, chances = check_curvatures(h_values, probabilities)
    check_step(1.0, weight_decay)
    if not (math.isfinite(thinnest) and thinnest >= 0):
        raise InputError(f"thinnest must be finite and >= 0, got {thinnest}")
    values, place = np.unique(values + 2 * weight_decay, return_inverse=True)
    total = np.zeros(len(values))
    np.add.at(total, place, chances)
    if not values.any():
        return []
    poles = np.sort(1 / values[values > 0])
    edges = pairwise([0.0, *poles.tolist(), math.inf])
    repelling = [_positive_part(values, total, left, right) for left, right in edges]
    ends = [end for part in repelling if part is not None for end in part]
    # What repels lies between the first and the second end, the third and the fourth, and so on.
    attracting = zip([0.0, *ends[1::2]], ends[0::2], strict=False)
    return [(low, high) for low, high in attracting if high - low > max(thinnest, _RESOLVED) * high]


def first_attracting_learning_rate(curvatures: Array) -> float:
    """Return the smallest learning rate from which curvatures along one direction attract; 0 if all do.

    >>> first_attracting_learning_rate(np.array([1.0, -2.0]))
    0.5
    """
    values, counts = np.unique(curvatures, return_counts=True)
    first_pole = 1 / float(values[-1]) if values[-1] > 0 else math.inf
    part = _positive_part(values, counts / counts.sum(), 0.0, first_pole)
    return 0.0 if part is None or not values.any() else part[1]


def check_curvatures(h_values: ArrayLike, probabilities: ArrayLike | None = None) -> tuple[Array, Array]:
    """Return curvatures and their probabilities as vectors, the latter with sum 1.

    Raises:
        InputError: other shapes than (n,), not finite, or probabilities that are not positive.
    """
    values = np.asarray(h_values, dtype=float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise InputError(f"h_values must be a finite vector of length >= 1, got shape {values.shape}")
    chances = np.ones(len(values)) if probabilities is None else np.asarray(probabilities, dtype=float)
    if chances.shape != values.shape or not np.isfinite(chances).all() or not (chances > 0).all():
        raise InputError(f"probabilities must be {len(values)} positive numbers, got {chances.tolist()}")
    return values, chances / chances.sum()


def scan(
    exponents: Exponents, slope: float, size: float, *, density: float = _SCAN_DENSITY, passes: int = 6
) -> tuple[float, float] | None:
    """Return the first interval of learning rates with negative exponents.

    Args:
        exponents: of many learning rates at once.
        slope: of the exponent at learning rate zero.
        size: of a step's matrix; beyond some multiple of its inverse nothing attracts.
        density: learning rates per factor of e.
        passes: of :func:`transition`.
    """
    if size == 0:
        return None
    first = _SCAN_FROM * max(abs(slope), 1e-4 * size) / size**2
    count = math.ceil(math.log(_SCAN_TO / size / first) * density)
    grid = np.geomspace(first, _SCAN_TO / size, count)
    attracts = exponents(grid) < 0
    if not attracts.any():
        return None
    start = int(attracts.argmax())
    low = 0.0
    if start:
        low = transition(exponents, float(grid[start - 1]), float(grid[start]), passes=passes)
    later = np.flatnonzero(~attracts[start:])
    if not later.size:
        return low, math.inf
    end = start + int(later[0])
    return low, transition(exponents, float(grid[end]), float(grid[end - 1]), passes=passes)


def transition(
    exponents: Exponents, repels: float, attracts: float, *, passes: int = 6, points: int = _POINTS
) -> float:
    """Return the learning rate at which the sign changes, from the side that attracts.

    Each pass evaluates so many learning rates at once and narrows the bracket by one less.
    """
    for _ in range(passes):
        between = np.geomspace(repels, attracts, points)
        first = int((exponents(between) < 0).argmax())
        repels, attracts = float(between[max(first - 1, 0)]), float(between[first])
    return attracts


def _positive_part(values: Array, chances: Array, left: float, right: float) -> tuple[float, float] | None:
    """Return where the exponent, which is concave, is positive between two successive poles."""
    from scipy.optimize import brentq

    def exponent(learning_rate: float) -> float:
        return float(chances @ np.log(np.abs(1 - learning_rate * values)))

    def slope(learning_rate: float) -> float:
        return float(-(chances @ (values / (1 - learning_rate * values))))

    def root(function: Callable[[float], float], low: float, high: float) -> float:
        return float(brentq(function, low, high, xtol=1e-15 * high, rtol=1e-14))

    if math.isinf(right):  # it rises throughout
        if left == 0.0:
            return 0.0, math.inf
        # There every factor that is not 1 exceeds e.
        beyond, start = (1 + math.e) / float(np.abs(values[values != 0]).min()), left * (1 + _RESOLVED)
        return (left if exponent(start) >= 0 else root(exponent, start, beyond)), math.inf
    if right - left <= 1e3 * _RESOLVED * right or (left == 0.0 and slope(0.0) <= 0):
        return None
    first, last = left + _RESOLVED * (right - left), right - _RESOLVED * (right - left)
    top = root(slope, first, last) if slope(first) > 0 > slope(last) else first
    if exponent(top) <= 0:
        return None
    low = left if left == 0.0 or exponent(first) >= 0 else root(exponent, first, top)
    return low, (right if exponent(last) >= 0 else root(exponent, top, last))
