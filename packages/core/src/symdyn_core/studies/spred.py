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

Refuted if the losses differ from the minima by more than finite training explains, or if the strength is off
by the factor two that separates the conventions of weight decay. The figure is the optimality condition
itself: each point is a coefficient, and all must lie on the vertical at zero or on one of the branches at
$\pm\alpha$.
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
from symdyn_core.symmetry.penalty import predict_imbalance, predict_penalty
from symdyn_core.symmetry.sparsity import spred

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

RELEVANT = 10
NOISE = 0.5
SURVIVES = 0.03  # of the largest: far above what finite training leaves of the zeros
BALANCE_TIME, BALANCE_STEPS = 2.0, 250


@dataclass(frozen=True)
class Config:
    """Size of the regression and of the training."""

    alpha: float = setting(0.15, valid=(0.1, 0.5), verify=(0.1, 0.4), help="weight decay of both factors")
    samples: int = setting(100, valid=(100, 300), help="rows of the regression")
    features: int = setting(300, valid=(50, 400), verify=(150, 400), help="columns, of which 10 matter")
    sgd_steps: int = setting(1500, valid=(1500, 50_000), help="steps of SGD, lr 0.05, momentum 0.9")
    adam_steps: int = setting(1000, valid=(1000, 50_000), help="steps of Adam, lr 0.1 to 0 by a cosine")


def regression(config: Config, seed: int) -> tuple[Array, Array]:
    """Return features (samples, features) and targets (samples,) of one repetition."""
    generator = numpy_generator(seed, "regression")
    features = generator.standard_normal((config.samples, config.features))
    # Both signs in every repetition, so that the non-negative lasso is always another problem.
    coefficients = 2 * np.abs(generator.standard_normal(RELEVANT)) * np.resize([1.0, -1.0], RELEVANT)
    return features, features[:, :RELEVANT] @ coefficients + NOISE * generator.standard_normal(config.samples)


class Training:
    """A linear layer with factorized weight, trained on one regression."""

    def __init__(self, config: Config, seed: int, *, tied: bool = False) -> None:
        features, target = regression(config, seed)
        self.features, self.target = torch.from_numpy(features), torch.from_numpy(target)
        self.layer = torch.nn.Linear(config.features, 1, bias=False, dtype=torch.float64, device="meta")
        self.layer.to_empty(
            device="cpu"
        )  # spred draws the start; torch's own would move the global generator
        self.groups = spred(self.layer, alpha=config.alpha, init="random", seed=seed)
        self.alpha, self.factors = config.alpha, self.groups[0]["params"]
        if tied:
            self.factors[1].data.copy_(self.factors[0].data)

    def loss(self) -> torch.Tensor:
        """Half the mean squared error."""
        residual: torch.Tensor = self.layer(self.features).squeeze(1) - self.target
        return 0.5 * residual.square().mean()

    def run(self, optimizer: torch.optim.Optimizer, steps: int, *, cosine: bool = False) -> "Training":
        """Train in place."""
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(self.loss())
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return self

    def decayed_loss(self) -> float:
        """What the optimizer minimises: the loss plus half the decay times the squared factors."""
        decay = sum(float(factor.detach().square().sum()) for factor in self.factors)
        return float(self.loss().detach()) + self.alpha / 2 * decay

    def imbalance(self) -> Array:
        """Difference of the squared factors, coefficient by coefficient."""
        u, v = (factor.detach().numpy()[0] for factor in self.factors)
        return np.asarray(u**2 - v**2)

    def coefficients(self) -> tuple[Array, Array]:
        """The coefficients and the negative gradient of the loss without penalty."""
        weight = self.layer.weight.detach()[0]
        descent = self.features.T @ (self.target - self.features @ weight) / len(self.target)
        return weight.numpy(), descent.numpy()


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Train by SGD, by Adam, by Adam from tied factors, and by small steps for the balance."""
    sgd = Training(config, seed)
    sgd.run(torch.optim.SGD(sgd.groups, lr=0.05, momentum=0.9), config.sgd_steps)
    weight, descent = sgd.coefficients()
    survivors = np.abs(weight) > SURVIVES * np.abs(weight).max()
    adam = Training(config, seed)
    adam.run(torch.optim.Adam(adam.groups, lr=0.1), config.adam_steps, cosine=True)
    tied = Training(config, seed, tied=True)
    tied.run(torch.optim.Adam(tied.groups, lr=0.1), config.adam_steps, cosine=True)
    slow = Training(config, seed)
    before = slow.imbalance()
    slow.run(torch.optim.SGD(slow.groups, lr=BALANCE_TIME / BALANCE_STEPS), BALANCE_STEPS)
    return {
        "sgd_minimum": sgd.decayed_loss(),
        "adam_minimum": adam.decayed_loss(),
        "tied_minimum": tied.decayed_loss(),
        "support_gradient": float(np.abs(descent[survivors]).mean()),
        "imbalance_ratio": float(np.median(slow.imbalance() / before)),
        "coefficients": weight.tolist(),
        "descent": descent.tolist(),
    }


@lru_cache(maxsize=256)
def lasso_minimum(config: Config, seed: int, strength: float, *, positive: bool = False) -> float:
    """Return the minimum of the lasso of a given strength on a repetition's data, by coordinate descent."""
    from sklearn.linear_model import Lasso

    features, target = regression(config, seed)
    solver = Lasso(
        alpha=strength,
        fit_intercept=False,
        tol=1e-12,
        max_iter=1_000_000,
        positive=positive,
        random_state=0,  # without it scikit-learn moves NumPy's global generator
    )
    weight = solver.fit(features, target).coef_
    residual = target - features @ weight
    return float(residual @ residual / (2 * len(target)) + strength * np.abs(weight).sum())


def strength(config: Config, decays: float = 1.0) -> float:
    """Return the L1 strength that theory gives a weight decay: the cost of a unit coefficient."""
    return float(predict_penalty(1.0, decays * config.alpha))


def predicted_ratio(config: Config, decays: float = 1.0) -> float:
    """Return theory's imbalance after the time of the slow run, relative to the start."""
    return float(predict_imbalance(1.0, decays * config.alpha, BALANCE_TIME))


def minimum(decays: float = 1.0, *, positive: bool = False) -> Callable[[Config, int], float]:
    """Return a prediction: the minimum of the lasso whose strength belongs to ``decays`` times the decay."""

    def predict(config: Config, seed: int) -> float:
        return lasso_minimum(config, seed, strength(config, decays), positive=positive)

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
    version=1,
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
