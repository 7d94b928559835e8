r"""Lyapunov exponents of SGD at fixed parameters of a real model, matrix-free.

A small deviation from a stationary point is multiplied by :math:`I-\eta(\hat H_t+2\gamma)` in step t, with
:math:`\hat H_t` the Hessian of the minibatch. Tangent vectors are sent through these products by
Hessian-vector products and re-orthonormalised; the mean logarithms of their growth are the exponents. If
the first is negative, the point attracts in probability, a minimum or not.

Along a few directions that the minibatch Hessians do not lead out of (the ways across a mirror symmetry), the
products are those of small matrices, one for each sample, and cost next to nothing.

Source: arXiv 2303.13093, probabilistic stability; QR method of Benettin et al. (1980).
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.random_products import Product, block_standard_error, check_step, propagate
from symdyn_core.errors import InputError
from symdyn_core.estimate import Estimate
from symdyn_core.params import FrozenModel, LossFunction
from symdyn_core.random import numpy_generator

Array = NDArray[np.float64]
MatvecSampler = Callable[[int], Callable[[Array], Array]]
"""Step number to the product with that step's random Hessian, a map of vectors (P, k) to (P, k)."""

BURN_IN = 0.1  # fraction of the steps, not counted: the vectors turn towards what grows
FEWEST_STEPS = 50
START_NOISE = 0.1  # of the start beside the direction that grows fastest at small learning rates
# Hessians of all samples along the directions are kept if they are so many numbers: 128 MiB.
BLOCK_NUMBERS = 2**24
SMALL_NUMBERS = 2**19  # so few are kept for all of parameter space too, which is far faster


@dataclass(frozen=True)
class LyapunovResult:
    """Exponents of the growth of small deviations, per step.

    Attributes:
        exponents: shape (k,), largest first.
        standard_errors: shape (k,), by blocks of successive steps.
        growth: shape (steps, k), the logarithms the exponents are the means of.
    """

    exponents: Array
    standard_errors: Array
    growth: Array

    @property
    def top(self) -> Estimate:
        """The largest exponent with its 95 % interval."""
        value, error = float(self.exponents[0]), float(self.standard_errors[0])
        if not math.isfinite(value):
            return Estimate(value, value, value, len(self.growth))
        return Estimate(value, value - 1.96 * error, value + 1.96 * error, len(self.growth))

    @property
    def attracts(self) -> bool:
        """Whether deviations vanish in probability."""
        return bool(self.exponents[0] < 0)

    @property
    def decided(self) -> bool:
        """Whether the interval of the largest exponent excludes zero."""
        return self.top.high < 0 or self.top.low > 0

    def __str__(self) -> str:
        """Return the verdict in one sentence.

        >>> logs = np.log(np.full((100, 1), 0.5))
        >>> print(LyapunovResult(logs.mean(axis=0), np.array([0.01]), logs))
        attracts: a small deviation changes by a factor of 0.5 per step (exponent -0.693 ± 0.01)
        """
        verdict = ("attracts" if self.attracts else "repels") if self.decided else "undecided"
        factor, error = math.exp(self.exponents[0]), self.standard_errors[0]
        return (
            f"{verdict}: a small deviation changes by a factor of {factor:.4g} per step "
            f"(exponent {self.exponents[0]:.3g} ± {error:.1g})"
        )


def top_lyapunov(
    matvec_sampler: MatvecSampler,
    dimension: int,
    learning_rate: float,
    k: int = 1,
    steps: int = 2000,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> LyapunovResult:
    r"""Return the k largest Lyapunov exponents of the product of :math:`I-\eta(\hat H_t+2\gamma)`.

    Args:
        matvec_sampler: called with the number of the step, returns the product with that step's Hessian, a
            function of vectors of shape (P, k).
        dimension: P.
        learning_rate: :math:`\eta>0`.
        k: in [1, P], or [1, 2 P] with momentum.
        steps: of the product, at least 50; the first tenth is not counted.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        momentum: :math:`\mu` in [0, 1), as in ``torch.optim.SGD``.
        seed: of the start.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: values out of range.

    The same curvatures 1 and 4 in every step, at learning rate 0.1, leave 0.9 and 0.6:

    >>> found = top_lyapunov(lambda step: lambda v: np.array([[1.0], [4.0]]) * v, 2, 0.1, k=2, steps=200)
    >>> np.round(np.exp(found.exponents), 6).tolist()
    [0.9, 0.6]
    """
    if dimension < 1:
        raise InputError(f"dimension must be at least 1, got {dimension}")
    check_walk(learning_rate, steps, k, dimension, weight_decay, momentum)
    start = numpy_generator(seed, "lyapunov", "start").standard_normal((1, dimension, k))

    def product(step: int, moving: Array) -> Array:
        return matvec_sampler(step)(moving[0])[None]

    counter = counted(steps, "Lyapunov exponents", progress)
    logs = propagate(product, start, [learning_rate], counter, weight_decay=weight_decay, momentum=momentum)
    return _result(logs[:, 0])


def lyapunov_spectrum(
    model: FrozenModel | nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: float | Tensor,
    batch_size: int,
    k: int = 1,
    steps: int = 2000,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    directions: Tensor | None = None,
    replacement: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> LyapunovResult:
    r"""Return the k largest Lyapunov exponents of SGD at a model's parameters.

    Args:
        model: any module; copied, in float64 and in evaluation mode.
        loss_fn: maps (outputs, targets) of a batch to its mean loss.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        learning_rate: :math:`\eta>0`, or one of each parameter, shape (P,), from
            :func:`~symdyn_core.dynamics.effective_rate.effective_learning_rate`.
        batch_size: samples a batch, in [1, n_samples]; every batch is drawn afresh.
        k: in [1, P].
        steps: at least 50; the first tenth is not counted.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        momentum: :math:`\mu` in [0, 1), as in ``torch.optim.SGD``.
        directions: shape (P, d); deviations are kept to their span. Exact if the Hessians of minibatches do
            not lead out of it, as with the directions across a mirror symmetry.
        replacement: whether a sample may come twice in a batch.
        seed: of the batches and of the start.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: values out of range, or what :class:`~symdyn_core.dynamics.curvature.Curvature` refuses.

    Linear regression through zero on x = 1 or 3, a sample a step, has the curvatures 2 and 18:

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.zeros_(line.weight)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> found = lyapunov_spectrum(line, nn.functional.mse_loss, x, x, learning_rate=0.1, batch_size=1)
    >>> found.top.low < math.log(0.8 * 0.8) / 2 < found.top.high
    True
    """
    walk = Walk(model, loss_fn, inputs, targets, batch_size, directions, replacement=replacement, seed=seed)
    given = learning_rate.detach().cpu() if isinstance(learning_rate, Tensor) else learning_rate
    rates = np.asarray(given, dtype=float)
    if rates.ndim and (directions is not None or rates.shape != (walk.dimension,)):
        raise InputError(
            f"learning_rate must be a number, or have shape (P,)=({walk.dimension},) without directions, "
            f"got shape {rates.shape}"
        )
    for extreme in (float(rates.min()), float(rates.max())):
        check_walk(extreme, steps, k, walk.dimension, weight_decay, momentum)
    counter = counted(steps, "Lyapunov exponents", progress)
    logs = walk.growth(rates[None], counter, k, weight_decay=weight_decay, momentum=momentum)
    return _result(logs[:, 0])


class Walk:
    """The random minibatch Hessians at a model's parameters, the same ones for every learning rate asked for.

    Args:
        model: any module, or its frozen copy.
        loss_fn: maps (outputs, targets) of a batch to its mean loss.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        batch_size: in [1, n_samples].
        directions: shape (P, d), or None for all of parameter space.
        replacement: whether a sample may come twice in a batch.
        seed: of the batches and of the start.

    Attributes:
        curvature: the Hessian of the mean loss.
        blocks: Hessians of all samples along the directions, shape (n_samples, d, d), or None.
    """

    def __init__(
        self,
        model: FrozenModel | nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        directions: Tensor | None = None,
        *,
        replacement: bool = False,
        seed: int = 0,
    ) -> None:
        self.curvature = Curvature(model, loss_fn, inputs, targets)
        if not 1 <= batch_size <= self.curvature.n_samples or batch_size != int(batch_size):
            raise InputError(
                f"batch_size must be in [1, n_samples={self.curvature.n_samples}], got {batch_size}"
            )
        self.batch_size, self.replacement, self.seed = int(batch_size), replacement, seed
        self.blocks: Array | None = None
        if directions is not None:
            self.blocks = _blocks(self.curvature, directions)
        elif self.curvature.n_samples * self.curvature.dimension**2 <= SMALL_NUMBERS:
            self.blocks = _blocks(self.curvature, torch.eye(self.curvature.dimension, dtype=torch.float64))

    @property
    def dimension(self) -> int:
        """Dimension of the space of deviations."""
        return self.curvature.dimension if self.blocks is None else self.blocks.shape[1]

    def along(self, directions: Tensor) -> "Walk":
        """Return the same batches for deviations along some directions, shape (P, d)."""
        walk = copy.copy(self)
        walk.blocks = _blocks(self.curvature, directions)
        return walk

    def batches(self) -> Callable[[], NDArray[np.int64]]:
        """Return a function that draws the next batch; each call of this starts the same sequence anew."""
        generator = numpy_generator(self.seed, "lyapunov", "batches")
        count = self.curvature.n_samples

        def draw() -> NDArray[np.int64]:
            return generator.choice(count, self.batch_size, replace=self.replacement, shuffle=False)

        return draw

    def growth(
        self,
        learning_rates: Array,
        steps: int | Iterable[int],
        k: int = 1,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> Array:
        """Return the logarithms of the growth of k vectors at each learning rate, shape (steps, r, k)."""
        start = np.tile(self._start(k), (len(learning_rates), 1, 1))
        return propagate(
            self._product(), start, learning_rates, steps, weight_decay=weight_decay, momentum=momentum
        )

    def _product(self) -> Product:
        draw = self.batches()
        if self.blocks is not None:
            blocks = self.blocks

            def small(step: int, moving: Array) -> Array:
                pushed: Array = blocks[draw()].mean(axis=0) @ moving
                return pushed

            return small

        def large(step: int, moving: Array) -> Array:
            runs, size, k = moving.shape
            columns = np.ascontiguousarray(moving.transpose(1, 0, 2)).reshape(size, runs * k)
            pushed = self.curvature.on(torch.from_numpy(draw())).matvec(torch.from_numpy(columns)).numpy()
            return np.ascontiguousarray(pushed.reshape(size, runs, k).transpose(1, 0, 2))

        return large

    def _start(self, k: int) -> Array:
        """Return k vectors near those that grow fastest at small learning rates, where turning is slow."""
        noise = numpy_generator(self.seed, "lyapunov", "start").standard_normal((self.dimension, k))
        if k > self.dimension:  # with momentum there are twice as many exponents
            return noise
        if self.blocks is not None:
            lowest = np.linalg.eigh(self.blocks.mean(axis=0))[1][:, :k]
        else:
            lowest = self.curvature.lowest_eigenvectors(k, self.seed, tolerance=1e-2)[1].numpy()
        vectors: Array = lowest + START_NOISE * noise / math.sqrt(self.dimension)
        return vectors


def _blocks(curvature: Curvature, directions: Tensor) -> Array:
    count = 1 if directions.ndim == 1 else directions.shape[1]
    if curvature.n_samples * count**2 > BLOCK_NUMBERS:
        most = math.isqrt(BLOCK_NUMBERS // curvature.n_samples)
        raise InputError(f"directions must be at most {most} for {curvature.n_samples} samples, got {count}")
    blocks: Array = curvature.sample_blocks(directions).numpy()
    return blocks


def _result(logs: Array) -> LyapunovResult:
    """Return exponents and errors from the logarithms of all steps, shape (steps, k)."""
    counted = logs[math.ceil(BURN_IN * len(logs)) :]
    exponents = counted.mean(axis=0)
    order = np.argsort(-exponents, kind="stable")
    finite = np.isfinite(exponents)
    errors = np.zeros(len(exponents))
    errors[finite] = block_standard_error(counted[:, finite])
    return LyapunovResult(exponents[order], errors[order], counted[:, order])


def check_walk(
    learning_rate: float, steps: int, k: int, dimension: int, weight_decay: float, momentum: float
) -> None:
    """Raise InputError, naming what is wrong, unless all settings of a walk are in their ranges."""
    check_step(learning_rate, weight_decay)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    if steps < FEWEST_STEPS:
        raise InputError(f"steps must be at least {FEWEST_STEPS}, got {steps}")
    largest = dimension * (2 if momentum else 1)
    if not 1 <= k <= largest:
        raise InputError(f"k must be in [1, {largest}], got {k}")


def counted(steps: int, what: str, progress: bool) -> Iterable[int]:
    """Return the numbers of the steps, with a progress bar on a terminal."""
    if not progress:
        return range(steps)
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(range(steps), what, console=console, transient=True, disable=not console.is_terminal)
