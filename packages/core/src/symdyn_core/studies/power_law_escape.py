r"""How does SGD leave a valley, and is the time it takes exponential in the height of the barrier?

For the mean-square loss the noise of SGD is in proportion to the loss. With the temperature
$T=\eta h^*/B$, $h^*$ being the curvature of the valley, this makes powers where noise of constant strength
makes exponentials: the stationary law is $P(\theta)\propto L(\theta)^{-\phi}$ with $\phi=1+1/T$, and the rate
of escape over a saddle

$$\kappa=\frac{\sqrt{h^*|h^s|}}{2\pi}\Big[\frac{L^s}{L^*}\Big]^{-(\frac12+\frac1T)}.$$

With n steep directions the power is $1/T+1-n/2$, so that a valley with many of them holds SGD less well.

Set-up, four experiments. Walkers in a parabola, whose far quantile is compared with that of $L^{-\phi}$.
Walkers in a double well, $L=\frac12+\frac14(\theta^2-1)^2$, whose rate of crossing is compared with $\kappa$.
Walkers in a parabola of four dimensions that wait for a loss three times the least: by how much longer than
for twice the least. And regression on Gaussian data in fifty dimensions, where the trace of the covariance of
the per-sample gradients is compared with $2L\,\mathrm{Tr}H$ far from the minimum.

Walkers follow $d\theta=-\nabla L\,dt+\sqrt{2TL}\,dB$, in Cartesian coordinates and with small Euler steps;
the predictions are the laws above and, for the waiting times at these moderate losses, the quadrature of the
mean first passage time of the radius.

The theory would be refuted by the power $1/T$ that forgets the change of time; by the exponential
(Arrhenius) rate of noise as strong everywhere as at the minimum; by waiting times that know nothing of the
number of directions; by noise that does not grow with the loss.
How far this holds: these are the laws of the equation. Real SGD at the large steps that escapes need has
shorter tails in one dimension, because the noise along the displacement is not in proportion to the loss.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from symdyn_core.dynamics.escape import escape_rate, power_law_exponent
from symdyn_core.dynamics.first_passage import log_mfpt_1d
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

QUANTILE = 0.99
SNAPSHOTS, APART = 12, 2.0  # of the walkers in a parabola; so many units of time apart
PARABOLA_STEP, WELL_STEP, WAITING_STEP = 0.01, 0.02, 0.004
SETTLED, CROSSED = 15.0, -0.6  # time after which crossings count; where a walker has crossed
LOSSES = (2.0, 3.0)  # waited for, in units of the least
WAITING_TEMPERATURE = 0.25
DIMENSIONS = (2, 4)
FEATURES, DISPLACEMENT = 50, 1.5
BINS = np.linspace(-1.2, 1.2, 25)  # of the figure


@dataclass(frozen=True)
class Config:
    """Settings of power-law escape."""

    curvature: float = setting(1.3, valid=(0.8, 2.0), verify=(1.0, 1.8), help="h of the parabola")
    least_loss: float = setting(0.5, valid=(0.2, 1.0), verify=(0.3,), help="loss at its minimum")
    temperature: float = setting(
        0.2, valid=(0.15, 0.25), verify=(0.16, 0.24), help="learning rate times curvature over batch size"
    )
    barrier_temperature: float = setting(
        0.08, valid=(0.07, 0.1), verify=(0.075, 0.09), help="the same in the double well"
    )
    walkers: int = setting(1500, valid=(1000, 1_000_000), help="in the parabola")
    crossing_walkers: int = setting(1500, valid=(1000, 1_000_000), help="in the double well")
    crossing_time: float = setting(150.0, valid=(100.0, 100_000.0), help="how long they are watched")
    waiting_walkers: int = setting(300, valid=(200, 1_000_000), help="that wait for a loss")
    samples: int = setting(10_000, valid=(5000, 1_000_000), help="of the regression")


def settle(config: Config, generator: np.random.Generator) -> Array:
    """Return snapshots of walkers in the parabola, shape (snapshots, walkers)."""
    h, heat, step = config.curvature, 2 * config.temperature * PARABOLA_STEP, PARABOLA_STEP
    theta = np.zeros(config.walkers)
    snapshots = []
    apart = round(APART / h / step)
    for when in range(1, (SNAPSHOTS + 3) * apart + 1):  # three of them to forget the start
        noise = np.sqrt(heat * (h * theta**2 / 2 + config.least_loss))
        theta = theta - step * h * theta + noise * generator.standard_normal(theta.shape)
        if when % apart == 0 and when > 3 * apart:
            snapshots.append(theta)
    return np.array(snapshots)


def cross(config: Config, generator: np.random.Generator) -> float:
    """Return the rate at which walkers cross from one well to the other, per unit of time."""
    heat = 2 * config.barrier_temperature * WELL_STEP
    theta, crossings, watched = np.ones(config.crossing_walkers), 0, 0.0
    for when in range(round(config.crossing_time / WELL_STEP)):
        excess = theta**2 - 1
        noise = np.sqrt(heat * (0.5 + excess**2 / 4))
        theta = theta - WELL_STEP * theta * excess + noise * generator.standard_normal(theta.shape)
        stays = theta > CROSSED
        if when * WELL_STEP > SETTLED:
            crossings += int((~stays).sum())
            watched += WELL_STEP * len(theta)
        theta = theta[stays]
    return crossings / watched


def wait(dimension: int, walkers: int, generator: np.random.Generator) -> list[float]:
    """Return the mean times until walkers in a parabola first see losses twice and three times the least."""
    heat = 2 * WAITING_TEMPERATURE * WAITING_STEP
    theta = np.zeros((walkers, dimension))
    times = np.full((len(LOSSES), walkers), math.nan)
    index, when = np.arange(walkers), 0
    while len(index):
        when += 1
        loss = ((theta**2).sum(axis=1, keepdims=True) + 1) / 2
        noise = np.sqrt(heat * loss)
        theta = theta * (1 - WAITING_STEP) + noise * generator.standard_normal(theta.shape)
        loss = (theta**2).sum(axis=1) + 1
        for level, ratio in enumerate(LOSSES):
            first = index[(loss > ratio) & np.isnan(times[level, index])]
            times[level, first] = when * WAITING_STEP
        waits = loss <= LOSSES[-1]
        theta, index = theta[waits], index[waits]
    means: list[float] = times.mean(axis=1).tolist()
    return means


def gradient_trace(samples: int, generator: np.random.Generator) -> tuple[float, float]:
    """Return the trace of the covariance of per-sample gradients of linear regression, and the mean loss."""
    inputs = generator.standard_normal((samples, FEATURES))
    residuals = DISPLACEMENT * inputs[:, 0] + generator.standard_normal(samples)
    gradients = residuals[:, None] * inputs
    return float(gradients.var(axis=0, ddof=1).sum()), float((residuals**2).mean() / 2)


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run the four experiments once."""
    settled = settle(config, numpy_generator(seed, "parabola"))
    times = [
        wait(dimension, config.waiting_walkers, numpy_generator(seed, "waiting", dimension))
        for dimension in DIMENSIONS
    ]
    trace, _ = gradient_trace(config.samples, numpy_generator(seed, "regression"))
    counts = np.histogram(settled, BINS)[0] / (settled.size * np.diff(BINS))
    return {
        "far_quantile": float(np.quantile(np.abs(settled), QUANTILE)),
        "crossing_rate": cross(config, numpy_generator(seed, "double well")),
        "waiting_slope": slope(times[-1]),
        "gradient_trace": trace,
        "density": [float(count) for count in counts],
        "times": times,
    }


def slope(times: list[float]) -> float:
    """Return the power of the loss ratio by which the second time is longer than the first."""
    return math.log(times[1] / times[0]) / math.log(LOSSES[1] / LOSSES[0])


# ----------------------------------------------------------------------------------------------- predictions


def student(config: Config, phi: float) -> Any:
    """Return the law with density L^-phi of the parabola: a Student t law."""
    freedom = 2 * phi - 1
    return stats.t(freedom, scale=math.sqrt(2 * config.least_loss / (config.curvature * freedom)))


def phi(temperature: float) -> float:
    """Return the exponent of the stationary law at a temperature."""
    return power_law_exponent(1.0, learning_rate=temperature, batch_size=1)


def predict_crossing(temperature: float) -> float:
    """Return the power law's rate of crossing the saddle of the double well."""
    return escape_rate(0.5, 0.75, 2.0, -1.0, learning_rate=temperature / 2, batch_size=1)


def arrhenius(temperature: float) -> float:
    """Return the rate of crossing where the noise is everywhere that of the minimum."""
    return math.sqrt(2) / (2 * math.pi) * math.exp(-0.25 / (0.5 * temperature))


def log_waiting_time(dimension: int, ratio: float) -> float:
    """Return the logarithm of the mean time until the loss is so many times the least, by quadrature."""
    return log_mfpt_1d(
        lambda r: -r + (dimension - 1) * WAITING_TEMPERATURE * (r**2 + 1) / 2 / r,
        lambda r: np.sqrt(WAITING_TEMPERATURE * (r**2 + 1)),
        start=0.01,
        absorbing=math.sqrt(ratio - 1),
        reflecting=1e-3,
    )


def predict_slope(dimension: int) -> float:
    """Return the predicted power between the two losses."""
    rise = log_waiting_time(dimension, LOSSES[1]) - log_waiting_time(dimension, LOSSES[0])
    return rise / math.log(LOSSES[1] / LOSSES[0])


def draw(record: Record) -> "Figure":
    """Draw the stationary density, the rate of crossing and the waiting times."""
    from matplotlib.figure import Figure

    config = record.config
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    fine = np.linspace(BINS[0], BINS[-1], 300)
    left.plot(fine, student(config, phi(config.temperature)).pdf(fine), color=THEORY)
    left.plot(fine, student(config, phi(config.temperature) - 1).pdf(fine), color=RIVAL, linestyle="--")
    mean, error = summary(record.array("density"))
    left.errorbar((BINS[1:] + BINS[:-1]) / 2, mean, yerr=error, fmt="o", ms=3.5, color=MEASUREMENT)
    left.set(
        title="parabola", xlabel=r"$\theta$", ylabel="density", yscale="log", ylim=(mean.max() / 3000, None)
    )

    heat = np.linspace(0.05, 0.12, 60)
    middle.plot(1 / heat, [predict_crossing(float(t)) for t in heat], color=THEORY)
    middle.plot(1 / heat, [arrhenius(float(t)) for t in heat], color=RIVAL, linestyle="--")
    mean, error = summary(record.array("crossing_rate")[:, None])
    middle.errorbar([1 / config.barrier_temperature], mean, yerr=error, fmt="o", ms=5, color=MEASUREMENT)
    middle.set(
        title="double well", xlabel="1 / temperature", ylabel="crossings per unit of time", yscale="log"
    )

    ratios = np.linspace(1.5, 3.3, 30)
    for place, dimension in enumerate(DIMENSIONS):
        times = [math.exp(log_waiting_time(dimension, float(ratio))) for ratio in ratios]
        right.plot(ratios, times, color=THEORY)
        right.annotate(f"n = {dimension}", (ratios[-1], times[-1]), ha="right", va="bottom")
        mean, error = summary(record.array("times")[:, place])
        right.errorbar(LOSSES, mean, yerr=error, fmt="o", ms=5, color=MEASUREMENT)
        if dimension == DIMENSIONS[-1]:
            same = math.exp(log_waiting_time(dimension, LOSSES[0])) * (ratios / LOSSES[0]) ** predict_slope(1)
            right.plot(ratios, same, color=RIVAL, linestyle="--")
    right.set(title="waiting for a loss", xlabel="loss / least loss", ylabel="mean time", yscale="log")
    handles = [
        right.plot([], [], color=THEORY)[0],
        right.plot([], [], color=RIVAL, linestyle="--")[0],
        right.plot([], [], "o", color=MEASUREMENT)[0],
    ]
    labels = [
        "theory",
        "rival: no change of time; frozen noise; no effect of n",
        "simulation, 2 s.e.",
    ]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def summary(values: Array) -> tuple[Array, Array | None]:
    """Return mean and two standard errors over the repetitions."""
    error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return values.mean(axis=0), error


STUDY = Study(
    title="Power-law escape from a valley",
    paper=Paper("2105.09557", result="stationary law on the log loss, escape rate, effective dimension"),
    version=1,
    config=Config,
    presets={
        "quick": {},
        "full": {
            "walkers": 20_000,
            "crossing_walkers": 20_000,
            "waiting_walkers": 10_000,
            "samples": 200_000,
        },
    },
    claims=[
        Claim(
            "far_quantile",
            formula=r"P(|\theta|<q)=0.99,\ P\propto L^{-(1+1/T)}",
            predict=lambda config: float(student(config, phi(config.temperature)).ppf((1 + QUANTILE) / 2)),
            margin=0.04,
            relative=True,
            because="finite step: about half a per cent; six standard errors are the rest",
            rival=Rival(
                "the change of time forgotten: 1/T for 1 + 1/T",
                lambda config: float(student(config, phi(config.temperature) - 1).ppf((1 + QUANTILE) / 2)),
            ),
        ),
        Claim(
            "crossing_rate",
            formula=r"\kappa=\frac{\sqrt{h^*|h^s|}}{2\pi}[L^s/L^*]^{-(1/2+1/T)}",
            predict=lambda config: predict_crossing(config.barrier_temperature),
            margin=0.2,
            relative=True,
            because="of leading order in T: five per cent; six standard errors are the rest",
            rival=Rival(
                "noise frozen at the minimum (Arrhenius)",
                lambda config: arrhenius(config.barrier_temperature),
            ),
        ),
        Claim(
            "waiting_slope",
            formula=r"\log[t(3L^*)/t(2L^*)]/\log\frac32,\ n=4",
            predict=lambda config: predict_slope(DIMENSIONS[-1]),
            margin=0.3,
            because="short visits missed by the finite step: two per cent; six standard errors are the rest",
            rival=Rival("no effect of the number of directions", lambda config: predict_slope(1)),
        ),
        Claim(
            "gradient_trace",
            formula=r"\mathrm{Tr}\,\Sigma=2L\,\mathrm{Tr}\,H",
            predict=lambda config: (1 + DISPLACEMENT**2) * FEATURES,
            margin=0.06,
            relative=True,
            because="the squared gradient, left out: one part in the dimension; six standard errors",
            rival=Rival("noise of the minimum everywhere", lambda config: float(FEATURES)),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.escape.escape_rate",
        "symdyn_core.dynamics.first_passage.log_mfpt_1d",
    ),
)
