r"""How fast the feedback of a heterosynaptic circuit assembles itself: laws that hold for any data.

Weight $W$ and feedback $B$ of an :class:`~symdyn_neuro.layers.HSLinear` receive the same gradient, so it
cancels from their difference and only the decay is left. What that makes of the mismatch depends on the
optimiser:

=====================================  =====================================================================
optimiser                              mismatch $\|B_t-W_t\|$
=====================================  =====================================================================
SGD with weight decay                  times $1-\eta\gamma$ a step, exactly
SGD with momentum, Nesterov or not     linear two-term recursion, exactly (``momentum``, ``nesterov``)
AdamW, any decoupled decay             times $1-\eta\gamma$ a step, exactly
Adam with ``weight_decay`` (L2)        no law: the decay enters the normalised step, and the two part
anything with ``weight_decay=0``       constant: the circuit never assembles
=====================================  =====================================================================

"Exactly" means up to rounding, and provided that both are in one parameter group, start with the same
optimiser state, and that the weight is not shared with another layer. Clipping the gradient of the whole
model keeps the laws; clipping each parameter by itself keeps them as well, as the two gradients are equal.
Dampening is not covered.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError


def predict_mismatch(
    initial: float,
    *,
    learning_rate: float | Sequence[float],
    weight_decay: float,
    steps: int,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> NDArray[np.float64]:
    r"""Predict the mismatch between feedback and weight after each step.

    With $\Delta = B - W$ and PyTorch's convention for momentum $\mu$,

    .. math:: v_0 = 0, \; v_{t+1} = \mu v_t + \gamma\Delta_t, \; \Delta_{t+1} = \Delta_t - \eta_t v_{t+1},

    and $\Delta_{t+1} = \Delta_t - \eta_t(\gamma\Delta_t + \mu v_{t+1})$ for Nesterov's variant. Without
    momentum $\|\Delta_t\| = \|\Delta_0\|\prod_s |1-\eta_s\gamma|$; this case also covers AdamW.

    Args:
        initial: mismatch before the first step, any norm of $B-W$; finite, at least 0.
        learning_rate: $\eta$, or one value per step if it follows a schedule; finite, at least 0.
        weight_decay: $\gamma$; finite, at least 0.
        steps: number of optimiser steps, at least 0.
        momentum: $\mu$ in [0, 1).
        nesterov: whether the optimiser uses Nesterov's variant.

    Returns:
        Shape ``(steps + 1,)``; entry ``t`` is the mismatch after ``t`` steps, in the units of ``initial``.

    Raises:
        InputError: an argument out of range, or a schedule of another length than ``steps``.

    Source: arXiv:2412.20018 for the idea of the circuit; the law is re-derived here.

    >>> predict_mismatch(1.0, learning_rate=0.5, weight_decay=0.2, steps=2)
    array([1.  , 0.9 , 0.81])
    """
    if steps < 0:
        raise InputError(f"steps must be at least 0, got {steps}")
    for name, value in (("initial", initial), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be finite and at least 0, got {value}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    rates = np.asarray(learning_rate, dtype=np.float64)
    if rates.shape not in ((), (steps,)):
        raise InputError(
            f"learning_rate must be one number or steps={steps} of them, got shape {rates.shape}"
        )
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise InputError(f"learning_rate must be finite and at least 0, got {learning_rate}")

    difference, velocity = float(initial), 0.0
    curve = np.empty(steps + 1)
    curve[0] = initial
    for t, rate in enumerate(np.broadcast_to(rates, (steps,)), start=1):
        pull = weight_decay * difference
        velocity = momentum * velocity + pull
        difference -= rate * (pull + momentum * velocity if nesterov else velocity)
        curve[t] = abs(difference)
    return curve
