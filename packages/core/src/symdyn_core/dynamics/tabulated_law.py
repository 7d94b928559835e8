"""From a log density on the line to its distribution function, quantiles and averages.

The density is integrated cell by cell with Gauss's rule, and the cells are halved where the logarithm changes
too fast for it. Between the nodes the distribution function is integrated and not interpolated, so that its
values are good to about 1e-12 of the whole everywhere.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

# Five points are exact for polynomials of degree nine; over a cell in which the logarithm changes by at most
# _STEP the error of the density's integral is then below 1e-12 of it.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_POINTS, _WEIGHTS = (_POINTS + 1) / 2, _WEIGHTS / 2
_STEP = 0.5
_NEGLIGIBLE = -60.0  # cells whose density is below exp(-60) of the largest are left coarse
_CELLS = 1500
_ROUNDS = 40


class Antiderivative:
    """The integral of a smooth function of one variable from a reference point, at any point of a range.

    Args:
        function: maps an array of points to values.
        low: left end of the range.
        high: right end.
        zero: where the integral is zero; rounding errors grow away from it.

    >>> integral = Antiderivative(np.exp, -1.0, 2.0, zero=0.0)
    >>> round(float(integral(np.array([1.0]))[0]), 12)
    1.718281828459
    """

    def __init__(self, function: Function, low: float, high: float, zero: float) -> None:
        self._function = function
        left, right = np.linspace(low, zero, _CELLS), np.linspace(zero, high, _CELLS)
        self._nodes = np.concatenate([left, right[1:]])
        cells = gauss(function, self._nodes[:-1], self._nodes[1:])
        inward = -np.cumsum(cells[: _CELLS - 1][::-1])[::-1]
        self._values = np.concatenate([inward, [0.0], np.cumsum(cells[_CELLS - 1 :])])

    def __call__(self, points: Array) -> Array:
        """Integrate from the reference point; outside the range the value at the near end is returned."""
        points = np.clip(points, self._nodes[0], self._nodes[-1])
        cell = np.clip(np.searchsorted(self._nodes, points, side="right") - 1, 0, len(self._nodes) - 2)
        return self._values[cell] + gauss(self._function, self._nodes[cell], points)


class TabulatedLaw:
    r"""A probability law on a range of the line, from its log density up to a constant.

    Args:
        log_density: maps an array of points to the logarithm of the density, without normalisation.
        low: left end of the range.
        high: right end; what lies beyond must be negligible.
        left_rate: beyond the left end the density is $\propto e^{\lambda s}$ with this $\lambda>0$, which is
            integrated exactly; infinity: nothing there.

    A standard normal, and an exponential law of rate 1 towards the left:

    >>> normal = TabulatedLaw(lambda s: -s * s / 2, -12.0, 12.0)
    >>> round(float(normal.quantile(np.array([0.975]))[0]), 6)
    1.959964
    >>> tail = TabulatedLaw(lambda s: np.where(s <= 0, s, -np.inf), -3.0, 0.0, left_rate=1.0)
    >>> round(float(tail.quantile(np.array([0.01]))[0] - math.log(0.01)), 9) + 0.0
    0.0
    """

    def __init__(self, log_density: Function, low: float, high: float, left_rate: float = math.inf) -> None:
        self._left_rate = left_rate
        nodes = _refined(log_density, np.linspace(low, high, _CELLS))
        values = log_density(nodes)
        self._peak = float(values.max())

        def density(s: Array) -> Array:
            return np.exp(log_density(s) - self._peak)

        self._density = density
        self._nodes = nodes
        self._cells = gauss(density, nodes[:-1], nodes[1:])
        self._left = float(np.exp(values[0] - self._peak)) / left_rate
        self._total = self._left + float(self._cells.sum())
        self._below = (self._left + np.concatenate([[0.0], np.cumsum(self._cells)])) / self._total

    @property
    def log_normaliser(self) -> float:
        """The constant to subtract from the log density."""
        return self._peak + math.log(self._total)

    @property
    def beyond(self) -> float:
        """The probability of lying beyond the left end."""
        return self._left / self._total

    def cdf(self, points: Array) -> Array:
        """Return the probability of lying below each point."""
        nodes = self._nodes
        inside = np.clip(points, nodes[0], nodes[-1])
        cell = np.clip(np.searchsorted(nodes, inside, side="right") - 1, 0, len(nodes) - 2)
        value = self._below[cell] + gauss(self._density, nodes[cell], inside) / self._total
        if self._left > 0:
            tail = self._below[0] * np.exp(self._left_rate * np.minimum(points - nodes[0], 0.0))
            value = np.where(points < nodes[0], tail, value)
        return np.clip(value, 0.0, 1.0)

    def quantile(self, probabilities: Array) -> Array:
        """Return the points below which these probabilities lie, each in (0, 1)."""
        nodes, below = self._nodes, self._below
        cell = np.clip(np.searchsorted(below, probabilities, side="right") - 1, 0, len(nodes) - 2)
        low, high = nodes[cell], nodes[cell + 1]
        target = (probabilities - below[cell]) * self._total
        left, found = low, (low + high) / 2
        for _ in range(_ROUNDS):  # Newton's method, and halving where that would leave the cell
            excess = gauss(self._density, left, found) - target
            low, high = np.where(excess > 0, low, found), np.where(excess > 0, found, high)
            before, found = found, found - excess / np.maximum(self._density(found), 1e-300)
            found = np.where((found > low) & (found < high), found, (low + high) / 2)
            if (abs(found - before) <= 1e-14 * (1 + abs(found))).all():
                break
        if self._left > 0:
            fraction = np.minimum(probabilities / below[0], 1.0)
            found = np.where(probabilities < below[0], nodes[0] + np.log(fraction) / self._left_rate, found)
        return found

    def expectation(self, function: Function) -> float:
        """Average a function over the range; what lies beyond the left end is left out."""

        def weighted(s: Array) -> Array:
            return function(s) * self._density(s)

        return float(gauss(weighted, self._nodes[:-1], self._nodes[1:]).sum()) / self._total


def gauss(function: Function, low: Array, high: Array) -> Array:
    """Integrate over many short intervals at once."""
    width = high - low
    return width * (function(low[..., None] + width[..., None] * _POINTS) @ _WEIGHTS)


def _refined(log_density: Function, nodes: Array) -> Array:
    """Halve cells until the log density changes little over each that matters."""
    for _ in range(_ROUNDS):
        middle = (nodes[:-1] + nodes[1:]) / 2
        ends, centre = log_density(nodes), log_density(middle)
        floor = max(ends.max(), centre.max()) + _NEGLIGIBLE
        first, last = np.maximum(ends[:-1], floor), np.maximum(ends[1:], floor)
        between = np.maximum(centre, floor)
        coarse = np.maximum(abs(first - between), abs(last - between)) > _STEP / 2
        if not coarse.any():
            break
        nodes = np.sort(np.concatenate([nodes, middle[coarse]]))
    return nodes
