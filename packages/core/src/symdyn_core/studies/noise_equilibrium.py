r"""Where does the noise of SGD take a network that has nothing left to learn?

A symmetry leaves the loss unchanged along its orbits, and gradient descent keeps the place on the orbit that
it started from. SGD does not: its noise drives the charge of the symmetry, without any randomness of its own
to leading order, to the one point of the orbit where the noise is balanced.

Set-up, three experiments. First, a two-layer linear net, loss $\|UWx-y\|^2$ with $y=Vx+\varepsilon$, whose
inputs and label noise have unequal variances. It starts on the solution $UW=V$ with equal norms, then $U$ is
multiplied and $W$ divided by 1/2, 1 or 2. Predicted end, one for all starts: $W\Sigma_xW^\top$ and
$U^\top\Sigma_\varepsilon U$ in the ratio of $\mathrm{Tr}\,\Sigma_x$ and $\mathrm{Tr}\,\Sigma_\varepsilon$.
Second, one step of SGD with weight decay from a point off the solution, very often: the mean change of the
charge $\|U\|^2-\|W\|^2$ has a part of the noise, which falls with the batch size, and a part of the mean
gradient, which does not. Third, a linear regression that sees only the direction of its weights: noise makes
their norm grow, decay makes it shrink, and they settle at
$\|w\|^4=T\,\mathrm{Tr}\hat\Sigma/(2\lambda)$ with $\hat\Sigma$ the noise at unit norm.

The balance of the first experiment is exact, as the learning rate falls, if $V$ and both covariances commute.
Here they do not: their fluctuations circulate, SGD turns the hidden units at a steady rate of second order in
the learning rate, and the balance is shifted by under one per cent; the margins allow for it.

The theory would be refuted by ends that depend on the start (gradient descent), that balance the norms, or
that weigh the noise with the two covariances inverted; by a drift in which all is divided by the batch size;
and by a norm that follows another convention of weight decay.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.symmetry.charges import Step
from symdyn_core.symmetry.equilibrium import linear_net_noise_equilibrium

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

TARGET = np.array([[1.5, 0.3], [0.0, 0.8]])
STRETCHES = (0.5, 1.0, 2.0)
RELAXATIONS = 10  # length of a run in relaxation times; the last third is averaged
POINTS = 30  # of a curve
BLOCK = 250  # steps whose samples are drawn together
DRIFT_BATCH, DRIFT_STRETCH = 8, (1.0, 0.5)  # the second experiment: samples a step, factors of U and W
DRIFT_LEARNING_RATE, DRIFT_DECAY = 0.1, 0.1
DIMENSION = 5  # of the weights in the third experiment


@dataclass(frozen=True)
class Config:
    """Settings of the three experiments."""

    learning_rate: float = setting(0.008, valid=(0.004, 0.01), verify=(0.006, 0.01), help="of each SGD step")
    weak_input: float = setting(
        0.3, valid=(0.25, 1.0), verify=(0.5,), help="variance of the first input, the second having 1"
    )
    label_contrast: float = setting(
        0.6, valid=(0.2, 0.65), verify=(0.4,), help="a: the labels have the noise variances 1 + a and 1 - a"
    )
    weight_decay: float = setting(
        0.01, valid=(0.005, 0.02), verify=(0.015,), help="of the scale-invariant regression, as torch's SGD"
    )
    runs: int = setting(8, valid=(4, 500), help="networks per start and repetition")


def input_variances(config: Config) -> Array:
    """Diagonal of the inputs' second moment."""
    return np.array([config.weak_input, 1.0])


def label_variances(config: Config) -> Array:
    """Diagonal of the label noise's covariance."""
    return np.array([1 + config.label_contrast, 1 - config.label_contrast])


def relaxation_steps(config: Config) -> float:
    """Steps in which the charges of the linear net relax, by the weakest input and label noise.

    This sets the length of a run; the slowest charge takes about one and a half of it.
    """
    x, noise = input_variances(config), label_variances(config)
    return float(1 / (4 * config.learning_rate**2 * (noise.sum() * x.min() + x.sum() * noise.min())))


def balanced_factors() -> tuple[Array, Array]:
    """Factors of the target with equal norms: where gradient flow with vanishing decay ends."""
    left, singular, right = np.linalg.svd(TARGET)
    return left * np.sqrt(singular), np.sqrt(singular)[:, None] * right


def train_linear_nets(config: Config, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Train from each stretched start; return steps, UU^T and W^TW, both averaged around those steps.

    Steps have shape (POINTS,), the others (POINTS, 2, 2, starts, runs). Replicas are the last axis of all
    arithmetic, so that a step is a dozen operations on short vectors.
    """
    u0, w0 = balanced_factors()
    stretch = np.repeat(STRETCHES, config.runs)
    u, w = u0[:, :, None] * stretch, w0[:, :, None] / stretch
    scale_x, scale_noise = np.sqrt(input_variances(config)), np.sqrt(label_variances(config))
    spacing = math.ceil(RELAXATIONS * relaxation_steps(config) / POINTS / BLOCK) * BLOCK
    outgoing, incoming = np.zeros((2, POINTS, 2, 2, stretch.size))
    for step in range(POINTS * spacing):
        place = step % BLOCK
        if place == 0:
            x = generator.standard_normal((BLOCK, 2, stretch.size)) * scale_x[:, None]
            y = np.einsum("ij,tjr->tir", TARGET, x)
            y += generator.standard_normal(y.shape) * scale_noise[:, None]
            twice_x = 2 * config.learning_rate * x
        hidden = (w * x[place]).sum(axis=1)
        residual = (u * hidden).sum(axis=1) - y[place]
        back = (u * residual[:, None]).sum(axis=0)
        u = u - (2 * config.learning_rate * residual)[:, None] * hidden
        w = w - back[:, None] * twice_x[place]
        if step % 10 == 0:  # the covariances move slowly
            point = step // spacing
            outgoing[point] += np.einsum("ijr,kjr->ikr", u, u) * (10 / spacing)
            incoming[point] += np.einsum("ijr,ikr->jkr", w, w) * (10 / spacing)
    shape = (POINTS, 2, 2, len(STRETCHES), config.runs)
    steps = np.linspace(0.5, POINTS - 0.5, POINTS) * spacing
    return np.asarray(steps, dtype=float), outgoing.reshape(shape), incoming.reshape(shape)


def measure_drift(config: Config, generator: np.random.Generator) -> float:
    """Return the mean change of |U|^2 - |W|^2 in one step with decay, over the squared learning rate."""
    factors = balanced_factors()
    u, w = (factor * stretch for factor, stretch in zip(factors, DRIFT_STRETCH, strict=True))
    changes = []
    for _ in range(10):
        shape = (1000 * config.runs, DRIFT_BATCH, 2)
        x = generator.standard_normal(shape) * np.sqrt(input_variances(config))
        noise = generator.standard_normal(shape) * np.sqrt(label_variances(config))
        hidden = x @ w.T
        residual = hidden @ u.T - x @ TARGET.T - noise
        gradient_u = 2 * np.einsum("rbi,rbj->rij", residual, hidden) / DRIFT_BATCH
        gradient_w = 2 * np.einsum("rbi,rbj->rij", residual @ u, x) / DRIFT_BATCH
        after_u = u - DRIFT_LEARNING_RATE * (gradient_u + DRIFT_DECAY * u)
        after_w = w - DRIFT_LEARNING_RATE * (gradient_w + DRIFT_DECAY * w)
        change = (after_u**2).sum(axis=(1, 2)) - (after_w**2).sum(axis=(1, 2))
        changes.append(float(change.mean()) - float((u**2).sum() - (w**2).sum()))
    return float(np.mean(changes)) / DRIFT_LEARNING_RATE**2


def train_directions(config: Config, generator: np.random.Generator) -> float:
    """Train the scale-invariant regression; return the mean fourth power of the norm in the last third."""
    decay, rate = config.weight_decay, config.learning_rate
    runs = 4 * config.runs
    teacher = np.zeros((DIMENSION, 1))
    teacher[0] = 1.0
    # On the teacher, and near the norm of order one that the settings lead to; the rest is forgotten.
    w = teacher * np.ones(runs)
    blocks = round(1 + 7 / (4 * rate * decay) / BLOCK)
    powers = []
    for block in range(blocks):
        x = generator.standard_normal((BLOCK, DIMENSION, runs))
        labels = x[:, 0] + generator.standard_normal((BLOCK, runs))
        for step in range(BLOCK):
            norm = np.sqrt((w * w).sum(axis=0))
            direction = w / norm
            output = (direction * x[step]).sum(axis=0)
            gradient = (output - labels[step]) / norm * (x[step] - output * direction)
            w = w - rate * (gradient + decay * w)
            if step % 50 == 0 and block >= 2 * blocks // 3:
                powers.append(float(((w * w).sum(axis=0) ** 2).mean()))
    return float(np.mean(powers))


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run the three experiments once."""
    steps, outgoing, incoming = train_linear_nets(config, numpy_generator(seed, "linear nets"))
    late = slice(2 * POINTS // 3, None)
    ends, ends_w = outgoing[late].mean(axis=(0, 4)), incoming[late].mean(axis=(0, 4))
    diagonal, diagonal_w = np.einsum("iis->is", ends), np.einsum("iis->is", ends_w)
    noise_u = label_variances(config) @ diagonal.mean(axis=1) / label_variances(config).sum()
    noise_w = input_variances(config) @ diagonal_w.mean(axis=1) / input_variances(config).sum()
    norms = diagonal.sum(axis=0)
    return {
        "first_output": float(diagonal[0].mean()),
        "second_output": float(diagonal[1].mean()),
        "noise_ratio": float(noise_w / noise_u),
        "start_dependence": float(norms[2] / norms[0]),
        "discrete_drift": measure_drift(config, numpy_generator(seed, "drift")),
        "fourth_power": train_directions(config, numpy_generator(seed, "directions")),
        "steps": steps.tolist(),
        "paths": np.einsum("tiisr->tis", outgoing / config.runs).ravel().tolist(),
    }


def predict_outputs(config: Config) -> Array:
    """Return the diagonal of UU^T at the noise equilibrium."""
    u, _ = linear_net_noise_equilibrium(
        TARGET, np.diag(input_variances(config)), np.diag(label_variances(config)), dim=2
    )
    return np.asarray((u**2).sum(axis=1))


def norm_balance() -> Array:
    """Return the diagonal of UU^T where the norms are balanced."""
    return np.asarray((balanced_factors()[0] ** 2).sum(axis=1))


def inverted_outputs(config: Config) -> Array:
    """Return the diagonal of UU^T with both covariances inverted."""
    u, _ = linear_net_noise_equilibrium(
        TARGET, np.diag(1 / input_variances(config)), np.diag(1 / label_variances(config)), dim=2
    )
    return np.asarray((u**2).sum(axis=1))


def norm_balance_ratio(config: Config) -> float:
    """Return the ratio of the two noises, each over its trace, where the norms are balanced."""
    u, w = balanced_factors()
    x, noise = input_variances(config), label_variances(config)
    return float(((w**2) @ x).sum() / x.sum() / ((noise @ (u**2)).sum() / noise.sum()))


def predict_drift(config: Config, *, mean_share: float = 1.0) -> float:
    """Return the exact mean change of the charge in one step, over the squared learning rate.

    For Gaussian inputs E[xx^T M xx^T] = 2 X M X + Tr(MX) X with X their second moment.
    """
    factors = balanced_factors()
    u, w = (factor * stretch for factor, stretch in zip(factors, DRIFT_STRETCH, strict=True))
    x, noise = np.diag(input_variances(config)), np.diag(label_variances(config))
    gap = u @ w - TARGET
    of_u = 4 * (gap @ (2 * x @ x + np.trace(x) * x) @ gap.T + np.trace(x) * noise)
    of_w = 4 * (2 * x @ gap.T @ gap @ x + np.trace(gap @ x @ gap.T) * x + np.trace(noise) * x)
    # The gradients of U and W are GW^T and U^TG.
    second = np.trace(w @ of_w @ w.T) - np.trace(u.T @ of_u @ u)
    mean = 2 * gap @ x
    of_mean = float(((mean @ w.T) ** 2).sum() - ((u.T @ mean) ** 2).sum())
    step = Step(DRIFT_LEARNING_RATE, DRIFT_BATCH, DRIFT_BATCH, DRIFT_DECAY, replacement=True)
    charge = float((u**2).sum() - (w**2).sum())
    squared = DRIFT_LEARNING_RATE**2
    return (
        step.noise_factor * (float(second) - of_mean) - step.decay_factor * charge
    ) / squared + mean_share * of_mean


def predict_fourth_power(config: Config, *, convention: float = 2.0) -> float:
    """Return T Tr(noise at unit norm) / (2 decay); on the teacher each tangent direction has noise 1."""
    return config.learning_rate * (DIMENSION - 1) / (convention * config.weight_decay)


def draw(record: Record) -> "Figure":
    """Draw the squared norms of the two outputs' weights along training, from the three starts."""
    from matplotlib.figure import Figure

    config = record.config
    time = record.array("steps")[0] / relaxation_steps(config)
    paths = record.array("paths")
    paths = paths.reshape(len(paths), POINTS, 2, len(STRETCHES))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    for k, (axes, title) in enumerate(
        zip(figure.subplots(1, 2), ("first output", "second output"), strict=True)
    ):
        axes.axhline(predict_outputs(config)[k], color=THEORY, label="noise equilibrium")
        for start, stretch in enumerate(STRETCHES):
            kept = norm_balance()[k] * stretch**2
            label: dict[str, Any] = {"label": "rival: where gradient descent stays"} if start == 0 else {}
            axes.axhline(kept, color=RIVAL, linestyle="--", lw=1.2, **label)
            values = paths[:, :, k, start]
            error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            axes.errorbar(
                time, values.mean(axis=0), yerr=error, fmt="ov^"[start], ms=3.5, color=MEASUREMENT,
                alpha=0.8, label=f"SGD from $U\\times${stretch:g}",
            )  # fmt: skip
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(title=f"{title}, label noise {label_variances(config)[k]:g}", xlabel="relaxation times")
    figure.axes[0].set_ylabel(r"squared weights of the output, $(UU^\top)_{kk}$")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


FINITE_STEP = (
    "finite step: the fluctuations of UW about the target add to the noise, of first order in the learning "
    "rate, 3 % at 0.01; where target and covariances do not commute SGD also turns the hidden units, "
    "which shifts the balance by another 0.7 % at any learning rate"
)

STUDY = Study(
    title="Noise equilibrium",
    paper=Paper("2402.07193", result="SGD noise takes every symmetry orbit to its one balanced point"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"learning_rate": 0.005, "runs": 32}},
    claims=[
        Claim(
            "first_output",
            formula=r"(UU^\top)_{11},\quad \frac{W\Sigma_xW^\top}{\mathrm{Tr}\Sigma_x}="
            r"\frac{U^\top\Sigma_\varepsilon U}{\mathrm{Tr}\Sigma_\varepsilon}",
            predict=lambda config: float(predict_outputs(config)[0]),
            margin=0.05,
            relative=True,
            because=FINITE_STEP,
            rival=Rival("balanced norms", lambda config: float(norm_balance()[0])),
        ),
        Claim(
            "second_output",
            formula=r"(UU^\top)_{22}",
            predict=lambda config: float(predict_outputs(config)[1]),
            margin=0.05,
            relative=True,
            because=FINITE_STEP,
            rival=Rival("covariances inverted", lambda config: float(inverted_outputs(config)[1])),
        ),
        Claim(
            "noise_ratio",
            formula=r"\frac{\mathrm{Tr}[W\Sigma_xW^\top]/\mathrm{Tr}\Sigma_x}"
            r"{\mathrm{Tr}[U^\top\Sigma_\varepsilon U]/\mathrm{Tr}\Sigma_\varepsilon}=1",
            predict=lambda config: 1.0,
            margin=0.03,
            because=FINITE_STEP,
            rival=Rival("balanced norms", norm_balance_ratio),
        ),
        Claim(
            "start_dependence",
            formula=r"\|U\|^2\ \text{from}\ (2U_0,W_0/2)\ \text{over}\ \|U\|^2\ \text{from}\ (U_0/2,2W_0)=1",
            predict=lambda config: 1.0,
            margin=0.06,
            because="a run lasts seven relaxation times of the slowest charge; its last third is averaged",
            rival=Rival(
                "gradient descent keeps the start", lambda config: (STRETCHES[2] / STRETCHES[0]) ** 2
            ),
        ),
        Claim(
            "discrete_drift",
            formula=r"E\,\Delta C/\eta^2=\tfrac1S\mathrm{Tr}[\Sigma A]+\nabla L^\top A\nabla L"
            r"-\tfrac{\lambda}{\eta}(2-\eta\lambda)C",
            predict=predict_drift,
            margin=0.01,
            relative=True,
            because="sampling error only; the law is exact",
            rival=Rival(
                "the mean gradient's part falls with the batch as well",
                lambda config: predict_drift(config, mean_share=1 / DRIFT_BATCH),
            ),
        ),
        Claim(
            "fourth_power",
            formula=r"\|w\|^4=T\,\mathrm{Tr}\hat\Sigma/(2\lambda)",
            predict=predict_fourth_power,
            margin=0.06,
            relative=True,
            because="finite step: fluctuations of the direction add the fraction (d+1)/2 times learning rate "
            "over squared norm to the noise, 2 % here",
            rival=Rival(
                "decay written as the full squared norm",
                lambda config: predict_fourth_power(config, convention=4.0),
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.symmetry.rebalance.equilibrium_report",
        "symdyn_core.symmetry.rebalance.rebalance_",
        "symdyn_core.symmetry.charges.charge_drift",
        "symdyn_core.symmetry.equilibrium.noise_equilibrium",
        "symdyn_core.symmetry.equilibrium.linear_net_noise_equilibrium",
    ),
)
