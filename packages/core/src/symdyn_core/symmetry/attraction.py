r"""Whether SGD falls into a mirror: the collapse exponent, and the learning rates at which it is negative.

Near a state that a mirror leaves in place, the coordinates z across the mirror follow
:math:`z_{t+1}=(I-\eta(H_t+2\gamma))z_t`, with :math:`H_t=O^T\nabla^2\ell_tO` of the minibatch and the weight
decay :math:`\gamma\|\theta\|^2`. Their size grows or shrinks by a factor whose mean logarithm is the top
Lyapunov exponent of this product of random matrices. If it is negative, training falls into the mirror and
does not come back, a saddle of the mean loss or not.

Across a single direction noise always draws the state in: the logarithm is concave. Across several it can
push it out as well, because it turns z towards whichever direction grows.

Source: arXiv 2309.16932, collapse by weight decay and by gradient noise; the formulas are derived here.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.estimate import Estimate, mean
from symdyn_core.params import FrozenModel, LossFunction, check_data, to_float64
from symdyn_core.random import numpy_generator, torch_generator
from symdyn_core.symmetry.mirror import Mirror

Array = NDArray[np.float64]

# Steps of the product of matrices, at least; each sample is used equally often.
STEPS = 4000
SPREAD_STEPS = 1000  # for the bootstrap and the scan of learning rates, which ask for less
BURN_IN = 200
RESAMPLES = 100  # of the bootstrap
# The learning rates are scanned from this fraction of the second-order estimate of the transition to where a
# step multiplies by about this number, at so many points per factor of e.
_SCAN_FROM, _SCAN_TO, _SCAN_DENSITY = 0.05, 40.0, 10


def collapse_exponent(
    curvatures: ArrayLike | Tensor,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    r"""Return the mean growth per step of the logarithm of the distance to a mirror.

    One normal direction: :math:`\Lambda=\mathbb E\log|1-\eta(h+2\gamma)|`, with the Student interval of a
    mean. Several: the top Lyapunov exponent of the product of :math:`I-\eta(H_t+2\gamma)`, with a bootstrap
    interval over the samples. Negative: the mirror attracts.

    Args:
        curvatures: minibatch Hessians across the mirror, shape (n,), or (n, k, k) and symmetric; independent
            samples, as :func:`normal_curvature` returns them.
        learning_rate: :math:`\eta>0` of plain SGD.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        confidence: of the interval.
        seed: of the order of the matrices, and of the bootstrap.

    Returns:
        The exponent per step; minus infinity if one step can land on the mirror.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    Curvatures of -1 and 3 average to a minimum, and yet :math:`\log|1+0.5|+\log|1-1.5|<0` is far from
    what the mean curvature says:

    >>> round(collapse_exponent([-1.0, 3.0], 0.5).value, 6) == round(math.log(1.5 * 0.5) / 2, 6)
    True
    """
    samples = _samples(curvatures)
    _check_step(learning_rate, weight_decay)
    if samples.shape[1] == 1:
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(1 - learning_rate * (samples[:, 0, 0] + 2 * weight_decay)))
        if np.isneginf(logs).any():
            return Estimate(-math.inf, -math.inf, -math.inf, len(logs))
        return mean(logs.tolist(), confidence)
    decayed = samples + 2 * weight_decay * np.eye(samples.shape[1])
    generator = numpy_generator(seed, "collapse", "order")
    value = float(_lyapunov(decayed, np.array([learning_rate]), generator, STEPS)[0])
    if math.isinf(value):
        return Estimate(value, value, value, len(samples))
    resampled = _bootstrap(decayed, learning_rate, numpy_generator(seed, "collapse", "bootstrap"))
    # The fastest of several directions is faster still in a resampled set: only the spread is taken from it.
    low, middle, high = np.quantile(resampled, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
    return Estimate(value, value - float(middle - low), value + float(high - middle), len(samples))


def attracting_learning_rates(
    curvatures: ArrayLike | Tensor, weight_decay: float = 0.0, *, seed: int = 0
) -> tuple[float, float] | None:
    r"""Return the first interval of learning rates at which a mirror attracts SGD.

    Args:
        curvatures: minibatch Hessians across the mirror, shape (n,) or (n, k, k).
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        seed: of the order of the matrices.

    Returns:
        Lower and upper end of the interval in which :func:`collapse_exponent` is negative; the lower end is 0
        if every small learning rate attracts. None if no learning rate does.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    A minimum without noise attracts up to :math:`2/h`:

    >>> low, high = attracting_learning_rates([4.0, 4.0])
    >>> low, round(high, 6)
    (0.0, 0.5)
    """
    samples = _samples(curvatures)
    _check_step(1.0, weight_decay)
    decayed = samples + 2 * weight_decay * np.eye(samples.shape[1])
    slope = -float(np.linalg.eigvalsh(decayed.mean(axis=0))[0])  # of the exponent at learning rate zero
    size = math.sqrt(float(np.square(np.linalg.norm(decayed, ord=2, axis=(1, 2))).mean()))
    if size == 0:
        return None

    def exponents(learning_rates: Array) -> Array:
        return _lyapunov(decayed, learning_rates, numpy_generator(seed, "collapse", "order"), SPREAD_STEPS)

    first = _SCAN_FROM * max(abs(slope), 1e-4 * size) / size**2
    count = math.ceil(math.log(_SCAN_TO / size / first) * _SCAN_DENSITY)
    grid = np.geomspace(first, _SCAN_TO / size, count)
    attracts = exponents(grid) < 0
    if not attracts.any():
        return None
    start = int(attracts.argmax())
    low = 0.0 if start == 0 else _transition(exponents, float(grid[start - 1]), float(grid[start]))
    later = np.flatnonzero(~attracts[start:])
    if not later.size:
        return low, math.inf
    end = start + int(later[0])
    return low, _transition(exponents, float(grid[end]), float(grid[end - 1]))


def critical_learning_rate(
    curvatures: ArrayLike | Tensor, weight_decay: float = 0.0, *, seed: int = 0
) -> float | None:
    r"""Return the smallest learning rate above which a mirror attracts SGD, or None if there is none.

    The lower end of :func:`attracting_learning_rates`: 0 where the mean loss with its decay is convex across
    the mirror, the root of the exponent where the mirror is a saddle.

    Args:
        curvatures: minibatch Hessians across the mirror, shape (n,) or (n, k, k).
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        seed: of the order of the matrices.

    Raises:
        InputError: values out of range, not finite, or of another shape.

    For :math:`\ell=(uwx-y)^2` with :math:`xy=c\pm\varsigma` the curvatures along u = w are
    :math:`-2(c\pm\varsigma)` and the root is :math:`c/(\varsigma^2-c^2)`; here 0.3/0.91:

    >>> round(critical_learning_rate([-2.6, 1.4]), 5)
    0.32967
    >>> critical_learning_rate([-1.0, -1.0]) is None
    True
    """
    window = attracting_learning_rates(curvatures, weight_decay, seed=seed)
    return None if window is None else window[0]


def normal_curvature(
    model: nn.Module,
    mirror: Mirror,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    batches: int = 200,
    seed: int = 0,
) -> Tensor:
    r"""Measure the Hessians of random minibatches across a mirror, at the parameters projected onto it.

    :math:`H_t=O^T\nabla^2\ell_tO` by Hessian-vector products, one for each of the k normal directions; a swap
    of two units has as many as a unit has weights.

    Args:
        model: any module; copied, in float64 and in evaluation mode.
        mirror: touches parameters of the model by their qualified names.
        loss_fn: maps (outputs, targets) of a batch to its mean loss.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        batch_size: samples a batch, drawn without replacement, in [1, n_samples].
        batches: number of batches.
        seed: of the batches.

    Returns:
        Shape (batches, k, k), symmetric, float64; weight decay is not in it.

    Raises:
        InputError: data that do not fit together, a batch size out of range, a loss that is not one number.
    """
    check_data(inputs, targets)
    if not 1 <= batch_size <= len(inputs):
        raise InputError(f"batch_size must be in [1, n_samples={len(inputs)}], got {batch_size}")
    if batches < 1:
        raise InputError(f"batches must be at least 1, got {batches}")
    frozen = FrozenModel(model)
    fixed = mirror.project(frozen.params)
    basis = mirror.normal_basis(frozen.params)
    inputs, targets = to_float64(inputs), to_float64(targets)
    generator = torch_generator(seed, "mirror", "batches")

    def loss(coordinates: Tensor, chosen: Tensor) -> Tensor:
        offset = basis.embed(coordinates)
        moved = {**fixed, **{name: fixed[name] + step for name, step in offset.items()}}
        value = loss_fn(frozen(moved, inputs[chosen]), targets[chosen])
        if value.numel() != 1:
            raise InputError(f"the loss must be one number, got shape {tuple(value.shape)}")
        return value.reshape(())

    hessians = []
    for _ in range(batches):
        chosen = torch.randperm(len(inputs), generator=generator)[:batch_size]
        origin = torch.zeros(basis.dimension, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(origin, chosen), origin, create_graph=True)
        rows = [torch.autograd.grad(entry, origin, retain_graph=True)[0] for entry in slope]
        hessian = torch.stack(rows)
        hessians.append((hessian + hessian.T) / 2)
    return torch.stack(hessians)


def _lyapunov(samples: Array, learning_rates: Array, generator: np.random.Generator, steps: int) -> Array:
    """Return the top Lyapunov exponent at each learning rate, all with the same order of the matrices.

    Each sample comes equally often, so that the first order of the exponent is that of the samples' own mean;
    for one direction the whole exponent is. All of the run is shuffled, not each epoch by itself: within an
    epoch samples without replacement are correlated, and the exponent would be off by a fraction 1/n.
    """
    if samples.shape[1] == 1:
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(1 - learning_rates[:, None] * samples[None, :, 0, 0]))
        return np.asarray(logs.mean(axis=1))
    count = len(samples)
    counted = generator.permutation(np.tile(np.arange(count), -(-steps // count)))
    order = np.concatenate([generator.integers(count, size=BURN_IN), counted])
    return _growth(samples, learning_rates, order[:, None], generator)


def _bootstrap(samples: Array, learning_rate: float, generator: np.random.Generator) -> Array:
    """Return the exponent of resampled sets of matrices, shape (RESAMPLES,)."""
    count = len(samples)
    sets = generator.integers(count, size=(count, RESAMPLES))
    counted = generator.permuted(np.tile(sets, (-(-SPREAD_STEPS // count), 1)), axis=0)
    order = np.concatenate([counted[:BURN_IN][::-1], counted])
    return _growth(samples, np.full(RESAMPLES, learning_rate), order, generator)


def _growth(
    samples: Array,
    learning_rates: Array,
    order: NDArray[np.int64],
    generator: np.random.Generator,
) -> Array:
    """Return the mean logarithm of the growth of vectors under the matrices in order.

    Args:
        samples: shape (n, k, k).
        learning_rates: shape (r,).
        order: indices of samples, shape (steps, r) or (steps, 1); the first ``BURN_IN`` of them turn the
            vectors towards the direction that grows and are not counted.
        generator: draws one of three vectors, of which the fastest counts. The other two are the extreme
            directions of the mean, which grow fastest at small learning rates, where turning takes longest.
    """
    size = samples.shape[1]
    extremes = np.linalg.eigh(samples.mean(axis=0))[1][:, [0, -1]].T
    starts = np.concatenate([extremes, generator.standard_normal((1, size)) / math.sqrt(size)])
    vectors = np.tile(starts, (len(learning_rates), 1, 1))  # (r, 3, k)
    total = np.zeros(vectors.shape[:2])
    for step, chosen in enumerate(order):
        vectors = vectors - learning_rates[:, None, None] * (vectors @ samples[chosen])
        growth = np.linalg.norm(vectors, axis=2)
        with np.errstate(divide="ignore"):  # a step that lands on the mirror: the answer is -inf
            total += np.where((step >= BURN_IN) | (growth == 0), np.log(growth), 0.0)
        vectors = vectors / np.where(growth > 0, growth, 1.0)[:, :, None]
    return np.asarray(total.max(axis=1) / (len(order) - BURN_IN))


def _transition(exponents: Callable[[Array], Array], repels: float, attracts: float) -> float:
    """Return the learning rate at which the sign changes, from the side that attracts."""
    for _ in range(6):  # each pass narrows the bracket by a factor of 32
        points = np.geomspace(repels, attracts, 33)
        first = int((exponents(points) < 0).argmax())
        repels, attracts = float(points[max(first - 1, 0)]), float(points[first])
    return attracts


def _samples(curvatures: ArrayLike | Tensor) -> Array:
    values = np.asarray(curvatures.detach().cpu() if isinstance(curvatures, Tensor) else curvatures, float)
    if values.ndim == 1:
        values = values[:, None, None]
    if values.ndim != 3 or values.shape[1] != values.shape[2] or values.size == 0:
        raise InputError(f"curvatures must have shape (n,) or (n, k, k), got {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("curvatures must be finite, got NaN or infinite entries")
    error, scale = np.abs(values - values.swapaxes(1, 2)).max(), np.abs(values).max()
    if not error <= 1e-6 * scale:
        raise InputError(f"curvatures must be symmetric matrices, got entries that differ by {error:.3g}")
    return values


def _check_step(learning_rate: float, weight_decay: float) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
