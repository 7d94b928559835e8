r"""Statistics of a stream of numbers in memory that does not grow with its length.

Moments are updated by Welford's formula and joined by Chan's, which do not cancel as
:math:`E[x^2]-E[x]^2` does.
Quantiles come from a histogram on a logarithmic grid (DDSketch): whatever the stream, the quantile returned
lies within a relative distance ``accuracy`` of the sample quantile. First passages are one step per
replica; their survival curve counts replicas that diverged before they passed as censored (Kaplan and Meier).

Source: Welford (1962); Chan, Golub and LeVeque (1983); arXiv:1908.10693 (DDSketch); Kaplan and Meier (1958).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError

Array = NDArray[np.float64]
State = dict[str, NDArray[np.generic]]


class StreamingMoments:
    r"""Count, mean and covariance of R streams of vectors of k entries, and of any of them together.

    Streams are kept apart so that one that turns out to be bad can be left out of the whole afterwards.

    Args:
        streams: R, >= 1.
        size: k, >= 1.
        full: keep the whole covariance, k by k a stream; otherwise its diagonal.

    >>> moments = StreamingMoments(2, 1)
    >>> for pair in ([1.0, 5.0], [2.0, 7.0], [6.0, 6.0]):
    ...     moments.update(np.array(pair)[:, None])
    >>> moments.means.ravel().tolist()
    [3.0, 6.0]
    >>> [float(part.item()) for part in moments.pooled(np.array([True, False]))[1:]]
    [3.0, 7.0]
    """

    def __init__(self, streams: int, size: int, full: bool = True) -> None:
        if streams < 1 or size < 1:
            raise InputError(f"streams and size must be at least 1, got {streams} and {size}")
        self.full = full
        self.counts = np.zeros(streams, dtype=np.int64)
        self._mean = np.zeros((streams, size))
        self._spread = np.zeros((streams, size, size) if full else (streams, size))

    def update(self, values: Array, kept: NDArray[np.bool_] | None = None) -> None:
        """Take in one vector of every stream, shape (R, k), or only of those ``kept``, shape (R,)."""
        rows: NDArray[np.bool_] | slice = slice(None) if kept is None or kept.all() else kept
        self.counts[rows] += 1
        count = self.counts[rows, None]
        # A stream on its way to infinity may overflow here; it is for the caller to leave it out.
        with np.errstate(over="ignore", invalid="ignore"):
            off = values[rows] - self._mean[rows]
            self._mean[rows] += off / count
            after = off * ((count - 1) / count)
            self._spread[rows] += off[:, :, None] * after[:, None, :] if self.full else off * after

    @property
    def means(self) -> Array:
        """Of every stream, shape (R, k); NaN before its first value."""
        return np.where(self.counts[:, None] > 0, self._mean, np.nan)

    def pooled(self, streams: NDArray[np.bool_]) -> tuple[int, Array, Array]:
        """Return count, mean and covariance of all vectors of the chosen streams, a mask of shape (R,).

        Returns:
            The mean has shape (k,), NaN without a value; the covariance, with the divisor n - 1, (k, k), or
            (k,) if only the diagonal is kept, NaN below two values.
        """
        counts, means = self.counts[streams], self._mean[streams]
        total = int(counts.sum())
        if total == 0:
            return 0, np.full_like(self._mean[0], np.nan), np.full_like(self._spread[0], np.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = counts @ means / total
            gap = means - mean
            between = (counts * gap.T) @ gap if self.full else counts @ gap**2
            spread = self._spread[streams].sum(axis=0) + between
        return total, mean, spread / (total - 1) if total > 1 else np.full_like(spread, np.nan)

    def state(self) -> State:
        """Return everything there is to store."""
        return {"count": self.counts, "mean": self._mean, "spread": self._spread}

    def restore(self, state: State) -> None:
        """Go on from what :meth:`state` returned."""
        self.counts = np.array(state["count"], dtype=np.int64)
        self._mean = np.array(state["mean"], dtype=np.float64)
        self._spread = np.array(state["spread"], dtype=np.float64)


class QuantileSketch:
    r"""Quantiles of k streams, each within a relative error of its sample quantile.

    A number goes into the bin :math:`\lceil\log_\gamma|x|\rceil` of its sign, with
    :math:`\gamma=(1+\alpha)/(1-\alpha)`; the middle of a bin is within :math:`\alpha|x|` of all its numbers.
    Numbers below ``smallest`` in size count as zero. The bins kept span the range of magnitudes seen:
    :math:`\log_\gamma` of their ratio, for each sign; 23 000 for 20 decades at the default accuracy, and
    never more than the float64 range has, whatever the number of values. The result does not depend on the
    order of the values.

    Args:
        size: k, >= 1.
        accuracy: :math:`\alpha` in (0, 1).
        smallest: magnitudes below are zero, > 0.

    >>> sketch = QuantileSketch(1, accuracy=0.01)
    >>> sketch.update(np.arange(-100.0, 101.0)[:, None])
    >>> abs(sketch.quantile(0.75).item() - 50) <= 0.5, sketch.quantile(0.5).item()
    (True, 0.0)
    """

    def __init__(self, size: int, accuracy: float = 1e-3, smallest: float = 1e-30) -> None:
        if size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        if not 0 < accuracy < 1:
            raise InputError(f"accuracy must be in (0, 1), got {accuracy}")
        if not 0 < smallest < math.inf:
            raise InputError(f"smallest must be finite and above 0, got {smallest}")
        self.accuracy, self.smallest = accuracy, smallest
        self._log_gamma = math.log1p(accuracy) - math.log1p(-accuracy)
        self._first = 0  # key of the first bin
        self._bins = np.zeros((2, size, 0), dtype=np.int64)  # of negative and positive numbers
        self._zeros = np.zeros(size, dtype=np.int64)

    def update(self, values: Array) -> None:
        """Take in the rows of ``values``, shape (n, k), all finite."""
        magnitude = np.abs(values)
        counted = magnitude >= self.smallest
        self._zeros += (~counted).sum(axis=0)
        row, column = np.nonzero(counted)
        if not len(row):
            return
        keys = np.ceil(np.log(magnitude[row, column]) / self._log_gamma).astype(np.int64)
        self._span(int(keys.min()), int(keys.max()))
        signs = (values[row, column] > 0).astype(np.int64)
        _, size, width = self._bins.shape
        flat = (signs * size + column) * width + keys - self._first
        places, counts = np.unique(flat, return_counts=True)
        self._bins.reshape(-1)[places] += counts

    def _span(self, low: int, high: int) -> None:
        width = self._bins.shape[2]
        if not width:
            self._first, self._bins = low, np.zeros((*self._bins.shape[:2], high - low + 1), dtype=np.int64)
            return
        before = max(0, self._first - low)
        after = max(0, high - (self._first + width - 1))
        if before or after:
            self._bins = np.pad(self._bins, ((0, 0), (0, 0), (before, after)))
            self._first -= before

    def quantile(self, level: float) -> Array:
        """Return the lower sample quantile at ``level`` in [0, 1], shape (k,); NaN before the first value."""
        if not 0 <= level <= 1:
            raise InputError(f"level must be in [0, 1], got {level}")
        keys = self._first + np.arange(self._bins.shape[2])
        # The value of relative error alpha to both ends of the bin (gamma^(key-1), gamma^key].
        middle = np.exp((keys - 1) * self._log_gamma) * (1 + self.accuracy)
        values = np.concatenate([-middle[::-1], [0.0], middle])
        counts = np.concatenate([self._bins[0][:, ::-1], self._zeros[:, None], self._bins[1]], axis=1)
        below = counts.cumsum(axis=1)
        total = below[:, -1:]
        rank = np.floor(level * (total - 1)).astype(np.int64)
        found = values[(below > rank).argmax(axis=1)]
        return np.where(total[:, 0] > 0, found, np.nan)

    def state(self) -> State:
        """Return everything there is to store."""
        return {"first": np.array(self._first), "bins": self._bins, "zeros": self._zeros}

    def restore(self, state: State) -> None:
        """Go on from what :meth:`state` returned."""
        self._first = int(state["first"])
        self._bins = np.array(state["bins"], dtype=np.int64)
        self._zeros = np.array(state["zeros"], dtype=np.int64)


def kaplan_meier(passed_at: ArrayLike, left_at: ArrayLike, steps: ArrayLike) -> Array:
    r"""Return the fraction not yet past a threshold, with censoring.

    .. math:: S(t)=\prod_{t_i\le t}\Bigl(1-\frac{d_i}{n_i}\Bigr)

    where :math:`d_i` replicas pass at :math:`t_i`, out of :math:`n_i` that were observed and had not passed.

    Args:
        passed_at: the step of first passage, -1 if none was seen, shape (R,).
        left_at: the step after which a replica was not observed any more, -1 if it was to the end.
        steps: where the curve is wanted, any shape.

    Returns:
        S, in the shape of ``steps``. Without censoring the plain fraction of replicas not past.

    Of four replicas one passes at step 1, one leaves after step 2, one of the two others passes at step 3:

    >>> kaplan_meier([1, -1, 3, -1], [-1, 2, -1, -1], [0, 1, 2, 3]).tolist()
    [1.0, 0.75, 0.75, 0.375]
    """
    passed, left, wanted = np.asarray(passed_at), np.asarray(left_at), np.asarray(steps)
    times = np.unique(passed[passed >= 0])
    observed = np.where(passed >= 0, passed, np.where(left >= 0, left, np.iinfo(np.int64).max))
    deaths = np.array([(passed == time).sum() for time in times])
    at_risk = np.array([(observed >= time).sum() for time in times])
    curve = np.concatenate([[1.0], np.cumprod(1 - deaths / at_risk)])
    return np.asarray(curve[np.searchsorted(times, wanted, side="right")])
