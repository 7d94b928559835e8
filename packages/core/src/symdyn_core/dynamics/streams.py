r"""Random numbers for compiled loops: one counter-seeded stream per replica and column.

The streams are xoshiro256++ generators whose states are consecutive outputs of SplitMix64, at a place fixed
by the seed, the replica and the column. Replica 7 therefore draws the same numbers whether 8 or 8000 replicas
run, and a further column does not shift the numbers of the others. Normal numbers come from the ziggurat
with 256 layers, which needs one number, one product and one comparison in 98.8 % of the cases.

Each ``fill_*`` keeps the state of a stream in registers over a whole block of numbers: reading and writing it
for every number would triple the time. Import this module where it is needed and not at the top: it
brings numba. The compiled code is kept on disk where numba finds a place to write.

Source: xoshiro256++ and SplitMix64, Blackman and Vigna (2021); ziggurat, Marsaglia and Tsang (2000).
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

int64: Any = numba.int64
uint64: Any = numba.uint64

Array = NDArray[np.float64]
States = NDArray[np.uint64]
"""Shape (replicas, columns, 4)."""

Word = Any
"""64 bits; numba knows signed from unsigned, the type checker need not."""

Function = TypeVar("Function", bound=Callable[..., Any])

# Layers of the ziggurat: the tail begins at TAIL, and each layer has the area AREA under exp(-x^2 / 2).
LAYERS, TAIL, AREA = 256, 3.6541528853610088, 0.00492867323399


def compiled(function: Function) -> Function:
    """Compile at the first call; keep the machine code on disk if a place for it can be written."""
    try:
        return cast(Function, numba.njit(function, cache=True, nogil=True))
    except RuntimeError:  # no directory to cache in: an installation that nobody here may write
        return cast(Function, numba.njit(function, nogil=True))


def stream_states(seed: int, replicas: int, columns: int) -> States:
    """Return the states of fresh streams, shape (replicas, columns, 4).

    Args:
        seed: below 2^63.
        replicas: below 2^40.
        columns: streams per replica, below 2^22.

    >>> bool((stream_states(1, 8, 2)[:3, :1] == stream_states(1, 3, 1)).all())
    True
    """
    replica = np.arange(replicas, dtype=np.uint64)[:, None, None]
    column = np.arange(columns, dtype=np.uint64)[None, :, None]
    word = np.arange(1, 5, dtype=np.uint64)
    place = ((column << np.uint64(40)) + replica) * np.uint64(4) + word  # of SplitMix64's sequence
    z = np.uint64(seed) + place * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _layer_edges() -> Array:
    """Return the right ends of the layers, inner ones first; the outermost is widened to hold the tail."""
    edges = np.zeros(LAYERS + 1)
    edges[LAYERS], edges[LAYERS - 1] = AREA / np.exp(-(TAIL**2) / 2), TAIL
    for layer in range(LAYERS - 2, 0, -1):
        outer = edges[layer + 1]
        edges[layer] = np.sqrt(-2 * np.log(AREA / outer + np.exp(-(outer**2) / 2)))
    return edges


_EDGES = _layer_edges()
_INNER = _EDGES[:-1].copy()  # a point of layer i nearer than this is below the curve
_WIDTH = _EDGES[1:] * 2.0**-51  # times a signed 52-bit integer: uniform over the layer
_HEIGHT = np.exp(-(_EDGES**2) / 2)


@compiled
def _rotated(word: Word, bits: int) -> Word:
    return (word << uint64(bits)) | (word >> uint64(64 - bits))


@compiled
def _following(a: Word, b: Word, c: Word, d: Word) -> tuple[Word, Word, Word, Word]:
    """Return the state after this one."""
    shifted = b << uint64(17)
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= shifted
    return a, b, c, _rotated(d, 45)


@compiled
def _scrambled(a: Word, d: Word) -> Word:
    """Return the 64 random bits of a state."""
    return _rotated(a + d, 23) + a


@compiled
def _uniform(bits: Word) -> Any:
    return int64(bits >> uint64(11)) * 2.0**-53


@compiled
def _next_uniform(state: States) -> Any:
    bits = _scrambled(state[0], state[3])
    state[0], state[1], state[2], state[3] = _following(state[0], state[1], state[2], state[3])
    return _uniform(bits)


@compiled
def _rare_normal(state: States, x: Any, layer: Word) -> Any:
    """Finish the ziggurat's 1.2 %: a point in the tail or on the curved side of a layer."""
    while True:
        if layer == LAYERS - 1:
            while True:
                beyond = -np.log1p(-_next_uniform(state)) / TAIL
                if -2 * np.log1p(-_next_uniform(state)) > beyond**2:
                    return TAIL + beyond if x > 0 else -TAIL - beyond
        below = _HEIGHT[layer + 1]
        if below + (_HEIGHT[layer] - below) * _next_uniform(state) < np.exp(-(x**2) / 2):
            return x
        bits = _scrambled(state[0], state[3])
        state[0], state[1], state[2], state[3] = _following(state[0], state[1], state[2], state[3])
        layer = int64(bits & uint64(LAYERS - 1))
        x = (int64(bits) >> 12) * _WIDTH[layer]
        if abs(x) < _INNER[layer]:
            return x


@compiled
def next_normal(state: States) -> Any:
    """Return one standard normal number of a stream, shape (4,); :func:`fill_normal` is faster for many."""
    bits = _scrambled(state[0], state[3])
    state[0], state[1], state[2], state[3] = _following(state[0], state[1], state[2], state[3])
    layer = int64(bits & uint64(LAYERS - 1))
    x = (int64(bits) >> 12) * _WIDTH[layer]
    return x if abs(x) < _INNER[layer] else _rare_normal(state, x, layer)


@compiled
def fill_normal(states: States, column: int, out: Array) -> None:
    """Write standard normal numbers into ``out[:, :, column]``, shape (replicas, numbers, columns)."""
    for replica in range(out.shape[0]):
        state = states[replica, column]
        a, b, c, d = state[0], state[1], state[2], state[3]
        for place in range(out.shape[1]):
            bits = _scrambled(a, d)
            a, b, c, d = _following(a, b, c, d)
            # Eight bits choose the layer, the upper 52 the place in it: no bit is used twice.
            layer = int64(bits & uint64(LAYERS - 1))
            x = (int64(bits) >> 12) * _WIDTH[layer]
            if abs(x) >= _INNER[layer]:
                state[0], state[1], state[2], state[3] = a, b, c, d
                x = _rare_normal(state, x, layer)
                a, b, c, d = state[0], state[1], state[2], state[3]
            out[replica, place, column] = x
        state[0], state[1], state[2], state[3] = a, b, c, d


@compiled
def fill_uniform(states: States, column: int, out: Array) -> None:
    """Write uniform numbers of [0, 1) into ``out[:, :, column]``, shape (replicas, numbers, columns)."""
    for replica in range(out.shape[0]):
        state = states[replica, column]
        a, b, c, d = state[0], state[1], state[2], state[3]
        for place in range(out.shape[1]):
            out[replica, place, column] = _uniform(_scrambled(a, d))
            a, b, c, d = _following(a, b, c, d)
        state[0], state[1], state[2], state[3] = a, b, c, d


@compiled
def fill_sign(states: States, column: int, out: Array) -> None:
    """Write -1 or 1 into ``out[:, :, column]``, shape (replicas, numbers, columns)."""
    for replica in range(out.shape[0]):
        state = states[replica, column]
        a, b, c, d = state[0], state[1], state[2], state[3]
        for place in range(out.shape[1]):
            out[replica, place, column] = float(int64(_scrambled(a, d) >> uint64(63)) * 2 - 1)
            a, b, c, d = _following(a, b, c, d)
        state[0], state[1], state[2], state[3] = a, b, c, d


@compiled
def fill_rows(states: States, data: Array, out: Array) -> None:
    """Write rows of the data, drawn with replacement, into ``out``, shape (replicas, numbers, columns)."""
    for replica in range(out.shape[0]):
        state = states[replica, 0]
        for place in range(out.shape[1]):
            row = int(_next_uniform(state) * data.shape[0])
            for column in range(data.shape[1]):
                out[replica, place, column] = data[row, column]


@compiled
def fill_epochs(
    states: States, order: NDArray[np.int64], used: NDArray[np.int64], epoch: int, data: Array, out: Array
) -> None:
    """Write rows of the data, shuffled afresh in each epoch, into ``out``, (replicas, numbers, columns).

    Args:
        states: streams, shape (replicas, columns, 4).
        order: an arrangement of the rows, shape (replicas, n_samples); rearranged as rows are drawn, so that
            an epoch is a partial Fisher-Yates shuffle, uniform whatever the arrangement it began with.
        used: how many rows of the epoch are drawn, shape (replicas,).
        epoch: rows per epoch, at most n_samples.
        data: shape (n_samples, columns).
        out: the rows.
    """
    for replica in range(out.shape[0]):
        state = states[replica, 0]
        for place in range(out.shape[1]):
            first = used[replica]
            chosen = first + int(_next_uniform(state) * (data.shape[0] - first))
            row = order[replica, chosen]
            order[replica, chosen] = order[replica, first]
            order[replica, first] = row
            used[replica] = first + 1 if first + 1 < epoch else 0
            for column in range(data.shape[1]):
                out[replica, place, column] = data[row, column]
