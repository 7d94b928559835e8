r"""A frame of redundant logical operators, which translations merely permute.

The k observables of a memory experiment do not transform among themselves: a translated logical operator is a
sum of others only up to checks, see :mod:`symdyn_qec.automorphism`. A frame avoids this. It holds *all*
translates of a few seeds, and a translation carries each of its operators to another one. A decoder that
predicts frame bits f can share its weights over the whole torus.

Nothing is lost or gained: f follows from the observables o and the detectors D, and o from f,

.. math:: f = C o + D_f D, \qquad o = R f + E D \pmod 2 .

Source: derived for arXiv 2504.13043.
"""

from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.automorphism import ReadoutMap, detector_sums, readout_map
from symdyn_qec.codes import Basis, BivariateBicycleCode, Shift, check_basis
from symdyn_qec.gf2 import BitMatrix


@dataclass(frozen=True, eq=False)
class Frame:
    """All translates of a few logical operators, and how their bits follow from a shot and make it up.

    Fields:
        code: the code.
        supports: of the operators, bits, shape ``(frame, n)``; row ``s * cells + g`` is seed s moved to cell
            g.
        from_observables: C and the detector term D_f.
        to_observables: R and the detector term E, one of many: the bits of a frame depend on each other.
    """

    code: BivariateBicycleCode
    supports: BitMatrix
    from_observables: ReadoutMap
    to_observables: ReadoutMap

    def __len__(self) -> int:
        return len(self.supports)

    def bits(self, detectors: ArrayLike, observables: ArrayLike) -> BitMatrix:
        """Return the frame bits of shots.

        Args:
            detectors: bits or booleans, shape ``(shots, detectors)``.
            observables: bits or booleans, shape ``(shots, observables)``.

        Returns:
            Shape ``(shots, frame)``.
        """
        return self.from_observables.apply(detectors, observables)

    def observables(self, detectors: ArrayLike, bits: ArrayLike) -> BitMatrix:
        """Return the observables of shots with given frame bits.

        Args:
            detectors: bits or booleans, shape ``(shots, detectors)``.
            bits: of the frame, shape ``(shots, frame)``; where they contradict each other, so does the
                answer.

        Returns:
            Shape ``(shots, observables)``.
        """
        return self.to_observables.apply(detectors, bits)

    def permutation(self, shift: Shift) -> NDArray[np.int64]:
        """Return where each frame bit moves under a translation, shape ``(frame,)``.

        The frame bits of a translated shot are ``moved`` with ``moved[:, permutation] = bits``.
        """
        seeds = np.arange(0, len(self), self.code.cells)
        return (seeds[:, None] + self.code.shifted_cells(shift)).ravel()


def equivariant_frame(
    code: BivariateBicycleCode,
    dem: stim.DetectorErrorModel | stim.Circuit,
    basis: Basis = "Z",
    observables: ArrayLike | None = None,
    seeds: ArrayLike | None = None,
) -> Frame:
    """Return a frame for a memory experiment.

    Args:
        code: the code.
        dem: the model of its memory experiment, or the circuit, with the detector coordinates of
            :func:`symdyn_qec.bicycle_circuit.bb_memory`.
        basis: of the experiment, "X" or "Z".
        observables: those of the experiment, bits, shape ``(o, n)``; by default ``code.logicals(basis)``.
        seeds: supports of logical operators, bits, shape ``(s, n)``; by default those of the code.

    Raises:
        InputError: detectors without the expected coordinates, or seeds that are not logical operators or
            whose translates do not generate the observables.

    >>> from symdyn_qec.bicycle_circuit import bb_memory
    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> code = bivariate_bicycle("bb72")
    >>> frame = equivariant_frame(code, bb_memory(code, p=0.001, rounds=2))
    >>> len(frame), frame.supports.sum(axis=1).max().item()  # three seeds of weight six
    (108, 6)
    """
    first = code.seed_logicals(check_basis(basis)) if seeds is None else gf2.bits(seeds, "seeds")
    if first.shape[1] != code.n or not len(first):
        raise InputError(f"seeds must be one or more operators on n={code.n} qubits, got shape {first.shape}")
    known = code.logicals(basis) if observables is None else gf2.bits(observables, "observables")
    supports = np.vstack([code.translates(seed) for seed in first])
    from_observables = readout_map(code, dem, supports, basis, known)
    # The same identity read backwards; detectors enter as before, frame bits in the place of observables.
    try:
        coefficients = gf2.express(known, np.vstack([supports, code.checks(basis)]))
    except InputError as error:
        raise InputError(f"the translates of {len(first)} seeds do not generate all observables") from error
    back, of_checks = np.hsplit(coefficients, [len(supports)])
    term = detector_sums(code, dem, of_checks, basis)
    return Frame(code, supports, from_observables, ReadoutMap(back, term))
