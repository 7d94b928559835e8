r"""The largest Sharpe ratio a market allows, and what Sharpe ratios say about its discount factor.

A stochastic discount factor m prices every payoff f at $\langle mf\rangle$. Normalised to mean 1 it is the
weight $e^R$ of the risk-neutral law against the physical one, and $\gamma=\langle e^{2R}\rangle$ is one plus
its squared volatility. No payoff earns more per risk than the discount factor varies:

$$\Big(\frac{\langle f\rangle-e^{r\tau}p}{\mathrm{std}f}\Big)^2\ \le\ \gamma-1
   \ =\ \frac{\mathrm{Var}\,m}{\langle m\rangle^2}.$$

Read from right to left it says how good a trade can be (:func:`max_sharpe`); from left to right, how volatile
the discount factor of any model must be that is to explain the returns seen
(:func:`hansen_jagannathan_bound`, :func:`implied_gamma_lower_bound`). It is the universal uncertainty
relation (:mod:`symdyn_core.dynamics.uncertainty`) between the physical and the risk-neutral law.

Source: arXiv 2202.13311, finance; Hansen and Jagannathan (1991); Black-Scholes value re-derived.
"""

import math

from numpy.typing import ArrayLike

from symdyn_core.dynamics.uncertainty import implied_gamma_lower_bound, max_sharpe
from symdyn_core.errors import InputError

__all__ = ["hansen_jagannathan_bound", "implied_gamma_lower_bound", "market_price_of_risk", "max_sharpe"]


def market_price_of_risk(drift: float, rate: float, volatility: float) -> float:
    r"""Return $\vartheta=(\mu-r)/s$ of a stock, for :func:`max_sharpe`.

    Args:
        drift: $\mu$, expected growth per year, continuously compounded.
        rate: $r$, riskless, per year, continuously compounded.
        volatility: $s>0$, per square root of a year.

    Raises:
        InputError: values that are not finite, or a volatility that is not positive.

    >>> theta = market_price_of_risk(0.12, 0.03, 0.2)
    >>> round(theta, 9), round(max_sharpe(market_price_of_risk=theta, horizon=0.25) ** 2, 5)
    (0.45, 0.05193)
    """
    if not (math.isfinite(drift) and math.isfinite(rate)):
        raise InputError(f"drift and rate must be finite, got {drift} and {rate}")
    if not (math.isfinite(volatility) and volatility > 0):
        raise InputError(f"volatility must be finite and > 0, got {volatility}")
    return (drift - rate) / volatility


def hansen_jagannathan_bound(
    excess_returns: ArrayLike, discount: float = 1.0, *, corrected: bool = False
) -> float:
    r"""Return the least standard deviation of any discount factor that prices these returns.

    $$\mathrm{std}\,m\ \ge\ \langle m\rangle\sqrt{\mu^T\Sigma^{-1}\mu}$$

    Args:
        excess_returns: over the riskless rate, shape (periods, assets), or (periods,) for one asset.
        discount: $\langle m\rangle=e^{-r\tau}$, price of one unit of cash a period ahead.
        corrected: remove the bias of the sample's best portfolio; see :func:`implied_gamma_lower_bound`.

    Raises:
        InputError: returns that are not finite, too few or combinations of each other, or a discount that is
            not positive.

    >>> hansen_jagannathan_bound([3.0, -1.0, 3.0, -1.0])
    0.5
    """
    if not (math.isfinite(discount) and discount > 0):
        raise InputError(f"discount must be finite and > 0, got {discount}")
    gamma = implied_gamma_lower_bound(excess_returns, corrected=corrected)
    return discount * max_sharpe(gamma=gamma)
