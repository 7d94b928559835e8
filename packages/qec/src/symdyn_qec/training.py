r"""Training of a decoder for bicycle codes, on a stream of simulated shots.

The loss is the binary cross-entropy of the increments of every cycle, which are local and quickly learnt,
plus that of the net flips, which decoding needs. Both bases are in every batch.

A small network learns faster from a large one than from flips: a teacher's probability says more than the
toss of a coin that has this probability.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_qec.checkpoint import NETWORKS, Checkpoint
from symdyn_qec.circuits import check_noise, check_rounds
from symdyn_qec.codes import BivariateBicycleCode
from symdyn_qec.distributed import own_seed, share
from symdyn_qec.layout import TorusLayout
from symdyn_qec.networks.fused import fused
from symdyn_qec.networks.sector import BASES, SectorNetwork, SectorView
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.optimisation import Optimisation, cosine_rate
from symdyn_qec.shot_stream import ShotStream

# Weights of the increments against the net flips: of the readout's sector, and of the other one, which helps
# only as far as it teaches what correlates the two.
INCREMENT_WEIGHT, OTHER_SECTOR_WEIGHT = 7.0, 2.0


@dataclass(frozen=True)
class Settings:
    """How to train.

    Fields:
        network: "torus", which predicts both kinds of flips, or "sector", a smaller one for the readout's.
        rounds: cycles of the experiments.
        p: lowest and highest noise strength; uniform in the logarithm.
        width: features per node of the network.
        layers: rounds of messages.
        batch_size: shots per step, a multiple of 16 in each process.
        steps: of the optimizer, AdamW.
        learning_rate: highest; reached linearly, then lowered along a cosine.
        warmup: steps until it is reached.
        average: decay of the moving average of the weights, in [0, 1).
        clip: largest norm of the gradient.
        seed: of weights and shots.

    Raises:
        InputError: a value out of range.
    """

    network: str = "torus"
    rounds: int = 6
    p: tuple[float, float] = (0.001, 0.006)
    width: int = 48
    layers: int = 6
    batch_size: int = 64
    steps: int = 4000
    learning_rate: float = 2e-3
    warmup: int = 100
    average: float = 0.999
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise InputError(f"network must be {' or '.join(NETWORKS)}, got {self.network!r}")
        check_rounds(self.rounds)
        check_noise(self.p[1])
        if self.steps < 1 or self.warmup < 0:
            raise InputError(f"steps must be at least 1 and warmup 0, got {self.steps} and {self.warmup}")
        for name, value in (("learning_rate", self.learning_rate), ("clip", self.clip)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and > 0, got {value}")
        if not 0 <= self.average < 1:
            raise InputError(f"average must be in [0, 1), got {self.average}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step.

        >>> settings = Settings(steps=1000, warmup=10, learning_rate=1.0)
        >>> round(settings.rate(4), 3), round(settings.rate(999), 3)
        (0.5, 0.02)
        """
        return cosine_rate(step, self.steps, self.learning_rate, self.warmup)


class Training(Optimisation):
    """A network on its way, with all that decides how it goes on.

    In several processes (:mod:`symdyn_qec.distributed`) each simulates its share of every batch; a run may be
    gone on with in more or fewer, on shots that it has not seen.

    Args:
        code: to be decoded.
        settings: how.
        device: where, as torch names it.
        half_precision: whether activations are bfloat16; master weights never are.
        compiled: whether to compile the network's parts, which pays after a minute or two.
        teacher: a checkpoint for the same polynomials; a network of one sector then learns from what that
            says of every shot.
        start: a checkpoint for the same polynomials, whose weights to begin with.

    Raises:
        InputError: a teacher or a start for other polynomials, a teacher for a network that has no use for
            one, or a start of another kind or size of network; a batch that cannot be shared by the
            processes.

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> settings = Settings(rounds=2, width=4, layers=1, batch_size=16, steps=2)
    >>> training = Training(bivariate_bicycle("bb72"), settings)
    >>> losses = list(training.run())
    >>> training.step, all(loss > 0 for loss in losses)
    (2, True)
    """

    network: TorusNetwork | SectorNetwork
    averaged: TorusNetwork | SectorNetwork

    def __init__(
        self,
        code: BivariateBicycleCode,
        settings: Settings,
        *,
        device: str = "cpu",
        half_precision: bool = False,
        compiled: bool = False,
        teacher: Checkpoint | None = None,
        start: Checkpoint | None = None,
    ) -> None:
        self.code, self.settings, self.device = code, settings, torch.device(device)
        self.half_precision = half_precision
        made = NETWORKS[settings.network]
        network, averaged = (
            made(code, settings.width, settings.layers, settings.seed).to(self.device) for _ in range(2)
        )
        if start is not None:
            weights = _weights_to_start_from(start.transferred(code, settings.rounds), settings)
            network.load_state_dict(weights)
            averaged.load_state_dict(weights)
        super().__init__(network, averaged, settings.average, settings.clip)
        # Part by part: all layers share one compiled function, and the whole would take minutes.
        for part in (*self.network.layers, self.network.last_data, *self.network.heads) if compiled else ():
            part.compile()
        self._layouts = [TorusLayout(code, settings.rounds, basis) for basis in BASES]
        self._share = share(settings.batch_size, 8 * len(BASES))
        half = self._share // len(BASES)
        if isinstance(self.network, SectorNetwork):
            self._loss: Loss = SectorLoss(self.network, settings, half, self.device, teacher)
        elif teacher is not None:
            raise InputError(
                "a teacher is for a network of one sector: leave it out, or set network to 'sector'"
            )
        else:
            self._loss = TorusLoss(self.network, self._layouts, half, self.device)

    def run(self, workers: int = 0) -> Iterator[float]:
        """Take the remaining steps; yield the loss of each, on the shots of this process.

        Args:
            workers: processes that simulate ahead; 0 simulates in this one.
        """
        settings = self.settings
        seed = own_seed(settings.seed)
        stream = ShotStream(self.code, settings.rounds, settings.p, self._share, seed, BASES, start=self.step)
        batches = stream.batches(workers, pin_memory=self.device.type == "cuda")
        while self.step < settings.steps:
            yield self._advance(*next(batches))

    def _advance(self, detectors: Tensor, flips: Tensor) -> float:
        detectors, flips = (field.to(self.device, non_blocking=True) for field in (detectors, flips))
        parts = zip(self._layouts, detectors.chunk(len(BASES)), strict=True)
        checks = [layout.checks(part) for layout, part in parts]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            loss = self._loss(checks, self._layouts[0].flips(flips))
        self.advance(loss, self.settings.rate(self.step))
        return float(loss.detach())


def _weights_to_start_from(start: Checkpoint, settings: Settings) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint, or raise InputError unless it is of the network to be trained."""
    found = {"network": start.kind, "width": start.network.width, "layers": len(start.network.layers)}
    for name, value in found.items():
        if getattr(settings, name) != value:
            raise InputError(
                f"{name} must be {value} to start from {start.name}, got {getattr(settings, name)}"
            )
    return start.network.state_dict()


class Loss(Protocol):
    """The loss of a batch."""

    def __call__(self, checks: list[Tensor], flips: Tensor) -> Tensor:
        """Return the loss.

        Args:
            checks: of each basis, shapes ``(shots, 2, cycles, l, m)``.
            flips: true increments of both, bit flips first, shape ``(shots of both, 2, cycles, n)``.
        """


class TorusLoss:
    """For a network that predicts both kinds of flips; see :func:`flip_loss`."""

    def __init__(
        self, network: TorusNetwork, layouts: list[TorusLayout], half: int, device: torch.device
    ) -> None:
        learnable = torch.stack([torch.from_numpy(layout.learnable()) for layout in layouts])
        own = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        self._network = network
        self._learnable = learnable.float().repeat_interleave(half, dim=0).to(device)
        self._own = own.repeat_interleave(half, dim=0).to(device)

    def __call__(self, checks: list[Tensor], flips: Tensor) -> Tensor:
        """Return the loss."""
        return flip_loss(self._network, torch.cat(checks), flips, self._learnable, self._own)


class SectorLoss:
    """For a network that predicts the flips of the readout's sector, with a teacher or without."""

    def __init__(
        self,
        network: SectorNetwork,
        settings: Settings,
        half: int,
        device: torch.device,
        teacher: Checkpoint | None,
    ) -> None:
        self._network = network
        self._views = [SectorView(network.code, basis) for basis in BASES]
        self._basis = torch.arange(len(BASES), device=device).repeat_interleave(half)
        self._teacher = None if teacher is None else Teacher(teacher, network.code, settings.rounds, device)

    def __call__(self, checks: list[Tensor], flips: Tensor) -> Tensor:
        """Return the loss."""
        seen = torch.cat([view.checks(part) for view, part in zip(self._views, checks, strict=True)])
        increments, net = self._network(seen, self._basis)
        if self._teacher is None:
            parts = zip(self._views, flips.chunk(len(BASES)), strict=True)
            truth = torch.cat([view.flips(part) for view, part in parts]).to(increments.dtype)
            targets = truth, truth.sum(dim=1) % 2
        else:
            targets = self._teacher(checks)
        of_increments, of_net = (
            F.binary_cross_entropy_with_logits(odds, target)
            for odds, target in zip((increments, net), targets, strict=True)
        )
        return INCREMENT_WEIGHT * of_increments + of_net


class Teacher:
    """A trained network that says of every shot what it believes.

    Args:
        checkpoint: a network that predicts both kinds of flips.
        code: of the experiments, of the same polynomials; any size.
        rounds: likewise.
        device: where to run it.

    Raises:
        InputError: a checkpoint of other polynomials or of another kind.
    """

    def __init__(
        self, checkpoint: Checkpoint, code: BivariateBicycleCode, rounds: int, device: torch.device
    ) -> None:
        if not isinstance(checkpoint.network, TorusNetwork):
            raise InputError(f"a teacher must predict both kinds of flips, and {checkpoint.name} does not")
        self._network = checkpoint.transferred(code, rounds).network.to(device)
        self._views = [SectorView(code, basis) for basis in BASES]
        # On a CPU our own products are faster than torch's.
        self._fused = [
            fused(self._network, basis, rounds + 1) if device.type == "cpu" else None for basis in BASES
        ]

    @torch.no_grad()
    def __call__(self, checks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return probabilities of flips as the student sees the qubits.

        Args:
            checks: of each basis, shapes ``(shots, 2, cycles, l, m)``.

        Returns:
            Shapes ``(shots of both, cycles, n)`` and ``(shots of both, n)``.
        """
        parts = []
        for sector, (view, quick, part) in enumerate(zip(self._views, self._fused, checks, strict=True)):
            if quick is not None:
                odds = [torch.from_numpy(values) for values in quick(part.numpy())]
            else:
                odds = [values[:, sector] for values in self._network(part)]
            parts.append([torch.sigmoid(values[..., view.qubits.to(values.device)]) for values in odds])
        increments, net = (torch.cat(values) for values in zip(*parts, strict=True))
        return increments, net


def flip_loss(
    network: Callable[[Tensor], tuple[Tensor, Tensor]],
    checks: Tensor,
    flips: Tensor,
    learnable: Tensor,
    own: Tensor,
) -> Tensor:
    """Return the loss of a batch.

    Args:
        network: such as :class:`~symdyn_qec.networks.torus.TorusNetwork`.
        checks: what it reads, shape ``(shots, 2, cycles, l, m)``.
        flips: true increments, shape ``(shots, 2, cycles, n)``.
        learnable: one for increments that detectors tell something of, shape ``(shots, 2, cycles)``.
        own: one where a sector is that of the readout, shape ``(shots, 2)``.
    """
    increments, net = network(checks)
    truth = flips.to(increments.dtype)
    per_cycle = F.binary_cross_entropy_with_logits(increments, truth, reduction="none").mean(dim=-1)
    per_sector = (per_cycle * learnable).sum(dim=-1) / learnable.sum(dim=-1).clamp(min=1)
    weight = OTHER_SECTOR_WEIGHT + (INCREMENT_WEIGHT - OTHER_SECTOR_WEIGHT) * own
    of_net = F.binary_cross_entropy_with_logits(net, truth.sum(dim=2) % 2, reduction="none").mean(dim=-1)
    return ((weight * per_sector).sum(dim=1) + (own * of_net).sum(dim=1)).mean()
