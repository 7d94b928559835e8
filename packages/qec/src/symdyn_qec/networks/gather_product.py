r"""Gathered rows times a matrix on one CPU core, without writing the gathered rows down.

An update of a message-passing network is a matrix product whose left factor is assembled from neighbours:

.. math:: y_r = \sum_k x_{\mathrm{index}(r, k)} W_k .

At the widths of our networks, 16 to 64, gathering first spends the time on memory, and general matrix
products run at half of their speed on so few columns. Here a block of six rows and sixteen columns of y stays
in registers while all that they need of x passes by.

Numba has no vectors. The innermost loops are therefore written in LLVM's own language, which is compiled for
whatever CPU is there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from symdyn_core.errors import InputError

# Twelve accumulators of eight floats, two vectors of the matrix and one of x fill AVX2's sixteen registers.
ROWS, VECTORS, LANES = 6, 2, 8
COLUMNS = VECTORS * LANES

# For the gradient of the matrix: rows of the matrix in registers.
MATRIX_ROWS = 4

# Rows of y that are worked on while one W_k is in the cache; a multiple of ROWS.
TILE = 24

# erf(z) = z P(z^2) / Q(z^2) within 4e-7 for |z| < 4 in float32; fitted to scipy.special.erf.
P = (1.128379, 0.20041365, 0.050611152, 0.0037152501, 0.0001416424, -1.9417285e-06, 1.9614028e-08)
Q = (1.0, 0.5109431, 0.11517729, 0.014380722, 0.00095787533)

EPSILON = 1e-5  # of torch's LayerNorm

Floats = NDArray[np.float32]
Index = NDArray[np.int32]


def fits(rows: int, out: int) -> bool:
    """Whether there are as many rows and columns of a result as are worked on at a time."""
    return rows >= TILE and out % COLUMNS == 0


def gather_product(x: Floats, index: Index, matrix: Floats) -> Floats:
    """Return the gathered rows times the matrix.

    Args:
        x: rows to gather, contiguous, shape ``(nodes, width)``.
        index: of rows of x, shape ``(rows, terms)``; at least 24 rows. Not checked.
        matrix: shape ``(terms * width, out)``, out a multiple of 16.

    Returns:
        Shape ``(rows, out)``.

    Raises:
        InputError: too few rows or an out of another size.

    >>> x, index = np.eye(4, dtype=np.float32), np.arange(48, dtype=np.int32).reshape(24, 2) % 4
    >>> matrix = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    >>> gather_product(x, index, matrix)[0, :3].tolist()  # rows 0 and 5 of the matrix
    [80.0, 82.0, 84.0]
    """
    if not fits(len(index), matrix.shape[1]):
        raise InputError(
            f"expected at least {TILE} rows and a multiple of {COLUMNS} columns, "
            f"got {len(index)} rows and {matrix.shape[1]} columns"
        )
    y = np.empty((len(index), matrix.shape[1]), dtype=np.float32)
    _product(x, index, matrix, y)
    return y


def matrix_gradient(x: Floats, index: Index, gradient: Floats) -> Floats:
    """Return the gradient of :func:`gather_product` with respect to its matrix.

    Args:
        x: as there; its width a multiple of 4.
        index: as there.
        gradient: of the result, shape ``(rows, out)``.

    Returns:
        Shape ``(terms * width, out)``.
    """
    found = np.zeros((index.shape[1] * x.shape[1], gradient.shape[1]), dtype=np.float32)
    _matrix_gradient(x, index, gradient, found)
    return found


class Update(NamedTuple):
    r"""How some nodes hear others; all nodes are rows of one array, and the new ones go to other rows of it.

    .. math:: x \leftarrow x + \mathrm{GELU}\Big(\mathrm{LayerNorm}\Big(\sum_k W_k x_k\Big)\Big)

    Fields:
        heard: rows that each node hears, shape ``(rows, terms)``.
        matrix: shape ``(terms * width, width)``.
        scale: of the normalisation, shape ``(width,)``.
        shift: likewise.
        own: row of the first node that hears.
        to: row that it is written to; nobody may hear this row and the following ones meanwhile.
    """

    heard: Index
    matrix: Floats
    scale: Floats
    shift: Floats
    own: int
    to: int


class Updates:
    """Updates one after the other, in a single call.

    Args:
        updates: of nodes of the same width.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        self._places = np.array(
            [(*update.heard.shape, update.own, update.to) for update in updates], dtype=np.int64
        )
        self._index = np.concatenate([update.heard.ravel() for update in updates])
        self._matrix = np.concatenate([update.matrix.ravel() for update in updates])
        self._scale = np.stack([update.scale for update in updates])
        self._shift = np.stack([update.shift for update in updates])

    def __call__(self, nodes: Floats) -> None:
        """Update the nodes in place, shape ``(all, width)``."""
        _run(nodes, self._places, self._index, self._matrix, self._scale, self._shift)


class _Accumulators:
    """Code for rows of vectors that stay in registers: LLVM promotes what is only loaded and stored."""

    def __init__(self, builder: ir.IRBuilder, places: list[ir.Value]) -> None:
        self.builder, self.places, self.vector = builder, places, ir.VectorType(ir.FloatType(), LANES)
        self.cells = [[cgutils.alloca_once(builder, self.vector) for _ in range(VECTORS)] for _ in places]
        self.multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fma.v{LANES}f32"
        )
        for place, row in zip(places, self.cells, strict=True):
            for number, cell in enumerate(row):
                builder.store(self._load(place, number), cell)

    def add(self, scalars: list[ir.Value], place: ir.Value) -> None:
        """Add to every row its scalar times the vectors at a place."""
        builder, lane = self.builder, ir.IntType(32)
        empty = ir.Constant(self.vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        vectors = [self._load(place, number) for number in range(VECTORS)]
        for scalar, row in zip(scalars, self.cells, strict=True):
            first = builder.insert_element(empty, scalar, ir.Constant(lane, 0))
            spread = builder.shuffle_vector(first, empty, everywhere)
            for cell, vector in zip(row, vectors, strict=True):
                builder.store(builder.call(self.multiply_add, [spread, vector, builder.load(cell)]), cell)

    def store(self) -> None:
        """Write the rows back."""
        for place, row in zip(self.places, self.cells, strict=True):
            for number, cell in enumerate(row):
                self.builder.store(self.builder.load(cell), self._place(place, number)).align = 4

    def _place(self, place: ir.Value, number: int) -> ir.Value:
        moved = self.builder.gep(place, [ir.Constant(ir.IntType(64), number * LANES)])
        return self.builder.bitcast(moved, self.vector.as_pointer())

    def _load(self, place: ir.Value, number: int) -> ir.Value:
        value = self.builder.load(self._place(place, number))
        value.align = 4  # rows are aligned as floats, no more
        return value


class _Matrix:
    """An array with rows in an intrinsic's code."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.data = builder, array.data
        self.width = cgutils.unpack_tuple(builder, array.shape)[1]

    def place(self, row: ir.Value, column: ir.Value) -> ir.Value:
        return self.builder.gep(self.data, [self.builder.add(self.builder.mul(row, self.width), column)])

    def load(self, row: ir.Value, column: ir.Value) -> ir.Value:
        return self.builder.load(self.place(row, column))


@intrinsic
def _add_product(
    _typing: Any, x: Any, index: Any, row: Any, k: Any, matrix: Any, y: Any, to: Any, column: Any
) -> Any:
    """Add the products of term k to ROWS rows of y, from row ``to`` on, and COLUMNS columns."""
    signature = types.void(x, index, types.intp, types.intp, matrix, y, types.intp, types.intp)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kinds, (x, index, row, k, matrix, y, to, column) = signature.args, arguments
        x, index, matrix, y = (_Matrix(context, builder, kinds[n], arguments[n]) for n in (0, 1, 4, 5))
        numbers = [ir.Constant(ir.IntType(64), r) for r in range(ROWS)]
        zero = numbers[0]
        heard = [x.place(builder.sext(index.load(builder.add(row, r), k), row.type), zero) for r in numbers]
        block = _Accumulators(builder, [y.place(builder.add(to, r), column) for r in numbers])
        first = builder.mul(k, x.width)
        with cgutils.for_range(builder, x.width) as loop:
            scalars = [builder.load(builder.gep(place, [loop.index])) for place in heard]
            block.add(scalars, matrix.place(builder.add(first, loop.index), column))
        block.store()
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_outer(
    _typing: Any,
    x: Any,
    index: Any,
    start: Any,
    stop: Any,
    k: Any,
    feature: Any,
    gradient: Any,
    y: Any,
    column: Any,
) -> Any:
    """Add the outer products of rows start to stop to MATRIX_ROWS rows of term k and COLUMNS columns."""
    signature = types.void(x, index, types.intp, types.intp, types.intp, types.intp, gradient, y, types.intp)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kinds, (x, index, start, stop, k, feature, gradient, y, column) = signature.args, arguments
        x, index, gradient, y = (_Matrix(context, builder, kinds[n], arguments[n]) for n in (0, 1, 6, 7))
        numbers = [ir.Constant(ir.IntType(64), r) for r in range(MATRIX_ROWS)]
        first = builder.add(builder.mul(k, x.width), feature)
        block = _Accumulators(builder, [y.place(builder.add(first, r), column) for r in numbers])
        with cgutils.for_range(builder, stop, start=start) as loop:
            heard = builder.sext(index.load(loop.index, k), loop.index.type)
            scalars = [x.load(heard, builder.add(feature, r)) for r in numbers]
            block.add(scalars, gradient.place(loop.index, column))
        block.store()
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(x, index, start, matrix, work):  # type: ignore[no-untyped-def]  # numba infers types
    """Fill the work space with the products of TILE rows."""
    work[:] = 0
    for k in range(index.shape[1]):
        for column in range(0, matrix.shape[1], COLUMNS):
            for row in range(0, TILE, ROWS):
                _add_product(x, index, start + row, k, matrix, work, row, column)


@njit(cache=True, nogil=True, error_model="numpy")
def _product(x, index, matrix, y):  # type: ignore[no-untyped-def]  # numba infers types
    work = np.empty((TILE, matrix.shape[1]), dtype=np.float32)
    for begin in range(0, len(index), TILE):
        start = min(begin, len(index) - TILE)  # the last tile does some rows again
        _fill(x, index, start, matrix, work)
        y[start : start + TILE] = work


@njit(cache=True, nogil=True, error_model="numpy")
def _matrix_gradient(x, index, gradient, y):  # type: ignore[no-untyped-def]  # numba infers types
    for start in range(0, len(index), 4 * TILE):
        stop = min(start + 4 * TILE, len(index))
        for k in range(index.shape[1]):
            for feature in range(0, x.shape[1], MATRIX_ROWS):
                for column in range(0, gradient.shape[1], COLUMNS):
                    _add_outer(x, index, start, stop, k, feature, gradient, y, column)


# Sums may be reordered and divisions approximated, so that loops over a row become vectors.
@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _bend(row, scale, shift):  # type: ignore[no-untyped-def]  # numba infers types
    """Normalise a row and apply GELU, in place."""
    width = len(row)
    mean = np.float32(0)
    for j in range(width):
        mean += row[j]
    mean /= np.float32(width)
    square = np.float32(0)
    for j in range(width):
        square += (row[j] - mean) * (row[j] - mean)
    factor = np.float32(1) / np.sqrt(square / np.float32(width) + np.float32(EPSILON))
    for j in range(width):
        value = (row[j] - mean) * factor * scale[j] + shift[j]
        z = min(max(value * np.float32(0.70710678), np.float32(-4)), np.float32(4))
        t = z * z
        over = np.float32(P[6])
        over = over * t + np.float32(P[5])
        over = over * t + np.float32(P[4])
        over = over * t + np.float32(P[3])
        over = over * t + np.float32(P[2])
        over = over * t + np.float32(P[1])
        over = over * t + np.float32(P[0])
        under = np.float32(Q[4])
        under = under * t + np.float32(Q[3])
        under = under * t + np.float32(Q[2])
        under = under * t + np.float32(Q[1])
        under = under * t + np.float32(Q[0])
        row[j] = np.float32(0.5) * value * (np.float32(1) + z * over / under)


@njit(cache=True, nogil=True, error_model="numpy")
def _update(nodes, index, matrix, scale, shift, own, to):  # type: ignore[no-untyped-def]  # numba infers types
    work = np.empty((TILE, matrix.shape[1]), dtype=np.float32)
    for begin in range(0, len(index), TILE):
        start = min(begin, len(index) - TILE)
        _fill(nodes, index, start, matrix, work)
        for row in range(TILE):
            _bend(work[row], scale, shift)
            for j in range(nodes.shape[1]):
                nodes[to + start + row, j] = nodes[own + start + row, j] + work[row, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _run(nodes, places, indices, matrices, scale, shift):  # type: ignore[no-untyped-def]  # numba infers types
    width = nodes.shape[1]
    heard, weights = 0, 0
    for step in range(len(places)):
        rows, terms, own, to = places[step]
        index = indices[heard : heard + rows * terms].reshape(rows, terms)
        matrix = matrices[weights : weights + terms * width * width].reshape(terms * width, width)
        _update(nodes, index, matrix, scale[step], shift[step], own, to)
        heard += rows * terms
        weights += terms * width * width
