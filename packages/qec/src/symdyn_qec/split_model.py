"""Detector error models whose errors are split into edges, as matching needs them, and their two classes."""

from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError

Flips = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class SplitModel:
    r"""The errors of a model as sets of edges, without probabilities.

    An edge flips one or two detectors, or as many as an error that is not split does. Errors with equal flips
    are one; of two ways to split them the first counts. Those that flip no detector are left out.

    Fields:
        edges: detectors and observables that each flips.
        errors: edges of each error, in increasing order.
        flips: detectors and observables that each error flips as a whole.
        num_detectors: of the model.
        num_observables: likewise.

    >>> split = SplitModel.of(stim.DetectorErrorModel("error(0.1) D0 D1 ^ D1 D2 L0\nerror(0.2) D0 D1"))
    >>> split.edges, split.errors
    ((((0, 1), ()), ((1, 2), (0,))), ((0, 1), (0,)))
    """

    edges: tuple[Flips, ...]
    errors: tuple[tuple[int, ...], ...]
    flips: tuple[Flips, ...]
    num_detectors: int
    num_observables: int

    @classmethod
    def of(cls, dem: stim.DetectorErrorModel) -> "SplitModel":
        """Collect edges and errors."""
        edges: dict[Flips, int] = {}
        errors: dict[Flips, tuple[int, ...]] = {}
        for instruction in dem.flattened():
            if instruction.type != "error" or not instruction.args_copy()[0]:
                continue
            parts = [_flips(group) for group in instruction.target_groups()]
            parts = [part for part in parts if part[0]]
            whole = _sum(parts)
            if whole[0] and whole not in errors:
                numbers = {edges.setdefault(part, len(edges)) for part in parts}
                errors[whole] = tuple(sorted(numbers))
        return cls(
            tuple(edges), tuple(errors.values()), tuple(errors), dem.num_detectors, dem.num_observables
        )

    def probabilities(self, dem: stim.DetectorErrorModel, name: str) -> NDArray[np.float64]:
        """Return how likely each error is in another model, split or not; zero for those it lacks.

        Args:
            dem: of the same circuit, under noise that may differ.
            name: of what this model belongs to, for messages.

        Raises:
            InputError: other detectors, observables or errors than here, or errors likelier than not.
        """
        for what in ("detectors", "observables"):
            own, found = getattr(self, f"num_{what}"), getattr(dem, f"num_{what}")
            if own != found:
                raise InputError(f"{what} must be {own} for {name}, got {found}")
        place = {flips: number for number, flips in enumerate(self.flips)}
        likely = np.zeros(len(self.errors))
        for instruction in dem.flattened():
            if instruction.type != "error" or not (p := instruction.args_copy()[0]):
                continue
            if p > 0.5:
                raise InputError(f"dem must have errors of probability at most 0.5 for {name}, got {p:g}")
            flips = _sum([_flips(group) for group in instruction.target_groups()])
            if not flips[0]:
                continue
            if (number := place.get(flips)) is None:
                raise InputError(
                    f"mechanisms must flip what they flip for {name}, got one that flips "
                    f"{' '.join([f'D{i}' for i in flips[0]] + [f'L{i}' for i in flips[1]])}: the circuit "
                    "differs in its gates or in where there is noise"
                )
            likely[number] = p * (1 - likely[number]) + likely[number] * (1 - p)
        return likely

    def sides(self) -> NDArray[np.int64] | None:
        """Return the side of each detector in a cut that an edge crosses if it flips the observable.

        Every edge of two detectors flips the observable if they are on different sides. Then what is left to
        tell of the edges of one detector is which of two boundaries they lead to, and whether an odd or an
        even number of them lead to the second is the class of a shot.

        Returns:
            Zeros and ones, shape ``(num_detectors,)``; ``None`` where there are several observables, edges
            of more than two detectors, or no such cut, as on a torus.
        """
        if self.num_observables != 1 or any(len(detectors) > 2 for detectors, _ in self.edges):
            return None
        neighbours: list[list[tuple[int, int]]] = [[] for _ in range(self.num_detectors)]
        for detectors, observables in self.edges:
            if len(detectors) == 2:
                first, second = detectors
                neighbours[first].append((second, len(observables)))
                neighbours[second].append((first, len(observables)))
        side = np.full(self.num_detectors, -1)
        for root in range(self.num_detectors):
            if side[root] >= 0:
                continue
            side[root], waiting = 0, [root]
            while waiting:
                here = waiting.pop()
                for there, crosses in neighbours[here]:
                    if side[there] < 0:
                        side[there] = side[here] ^ crosses
                        waiting.append(there)
                    elif side[there] != side[here] ^ crosses:
                        return None
        return side


def _flips(targets: list[stim.DemTarget]) -> Flips:
    detectors: set[int] = set()
    observables: set[int] = set()
    for target in targets:
        if target.is_relative_detector_id():
            detectors ^= {target.val}
        elif target.is_logical_observable_id():
            observables ^= {target.val}
    return tuple(sorted(detectors)), tuple(sorted(observables))


def _sum(parts: list[Flips]) -> Flips:
    detectors: set[int] = set()
    observables: set[int] = set()
    for some, others in parts:
        detectors ^= set(some)
        observables ^= set(others)
    return tuple(sorted(detectors)), tuple(sorted(observables))
