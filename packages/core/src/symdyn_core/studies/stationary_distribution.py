r"""Where does SGD stay when it has learnt what it can, and how is it distributed there?

For $\ell=(uwx-y)^2$, $y=kx+\epsilon$, $\mathrm{Var}[\epsilon]=\sigma^2$, noise balances the two weights, and
the law of their product $v=uw$ is known in full. With $T$ the learning rate over the batch size and
$4g(v)$ the variance of $\partial\ell/\partial v$,

$$p(v)\propto v^{-3/2}g(v)^{-1}\exp\Big[-\frac1T\int\frac{\beta_1v-\beta_2}{2v\,g(v)}\,dv\Big],\qquad v>0.$$

It is nothing like a Gaussian about the minimum. It forbids a wrong sign, has the tail $v^{-7/2}$ whatever the
data, and piles up at zero as $T$ approaches $T_c$, so that the fluctuations of $v$ do not grow with the
temperature for ever: they turn round and vanish at $T_c$.

Set-up, three experiments. Many pairs of weights follow the stochastic differential equation of SGD,
$d\theta=-\nabla L\,dt+\sqrt{T\,C(\theta)}\,dB$, for data with a strong signal, and deciles and median of $v$
are compared. Many networks are trained by SGD itself, one fresh sample a step, on a weak signal, where the
steps that belong to these temperatures are small; the median is compared. Then the same equation for a weak
signal: how the variance at a high temperature compares with that at a low one.

The noise of the equation grows with $v$, and Euler's method run on it as it is diverges: some pair of weights
soon takes a step that flips its signs and leads further out, where the next step is larger. Therefore no step
of the equation may change a weight by more than half of it, which is many standard deviations of a step
wherever $v$ is found but in its far tail. The steps of SGD itself are left as they are.

The theory would be refuted by other deciles, in particular by those of the power $v^{-2}$, to which one comes
by treating $v$ like a weight of its own and dropping the trace that the noise of $u$ and $w$ leaves in their
product (Itô's term); and by a variance in proportion to the temperature, as it is near a minimum.
How far this holds: the law is that of small steps. For a signal that is not weak, SGD at one sample a step
needs large ones to reach these temperatures.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.dynamics.stationary_density import DiagonalNetStationary
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Runs last so many relaxation times (see there); snapshots are taken in the second half.
LENGTH, SNAPSHOTS = 8.0, 16
STRONG_STEP, WEAK_STEP = 0.004, 0.005  # of the differential equation, in units of 1/k
LARGEST = 0.5  # relative change of a weight in one of them
WEAK, COOL = 0.1, 0.3  # third experiment: signal, with label noise of variance 1; low temperature over T_c
CURVE = (0.1, 0.2, 0.5)  # further temperatures of the figure
RUNS_PER_POINT = 60  # of the figure
BINS = np.linspace(0.0, 2.5, 26)  # of the figure, in units of the signal


@dataclass(frozen=True)
class Config:
    """Settings of the stationary distribution; temperatures in units of the critical one."""

    temperature: float = setting(
        0.3, valid=(0.15, 0.4), verify=(0.2, 0.4), help="of the densities, in units of the critical one"
    )
    signal: float = setting(1.0, valid=(0.5, 1.5), verify=(0.6,), help="k of y = k x + noise")
    label_variance: float = setting(0.5, valid=(0.3, 2.0), verify=(1.0,), help="variance of the label noise")
    weak_signal: float = setting(
        0.05, valid=(0.04, 0.07), verify=(0.07,), help="k of the data that SGD itself is trained on"
    )
    hot: float = setting(
        0.65, valid=(0.55, 0.7), verify=(0.6, 0.7), help="high temperature whose variance is measured"
    )
    runs: int = setting(1500, valid=(500, 100_000), help="pairs of weights in the first experiment")
    networks: int = setting(400, valid=(100, 100_000), help="networks trained by SGD")
    hot_runs: int = setting(900, valid=(600, 100_000), help="pairs of weights at the high temperature")


def critical_temperature(signal: float, label_variance: float) -> float:
    """E[xy] / Var[xy] of standard normal inputs: what the settings are measured in."""
    return signal / (2 * signal**2 + label_variance)


def relaxation_time(signal: float, temperature: float) -> float:
    r"""Time in which the walk of $\ln v$ on its slope forgets; it decides how long to run, no more."""
    return 2 * temperature / (signal * (1 - temperature) ** 2)


def diffuse(
    signal: float, label_variance: float, temperatures: Array, step: float, generator: np.random.Generator
) -> Array:
    """Integrate the equation of SGD, one pair of weights per temperature; return v, shape (snapshots, n)."""
    heat = 4 * temperatures * critical_temperature(signal, label_variance) * step
    n_steps = round(LENGTH * relaxation_time(signal, float(temperatures.max())) / step)
    u = np.full(temperatures.shape, np.sqrt(signal))
    w = u.copy()
    snapshots = []
    for when in range(n_steps):
        excess = u * w - signal
        # Mean and, up to the factor 4, variance of the gradient in v = u w for a standard normal x.
        noise = np.sqrt(heat * (2 * excess**2 + label_variance))
        kick = 2 * step * excess + noise * generator.standard_normal(u.shape)
        kick = np.minimum(np.maximum(kick, -LARGEST), LARGEST)
        u, w = u - kick * w, w - kick * u
        if is_snapshot(when, n_steps):
            snapshots.append(u * w)
    return np.array(snapshots)


def train(signal: float, temperature: float, networks: int, generator: np.random.Generator) -> Array:
    """Train networks by SGD, one fresh sample a step; return v, shape (snapshots, networks)."""
    learning_rate = temperature * critical_temperature(signal, 1.0)
    n_steps = round(LENGTH * relaxation_time(signal, temperature) / learning_rate)
    u = np.full(networks, np.sqrt(signal))
    w = u.copy()
    snapshots = []
    for when in range(n_steps):
        x, noise = generator.standard_normal((2, networks))
        kick = 2 * learning_rate * ((u * w - signal) * x - noise) * x
        u, w = u - kick * w, w - kick * u
        if is_snapshot(when, n_steps):
            snapshots.append(u * w)
    return np.array(snapshots)


def is_snapshot(when: int, n_steps: int) -> bool:
    """Whether v is recorded after this step: at equal distances in the second half."""
    apart = n_steps // (2 * SNAPSHOTS)
    left = n_steps - 1 - when
    return left % apart == 0 and left < SNAPSHOTS * apart


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run the three experiments once."""
    strong = diffuse(
        config.signal,
        config.label_variance,
        np.full(config.runs, config.temperature),
        STRONG_STEP / config.signal,
        numpy_generator(seed, "diffusion"),
    )
    trained = train(config.weak_signal, config.temperature, config.networks, numpy_generator(seed, "sgd"))

    runs = [config.hot_runs, config.hot_runs // 2, *[RUNS_PER_POINT] * len(CURVE)]
    temperatures = np.repeat([config.hot, COOL, *CURVE], runs)
    weak = diffuse(WEAK, 1.0, temperatures, WEAK_STEP / WEAK, numpy_generator(seed, "variance"))
    variances = [float(part.var()) / WEAK**2 for part in np.split(weak, np.cumsum(runs)[:-1], axis=1)]

    lower, middle, upper = np.quantile(strong, [0.1, 0.5, 0.9])
    return {
        "lower_decile": float(lower),
        "median": float(middle),
        "upper_decile": float(upper),
        "sgd_median": float(np.median(trained)) / config.weak_signal,
        "variance_ratio": variances[0] / variances[1],
        "variances": variances,
        "density": histogram(strong / config.signal),
        "sgd_density": histogram(trained / config.weak_signal),
    }


def histogram(values: Array) -> list[float]:
    """Return the density in each bin of the figure, all values counted."""
    counts: Array = np.histogram(values, BINS)[0] / (values.size * np.diff(BINS))
    return [float(count) for count in counts]


def law(signal: float, label_variance: float, temperature: float) -> DiagonalNetStationary:
    """Return the predicted law at a temperature in units of the critical one."""
    stats = LandscapeNoise.gaussian(signal, sigma=label_variance**0.5)
    return DiagonalNetStationary(stats, temperature * stats.critical_temperature())


def strong_law(config: Config) -> DiagonalNetStationary:
    """Return the law of the first experiment."""
    return law(config.signal, config.label_variance, config.temperature)


def sgd_law(config: Config) -> DiagonalNetStationary:
    """Return the law of the second."""
    return law(config.weak_signal, 1.0, config.temperature)


def without_ito(right: DiagonalNetStationary) -> tuple[Array, Array, Array]:
    """Return v, density and distribution function of the wrong law, with the power -2 for -3/2."""
    s = np.linspace(-60.0, 10.0, 20_001)  # of ln v
    v = np.exp(s)
    density = right.pdf(v) / np.sqrt(v)
    below = np.cumsum(density * v)
    return v, density / (below[-1] * (s[1] - s[0])), below / below[-1]


def wrong_quantile(right: DiagonalNetStationary, probability: float) -> float:
    """Return a quantile of the wrong law."""
    v, _, below = without_ito(right)
    return float(np.interp(probability, below, v))


def predict_variance(temperature: float) -> float:
    """Return the variance of v/k in the third experiment."""
    return law(WEAK, 1.0, temperature).var() / WEAK**2


def draw(record: Record) -> "Figure":
    """Draw both densities and the variance against temperature."""
    from matplotlib.figure import Figure

    config = record.config
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    centres = (BINS[1:] + BINS[:-1]) / 2
    fine = np.linspace(0.004, BINS[-1], 600)
    panels = (
        (left, strong_law(config), config.signal, "density", "SGD's diffusion, strong signal"),
        (middle, sgd_law(config), config.weak_signal, "sgd_density", "SGD itself, weak signal"),
    )
    for axes, exact, signal, key, title in panels:
        axes.plot(fine, signal * exact.pdf(signal * fine), color=THEORY)
        v, density, _ = without_ito(exact)
        axes.plot(fine, signal * np.interp(signal * fine, v, density), color=RIVAL, linestyle="--")
        mean, error = summary(record.array(key))
        axes.errorbar(centres, mean, yerr=error, fmt="o", ms=3.5, color=MEASUREMENT)
        top = 1.25 * max(float(mean.max()), float(signal * exact.pdf(signal * fine[fine > 0.1]).max()))
        axes.set(title=title, xlabel="$v/k$", ylabel="density", ylim=(0, top))

    temperatures = np.array([config.hot, COOL, *CURVE])
    grid = np.linspace(0.01, 0.99, 80)
    right.plot(grid, [predict_variance(float(part)) for part in grid], color=THEORY)
    slope = predict_variance(0.001) / 0.001
    right.plot(grid, slope * grid, color=RIVAL, linestyle="--")
    mean, error = summary(record.array("variances"))
    right.errorbar(temperatures, mean, yerr=error, fmt="o", ms=4, color=MEASUREMENT)
    right.set(
        title="fluctuations",
        xlabel="temperature / critical",
        ylabel="variance of $v/k$",
        ylim=(0, 2 * mean.max()),
    )
    handles = [
        right.plot([], [], color=THEORY)[0],
        right.plot([], [], color=RIVAL, linestyle="--")[0],
        right.plot([], [], "o", color=MEASUREMENT)[0],
    ]
    labels = ["theory", "rival: Itô's term dropped; variance ~ temperature", "simulation, 2 s.e."]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def summary(values: Array) -> tuple[Array, Array | None]:
    """Return mean and two standard errors over the repetitions."""
    error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return values.mean(axis=0), error


STUDY = Study(
    title="The stationary distribution of SGD",
    paper=Paper(
        "2308.06671", result="stationary law of the two-layer linear net, and its fluctuation inversion"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"runs": 10_000, "networks": 2000, "hot_runs": 8000}},
    claims=[
        Claim(
            "lower_decile",
            formula=r"\int_0^{v_{0.1}}p(v)\,dv=0.1",
            predict=lambda config: float(strong_law(config).quantile(0.1)),
            margin=0.06,
            relative=True,
            because="finite step and length: about one per cent; six standard errors are the rest",
            rival=Rival("Itô's term dropped", lambda config: wrong_quantile(strong_law(config), 0.1)),
        ),
        Claim(
            "median",
            formula=r"\int_0^{v_{0.5}}p(v)\,dv=0.5",
            predict=lambda config: float(strong_law(config).quantile(0.5)),
            margin=0.03,
            relative=True,
            because="finite step and length: about half a per cent; six standard errors are the rest",
            rival=Rival("Itô's term dropped", lambda config: wrong_quantile(strong_law(config), 0.5)),
        ),
        Claim(
            "upper_decile",
            formula=r"\int_0^{v_{0.9}}p(v)\,dv=0.9",
            predict=lambda config: float(strong_law(config).quantile(0.9)),
            margin=0.02,
            relative=True,
            because="finite step and length: about half a per cent; six standard errors are the rest",
            rival=Rival("Itô's term dropped", lambda config: wrong_quantile(strong_law(config), 0.9)),
        ),
        Claim(
            "sgd_median",
            formula=r"\int_0^{k\,m}p(v)\,dv=0.5",
            predict=lambda config: float(sgd_law(config).quantile(0.5)) / config.weak_signal,
            margin=0.06,
            relative=True,
            because="finite learning rate: lowers T_c, and with it the median, by a few per cent",
            rival=Rival(
                "Itô's term dropped",
                lambda config: wrong_quantile(sgd_law(config), 0.5) / config.weak_signal,
            ),
        ),
        Claim(
            "variance_ratio",
            formula=r"\mathrm{Var}[v]_{T_\text{hot}}/\mathrm{Var}[v]_{0.3\,T_c}",
            predict=lambda config: predict_variance(config.hot) / predict_variance(COOL),
            margin=0.2,
            because="rare large values carry the variance: six standard errors",
            rival=Rival(
                "fluctuations grow in proportion to the temperature", lambda config: config.hot / COOL
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=("symdyn_core.dynamics.stationary_density.DiagonalNetStationary",),
)
