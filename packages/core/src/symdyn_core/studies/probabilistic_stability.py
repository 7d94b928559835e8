r"""Does SGD learn, learn the wrong thing, forget or diverge?

Near the origin of a product of two weights, $\ell=\frac12(uwx-y)^2$, a step multiplies $u\pm w$ by
$1\pm\lambda z$ with $z=xy$. What becomes of them is decided by the mean logarithms
$\Lambda_\pm=\mathbb E\log|1\pm\lambda z|$, the Lyapunov exponents, and by nothing else. With $\mathbb Ez>0$
there are four phases: I, SGD learns ($\Lambda_+>0>\Lambda_-$); II, it learns the wrong sign
($\Lambda_->0>\Lambda_+$); III, it collapses into the saddle and never leaves it (both negative); IV,
everything grows (both positive). Mean squares, the usual test of stability, know neither II nor III: at a
saddle they always grow.

Set-up: $x=\pm1$, $y=ax+s\cdot(\pm1)$, so that $z=a\pm s$, one sample a step. Many pairs of weights start near
zero and train with plain SGD. One experiment for each phase: which fraction ends where the phase says. In the
third one the rate is measured at which $u+w$ and $u-w$ shrink before rounding sets in, and the same for
batches of sixteen, where collapse is over: noise that vanishes at the saddle is what makes it attract. In the
second one only the linear regime is looked at, in which the wrong mode takes over; later its growth ends in
divergence.

Refuted if runs collapse, learn or diverge elsewhere than predicted, in particular where the growth of the
mean or of the mean square says so, or where a loss without the factor 1/2 would; or if weights shrink at
another rate. How far this holds: an exponent near zero takes long to show, and just below the transition to
collapse a run that learns keeps falling back towards zero for a while.
"""

from dataclasses import dataclass
from math import comb, log
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.stability import log_drift, saddle_phase
from symdyn_core.estimate import proportion
from symdyn_core.plots import MEASUREMENT, RIVAL
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

START = 1e-6  # standard deviation of u and w at the start
LEARNED = 1e-6  # of uw, a million times what it starts from
COLLAPSED = 1e-9  # of |u| + |w|
# Signal and noise of the four experiments.
LEARN, WRONG, COLLAPSE, DIVERGE = (0.3, 1.0), (0.5, 1.5), (0.05, 1.0), (0.2, 3.0)
LARGE_BATCH = 16
# The rates: so short a run that u + w and u - w do not come to differ by more than floating point can tell
# apart.
RATE_START, RATE_STEPS, RATE_RUNS = 1e-80, 6, 150  # so many times the runs of the other experiments
WRONG_STEPS = 300
# The figure: noise against learning rate at the signal of the third experiment.
MAP_RATES = np.linspace(0.1, 1.86, 12)
MAP_NOISE = np.linspace(0.1, 1.7, 9)
MAP_RUNS, MAP_PATIENCE = 10, 3  # runs of a point, and how much longer they train than the others
OUTCOMES = ("correct", "incorrect", "collapse", "unstable")
# Whether the right mode grows, and whether the wrong one does, to the phase.
PHASES = {
    (True, False): "correct",
    (False, True): "incorrect",
    (False, False): "collapse",
    (True, True): "unstable",
}
MARKERS = ("o", "v", "x", "*")
PHASE_COLOURS = ("#d7e8d0", "#f3d9b1", "#cfdcec", "#ead0d6")


@dataclass(frozen=True)
class Config:
    """Settings of the phases at the origin."""

    learn: float = setting(
        0.38, valid=(0.36, 0.4), verify=(0.36, 0.4), help="learning rate where SGD should learn (a=0.3, s=1)"
    )
    wrong: float = setting(
        0.85, valid=(0.82, 0.95), verify=(0.82, 0.95), help="where the wrong mode should win (a=0.5, s=1.5)"
    )
    collapse: float = setting(
        0.8, valid=(0.5, 1.0), verify=(0.5, 1.0), help="where SGD should collapse (a=0.05, s=1)"
    )
    diverge: float = setting(
        1.0, valid=(0.9, 1.2), verify=(0.9, 1.2), help="where nothing is stable (a=0.2, s=3)"
    )
    runs: int = setting(400, valid=(200, 100_000), help="pairs of weights per experiment")
    steps: int = setting(1500, valid=(1500, 100_000), help="of training")


def train(
    rate: Array,
    signal: Array,
    noise: Array,
    *,
    start: float,
    steps: int,
    generator: np.random.Generator,
    batch_size: int = 1,
) -> tuple[Array, Array, Array, Array]:
    """Train one pair of weights per entry; return u, w before and after. Diverged ones are not finite."""
    u, w = start * generator.standard_normal((2, *rate.shape))
    before = u.copy(), w.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            # x = +-1, so that x squared is 1 and x y = a + s times a sign of its own.
            signs = 2 * generator.binomial(batch_size, 0.5, rate.shape) / batch_size - 1
            error = rate * (u * w - (signal + noise * signs))
            u, w = u - error * w, w - error * u
    return *before, u, w


def outcome(u: Array, w: Array) -> NDArray[np.int64]:
    """Return the index in ``OUTCOMES`` of every run, -1 for one that is still on its way."""
    with np.errstate(invalid="ignore", over="ignore"):
        size, product = np.abs(u) + np.abs(w), u * w
        conditions = [~np.isfinite(product), size < COLLAPSED, product > LEARNED, product < -LEARNED]
    return np.select(conditions, [3, 2, 0, 1], default=-1)


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run all experiments once."""
    rates = np.repeat([config.learn, config.collapse, config.diverge], config.runs)
    signal, noise = np.repeat(np.array([LEARN, COLLAPSE, DIVERGE]).T, config.runs, axis=1)
    generator = numpy_generator(seed, "phases")
    *_, u, w = train(rates, signal, noise, start=START, steps=config.steps, generator=generator)
    learn, collapse, diverge = np.split(outcome(u, w), 3)

    def linear(
        name: str, rate: float, data: tuple[float, float], runs: int, steps: int, batch_size: int = 1
    ) -> Array:
        """Return the growth per step of log|u + w| and log|u - w|, shape (2, runs)."""
        many, generator = np.ones(runs), numpy_generator(seed, name)
        u0, w0, u, w = train(
            rate * many,
            data[0] * many,
            data[1] * many,
            start=RATE_START,
            steps=steps,
            generator=generator,
            batch_size=batch_size,
        )
        with np.errstate(divide="ignore"):
            return np.log(np.abs([(u + w) / (u0 + w0), (u - w) / (u0 - w0)])) / steps

    many = RATE_RUNS * config.runs
    right, wrong = linear("collapse", config.collapse, COLLAPSE, many, RATE_STEPS)
    batch, _ = linear("batch", config.collapse, COLLAPSE, many, RATE_STEPS, LARGE_BATCH)
    taken = linear("wrong", config.wrong, WRONG, config.runs, WRONG_STEPS)

    grid_rates, grid_noise = (grid.ravel() for grid in np.meshgrid(MAP_RATES, MAP_NOISE))
    *_, u, w = train(
        np.repeat(grid_rates, MAP_RUNS),
        np.full(grid_rates.size * MAP_RUNS, COLLAPSE[0]),
        np.repeat(grid_noise, MAP_RUNS),
        start=START,
        steps=MAP_PATIENCE * config.steps,
        generator=numpy_generator(seed, "map"),
    )
    ended = outcome(u, w).reshape(-1, MAP_RUNS)
    return {
        "learned": (learn == 0).astype(int).tolist(),
        "wrong_mode": (taken[1] > np.maximum(taken[0], 0)).astype(int).tolist(),
        "collapsed": (collapse == 2).astype(int).tolist(),
        "diverged": (diverge == 3).astype(int).tolist(),
        "right_exponent": float(right.mean()),
        "wrong_exponent": float(wrong.mean()),
        "batch_exponent": float(batch.mean()),
        "map": [int((ended[point] == kind).sum()) for kind in range(4) for point in range(len(ended))],
    }


def law(data: tuple[float, float], batch_size: int = 1) -> tuple[Array, Array]:
    """Return the values of the batch mean of z and their probabilities."""
    heads = np.arange(batch_size + 1)
    values = data[0] + data[1] * (2 * heads / batch_size - 1)
    return values, np.array([comb(batch_size, int(k)) for k in heads]) / 2.0**batch_size


def exponent(data: tuple[float, float], learning_rate: float, sign: int = 1, batch_size: int = 1) -> float:
    """Return the exponent of u + w, or with sign -1 of u - w."""
    values, chances = law(data, batch_size)
    return log_drift(-sign * values, learning_rate, chances)


def in_phase(data: tuple[float, float], learning_rate: float, phase: str) -> float:
    """Return 1 if the exponents put the data in this phase, else 0."""
    return float(saddle_phase(law(data)[0], learning_rate).phase == phase)


def mean_phase(data: tuple[float, float], learning_rate: float, phase: str) -> float:
    """Return 1 if the logarithm of the mean growth, in place of the mean logarithm, puts it in this phase."""
    grows = [log(abs(1 + sign * learning_rate * data[0])) > 0 for sign in (1, -1)]
    return float(PHASES[grows[0], grows[1]] == phase)


def square_phase(data: tuple[float, float], learning_rate: float, phase: str) -> float:
    """Return 1 if the growth of mean squares puts it in this phase."""
    values, chances = law(data)
    grows = [bool(chances @ (1 + sign * learning_rate * values) ** 2 > 1) for sign in (1, -1)]
    return float(PHASES[grows[0], grows[1]] == phase)


def draw(record: Record) -> "Figure":
    """Draw the phases in the plane of learning rate and noise, with the outcome of the runs on top."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = Figure(figsize=(6.8, 5.6), layout="constrained")
    axes = figure.subplots()
    signal = COLLAPSE[0]
    rates, noises = np.linspace(0.02, 1.95, 150), np.linspace(0.02, 1.8, 130)

    def phases(factor: float) -> Array:
        z = signal + noises[:, None, None] * np.array([1.0, -1.0])  # (noise, 1, sign of the noise)
        right, wrong = (
            np.log(np.abs(1 + sign * factor * rates[:, None] * z)).mean(axis=-1) > 0 for sign in (1, -1)
        )
        return np.select([right & ~wrong, ~right & wrong, ~right & ~wrong], [0.0, 1.0, 2.0], 3.0)

    axes.imshow(
        phases(1.0),
        origin="lower",
        extent=(rates[0], rates[-1], noises[0], noises[-1]),
        aspect="auto",
        cmap=ListedColormap(PHASE_COLOURS),
        vmin=-0.5,
        vmax=3.5,
    )
    axes.contour(rates, noises, phases(2.0) == 2, [0.5], colors=RIVAL, linestyles="--")
    counts = record.array("map").sum(axis=0).reshape(len(OUTCOMES), len(MAP_NOISE), len(MAP_RATES))
    total = MAP_RUNS * len(record.repetitions)
    for kind, marker in enumerate(MARKERS):
        for (row, column), count in np.ndenumerate(counts[kind]):
            if count > 0.05 * total:  # the area of a marker is the fraction of the runs
                size = 70 * count / total
                axes.scatter(MAP_RATES[column], MAP_NOISE[row], s=size, marker=marker, color=MEASUREMENT)
    axes.set(
        xlabel="learning rate",
        ylabel="noise s",
        title=f"Fate of SGD at signal {signal} (area: share of runs)",
    )
    axes.grid(visible=False)
    names = ("I learns", "II wrong sign", "III collapses", "IV diverges")
    handles: list[Patch | Line2D] = [
        Patch(color=colour, label=f"theory: {name}")
        for colour, name in zip(PHASE_COLOURS, names, strict=True)
    ]
    for marker, name in zip(MARKERS, names, strict=True):
        label = f"SGD {name.split(maxsplit=1)[1]}"
        handles.append(Line2D([], [], marker=marker, color=MEASUREMENT, linestyle="none", label=label))
    handles.append(Line2D([], [], color=RIVAL, linestyle="--", label="III for a loss without 1/2"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


STUDY = Study(
    title="Phases of SGD at a saddle",
    paper=Paper("2303.13093", result="probabilistic stability decides what SGD learns"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"runs": 5000, "steps": 10_000}},
    claims=[
        Claim(
            "learned",
            formula=r"P(uw>10^{-6})\approx1 \text{ where } \Lambda_+>0>\Lambda_-",
            predict=lambda config: in_phase(LEARN, config.learn, "correct"),
            margin=0.05,
            because="a run that learns falls back towards zero now and then",
            estimator=proportion,
            rival=Rival(
                "exponents of a loss without the factor 1/2",
                lambda config: in_phase(LEARN, 2 * config.learn, "correct"),
            ),
        ),
        Claim(
            "wrong_mode",
            formula=r"P(|u-w|\text{ grows and }|u+w|\text{ lags})\approx1\text{ where }\Lambda_->0>\Lambda_+",
            predict=lambda config: in_phase(WRONG, config.wrong, "incorrect"),
            margin=0.05,
            because="walks that drift the other way for a finite time",
            estimator=proportion,
            rival=Rival(
                "the mode that grows in the mean wins",
                lambda config: mean_phase(WRONG, config.wrong, "incorrect"),
            ),
        ),
        Claim(
            "collapsed",
            formula=r"P(|u|+|w|<10^{-9})\approx1 \text{ where both } \Lambda_\pm<0",
            predict=lambda config: in_phase(COLLAPSE, config.collapse, "collapse"),
            margin=0.05,
            because="walks that escape before they shrink",
            estimator=proportion,
            rival=Rival(
                "stability in mean square, which no saddle has",
                lambda config: square_phase(COLLAPSE, config.collapse, "collapse"),
            ),
        ),
        Claim(
            "diverged",
            formula=r"P(uw\to\infty)\approx1 \text{ where both } \Lambda_\pm>0",
            predict=lambda config: in_phase(DIVERGE, config.diverge, "unstable"),
            margin=0.05,
            because="walks that stay small for a finite time",
            estimator=proportion,
            rival=Rival(
                "logarithm of the mean growth", lambda config: mean_phase(DIVERGE, config.diverge, "unstable")
            ),
        ),
        Claim(
            "right_exponent",
            formula=r"\frac1t\log\Big|\frac{u_t+w_t}{u_0+w_0}\Big|\to\mathbb E\log|1+\lambda z|",
            predict=lambda config: exponent(COLLAPSE, config.collapse),
            margin=0.01,
            because="sampling: over ten standard errors; the law is exact",
            rival=Rival(
                "logarithm of the mean growth", lambda config: log(1 + config.collapse * COLLAPSE[0])
            ),
        ),
        Claim(
            "wrong_exponent",
            formula=r"\frac1t\log\Big|\frac{u_t-w_t}{u_0-w_0}\Big|\to\mathbb E\log|1-\lambda z|",
            predict=lambda config: exponent(COLLAPSE, config.collapse, sign=-1),
            margin=0.01,
            because="sampling: over ten standard errors; the law is exact",
            rival=Rival(
                "logarithm of the mean growth", lambda config: log(1 - config.collapse * COLLAPSE[0])
            ),
        ),
        Claim(
            "batch_exponent",
            formula=r"\Lambda_+\text{ of batches of 16: }\mathbb E\log|1+\lambda\bar z|",
            predict=lambda config: exponent(COLLAPSE, config.collapse, batch_size=LARGE_BATCH),
            margin=0.005,
            because="sampling: over ten standard errors; the law is exact",
            rival=Rival(
                "no noise at all in a large batch", lambda config: log(1 + config.collapse * COLLAPSE[0])
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.stability.saddle_phase",
        "symdyn_core.dynamics.stability.stability",
        "symdyn_core.dynamics.lyapunov.lyapunov_spectrum",
        "symdyn_core.dynamics.stable_rate.stable_learning_rate",
    ),
)
