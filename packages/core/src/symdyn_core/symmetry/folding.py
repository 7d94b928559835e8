r"""Can a decay toward an offset be folded into an optimizer, and where does it go?

Training the shifted loss $\ell(\theta+\theta_0)$ with decay toward zero is training $\ell(\theta')$ with
decay toward $\theta_0$, if a step depends on the weights through gradient and decay alone. Two questions
decide what to do with an optimizer: does a shift of the weights shift the whole path when nothing decays, and
does the decay enter the gradient (coupled) or multiply the weights by $1-\eta\lambda$ (decoupled)?

The optimizer is asked, not its name: copies of it take a small tensor a few steps under fixed gradients.
Trust ratios (LARS, LAMB), steps relative to the weights (Adafactor), hidden decays (ASGD's ``lambd``) show.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from symdyn_core.errors import InputError
from symdyn_core.symmetry.decay import has_coupled_decay

_DECAY, _LEARNING_RATE, _STEPS, _SHIFT = 0.5, 0.1, 3, 2.0
# A schedule may start at rate zero, and a fused or captured step may want another device than the copy's.
_OPTIONS = {"lr": _LEARNING_RATE} | dict.fromkeys(("capturable", "differentiable", "foreach", "fused"), False)
_TOLERANCE = 1e-9  # rounding only: everything is float64


def bypasses_gradient(optimizer: Optimizer, group: int = 0) -> bool:
    r"""Return whether the weight decay of a parameter group is decoupled; refuse what cannot be folded.

    $$\text{decoupled:}\quad \text{step}(\theta;\ \lambda)=\text{step}((1-\eta\lambda)\theta;\ 0)$$

    Neither the optimizer, its parameters nor any random state is touched.

    Args:
        optimizer: any torch optimizer with ``weight_decay`` whose constructor takes parameter groups.
        group: index into ``optimizer.param_groups``; groups may differ in their options.

    Returns:
        True for decoupled decay (AdamW), False where the decay enters the gradient (SGD, Adam).

    Raises:
        InputError: the step depends on the weights themselves, the decay is of neither sort, or no copy of
            the optimizer can be made and stepped.

    >>> weight = nn.Parameter(torch.ones(3))
    >>> bypasses_gradient(torch.optim.AdamW([weight])), bypasses_gradient(torch.optim.Adam([weight]))
    (True, False)
    >>> bypasses_gradient(torch.optim.Adafactor([weight]))
    Traceback (most recent call last):
    ...
    symdyn_core.errors.InputError: Adafactor takes steps that depend on the weights themselves ...
    """
    name = type(optimizer).__name__
    try:
        coupled = has_coupled_decay(optimizer, group)
        plain = _path(optimizer, group)
        shifted = _path(optimizer, group, shift=_SHIFT) - _SHIFT
        decayed = _path(optimizer, group, decay=_DECAY)
        shrunk = _path(optimizer, group, shrink=1 - _LEARNING_RATE * _DECAY)
    except Exception as error:
        raise InputError(
            f"cannot tell how {name} decays ({error}); say decoupled=True if it multiplies the weights by "
            "1 - lr * weight_decay, decoupled=False if it adds weight_decay * weights to the gradient"
        ) from error
    if not torch.allclose(plain, shifted, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise InputError(
            f"{name} takes steps that depend on the weights themselves and not on gradient and decay alone "
            "(a trust ratio, or a decay of its own), so an offset would change them; use SGD, Adam or AdamW"
        )
    if coupled:
        return False
    if torch.allclose(decayed, shrunk, rtol=_TOLERANCE, atol=_TOLERANCE):
        return True
    raise InputError(
        f"the weight decay of {name} neither enters the gradient nor multiplies the weights by "
        "1 - lr * weight_decay, so it cannot be turned toward an offset; use SGD, Adam or AdamW"
    )


def _path(
    optimizer: Optimizer, group: int, *, decay: float = 0.0, shift: float = 0.0, shrink: float = 1.0
) -> Tensor:
    """Return the steps, (steps, *shape), that a copy takes from weights ``shift`` further on.

    The weights are multiplied by ``shrink`` before each step.
    """
    options = optimizer.param_groups[group]
    shape = [2] * options["params"][0].ndim
    start = torch.linspace(-1.0, 2.0, 2 ** len(shape), dtype=torch.float64).reshape(shape)
    theta = nn.Parameter(start + shift)
    kept = {key: _OPTIONS.get(key, value) for key, value in options.items() if key != "param_names"}
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {key: _OPTIONS.get(key, value) for key, value in optimizer.defaults.items() if key in accepted}
    copy = type(optimizer)([kept | {"params": [theta], "weight_decay": decay}], **defaults)
    path = []
    with torch.random.fork_rng(devices=[]):
        for k in range(_STEPS):
            with torch.no_grad():
                theta.mul_(shrink)
            theta.grad = torch.cos(3.0 * start + k)
            copy.step()
            path.append(theta.detach().clone())
    return torch.stack(path)
