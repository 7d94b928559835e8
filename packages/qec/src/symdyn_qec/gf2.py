"""Linear algebra over the field of two elements.

Matrices are ``uint8`` arrays of zeros and ones. Everything rests on one Gaussian elimination; at the sizes of
quantum codes (a few hundred columns) it takes milliseconds.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError

BitMatrix = NDArray[np.uint8]


def bits(matrix: ArrayLike, name: str = "matrix") -> BitMatrix:
    """Return ``matrix`` as a two-dimensional array of bits.

    Raises:
        InputError: another number of dimensions, or entries besides 0 and 1.
    """
    array = np.asarray(matrix)
    if array.ndim != 2:
        raise InputError(f"{name} must have 2 dimensions, got shape {array.shape}")
    strange = (array != 0) & (array != 1)
    if strange.any():
        raise InputError(f"{name} must hold only 0 and 1, got {array[strange][0]}")
    return array.astype(np.uint8)


def row_reduce(matrix: ArrayLike) -> tuple[BitMatrix, NDArray[np.int64]]:
    """Return the reduced row echelon form and its pivot columns.

    Args:
        matrix: bits, shape ``(m, n)``.

    Returns:
        ``(reduced, pivots)``: shape ``(rank, n)``, without zero rows, and the column of each row's leading
        one, in increasing order; in those columns ``reduced`` is the identity.

    >>> reduced, pivots = row_reduce([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    >>> reduced.tolist(), pivots.tolist()
    ([[1, 0, 1], [0, 1, 1]], [0, 1])
    """
    work = bits(matrix)
    rows = np.packbits(work, axis=1)  # eight columns a byte: an eighth of the memory to move
    pivots: list[int] = []
    for column in range(work.shape[1]):
        target = len(pivots)
        if target == len(rows):
            break
        ones = np.flatnonzero(rows[:, column >> 3] & (0x80 >> (column & 7)))
        place = int(np.searchsorted(ones, target))
        if place == ones.size:
            continue
        pivot = ones[place]
        rows[[target, pivot]] = rows[[pivot, target]]
        rows[ones[ones != pivot]] ^= rows[target]
        pivots.append(column)
    reduced = np.unpackbits(rows[: len(pivots)], axis=1, count=work.shape[1])
    return reduced, np.array(pivots, dtype=np.int64)


def rank(matrix: ArrayLike) -> int:
    """Return the number of linearly independent rows.

    >>> rank([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    2
    """
    return len(row_reduce(matrix)[1])


def nullspace(matrix: ArrayLike) -> BitMatrix:
    """Return a basis of the vectors ``v`` with ``matrix @ v = 0``, as rows.

    Args:
        matrix: bits, shape ``(m, n)``.

    Returns:
        Shape ``(n - rank, n)``.

    >>> nullspace([[1, 1, 0], [0, 1, 1]]).tolist()
    [[1, 1, 1]]
    """
    reduced, pivots = row_reduce(matrix)
    free = np.setdiff1d(np.arange(reduced.shape[1]), pivots)
    basis = np.zeros((free.size, reduced.shape[1]), dtype=np.uint8)
    basis[np.arange(free.size), free] = 1
    basis[:, pivots] = reduced[:, free].T
    return basis


def express(vectors: ArrayLike, rows: ArrayLike) -> BitMatrix:
    """Write each vector as a sum of the given rows.

    Args:
        vectors: bits, shape ``(a, n)``.
        rows: bits, shape ``(m, n)``; they may depend on each other, then one of the solutions is returned.

    Returns:
        ``coefficients``, shape ``(a, m)``, with ``coefficients @ rows = vectors`` modulo 2.

    Raises:
        InputError: some vector does not lie in the span of the rows.

    >>> express([[1, 0, 1]], [[1, 1, 0], [0, 1, 1]]).tolist()
    [[1, 1]]
    """
    targets, generators = bits(vectors, "vectors"), bits(rows, "rows")
    if targets.shape[1] != generators.shape[1]:
        raise InputError(
            f"vectors and rows must be equally long, got {targets.shape[1]}, {generators.shape[1]}"
        )
    # Columns of the system are the rows to add up; the right-hand sides ride along through the elimination.
    m = generators.shape[0]
    reduced, pivots = row_reduce(np.hstack([generators.T, targets.T]))
    inside = pivots < m
    if not inside.all():
        stray = int(pivots[~inside][0]) - m
        raise InputError(f"vector {stray} is not a sum of the {m} rows given")
    coefficients = np.zeros((targets.shape[0], m), dtype=np.uint8)
    coefficients[:, pivots] = reduced[:, m:].T
    return coefficients


def independent_rows(rows: ArrayLike, modulo: ArrayLike) -> NDArray[np.int64]:
    """Return the indices of the rows that are independent of all before them and of the rows of ``modulo``.

    Taken in order of increasing weight this is the greedy algorithm on a matroid: the lightest basis there is
    among the rows.

    >>> independent_rows([[1, 1, 0], [0, 1, 1], [1, 0, 1]], modulo=[[1, 1, 0]]).tolist()
    [1]
    """
    candidates, known = bits(rows, "rows"), bits(modulo, "modulo")
    pivots = row_reduce(np.vstack([known, candidates]).T)[1]
    chosen: NDArray[np.int64] = pivots[pivots >= known.shape[0]] - known.shape[0]
    return chosen
