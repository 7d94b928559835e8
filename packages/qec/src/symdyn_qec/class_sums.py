r"""Sums over the explanations of a class, from a few of them to all that are alike.

Many sets of errors explain a shot as well as the best one: two errors in a row can be two others. Beginning
with the explanations that matching finds, one or two errors are replaced by one or two that flip the same,
again and again, as long as that costs little. What comes together is the free energy

.. math:: F = -\log \sum_e \prod_{i \in e} \frac{p_i}{1 - p_i} .
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from symdyn_qec.split_model import SplitModel

Floats = NDArray[np.float32]

# Cost in nats of an edge that no error flips alone, if no error explains it together with others.
UNEXPLAINED = 30.0

# Explanations that cost this much more than the best are left out, and no more than this many are summed.
MARGIN = 4.0
MOST = 256


class ClassSums:
    """Weighs and gathers the explanations of shots.

    Args:
        split: errors as edges.
        probabilities: of the errors, shape ``(errors,)``.
    """

    def __init__(self, split: SplitModel, probabilities: NDArray[np.float64]) -> None:
        self._tables = _Tables.of(split, probabilities)

    def gather(self, used: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        """Return what the explanations of shots come to.

        Args:
            used: edges of a few explanations of each, bits, shape ``(explanations, shots, edges)``.

        Returns:
            Free energies, and the costs of the best, in nats, shapes ``(shots,)``; and the probability of
            each edge to be in the explanation, shape ``(shots, edges)``.
        """
        found: tuple[Floats, Floats, Floats] = _gather()(used, MARGIN, MOST, *self._tables)
        return found


class _Tables(NamedTuple):
    """What the kernel reads; errors are followed by one for each edge that none flips alone.

    Fields:
        cost: of an error in nats, shape ``(errors,)``.
        alone: error that flips an edge alone, shape ``(edges,)``.
        parts: edges of an error, filled up with -1, shape ``(errors, largest)``.
        joint: errors of several edges, those that save most against their edges one by one first.
        first, order: ``joint`` by the first edge: places ``order[first[edge]:first[edge + 1]]`` of it.
        keys: of errors; sums of them tell explanations apart.
        flips: of errors; bitwise sums of them tell what errors flip together.
        kinds: what one or two errors flip together, in increasing order, shape ``(kinds,)``.
        start, members: by kind, the ones and twos of errors: rows ``start[kind]:start[kind + 1]``; where the
            second is -1 there is one.
    """

    cost: NDArray[np.float64]
    alone: NDArray[np.int64]
    parts: NDArray[np.int64]
    joint: NDArray[np.int64]
    first: NDArray[np.int64]
    order: NDArray[np.int64]
    keys: NDArray[np.uint64]
    flips: NDArray[np.uint64]
    kinds: NDArray[np.uint64]
    start: NDArray[np.int64]
    members: NDArray[np.int64]

    @classmethod
    def of(cls, split: SplitModel, probabilities: NDArray[np.float64]) -> "_Tables":
        single = {error[0]: number for number, error in enumerate(split.errors) if len(error) == 1}
        missing = [edge for edge in range(len(split.edges)) if edge not in single]
        errors = [*split.errors, *((edge,) for edge in missing)]
        alone = np.array(
            [
                single[edge] if edge in single else len(split.errors) + missing.index(edge)
                for edge in range(len(split.edges))
            ]
        )
        with np.errstate(divide="ignore"):
            cost = np.minimum(np.log1p(-probabilities) - np.log(probabilities), UNEXPLAINED)
        cost = np.concatenate([cost, np.full(len(missing), UNEXPLAINED)])
        parts = np.full((len(errors), max(map(len, errors), default=1)), -1)
        for row, error in zip(parts, errors, strict=True):
            row[: len(error)] = error
        saved = np.where(parts >= 0, cost[alone[parts]], 0).sum(axis=1) - cost
        joint = np.flatnonzero((parts[:, 1:] >= 0).any(axis=1) & (saved > 0))
        joint = joint[np.argsort(-saved[joint], kind="stable")]
        order = np.argsort(parts[joint, 0], kind="stable")
        first = np.searchsorted(parts[joint, 0][order], np.arange(len(split.edges) + 1))
        random = np.random.default_rng(0)
        keys = random.integers(2**64 - 1, size=len(errors), dtype=np.uint64)
        flips = _flips(split, errors, random)
        return cls(
            cost, alone, parts, joint, first, order, keys, flips, *_replacements(split, errors, flips, cost)
        )


def _flips(
    split: SplitModel, errors: list[tuple[int, ...]], random: np.random.Generator
) -> NDArray[np.uint64]:
    """Return a number for what each error flips; those of errors together are their bitwise sums."""
    numbers = random.integers(2**64 - 1, size=split.num_detectors + split.num_observables, dtype=np.uint64)
    found = np.zeros(len(errors), np.uint64)
    for number, error in enumerate(errors):
        for edge in error:
            detectors, observables = split.edges[edge]
            for flipped in (*detectors, *(split.num_detectors + index for index in observables)):
                found[number] ^= numbers[flipped]
    return found


def _replacements(
    split: SplitModel, errors: list[tuple[int, ...]], flips: NDArray[np.uint64], cost: NDArray[np.float64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Return ones and twos of errors by what they flip, leaving out those that nothing can replace."""
    # Not by the boundary, where errors meet that have nothing to do with each other.
    at: list[list[int]] = [[] for _ in range(split.num_detectors)]
    for number, error in enumerate(errors):
        if cost[number] >= UNEXPLAINED:
            continue
        for detector in {detector for edge in error for detector in split.edges[edge][0]}:
            at[detector].append(number)
    codes = [np.zeros(0, np.int64)]
    for here in at:
        numbers = np.array(sorted(here))
        one, two = np.triu_indices(len(numbers), 1)
        codes.append(numbers[one] * len(errors) + numbers[two])
    pairs = np.unique(np.concatenate(codes))
    twos = np.stack([pairs // len(errors), pairs % len(errors)], axis=1)
    usable = np.flatnonzero(cost < UNEXPLAINED)
    ones = np.stack([usable, np.full(len(usable), -1)], axis=1)
    members = np.concatenate([ones, twos])
    kind = flips[members[:, 0]] ^ np.where(members[:, 1] < 0, np.uint64(0), flips[members[:, 1]])
    kinds, inverse, counts = np.unique(kind, return_inverse=True, return_counts=True)
    several = counts > 1
    kept = several[inverse]
    members, inverse = members[kept], (np.cumsum(several) - 1)[inverse[kept]]
    total = cost[members[:, 0]] + np.where(members[:, 1] < 0, 0, cost[members[:, 1]])
    order = np.lexsort((total, inverse))
    kinds = kinds[several]
    return kinds, np.searchsorted(inverse[order], np.arange(len(kinds) + 1)), members[order]


@cache
def _gather() -> Any:
    """Compile the gathering; numba is slow to import."""
    import numba

    @numba.njit(cache=True, nogil=True)
    def cover(used, cost, alone, parts, joint, first, order, free, fitting, errors):  # type: ignore[no-untyped-def]
        """Write the errors that explain edges, no more than there are edges; return how many."""
        free[:] = used
        fits = 0
        for edge in range(len(used)):
            if free[edge]:
                for index in range(first[edge], first[edge + 1]):
                    complete = True
                    for place in range(parts.shape[1]):
                        other = parts[joint[order[index]], place]
                        complete &= other < 0 or free[other] != 0
                    if complete:
                        fitting[fits] = order[index]
                        fits += 1
        count = 0
        # Of errors that want the same edge the one that saves most gets it.
        for rank in np.sort(fitting[:fits]):
            error, complete = joint[rank], True
            for place in range(parts.shape[1]):
                other = parts[error, place]
                complete &= other < 0 or free[other] != 0
            if complete:
                errors[count] = error
                count += 1
                for place in range(parts.shape[1]):
                    if parts[error, place] >= 0:
                        free[parts[error, place]] = 0
        for edge in range(len(used)):
            if free[edge]:
                errors[count] = alone[edge]
                count += 1
        return count

    @numba.njit(cache=True, nogil=True)
    def gather(  # type: ignore[no-untyped-def]
        used, margin, most, cost, alone, parts, joint, first, order, keys, flips, kinds, start, members
    ):
        explanations, shots, edges = used.shape
        room = edges
        energies, least = np.zeros(shots, np.float32), np.zeros(shots, np.float32)
        mean = np.zeros((shots, edges), np.float32)
        errors, counts = np.zeros((most, room), np.int64), np.zeros(most, np.int64)
        weights, marks = np.zeros(most), np.zeros(most, np.uint64)
        free, fitting, new = (
            np.zeros(edges, np.uint8),
            np.zeros(len(joint), np.int64),
            np.zeros(room, np.int64),
        )
        for shot in range(shots):
            found, best = 0, np.inf
            for explanation in range(explanations):
                count = cover(
                    used[explanation, shot], cost, alone, parts, joint, first, order, free, fitting, new
                )
                weight, mark = 0.0, np.uint64(0)
                for index in range(count):
                    weight += cost[new[index]]
                    mark += keys[new[index]]
                known = False
                for other in range(found):
                    known |= marks[other] == mark
                if not known and found < most:
                    errors[found, :count] = new[:count]
                    counts[found], weights[found], marks[found] = count, weight, mark
                    best = min(best, weight)
                    found += 1
            current = 0
            while current < found:
                count = counts[current]
                if weights[current] > best + margin:
                    current += 1
                    continue
                for one in range(count):
                    for two in range(one, count):
                        a, b = errors[current, one], errors[current, two]
                        kind, before, less = flips[a], cost[a], keys[a]
                        if two > one:
                            kind, before, less = kind ^ flips[b], before + cost[b], less + keys[b]
                        place = np.searchsorted(kinds, kind)
                        if place == len(kinds) or kinds[place] != kind:
                            continue
                        for row in range(start[place], start[place + 1]):
                            c, d = members[row, 0], members[row, 1]
                            after, more = cost[c], keys[c]
                            if d >= 0:
                                after, more = after + cost[d], more + keys[d]
                            weight = weights[current] - before + after
                            if weight > best + margin or found == most:
                                break  # the others cost more
                            mark = marks[current] - less + more
                            known = False
                            for other in range(found):
                                if marks[other] == mark:
                                    known = True
                                    break
                            if known:
                                continue
                            for index in range(count):
                                if index != one and index != two:
                                    known |= errors[current, index] == c or errors[current, index] == d
                            size = count - (2 if two > one else 1) + (2 if d >= 0 else 1)
                            if known or size > room:
                                continue
                            size = 0
                            for index in range(count):
                                if index != one and index != two:
                                    errors[found, size] = errors[current, index]
                                    size += 1
                            errors[found, size] = c
                            size += 1
                            if d >= 0:
                                errors[found, size] = d
                                size += 1
                            counts[found], weights[found], marks[found] = size, weight, mark
                            best = min(best, weight)
                            found += 1
                current += 1
            total = 0.0
            for index in range(found):
                share = np.exp(best - weights[index])
                total += share
                for place in range(counts[index]):
                    for part in range(parts.shape[1]):
                        edge = parts[errors[index, place], part]
                        if edge >= 0:
                            mean[shot, edge] += share
            for edge in range(edges):
                mean[shot, edge] = min(mean[shot, edge] / total, 1.0)
            energies[shot], least[shot] = best - np.log(total), best
        return energies, least, mean

    return gather
