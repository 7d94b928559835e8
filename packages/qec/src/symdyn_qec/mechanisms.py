"""Error mechanisms: the independent coin flips that a detector error model consists of, as arrays."""

from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.gf2 import BitMatrix


@dataclass(frozen=True, eq=False)
class Mechanisms:
    r"""The error mechanisms of a detector error model, those with equal flips merged.

    Two mechanisms with equal flips and probabilities p, q act as one with ``p (1 - q) + q (1 - p)``; those
    that flip nothing are left out. One row per mechanism, in no particular order.

    Args:
        detectors: the detectors that flip, in increasing order and filled up with ``num_detectors``, shape
            ``(n, largest degree)``.
        observables: the observables that flip, bits, shape ``(n, num_observables)``.
        probabilities: in (0, 1], shape ``(n,)``.
        num_detectors: of the model.

    >>> model = stim.DetectorErrorModel("error(0.5) D0 L0\nerror(0.25) D0 L0\nerror(0.25) D0 D2")
    >>> found = Mechanisms.of(model)
    >>> found.detectors.tolist(), found.observables.tolist(), found.probabilities.tolist()
    ([[0, 2], [0, 3]], [[0], [1]], [0.25, 0.5])
    """

    detectors: NDArray[np.int32]
    observables: BitMatrix
    probabilities: NDArray[np.float64]
    num_detectors: int

    @classmethod
    def of(cls, dem: stim.DetectorErrorModel) -> "Mechanisms":
        """Collect the mechanisms of a model."""
        detector_sets: list[list[int]] = []
        observable_sets: list[set[int]] = []
        probabilities: list[float] = []
        for instruction in dem.flattened():
            if instruction.type != "error" or not instruction.args_copy()[0]:
                continue
            detectors: set[int] = set()
            observables: set[int] = set()
            for target in instruction.targets_copy():
                if target.is_relative_detector_id():
                    detectors ^= {target.val}
                elif target.is_logical_observable_id():
                    observables ^= {target.val}
            if detectors or observables:
                detector_sets.append(sorted(detectors))
                observable_sets.append(observables)
                probabilities.append(instruction.args_copy()[0])
        n, degree = len(probabilities), max(map(len, detector_sets), default=0)
        rows = np.full((n, degree), dem.num_detectors, dtype=np.int32)
        flips = np.zeros((n, dem.num_observables), dtype=np.uint8)
        for row, (detector_list, observables) in enumerate(zip(detector_sets, observable_sets, strict=True)):
            rows[row, : len(detector_list)] = detector_list
            flips[row, list(observables)] = 1
        _, first, owner = np.unique(_keys(rows, flips), return_index=True, return_inverse=True)
        merged = [0.0] * len(first)
        for row, p in zip(owner.tolist(), probabilities, strict=True):
            merged[row] = p * (1 - merged[row]) + merged[row] * (1 - p)
        return cls(rows[first], flips[first], np.array(merged), dem.num_detectors)

    def __len__(self) -> int:
        return len(self.probabilities)

    def parities(self, of_detectors: ArrayLike) -> BitMatrix:
        """Return for each mechanism whether it flips an odd number of some detectors.

        Args:
            of_detectors: sets of detectors, bits, shape ``(a, num_detectors)``.

        Returns:
            Bits, shape ``(n, a)``.
        """
        sets = gf2.bits(of_detectors, "of_detectors")
        if sets.shape[1] != self.num_detectors:
            raise InputError(f"of_detectors must have width {self.num_detectors}, got {sets.shape[1]}")
        padded = np.vstack([sets.T, np.zeros((1, len(sets)), dtype=np.uint8)])
        odd: BitMatrix = np.bitwise_xor.reduce(padded[self.detectors], axis=1)
        return odd

    def find(self, detectors: NDArray[np.int32], observables: BitMatrix) -> NDArray[np.int64]:
        """Return the row of the mechanism with each of the given flips, -1 where there is none.

        Args:
            detectors: in any order, filled up like the field, shape ``(m, largest degree)``.
            observables: bits, shape ``(m, num_observables)``.
        """
        own = _keys(self.detectors, self.observables)
        wanted = _keys(np.sort(detectors, axis=1), observables)
        order = np.argsort(own)
        place = np.minimum(np.searchsorted(own, wanted, sorter=order), max(len(own) - 1, 0))
        return np.where(own[order[place]] == wanted, order[place], -1)


def parity_rates(dem: stim.DetectorErrorModel | Mechanisms, of_detectors: ArrayLike) -> NDArray[np.float64]:
    r"""Return the probability that each of some sets of detectors has odd parity in a shot.

    .. math:: P_a = \tfrac12 \Big[1 - \prod_{i:\, a \cdot D_i \,\mathrm{odd}} (1 - 2 p_i)\Big]

    over the mechanisms i with probability :math:`p_i` and detectors :math:`D_i` (the piling-up lemma).

    Args:
        dem: any detector error model.
        of_detectors: sets of detectors, bits, shape ``(a, num_detectors)``.

    Returns:
        Shape ``(a,)``.

    Two coins of probability 1/4 differ with probability 2 * 1/4 * 3/4:

    >>> parity_rates(stim.DetectorErrorModel("error(0.25) D0\nerror(0.25) D1"), [[1, 1], [1, 0]]).tolist()
    [0.375, 0.25]
    """
    found = dem if isinstance(dem, Mechanisms) else Mechanisms.of(dem)
    biases = np.where(found.parities(of_detectors), 1 - 2 * found.probabilities[:, None], 1.0)
    rates: NDArray[np.float64] = (1 - np.prod(biases, axis=0)) / 2
    return rates


def errors_per_shot(dem: stim.DetectorErrorModel) -> float:
    r"""Return how many errors a shot has on average.

    >>> errors_per_shot(stim.DetectorErrorModel("error(0.25) D0\nrepeat 2 {\nerror(0.5) D0\n}"))
    1.25
    """
    return float(sum(part.args_copy()[0] for part in dem.flattened() if part.type == "error"))


def _keys(detectors: NDArray[np.int32], observables: BitMatrix) -> NDArray[np.void]:
    """Return one opaque value per row; equal for equal flips, and sortable."""
    packed = np.packbits(observables, axis=1)
    rows = np.ascontiguousarray(np.hstack([detectors.astype(">i4").view(np.uint8), packed]))
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
