r"""Symmetries of a detector error model that nobody declared: found in its coordinates or in its mechanisms.

A candidate is a permutation of the detectors, from one of two sources: shifts of the detector coordinates on
a torus, or colour refinement of the hypergraph of mechanisms, which needs no coordinates. How observables
transform then follows. With detectors :math:`D_i` and observables :math:`o_i` of mechanism i, and j the
mechanism that has the permuted detectors,

.. math:: o_j = M o_i + C D_i \pmod 2 \quad \text{for all } i

is a linear system for M and C; there are more equations than unknowns, so that a solution is already
evidence. Every candidate is then verified exactly, mechanism by mechanism; what does not pass is not
returned.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import stim
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.automorphism import Automorphism, compare_mechanisms
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.mechanisms import Mechanisms
from symdyn_qec.refinement import permutations, probability_kinds

# How far apart the probabilities of a mechanism and its image may lie: rounding, where Stim merges channels.
TOLERANCE = 1e-12

# Mechanisms looked at together where independent equations are chosen; bounds the memory.
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """Verified symmetries of a model; a group, as products of symmetries are symmetries.

    Fields:
        automorphisms: the symmetries, the identity first.
        shifts: by how much each moves the coordinates; empty where the symmetries were found without them.
    """

    automorphisms: tuple[Automorphism, ...]
    shifts: tuple[tuple[float, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.automorphisms)

    def orbits(self) -> NDArray[np.int64]:
        """Return the orbit of each detector, orbits numbered from 0 by their first detectors.

        Detectors of one orbit can share everything that a decoder learns of them.
        """
        images = np.stack([symmetry.permutation for symmetry in self.automorphisms])
        orbits: NDArray[np.int64] = np.unique(images.min(axis=0), return_inverse=True)[1]
        return orbits

    @property
    def free(self) -> bool:
        """Whether only the identity leaves some detector in its place, as translations of a torus do."""
        identity = np.arange(len(self.automorphisms[0].permutation))
        return not any((symmetry.permutation == identity).any() for symmetry in self.automorphisms[1:])


def discover_symmetries(
    dem: stim.DetectorErrorModel, tolerance: float = TOLERANCE, limit: int = 10_000
) -> SymmetryGroup:
    """Return the translations that the coordinates of a model suggest, or its symmetries if it has none.

    Args:
        dem: any detector error model.
        tolerance: how far apart the probabilities of a mechanism and its image may lie.
        limit: as for :func:`discover_automorphisms`.

    >>> from symdyn_qec.circuits import memory_circuit
    >>> dem = memory_circuit("toric", distance=3, p=0.01, rounds=2).detector_error_model()
    >>> group = discover_symmetries(dem)
    >>> len(group), group.free, group.shifts[1], int(group.orbits().max()) + 1
    (9, True, (0.0, 1.0, 0.0, 0.0), 4)
    """
    coordinates = dem.get_detector_coordinates()
    if any(coordinates.values()):
        return discover_translations(dem, tolerance)
    return discover_automorphisms(dem, tolerance, limit)


def discover_translations(dem: stim.DetectorErrorModel, tolerance: float = TOLERANCE) -> SymmetryGroup:
    """Return all shifts of the detector coordinates on a torus that are symmetries of a model.

    The torus is the smallest that the coordinates fill: along each axis they must be multiples of their
    smallest distance, and the period is what makes the last one neighbour to the first. Axes that are no
    space (time, kind of check) take part; shifts along them are symmetries only where they are.

    Args:
        dem: a model in which all detectors have coordinates, equally many, and no two the same.
        tolerance: how far apart the probabilities of a mechanism and its image may lie.

    Raises:
        InputError: coordinates are missing, of different lengths, shared, or not on a grid.
    """
    coordinates, steps, periods = _grid(dem)
    mechanisms = Mechanisms.of(dem)
    completion = _Completion(mechanisms, tolerance)
    keys = np.ravel_multi_index(tuple(coordinates.T), tuple(periods))
    order = np.argsort(keys)
    found: list[Automorphism] = []
    shifts: list[tuple[float, ...]] = []
    for shift in product(*map(_shifts, coordinates.T, periods.tolist())):
        moved = np.ravel_multi_index(tuple(((coordinates + shift) % periods).T), tuple(periods))
        place = np.minimum(np.searchsorted(keys, moved, sorter=order), len(keys) - 1)
        permutation = order[place]
        if (keys[permutation] != moved).any():
            continue
        symmetry = completion.automorphism(permutation)
        if symmetry is not None:
            found.append(symmetry)
            shifts.append(tuple((np.array(shift) * steps).tolist()))
    return SymmetryGroup(tuple(found), tuple(shifts))


def discover_automorphisms(
    dem: stim.DetectorErrorModel, tolerance: float = TOLERANCE, limit: int = 10_000
) -> SymmetryGroup:
    r"""Return all symmetries of a model, found without coordinates; reflections and the like among them.

    Detectors that no mechanism flips stay in their place.

    Args:
        dem: any detector error model.
        tolerance: how far apart the probabilities of a mechanism and its image may lie.
        limit: how many detectors may be tried as images. Each costs some passes over the mechanisms; the
            translations of a torus take as many tries as there are cells.

    Raises:
        InputError: the limit is reached, as where many detectors are exchangeable.

    >>> ring = "error(0.1) D0 D1\nerror(0.1) D1 D2\nerror(0.1) D2 D3\nerror(0.1) D3 D0 L0"
    >>> len(discover_automorphisms(stim.DetectorErrorModel(ring)))  # four rotations, four reflections
    8
    """
    mechanisms = Mechanisms.of(dem)
    completion = _Completion(mechanisms, tolerance)
    found = [
        symmetry
        for permutation in permutations(mechanisms, tolerance, limit)
        if (symmetry := completion.automorphism(permutation)) is not None
    ]
    identity = np.arange(mechanisms.num_detectors)
    found.sort(key=lambda symmetry: bool((symmetry.permutation != identity).any()))
    return SymmetryGroup(tuple(found))


def complete_permutation(
    dem: stim.DetectorErrorModel | Mechanisms, permutation: ArrayLike, tolerance: float = TOLERANCE
) -> Automorphism:
    r"""Return the symmetry that permutes a model's detectors in a given way, its maps of observables too.

    Args:
        dem: any detector error model, or its mechanisms.
        permutation: where each detector goes, shape ``(detectors,)``.
        tolerance: how far apart the probabilities of a mechanism and its image may lie.

    Raises:
        InputError: not a permutation of the model's detectors, or no symmetry has it.

    >>> model = stim.DetectorErrorModel("error(0.1) D0 L0\nerror(0.1) D1\nerror(0.2) D0 D1 L0")
    >>> swap = complete_permutation(model, [1, 0])
    >>> flips = [[1, 0], [0, 1], [1, 1]]
    >>> swap.apply(flips, [[1], [0], [1]])[1].tolist()
    [[0], [1], [1]]
    """
    mechanisms = dem if isinstance(dem, Mechanisms) else Mechanisms.of(dem)
    images = np.asarray(permutation)
    if not np.array_equal(np.sort(images, axis=None), np.arange(mechanisms.num_detectors)):
        raise InputError(
            f"permutation must hold 0 .. {mechanisms.num_detectors - 1} once each, got shape {images.shape}"
        )
    symmetry = _Completion(mechanisms, tolerance).automorphism(images.astype(np.int64))
    if symmetry is None:
        raise InputError("permutation must carry every error mechanism to one of equal probability")
    return symmetry


class _Completion:
    """Solves for M and C; what does not depend on the permutation is done once.

    Only mechanisms that share their detectors with no other one of the same probability say how observables
    transform.
    """

    def __init__(self, mechanisms: Mechanisms, tolerance: float) -> None:
        self.mechanisms, self.tolerance = mechanisms, tolerance
        # A table in which a mechanism is known by its detectors and its probability.
        kinds = probability_kinds(mechanisms, tolerance).astype(">u8")
        names = np.unpackbits(kinds.view(np.uint8).reshape(-1, 8), axis=1)
        looks = np.hstack([mechanisms.detectors, kinds[:, None].astype(np.int64)])
        _, first, counts = np.unique(looks, axis=0, return_index=True, return_counts=True)
        self.lone = first[counts == 1]
        self.table = Mechanisms(
            mechanisms.detectors[self.lone],
            names[self.lone],
            mechanisms.probabilities[self.lone],
            mechanisms.num_detectors,
        )
        self.equations, system = self._independent_equations()
        # Columns of the identity record the elimination: solution = operations @ right-hand side.
        identity = np.eye(len(system), dtype=np.uint8)
        reduced, self.pivots = gf2.row_reduce(np.hstack([system, identity]))
        self.operations = reduced[:, system.shape[1] :].astype(np.float32)

    def automorphism(self, permutation: NDArray[np.int64]) -> Automorphism | None:
        """Return the symmetry with a permutation, or None if there is none."""
        filler = np.append(permutation, self.mechanisms.num_detectors).astype(np.int32)
        images = self.table.find(filler[self.table.detectors], self.table.observables)
        if (images < 0).any():
            return None
        k = self.mechanisms.observables.shape[1]
        right = self.mechanisms.observables[self.lone[images[self.equations]]]
        maps = np.zeros((k + self.mechanisms.num_detectors, k), dtype=np.uint8)
        maps[self.pivots] = self.operations @ right % 2  # exact in float32: sums stay far below 2^24
        observable_map, detector_term = np.hsplit(np.ascontiguousarray(maps.T), [k])
        symmetry = Automorphism(permutation, observable_map, detector_term)
        result = compare_mechanisms(self.mechanisms, symmetry)
        return symmetry if not result.unmatched and result.max_difference <= self.tolerance else None

    def _independent_equations(self) -> tuple[NDArray[np.int64], BitMatrix]:
        """Return which rows of the table span the flips of all, and these flips, one row each."""
        unknowns = self.mechanisms.observables.shape[1] + self.mechanisms.num_detectors
        chosen, system = np.zeros(0, dtype=np.int64), np.zeros((0, unknowns), dtype=np.uint8)
        unseen = np.eye(unknowns, dtype=np.uint8)  # what is orthogonal to the rows chosen so far
        for start in range(0, len(self.lone), BLOCK):
            rows = self._flips(slice(start, start + BLOCK))
            outside = (rows.astype(np.float32) @ unseen.T.astype(np.float32) % 2).any(axis=1)
            new = np.flatnonzero(outside)
            if new.size:
                new = new[gf2.independent_rows(rows[new], modulo=system)]
                chosen, system = np.append(chosen, start + new), np.vstack([system, rows[new]])
                unseen = gf2.nullspace(system)
            if not len(unseen):
                break
        return chosen, system

    def _flips(self, block: slice) -> BitMatrix:
        """Return observables and detectors of some rows of the table, one row each."""
        detectors = self.table.detectors[block]
        flips = np.zeros((len(detectors), self.mechanisms.num_detectors + 1), dtype=np.uint8)
        flips[np.arange(len(detectors))[:, None], detectors] = 1
        return np.hstack([self.mechanisms.observables[self.lone[block]], flips[:, :-1]])


def _grid(dem: stim.DetectorErrorModel) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the coordinates as integers from 0, the step of each axis, and its period in steps."""
    given = dem.get_detector_coordinates()
    lengths = {len(given[detector]) for detector in range(dem.num_detectors)}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(
            "all detectors must have equally many coordinates, one or more; without them use "
            f"discover_automorphisms, got {sorted(lengths)}"
        )
    places = np.array([given[detector] for detector in range(dem.num_detectors)], dtype=np.float64)
    places -= places.min(axis=0)
    steps = np.ones(places.shape[1])
    for axis, values in enumerate(places.T):
        distinct = np.unique(values)
        if len(distinct) > 1:
            steps[axis] = np.diff(distinct).min()
    grid = np.rint(places / steps)
    if not np.allclose(grid * steps, places):
        raise InputError("along each axis coordinates must be multiples of their smallest distance")
    coordinates = grid.astype(np.int64)
    if len(np.unique(coordinates, axis=0)) < len(coordinates):
        raise InputError(f"two of the {len(coordinates)} detectors have the same coordinates")
    return coordinates, steps, coordinates.max(axis=0) + 1


def _shifts(values: NDArray[np.int64], period: int) -> list[int]:
    """Return the shifts along one axis under which each value occurs as often as before."""
    counts = np.bincount(values, minlength=period)
    return [shift for shift in range(period) if (np.roll(counts, shift) == counts).all()]
