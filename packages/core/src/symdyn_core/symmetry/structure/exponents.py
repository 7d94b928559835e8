"""Unknown exponents that are multiples of each other, or zero: merged as relations between them come in."""

from collections import defaultdict
from collections.abc import Iterable

Row = dict[int, float]
DIGITS = 9  # exponents are small fractions; what is left of them by rounding is zero


class Exponents:
    """Labels whose exponents are multiples of each other.

    Args:
        modulus: 2 for signs, None for real exponents.
    """

    def __init__(self, modulus: int | None = None) -> None:
        self._parent: dict[int, int] = {}
        self._ratio: dict[int, float] = {}
        self._pinned: set[int] = {0}
        self._modulus = modulus

    def find(self, label: int) -> tuple[int, float]:
        """Return root and ratio: exponent of the label = ratio x exponent of the root."""
        path = []
        while label in self._parent:
            path.append(label)
            label = self._parent[label]
        ratio = 1.0
        for below in reversed(path):
            ratio = self._reduced(self._ratio[below] * ratio)
            self._parent[below], self._ratio[below] = label, ratio
        return label, ratio

    def is_zero(self, label: int) -> bool:
        """Whether the exponent of a label must vanish."""
        return self.find(label)[0] in self._pinned

    def reduce(self, row: Iterable[tuple[int, float]]) -> Row:
        """Return the relation in terms of roots, without those that vanish."""
        reduced: dict[int, float] = defaultdict(float)
        for label, coefficient in row:
            root, ratio = self.find(label)
            if root not in self._pinned:
                reduced[root] += coefficient * ratio
        rests = {root: self._reduced(value) for root, value in reduced.items()}
        return {root: value for root, value in rests.items() if value}

    def enter(self, row: Row) -> bool:
        """Take up a reduced relation of one or two roots; return whether it was."""
        if len(row) == 1:
            self._pinned.add(next(iter(row)))
        elif len(row) == 2:
            (a, first), (b, second) = row.items()
            self._parent[a], self._ratio[a] = b, self._reduced(-second / first)
        return len(row) <= 2

    def _reduced(self, value: float) -> float:
        return value % 2 if self._modulus else round(value, DIGITS)
