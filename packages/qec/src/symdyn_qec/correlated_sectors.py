r"""Errors as what they do to the detectors that determine the observables, and to all others.

In a circuit of a CSS code an error has two parts: what it flips among the checks of one kind, and among those
of the other. Belief propagation on whole errors goes wrong, for errors that share detectors make short
cycles; on one kind of checks it knows nothing of the other. On the parts it does well, if the two kinds tell
each other which parts come together.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from symdyn_core.errors import InputError
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.baselines.sector import observable_sector
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.mechanisms import Mechanisms


@dataclass(frozen=True, eq=False)
class Sector:
    """Detectors of one kind, and the parts that errors have there; those with equal flips are one.

    Fields:
        detectors: numbers of the model, shape ``(m,)``.
        checks: which parts flip which of them, shape ``(m, parts)``.
        alone: odds of errors that have no part in the other sector, shape ``(parts,)``.
    """

    detectors: NDArray[np.int64]
    checks: sparse.csr_array
    alone: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CorrelatedSectors:
    r"""Two sectors, and the errors that have a part in both.

    Fields:
        own: the sector that determines the observables.
        other: all other detectors; may be empty.
        pairs: parts of errors in both sectors, in the own one first, shape ``(pairs, 2)``.
        together: odds of these errors, shape ``(pairs,)``.
        observables: that each part of the own sector flips, shape ``(parts, k)``.

    >>> import stim
    >>> text = "error(0.2) D0 L0\nerror(0.2) D1\nerror(0.5) D0 D1 L0"
    >>> sectors = CorrelatedSectors.of(RareErrors.of(stim.DetectorErrorModel(text)))
    >>> sectors.own.detectors.tolist(), sectors.other.detectors.tolist()
    ([0], [1])
    >>> sectors.own.alone.tolist(), sectors.pairs.tolist(), sectors.together.tolist()
    ([0.25], [[0, 0]], [1.0])
    """

    own: Sector
    other: Sector
    pairs: NDArray[np.int64]
    together: NDArray[np.float64]
    observables: BitMatrix

    @classmethod
    def of(cls, rare: RareErrors) -> "CorrelatedSectors":
        """Take the errors of a model apart."""
        found = Mechanisms.of(rare.model)
        kept = observable_sector(rare.model, found)
        odds = found.probabilities / (1 - found.probabilities)
        places, numbers = zip(*(_parts(found, mask) for mask in (kept, ~kept)), strict=True)
        own, other = (
            Sector(detectors, checks, _sums(odds[single], number[single], checks.shape[1]))
            for (detectors, checks), number, single in zip(
                places, numbers, (numbers[1] < 0, numbers[0] < 0), strict=True
            )
        )
        both = (numbers[0] >= 0) & (numbers[1] >= 0)
        observables = np.zeros((own.checks.shape[1], found.observables.shape[1]), np.uint8)
        # Where one part goes with several observables the likeliest, written last, stays.
        rising = np.argsort(found.probabilities, kind="stable")
        rising = rising[numbers[0][rising] >= 0]
        observables[numbers[0][rising]] = found.observables[rising]
        return cls(own, other, np.stack(numbers, axis=1)[both], odds[both], observables)

    @classmethod
    def single(cls, checks: sparse.sparray, priors: NDArray[np.float64]) -> "CorrelatedSectors":
        """Return errors that are not to be taken apart.

        Args:
            checks: which of them flip which detectors, shape ``(detectors, errors)``.
            priors: their probabilities, in (0, 1/2], shape ``(errors,)``.

        Raises:
            InputError: priors out of range or of another shape.
        """
        table = sparse.csr_array(checks)
        if priors.shape != table.shape[1:]:
            raise InputError(f"priors must have shape {table.shape[1:]}, got {priors.shape}")
        if priors.size and not (priors.min() > 0 and priors.max() <= 0.5):
            raise InputError(f"priors must be in (0, 1/2], got {priors.min():g} to {priors.max():g}")
        nothing = Sector(np.zeros(0, np.int64), sparse.csr_array((0, 0)), np.zeros(0))
        return cls(
            Sector(np.arange(table.shape[0]), table, priors / (1 - priors)),
            nothing,
            np.zeros((0, 2), np.int64),
            np.zeros(0),
            np.zeros((table.shape[1], 0), np.uint8),
        )


def _parts(
    found: Mechanisms, mask: NDArray[np.bool_]
) -> tuple[tuple[NDArray[np.int64], sparse.csr_array], NDArray[np.int64]]:
    """Return detectors and checks of a sector, and which part each error has there, -1 for none."""
    n = found.num_detectors
    rows = np.sort(np.where(np.append(mask, False)[found.detectors], found.detectors, n), axis=1)
    sets, number = np.unique(rows, axis=0, return_inverse=True)
    # No part at all sorts last.
    if len(sets) and (sets[-1] == n).all():
        number = np.where(number == len(sets) - 1, -1, number)
        sets = sets[:-1]
    detectors = np.flatnonzero(mask)
    part, place = np.nonzero(sets < n)
    row = np.searchsorted(detectors, sets[part, place])
    shape = len(detectors), len(sets)
    return (detectors, sparse.csr_array((np.ones(len(row), np.uint8), (row, part)), shape=shape)), number


def _sums(values: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the sum of each group, shape ``(count,)``."""
    return np.bincount(groups, values, count).astype(np.float64)
