"""An endless, seeded stream of the shots of a circuit that matching leaves open, for training."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import stim
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from symdyn_core.random import derive_seed, numpy_generator
from symdyn_qec.graph_reading import CircuitGraph, ShotReader

# Shots of each circuit that are simulated at once.
SHOTS_AT_ONCE = 2048

# Probabilities of edges travel as bytes.
LEVELS = 255


class Batch(NamedTuple):
    """Open shots with the answers.

    Fields:
        fired: detectors, bytes, shape ``(shots, detectors)``.
        edges: as in :class:`~symdyn_qec.graph_reading.Seen` but in 255ths, bytes, shape
            ``(shots, 2, edges)``.
        shot: as there, shape ``(shots, 3)``.
        wrong: whether the prediction so far is wrong, bytes, shape ``(shots, observables)``.
    """

    fired: Tensor
    edges: Tensor
    shot: Tensor
    wrong: Tensor

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a network reads, on a device."""
        fired, edges, shot = (field.to(device, non_blocking=True).float() for field in self[:3])
        return fired, edges / LEVELS, shot


class OpenShots(IterableDataset[Batch]):
    """Blocks of open shots in which circuits are mixed.

    Block number b is the same whatever the number of workers and wherever the stream is started.

    Args:
        graph: the circuit.
        circuits: the same at one or several strengths of the noise.
        seed: of the stream.
        start: number of the first block.
    """

    def __init__(
        self, graph: CircuitGraph, circuits: Sequence[stim.Circuit], seed: int, start: int = 0
    ) -> None:
        self.graph, self.circuits, self.seed, self.start = graph, list(circuits), seed, start
        self._readers: list[ShotReader] = []

    def __iter__(self) -> Iterator[Batch]:
        # The loader takes from its workers in turn, so that worker w makes blocks w, w + workers, ...
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in itertools.count(self.start + index, workers):
            yield self.block(number)

    def blocks(self, workers: int = 0) -> Iterator[Batch]:
        """Iterate over the blocks from number ``start`` on.

        Args:
            workers: processes that simulate ahead; 0 simulates in this one.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            generator=torch.Generator(),  # the loader would draw a seed that nobody uses from the global one
        )
        yield from loader

    def block(self, number: int) -> Batch:
        """Simulate a block."""
        if not self._readers:  # not before a worker has the dataset: matching graphs cannot be sent
            self._readers = [
                self.graph.reader(circuit.detector_error_model(approximate_disjoint_errors=True))
                for circuit in self.circuits
            ]
        parts = []
        for index, (circuit, reader) in enumerate(zip(self.circuits, self._readers, strict=True)):
            sampler = circuit.compile_detector_sampler(seed=derive_seed(self.seed, "block", number, index))
            detectors, observables = sampler.sample(SHOTS_AT_ONCE, separate_observables=True)
            seen = reader.read(detectors.view(np.uint8))
            wrong = (seen.observables ^ observables)[seen.open]
            edges = np.rint(seen.edges * LEVELS).astype(np.uint8)
            parts.append((seen.fired, edges, seen.shot, wrong))
        order = numpy_generator(self.seed, "order", number).permutation(sum(len(part[3]) for part in parts))
        mixed = (np.concatenate(field)[order] for field in zip(*parts, strict=True))
        return Batch(*(torch.from_numpy(field) for field in mixed))
