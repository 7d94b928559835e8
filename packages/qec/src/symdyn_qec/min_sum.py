r"""Belief propagation by the min-sum rule, many shots at a time.

A check tells each of its errors how sure the least sure of the others is; what an error believes is the sum
of its prior and of what its checks tell it. Checks speak one after the other and are heard at once, which
takes half as many rounds as when all speak together. A shot is done when the errors believed in explain its
detectors. Sixteen shots go side by side through the registers of a core, and whoever is done makes room for
the next, so that slow shots hold up nobody.

Sources: scaled min-sum, Chen et al., IEEE Trans. Commun. 53 (2005) 1288; checks in turn, Hocevar, SIPS 2004.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from symdyn_core.errors import InputError
from symdyn_qec.gf2 import BitMatrix

LANES = 16

# Beliefs in nats that mean certainty.
CERTAIN = 50.0


class Believed(NamedTuple):
    """What belief propagation makes of some shots.

    Fields:
        errors: believed in at the end, bits, shape ``(shots, errors)``.
        rounds: until they explained the detectors; 0 where they never did, shape ``(shots,)``.
    """

    errors: BitMatrix
    rounds: NDArray[np.int32]


class MinSum:
    """Belief propagation on a set of checks.

    Args:
        checks: which errors flip which detectors, sparse, shape ``(detectors, errors)``.
        priors: probabilities of the errors, in (0, 1/2], shape ``(errors,)``.
        rounds: at most, at least 1.
        scale: of what checks say, in (0, 1]; they would be too sure otherwise.

    Raises:
        InputError: a value out of range, or shapes that do not fit.

    >>> repetition = MinSum(sparse.csr_array([[1, 1, 0], [0, 1, 1]]), np.full(3, 0.1))
    >>> repetition.decode(np.array([[1, 0]], np.uint8)).errors.tolist()
    [[1, 0, 0]]
    """

    def __init__(
        self, checks: sparse.sparray, priors: NDArray[np.float64], rounds: int = 15, scale: float = 0.9
    ) -> None:
        if rounds < 1:
            raise InputError(f"rounds must be at least 1, got {rounds}")
        if not 0 < scale <= 1:
            raise InputError(f"scale must be in (0, 1], got {scale}")
        table = sparse.csr_array(checks)
        if table.shape[1] != len(priors):
            raise InputError(f"priors must be {table.shape[1]}, one for each error, got {len(priors)}")
        if len(priors) and not (priors.min() > 0 and priors.max() <= 0.5):
            raise InputError(f"priors must be in (0, 1/2], got {priors.min():g} to {priors.max():g}")
        self._start, self._errors = table.indptr.astype(np.int64), table.indices.astype(np.int64)
        self._beliefs = np.minimum(np.log1p(-priors) - np.log(priors), CERTAIN).astype(np.float32)
        self._rounds, self._scale = rounds, np.float32(scale)

    def decode(self, syndromes: BitMatrix) -> Believed:
        """Return the errors believed in.

        Args:
            syndromes: detectors, bits, shape ``(shots, detectors)``.
        """
        errors = np.zeros((len(syndromes), len(self._beliefs)), np.uint8)
        rounds = np.zeros(len(syndromes), np.int32)
        _propagate()(
            np.ascontiguousarray(syndromes),
            self._start,
            self._errors,
            self._beliefs,
            self._rounds,
            self._scale,
            errors,
            rounds,
        )
        return Believed(errors, rounds)


@cache
def _propagate() -> Any:
    """Compile the kernel; numba is slow to import."""
    import numba

    @numba.njit(cache=True, nogil=True, fastmath=True)
    def propagate(syndromes, start, owner, priors, most, scale, errors, rounds):  # type: ignore[no-untyped-def]
        shots, checks, columns = len(syndromes), len(start) - 1, len(priors)
        widest = 0
        for check in range(checks):
            widest = max(widest, start[check + 1] - start[check])
        told = np.zeros((len(owner), LANES), np.float32)
        belief = np.zeros((columns, LANES), np.float32)
        heard = np.zeros((widest, LANES), np.float32)
        sign, least, second = (
            np.zeros(LANES, np.float32),
            np.zeros(LANES, np.float32),
            np.zeros(LANES, np.float32),
        )
        fired = np.zeros((checks, LANES), np.float32)
        odd, broken = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        place, done = np.full(LANES, -1), np.zeros(LANES, np.int32)
        following, busy = 0, 0
        while True:
            for lane in range(LANES):
                if place[lane] < 0 and following < shots:
                    place[lane], done[lane] = following, 0
                    for check in range(checks):
                        fired[check, lane] = -1.0 if syndromes[following, check] else 1.0
                    for column in range(columns):
                        belief[column, lane] = priors[column]
                    for edge in range(len(owner)):
                        told[edge, lane] = 0.0
                    following += 1
                    busy += 1
            if not busy:
                return
            for check in range(checks):
                first, last = start[check], start[check + 1]
                for lane in range(LANES):
                    sign[lane], least[lane], second[lane] = fired[check, lane], 1e9, 1e9
                for edge in range(first, last):
                    column = owner[edge]
                    for lane in range(LANES):
                        value = belief[column, lane] - told[edge, lane]
                        size = abs(value)
                        heard[edge - first, lane] = value
                        second[lane] = min(second[lane], max(least[lane], size))
                        least[lane] = min(least[lane], size)
                        sign[lane] = -sign[lane] if value < 0 else sign[lane]
                for edge in range(first, last):
                    column = owner[edge]
                    for lane in range(LANES):
                        value = heard[edge - first, lane]
                        size = second[lane] if abs(value) == least[lane] else least[lane]
                        size = scale * sign[lane] * size
                        size = -size if value < 0 else size
                        told[edge, lane] = size
                        belief[column, lane] = value + size
            for lane in range(LANES):
                broken[lane] = 0.0
            for check in range(checks):
                for lane in range(LANES):
                    odd[lane] = fired[check, lane]
                for edge in range(start[check], start[check + 1]):
                    column = owner[edge]
                    for lane in range(LANES):
                        odd[lane] = -odd[lane] if belief[column, lane] < 0 else odd[lane]
                for lane in range(LANES):
                    broken[lane] = max(broken[lane], -odd[lane])
            for lane in range(LANES):
                if place[lane] >= 0:
                    done[lane] += 1
                    if broken[lane] <= 0 or done[lane] == most:
                        for column in range(columns):
                            errors[place[lane], column] = belief[column, lane] < 0
                        rounds[place[lane]] = done[lane] if broken[lane] <= 0 else 0
                        place[lane] = -1
                        busy -= 1

    return propagate
