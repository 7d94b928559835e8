"""The graph that a network for any circuit works on: detectors, joined where an error flips both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_qec.mechanisms import Mechanisms
from symdyn_qec.split_model import SplitModel

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GraphLayout:
    r"""Pairs of detectors, and the edges at each, in groups that look alike.

    Two pairs are alike if their second detectors lie in the same direction from the first, as far as
    coordinates tell, and errors flip both about equally often: away from the boundary a network may learn the
    same for them.

    Fields:
        num_detectors: of the model.
        num_observables: likewise.
        num_edges: of the model split into edges; of errors where matching is of no use.
        pairs: detectors that an error flips together, and every one with itself; shape ``(pairs, 2)``.
        pair_groups: group of each pair, shape ``(pairs,)``.
        incident: edges at each detector, filled up with ``num_edges``, shape ``(detectors, most)``.
        incident_groups: group of each of them, -1 where there is none, likewise.

    >>> from symdyn_qec.circuits import surface_memory
    >>> dem = surface_memory(3, 3, 0.001).detector_error_model(decompose_errors=True)
    >>> layout = GraphLayout.of(dem, SplitModel.of(dem))
    >>> layout.num_detectors, layout.num_edges, len(layout.pairs), int(layout.pair_groups.max()) + 1
    (24, 78, 212, 46)
    """

    num_detectors: int
    num_observables: int
    num_edges: int
    pairs: Indices
    pair_groups: Indices
    incident: Indices
    incident_groups: Indices

    @classmethod
    def of(cls, dem: stim.DetectorErrorModel, split: SplitModel) -> "GraphLayout":
        """Collect pairs and edges.

        Args:
            dem: at any strength of the noise that is typical.
            split: its errors as edges.
        """
        n, place = dem.num_detectors, dem.get_detector_coordinates()
        found = Mechanisms.of(dem)
        together = np.zeros((n + 1, n + 1))
        for row, p in zip(found.detectors, found.probabilities, strict=True):
            together[np.ix_(row, row)] += p
        together = together[:n, :n]
        first, second = np.nonzero((together > 0) | np.eye(n, dtype=bool))
        pairs = np.stack([first, second], axis=1)

        def size(rate: float) -> int:
            # Rates that differ by less than a factor of sqrt 2, about, are the same.
            return round(2 * np.log2(rate)) if rate else 0

        def steps(here: int, there: Sequence[int]) -> tuple[tuple[float, ...], ...]:
            return tuple(
                tuple(round(b - a, 6) for a, b in zip(place[here], place[end], strict=False)) for end in there
            )

        groups = _numbered([(steps(a, [b]), a == b, size(together[a, b])) for a, b in pairs.tolist()])
        edges = split.edges if split.sides() is not None else split.flips
        at: list[list[int]] = [[] for _ in range(n)]
        for number, (detectors, _) in enumerate(edges):
            for detector in detectors:
                at[detector].append(number)
        most = max((len(row) for row in at), default=0)
        incident, alike = np.full((n, most), len(edges)), np.full((n, most), -1)
        kinds, slots = [], []
        for detector, row in enumerate(at):
            for slot, number in enumerate(row):
                incident[detector, slot] = number
                ends, observables = edges[number]
                others = [end for end in ends if end != detector]
                rate = together[detector, others[0] if others else detector]
                kinds.append((steps(detector, others), bool(observables and not others), size(rate)))
                slots.append((detector, slot))
        for (detector, slot), group in zip(slots, _numbered(kinds), strict=True):
            alike[detector, slot] = group
        return cls(n, dem.num_observables, len(edges), pairs, groups, incident, alike)


def _numbered(kinds: Sequence[tuple[object, ...]]) -> Indices:
    """Return the same number for the same kinds, in order of appearance."""
    numbers: dict[tuple[object, ...], int] = {}
    return np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds], dtype=np.int64)
