r"""Can SGD converge to a maximum?

The loss $\ell=x(1-\cos w)$, with $x=1$ or $-2$ at equal odds, has its mean's maximum at $w=0$ and its
minimum at $w=\pi$, slopes of at most 2 and no slope at all, for any sample, at either point. Gradient
descent goes to the minimum. SGD, one sample a step, does so for small learning rates only. Near the maximum
$\log|w|$ performs a random walk with drift $\Lambda=\frac12\ln|(1-\lambda)(1+2\lambda)|$ per step, negative
for $\frac12<\lambda<(1+\sqrt{17})/4\approx1.28$; near the minimum the drift is
$\frac12\ln|(1+\lambda)(1-2\lambda)|$, positive from $(\sqrt{17}-1)/4\approx0.78$ on. In between both
attract, and above SGD goes to the maximum from everywhere.

Set-up: many runs from all over the circle at a learning rate at which only the maximum attracts. Runs that
start next to the maximum or the minimum at a learning rate at which both do. Runs next to the maximum at a
learning rate at which it repels, to see how long escape takes; the time from $10^{-12}$ less the time from
$10^{-6}$ is $\ln10^6/\Lambda$ whatever happens further out, and it grows without bound towards
$\lambda=\frac12$, at a mean curvature that stays $-\frac12$. A second landscape (ours, as the first) has a
sharp minimum without noise and a flat noisy one: runs start from all over. Last, AMSGrad: the learning rate
it ends up with falls until the maximum attracts, and freezes there, because near the maximum there is no
slope to let it fall further.

Refuted if SGD goes to the minimum where only the maximum attracts, if one of the two lets go where both
attract, if escape takes as long as gradient descent does or stops where a second-order expansion says, if
the flat minimum wins, or if AMSGrad's learning rate does not stop at the edge of the window.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.pathological import Landscape, periodic_max, sharp_vs_flat
from symdyn_core.dynamics.stability import escape_time_estimate
from symdyn_core.dynamics.windows import attractive_learning_rate_intervals
from symdyn_core.estimate import median, proportion
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

X_VALUES = (1.0, -2.0)
B_VALUES = (3.3, -2.7)  # curvatures at the flat minimum
SETTLED = 1e-3  # distance to a point
# So close that a walk that drifts in does not come out again; exp(-69).
NEXT_TO = 1e-30
NEAR, NEARER, ESCAPED = 1e-6, 1e-12, 1.0
LONGEST_ESCAPE = 20_000
AMSGRAD_STEPS, AMSGRAD_BETA, AMSGRAD_EPSILON = 4000, 0.999, 1e-8  # beta_1 = 0, no bias correction
CURVE = (0.1, 0.3, 0.4, 0.55, 0.6, 0.65, 0.7, 0.75, 0.85, 1.0, 1.2)  # learning rates of the figure
ESCAPE_CURVE = (0.1, 0.2, 0.3, 0.4, 0.44)


@dataclass(frozen=True)
class Config:
    """Settings of convergence to a maximum."""

    above: float = setting(
        0.9, valid=(0.84, 1.2), verify=(0.84, 1.2), help="learning rate where only the maximum attracts"
    )
    both: float = setting(
        0.62, valid=(0.58, 0.7), verify=(0.58, 0.7), help="where maximum and minimum attract"
    )
    escape: float = setting(0.3, valid=(0.2, 0.35), verify=(0.2, 0.35), help="where escape is timed")
    repelled: float = setting(
        0.44, valid=(0.42, 0.46), verify=(0.42, 0.46), help="just below the edge, where it still escapes"
    )
    sharp: float = setting(0.8, valid=(0.7, 1.2), verify=(0.7, 1.2), help="in the second landscape")
    amsgrad: float = setting(0.6, valid=(0.55, 0.9), verify=(0.55, 0.9), help="AMSGrad's learning rate")
    runs: int = setting(600, valid=(400, 100_000), help="runs per experiment")
    steps: int = setting(3000, valid=(3000, 100_000), help="of training")


def wrapped(w: Array) -> Array:
    """Return angles in [-pi, pi)."""
    return (w + math.pi) % (2 * math.pi) - math.pi


def samples(shape: tuple[int, ...], values: tuple[float, float], generator: np.random.Generator) -> Array:
    """Draw one of two values at equal odds."""
    return np.where(generator.random(shape) < 0.5, *values)


def train(
    w: Array, rate: Array | float, steps: int, generator: np.random.Generator, sign: float = 1.0
) -> Array:
    """Run SGD on the first landscape; with sign -1 in coordinates around the minimum."""
    for _ in range(steps):
        w = w - rate * sign * samples(w.shape, X_VALUES, generator) * np.sin(w)
    return w


def train_second(w: Array, rate: float, steps: int, generator: np.random.Generator) -> Array:
    """Run SGD on the second landscape: sharp minimum at 0, flat one at pi."""
    for _ in range(steps):
        b = samples(w.shape, B_VALUES, generator)
        w = w - rate * np.sin(w) * (np.cos(w / 2) ** 2 - b * np.sin(w / 2) ** 2)
    return w


def train_amsgrad(w: Array, rate: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Run AMSGrad on the first landscape; return the parameters and the learning rates it ends with."""
    mean, largest = np.zeros_like(w), np.zeros_like(w)
    for _ in range(AMSGRAD_STEPS):
        slope = samples(w.shape, X_VALUES, generator) * np.sin(w)
        mean = AMSGRAD_BETA * mean + (1 - AMSGRAD_BETA) * slope**2
        largest = np.maximum(largest, mean)
        w = w - rate * slope / (np.sqrt(largest) + AMSGRAD_EPSILON)
    return w, rate / np.sqrt(largest)


def escape_times(rate: Array, start: float, generator: np.random.Generator) -> Array:
    """Return the step at which each run is first further than ``ESCAPED`` from the maximum."""
    w, times, running = np.full(rate.shape, start), np.full(rate.shape, math.inf), np.arange(rate.size)
    for step in range(1, LONGEST_ESCAPE + 1):
        w = w - rate[running] * samples(w.shape, X_VALUES, generator) * np.sin(w)
        out = np.abs(w) > ESCAPED
        times[running[out]] = step
        w, running = w[~out], running[~out]
        if not running.size:
            break
    return times


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run all experiments once."""
    runs, steps = config.runs, config.steps

    def anywhere(count: int, name: str) -> Array:
        return numpy_generator(seed, name, "start").uniform(-math.pi, math.pi, count)

    rates = np.append(np.repeat(CURVE, runs // 8), np.full(runs, config.above))
    ended = np.abs(wrapped(train(anywhere(rates.size, "sgd"), rates, steps, numpy_generator(seed, "sgd"))))
    at_maximum, at_minimum = ended < SETTLED, ended > math.pi - SETTLED

    beside = np.full(runs, NEXT_TO)
    maximum = train(beside, config.both, steps, numpy_generator(seed, "maximum"))
    minimum = train(beside, config.both, steps, numpy_generator(seed, "minimum"), sign=-1.0)

    rates = np.append(np.full(runs, config.escape), np.repeat(ESCAPE_CURVE, runs // 8))
    near = escape_times(rates, NEAR, numpy_generator(seed, "near"))
    nearer = escape_times(np.full(runs, config.escape), NEARER, numpy_generator(seed, "nearer"))
    slow = train(np.full(runs, NEAR), config.repelled, 2 * steps, numpy_generator(seed, "slow"))

    second = train_second(anywhere(runs, "second"), config.sharp, steps, numpy_generator(seed, "second"))
    w, final_rates = train_amsgrad(
        anywhere(runs, "amsgrad"), config.amsgrad, numpy_generator(seed, "amsgrad")
    )
    return {
        "goes_to_maximum": at_maximum[-runs:].astype(int).tolist(),
        "stays_at_maximum": (np.abs(maximum) < SETTLED).astype(int).tolist(),
        "stays_at_minimum": (np.abs(minimum) < SETTLED).astype(int).tolist(),
        "escapes": (np.abs(wrapped(slow)) > SETTLED).astype(int).tolist(),
        "escape_time": float(nearer.mean() - near[:runs].mean()),
        "sharp": (np.abs(wrapped(second)) < SETTLED).astype(int).tolist(),
        "amsgrad_rate": final_rates[np.abs(wrapped(w)) < SETTLED].tolist(),
        "maximum_curve": at_maximum[:-runs].reshape(len(CURVE), -1).mean(axis=1).tolist(),
        "minimum_curve": at_minimum[:-runs].reshape(len(CURVE), -1).mean(axis=1).tolist(),
        "escape_curve": near[runs:].reshape(len(ESCAPE_CURVE), -1).mean(axis=1).tolist(),
    }


def only(landscape: Landscape, winner: str, loser: str, learning_rate: float) -> float:
    """Return 1 if of two points only the first attracts, else 0."""
    return float(landscape.attracts(winner, learning_rate) and not landscape.attracts(loser, learning_rate))


def gradient_descent_time(learning_rate: float) -> float:
    """Return the steps that gradient descent takes for a factor of a million."""
    return math.log(NEAR / NEARER) / math.log(1 - learning_rate * float(np.mean(X_VALUES)))


def expanded(curvatures: tuple[float, ...], learning_rate: float) -> float:
    """Return the drift to second order in the learning rate."""
    h = np.array(curvatures)
    return float(-learning_rate * h.mean() - learning_rate**2 / 2 * np.square(h).mean())


def mean_square(curvatures: tuple[float, ...], learning_rate: float) -> float:
    """Return the growth of the mean square per step."""
    return float(np.square(1 - learning_rate * np.array(curvatures)).mean())


def draw(record: Record) -> "Figure":
    """Draw where SGD ends against the learning rate, and how long it takes to leave the maximum."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = attractive_learning_rate_intervals(X_VALUES)[0]
    _, top = attractive_learning_rate_intervals([-x for x in X_VALUES])[0]
    for start, end, label, colour in (
        (0.0, low, "theory: minimum", "#f0f0f0"),
        (low, top, "both", "#dfe7f1"),
        (top, high, "maximum", "#bccfe4"),
    ):
        left.axvspan(start, end, color=colour, linewidth=0)
        left.text((start + end) / 2, 1.14, label, ha="center", color=THEORY, fontsize=9)
    repetitions = len(record.repetitions)
    for name, marker, face in (("maximum_curve", "o", MEASUREMENT), ("minimum_curve", "s", "white")):
        shares = record.array(name)
        error = 2 * shares.std(axis=0, ddof=1) / math.sqrt(repetitions) if repetitions > 1 else None
        label = f"SGD at the {name.split('_')[0]}, 95 % interval"
        left.errorbar(
            CURVE, shares.mean(axis=0), error, fmt=marker, ms=5, color=MEASUREMENT, mfc=face, label=label
        )
    left.plot([0, high], [0, 0], color=RIVAL, linestyle="--", label="gradient descent")
    left.set(xlabel="learning rate", ylabel="share of the runs", ylim=(-0.05, 1.12), xlim=(0, high))
    left.grid(visible=False)
    left.set_title("where SGD ends", pad=22)

    fine = np.linspace(0.05, 0.49, 120)
    theory = [escape_time_estimate(X_VALUES, rate, NEAR) for rate in fine]
    right.plot(fine, theory, color=THEORY, label=r"theory $\ln(1/\delta)/\Lambda$")
    right.plot(fine, [gradient_descent_time(rate) for rate in fine], color=RIVAL, linestyle="--")
    times = record.array("escape_curve")
    error = 2 * times.std(axis=0, ddof=1) / math.sqrt(repetitions) if repetitions > 1 else None
    right.errorbar(ESCAPE_CURVE, times.mean(axis=0), error, fmt="o", ms=5, color=MEASUREMENT)
    right.set(yscale="log", xlabel="learning rate", ylabel="steps", title=r"escape from $10^{-6}$")
    handles, labels = left.get_legend_handles_labels()
    line, names = right.get_legend_handles_labels()
    figure.legend([*handles, *line], [*labels, *names], loc="outside lower center", ncols=2, fontsize=9)
    return figure


STUDY = Study(
    title="Convergence to a maximum",
    paper=Paper("2107.11774", result="SGD with a constant learning rate can converge to a maximum"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"runs": 8000, "steps": 10_000}},
    claims=[
        Claim(
            "goes_to_maximum",
            formula=r"P(|w|<10^{-3})\approx1\text{ where }\Lambda(0)<0<\Lambda(\pi)",
            predict=lambda config: only(periodic_max(X_VALUES), "max", "min", config.above),
            margin=0.05,
            because="runs still on their way after a finite time",
            estimator=proportion,
            rival=Rival("sign of the mean curvature: the minimum", lambda config: 0.0),
        ),
        Claim(
            "stays_at_maximum",
            formula=r"P(w_t\to0)\approx1\text{ from }10^{-30}\text{ where }\Lambda(0)<0",
            predict=lambda config: float(periodic_max(X_VALUES).attracts("max", config.both)),
            margin=0.05,
            because="walks that come out before they drift in",
            estimator=proportion,
            rival=Rival(
                "growth of the mean square",
                lambda config: float(mean_square(X_VALUES, config.both) < 1),
            ),
        ),
        Claim(
            "stays_at_minimum",
            formula=r"P(w_t\to\pi)\approx1\text{ from }\pi\pm10^{-30}\text{ where }\Lambda(\pi)<0",
            predict=lambda config: float(periodic_max(X_VALUES).attracts("min", config.both)),
            margin=0.05,
            because="walks that come out before they drift in",
            estimator=proportion,
            rival=Rival(
                "growth of the mean square",
                lambda config: float(mean_square(tuple(-x for x in X_VALUES), config.both) < 1),
            ),
        ),
        Claim(
            "escapes",
            formula=r"P(w_t\to0)\approx0\text{ from }10^{-6}\text{ where }\Lambda(0)>0",
            predict=lambda config: float(not periodic_max(X_VALUES).attracts("max", config.repelled)),
            margin=0.05,
            because="walks that take longer than the run",
            estimator=proportion,
            rival=Rival(
                "drift to second order in the learning rate",
                lambda config: float(expanded(X_VALUES, config.repelled) > 0),
            ),
        ),
        Claim(
            "escape_time",
            formula=r"E[T(10^{-12})]-E[T(10^{-6})]=\ln10^6/\Lambda",
            predict=lambda config: escape_time_estimate(X_VALUES, config.escape, NEARER, radius=NEAR),
            margin=0.1,
            relative=True,
            because="sampling: over six standard errors; the difference is exact",
            rival=Rival("escape of gradient descent", lambda config: gradient_descent_time(config.escape)),
        ),
        Claim(
            "sharp",
            formula=r"P(\text{sharp})\approx1\text{ where }\ln|1-\lambda|<0<E\ln|1-\lambda b|",
            predict=lambda config: only(sharp_vs_flat(B_VALUES), "sharp", "flat", config.sharp),
            margin=0.05,
            because="runs still on their way after a finite time",
            estimator=proportion,
            rival=Rival("the flatter minimum wins", lambda config: 0.0),
        ),
        Claim(
            "amsgrad_rate",
            formula=r"\lambda/\sqrt{\hat v}\to\lambda_c,\quad(\lambda_c-1)(1+2\lambda_c)=1",
            predict=lambda config: attractive_learning_rate_intervals(X_VALUES)[0][1],
            margin=0.08,
            because="the mean square still grows a little while the run settles at the maximum",
            estimator=median,
            rival=Rival(
                "mean square slope of a run that never settles",
                lambda config: config.amsgrad / math.sqrt(float(np.square(X_VALUES).mean()) / 2),
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.pathological.periodic_max",
        "symdyn_core.dynamics.windows.attractive_learning_rate_intervals",
        "symdyn_core.dynamics.stability.escape_time_estimate",
        "symdyn_core.dynamics.effective_rate.effective_learning_rate",
    ),
)
