"""Estimates with intervals: from independent repetitions to a number that can confirm or refute.

Every estimator takes the samples, one entry per repetition, and a confidence level, and returns an
:class:`Estimate`. They differ in what an entry is:

====================  ==============================  ===================================================
estimator             one repetition's entry          interval
====================  ==============================  ===================================================
``mean``              a number                        Student t over repetitions
``geometric_mean``    a positive number               Student t of the logarithms
``median``            one number or many              binomial order statistics of the pooled values
``quantile(q)``       one number or many              binomial order statistics of the pooled values
``proportion``        one outcome (0 or 1) or many    Clopper-Pearson on the pooled outcomes
``counted``           ``(successes, trials)``         Clopper-Pearson on their sums, for many outcomes
``slope``             pairs ``(x, y)``, two or more   Student t over the repetitions' least-squares slopes
====================  ==============================  ===================================================

The pooled ones assume that the values inside a repetition are independent of each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = Sequence[Any]
Estimator = Callable[..., "Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that contains the truth with the stated confidence.

    ``low <= value <= high``; an interval that the samples cannot bound is infinite, one that they leave
    undefined (no finite sample) is NaN throughout.
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not math.isnan(self.value) and not self.low <= self.value <= self.high:
            raise ValueError(f"expected low <= value <= high, got {self.low}, {self.value}, {self.high}")

    @property
    def defined(self) -> bool:
        """Whether the estimate is a number at all."""
        return not (math.isnan(self.value) or math.isnan(self.low) or math.isnan(self.high))


UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)


def mean(samples: Samples, confidence: float = 0.95) -> Estimate:
    """Estimate an expectation from one number per repetition.

    >>> mean([1.0, 2.0, 3.0]).value
    2.0
    >>> mean([5.0])
    Estimate(value=5.0, low=-inf, high=inf, n=1)
    """
    values = _one_number_each(samples)
    if values.size == 0 or not np.isfinite(values).all():
        return UNDEFINED
    centre = float(values.mean())
    if values.size == 1:
        return Estimate(centre, -math.inf, math.inf, 1)
    from scipy import stats

    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    reach = float(stats.t.ppf(0.5 + confidence / 2, values.size - 1)) * error
    return Estimate(centre, centre - reach, centre + reach, values.size)


def geometric_mean(samples: Samples, confidence: float = 0.95) -> Estimate:
    """Estimate ``exp E[log X]`` of a positive quantity; the interval is symmetric on a log scale.

    >>> round(geometric_mean([1.0, 100.0]).value, 12)
    10.0
    """
    values = _one_number_each(samples)
    if values.size == 0 or not np.isfinite(values).all() or (values <= 0).any():
        return UNDEFINED
    logs = mean(np.log(values).tolist(), confidence)
    with np.errstate(over="ignore"):
        value, low, high = (float(v) for v in np.exp([logs.value, logs.low, logs.high]))
    return Estimate(value, min(low, value), max(high, value), logs.n)


def median(samples: Samples, confidence: float = 0.95) -> Estimate:
    """Estimate the median without assuming a distribution: safe for heavy tails."""
    return _quantile(samples, 0.5, confidence)


def quantile(q: float) -> Estimator:
    """Return the estimator of the ``q``-quantile, ``0 < q < 1``.

    >>> quantile(0.5)(range(1, 102)).value
    51.0
    """
    if not 0 < q < 1:
        raise ValueError(f"q must be in (0, 1), got {q}")

    def estimate(samples: Samples, confidence: float = 0.95) -> Estimate:
        return _quantile(samples, q, confidence)

    return estimate


def proportion(samples: Samples, confidence: float = 0.95) -> Estimate:
    """Estimate a probability from outcomes that are 0 or 1 (Clopper-Pearson, never too narrow).

    >>> proportion([[0, 0, 1, 1]]).value
    0.5
    """
    outcomes = _pooled(samples)
    if outcomes.size == 0 or np.isnan(outcomes).any():
        return UNDEFINED
    if not np.isin(outcomes, (0.0, 1.0)).all():
        strange = outcomes[~np.isin(outcomes, (0.0, 1.0))][0]
        raise ValueError(f"outcomes must be 0 or 1, got {strange}")
    return _clopper_pearson(int(outcomes.sum()), outcomes.size, confidence)


def counted(samples: Samples, confidence: float = 0.95) -> Estimate:
    """Estimate a probability from one pair ``(successes, trials)`` per repetition.

    The same as :func:`proportion`, where outcomes are too many to keep.

    >>> counted([(1, 2), (1, 2)]) == proportion([[0, 0, 1, 1]])
    True
    """
    pairs = np.array([tuple(pair) for pair in samples], dtype=float).reshape(-1, 2)
    if not len(pairs) or np.isnan(pairs).any():
        return UNDEFINED
    successes, trials = pairs.T
    if not ((successes >= 0) & (successes <= trials) & (trials > 0) & (pairs % 1 == 0).all(axis=1)).all():
        raise ValueError(f"expected whole numbers (successes, trials), got {pairs.tolist()}")
    return _clopper_pearson(int(successes.sum()), int(trials.sum()), confidence)


def slope(samples: Samples, confidence: float = 0.95) -> Estimate:
    """Estimate the slope of y against x from one set of points ``[(x, y), ...]`` per repetition.

    >>> slope([[(0, 1), (1, 3)], [(0, 0), (1, 2)]])
    Estimate(value=2.0, low=2.0, high=2.0, n=2)
    """
    slopes = []
    for points in samples:
        pairs = np.asarray(points, dtype=float)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.shape[0] < 2:
            raise ValueError(f"expected at least two (x, y) pairs per repetition, got shape {pairs.shape}")
        x, y = pairs.T - pairs.mean(axis=0)[:, None]
        spread = float(x @ x)
        slopes.append(float(x @ y) / spread if spread > 0 else math.nan)
    return mean(slopes, confidence)


def _clopper_pearson(successes: int, trials: int, confidence: float) -> Estimate:
    from scipy import stats

    result = stats.binomtest(successes, trials)
    interval = result.proportion_ci(confidence, method="exact")
    return Estimate(float(result.statistic), float(interval.low), float(interval.high), trials)


def _quantile(samples: Samples, q: float, confidence: float) -> Estimate:
    values = np.sort(_pooled(samples))
    if values.size == 0 or np.isnan(values).any():
        return UNDEFINED
    from scipy import stats

    # The number of samples below the true quantile is Binomial(n, q), whatever the distribution: the order
    # statistics at its tail quantiles bound it. Where n is too small for a bound the interval is infinite.
    n, tail = values.size, (1 - confidence) / 2
    lower = int(stats.binom.ppf(tail, n, q))  # values[lower - 1], one-based rank `lower`
    upper = int(stats.binom.ppf(1 - tail, n, q)) + 1  # one-based rank
    low = float(values[lower - 1]) if lower >= 1 else -math.inf
    high = float(values[upper - 1]) if upper <= n else math.inf
    centre = float(np.quantile(values, q))
    return Estimate(centre, min(low, centre), max(high, centre), n)


def _one_number_each(samples: Samples) -> NDArray[np.float64]:
    values = np.asarray(list(samples), dtype=float)
    if values.ndim != 1:
        raise ValueError(f"expected one number per repetition, got samples of shape {values.shape}")
    return values


def _pooled(samples: Samples) -> NDArray[np.float64]:
    parts = [np.asarray(sample, dtype=float).ravel() for sample in samples]
    return np.concatenate(parts) if parts else np.empty(0)
