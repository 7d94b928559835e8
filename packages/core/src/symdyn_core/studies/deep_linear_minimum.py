r"""Where is the global minimum of a deep linear network, and can gradient descent miss it?

A deep linear network with dropout on its hidden layers and weight decay is trained on a small random
regression data set. Its loss has a closed-form global minimum: all layers carry the same penalty
$S=\gamma_i\|W_i\|^2$, and $S$ minimises $E[y^2] - \rho\,m^T(A+\lambda)^{-1}m + DS$ with
$\lambda=\rho\prod_i\gamma_i/S^D$ and $\rho=\prod_i d_i/(d_i+\sigma_i^2)$. Zero is a saddle with one hidden
layer, and a local minimum, however bad, with two or more.

Set-up: the experiment knows none of this. It averages the squared error over every dropout mask, one by one,
with its probability, minimises that by L-BFGS from many random starts, differentiates it twice at zero, and
runs plain gradient descent from very small weights. Data set, teacher and starts are drawn afresh in every
repetition.

Refuted if a start finds less than the predicted loss or all of them stay above it, if the layers of the best
network differ in penalty, if its outputs spread more or less over the masks, if the curvature at zero is
another, or if gradient descent from small weights ends at the wrong one of the two: zero or the global
minimum.
"""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from symdyn_core.landscape.deep_linear import (
    DeepLinearSolution,
    Moments,
    data_moments,
    deep_linear_minimum,
    dropout_noise_variance,
    origin_is_local_min,
)
from symdyn_core.landscape.effective import EffectiveProblem, Signal, signal_retention
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

FEATURES = 3
SAMPLES = 12
SMALL = 0.01  # standard deviation of small initial weights
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    depth: int = setting(2, choices=(1, 2, 3), verify=(1, 3), help="hidden layers")
    width: int = setting(3, valid=(2, 4), verify=(2, 4), help="neurons of each hidden layer")
    drop_rate: float = setting(0.3, valid=(0.0, 0.5), verify=(0.1, 0.5), help="dropout on hidden neurons")
    weight_decay: float = setting(
        0.15, valid=(0.02, 0.2), verify=(0.03, 0.2), help="geometric mean over the layers"
    )
    decay_ratio: float = setting(2.0, valid=(1.0, 4.0), verify=(4.0,), help="between successive layers")
    signal: float = setting(2.0, valid=(1.5, 3.0), verify=(1.5, 3.0), help="norm of E[xy]")
    starts: int = setting(10, valid=(6, 1000), help="random starts of L-BFGS")
    descent_steps: int = setting(500, valid=(300, 100_000), help="of gradient descent from small weights")

    @property
    def weight_decays(self) -> list[float]:
        """One per layer, from input to output."""
        return [self.weight_decay * self.decay_ratio ** (i - self.depth / 2) for i in range(self.depth + 1)]


def data_set(config: Config, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return inputs and labels of one repetition: a noisy linear teacher, labels scaled to the signal."""
    generator = numpy_generator(seed, "data")
    inputs = generator.normal(size=(SAMPLES, FEATURES))
    labels = inputs @ generator.normal(size=FEATURES) + 0.3 * generator.normal(size=SAMPLES)
    return inputs, labels * (config.signal / np.linalg.norm(inputs.T @ labels / SAMPLES))


class Network:
    """A linear network with dropout, averaged over all masks by writing them out."""

    def __init__(self, config: Config, inputs: FloatArray, labels: FloatArray) -> None:
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        width, depth = config.width, config.depth
        self.shapes = [(width, FEATURES), *[(width, width)] * (depth - 1), (1, width)]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.decays = torch.from_numpy(np.repeat(config.weight_decays, self.sizes))
        kept = torch.tensor(list(itertools.product((0.0, 1.0), repeat=width * depth)), dtype=torch.float64)
        chance = kept * (1 - config.drop_rate) + (1 - kept) * config.drop_rate
        self.probabilities = chance.prod(dim=1)
        # One mask per layer, shape (all combinations of masks, 1 for the samples, width).
        self.masks = (kept / (1 - config.drop_rate)).view(-1, depth, 1, width).unbind(dim=1)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(self.sizes)

    def outputs(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (combinations of masks, samples)."""
        ends = zip(itertools.accumulate(self.sizes), self.sizes, self.shapes, strict=True)
        first, *later = [flat[end - size : end].view(shape) for end, size, shape in ends]
        hidden: torch.Tensor = self.inputs @ first.T
        for mask, weight in zip(self.masks, later, strict=True):
            hidden = (mask * hidden) @ weight.T
        return hidden[..., 0]

    def loss(self, flat: torch.Tensor) -> torch.Tensor:
        """Return expected squared error plus penalties."""
        errors = (self.outputs(flat) - self.labels).square().mean(dim=1)
        loss: torch.Tensor = self.probabilities @ errors + self.decays @ flat.square()
        return loss

    def variance(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the variance of the output over masks, averaged over samples."""
        outputs = self.outputs(flat)
        deviation = outputs - self.probabilities @ outputs
        return (self.probabilities @ deviation.square()).mean()

    def output_penalty(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the penalty of the last layer."""
        return (self.decays * flat.square())[-self.sizes[-1] :].sum()

    def loss_and_gradient(self, flat: FloatArray) -> tuple[float, FloatArray]:
        """Return both as numpy."""
        weights = torch.tensor(flat, requires_grad=True)
        loss = self.loss(weights)
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    def hessian(self, flat: FloatArray) -> FloatArray:
        """Return the second derivatives of the loss, one row at a time."""
        weights = torch.tensor(flat, requires_grad=True)
        (gradient,) = torch.autograd.grad(self.loss(weights), weights, create_graph=True)
        rows = [torch.autograd.grad(entry, weights, retain_graph=True)[0] for entry in gradient]
        return torch.stack(rows).numpy()


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Minimise from many starts, differentiate at zero, and descend from small weights."""
    inputs, labels = data_set(config, seed)
    network = Network(config, inputs, labels)
    unit = float(np.mean(labels**2))
    generator = numpy_generator(seed, "weights")

    ends = []
    for start in range(config.starts):
        weights = generator.normal(size=network.size) * (0.2, 0.4, 0.7, 1.2)[start % 4]
        options = {"maxiter": 5000, "maxfun": 10_000, "gtol": 1e-9, "ftol": 1e-16}
        found = minimize(network.loss_and_gradient, weights, jac=True, method="L-BFGS-B", options=options)
        ends.append(found.x)
    weights = generator.normal(size=network.size) * SMALL
    for _ in range(config.descent_steps):
        weights = weights - LEARNING_RATE * network.loss_and_gradient(weights)[1]
    ends.append(weights)

    states = [torch.from_numpy(end) for end in ends]
    losses = [network.loss(state).item() / unit for state in states]
    penalties = [network.output_penalty(state).item() / unit for state in states]
    best = int(np.argmin(losses))
    return {
        "minimum_loss": losses[best],
        "output_layer_penalty": penalties[best],
        "predictive_variance": network.variance(states[best]).item() / unit,
        "curvature_at_zero": float(np.linalg.eigvalsh(network.hessian(np.zeros(network.size)))[0]),
        "loss_from_small_weights": losses[-1],
        "ends": [list(pair) for pair in zip(penalties, losses, strict=True)],
    }


def moments(config: Config, seed: int) -> Moments:
    """Return the moments of a repetition's data."""
    return data_moments(*data_set(config, seed))


def solution(config: Config, seed: int, width: int = 0) -> DeepLinearSolution:
    """Return theory's minimum, perhaps for another width."""
    return deep_linear_minimum(
        *moments(config, seed),
        widths=[width or config.width] * config.depth,
        weight_decays=config.weight_decays,
        noise_variance=dropout_noise_variance(config.drop_rate),
    )


def predict_loss(config: Config, seed: int, width: int = 0) -> float:
    """Return the least loss, in units of $E[y^2]$."""
    return solution(config, seed, width).loss / moments(config, seed).label_moment


def predict_penalty(config: Config, seed: int) -> float:
    """Return the penalty of each layer, in units of $E[y^2]$."""
    return solution(config, seed).layer_penalty / moments(config, seed).label_moment


def penalty_at_equal_norms(config: Config, seed: int) -> float:
    """Return the output layer's penalty if the same total were spread so that the norms are equal."""
    decays = config.weight_decays
    return predict_penalty(config, seed) * len(decays) * decays[-1] / sum(decays)


def predict_variance(config: Config, seed: int) -> float:
    """Return the variance over masks, averaged over the data, in units of $E[y^2]$."""
    inputs, _ = data_set(config, seed)
    variance = solution(config, seed).predict_variance(inputs)
    return float(variance.mean()) / moments(config, seed).label_moment


def variance_without_shrinkage(config: Config, seed: int) -> float:
    """Return the variance if the mean prediction were not shrunk by the retention."""
    return predict_variance(config, seed) / solution(config, seed).retention ** 2


def predict_curvature(config: Config, seed: int) -> float:
    """Return the smallest Hessian eigenvalue at zero."""
    return origin_is_local_min(moments(config, seed).cross_moment, config.weight_decays).smallest_curvature


def curvature_of_other_depth(config: Config, seed: int) -> float:
    """Return the law of two hidden layers for one, and that of one for more."""
    decays = config.weight_decays
    other = [*decays, decays[-1]] if config.depth == 1 else [decays[0], decays[-1]]
    return origin_is_local_min(moments(config, seed).cross_moment, other).smallest_curvature


def predict_descent(config: Config, seed: int) -> float:
    """Return the loss that gradient descent reaches from small weights, in units of $E[y^2]$."""
    trapped = origin_is_local_min(moments(config, seed).cross_moment, config.weight_decays).is_local_min
    return 1.0 if trapped else predict_loss(config, seed)


def descent_of_other_depth(config: Config, seed: int) -> float:
    """Return the loss if zero were a saddle where it is a minimum, and the reverse."""
    return predict_loss(config, seed) if config.depth > 1 else 1.0


def landscape(config: Config, seed: int, penalties: FloatArray, width: int) -> FloatArray:
    """Return the least loss at each penalty of a layer, both in units of $E[y^2]$."""
    second, cross, label = moments(config, seed)
    retention = signal_retention([width] * config.depth, dropout_noise_variance(config.drop_rate))
    log_decay = sum(math.log(decay) for decay in config.weight_decays)
    problem = EffectiveProblem(Signal.of(second, cross), config.depth, retention, log_decay)
    explained = retention * problem.signal.explained(problem.scale(penalties * label))
    return np.asarray(1 - explained / label + config.depth * penalties)


def draw(record: Record) -> "Figure":
    """Draw the landscape of every repetition with the ends of its runs."""
    from matplotlib.figure import Figure

    config: Config = record.config
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    ends = record.array("ends")
    # Weights are proportional to the root of their penalty: in it the well at zero shows.
    roots = np.linspace(0, 1.25 * math.sqrt(ends[..., 0].max()), 300)
    for k, (found, descended) in enumerate(zip(ends[:, :-1], ends[:, -1], strict=True)):
        seed = repetition_seed(record.seed, record.study.id, record.repetitions[k])
        hide = "" if k == 0 else "_"  # one entry of the legend for all repetitions
        theory = landscape(config, seed, roots**2, config.width)
        axes.plot(roots, theory, color=THEORY, alpha=1 if k == 0 else 0.3, label=f"{hide}theory")
        if k == 0:
            rival = landscape(config, seed, roots**2, width=1)
            axes.plot(roots, rival, "--", color=RIVAL, label="noise as on a single neuron")
        label = f"{hide}ends of L-BFGS, {config.starts} starts"
        axes.plot(np.sqrt(found[:, 0]), found[:, 1], "o", color=MEASUREMENT, label=label)
        label = f"{hide}end of gradient descent from small weights"
        axes.plot(
            math.sqrt(descended[0]), descended[1], "s", ms=11, mfc="none", color=MEASUREMENT, label=label
        )
    axes.set(
        xlabel=r"root of a layer's penalty, $(\gamma_i\|W_i\|^2 / E[y^2])^{1/2}$", ylabel="loss / $E[y^2]$"
    )
    layers = "1 hidden layer" if config.depth == 1 else f"{config.depth} hidden layers"
    axes.set_title(f"{layers}; each line another data set, the first in full colour", fontsize="medium")
    axes.legend(fontsize="small")
    return figure


STUDY = Study(
    title="Global minimum of a deep linear network",
    paper=Paper(
        "2202.04777", result="closed-form global minimum; zero is a local minimum from two hidden layers on"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"starts": 64, "descent_steps": 4000}},
    claims=[
        Claim(
            "minimum_loss",
            formula=r"\frac{L_{\min}}{E[y^2]} = \min_S 1 - \frac{\rho\, m^T(A+\lambda I)^{-1}m - DS}{E[y^2]}",
            predict=predict_loss,
            margin=1e-6,
            because="L-BFGS stops at rounding error; nothing else separates experiment and law",
            rival=Rival("noise acts as on a single neuron", lambda c, seed: predict_loss(c, seed, width=1)),
        ),
        Claim(
            "output_layer_penalty",
            formula=r"\gamma_{D+1}\|W_{D+1}\|^2 = \gamma_i\|W_i\|^2 = S",
            predict=predict_penalty,
            margin=1e-5,
            because="the loss is flat at its minimum, so weights are known to the root of rounding error",
            rival=Rival("equal norms instead of equal penalties", penalty_at_equal_norms),
        ),
        Claim(
            "predictive_variance",
            formula=r"\mathrm{Var} f(x) = (1/\rho-1)\,(E f(x))^2",
            predict=predict_variance,
            margin=1e-5,
            because="as for the penalty",
            rival=Rival("noise does not shrink the prediction", variance_without_shrinkage),
        ),
        Claim(
            "curvature_at_zero",
            formula=r"(\gamma_1+\gamma_2)-\sqrt{(\gamma_1-\gamma_2)^2+4\|m\|^2}\ (D=1),"
            r"\quad 2\min_i\gamma_i\ (D>1)",
            predict=predict_curvature,
            margin=1e-8,
            because="automatic differentiation is exact up to rounding",
            rival=Rival("zero a saddle where it is a minimum, and the reverse", curvature_of_other_depth),
        ),
        Claim(
            "loss_from_small_weights",
            formula=r"L_\infty/E[y^2] = L_{\min}/E[y^2]\ (D=1),\quad 1\ (D>1)",
            predict=predict_descent,
            margin=0.02,
            because="gradient descent is stopped while its slowest direction is still on its way",
            rival=Rival("zero a saddle where it is a minimum, and the reverse", descent_of_other_depth),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.landscape.deep_linear.deep_linear_minimum",
        "symdyn_core.landscape.deep_linear.data_moments",
        "symdyn_core.landscape.deep_linear.deep_linear_expected_loss",
        "symdyn_core.landscape.deep_linear.origin_is_local_min",
    ),
)
