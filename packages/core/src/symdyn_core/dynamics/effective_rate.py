r"""The learning rate of every parameter under an adaptive optimiser, so that what holds of SGD can be asked.

Adam and its kin divide the learning rate by the root of a running mean of squared gradients. As long as
that mean changes slowly, and with AMSGrad near a point where gradients vanish, where it does not change at
all, the dynamics is SGD with a learning rate of its own for each parameter.

Source: arXiv 2107.11774, convergence of AMSGrad to a maximum; the rules are those of ``torch.optim``.
"""

from typing import Any

import torch
from torch import Tensor

from symdyn_core.errors import InputError


def effective_learning_rate(optimizer: torch.optim.Optimizer) -> Tensor:
    r"""Return the learning rate of every parameter at the optimiser's present state.

    ================ ==================================================================================
    optimiser        effective learning rate
    ================ ==================================================================================
    SGD              :math:`\eta`
    Adam, AdamW      :math:`\eta/(\sqrt{v/(1-\beta_2^t)}+\epsilon)`; with AMSGrad v is the largest so far
    RMSprop          :math:`\eta/(\sqrt v+\epsilon)`, v less the squared mean gradient if centred
    Adagrad          :math:`\eta_t/(\sqrt{\sum g^2}+\epsilon)`
    ================ ==================================================================================

    Momentum is not in it: pass it on where a stability is computed (Adam's :math:`\beta_1` weights the
    gradient by :math:`1-\beta_1`, ``torch.optim.SGD`` by 1).

    Args:
        optimizer: after at least one step.

    Returns:
        Shape (P,), float64, in the order in which the optimiser was given the parameters: for
        ``model.parameters()`` the order of ``params.to_vector``.

    Raises:
        InputError: another optimiser, or one that has not taken a step.

    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> adam = torch.optim.Adam([weight], lr=0.1, betas=(0.0, 0.75), eps=1e-12)
    >>> (3 * weight).sum().backward(); adam.step()
    >>> round(float(effective_learning_rate(adam)), 9), round(0.1 / 3, 9)
    (0.033333333, 0.033333333)
    """
    rates = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            learning_rate = float(group["lr"])
            if isinstance(optimizer, torch.optim.SGD):
                rates.append(torch.full((parameter.numel(),), learning_rate, dtype=torch.float64))
                continue
            state = optimizer.state.get(parameter) or {}
            if "step" not in state:
                raise InputError("optimizer must have taken at least one step with every parameter, got none")
            rates.append(_of(optimizer, group, state, learning_rate).reshape(-1))
    return torch.cat(rates)


def _of(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], state: dict[str, Any], learning_rate: float
) -> Tensor:
    """Return the effective learning rate of one parameter from its group's settings and its state."""
    step, square = float(state["step"]), torch.zeros(0)
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
        square = square / (1 - group["betas"][1] ** step)
    elif isinstance(optimizer, torch.optim.RMSprop):
        square = state["square_avg"].double()
        if group["centered"]:
            square = (square - state["grad_avg"].double().square()).clamp(min=0)
    elif isinstance(optimizer, torch.optim.Adagrad):
        square = state["sum"].double()
        learning_rate /= 1 + (step - 1) * group["lr_decay"]
    else:
        known = "SGD, Adam, AdamW, RMSprop or Adagrad"
        raise InputError(f"optimizer must be {known} of torch.optim, got {type(optimizer).__name__}")
    rate: Tensor = learning_rate / (square.sqrt() + float(group["eps"]))
    return rate
