"""Gradient descent of a linear encoder on the self-supervised loss itself: the reference for the theory."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_ssl.pairs import as_pairs, as_samples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearRun:
    """One training, recorded every few steps.

    Attributes:
        steps: optimiser steps done at each record, shape ``(n_records,)``, first 0, last the end of the run.
        eigenvalues: of the embeddings' cross-view covariance, descending, shape ``(n_records, dim)``.
        loss: shape ``(n_records,)``.
        weights: at the end, shape ``(dim, n_features)``.
        converged: whether the loss fell below the tolerance.
    """

    steps: NDArray[np.int64]
    eigenvalues: Array
    loss: Array
    weights: Array
    converged: bool


def simulate_linear_ssl(
    x: ArrayLike,
    x_prime: ArrayLike,
    dim: int,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weights0: ArrayLike | None = None,
    init_std: float = 1e-4,
    seed: int = 0,
    max_steps: int = 20_000,
    tolerance: float = 1e-3,
    record_every: int = 10,
    center: bool = True,
) -> LinearRun:
    r"""Minimise $\|C - I\|_F^2$ over the weights of a linear encoder by full-batch gradient descent.

    $C = \frac{1}{2n} \sum_i (z_i z_i'^\top + z_i' z_i^\top)$ is computed from the embeddings $z = Wx$ and
    differentiated automatically in double precision, by ``torch.optim.SGD``: nothing of the theory enters.

    Args:
        x: one view, shape ``(n_pairs, n_features)``.
        x_prime: the other view of the same samples, same shape.
        dim: width of the embedding, at least 1.
        learning_rate: positive.
        momentum: in [0, 1), heavy ball.
        weights0: initial weights, shape ``(dim, n_features)``; by default Gaussian with standard deviation
            ``init_std`` from ``seed``.
        init_std: positive; ignored where ``weights0`` is given.
        seed: of the initial weights.
        max_steps: at most this many steps, at least 1.
        tolerance: stop at the first record whose loss is below this; 0 never stops early.
        record_every: steps between records, at least 1.
        center: subtract the mean over both views first.

    Returns:
        The record.

    Raises:
        InputError: arrays that are no pairs, a setting out of range, or a loss that is no longer finite.

    >>> pairs = [[2.0], [-2.0]]
    >>> run = simulate_linear_ssl(pairs, pairs, 1, learning_rate=0.01, weights0=[[0.01]])
    >>> run.converged, run.weights.round(2)       # gamma = 4, so w -> 1 / sqrt(4)
    (True, array([[0.5]]))
    """
    first, second = as_pairs(x, x_prime)
    if dim < 1 or max_steps < 1 or record_every < 1:
        raise InputError(
            f"dim, max_steps and record_every must be at least 1, got {dim}, {max_steps}, {record_every}"
        )
    if not (0 < learning_rate < np.inf and 0 <= momentum < 1 and tolerance >= 0 and init_std > 0):
        raise InputError(
            "expected learning_rate > 0, momentum in [0, 1), tolerance >= 0, init_std > 0, got "
            f"{learning_rate}, {momentum}, {tolerance}, {init_std}"
        )
    if weights0 is None:
        initial = numpy_generator(seed, "weights").normal(0.0, init_std, (dim, first.shape[1]))
    else:
        initial = as_samples("weights0", weights0)
    if initial.shape != (dim, first.shape[1]):
        raise InputError(f"weights0 must have shape {(dim, first.shape[1])}, got {initial.shape}")
    mean = (first.mean(axis=0) + second.mean(axis=0)) / 2 if center else 0.0
    views = torch.from_numpy(first - mean), torch.from_numpy(second - mean)
    return _descend(views, torch.tensor(initial), learning_rate, momentum, max_steps, tolerance, record_every)


def _descend(
    views: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    learning_rate: float,
    momentum: float,
    max_steps: int,
    tolerance: float,
    record_every: int,
) -> LinearRun:
    weights.requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=learning_rate, momentum=momentum)
    identity = torch.eye(len(weights), dtype=torch.float64)
    steps: list[int] = []
    losses: list[float] = []
    spectra: list[Array] = []
    for step in range(max_steps + 1):
        z, z_prime = (view @ weights.T for view in views)
        product = z.T @ z_prime / len(z)
        covariance = (product + product.T) / 2
        loss = (covariance - identity).square().sum()
        if step % record_every == 0 or step == max_steps:
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is not finite after {step} steps: learning_rate={learning_rate} is too large"
                )
            steps.append(step)
            losses.append(loss.item())
            spectra.append(torch.linalg.eigvalsh(covariance.detach()).flip(0).numpy())
            if loss.item() < tolerance:
                break
        if step < max_steps:
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return LinearRun(
        steps=np.array(steps),
        eigenvalues=np.array(spectra),
        loss=np.array(losses),
        weights=weights.detach().numpy().copy(),
        converged=losses[-1] < tolerance,
    )
