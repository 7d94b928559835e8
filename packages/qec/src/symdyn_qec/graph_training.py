"""Training of a network for any circuit, on the shots that matching leaves open.

The loss is the binary cross-entropy of whether matching is wrong. Shots that are clear teach nothing, and are
most of all: what a network learns from a second of simulation grows manifold without them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import stim
import torch
from torch import Tensor
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_qec.distributed import least, own_seed, processes, share
from symdyn_qec.graph_reading import CircuitGraph
from symdyn_qec.graph_shots import Batch, OpenShots
from symdyn_qec.mechanisms import errors_per_shot
from symdyn_qec.networks.detector_graph import DetectorGraphNetwork
from symdyn_qec.optimisation import Optimisation, cosine_rate
from symdyn_qec.reading import check_model


@dataclass(frozen=True)
class GraphSettings:
    """How to train.

    Fields:
        width: features per detector.
        layers: rounds of messages.
        batch_size: open shots per step, as many in each process.
        steps: of the optimizer, AdamW.
        learning_rate: highest; reached linearly, then lowered along a cosine.
        warmup: steps until it is reached.
        average: decay of the moving average of the weights, in [0, 1).
        clip: largest norm of the gradient.
        seed: of weights and shots.

    Raises:
        InputError: a value out of range.
    """

    width: int = 48
    layers: int = 6
    batch_size: int = 256
    steps: int = 4000
    learning_rate: float = 3e-3
    warmup: int = 100
    average: float = 0.998
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "layers", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup < 0:
            raise InputError(f"warmup must be at least 0, got {self.warmup}")
        for name, value in (("learning_rate", self.learning_rate), ("clip", self.clip)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and > 0, got {value}")
        if not 0 <= self.average < 1:
            raise InputError(f"average must be in [0, 1), got {self.average}")


class GraphTraining(Optimisation):
    """A network on its way, with all that decides how it goes on.

    In several processes (:mod:`symdyn_qec.distributed`) each simulates its share of every batch. All take as
    many batches from a block, those of the process with the fewest open shots, and so are at the same place
    of their streams; a run may be gone on with in more or fewer processes, on shots that it has not seen.

    Args:
        circuits: one circuit at one or several strengths of its noise.
        settings: how.
        device: where, as torch names it.
        half_precision: whether activations are bfloat16; master weights never are.
        compiled: whether to compile the network, which takes a minute and then trains twice as fast.

    Raises:
        InputError: no circuits, circuits that differ in more than the strength of their noise, or ones that
            cannot be decoded; a batch that cannot be shared by the processes.

    >>> from symdyn_qec.circuits import surface_memory
    >>> settings = GraphSettings(width=4, layers=1, batch_size=32, steps=2)
    >>> training = GraphTraining([surface_memory(3, 3, p) for p in (0.004, 0.006)], settings)
    >>> losses = list(training.run())
    >>> training.step, all(loss > 0 for loss in losses)
    (2, True)
    """

    network: DetectorGraphNetwork
    averaged: DetectorGraphNetwork

    def __init__(
        self,
        circuits: Sequence[stim.Circuit],
        settings: GraphSettings,
        *,
        device: str = "cpu",
        half_precision: bool = False,
        compiled: bool = False,
    ) -> None:
        self.settings, self.device, self.half_precision = settings, torch.device(device), half_precision
        self.circuits, self._share = list(circuits), share(settings.batch_size)
        self.graph = circuit_graph(self.circuits)
        network, averaged = (
            DetectorGraphNetwork(self.graph.layout, settings.width, settings.layers, settings.seed)
            for _ in range(2)
        )
        super().__init__(network.to(self.device), averaged.to(self.device), settings.average, settings.clip)
        if compiled:
            self.network.compile()
        # Of the next batch: its block, and its place there.
        self._block, self._place = 0, 0

    def run(self, workers: int = 0) -> Iterator[float]:
        """Take the remaining steps; yield the loss of each, on the shots of this process.

        Args:
            workers: processes that simulate ahead; 0 simulates in this one.
        """
        for batch in self._batches(workers):
            if self.step >= self.settings.steps:
                return
            loss = self._loss(batch)
            rate = cosine_rate(
                self.step, self.settings.steps, self.settings.learning_rate, self.settings.warmup
            )
            self.advance(loss, rate)
            yield float(loss.detach())

    def _batches(self, workers: int) -> Iterator[Batch]:
        size = self._share
        shots = OpenShots(self.graph, self.circuits, own_seed(self.settings.seed), start=self._block)
        for block in shots.blocks(workers):
            found = least(len(block.shot), self.device)
            whole = found // size
            if not whole:
                raise InputError(
                    f"batch_size must be at most the {found * processes().world} open shots of a block, "
                    f"got {self.settings.batch_size}: take a smaller one, or stronger noise"
                )
            while self._place < whole:
                start = self._place * size
                self._place += 1
                yield Batch(*(field[start : start + size] for field in block))
            self._block, self._place = self._block + 1, 0

    def _loss(self, batch: Batch) -> Tensor:
        wrong = batch.wrong.to(self.device).float()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            odds = self.network(*batch.inputs(self.device))
        return F.binary_cross_entropy_with_logits(odds.float(), wrong)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that decide how training goes on, by name."""
        return {**super().state(), "stream": torch.tensor([self._block, self._place])}

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on from a :meth:`state`, to bit-equal weights on a CPU.

        Raises:
            InputError: a state of another network.
        """
        if "stream" not in state:
            raise InputError("the state is of another network: it does not say where its stream of shots is")
        self._block, self._place = state["stream"].tolist()
        super().restore(state, step)


def circuit_graph(circuits: Sequence[stim.Circuit]) -> CircuitGraph:
    """Return the graph of circuits that are one under noise of several strengths.

    Raises:
        InputError: no circuits, or circuits that differ otherwise or cannot be decoded.
    """
    if not circuits:
        raise InputError("training needs at least one circuit, got none")
    models = [circuit.detector_error_model(approximate_disjoint_errors=True) for circuit in circuits]
    for number, model in enumerate(models):
        check_model(model, f"circuit {number}", allow_undetectable=True)
        if not model.num_detectors or not model.num_observables:
            raise InputError(f"circuit {number} must have detectors and observables to be decoded")
    middle = sorted(range(len(models)), key=lambda number: errors_per_shot(models[number]))[len(models) // 2]
    try:
        dem = circuits[middle].detector_error_model(approximate_disjoint_errors=True, decompose_errors=True)
    except ValueError:  # of Stim, where errors do not split into pairs: then matching is of no use
        dem = models[middle]
    graph = CircuitGraph(dem.flattened())
    for number, model in enumerate(models):
        graph.split.probabilities(model, f"circuit {middle}, and circuit {number} must be the same")
    return graph
