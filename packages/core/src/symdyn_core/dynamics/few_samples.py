"""Where the samples of a few-parameter ensemble come from: fresh random numbers, or rows of finite data."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from symdyn_core.dynamics.compiled_loops import Array
from symdyn_core.errors import InputError, unknown
from symdyn_core.random import derive_seed

DRAWS = ("normal", "uniform", "sign")


class Draws:
    """Fresh random numbers, one stream per replica and entry of a sample."""

    def __init__(self, draws: Sequence[str], seed: int, replicas: int) -> None:
        from symdyn_core.dynamics import streams

        self.columns = len(draws)
        self._fills = [getattr(streams, f"fill_{kind}") for kind in draws]
        self._states = streams.stream_states(derive_seed(seed, "draws"), replicas, self.columns)

    def example(self) -> Array:
        """Return a sample to try the gradient on."""
        sample: Array = np.linspace(0.25, 0.75, self.columns)
        return sample

    def fill(self, group: slice, out: Array) -> None:
        """Write the next samples of a group of replicas into ``out``, shape (replicas, samples, d)."""
        for column, fill in enumerate(self._fills):
            fill(self._states[group], column, out)


class Rows:
    """Rows of finite data, drawn with replacement or in shuffled epochs."""

    def __init__(self, data: Array, batch_size: int, replacement: bool, seed: int, replicas: int) -> None:
        from symdyn_core.dynamics import streams

        self.columns = data.shape[1]
        self._data = data
        self._streams = streams
        self._states = streams.stream_states(derive_seed(seed, "rows"), replicas, 1)
        self._replacement = replacement
        if not replacement:
            self._order = np.tile(np.arange(len(data)), (replicas, 1))
            self._used = np.zeros(replicas, dtype=np.int64)
            self._epoch = len(data) // batch_size * batch_size

    def example(self) -> Array:
        """Return a sample to try the gradient on."""
        sample: Array = self._data[0].copy()
        return sample

    def fill(self, group: slice, out: Array) -> None:
        """Write the next samples of a group of replicas into ``out``, shape (replicas, samples, d)."""
        if self._replacement:
            self._streams.fill_rows(self._states[group], self._data, out)
        else:
            self._streams.fill_epochs(
                self._states[group], self._order[group], self._used[group], self._epoch, self._data, out
            )


def sample_source(
    draws: Sequence[str],
    data: ArrayLike | None,
    batch_size: int,
    replacement: bool,
    seed: int,
    replicas: int,
) -> Draws | Rows:
    """Check what the samples are and return where they come from."""
    if isinstance(draws, str):
        raise InputError(f"draws must be a sequence of names such as [{draws!r}], got the string {draws!r}")
    for kind in draws:
        if kind not in DRAWS:
            raise InputError(unknown("kind of draw", str(kind), DRAWS))
    if data is None:
        if batch_size < 1:
            raise InputError(f"batch_size must be >= 1, got {batch_size}")
        return Draws(draws, seed, replicas)
    if draws:
        raise InputError(f"give draws or data, not both; got draws={list(draws)}")
    rows = np.ascontiguousarray(data, dtype=float)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"data must have the shape (n_samples, d), got {rows.shape}")
    if not np.isfinite(rows).all():
        raise InputError("data must be finite, got NaN or infinite entries")
    if batch_size < 1 or (not replacement and batch_size > len(rows)):
        limit = "at least 1" if replacement else f"in [1, n_samples={len(rows)}]"
        raise InputError(f"batch_size must be {limit}, got {batch_size}")
    return Rows(rows, batch_size, replacement, seed, replicas)
