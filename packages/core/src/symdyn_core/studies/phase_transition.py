r"""At which weight decay does a deep network stop learning, and does it stop smoothly or at once?

A linear network of $D$ hidden layers with multiplicative noise is trained with weight decay $\gamma$ on every
layer. Theory says that there is a critical $\gamma_c$ above which the best network is zero. With one hidden
layer what the network has learned fades continuously there; with two or more it falls at once, for isotropic
inputs from the fraction $(D-1)/D$ of all it could learn, and there is hysteresis: a trained network holds on
beyond $\gamma_c$, up to the spinodal, and a network that has collapsed does not come back when weight decay
is lowered again.

Set-up: a data set with prescribed moments in a random orientation. Noise multiplies each hidden neuron by
$1\pm\sigma$; the loss is averaged over all sign patterns, one by one. The transition is found by bisection:
is any of several minimisations by L-BFGS better than zero? Then a trained network is followed by gradient
descent while weight decay is raised in steps until it collapses, and lowered again to half the critical
value.

Refuted if the threshold lies elsewhere, if the network knows more or less just below it, if it collapses
earlier or later, or if the way back differs from what theory says of the stability of zero.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from symdyn_core.landscape.phases import (
    critical_weight_decay,
    order_parameter,
    spinodal_weight_decay,
    transition_order,
)
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

FEATURES = 3
SAMPLES = 5
BELOW = 0.99  # where "just below the transition" is, as a fraction of the critical weight decay
RETURN = 0.5  # where the way back ends
FOLLOWED = (0.3, 0.5, 0.7, 0.85)  # equilibria on the way up, before gradient descent takes over at SWEEP_FROM
SWEEP_FROM = 0.92
SWEEP_STEP = 1.02
KICK = 1e-3  # standard deviation of the disturbance that a collapsed network gets before the way back
LEARNING_RATE, MOMENTUM = 0.04, 0.9


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    depth: int = setting(2, choices=(1, 2, 3), verify=(1, 3), help="hidden layers")
    width: int = setting(3, valid=(2, 4), verify=(2, 4), help="neurons of each hidden layer")
    noise_variance: float = setting(
        0.5, valid=(0.0, 1.0), verify=(0.0, 1.0), help="of each hidden neuron's factor"
    )
    signal: float = setting(1.0, valid=(0.7, 1.5), verify=(1.4,), help="norm of E[xy]")
    input_variance: float = setting(
        0.7, valid=(0.5, 1.5), verify=(1.4,), help="largest eigenvalue of E[xx^T]"
    )
    condition: float = setting(1.0, valid=(1.0, 5.0), verify=(4.0,), help="largest over smallest eigenvalue")
    descent_steps: int = setting(60, valid=(60, 10_000), help="of gradient descent at each weight decay")
    bisections: int = setting(10, valid=(10, 30), help="of the interval that contains the transition")

    @property
    def eigenvalues(self) -> FloatArray:
        """Spectrum of E[xx^T]."""
        return self.input_variance * self.condition ** -np.linspace(0, 1, FEATURES)

    @property
    def cross_moment(self) -> FloatArray:
        """E[xy] in the eigenbasis of E[xx^T]: the same along every direction."""
        return np.full(FEATURES, self.signal / math.sqrt(FEATURES))


def data_set(config: Config, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return inputs and labels that have the prescribed moments exactly, in a random orientation."""
    rotation, _ = np.linalg.qr(generator.normal(size=(FEATURES, FEATURES)))
    columns, _ = np.linalg.qr(generator.normal(size=(SAMPLES, FEATURES + 1)))
    scores = columns[:, :FEATURES] * np.sqrt(SAMPLES * config.eigenvalues)
    unexplained = 0.3 * math.sqrt(SAMPLES) * columns[:, FEATURES]
    return scores @ rotation, scores @ (config.cross_moment / config.eigenvalues) + unexplained


class Network:
    """A linear network with factors 1 ± σ on its hidden neurons, averaged over all signs."""

    def __init__(self, config: Config, generator: np.random.Generator) -> None:
        inputs, labels = data_set(config, generator)
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        self.loss_of_zero = float(np.mean(labels**2))
        self.slope_of_least_squares = float(np.linalg.norm(np.linalg.lstsq(inputs, labels)[0]))
        width, depth = config.width, config.depth
        self.shapes = [(width, FEATURES), *[(width, width)] * (depth - 1), (1, width)]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=width * depth)), dtype=torch.float64)
        factors = 1 + math.sqrt(config.noise_variance) * signs
        self.factors = factors.view(-1, depth, 1, width).unbind(dim=1)

    def layers(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return the weight matrices."""
        ends = zip(itertools.accumulate(self.sizes), self.sizes, self.shapes, strict=True)
        return [flat[end - size : end].view(shape) for end, size, shape in ends]

    def loss_and_gradient(self, flat: FloatArray, weight_decay: float) -> tuple[float, FloatArray]:
        """Return mean squared error, averaged over noise, plus penalty."""
        weights = torch.tensor(flat, requires_grad=True)
        first, *later = self.layers(weights)
        hidden = self.inputs @ first.T
        for factor, weight in zip(self.factors, later, strict=True):
            hidden = (factor * hidden) @ weight.T
        loss = (hidden[..., 0] - self.labels).square().mean() + weight_decay * weights.square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    def learned(self, flat: FloatArray) -> float:
        """Return the norm of the mean prediction's coefficients over that of least squares."""
        product, *later = self.layers(torch.from_numpy(flat))
        for weight in later:
            product = weight @ product
        return float(product.norm()) / self.slope_of_least_squares

    def minimise(self, start: FloatArray, weight_decay: float) -> tuple[float, FloatArray]:
        """Return loss and weights where L-BFGS ends."""
        options = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-8, "ftol": 1e-15}
        found = minimize(
            self.loss_and_gradient, start, args=(weight_decay,), jac=True, method="L-BFGS-B", options=options
        )
        return float(found.fun), found.x

    def descend(self, flat: FloatArray, weight_decay: float, steps: int) -> FloatArray:
        """Return the weights after gradient descent with momentum, from rest."""
        velocity = np.zeros_like(flat)
        for _ in range(steps):
            velocity = MOMENTUM * velocity - LEARNING_RATE * self.loss_and_gradient(flat, weight_decay)[1]
            flat = flat + velocity
        return flat


def find_transition(
    network: Network, config: Config, generator: np.random.Generator
) -> tuple[float, FloatArray]:
    """Return the weight decay above which nothing better than zero is found, and the network just below."""
    size = sum(network.sizes)

    def best(weight_decay: float, known: FloatArray | None) -> FloatArray | None:
        starts = [generator.normal(size=size) * scale for scale in (0.5, 0.8, 1.1)]
        ends = [
            network.minimise(start, weight_decay) for start in ([] if known is None else [known]) + starts
        ]
        loss, weights = min(ends, key=lambda end: end[0])
        return weights if loss < network.loss_of_zero * (1 - 1e-9) else None

    # A random first guess, so that repetitions do not share a grid.
    low = 0.05 * config.signal * generator.uniform(1, 2)
    weights = best(low, None)
    if weights is None:
        raise RuntimeError(f"no start learned at weight decay {low:g}")
    high = 2 * low
    while (found := best(high, weights)) is not None:
        low, high, weights = high, 2 * high, found
    for _ in range(config.bisections):
        middle = math.sqrt(low * high)
        if (found := best(middle, weights)) is None:
            high = middle
        else:
            low, weights = middle, found
    return math.sqrt(low * high), weights


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Find the transition, look just below it, and go round the hysteresis loop."""
    generator = numpy_generator(seed)
    network = Network(config, generator)
    critical, weights = find_transition(network, config, generator)
    _, below = network.minimise(weights, BELOW * critical)

    way_up = []
    for fraction in FOLLOWED:
        _, followed = network.minimise(weights, fraction * critical)
        way_up.append([fraction * critical, network.learned(followed)])
    weight_decay = SWEEP_FROM * critical
    _, weights = network.minimise(weights, weight_decay)
    while network.learned(weights) > 0.01 and weight_decay < 10 * critical:
        way_up.append([weight_decay, network.learned(weights)])
        weight_decay *= SWEEP_STEP
        weights = network.descend(weights, weight_decay, config.descent_steps)
    collapse = weight_decay / math.sqrt(SWEEP_STEP)
    way_up.append([weight_decay, network.learned(weights)])

    weights = weights + KICK * generator.normal(size=weights.size)
    way_down = []
    for level in np.geomspace(weight_decay, RETURN * critical, 7)[1:]:
        weights = network.descend(weights, level, config.descent_steps)
        way_down.append([float(level), network.learned(weights)])
    return {
        "critical_weight_decay": critical,
        "learned_below_transition": network.learned(below),
        "collapse_weight_decay": collapse,
        "learned_on_return": network.learned(weights),
        "way_up": way_up,
        "way_down": way_down,
    }


def model(config: Config) -> dict[str, Any]:
    """Return what theory needs to know of the experiment."""
    return {
        "second_moment": np.diag(config.eigenvalues),
        "cross_moment": config.cross_moment,
        "depth": config.depth,
        "width": config.width,
        "noise_variance": config.noise_variance,
    }


def other_order(config: Config) -> Config:
    """Return the network whose transition is of the other order."""
    return replace(config, depth=2 if config.depth == 1 else 1)


def predict_critical(config: Config) -> float:
    """Return the critical weight decay."""
    return critical_weight_decay(**model(config))


def predict_learned(config: Config, fraction: float) -> float:
    """Return what the best network has learned at this fraction of the critical weight decay."""
    state = order_parameter(fraction * predict_critical(config), **model(config))
    return state.slope / float(np.linalg.norm(config.cross_moment / config.eigenvalues))


def predict_collapse(config: Config) -> float:
    """Return the weight decay at which a trained network collapses."""
    return spinodal_weight_decay(**model(config))


def collapse_of_other_order(config: Config) -> float:
    """Return the collapse with as much hysteresis as in a transition of the other order."""
    other = other_order(config)
    return predict_critical(config) * predict_collapse(other) / predict_critical(other)


def predict_return(config: Config) -> float:
    """Return what a collapsed network learns again at half the critical weight decay."""
    return predict_learned(config, RETURN) if transition_order(config.depth) == 2 else 0.0


def return_of_other_order(config: Config) -> float:
    """Return the same if the way back were reversible where it is not, and the reverse."""
    return 0.0 if transition_order(config.depth) == 2 else predict_learned(config, RETURN)


def draw(record: Record) -> "Figure":
    """Draw the order parameter against weight decay, up and down."""
    from matplotlib.figure import Figure

    config: Config = record.config
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    critical, spinodal = predict_critical(config), predict_collapse(config)
    full = float(np.linalg.norm(config.cross_moment / config.eigenvalues))

    def curve(weight_decays: FloatArray, settings: Config, branch: Any) -> list[float]:
        return [order_parameter(g, **model(settings), branch=branch).slope / full for g in weight_decays]

    best = np.sort([*np.linspace(0.2, 1.45, 200) * critical, critical * (1 - 1e-9), critical * (1 + 1e-9)])
    axes.plot(best, curve(best, config, "global"), color=THEORY, label="theory, best network")
    if spinodal > critical:
        trained = np.sort(
            [*np.linspace(critical, spinodal, 60), spinodal * (1 - 1e-6), spinodal * (1 + 1e-6)]
        )
        label = "theory, trained network"
        axes.plot(trained, curve(trained, config, "learning"), ":", color=THEORY, label=label)
    rival = other_order(config)
    stretch = predict_critical(rival) / critical
    axes.plot(
        best,
        curve(best * stretch, rival, "global"),
        "--",
        color=RIVAL,
        label=f"the law of {rival.depth} hidden layer{'s' * (rival.depth > 1)}, rescaled",
    )
    for name, marker, face, label in (
        ("way_up", "o", MEASUREMENT, "measured, weight decay raised"),
        ("way_down", "v", "none", "measured, lowered again"),
    ):
        paths = record.values(name)
        points = np.array([path[: min(map(len, paths))] for path in paths])
        x, y = points.mean(axis=0).T
        reach = 1.96 * points[..., 1].std(axis=0) / math.sqrt(len(points))
        axes.errorbar(x, y, reach, fmt=marker, color=MEASUREMENT, mfc=face, markersize=5, label=label)
    axes.set(
        xlabel=r"weight decay $\gamma$",
        ylabel="slope / least squares",
        ylim=(-0.03, None),
        xlim=(0.2 * critical, None),
    )
    axes.set_title(f"{config.depth} hidden layer{'s' * (config.depth > 1)}", fontsize="medium")
    axes.legend(fontsize="small")
    return figure


STUDY = Study(
    title="Phase transition under weight decay",
    paper=Paper("2205.12510", result="second-order transition with one hidden layer, first-order with more"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"descent_steps": 1000, "bisections": 16}},
    claims=[
        Claim(
            "critical_weight_decay",
            formula=r"\gamma_c = \Big(\tfrac{\|m\|}{D}\Big)^{\frac{2D}{D+1}}"
            r"\Big(\tfrac{(D-1)\rho}{a}\Big)^{\frac{D-1}{D+1}}\ (A=aI)",
            predict=predict_critical,
            margin=0.001,
            relative=True,
            because="half the last interval of the bisection, 0.00034 with the fewest bisections",
            rival=Rival("the penalty counted with a factor 1/2", lambda config: 2 * predict_critical(config)),
        ),
        Claim(
            "learned_below_transition",
            formula=r"\frac{\|E f\|}{\|A^{-1}m\|} \to \rho\,\frac{D-1}{D}\quad(\gamma\to\gamma_c^-)",
            predict=lambda config: predict_learned(config, BELOW),
            margin=0.005,
            because="the measured transition, below which one looks, is off by up to half its interval",
            rival=Rival(
                "a transition of the other order", lambda config: predict_learned(other_order(config), BELOW)
            ),
        ),
        Claim(
            "collapse_weight_decay",
            formula=r"\gamma_{sp} = \gamma_c\Big(\tfrac{D+1}{2}\Big)^{\frac{2D}{D+1}}(D+1)^{-\frac{D-1}{D+1}}"
            r"\ (A=aI)",
            predict=predict_collapse,
            margin=0.05,
            relative=True,
            because="steps of 2 % in weight decay, and gradient descent lags behind near the spinodal",
            rival=Rival("the hysteresis of a transition of the other order", collapse_of_other_order),
        ),
        Claim(
            "learned_on_return",
            formula=r"\frac{\|E f\|}{\|A^{-1}m\|} = 0\ (D>1)\ \text{at}\ \gamma=\gamma_c/2",
            predict=predict_return,
            margin=0.02,
            because="gradient descent is stopped after a finite time",
            rival=Rival("reversible where it is not, and the reverse", return_of_other_order),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.landscape.phases.critical_weight_decay",
        "symdyn_core.landscape.phases.spinodal_weight_decay",
        "symdyn_core.landscape.phases.order_parameter",
        "symdyn_core.landscape.phases.effective_loss",
        "symdyn_core.landscape.phases.torch_weight_decay",
    ),
)
