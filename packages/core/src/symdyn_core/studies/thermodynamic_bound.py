r"""How precise can an observable be, and what does its precision cost?

For any two laws P and Q of a path, $\mathrm{Var}_P f\ge(\langle f\rangle_Q-\langle f\rangle_P)^2/(\gamma-1)$
with $\gamma=\langle(Q/P)^2\rangle_P$. Let Q be the law of the path read backwards. Then a current, which
changes sign under reversal, cannot be precise without being irreversible:
$\mathrm{Var}J/\langle J\rangle^2\ge2/(e^{\sigma+D}-1)$. Entropy production $\sigma$ pays for precision, but
so does nonstationarity D, the divergence of the last state's law from the first's. Let Q be the risk-neutral
law of a market instead, and the same inequality bounds the Sharpe ratio of every claim.

Set-up: random Markov chains started anywhere. Every path of every chain is listed, and searched for the
observable whose mean shifts most against its spread and for the most precise current; random currents are
held against what their chain dissipates. A two-state system relaxes, and the precision of its current is
counted over sampled trajectories. A Black-Scholes stock is simulated under both laws, and the best Sharpe
ratio among the powers of its price is taken.

The theory would be refuted by an observable or a claim better than its bound, by best ones that stay short
of it (both bounds are attained), or if entropy production alone sufficed: currents do beat the bound that
lacks D, in a fraction of chains that is predicted. Those who trade by the square root of time would be right
if the best squared Sharpe ratio were $\vartheta^2\tau$; it is $e^{\vartheta^2\tau}-1$.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.markov_paths import MarkovPaths
from symdyn_core.dynamics.uncertainty import max_sharpe, tur_current
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

JUMP = 0.2  # chance per step that the relaxing system changes its state
TIMES = (1, 2, 3, 4, 6, 8, 12)  # of the figure, steps
POWERS = np.array([*np.arange(-5, 0, 0.25), 1.0, 2.0])  # claims S^a; the first power is the stock
RATE = 0.03  # riskless, per year; nothing depends on it
HORIZONS = (0.5, 1.0, 2.0)  # of the figure, years
SHOWN = 30  # chains of a repetition in the figure
ROUNDING = 1e-13  # nats, and 1e-9 of the cost: by so much a bound that is attained may seem beaten


@dataclass(frozen=True)
class Config:
    """Settings of the thermodynamic bound."""

    states: int = setting(2, valid=(2, 3), verify=(3,), help="of the random chains")
    steps: int = setting(3, valid=(1, 4), verify=(2, 4), help="of the random chains")
    concentration: float = setting(
        1.0, valid=(0.3, 3.0), verify=(0.3, 3.0), help="of the Dirichlet law of the start; small: far off"
    )
    chains: int = setting(100, valid=(30, 10_000), help="random chains")
    start: float = setting(
        0.1,
        valid=(0.03, 0.2),
        verify=(0.05, 0.2),
        help="chance of the relaxing system's upper state at first",
    )
    duration: int = setting(6, valid=(2, 50), verify=(3, 12), help="steps of the relaxation")
    trajectories: int = setting(100_000, valid=(20_000, 10_000_000), help="of the relaxation")
    market_price_of_risk: float = setting(
        0.45, valid=(0.4, 0.6), verify=(0.4, 0.6), help="(drift - rate) / volatility, per root of a year"
    )
    volatility: float = setting(0.2, valid=(0.15, 0.4), verify=(0.3,), help="per root of a year")
    horizon: float = setting(1.0, valid=(0.75, 1.5), verify=(1.5,), help="of the claims, years")
    prices: int = setting(200_000, valid=(100_000, 100_000_000), help="simulated under each law")


def random_chains(config: Config, seed: int) -> tuple[Array, Array, Array]:
    """Draw starts (k, n), transition matrices (k, n, n) and antisymmetric increments (k, n, n)."""
    generator, n, k = numpy_generator(seed, "chains"), config.states, config.chains
    # A start without any chance for a state would have no reversed path there.
    start = generator.dirichlet(np.full(n, config.concentration), size=k) + 1e-6
    transition = generator.random((k, n, n)) ** 2 + 0.02
    increments = generator.standard_normal((k, n, n))
    return (
        start / start.sum(axis=1, keepdims=True),
        transition / transition.sum(axis=2, keepdims=True),
        increments - increments.transpose(0, 2, 1),
    )


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Search the paths of random chains, sample a relaxation and simulate a market, once."""
    found = measure_chains(*random_chains(config, seed), config.steps)
    uncertainty = measure_relaxation(config, [*TIMES, config.duration], numpy_generator(seed, "relaxation"))
    draws = numpy_generator(seed, "market").standard_normal(config.prices // 2)
    sharpe = [best_sharpe(config, horizon, draws) for horizon in (*HORIZONS, config.horizon)]
    return {
        "best_observable": float(np.log(found["best_observable"]).mean()),
        "best_current": float(found["best_current"].mean()),
        "reversal_cost": float(found["cost"].mean()),
        "beaten": share_beaten(found["proved"], found["cost"]),
        "beaten_without_nonstationarity": share_beaten(found["proved"], found["entropy"]),
        "relaxation_uncertainty": uncertainty[-1],
        "best_sharpe": sharpe[-1],
        "shown": np.stack([found[key][:SHOWN] for key in ("uncertainty", "cost", "entropy")]).tolist(),
        "uncertainty_curve": uncertainty[:-1],
        "sharpe_curve": sharpe[:-1],
    }


def measure_chains(start: Array, transition: Array, increments: Array, steps: int) -> dict[str, Array]:
    """List the paths of every chain and return what they show, one number for each chain."""
    n = start.shape[1]
    paths = np.array(list(itertools.product(range(n), repeat=steps + 1)))
    places = n ** np.arange(steps, -1, -1)
    backwards = paths[:, ::-1] @ places  # the number of the path read backwards

    def chance(first: Array) -> Array:
        steps_taken = transition[:, paths[:, :-1], paths[:, 1:]].prod(axis=2)
        return np.asarray(first[:, paths[:, 0]] * steps_taken)

    forward = chance(start)
    reverse = forward[:, backwards]
    last = np.stack([forward[:, paths[:, -1] == k].sum(axis=1) for k in range(n)], axis=1)
    reversed_process = chance(last)[:, backwards]
    current = increments[:, paths[:, :-1], paths[:, 1:]].sum(axis=2)
    mean = (forward * current).sum(axis=1)
    variance = (forward * (current - mean[:, None]) ** 2).sum(axis=1)
    first_of_pair = np.flatnonzero(np.arange(len(paths)) < backwards)
    antisymmetric = np.zeros((len(paths), len(first_of_pair)))
    antisymmetric[first_of_pair, np.arange(len(first_of_pair))] = 1.0
    antisymmetric[backwards[first_of_pair], np.arange(len(first_of_pair))] = -1.0
    return {
        "best_observable": largest_shift(forward, reverse),
        "best_current": largest_precision(forward, antisymmetric),
        "cost": (forward * np.log(forward / reverse)).sum(axis=1),
        "entropy": (forward * np.log(forward / reversed_process)).sum(axis=1),
        "uncertainty": variance / mean**2,
        "proved": np.log1p(2 * mean**2 / variance),  # the cost that a current of this precision proves
    }


def share_beaten(proved: Array, cost: Array) -> float:
    """Return the share of chains whose current proves a higher cost than they have."""
    return float((proved > cost * (1 + 1e-9) + ROUNDING).mean())


def largest_shift(forward: Array, reverse: Array) -> Array:
    """Return the largest squared shift of the mean over the variance, among all observables of the path."""
    size = forward.shape[1]
    covariance = forward[:, :, None] * np.eye(size) - forward[:, :, None] * forward[:, None, :]
    shift = reverse - forward
    # Constants neither shift nor vary; the added matrix keeps them out of the solution.
    best = np.linalg.solve(covariance + np.ones((size, size)) / size**2, shift[:, :, None])[:, :, 0]
    mean = (forward * best).sum(axis=1, keepdims=True)
    found: Array = (shift * best).sum(axis=1) ** 2 / (forward * (best - mean) ** 2).sum(axis=1)
    return found


def largest_precision(forward: Array, basis: Array) -> Array:
    """Return the largest squared mean over the mean square, among the observables that a basis spans."""
    mean = forward @ basis
    squares = np.einsum("kp,pa,pb->kab", forward, basis, basis, optimize=True)
    best = np.linalg.solve(squares, mean[:, :, None])[:, :, 0] @ basis.T
    found: Array = (forward * best).sum(axis=1) ** 2 / (forward * best**2).sum(axis=1)
    return found


def measure_relaxation(config: Config, times: list[int], generator: np.random.Generator) -> list[float]:
    """Return the relative uncertainty of the net number of jumps up, at some times."""
    state = generator.random(config.trajectories) < config.start
    net = np.zeros(config.trajectories)
    seen = {}
    for step in range(1, max(times) + 1):
        jumps = generator.random(config.trajectories) < JUMP
        net += np.where(jumps, np.where(state, -1.0, 1.0), 0.0)
        state ^= jumps
        if step in times:
            seen[step] = float(net.var() / net.mean() ** 2)
    return [seen[step] for step in times]


def best_sharpe(config: Config, horizon: float, draws: Array) -> float:
    """Return the largest squared Sharpe ratio of claims on a power of the stock, both laws simulated."""
    both = np.concatenate([draws, -draws])
    drift = RATE + config.market_price_of_risk * config.volatility

    def log_price(growth: float) -> Array:
        return (growth - config.volatility**2 / 2) * horizon + config.volatility * math.sqrt(horizon) * both

    physical, priced = log_price(drift), log_price(RATE)
    ratios = []
    for power in POWERS:
        payoff = np.exp(power * physical)
        gain = payoff.mean() - np.exp(power * priced).mean()
        ratios.append(float(gain**2 / payoff.var()))
    return max(ratios)


@functools.lru_cache(maxsize=64)
def theory(config: Config, seed: int) -> dict[str, float]:
    """Return what transfer matrices say of the chains of a repetition, on average over them."""
    rows = []
    for start, transition, increments in zip(*random_chains(config, seed), strict=True):
        chain = MarkovPaths(start, transition, config.steps)
        current, entropy = chain.current_statistics(increments), chain.entropy_production()
        rows.append(
            {
                "log_gamma_excess": math.log(math.expm1(chain.log_reversal_gamma())),
                "linear_response": math.log(2 * (entropy + chain.nonstationarity())),
                "entropy": entropy,
                "cost": entropy + chain.nonstationarity(),
                "squared_tanh": chain.mean_squared_tanh(),
                "entropy_allows": math.tanh(entropy / 2),
                "beats_entropy": float(current.variance < tur_current(current.mean, entropy)),
            }
        )
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in rows[0]}


def predict(key: str) -> Callable[[Config, int], float]:
    """Return the prediction of one entry of the theory."""
    return lambda config, seed: theory(config, seed)[key]


def relaxation(config: Config, steps: int) -> MarkovPaths:
    """Return the relaxing two-state system."""
    return MarkovPaths([1 - config.start, config.start], [[1 - JUMP, JUMP], [JUMP, 1 - JUMP]], steps)


def predict_uncertainty(config: Config, steps: int) -> float:
    """Return the relative uncertainty of the relaxation's net jumps, exactly."""
    return relaxation(config, steps).current_statistics([[0, 1], [-1, 0]]).relative_uncertainty


def entropy_bound(config: Config, steps: int) -> float:
    """Return the least relative uncertainty if entropy production alone paid for it."""
    return tur_current(1.0, relaxation(config, steps).entropy_production())


def draw(record: Record) -> "Figure":
    """Draw precision against its cost, the relaxation in time, and Sharpe ratios against the horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    chains, relaxing, market = figure.subplots(1, 3)
    draw_chains(chains, record)
    draw_relaxation(relaxing, record)
    draw_market(market, record)
    handles = [
        chains.plot([], [], color=THEORY)[0],
        chains.plot([], [], color=THEORY, linestyle=":")[0],
        chains.plot([], [], "o", ms=4, color=MEASUREMENT)[0],
        chains.plot([], [], color=RIVAL, linestyle="--")[0],
    ]
    labels = ["theory", "lower bound", "measurement", "rival: without D; square root of time"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def draw_chains(axes: "Axes", record: Record) -> None:
    """Draw the uncertainty of random currents against their cost, and against entropy production alone."""
    uncertainty, cost, entropy = np.concatenate(record.array("shown"), axis=1)
    fine = np.geomspace(cost.min() / 2, cost.max() * 2, 100)
    axes.loglog(fine, 2 / np.expm1(fine), color=THEORY, linestyle=":")
    axes.loglog(entropy, uncertainty, "x", ms=3.5, color=RIVAL, alpha=0.6)
    axes.loglog(cost, uncertainty, "o", ms=2.5, color=MEASUREMENT, alpha=0.6)
    axes.set(xlim=(0.02, 10), ylim=(0.08, 200), xlabel=r"cost: o $\sigma+D$,  x $\sigma$ alone (nats)")
    axes.set(ylabel=r"$\mathrm{Var}\,J/\langle J\rangle^2$", title="random chains")


def draw_relaxation(axes: "Axes", record: Record) -> None:
    """Draw the uncertainty of the relaxing current against time, with both bounds."""
    config, fine = record.config, range(1, TIMES[-1] + 1)
    axes.plot(fine, [predict_uncertainty(config, t) for t in fine], color=THEORY)
    axes.plot(fine, [relaxation(config, t).least_variance(1.0) for t in fine], color=THEORY, linestyle=":")
    axes.plot(fine, [entropy_bound(config, t) for t in fine], color=RIVAL, linestyle="--")
    draw_points(axes, TIMES, record.array("uncertainty_curve"))
    axes.set(title="relaxation", xlabel="steps", ylabel=r"$\mathrm{Var}\,J/\langle J\rangle^2$")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(0, TIMES[-1] + 1, 2))


def draw_market(axes: "Axes", record: Record) -> None:
    """Draw the best squared Sharpe ratio against the horizon."""
    price, fine = record.config.market_price_of_risk, np.linspace(0.1, HORIZONS[-1] * 1.05, 60)
    bound = [max_sharpe(market_price_of_risk=price, horizon=float(t)) ** 2 for t in fine]
    axes.plot(fine, bound, color=THEORY)
    axes.plot(fine, price**2 * fine, color=RIVAL, linestyle="--")
    draw_points(axes, HORIZONS, record.array("sharpe_curve"))
    axes.set(title="market", xlabel="horizon (years)", ylabel="best squared Sharpe ratio")


def draw_points(axes: "Axes", where: tuple[float, ...], values: Array) -> None:
    """Draw measured values, one row for each repetition, with their intervals."""
    error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    axes.errorbar(where, values.mean(axis=0), yerr=error, fmt="o", ms=4, color=MEASUREMENT, capsize=2)


STUDY = Study(
    title="Thermodynamic bound on precision",
    paper=Paper("2202.13311", result="universal and nonstationary uncertainty relations; Sharpe ratios"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"chains": 3000, "trajectories": 1_000_000, "prices": 10_000_000}},
    claims=[
        Claim(
            "best_observable",
            formula=r"\max_f\frac{(\langle f\rangle_Q-\langle f\rangle_P)^2}{\mathrm{Var}_Pf}"
            r"=\gamma-1=\langle e^{2R}\rangle_P-1\text{ (mean logarithm)}",
            predict=predict("log_gamma_excess"),
            margin=1e-6,
            because="rounding in the search; the identity is exact",
            rival=Rival(
                "linear response, 2 (entropy production + D)",
                predict("linear_response"),
            ),
        ),
        Claim(
            "reversal_cost",
            formula=r"\langle\log P/Q\rangle=\langle\sigma\rangle+D(P_\tau\|P_0)",
            predict=predict("cost"),
            margin=1e-9,
            because="rounding; the identity is exact",
            rival=Rival(
                "entropy production alone",
                predict("entropy"),
            ),
        ),
        Claim(
            "best_current",
            formula=r"\max_J\frac{\langle J\rangle^2}{\langle J^2\rangle}=\langle\tanh^2(R/2)\rangle",
            predict=predict("squared_tanh"),
            margin=1e-6,
            because="rounding in the search; the identity is exact",
            rival=Rival(
                "what entropy production alone allows",
                predict("entropy_allows"),
            ),
        ),
        Claim(
            "beaten",
            formula=r"P\Big(\frac{\mathrm{Var}J}{\langle J\rangle^2}<\frac2{e^{\sigma+D}-1}\Big)=0",
            predict=lambda config, seed: 0.0,
            margin=1e-4,
            because="none: one chain that beats the bound is more",
            rival=Rival("D costs nothing", predict("beats_entropy")),
        ),
        Claim(
            "beaten_without_nonstationarity",
            formula=r"P\Big(\frac{\mathrm{Var}J}{\langle J\rangle^2}<\frac2{e^{\sigma}-1}\Big)>0",
            predict=predict("beats_entropy"),
            margin=1e-3,
            because="rounding, where a chain ties; transfer matrices say exactly which chains do",
            rival=Rival("entropy production alone suffices", lambda config, seed: 0.0),
        ),
        Claim(
            "relaxation_uncertainty",
            formula=r"\mathrm{Var}J/\langle J\rangle^2\text{ by transfer matrices, }J=x_\tau-x_0",
            predict=lambda config: predict_uncertainty(config, config.duration),
            margin=0.04,
            relative=True,
            because="sampling, over six standard errors; the value is exact",
            rival=Rival(
                "the least that entropy production alone allows",
                lambda config: entropy_bound(config, config.duration),
            ),
        ),
        Claim(
            "best_sharpe",
            formula=r"\max_f\frac{(\langle f\rangle_P-e^{r\tau}p)^2}{\mathrm{Var}f}=e^{\vartheta^2\tau}-1",
            predict=lambda config: (
                max_sharpe(market_price_of_risk=config.market_price_of_risk, horizon=config.horizon) ** 2
            ),
            margin=0.02,
            relative=True,
            because="sampling, over six standard errors, and powers a quarter apart",
            rival=Rival(
                "the square root of time", lambda config: config.market_price_of_risk**2 * config.horizon
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.markov_paths.MarkovPaths",
        "symdyn_core.dynamics.uncertainty.utur_bound",
        "symdyn_core.dynamics.uncertainty.tur_current",
        "symdyn_core.dynamics.uncertainty.max_sharpe",
    ),
)
