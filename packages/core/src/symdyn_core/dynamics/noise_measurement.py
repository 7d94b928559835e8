"""How noisy the gradient of a network is, what that noise makes of training, and which settings equal it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.gradient_noise import GradientNoise, gradient_noise
from symdyn_core.dynamics.noise_report import Equivalent, LayerNoise, NoiseReport
from symdyn_core.dynamics.population import batch_covariance_factor, squared_mean
from symdyn_core.dynamics.stationary import (
    learning_rate_for_loss_gap,
    max_learning_rate,
    stationary_loss_gap,
)
from symdyn_core.dynamics.tails import tail_index
from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, LossFunction, evaluate_loss, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.structure.forward import plain_operations

if TYPE_CHECKING:
    from rich.progress import Progress

Array = NDArray[np.float64]

SAMPLES = 1000
# Up to so many parameters the whole Hessian is taken apart, and the loss gap is that of every direction.
DENSE_PARAMETERS = 400
# Products with the Hessian for what its steepest directions leave of a trace: more where they are cheap.
PROBES, FEWEST_PROBES, PROBE_NUMBERS = 32, 6, 2**25
RESOLVED = 0.25  # standard error of such a trace, relative; beyond it the trace is not given
ACCURACY = 1e-3  # relative, of the largest curvatures
FLAT = 1e-9  # of the largest curvature: what is below counts as flat
# Factors of the batch size for which an equal learning rate is sought.
FACTORS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)


def noise_report(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    replacement: bool = False,
    samples: int = SAMPLES,
    top: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> NoiseReport:
    r"""Measure the noise of minibatch gradients, and say what it does to training with these settings.

    The loss gap is :func:`~symdyn_core.dynamics.stationary.stationary_loss_gap` with the measured covariance
    and curvature; equivalent learning rates have the same gap. Both hold near a minimum, to leading order in
    the noise; :attr:`NoiseReport.descent` tells whether SGD is still on its way there.

    Args:
        model: any module; copied, in float64 and in evaluation mode.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...); the training data.
        targets: shape (n_samples, ...).
        learning_rate: of SGD, > 0.
        batch_size: of SGD, in [1, n_samples] unless drawn with replacement.
        momentum: as ``torch.optim.SGD`` takes it, in [0, 1).
        weight_decay: as ``torch.optim.SGD`` takes it.
        replacement: whether batches are drawn with replacement.
        samples: at most so many, drawn at random, are looked at.
        top: eigenvalues of noise and Hessian, at least 1.
        seed: of the samples and probes.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: values out of range, or data, model or loss that cannot be used.

    Source: arXiv 2102.05375 and 2308.06671; McCandlish et al., arXiv 1812.06162, for the noise scale.

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.zeros_(line.weight)
    >>> x, y = torch.ones(4, 1), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> report = noise_report(
    ...     line, nn.functional.mse_loss, x, y, learning_rate=0.1, batch_size=2, replacement=True)
    >>> report.curvatures, round(report.batch_trace, 9), round(report.loss_gap, 9)
    ((2.0,), 2.0, 0.055555556)
    """
    _check(learning_rate, batch_size, momentum, weight_decay, replacement, samples, top)
    loss = evaluate_loss(model, loss_fn, inputs, targets)
    given = len(inputs)
    if not (replacement or batch_size <= given):
        raise InputError(
            f"batch_size must be in [1, n_samples={given}] without replacement, got {batch_size}"
        )
    if given < 2:
        raise InputError(f"the noise of the gradient needs at least 2 samples, got {given}")
    frozen = FrozenModel(model)
    if not frozen.params:
        raise InputError("the model must have parameters, got none")
    if given > samples:
        chosen = torch.randperm(given, generator=torch_generator(seed, "noise", "samples"))[:samples]
        inputs, targets = inputs[chosen], targets[chosen]
        loss = evaluate_loss(model, loss_fn, inputs, targets)
    n, size = len(inputs), sum(value.numel() for value in frozen.params.values())

    with plain_operations(), _bar(progress) as bar:
        task = bar.add_task("curvature", total=4)

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=what)

        curvature = Curvature(frozen, loss_fn, inputs, targets)
        values, directions = _directions(curvature, top, seed)
        advance("noise")
        generator = torch_generator(seed, "noise", "probes")
        probes = min(PROBES, max(FEWEST_PROBES, PROBE_NUMBERS // (n * size)))
        noise = gradient_noise(frozen, loss_fn, inputs, targets, population=given)
        along = noise.along(directions)
        drawn_noise = noise.combinations(_signs(n, probes, generator))
        advance("traces")
        # What has covariance 1 gives the trace of the Hessian, what has covariance Sigma that of the product.
        drawn = _signs(size, probes, generator)
        hessian_trace = _trace(curvature, float(values.sum()), directions, drawn)
        weighted = _trace(curvature, float(values @ along), directions, drawn_noise)
        advance("tail")
        values, hessian_trace = values + weight_decay, hessian_trace + size * weight_decay
        weighted += weight_decay * noise.trace
        gradient = to_vector(noise.mean) + weight_decay * to_vector(frozen.params)
        bending = float(gradient @ (curvature.matvec(gradient) + weight_decay * gradient))
        tail = None
        if momentum == 0 and float(values.max()) > 0:
            steepest = directions[:, int(values.argmax())]
            bends = curvature.sample_blocks(steepest).reshape(-1).numpy() + weight_decay
            tail = tail_index(bends, learning_rate, batch_size, seed=seed)
        advance("done")

    # Of the squared mean gradient, what the samples that were not looked at would change of it on average.
    squared = max(0.0, squared_mean(float(gradient.square().sum()), noise.trace, n, given))
    bending = squared_mean(bending, weighted, n, given)
    settings = _Settings(learning_rate, batch_size, momentum, replacement, given)
    steep = _Steep.of(values.numpy(), along.numpy(), noise.trace, weighted)
    return NoiseReport(
        model=type(model).__name__,
        parameters=size,
        samples=n,
        given=given,
        learning_rate=learning_rate,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        replacement=replacement,
        loss=loss,
        gradient_norm=math.sqrt(squared),
        trace=noise.trace,
        batch_trace=noise.trace * settings.factor(batch_size),
        spectrum=tuple(noise.eigenvalues(min(top, n - 1, size)).tolist()),
        effective_rank=noise.effective_rank,
        layers=_layers(noise, gradient),
        noise_scale=noise.trace / squared if squared > 0 else math.inf,
        critical_batch_size=weighted / bending if weighted > 0 and bending > 0 else None,
        noise_to_loss=noise.trace / (2 * loss * hessian_trace) if loss * hessian_trace > 0 else None,
        curvatures=tuple(values.tolist()),
        noise_along=tuple(along.tolist()),
        hessian_trace=None if math.isnan(hessian_trace) else hessian_trace,
        tail_index=tail,
        edge=steep.edge(momentum),
        loss_gap=steep.gap(settings),
        all_directions=len(values) == size,
        resting_gradient_norm=steep.resting_gradient(settings),
        equivalents=tuple(_equivalents(settings, steep)),
    )


@dataclass(frozen=True)
class _Settings:
    """Settings of SGD on a data set of a given size."""

    learning_rate: float
    batch_size: int
    momentum: float
    replacement: bool
    given: int

    def factor(self, batch_size: int) -> float:
        r"""Return the covariance of the minibatch gradient over :math:`\Sigma`."""
        return batch_covariance_factor(batch_size, self.given, replacement=self.replacement)


@dataclass(frozen=True, eq=False)
class _Steep:
    """Directions of positive curvature with the noise along them, and traces of all."""

    curvatures: Array
    along: Array
    trace: float
    weighted: float  # trace of Hessian times covariance

    @classmethod
    def of(cls, values: Array, along: Array, trace: float, weighted: float) -> "_Steep":
        kept = values > FLAT * max(0.0, float(values.max()))
        return cls(values[kept], along[kept], trace, weighted)

    def edge(self, momentum: float) -> float | None:
        return max_learning_rate(float(self.curvatures.max()), momentum) if self.curvatures.size else None

    def _within(self, settings: _Settings) -> bool:
        edge = self.edge(settings.momentum)
        return edge is not None and settings.learning_rate < edge

    def gap(self, settings: _Settings) -> float | None:
        """Return the stationary loss gap, None beyond the edge or where nothing curves upwards."""
        if not self._within(settings):
            return None
        factor = settings.factor(settings.batch_size)
        return stationary_loss_gap(
            factor * self.trace,
            settings.learning_rate,
            settings.momentum,
            curvatures=self.curvatures,
            noise_along=factor * self.along,
        )

    def resting_gradient(self, settings: _Settings) -> float | None:
        r"""Return the size of the gradient at stationarity, root of :math:`\mathrm{Tr}[H\Sigma_\theta H]`.

        Flat directions to leading order, :math:`\eta\mathrm{Tr}[HC]/2(1-\mu)`; steep ones exactly.
        """
        if not (self._within(settings) and self.weighted > 0):
            return None
        rate, mu = settings.learning_rate, settings.momentum
        steps = rate * self.curvatures
        steep = float((self.curvatures * self.along * steps / (2 * (1 + mu) - steps)).sum())
        squared = rate / (2 * (1 - mu)) * settings.factor(settings.batch_size) * (self.weighted + steep)
        return math.sqrt(squared)


def _equivalents(settings: _Settings, steep: _Steep) -> Iterator[Equivalent]:
    """Yield batch sizes around the present one with the learning rate of the same loss gap."""
    gap, edge = steep.gap(settings), steep.edge(settings.momentum)
    if not gap or edge is None:
        return
    largest = settings.given if settings.replacement else settings.given - 1
    sizes = sorted({round(settings.batch_size * factor) for factor in FACTORS})
    for size in sizes:
        if not 1 <= size <= largest:
            continue
        factor = settings.factor(size)
        rate = learning_rate_for_loss_gap(
            gap,
            factor * steep.trace,
            settings.momentum,
            curvatures=steep.curvatures,
            noise_along=factor * steep.along,
        )
        linear = settings.learning_rate * size / settings.batch_size
        yield Equivalent(size, rate, linear, linear < edge)


def _directions(curvature: Curvature, top: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues of the Hessian, descending, and eigenvectors: all, or the largest in size."""
    if curvature.dimension <= DENSE_PARAMETERS:
        values, vectors = torch.linalg.eigh(curvature.dense())
    else:
        values, vectors = curvature.top_eigenvalues(min(top, curvature.dimension), seed, tolerance=ACCURACY)
    order = torch.argsort(values, descending=True)
    return values[order], vectors[:, order]


def _trace(curvature: Curvature, steep: float, directions: Tensor, drawn: Tensor) -> float:
    r"""Return :math:`\mathrm{Tr}[HA]` from its part along eigenvectors and vectors drawn with covariance A.

    NaN if the vectors do not pin it down: where positive and negative curvature cancel.
    """
    if directions.shape[1] == curvature.dimension:
        return steep
    rest = drawn - directions @ (directions.T @ drawn)
    values = (rest * curvature.matvec(rest)).sum(dim=0)
    total = steep + float(values.mean())
    error = float(values.std()) / len(values) ** 0.5
    return total if error <= RESOLVED * abs(total) else math.nan


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, columns), generator=generator).to(torch.float64) * 2 - 1


def _layers(noise: GradientNoise, gradient: Tensor) -> tuple[LayerNoise, ...]:
    """Return the noise of every module that holds parameters, against the mean gradient with its decay."""
    signals = torch.split(gradient.square(), [value.numel() for value in noise.mean.values()])
    found: dict[str, list[tuple[int, float, float]]] = {}
    for (name, value), signal in zip(noise.mean.items(), signals, strict=True):
        layer = name.rpartition(".")[0] or "(model)"
        found.setdefault(layer, []).append((value.numel(), noise.blocks[name], float(signal.sum())))
    rows = []
    for layer, parts in found.items():
        counts, traces, squares = zip(*parts, strict=True)
        trace = math.fsum(traces)
        squared = squared_mean(math.fsum(squares), trace, noise.n_samples, noise.population)
        ratio = trace / squared if squared > 0 else (math.inf if trace > 0 else 0.0)
        rows.append(LayerNoise(layer, sum(counts), trace, trace / noise.trace if noise.trace else 0.0, ratio))
    return tuple(rows)


def _check(
    learning_rate: float,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    replacement: bool,
    samples: int,
    top: int,
) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if samples < 2:
        raise InputError(f"samples must be at least 2, got {samples}")
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")


def _bar(progress: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal))
