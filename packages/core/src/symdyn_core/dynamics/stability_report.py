"""Does SGD stay where a network is, and up to which learning rate: what theory says, on one page."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from symdyn_core.dynamics.lyapunov import Walk
from symdyn_core.dynamics.random_products import block_standard_error
from symdyn_core.dynamics.stability import largest_sample_gradient
from symdyn_core.dynamics.stable_rate import LEADING, StableLearningRate, stable_learning_rate
from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, LossFunction, evaluate_loss, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.structure.forward import plain_operations

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType

# More samples change the curvature by less than its own sampling error; a Hessian-vector product reads all.
SAMPLES = 1000
# Of a sample, relative to the largest curvature times the size of the weights: a gradient that is none.
NO_GRADIENT = 1e-9
# Of the loss, that one step of gradient descent takes away: below it the point counts as stationary.
STATIONARY = 0.01
# Learning rates of the curve, relative to the given one and to the limits.
CURVE_POINTS, CURVE_REACH = 24, 1.5
BURN_IN = 0.1


@dataclass(frozen=True)
class StabilityReport:
    r"""Stability of SGD at the present parameters of a network; prints as a page.

    Everything but the gradient is of the linearised dynamics along the directions of largest curvature.

    Attributes:
        model: class name of the network.
        parameters: number of its parameters.
        samples: number of samples looked at.
        given: number of samples there were.
        learning_rate: of SGD.
        batch_size: of SGD.
        weight_decay: as ``torch.optim.SGD`` takes it; part of gradient, curvature and exponents.
        loss: without the decay, on the samples.
        gradient_norm: of the loss with its decay.
        largest_sample_gradient: largest norm of the gradient of one sample's loss.
        curvatures: largest eigenvalues of the Hessian by magnitude, descending.
        lowest_curvature: lowest eigenvalue of the Hessian.
        limits: up to which learning rate SGD stays, by three notions.
        exponents: Lyapunov exponents at this learning rate along the leading directions, descending.
        standard_errors: of the exponents.
        curve: pairs of a learning rate and the top exponent there.
        type_ii: whether no single sample pushes the parameters at all.
    """

    model: str
    parameters: int
    samples: int
    given: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    loss: float
    gradient_norm: float
    largest_sample_gradient: float
    curvatures: tuple[float, ...]
    lowest_curvature: float
    limits: StableLearningRate
    exponents: tuple[float, ...]
    standard_errors: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    type_ii: bool

    @property
    def verdict(self) -> str:
        """``attracts`` or ``repels`` by the sign of the top exponent; ``undecided`` within its error."""
        top, reach = self.exponents[0], 1.96 * self.standard_errors[0]
        if top + reach < 0:
            return "attracts"
        return "repels" if top - reach > 0 else "undecided"

    @property
    def mean_square_verdict(self) -> str:
        """What the mean square of a deviation does at this learning rate: ``attracts`` or ``repels``."""
        return "attracts" if self.learning_rate < self.limits.mean_square else "repels"

    @property
    def descent(self) -> float:
        r"""Fraction of the loss that one step of gradient descent takes away, :math:`\eta|g|^2/L`."""
        if self.loss == 0:
            return 0.0 if self.gradient_norm == 0 else math.inf
        return self.learning_rate * self.gradient_norm**2 / abs(self.loss)

    @property
    def advice(self) -> list[str]:
        """What this means, most important first."""
        return list(_advise(self))

    def to_frame(self) -> "pd.DataFrame":
        """Return the exponents as a table: one row per exponent, largest first."""
        import pandas as pd

        return pd.DataFrame({"exponent": self.exponents, "standard_error": self.standard_errors})

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold; what is not finite becomes None."""
        values = asdict(self) | {
            "verdict": self.verdict,
            "mean_square_verdict": self.mean_square_verdict,
            "advice": self.advice,
        }
        cleaned: dict[str, Any] = _plain(values)
        return cleaned

    def to_html(self, title: str | None = None) -> str:
        """Return a page with a figure that stands alone.

        Args:
            title: what was looked at; by default the class of the model.
        """
        from symdyn_core.dynamics.stability_page import page

        return page(self, title)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Yield the page for the terminal."""
        from symdyn_core.dynamics.stability_page import render

        yield from render(self)


def stability_report(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    weight_decay: float = 0.0,
    samples: int = SAMPLES,
    steps: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> StabilityReport:
    """Say whether SGD stays at a model's present parameters, and up to which learning rate.

    Args:
        model: any module; copied, in float64 and in evaluation mode.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...); the training data.
        targets: shape (n_samples, ...).
        learning_rate: of SGD without momentum.
        batch_size: of SGD; batches are drawn without replacement.
        weight_decay: as ``torch.optim.SGD`` takes it.
        samples: at most so many, drawn at random, are looked at.
        steps: of the random products of minibatch Hessians, at least 50.
        seed: of the samples and batches.
        progress: whether to show bars, on a terminal.

    Raises:
        InputError: values out of range, or what :class:`~symdyn_core.dynamics.curvature.Curvature` refuses.

    Source: arXiv 2303.13093; see :mod:`symdyn_core.dynamics.stable_rate`.

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.zeros_(line.weight)
    >>> x = torch.full((4, 1), 3.0)
    >>> report = stability_report(
    ...     line, nn.functional.mse_loss, x, 0 * x, learning_rate=0.1, batch_size=2)
    >>> report.verdict, [round(h, 6) for h in report.curvatures], round(math.exp(report.exponents[0]), 6)
    ('attracts', [18.0], 0.8)
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    loss = evaluate_loss(model, loss_fn, inputs, targets)
    given = len(inputs)
    if given > samples:
        chosen = torch.randperm(given, generator=torch_generator(seed, "stability", "samples"))[:samples]
        inputs, targets = inputs[chosen], targets[chosen]
        loss = evaluate_loss(model, loss_fn, inputs, targets)
    gamma = weight_decay / 2  # of gamma |theta|^2, as the theory counts it

    # Fused attention has no second derivative, and none for many samples at once.
    with plain_operations():
        frozen = FrozenModel(model)
        walk = Walk(frozen, loss_fn, inputs, targets, batch_size, seed=seed)
        curvature = walk.curvature
        values, leading = curvature.top_eigenvalues(min(LEADING, curvature.dimension), seed, tolerance=1e-5)
        lowest = curvature.lowest_eigenvalue(seed, tolerance=1e-3) + weight_decay
        gradient = curvature.gradient() + weight_decay * to_vector(frozen.params)
        limits = stable_learning_rate(
            frozen,
            loss_fn,
            inputs,
            targets,
            batch_size=batch_size,
            directions=leading,
            weight_decay=gamma,
            steps=steps,
            seed=seed,
            progress=progress,
        )
        growth = walk.along(leading)
        rates = _rates(learning_rate, limits)
        logs = growth.growth(torch.tensor(rates).numpy(), steps, weight_decay=gamma)
        counted = logs[math.ceil(BURN_IN * steps) :]
        ones = growth.growth(
            torch.tensor([learning_rate]).numpy(), steps, leading.shape[1], weight_decay=gamma
        )
        here = ones[math.ceil(BURN_IN * steps) :, 0]
        order = here.mean(axis=0).argsort()[::-1]
        sample_gradient = largest_sample_gradient(frozen, loss_fn, inputs, targets)
    size = float(to_vector(frozen.params).norm())
    return StabilityReport(
        model=type(model).__name__,
        parameters=curvature.dimension,
        samples=len(inputs),
        given=given,
        learning_rate=learning_rate,
        batch_size=batch_size,
        weight_decay=weight_decay,
        loss=loss,
        gradient_norm=float(gradient.norm()),
        largest_sample_gradient=sample_gradient,
        curvatures=tuple(sorted((float(h) + weight_decay for h in values), key=abs, reverse=True)),
        lowest_curvature=lowest,
        limits=limits,
        exponents=tuple(float(x) for x in here.mean(axis=0)[order]),
        standard_errors=tuple(float(x) for x in block_standard_error(here)[order]),
        curve=tuple(zip(rates, counted.mean(axis=0)[:, 0].tolist(), strict=True)),
        type_ii=sample_gradient <= NO_GRADIENT * max(abs(float(values[0])) * size, 1e-300),
    )


def _rates(learning_rate: float, limits: StableLearningRate) -> list[float]:
    ends = [learning_rate, limits.high, limits.mean_square, limits.full_batch]
    top = CURVE_REACH * max(end for end in ends if math.isfinite(end))
    return [top * (place + 1) / CURVE_POINTS for place in range(CURVE_POINTS)]


def _advise(report: StabilityReport) -> Iterator[str]:
    rate, limits = report.learning_rate, report.limits
    factor = math.exp(report.exponents[0])
    if report.verdict == "attracts":
        yield (
            f"Stays: at learning rate {rate:g} and batches of {report.batch_size}, small deviations along "
            f"the directions of largest curvature change by a factor of {factor:.4g} per step, and vanish."
        )
    elif report.verdict == "repels":
        yield (
            f"Leaves: at learning rate {rate:g} and batches of {report.batch_size}, small deviations grow by "
            f"a factor of {factor:.4g} per step, e-fold in {1 / report.exponents[0]:.3g} steps."
        )
    else:
        yield (
            f"Undecided: the top exponent {report.exponents[0]:.2g} ± {report.standard_errors[0]:.1g} does "
            "not differ from zero beyond its error; more steps narrow it."
        )
    if math.isnan(limits.high):
        yield "No learning rate makes SGD stay here: some direction repels at all of them."
    elif limits.low > 0:
        yield (
            f"A saddle that attracts: curvature is as low as {limits.lowest_curvature:.3g} along these "
            f"directions, and gradient descent leaves; the noise of SGD holds it for learning rates from "
            f"{limits.low:.3g} to {limits.high:.3g}. Theory of the mean square does not see this. A smaller "
            "learning rate or a larger batch lets go."
        )
    elif (at_most := limits.mean_square) < limits.high * 0.97 and not limits.mean_square_exact:
        yield (
            f"Room: SGD stays up to {limits.high:.3g} in probability, while the mean square already explodes "
            f"from {at_most:.3g} or less: in between rare large excursions return."
        )
    if report.descent > STATIONARY:
        yield (
            f"Not at rest: the gradient on these data is {report.gradient_norm:.3g}, and one step of descent "
            f"would take {100 * report.descent:.2g} % off their loss. All this is said of deviations from "
            "the path, for as long as the curvature does not change."
        )
    if report.lowest_curvature < 0:
        yield (
            f"Not a minimum of the loss on these data: outside the directions looked at, curvature is as low "
            f"as {report.lowest_curvature:.3g}; along it the mean of a deviation grows e-fold in about "
            f"{-1 / (rate * report.lowest_curvature):.3g} steps."
        )
    if report.type_ii:
        yield (
            "No noise: no sample has a gradient here, so that the exponent alone decides whether SGD comes "
            "or goes."
        )
    if not limits.mean_square_exact:
        yield (
            f"How exact: the {len(report.exponents)} directions of largest curvature were looked at; on "
            f"average {100 * limits.leak:.0f} % of what a minibatch does to them leads out of them."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
