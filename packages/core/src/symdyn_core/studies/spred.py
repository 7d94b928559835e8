r"""Can plain gradient descent solve the lasso exactly?

Set-up: a sparse linear regression with more features than samples (100 samples, 300 features of which 10
matter, noise 0.5, half the mean squared error). Each coefficient is written as a product $w=uv$ and both
factors get ordinary weight decay $\alpha$. Theory: the cheapest way to write $w$ costs
$\frac\alpha2(u^2+v^2)=\alpha|w|$, so the trained loss ends at the minimum of the lasso of strength exactly
$\alpha$. That minimum is computed apart, by scikit-learn's coordinate descent to a tolerance of $10^{-12}$;
the training knows nothing of it.

What is held against theory: the final loss of SGD with momentum and of Adam with coupled decay; the gradient
on the coefficients that survive, which must have magnitude $\alpha$ and neither half nor twice of it; the
decay of $u^2-v^2$ along gradient descent, at rate $2\alpha$ whatever the loss; and the trap: factors that
start equal stay equal, so that training ends at the minimum of the non-negative lasso instead, far above.
(The library refuses such a start; the study ties the factors behind its back.)

Then real data, a random four fifths of the samples in each repetition. Diabetes progression (442 patients, 10
measurements) trained as above: its loss and the number of measurements kept must be those of the lasso.
Breast cancer (569 tumours, 30 measurements, some correlated to 0.998) with logistic loss, by the estimator
`SpredLasso`, whose only contact with the lasso is the decay of factors: minimum and number of measurements
kept must be those of liblinear's L1-penalised logistic regression.

Refuted if the losses differ from the minima by more than finite training explains, or if the strength is off
by the factor two that separates the conventions of weight decay. The figure is the optimality condition
itself: each point is a coefficient, and all must lie on the vertical at zero or on one of the branches at
$\pm\alpha$. None of this makes it a good lasso solver: coordinate descent is far faster on each of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.symmetry.lasso import SpredLasso
from symdyn_core.symmetry.penalty import predict_imbalance, predict_penalty
from symdyn_core.symmetry.sparsity import merge_spred, spred

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

RELEVANT = 10
NOISE = 0.5
SURVIVES = 0.03  # of the largest: far above what finite training leaves of the zeros
ROUNDED = 1e-3  # of the largest: what merge_spred and SpredLasso set to zero
BALANCE_TIME, BALANCE_STEPS = 2.0, 125


@dataclass(frozen=True)
class Config:
    """Size of the regression and of the training."""

    alpha: float = setting(0.15, valid=(0.1, 0.5), verify=(0.1, 0.4), help="weight decay of both factors")
    samples: int = setting(100, valid=(100, 300), help="rows of the regression")
    features: int = setting(300, valid=(50, 400), verify=(150, 400), help="columns, of which 10 matter")
    sgd_steps: int = setting(1000, valid=(1000, 50_000), help="steps of SGD, lr 0.1, momentum 0.9")
    share: float = setting(
        0.1, valid=(0.05, 0.3), verify=(0.05, 0.25), help="strength on real data, of that which keeps nothing"
    )
    adam_steps: int = setting(1000, valid=(1000, 50_000), help="steps of Adam, lr 0.1 to 0 by a cosine")


def regression(config: Config, seed: int) -> tuple[Array, Array]:
    """Return features (samples, features) and targets (samples,) of one repetition."""
    generator = numpy_generator(seed, "regression")
    features = generator.standard_normal((config.samples, config.features))
    # Both signs in every repetition, so that the non-negative lasso is always another problem.
    coefficients = 2 * np.abs(generator.standard_normal(RELEVANT)) * np.resize([1.0, -1.0], RELEVANT)
    return features, features[:, :RELEVANT] @ coefficients + NOISE * generator.standard_normal(config.samples)


def real_data(name: str, seed: int) -> tuple[Array, Array]:
    """Return a random four fifths of a data set, columns standardised, classes as -1 and 1."""
    from sklearn.datasets import load_breast_cancer, load_diabetes

    load = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer}[name]
    features, target = load(return_X_y=True)
    chosen = numpy_generator(seed, name).permutation(len(target))[: 4 * len(target) // 5]
    features, target = features[chosen], target[chosen].astype(float)
    if name == "breast_cancer":
        return standardised(features), 2 * target - 1
    return standardised(features), standardised(target)


def standardised(values: Array) -> Array:
    """Return columns of mean zero and variance one."""
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))


def real_strength(config: Config, name: str, seed: int) -> float:
    """Return the strength on real data: a share of the gradient at zero, above which nothing is kept."""
    features, target = real_data(name, seed)
    slope = 0.5 if name == "breast_cancer" else 1.0  # of the logistic loss at zero
    return config.share * slope * float(np.abs(features.T @ target).max()) / len(target)


class Training:
    """A linear layer with factorized weight and half the mean squared error on some data.

    With ``tied`` a second output with the same target, whose factors start equal: another regression beside
    the first, at half the price of its own.
    """

    def __init__(self, data: tuple[Array, Array], alpha: float, seed: int, *, tied: bool = False) -> None:
        self.features, self.target = torch.from_numpy(data[0]), torch.from_numpy(data[1])[:, None]
        inputs = self.features.shape[1]
        # spred draws the start; torch's own would move the global generator.
        self.layer = torch.nn.Linear(inputs, 1 + tied, bias=False, dtype=torch.float64, device="meta")
        self.layer.to_empty(device="cpu")
        self.groups = spred(self.layer, alpha=alpha, init="random", seed=seed)
        self.alpha, self.factors = alpha, self.groups[0]["params"]
        if tied:
            self.factors[1].data[1] = self.factors[0].data[1]

    def losses(self) -> torch.Tensor:
        """Half the mean squared error of each output."""
        losses: torch.Tensor = 0.5 * (self.layer(self.features) - self.target).square().mean(dim=0)
        return losses

    def decayed_loss(self, output: int = 0) -> float:
        """What the optimizer minimises: the loss plus half the decay times the squared factors."""
        decay = sum(float(factor.detach()[output].square().sum()) for factor in self.factors)
        return float(self.losses()[output].detach()) + self.alpha / 2 * decay

    def imbalance(self) -> Array:
        """Difference of the squared factors, coefficient by coefficient."""
        u, v = (factor.detach().numpy()[0] for factor in self.factors)
        return np.asarray(u**2 - v**2)

    def coefficients(self) -> tuple[Array, Array]:
        """The coefficients and the negative gradient of the loss without penalty."""
        weight = self.layer.weight.detach()[0]
        descent = self.features.T @ (self.target[:, 0] - self.features @ weight) / len(self.target)
        return weight.numpy(), descent.numpy()


def train(
    trainings: list[Training], optimizer: torch.optim.Optimizer, steps: int, *, cosine: bool = False
) -> None:
    """Train several layers in place, in one loop for speed: neither SGD nor Adam lets them interact."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward([training.losses().sum() for training in trainings])
        optimizer.step()
        if schedule is not None:
            schedule.step()


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Train by SGD, by Adam (also from tied factors and on real data), and by small steps for the balance."""
    data = regression(config, seed)
    sgd, slow = (Training(data, config.alpha, seed) for _ in range(2))
    train([sgd], torch.optim.SGD(sgd.groups, lr=0.1, momentum=0.9), config.sgd_steps)
    weight, descent = sgd.coefficients()
    survivors = np.abs(weight) > SURVIVES * np.abs(weight).max()
    adam = Training(data, config.alpha, seed, tied=True)
    diabetes = Training(real_data("diabetes", seed), real_strength(config, "diabetes", seed), seed)
    optimizer = torch.optim.Adam([*adam.groups, *diabetes.groups], lr=0.1)
    train([adam, diabetes], optimizer, config.adam_steps, cosine=True)
    before = slow.imbalance()
    train([slow], torch.optim.SGD(slow.groups, lr=BALANCE_TIME / BALANCE_STEPS), BALANCE_STEPS)
    return {
        "sgd_minimum": sgd.decayed_loss(),
        "adam_minimum": adam.decayed_loss(),
        "tied_minimum": adam.decayed_loss(1),
        "support_gradient": float(np.abs(descent[survivors]).mean()),
        "imbalance_ratio": float(np.median(slow.imbalance() / before)),
        "diabetes_minimum": diabetes.decayed_loss(),
        "diabetes_kept": merge_spred(diabetes.layer).kept,
        "coefficients": weight.tolist(),
        "descent": descent.tolist(),
        **fit_breast_cancer(config, seed),
    }


def fit_breast_cancer(config: Config, seed: int) -> dict[str, float]:
    """Fit L1-penalised logistic regression by L-BFGS on the factors; return loss, support and gradient."""
    features, target = real_data("breast_cancer", seed)
    alpha = real_strength(config, "breast_cancer", seed)

    def logistic(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-y * prediction).mean()

    # No polish: it would find the minimum of the lasso by other means. The looser tolerance is that of the
    # warning only; the estimator rounds small coefficients, which the claims' margins allow for.
    fit = SpredLasso(
        alpha, loss=logistic, fit_intercept=False, polish=False, tol=1.0, random_state=seed % 2**32
    )
    weight = fit.fit(features, target).coef_
    margin = target * (features @ weight)
    gradient = features.T @ (-target / (1 + np.exp(margin))) / len(target)
    return {
        "cancer_minimum": float(np.logaddexp(0, -margin).mean() + alpha * np.abs(weight).sum()),
        "cancer_kept": int((weight != 0).sum()),
        "cancer_support_gradient": float(np.abs(gradient[weight != 0]).mean() / alpha),
    }


def kept(weight: Array) -> int:
    """Return how many coefficients of an exact solution survive the rounding that belongs to the method."""
    return int((np.abs(weight) > ROUNDED * np.abs(weight).max()).sum())


@lru_cache(maxsize=256)
def lasso(data: str, config: Config, seed: int, alpha: float, *, positive: bool = False) -> tuple[float, int]:
    """Return minimum of a lasso and number of coefficients it keeps, by coordinate descent."""
    from sklearn.linear_model import Lasso

    features, target = regression(config, seed) if data == "regression" else real_data(data, seed)
    solver = Lasso(
        alpha=alpha,
        fit_intercept=False,
        tol=1e-12,
        max_iter=1_000_000,
        positive=positive,
        random_state=0,  # without it scikit-learn moves NumPy's global generator
    )
    weight = solver.fit(features, target).coef_
    residual = target - features @ weight
    objective = residual @ residual / (2 * len(target)) + alpha * np.abs(weight).sum()
    return float(objective), kept(weight)


@lru_cache(maxsize=256)
def logistic_lasso(seed: int, alpha: float) -> tuple[float, int]:
    """Return the same for L1-penalised logistic regression on the breast cancer data, by liblinear."""
    from sklearn.linear_model import LogisticRegression

    features, target = real_data("breast_cancer", seed)
    solver = LogisticRegression(
        l1_ratio=1.0,
        C=1 / (alpha * len(target)),
        solver="liblinear",
        fit_intercept=False,
        tol=1e-10,
        max_iter=100_000,
        random_state=0,
    )
    weight = solver.fit(features, target).coef_[0]
    loss = np.logaddexp(0, -target * (features @ weight)).mean()
    return float(loss + alpha * np.abs(weight).sum()), kept(weight)


def strength(config: Config, decays: float = 1.0) -> float:
    """Return the L1 strength that theory gives a weight decay: the cost of a unit coefficient."""
    return float(predict_penalty(1.0, decays * config.alpha))


def predicted_ratio(config: Config, decays: float = 1.0) -> float:
    """Return theory's imbalance after the time of the slow run, relative to the start."""
    return float(predict_imbalance(1.0, decays * config.alpha, BALANCE_TIME))


def minimum(decays: float = 1.0, *, positive: bool = False) -> Callable[[Config, int], float]:
    """Return a prediction: the minimum of the lasso whose strength belongs to ``decays`` times the decay."""

    def predict(config: Config, seed: int) -> float:
        return lasso("regression", config, seed, strength(config, decays), positive=positive)[0]

    return predict


def on_diabetes(what: int, decays: float = 1.0) -> Callable[[Config, int], float]:
    """Return a prediction on the diabetes data: the lasso's minimum (0) or number of coefficients (1)."""

    def predict(config: Config, seed: int) -> float:
        alpha = float(predict_penalty(1.0, decays * real_strength(config, "diabetes", seed)))
        return lasso("diabetes", config, seed, alpha)[what]

    return predict


def on_breast_cancer(what: int, decays: float = 1.0) -> Callable[[Config, int], float]:
    """Return the same on the breast cancer data, with logistic loss."""

    def predict(config: Config, seed: int) -> float:
        alpha = float(predict_penalty(1.0, decays * real_strength(config, "breast_cancer", seed)))
        return logistic_lasso(seed, alpha)[what]

    return predict


def draw(record: Record) -> "Figure":
    """Draw the optimality condition: coefficient against negative gradient."""
    from matplotlib.figure import Figure

    alpha = strength(record.config)
    weight, descent = record.array("coefficients"), record.array("descent")
    reach = 1.1 * float(np.abs(weight).max())
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.subplots()
    branches = np.array([-1.0, -1.0, 1.0, 1.0])
    steps = np.array([-reach, 0.0, 0.0, reach])
    # The law is the thin line on top: the points would hide it.
    axes.plot(steps, alpha * branches, lw=1.2, color=THEORY, label=r"lasso of strength $\alpha$", zorder=3)
    axes.plot(steps, alpha / 2 * branches, "--", color=RIVAL, label=r"rival: strength $\alpha/2$", zorder=1)
    points: dict[str, Any] = {"ms": 5, "mew": 0, "alpha": 0.5, "color": MEASUREMENT}
    axes.plot(weight.ravel(), descent.ravel(), "o", label="trained by SGD", **points)
    axes.set_xlabel("coefficient $w_i = u_i v_i$")
    axes.set_ylabel(r"negative gradient $-\partial L/\partial w_i$")
    axes.set_title(f"Weight decay {record.config.alpha:g} on both factors")
    axes.legend(loc="lower right")
    return figure


FINITE_TRAINING = (
    "a coefficient whose gradient nearly reaches the threshold fades slowly: after a time T of training it "
    "still costs up to |w_0|/(2eT), about 1e-5, and there may be a few of them"
)

STUDY = Study(
    title="The lasso by weight decay",
    paper=Paper("2210.01212", result="Weight decay on two factors solves the L1-penalised problem exactly"),
    version=2,
    config=Config,
    presets={
        "quick": {},
        "full": {"samples": 200, "features": 400, "sgd_steps": 8000, "adam_steps": 6000},
    },
    claims=[
        Claim(
            "sgd_minimum",
            formula=r"\min_{u,v} L(uv)+\tfrac{\alpha}{2}(\|u\|^2+\|v\|^2)=\min_w L(w)+\alpha\|w\|_1",
            predict=minimum(),
            margin=1e-5,
            relative=True,
            because=FINITE_TRAINING,
            rival=Rival("strength twice the weight decay", minimum(2.0)),
        ),
        Claim(
            "adam_minimum",
            formula=r"\min_{u,v} L(uv)+\tfrac{\alpha}{2}(\|u\|^2+\|v\|^2)=\min_w L(w)+\alpha\|w\|_1",
            predict=minimum(),
            margin=1e-5,
            relative=True,
            because=FINITE_TRAINING,
            rival=Rival("strength half the weight decay", minimum(0.5)),
        ),
        Claim(
            "tied_minimum",
            formula=r"u_0=v_0\ \Rightarrow\ \min_{w\ge0} L(w)+\alpha\|w\|_1",
            predict=minimum(positive=True),
            margin=1e-5,
            relative=True,
            because=FINITE_TRAINING,
            rival=Rival("the start does not matter: the ordinary lasso", minimum()),
        ),
        Claim(
            "support_gradient",
            formula=r"w_i\ne0\ \Rightarrow\ |\partial L/\partial w_i|=\alpha",
            predict=strength,
            margin=1e-4,
            because="training ends after finitely many steps, the gradient still moving in its fifth digit",
            rival=Rival("strength half the weight decay", lambda config: strength(config, 0.5)),
        ),
        Claim(
            "imbalance_ratio",
            formula=r"(u^2-v^2)(t)=(u^2-v^2)(0)\,e^{-2\alpha t}",
            predict=predicted_ratio,
            margin=0.01,
            because="steps of finite size add a term of the order of the learning rate to the rate",
            rival=Rival("decay at the rate of one factor", lambda config: predicted_ratio(config, 0.5)),
        ),
        Claim(
            "diabetes_minimum",
            formula=r"\min_w \tfrac{1}{2n}\|Xw-y\|^2+\alpha\|w\|_1",
            predict=on_diabetes(0),
            margin=1e-4,
            relative=True,
            because="measurements correlated to 0.9 are told apart slowly, and training ends",
            rival=Rival("strength twice the weight decay", on_diabetes(0, 2.0)),
        ),
        Claim(
            "diabetes_kept",
            formula=r"|\{i: |w_i|>10^{-3}\max_j|w_j|\}|",
            predict=on_diabetes(1),
            margin=0.5,
            because="one coefficient in one repetition of eight may lie just at the rounding's threshold",
            rival=Rival("strength twice the weight decay", on_diabetes(1, 2.0)),
        ),
        Claim(
            "cancer_minimum",
            formula=r"\min_w \tfrac1n\sum_i\log(1+e^{-y_ix_i\cdot w})+\alpha\|w\|_1",
            predict=on_breast_cancer(0),
            margin=1e-5,
            relative=True,
            because="coefficients below a thousandth of the largest are rounded to zero",
            rival=Rival("strength half the weight decay", on_breast_cancer(0, 0.5)),
        ),
        Claim(
            "cancer_kept",
            formula=r"|\{i: |w_i|>10^{-3}\max_j|w_j|\}|",
            predict=on_breast_cancer(1),
            margin=0.5,
            because="one coefficient in one repetition of eight may lie just at the rounding's threshold",
            rival=Rival("strength twice the weight decay", on_breast_cancer(1, 2.0)),
        ),
        Claim(
            "cancer_support_gradient",
            formula=r"w_i\ne0\ \Rightarrow\ |\partial L/\partial w_i|/\alpha=1",
            predict=lambda config: strength(config) / config.alpha,
            margin=0.01,
            because="coefficients below a thousandth of the largest are rounded to zero",
            rival=Rival(
                "strength half the weight decay", lambda config: strength(config, 0.5) / config.alpha
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.symmetry.sparsity.spred",
        "symdyn_core.symmetry.sparsity.merge_spred",
        "symdyn_core.symmetry.sparsity.kkt_residual",
        "symdyn_core.symmetry.lasso.SpredLasso",
    ),
)
