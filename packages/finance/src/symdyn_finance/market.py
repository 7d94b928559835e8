r"""A closed market of agents with cash and shares, whose rules are what its symmetries leave possible.

Agent $i$ holds cash $m_i \ge 0$ and shares $s_i \ge 0$. One step:

1. Each agent buys with probability $1-q$ and sells otherwise ($b_i = 1$ or $0$). A buyer spends
   $\lambda m_i$, a seller offers $\lambda s_i$.
2. One price clears the market, $p = \sum_i \lambda b_i m_i / \sum_i \lambda (1-b_i) s_i$, and everyone
   settles at it.
3. Income: $m_i \leftarrow m_i e^{\sigma\xi_i}$, rescaled by one factor so that the total $M$ stays; then
   redistribution, $m_i \leftarrow (1-\kappa) m_i + \kappa M/N$; then money creation per head,
   $m_i \leftarrow m_i + g M/N$.

The symmetries behind it: currency unit (S1: $m \to a m$, $p \to a p$), share split (S2: $s \to b s$,
$p \to p/b$), duality of cash and shares (S3: $m \leftrightarrow s$, $p \to 1/p$, buyer and seller exchanged;
broken by income, which is paid in cash), permutation of agents (S4), closure (S5: cash and shares are
conserved). An order that depends on the agent's own holdings and the price is $m\,g(sp/m)$ by S1 and S2;
constant $g$ is the least of them.

Source: a minimal symmetric market in the spirit of arXiv:2206.06802; the rules were re-derived from the
symmetries, not transcribed. The income block is the cash-and-shares form of wealth exchange with
multiplicative noise, cond-mat/0002374.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_finance.wealth import gini, herfindahl, wealth_alpha

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

# Logarithm of the money that a run may end with: the square of a fortune is still a number then.
MAX_LOG_MONEY = 300.0


class Step(NamedTuple):
    """Holdings after a step, the price (cash per share) and the number of shares that changed hands."""

    cash: Array
    shares: Array
    price: float
    volume: float


def clear(cash: Array, shares: Array, buys: NDArray[np.bool_], trade_rate: float) -> Step:
    r"""Clear the market at the one price $p = D/A$ that conserves cash and shares.

    Args:
        cash: cash of every agent, (n_agents,), not negative.
        shares: shares of every agent, (n_agents,), not negative.
        buys: who buys, (n_agents,); the others sell.
        trade_rate: fraction $\lambda$ in (0, 1] of the cash (of the shares) that goes to market.

    Returns:
        Holdings after settlement. Where one side of the market is empty nobody trades and the price is NaN.

    A buyer of 1 unit of cash meets a seller of 4 shares:

    >>> clear(np.array([1.0, 0.0]), np.array([0.0, 4.0]), np.array([True, False]), trade_rate=0.5)
    Step(cash=array([0.5, 0.5]), shares=array([2., 2.]), price=0.25, volume=2.0)
    """
    spent = trade_rate * cash * buys
    offered = trade_rate * shares * ~buys
    demand, supply = float(spent.sum()), float(offered.sum())
    if demand <= 0 or supply <= 0:
        return Step(cash, shares, math.nan, 0.0)
    price = demand / supply
    return Step(cash - spent + offered * price, shares - offered + spent / price, price, supply)


@dataclass(frozen=True)
class Economy:
    r"""The rules of the market; every parameter is a number without unit that can be measured.

    Args:
        trade_rate: $\lambda$ in (0, 1], fraction of a holding brought to market per step.
        cash_preference: $q$ in (0, 1), probability to sell; in equilibrium the cash fraction of all wealth.
        redistribution: $\kappa$ in [0, 1], fraction of cash consumed and paid out as equal wages per step.
        income_risk: $\sigma$ in [0, 10], standard deviation of the logarithm of cash income per step.
        mint: $g \ge 0$, money created per step and handed out per head, as a fraction of all money.

    Raises:
        InputError: a parameter out of its range.
    """

    trade_rate: float
    cash_preference: float
    redistribution: float
    income_risk: float
    mint: float = 0.0

    def __post_init__(self) -> None:
        _check("trade_rate", self.trade_rate, 0 < self.trade_rate <= 1, "in (0, 1]")
        _check("cash_preference", self.cash_preference, 0 < self.cash_preference < 1, "in (0, 1)")
        _check("redistribution", self.redistribution, 0 <= self.redistribution <= 1, "in [0, 1]")
        # Keeps exp(sigma xi) far from overflow for every normal number that is ever drawn.
        _check("income_risk", self.income_risk, 0 <= self.income_risk <= 10, "in [0, 10]")
        _check("mint", self.mint, 0 <= self.mint < math.inf, "finite and >= 0")

    def decide(self, n_agents: int, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Draw who buys in this step, (n_agents,)."""
        return generator.random(n_agents) >= self.cash_preference

    def pay(self, cash: Array, shocks: Array) -> Array:
        r"""Return the cash after income shocks, redistribution and money creation.

        $m_i \leftarrow (1-\kappa)\, M m_i e^{\sigma\xi_i} / \sum_j m_j e^{\sigma\xi_j} + (\kappa + g) M / N$.

        Args:
            cash: cash of every agent, (n_agents,).
            shocks: $\xi_i$, independent standard normal numbers, (n_agents,).

        Half of all cash is collected and paid out equally; one unit per head is created:

        >>> economy = Economy(1.0, 0.5, redistribution=0.5, income_risk=0.0, mint=1.0)
        >>> economy.pay(np.array([2.0, 0.0]), np.zeros(2))
        array([2.5, 1.5])
        """
        total = cash.sum()
        paid: Array = cash * np.exp(self.income_risk * shocks)
        paid *= total * (1 - self.redistribution) / paid.sum()
        paid += total * (self.redistribution + self.mint) / cash.size
        return paid

    def step(self, cash: Array, shares: Array, generator: np.random.Generator) -> Step:
        """Return the market one step later; pure but for the numbers drawn from ``generator``."""
        traded = clear(cash, shares, self.decide(cash.size, generator), self.trade_rate)
        return traded._replace(cash=self.pay(traded.cash, generator.standard_normal(cash.size)))


@dataclass(frozen=True)
class MarketPath:
    """What happened, step by step; every array is (steps,).

    Inequality is that of wealth just before the step's trade, at the fair price; between the steps at which
    it is observed it is NaN.

    Args:
        start: number of the first step.
        price: clearing price, cash per share; NaN where nobody traded.
        turnover: fraction of all shares that changed hands.
        gini: Gini coefficient of wealth.
        herfindahl: sum of squared wealth shares, the inverse of the effective number of agents.
        alpha: Pareto exponent of wealth by the inverse moment; NaN where somebody owns nothing.
    """

    start: int
    price: Array
    turnover: Array
    gini: Array
    herfindahl: Array
    alpha: Array

    def __len__(self) -> int:
        return self.price.size

    @property
    def returns(self) -> Array:
        """Logarithmic returns, (steps - 1,)."""
        logs: Array = np.log(self.price)
        return np.diff(logs)

    def to_frame(self) -> "pd.DataFrame":
        """Return the path as a DataFrame, one row per step, indexed by the step's number."""
        import pandas as pd

        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "start"}
        index = pd.RangeIndex(self.start, self.start + len(self), name="step")
        return pd.DataFrame(columns, index=index)


class SymmetricMarket:
    r"""A market of ``n_agents`` under the rules of an :class:`Economy`, advanced by :meth:`run`.

    Memory does not grow with the steps but for the path that a run returns (five numbers per step).

    Args:
        n_agents: number of agents, at least 2.
        trade_rate: $\lambda$, see :class:`Economy` for this and the next four.
        cash_preference: $q$.
        redistribution: $\kappa$.
        income_risk: $\sigma$.
        mint: $g$.
        seed: of decisions and shocks; the same seed gives the same path.
        cash: initial cash, (n_agents,); one unit each by default.
        shares: initial shares, (n_agents,); one each by default.

    Raises:
        InputError: a parameter out of range, or holdings that are negative, infinite, all zero or of a wrong
            shape.

    >>> market = SymmetricMarket(
    ...     1000, trade_rate=0.5, cash_preference=0.4, redistribution=0.01, income_risk=0.1
    ... )
    >>> path = market.run(200)
    >>> bool(abs(market.cash.sum() - 1000) < 1e-9 and abs(market.shares.sum() - 1000) < 1e-9)
    True
    >>> round(market.fair_price, 9)  # (1 - q) M / (q S)
    1.5
    >>> round(float(path.turnover.mean()), 2)  # lambda q
    0.2
    """

    def __init__(
        self,
        n_agents: int,
        trade_rate: float,
        cash_preference: float,
        redistribution: float,
        income_risk: float,
        mint: float = 0.0,
        seed: int = 0,
        *,
        cash: ArrayLike | None = None,
        shares: ArrayLike | None = None,
    ) -> None:
        _check("n_agents", n_agents, n_agents >= 2 and float(n_agents).is_integer(), "a whole number >= 2")
        self.economy = Economy(trade_rate, cash_preference, redistribution, income_risk, mint)
        self.n_agents = int(n_agents)
        self.cash = _holdings("cash", cash, self.n_agents)
        self.shares = _holdings("shares", shares, self.n_agents)
        self.time = 0
        self._generator = numpy_generator(seed, "symmetric market")

    @property
    def fair_price(self) -> float:
        """Price at which expected supply meets expected demand, $(1-q)M/(qS)$: free of clearing noise."""
        q = self.economy.cash_preference
        return float((1 - q) * self.cash.sum() / (q * self.shares.sum()))

    @property
    def wealth(self) -> Array:
        """Cash plus shares at the fair price, (n_agents,), in units of cash."""
        return self.cash + self.fair_price * self.shares

    def to_frame(self) -> "pd.DataFrame":
        """Return cash, shares and wealth as a DataFrame, one row per agent."""
        import pandas as pd

        columns = {"cash": self.cash, "shares": self.shares, "wealth": self.wealth}
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_agents, name="agent"))

    def run(
        self, steps: int, observe_every: int = 1, progress: Callable[[int], object] | None = None
    ) -> MarketPath:
        """Advance the market and return what happened; a further run goes on from there.

        Args:
            steps: how many, at least 1.
            observe_every: inequality is computed at every so many steps, beginning with the first.
            progress: called after every step with the number of steps done in this run.

        Raises:
            InputError: ``steps`` or ``observe_every`` below 1, more steps than memory holds, or so much money
                created that numbers overflow.
        """
        _check("steps", steps, steps >= 1 and float(steps).is_integer(), "a whole number >= 1")
        _check("observe_every", observe_every, observe_every >= 1, ">= 1")
        mint = self.economy.mint
        if mint > 0 and math.log(self.cash.sum()) + steps * math.log1p(mint) > MAX_LOG_MONEY:
            raise InputError(
                f"mint must not create more money than numbers hold, got {mint} in {steps} steps"
            )
        path = MarketPath(self.time, *(_full("steps", steps, math.nan) for _ in range(5)))
        for k in range(steps):
            if k % observe_every == 0:
                wealth = self.wealth
                path.gini[k], path.herfindahl[k] = gini(wealth), herfindahl(wealth)
                path.alpha[k] = wealth_alpha(wealth) if wealth.min() > 0 else math.nan
            total = float(self.shares.sum())
            self.cash, self.shares, path.price[k], volume = self.economy.step(
                self.cash, self.shares, self._generator
            )
            path.turnover[k] = volume / total
            self.time += 1
            if progress is not None:
                progress(k + 1)
        return path


def _check(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}, got {value}")


def _full(name: str, size: int, value: float) -> Array:
    try:
        return np.full(size, value)
    except (MemoryError, ValueError) as error:  # beyond what can be allocated, or even be an index
        raise InputError(f"{name} must fit into memory, got {size}") from error


def _holdings(name: str, values: ArrayLike | None, n_agents: int) -> Array:
    if values is None:
        return _full("n_agents", n_agents, 1.0)
    holdings = np.array(values, dtype=float)
    if holdings.shape != (n_agents,):
        raise InputError(f"{name} must have shape (n_agents,) = ({n_agents},), got {holdings.shape}")
    if not (np.isfinite(holdings).all() and (holdings >= 0).all() and holdings.sum() > 0):
        raise InputError(
            f"{name} must be finite, >= 0 and not all zero, got values in "
            f"[{holdings.min():g}, {holdings.max():g}]"
        )
    return holdings
