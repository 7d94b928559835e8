r"""At which learning rate does SGD forget a weak signal?

The loss of a product of two weights, $\ell=(uwx-y)^2$ with $y=kx+\epsilon$, has a saddle at zero, and
gradient descent always leaves it to learn $uw=k$. SGD need not: near zero its noise multiplies the weights,
and $\ln|uw|$ performs a random walk with drift $4(\beta_2-\alpha_3T)$, $\beta_2=\mathbb E[xy]$,
$\alpha_3=\mathrm{Var}[xy]$. Above $T_c=\beta_2/\alpha_3$ the walk goes to minus infinity and the signal is
lost, however long one trains. The exact drift at finite step is $\frac2\eta\,\mathbb E\ln|1+2\eta xy|$.

Set-up: online SGD with one sample a step, $x,\epsilon$ standard normal, many networks at once. First
experiment: the weights start so small that the saddle is all they see, and the growth of $\ln|uw|$ per unit
of time (one learning rate a step) is measured. Second experiment: the weights start at $u=w=0.2$, train for
long, and the fraction of networks with $|uw|<10^{-6}$ at the end is counted below and above the transition:
far enough below, as just under it the stationary law still has a heavy tail towards zero. Networks that
diverge count as not collapsed.

The theory would be refuted by growth at another rate than predicted, in particular by the rate of a law
that gets the strength of the noise wrong by a factor of two (easily done, since the loss has no factor
1/2), by collapse below the transition or by survival above it. How far this holds: for a weak signal only.
With $k\ge0.25$ no learning rate at all makes these Gaussian data collapse, although $T_c$ is finite.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.estimate import proportion
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# The first experiment: so small a start and so short a run that uw neither reaches k nor underflows.
NEAR_ZERO = 1e-40  # u = w at the start
GROWTH_STEPS = 1000
# The second.
START = 0.2  # u = w at the start
COLLAPSED = 1e-6
CURVE = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)  # learning rates of the figure, in units of the signal
RUNS_PER_POINT = 20  # of the figure


@dataclass(frozen=True)
class Config:
    """Settings of the collapse of a weak signal."""

    learning_rate: float = setting(
        0.13, valid=(0.02, 0.2), verify=(0.05, 0.105, 0.2), help="at which the growth near zero is measured"
    )
    signal: float = setting(0.1, valid=(0.08, 0.12), verify=(0.08, 0.12), help="k of y = k x + noise")
    below: float = setting(
        0.52, valid=(0.3, 0.55), verify=(0.55,), help="learning rate / signal of runs that should survive"
    )
    above: float = setting(
        1.3, valid=(1.2, 1.4), verify=(1.2,), help="learning rate / signal of runs that should collapse"
    )
    steps: int = setting(12_000, valid=(10_000, 1_000_000), help="length of the runs that may collapse")
    growth_runs: int = setting(1600, valid=(100, 100_000), help="networks that start near zero")
    runs: int = setting(100, valid=(50, 10_000), help="networks per learning rate that may collapse")


def simulate(
    learning_rates: Array, signal: float, start: float, steps: int, generator: np.random.Generator
) -> Array:
    """Train one network per learning rate and return ``uw``, shape (n,); diverged ones are not finite."""
    u = np.full(learning_rates.shape, start)
    w = u.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            x = generator.standard_normal(u.shape)
            y = signal * x + generator.standard_normal(u.shape)
            step = 2 * learning_rates * (u * w * x - y) * x
            u, w = u - step * w, w - step * u
        product: Array = u * w
    return product


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run both experiments once."""
    curve = config.signal * np.array(CURVE)

    rates = np.concatenate(
        [np.full(config.growth_runs, config.learning_rate), np.repeat(curve, RUNS_PER_POINT)]
    )
    product = simulate(rates, config.signal, NEAR_ZERO, GROWTH_STEPS, numpy_generator(seed, "growth"))
    growth = np.log(np.abs(product) / NEAR_ZERO**2) / (GROWTH_STEPS * rates)

    chosen = np.array([config.below, config.above]) * config.signal
    rates = np.concatenate([np.repeat(chosen, config.runs), np.repeat(curve, RUNS_PER_POINT)])
    product = simulate(rates, config.signal, START, config.steps, numpy_generator(seed, "collapse"))
    collapsed = np.abs(product) < COLLAPSED
    below, above, others = np.split(collapsed, [config.runs, 2 * config.runs])
    return {
        "growth_rate": float(growth[: config.growth_runs].mean()),
        "collapsed_below": below.astype(int).tolist(),
        "collapsed_above": above.astype(int).tolist(),
        "growth_curve": growth[config.growth_runs :].reshape(-1, RUNS_PER_POINT).mean(axis=1).tolist(),
        "collapsed_curve": others.reshape(-1, RUNS_PER_POINT).sum(axis=1).tolist(),
    }


def landscape(config: Config) -> LandscapeNoise:
    """Moments of the data, from the settings."""
    return LandscapeNoise.gaussian(config.signal, sigma=1.0)


def predict_collapse(config: Config, multiple: float) -> float:
    """Return 1 if the exact growth rate at this multiple of the signal is negative, else 0."""
    return float(landscape(config).discrete_growth_rate(multiple * config.signal) < 0)


def misjudged_growth_rate(config: Config, learning_rate: float, noise: float) -> float:
    """Growth near zero under a law with the noise scaled by a factor, for small steps."""
    return landscape(config).growth_rate(noise * learning_rate)


def draw(record: Record) -> "Figure":
    """Draw growth rate and collapsed fraction against learning rate."""
    from matplotlib.figure import Figure

    config = record.config
    noise = landscape(config)
    curve = config.signal * np.array(CURVE)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)

    fine = np.linspace(curve[0], max(curve[-1], config.learning_rate), 60)
    left.plot(fine, [noise.discrete_growth_rate(rate) for rate in fine], color=THEORY)
    left.plot(fine, [misjudged_growth_rate(config, rate, 2.0) for rate in fine], color=RIVAL, linestyle="--")
    left.axhline(0.0, color="black", linewidth=0.8)
    rates = np.append(curve, config.learning_rate)
    growth = np.column_stack([record.array("growth_curve"), record.array("growth_rate")])
    error = 2 * growth.std(axis=0, ddof=1) / np.sqrt(len(growth)) if len(growth) > 1 else None
    left.errorbar(rates, growth.mean(axis=0), yerr=error, fmt="o", ms=4, color=MEASUREMENT)
    left.set(title="near zero", xlabel="learning rate", ylabel=r"growth of $\ln|uw|$ per unit time")

    counts = record.array("collapsed_curve").sum(axis=0)
    total = RUNS_PER_POINT * len(record.repetitions)
    estimates = [proportion([[1] * int(count) + [0] * (total - int(count))]) for count in counts]
    middle = np.array([estimate.value for estimate in estimates])
    reach = np.array([[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]])
    critical = noise.discrete_critical_learning_rate()
    wrong = noise.critical_temperature() / 2
    for transition, style in ((critical, {"color": THEORY}), (wrong, {"color": RIVAL, "linestyle": "--"})):
        if transition is not None:
            right.step([curve[0], transition, curve[-1]], [0, 1, 1], where="post", **style)
    right.errorbar(curve, middle, yerr=reach, fmt="o", ms=4, color=MEASUREMENT)
    right.set(title=f"after {config.steps} steps", xlabel="learning rate", ylabel="collapsed fraction")

    handles = [
        left.plot([], [], color=THEORY)[0],
        left.plot([], [], color=RIVAL, linestyle="--")[0],
        left.plot([], [], "o", color=MEASUREMENT)[0],
    ]
    labels = ["theory", "noise twice as strong", "SGD, 95 % interval"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


STUDY = Study(
    title="Collapse of a weak signal",
    paper=Paper(
        "2308.06671", result="phase transition of the two-layer linear net at the critical temperature"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"steps": 60_000, "runs": 500, "growth_runs": 10_000}},
    claims=[
        Claim(
            "growth_rate",
            formula=r"\frac{d}{dt}\ln|uw|=\frac{2}{\eta}\mathbb{E}\ln|1+2\eta xy|\simeq 4(\beta_2-\alpha_3T)",
            predict=lambda config: landscape(config).discrete_growth_rate(config.learning_rate),
            margin=0.02,
            because="sampling: over four standard errors with the fewest networks; the law is exact",
            rival=Rival(
                "noise twice as strong: the transition at half the critical temperature",
                lambda config: misjudged_growth_rate(config, config.learning_rate, 2.0),
            ),
        ),
        Claim(
            "collapsed_below",
            formula=r"P(|uw|<10^{-6})\approx 0 \text{ where } \mathbb{E}\ln|1+2\eta xy|>0",
            predict=lambda config: predict_collapse(config, config.below),
            margin=0.05,
            because="the stationary law below the transition has a power-law tail towards zero",
            estimator=proportion,
            rival=Rival(
                "noise twice as strong: collapse from half the critical temperature",
                lambda config: float(misjudged_growth_rate(config, config.below * config.signal, 2.0) < 0),
            ),
        ),
        Claim(
            "collapsed_above",
            formula=r"P(|uw|<10^{-6})\approx 1 \text{ where } \mathbb{E}\ln|1+2\eta xy|<0",
            predict=lambda config: predict_collapse(config, config.above),
            margin=0.05,
            because="networks still on their way after a finite time, and a few that diverge",
            estimator=proportion,
            rival=Rival(
                "noise half as strong: collapse from twice the critical temperature",
                lambda config: float(misjudged_growth_rate(config, config.above * config.signal, 0.5) < 0),
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=("symdyn_core.dynamics.diagonal_net.LandscapeNoise",),
)
