r"""The global minimum of a deep linear network with weight decay and multiplicative noise, in closed form.

The network has $D$ hidden layers of widths $d_1 \dots d_D$ and one output; every hidden neuron is multiplied
by independent noise of mean one and variance $\sigma_i^2$, inverted dropout for instance:

$$L = E_{x,y}E_\epsilon\big(W_{D+1}\epsilon_D W_D \cdots \epsilon_1 W_1 x - y\big)^2
      + \sum_{i=1}^{D+1}\gamma_i\|W_i\|^2, \qquad
      \epsilon_i = \mathrm{diag}(\epsilon_{i1} \dots \epsilon_{id_i}).$$

There is no factor 1/2 anywhere; :func:`symdyn_core.landscape.phases.torch_weight_decay` converts. The data
enter through $A = E[xx^T]$, $m = E[xy]$ and $E[y^2]$ only (:func:`data_moments`).

At the global minimum each layer has rank one, with entries of equal magnitude (the first layer: times the
input direction it reads), and all layers carry the same penalty $S=\gamma_i\|W_i\|^2$. What is left is one
number, found in :mod:`symdyn_core.landscape.effective`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_core.landscape.effective import (
    EffectiveProblem,
    FloatArray,
    Signal,
    cross_moment_vector,
    noise_per_layer,
    signal_retention,
)

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", NDArray[np.float64], "torch.Tensor")


class Moments(NamedTuple):
    """What the squared loss of a linear model knows of the data: $E[xx^T]$, $E[xy]$, $E[y^2]$."""

    second_moment: FloatArray
    cross_moment: FloatArray
    label_moment: float


def data_moments(inputs: ArrayLike, labels: ArrayLike, *, centre: bool = False) -> Moments:
    """Return the moments of a data set, as the functions of this package take them.

    Args:
        inputs: shape (n_samples, n_features).
        labels: shape (n_samples,).
        centre: subtract the means first; right for a model with an output bias that is not decayed.

    Returns:
        Shapes (n_features, n_features), (n_features,) and a number.

    Raises:
        InputError: wrong shapes, no samples, or entries that are not finite.

    Example:
        >>> moments = data_moments([[1.0], [3.0]], [2.0, 4.0])
        >>> moments.second_moment.tolist(), moments.cross_moment.tolist(), moments.label_moment
        ([[5.0]], [7.0], 10.0)
        >>> deep_linear_minimum(*moments, widths=[8], weight_decays=[1.0, 1.0]).coefficients.round(9).tolist()
        [1.2]
    """
    x, y = np.asarray(inputs, dtype=float), np.asarray(labels, dtype=float)
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise InputError(
            "inputs and labels must have shapes (n_samples, n_features) and (n_samples,), neither empty, "
            f"got {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("inputs and labels must be finite, got NaN or infinity")
    if centre:
        x, y = x - x.mean(axis=0), y - y.mean()
    n_samples = len(x)
    return Moments(x.T @ x / n_samples, x.T @ y / n_samples, float(y @ y / n_samples))


def dropout_noise_variance(drop_rate: float) -> float:
    """Return the variance $p/(1-p)$ of inverted dropout's factor, which is 0 or $1/(1-p)$, with mean one.

    Args:
        drop_rate: probability $p$ that a neuron is dropped, in [0, 1).

    Raises:
        InputError: the rate lies outside [0, 1).

    Example:
        >>> dropout_noise_variance(0.5)
        1.0
    """
    if not 0 <= drop_rate < 1:
        raise InputError(f"drop_rate must be in [0, 1), got {drop_rate}")
    return drop_rate / (1 - drop_rate)


@dataclass(frozen=True)
class DeepLinearSolution:
    """A global minimum of the deep linear network.

    Attributes:
        weights: one matrix per layer, from input to output, of shape (fan_out, fan_in) as in
            ``torch.nn.Linear.weight``; the last has one row. With noise on every hidden layer the minimum is
            unique up to the signs of hidden neurons; without, this is one of a family of rotated minima.
        loss: expected loss there, penalties included.
        trivial: whether the minimum is the zero network.
        coefficients: shape (n_features,); the prediction averaged over noise is ``coefficients @ x``.
        ridge: the network's effective ridge: `coefficients` are `retention` times those of ridge regression
            with this penalty. Infinite for the zero network.
        retention: :func:`symdyn_core.landscape.effective.signal_retention` of this network.
        layer_penalty: weight decay times squared norm of the weights, the same for every layer.
    """

    weights: tuple[FloatArray, ...]
    loss: float
    trivial: bool
    coefficients: FloatArray
    ridge: float
    retention: float
    layer_penalty: float

    def predict_mean(self, inputs: ArrayLike) -> FloatArray:
        """Return the prediction averaged over the noise.

        Args:
            inputs: shape (n_samples, n_features).

        Returns:
            Shape (n_samples,).

        Example:
            >>> deep_linear_minimum(1.0, 2.0, widths=[1], weight_decays=[1.0, 1.0]).predict_mean([[3.0]])
            array([3.])
        """
        return np.asarray(np.asarray(inputs, dtype=float) @ self.coefficients)

    def predict_variance(self, inputs: ArrayLike) -> FloatArray:
        r"""Return the variance of the prediction over the noise, the spread of Monte-Carlo dropout.

        $\mathrm{Var} f(x) = (1/\rho-1)\,(E f(x))^2$ at any depth and for any data. As $E f \propto \rho$ at
        given ridge, it vanishes both for little noise or wide layers ($\rho\to1$) and for much noise
        ($\rho\to0$).

        Args:
            inputs: shape (n_samples, n_features).

        Returns:
            Shape (n_samples,).

        Source: arXiv 2202.04777, predictive variance at the optimum; here for any depth and data, re-derived.

        Example:
            Here $E f = (2-1)\cdot\tfrac12\cdot 3$ and $1/\rho-1 = 1$.

            >>> noisy = deep_linear_minimum(1, 2, widths=[1], weight_decays=[1, 1], noise_variance=1)
            >>> noisy.predict_variance([[3.0]])
            array([2.25])
        """
        return (1 / self.retention - 1) * self.predict_mean(inputs) ** 2


def deep_linear_minimum(
    second_moment: ArrayLike,
    cross_moment: ArrayLike,
    label_moment: float | None = None,
    *,
    widths: Sequence[int],
    weight_decays: Sequence[float],
    noise_variance: float | Sequence[float] = 0.0,
) -> DeepLinearSolution:
    r"""Return the global minimum of the loss above: weights, loss, mean prediction.

    With two or more hidden layers zero is always a local minimum and there may be more than one other, so all
    minima over the one remaining number are found and compared. No scale has to be chosen.

    Args:
        second_moment: $E[xx^T]$, shape (n_features, n_features), positive semi-definite; or a number $a$ for
            $a I$.
        cross_moment: $E[xy]$, shape (n_features,), or a number for one feature.
        label_moment: $E[y^2]$; by default the least that the other two allow, that of labels linear in $x$.
        widths: hidden widths $d_1 \dots d_D$; empty for ridge regression.
        weight_decays: $\gamma_i > 0$ of each of the $D+1$ layers, from input to output.
        noise_variance: $\sigma_i^2 \ge 0$ on hidden neurons; one number, or one per hidden layer.

    Returns:
        The solution; the zero network where nothing is better.

    Raises:
        InputError: shapes that do not fit, moments that no data have, weight decays that are not positive.

    Source: arXiv 2202.04777, form of the global minimum; re-derived.

    Example:
        With $A=m=1$, $\gamma=1/2$ and one hidden neuron the product $q=uw$ minimises $1-2q+q^2+q$.

        >>> solution = deep_linear_minimum(1.0, 1.0, widths=[1], weight_decays=[0.5, 0.5])
        >>> round(solution.loss, 12), solution.coefficients.round(12).tolist()
        (0.75, [0.5])
        >>> deep_linear_minimum(1.0, 1.0, widths=[1, 1], weight_decays=[0.5, 0.5, 0.5]).trivial
        True
    """
    decays = [float(decay) for decay in weight_decays]
    _check_decays(decays, minimum_layers=1)
    if len(decays) != len(widths) + 1:
        raise InputError(
            f"weight_decays must hold one number per layer = {len(widths) + 1} (hidden layers and output), "
            f"got {len(decays)}"
        )
    signal = Signal.of(second_moment, cross_moment)
    if label_moment is None:
        label_moment = signal.explainable
    elif not (math.isfinite(label_moment) and label_moment >= signal.explainable * (1 - 1e-9)):
        raise InputError(
            f"label_moment must be at least {signal.explainable:g}, what the other moments explain of it, "
            f"got {label_moment}"
        )
    retention = signal_retention(widths, noise_variance)
    problem = EffectiveProblem(signal, len(widths), retention, math.fsum(map(math.log, decays)))
    scale, gain = problem.best()
    coefficients = retention * signal.ridge_coefficients(scale)
    if scale == 0:
        penalty = 0.0
    elif widths:
        penalty = float(problem.layer_penalty(scale))
    else:
        penalty = decays[0] * float(coefficients @ coefficients)
    return DeepLinearSolution(
        weights=_balanced_weights(coefficients, widths, decays, penalty),
        loss=label_moment + gain,
        trivial=penalty == 0,
        coefficients=coefficients,
        ridge=1 / scale if scale > 0 else math.inf,
        retention=retention,
        layer_penalty=penalty,
    )


def deep_linear_expected_loss(
    weights: Sequence[Array],
    second_moment: Array,
    cross_moment: Array,
    label_moment: float,
    *,
    weight_decays: Sequence[float],
    noise_variance: float | Sequence[float] = 0.0,
) -> Array:
    r"""Return the loss of given weights, averaged exactly over data and noise; differentiable in torch.

    With $M_1 = W_1 A W_1^T$ and $M_{i+1} = W_{i+1}(M_i+\sigma_i^2\,\mathrm{diag}M_i)W_{i+1}^T$, the loss is
    $M_{D+1} - 2\,W_{D+1}\cdots W_1 m + E[y^2] + \sum_i\gamma_i\|W_i\|^2$.

    Args:
        weights: numpy arrays or torch tensors of shape (fan_out, fan_in), from input to output; last: one
            row.
        second_moment: $E[xx^T]$, shape (n_features, n_features), array or tensor like the weights.
        cross_moment: $E[xy]$, shape (n_features,), array or tensor like the weights.
        label_moment: $E[y^2]$.
        weight_decays: one per layer.
        noise_variance: $\sigma_i^2 \ge 0$ on hidden neurons; one number, or one per hidden layer.

    Returns:
        A scalar, array or tensor like the weights.

    Raises:
        InputError: shapes that do not fit.

    Source: arXiv 2202.04777, the loss; its average over noise was re-derived.

    Example:
        $E(\epsilon-1)^2$ of a single hidden neuron is the variance of its noise.

        >>> one = np.ones((1, 1))
        >>> loss = deep_linear_expected_loss(
        ...     [one, one], one, one[0], 1.0, weight_decays=[0.0, 0.0], noise_variance=3.0
        ... )
        >>> float(loss)
        3.0
    """
    _check_chain([tuple(weight.shape) for weight in weights], second_moment.shape, cross_moment.shape)
    if len(weight_decays) != len(weights):
        raise InputError(
            f"weight_decays must hold one number per layer = {len(weights)}, got {len(weight_decays)}"
        )
    noise = noise_per_layer(noise_variance, len(weights) - 1)
    moment = weights[0] @ second_moment @ weights[0].T
    signal = weights[0] @ cross_moment
    for weight, variance in zip(weights[1:], noise, strict=True):
        moment = weight @ moment @ weight.T + variance * (weight * moment.diagonal()) @ weight.T
        signal = weight @ signal
    loss: Array = moment.sum() - 2 * signal.sum() + label_moment
    for decay, weight in zip(weight_decays, weights, strict=True):
        loss = loss + decay * (weight * weight).sum()
    return loss


class Origin(NamedTuple):
    """The zero network: whether it is a local minimum, and the smallest eigenvalue of the Hessian there."""

    is_local_min: bool
    smallest_curvature: float


def origin_is_local_min(cross_moment: ArrayLike, weight_decays: Sequence[float]) -> Origin:
    r"""Return whether the zero network is a local minimum, with the smallest Hessian eigenvalue there.

    One hidden layer: $(\gamma_1+\gamma_2)-\sqrt{(\gamma_1-\gamma_2)^2+4\|m\|^2}$, a saddle exactly when
    $\|m\|^2 > \gamma_1\gamma_2$. Two or more: $2\min_i\gamma_i>0$, a strict local minimum for any data.

    Args:
        cross_moment: $E[xy]$, shape (n_features,), or a number for one feature.
        weight_decays: > 0, one per layer; two of them mean one hidden layer.

    Raises:
        InputError: fewer than two layers (zero is then not even stationary), weight decays not positive.

    Source: arXiv 2202.04777, zero as a saddle or a local minimum; the eigenvalues were re-derived.

    Example:
        >>> origin_is_local_min(2.0, [1.0, 1.0])
        Origin(is_local_min=False, smallest_curvature=-2.0)
        >>> origin_is_local_min(2.0, [1.0, 1.0, 1.0])
        Origin(is_local_min=True, smallest_curvature=2.0)
    """
    decays = [float(decay) for decay in weight_decays]
    _check_decays(decays, minimum_layers=2)
    strength = math.hypot(*cross_moment_vector(cross_moment))
    if len(decays) > 2:
        return Origin(True, 2 * min(decays))
    first, last = decays
    # The eigenvalue as product over conjugate sum, which does not cancel near the threshold.
    threshold = math.sqrt(first * last)
    conjugate = first + last + math.hypot(first - last, 2 * strength)
    curvature = 4 * (threshold - strength) * (threshold + strength) / conjugate
    return Origin(curvature >= 0, curvature)


def _balanced_weights(
    coefficients: FloatArray, widths: Sequence[int], decays: Sequence[float], penalty: float
) -> tuple[FloatArray, ...]:
    """Spread the penalty evenly over rank-one layers whose product is along `coefficients`."""
    length = float(np.linalg.norm(coefficients))
    reads = coefficients / length if length > 0 else coefficients
    rows = [*widths, 1]
    first = np.tile(reads * math.sqrt(penalty / (decays[0] * rows[0])), (rows[0], 1))
    later = [
        np.full((fan_out, fan_in), math.sqrt(penalty / (decay * fan_out * fan_in)))
        for (fan_in, fan_out), decay in zip(itertools.pairwise(rows), decays[1:], strict=True)
    ]
    return (first, *later)


def _check_decays(decays: Sequence[float], *, minimum_layers: int) -> None:
    if len(decays) < minimum_layers:
        raise InputError(f"weight_decays must hold at least {minimum_layers} layers, got {len(decays)}")
    if not all(math.isfinite(decay) and decay > 0 for decay in decays):
        raise InputError(f"weight_decays must be finite and > 0, got {list(decays)}")


def _check_chain(shapes: list[tuple[int, ...]], second: tuple[int, ...], cross: tuple[int, ...]) -> None:
    fits = (
        bool(shapes)
        and all(len(shape) == 2 for shape in shapes)
        and all(before[0] == after[1] for before, after in itertools.pairwise(shapes))
        and shapes[-1][0] == 1
        and tuple(second) == (shapes[0][1], shapes[0][1])
        and tuple(cross) == (shapes[0][1],)
    )
    if not fits:
        raise InputError(
            "weights must chain as (d_1, n_features), (d_2, d_1), ..., (1, d_D) and the moments be of shapes "
            f"(n_features, n_features), (n_features,); got {shapes} and {tuple(second)}, {tuple(cross)}"
        )
