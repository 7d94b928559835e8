"""A detector error model as decoders by linear algebra want it: a check matrix with priors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from symdyn_qec import gf2
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.baselines.sector import observable_sector
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.mechanisms import Mechanisms


@dataclass(frozen=True, eq=False)
class DecodingProblem:
    r"""Find likely errors e with H e = s; the observables are then L e.

    Errors with the same detectors are one column, because belief propagation cannot choose between equal
    columns. The column has the probability that an odd number of them happens, and the observables of the
    likeliest.

    Fields:
        checks: H, bits, sparse by columns, shape ``(m, n)``.
        observables: L, bits, sparse by columns, shape ``(k, n)``.
        priors: in (0, 1/2], shape ``(n,)``.
        detectors: which of the model's detectors the rows of H are, shape ``(m,)``.
        rank: of H.

    >>> import stim
    >>> text = "error(0.125) D0 L0\nerror(0.25) D0\nerror(0.25) D0 D3 L0"
    >>> problem = DecodingProblem.of(RareErrors.of(stim.DetectorErrorModel(text)))
    >>> problem.checks.toarray().tolist(), problem.observables.toarray().tolist()
    ([[1, 1], [1, 0]], [[1, 0]])
    >>> problem.priors.tolist(), problem.detectors.tolist(), problem.rank
    ([0.25, 0.3125], [0, 3], 2)
    """

    checks: sparse.csc_matrix
    observables: sparse.csc_matrix
    priors: NDArray[np.float64]
    detectors: NDArray[np.int64]
    rank: int

    @classmethod
    def of(cls, rare: RareErrors, one_sector: bool = False) -> "DecodingProblem":
        """Return the problem of a model.

        Args:
            rare: the model.
            one_sector: whether to leave out the detectors that
                :func:`~symdyn_qec.baselines.sector.observable_sector` does.
        """
        found, n = Mechanisms.of(rare.model), rare.model.num_detectors
        kept = observable_sector(rare.model, found) if one_sector else np.ones(n, dtype=np.bool_)
        rows = np.sort(np.where(np.append(kept, False)[found.detectors], found.detectors, n), axis=1)
        seen = (rows < n).any(axis=1)
        rows, flips, probabilities = rows[seen], found.observables[seen], found.probabilities[seen]
        columns, owner = np.unique(rows, axis=0, return_inverse=True)
        biases, likeliest = np.ones(len(columns)), np.zeros(len(columns), dtype=np.int64)
        np.multiply.at(biases, owner, 1 - 2 * probabilities)
        rising = np.argsort(probabilities, kind="stable")
        likeliest[owner[rising]] = rising  # the last one written stays
        place, index = np.nonzero(columns < n)
        detectors, row = np.unique(columns[place, index], return_inverse=True)
        checks = sparse.csc_matrix(
            (np.ones(len(row), dtype=np.uint8), (row, place)), shape=(len(detectors), len(columns))
        )
        observables = sparse.csc_matrix(flips[likeliest].T.reshape(rare.model.num_observables, -1))
        return cls(checks, observables, (1 - biases) / 2, detectors, gf2.rank(checks.toarray()))

    @property
    def free(self) -> int:
        """Number of columns beyond a basis; no ordered statistics can look at more."""
        return len(self.priors) - self.rank

    def predict(self, errors: BitMatrix | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the observables that errors flip, bits, shape ``(k,)``."""
        found: NDArray[np.uint8] = self.observables @ errors & 1
        return found
