r"""The weight decay with which SGD on linear regression predicts best, which may be negative.

Without label noise weight decay only biases the answer, and the best is none, as long as SGD is stable
without it. Beyond the stability edge a *negative* decay can restore stability: it reduces the curvature
:math:`K=A+2\gamma` that the mean feels, while the noise, which comes from the data, stays as it is.

In one dimension SGD is stable exactly if :math:`2K-\eta K^2-2\eta a^2/S>0`.

Source: arXiv 2102.05375, test loss under L2 regularisation and negative weight decay; re-derived.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from symdyn_core.dynamics.linear_sgd import COMMUTING_TOLERANCE, LinearSGD
from symdyn_core.errors import InputError

Array = NDArray[np.float64]

GRID = 65  # weight decays at which a minimum is looked for; the loss may have several


def optimal_weight_decay(model: LinearSGD) -> float:
    r"""Return the :math:`\gamma` of :math:`\gamma\|w\|^2` with the smallest test loss.

    Args:
        model: with a target; its own weight decay does not matter.

    Returns:
        The number; torch's ``weight_decay`` is twice as much.

    Raises:
        InputError: no target, learning rates that do not commute with the second moment, or no weight decay
            at all that is stable.

    Beyond the edge 1.6 of this model plain SGD diverges, and a negative decay cures it:

    >>> sgd = LinearSGD([[1.0]], learning_rate=1.65, batch_size=8, target=[1.0])
    >>> sgd.is_stable(), round(2 * optimal_weight_decay(sgd), 3)
    (False, -0.085)
    >>> optimal_weight_decay(replace(sgd, learning_rate=1.5))
    0.0
    """
    if model.target is None:
        raise InputError("target must be given: the best decay depends on it")
    low, high = stable_weight_decays(model)
    inside = 1e-9 * (high - low)

    def loss(decay: float) -> float:
        return replace(model, weight_decay=decay).test_loss()

    grid = np.linspace(low + inside, high - inside, GRID)
    best = int(np.argmin([loss(float(decay)) for decay in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    found = optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-10})
    return 0.0 if low < 0 < high and loss(0.0) <= found.fun else float(found.x)


def stable_weight_decays(model: LinearSGD) -> tuple[float, float]:
    r"""Return the interval of weight decays :math:`\gamma` of :math:`\gamma\|w\|^2` at which SGD is stable.

    It is one interval: where G > 0, the feedback q is a convex function of the decay.

    Args:
        model: its own weight decay does not matter.

    Raises:
        InputError: learning rates that do not commute with the second moment, or an empty interval.

    At :math:`\eta=a=1`, :math:`S=4` the roots of :math:`2K-K^2=1/2` are :math:`1\mp1/\sqrt2`:

    >>> low, high = stable_weight_decays(LinearSGD([[1.0]], 1.0, 4))
    >>> round(1 + 2 * low, 6), round(1 + 2 * high, 6)
    (0.292893, 1.707107)
    """
    rates, values = _common_eigenvalues(model)
    mu, size = model.momentum, model.batch_size
    steps = rates * values
    discriminant = (1 + mu) ** 2 - (1 + mu) / (1 - mu) * steps**2 / size
    if (discriminant <= 0).any():
        raise InputError(
            f"no weight decay is stable: G > 0 fails for all, at learning_rate x a = {steps.max():.6g}"
        )
    middle, reach = (1 + mu) / rates, np.sqrt(discriminant) / rates
    low = float(((middle - reach - values) / 2).max())
    high = float(((middle + reach - values) / 2).min())

    def feedback(decay: float) -> float:
        k = rates * (values + 2 * decay)
        room = 2 * (1 - mu) * k - (1 - mu) / (1 + mu) * k**2 - steps**2 / size
        seen = steps > 0
        return float((steps[seen] ** 2 / room[seen]).sum() / size) if (room[seen] > 0).all() else math.inf

    if low >= high:
        raise InputError("no weight decay is stable: G > 0 fails for all, in one direction or another")
    best = optimize.minimize_scalar(feedback, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    if not best.fun < 1:
        raise InputError(
            f"no weight decay is stable: q < 1 fails for all, its smallest value is {best.fun:.6g}"
        )
    return _last_stable(feedback, float(best.x), low), _last_stable(feedback, float(best.x), high)


def _last_stable(feedback: Callable[[float], float], inner: float, outer: float) -> float:
    for _ in range(100):
        between = (inner + outer) / 2
        inner, outer = (between, outer) if feedback(between) < 1 else (inner, between)
    return inner


def _common_eigenvalues(model: LinearSGD) -> tuple[Array, Array]:
    """Return learning rates and eigenvalues of A in the eigenbasis that they share."""
    moment = np.asarray(model.second_moment, dtype=float)
    if np.ndim(model.learning_rate) == 0:
        values = np.linalg.eigvalsh(moment)
        return np.full_like(values, float(np.asarray(model.learning_rate))), np.maximum(values, 0.0)
    rates = np.asarray(model.learning_rate, dtype=float)
    product = rates @ moment
    if np.abs(product - product.T).max() > COMMUTING_TOLERANCE * np.abs(product).max():
        raise InputError("learning_rate and second_moment must commute for a stable weight decay")
    basis = np.linalg.eigh(moment + 0.5 * (math.sqrt(5) - 1) * rates)[1]
    return np.diag(basis.T @ rates @ basis), np.maximum(np.diag(basis.T @ moment @ basis), 0.0)
