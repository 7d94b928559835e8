r"""When does SGD fall into a symmetric state, and how far?

Every mirror symmetry of the loss, $\ell((I-2OO^\top)\theta)=\ell(\theta)$, has states $O^\top\theta=0$ that
no gradient points out of. Three experiments on what draws training there.

*Noise.* A product of two weights, $\ell=(uwx-y)^2$ with $x=\pm1$, $y=cx+\varsigma z$, $z=\pm1$, one sample a
step. Near the symmetric state $u=w=0$ a step multiplies $u+w$ by $1-\eta h$ and $u-w$ by $1+\eta h$, with
$h=-2xy$, and the distance grows at $\Lambda=\max_\pm\mathbb E\log|1\mp\eta h|$ a step. The mean curvature
along $u=w$ is negative: the state is a saddle of the mean loss, and gradient descent leaves it. SGD falls
into it all the same above $\eta_c=c/(\varsigma^2-c^2)$; a batch of 64 does not. (Near but below $\eta_c$ the
product is intermittent: only what falls under $10^{-30}$ counts as collapsed. A signal much stronger than
$0.3\varsigma$ needs steps so large that part of the networks diverge before they collapse.)

*Weight decay.* $\|WW^\top-T\|^2+\gamma\|W\|^2$ with T an 8 x 8 Wishart matrix. The mirrors are the directions
n with $n^\top W=0$: decay acts on $s^2=(n^\top W)^2$ as the lasso does, so that the eigenvalues of T are
reached up to $\max(\lambda_i-\gamma/2,0)$ and the others vanish exactly.

*On purpose.* A linear regression with three constraints $O^\top\theta=0$ imposed by the parametrization
$\theta=(I-P)w+O(u\odot v)$, decay $\alpha$ on u and v alone. The constraints hold exactly from the finite
strength $\alpha=\|O^\top\nabla L\|_\infty$ on, the gradient taken where they hold. One layer with eighty
outputs, whose targets are multiples of one another, finds the transition.

Refuted if networks collapse below $\eta_c$, survive above it or collapse at the larger batch; if the distance
grows at another rate, in particular that of the mean curvature or of a second-order expansion; if decay
leaves another spectrum or rank, in particular those of a threshold at $\gamma$; or if the constraints give
way at another strength.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed
from symdyn_core.symmetry.attraction import collapse_exponent, critical_learning_rate
from symdyn_core.symmetry.constraint import dcs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

NOISE = 1.0
START = 0.1  # of u and w
COLLAPSED = 1e-30  # of |uw|
LARGE_BATCH = 64
NEAR_ZERO, GROWTH_STEPS, GROWTH_NETWORKS = 1e-60, 200, 500
CURVE = (0.3, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 1.7)  # learning rates of the figure over the critical one

SIZE, MATRICES = 8, 20
DESCENT_STEP, DESCENT_STEPS = 0.02, 3000
VANISHED = 0.01  # of an eigenvalue of WW^T

SAMPLES, FEATURES, CONSTRAINTS = 60, 10, 3
MULTIPLES = np.geomspace(0.15, 5.0, 80)  # of the targets
STRENGTH = 1.0  # alpha
CONSTRAINED_STEPS = 1000
BROKEN = 1e-3  # of |O^T theta|: far above what training leaves of one that holds, far below what one step of
# the targets adds to one that is broken


@dataclass(frozen=True)
class Config:
    """Settings of the three experiments."""

    signal: float = setting(0.25, valid=(0.2, 0.28), verify=(0.2, 0.28), help="c of y = c x + z")
    below: float = setting(0.75, valid=(0.3, 0.75), verify=(0.3,), help="learning rate / critical, survives")
    above: float = setting(1.2, valid=(1.2, 1.3), verify=(1.3,), help="learning rate / critical, collapses")
    weight_decay: float = setting(
        0.8, valid=(0.1, 3.5), verify=(0.2, 3.0), help="gamma of gamma |W|^2, half of torch's"
    )
    networks: int = setting(50, valid=(20, 10_000), help="products per learning rate and repetition")
    steps: int = setting(12_000, valid=(12_000, 100_000), help="steps of SGD on the products")


def train_product(
    learning_rates: Array, config: Config, start: float, steps: int, batch_size: int, seed: int, *names: str
) -> Array:
    """Train one product per learning rate; return ln |uw|, shape (n,), minus infinity if it underflows."""
    generator = numpy_generator(seed, *names)
    u, w = np.full(learning_rates.shape, 1.2 * start), np.full(learning_rates.shape, start)
    for _ in range(steps):
        # x = +-1, so that a sample enters through xy = c + x z alone, and x z is a fair coin.
        heads = generator.binomial(batch_size, 0.5, size=u.shape)
        agreement = config.signal + NOISE * (2 * heads / batch_size - 1)
        slope = 2 * learning_rates * (u * w - agreement)
        u, w = u - slope * w, w - slope * u
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.abs(u)) + np.log(np.abs(w)))


def products(config: Config, seed: int) -> dict[str, Any]:
    """Run the experiments on noise."""
    critical = config.signal / (NOISE**2 - config.signal**2)  # the unit of the learning rates
    curve = critical * np.repeat(CURVE, GROWTH_NETWORKS // 10)
    rates = np.concatenate([np.full(GROWTH_NETWORKS, config.above * critical), curve])
    growth = train_product(rates, config, NEAR_ZERO, GROWTH_STEPS, 1, seed, "growth")
    growth = (growth - 2 * np.log(NEAR_ZERO) - np.log(1.2)) / (2 * GROWTH_STEPS)
    rates = critical * np.repeat([config.below, config.above], config.networks)
    ends = train_product(rates, config, START, config.steps, 1, seed, "single") < np.log(COLLAPSED)
    rates = np.full(config.networks, critical * config.above)
    large = train_product(rates, config, START, config.steps, LARGE_BATCH, seed, "batch") < np.log(COLLAPSED)
    return {
        "exponent": float(growth[:GROWTH_NETWORKS].mean()),
        "exponent_curve": growth[GROWTH_NETWORKS:].reshape(len(CURVE), -1).mean(axis=1).tolist(),
        "collapsed_below": float(ends[: config.networks].mean()),
        "collapsed_above": float(ends[config.networks :].mean()),
        "collapsed_large_batch": float(large.mean()),
    }


def wishart(seed: int) -> Array:
    """Return the targets of one repetition, shape (MATRICES, SIZE, SIZE)."""
    factors = numpy_generator(seed, "wishart").standard_normal((MATRICES, SIZE, SIZE))
    return np.asarray(factors @ factors.swapaxes(1, 2) / SIZE)


def factorize(config: Config, seed: int) -> dict[str, Any]:
    """Run gradient descent on the decayed factorisation."""
    target = wishart(seed)
    weight = 0.3 * numpy_generator(seed, "factor").standard_normal(target.shape)
    for _ in range(DESCENT_STEPS):
        residual = weight @ weight.swapaxes(1, 2) - target
        weight = weight - DESCENT_STEP * (4 * residual @ weight + 2 * config.weight_decay * weight)
    kept = np.linalg.eigvalsh(weight @ weight.swapaxes(1, 2))[:, ::-1]
    return {
        "kept_spectrum": float(kept.sum(axis=1).mean()),
        "rank": float((kept > VANISHED).sum(axis=1).mean()),
        "spectrum": kept[0].tolist(),
    }


@lru_cache(maxsize=64)
def regression(seed: int) -> tuple[Array, Array, Array]:
    """Return features, targets and the normals O of one repetition."""
    generator = numpy_generator(seed, "regression")
    features = generator.standard_normal((SAMPLES, FEATURES))
    normals = np.linalg.qr(generator.standard_normal((FEATURES, CONSTRAINTS)))[0]
    # Both what the constraints allow and what they forbid is in the targets.
    truth = generator.standard_normal(FEATURES) + 0.3 * normals @ np.array([1.0, -0.8, 0.6])
    return features, features @ truth + 0.3 * generator.standard_normal(SAMPLES), normals


def constrain(seed: int) -> dict[str, Any]:
    """Train the constrained layer; return the strength at which the constraints give way."""
    features, target, normals = (torch.from_numpy(array) for array in regression(seed))
    layer = torch.nn.Linear(FEATURES, len(MULTIPLES), bias=False, dtype=torch.float64, device="meta")
    layer.to_empty(device="cpu")
    torch.nn.init.zeros_(layer.weight)
    groups = dcs(layer, "weight", normals, alpha=STRENGTH, axis=1, init="random", seed=seed)
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    targets = target[:, None] * torch.from_numpy(MULTIPLES)
    for _ in range(CONSTRAINED_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(0.5 * (layer(features) - targets).square().sum() / SAMPLES)
        optimizer.step()
    with torch.no_grad():
        violation = (layer.weight @ normals).abs().amax(dim=1).numpy()
    broken = int((violation > BROKEN).argmax()) + 1  # the first one past the transition may still be moving
    # Beyond the transition the violation is linear in the targets: two outputs give where it begins.
    (x0, x1), (y0, y1) = MULTIPLES[broken : broken + 2], violation[broken : broken + 2]
    critical = x0 - y0 * (x1 - x0) / (y1 - y0)
    return {
        "critical_strength": float(STRENGTH / critical),
        "violation_held": float(violation[0.9 * critical > MULTIPLES].max()),
        "violation": violation.tolist(),
    }


def measure(config: Config, seed: int) -> Mapping[str, Any]:
    """Run the three experiments once."""
    return {**products(config, seed), **factorize(config, seed), **constrain(seed)}


def curvatures(config: Config) -> Array:
    """Return the two curvatures along u = w that a single sample can have."""
    return np.array([-2 * (config.signal + NOISE), -2 * (config.signal - NOISE)])


def critical(config: Config) -> float:
    """Return the critical learning rate of the products, from the root of the exponent."""
    found = critical_learning_rate(curvatures(config))
    if found is None:
        raise ValueError(f"no learning rate collapses a signal of {config.signal}")
    return found


def exponent(samples: Array, learning_rate: float) -> float:
    """Return the exponent of the faster of the directions u = w and u = -w, whose curvatures are opposite."""
    return max(collapse_exponent(sign * samples, learning_rate).value for sign in (1, -1))


def predict_collapse(config: Config, multiple: float, batch_size: int = 1) -> float:
    """Return 1 if the exponent is negative at this multiple of the critical learning rate, else 0."""
    samples = curvatures(config)
    if batch_size > 1:
        samples = numpy_generator(0, "batches").choice(samples, size=(20_000, batch_size)).mean(axis=1)
    return float(exponent(samples, multiple * critical(config)) < 0)


def predict_exponent(config: Config) -> float:
    """Return the growth of the logarithm of the distance to the symmetric state, per step."""
    return exponent(curvatures(config), config.above * critical(config))


def second_order_exponent(config: Config) -> float:
    """Return the same to second order in the learning rate."""
    rate, samples = config.above * critical(config), curvatures(config)
    return float(-rate * samples.mean() - rate**2 / 2 * np.square(samples).mean())


def mean_curvature_collapse(config: Config, multiple: float) -> float:
    """Return 1 if the mean curvature is positive, whatever the learning rate."""
    del multiple
    return float(curvatures(config).mean() > 0)


def kept(config: Config, seed: int, factor: float = 1.0) -> Array:
    """Return the eigenvalues that decay leaves of each target, shape (MATRICES, SIZE)."""
    threshold = factor * config.weight_decay / 2
    return np.asarray(np.maximum(np.linalg.eigvalsh(wishart(seed))[:, ::-1] - threshold, 0.0))


def predict_kept(config: Config, seed: int, factor: float = 1.0) -> float:
    """Return their sum, mean over the targets."""
    return float(kept(config, seed, factor).sum(axis=1).mean())


def predict_rank(config: Config, seed: int, factor: float = 1.0) -> float:
    """Return their number, mean over the targets."""
    return float((kept(config, seed, factor) > 0).sum(axis=1).mean())


def gradient_across(seed: int) -> Array:
    """Return the gradient across the constraints at the constrained minimum, shape (CONSTRAINTS,)."""
    features, target, normals = regression(seed)
    allowed = np.linalg.svd(normals)[0][:, CONSTRAINTS:]
    second, cross = features.T @ features / SAMPLES, features.T @ target / SAMPLES
    theta = allowed @ np.linalg.solve(allowed.T @ second @ allowed, allowed.T @ cross)
    return np.asarray(normals.T @ (second @ theta - cross))


def predict_strength(config: Config, seed: int) -> float:
    """Return the least strength that makes the constraints hold exactly."""
    del config
    return float(np.abs(gradient_across(seed)).max())


def group_strength(config: Config, seed: int) -> float:
    """Return the same for a penalty on all constraints together."""
    del config
    return float(np.linalg.norm(gradient_across(seed)))


def quadratic_violation(config: Config, seed: int) -> float:
    r"""Return what a penalty of $\frac\alpha2\|O^\top\theta\|^2$ leaves of them at 0.9 critical."""
    features, target, normals = regression(seed)
    multiple = 0.9 * STRENGTH / predict_strength(config, seed)
    second = features.T @ features / SAMPLES + STRENGTH * normals @ normals.T
    theta = np.linalg.solve(second, multiple * features.T @ target / SAMPLES)
    return float(np.abs(normals.T @ theta).max())


def draw(record: Record) -> "Figure":
    """Draw the exponent against the learning rate, the spectrum, and the violation of the constraints."""
    from matplotlib.figure import Figure

    config: Config = record.config
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    fine = np.linspace(CURVE[0], CURVE[-1], 80)
    rates = fine * critical(config)
    exponents = [exponent(curvatures(config), rate) for rate in rates]
    left.plot(fine, exponents, color=THEORY)
    samples = curvatures(config)
    second = -rates * samples.mean() - rates**2 / 2 * np.square(samples).mean()
    left.plot(fine, second, "--", color=RIVAL)
    left.axhline(0.0, color="black", linewidth=0.8)
    curve = record.array("exponent_curve")
    error = 2 * curve.std(axis=0, ddof=1) / np.sqrt(len(curve)) if len(curve) > 1 else None
    left.errorbar(CURVE, curve.mean(axis=0), yerr=error, fmt="o", ms=5, color=MEASUREMENT)
    left.set(title="falling in by noise", xlabel=r"learning rate / $\eta_c$", ylabel=r"exponent $\Lambda$")

    seed = repetition_seed(record.seed, record.study.id, record.repetitions[0])
    index = np.arange(1, SIZE + 1)
    middle.plot(index, kept(config, seed)[0], color=THEORY)
    middle.plot(index, kept(config, seed, 2.0)[0], "--", color=RIVAL)
    middle.plot(index, record.array("spectrum")[0], "o", ms=5, color=MEASUREMENT)
    middle.set(title="rank by weight decay", xlabel="eigenvalue", ylabel=r"$s_i^2$")

    strengths = STRENGTH / (MULTIPLES * predict_strength(config, seed))
    violation = record.array("violation")[0] / MULTIPLES
    chosen = (strengths > 0.3) & (strengths < 2)
    right.plot(strengths[chosen], violation[chosen], "o", ms=4, color=MEASUREMENT)
    right.axvline(1.0, color=THEORY)
    right.axvline(group_strength(config, seed) / predict_strength(config, seed), color=RIVAL, linestyle="--")
    right.set(title="constraints on purpose", xlabel=r"$\alpha$ / threshold", ylabel=r"$\max|O^\top\theta|$")
    handles = [
        left.plot([], [], color=THEORY)[0],
        left.plot([], [], "--", color=RIVAL)[0],
        left.plot([], [], "o", color=MEASUREMENT)[0],
    ]
    labels = ["theory", r"rivals: second order; threshold at $\gamma$; norm of the gradient", "measured"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


STUDY = Study(
    title="Falling into mirrors",
    paper=Paper("2309.16932", result="mirror symmetries turn noise and weight decay into exact constraints"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"networks": 1000, "steps": 40_000}},
    claims=[
        Claim(
            "exponent",
            formula=r"\Lambda=\max_\pm\mathbb E\log|1\mp\eta h|,\quad h=-2xy",
            predict=predict_exponent,
            margin=0.005,
            because="sampling: six standard errors where the factors of a step differ most; the law is exact",
            rival=Rival("second order in the learning rate", second_order_exponent),
        ),
        Claim(
            "collapsed_below",
            formula=r"\Lambda>0\ \Rightarrow\ P(|uw|<10^{-30})=0",
            predict=lambda config: predict_collapse(config, config.below),
            margin=0.02,
            because="the product is intermittent below the transition, with a power law towards zero",
            rival=Rival(
                "collapse as soon as the noise exceeds the signal", lambda c: float(c.signal < NOISE)
            ),
        ),
        Claim(
            "collapsed_above",
            formula=r"\Lambda<0\ \Rightarrow\ P(|uw|<10^{-30})=1",
            predict=lambda config: predict_collapse(config, config.above),
            margin=0.02,
            because="networks still on their way after a finite time",
            rival=Rival("only a minimum attracts", lambda c: mean_curvature_collapse(c, c.above)),
        ),
        Claim(
            "collapsed_large_batch",
            formula=r"\Lambda_{64}=\mathbb E\log|1-\eta\bar h|>0\ \Rightarrow\ P(|uw|<10^{-30})=0",
            predict=lambda config: predict_collapse(config, config.above, LARGE_BATCH),
            margin=0.02,
            because="none: far from the transition",
            rival=Rival("the batch does not matter", lambda c: predict_collapse(c, c.above)),
        ),
        Claim(
            "kept_spectrum",
            formula=r"\sum_is_i^2=\sum_i\max(\lambda_i-\gamma/2,0)",
            predict=predict_kept,
            margin=0.01,
            because="an eigenvalue exactly at the threshold fades as 1/(8t), to 0.002 at the end",
            rival=Rival("threshold at the weight decay", lambda c, seed: predict_kept(c, seed, 2.0)),
        ),
        Claim(
            "rank",
            formula=r"\mathrm{rank}\,W=\#\{\lambda_i>\gamma/2\}",
            predict=predict_rank,
            margin=0.15,
            because="an eigenvalue up to 0.01 above the threshold counts as vanished: in one target of 40, "
            "in one of ten at small decay, where they crowd",
            rival=Rival("threshold at the weight decay", lambda c, seed: predict_rank(c, seed, 2.0)),
        ),
        Claim(
            "critical_strength",
            formula=r"\alpha_c=\|O^\top\nabla L\|_\infty",
            predict=predict_strength,
            margin=0.02,
            relative=True,
            because="the violation is linear only until a second constraint gives way",
            rival=Rival("all constraints give way together: the norm of the gradient", group_strength),
        ),
        Claim(
            "violation_held",
            formula=r"\alpha>\alpha_c\ \Rightarrow\ O^\top\theta=0",
            predict=lambda config: 0.0,
            margin=1e-6,
            because="finite training: u and v fade exponentially",
            rival=Rival("a quadratic penalty of the same strength", quadratic_violation),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.symmetry.attraction.collapse_exponent",
        "symdyn_core.symmetry.attraction.critical_learning_rate",
        "symdyn_core.symmetry.attraction.normal_curvature",
        "symdyn_core.symmetry.mirror.check_mirror",
        "symdyn_core.symmetry.remaining.symmetry_report",
        "symdyn_core.symmetry.constraint.dcs",
    ),
)
