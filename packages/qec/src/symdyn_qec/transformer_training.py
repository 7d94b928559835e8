"""Training of the transformer on plain samples of a memory experiment: detectors and observables.

The loss is the cross-entropy of every observable given the true ones before it. Noise strengths are mixed in
every batch, uniform in their logarithm. The paper's optimiser, width, depth and schedule are not known to us:
AdamW, a cosine and an average of the weights are our choice.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import stim
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.circuits import memory_circuit
from symdyn_qec.codes import Basis, CSSCode, check_basis
from symdyn_qec.networks.transformer import CodeTransformer, check_heads
from symdyn_qec.optimisation import Optimisation
from symdyn_qec.shot_stream import MIXED, SHOTS_AT_ONCE, STRENGTHS
from symdyn_qec.training import Settings
from symdyn_qec.transformer_layout import TokenLayout


@dataclass(frozen=True)
class TransformerSettings(Settings):
    """How to train: as :class:`~symdyn_qec.training.Settings`, with some other defaults and two fields more.

    Fields:
        basis: of the experiment.
        heads: of attention; they divide the width.

    Raises:
        InputError: a value out of range.
    """

    width: int = 64
    layers: int = 3
    learning_rate: float = 1e-3
    basis: Basis = "Z"
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_basis(self.basis)
        check_heads(self.width, self.heads)
        if self.layers < 1:
            raise InputError(f"layers must be at least 1, got {self.layers}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 < self.p[0] <= self.p[1]:
            raise InputError(
                f"p must be a range of positive strengths, lower:higher, got {self.p[0]}:{self.p[1]}"
            )


class ObservableStream:
    """An endless, seeded stream of shots in which noise strengths are mixed.

    Batch number b is the same wherever the stream is started.

    Args:
        code: any whose memory experiment :func:`~symdyn_qec.circuits.memory_circuit` writes.
        settings: rounds, basis, strengths, size of the batches and seed.

    >>> stream = ObservableStream(CSSCode([[1] * 4], [[1] * 4]), TransformerSettings(rounds=2, batch_size=16))
    >>> detectors, observables = next(stream.batches())
    >>> tuple(detectors.shape), tuple(observables.shape)  # 4 detectors in a byte, 2 observables
    ((16, 1), (16, 2))
    """

    def __init__(self, code: CSSCode, settings: TransformerSettings) -> None:
        self.code, self.settings = code, settings
        self.strengths = np.geomspace(*settings.p, STRENGTHS)
        # Batches that are sampled together, so that the sampler gets many shots of one strength.
        self.together = max(1, math.ceil(SHOTS_AT_ONCE * MIXED / settings.batch_size))
        self._circuits: dict[float, stim.Circuit] = {}

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches from number ``start`` on.

        Yields:
            Detectors, packed, bytes, shape ``(batch_size, ceil(detectors / 8))``; observables, bits, shape
            ``(batch_size, k)``.
        """
        size, (group, skipped) = self.settings.batch_size, divmod(start, self.together)
        while True:
            fields = [torch.split(torch.from_numpy(field), size) for field in self._group(group)]
            yield from list(zip(*fields, strict=True))[skipped:]
            group, skipped = group + 1, 0

    def _group(self, group: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        generator = numpy_generator(self.settings.seed, "observables", group)
        total = self.settings.batch_size * self.together
        each = math.ceil(total / MIXED)
        runs = []
        for p in generator.choice(self.strengths, size=MIXED):
            sampler = self._circuit(p).compile_detector_sampler(seed=int(generator.integers(2**62)))
            runs.append(sampler.sample(each, separate_observables=True, bit_packed=True))
        order = generator.permutation(MIXED * each)[:total]
        detectors, packed = (np.concatenate(field)[order] for field in zip(*runs, strict=True))
        return detectors, np.unpackbits(packed, axis=1, count=self.code.k, bitorder="little")

    def _circuit(self, p: float) -> stim.Circuit:
        """Return the circuit at a strength; writing one out costs more than sampling a thousand shots."""
        if p not in self._circuits:
            self._circuits[p] = memory(self.code, p, self.settings)
        return self._circuits[p]


def memory(code: CSSCode, p: float, settings: TransformerSettings) -> stim.Circuit:
    """Return the memory experiment that the settings name."""
    return memory_circuit(code, p=float(p), rounds=settings.rounds, basis=settings.basis)


class TransformerTraining(Optimisation):
    """A transformer on its way, with all that decides how it goes on.

    Args:
        code: to be decoded.
        settings: how.
        device: where, as torch names it.
        half_precision: whether the layers' activations are bfloat16; weights and the output never are.

    >>> settings = TransformerSettings(rounds=2, width=8, layers=1, heads=2, batch_size=16, steps=2)
    >>> training = TransformerTraining(CSSCode([[1] * 4], [[1] * 4]), settings)
    >>> losses = list(training.run())
    >>> training.step, all(loss > 0 for loss in losses)
    (2, True)
    """

    network: CodeTransformer
    averaged: CodeTransformer

    def __init__(
        self,
        code: CSSCode,
        settings: TransformerSettings,
        *,
        device: str = "cpu",
        half_precision: bool = False,
    ) -> None:
        self.code, self.settings, self.device = code, settings, torch.device(device)
        self.half_precision = half_precision
        coordinates = memory(code, settings.p[0], settings).get_detector_coordinates()
        self.layout = TokenLayout(
            code, [coordinates[index] for index in range(len(coordinates))], settings.rounds
        )
        super().__init__(self._new_network(), self._new_network(), settings.average, settings.clip)

    def _new_network(self) -> CodeTransformer:
        own = self.settings
        return CodeTransformer(
            self.layout.related, self.code.k, own.width, own.layers, own.heads, own.seed
        ).to(self.device)

    def run(self) -> Iterator[float]:
        """Take the remaining steps; yield the loss of each, per observable."""
        batches = ObservableStream(self.code, self.settings).batches(self.step)
        while self.step < self.settings.steps:
            yield self._advance(*next(batches))

    def _advance(self, detectors: Tensor, observables: Tensor) -> float:
        detectors, observables = detectors.to(self.device), observables.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            log_odds = self.network(self.layout.checks(detectors), observables)
        loss = F.binary_cross_entropy_with_logits(log_odds, observables.to(log_odds.dtype))
        self.advance(loss, self.settings.rate(self.step))
        return float(loss.detach())
