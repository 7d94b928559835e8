"""Mean first passage times of diffusions on a line by quadrature, to check asymptotic laws of escape with."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError

Array = NDArray[np.float64]
Field = Callable[[Array], Array]

# Between two points of the grid the integrands may grow by this factor, in the logarithm, and no more.
_LARGEST_STEP, _MOST_POINTS = 0.02, 2**22


def log_mfpt_1d(drift: Field, diffusion: Field, start: float, absorbing: float, reflecting: float) -> float:
    r"""Return the logarithm of the mean time to reach a point, for :math:`dx=f\,dt+g\,dB` in Itô's sense.

    .. math:: T(x_0)=\int_{x_0}^{b}dy\,s(y)\int_a^y\frac{2\,dz}{g(z)^2s(z)},\qquad
              s(y)=\exp\Big[-\int_a^y\frac{2f}{g^2}\Big]

    with a reflecting and b absorbing, summed in logarithms, so that times such as :math:`e^{700}` neither
    overflow nor lose digits.

    Args:
        drift: f, of an array of places; returns an array of that shape, or a number if constant.
        diffusion: g > 0, likewise.
        start: :math:`x_0`, between the two ends.
        absorbing: b, where the walk ends; above or below ``reflecting``.
        reflecting: a; put it where the walk hardly ever comes if there is no wall.

    Raises:
        InputError: ends in a wrong order, coefficients of a wrong shape or not finite, a diffusion that is
            not positive or too weak for any number, or a potential too steep for any grid.

    Without drift, from the wall: :math:`T=(b-a)^2/g^2`.

    >>> round(log_mfpt_1d(np.zeros_like, np.ones_like, start=0.0, absorbing=3.0, reflecting=0.0), 6)
    2.197225
    """
    if not all(math.isfinite(value) for value in (start, absorbing, reflecting)):
        raise InputError("start, absorbing and reflecting must be finite")
    if not (min(absorbing, reflecting) <= start <= max(absorbing, reflecting)) or start == absorbing:
        raise InputError(
            f"start must lie between reflecting={reflecting} and absorbing={absorbing}, "
            f"and not on the latter, got {start}"
        )
    # Mirrored, so that the wall is always on the left, with the start on the grid.
    side = math.copysign(1.0, absorbing - reflecting)
    points = 2**12
    while True:
        grid = _grid(side * reflecting, side * start, side * absorbing, points)
        force = side * _values("drift", drift, side * grid)
        noise = _values("diffusion", diffusion, side * grid)
        if not (np.isfinite(force).all() and np.isfinite(noise).all() and (noise > 0).all()):
            raise InputError("drift must be finite, and diffusion finite and > 0, between the ends")
        with np.errstate(over="ignore"):
            slope = 2 * (force / noise) / noise  # the square of the noise could over- or underflow
        if not np.isfinite(slope).all():
            raise InputError("2 drift / diffusion^2 must be finite between the ends: the noise is too weak")
        change = np.diff(grid) * (slope[1:] + slope[:-1]) / 2
        steepest = float(np.abs(change).max())
        if steepest <= _LARGEST_STEP:
            break
        if points >= _MOST_POINTS:
            raise InputError(
                f"the potential is too steep: it changes by {steepest:.3g} between points of the grid"
            )
        points = min(_MOST_POINTS, points * 2 ** math.ceil(math.log2(steepest / _LARGEST_STEP)))
    log_scale = -np.concatenate([[0.0], np.cumsum(change)])
    speed = _log_cumulative(grid, math.log(2) - 2 * np.log(noise) - log_scale)
    beyond = grid >= side * start
    return float(_log_cumulative(grid[beyond], (log_scale + speed)[beyond])[-1])


def mfpt_1d(drift: Field, diffusion: Field, start: float, absorbing: float, reflecting: float) -> float:
    """Return the mean time itself; infinity where it exceeds the largest number.

    Args: as for :func:`log_mfpt_1d`.

    >>> round(mfpt_1d(np.zeros_like, np.ones_like, start=0.0, absorbing=3.0, reflecting=0.0), 6)
    9.0
    """
    with np.errstate(over="ignore"):
        return float(np.exp(log_mfpt_1d(drift, diffusion, start, absorbing, reflecting)))


def _values(name: str, field: Field, places: Array) -> Array:
    """Return a field at these places; one number stands for a constant."""
    values = np.asarray(field(places), dtype=float)
    if values.shape not in ((), places.shape):
        raise InputError(f"{name} must return one value per place, {places.shape}, got {values.shape}")
    return np.broadcast_to(values, places.shape)


def _grid(wall: float, start: float, end: float, points: int) -> Array:
    before = max(2, round(points * (start - wall) / (end - wall))) if start > wall else 1
    parts = [np.linspace(wall, start, before)[:-1], np.linspace(start, end, max(2, points - before))]
    grid: Array = np.concatenate(parts)
    return grid


def _log_cumulative(grid: Array, log_values: Array) -> Array:
    """Return the logarithm of the integral up to each point, minus infinity at the first; trapezoids."""
    cells = np.logaddexp(log_values[1:], log_values[:-1]) + np.log(np.diff(grid) / 2)
    total: Array = np.concatenate([[-math.inf], np.logaddexp.accumulate(cells)])
    return total
