"""What decayed factors cost: the penalty they amount to, and what holds at its minimum.

The penalty of a factorized weight is an infimum over its factorizations: L1 for two factors, a concave power
for more, the group lasso where one factor is shared by a group. Everything here is a formula on arrays or
tensors; :mod:`symdyn_core.symmetry.sparsity` applies it to modules.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from symdyn_core.errors import InputError


def predict_penalty(weight: ArrayLike, weight_decay: float, depth: int = 2) -> NDArray[np.float64]:
    r"""Return the smallest decay cost of a weight written as a product of factors.

    $$\min_{u_1\cdots u_q=w}\ \frac{\lambda}{2}\sum_k u_k^2=\frac{q\lambda}{2}|w|^{2/q}$$

    Two factors make L1 with strength $\lambda$; more make it concave.

    Args:
        weight: any shape.
        weight_decay: $\lambda\ge 0$ in torch's convention (adds $\lambda u$ to the gradient).
        depth: number of factors $q\ge 1$.

    Returns:
        The cost, shape of ``weight``.

    Raises:
        InputError: ``weight_decay`` negative or not finite, ``depth`` below one.

    Source:
        arXiv:2210.01212 for two factors; any depth re-derived (equal magnitudes, by the inequality of means).

    >>> predict_penalty([-4.0, 0.0, 1.0], weight_decay=0.5)
    array([2. , 0. , 0.5])
    """
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if depth < 1:
        raise InputError(f"depth must be at least 1, got {depth}")
    magnitude = np.abs(np.asarray(weight, dtype=np.float64))
    return np.asarray(depth * weight_decay / 2 * magnitude ** (2 / depth))


def predict_imbalance(initial: ArrayLike, weight_decay: float, time: float) -> NDArray[np.float64]:
    r"""Return the imbalance of two factors after a time of gradient flow, whatever the loss.

    $$u^2-v^2=(u_0^2-v_0^2)\,e^{-2\lambda t}$$

    Args:
        initial: $u_0^2-v_0^2$, any shape; for a group, $s_0^2-\|W_0\|^2$.
        weight_decay: $\lambda\ge 0$, the same for both factors.
        time: $t\ge 0$, number of steps times learning rate.

    Returns:
        The imbalance, shape of ``initial``.

    Raises:
        InputError: ``weight_decay`` or ``time`` negative or not finite.

    Source:
        arXiv:2210.01212, re-derived: the loss moves $u^2$ and $v^2$ alike, decay shrinks each at rate 2λ.

    >>> predict_imbalance(8.0, weight_decay=0.5, time=math.log(2)).item()
    4.0
    """
    for what, value in (("weight_decay", weight_decay), ("time", time)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{what} must be finite and >= 0, got {value}")
    return np.asarray(np.asarray(initial, dtype=np.float64) * math.exp(-2 * weight_decay * time))


def group_norms(weight: Tensor, axis: int | None, block: int = 1) -> Tensor:
    """Return the norm of each group, reduced axes kept with length one.

    Args:
        weight: any shape.
        axis: groups share an index along it; None makes every entry its own group.
        block: number of consecutive indices along the axis that share a group; divides its length.

    >>> weight = torch.tensor([[3.0, 0.0], [4.0, 12.0]])
    >>> group_norms(weight, axis=1)
    tensor([[ 5., 12.]])
    >>> group_norms(weight, axis=1, block=2)
    tensor([[13.]])
    """
    if axis is None:
        return weight.abs()
    blocks = weight.reshape(*weight.shape[:axis], -1, block, *weight.shape[axis + 1 :])
    reduced = [k for k in range(blocks.ndim) if k != axis]
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=reduced, keepdim=True)
    return norms.squeeze(axis + 1)


def spread(groups: Tensor, axis: int | None, block: int = 1) -> Tensor:
    """Return one value per group so that it broadcasts over the weights of the group.

    >>> spread(torch.tensor([[1.0, 2.0]]), axis=1, block=2)
    tensor([[1., 1., 2., 2.]])
    """
    return groups if axis is None or block == 1 else groups.repeat_interleave(block, axis)


def kkt_violation(
    weight: Tensor,
    gradient: Tensor,
    alpha: float,
    *,
    axis: int | None = None,
    block: int = 1,
    tau: float = 1e-3,
) -> float:
    """Return :func:`kkt_residual` of one weight from its gradient; groups as in :func:`group_norms`.

    >>> kkt_violation(torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 0.2]), alpha=0.5)
    0.0
    """
    norms = group_norms(weight, axis, block)
    on_support = norms > tau * norms.max()
    unit = weight / spread(torch.where(on_support, norms, torch.ones_like(norms)), axis, block)
    on = group_norms(gradient + alpha * unit, axis, block)
    off = (group_norms(gradient, axis, block) - alpha).clamp(min=0)
    return float(torch.where(on_support, on, off).max())
