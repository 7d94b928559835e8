"""What a network for any circuit is told about shots, and what is clear without it."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_qec.class_matching import CLEAR, ClassMatching
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.graph_layout import GraphLayout
from symdyn_qec.split_model import SplitModel

Floats = NDArray[np.float32]

# Members of an ensemble of matchings: with twice as many the surface code of distance 5 fails 3 % less often.
MEMBERS = 8


class Seen(NamedTuple):
    """What is known of some shots before a network sees them.

    Fields:
        observables: predicted so far, bits, shape ``(shots, observables)``; zero where matching is of no use.
        preference: for this prediction, in nats, shape ``(shots,)``.
        open: numbers of the shots that the network shall see, shape ``(open,)``.
        fired: their detectors, bits, shape ``(open, detectors)``.
        edges: their edges, as :class:`~symdyn_qec.class_matching.Candidates` has them, those of the predicted
            class first, shape ``(open, 2, edges)``; ``None`` where matching is of no use.
        shot: their features as a whole, shape ``(open, 3)``.
    """

    observables: BitMatrix
    preference: Floats
    open: NDArray[np.int64]
    fired: BitMatrix
    edges: Floats | None
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
        return self.layout.num_edges > 0

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
        self.graph = graph
        self.noise = float(np.log(max(probabilities.sum(), 1e-12) / graph.errors_per_shot))
        self._matching = ClassMatching(graph.split, probabilities, MEMBERS) if graph.matched else None

    def read(self, detectors: BitMatrix) -> Seen:
        """Return what is known of shots.

        Args:
            detectors: bits, shape ``(shots, detectors)``.
        """
        shots = len(detectors)
        if self._matching is None:
            known = np.zeros((shots, self.graph.layout.num_observables), np.uint8)
            features = np.tile(np.array([0.0, 0.0, self.noise], np.float32), (shots, 1))
            return Seen(known, np.zeros(shots, np.float32), np.arange(shots), detectors, None, features)
        observables, preference = self._matching.gaps(detectors)
        open_ = np.flatnonzero(preference < CLEAR)
        found = self._matching.candidates(detectors[open_])
        difference = found.energies[:, 1] - found.energies[:, 0]
        better = (difference < 0).astype(np.int64)
        observables[open_], preference[open_] = better, np.abs(difference)
        kept = np.flatnonzero(np.abs(difference) < CLEAR)
        order = np.stack([better[kept], 1 - better[kept]], axis=1)
        least = np.take_along_axis(found.least[kept], order, axis=1)
        edges = np.take_along_axis(found.edges[kept], order[:, :, None], axis=1)
        open_ = open_[kept]
        noise = np.full(len(open_), self.noise, np.float32)
        shot = np.stack([preference[open_], least[:, 1] - least[:, 0], noise], axis=1)
        return Seen(observables[:, None], preference, open_, detectors[open_], edges, shot)
