r"""The charges of continuous symmetries, and how one step of SGD moves them.

Let every per-sample loss be invariant under $\theta\to e^{tA}\theta$ with $A$ symmetric. Then
$\nabla\ell^\top A\theta=0$ for each sample, gradient flow conserves the charge $C=\theta^\top A\theta$,
and SGD moves it by what is left at second order. With a batch gradient $\hat g$ and the weight decay
$\lambda$ as torch.optim.SGD takes it, $\theta'=(1-\eta\lambda)\theta-\eta\hat g$, so that exactly

$$C(\theta')-C(\theta)=\eta^2\,\hat g^\top A\hat g-\eta\lambda(2-\eta\lambda)\,C(\theta).$$

The cross term vanishes, whatever the batch and the step. In expectation over a batch of $S$ samples

$$E[\Delta C]=\frac{\eta^2}{S}f\,\mathrm{Tr}[\Sigma A]+\eta^2\,\nabla L^\top A\nabla L
-\eta\lambda(2-\eta\lambda)\,C,$$

$\Sigma$ being the covariance of the per-sample gradient over the $N$ samples, $f=(N-S)/(N-1)$ for batches
drawn without replacement and $f=1$ for batches drawn with it. Only the first term shrinks with the batch. The
theory in continuous time keeps the first term and $-2\eta\lambda C$.

Source: arXiv 2402.07193, Noether flow; the discrete law, the decay and the finite population are derived.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import Params, from_vector, to_float64, to_vector
from symdyn_core.symmetry.gradients import GradientMoments, Quadratic
from symdyn_core.symmetry.kinds import Generator, Symmetry

# Eigenvalues of a generator closer than this, relative to the largest, are one power.
SAME_POWER = 1e-9


@dataclass(frozen=True)
class ChargeDrift:
    """The expected change of a charge in the next step of SGD, term by term.

    Attributes:
        noise: from the covariance of the batch gradient; the only term of the theory in continuous time.
        mean_gradient: from the step of gradient descent; does not shrink with the batch size.
        weight_decay: towards zero.
        total: their sum. Each has the shape of the charge.
    """

    noise: Tensor
    mean_gradient: Tensor
    weight_decay: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the three."""
        return self.noise + self.mean_gradient + self.weight_decay


@dataclass(frozen=True)
class Step:
    r"""One step of plain SGD, as charges feel it.

    Args:
        learning_rate: $\eta>0$.
        batch_size: $S$, in [1, n_samples] unless drawn with replacement.
        n_samples: $N$, the samples that batches are drawn from.
        weight_decay: $\lambda\ge0$ as torch.optim.SGD takes it: the loss gains $\frac\lambda2\|\theta\|^2$.
        replacement: whether batches are drawn with replacement, or afresh from an endless supply.

    Raises:
        InputError: a value out of range.

    >>> step = Step(learning_rate=0.1, batch_size=2, n_samples=3, weight_decay=1.0)
    >>> round(step.noise_factor, 12), round(step.decay_factor, 12)
    (0.0025, 0.19)
    """

    learning_rate: float
    batch_size: int
    n_samples: int
    weight_decay: float = 0.0
    replacement: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be finite and > 0, got {self.learning_rate}")
        most = float("inf") if self.replacement else self.n_samples
        if not 1 <= self.batch_size <= most or self.batch_size != int(self.batch_size):
            limit = ">= 1" if self.replacement else f"in [1, n_samples={self.n_samples}]"
            raise InputError(f"batch_size must be a whole number {limit}, got {self.batch_size}")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if not self.learning_rate * self.weight_decay < 1:
            product = self.learning_rate * self.weight_decay
            raise InputError(f"learning_rate * weight_decay must be < 1, got {product}")

    @property
    def noise_factor(self) -> float:
        r"""$\eta^2f/S$: what the trace of the noise covariance is multiplied by."""
        share = 1.0
        if not self.replacement:
            share = (self.n_samples - self.batch_size) / max(self.n_samples - 1, 1)
        return self.learning_rate**2 * share / self.batch_size

    @property
    def decay_factor(self) -> float:
        r"""$\eta\lambda(2-\eta\lambda)$: the fraction of the charge that decay removes."""
        rate = self.learning_rate * self.weight_decay
        return rate * (2 - rate)

    def drift(self, noise: Tensor, of_mean: Tensor, charge: Tensor) -> ChargeDrift:
        """Return the drift of a charge.

        Args:
            noise: the charge of the centred gradients, averaged.
            of_mean: the charge of the mean gradient.
            charge: the charge of the parameters.
        """
        return ChargeDrift(
            self.noise_factor * noise, self.learning_rate**2 * of_mean, -self.decay_factor * charge
        )


def charge_drift(
    symmetry: Symmetry,
    per_sample_gradients: Params,
    params: Params,
    learning_rate: float,
    batch_size: int,
    weight_decay: float = 0.0,
    *,
    replacement: bool = False,
) -> ChargeDrift:
    r"""Return the expected change of a symmetry's charge in the next step of SGD; exact at any step size.

    $$E[\Delta C]=\frac{\eta^2}{S}f\,\mathrm{Tr}[\Sigma A]+\eta^2\,\nabla L^\top A\nabla L
    -\eta\lambda(2-\eta\lambda)\,C$$

    Coupled decay (torch.optim.SGD) and decoupled decay at the rate $\eta\lambda$ give the same step.

    Args:
        symmetry: one with a charge.
        per_sample_gradients: by parameter name, each of shape (n_samples, *parameter shape).
        params: the parameters by name.
        learning_rate: $\eta>0$ of SGD without momentum.
        batch_size: $S$.
        weight_decay: $\lambda\ge0$ as torch.optim.SGD takes it.
        replacement: whether batches are drawn with replacement; with it the finite population does not count.

    Raises:
        InputError: the symmetry has no charge, or a value is out of range.

    Source: arXiv 2402.07193, Noether flow; the exact discrete form is derived.

    One unit w = 1, v = 2 and two samples with gradients (2, 1) and (-2, -1): the charge 3 changes by
    0.1^2 (1 - 4).

    >>> from symdyn_core.symmetry.kinds import PositiveRescaling
    >>> from symdyn_core.symmetry.units import Axis, Units
    >>> rescaling = PositiveRescaling(Units("0", 1, (Axis("w", 0),), (Axis("v", 1),)))
    >>> params = {"w": torch.tensor([[1.0]]), "v": torch.tensor([[2.0]])}
    >>> gradients = {"w": torch.tensor([[[2.0]], [[-2.0]]]), "v": torch.tensor([[[1.0]], [[-1.0]]])}
    >>> drift = charge_drift(rescaling, gradients, params, 0.1, 1, replacement=True)
    >>> round(drift.noise.item(), 6), round(drift.total.item(), 6)
    (-0.03, -0.03)
    """
    moments = GradientMoments.of([per_sample_gradients], [charge_of(symmetry)])
    step = Step(learning_rate, batch_size, moments.n_samples, weight_decay, replacement)
    charge = charge_of(symmetry)
    return step.drift(moments.centred[0], charge(moments.mean), charge(params))


def charge_of(symmetry: Symmetry) -> Quadratic:
    """Return the charge of a symmetry as a quadratic form.

    Raises:
        InputError: when called, if the symmetry conserves nothing.
    """

    def charge(params: Params) -> Tensor:
        value = symmetry.charge(params)
        if value is None:
            raise InputError(f"{symmetry.kind} of layer {symmetry.layer!r} has no charge")
        return value

    return charge


@dataclass(frozen=True, eq=False)
class ExponentialSymmetry(Symmetry):
    r"""A symmetry of the user's own: $\theta\to s^A\theta=e^{\lambda A}\theta$ with $s=e^\lambda>0$.

    An element is the factor $s$, shape (1,). Whether the model has the symmetry is for the numbers to say:
    see :meth:`invariance_error`.

    Args:
        generator: $A$, symmetric, shape (P, P); or its diagonal, shape (P,). Acts on the named parameters,
            flattened one after the other.
        names: qualified names of the parameters touched.

    Raises:
        InputError: a generator that is not symmetric, not finite or zero, or no names.

    Half the log of a factor 4 on w, its inverse on v:

    >>> rescaling = ExponentialSymmetry(torch.tensor([1.0, -1.0]), ("w", "v"))
    >>> params = {"w": torch.tensor([3.0]), "v": torch.tensor([2.0])}
    >>> rescaling.charge(params)
    tensor([5.], dtype=torch.float64)
    >>> rescaling.act(params, torch.tensor([2.0]))
    {'w': tensor([6.], dtype=torch.float64), 'v': tensor([1.], dtype=torch.float64)}
    """

    kind = "exponential"

    generator: Tensor
    names: tuple[str, ...]
    _powers: Tensor = field(init=False, repr=False)
    _basis: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        generator = to_float64(torch.as_tensor(self.generator)).to(torch.float64)
        object.__setattr__(self, "generator", generator)
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names:
            raise InputError("names must hold at least one parameter, got none")
        if generator.ndim not in (1, 2) or generator.shape[0] != generator.shape[-1] or not len(generator):
            raise InputError(f"generator must have shape (P, P) or (P,), got {tuple(generator.shape)}")
        size = float(generator.abs().max())
        if not 0 < size < float("inf"):
            raise InputError(f"generator must be finite and not zero, got a largest entry of {size}")
        powers, basis = generator, None
        if generator.ndim == 2:
            if not torch.allclose(generator, generator.T, rtol=0, atol=1e-12 * size):
                raise InputError("generator must be symmetric: only then is the charge conserved")
            powers, basis = torch.linalg.eigh(generator)
        object.__setattr__(self, "_powers", torch.where(powers.abs() > SAME_POWER * size, powers, 0.0))
        object.__setattr__(self, "_basis", basis)

    @property
    def layer(self) -> str:
        """The module of the first parameter."""
        return self.names[0].rpartition(".")[0] or self.names[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names given."""
        return self.names

    @property
    def group(self) -> str:
        """One positive factor."""
        return "R_+"

    @property
    def dimension(self) -> int:
        """One."""
        return 1

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a log-normal factor."""
        return torch.exp(0.5 * torch.randn(1, generator=generator, dtype=torch.float64))

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with $s^A$ applied."""
        return self._filled(params, self._apply(params, element**self._powers))

    def generators(self) -> Iterator[Generator]:
        r"""Yield the one map $\theta\to A\theta$."""
        yield lambda params: self._named(params, self._apply(params, self._powers))

    def charge(self, params: Params) -> Tensor:
        r"""Return $\theta^\top A\theta$, shape (1,)."""
        return (self._powers * self._components(params).square()).sum().reshape(1)

    def weighted_norms(self, params: Params) -> list[tuple[float, Tensor]]:
        """Return (power, squared norm of shape (1,)) for each eigenspace of A; $s$ acts on it as s**power."""
        squares = self._components(params).square()
        norms = []
        for power in self._distinct():
            near = (self._powers - power).abs() <= SAME_POWER * float(self._powers.abs().max())
            norms.append((power, torch.where(near, squares, 0.0).sum().reshape(1)))
        return norms

    def project(self, params: Params) -> dict[str, Tensor]:
        r"""Return the nearest parameters that the group leaves in place: those with $A\theta=0$."""
        return self._filled(params, self._apply(params, (self._powers == 0).to(torch.float64)))

    def invariance_error(self, params: Params, per_sample_gradients: Params) -> float:
        r"""Return $\max_i|g_i^\top A\theta|/(\|g_i\|\|A\theta\|)$; zero to rounding if the loss is invariant.

        A symmetry makes every sample's gradient orthogonal to the orbit; a transformation that only the mean
        loss respects does not pass.

        Args:
            params: the parameters by name.
            per_sample_gradients: by name, each of shape (n_samples, *parameter shape).
        """
        tangent = self._apply(params, self._powers)
        gradients = torch.cat(
            [per_sample_gradients[name].flatten(start_dim=1).to(torch.float64) for name in self.names], dim=1
        )
        along = (gradients @ tangent).abs()
        scale = gradients.norm(dim=1) * tangent.norm()
        return float(torch.where(scale > 0, along / scale, 0.0).max())

    def _distinct(self) -> list[float]:
        powers: list[float] = []
        tolerance = SAME_POWER * float(self._powers.abs().max())
        for power in sorted(float(p) for p in self._powers if p != 0):
            if not powers or power - powers[-1] > tolerance:
                powers.append(power)
        return powers

    def _vector(self, params: Params) -> Tensor:
        missing = [name for name in self.names if name not in params]
        if missing:
            raise InputError(f"there is no parameter {missing[0]!r}; expected one of {', '.join(params)}")
        vector = to_vector({name: params[name] for name in self.names}).to(torch.float64)
        if vector.shape != self._powers.shape:
            size = self._powers.numel()
            raise InputError(f"the generator acts on {size} numbers, the parameters hold {vector.numel()}")
        return vector

    def _components(self, params: Params) -> Tensor:
        vector = self._vector(params)
        return vector if self._basis is None else self._basis.T @ vector

    def _apply(self, params: Params, factors: Tensor) -> Tensor:
        components = factors * self._components(params)
        return components if self._basis is None else self._basis @ components

    def _named(self, params: Params, vector: Tensor) -> dict[str, Tensor]:
        return from_vector(vector, {name: params[name] for name in self.names})

    def _filled(self, params: Mapping[str, Any], vector: Tensor) -> dict[str, Tensor]:
        return {**params, **self._named(params, vector)}
