"""How unequal a list of fortunes is: Gini coefficient, concentration, Pareto exponent."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError


def gini(wealth: ArrayLike) -> float:
    r"""Return the Gini coefficient $\sum_{ij}|w_i-w_j| / (2n\sum_i w_i)$.

    It is 0 if all are equal and $1-1/n$ if one owns all.

    Args:
        wealth: fortunes, (n,), not negative, not all zero.

    Raises:
        InputError: wealth is negative, infinite, all zero or not a list of numbers.

    >>> gini([0, 0, 0, 1])
    0.75
    """
    w = np.sort(_fortunes(wealth))
    rank = np.arange(1 - w.size, w.size, 2)  # 2 i - n - 1 for the one-based rank i
    return float((rank * w).sum() / (w.size * w.sum()))


def herfindahl(wealth: ArrayLike) -> float:
    r"""Return the Herfindahl index $\sum_i (w_i/\sum_j w_j)^2$, between $1/n$ and 1.

    Args:
        wealth: fortunes, (n,), not negative, not all zero.

    Raises:
        InputError: as :func:`gini`.

    >>> herfindahl([1, 1, 1, 1])
    0.25
    """
    w = _fortunes(wealth)
    return float((w * w).sum() / w.sum() ** 2)


def wealth_alpha(
    wealth: ArrayLike, method: Literal["inverse_moment", "hill"] = "inverse_moment", tail: float = 0.01
) -> float:
    r"""Estimate the Pareto exponent $\alpha$ of $P(W>x)\sim x^{-\alpha}$.

    ``inverse_moment``: $\alpha = I/(I-1)$ with $I = \langle W\rangle\langle 1/W\rangle$. It uses every agent
    and has a light-tailed error, but assumes that the whole distribution is an inverse gamma, as in the
    symmetric market.
    ``hill``: the maximum-likelihood exponent of the richest, whatever the rest looks like.

    Args:
        wealth: fortunes, (n,), positive.
        method: see above.
        tail: fraction in (0, 1) of the agents that ``hill`` looks at.

    Returns:
        The exponent; infinite if all are equal.

    Raises:
        InputError: unknown method, ``tail`` out of range or too small to hold one agent, wealth not positive.

    Source: inverse moment re-derived from the inverse gamma law; Hill (1975).

    >>> wealth_alpha([1.0, 1.0, 4.0])  # <W> = 2, <1/W> = 3/4, I = 3/2
    3.0
    """
    w = _fortunes(wealth)
    if not (w > 0).all():
        raise InputError(f"wealth must be positive to have a Pareto exponent, got a minimum of {w.min():g}")
    if method == "inverse_moment":
        excess = float(w.mean() * (1 / w).mean()) - 1
        return 1 + 1 / excess if excess > 0 else float("inf")
    if method != "hill":
        raise InputError(f"method must be 'inverse_moment' or 'hill', got {method!r}")
    count = int(tail * w.size)
    if not (0 < tail < 1 and count >= 1):
        raise InputError(f"tail must be in (0, 1) and hold at least one of the {w.size} agents, got {tail}")
    richest = np.sort(w)[-count - 1 :]
    mean_log = float(np.log(richest[1:] / richest[0]).mean())
    return 1 / mean_log if mean_log > 0 else float("inf")


def _fortunes(wealth: ArrayLike) -> NDArray[np.float64]:
    w = np.asarray(wealth, dtype=float)
    if w.ndim != 1 or w.size == 0:
        raise InputError(f"wealth must be a list of numbers, got an array of shape {w.shape}")
    # NaN and infinity propagate into the sum, so that these two passes see every kind of bad value.
    if not (w.min() >= 0 and 0 < w.sum() < np.inf):
        raise InputError(
            f"wealth must be finite, >= 0 and not all zero, got values in [{w.min():g}, {w.max():g}]"
        )
    return w
