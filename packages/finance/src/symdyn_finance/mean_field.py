r"""What the symmetric market settles to, in closed form.

Trade mixes an agent's cash fraction $c$ fast (rate $\lambda$), income changes its wealth slowly (rates
$\kappa, \sigma^2 \ll \lambda$). Averaging over the fast composition, with $E[c] = q$ and
$E[c^2] = q^2 + q(1-q)\lambda/(2-\lambda)$, leaves for the wealth $w$ in units of its mean, among $N$ agents,

$$ dw = \Big[\kappa q\,(1-w) + \lambda\Big(H - \frac wN\Big) w\Big]\,dt + \sqrt{D}\,w\,dB ,\qquad
   D = \sigma^2 E[c^2] + \frac{2\lambda^2}{2-\lambda} H ,\qquad H = \frac{\langle w^2\rangle}{N} . $$

$N\to\infty$: the stationary law is an inverse gamma with Pareto exponent
$\alpha = 1 + 2\kappa q/(\sigma^2 E[c^2])$.

Finite $N$ adds two terms with the Herfindahl index $H$. Everybody trades at a price that is off by
$\mathrm{Var}\log p = H/(q(1-q))$; and an agent's own order moves the price against it, which costs the share
$\lambda w/N$ of its wealth per step. The stationary law is then a generalised inverse Gaussian,
$P(w)\propto w^{p-1}e^{-(aw+b/w)/2}$: the Pareto tail ends at $w\sim ND/(2\lambda)$. Closure,
$\langle w\rangle = 1$, fixes $H$.

Source: derived here for a minimal symmetric market in the spirit of arXiv:2206.06802; the limit
$\lambda\to1$, $N\to\infty$ is the wealth model of cond-mat/0002374.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, special

from symdyn_core.errors import InputError
from symdyn_finance.market import Economy, SymmetricMarket


@dataclass(frozen=True)
class MeanField:
    r"""Stationary state of a symmetric market.

    Args:
        alpha: Pareto exponent of wealth, $P(W>x)\sim x^{-\alpha}$, of the infinite market; above 1.
        price: cash per share.
        turnover: fraction of all shares traded per step.
        cash_fraction: $E[c]$, mean share of cash in an agent's wealth.
        cash_fraction_squared: $E[c^2]$; what income risk acts upon.
        gini: Gini coefficient of wealth.
        herfindahl: $H$, sum of squared wealth shares; 0 in the infinite market.
        volatility: standard deviation of the one-step log return, $\sqrt{2H/(q(1-q))}$.
        law: the distribution of wealth relative to its mean.
    """

    alpha: float
    price: float
    turnover: float
    cash_fraction: float
    cash_fraction_squared: float
    gini: float
    herfindahl: float
    volatility: float
    law: "WealthLaw"

    def pdf(self, wealth: ArrayLike) -> NDArray[np.float64]:
        """Return the density of wealth relative to its mean, at positive arguments of any shape."""
        return self.law.pdf(wealth)


@dataclass(frozen=True)
class WealthLaw:
    r"""Generalised inverse Gaussian $P(w) = e^{-(aw + b/w)/2}\,w^{p-1} / Z$; inverse gamma at $a = 0$.

    At $a > 0$ integrals are taken over $u = \log w$ by the trapezoidal rule, which converges exponentially
    for an analytic integrand that vanishes at both ends.

    >>> law = WealthLaw.inverse_gamma(alpha=3.0)
    >>> round(law.moment(1), 12), round(law.moment(2), 12), round(law.moment(-1), 12), round(law.gini(), 12)
    (1.0, 2.0, 1.5, 0.375)
    """

    p: float
    a: float
    b: float

    @classmethod
    def inverse_gamma(cls, alpha: float) -> "WealthLaw":
        r"""Return the law of the infinite market, $P(w)\propto w^{-1-\alpha}e^{-(\alpha-1)/w}$, of mean 1."""
        if not 1 < alpha < math.inf:
            raise InputError(f"alpha must be finite and above 1, got {alpha}")
        return cls(p=-alpha, a=0.0, b=2 * (alpha - 1))

    def moment(self, order: float) -> float:
        """Return the mean of ``w ** order``; infinite where the Pareto tail forbids it."""
        if self.a == 0 and self.p + order >= 0:
            return math.inf
        return math.exp(self._log_integral(order) - self._log_integral(0))

    def pdf(self, wealth: ArrayLike) -> NDArray[np.float64]:
        """Return the density at positive arguments of any shape."""
        w = _positive(wealth)
        density: NDArray[np.float64] = np.exp(self._log_weight(np.log(w), 0) - self._log_integral(0)) / w
        return density

    def survival(self, wealth: ArrayLike) -> NDArray[np.float64]:
        """Return the fraction of agents that are richer, at positive arguments of any shape."""
        w = _positive(wealth)
        if self.a == 0:
            richer: NDArray[np.float64] = special.gammainc(-self.p, self.b / (2 * w))
            return richer
        # Integrated from the right, so that the tail keeps its relative precision.
        u = self._grid(0)
        density = np.exp(self._log_weight(u, 0) - self._log_integral(0))
        above = integrate.cumulative_simpson(density[::-1], x=-u[::-1], initial=0)[::-1]
        interpolated: NDArray[np.float64] = np.interp(np.log(w), u, above)
        return interpolated

    def gini(self) -> float:
        r"""Return the Gini coefficient: $\Gamma(\alpha-\frac12)/(\sqrt\pi\,\Gamma(\alpha))$ at $a = 0$."""
        if self.a == 0:
            return _inverse_gamma_gini(-self.p)
        u = self._grid(1)
        density = np.exp(self._log_weight(u, 0) - self._log_integral(0))
        poorer = integrate.cumulative_simpson(density, x=u, initial=0)
        share = np.exp(self._log_weight(u, 1) - self._log_integral(1))
        return float(2 * integrate.simpson(share * poorer, x=u) - 1)

    def _log_weight(self, u: NDArray[np.float64], order: float) -> NDArray[np.float64]:
        linear: NDArray[np.float64] = (self.p + order) * u
        return linear - (self.a * np.exp(u) + self.b * np.exp(-u)) / 2

    def _log_integral(self, order: float) -> float:
        if self.a == 0:
            s = -(self.p + order)
            return float(special.gammaln(s)) - s * math.log(self.b / 2)
        u = self._grid(order)
        log_weight = self._log_weight(u, order)
        peak = log_weight.max()
        return float(peak + np.log(np.exp(log_weight - peak).sum() * (u[1] - u[0])))

    def _grid(self, order: float) -> NDArray[np.float64]:
        # The weight is log-concave in u, so that it stays below 1e-20 of its peak beyond the points where it
        # first falls there. The mode solves p + order = (a e^u - b e^-u) / 2.
        slope = self.p + order
        root = math.hypot(slope, math.sqrt(self.a * self.b))
        mode = math.log(self.b / (root - slope) if slope < 0 else (root + slope) / self.a)
        peak = float(self._log_weight(np.array(mode), order))

        def reach(direction: int) -> float:
            distance = 1 / math.sqrt(root)
            while self._log_weight(np.array(mode + direction * distance), order) > peak - 46:
                distance *= 1.5
            return distance

        return np.linspace(mode - reach(-1), mode + reach(1), 4001)


def mean_field(
    market: SymmetricMarket | Economy, n_agents: int | None = None, money_per_share: float = 1.0
) -> MeanField:
    r"""Return what a market settles to.

    $\alpha = 1 + \frac{2\kappa}{\sigma^2}\big/\big(q + (1-q)\frac{\lambda}{2-\lambda}\big)$, with
    $\kappa \to (\kappa+g)/(1+g)$ where money is created per head at rate $g$ (inflation is redistribution).

    Args:
        market: a market, which brings its number of agents, cash and shares; or the rules alone.
        n_agents: size of the market, at least 2; infinite by default for bare rules.
        money_per_share: $M/S$, sets the unit of the price; taken from the market if there is one.

    Raises:
        InputError: no redistribution and no mint (wealth condenses, nothing is stationary), or too little for
            so small a market; an infinite market without income risk; ``n_agents`` below 2.

    Frequent trade exposes wealth to income risk, because more of it passes through cash:

    >>> slow, fast = (Economy(rate, 0.5, redistribution=0.004, income_risk=0.008**0.5) for rate in (0.5, 1.0))
    >>> round(mean_field(slow).alpha, 12), round(mean_field(fast).alpha, 12)
    (2.5, 2.0)
    >>> round(mean_field(slow, n_agents=10_000).volatility, 4)
    0.0425
    """
    if isinstance(market, SymmetricMarket):
        economy, n_agents = market.economy, n_agents or market.n_agents
        money_per_share = float(market.cash.sum() / market.shares.sum())
    else:
        economy = market
    rate, q = economy.trade_rate, economy.cash_preference
    kappa = (economy.redistribution + economy.mint) / (1 + economy.mint)
    if kappa == 0:
        raise InputError("redistribution or mint must be positive, got 0 and 0: wealth condenses for ever")
    if n_agents is not None and n_agents < 2:
        raise InputError(f"n_agents must be at least 2, got {n_agents}")
    squared = q * q + q * (1 - q) * rate / (2 - rate)
    risk = economy.income_risk**2 * squared
    if n_agents is None:
        if risk == 0:
            raise InputError("income_risk must be positive in an infinite market, got 0: all become equal")
        law, concentration = WealthLaw.inverse_gamma(1 + 2 * kappa * q / risk), 0.0
    else:
        law, concentration = _self_consistent(kappa * q, rate, risk, n_agents)
    return MeanField(
        alpha=1 + 2 * kappa * q / risk if risk > 0 else math.inf,
        price=(1 - q) / q * money_per_share,
        turnover=rate * q,
        cash_fraction=q,
        cash_fraction_squared=squared,
        gini=law.gini(),
        herfindahl=concentration,
        volatility=math.sqrt(2 * concentration / (q * (1 - q))),
        law=law,
    )


def calibrate(cash_fraction: float, turnover: float, gini: float, income_risk: float) -> Economy:
    r"""Return the rules of the infinite market that shows what was observed.

    $q$ is the cash fraction, $\lambda$ = turnover$/q$, $\alpha$ solves Gini
    $= \Gamma(\alpha-\frac12)/(\sqrt\pi\,\Gamma(\alpha))$, and
    $\kappa = \frac12(\alpha-1)\sigma^2\,[q + (1-q)\lambda/(2-\lambda)]$.

    Args:
        cash_fraction: cash over cash plus market capitalisation, in (0, 1).
        turnover: fraction of all shares traded per step, in (0, cash_fraction].
        gini: Gini coefficient of wealth, in (0, 1).
        income_risk: standard deviation of log income per step, positive.

    Raises:
        InputError: an observation out of its range, or a combination that needs ``redistribution`` above 1.

    >>> economy = calibrate(cash_fraction=0.5, turnover=0.25, gini=0.375, income_risk=0.1)  # alpha = 3
    >>> economy.trade_rate, round(economy.redistribution, 6)
    (0.5, 0.006667)
    """
    if not 0 < cash_fraction < 1:
        raise InputError(f"cash_fraction must be in (0, 1), got {cash_fraction}")
    if not 0 < turnover <= cash_fraction:
        raise InputError(f"turnover must be in (0, cash_fraction={cash_fraction:g}], got {turnover}")
    if not 0 < gini < 1:
        raise InputError(f"gini must be in (0, 1), got {gini}")
    if not 0 < income_risk < math.inf:
        raise InputError(f"income_risk must be positive and finite, got {income_risk}")
    # Gini falls from 1 at alpha = 1 like 1 / sqrt(pi alpha): one bracket in log(alpha - 1) holds every root.
    excess = math.exp(
        optimize.brentq(lambda x: _inverse_gamma_gini(1 + math.exp(x)) - gini, -40, 80, xtol=1e-13)
    )
    rate, q = turnover / cash_fraction, cash_fraction
    exposure = q + (1 - q) * rate / (2 - rate)
    return replace(Economy(rate, q, 0.0, income_risk), redistribution=excess * income_risk**2 * exposure / 2)


def exponents(alpha: float, impact: float = 1.0) -> dict[str, float]:
    r"""Return the exponents that the Pareto exponent of wealth fixes.

    Orders are proportional to wealth, so volumes have its exponent; a price impact $r\sim|z|^\delta$ of the
    order imbalance $z$ turns it into $\alpha/\delta$ for returns; the volatility of a market of $N$ agents
    falls as $N^{-\nu}$ with $\nu = \min(\frac12, 1-\frac1\alpha)$.

    Args:
        alpha: Pareto exponent of wealth, above 1.
        impact: $\delta$, positive; 1 is the clearing price of the symmetric market.

    Returns:
        Tail exponents of ``wealth``, ``volume`` and ``returns``, and ``volatility_size`` $= \nu$.

    Raises:
        InputError: ``alpha`` not above 1 or ``impact`` not positive.

    >>> exponents(1.5, impact=0.5)
    {'wealth': 1.5, 'volume': 1.5, 'returns': 3.0, 'volatility_size': 0.33333333333333337}
    """
    if not alpha > 1:
        raise InputError(f"alpha must be above 1, got {alpha}")
    if not impact > 0:
        raise InputError(f"impact must be positive, got {impact}")
    return {
        "wealth": alpha,
        "volume": alpha,
        "returns": alpha / impact,
        "volatility_size": min(0.5, 1 - 1 / alpha),
    }


def _self_consistent(pull: float, rate: float, risk: float, n_agents: int) -> tuple[WealthLaw, float]:
    """Return the law of a finite market and its Herfindahl index; ``pull`` is kappa q."""

    def law(concentration: float) -> WealthLaw:
        noise = risk + 2 * rate**2 / (2 - rate) * concentration
        p = -1 - 2 * (pull - rate * concentration) / noise
        return WealthLaw(p, a=4 * rate / (n_agents * noise), b=4 * pull / noise)

    # Closure, <w> = 1, selects H. It implies H = <w^2> / N; the converse fails at H = pull / rate, where the
    # two terms in the drift of <w> cancel whatever it is.
    def excess(log_concentration: float) -> float:
        return law(math.exp(log_concentration)).moment(1) - 1

    smallest = -math.log(n_agents)
    if not excess(smallest) <= 0 < excess(0.0):
        raise InputError(
            f"the mean field has no stationary state for n_agents={n_agents}: redistribution is too weak for "
            "a market this small, and wealth condenses"
        )
    concentration = math.exp(optimize.brentq(excess, smallest, 0.0, xtol=1e-12))
    return law(concentration), concentration


def _inverse_gamma_gini(alpha: float) -> float:
    # poch(alpha, -1/2) = Gamma(alpha - 1/2) / Gamma(alpha), without overflow.
    return float(special.poch(alpha, -0.5)) / math.sqrt(math.pi)


def _positive(wealth: ArrayLike) -> NDArray[np.float64]:
    w = np.asarray(wealth, dtype=float)
    if not (w > 0).all():
        raise InputError(f"wealth must be positive, got a minimum of {w.min():g}")
    return w
