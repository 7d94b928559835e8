"""An endless, seeded stream of training batches, simulated in worker processes."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.codes import Basis, BivariateBicycleCode
from symdyn_qec.increments import IncrementSampler

# Strengths are drawn from this many values spaced evenly in their logarithm, because a circuit has to be
# written out for each, and this many of them are mixed in every batch.
STRENGTHS = 32
MIXED = 8

# The simulator is fast where it works on many shots of one strength at once.
SHOTS_AT_ONCE = 1024


class ShotStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of packed shots of a bicycle code, in which noise strengths and bases are mixed.

    Batch number b is the same whatever the number of workers and wherever the stream is started.

    Args:
        code: the code.
        rounds: cycles, at least 1.
        p: lowest and highest noise strength; strengths are uniform in their logarithm.
        batch_size: shots, a multiple of 16.
        seed: of the stream.
        bases: of the experiments; each gets an equal part of every batch.
        start: number of the first batch.

    Batches are pairs of the fields ``detectors`` and ``flips`` of
    :class:`~symdyn_qec.increments.IncrementShots`, as bytes, the shots of the first basis first.
    """

    def __init__(
        self,
        code: BivariateBicycleCode,
        rounds: int,
        p: tuple[float, float],
        batch_size: int,
        seed: int,
        bases: Sequence[Basis] = ("Z", "X"),
        start: int = 0,
    ) -> None:
        if not 0 < p[0] <= p[1]:
            raise InputError(f"p must be a range of positive strengths, lower:higher, got {p[0]}:{p[1]}")
        if batch_size < 1 or batch_size % (8 * len(bases)):
            raise InputError(f"batch_size must be a multiple of {8 * len(bases)}, got {batch_size}")
        self.samplers = [IncrementSampler(code, rounds, basis) for basis in bases]
        self.strengths = np.geomspace(p[0], p[1], STRENGTHS)
        self.batch_size, self.seed, self.start = batch_size, seed, start
        # Batches that are simulated together, so that the simulator gets many shots of one strength.
        self.together = max(1, math.ceil(SHOTS_AT_ONCE * MIXED * len(bases) / batch_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Whole groups: the loader takes from its workers in turn, so that worker w makes w, w + workers, ...
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for group in itertools.count(self.start // self.together + index, workers):
            detectors, flips = self._group(group)
            yield torch.from_numpy(detectors), torch.from_numpy(flips)

    def batches(self, workers: int = 0, pin_memory: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches from number ``start`` on.

        Args:
            workers: processes that simulate ahead; 0 simulates in this one.
            pin_memory: whether to put shots where a CUDA device can fetch them.
        """
        groups = DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # the loader would draw a seed that nobody uses from the global one
        )
        skipped = self.start % self.together
        for group in groups:
            batches = zip(*(field.split(self.batch_size) for field in group), strict=True)
            yield from itertools.islice(batches, skipped, None)
            skipped = 0

    def _group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Simulate a group of batches and shuffle it, keeping the share of the bases in every batch."""
        generator = numpy_generator(self.seed, "shots", group)
        share = self.batch_size // len(self.samplers)
        total = share * self.together
        each = math.ceil(total / MIXED / 8) * 8
        parts = []
        for sampler in self.samplers:
            strengths = generator.choice(self.strengths, size=MIXED)
            runs = [sampler.sample(p, each, int(generator.integers(2**62))) for p in strengths]
            order = generator.permutation(MIXED * each)[:total]
            mixed = (np.concatenate(field)[order] for field in zip(*runs, strict=True))
            parts.append([field.reshape(self.together, share, -1) for field in mixed])
        detectors, flips, _ = (np.concatenate(field, axis=1) for field in zip(*parts, strict=True))
        return detectors.reshape(-1, detectors.shape[-1]), flips.reshape(-1, flips.shape[-1])
