r"""The entropic loss: what SGD with a finite step descends instead of the loss.

A step $\theta'=\theta-\eta\nabla\ell(\theta)$ is the gradient flow of $\ell$ for the time $\eta$ up to an
error of order $\eta^2$. With the flow of

$$\phi_\eta=\ell+\frac\eta4\|\nabla\ell\|^2$$

in its place the error is of order $\eta^3$. Averaged over the minibatches that $\ell$ is the loss of,

$$F_\eta=L+\frac\eta4E\|\nabla\ell\|^2=L+\frac\eta4\|\nabla L\|^2+\frac{\eta}{4S}f\,\mathrm{Tr}\,\Sigma,$$

$\Sigma$ being the covariance of the per-sample gradient over the $N$ samples, $f=(N-S)/(N-1)$ for batches
drawn without replacement and $f=1$ for batches drawn with it. The second term is the bias of gradient
descent, the third the entropic force of the noise; only the third knows the batch size. With a learning rate
of its own for each parameter, $\Lambda=\mathrm{diag}(\eta_k)$, the terms are
$\frac14E[\nabla\ell^\top\Lambda\nabla\ell]$ and the flow is $\dot\theta=-\Lambda\nabla F$, for a time of one.

The next order is not a loss: the drift of order $\eta^2$, $-\frac13H^2g-\frac1{12}\nabla^3\ell[g,g]$, is no
gradient in general, so that no function is offered for it.

Source: arXiv 2505.12387, entropic loss; re-derived, the next order and the finite population are derived.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from symdyn_core.errors import InputError, unknown
from symdyn_core.mean_loss import check_mean_loss
from symdyn_core.params import (
    FrozenModel,
    LossFunction,
    Params,
    check_data,
    from_vector,
    statistics_layers,
    to_float64,
    to_vector,
)
from symdyn_core.symmetry.charges import Step
from symdyn_core.symmetry.gradients import GradientMoments, per_sample_gradients

LearningRate = float | Mapping[str, float | Tensor]
"""One learning rate, or one for each parameter by name: a number or a tensor that broadcasts to its shape."""

# Substeps of an integrated flow: the result is that of the second, the first tells how good it is.
SUBSTEPS = (4, 8)
# A local error below this fraction of the step is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class EntropicLoss:
    r"""The entropic loss term by term; each is a tensor of shape ().

    Attributes:
        loss: $L$.
        mean_gradient: $\frac\eta4\|\nabla L\|^2$, what gradient descent adds.
        noise: $\frac\eta4\mathrm{Tr}\,\mathrm{Cov}$ of the minibatch gradient, the entropic part.
        total: $F_\eta$, their sum.
    """

    loss: Tensor
    mean_gradient: Tensor
    noise: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the three."""
        return self.loss + self.mean_gradient + self.noise


@overload
def entropic_loss(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: LearningRate,
    batch_size: int,
    replacement: bool = ...,
    parts: Literal[False] = ...,
    differentiable: bool = ...,
) -> Tensor: ...
@overload
def entropic_loss(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: LearningRate,
    batch_size: int,
    replacement: bool = ...,
    parts: Literal[True],
    differentiable: bool = ...,
) -> EntropicLoss: ...
def entropic_loss(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: LearningRate,
    batch_size: int,
    replacement: bool = False,
    parts: bool = False,
    differentiable: bool = False,
) -> Tensor | EntropicLoss:
    r"""Return the loss that SGD of this learning rate and batch size descends on average.

    $$F_\eta=L+\frac\eta4\|\nabla L\|^2+\frac\eta{4S}f\,\mathrm{Tr}\,\Sigma$$

    By default it is a number to look at: float64, evaluation mode, on a copy of the model, memory bounded.
    With ``differentiable`` it is a loss to train with: of the model itself, in its own dtype, device and
    mode, and ``backward()`` reaches its parameters through the squared gradients. That keeps the gradients of
    all samples in memory, unless the batch is all of them, when only the mean gradient counts.

    Args:
        model: maps inputs to one tensor. Parameters without ``requires_grad`` stay fixed and do not count.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        learning_rate: $\eta>0$, or by parameter name, $\ge0$ and as wide as the parameter at most.
        batch_size: $S$, in [1, n_samples] unless drawn with replacement.
        replacement: whether batches are drawn with replacement, or afresh from an endless supply of which the
            data are a sample.
        parts: whether to return the terms one by one.
        differentiable: whether the result is to be differentiated.

    Returns:
        A tensor of shape (), or an :class:`EntropicLoss` of such tensors.

    Raises:
        InputError: a value out of range, a model without trainable parameters, a loss that is not finite or
            not the mean over the samples, or a differentiable loss of a model whose samples interact
            (batch normalisation) or that is random (dropout) in the mode that it is in.

    Source: arXiv 2505.12387, entropic loss; re-derived.

    The loss (w x)^2 at w = 1 with x = 1 and 2 has the gradients 2 and 8: mean 5, variance 9.

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.ones_(line.weight)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> of = lambda batch_size: entropic_loss(
    ...     line, nn.functional.mse_loss, x, y, learning_rate=0.4, batch_size=batch_size, parts=True)
    >>> one = of(1)
    >>> round(one.loss.item(), 9), round(one.mean_gradient.item(), 9), round(one.noise.item(), 9)
    (2.5, 2.5, 0.9)
    >>> round(of(2).total.item(), 9)
    5.0
    """
    check_data(inputs, targets)
    # The step itself counts in the learning rates; here it is only asked for the share of the noise.
    share = Step(1.0, batch_size, len(inputs), replacement=replacement).noise_factor
    terms_of = _live if differentiable else _frozen
    with sdpa_kernel(SDPBackend.MATH):  # the only attention with a second derivative
        loss, of_mean, noise = terms_of(model, loss_fn, inputs, targets, share, learning_rate)
    terms = EntropicLoss(loss, of_mean / 4, noise / 4)
    return terms if parts else terms.total


Terms = tuple[Tensor, Tensor, Tensor]
"""The loss, and the squares of the gradient, weighted by the learning rates: of its mean, of its noise."""


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    params = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not params:
        raise InputError("the model must have a trainable parameter, got none with requires_grad")
    return params


def _check_finite(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss).all()):
        raise InputError(f"the loss must be finite, got {loss.item()}")


def _frozen(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    share: float,
    learning_rate: LearningRate,
) -> Terms:
    frozen = FrozenModel(model)
    params = {name: frozen.params[name] for name in _trainable(model)}
    square = _weighted_square(_rates(learning_rate, params))
    gradients = per_sample_gradients(frozen, loss_fn, inputs, targets, params=params)
    with torch.no_grad():
        loss = torch.as_tensor(loss_fn(frozen(params, inputs), to_float64(targets))).reshape(())
    _check_finite(loss)
    moments = GradientMoments.of(gradients, [square])
    return loss, square(moments.mean), share * moments.centred[0]


def _live(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    share: float,
    learning_rate: LearningRate,
) -> Terms:
    params = _trainable(model)
    square = _weighted_square(_rates(learning_rate, params))
    if share == 0:
        loss = loss_fn(model(inputs), targets).reshape(())
        _check_finite(loss)
        found = torch.autograd.grad(loss, list(params.values()), create_graph=True, materialize_grads=True)
        return loss, square(dict(zip(params, found, strict=True))), torch.zeros_like(loss)
    if any(layer.training for layer in statistics_layers(model)):
        raise InputError(
            "a batch normalisation in training mode makes samples interact, so that there is no gradient of "
            "one sample; call its eval() or use batch_size = n_samples"
        )
    dropouts = (module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd))
    if any(layer.training and layer.p > 0 for layer in dropouts):
        raise InputError("the loss must not be random, got a dropout in training mode; call its eval()")

    def sample_loss(values: Params, x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, dict(values), (x.unsqueeze(0),))
        return loss_fn(outputs, y.unsqueeze(0)).reshape(())

    of_sample = torch.func.vmap(torch.func.grad_and_value(sample_loss), in_dims=(None, 0, 0))
    try:
        gradients, losses = of_sample(params, inputs, targets)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the losses of single samples cannot be differentiated together: {reason}"
        ) from error
    loss = losses.mean()
    _check_finite(loss)
    with torch.no_grad():
        together = float(torch.as_tensor(loss_fn(model(inputs), targets)))
    epsilon = torch.finfo(losses.dtype).eps
    check_mean_loss(together, losses.tolist(), max(1e-8, 100 * epsilon), epsilon)
    mean = {name: gradient.mean(dim=0) for name, gradient in gradients.items()}
    centred = {name: gradients[name] - mean[name] for name in mean}
    return loss, square(mean), share * torch.func.vmap(square)(centred).mean()


def _rates(learning_rate: LearningRate, params: Params) -> dict[str, Tensor]:
    """Return the learning rate of every entry of every parameter.

    Args:
        learning_rate: one for all, or by name; parameters that are not named must not exist.
        params: the parameters by name.

    Raises:
        InputError: a rate that is negative or not finite, all of them zero, a name that does not exist or is
            missing, or a shape that does not broadcast.

    >>> _rates({"w": 0.5}, {"w": torch.zeros(2)})
    {'w': tensor([0.5000, 0.5000])}
    """
    if not isinstance(learning_rate, Mapping):
        if not 0 < learning_rate < float("inf"):
            raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
        return {name: torch.full_like(value, learning_rate) for name, value in params.items()}
    for name in learning_rate:
        if name not in params:
            raise InputError(unknown("parameter", name, params, where=" in learning_rate"))
    rates = {}
    for name, value in params.items():
        if name not in learning_rate:
            raise InputError(f"learning_rate must name every trainable parameter, got none for {name!r}")
        given = torch.as_tensor(learning_rate[name], dtype=value.dtype, device=value.device).detach()
        usable = (given >= 0) & torch.isfinite(given)
        if not bool(usable.all()):
            worst = given[~usable].flatten()[0].item()
            raise InputError(f"learning_rate of {name!r} must be finite and >= 0, got {worst}")
        try:
            rates[name] = given.expand(value.shape)
        except RuntimeError as error:
            shapes = f"{tuple(given.shape)} for a parameter of shape {tuple(value.shape)}"
            raise InputError(f"learning_rate of {name!r} must broadcast, got shape {shapes}") from error
    if not any(bool(rate.any()) for rate in rates.values()):
        raise InputError("learning_rate must be > 0 for one parameter at least, got 0 for all")
    return rates


def _weighted_square(rates: Params) -> Callable[[Params], Tensor]:
    def square(gradient: Params) -> Tensor:
        return torch.stack([(rates[name] * value.square()).sum() for name, value in gradient.items()]).sum()

    return square


@dataclass(frozen=True, eq=False)
class FlowCheck:
    r"""How far one step of gradient descent ends from two flows, for smaller and smaller steps.

    Where a ReLU unit switches along the step, the flow turns at a kink of the loss that the squared gradient
    at a point knows nothing of: both orders fall, in wide networks below two, and the term explains little.

    Attributes:
        fractions: of the learning rate, 1, 1/2, 1/4 ..., shape (k,).
        errors: distance to the end of the flow of $\ell+\frac14\nabla\ell^\top\Lambda\nabla\ell$, shape (k,).
        errors_without: distance to the end of the flow of $\ell$ alone, shape (k,).
        uncertainty: of both, from the integration of the flows, shape (k,).
    """

    fractions: NDArray[np.float64]
    errors: NDArray[np.float64]
    errors_without: NDArray[np.float64]
    uncertainty: NDArray[np.float64]

    @property
    def order(self) -> float:
        """Exponent of the learning rate in the error with the entropic term: 3 for a smooth loss."""
        return _order(self.fractions, self.errors)

    @property
    def order_without(self) -> float:
        """Exponent of the learning rate in the error without it: 2."""
        return _order(self.fractions, self.errors_without)

    @property
    def explained(self) -> float:
        """Share of the distance between step and flow, at the full learning rate, that the term explains.

        Close to 1 where the entropic loss describes what the steps do; 0 or less where the step is too large.
        """
        return 1 - float(self.errors[0] / self.errors_without[0])


def _order(fractions: NDArray[np.float64], errors: NDArray[np.float64]) -> float:
    return float(np.polyfit(np.log(fractions), np.log(errors), 1)[0])


def modified_flow_check(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: LearningRate,
    halvings: int = 2,
) -> FlowCheck:
    r"""Measure whether the entropic loss describes one step of gradient descent at this learning rate.

    Compares $\theta-\Lambda\nabla\ell$ with the flows $\dot\theta=-\Lambda\nabla\phi$, integrated for a time
    of one, at the learning rate and at fractions of it. For a smooth loss and small enough steps the error is
    of third order with the entropic term and of second order without.

    Args:
        model: copied, never changed; seen in float64 and evaluation mode.
        loss_fn: maps (outputs, targets) to one number.
        inputs: shape (n_samples, ...); the batch whose loss $\ell$ is.
        targets: shape (n_samples, ...).
        learning_rate: the largest one; as in :func:`entropic_loss`.
        halvings: how many smaller ones, each half of the one before, in [1, 10].

    Raises:
        InputError: a value out of range, a loss that is not finite along the way, a point where the gradient
            vanishes, a learning rate so large that the flow cannot be integrated, or so small that the errors
            are rounding.

    Source: arXiv 2505.12387, entropic loss; re-derived.

    The loss w^2 at w = 1: a step of 0.1 ends at 0.8, the flow at exp(-0.2), with the term at exp(-0.22).

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.ones_(line.weight)
    >>> one = torch.ones(1, 1)
    >>> check = modified_flow_check(line, nn.functional.mse_loss, one, 0 * one, learning_rate=0.1)
    >>> round(float(check.errors_without[0]), 6), round(float(check.errors[0]), 6)
    (0.018731, 0.002519)
    >>> round(check.order_without, 1), round(check.order, 1)
    (2.0, 3.0)
    """
    check_data(inputs, targets)
    if halvings != int(halvings) or not 1 <= halvings <= 10:
        raise InputError(f"halvings must be a whole number in [1, 10], got {halvings}")
    frozen = FrozenModel(model)
    params = {name: frozen.params[name] for name in _trainable(model)}
    rates = to_vector(_rates(learning_rate, params))
    start = to_vector(params)
    labels = to_float64(targets)

    def loss(vector: Tensor) -> Tensor:
        return loss_fn(frozen(from_vector(vector, params), inputs), labels)

    _check_finite(loss(start))
    gradient: Callable[[Tensor], Tensor] = torch.func.grad(loss)
    fractions = np.asarray(0.5 ** np.arange(halvings + 1), dtype=float)
    with sdpa_kernel(SDPBackend.MATH):
        errors = np.array([list(_local_errors(loss, gradient, start, s * rates)) for s in fractions])
        sizes = fractions * float((rates * gradient(start)).norm())
    if not (errors[:, :2] > ROUNDING * sizes[:, None]).all():
        raise InputError(
            "the steps are too small to tell the flows apart: their errors are rounding; raise learning_rate "
            "or take fewer halvings"
        )
    if not (errors[:, 2] < errors[:, 1] / 2).all():
        raise InputError(
            "the flows cannot be integrated closely enough to compare them with a step; lower learning_rate"
        )
    return FlowCheck(fractions, errors[:, 0], errors[:, 1], errors[:, 2])


def _local_errors(
    loss: Callable[[Tensor], Tensor],
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    rates: Tensor,
) -> Iterator[float]:
    """Yield the distance of one step from both flows, with the term and without, and their uncertainty."""

    def modified(vector: Tensor) -> Tensor:
        return loss(vector) + (rates * gradient(vector).square()).sum() / 4

    step = rates * gradient(start)
    if not bool(step.any()):
        raise InputError("the gradient must not vanish, got a stationary point of the loss")
    slopes: tuple[Callable[[Tensor], Tensor], ...] = (torch.func.grad(modified), gradient)
    gaps = []
    for slope in slopes:
        coarse, fine = (_flow(slope, rates, start, substeps) for substeps in SUBSTEPS)
        yield float((fine + step).norm())
        gaps.append(float((fine - coarse).norm()))
    yield max(gaps)


def _flow(slope: Callable[[Tensor], Tensor], rates: Tensor, start: Tensor, substeps: int) -> Tensor:
    """Return how far the flow down the slope goes in a time of one, by the Runge-Kutta method.

    The distance travelled is integrated, not the place: it may be small against the weights.
    """

    def velocity(moved: Tensor) -> Tensor:
        found = -rates * slope(start + moved)
        if not bool(torch.isfinite(found).all()):
            raise InputError("the flow must stay finite, got NaN or infinite entries: lower learning_rate")
        return found

    moved, h = torch.zeros_like(start), 1 / substeps
    for _ in range(substeps):
        k1 = velocity(moved)
        k2 = velocity(moved + h / 2 * k1)
        k3 = velocity(moved + h / 2 * k2)
        moved = moved + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(moved + h * k3))
    return moved
