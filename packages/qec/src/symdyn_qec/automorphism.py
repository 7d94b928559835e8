r"""Symmetries of a detector error model: relabellings of its detectors that leave the noise as it is.

A symmetry acts on the flips of a shot, detectors D and observables o, by

.. math:: (\pi D)_{\pi(d)} = D_d, \qquad o \mapsto M o + C D \pmod 2,

and is exact if it carries every error mechanism to another one of the same probability. The detector term C
is needed because an observable moved by the symmetry is a sum of the chosen observables only up to checks,
and checks have outcomes of their own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import stim
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.codes import Basis, BivariateBicycleCode, Shift, check_basis
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.mechanisms import Mechanisms

# Where a check of each kind has its fourth detector coordinate; see `symdyn_qec.circuits.bb_memory`.
KINDS: tuple[Basis, Basis] = ("X", "Z")


class ReadoutMap(NamedTuple):
    """How parities of the readout follow from the flips of a shot: ``M o + C D`` modulo 2.

    Fields:
        observable_map: M, bits, shape ``(parities, observables)``.
        detector_term: C, bits, shape ``(parities, detectors)``.
    """

    observable_map: BitMatrix
    detector_term: BitMatrix

    def apply(self, detectors: ArrayLike, observables: ArrayLike) -> BitMatrix:
        """Return the parities of shots, shape ``(shots, parities)``.

        Args: as for :meth:`Automorphism.apply`.

        >>> ReadoutMap(np.array([[1]]), np.array([[1, 0]])).apply([[1, 1], [0, 1]], [[0], [1]]).tolist()
        [[1], [1]]
        """
        d, o = gf2.bits(detectors, "detectors"), gf2.bits(observables, "observables")
        expected = (self.detector_term.shape[1], self.observable_map.shape[1])
        if (d.shape[1], o.shape[1]) != expected or len(d) != len(o):
            raise InputError(
                f"expected equally many shots of {expected[0]} detectors and {expected[1]} observables, "
                f"got shapes {d.shape} and {o.shape}"
            )
        # Sums of bytes wrap at 256, which leaves the parity right.
        flips: BitMatrix = (o @ self.observable_map.T + d @ self.detector_term.T) & np.uint8(1)
        return flips


class Automorphism(NamedTuple):
    """A symmetry of a detector error model.

    Fields:
        permutation: ``permutation[d]`` is the detector to which detector d moves, shape ``(detectors,)``.
        observable_map: M, bits, shape ``(observables, observables)``.
        detector_term: C, bits, shape ``(observables, detectors)``.
    """

    permutation: NDArray[np.int64]
    observable_map: BitMatrix
    detector_term: BitMatrix

    def apply(self, detectors: ArrayLike, observables: ArrayLike) -> tuple[BitMatrix, BitMatrix]:
        """Return the flips of transformed shots.

        Args:
            detectors: bits or booleans, shape ``(shots, detectors)``.
            observables: bits or booleans, shape ``(shots, observables)``.

        Returns:
            Detectors and observables, same shapes.

        >>> one, term = np.eye(1, dtype=np.uint8), np.array([[1, 0]], dtype=np.uint8)
        >>> swap = Automorphism(np.array([1, 0]), one, term)
        >>> [flips.tolist() for flips in swap.apply([[1, 0]], [[0]])]
        [[[0, 1]], [[1]]]
        """
        flips = ReadoutMap(self.observable_map, self.detector_term).apply(detectors, observables)
        moved = np.empty((len(flips), len(self.permutation)), dtype=np.uint8)
        moved[:, self.permutation] = detectors
        return moved, flips

    def without_detector_term(self) -> "Automorphism":
        """Return the map that transforms observables among themselves alone; exact only where C = 0."""
        return self._replace(detector_term=np.zeros_like(self.detector_term))


@dataclass(frozen=True)
class Equivariance:
    """How far a map is from a symmetry: the outcome of :func:`compare_mechanisms`.

    Fields:
        mechanisms: number of error mechanisms of the model, those with equal flips merged.
        unmatched: how many of them the map carries to flips that no mechanism has.
        max_difference: largest difference between a mechanism's probability and that of its image, a missing
            image counting as zero.
    """

    mechanisms: int
    unmatched: int
    max_difference: float


def dem_automorphism(
    code: BivariateBicycleCode,
    dem: stim.DetectorErrorModel | stim.Circuit,
    shift: Shift,
    basis: Basis = "Z",
    observables: ArrayLike | None = None,
) -> Automorphism:
    r"""Return the symmetry by which a translation of the torus acts on a memory experiment.

    Detectors move with their checks. With observables :math:`L_a`, checks :math:`S_g` of the same basis and
    the coefficients of :math:`T_{-s} L_a = \sum_b M_{ab} L_b + \sum_g K_{ag} S_g`,

    .. math:: o_a \mapsto \sum_b M_{ab} o_b + \sum_g K_{ag} \sum_t D_{g,t} ,

    because the detectors of a check over all times, the readout included, add up to its parity on the data.

    Args:
        code: the code.
        dem: the model of its memory experiment, or the circuit, with the detector coordinates of
            :func:`symdyn_qec.circuits.bb_memory`; any number of rounds, any translation invariant noise.
        shift: ``(dx, dy)``, taken modulo ``(l, m)``.
        basis: of the experiment, "X" or "Z".
        observables: those of the experiment, bits, shape ``(o, n)``; by default ``code.logicals(basis)``.

    Raises:
        InputError: detectors without the expected coordinates, another number of observables, or observables
            whose translates they do not generate.

    Source: derived for arXiv 2504.13043 (stated there for the code, not for the circuit); exact by
    :func:`verify_equivariance`.

    >>> from symdyn_qec.circuits import bb_memory
    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> code = bivariate_bicycle("bb72")
    >>> dem = bb_memory(code, p=0.001, rounds=2).detector_error_model()
    >>> verify_equivariance(dem, dem_automorphism(code, dem, shift=(1, 0)))
    0.0
    """
    supports = _known(code, dem, basis, observables)
    detectors = _detectors(code, dem)
    cells = code.shifted_cells(shift)
    permutation = np.empty(dem.num_detectors, dtype=np.int64)
    for (kind, time, cell), detector in detectors.items():
        image = detectors.get((kind, time, int(cells[cell])))
        if image is None:
            raise InputError(f"detector {detector} has no partner at t={time:g} under the shift {shift}")
        permutation[detector] = image
    back = code.translate(supports, (-shift[0], -shift[1]))
    readout = readout_map(code, dem, back, basis, supports)
    return Automorphism(permutation, readout.observable_map, readout.detector_term)


def readout_map(
    code: BivariateBicycleCode,
    dem: stim.DetectorErrorModel | stim.Circuit,
    supports: ArrayLike,
    basis: Basis = "Z",
    observables: ArrayLike | None = None,
) -> ReadoutMap:
    r"""Return how flips of any logical operators follow from a memory's detectors and observables.

    An operator of support :math:`V_a = \sum_b M_{ab} L_b + \sum_g K_{ag} S_g` over the observables and the
    checks of the same basis has the parity :math:`\sum_b M_{ab} o_b + \sum_g K_{ag} \sum_t D_{g,t}`.

    Args:
        code: the code.
        dem: as for :func:`dem_automorphism`.
        supports: V, bits, shape ``(a, n)``.
        basis: of the experiment, "X" or "Z".
        observables: those of the experiment, bits, shape ``(o, n)``; by default ``code.logicals(basis)``.

    Raises:
        InputError: detectors without the expected coordinates, another number of observables, or an operator
            that observables and checks do not generate.
    """
    known = _known(code, dem, basis, observables)
    coefficients = gf2.express(supports, np.vstack([known, code.checks(basis)]))
    observable_map, of_checks = np.hsplit(coefficients, [len(known)])
    return ReadoutMap(observable_map, detector_sums(code, dem, of_checks, basis))


def detector_sums(
    code: BivariateBicycleCode,
    dem: stim.DetectorErrorModel | stim.Circuit,
    of_checks: BitMatrix,
    basis: Basis,
) -> BitMatrix:
    """Return which detectors add up to sums of checks on the readout: all those of each check, at any time.

    Args:
        code: the code.
        dem: as for :func:`dem_automorphism`.
        of_checks: sets of checks of the basis, bits, shape ``(a, cells)``.
        basis: of the experiment, "X" or "Z".

    Returns:
        Sets of detectors, bits, shape ``(a, detectors)``.
    """
    term = np.zeros((len(of_checks), dem.num_detectors), dtype=np.uint8)
    for (kind, _, cell), detector in _detectors(code, dem).items():
        if kind == basis:
            term[:, detector] = of_checks[:, cell]
    return term


def compare_mechanisms(dem: stim.DetectorErrorModel | Mechanisms, automorphism: Automorphism) -> Equivariance:
    r"""Carry every error mechanism of a model along a map and look for it in the model.

    Args:
        dem: any detector error model, or its mechanisms.
        automorphism: a permutation of its detectors with the maps of its observables.

    Raises:
        InputError: the map is for another number of detectors or observables.

    Two detectors with different noise are not exchangeable:

    >>> model = stim.DetectorErrorModel("error(0.25) D0\nerror(0.125) D1")
    >>> swap = Automorphism(np.array([1, 0]), np.zeros((0, 0), np.uint8), np.zeros((0, 2), np.uint8))
    >>> compare_mechanisms(model, swap)
    Equivariance(mechanisms=2, unmatched=0, max_difference=0.125)
    """
    found = dem if isinstance(dem, Mechanisms) else Mechanisms.of(dem)
    shape = automorphism.detector_term.shape
    if shape != (found.observables.shape[1], found.num_detectors):
        raise InputError(
            f"the map is for {shape[1]} detectors and {shape[0]} observables, "
            f"the model has {found.num_detectors} and {found.observables.shape[1]}"
        )
    filler = np.append(automorphism.permutation, found.num_detectors).astype(np.int32)
    own: BitMatrix = found.observables @ automorphism.observable_map.T & np.uint8(1)
    images = found.find(filler[found.detectors], own ^ found.parities(automorphism.detector_term))
    matched = images >= 0
    change = np.abs(found.probabilities - np.where(matched, found.probabilities[images], 0.0))
    return Equivariance(len(found), int((~matched).sum()), float(change.max(initial=0.0)))


def verify_equivariance(dem: stim.DetectorErrorModel | Mechanisms, automorphism: Automorphism) -> float:
    """Return the largest change of an error mechanism's probability under a map; 0 for an exact symmetry.

    Args: as for :func:`compare_mechanisms`.

    Raises:
        InputError: some mechanism is carried to flips that no mechanism of the model has.
    """
    result = compare_mechanisms(dem, automorphism)
    if result.unmatched:
        raise InputError(
            f"not a symmetry of the model: {result.unmatched} of {result.mechanisms} error mechanisms "
            "are carried to flips that no mechanism has"
        )
    return result.max_difference


def _known(
    code: BivariateBicycleCode,
    dem: stim.DetectorErrorModel | stim.Circuit,
    basis: Basis,
    observables: ArrayLike | None,
) -> BitMatrix:
    """Return the supports of a memory's observables."""
    check_basis(basis)
    supports = code.logicals(basis) if observables is None else gf2.bits(observables, "observables")
    if supports.shape != (dem.num_observables, code.n):
        raise InputError(
            f"observables must have shape ({dem.num_observables}, {code.n}), got {supports.shape}"
        )
    return supports


def _detectors(
    code: BivariateBicycleCode, dem: stim.DetectorErrorModel | stim.Circuit
) -> dict[tuple[Basis, float, int], int]:
    """Return the detectors by (kind of check, time, cell)."""
    found: dict[tuple[Basis, float, int], int] = {}
    for detector, coordinates in dem.get_detector_coordinates().items():
        if len(coordinates) != 4 or coordinates[3] not in (0, 1):
            raise InputError(
                f"detector {detector} must have coordinates (i, j, t, kind), kind 0 or 1, got {coordinates}"
            )
        i, j, time, kind = coordinates
        if not (0 <= i < code.l and 0 <= j < code.m):
            raise InputError(
                f"detector {detector} must lie on the torus of {code.l} x {code.m} cells, got ({i:g}, {j:g})"
            )
        found[KINDS[int(kind)], time, int(i) * code.m + int(j)] = detector
    if len(found) != dem.num_detectors:
        raise InputError(f"two of the {dem.num_detectors} detectors have the same coordinates")
    return found
