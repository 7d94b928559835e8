r"""The optimizers of ``torch.optim`` on stacked replicas: the same arithmetic, one operation for all of them.

A replica's step costs a few operations on small tensors, each of which takes longer to dispatch than to do.
Here one operation serves all replicas; the learning rate may differ between them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from symdyn_core.errors import InputError

Rate = float | Tensor
"""One learning rate, or one per replica, shape (replicas,)."""

Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class SGD:
    r"""``torch.optim.SGD``.

    .. math:: b\leftarrow\mu b+(1-\tau)(g+\lambda\theta),\qquad \theta\leftarrow\theta-\eta b

    Args:
        momentum: :math:`\mu` in [0, 1).
        dampening: :math:`\tau` in [0, 1], not applied in the first step.
        nesterov: whether the step looks ahead; needs momentum and no dampening.
        weight_decay: :math:`\lambda\ge0`, part of the gradient.

    >>> parameter, gradient = torch.ones(1, 1), torch.ones(1, 1)
    >>> SGD(weight_decay=1.0).update(parameter, gradient, {}, 0.25, 0)
    >>> parameter.item()
    0.5
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _within("momentum", self.momentum, 0, 1)
        _at_least_zero("weight_decay", self.weight_decay)
        if not 0 <= self.dampening <= 1:
            raise InputError(f"dampening must be in [0, 1], got {self.dampening}")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise InputError("nesterov must come with momentum > 0 and dampening = 0")

    @property
    def buffers(self) -> tuple[str, ...]:
        """What is remembered of each parameter."""
        return ("momentum",) if self.momentum else ()

    def update(self, parameter: Tensor, gradient: Tensor, buffers: Buffers, rate: Rate, step: int) -> None:
        """Move one stacked parameter, in place; see :class:`ReplicaOptimizer`."""
        if self.weight_decay:
            gradient = gradient.add(parameter, alpha=self.weight_decay)
        if self.momentum:
            buffer = buffers["momentum"]
            if step == 0:
                buffer.copy_(gradient)
            else:
                buffer.mul_(self.momentum).add_(gradient, alpha=1 - self.dampening)
            gradient = gradient.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        _descend(parameter, gradient, rate)


@dataclass(frozen=True)
class Adam:
    r"""``torch.optim.Adam`` and, with ``amsgrad``, AMSGrad; weight decay is part of the gradient.

    Args:
        betas: decay of the averages of gradient and squared gradient, each in [0, 1).
        eps: added to the root of the second average, >= 0.
        weight_decay: >= 0.
        amsgrad: divide by the largest second average so far.

    The first step is the learning rate long, whatever the gradient:

    >>> parameter = torch.zeros(1, 1)
    >>> buffers = {name: torch.zeros(1, 1) for name in Adam().buffers}
    >>> Adam().update(parameter, torch.full((1, 1), 30.0), buffers, 0.5, 0)
    >>> round(parameter.item(), 6)
    -0.5
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    def __post_init__(self) -> None:
        for beta in self.betas:
            _within("betas", beta, 0, 1)
        _at_least_zero("eps", self.eps)
        _at_least_zero("weight_decay", self.weight_decay)

    @property
    def buffers(self) -> tuple[str, ...]:
        """What is remembered of each parameter."""
        return ("average", "square", "largest_square") if self.amsgrad else ("average", "square")

    def update(self, parameter: Tensor, gradient: Tensor, buffers: Buffers, rate: Rate, step: int) -> None:
        """Move one stacked parameter, in place; see :class:`ReplicaOptimizer`."""
        if self.weight_decay:
            gradient = gradient.add(parameter, alpha=self.weight_decay)
        first, second = self.betas
        average, square = buffers["average"], buffers["square"]
        average.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        if self.amsgrad:
            square = torch.maximum(buffers["largest_square"], square, out=buffers["largest_square"])
        scale = square.sqrt().div_(math.sqrt(1 - second ** (step + 1))).add_(self.eps)
        _descend_by_ratio(parameter, average, scale, rate / (1 - first ** (step + 1)))


@dataclass(frozen=True)
class AdamW(Adam):
    r"""``torch.optim.AdamW``: weight decay shrinks the parameter by :math:`1-\eta\lambda` before the step.

    >>> parameter = torch.ones(1, 1)
    >>> buffers = {name: torch.zeros(1, 1) for name in AdamW().buffers}
    >>> AdamW(weight_decay=1.0).update(parameter, torch.zeros(1, 1), buffers, 0.25, 0)
    >>> parameter.item()
    0.75
    """

    weight_decay: float = 0.01

    def update(self, parameter: Tensor, gradient: Tensor, buffers: Buffers, rate: Rate, step: int) -> None:
        """Move one stacked parameter, in place; see :class:`ReplicaOptimizer`."""
        parameter.mul_(1 - _aligned(rate, parameter) * self.weight_decay)
        Adam(self.betas, self.eps, 0.0, self.amsgrad).update(parameter, gradient, buffers, rate, step)


@dataclass(frozen=True)
class RMSprop:
    r"""``torch.optim.RMSprop``; weight decay is part of the gradient.

    Args:
        alpha: decay of the average of the squared gradient, in [0, 1).
        eps: added to its root, >= 0.
        weight_decay: >= 0.
        momentum: in [0, 1).
        centered: divide by the standard deviation of the gradient in place of its root mean square.

    >>> parameter = torch.zeros(1, 1)
    >>> RMSprop(alpha=0.75).update(parameter, torch.full((1, 1), 8.0), {"square": torch.zeros(1, 1)}, 0.5, 0)
    >>> round(parameter.item(), 6)
    -1.0
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        _within("alpha", self.alpha, 0, 1)
        _within("momentum", self.momentum, 0, 1)
        _at_least_zero("eps", self.eps)
        _at_least_zero("weight_decay", self.weight_decay)

    @property
    def buffers(self) -> tuple[str, ...]:
        """What is remembered of each parameter."""
        momentum = ("momentum",) if self.momentum else ()
        return ("square", *(("average",) if self.centered else ()), *momentum)

    def update(self, parameter: Tensor, gradient: Tensor, buffers: Buffers, rate: Rate, step: int) -> None:
        """Move one stacked parameter, in place; see :class:`ReplicaOptimizer`."""
        if self.weight_decay:
            gradient = gradient.add(parameter, alpha=self.weight_decay)
        square = buffers["square"]
        square.mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        if self.centered:
            average = buffers["average"]
            average.lerp_(gradient, 1 - self.alpha)
            scale = square.addcmul(average, average, value=-1).sqrt_().add_(self.eps)
        else:
            scale = square.sqrt().add_(self.eps)
        if self.momentum:
            buffer = buffers["momentum"]
            buffer.mul_(self.momentum).addcdiv_(gradient, scale)
            _descend(parameter, buffer, rate)
        else:
            _descend_by_ratio(parameter, gradient, scale, rate)


ReplicaOptimizer = SGD | Adam | AdamW | RMSprop
"""Has ``buffers``, names of what is remembered of each parameter, zero at the start; and
``update(parameter, gradient, buffers, rate, step)``, which moves one stacked parameter in place: parameter,
gradient and buffers have shape (replicas, ...), ``step`` counts from 0."""


def _aligned(rate: Rate, parameter: Tensor) -> Rate:
    if isinstance(rate, Tensor):
        return rate.to(parameter.dtype).reshape(-1, *[1] * (parameter.ndim - 1))
    return rate


def _descend(parameter: Tensor, gradient: Tensor, rate: Rate) -> None:
    rate = _aligned(rate, parameter)
    if isinstance(rate, Tensor):
        parameter.addcmul_(gradient, rate, value=-1)
    else:
        parameter.add_(gradient, alpha=-rate)


def _descend_by_ratio(parameter: Tensor, gradient: Tensor, scale: Tensor, rate: Rate) -> None:
    rate = _aligned(rate, parameter)
    if isinstance(rate, Tensor):
        parameter.addcdiv_(gradient * rate, scale, value=-1)
    else:
        parameter.addcdiv_(gradient, scale, value=-rate)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise InputError(f"{name} must be in [{low}, {high}), got {value}")


def _at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InputError(f"{name} must be finite and at least 0, got {value}")
