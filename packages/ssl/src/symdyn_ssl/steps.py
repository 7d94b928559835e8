"""Steps in recorded eigenvalue curves: when each eigenvalue rises, and how long it takes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredSteps:
    """What :func:`measure_steps` finds, one entry per sorted eigenvalue, largest first.

    ``times`` are those of the half rise, ``widths`` the times from 10 % to 90 %, both in the unit of the
    record and NaN for an eigenvalue that has not risen.
    """

    times: Array
    widths: Array

    @property
    def count(self) -> int:
        """How many eigenvalues have risen."""
        return int(np.isfinite(self.times).sum())


def measure_steps(times: ArrayLike, eigenvalues: ArrayLike, *, floor: float = 0.01) -> MeasuredSteps:
    """Find the step of each eigenvalue: the first time at which it passes half of its final value.

    Works on any record of an embedding covariance's eigenvalues, whatever trained the embedding. Eigenvalues
    cross, so at each time they are sorted, and the j-th step is that of the j-th largest.

    Args:
        times: when the eigenvalues were recorded, ascending, shape ``(n_times,)``, at least two.
        eigenvalues: shape ``(n_times, dim)``, any order within a row.
        floor: an eigenvalue that ends below this fraction of the largest has not risen; where it would cross
            half of its own final value is noise. In [0, 1).

    Returns:
        Times and widths, linearly interpolated between records.

    Raises:
        InputError: shapes that do not fit, times not ascending, values not finite, or ``floor`` out of range.

    >>> steps = measure_steps([0, 1, 2, 3], [[0, 0], [1, 0], [1, 0], [1, 1]])
    >>> steps.times
    array([0.5, 2.5])
    >>> steps.widths.round(6)
    array([0.8, 0.8])
    """
    t, curves = np.asarray(times, dtype=np.float64), np.asarray(eigenvalues, dtype=np.float64)
    if t.ndim != 1 or len(t) < 2 or curves.ndim != 2 or len(curves) != len(t):
        raise InputError(
            f"expected times (n,) and eigenvalues (n, dim) with n >= 2, got {t.shape} and {curves.shape}"
        )
    if not (np.isfinite(curves).all() and (np.diff(t) > 0).all()):
        raise InputError("eigenvalues must be finite and times ascending")
    if not 0 <= floor < 1:
        raise InputError(f"floor must be in [0, 1), got {floor}")
    curves = -np.sort(-curves, axis=1)
    final = curves[-1]
    risen = (final > 0) & (final >= floor * final[0])
    crossings = np.full((3, len(final)), np.nan)
    for mode in np.flatnonzero(risen):
        crossings[:, mode] = [
            _first_crossing(t, curves[:, mode] / final[mode], level) for level in (0.1, 0.5, 0.9)
        ]
    return MeasuredSteps(times=crossings[1], widths=crossings[2] - crossings[0])


def _first_crossing(times: Array, fraction: Array, level: float) -> float:
    after = int(np.argmax(fraction >= level))
    if after == 0:
        return float(times[0])
    low, high = fraction[after - 1], fraction[after]
    return float(times[after - 1] + (level - low) / (high - low) * (times[after] - times[after - 1]))
