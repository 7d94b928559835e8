r"""Belief propagation by the min-sum rule, many shots and versions at a time.

A check tells each of its errors how sure the least sure of the others is; what an error believes is the sum
of its prior and of what its checks tell it. Checks speak one after the other and are heard at once, which
takes half as many sweeps as when all speak together.

It goes on in legs of a few sweeps. First the checks of the other sector speak; then each part of an error
gets a new prior, from what its partners in the other sector have come to believe; then the own checks speak.
A shot is done when what is believed explains the own detectors. If it does not, the priors are disturbed in
another way, and the next leg begins where the last one ended: so the propagation gets out of cycles in which
it would be caught. Versions differ in the disturbances that they go through.

Sixteen pairs of a shot and a version go side by side through the registers of a core, and a pair that is done
makes room for the next, so that slow ones hold up nobody; each takes the course that it would take alone.

Sources: scaled min-sum, Chen et al., IEEE Trans. Commun. 53 (2005) 1288; checks in turn, Hocevar, SIPS 2004;
a relay of disordered legs, Mueller et al., arXiv 2506.01779, who disorder the memory of the propagation;
exponentials and logarithms from the bits of floats, Schraudolph, Neural Comput. 11 (1999) 853. The exchange
between the sectors is derived here.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.correlated_sectors import CorrelatedSectors, Sector
from symdyn_qec.gf2 import BitMatrix

# Pairs of a shot and a version that go together, and when there are few of them.
LANES, FEW_LANES = 16, 4

SWEEPS = 3

# Different disturbances: a prime number, and how many further on the next leg goes.
DISTURBANCES, STRIDE = 61, 7

# Of a float32 as an integer: steps per unit of the natural logarithm, and the integer of 1, less what makes
# the error of the piecewise linear exponential the same on both sides.
STEPS, ONE = 12102203.16, 1064872507.0

# Evidence in nats that means certainty.
CERTAIN = 24.0


class Believed(NamedTuple):
    """What belief propagation makes of some shots.

    Fields:
        errors: parts in the own sector believed in at the end, bits, shape ``(shots, versions, parts)``.
        legs: until they explained the detectors; 0 where they never did, shape ``(shots, versions)``.
    """

    errors: BitMatrix
    legs: NDArray[np.int32]


class MinSum:
    """Belief propagation on two sectors, of which the second may be empty.

    Args:
        sectors: to decode.
        scale: of what checks say, in (0, 1]; they would be too sure otherwise.
        disturbance: standard deviation of the priors' logarithms, at least 0.
        legs: at most, at least 1.
        seed: of the disturbances.

    Raises:
        InputError: a value out of range.

    >>> from scipy import sparse
    >>> repetition = CorrelatedSectors.single(sparse.csr_array([[1, 1, 0], [0, 1, 1]]), np.full(3, 0.1))
    >>> shot, nothing = np.array([[1, 0]], np.uint8), np.zeros((1, 0), np.uint8)
    >>> MinSum(repetition).decode(shot, nothing, range(1)).errors.tolist()
    [[[1, 0, 0]]]
    """

    def __init__(
        self,
        sectors: CorrelatedSectors,
        *,
        scale: float = 0.9,
        disturbance: float = 0.8,
        legs: int = 12,
        seed: int = 0,
    ) -> None:
        if legs < 1:
            raise InputError(f"legs must be at least 1, got {legs}")
        if not 0 < scale <= 1:
            raise InputError(f"scale must be in (0, 1], got {scale}")
        if not 0 <= disturbance < np.inf:
            raise InputError(f"disturbance must be finite and at least 0, got {disturbance}")
        own, other = sectors.pairs.T
        self._sectors = tuple(
            _arrays(sector, partners, sectors.together, disturbance, seed, name)
            for sector, partners, name in ((sectors.own, own, "own"), (sectors.other, other, "other"))
        )
        self._pairs = np.ascontiguousarray(own), np.ascontiguousarray(other)
        self._together = sectors.together.astype(np.float32)
        self._legs, self._scale = legs, np.float32(scale)

    def decode(self, own: BitMatrix, other: BitMatrix, versions: range) -> Believed:
        """Return the errors believed in.

        Args:
            own: detectors of the own sector, bits, shape ``(shots, own detectors)``.
            other: those of the other one, shape ``(shots, other detectors)``.
            versions: which ones, by number.
        """
        parts = len(self._sectors[0][2])
        errors = np.zeros((len(own), len(versions), parts), np.uint8)
        legs = np.zeros(errors.shape[:2], np.int32)
        _propagate(LANES if legs.size > FEW_LANES else FEW_LANES)(
            np.ascontiguousarray(own),
            np.ascontiguousarray(other),
            np.array(versions, np.int64),
            *self._sectors,
            self._pairs,
            self._together,
            self._scale,
            self._legs,
            errors,
            legs,
        )
        return Believed(errors, legs)


def _arrays(
    sector: Sector,
    partners: NDArray[np.int64],
    together: NDArray[np.float64],
    disturbance: float,
    seed: int,
    name: str,
) -> tuple[NDArray[Any], ...]:
    """Return what the kernel knows of a sector: edges, odds of parts alone and in all, disturbances."""
    alone = sector.alone
    total = alone + np.bincount(partners, together, len(alone))
    noise = numpy_generator(seed, "disturbances", name).normal(size=(DISTURBANCES, len(alone)))
    return (
        sector.checks.indptr.astype(np.int64),
        sector.checks.indices.astype(np.int64),
        alone.astype(np.float32),
        total.astype(np.float32),
        (disturbance * noise).astype(np.float32),
    )


@cache
def _propagate(lanes: int) -> Any:
    """Compile the kernel; numba is slow to import."""
    import numba

    steps, one, certain = np.float32(STEPS), np.float32(ONE), np.float32(CERTAIN)
    per_step, nats_of_one = np.float32(1 / STEPS), np.float32(ONE / STEPS)

    @numba.njit(nogil=True, fastmath=True)
    def start(lane, bits, odds, disturbance, fired, told, prior, belief, shift):  # type: ignore[no-untyped-def]
        """Begin a shot in a lane."""
        for check in range(len(fired)):
            fired[check, lane] = -1.0 if bits[check] else 1.0
        for edge in range(len(told)):
            told[edge, lane] = 0.0
        for part in range(len(belief)):
            shift[part, lane] = disturbance[part]
            prior[part, lane] = -np.log(min(odds[part], np.float32(1.0))) + disturbance[part]
            belief[part, lane] = prior[part, lane]

    @numba.njit(nogil=True, fastmath=True)
    def disturb(lane, disturbance, prior, belief, shift):  # type: ignore[no-untyped-def]
        """Replace the disturbance of a lane's priors."""
        for part in range(len(belief)):
            change = disturbance[part] - shift[part, lane]
            shift[part, lane] += change
            prior[part, lane] += change
            belief[part, lane] += change

    @numba.njit(nogil=True, fastmath=True)
    def sweep(first_edge, owner, fired, told, belief, heard, sign, least, second, scale):  # type: ignore[no-untyped-def]
        """Let every check speak once."""
        for check in range(len(fired)):
            first, last = first_edge[check], first_edge[check + 1]
            for lane in range(lanes):
                sign[lane], least[lane], second[lane] = fired[check, lane], 1e9, 1e9
            for edge in range(first, last):
                part = owner[edge]
                for lane in range(lanes):
                    value = belief[part, lane] - told[edge, lane]
                    size = abs(value)
                    heard[edge - first, lane] = value
                    second[lane] = min(second[lane], max(least[lane], size))
                    least[lane] = min(least[lane], size)
                    sign[lane] = -sign[lane] if value < 0 else sign[lane]
            for edge in range(first, last):
                part = owner[edge]
                for lane in range(lanes):
                    value = heard[edge - first, lane]
                    size = second[lane] if abs(value) == least[lane] else least[lane]
                    size = scale * sign[lane] * size
                    size = -size if value < 0 else size
                    told[edge, lane] = size
                    belief[part, lane] = value + size

    @numba.njit(nogil=True, fastmath=True)
    def weigh(prior, belief, alone, evidence, odds):  # type: ignore[no-untyped-def]
        """Set the likelihood ratios that checks give, and odds to those of the parts alone."""
        bits = evidence.view(np.int32)
        for part in range(len(belief)):
            for lane in range(lanes):
                nats = min(max(prior[part, lane] - belief[part, lane], -certain), certain)
                bits[part, lane] = np.int32(nats * steps + one)
                odds[part, lane] = alone[part]

    @numba.njit(nogil=True, fastmath=True)
    def exchange(pairs, together, own_total, other_total, own_evidence, other_evidence, own_odds, other_odds):  # type: ignore[no-untyped-def]
        """Add up the odds of errors in both sectors, as each sees them.

        That a part happens is worth as much as its checks say for it, (r + q) / (1 + q r) with a likelihood
        ratio r and odds q that it happens for another reason; q is small, and the simpler form near enough.
        """
        for number in range(len(together)):
            own, other, odds = pairs[0][number], pairs[1][number], together[number]
            else_own = max(own_total[own] - odds, np.float32(1e-12))
            else_other = max(other_total[other] - odds, np.float32(1e-12))
            most_own, most_other = 1 / else_own, 1 / else_other
            for lane in range(lanes):
                own_odds[own, lane] += odds * (min(other_evidence[other, lane], most_other) + else_other)
                other_odds[other, lane] += odds * (min(own_evidence[own, lane], most_own) + else_own)

    @numba.njit(nogil=True, fastmath=True)
    def believe(odds, shift, prior, belief):  # type: ignore[no-untyped-def]
        """Take odds for priors."""
        bits = odds.view(np.int32)
        for part in range(len(belief)):
            for lane in range(lanes):
                value = nats_of_one - np.float32(bits[part, lane]) * per_step + shift[part, lane]
                belief[part, lane] += value - prior[part, lane]
                prior[part, lane] = value

    @numba.njit(nogil=True, fastmath=True)
    def explain(first_edge, owner, fired, belief, odd, broken):  # type: ignore[no-untyped-def]
        """Tell in which lanes some detector is not explained: where ``broken`` is positive."""
        for lane in range(lanes):
            broken[lane] = -1.0
        for check in range(len(fired)):
            for lane in range(lanes):
                odd[lane] = fired[check, lane]
            for edge in range(first_edge[check], first_edge[check + 1]):
                part = owner[edge]
                for lane in range(lanes):
                    odd[lane] = -odd[lane] if belief[part, lane] < 0 else odd[lane]
            for lane in range(lanes):
                broken[lane] = max(broken[lane], -odd[lane])

    @numba.njit(nogil=True, fastmath=True)
    def widest(first_edge):  # type: ignore[no-untyped-def]
        most = 0
        for check in range(len(first_edge) - 1):
            most = max(most, first_edge[check + 1] - first_edge[check])
        return most

    @numba.njit(nogil=True)
    def empty(count):  # type: ignore[no-untyped-def]
        return np.zeros((count, lanes), np.float32)

    @numba.njit(cache=True, nogil=True, fastmath=True)
    def propagate(own_bits, other_bits, versions, own, other, pairs, together, scale, most, errors, legs):  # type: ignore[no-untyped-def]
        own_edge, own_owner, own_alone, own_total, own_disturbance = own
        other_edge, other_owner, other_alone, other_total, other_disturbance = other
        own_fired, own_told = empty(len(own_edge) - 1), empty(len(own_owner))
        other_fired, other_told = empty(len(other_edge) - 1), empty(len(other_owner))
        own_prior, own_belief, own_shift = empty(len(own_alone)), empty(len(own_alone)), empty(len(own_alone))
        own_evidence, own_odds = empty(len(own_alone)), empty(len(own_alone))
        other_prior, other_belief = empty(len(other_alone)), empty(len(other_alone))
        other_shift, other_evidence = empty(len(other_alone)), empty(len(other_alone))
        other_odds = empty(len(other_alone))
        heard = empty(max(widest(own_edge), widest(other_edge)))
        sign, least, second = empty(1)[0], empty(1)[0], empty(1)[0]
        odd, broken = empty(1)[0], empty(1)[0]
        place, done, current = np.full(lanes, -1), np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
        tasks, following, busy = len(own_bits) * len(versions), 0, 0
        while True:
            for lane in range(lanes):
                if place[lane] < 0 and following < tasks:
                    shot, version = divmod(following, len(versions))
                    place[lane], done[lane] = following, 0
                    current[lane] = versions[version] % len(own_disturbance)
                    start(
                        lane,
                        own_bits[shot],
                        own_total,
                        own_disturbance[current[lane]],
                        own_fired,
                        own_told,
                        own_prior,
                        own_belief,
                        own_shift,
                    )
                    start(
                        lane,
                        other_bits[shot],
                        other_total,
                        other_disturbance[current[lane]],
                        other_fired,
                        other_told,
                        other_prior,
                        other_belief,
                        other_shift,
                    )
                    following += 1
                    busy += 1
            if not busy:
                return
            if len(together):
                for _ in range(SWEEPS):
                    sweep(
                        other_edge,
                        other_owner,
                        other_fired,
                        other_told,
                        other_belief,
                        heard,
                        sign,
                        least,
                        second,
                        scale,
                    )
                weigh(own_prior, own_belief, own_alone, own_evidence, own_odds)
                weigh(other_prior, other_belief, other_alone, other_evidence, other_odds)
                exchange(
                    pairs,
                    together,
                    own_total,
                    other_total,
                    own_evidence,
                    other_evidence,
                    own_odds,
                    other_odds,
                )
                believe(own_odds, own_shift, own_prior, own_belief)
                believe(other_odds, other_shift, other_prior, other_belief)
            for _ in range(SWEEPS):
                sweep(own_edge, own_owner, own_fired, own_told, own_belief, heard, sign, least, second, scale)
            explain(own_edge, own_owner, own_fired, own_belief, odd, broken)
            for lane in range(lanes):
                if place[lane] < 0:
                    continue
                done[lane] += 1
                if broken[lane] < 0 or done[lane] == most:
                    shot, version = divmod(place[lane], len(versions))
                    for part in range(len(own_belief)):
                        errors[shot, version, part] = own_belief[part, lane] < 0
                    legs[shot, version] = done[lane] if broken[lane] < 0 else 0
                    place[lane] = -1
                    busy -= 1
                else:
                    current[lane] = (current[lane] + STRIDE) % len(own_disturbance)
                    disturb(lane, own_disturbance[current[lane]], own_prior, own_belief, own_shift)
                    disturb(lane, other_disturbance[current[lane]], other_prior, other_belief, other_shift)

    return propagate
