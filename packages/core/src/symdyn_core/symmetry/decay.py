r"""Is an optimizer's weight decay the gradient of an L2 penalty?

Theory that speaks of weight decay means a term $\frac\lambda2\|\theta\|^2$ in the loss: its gradient
$\lambda\theta$ enters before momentum and preconditioner ("coupled"). AdamW and its kin subtract
$\eta\lambda\theta$ after the preconditioner ("decoupled"); they do not minimise the penalised loss.

The optimizer is asked, not its name: a copy of it takes a small tensor a few steps with the decay in its own
hands, another copy with $\lambda\theta$ added to the gradient. Coupled decay is where the two agree.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

from symdyn_core.errors import InputError

_PROBE_DECAY = 0.5
_PROBE_STEPS = 3
# A schedule may start at learning rate zero and a fused or captured step may want another device; neither has
# anything to do with where the decay enters. A maximised objective has the sign of its gradient turned first.
_PROBE_OPTIONS: dict[str, Any] = {
    "lr": 0.1,
    "capturable": False,
    "differentiable": False,
    "foreach": False,
    "fused": False,
    "maximize": False,
}


def has_coupled_decay(optimizer: Optimizer, group: int = 0) -> bool:
    r"""Return whether ``weight_decay`` of a parameter group acts as the gradient of an L2 penalty.

    $$\text{step}(g;\ \text{weight\_decay}=\lambda) = \text{step}(g + \lambda\theta;\ 0)$$

    Neither the optimizer, its parameters nor any random state is touched.

    Args:
        optimizer: any torch optimizer whose constructor takes parameter groups.
        group: index into ``optimizer.param_groups``; groups may differ in their options.

    Returns:
        False for decoupled decay, for decay that enters a trust ratio, and for optimizers without decay.

    Raises:
        InputError: there is no such group, or no copy of the optimizer can be made and stepped.

    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> has_coupled_decay(torch.optim.Adam([weight]))
    True
    >>> has_coupled_decay(torch.optim.AdamW([weight]))
    False
    """
    if not 0 <= group < len(optimizer.param_groups):
        raise InputError(f"group must be in [0, {len(optimizer.param_groups) - 1}], got {group}")
    options = optimizer.param_groups[group]
    if "weight_decay" not in options:
        return False
    try:
        by_optimizer = _probe(optimizer, options, decay=_PROBE_DECAY, penalty=0.0)
        by_penalty = _probe(optimizer, options, decay=0.0, penalty=_PROBE_DECAY)
    except Exception as error:
        raise InputError(
            f"cannot tell whether {type(optimizer).__name__} couples its weight decay: "
            f"a copy of it on a small CPU tensor failed with {type(error).__name__}: {error}"
        ) from error
    return torch.allclose(by_optimizer, by_penalty, rtol=1e-6, atol=1e-9)  # rounding only: both are float64


def _probe(optimizer: Optimizer, options: dict[str, Any], *, decay: float, penalty: float) -> torch.Tensor:
    """Return where a fresh copy of the optimizer takes a small tensor under a fixed list of gradients."""
    shape = [2] * options["params"][0].ndim
    start = torch.linspace(-1.0, 2.0, 2 ** len(shape), dtype=torch.float64).reshape(shape)
    theta = torch.nn.Parameter(start)
    group = {key: _PROBE_OPTIONS.get(key, value) for key, value in options.items() if key != "param_names"}
    accepted = inspect.signature(type(optimizer)).parameters
    arguments = {
        key: _PROBE_OPTIONS.get(key, value) for key, value in optimizer.defaults.items() if key in accepted
    }
    copy = type(optimizer)([group | {"params": [theta], "weight_decay": decay}], **arguments)
    with torch.random.fork_rng(devices=[]):
        for k in range(_PROBE_STEPS):
            theta.grad = torch.cos(3.0 * start + k) + penalty * theta.detach()
            copy.step()
    return theta.detach()
