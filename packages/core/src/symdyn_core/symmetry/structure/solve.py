"""Solve the demands of a ledger: all exponents and signs that its relations allow, and which labels are one.

Relations between one or two labels are merged as they come; the few with more (a product of two free
factors) are solved exactly, component by component.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from symdyn_core.symmetry.structure.exponents import DIGITS, Exponents, Row
from symdyn_core.symmetry.structure.ledger import Forest, Ledger


@dataclass(frozen=True)
class Assignment:
    """Exponents of labels, zero where not listed.

    Args:
        exponents: by label.
    """

    exponents: dict[int, float]


def rows(ledger: Ledger, *, signs: bool) -> Iterator[list[tuple[int, float]]]:
    """Yield every relation as labels with coefficients."""
    for relation in ledger.relations:
        yield from relation.rows(signs=signs)


def solve(
    ledger: Ledger, labels: Iterable[int], *, signs: bool = False
) -> tuple[Exponents, list[Assignment]]:
    """Return the merged labels and a basis of all assignments that meet the relations.

    Args:
        ledger: the relations.
        labels: those that the assignments are to list.
        signs: solve for signs (modulo 2) instead of exponents.
    """
    exponents = ledger.parities if signs else ledger.exponents
    pending = ledger.pending_signs if signs else ledger.pending
    while True:
        left, progress = [], False
        for row in pending:
            reduced = exponents.reduce(row)
            if not reduced:
                continue
            if exponents.enter(reduced):
                progress = True
            else:
                left.append(list(reduced.items()))
        pending = left
        if not progress:
            break
    members: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for label in labels:
        root, ratio = exponents.find(label)
        if not exponents.is_zero(root):
            members[root].append((label, ratio))
    bound = {root for row in pending for root, _ in row}
    basis = [{root: 1.0} for root in members if root not in bound]
    for component in _components(pending):
        basis.extend(_null_space(component, 2 if signs else None))
    assignments = []
    for vector in basis:
        listed: dict[int, float] = {}
        for root, value in vector.items():
            for label, ratio in members.get(root, ()):
                exponent = ratio * value
                if signs:
                    exponent = exponent % 2
                if exponent:
                    listed[label] = exponent
        if listed:
            assignments.append(Assignment(listed))
    return exponents, assignments


def _components(pending: Iterable[list[tuple[int, float]]]) -> list[list[Row]]:
    """Return relations gathered by the unknowns they share."""
    forest = Forest()
    listed = [dict(row) for row in pending]
    for row in listed:
        first, *others = row
        for other in others:
            forest.merge(first, other)
    found: dict[int, list[Row]] = defaultdict(list)
    for row in listed:
        found[forest.root(next(iter(row)))].append(row)
    return list(found.values())


def _null_space(relations: list[Row], modulus: int | None) -> list[Row]:
    """Return a basis of the solutions.

    An unknown that occurs in one relation only is what this relation determines; taking such relations away
    leaves few to eliminate, or none: of thousands that share one total, each has a factor of its own.
    """
    solved, rest = _peel(relations)
    pivots = _eliminate(rest, modulus)
    determined = {pivot for pivot, _ in solved} | set(pivots)
    occurrences: dict[int, list[int]] = defaultdict(list)
    for number, (pivot, row) in enumerate(solved):
        for root in row:
            if root != pivot:
                occurrences[root].append(number)
    basis = []
    for free in sorted({root for row in relations for root in row} - determined):
        vector = {free: 1.0}
        for pivot, base in pivots.items():
            if value := _reduced(-base.get(free, 0.0), modulus):
                vector[pivot] = value
        # The relation taken away last needs only unknowns that are known by now.
        waiting = [-number for root in vector for number in occurrences[root]]
        heapq.heapify(waiting)
        while waiting:
            number = -heapq.heappop(waiting)
            pivot, row = solved[number]
            if pivot in vector:
                continue
            total = sum((c * vector.get(root, 0.0) for root, c in row.items() if root != pivot), 0.0)
            if value := _reduced(-total / row[pivot], modulus):
                vector[pivot] = value
                for other in occurrences[pivot]:
                    heapq.heappush(waiting, -other)
        basis.append(vector)
    return basis


def _peel(relations: list[Row]) -> tuple[list[tuple[int, Row]], list[Row]]:
    """Return relations with the unknown that each alone determines, in the order taken away, and the rest."""
    holders: dict[int, set[int]] = defaultdict(set)
    for number, row in enumerate(relations):
        for root in row:
            holders[root].add(number)
    left = set(range(len(relations)))
    ready = sorted(root for root, rows_ in holders.items() if len(rows_) == 1)
    solved = []
    while ready:
        pivot = ready.pop()  # the latest label: readers are determined by what they read
        if len(holders[pivot]) != 1:
            continue
        (number,) = holders[pivot]
        solved.append((pivot, relations[number]))
        left.discard(number)
        for root in relations[number]:
            holders[root].discard(number)
            if len(holders[root]) == 1:
                ready.append(root)
    return solved, [relations[number] for number in sorted(left)]


def _eliminate(relations: list[Row], modulus: int | None) -> dict[int, Row]:
    """Return relations in echelon form, by the unknown that each determines."""
    pivots: dict[int, Row] = {}
    for row in relations:
        current = dict(row)
        for pivot, base in pivots.items():
            if factor := current.get(pivot, 0.0):
                for root, value in base.items():
                    current[root] = _reduced(current.get(root, 0.0) - factor * value, modulus)
        current = {root: value for root, value in current.items() if value}
        if not current:
            continue
        pivot = max(current)
        inverse = 1 / current[pivot]
        current = {root: _reduced(value * inverse, modulus) for root, value in current.items()}
        for other, base in pivots.items():
            if factor := base.get(pivot, 0.0):
                changed = {
                    root: _reduced(base.get(root, 0.0) - factor * current.get(root, 0.0), modulus)
                    for root in {*base, *current}
                }
                pivots[other] = {root: value for root, value in changed.items() if value}
        pivots[pivot] = current
    return pivots


def _reduced(value: float, modulus: int | None) -> float:
    return value % 2 if modulus else round(value, DIGITS)
