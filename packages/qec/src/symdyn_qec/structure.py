"""What of a detector error model a trained decoder depends on: all but how likely the errors are."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.codes import Basis
from symdyn_qec.mechanisms import Mechanisms

Coordinates = tuple[int, ...]

# What the last coordinate of a detector says.
KINDS: tuple[Basis, Basis] = ("X", "Z")


@dataclass(frozen=True)
class Structure:
    r"""Detectors, observables and which of them each error mechanism flips, without probabilities.

    Fields:
        detectors: coordinates ``(i, j, t, kind)`` of each, kind being 0 for X checks and 1 for Z checks.
        num_observables: of the model.
        detection: SHA-256 of the sets of detectors that mechanisms flip.
        mechanisms: SHA-256 of the sets of detectors with the observables that go with them.

    >>> text = "error({}) D0 L0\ndetector(0, 0, 0, 1) D0"
    >>> first, second = (Structure.of(stim.DetectorErrorModel(text.format(p))) for p in (0.1, 0.2))
    >>> first == second, first.detectors, first.basis
    (True, ((0, 0, 0, 1),), 'Z')
    """

    detectors: tuple[Coordinates, ...]
    num_observables: int
    detection: str
    mechanisms: str

    @classmethod
    def of(cls, dem: stim.DetectorErrorModel) -> "Structure":
        """Collect the structure of a model.

        Raises:
            InputError: a detector without coordinates ``(i, j, t, kind)``.
        """
        found = Mechanisms.of(dem)
        return cls(
            detectors=_coordinates(dem),
            num_observables=dem.num_observables,
            detection=_digest(found.detectors),
            mechanisms=_digest(np.hstack([found.detectors, found.observables.astype(np.int32)])),
        )

    @property
    def basis(self) -> Basis:
        """The basis of a memory experiment: that of the checks whose first outcomes are known.

        Raises:
            InputError: no checks, or those of both bases, are compared at t = 0.
        """
        kinds = {kind for _, _, t, kind in self.detectors if t == 0}
        if len(kinds) != 1 or not kinds <= {0, 1}:
            raise InputError(
                "coordinates must have detectors (i, j, t=0, kind) of one kind, 0 for X or 1 for Z checks, "
                f"got the kinds {sorted(kinds)}"
            )
        return KINDS[kinds.pop()]

    @property
    def size(self) -> tuple[int, int, int]:
        """Cells of the torus in both directions and cycles of the experiment, ``(l, m, rounds)``.

        Raises:
            InputError: no detectors to tell it from.
        """
        if not self.detectors:
            raise InputError("detectors must be there to tell the size of a memory experiment, got none")
        i, j, t, _ = (max(values) for values in zip(*self.detectors, strict=True))
        return i + 1, j + 1, t

    def check(self, other: "Structure", name: str) -> None:
        """Raise InputError unless another structure is this one, naming the first field that differs.

        Args:
            other: what was found.
            name: of what has this structure.
        """
        if len(other.detectors) != len(self.detectors):
            raise InputError(
                f"detectors must be {len(self.detectors)} for {name}, got {len(other.detectors)}"
            )
        for index, (own, found) in enumerate(zip(self.detectors, other.detectors, strict=True)):
            if own != found:
                raise InputError(f"coordinates of detector {index} must be {own} for {name}, got {found}")
        if other.num_observables != self.num_observables:
            raise InputError(
                f"observables must be {self.num_observables} for {name}, got {other.num_observables}"
            )
        if other.detection != self.detection:
            raise InputError(
                f"mechanisms must flip the sets of detectors that they flip for {name}, got other ones: "
                "the circuit differs in its gates or in where there is noise"
            )
        if other.mechanisms != self.mechanisms:
            raise InputError(
                f"observables must be the logical operators of {name}, got other ones, "
                "which errors with the same detectors flip differently"
            )


def _coordinates(dem: stim.DetectorErrorModel) -> tuple[Coordinates, ...]:
    coordinates = dem.get_detector_coordinates()
    for index in range(dem.num_detectors):
        found: Sequence[float] = coordinates[index]
        if len(found) != 4 or any(value != int(value) for value in found):
            raise InputError(
                f"coordinates of detector {index} must be four whole numbers (i, j, t, kind), "
                f"got {tuple(found)}"
            )
    return tuple(tuple(int(value) for value in coordinates[index]) for index in range(dem.num_detectors))


def _digest(rows: NDArray[np.int32]) -> str:
    distinct = np.unique(rows, axis=0).astype("<i4")
    return hashlib.sha256(repr(distinct.shape).encode() + distinct.tobytes()).hexdigest()
