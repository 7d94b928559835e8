r"""What is recorded of an ensemble: functions of the parameters, over replicas and over time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from symdyn_core.dynamics.streaming import QuantileSketch, StreamingMoments, kaplan_meier
from symdyn_core.errors import InputError

Array = NDArray[np.float64]
OfParams = Callable[[Mapping[str, Tensor]], Tensor]

_COVARIANCE_NUMBERS = 2**26  # of all replicas' covariances together: half a GiB


@dataclass(frozen=True)
class Observable:
    """A function of the parameters of one replica, and what to keep of it.

    Args:
        function: maps the parameters by name to one tensor of any shape; it is vectorised over replicas.
        covariance: keep the covariance of all its k entries, k by k numbers a replica, otherwise variances.
        quantiles: keep a sketch of the distribution of every entry.
        accuracy: relative error of the quantiles.
        threshold: of a single number: keep when each replica first reaches it.

    Raises:
        InputError: the function is not callable.
    """

    function: OfParams
    covariance: bool = True
    quantiles: bool = True
    accuracy: float = 1e-3
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"an observable must be callable, got {type(self.function).__name__}")

    def settings(self) -> str:
        """Return all but the function, as text."""
        return f"{self.covariance} {self.quantiles} {self.accuracy!r} {self.threshold!r}"


class ObservableStatistics:
    r"""Statistics of one observable over replicas and records.

    Mean, covariance and standard error are those of the replicas that are finite to the end: what a replica
    contributed before it diverged, which may be as large as floating point allows, is left out. Quantiles are
    of all replicas while they are finite. ``EnsembleResult.diverged`` says how many are not.

    Attributes:
        shape: of the observable for one replica.
        skipped: values left out because they were not finite though the parameters were.
        first_passage: the recorded step at which each replica first reached the threshold, -1 if it did not,
            shape (R,); None without a threshold. Counted from the start, whatever ``burn_in`` is.
    """

    def __init__(self, observable: Observable, shape: tuple[int, ...], replicas: int) -> None:
        size = int(np.prod(shape, dtype=int))
        if size < 1:
            raise InputError(f"an observable must have at least one entry, got shape {shape}")
        if observable.threshold is not None and size != 1:
            raise InputError(f"an observable with a threshold must be one number, got shape {shape}")
        if observable.covariance and replicas * size**2 > _COVARIANCE_NUMBERS:
            raise InputError(
                f"an observable of {size} entries in {replicas} replicas must be Observable(..., "
                f"covariance=False): all covariances would take {replicas * size**2 * 8 / 2**30:.1f} GiB"
            )
        self.shape, self.skipped = shape, 0
        self._threshold = observable.threshold
        self._moments = StreamingMoments(replicas, size, observable.covariance)
        self._sketch = QuantileSketch(size, observable.accuracy) if observable.quantiles else None
        self.first_passage = None if self._threshold is None else np.full(replicas, -1, dtype=np.int64)
        self._diverged_at = np.full(replicas, -1, dtype=np.int64)

    def update(self, step: int, values: Array, alive: NDArray[np.bool_], settled: bool) -> None:
        """Take in the values after ``step`` steps, shape (R, k); only first passages unless ``settled``."""
        if self.first_passage is not None and self._threshold is not None:
            past = alive & (values[:, 0] >= self._threshold) & (self.first_passage < 0)
            self.first_passage[past] = step
        if not settled:
            return
        kept = alive & np.isfinite(values).all(axis=1)
        self.skipped += int((alive & ~kept).sum())
        self._moments.update(values, kept)
        if self._sketch is not None:
            self._sketch.update(values[kept])

    def close(self, diverged_at: NDArray[np.int64]) -> None:
        """Learn which replicas diverged, and when; -1 for those that did not."""
        self._diverged_at = diverged_at

    def _pooled(self) -> tuple[int, Array, Array]:
        return self._moments.pooled(self._diverged_at < 0)

    @property
    def count(self) -> int:
        """How many values there are in mean and covariance, over replicas and records."""
        return self._pooled()[0]

    @property
    def has_quantiles(self) -> bool:
        """Whether quantiles were asked for."""
        return self._sketch is not None

    @property
    def mean(self) -> Array:
        """Over replicas and time, in the observable's shape."""
        return self._pooled()[1].reshape(self.shape)

    @property
    def covariance(self) -> Array:
        """Of the flattened entries, over replicas and time, shape (k, k)."""
        if not self._moments.full:
            raise InputError("the covariance must be asked for by Observable(..., covariance=True)")
        return self._pooled()[2]

    @property
    def variance(self) -> Array:
        """Over replicas and time, in the observable's shape."""
        spread = self._pooled()[2]
        return np.array(np.diag(spread) if self._moments.full else spread).reshape(self.shape)

    @property
    def replica_means(self) -> Array:
        """Averages over time of each replica, shape (R, k); NaN where it was never recorded, or diverged."""
        return np.where(self._diverged_at[:, None] < 0, self._moments.means, np.nan)

    @property
    def standard_error(self) -> Array:
        """Of the mean, from the spread of the replicas' averages: values of one replica are correlated."""
        means = self.replica_means
        means = means[~np.isnan(means).any(axis=1)]
        if len(means) < 2:
            return np.full(self.shape, np.nan)
        return np.asarray(means.std(axis=0, ddof=1) / np.sqrt(len(means))).reshape(self.shape)

    def quantile(self, level: float) -> Array:
        """Return the quantile over replicas and time, in the observable's shape, within ``accuracy``."""
        if self._sketch is None:
            raise InputError("quantiles must be asked for by Observable(..., quantiles=True)")
        return self._sketch.quantile(level).reshape(self.shape)

    def survival(self, steps: ArrayLike) -> Array:
        """Return the fraction of replicas not yet past the threshold; those that diverged are censored."""
        if self.first_passage is None:
            raise InputError("survival must be asked for by Observable(..., threshold=...)")
        left = np.where(self._diverged_at >= 0, np.maximum(self._diverged_at - 1, 0), -1)
        return kaplan_meier(self.first_passage, left, steps)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything there is to store, by name."""
        parts: dict[str, NDArray[Any]] = {
            f"moments/{key}": value for key, value in self._moments.state().items()
        }
        if self._sketch is not None:
            parts |= {f"sketch/{key}": value for key, value in self._sketch.state().items()}
        if self.first_passage is not None:
            parts["first_passage"] = self.first_passage
        return parts | {"skipped": np.array(self.skipped)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state` returned."""
        self._moments.restore({key: state[f"moments/{key}"] for key in self._moments.state()})
        if self._sketch is not None:
            self._sketch.restore({key: state[f"sketch/{key}"] for key in self._sketch.state()})
        if self.first_passage is not None:
            self.first_passage = np.array(state["first_passage"])
        self.skipped = int(state["skipped"])
