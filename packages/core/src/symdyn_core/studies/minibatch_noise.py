r"""How far does SGD spread around the solution of a linear regression, and how heavy are its tails?

Inputs $x\sim N(0,A)$ with $A=\mathrm{diag}(1,\frac12)$, labels $y=u^\top x+\epsilon$ of unit noise, fresh
batches of $S$. Because the gradient noise grows with the distance from the solution, the stationary
covariance feeds on itself,
$$\Sigma=\frac{\sigma^2}{S}\Big(1+\frac\kappa S\Big)\Lambda G^{-1},\quad
G=2(1-\mu)I-\Big(\frac{1-\mu}{1+\mu}+\frac1S\Big)\Lambda A,$$
exactly, at any learning rate and with momentum $\mu$. Continuous-time theory says
$\eta\sigma^2/2S(1-\mu)$ in every direction; it is held against the ensemble, and so is the law without the
self-excitation $\kappa$.

**Tails.** One weight at batches of one. The density falls like $|w|^{-(1+\beta)}$. The paper estimates
$\beta=2S/\eta a-S$ by matching a variance; the exact index solves $\mathbb E|1-\eta\hat a|^\beta=1$ (Kesten).
Hill's estimator of the ensemble's tail decides between them.

**Negative weight decay.** One weight without label noise, beyond the learning rate at which the variance of
plain SGD diverges. A negative decay makes it finite, at a computable price. But this is a statement about
the mean: without any decay *typical* runs still converge to the perfect solution, because
$\mathbb E\log|1-\eta\hat a|<0$, and only rare excursions make the mean loss infinite.

Refuted if the ensembles spread as in continuous time or without $\kappa$, if the tail has the index of the
estimate, if the loss under negative decay is that of its bias alone, or if runs without decay diverge. How
far it holds: close to the edge of stability the tail index falls below four, and no ensemble of this size
measures a variance; the settings stay where it can.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symdyn_core.dynamics.linear_sgd import LinearSGD
from symdyn_core.dynamics.tails import hill_estimator, tail_index
from symdyn_core.estimate import proportion
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

CURVATURES = (1.0, 0.5)  # eigenvalues of A
BURN_IN = 0.25  # of the steps, which are not counted
TAIL_STEPS = 200
TAIL_FRACTION = 0.01  # of the runs, the largest, from which the tail index is estimated
TAIL_RATES = (1.1, 1.3)  # of the figure, with a quarter of the runs
DECAY_BATCH = 32
DECAY_STEPS = 400
CONVERGED = 1e-6  # distance from the solution
DECAYS = (-0.2, -0.15, -0.1, 0.05, 0.1)  # of the figure
CLOUD = 150  # runs of which the figure shows the last position


@dataclass(frozen=True)
class Config:
    """Settings of SGD on linear regression."""

    learning_rate: float = setting(0.6, valid=(0.3, 0.62), verify=(0.4, 0.5), help="of SGD without momentum")
    batch_size: int = setting(2, valid=(2, 16), verify=(4, 8), help="with and without momentum")
    momentum: float = setting(0.7, valid=(0.3, 0.75), verify=(0.5,), help="of SGD with momentum")
    momentum_learning_rate: float = setting(
        0.2, valid=(0.05, 0.21), verify=(0.1,), help="of SGD with momentum"
    )
    tail_learning_rate: float = setting(
        1.5, valid=(1.2, 1.6), verify=(1.2, 1.6), help="of one weight at batches of one"
    )
    decay_learning_rate: float = setting(
        2.0, valid=(1.9, 2.02), verify=(1.92, 1.96), help="of one weight with decay, beyond the edge 1.88"
    )
    weight_decay: float = setting(
        -0.15, valid=(-0.25, -0.1), verify=(-0.2, -0.1), help="coefficient of the squared weight"
    )
    runs: int = setting(1500, valid=(500, 100_000), help="runs of regression in two dimensions")
    steps: int = setting(400, valid=(300, 100_000), help="of each of them")
    tail_runs: int = setting(80_000, valid=(30_000, 10_000_000), help="runs whose tail is looked at")
    decay_runs: int = setting(1000, valid=(500, 100_000), help="runs with each weight decay")


# --- measurement --------------------------------------------------------------------------------------------


def regression(
    config: Config, learning_rate: float, momentum: float, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Run SGD from the solution and return the covariance over runs and time, and where runs end."""
    scales = np.sqrt(np.array(CURVATURES))
    w = np.zeros((config.runs, 2))
    buffer, total = np.zeros_like(w), np.zeros((2, 2))
    first = int(BURN_IN * config.steps)
    for step in range(config.steps):
        x = generator.standard_normal((config.batch_size, config.runs, 2)) * scales
        labels = generator.standard_normal((config.batch_size, config.runs))
        error = (x * w).sum(axis=2) - labels
        buffer = momentum * buffer + (error[:, :, None] * x).mean(axis=0)
        w = w - learning_rate * buffer
        if step >= first:
            total += w.T @ w / config.runs
    return total / (config.steps - first), w


def tail(learning_rate: float, runs: int, generator: np.random.Generator) -> float:
    """Return Hill's estimate of the tail index of one weight at batches of one."""
    w = np.zeros(runs)
    for _ in range(TAIL_STEPS):
        x, label = generator.standard_normal((2, runs))
        w -= learning_rate * (w * x - label) * x
    return hill_estimator(w, k=int(TAIL_FRACTION * runs)).value


def decayed(config: Config, weight_decay: float, generator: np.random.Generator) -> tuple[float, Array]:
    """Run SGD on one weight without label noise; return the mean loss over runs and time, and where runs end.

    Of a batch only the mean of the squared inputs enters: a chi-square variable over its size.
    """
    w = np.zeros(config.decay_runs)
    total, first = 0.0, DECAY_STEPS // 4
    for step in range(DECAY_STEPS):
        squares = generator.chisquare(DECAY_BATCH, config.decay_runs) / DECAY_BATCH
        w -= config.decay_learning_rate * (squares * (w - 1) + 2 * weight_decay * w)
        if step >= first:
            total += float(((w - 1) ** 2).mean() / 2)
    return total / (DECAY_STEPS - first), w


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run all experiments once."""
    plain, ends = regression(config, config.learning_rate, 0.0, numpy_generator(seed, "plain"))
    heavy, heavy_ends = regression(
        config, config.momentum_learning_rate, config.momentum, numpy_generator(seed, "momentum")
    )
    loss, _ = decayed(config, config.weight_decay, numpy_generator(seed, "decay"))
    _, last = decayed(config, 0.0, numpy_generator(seed, "no decay"))
    curve = [decayed(config, decay, numpy_generator(seed, "curve", str(decay)))[0] for decay in DECAYS]
    return {
        "steep_variance": float(plain[0, 0]),
        "flat_variance": float(plain[1, 1]),
        "momentum_loss_gap": float(np.array(CURVATURES) @ np.diag(heavy) / 2),
        "tail_index": tail(config.tail_learning_rate, config.tail_runs, numpy_generator(seed, "tail")),
        "loss_with_negative_decay": loss,
        "converged_without_decay": (np.abs(last - 1) < CONVERGED).astype(int).tolist(),
        "covariances": [plain.tolist(), heavy.tolist()],
        "cloud": [ends[:CLOUD].tolist(), heavy_ends[:CLOUD].tolist()],
        "tail_curve": [
            tail(rate, config.tail_runs // 4, numpy_generator(seed, "tails", str(rate)))
            for rate in TAIL_RATES
        ],
        "decay_curve": curve,
    }


# --- theory -------------------------------------------------------------------------------------------------


def plain_sgd(config: Config) -> LinearSGD:
    """The model of the runs without momentum."""
    return LinearSGD(np.diag(CURVATURES), config.learning_rate, config.batch_size, label_noise_variance=1.0)


def momentum_sgd(config: Config) -> LinearSGD:
    """The model of the runs with momentum."""
    return LinearSGD(
        np.diag(CURVATURES), config.momentum_learning_rate, config.batch_size, 1.0, config.momentum
    )


def decayed_sgd(config: Config, weight_decay: float) -> LinearSGD:
    """The model of one weight with decay and without label noise."""
    return LinearSGD(
        [[1.0]], config.decay_learning_rate, DECAY_BATCH, weight_decay=weight_decay, target=[1.0]
    )


def continuous_variance(model: LinearSGD) -> float:
    """Variance in every direction in continuous time."""
    return float(np.asarray(model.learning_rate)) / (2 * model.batch_size * (1 - model.momentum))


def variance_without_feedback(model: LinearSGD) -> Array:
    """Variances with the noise of the labels alone, without what the spread itself adds."""
    return np.diag(model.param_covariance()) / (2 * model.train_loss())


def bias_alone(weight_decay: float) -> float:
    """Loss at the mean of the weight."""
    return (2 * weight_decay / (1 + 2 * weight_decay)) ** 2 / 2


# --- figure -------------------------------------------------------------------------------------------------


def draw(record: Record) -> "Figure":
    """Draw the ellipses of the parameters, the tail index and the loss under decay."""
    from matplotlib.figure import Figure

    config = record.config
    figure = Figure(figsize=(9.6, 6.8), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    titles = (
        rf"SGD, $\eta={config.learning_rate:g}$, $S={config.batch_size}$",
        rf"momentum {config.momentum:g}, $\eta={config.momentum_learning_rate:g}$, $S={config.batch_size}$",
    )
    for k, (axes, model) in enumerate(((first, plain_sgd(config)), (second, momentum_sgd(config)))):
        draw_ellipses(axes, model, record.array("covariances")[:, k], record.array("cloud")[:, k])
        axes.set(title=titles[k], xlabel="steep direction", ylabel="flat direction")
        axes.set_aspect("equal", adjustable="box")
        reach = 2.5 * np.sqrt(model.param_covariance().max())
        axes.set(xlim=(-reach, reach), ylim=(-0.7 * reach, 0.7 * reach))

    rates = np.linspace(1.0, 1.7, 40)
    third.plot(rates, [tail_index(1.0, rate, 1) for rate in rates], color=THEORY)
    third.plot(
        rates, [tail_index(1.0, rate, 1, "variance_matched") for rate in rates], color=RIVAL, linestyle="--"
    )
    draw_point(third, config.tail_learning_rate, record.array("tail_index"))
    for k, rate in enumerate(TAIL_RATES):
        draw_point(third, rate, record.array("tail_curve")[:, k])
    third.set(title="tail of one weight, $S=1$", xlabel=r"$\eta a$", ylabel=r"tail index $\beta$")
    third.set_ylim(bottom=0)

    decays = np.linspace(-0.26, 0.16, 400)
    models = [decayed_sgd(config, float(decay)) for decay in decays]
    losses = [model.test_loss() if model.is_stable() else np.nan for model in models]
    fourth.plot(decays, losses, color=THEORY)
    fourth.plot(decays, [bias_alone(decay) for decay in decays], color=RIVAL, linestyle="--")
    curve = record.array("decay_curve")
    for k, decay in enumerate(DECAYS):
        if decayed_sgd(config, decay).is_stable():
            draw_point(fourth, decay, curve[:, k])
    draw_point(fourth, config.weight_decay, record.array("loss_with_negative_decay"))
    fourth.set(
        title=rf"decay, $\eta a={config.decay_learning_rate:g}$, $S={DECAY_BATCH}$",
        xlabel=r"weight decay $\gamma$",
        ylabel="mean loss",
    )
    fourth.set_ylim(0, 1.3 * float(curve[:, 0].mean()))
    unstable = [decay for decay, value in zip(decays, losses, strict=True) if np.isnan(value)]
    if unstable:
        fourth.axvspan(min(unstable), max(unstable), color="#f3f3f3")
        middle, height = (min(unstable) + max(unstable)) / 2, 0.12 * float(curve[:, 0].mean())
        fourth.text(middle, height, "variance infinite", ha="center", color="#555555")

    handles = [
        first.plot([], [], color=THEORY)[0],
        first.plot([], [], "o", color=MEASUREMENT)[0],
        first.plot([], [], color=RIVAL, linestyle="--")[0],
    ]
    labels = [
        "theory (ellipses: one standard deviation)",
        "SGD, 95 % interval",
        "rivals: continuous time; variance matching; bias alone",
    ]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def draw_ellipses(axes: "Axes", model: LinearSGD, covariances: Array, cloud: Array) -> None:
    """Draw where runs are, and the ellipses of one standard deviation: theory, measurement, rival."""
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.array([np.cos(angles), np.sin(angles)])
    positions = cloud[0]
    axes.plot(*positions.T, ".", ms=2.5, color=MEASUREMENT, alpha=0.35)
    axes.plot(*(np.linalg.cholesky(model.param_covariance()) @ circle), color=THEORY)
    axes.plot(*(np.sqrt(continuous_variance(model)) * circle), color=RIVAL, linestyle="--")
    measured = np.linalg.cholesky(covariances.mean(axis=0))
    axes.plot(*(measured @ circle[:, ::10]), "o", ms=4, color=MEASUREMENT)


def draw_point(axes: "Axes", where: float, values: Array) -> None:
    """Draw a measured value with its interval."""
    error = 2 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    axes.errorbar([where], [values.mean()], yerr=error, fmt="o", ms=5, color=MEASUREMENT, capsize=2)


STUDY = Study(
    title="Strength of minibatch noise",
    paper=Paper("2102.05375", result="exact covariance of SGD, its tails, and negative weight decay"),
    version=1,
    config=Config,
    presets={
        "quick": {},
        "full": {"runs": 10_000, "steps": 1000, "tail_runs": 1_000_000, "decay_runs": 10_000},
    },
    claims=[
        Claim(
            "steep_variance",
            formula=r"\Sigma_{11}=\frac{\sigma^2}{S}\Big(1+\frac{\kappa}{S}\Big)(\Lambda G^{-1})_{11}",
            predict=lambda config: float(plain_sgd(config).param_covariance()[0, 0]),
            margin=0.03,
            relative=True,
            because="sampling, over six standard errors; the law is exact",
            rival=Rival(
                r"continuous time, learning rate / 2 S", lambda config: continuous_variance(plain_sgd(config))
            ),
        ),
        Claim(
            "flat_variance",
            formula=r"\Sigma_{22}=\frac{\sigma^2}{S}\Big(1+\frac{\kappa}{S}\Big)(\Lambda G^{-1})_{22}",
            predict=lambda config: float(plain_sgd(config).param_covariance()[1, 1]),
            margin=0.03,
            relative=True,
            because="sampling, over six standard errors; the law is exact",
            rival=Rival(
                "without the noise that the spread itself makes",
                lambda config: float(variance_without_feedback(plain_sgd(config))[1]),
            ),
        ),
        Claim(
            "momentum_loss_gap",
            formula=r"\tfrac12\mathrm{Tr}[A\Sigma],\quad "
            r"G=2(1-\mu)I-\Big(\frac{1-\mu}{1+\mu}+\frac1S\Big)\Lambda A",
            predict=lambda config: momentum_sgd(config).test_loss(),
            margin=0.03,
            relative=True,
            because="sampling, over six standard errors; the law is exact",
            rival=Rival(
                "continuous time, learning rate / 2 S (1 - momentum)",
                lambda config: continuous_variance(momentum_sgd(config)) * sum(CURVATURES) / 2,
            ),
        ),
        Claim(
            "tail_index",
            formula=r"\mathbb{E}|1-\eta\hat a|^{\beta}=1",
            predict=lambda config: tail_index(1.0, config.tail_learning_rate, 1),
            margin=0.04,
            because="finite time and a finite fraction of the tail; and sampling, over six standard errors",
            rival=Rival(
                "the paper's estimate from a matched variance",
                lambda config: tail_index(1.0, config.tail_learning_rate, 1, "variance_matched"),
            ),
        ),
        Claim(
            "loss_with_negative_decay",
            formula=r"\tfrac12\mathrm{Tr}[A\,\mathbb{E}(w-u)(w-u)^\top],\quad\gamma<0",
            predict=lambda config: decayed_sgd(config, config.weight_decay).test_loss(),
            margin=0.03,
            relative=True,
            because="sampling, over six standard errors; the law is exact",
            rival=Rival("the bias alone", lambda config: bias_alone(config.weight_decay)),
        ),
        Claim(
            "converged_without_decay",
            formula=r"P(w\to u)=1\text{ where }\mathbb{E}\log|1-\eta\hat a|<0",
            predict=lambda config: float(tail_index(1.0, config.decay_learning_rate, DECAY_BATCH) > 0),
            margin=0.02,
            because="a few runs are on an excursion at any time",
            estimator=proportion,
            rival=Rival(
                "converges exactly if the variance does",
                lambda config: float(decayed_sgd(config, 0.0).is_stable()),
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.linear_sgd.LinearSGD",
        "symdyn_core.dynamics.tails.tail_index",
        "symdyn_core.dynamics.tails.hill_estimator",
        "symdyn_core.dynamics.optimal_decay.optimal_weight_decay",
    ),
)
