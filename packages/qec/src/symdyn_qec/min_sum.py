r"""Belief propagation by the min-sum rule, many shots at a time.

A check tells each of its errors how sure the least sure of the others is; what an error believes is the sum
of its prior and of what its checks tell it. Checks speak one after the other and are heard at once, which
takes half as many rounds as when all speak together. A shot is done when the errors believed in explain its
detectors. There may be several versions of the priors. Sixteen pairs of a shot and a version go side by side
through the registers of a core, and a pair that is done makes room for the next, so that slow ones hold up
nobody.

Sources: scaled min-sum, Chen et al., IEEE Trans. Commun. 53 (2005) 1288; checks in turn, Hocevar, SIPS 2004.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from symdyn_core.errors import InputError
from symdyn_qec.gf2 import BitMatrix

LANES = 16

# Beliefs in nats that mean certainty.
CERTAIN = 50.0


class Believed(NamedTuple):
    """What belief propagation makes of some shots.

    Fields:
        errors: believed in at the end, bits, shape ``(shots, versions, errors)``.
        rounds: until they explained the detectors; 0 where they never did, shape ``(shots, versions)``.
    """

    errors: BitMatrix
    rounds: NDArray[np.int32]


class MinSum:
    """Belief propagation on a set of checks.

    Args:
        checks: which errors flip which detectors, sparse, shape ``(detectors, errors)``.
        priors: probabilities of the errors in each version, in (0, 1/2], shape ``(versions, errors)``.
        rounds: at most, at least 1.
        scales: of what checks say in each version, in (0, 1], shape ``(versions,)``; they would be too sure
            otherwise.

    Raises:
        InputError: a value out of range, or shapes that do not fit.

    >>> repetition = MinSum(sparse.csr_array([[1, 1, 0], [0, 1, 1]]), np.full((1, 3), 0.1), [0.9])
    >>> repetition.decode(np.array([[1, 0]], np.uint8)).errors.tolist()
    [[[1, 0, 0]]]
    """

    def __init__(
        self, checks: sparse.sparray, priors: NDArray[np.float64], scales: ArrayLike, rounds: int = 15
    ) -> None:
        if rounds < 1:
            raise InputError(f"rounds must be at least 1, got {rounds}")
        table, factors = sparse.csr_array(checks), np.asarray(scales, dtype=np.float32)
        if factors.ndim != 1 or not ((factors > 0) & (factors <= 1)).all():
            raise InputError(f"scales must be in (0, 1], one for each version, got {scales!r}")
        if priors.shape != (expected := (len(factors), table.shape[1])):
            raise InputError(f"priors must have shape (versions, errors) = {expected}, got {priors.shape}")
        if priors.size and not (priors.min() > 0 and priors.max() <= 0.5):
            raise InputError(f"priors must be in (0, 1/2], got {priors.min():g} to {priors.max():g}")
        self._start, self._errors = table.indptr.astype(np.int64), table.indices.astype(np.int64)
        self._beliefs = np.minimum(np.log1p(-priors) - np.log(priors), CERTAIN).astype(np.float32)
        self._rounds, self._scales = rounds, factors

    def decode(self, syndromes: BitMatrix) -> Believed:
        """Return the errors believed in.

        Args:
            syndromes: detectors, bits, shape ``(shots, detectors)``.
        """
        errors = np.zeros((len(syndromes), *self._beliefs.shape), np.uint8)
        rounds = np.zeros(errors.shape[:2], np.int32)
        _propagate()(
            np.ascontiguousarray(syndromes),
            self._start,
            self._errors,
            self._beliefs,
            self._rounds,
            self._scales,
            errors,
            rounds,
        )
        return Believed(errors, rounds)


@cache
def _propagate() -> Any:
    """Compile the kernel; numba is slow to import."""
    import numba

    @numba.njit(cache=True, nogil=True, fastmath=True)
    def propagate(syndromes, start, owner, priors, most, scales, errors, rounds):  # type: ignore[no-untyped-def]
        checks, (versions, columns) = len(start) - 1, priors.shape
        tasks = len(syndromes) * versions
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
        scale = np.zeros(LANES, np.float32)
        following, busy = 0, 0
        while True:
            for lane in range(LANES):
                if place[lane] < 0 and following < tasks:
                    shot, version = divmod(following, versions)
                    place[lane], done[lane], scale[lane] = following, 0, scales[version]
                    for check in range(checks):
                        fired[check, lane] = -1.0 if syndromes[shot, check] else 1.0
                    for column in range(columns):
                        belief[column, lane] = priors[version, column]
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
                        size = scale[lane] * sign[lane] * size
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
                        shot, version = divmod(place[lane], versions)
                        for column in range(columns):
                            errors[shot, version, column] = belief[column, lane] < 0
                        rounds[shot, version] = done[lane] if broken[lane] <= 0 else 0
                        place[lane] = -1
                        busy -= 1

    return propagate
