r"""How precise an observable can be, given how irreversible the process is that it is an observable of.

Let P be the law of a path and Q another one, :math:`R=\log(Q/P)`. By the Cauchy-Schwarz inequality for the
covariance of f with :math:`e^R`, whatever f,

.. math:: \mathrm{Var}_P[f]\ \ge\ \frac{(\langle f\rangle_Q-\langle f\rangle_P)^2}{\gamma-1},\qquad
          \gamma=\langle e^{2R}\rangle_P ,

with equality if f is affine in :math:`e^R`. With Q the law of the path read backwards, every observable that
changes sign under reversal (a current) is as precise as the process is irreversible, and no more. With Q the
risk-neutral law of a market, it bounds the Sharpe ratio of every claim (Hansen and Jagannathan, 1991).

A current's precision costs entropy production :math:`\sigma`, **and nonstationarity**
:math:`D=D_{KL}(P_\tau\|P_0)`: bounds in :math:`\sigma` alone are for stationary processes, and fail for most
chains of two states that start elsewhere. The laws of a chain's paths are in
:class:`symdyn_core.dynamics.markov_paths.MarkovPaths`.

Source: arXiv 2202.13311, universal thermodynamic uncertainty relation, and the degrees of reversibility and
nonstationarity. The bounds were derived here from those definitions, the one with :math:`\tanh^2` included.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from symdyn_core.errors import InputError

LEAST_COST = 1e-15  # nats; no sum of logarithms is known better, so that zero means this or less
ROUNDING = 1e-9  # by which a sum of many terms may miss a limit that it has in exact arithmetic


def utur_bound(mean: float, reference_mean: float, gamma: float, overlap: float = 1.0) -> float:
    r"""Return the least variance of an observable whose mean differs under another law.

    .. math:: \mathrm{Var}_P[f]\ge\frac{(\langle fe^R\rangle_P-a\langle f\rangle_P)^2}{\gamma-a^2}

    Args:
        mean: :math:`\langle f\rangle_P`.
        reference_mean: :math:`\langle fe^R\rangle_P`: the mean under Q, of what P can reach of it.
        gamma: :math:`\gamma=\langle e^{2R}\rangle_P\ge a^2`; infinite is allowed and bounds nothing.
        overlap: :math:`a=\langle e^R\rangle_P`, in (0, 1]: the weight that Q has where P has any. Below 1, Q
            has paths that P never takes (absolute irreversibility).

    Raises:
        InputError: a value out of range, or means that differ although the laws are the same.

    Chances of (1/2, 1/2) against (3/4, 1/4): :math:`\gamma=5/4`, and the indicator of the first saturates.

    >>> utur_bound(0.5, 0.75, gamma=1.25)
    0.25
    """
    if not (math.isfinite(mean) and math.isfinite(reference_mean)):
        raise InputError(f"mean and reference_mean must be finite, got {mean} and {reference_mean}")
    if not 0 < overlap <= 1 + ROUNDING:
        raise InputError(f"overlap must be in (0, 1], got {overlap}")
    if not gamma >= overlap**2 * (1 - ROUNDING):
        raise InputError(f"gamma must be >= overlap**2 = {overlap**2:.6g}, got {gamma}")
    shift = abs(reference_mean - overlap * mean)
    spread = gamma - overlap**2
    if spread <= 0:
        if shift > ROUNDING * (abs(mean) + abs(reference_mean)):
            raise InputError(f"with gamma = overlap**2 the laws agree, but the means differ by {shift:.6g}")
        return 0.0
    return shift * (shift / spread)


def tur_current(mean: float, entropy_production: float, nonstationarity: float = 0.0) -> float:
    r"""Return the least variance of a current, :math:`2\langle J\rangle^2/(e^{\sigma+D}-1)`.

    For every observable of a Markov chain's path that changes sign when the path is read backwards, with
    transition probabilities that do not change in time.

    Args:
        mean: :math:`\langle J\rangle`.
        entropy_production: :math:`\sigma\ge0`, expected over the whole path, in nats.
        nonstationarity: :math:`D\ge0`, the Kullback-Leibler divergence of the last state's law from the
            first's; 0 for a stationary process only.

    Raises:
        InputError: a value out of range.

    >>> round(tur_current(1.0, entropy_production=math.log(3)), 12)
    1.0
    """
    cost = _not_negative("entropy_production", entropy_production) + _not_negative(
        "nonstationarity", nonstationarity
    )
    if not math.isfinite(mean):
        raise InputError(f"mean must be finite, got {mean}")
    cost = max(cost, LEAST_COST)
    # exp(x) - 1 = 2 exp(x/2) sinh(x/2), in the form that neither overflows nor loses small x.
    return 2 * mean**2 * math.exp(-cost) / -math.expm1(-cost)


def tanh_bound(mean: float, mean_squared_tanh: float) -> float:
    r"""Return the least variance of a current from the law of R, :math:`\langle J\rangle^2(1/t-1)`.

    :math:`t=\langle\tanh^2(R/2)\rangle_P`. Never below :func:`tur_current`, and reached by the current
    :math:`\tanh(R/2)` itself.

    Args:
        mean: :math:`\langle J\rangle`.
        mean_squared_tanh: t in [0, 1]; see ``MarkovPaths.mean_squared_tanh``.

    Raises:
        InputError: a value out of range.

    >>> tanh_bound(3.0, 0.25)
    27.0
    """
    if not math.isfinite(mean):
        raise InputError(f"mean must be finite, got {mean}")
    if not 0 <= mean_squared_tanh <= 1 + ROUNDING:
        raise InputError(f"mean_squared_tanh must be in [0, 1], got {mean_squared_tanh}")
    return mean**2 * max(0.0, 1 / max(mean_squared_tanh, LEAST_COST**2) - 1)


def max_sharpe(
    gamma: float | None = None, market_price_of_risk: float | None = None, horizon: float | None = None
) -> float:
    r"""Return the largest Sharpe ratio of any claim over a horizon, :math:`\sqrt{\gamma-1}`.

    In a Black-Scholes market :math:`\gamma=e^{\vartheta^2\tau}`; the claim that reaches the bound is short a
    power of the stock. The square-root rule :math:`\vartheta\sqrt\tau` is what trading continuously in the
    stock reaches for short horizons, and lies below.

    Args:
        gamma: :math:`\langle e^{2R}\rangle_P\ge1`, with :math:`e^R` the stochastic discount factor over its
            mean. Leave it out to give the other two.
        market_price_of_risk: :math:`\vartheta=(\mu-r)/s` per square root of a year (or any unit of time).
        horizon: :math:`\tau>0` in years (the same unit).

    Returns:
        Mean excess payoff over standard deviation, for the whole horizon, not per year.

    Raises:
        InputError: neither or both ways of giving the market, or a value out of range.

    >>> max_sharpe(gamma=1.25), round(max_sharpe(market_price_of_risk=0.45, horizon=1.0) ** 2, 5)
    (0.5, 0.22446)
    """
    if (gamma is None) == (market_price_of_risk is None and horizon is None):
        raise InputError("expected either gamma or market_price_of_risk with horizon")
    if gamma is not None:
        if not 1 - ROUNDING <= gamma < math.inf:
            raise InputError(f"gamma must be finite and >= 1, got {gamma}")
        return math.sqrt(max(0.0, gamma - 1))
    if market_price_of_risk is None or horizon is None:
        raise InputError("market_price_of_risk and horizon must be given together")
    if not math.isfinite(market_price_of_risk):
        raise InputError(f"market_price_of_risk must be finite, got {market_price_of_risk}")
    if not (math.isfinite(horizon) and horizon > 0):
        raise InputError(f"horizon must be finite and > 0, got {horizon}")
    return math.sqrt(math.expm1(market_price_of_risk**2 * horizon))


def implied_gamma_lower_bound(excess_returns: ArrayLike, *, corrected: bool = False) -> float:
    r"""Return the least :math:`\gamma` of a market in which these excess returns were earned.

    .. math:: \gamma\ \ge\ 1+\mu^T\Sigma^{-1}\mu ,

    one plus the squared Sharpe ratio of the best portfolio.

    Args:
        excess_returns: of T periods and n assets over the riskless rate, shape (T, n), or (T,) for one.
        corrected: remove the bias of the sample's value, which is about n/T too high because the best
            portfolio was chosen with hindsight: the unbiased estimate :math:`1+((T-n-2)\hat s-n)/T`, not
            below 1, of Kan and Zhou (2007) for normal returns, with :math:`\hat s` the uncorrected one.

    Returns:
        :math:`\gamma` over one period, at least 1.

    Raises:
        InputError: not finite, too few periods, or assets that are combinations of each other.

    Mean 1 and variance 4 make a squared Sharpe ratio of 1/4:

    >>> implied_gamma_lower_bound([3.0, -1.0, 3.0, -1.0])
    1.25
    """
    returns = np.asarray(excess_returns, dtype=float)
    if returns.ndim == 1:
        returns = returns[:, None]
    if returns.ndim != 2 or returns.size == 0:
        raise InputError(f"excess_returns must have shape (periods, assets), got {returns.shape}")
    if not np.isfinite(returns).all():
        raise InputError("excess_returns must be finite, got NaN or infinite entries")
    periods, assets = returns.shape
    least = assets + 3 if corrected else assets + 1
    if periods < least:
        raise InputError(
            f"excess_returns must span at least {least} periods for {assets} assets, got {periods}"
        )
    mean = returns.mean(axis=0)
    size = returns.std(axis=0)
    if (size <= ROUNDING * np.abs(mean)).any():
        asset = int(np.argmin(size - ROUNDING * np.abs(mean)))
        raise InputError(f"excess_returns of asset {asset} must vary: without risk there is no bound")
    scaled = (returns - mean) / size
    correlation = scaled.T @ scaled / periods
    lowest = float(np.linalg.eigvalsh(correlation)[0])
    if lowest <= ROUNDING:
        raise InputError(
            "excess_returns must not be combinations of each other, got a correlation matrix with the "
            f"eigenvalue {lowest:.3g}"
        )
    squared_sharpe = float(mean / size @ np.linalg.solve(correlation, mean / size))
    if corrected:
        squared_sharpe = max(0.0, ((periods - assets - 2) * squared_sharpe - assets) / periods)
    return 1 + squared_sharpe


def _not_negative(what: str, value: float) -> float:
    """Return a divergence; what rounding took below zero is zero."""
    if not value >= -ROUNDING or math.isnan(value):
        raise InputError(f"{what} must be >= 0, got {value}")
    return max(0.0, float(value))
