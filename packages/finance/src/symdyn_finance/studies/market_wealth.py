r"""How unequal does a market make its members, and how much does their inequality shake the price?

A closed economy of agents with cash and shares in which currency unit, share split, the roles of cash and
shares, and the names of the agents do not matter. At each step every agent buys with a fraction $\lambda$ of
its cash or, with probability $q$, sells that fraction of its shares; one price clears the market; cash
incomes fluctuate by $\sigma$; and a fraction $\kappa$ of all cash is paid out as equal wages. It is a minimal
symmetric market in the spirit of the paper: rules and laws were derived from the symmetries.

The theory: trade reshuffles each agent's cash fraction $c$ much faster than its wealth changes. Income risk
reaches only the cash, so wealth diffuses at $\sigma^2 E[c^2]$ and is pulled to the mean at $\kappa E[c]$: a
Pareto tail of exponent $\alpha = 1 + 2\kappa E[c]/(\sigma^2 E[c^2])$. Shares shelter wealth; frequent trade
exposes it again. The price is noisy because a market of unequal agents is effectively smaller:
$\mathrm{Var}\log p = H/(q(1-q))$ with the Herfindahl index $H$ of wealth; how agents split theirs drops out.

Set-up: everyone starts with the same cash and the same shares, so that all inequality is made by the market.
After five renewal times of wealth, $1/(\kappa q)$ steps each, everything is averaged over eight more. Wealth
is valued at the price at which expected supply meets expected demand, free of the noise of clearing. The
exponent is read from $\langle W\rangle\langle 1/W\rangle$ over all agents, which takes an inverse gamma for
granted; the Gini coefficient and the figure hold that shape to account.

Refuted if the exponent ignores how much of wealth is cash ($\alpha = 1 + 2\kappa/\sigma^2$), if inequality is
what agents with a fixed portfolio would show, if the price is as calm as that of equal agents, or if it
remembers earlier steps for as long as a portfolio takes to change hands.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from symdyn_core.errors import InputError
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_finance.market import Economy, SymmetricMarket
from symdyn_finance.mean_field import MeanField, WealthLaw, mean_field

# Wealth in units of the mean, at which the measured distribution is drawn.
FORTUNES = np.geomspace(0.2, 60, 24)
NEXT_ORDER = "next order in kappa/lambda of averaging over portfolios, and finite N: about 1 per cent each"
# The window is cut into this many parts for the picture of volatility against inequality.
PARTS = 4


@dataclass(frozen=True)
class Config:
    """The economy, and how long it is watched in units of the renewal time of wealth, 1 / (kappa q)."""

    trade_rate: float = setting(
        0.5, valid=(0.3, 0.7), verify=(0.35, 0.65), help="lambda: share of a holding traded"
    )
    cash_preference: float = setting(
        0.5, valid=(0.35, 0.65), verify=(0.4, 0.6), help="q: probability to sell"
    )
    redistribution: float = setting(
        0.01, valid=(0.0075, 0.019), verify=(0.008, 0.012), help="kappa: wages per step"
    )
    income_risk: float = setting(
        0.14, valid=(0.11, 0.16), verify=(0.12, 0.15), help="sigma: of log income per step"
    )
    n_agents: int = setting(10_000, valid=(5_000, 1_000_000), help="number of agents")
    warm_up: float = setting(5.0, valid=(5.0, 50.0), help="renewal times before the measurement")
    duration: float = setting(8.0, valid=(4.0, 100.0), help="renewal times of measurement")

    def __post_init__(self) -> None:
        # Near alpha = 2 a handful of agents decide, and far above 4 nothing is left of the tail.
        alpha = mean_field(self.economy).alpha
        if not 2.1 <= alpha <= 4:
            raise InputError(
                f"finance.market_wealth: the predicted Pareto exponent must be in [2.1, 4], got {alpha:.2f} "
                "from these settings"
            )

    @property
    def economy(self) -> Economy:
        """The rules of the market."""
        return Economy(self.trade_rate, self.cash_preference, self.redistribution, self.income_risk)


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Let one market grow unequal and watch it."""
    q = config.cash_preference
    market = SymmetricMarket(
        config.n_agents, config.trade_rate, q, config.redistribution, config.income_risk, seed=seed
    )
    renewal = 1 / (config.redistribution * q)
    market.run(round(config.warm_up * renewal), observe_every=10**9)

    every = 10
    chunk = every * max(1, round(config.duration * renewal / (every * 10 * PARTS)))
    log_price, concentration, alpha, ginis, squared, survival = [], [], [], [], [], []
    for _ in range(10 * PARTS):
        path = market.run(chunk, observe_every=every)
        log_price.append(np.log(path.price))
        concentration.append(np.repeat(path.herfindahl[::every], every))
        alpha.append(np.nanmean(path.alpha))
        ginis.append(np.nanmean(path.gini))
        wealth = market.wealth
        squared.append(np.mean((market.cash / wealth) ** 2))
        survival.append((wealth / wealth.mean() > FORTUNES[:, None]).mean(axis=1))

    prices, herfindahl = np.concatenate(log_price), np.concatenate(concentration)
    noise = (prices - prices.mean()) ** 2
    returns = np.diff(prices)
    return {
        "wealth_exponent": float(np.mean(alpha)),
        "gini": float(np.mean(ginis)),
        "cash_fraction_squared": float(np.mean(squared)),
        "price_noise": float(np.mean(noise / herfindahl) * q * (1 - q)),
        "return_autocorrelation": float(np.corrcoef(returns[1:], returns[:-1])[0, 1]),
        "survival": np.mean(survival, axis=0).tolist(),
        "herfindahl": herfindahl.reshape(PARTS, -1).mean(axis=1).tolist(),
        "log_price_variance": noise.reshape(PARTS, -1).mean(axis=1).tolist(),
    }


def _theory(config: Config) -> MeanField:
    return mean_field(config.economy)


def _without_cash_fraction(config: Config) -> float:
    return 1 + 2 * config.redistribution / config.income_risk**2


def _frozen(config: Config) -> WealthLaw:
    # A fixed portfolio: cash fraction q for ever, so E[c^2] = q^2 (inverse gamma of that exponent, mean 1).
    alpha = 1 + 2 * config.redistribution / (config.cash_preference * config.income_risk**2)
    return WealthLaw.inverse_gamma(alpha)


def _equal_agents(config: Config) -> float:
    return 1 / (config.n_agents * mean_field(config.economy, config.n_agents).herfindahl)


def draw(record: Record) -> Figure:
    """Draw the distribution of wealth, and price noise against inequality."""
    config = record.config
    theory, n_agents = mean_field(config.economy, config.n_agents), config.n_agents
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)

    w = np.geomspace(FORTUNES[0], FORTUNES[-1], 300)
    rival = _without_cash_fraction(config)
    survival = record.array("survival").mean(axis=0)
    seen = survival > 0
    left.loglog(
        w, theory.law.survival(w), color=THEORY, label=rf"theory, $\alpha={theory.alpha:.2f}$, finite $N$"
    )
    left.loglog(
        w,
        WealthLaw.inverse_gamma(rival).survival(w),
        "--",
        color=RIVAL,
        label=rf"cash fraction ignored, $\alpha={rival:.2f}$",
    )
    left.loglog(w, _frozen(config).survival(w), ":", color=RIVAL, label="portfolios frozen")
    left.loglog(FORTUNES[seen], survival[seen], "o", color=MEASUREMENT, markersize=4, label="measured")
    left.set(
        xlabel="wealth $w$ / mean",
        ylabel="fraction of agents richer than $w$",
        ylim=(max(float(survival[seen].min()) / 3, 1e-7), 1.5),
    )
    left.legend(fontsize=8, loc="lower left")

    q = config.cash_preference
    x, y = record.array("herfindahl").ravel(), record.array("log_price_variance").ravel()
    line = np.array([0.0, 1.1 * float(x.max())])
    right.plot(line * n_agents, line * n_agents / (q * (1 - q)), color=THEORY, label="$H/(q(1-q))$")
    right.axhline(1 / (q * (1 - q)), ls="--", color=RIVAL, label="equal agents, $1/(Nq(1-q))$")
    right.plot(
        x * n_agents, y * n_agents, "o", color=MEASUREMENT, markersize=4, label="measured, quarters of a run"
    )
    right.set(
        xlabel="concentration of wealth $N H$",
        ylabel=r"price noise $N\,\mathrm{Var}\,\log p$",
        xlim=(0, None),
    )
    right.set_ylim(bottom=0)
    right.legend(fontsize=8, loc="upper left")
    return figure


STUDY = Study(
    title="Wealth and price noise in a symmetric market",
    paper=Paper(
        "2206.06802", result="wealth tail and price noise of a minimal symmetric market (laws derived here)"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"n_agents": 100_000, "warm_up": 8.0, "duration": 30.0}},
    claims=[
        Claim(
            "wealth_exponent",
            formula=r"\alpha = 1 + \frac{2\kappa}{\sigma^2}\,\frac{1}{q + (1-q)\lambda/(2-\lambda)}",
            predict=lambda c: _theory(c).alpha,
            margin=0.04,
            relative=True,
            because=NEXT_ORDER,
            rival=Rival("cash fraction of wealth ignored", _without_cash_fraction),
        ),
        Claim(
            "gini",
            formula=r"\Gamma(\alpha-\tfrac12)\,/\,(\sqrt\pi\,\Gamma(\alpha))",
            predict=lambda c: _theory(c).gini,
            margin=0.035,
            relative=True,
            because=NEXT_ORDER,
            rival=Rival("portfolios frozen at the mean composition", lambda c: _frozen(c).gini()),
        ),
        Claim(
            "cash_fraction_squared",
            formula=r"E[c^2] = q^2 + q(1-q)\,\lambda/(2-\lambda)",
            predict=lambda c: _theory(c).cash_fraction_squared,
            margin=0.02,
            relative=True,
            because="wages shift portfolios towards cash by a fraction of the order of kappa/lambda",
            rival=Rival("portfolios frozen at the mean composition", lambda c: c.cash_preference**2),
        ),
        Claim(
            "price_noise",
            formula=r"\mathrm{Var}(\log p)\;q(1-q)/H = 1",
            predict=lambda c: 1.0,
            margin=0.1,
            because="next order in H of the log of a ratio; sampling of a variance over some 1600 steps",
            rival=Rival("central limit theorem for N equal agents", _equal_agents),
        ),
        Claim(
            "return_autocorrelation",
            formula=r"\mathrm{corr}(r_t, r_{t+1}) = -\tfrac12",
            predict=lambda c: -0.5,
            margin=0.06,
            because="sampling of a correlation over some 1600 steps",
            rival=Rival(
                "the price relaxes as slowly as portfolios, at rate lambda", lambda c: -c.trade_rate / 2
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_finance.market.SymmetricMarket",
        "symdyn_finance.mean_field.mean_field",
        "symdyn_finance.mean_field.calibrate",
        "symdyn_finance.wealth.wealth_alpha",
    ),
)
