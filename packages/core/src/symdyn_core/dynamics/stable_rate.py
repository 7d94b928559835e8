r"""Up to which learning rate SGD stays at a model's parameters, by three notions of staying.

*In probability* means a negative top Lyapunov exponent of the products of :math:`I-\eta(\hat H_t+2\gamma)`.
*In mean square* means that the covariance of a deviation shrinks under

.. math:: S\mapsto\mathbb E\,[(I-\eta\hat H)S(I-\eta\hat H)]
   =(I-\eta H)S(I-\eta H)+\eta^2c\Big(\frac1N\sum_iH_iSH_i-HSH\Big),\qquad c=\frac{N-S_b}{S_b(N-1)} ,

for batches of :math:`S_b` of N samples without replacement (:math:`c=1/S_b` with). It shrinks for
:math:`\eta<\eta_2`, where :math:`2/\eta_2` is the largest Rayleigh quotient :math:`\langle
Z,DZ\rangle/\langle Z,CZ\rangle` over symmetric Z, with :math:`CZ=\tfrac12(HZ+ZH)` and
:math:`DZ=(1-c)HZH+\tfrac cN\sum_iH_iZH_i`. Any subspace of Z gives a bound from above; the symmetric
matrices on the d directions looked at are the one taken here, so that the value is exact where minibatches
do not lead out of these directions, and an upper bound otherwise. *Without noise* gradient descent stays up
to :math:`2/\lambda_{\max}`. At a saddle the last two are zero, and the first need not be.

Source: arXiv 2303.13093; the quotient for mean squares is that of Mulayoff and Michaeli, arXiv 2306.07850,
derived again here.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_core.dynamics.lyapunov import BURN_IN, Walk, check_walk, counted
from symdyn_core.dynamics.random_products import block_standard_error
from symdyn_core.dynamics.windows import scan
from symdyn_core.params import FrozenModel, LossFunction

Array = NDArray[np.float64]

LEADING = 8  # directions of largest curvature, if none are given
_DENSITY, _PASSES = 4, 2  # of the scan: the ends are found to 1/4 / 32^2, far below their standard error
_STEP_OFF = 0.03  # relative, to both sides, for the slope of the exponent at the end of the window
_BATCHES_FOR_SIZE = 64
_BATCHES_FOR_LEAK = 8
_FLAT = 1e-9  # curvature of a direction, relative to the largest, that counts as none at all


@dataclass(frozen=True)
class StableLearningRate:
    """Up to which learning rate SGD stays at a point, by three notions of staying.

    Attributes:
        low: from here on SGD stays in probability; 0 at a minimum, positive at a saddle that can attract.
        high: up to here it does; both are NaN if no learning rate makes it stay.
        standard_error: of ``high``, from the finite number of steps.
        mean_square: up to here the mean square of a deviation shrinks; 0 at a saddle.
        mean_square_exact: whether minibatches do not lead out of the directions; otherwise an upper bound.
        full_batch: up to here gradient descent stays, 2 / largest curvature; 0 at a saddle.
        lowest_curvature: of the mean loss with its decay along the directions.
        highest_curvature: the same, largest.
        leak: mean fraction of a minibatch Hessian's action on the directions that leads out of them.
    """

    low: float
    high: float
    standard_error: float
    mean_square: float
    mean_square_exact: bool
    full_batch: float
    lowest_curvature: float
    highest_curvature: float
    leak: float

    def stays(self, learning_rate: float) -> bool:
        """Say whether SGD stays in probability at this learning rate."""
        return self.low < learning_rate < self.high

    def __str__(self) -> str:
        """Return the three limits in one line."""
        if math.isnan(self.high):
            first = "repels at every learning rate"
        elif self.low:
            first = f"attracts from {self.low:.3g} to {self.high:.3g} ± {self.standard_error:.1g}"
        else:
            first = f"attracts up to {self.high:.3g} ± {self.standard_error:.1g}"
        bound = "" if self.mean_square_exact else "at most "
        return (
            f"{first}; in mean square up to {bound}{self.mean_square:.3g}; "
            f"gradient descent up to {self.full_batch:.3g}"
        )


def stable_learning_rate(
    model: FrozenModel | nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    directions: Tensor | int | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    steps: int = 1000,
    replacement: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> StableLearningRate:
    r"""Return the learning rates at which SGD stays at a model's parameters, along some directions.

    The exponents at all learning rates come from the same random batches, so that its sign changes where that
    of one long run does.

    Args:
        model: any module; copied, in float64 and in evaluation mode.
        loss_fn: maps (outputs, targets) of a batch to its mean loss.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        batch_size: samples a batch, in [1, n_samples].
        directions: shape (P, d), or how many directions of largest curvature are looked at; 8 if left out.
            In all of parameter space some deviation nearly always neither grows nor shrinks (along a
            symmetry, for example), so that the question has no answer.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.
        momentum: :math:`\mu` in [0, 1), as in ``torch.optim.SGD``; ``mean_square`` is NaN with momentum.
        steps: of each run, at least 50; the first tenth is not counted.
        replacement: whether a sample may come twice in a batch.
        seed: of the batches.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: values out of range, or what :class:`~symdyn_core.dynamics.curvature.Curvature` refuses.

    Without noise all three agree, at 2 over the curvature 18:

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.zeros_(line.weight)
    >>> x = torch.full((4, 1), 3.0)
    >>> found = stable_learning_rate(line, nn.functional.mse_loss, x, x, batch_size=1)
    >>> [round(value, 4) for value in (found.high, found.mean_square, found.full_batch)]
    [0.1111, 0.1111, 0.1111]
    """
    probe = Walk(model, loss_fn, inputs, targets, batch_size, replacement=replacement, seed=seed)
    if not isinstance(directions, Tensor):
        count = min(LEADING, probe.dimension) if directions is None else directions
        directions = probe.curvature.top_eigenvalues(count, seed, tolerance=1e-3)[1]
    walk = probe.along(directions)
    check_walk(1.0, steps, 1, walk.dimension, weight_decay, momentum)
    assert walk.blocks is not None
    blocks = walk.blocks + 2 * weight_decay * np.eye(walk.dimension)
    curvatures = np.linalg.eigvalsh(blocks.mean(axis=0))
    draw = walk.batches()
    batches = np.stack([blocks[draw()].mean(axis=0) for _ in range(_BATCHES_FOR_SIZE)])
    size = math.sqrt(float(np.square(np.linalg.norm(batches, ord=2, axis=(1, 2))).mean()))

    def growth(learning_rates: Array) -> Array:
        numbers = counted(steps, "learning rates", progress)
        logs = walk.growth(learning_rates, numbers, weight_decay=weight_decay, momentum=momentum)
        return logs[math.ceil(BURN_IN * steps) :, :, 0]

    def exponents(learning_rates: Array) -> Array:
        return np.asarray(growth(learning_rates).mean(axis=0))

    window = scan(exponents, -float(curvatures[0]), size, density=_DENSITY, passes=_PASSES)
    low, high = window or (math.nan, math.nan)
    error = 0.0
    if math.isfinite(high):
        around = growth(high * np.array([1 - _STEP_OFF, 1 + _STEP_OFF]))
        slope = float(np.diff(around.mean(axis=0))[0]) / (2 * _STEP_OFF * high)
        error = float(block_standard_error(around.mean(axis=1))) / slope if slope > 0 else math.inf
    leak = _leak(walk, directions)
    lowest, highest = float(curvatures[0]), float(curvatures[-1])
    saddle = lowest < -_FLAT * max(abs(highest), abs(lowest))
    count = walk.curvature.n_samples
    share = (1 if replacement else (count - batch_size) / max(count - 1, 1)) / batch_size
    return StableLearningRate(
        low=low,
        high=high,
        standard_error=error,
        mean_square=math.nan if momentum else mean_square_limit(blocks, share),
        mean_square_exact=leak < 1e-9,
        full_batch=0.0 if saddle else 2 * (1 + momentum) / highest if highest > 0 else math.inf,
        lowest_curvature=lowest,
        highest_curvature=highest,
        leak=leak,
    )


def mean_square_limit(blocks: Array, share: float) -> float:
    r"""Return the learning rate up to which the mean square of a deviation shrinks under SGD.

    Args:
        blocks: symmetric Hessians of samples, shape (n, d, d).
        share: c, the variance of a batch's mean over that of a sample: 1/batch_size with replacement.

    Returns:
        The limit :math:`\eta_2`; 0 at a saddle, infinity where there is no curvature at all.

    One direction: :math:`2\bar h/(\bar h^2+c\,\mathrm{Var}\,h)`, here 2 / (1 + 3):

    >>> mean_square_limit(np.array([[[1 + math.sqrt(3)]], [[1 - math.sqrt(3)]]]), share=1.0)
    0.5
    """
    from scipy.linalg import eigh

    scale = float(np.abs(blocks).max())
    if scale == 0:
        return math.inf
    # Directions in which no sample has any curvature keep what they have and are left out.
    values, vectors = np.linalg.eigh(np.einsum("nab,nbc->ac", blocks, blocks) / len(blocks))
    moving = vectors[:, values > _FLAT * values[-1]]
    blocks = np.einsum("ai,nab,bj->nij", moving, blocks, moving)
    mean = blocks.mean(axis=0)
    if np.linalg.eigvalsh(mean)[0] <= _FLAT * scale:
        return 0.0
    size = len(mean)
    rows = blocks.reshape(len(blocks), -1)
    pairs = (share / len(blocks)) * (rows.T @ rows)
    pairs = pairs.reshape(size, size, size, size) + (1 - share) * np.einsum("ab,cd->abcd", mean, mean)
    identity = np.eye(size)
    drift = (np.einsum("ac,bd->abcd", mean, identity) + np.einsum("ac,bd->abcd", identity, mean)) / 2
    # Symmetric matrices by their orthonormal basis E_ij = (e_i e_j + e_j e_i) / sqrt 2, E_ii.
    one, other = np.triu_indices(size)
    basis = np.einsum("pa,pb->pab", identity[one], identity[other])
    basis = (basis + basis.mT) / np.where(one == other, 2.0, math.sqrt(2.0))[:, None, None]
    noise = np.einsum("pab,acbd,qcd->pq", basis, pairs, basis, optimize=True)
    drift = np.einsum("pab,abcd,qcd->pq", basis, drift, basis, optimize=True)
    return float(2 / eigh(noise, drift, eigvals_only=True)[-1])


def _leak(walk: Walk, directions: Tensor) -> float:
    basis = torch.linalg.qr(directions.detach().double().cpu().reshape(walk.curvature.dimension, -1))[0]
    draw, lost, total = walk.batches(), 0.0, 0.0
    for _ in range(_BATCHES_FOR_LEAK):
        pushed = walk.curvature.on(torch.from_numpy(draw())).matvec(basis)
        lost += float((pushed - basis @ (basis.T @ pushed)).norm())
        total += float(pushed.norm())
    return lost / total if total > 0 else 0.0
