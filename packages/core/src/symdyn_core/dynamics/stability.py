r"""Whether SGD stays at a stationary point: in probability, and in the moments that mislead.

At a point where the gradient of every sample vanishes (a type-II saddle, an interpolating minimum), SGD
multiplies a small deviation along one direction by :math:`1-\eta h`, h the curvature of the minibatch. By
the law of large numbers :math:`\log|\theta_t|\approx t\Lambda+\sqrt t\,\mathrm{std}(\log|1-\eta h|)\,\xi`,
with

.. math:: \Lambda=\mathbb E\log|1-\eta h|\simeq-\eta\,\mathbb E h-\tfrac{\eta^2}2\mathbb E h^2 ,

and the deviation vanishes in probability exactly if :math:`\Lambda<0`. Moments say something else: by Jensen
:math:`\mathbb E|1-\eta h|>1` wherever :math:`\mathbb E h<0`, so that no saddle is ever stable in them, and
yet SGD falls into saddles and maxima.

Attractive does not mean selected: several points may attract at once.

Source: arXiv 2303.13093, probabilistic stability and its phases; arXiv 2107.11774, local maxima and escape
    times.
The formulas are derived here.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from symdyn_core.dynamics.curvature import orthonormal_directions
from symdyn_core.dynamics.random_products import (
    STEPS,
    as_samples,
    check_step,
    resampled_exponents,
    sampled_exponents,
)
from symdyn_core.dynamics.windows import check_curvatures, first_attracting_learning_rate
from symdyn_core.errors import InputError
from symdyn_core.estimate import Estimate, mean
from symdyn_core.params import FrozenModel, LossFunction
from symdyn_core.random import numpy_generator
from symdyn_core.symmetry.gradients import per_sample_gradients

Array = NDArray[np.float64]
Phase = Literal["correct", "incorrect", "collapse", "unstable"]

RESAMPLES = 200  # of the bootstrap of one direction
DRAWN_BATCHES = 20_000  # whose means stand for the law of a minibatch


def lyapunov_exponent(
    curvatures: ArrayLike | Tensor,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    r"""Return the mean growth per step of the logarithm of a small deviation under SGD.

    One direction: :math:`\Lambda=\mathbb E\log|1-\eta(h+2\gamma)|`, with the Student interval of a mean.
    Several: the top Lyapunov exponent of the product of :math:`I-\eta(H_t+2\gamma)`, with a bootstrap
        interval
    over the samples. Negative: the point attracts.

    Args:
        curvatures: Hessians of minibatches along the directions in question, shape (n,), or (n, k, k) and
            symmetric; independent samples.
        learning_rate: :math:`\eta>0` of plain SGD.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        confidence: of the interval.
        seed: of the order of the matrices, and of the bootstrap.

    Returns:
        The exponent per step; minus infinity if one step can land on the point.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    Curvatures of 1 and -2 average to a maximum, and yet it attracts: :math:`\log0.1+\log2.8<0`.

    >>> round(lyapunov_exponent([1.0, -2.0], 0.9).value, 4), round(math.log(0.1 * 2.8) / 2, 4)
    (-0.6365, -0.6365)
    >>> lyapunov_exponent([1.0, -2.0], 1.0).value
    -inf
    """
    samples = as_samples(curvatures)
    check_step(learning_rate, weight_decay)
    decayed = samples + 2 * weight_decay * np.eye(samples.shape[1])
    if samples.shape[1] == 1:
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(1 - learning_rate * decayed[:, 0, 0]))
        if np.isneginf(logs).any():
            return Estimate(-math.inf, -math.inf, -math.inf, len(logs))
        return mean(logs.tolist(), confidence)
    generator = numpy_generator(seed, "collapse", "order")
    value = float(sampled_exponents(decayed, np.array([learning_rate]), generator, STEPS)[0])
    if math.isinf(value):
        return Estimate(value, value, value, len(samples))
    resampled = resampled_exponents(decayed, learning_rate, numpy_generator(seed, "collapse", "bootstrap"))
    # The fastest of several directions is faster still in a resampled set: only the spread is taken from it.
    low, middle, high = np.quantile(resampled, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
    return Estimate(value, value - float(middle - low), value + float(high - middle), len(samples))


def log_drift(h_values: ArrayLike, learning_rate: float, probabilities: ArrayLike | None = None) -> float:
    r"""Return :math:`\sum_ip_i\log|1-\eta h_i|` where the law of the curvature is known, not sampled.

    Args:
        h_values: curvatures of minibatches along one direction, shape (n,).
        learning_rate: :math:`\eta>0` of plain SGD.
        probabilities: shape (n,), > 0 up to a factor; equal if left out.

    Returns:
        The exponent per step, exactly; minus infinity if one step can land on the point.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    >>> round(log_drift([1.0, -2.0], 0.9), 4)
    -0.6365
    """
    values, chances = check_curvatures(h_values, probabilities)
    check_step(learning_rate)
    with np.errstate(divide="ignore"):
        return float(chances @ np.log(np.abs(1 - learning_rate * values)))


@dataclass(frozen=True)
class Stability:
    r"""Whether SGD stays at a point along one direction, by three notions of staying.

    Attributes:
        probability: whether the deviation vanishes in probability; exact.
        l1: whether its mean size does.
        l2: whether its mean square does: the usual, too strict, criterion.
        exponent: :math:`\mathbb E\log|1-\eta h|`, with its interval.
        standard_error: of the exponent, by bootstrap; 0 where it is minus infinity.
        first_moment: :math:`\mathbb E|1-\eta h|`, the growth of the mean size per step.
        second_moment: :math:`\mathbb E(1-\eta h)^2`.
    """

    probability: bool
    l1: bool
    l2: bool
    exponent: Estimate
    standard_error: float
    first_moment: float
    second_moment: float

    def __str__(self) -> str:
        """Return the verdict in one sentence.

        >>> print(stability([1.0, -2.0], 0.9))
        stable in probability (exponent -0.636 per step), not in mean square, which grows by 3.92 per step
        """
        sign = "" if self.probability else "not "
        text = f"{sign}stable in probability (exponent {self.exponent.value:.3g} per step), "
        if self.l2:
            return text + f"and in mean square, which shrinks by {self.second_moment:.3g} per step"
        return text + f"not in mean square, which grows by {self.second_moment:.3g} per step"


def stability(
    h_samples: ArrayLike, learning_rate: float, weight_decay: float = 0.0, *, seed: int = 0
) -> Stability:
    r"""Judge the stability of SGD along one direction from curvatures of minibatches.

    Args:
        h_samples: shape (n,), independent.
        learning_rate: :math:`\eta>0` of plain SGD.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        seed: of the bootstrap.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    >>> verdict = stability([1.0, -2.0], 0.9)
    >>> verdict.probability, verdict.l1, verdict.l2, round(verdict.second_moment, 3)
    (True, False, False, 3.925)
    """
    values, _ = check_curvatures(h_samples)
    check_step(learning_rate, weight_decay)
    factors = np.abs(1 - learning_rate * (values + 2 * weight_decay))
    exponent = lyapunov_exponent(values, learning_rate, weight_decay)
    error = 0.0
    if math.isfinite(exponent.value):
        logs, generator = np.log(factors), numpy_generator(seed, "stability", "bootstrap")
        error = float(np.std([generator.choice(logs, len(logs)).mean() for _ in range(RESAMPLES)]))
    first, second = float(factors.mean()), float(np.square(factors).mean())
    return Stability(exponent.value < 0, first < 1, second < 1, exponent, error, first, second)


@dataclass(frozen=True)
class SaddlePhase:
    r"""What SGD does near the saddle at the origin of a product of two weights.

    Attributes:
        phase: ``correct`` (I), ``incorrect`` (II), ``collapse`` (III) or ``unstable`` (IV).
        numeral: the roman numeral of the phase; Ia and Ib tell whether phase I is correct in probability only
            or in mean square too.
        right: exponent of the mode that the mean signal favours.
        wrong: exponent of the other one.
    """

    phase: Phase
    numeral: str
    right: Estimate
    wrong: Estimate


def saddle_phase(z_samples: ArrayLike, learning_rate: float, weight_decay: float = 0.0) -> SaddlePhase:
    r"""Say which modes grow at the origin of :math:`\ell=\tfrac12(uwx-y)^2`.

    A step multiplies :math:`u\pm w` by :math:`1\pm\eta z`, with z the mean of xy over the minibatch. With
    :math:`\mathbb Ez>0` the first is the right mode:

    ========== ============== ============== ===========================================
    phase      right exponent wrong exponent
    ========== ============== ============== ===========================================
    I          > 0            < 0            learns
    II         < 0            > 0            learns the wrong sign
    III        < 0            < 0            collapses to zero, however long one trains
    IV         > 0            > 0            nothing near the origin is stable
    ========== ============== ============== ===========================================

    Args:
        z_samples: means of xy over minibatches, shape (n,). For a loss without the factor 1/2, twice that.
        learning_rate: :math:`\eta>0` of plain SGD.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma(u^2+w^2)`, half of torch's.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    A signal of 0.05 under noise of 1 collapses at learning rate 0.8, where a test of mean squares sees
    growth:

    >>> found = saddle_phase([1.05, -0.95], 0.8)
    >>> found.phase, round(found.right.value, 2), round(found.wrong.value, 2)
    ('collapse', -0.41, -0.63)
    """
    values, _ = check_curvatures(z_samples)
    sign = 1.0 if float(values.mean()) >= 0 else -1.0
    right = lyapunov_exponent(-sign * values, learning_rate, weight_decay)
    wrong = lyapunov_exponent(sign * values, learning_rate, weight_decay)
    phases: dict[tuple[bool, bool], tuple[Phase, str]] = {
        (True, False): ("correct", "I"),
        (False, True): ("incorrect", "II"),
        (False, False): ("collapse", "III"),
        (True, True): ("unstable", "IV"),
    }
    phase, numeral = phases[right.value > 0, wrong.value > 0]
    if phase == "correct":
        shrinks = np.square(1 - learning_rate * (sign * values + 2 * weight_decay)).mean() < 1
        numeral += "b" if shrinks else "a"
    return SaddlePhase(phase, numeral, right, wrong)


def max_collapse_free_learning_rate(z_samples: ArrayLike, batch_size: int = 1, *, seed: int = 0) -> float:
    r"""Return the learning rate up to which a product of two weights keeps its signal.

    The largest one below which the right mode of :func:`saddle_phase` always grows. It rises with the batch,
    which has less noise.

    Args:
        z_samples: xy of single samples, shape (n,); batches are drawn from them with replacement.
        batch_size: in [1, n_samples] or beyond.
        seed: of the batches drawn for a batch size above 1.

    Returns:
        The learning rate; infinity if none collapses, 0 if there is no signal.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    For :math:`z=c\pm\varsigma` it is :math:`2c/(\varsigma^2-c^2)`:

    >>> round(max_collapse_free_learning_rate([1.05, -0.95]), 6), round(2 * 0.05 / (1 - 0.05**2), 6)
    (0.100251, 0.100251)
    """
    values, _ = check_curvatures(z_samples)
    if batch_size < 1 or batch_size != int(batch_size):
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size}")
    centre = float(values.mean())
    sign = 1.0 if centre >= 0 else -1.0
    if batch_size > 1:
        generator = numpy_generator(seed, "stability", "batches")
        batches = generator.choice(values, size=(DRAWN_BATCHES, int(batch_size))).mean(axis=1)
        values = batches - float(batches.mean()) + centre
    return first_attracting_learning_rate(-sign * values)


def escape_time_estimate(
    h_values: ArrayLike,
    learning_rate: float,
    delta: float,
    probabilities: ArrayLike | None = None,
    *,
    radius: float = 1.0,
) -> float:
    r"""Return the number of steps SGD needs to leave a saddle or maximum, :math:`\ln(r/\delta)/\Lambda`.

    The typical (median) time. It diverges where :math:`\Lambda` reaches zero, at a mean curvature that is as
    negative as before.

    Args:
        h_values: curvatures of minibatches along the way out, shape (n,).
        learning_rate: :math:`\eta>0` of plain SGD.
        delta: distance at the start, in (0, radius).
        probabilities: shape (n,), > 0 up to a factor; equal if left out.
        radius: distance r at which SGD counts as escaped.

    Returns:
        Steps; infinity where SGD does not escape.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    >>> round(escape_time_estimate([1.0, -2.0], learning_rate=0.3, delta=1e-6))
    244
    >>> round(2 * math.log(1e6) / math.log(0.7 * 1.6))
    244
    >>> escape_time_estimate([1.0, -2.0], learning_rate=0.6, delta=1e-6)
    inf
    """
    if not (math.isfinite(radius) and 0 < delta < radius):
        raise InputError(f"delta must be in (0, radius={radius}), got {delta}")
    drift = log_drift(h_values, learning_rate, probabilities)
    return math.log(radius / delta) / drift if drift > 0 else math.inf


def largest_sample_gradient(
    model: FrozenModel | nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    directions: Tensor | None = None,
) -> float:
    """Return the largest norm of the gradient of a single sample's loss, along some directions if given.

    Args:
        model: copied, in float64 and in evaluation mode.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        directions: shape (P, d), spanning the ways out of the point; all of parameter space if left out.

    Raises:
        InputError: data that do not fit together, a loss that is no mean, or directions of another shape.

    A product of two weights at zero; no sample pushes either of them:

    >>> net = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 1, 1, bias=False) for _ in range(2)))
    >>> for weight in net.parameters(): _ = nn.init.zeros_(weight)
    >>> largest_sample_gradient(net, nn.functional.mse_loss, torch.ones(3, 1), torch.ones(3, 1))
    0.0
    """
    frozen = model if isinstance(model, FrozenModel) else FrozenModel(model)
    basis = None if directions is None else orthonormal_directions(directions, frozen)
    largest = 0.0
    for chunk in per_sample_gradients(frozen, loss_fn, inputs, targets):
        rows = torch.cat([gradient.reshape(len(gradient), -1) for gradient in chunk.values()], dim=1)
        pushed = rows if basis is None else rows @ basis
        largest = max(largest, float(pushed.norm(dim=1).max()))
    return largest


def is_type_ii(
    model: FrozenModel | nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    directions: Tensor | None = None,
    tol: float = 1e-6,
) -> bool:
    """Say whether the gradient of every sample vanishes at the model's parameters.

    At such a point the noise of SGD vanishes as well, and only the exponent decides whether it attracts. At
    any other (type I) the noise throws SGD off, whatever the exponent. Saddles that a symmetry makes are of
    type II along the directions that break it.

    Args:
        model: copied, in float64 and in evaluation mode.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        directions: shape (P, d), spanning the ways out of the point; all of parameter space if left out.
        tol: largest norm of a sample's gradient that counts as zero.

    Raises:
        InputError: data that do not fit together, a loss that is no mean, or a tolerance that is not
            positive.
    """
    if not tol > 0:
        raise InputError(f"tol must be > 0, got {tol}")
    return largest_sample_gradient(model, loss_fn, inputs, targets, directions=directions) <= tol
