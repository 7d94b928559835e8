"""What a network for any circuit is told about shots, and what is clear without it."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import stim
from numpy.typing import NDArray
from scipy import sparse

from symdyn_qec.class_matching import CLEAR, ClassMatching
from symdyn_qec.correlated_sectors import CorrelatedSectors
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.graph_layout import GraphLayout
from symdyn_qec.min_sum import MinSum
from symdyn_qec.min_sum_decoder import leading
from symdyn_qec.split_model import SplitModel

Floats = NDArray[np.float32]

# Of belief propagation: those that have to agree, and how many there are for shots on which they do not.
FIRST_VERSIONS, VERSIONS = 4, 24

# Prior of errors that cannot happen under the noise at hand.
IMPOSSIBLE = 1e-12

# Preference in nats for what all versions predict; what it is worth the network learns.
AGREEMENT = 3.0

# Members of an ensemble of matchings: at distance 5 half as many fail 2 % more often, twice as many not less.
MEMBERS = 8


class Seen(NamedTuple):
    """What is known of some shots before a network sees them.

    Fields:
        observables: predicted so far, by sums over classes or where matching is of no use by belief
            propagation, bits, shape ``(shots, observables)``.
        preference: for this prediction, in nats or what stands for them, shape ``(shots,)``.
        open: numbers of the shots that the network shall see, shape ``(open,)``.
        fired: their detectors, bits, shape ``(open, detectors)``.
        edges: their edges, as :class:`~symdyn_qec.class_matching.Candidates` has them, those of the predicted
            class first; where matching is of no use the errors that the prediction stands on, and the share
            of versions that believe in each. Shape ``(open, 2, edges)``.
        shot: their features as a whole, shape ``(open, 3)``.
    """

    observables: BitMatrix
    preference: Floats
    open: NDArray[np.int64]
    fired: BitMatrix
    edges: Floats
    shot: Floats


@dataclass(frozen=True, eq=False)
class CircuitGraph:
    """A circuit as the network knows it.

    Fields:
        dem: at a typical strength of the noise, errors split into edges where that is possible.

    >>> from symdyn_qec.circuits import surface_memory
    >>> dem = surface_memory(3, 3, 0.001).detector_error_model(decompose_errors=True)
    >>> CircuitGraph(dem).matched
    True
    """

    dem: stim.DetectorErrorModel

    @cached_property
    def split(self) -> SplitModel:
        """Errors as edges."""
        return SplitModel.of(self.dem)

    @cached_property
    def layout(self) -> GraphLayout:
        """Pairs and edges."""
        return GraphLayout.of(self.dem, self.split)

    @cached_property
    def matched(self) -> bool:
        """Whether matching is of use."""
        return self.split.sides() is not None

    @cached_property
    def errors_per_shot(self) -> float:
        """Expected number of errors at the typical strength."""
        return float(self.split.probabilities(self.dem, "itself").sum())

    def reader(self, dem: stim.DetectorErrorModel, name: str = "this circuit") -> "ShotReader":
        """Make ready for shots of the circuit at some strength of the noise.

        Args:
            dem: split or not.
            name: of what knows this circuit, for messages.

        Raises:
            InputError: a model of another circuit.
        """
        return ShotReader(self, self.split.probabilities(dem, name))


class ShotReader:
    """Reads shots of one circuit under noise of one strength.

    Args:
        graph: the circuit.
        probabilities: of its errors, shape ``(errors,)``.
    """

    def __init__(self, graph: CircuitGraph, probabilities: NDArray[np.float64]) -> None:
        self.noise = float(np.log(max(probabilities.sum(), 1e-12) / graph.errors_per_shot))
        self._guess = (_Matched if graph.matched else _Believed)(graph.split, probabilities)

    def read(self, detectors: BitMatrix) -> Seen:
        """Return what is known of shots.

        Args:
            detectors: bits, shape ``(shots, detectors)``.
        """
        observables, preference, open_, edges, second = self._guess(detectors)
        noise = np.full(len(open_), self.noise, np.float32)
        shot = np.stack([preference[open_], second, noise], axis=1)
        return Seen(observables, preference, open_, detectors[open_], edges, shot)


# Observables, preference, numbers of open shots, their edges, and one more feature of them.
_Guess = tuple[BitMatrix, Floats, NDArray[np.int64], Floats, Floats]


class _Matched:
    """The better of two classes, by sums over explanations."""

    def __init__(self, split: SplitModel, probabilities: NDArray[np.float64]) -> None:
        self._matching = ClassMatching(split, probabilities, MEMBERS)

    def __call__(self, detectors: BitMatrix) -> _Guess:
        observables, preference, asked, found = self._matching.decide(detectors)
        kept = np.flatnonzero(preference[asked] < CLEAR)
        open_ = asked[kept]
        better = observables[open_].astype(np.int64)
        order = np.stack([better, 1 - better], axis=1)
        least = np.take_along_axis(found.least[kept], order, axis=1)
        edges = np.take_along_axis(found.edges[kept], order[:, :, None], axis=1)
        return observables[:, None], preference, open_, edges, least[:, 1] - least[:, 0]


class _Believed:
    """What most versions of belief propagation predict."""

    def __init__(self, split: SplitModel, probabilities: NDArray[np.float64]) -> None:
        rows = [(detector, number) for number, (ends, _) in enumerate(split.flips) for detector in ends]
        place = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        shape = split.num_detectors, len(split.flips)
        checks = sparse.csr_array((np.ones(len(rows), np.uint8), (place[0], place[1])), shape=shape)
        self._flips = np.zeros((len(split.flips), split.num_observables), np.float32)
        for number, (_, observables) in enumerate(split.flips):
            self._flips[number, list(observables)] = 1
        priors = np.clip(probabilities, IMPOSSIBLE, 0.5)
        self._propagation = MinSum(CorrelatedSectors.single(checks, priors))

    def __call__(self, detectors: BitMatrix) -> _Guess:
        believed, answers, concluded = self._ask(detectors, range(FIRST_VERSIONS))
        leader, lead = leading(answers, concluded)
        guess = answers[np.arange(len(leader)), leader]
        preference = np.full(len(guess), CLEAR, np.float32)
        open_ = np.flatnonzero(lead < FIRST_VERSIONS)
        more = self._ask(detectors[open_], range(FIRST_VERSIONS, VERSIONS))
        believed, answers, concluded = (
            np.concatenate([first[open_], rest], axis=1)
            for first, rest in zip((believed, answers, concluded), more, strict=True)
        )
        (leader, lead), rows = leading(answers, concluded), np.arange(len(open_))
        guess[open_] = answers[rows, leader]
        preference[open_] = AGREEMENT * lead / VERSIONS
        edges = np.stack([believed[rows, leader], believed.mean(axis=1)], axis=1).astype(np.float32)
        return guess, preference, open_, edges, concluded.mean(axis=1).astype(np.float32)

    def _ask(self, detectors: BitMatrix, versions: range) -> tuple[BitMatrix, BitMatrix, NDArray[np.bool_]]:
        """Return errors, observables, and which versions came to a conclusion."""
        nothing = np.zeros((len(detectors), 0), np.uint8)
        believed, legs = self._propagation.decode(detectors, nothing, versions)
        observables = ((believed.astype(np.float32) @ self._flips).astype(np.int64) & 1).astype(np.uint8)
        return believed, observables, legs > 0
