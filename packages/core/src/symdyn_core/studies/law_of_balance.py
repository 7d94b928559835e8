r"""Does gradient noise balance the layers, and how fast?

Two weights that enter a loss only as a product $uw$ can be rescaled against each other without changing it.
Gradient flow therefore conserves $u^2-w^2$ for ever. The law of balance says that minibatch noise destroys
it at a rate set by the variance of the gradient with respect to the product: exponentially with rate
$T\,\mathrm{Var}[\partial\ell/\partial(uw)]$ for two scalars, $T$ being learning rate over batch size.

For vectors, $f=u\,(w\cdot x)$, the law has a matrix on each side, and says something that the scalar case
hides: what is balanced is the noise of the layers and not their norms. With noise of
variance $\sigma^2$ on each of $d_u$ outputs, and $d_w$ inputs, the gradients of $u$ and $w$ have the noise
$4\sigma^2d_u\|w\|^2$ and $4\sigma^2d_w\|u\|^2$, and $\|u\|^2-\|w\|^2$ changes at the rate
$-4T\sigma^2(d_w\|u\|^2-d_u\|w\|^2)$: it comes to rest at $\|u\|^2/\|w\|^2=d_u/d_w$.

Set-up: online SGD on $\ell=\|f-y\|^2$ (no factor 1/2), a fresh batch each step, $x$ standard normal, labels
from a teacher of rank one plus noise. All runs start on the teacher with $\|u\|^2=2\|w\|^2$, so nothing is
left to learn and only the noise moves the weights. Time counts one learning rate a step. Measured are the
decay rate of the scalar charge $u^2-w^2$ and the mean rate of change of the vector charge; the predictions
use the settings only.

The law would be refuted by a charge that stays (gradient flow, or noise that is alike in all weights), by a
rate off by more than the discretisation, or by a vector charge that follows the law with its two matrices
exchanged.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.balance import BalanceNoise
from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORM_RATIO = 2.0  # |u|^2 / |w|^2 at the start
POINTS = 16  # of a curve


@dataclass(frozen=True)
class Config:
    """Settings of the law of balance."""

    learning_rate: float = setting(0.01, valid=(0.002, 0.015), verify=(0.005, 0.015), help="of each SGD step")
    batch_size: int = setting(1, valid=(1, 4), verify=(4,), help="fresh samples a step")
    label_noise: float = setting(
        1.0, valid=(0.7, 1.1), verify=(0.7, 1.1), help="standard deviation of each label"
    )
    signal: float = setting(
        0.25, valid=(0.25, 0.5), verify=(0.5,), help="the teacher's product of norms, |u||w|"
    )
    outputs: int = setting(2, valid=(2, 3), verify=(3,), help="length of u in the vector experiment")
    inputs: int = setting(5, valid=(4, 5), verify=(4,), help="length of w in the vector experiment")
    runs: int = setting(500, valid=(50, 10_000), help="independent networks per repetition")


def balance_time(config: Config) -> float:
    """Time in which the scalar charge falls by a factor e, if the law is right; a run lasts that long."""
    return config.batch_size / (4 * config.learning_rate * config.label_noise**2)


def n_steps(config: Config, inputs: int) -> int:
    """Length of a run: the vector charge moves faster, the more inputs there are."""
    return max(POINTS, round(balance_time(config) / config.learning_rate / inputs))


def simulate(
    config: Config, outputs: int, inputs: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Train ``config.runs`` networks; return times and mean charges, both of shape (POINTS + 1,)."""
    runs, batch = config.runs, config.batch_size
    u, w = np.zeros((runs, outputs)), np.zeros((runs, inputs))
    u[:, 0] = np.sqrt(config.signal * np.sqrt(NORM_RATIO))
    w[:, 0] = np.sqrt(config.signal / np.sqrt(NORM_RATIO))
    steps = n_steps(config, inputs)
    stops = {round(k * steps / POINTS) for k in range(POINTS + 1)}
    times, charges = [], []
    for step in range(steps + 1):
        if step in stops:
            times.append(step * config.learning_rate)
            charges.append(float((u**2).sum(axis=1).mean() - (w**2).sum(axis=1).mean()))
        x = generator.standard_normal((runs, batch, inputs))
        y = config.label_noise * generator.standard_normal((runs, batch, outputs))
        y[:, :, 0] += config.signal * x[:, :, 0]
        hidden = x @ w[:, :, None]
        residual = hidden * u[:, None, :] - y
        gradient_u = 2 * (residual * hidden).mean(axis=1)
        gradient_w = 2 * ((residual @ u[:, :, None]) * x).mean(axis=1)
        u -= config.learning_rate * gradient_u
        w -= config.learning_rate * gradient_w
    return np.array(times), np.array(charges)


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run the scalar and the vector experiment once."""
    times, charges = simulate(config, 1, 1, numpy_generator(seed, "scalar"))
    vector_times, vector_charges = simulate(
        config, config.outputs, config.inputs, numpy_generator(seed, "vector")
    )
    return {
        "decay_rate": float(-np.log(charges[-1] / charges[0]) / times[-1]),
        "vector_charge_velocity": float((vector_charges[-1] - vector_charges[0]) / vector_times[-1]),
        "scalar_times": times.tolist(),
        "scalar_charges": charges.tolist(),
        "vector_times": vector_times.tolist(),
        "vector_charges": vector_charges.tolist(),
    }


def predict_decay_rate(config: Config) -> float:
    """Return T Var[dl/d(uw)] on the teacher."""
    noise = LandscapeNoise.gaussian(config.signal, config.label_noise)
    return config.learning_rate / config.batch_size * noise.gradient_variance(config.signal)


def teacher_noise(config: Config, *, exchanged: bool = False) -> BalanceNoise:
    """Noise of the gradient -2 (label noise) x^T on the teacher; or its two traces exchanged."""
    outputs, inputs = config.outputs, config.inputs
    of_u, of_w = (outputs, inputs) if exchanged else (inputs, outputs)
    variance = 4 * config.label_noise**2
    return BalanceNoise(
        outgoing=variance * of_u * np.eye(outputs),
        incoming=variance * of_w * np.eye(inputs),
        mean=np.zeros((outputs, inputs)),
    )


def predict_charges(config: Config, times: NDArray[np.float64], noise: BalanceNoise) -> NDArray[np.float64]:
    """Integrate the law for the vector charge along the teacher, where |u||w| is the signal."""
    from scipy.integrate import solve_ivp

    first_u, first_w = np.eye(config.outputs)[0], np.eye(config.inputs)[0]

    def velocity(_: float, charge: NDArray[np.float64]) -> list[float]:
        total = np.hypot(charge[0], 2 * config.signal)  # |u|^2 + |w|^2
        u, w = np.sqrt((total + charge[0]) / 2) * first_u, np.sqrt((total - charge[0]) / 2) * first_w
        return [noise.rate(u, w, learning_rate=config.learning_rate, batch_size=config.batch_size)]

    start = config.signal * (np.sqrt(NORM_RATIO) - 1 / np.sqrt(NORM_RATIO))
    solution = solve_ivp(velocity, (0, times[-1]), [start], t_eval=times, rtol=1e-8, atol=1e-10)
    return np.asarray(solution.y[0], dtype=float)


def predict_velocity(config: Config, *, exchanged: bool = False) -> float:
    """Return the mean velocity of the vector charge over a run."""
    times = np.array([0.0, n_steps(config, config.inputs) * config.learning_rate])
    start, end = predict_charges(config, times, teacher_noise(config, exchanged=exchanged))
    return float((end - start) / times[-1])


def draw(record: Record) -> "Figure":
    """Draw both charges against time, in units of the scalar balance time."""
    from matplotlib.figure import Figure

    config = record.config
    unit = balance_time(config)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)

    times, charges = record.array("scalar_times")[0], record.array("scalar_charges")
    theory = charges[0, 0] * np.exp(-predict_decay_rate(config) * times)
    left.plot(times / unit, theory, color=THEORY, label="law of balance")
    left.axhline(charges[0, 0], color=RIVAL, linestyle="--", label="gradient flow")
    left.set(title="scalars", ylabel="charge $u^2-w^2$", ylim=(0, None))

    vector_times, vector_charges = record.array("vector_times")[0], record.array("vector_charges")
    for exchanged, style in ((False, {"color": THEORY}), (True, {"color": RIVAL, "linestyle": "--"})):
        curve = predict_charges(config, vector_times, teacher_noise(config, exchanged=exchanged))
        label = "matrices exchanged" if exchanged else "law of balance"
        right.plot(vector_times / unit, curve, label=label, **style)
    right.set(title=f"{config.outputs} outputs, {config.inputs} inputs", ylabel=r"charge $\|u\|^2-\|w\|^2$")

    for axes, at, values in ((left, times, charges), (right, vector_times, vector_charges)):
        error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        axes.errorbar(
            at / unit, values.mean(axis=0), yerr=error, fmt="o", ms=4, color=MEASUREMENT, label="SGD, 2 s.e."
        )
        axes.set_xlabel(r"time $\times\, 4T\sigma^2$")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


STUDY = Study(
    title="The law of balance",
    paper=Paper(
        "2308.06671", result="law of balance: rate at which SGD noise removes the imbalance of layers"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"runs": 2000, "learning_rate": 0.004}},
    claims=[
        Claim(
            "decay_rate",
            formula=r"-\frac{d}{dt}\ln(u^2-w^2)=T\,\mathrm{Var}[\partial\ell/\partial(uw)]=4T\sigma^2",
            predict=predict_decay_rate,
            margin=0.06,
            relative=True,
            because="finite step: fluctuations of uw add the fraction (2T + learning rate)(u^2 + w^2)",
            rival=Rival("gradient flow conserves the charge", lambda config: 0.0),
        ),
        Claim(
            "vector_charge_velocity",
            formula=r"\frac{d}{dt}(\|u\|^2-\|w\|^2)=-T(u^\top C_1u-w^\top C_2w)",
            predict=predict_velocity,
            margin=0.08,
            relative=True,
            because="finite step: fluctuations of u w^T about the teacher, first order in learning rate",
            rival=Rival(
                "the two matrices exchanged", lambda config: predict_velocity(config, exchanged=True)
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.balance.balance_rate",
        "symdyn_core.dynamics.balance.layer_balance",
        "symdyn_core.dynamics.balance.BalanceNoise",
    ),
)
