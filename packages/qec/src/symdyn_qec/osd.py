"""Ordered statistics decoding: from log odds of every qubit to one correction that explains the checks."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.gf2 import BitMatrix


class OrderedStatistics:
    r"""Finds the most likely flips e with :math:`H e = s`, given independent log odds for each.

    The least doubtful qubits keep the value that their odds suggest; the most doubtful independent ones are
    solved for. Then one or two of the others are flipped, in every way up to ``order``, and the solution of
    least :math:`\sum |l_q|` over the qubits that differ from their suggestion wins.

    Args:
        checks: H, bits, shape ``(m, n)``; rows may be redundant.
        order: pairs are formed among this many of the most doubtful of the kept qubits, at least 0; single
            ones are tried for all. The same as the combination sweep of BP-OSD.

    >>> repetition = OrderedStatistics([[1, 1, 0], [0, 1, 1]])
    >>> flips, weight = repetition.decode([[-2.5, -1.0, -2.0]], [[1, 0]])
    >>> flips.tolist(), weight.tolist()  # either the first qubit, or both others
    ([[1, 0, 0]], [2.5])
    """

    def __init__(self, checks: ArrayLike, order: int = 10) -> None:
        self.checks = gf2.bits(checks, "checks")
        if order < 0:
            raise InputError(f"order must be at least 0, got {order}")
        self.order = order

    def prepare(self) -> None:
        """Compile what :meth:`decode` otherwise compiles at the first shot that needs it."""
        m, n = self.checks.shape
        costs, nothing = np.ones((1, n), np.float32), np.zeros((1, n), np.uint8)
        _solver()(self.checks, costs, np.zeros((1, m), np.uint8), self.order, nothing, costs[0, :1].copy())

    def decode(self, log_odds: ArrayLike, syndromes: ArrayLike) -> tuple[BitMatrix, NDArray[np.float32]]:
        """Return the flips and what they cost.

        Args:
            log_odds: of a flip, shape ``(shots, n)``.
            syndromes: s, bits, shape ``(shots, m)``.

        Returns:
            Flips, bits, shape ``(shots, n)``; and the weight of the qubits that differ from what their odds
            suggest, shape ``(shots,)``: zero where the suggestion explains the checks.

        Raises:
            InputError: shapes that do not fit, log odds that are not finite, a syndrome that no flips have.
        """
        odds = np.ascontiguousarray(log_odds, dtype=np.float32)
        seen = gf2.bits(syndromes, "syndromes")
        m, n = self.checks.shape
        if odds.ndim != 2 or odds.shape[1] != n or seen.shape != (len(odds), m):
            raise InputError(
                f"expected log odds of shape (shots, {n}) and syndromes of shape (shots, {m}), "
                f"got {odds.shape} and {seen.shape}"
            )
        if not np.isfinite(odds).all():
            raise InputError("log odds must be finite")
        flips = (odds > 0).astype(np.uint8)
        weights = np.zeros(len(odds), dtype=np.float32)
        residual = seen ^ (flips @ self.checks.T & 1)
        open_shots = np.flatnonzero(residual.any(axis=1))
        if len(open_shots):
            changes, costs = np.zeros((len(open_shots), n), np.uint8), np.zeros(len(open_shots), np.float32)
            doubts = np.abs(odds[open_shots])
            if not _solver()(self.checks, doubts, residual[open_shots], self.order, changes, costs):
                raise InputError("a syndrome is not in the span of the checks: no flips have it")
            flips[open_shots] ^= changes
            weights[open_shots] = costs
        return flips, weights


@cache
def _solver() -> Any:
    """Compile the search; numba is slow to import, and consistent shots do without."""
    from numba import njit

    @njit(cache=True)
    def solve(checks, costs, syndromes, order, changes, weights):  # type: ignore[no-untyped-def]  # numba does
        m, n = checks.shape
        rows = np.empty((m, n + 1), dtype=np.uint8)
        for shot in range(len(costs)):
            cost = costs[shot]
            by_doubt = np.argsort(cost)
            for i in range(m):
                for j in range(n):
                    rows[i, j] = checks[i, by_doubt[j]]
                rows[i, n] = syndromes[shot, i]
            pivots = np.empty(min(m, n), dtype=np.int64)
            kept = np.empty(n, dtype=np.int64)
            rank, free = 0, 0
            for j in range(n):
                found = -1
                for i in range(rank, m):
                    if rows[i, j]:
                        found = i
                        break
                if found < 0:
                    kept[free] = j
                    free += 1
                    continue
                if found != rank:
                    for c in range(n + 1):
                        rows[rank, c], rows[found, c] = rows[found, c], rows[rank, c]
                for i in range(m):
                    if i != rank and rows[i, j]:
                        for c in range(j, n + 1):
                            rows[i, c] ^= rows[rank, c]
                pivots[rank] = j
                rank += 1
            for i in range(rank, m):
                if rows[i, n]:
                    return False
            best, first, second = 0.0, -1, -1
            for i in range(rank):
                if rows[i, n]:
                    best += cost[by_doubt[pivots[i]]]
            for u in range(free):
                for v in range(u, free if u < order else u + 1):
                    if v > u and v >= order:
                        break
                    total = cost[by_doubt[kept[u]]] + (cost[by_doubt[kept[v]]] if v > u else 0.0)
                    if total >= best:
                        continue
                    for i in range(rank):
                        bit = rows[i, n] ^ rows[i, kept[u]]
                        if v > u:
                            bit ^= rows[i, kept[v]]
                        if bit:
                            total += cost[by_doubt[pivots[i]]]
                    if total < best:
                        best, first, second = total, kept[u], kept[v] if v > u else -1
            for i in range(rank):
                bit = rows[i, n]
                if first >= 0:
                    bit ^= rows[i, first]
                if second >= 0:
                    bit ^= rows[i, second]
                changes[shot, by_doubt[pivots[i]]] = bit
            if first >= 0:
                changes[shot, by_doubt[first]] = 1
            if second >= 0:
                changes[shot, by_doubt[second]] = 1
            weights[shot] = best
        return True

    return solve
