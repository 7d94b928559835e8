"""Who is whose neighbour on the space-time torus of a bicycle code's memory experiment."""

import numpy as np
from numpy.typing import NDArray

from symdyn_qec.codes import Monomial

# From a node to one that it hears: cycles and cells.
Step = tuple[int, Monomial]

# A node hears itself in this cycle, the last and the next.
ITSELF: tuple[Step, ...] = ((0, (0, 0)), (-1, (0, 0)), (1, (0, 0)))


def forwards(terms: tuple[Monomial, ...]) -> tuple[Step, ...]:
    """Return the steps to the cells ``h + term``."""
    return tuple((0, term) for term in terms)


def backwards(terms: tuple[Monomial, ...]) -> tuple[Step, ...]:
    """Return the steps to the cells ``h - term``."""
    return reverse(forwards(terms))


def reverse(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps back.

    >>> reverse(((-1, (2, 0)),))
    ((1, (-2, 0)),)
    """
    return tuple((-time, (-i, -j)) for time, (i, j) in steps)


def rows_after(shape: tuple[int, int, int, int], step: Step) -> NDArray[np.int64]:
    """Return the row of every node's neighbour, or one past the last row where the experiment has ended.

    Args:
        shape: shots, cycles, l and m; rows are numbered in this order.
        step: from a node to its neighbour.

    >>> rows_after((1, 2, 1, 3), (1, (0, 1))).tolist()
    [4, 5, 3, 6, 6, 6]
    """
    time, (i, j) = step
    rows = np.arange(np.prod(shape)).reshape(shape)
    rows = np.roll(rows, (-time, -i, -j), axis=(1, 2, 3))
    if time:
        rows[:, 0 if time < 0 else -1] = rows.size
    return rows.ravel()
