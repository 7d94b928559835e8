r"""How heavy the tails are that multiplicative gradient noise gives the parameters.

Along one direction of curvature :math:`\hat a` (of the minibatch, random) SGD multiplies the parameter by
:math:`m=1-\eta\hat a` and adds noise. Such a recursion has a stationary law with power-law tails,
:math:`P(|w|>r)\sim r^{-\beta}`, density :math:`|w|^{-(1+\beta)}`, and Kesten's theorem gives the index: it is
the positive root of

.. math:: \mathbb E\,|1-\eta\hat a|^{\beta}=1 .

Moments of order :math:`\beta` and above are infinite: the variance if :math:`\beta\le2`, the mean if
:math:`\beta\le1`. With :math:`\mathbb E\log|m|\ge0` there is no stationary law at all (index 0 here); with
:math:`|m|\le1` always, every moment exists (index infinity).

**Not the paper's formula.** For Gaussian inputs the paper estimates :math:`\beta=2S/(a\eta)-S` from the
variance of a Student-like law. That is exact at :math:`\beta=2` and nowhere else: at :math:`a\eta=1` it is 1
instead of 1.09 for batches of one, and 8 instead of 6.2 for batches of eight. The law of continuous time,
:math:`1+S/(a\eta)` (the paper's :math:`1+2S/(a\eta)` leaves out half of the noise), is not right for small
steps either: tails come from rare batches, which no diffusion knows. There the exact index tends to
:math:`1.795\,S/(a\eta)`, where 1.795 solves :math:`c\ln 2c=c+\frac12`. Both are kept as methods, to compare.

**Of a network** the index is that of its linearisation, and says whether the linear theory's variance exists.
Where gradients are bounded (cross-entropy, saturating units, weight decay) the curvature fades far out and no
power law follows: the study ``core.digits_noise`` finds none where the linearisation has an index below two.

Source: arXiv 2102.05375, power-law tail of the parameters, for the estimate and the setting; the exact index
follows from Kesten's theorem (1973) and is derived here for Gaussian and for finite data.
"""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from symdyn_core.errors import InputError, unknown
from symdyn_core.estimate import Estimate
from symdyn_core.random import numpy_generator

Array = NDArray[np.float64]
Method = Literal["kesten", "variance_matched", "continuous"]

# Batches of a finite set of curvatures are listed if batches x batch size x set are at most so many, and
# otherwise drawn, so many of them.
LISTED_ENTRIES = 5_000_000
DRAWN_BATCHES = 200_000

# Quadrature in z, the root of a chi-square variable, whose density varies on the scale 1.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_REACH = 12.0  # beyond a peak by so much the density has fallen by exp(-72)
_GRADED = 40  # panels that halve in length towards the zero of |1 - c z^2|, where the power has a kink

# What counts as infinite or zero: no measurement could tell.
LARGEST_INDEX, SMALLEST_INDEX = 1e7, 1e-9


def tail_index(
    curvature: float | ArrayLike,
    learning_rate: float,
    batch_size: int = 1,
    method: Method = "kesten",
    *,
    seed: int = 0,
) -> float:
    r"""Return the index :math:`\beta` of the tail :math:`P(|w|>r)\sim r^{-\beta}` of one parameter under SGD.

    ==================== ============================= ===========================================
    method               Gaussian input                any curvatures
    ==================== ============================= ===========================================
    ``kesten`` (exact)   root for :math:`\chi^2_S`      root for the law of the batch's mean
    ``variance_matched`` :math:`2S/(a\eta)-S`          :math:`2+2(1-\mathbb E[m^2])/(\eta^2v)`
    ``continuous``       :math:`1+S/(a\eta)`           :math:`1+2\bar h/(\eta v)`
    ==================== ============================= ===========================================

    with :math:`m=1-\eta\hat h` and :math:`v=\mathrm{Var}[h]/S`, which is :math:`2a^2/S` for Gaussian input of
    second moment a.

    Args:
        curvature: a number, the second moment :math:`a>0` of a Gaussian input of a linear model with loss
            :math:`\frac12(wx-y)^2`; or curvatures of single samples along one direction, shape (n,), of
            which batches are drawn with replacement. Whole minibatches' curvatures go with ``batch_size=1``.
        learning_rate: :math:`\eta>0` of plain SGD.
        batch_size: :math:`S\ge1`.
        method: see above; anything but ``kesten`` is an approximation.
        seed: of the batches drawn from curvatures if there are too many to list.

    Returns:
        The index; 0 if there is no stationary law, infinity if every moment is finite.

    Raises:
        InputError: values out of range or not finite, or an unknown method.

    At the edge where the variance diverges, :math:`a\eta=2S/(S+2)`, the index is 2:

    >>> round(tail_index(1.0, learning_rate=1.0, batch_size=2), 9)
    2.0
    >>> round(tail_index(1.0, learning_rate=1.0, batch_size=8), 2)
    6.2
    >>> tail_index(1.0, learning_rate=1.0, batch_size=8, method="variance_matched")
    8.0

    Curvatures 1 and 5 at learning rate 1/2 multiply by 1/2 or -3/2, and the root of
    :math:`(1/2)^\beta+(3/2)^\beta=2` is 1. With curvatures 1 and 3 no step ever grows:

    >>> round(tail_index([1.0, 5.0], learning_rate=0.5), 9), tail_index([1.0, 3.0], learning_rate=0.5)
    (1.0, inf)
    """
    if method not in get_args(Method):
        raise InputError(unknown("method", str(method), get_args(Method)))
    _check_step(learning_rate, batch_size)
    values = np.asarray(curvature, dtype=float)
    if values.ndim > 1 or values.size == 0:
        raise InputError(f"curvature must be a number or a vector, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("curvature must be finite, got NaN or infinite entries")
    if not values.any():
        raise InputError("curvature must not be zero throughout: without it nothing holds the parameter")
    if values.ndim == 0 and values <= 0:
        raise InputError(f"curvature must be > 0, got {float(values)}")
    if method != "kesten":
        return _approximate_index(values, learning_rate, batch_size, method)
    if values.ndim == 0:
        return _gaussian_index(float(values) * learning_rate, batch_size)
    batches, weights = _batch_means(values, batch_size, seed)
    return kesten_exponent(1 - learning_rate * batches, weights)


def kesten_exponent(multipliers: ArrayLike, weights: ArrayLike | None = None) -> float:
    r"""Return the positive root :math:`\beta` of :math:`\mathbb E|m|^\beta=1` for multipliers m of one step.

    Args:
        multipliers: values of m, shape (n,).
        weights: their probabilities up to a factor, shape (n,), >= 0; equal if left out.

    Returns:
        The exponent; 0 if :math:`\mathbb E\log|m|\ge0` (no stationary law), infinity if no multiplier with
        positive weight exceeds 1 in size.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or negative weights.

    >>> round(kesten_exponent([0.5, 1.5]), 9), kesten_exponent([0.5, 3.0]), kesten_exponent([0.5, -1.0])
    (1.0, 0.0, inf)
    """
    sizes = np.abs(np.asarray(multipliers, dtype=float))
    chances = np.ones_like(sizes) if weights is None else np.asarray(weights, dtype=float)
    if sizes.ndim != 1 or sizes.size == 0 or chances.shape != sizes.shape:
        raise InputError(
            f"multipliers and weights must be vectors of one length, got {sizes.shape} and {chances.shape}"
        )
    if not (np.isfinite(sizes).all() and np.isfinite(chances).all()):
        raise InputError("multipliers and weights must be finite, got NaN or infinite entries")
    if (chances < 0).any() or chances.sum() == 0:
        raise InputError(f"weights must be >= 0 and not all zero, got {float(chances.min())} among them")
    seen = chances > 0
    with np.errstate(divide="ignore"):
        logs, log_chances = np.log(sizes[seen]), np.log(chances[seen] / chances.sum())
    if logs.max() <= 0:
        return math.inf
    alive = np.isfinite(logs)  # a step that lands on zero contributes to no moment
    if alive.all() and float(np.exp(log_chances) @ logs) >= 0:
        return 0.0

    def log_moment(order: float) -> float:
        return float(special.logsumexp(log_chances[alive] + order * logs[alive]))

    return _positive_root(log_moment)


def explain_tail(index: float) -> str:
    """Return in words which moments a stationary law with this tail index has.

    >>> explain_tail(1.5)
    'the mean is finite, the variance is not (tail index 1.5)'
    """
    if math.isnan(index) or index < 0:
        raise InputError(f"index must be >= 0, got {index}")
    if index == 0:
        return "no stationary law: steps grow the parameter on average of the logarithm"
    if math.isinf(index):
        return "every moment is finite: no power-law tail"
    if index <= 1:
        return f"not even the mean is finite (tail index {index:.3g})"
    if index <= 2:
        return f"the mean is finite, the variance is not (tail index {index:.3g})"
    if index <= 4:
        return f"the variance is finite, but its sample estimate is erratic (tail index {index:.3g})"
    return f"moments up to order {index:.3g} are finite"


def hill_estimator(samples: ArrayLike, k: int | None = None, confidence: float = 0.95) -> Estimate:
    r"""Estimate the tail index of :math:`|w|` from its largest values.

    :math:`\hat\beta^{-1}=\frac1k\sum_{i\le k}\log(x_{(i)}/x_{(k+1)})` with the values in descending order.
    The interval is exact for a pure power law beyond :math:`x_{(k+1)}` and independent samples
    (:math:`2k\beta/\hat\beta` is chi-square with 2k degrees of freedom). It knows nothing of the bias of too
    large a k: compare a few.

    Args:
        samples: shape (n,); only sizes count. Independent: successive values of one run are not.
        k: how many of the largest are used, in [2, n - 1]; the square root of n if left out.
        confidence: of the interval.

    Raises:
        InputError: k out of range, values not finite, or fewer than k + 1 of them differ from zero.

    >>> round(hill_estimator([math.e**2, math.e, 1.0, 0.5], k=2).value, 9)  # 1 / mean(2, 1)
    0.666666667
    """
    values = np.abs(np.asarray(samples, dtype=float))
    if values.ndim != 1 or values.size < 3 or not np.isfinite(values).all():
        raise InputError(f"samples must be a finite vector of length >= 3, got shape {values.shape}")
    count = max(2, math.isqrt(values.size)) if k is None else k
    if not 2 <= count <= values.size - 1:
        raise InputError(f"k must be in [2, n_samples - 1={values.size - 1}], got {count}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be in (0, 1), got {confidence}")
    largest = np.sort(np.partition(values, values.size - count - 1)[values.size - count - 1 :])
    if largest[0] == 0:
        raise InputError(f"more than k={count} samples must differ from zero")
    excess = float(np.log(largest[1:] / largest[0]).mean())
    if excess == 0:
        raise InputError(f"the {count + 1} largest samples must differ, got all equal to {largest[0]}")
    low, high = stats.chi2.ppf([(1 - confidence) / 2, (1 + confidence) / 2], 2 * count) / (2 * count)
    return Estimate(1 / excess, float(low) / excess, float(high) / excess, count)


def _approximate_index(values: Array, learning_rate: float, batch_size: int, method: Method) -> float:
    mean = float(values.mean())
    variance = (2 * mean**2 if values.ndim == 0 else float(values.var())) / batch_size
    if mean <= 0:
        return 0.0
    if variance == 0:
        return math.inf
    if method == "continuous":
        return 1 + 2 * mean / (learning_rate * variance)
    second_moment = (1 - learning_rate * mean) ** 2 + learning_rate**2 * variance
    return max(0.0, 2 + 2 * (1 - second_moment) / (learning_rate**2 * variance))


def _gaussian_index(step: float, batch_size: int) -> float:
    """Return the index for the multiplier 1 - step chi^2_S / S."""
    if _gaussian_log_moment(step, batch_size, None) >= 0:
        return 0.0
    return _positive_root(lambda order: _gaussian_log_moment(step, batch_size, order))


def _gaussian_log_moment(step: float, batch_size: int, order: float | None) -> float:
    """Return log E|m|^order, or E log|m| if order is None, of m = 1 - step chi^2_S / S.

    In z, the root of the chi-square variable, |m| = |1 - (z/z0)^2| vanishes at z0, and the integrand has two
    bumps of width about 1: one where batches are typical, one where a rare batch makes m large.
    """
    zero, typical = math.sqrt(batch_size / step), math.sqrt(batch_size)
    last = typical + zero + math.sqrt(2 * (order or 0.0)) + _REACH
    kink = np.geomspace(1e-12 * max(1.0, zero), min(1.0, zero), _GRADED)
    bumps = np.arange(max(0.0, typical - _REACH), last)
    edges = np.unique(np.concatenate([[0.0], zero - kink, [zero], zero + kink, bumps, [last]]))
    edges = edges[edges >= 0]
    half = np.diff(edges) / 2
    z = (edges[:-1] + half)[:, None] + half[:, None] * _NODES
    with np.errstate(divide="ignore"):
        log_factor = np.log(np.abs((z - zero) * (z + zero))) - 2 * math.log(zero)
        log_weight = stats.chi.logpdf(z, batch_size) + np.log(half[:, None] * _WEIGHTS)
    if order is None:
        return float((np.exp(log_weight) * log_factor).sum())
    return float(special.logsumexp(log_weight + order * log_factor))


def _positive_root(log_moment: Callable[[float], float]) -> float:
    """Return the root above zero of a convex function that is zero at zero and falls there."""
    high = 1.0
    while log_moment(high) <= 0:
        high *= 2
        if high > LARGEST_INDEX:
            return math.inf
    low = high / 2
    while log_moment(low) >= 0:
        low /= 2
        if low < SMALLEST_INDEX:
            return 0.0
    return float(optimize.brentq(log_moment, low, high, xtol=1e-14, rtol=1e-12))


def _batch_means(values: Array, batch_size: int, seed: int) -> tuple[Array, Array]:
    """Return means of batches drawn with replacement, and their weights: all of them, or a sample."""
    batches = math.comb(len(values) + batch_size - 1, batch_size)
    if batches * batch_size * len(values) <= LISTED_ENTRIES:
        listed = np.array(list(combinations_with_replacement(range(len(values)), batch_size)))
        counts = (listed[:, :, None] == np.arange(len(values))).sum(axis=1)
        log_weights = special.gammaln(batch_size + 1) - special.gammaln(counts + 1).sum(axis=1)
        return values[listed].mean(axis=1), np.exp(log_weights - log_weights.max())
    generator = numpy_generator(seed, "tails", "batches")
    total = np.zeros(DRAWN_BATCHES)
    for _ in range(batch_size):
        total += values[generator.integers(len(values), size=DRAWN_BATCHES)]
    return total / batch_size, np.ones(DRAWN_BATCHES)


def _check_step(learning_rate: float, batch_size: int) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
