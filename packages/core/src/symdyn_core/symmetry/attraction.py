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

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from symdyn_core.dynamics.stability import lyapunov_exponent
from symdyn_core.dynamics.windows import attracting_learning_rates, critical_learning_rate
from symdyn_core.errors import InputError
from symdyn_core.estimate import Estimate
from symdyn_core.params import FrozenModel, LossFunction, check_data, to_float64
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.mirror import Mirror

__all__ = ["attracting_learning_rates", "collapse_exponent", "critical_learning_rate", "normal_curvature"]


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

    >>> round(collapse_exponent([-1.0, 3.0], 0.5).value, 6)  # the logarithm of 1.5 x 0.5, halved
    -0.143841
    """
    return lyapunov_exponent(curvatures, learning_rate, weight_decay, confidence=confidence, seed=seed)


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
