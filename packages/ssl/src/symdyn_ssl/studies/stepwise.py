r"""Does a self-supervised encoder learn its dimensions one at a time, at times that the data foretell?

A linear encoder $z = Wx$ is trained on pairs of views of handwritten digits to make the cross-view
covariance of its outputs the identity: loss $\|C - I\|_F^2$ (Barlow Twins without normalisation). Each view
is rolled by up to one pixel, made brighter or darker, and gets pixel noise. Every repetition draws other
images, other views and other small initial weights, and runs plain gradient descent on the loss,
differentiated automatically; the only thing recorded are the eigenvalues of $C$ and the loss.

Theory sees the pairs and the initial weights, never the training. It diagonalises the covariance across views
$\Gamma$ and says that eigenvalue $j$ of $C$ follows a logistic curve of rate $8 \gamma_j$ that passes one
half at $\tau_j = \log(1/\lambda_j(0) - 1) / (8\gamma_j)$, where direction $j$ starts from what the earlier
directions have left of its initial column, $\lambda_j(0) = \gamma_j R_{jj}^2$ with $W(0) V = QR$. The loss
descends a staircase of unit steps.

Where the next eigenvalue is close, the closed form is not enough: directions compete, the last step may come
a quarter early, and what it learns is a mixture $r$ of directions with $r \Gamma r^\top = 1$. So the training
does not end quite at the smallest weights of zero loss, $\|W\|_F^2 = \sum_j 1 / \gamma_j$, which it would
with eigenvalues far apart: on digits it ends up to about one per cent above. The law with competition
(growth under the covariance deflated by what has been learned) is tested on the late steps, the last plateau
and the final weights, the closed form on the first step, the rises and the early steps.

Refuted if steps come at other times than foretold: twice as late (rate $4\gamma$), at the times of the
ordinary covariance instead of the one across views, or as early as each direction's whole initial column
would allow; or if the last two dimensions are learned together instead of one after the other.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from symdyn_core import plots
from symdyn_core.random import derive_seed, numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed
from symdyn_ssl.augment import digit_pairs
from symdyn_ssl.simulate import simulate_linear_ssl
from symdyn_ssl.steps import measure_steps
from symdyn_ssl.stepwise import StepwiseTheory, optimiser_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    dim: int = setting(6, valid=(3, 10), verify=(4, 8), help="width of the embedding")
    init_std: float = setting(1e-4, valid=(1e-6, 1e-3), verify=(1e-5, 1e-3), help="scale of initial weights")
    noise: float = setting(0.05, valid=(0.0, 0.4), verify=(0.0, 0.3), help="pixel noise of a view")
    pairs: int = setting(500, valid=(300, 1797), verify=(300,), help="positive pairs")
    learning_rate: float = setting(0.03, valid=(0.005, 0.03), verify=(0.015,), help="of gradient descent")


def draw_inputs(config: Config, seed: int) -> tuple[Array, Array, Array]:
    """Return both views and the initial weights of a repetition: what training and theory are both given."""
    x, x_prime = digit_pairs(config.pairs, derive_seed(seed, "pairs"), noise=config.noise)
    weights = numpy_generator(seed, "weights").normal(0.0, config.init_std, (config.dim, x.shape[1]))
    return x, x_prime, weights


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Train one encoder and read the steps off its record."""
    x, x_prime, weights = draw_inputs(config, seed)
    run = simulate_linear_ssl(
        x,
        x_prime,
        config.dim,
        learning_rate=config.learning_rate,
        weights0=weights,
        max_steps=200_000,
        tolerance=1e-5,
    )
    if not run.converged:
        raise RuntimeError(f"not converged after {run.steps[-1]} steps, loss {run.loss[-1]:.3g}")
    found = measure_steps(run.steps, run.eigenvalues)
    shown = np.linspace(0, len(run.steps) - 1, 120).round().astype(int)
    return {
        "first_step": float(found.times[0]),
        "rises": _geometric_mean(found.widths[:-1]),
        "early_steps": _geometric_mean(found.times[:-1]),
        "late_steps": _geometric_mean(found.times[config.dim // 2 :]),
        "last_plateau": float(np.interp(_geometric_mean(found.times[-2:]), run.steps, run.loss)),
        "squared_weights": float((run.weights**2).sum()),
        "step_times": found.times.tolist(),
        "curve_steps": run.steps[shown].tolist(),
        "curve_loss": run.loss[shown].tolist(),
    }


def predict_first_step(config: Config, seed: int, rate: float = 8.0) -> float:
    """Return the optimiser step of the first step; ``rate`` is 8 in theory."""
    theory, weights = _theory(config, seed)
    return _in_steps(config, theory.step_times(weights0=weights).min() * 8 / rate)


def predict_rises(config: Config, seed: int, rate: float = 8.0) -> float:
    """Return the geometric mean of the optimiser steps from 10 % to 90 % of each rise but the last."""
    return _in_steps(config, _geometric_mean(_theory(config, seed)[0].widths[:-1]) * 8 / rate)


def predict_early_steps(config: Config, seed: int, ordinary: bool = False) -> float:
    """Return the geometric mean of all steps but the last by the closed form."""
    theory, weights = _theory(config, seed, ordinary)
    return _in_steps(config, _geometric_mean(np.sort(theory.step_times(weights0=weights))[:-1]))


def predict_late_steps(config: Config, seed: int) -> float:
    """Return the geometric mean of the later half of the steps by the law with competition."""
    theory, weights = _theory(config, seed)
    return _in_steps(config, _geometric_mean(theory.competing_steps(weights).times[config.dim // 2 :]))


def predict_late_steps_alone(config: Config, seed: int) -> float:
    """Return the same if each direction started from its whole initial column, as if it were alone."""
    theory, weights = _theory(config, seed)
    initial = theory.gamma * ((weights @ theory.directions.T) ** 2).sum(axis=0)
    times = np.log(1 / initial - 1) / (8 * theory.gamma)
    return _in_steps(config, _geometric_mean(np.sort(times)[config.dim // 2 :]))


def predict_last_plateau(config: Config, seed: int) -> float:
    """Return the loss half-way (geometrically) between the last two steps."""
    theory, weights = _theory(config, seed)
    times = theory.competing_steps(weights).times
    eigenvalues = expit(8 * theory.gamma * (_geometric_mean(times[-2:]) - times))
    return float(((1 - eigenvalues) ** 2).sum())


def predict_squared_weights(config: Config, seed: int, ordinary: bool = False) -> float:
    """Return the squared norm of the weights that the training ends with."""
    theory, weights = _theory(config, seed, ordinary)
    return float((theory.competing_steps(weights).encoder ** 2).sum())


def draw(record: Record) -> "Figure":
    """Draw the loss of the first repetition, and every step of every repetition against its prediction."""
    from matplotlib.figure import Figure

    config = record.config
    inputs = [_theory(config, repetition_seed(record.seed, record.study.id, k)) for k in record.repetitions]
    times = np.array([theory.competing_steps(weights).times for theory, weights in inputs])
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)

    steps = record.array("curve_steps")[0]
    fine = np.linspace(0, steps[-1], 600)
    for rate, style in ((8, THEORY), (4, RIVAL)):
        # A rate that is too small by a factor also delays the steps by it.
        late = fine[:, None] * config.learning_rate - times[0] * 8 / rate
        left.plot(fine, ((1 - expit(rate * inputs[0][0].gamma * late)) ** 2).sum(axis=1), **style)
    left.plot(steps, record.array("curve_loss")[0], "o", markersize=2.5, **TRAINING)
    left.set(xlabel="gradient-descent steps", ylabel="loss", title="one training")

    predicted, measured = times / config.learning_rate, record.array("step_times")
    ends = np.array([0.0, 1.1 * predicted.max()])
    right.plot(ends, ends, **THEORY)
    right.plot(ends / 2, ends, **RIVAL)
    right.plot(measured.ravel(), predicted.ravel(), "o", markersize=3.5, **TRAINING)
    right.set(xlabel="measured step", ylabel="predicted step")
    right.set_title(f"every step of {len(measured)} trainings")
    for axes in (left, right):
        axes.legend(fontsize="small")
    return figure


@lru_cache(maxsize=64)
def _theory(config: Config, seed: int, ordinary: bool = False) -> tuple[StepwiseTheory, Array]:
    """Return the theory of a repetition's pairs and its initial weights.

    Taking every view for both views of itself turns the covariance across views into the ordinary one.
    """
    x, x_prime, weights = draw_inputs(config, seed)
    if ordinary:
        x = x_prime = np.vstack([x, x_prime])
    return StepwiseTheory.from_pairs(x, x_prime, config.dim), weights


def _in_steps(config: Config, time: float) -> float:
    return float(optimiser_steps(time, learning_rate=config.learning_rate))


def _geometric_mean(values: Array) -> float:
    return float(np.exp(np.log(values).mean()))


THEORY: dict[str, Any] = {"color": plots.THEORY, "label": "theory"}
RIVAL: dict[str, Any] = {"color": plots.RIVAL, "linestyle": "--", "label": r"rate $4\gamma$"}
TRAINING: dict[str, Any] = {"color": plots.MEASUREMENT, "label": "training"}
FINITE_STEP = "a finite step grows amplitudes by log(1 + 4 gamma eta), not 4 gamma eta: later by 2 gamma eta"

STUDY = Study(
    title="Stepwise self-supervised learning",
    paper=Paper(
        "2303.15438", result="step times, loss staircase and final weights, from pairs and initial weights"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"dim": 10, "pairs": 1797, "learning_rate": 0.005}},
    claims=[
        Claim(
            "first_step",
            formula=r"\tau_1 = \log(1/\lambda_1(0) - 1) / (8 \gamma_1)",
            predict=predict_first_step,
            margin=0.04,
            relative=True,
            because=FINITE_STEP,
            rival=Rival("rate 4 gamma", lambda config, seed: predict_first_step(config, seed, rate=4.0)),
        ),
        Claim(
            "rises",
            formula=r"t_{90} - t_{10} = \log 81 / (8 \gamma_j), \text{ geometric mean over } j < d",
            predict=predict_rises,
            margin=0.04,
            relative=True,
            because="sorted eigenvalues repel each other where rises overlap in time",
            rival=Rival("rate 4 gamma", lambda config, seed: predict_rises(config, seed, rate=4.0)),
        ),
        Claim(
            "early_steps",
            formula=r"\exp \langle \log \tau_j \rangle_{j < d},\ \lambda_j(0) = \gamma_j R_{jj}^2",
            predict=predict_early_steps,
            margin=0.03,
            relative=True,
            because=FINITE_STEP + "; close eigenvalues compete, which the closed form leaves out",
            rival=Rival(
                "ordinary covariance", lambda config, seed: predict_early_steps(config, seed, ordinary=True)
            ),
        ),
        Claim(
            "late_steps",
            formula=r"\exp \langle \log \tau_j \rangle_{j > d/2} \text{ with competition}",
            predict=predict_late_steps,
            margin=0.015,
            relative=True,
            because=FINITE_STEP,
            rival=Rival("each direction alone", predict_late_steps_alone),
        ),
        Claim(
            "last_plateau",
            formula=r"L(\sqrt{\tau_{d-1} \tau_d}) = \sum_j (1 - \lambda_j)^2",
            predict=predict_last_plateau,
            margin=0.05,
            because="rises that overlap in time",
            rival=Rival("the last two dimensions rise together: (1/2)^2 + (1/2)^2", lambda config: 0.5),
        ),
        Claim(
            "squared_weights",
            formula=r"\|W\|_F^2 \to \sum_{j \le d} \|r_j\|^2,\ r_j \Gamma r_j^\top = 1,"
            r" \text{ with competition}",
            predict=predict_squared_weights,
            margin=0.01,
            relative=True,
            because="the training stops at a loss of 1e-5, and rises overlap in time",
            rival=Rival(
                "ordinary covariance",
                lambda config, seed: predict_squared_weights(config, seed, ordinary=True),
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_ssl.stepwise.StepwiseTheory",
        "symdyn_ssl.stepwise.optimiser_steps",
        "symdyn_ssl.kernel.KernelSSL",
        "symdyn_ssl.simulate.simulate_linear_ssl",
        "symdyn_ssl.steps.measure_steps",
    ),
)
