r"""Does the theory of gradient noise hold for a network that reads digits?

A tanh network is trained on scikit-learn's digits (leading principal components) with cross-entropy and
weight decay, to a minimum of the penalised loss. What SGD will do there is computed beforehand from two
matrices of this very network, the Hessian $H$ and the covariance of the samples' gradients, and held against
SGD with batches drawn without replacement.

**Noise.** The covariance of a minibatch gradient is that of one sample over $S$, times $(N-S)/(N-1)$. Its
trace, and its part along the steepest direction, are compared with minibatches actually drawn. Forgetting the
factor is one rival; the other is the popular closure $C\approx 2LH/S$, which is exact for a well-specified
regression and wrong by a large factor here.

**Stationary state.** Around the minimum the parameters spread with the solution $\Sigma$ of the discrete
Lyapunov equation, and the mean loss lies above the minimum by
$$\tfrac12\mathrm{Tr}[H\Sigma]=\frac{\eta}{2}\sum_i\frac{C_{ii}}{2-\eta h_i}.$$
Rivals: the same without finite steps (continuous time), and a spread equal in all directions, as the closure
has it.

**Tails.** A negative result. With batches of one and a large learning rate the linear theory (Kesten) gives
the steepest direction a tail index near one: for most of the networks an infinite variance. The network has
no such tail. Its gradients are bounded, so weight decay keeps the parameters bounded and every moment is
finite: far out the curvature that multiplied the noise is gone. The ratio of two quantiles a decade apart in
probability is that of an exponential; in a power law of Kesten's index it would be several times larger.

Refuted if minibatches are noisier or quieter than the samples' covariance says, if the loss gap or the spread
are those of a rival, or if the network has the power law of its linearisation. How far it holds: the theory
is of leading order in the strength of the noise. With a loss gap of one per cent of the loss it is within
two per cent; with batches of a few samples the gap is several times the predicted one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import nn
from torch.nn.functional import cross_entropy

from symdyn_core.commands.examples.training import initialized
from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.stationary import stationary_covariance, stationary_loss_gap
from symdyn_core.dynamics.tails import tail_index
from symdyn_core.params import FrozenModel, from_vector
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed
from symdyn_core.symmetry.gradients import per_sample_gradients

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

COMPONENTS, CLASSES = 8, 10
BATCHES = 1500  # drawn to measure the noise
BURN_IN = 0.35  # of the steps
EVERY = 2  # steps between looks at the parameters
EVERY_LOSS = 8  # and at the loss on all samples
# Where the linear theory has a heavy tail.
STORM_RATE, STORM_BATCH, STORM_STEPS, STORM_RUNS = 2.0, 1, 150, 150
DECADE = (0.95, 0.995)  # quantiles of the size, whose ratio is 10^(1 / index) of a power law
DECADE_LOG = float(np.log((1 - DECADE[0]) / (1 - DECADE[1])))
SHOWN = 40  # directions of the figure
TAIL_PROBABILITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)  # of the figure
DIFFERENCE = 1e-4  # of parameters, between gradients whose difference is a curvature


@dataclass(frozen=True)
class Config:
    """Settings of the network and of SGD around its minimum."""

    learning_rate: float = setting(1.0, valid=(0.6, 1.3), verify=(0.7, 1.2), help="of SGD at the minimum")
    batch_size: int = setting(96, valid=(64, 200), verify=(64, 150), help="drawn without replacement")
    momentum: float = setting(0.0, valid=(0.0, 0.3), verify=(0.3,), help="of SGD at the minimum")
    weight_decay: float = setting(
        0.03, valid=(0.02, 0.05), verify=(0.02, 0.05), help="coefficient of the squared parameters"
    )
    samples: int = setting(300, valid=(280, 1700), verify=(600,), help="digits to train on")
    width: int = setting(6, valid=(4, 16), verify=(10,), help="hidden units")
    runs: int = setting(16, valid=(16, 10_000), help="runs of SGD from the minimum")
    time: float = setting(420.0, valid=(400.0, 1e5), help="steps times learning rate of each run")


class Problem(NamedTuple):
    """Data (n, components) and one-hot labels (n, classes), and the minimum of the penalised loss (P,)."""

    images: Array
    labels: Array
    minimum: Array


# --- the network, in arrays: many copies at once ------------------------------------------------------------


def loss_and_gradient(params: Array, width: int, images: Array, labels: Array) -> tuple[Array, Array]:
    """Return cross-entropy (r,) and gradient (r, P) of r networks, each on its own samples (r, n, ...)."""
    sizes = np.cumsum([width * COMPONENTS, width, CLASSES * width])
    first, bias, second, shift = np.split(params, sizes, axis=1)
    first = first.reshape(-1, width, COMPONENTS)
    second = second.reshape(-1, CLASSES, width)
    hidden = np.tanh(images @ first.swapaxes(1, 2) + bias[:, None])
    logits = hidden @ second.swapaxes(1, 2) + shift[:, None]
    logits -= logits.max(axis=2, keepdims=True)
    odds = np.exp(logits)
    total = odds.sum(axis=2, keepdims=True)
    losses = (np.log(total[..., 0]) - (logits * labels).sum(axis=2)).mean(axis=1)
    error = (odds / total - labels) / labels.shape[1]
    back = (error @ second) * (1 - hidden**2)
    pieces = [
        (back.swapaxes(1, 2) @ images).reshape(len(params), -1),
        back.sum(axis=1),
        (error.swapaxes(1, 2) @ hidden).reshape(len(params), -1),
        error.sum(axis=1),
    ]
    return losses, np.concatenate(pieces, axis=1)


@cache
def digits() -> tuple[Array, NDArray[np.int64]]:
    """Read all images as leading principal components of unit mean variance, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images - images.mean(axis=0)
    components: Array = images @ np.linalg.svd(images, full_matrices=False)[2][:COMPONENTS].T
    return components / components.std(), labels


@lru_cache(maxsize=64)
def problem(samples: int, width: int, weight_decay: float, seed: int) -> Problem:
    """Draw the samples of one repetition and train its network to the minimum."""
    generator = numpy_generator(seed, "digits noise")
    images, labels = digits()
    chosen = generator.permutation(len(images))[:samples]
    x, y = images[chosen][None], np.eye(CLASSES)[labels[chosen]][None]

    def objective(params: Array) -> tuple[float, Array]:
        loss, gradient = loss_and_gradient(params[None], width, x, y)
        penalty = weight_decay * float(params @ params)
        return float(loss[0]) + penalty, gradient[0] + 2 * weight_decay * params

    start = 0.3 * generator.standard_normal(width * (COMPONENTS + 1 + CLASSES) + CLASSES)
    options = {"maxiter": 20_000, "maxfun": 40_000, "gtol": 1e-8, "ftol": 1e-16, "maxcor": 20}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return Problem(x[0], y[0], found.x)


def setup(config: Config, seed: int) -> Problem:
    """Return the problem of one repetition."""
    return problem(config.samples, config.width, config.weight_decay, seed)


# --- measurement --------------------------------------------------------------------------------------------


def draw_batches(
    generator: np.random.Generator, samples: int, batch_size: int, runs: int
) -> NDArray[np.int64]:
    """Return indices of batches without replacement, shape (runs, batch_size)."""
    if batch_size == 1:
        return generator.integers(samples, size=(runs, 1))
    order = generator.random((runs, samples)).argpartition(batch_size - 1, axis=1)
    return np.asarray(order[:, :batch_size])


def sgd(
    data: Problem, config: Config, learning_rate: float, batch_size: int, momentum: float, runs: int,
    generator: np.random.Generator,
) -> Iterator[Array]:  # fmt: skip
    """Yield the displacements from the minimum (runs, P) of an ensemble, step after step."""
    params = np.tile(data.minimum, (runs, 1))
    buffer = np.zeros_like(params)
    while True:
        batch = draw_batches(generator, config.samples, batch_size, runs)
        _, gradient = loss_and_gradient(params, config.width, data.images[batch], data.labels[batch])
        buffer = momentum * buffer + gradient + 2 * config.weight_decay * params
        params = params - learning_rate * buffer
        yield params - data.minimum


def steep_directions(data: Problem, config: Config) -> Array:
    """Return the directions in which the penalised loss curves most, steepest first, shape (P, SHOWN).

    By differences of gradients: which way to look is part of the experiment, not of the theory.
    """
    shifts = DIFFERENCE * np.eye(len(data.minimum))
    ends = [
        loss_and_gradient(data.minimum + sign * shifts, config.width, data.images[None], data.labels[None])[1]
        for sign in (1, -1)
    ]
    hessian = (ends[0] - ends[1]) / (2 * DIFFERENCE)
    return np.asarray(np.linalg.eigh((hessian + hessian.T) / 2)[1][:, : -SHOWN - 1 : -1])


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Draw minibatch gradients at the minimum, and run SGD from it."""
    data = setup(config, seed)
    directions = steep_directions(data, config)
    batch = draw_batches(numpy_generator(seed, "batches"), config.samples, config.batch_size, BATCHES)
    copies = np.tile(data.minimum, (BATCHES, 1))
    _, drawn = loss_and_gradient(copies, config.width, data.images[batch], data.labels[batch])

    def penalised(displacement: Array) -> Array:
        params = data.minimum + displacement
        losses, _ = loss_and_gradient(params, config.width, data.images[None], data.labels[None])
        return np.asarray(losses + config.weight_decay * np.square(params).sum(axis=1))

    lowest = penalised(np.zeros((1, len(data.minimum))))[0]
    steps = int(config.time / config.learning_rate)
    gaps, seen = [], []
    path = sgd(
        data, config, config.learning_rate, config.batch_size, config.momentum, config.runs,
        numpy_generator(seed, "sgd"),
    )  # fmt: skip
    for step, displacement in zip(range(steps), path, strict=False):
        if step >= BURN_IN * steps and step % EVERY == 0:
            seen.append(displacement)
        if step >= BURN_IN * steps and step % EVERY_LOSS == 0:
            gaps.append(float(penalised(displacement).mean() - lowest))
    spread = np.concatenate(seen)
    variances = np.square(spread @ directions).mean(axis=0) - np.square(spread.mean(axis=0) @ directions)

    storm = sgd(data, config, STORM_RATE, STORM_BATCH, 0.0, STORM_RUNS, numpy_generator(seed, "storm"))
    positions = np.concatenate(
        [
            displacement @ directions[:, 0]
            for step, displacement in zip(range(STORM_STEPS), storm, strict=False)
            if step >= BURN_IN * STORM_STEPS and step % EVERY == 0
        ]
    )
    sizes = np.abs(positions - np.median(positions))
    inner, outer = np.quantile(sizes, DECADE)
    levels = np.quantile(sizes, 1 - np.array(TAIL_PROBABILITIES)) / np.median(sizes)
    return {
        "noise_trace": float(drawn.var(axis=0, ddof=1).sum()),
        "noise_along_steepest": float((drawn @ directions[:, 0]).var(ddof=1)),
        "loss_gap": float(np.mean(gaps)),
        "spread": float(spread.var(axis=0).sum()),
        "steepest_variance": float(variances[0]),
        "inverse_tail_index": float(np.log(outer / inner) / DECADE_LOG),
        "variances": variances.tolist(),
        "levels": levels.tolist(),
    }


# --- theory -------------------------------------------------------------------------------------------------


class Theory(NamedTuple):
    """What theory knows of one repetition's network."""

    hessian: Array  # with the weight decay
    curvatures: Array  # its eigenvalues, largest first
    directions: Array
    sample_noise: Array  # covariance of the gradient of one sample
    loss: float
    sample_curvatures: Array  # along the steepest direction, with the weight decay


@lru_cache(maxsize=64)
def known(samples: int, width: int, weight_decay: float, seed: int) -> Theory:
    """Compute Hessian, its spectrum and the samples' gradients, by automatic differentiation of a module."""
    data = problem(samples, width, weight_decay, seed)
    module = initialized(
        lambda: nn.Sequential(nn.Linear(COMPONENTS, width), nn.Tanh(), nn.Linear(width, CLASSES)),
        nn.init.zeros_,
    )
    frozen = FrozenModel(module)
    images, labels = torch.tensor(data.images), torch.tensor(data.labels.argmax(axis=1))
    at = from_vector(torch.tensor(data.minimum), frozen.params)
    curvature = Curvature(frozen, cross_entropy, images, labels, params=at)
    hessian = curvature.dense().numpy() + 2 * weight_decay * np.eye(len(data.minimum))
    curvatures, directions = np.linalg.eigh(hessian)
    steepest = torch.tensor(directions[:, -1:].copy())
    sample_curvatures = curvature.sample_blocks(steepest).numpy()[:, 0, 0] + 2 * weight_decay
    chunks = list(per_sample_gradients(frozen, cross_entropy, images, labels, params=at))
    gradients = [torch.cat([g.flatten(1) for g in chunk.values()], dim=1).numpy() for chunk in chunks]
    noise = np.cov(np.concatenate(gradients).T, bias=True)
    loss = float(cross_entropy(frozen(at, images), labels))
    return Theory(hessian, curvatures[::-1], directions[:, ::-1], noise, loss, sample_curvatures)


def theory(config: Config, seed: int) -> Theory:
    """Return what theory knows of one repetition's network."""
    return known(config.samples, config.width, config.weight_decay, seed)


def batch_factor(config: Config, *, replacement: bool = False) -> float:
    """Return the covariance of a minibatch gradient over that of one sample's."""
    finite = 1.0 if replacement else (config.samples - config.batch_size) / (config.samples - 1)
    return finite / config.batch_size


def noise(config: Config, seed: int) -> Array:
    """Covariance of the minibatch gradient."""
    return batch_factor(config) * theory(config, seed).sample_noise


def closure(config: Config, seed: int) -> Array:
    """The covariance of the minibatch gradient if it were twice the loss times the Hessian."""
    at = theory(config, seed)
    data_hessian = at.hessian - 2 * config.weight_decay * np.eye(len(at.hessian))
    return 2 * at.loss * batch_factor(config) * data_hessian


def along(config: Config, seed: int, covariance: Array) -> Array:
    """Return the diagonal of a covariance in the eigenbasis of the Hessian, steepest first."""
    directions = theory(config, seed).directions
    return np.asarray(np.einsum("pi,pi->i", directions, covariance @ directions))


def predicted_gap(config: Config, seed: int) -> float:
    """Loss gap of the discrete Lyapunov equation, from the whole spectrum."""
    covariance = noise(config, seed)
    return stationary_loss_gap(
        float(np.trace(covariance)),
        config.learning_rate,
        config.momentum,
        curvatures=theory(config, seed).curvatures,
        noise_along=along(config, seed, covariance),
    )


def predicted_variances(config: Config, seed: int) -> Array:
    """Variances of the parameters along the eigenvectors of the Hessian, steepest first."""
    covariance = stationary_covariance(
        theory(config, seed).hessian, noise(config, seed), config.learning_rate, config.momentum
    )
    return along(config, seed, covariance)


def continuous_variances(config: Config, seed: int) -> Array:
    """The same in continuous time."""
    rate = config.learning_rate / (2 * (1 - config.momentum))
    return rate * along(config, seed, noise(config, seed)) / theory(config, seed).curvatures


def isotropic_spread(config: Config, seed: int) -> float:
    """Trace of the covariance if the noise were twice the loss times the Hessian, in continuous time."""
    at = theory(config, seed)
    rate = config.learning_rate / (2 * (1 - config.momentum))
    return rate * 2 * at.loss * batch_factor(config) * len(at.hessian)


def linear_index(config: Config, seed: int) -> float:
    """Kesten's tail index of the steepest direction in the storm, if curvatures stayed as they are."""
    return tail_index(theory(config, seed).sample_curvatures, STORM_RATE, STORM_BATCH)


def exponential_inverse_index() -> float:
    """What looks like the inverse index between the two quantiles of an exponential law."""
    inner, outer = -np.log(1 - np.array(DECADE))
    return float(np.log(outer / inner) / DECADE_LOG)


# --- figure -------------------------------------------------------------------------------------------------


def draw(record: Record) -> "Figure":
    """Draw variances along the Hessian's eigenvectors, predicted and measured numbers, and the tail."""
    from matplotlib.figure import Figure

    config = record.config
    seeds = [repetition_seed(record.seed, record.study.id, k) for k in record.repetitions]
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)

    first = seeds[0]
    rank = np.arange(1, SHOWN + 1)
    left.plot(rank, predicted_variances(config, first)[:SHOWN], color=THEORY)
    left.plot(rank, continuous_variances(config, first)[:SHOWN], color=RIVAL, linestyle="--")
    level = isotropic_spread(config, first) / len(theory(config, first).hessian)
    left.axhline(level, color=RIVAL, linestyle=":")
    left.plot(rank, record.array("variances")[0][:SHOWN], "o", ms=4, color=MEASUREMENT)
    left.set_yscale("log")
    left.set(
        title="spread around the minimum",
        xlabel="direction, steepest first",
        ylabel=r"variance, first repetition",
    )

    chances = np.array(TAIL_PROBABILITIES)
    levels = record.array("levels")
    error = 2 * levels.std(axis=0, ddof=1) / np.sqrt(len(levels)) if len(levels) > 1 else None
    fine = np.geomspace(chances.max(), chances.min(), 60)
    right.plot(np.log(fine) / np.log(chances.max()), fine, color=THEORY)
    index = float(np.median([linear_index(config, seed) for seed in seeds]))
    right.plot((0.5 / chances) ** (1 / index), chances, color=RIVAL, linestyle="--")
    right.errorbar(levels.mean(axis=0), chances, xerr=error, fmt="o", ms=4, color=MEASUREMENT)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlim(0.9, 40)
    right.set(
        title=rf"tail at $S={STORM_BATCH}$, $\eta={STORM_RATE:g}$: none",
        xlabel="distance along the steepest direction / median",
        ylabel="fraction beyond",
    )
    handles = [
        left.plot([], [], color=THEORY)[0],
        left.plot([], [], "o", color=MEASUREMENT)[0],
        left.plot([], [], color=RIVAL, linestyle="--")[0],
        left.plot([], [], color=RIVAL, linestyle=":")[0],
    ]
    labels = [
        "theory (right: no power law, as an exponential)",
        "SGD on digits",
        f"rivals: continuous time; Kesten's power law, index {index:.2g}",
        r"rival: noise $2LH/S$",
    ]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


STUDY = Study(
    title="Gradient noise of a network on digits",
    paper=Paper("2102.05375", result="noise and stationary state of SGD, on a network and real data"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"runs": 200, "time": 2000.0}},
    claims=[
        Claim(
            "noise_trace",
            formula=r"\mathrm{Tr}\,C=\frac{N-S}{S(N-1)}\mathrm{Tr}\,\mathrm{Cov}[\nabla\ell]",
            predict=lambda config, seed: float(np.trace(noise(config, seed))),
            margin=0.02,
            relative=True,
            because="sampling, over six standard errors; the law is exact",
            rival=Rival(
                "as if drawn with replacement",
                lambda config, seed: float(
                    batch_factor(config, replacement=True) * np.trace(theory(config, seed).sample_noise)
                ),
            ),
        ),
        Claim(
            "noise_along_steepest",
            formula=r"v_1^\top Cv_1",
            predict=lambda config, seed: float(along(config, seed, noise(config, seed))[0]),
            margin=0.08,
            relative=True,
            because="sampling, over six standard errors; the law is exact",
            rival=Rival(
                "twice the loss times the Hessian",
                lambda config, seed: float(along(config, seed, closure(config, seed))[0]),
            ),
        ),
        Claim(
            "loss_gap",
            formula=r"\tfrac12\mathrm{Tr}[H\Sigma]=\frac{\eta(1+\mu)}{2(1-\mu)}"
            r"\sum_i\frac{C_{ii}}{2(1+\mu)-\eta h_i}",
            predict=predicted_gap,
            margin=0.05,
            relative=True,
            because="the loss is not quadratic and the noise not constant: of first order in the noise",
            rival=Rival(
                "continuous time, learning rate x Tr C / 4",
                lambda config, seed: stationary_loss_gap(
                    float(np.trace(noise(config, seed))), config.learning_rate, config.momentum
                ),
            ),
        ),
        Claim(
            "steepest_variance",
            formula=r"v_1^\top\Sigma v_1=\frac{\eta C_{11}(1+\mu)}{h_1(1-\mu)(2(1+\mu)-\eta h_1)}",
            predict=lambda config, seed: float(predicted_variances(config, seed)[0]),
            margin=0.1,
            relative=True,
            because="the loss is not quadratic and the noise not constant; and sampling",
            rival=Rival("continuous time", lambda config, seed: float(continuous_variances(config, seed)[0])),
        ),
        Claim(
            "spread",
            formula=r"\mathrm{Tr}\,\Sigma",
            predict=lambda config, seed: float(predicted_variances(config, seed).sum()),
            margin=0.1,
            relative=True,
            because="flat directions settle slowly; the loss is not quadratic and the noise not constant",
            rival=Rival(
                "the same in all directions, for noise of twice the loss times the Hessian", isotropic_spread
            ),
        ),
        Claim(
            "inverse_tail_index",
            formula=r"\log_{10}\frac{q_{0.995}}{q_{0.95}}\text{ of }|v_1^\top\delta|"
            r"\text{: an exponential's, not }\frac1\beta",
            predict=lambda config, seed: exponential_inverse_index(),
            margin=0.1,
            because="theory says that all moments exist; a Gaussian would have 0.16, an exponential 0.25",
            rival=Rival(
                "Kesten's index of the linearised network",
                lambda config, seed: 1 / linear_index(config, seed),
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.dynamics.stationary.stationary_covariance",
        "symdyn_core.dynamics.stationary.stationary_loss_gap",
        "symdyn_core.dynamics.tails.tail_index",
    ),
)
