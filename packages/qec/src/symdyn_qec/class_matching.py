r"""What matchings of both classes say about a shot: the two ways in which an observable may have flipped.

Matching finds the lightest edges that explain the detectors. With a boundary split in two it can be asked for
the lightest ones that flip the observable, and for the lightest ones that do not. Edges that one error flips
together cost less than matching believes, so that what it finds is weighed anew, by the errors that it takes;
and the graphs are perturbed a little in several ways, which finds several explanations of each class. Their
sum

.. math:: F_c = -\log \sum_{e \in c} \prod_{i \in e} \frac{p_i}{1 - p_i}

is the free energy of a class as far as it is known, and :math:`F_1 - F_0` the log odds of no flip.

Sources: complementary gaps, arXiv 2312.04522; ensembles of perturbed matchings, arXiv 2408.12135.
"""

from typing import Any, NamedTuple

import numpy as np
import pymatching
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.class_sums import ClassSums
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.split_model import SplitModel

Floats = NDArray[np.float32]

# Standard deviation of the logarithms of perturbed probabilities.
PERTURBATION = 1.0

# In nats. Shots whose plain matchings differ by more are clear; hardly any of them is decided otherwise
# later on.
CLEAR = 7.0

# The first members of an ensemble, plain and correlated matching, decide which shots need the others.
FIRST_MEMBERS = 2

SHOTS_AT_ONCE = 4096


class Candidates(NamedTuple):
    """What is known of the two classes of some shots.

    Fields:
        energies: free energy of each class, in nats, shape ``(shots, 2)``.
        least: weight of the lightest explanation, likewise.
        edges: probability of each edge if the class is the right one, shape ``(shots, 2, edges)``.
    """

    energies: Floats
    least: Floats
    edges: Floats


class Decision(NamedTuple):
    """The better class of some shots.

    Fields:
        observables: that it has, bits, shape ``(shots,)``.
        preference: for it, in nats, likewise.
        asked: numbers of the shots that the ensemble was asked about, shape ``(asked,)``.
        candidates: what it said of them.
    """

    observables: BitMatrix
    preference: Floats
    asked: NDArray[np.int64]
    candidates: Candidates


class ClassMatching:
    r"""An ensemble of matchings of both classes.

    Args:
        split: errors as edges; with a cut.
        probabilities: of the errors, shape ``(errors,)``.
        members: of the ensemble, at least 2: plain, correlated, and then perturbed correlated ones.
        seed: of the perturbations.

    Raises:
        InputError: a model without a cut, or too few members.

    >>> dem = stim.DetectorErrorModel("error(0.1) D0\nerror(0.1) D0 D1 L0\nerror(0.2) D1")
    >>> split = SplitModel.of(dem)
    >>> matching = ClassMatching(split, split.probabilities(dem, "this"))
    >>> found = matching.candidates(np.array([[1, 0]], dtype=np.uint8))
    >>> round(float(found.energies[0, 1] - found.energies[0, 0]), 3)  # log(4): one error against two
    1.386
    """

    def __init__(
        self, split: SplitModel, probabilities: NDArray[np.float64], members: int = 8, seed: int = 0
    ) -> None:
        sides = split.sides()
        if sides is None:
            raise InputError("matching of classes needs one observable and a boundary that it cuts in two")
        if members < FIRST_MEMBERS:
            raise InputError(f"members must be at least {FIRST_MEMBERS}, got {members}")
        self.split, self._sides = split, sides
        self._plain = self._graph(probabilities, False)
        self._members = [(self._graph(probabilities, True), False), (self._graph(probabilities, True), True)]
        for member in range(FIRST_MEMBERS, members):
            noise = numpy_generator(seed, "perturbation", member).normal(size=len(probabilities))
            # Matching needs errors that are less likely than not.
            perturbed = np.minimum(probabilities * np.exp(PERTURBATION * noise), 0.45)
            self._members.append((self._graph(perturbed, True), True))
        self._sums = ClassSums(split, probabilities)

    def gaps(self, detectors: BitMatrix) -> tuple[BitMatrix, Floats]:
        """Return the observable that plain matching predicts, and by how much it prefers that.

        Args:
            detectors: bits, shape ``(shots, detectors)``.

        Returns:
            Bits, shape ``(shots,)``, and nats, likewise.
        """
        weights = np.stack(
            [
                self._plain.decode_batch(self._of_class(detectors, flipped), return_weights=True)[1]
                for flipped in (0, 1)
            ]
        )
        difference = (weights[1] - weights[0]).astype(np.float32)
        return (difference < 0).astype(np.uint8), np.abs(difference)

    def decide(self, detectors: BitMatrix) -> "Decision":
        """Return the better class of shots: by plain matching where that is clear, by the ensemble elsewhere.

        Args:
            detectors: bits, shape ``(shots, detectors)``.
        """
        observables, preference = self.gaps(detectors)
        open_ = np.flatnonzero(preference < CLEAR)
        found = self.candidates(detectors[open_])
        difference = found.energies[:, 1] - found.energies[:, 0]
        observables[open_], preference[open_] = difference < 0, np.abs(difference)
        return Decision(observables, preference, open_, found)

    def candidates(self, detectors: BitMatrix) -> Candidates:
        """Return what the ensemble says of both classes.

        Shots that the first members already tell apart by :data:`CLEAR` are not shown to the others.

        Args:
            detectors: bits, shape ``(shots, detectors)``.
        """
        parts = [
            self._candidates(detectors[start : start + SHOTS_AT_ONCE])
            for start in range(0, max(len(detectors), 1), SHOTS_AT_ONCE)
        ]
        return Candidates(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def _candidates(self, detectors: BitMatrix) -> Candidates:
        first = self._matched(detectors, self._members[:FIRST_MEMBERS])
        found = self._weighed(first)
        open_ = np.flatnonzero(np.abs(found.energies[:, 1] - found.energies[:, 0]) < CLEAR)
        if len(self._members) > FIRST_MEMBERS and len(open_):
            more = self._matched(detectors[open_], self._members[FIRST_MEMBERS:])
            better = self._weighed(np.concatenate([first[:, :, open_], more], axis=1))
            for field, values in zip(found, better, strict=True):
                field[open_] = values
        return found

    def _matched(self, detectors: BitMatrix, members: list[tuple[Any, bool]]) -> NDArray[np.uint8]:
        """Return the edges that members match, shape ``(2, members, shots, edges)``."""
        return np.stack(
            [
                np.stack(
                    [
                        graph.decode_batch(shots, enable_correlations=correlated)
                        for graph, correlated in members
                    ]
                )
                for shots in (self._of_class(detectors, flipped) for flipped in (0, 1))
            ]
        )

    def _weighed(self, matched: NDArray[np.uint8]) -> Candidates:
        found = [self._sums.gather(of_class) for of_class in matched]
        return Candidates(*(np.stack(field, axis=1) for field in zip(*found, strict=True)))

    def _of_class(self, detectors: BitMatrix, flipped: int) -> BitMatrix:
        """Return detectors with one more, which fires if an odd number of edges leads to one boundary."""
        last = ((detectors @ self._sides + flipped) & 1).astype(np.uint8)
        return np.concatenate([detectors, last[:, None]], axis=1)

    def _graph(self, probabilities: NDArray[np.float64], edges: bool) -> Any:
        """Return a graph in which one boundary is a detector, and which reports edges if so wanted."""
        model, boundary = stim.DetectorErrorModel(), self.split.num_detectors
        for p, error in zip(probabilities, self.split.errors, strict=True):
            targets: list[stim.DemTarget] = []
            for edge in error:
                detectors, observables = self.split.edges[edge]
                side = (sum(int(self._sides[index]) for index in detectors) + len(observables)) & 1
                targets += [stim.target_separator()] if targets else []
                targets += [stim.target_relative_detector_id(index) for index in detectors]
                targets += [stim.target_relative_detector_id(boundary)] if side else []
                targets += [stim.target_logical_observable_id(edge if edges else 0)]
            if p:
                model.append("error", float(p), targets)
        model.append("detector", [], [stim.target_relative_detector_id(boundary)])
        if edges:
            model.append(
                "logical_observable", [], [stim.target_logical_observable_id(len(self.split.edges) - 1)]
            )
        return pymatching.Matching.from_detector_error_model(model, enable_correlations=edges)
