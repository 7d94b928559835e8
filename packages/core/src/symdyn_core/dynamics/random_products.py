r"""Products of random matrices: how fast SGD near a stationary point stretches a small deviation.

Where the noise of the gradient vanishes, a step of SGD multiplies the deviation by :math:`I-\eta\hat H_t`,
with :math:`\hat H_t` the Hessian of the minibatch, and the logarithm of its size grows at the top Lyapunov
exponent of this product (Furstenberg and Kesten 1960). The engine here propagates vectors and
re-orthonormalises them after every step; the exponents are the means of the logarithms of the diagonal of
R. Many learning rates go through the same matrices at once, so that differences between them are not noise.

Source: arXiv 2303.13093, probabilistic stability; QR method of Benettin et al. (1980).
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from symdyn_core.errors import InputError

Array = NDArray[np.float64]

Product = Callable[[int, Array], Array]
"""Step number and vectors (r, P, k) to the step's random Hessian times the vectors."""

# Steps of the product of matrices, at least; each sample is used equally often.
STEPS = 4000
SPREAD_STEPS = 1000  # for the bootstrap and the scan of learning rates, which ask for less
BURN_IN = 200
RESAMPLES = 100  # of the bootstrap


def propagate(
    product: Product,
    start: Array,
    learning_rates: ArrayLike,
    steps: int | Iterable[int],
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> Array:
    r"""Send vectors through :math:`I-\eta(\hat H_t+2\gamma)` and return the logarithms of their growth.

    With momentum the state doubles: :math:`b'=\mu b+(\hat H_t+2\gamma)v`, :math:`v'=v-\eta b'`, and the
    growth is that of :math:`(v,\eta b)`.

    Args:
        product: the random Hessians; see :data:`Product`.
        start: shape (r, P, k), k vectors for each of r learning rates.
        learning_rates: shape (r,), or (r, P) for one of each parameter.
        steps: how many, or an iterable over their numbers.
        weight_decay: :math:`\gamma` of :math:`\gamma\|\theta\|^2`, half of torch's.
        momentum: :math:`\mu` as in ``torch.optim.SGD``.

    Returns:
        Shape (steps, r, k), the logarithms of the diagonal of R; minus infinity from the step on in which a
        vector lands on zero.

    Twice the identity at learning rate 0.25 halves a vector in every step:

    >>> logs = propagate(lambda step, v: 2 * v, np.ones((1, 1, 1)), [0.25], 3)
    >>> bool(np.allclose(logs, np.log(0.5)))
    True
    """
    rates = np.asarray(learning_rates, dtype=float)
    rates = rates[:, None, None] if rates.ndim == 1 else rates[:, :, None]
    size = start.shape[1]
    vectors = np.concatenate([start, np.zeros_like(start)], axis=1) if momentum else start
    found, landed = [], np.zeros((start.shape[0], start.shape[2]), dtype=bool)
    for step in range(steps) if isinstance(steps, int) else steps:
        moving = vectors[:, :size]
        push = product(step, moving)
        if weight_decay:
            push = push + 2 * weight_decay * moving
        if momentum:
            # The buffer times the learning rate: both halves are then of one size.
            buffer = momentum * vectors[:, size:] + rates * push
            vectors = np.concatenate([moving - buffer, buffer], axis=1)
        else:
            vectors = moving - rates * push
        vectors, growth = _orthonormal(vectors)
        landed |= growth == 0
        with np.errstate(divide="ignore"):  # a step that lands on zero: the answer is -inf
            found.append(np.where(landed, -math.inf, np.log(np.where(landed, 1.0, growth))))
    return np.stack(found)


def _orthonormal(vectors: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis of the vectors (r, P, k) and the diagonal of R, shape (r, k), >= 0."""
    if vectors.shape[2] == 1:  # far cheaper than the general case
        growth: Array = np.sqrt(np.einsum("rpk,rpk->rk", vectors, vectors))
        return vectors / np.where(growth > 0, growth, 1.0)[:, None, :], growth
    basis, triangle = np.linalg.qr(vectors)
    return basis, np.abs(np.diagonal(triangle, axis1=1, axis2=2))


def sampled_exponents(
    samples: Array, learning_rates: Array, generator: np.random.Generator, steps: int = STEPS
) -> Array:
    """Return the top Lyapunov exponent at each learning rate, all with the same order of the matrices.

    Each sample comes equally often, so that the first order of the exponent is that of the samples' own mean;
    for one direction the whole exponent is. All of the run is shuffled, not each epoch by itself: within an
    epoch samples without replacement are correlated, and the exponent would be off by a fraction 1/n.

    Args:
        samples: symmetric matrices, shape (n, k, k).
        learning_rates: shape (r,).
        generator: of the order.
        steps: length of the product, at least.
    """
    if samples.shape[1] == 1:
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(1 - learning_rates[:, None] * samples[None, :, 0, 0]))
        return np.asarray(logs.mean(axis=1))
    count = len(samples)
    counted = generator.permutation(np.tile(np.arange(count), -(-steps // count)))
    order = np.concatenate([generator.integers(count, size=BURN_IN), counted])
    return _growth(samples, learning_rates, order[:, None], generator)


def resampled_exponents(samples: Array, learning_rate: float, generator: np.random.Generator) -> Array:
    """Return the exponent of resampled sets of matrices (bootstrap), shape (RESAMPLES,)."""
    count = len(samples)
    sets = generator.integers(count, size=(count, RESAMPLES))
    counted = generator.permuted(np.tile(sets, (-(-SPREAD_STEPS // count), 1)), axis=0)
    order = np.concatenate([counted[:BURN_IN][::-1], counted])
    return _growth(samples, np.full(RESAMPLES, learning_rate), order, generator)


def _growth(
    samples: Array, learning_rates: Array, order: NDArray[np.int64], generator: np.random.Generator
) -> Array:
    """Return the mean logarithm of the growth of vectors under the matrices in order, shape (r,).

    Args:
        samples: shape (n, k, k).
        learning_rates: shape (r,).
        order: indices of samples, shape (steps, r) or (steps, 1); the first ``BURN_IN`` of them turn the
            vectors towards the direction that grows and are not counted.
        generator: draws one of three vectors, of which the fastest counts. The other two are the extreme
            directions of the mean, which grow fastest at small learning rates, where turning takes longest.
    """
    size, runs = samples.shape[1], len(learning_rates)
    extremes = np.linalg.eigh(samples.mean(axis=0))[1][:, [0, -1]].T
    starts = np.concatenate([extremes, generator.standard_normal((1, size)) / math.sqrt(size)])
    vectors = np.tile(starts, (runs, 1))[:, :, None]  # (3 r, k, 1)

    def product(step: int, moving: Array) -> Array:
        matrices = samples[order[step]]  # (r or 1, k, k)
        bundled = moving.reshape(runs, 3, size)
        pushed: Array = (bundled @ matrices).reshape(moving.shape)
        return pushed

    logs = propagate(product, vectors, np.repeat(learning_rates, 3), len(order))[BURN_IN:]
    return np.asarray(logs.mean(axis=0).reshape(runs, 3).max(axis=1))


def block_standard_error(logs: Array) -> Array:
    r"""Return the standard error of the mean of correlated numbers, by blocks.

    The variance that a moving-block bootstrap converges to: with blocks of b successive numbers the
    variance of their means, times b/n. The length :math:`b=n^{1/2}` outlasts the memory of a direction.

    Args:
        logs: shape (steps, ...), at least 16 steps.

    Returns:
        Shape (...).

    >>> round(float(block_standard_error(np.tile([1.0, -1.0], 50))), 12)
    0.0
    """
    steps = len(logs)
    block = math.isqrt(steps)
    total = np.concatenate([np.zeros((1, *logs.shape[1:])), np.cumsum(logs, axis=0)])
    means = (total[block:] - total[:-block]) / block
    return np.asarray(np.sqrt(means.var(axis=0) * block / steps))


def as_samples(curvatures: ArrayLike | Tensor) -> Array:
    """Return curvatures as matrices, shape (n, k, k).

    Raises:
        InputError: another shape than (n,) or (n, k, k), not finite, or not symmetric.
    """
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


def check_step(learning_rate: float, weight_decay: float = 0.0) -> None:
    """Raise InputError unless the learning rate is finite and > 0 and the decay finite and >= 0."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and > 0, got {learning_rate}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
