r"""The law of balance: minibatch noise makes the two factors of a rescaling symmetry equally noisy.

Let the loss depend on two weight vectors through their outer product only, as it does for the outgoing
weights $u$ and the incoming weights $w$ of a linear, ReLU or leaky ReLU unit. Gradient flow then conserves
the charge $\|u\|^2-\|w\|^2$. The noise of SGD does not: with $A=\partial\ell/\partial(uw^\top)$ of one
sample and the temperature $T=\eta/S$ (learning rate over batch size),

$$\frac{d}{dt}\big(\|u\|^2-\|w\|^2\big)=-T\,(u^\top C_1u-w^\top C_2w),\qquad
C_1=\langle AA^\top\rangle-\langle A\rangle\langle A\rangle^\top,\quad
C_2=\langle A^\top A\rangle-\langle A\rangle^\top\langle A\rangle .$$

The charge itself feels no noise to this order: its rate is fixed by the state. As $g_u=Aw$ and
$g_w=A^\top u$ are the per-sample gradients, the rate is also
$T(\mathrm{Tr}\,\mathrm{Cov}\,g_u-\mathrm{Tr}\,\mathrm{Cov}\,g_w)$: the charge rests where both vectors
receive the same amount of noise, which is where their norms agree only if the noise is alike on both sides.

Source: arXiv 2308.06671, law of balance. The source writes the matrix with its indices swapped; here the
rows of $A$ belong to $u$, so that the shapes say which matrix acts where. The discrete-time forms are
derived.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError

# torch is imported where a model comes in, so that the matrices alone stay cheap to load.
if TYPE_CHECKING:
    from torch import Tensor, nn

Array = NDArray[np.float64]

# A unit counts as rescalable if phi(z) = phi'(z) z, and the loss as a function of the outer product if the
# gradients rebuilt from it are autograd's; both hold to rounding in float64 or are off by their own size.
IDENTITY_TOLERANCE = 1e-8
# Noise below this fraction of what it is the difference of is rounding.
ROUNDING = 1e-13


@dataclass(frozen=True, eq=False)
class BalanceNoise:
    r"""Mean and noise of the per-sample gradient $A=\partial\ell/\partial(uw^\top)$, as balance feels them.

    Args:
        outgoing: $C_1$, shape (d_u, d_u), acts on $u$.
        incoming: $C_2$, shape (d_w, d_w), acts on $w$.
        mean: $\langle A\rangle$, shape (d_u, d_w).

    Raises:
        InputError: shapes that do not fit together, or entries that are not finite.

    Label noise of variance 1 on a scalar product has $C_1=C_2=4$; from $u=2,w=1$ the charge falls at
    $3\cdot4T$:

    >>> noise = BalanceNoise(outgoing=[[4.0]], incoming=[[4.0]], mean=[[0.0]])
    >>> noise.rate([2.0], [1.0], learning_rate=0.5)
    -6.0
    """

    outgoing: Array
    incoming: Array
    mean: Array

    def __post_init__(self) -> None:
        for name in ("outgoing", "incoming", "mean"):
            object.__setattr__(self, name, _finite(name, getattr(self, name), ndim=2))
        rows, columns = self.mean.shape
        for name, size in (("outgoing", rows), ("incoming", columns)):
            if getattr(self, name).shape != (size, size):
                raise InputError(
                    f"{name} must have shape ({size}, {size}) to go with a mean of shape "
                    f"({rows}, {columns}), got {getattr(self, name).shape}"
                )

    @classmethod
    def from_gradients(cls, gradients: ArrayLike) -> "BalanceNoise":
        r"""Estimate from per-sample gradients; averages are plain means, so the samples are the population.

        Args:
            gradients: $A$ of each sample, shape (n_samples, d_u, d_w); rows belong to $u$.

        Raises:
            InputError: not a stack of matrices, or entries that are not finite.

        >>> BalanceNoise.from_gradients([[[1.0, 2.0]], [[3.0, 2.0]]]).incoming.tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        """
        stack = _finite("gradients", gradients, ndim=3)
        mean = stack.mean(axis=0)
        centred = stack - mean
        return cls(
            outgoing=np.einsum("nik,njk->ij", centred, centred) / len(stack),
            incoming=np.einsum("nik,nil->kl", centred, centred) / len(stack),
            mean=mean,
        )

    def rate(self, u: ArrayLike, w: ArrayLike, *, learning_rate: float, batch_size: int = 1) -> float:
        r"""Return the predicted $\frac{d}{dt}(\|u\|^2-\|w\|^2)=-T(u^\top C_1u-w^\top C_2w)$.

        One step of SGD is the time $\eta$. The gradient's mean does not appear: what gradient *descent*
        adds at finite step is in :meth:`discrete_rate`.

        Args:
            u: outgoing weights, shape (d_u,).
            w: incoming weights, shape (d_w,).
            learning_rate: $\eta>0$.
            batch_size: $S\ge1$ samples, drawn afresh or with replacement.

        Raises:
            InputError: shapes or values out of range.
        """
        of_u, of_w = self._quadratic_forms(u, w)
        return _temperature(learning_rate, batch_size) * (of_w - of_u)

    def discrete_rate(
        self, u: ArrayLike, w: ArrayLike, *, learning_rate: float, batch_size: int = 1
    ) -> float:
        r"""Return the exact expected change of $\|u\|^2-\|w\|^2$ in the next step, divided by $\eta$.

        The law plus what a noise-free step does,
        $\eta(\|\langle A\rangle w\|^2-\|\langle A\rangle^\top u\|^2)$; this part vanishes at a critical
        point and does not shrink with the batch size.

        Args:
            u: outgoing weights, shape (d_u,).
            w: incoming weights, shape (d_w,).
            learning_rate: $\eta>0$.
            batch_size: $S\ge1$ samples, drawn afresh or with replacement.

        Raises:
            InputError: shapes or values out of range.

        Noise-free gradient 1 at $u=2,w=1$: the step takes $(2,1)$ to $(2-\eta,1-2\eta)$ and $3$ to
        $3-3\eta^2$.

        >>> BalanceNoise([[0.0]], [[0.0]], [[1.0]]).discrete_rate([2.0], [1.0], learning_rate=0.5)
        -1.5
        """
        rate = self.rate(u, w, learning_rate=learning_rate, batch_size=batch_size)
        gradient_u, gradient_w = self.mean @ np.asarray(w, float), self.mean.T @ np.asarray(u, float)
        return rate + learning_rate * float(gradient_u @ gradient_u - gradient_w @ gradient_w)

    def balancing_factor(self, u: ArrayLike, w: ArrayLike) -> float:
        r"""Return the $\lambda>0$ for which $\lambda u,\,w/\lambda$ is balanced.

        It is $\lambda^4=w^\top C_2w/u^\top C_1u$. The loss and $C_1,C_2$ are the same at both states,
        so rescaling only removes the imbalance. NaN where neither side feels noise; 0 or infinite where one
        does not.

        Args:
            u: outgoing weights, shape (d_u,).
            w: incoming weights, shape (d_w,).

        Raises:
            InputError: shapes that do not fit or values that are not finite.

        >>> BalanceNoise([[4.0]], [[4.0]], [[0.0]]).balancing_factor([0.25], [4.0])
        4.0
        """
        of_u, of_w = self._quadratic_forms(u, w)
        return float(_fourth_root_of_ratio(np.array(of_w), np.array(of_u)))

    def norm_ratio_window(self) -> tuple[float, float]:
        r"""Return the bounds on $\|u\|^2/\|w\|^2$ in balance.

        With $\lambda(C)$ the eigenvalues,

        $$\frac{\lambda_{\min}(C_2)}{\lambda_{\max}(C_1)}\le\frac{\|u\|^2}{\|w\|^2}\le
        \frac{\lambda_{\max}(C_2)}{\lambda_{\min}(C_1)} .$$

        Returns:
            Lower and upper bound; 0 and infinity where nothing is excluded.

        >>> BalanceNoise(np.diag([1.0, 2.0]), np.diag([4.0, 6.0]), np.zeros((2, 2))).norm_ratio_window()
        (2.0, 6.0)
        """
        of_u, of_w = np.linalg.eigvalsh(self.outgoing), np.linalg.eigvalsh(self.incoming)
        # A singular matrix has eigenvalues of rounding size and either sign.
        of_u, of_w = (np.where(v > ROUNDING * v[-1], v, 0.0) for v in (of_u, of_w))
        lower = float(of_w[0] / of_u[-1]) if of_u[-1] > 0 else 0.0
        upper = float(of_w[-1] / of_u[0]) if of_u[0] > 0 else math.inf
        return lower, upper

    def _quadratic_forms(self, u: ArrayLike, w: ArrayLike) -> tuple[float, float]:
        u, w = _finite("u", u, ndim=1), _finite("w", w, ndim=1)
        if (u.size, w.size) != self.mean.shape:
            raise InputError(
                f"u and w must have the lengths of the gradient matrix {self.mean.shape}, "
                f"got {u.size} and {w.size}"
            )
        return float(u @ self.outgoing @ u), float(w @ self.incoming @ w)


def balance_rate(
    u: ArrayLike, w: ArrayLike, gradients: ArrayLike, *, learning_rate: float, batch_size: int = 1
) -> float:
    r"""Return the predicted $\frac{d}{dt}(\|u\|^2-\|w\|^2)$ from per-sample gradients, by the law of balance.

    Args:
        u: outgoing weights, shape (d_u,).
        w: incoming weights, shape (d_w,).
        gradients: $\partial\ell/\partial(u_iw_k)$ of each sample, shape (n_samples, d_u, d_w).
        learning_rate: $\eta>0$; one step of SGD is the time $\eta$.
        batch_size: $S\ge1$ samples, drawn afresh or with replacement.

    Raises:
        InputError: shapes or values out of range.

    Two samples with gradients ±1 at $u=2,w=1$: variance 1, charge 3.

    >>> balance_rate([2.0], [1.0], [[[1.0]], [[-1.0]]], learning_rate=0.1, batch_size=1)
    -0.3...
    """
    noise = BalanceNoise.from_gradients(gradients)
    return noise.rate(u, w, learning_rate=learning_rate, batch_size=batch_size)


def balance_step_factor(gradient: ArrayLike, learning_rate: float) -> Array:
    r"""Return the factor $1-\eta^2\hat g^2$ by which one step of SGD multiplies $u^2-w^2$, exactly.

    Holds for scalars $u,w$ and a loss of their product, whatever the batch and the size of the step.

    Args:
        gradient: $\hat g$, the batch mean of $\partial\ell/\partial(uw)$; any shape.
        learning_rate: $\eta>0$.

    Returns:
        The factor, same shape.

    Raises:
        InputError: learning rate out of range.

    The step from $(2,1)$ with $\hat g=1,\eta=\frac12$ leads to $(1.5,0)$: from 3 to 2.25.

    >>> float(balance_step_factor(1.0, learning_rate=0.5))
    0.75
    """
    _temperature(learning_rate, 1)
    factor: Array = 1.0 - (learning_rate * np.asarray(gradient, dtype=float)) ** 2
    return factor


@dataclass(frozen=True, eq=False)
class LayerBalance:
    r"""The law of balance for every hidden unit between two linear layers of a model.

    Unit $j$ has $A=\delta\,\phi'(z_j)\,x^\top$ with $x$ the input of the first layer (and a 1 for its bias),
    $z_j=w_j\cdot x$, and $\delta$ the gradient at the output of the second layer. Made by
    :func:`layer_balance`.

    Attributes:
        outgoing_weights: $u_j$, shape (n_units, d_u).
        incoming_weights: $w_j$ with the unit's bias at the end, shape (n_units, d_w).
        output_gradients: $\delta$, shape (n_samples, d_u).
        slopes: $\phi'(z_j)$, shape (n_samples, n_units).
        inputs: $x$, shape (n_samples, d_w).
    """

    outgoing_weights: Array
    incoming_weights: Array
    output_gradients: Array
    slopes: Array
    inputs: Array

    @property
    def charges(self) -> Array:
        r"""$\|u_j\|^2-\|w_j\|^2$ of each unit, shape (n_units,)."""
        charges: Array = (self.outgoing_weights**2).sum(axis=1) - (self.incoming_weights**2).sum(axis=1)
        return charges

    @property
    def noise_traces(self) -> tuple[Array, Array]:
        r"""$\mathrm{Tr}\,\mathrm{Cov}$ of the per-sample gradients of $u_j$ and of $w_j$, each (n_units,)."""
        activations = self.slopes * (self.inputs @ self.incoming_weights.T)
        backward = self.slopes * (self.output_gradients @ self.outgoing_weights.T)
        return (
            _trace_of_covariance(self.output_gradients, activations),
            _trace_of_covariance(self.inputs, backward),
        )

    def rates(self, *, learning_rate: float, batch_size: int = 1) -> Array:
        r"""Return the predicted $\frac{d}{dt}(\|u_j\|^2-\|w_j\|^2)$ of each unit, shape (n_units,).

        Args:
            learning_rate: $\eta>0$; one step of SGD is the time $\eta$.
            batch_size: $S\ge1$ samples, drawn afresh or with replacement.

        Raises:
            InputError: learning rate or batch size out of range.
        """
        of_u, of_w = self.noise_traces
        rates: Array = _temperature(learning_rate, batch_size) * (of_u - of_w)
        return rates

    def balancing_factors(self) -> Array:
        r"""Return the $\lambda$ of each unit for which $\lambda u_j,\,w_j/\lambda$ is balanced, (n_units,).

        NaN for a unit that feels no noise at all, such as a ReLU that is never active, or equal samples.
        """
        of_u, of_w = self.noise_traces
        return _fourth_root_of_ratio(of_u, of_w)

    def gradients(self, unit: int) -> Array:
        r"""Return $A=\partial\ell/\partial(u_jw_j^\top)$ of one unit, shape (n_samples, d_u, d_w).

        Raises:
            InputError: no such unit.
        """
        units = len(self.outgoing_weights)
        if not 0 <= unit < units:
            raise InputError(f"unit must be in [0, {units - 1}], got {unit}")
        outer = np.einsum("ni,n,nk->nik", self.output_gradients, self.slopes[:, unit], self.inputs)
        return np.asarray(outer, dtype=float)

    def norm_ratio_window(self, unit: int) -> tuple[float, float]:
        r"""Return the bounds on $\|u_j\|^2/\|w_j\|^2$ in balance; see :meth:`BalanceNoise.norm_ratio_window`.

        Raises:
            InputError: no such unit.
        """
        return BalanceNoise.from_gradients(self.gradients(unit)).norm_ratio_window()


def layer_balance(
    model: "nn.Module",
    loss_fn: "Callable[[Tensor, Tensor], Tensor]",
    inputs: "Tensor",
    targets: "Tensor",
    *,
    incoming: str,
    outgoing: str,
) -> LayerBalance:
    r"""Return the balance of each hidden unit between two consecutive ``nn.Linear`` layers of a model.

    Between the layers there may be any elementwise map with $\phi(z)=\phi'(z)z$: identity, ReLU, leaky
    ReLU. The model is evaluated on a private copy in float64 and evaluation mode.

    Args:
        model: treats samples independently in evaluation mode; anything may lie before and after the two.
        loss_fn: maps (outputs, targets) to one number, as in training; called on batches of one sample.
        inputs: shape (n_samples, ...); the two layers must see one vector per sample.
        targets: shape (n_samples, ...).
        incoming: name of the layer that holds the incoming weights $w_j$ (and the units' biases).
        outgoing: name of the layer that holds the outgoing weights $u_j$.

    Raises:
        InputError: unknown or unsuitable layers, or units that cannot be rescaled without changing the loss.

    One linear unit with $w=2,u=1$ on labels $2\pm1$ at $x=1$: gradient $\mp2$ in $uw$, so $\dot Q=-4T(1-4)$.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 1, 1, bias=False) for _ in range(2)))
    >>> _ = nn.init.constant_(net[0].weight, 2.0), nn.init.constant_(net[1].weight, 1.0)
    >>> x, y = torch.ones(2, 1), torch.tensor([[1.0], [3.0]])
    >>> balance = layer_balance(net, nn.functional.mse_loss, x, y, incoming="0", outgoing="1")
    >>> balance.charges.tolist(), balance.rates(learning_rate=0.5).tolist()
    ([-3.0], [6.0])
    """
    import torch

    from symdyn_core.params import FrozenModel, check_data, run, to_float64

    check_data(inputs, targets)
    module = FrozenModel(model).module.requires_grad_(True)
    first, second = _linear_layer(module, incoming), _linear_layer(module, outgoing)
    seen_by_first, seen_by_second = _record_calls(first), _record_calls(second)
    outputs = run(module, to_float64(inputs))
    x, z = _single_call(incoming, seen_by_first)
    h, _ = _single_call(outgoing, seen_by_second)

    slopes = (
        torch.autograd.grad(h.sum(), z, retain_graph=True, allow_unused=True)[0] if h.requires_grad else None
    )
    if slopes is None or h.shape != z.shape:
        raise InputError(
            f"the input of layer {outgoing!r} must be an elementwise function of the output of {incoming!r}"
        )
    if not _agree(slopes * z, h, scale=h):
        raise InputError(
            f"between {incoming!r} and {outgoing!r} must be an elementwise map with phi(z) = phi'(z) z, such "
            f"as ReLU or none; found a difference of {float((h - slopes * z).detach().abs().max()):.3g}"
        )

    def sample_loss(output: "Tensor", target: "Tensor") -> "Tensor":
        return loss_fn(output[None], target[None]).reshape(())

    try:
        losses = torch.func.vmap(sample_loss)(outputs, to_float64(targets))
    except Exception as error:
        raise InputError(f"the loss fails on a batch of one sample: {error}") from error
    of_output, of_weight = torch.autograd.grad(
        losses.sum(), [seen_by_second[0][1], first.weight], allow_unused=True
    )
    of_hidden = slopes * (of_output @ second.weight) if of_output is not None else None
    if of_hidden is None or not _agree(of_hidden.T @ x, of_weight, scale=of_hidden.abs().T @ x.abs()):
        raise InputError(
            f"the loss must depend on layer {incoming!r} through layer {outgoing!r} only, and the loss of a "
            "sample on that sample only: the gradients with respect to the weights do not add up"
        )
    ones = [torch.ones_like(x[:, :1])] if first.bias is not None else []
    bias = [first.bias[:, None]] if first.bias is not None else []
    return LayerBalance(
        outgoing_weights=_numpy(second.weight.T),
        incoming_weights=_numpy(torch.cat([first.weight, *bias], dim=1)),
        output_gradients=_numpy(of_output),
        slopes=_numpy(slopes),
        inputs=_numpy(torch.cat([x, *ones], dim=1)),
    )


def _linear_layer(module: "nn.Module", name: str) -> "nn.Linear":
    from torch import nn

    layers = [key for key, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if name not in layers:
        raise InputError(f"layer must be one of the model's nn.Linear ({', '.join(layers)}), got {name!r}")
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _record_calls(layer: "nn.Linear") -> "list[tuple[Tensor, Tensor]]":
    """Collect (input, output) of each call from now on."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(_: "nn.Module", args: "tuple[Tensor, ...]", output: "Tensor") -> "Tensor":
        calls.append((args[0], output))
        return output.clone()  # an in-place activation must not overwrite what was recorded

    layer.register_forward_hook(record)
    return calls


def _single_call(name: str, calls: "list[tuple[Tensor, Tensor]]") -> "tuple[Tensor, Tensor]":
    if len(calls) != 1:
        raise InputError(f"layer {name!r} must be used once in a forward pass, was used {len(calls)} times")
    if calls[0][0].ndim != 2:
        raise InputError(
            f"layer {name!r} must see one vector per sample, got inputs of shape {tuple(calls[0][0].shape)}"
        )
    return calls[0]


def _agree(left: "Tensor", right: "Tensor", *, scale: "Tensor") -> bool:
    return bool((left - right).abs().max() <= IDENTITY_TOLERANCE * scale.abs().max())


def _numpy(tensor: "Tensor") -> Array:
    return np.array(tensor.detach().numpy(), dtype=float)


def _trace_of_covariance(vectors: Array, factors: Array) -> Array:
    """Tr Cov of ``vectors[n] * factors[n, j]`` over n, for each j."""
    means = factors.T @ vectors / len(vectors)
    squares = (vectors**2).sum(axis=1) @ factors**2 / len(vectors)
    trace = squares - (means**2).sum(axis=1)
    # Without noise the difference is of rounding size and either sign.
    return np.where(trace > ROUNDING * squares, trace, 0.0)


def _fourth_root_of_ratio(numerator: Array, denominator: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((numerator / denominator) ** 0.25, dtype=float)


def _temperature(learning_rate: float, batch_size: int) -> float:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if batch_size < 1 or batch_size != int(batch_size):
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size}")
    return learning_rate / batch_size


def _finite(name: str, values: ArrayLike, *, ndim: int) -> Array:
    array = np.asarray(values, dtype=float)
    if array.ndim != ndim or array.size == 0:
        raise InputError(f"{name} must be a non-empty array of {ndim} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, got NaN or infinite entries")
    return array
