r"""Can a random offset free training from the traps of its symmetries, and what does it leave in place?

A feature written as a product $u_iw_i$ may be reflected, $(u_i,w_i)\to-(u_i,w_i)$, and two equal columns of a
factor may change places. So a pair at $u_i=w_i=0$ stays there for ever under gradient descent, and equal
columns stay equal, however much the loss wants them elsewhere. Syre decays toward a frozen random offset
instead of zero; then no such state is stationary.

Set-up. A linear regression of 50 features (200 samples, label noise 0.1), each coefficient a product, half
the mean squared error, SGD with momentum; 25 of the pairs start exactly at zero, some of them needed by the
teacher. A factorisation, $\tfrac14\|VV^T-T\|^2$, whose 8 columns start as 4 pairs of equal ones, and a target
with 7 eigenvalues worth having. Both start *on* the symmetric state (`fold=False`), so that the pull is all
that can free them. And a small tanh network trained by SGD, Adam and AdamW, once folded by `Syre` and once
in the shifted coordinates of the paper, written out here, with isotropic and with anisotropic decay.

What is held against theory. The two forms take the same steps. Off the symmetric state the force is
$2\gamma P\theta_0$, torch's `weight_decay` being $2\gamma$. Of the trapped pairs those escape that pull
harder than the decay: the pairs at which the lasso of strength $2\gamma$, solved apart by coordinate descent,
is not zero; without Syre none. And what Syre does not do: where the lasso is zero the pair is no longer zero,
but of no use; along the direction in which the loss pulls, the offset is the share $1-|g|/2\gamma$ of it,
with $g$ the slope at the lasso's solution. The factorisation reaches the rank of the minimum, the number of
eigenvalues above $2\gamma$; without Syre that of its distinct columns.

Refuted if the two forms differ by more than rounding, if a needed pair stays or a useless one revives, or if
force and share are off by the factor two that separates the conventions of weight decay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_core.params import Params
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import derive_seed, numpy_generator, torch_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed
from symdyn_core.symmetry.removal import Syre, escape_force

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

FEATURES, TRAPPED, NOISE = 50, 25, 0.1
USEFUL = 0.1  # of a product: the lasso's are above 0.2 or, now and then, a few hundredths
PAIRS, COLUMN_RATE = 4, 0.1
GAP_STEPS, GAP_DECAY, GAP_SIGMA0, GAP_STRETCH = 60, 0.05, 0.1, 0.15


@dataclass(frozen=True)
class Config:
    """Settings of the removal of symmetries."""

    weight_decay: float = setting(
        0.15, valid=(0.1, 0.25), verify=(0.1, 0.25), help="2 gamma, of the regression's factors"
    )
    sigma0: float = setting(0.01, valid=(0.003, 0.02), verify=(0.003, 0.02), help="size of the offset")
    needed: int = setting(
        15, valid=(5, 18), verify=(8, 18), help="of the 25 trapped features, those the teacher uses"
    )
    samples: int = setting(200, valid=(200, 1000), verify=(400,), help="rows of the regression")
    steps: int = setting(1000, valid=(800, 20_000), help="of SGD on the regression, lr 0.02, momentum 0.9")
    rank: int = setting(7, valid=(5, 8), verify=(5, 8), help="eigenvalues of the target above the decay")
    column_steps: int = setting(
        500, valid=(400, 20_000), help="of SGD on the factorisation, lr 0.1, momentum 0.9"
    )


# The regression whose features are products.


def regression(config: Config, seed: int) -> tuple[Array, Array]:
    """Return features (samples, 50) and targets (samples,); the first 25 features are the trapped ones."""
    generator = numpy_generator(seed, "regression")
    features = generator.standard_normal((config.samples, FEATURES))
    teacher = generator.uniform(0.6, 1.4, FEATURES) * generator.choice([-1.0, 1.0], FEATURES)
    teacher[config.needed : TRAPPED] = 0
    return features, features @ teacher + NOISE * generator.standard_normal(config.samples)


def train_factors(config: Config, seed: int, *, syre: bool) -> tuple[Array, Array]:
    """Train the factors from trapped pairs; return them and the offsets, (2, 50) each."""
    features, target = (torch.from_numpy(array) for array in regression(config, seed))
    start = 0.5 * torch.from_numpy(numpy_generator(seed, "factors").standard_normal((2, FEATURES)))
    start[:, :TRAPPED] = 0
    factors = nn.Parameter(start)
    optimizer = torch.optim.SGD([factors], lr=0.02, momentum=0.9, weight_decay=config.weight_decay)
    offsets = torch.zeros_like(start)
    if syre:
        attached = Syre(optimizer, sigma0=config.sigma0, seed=derive_seed(seed, "features"), fold=False)
        offsets = attached.named_offsets()["0"]
    for _ in range(config.steps):
        optimizer.zero_grad()
        residual = features @ (factors[0] * factors[1]) - target
        torch.autograd.backward(0.5 * residual.square().mean())
        optimizer.step()
    return factors.detach().numpy(), offsets.numpy()


def stretching(config: Config, seed: int, factors: Array, offsets: Array) -> tuple[Array, Array]:
    """Return for each trapped pair the loss's pull over the decay's, |g|/2 gamma, and its length.

    The length is over that of the offset, along the direction in which the loss pulls: it moves u by -g w, so
    it stretches u - sign(g) w.
    """
    features, target = regression(config, seed)
    slope = features.T @ (features @ (factors[0] * factors[1]) - target) / len(target)
    along, before = (pair[0] - np.sign(slope) * pair[1] for pair in (factors, offsets))
    return np.abs(slope[:TRAPPED]) / config.weight_decay, (along / before)[:TRAPPED]


@lru_cache(maxsize=256)
def lasso(config: Config, seed: int) -> tuple[Array, Array]:
    """Return the lasso of strength 2 gamma and the slope of the loss there, of the trapped features."""
    from sklearn.linear_model import Lasso

    features, target = regression(config, seed)
    solver = Lasso(
        alpha=config.weight_decay, fit_intercept=False, tol=1e-12, max_iter=1_000_000, random_state=0
    )
    coefficients = solver.fit(features, target).coef_
    slope = features.T @ (features @ coefficients - target) / len(target)
    return coefficients[:TRAPPED], slope[:TRAPPED]


def predicted_useful(config: Config, seed: int) -> float:
    """Return how many trapped pairs theory frees."""
    return float((np.abs(lasso(config, seed)[0]) > USEFUL).sum())


def predicted_share(config: Config, seed: int) -> float:
    """Return the median of 1 - |g|/2 gamma over the pairs that theory leaves useless."""
    coefficients, slope = lasso(config, seed)
    useless = np.abs(coefficients) <= USEFUL
    return float(np.median(1 - np.abs(slope[useless]) / config.weight_decay))


# The factorisation whose columns are pairwise equal.


class EqualColumns:
    """The mirrors that exchange column k and column k + 4, all at once."""

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the columns with each pair at its mean."""
        return {name: ((rows[:PAIRS] + rows[PAIRS:]) / 2).repeat(2, 1, 1) for name, rows in params.items()}


def equal_columns(config: Config, seed: int) -> tuple[nn.Parameter, torch.optim.SGD]:
    """Return columns (8, 8, 1) of which each two are equal, and their optimizer."""
    generator = torch_generator(seed, "columns")
    half = torch.randn(PAIRS, 2 * PAIRS, 1, generator=generator, dtype=torch.float64) / 4
    columns = nn.Parameter(half.repeat(2, 1, 1))
    return columns, torch.optim.SGD([columns], lr=COLUMN_RATE, momentum=0.9, weight_decay=config.weight_decay)


def attach_to_columns(config: Config, seed: int, optimizer: torch.optim.Optimizer) -> Syre:
    """Return Syre on the equal columns."""
    return Syre(optimizer, sigma0=config.sigma0, seed=derive_seed(seed, "columns"), fold=False)


def target_matrix(config: Config, seed: int) -> Tensor:
    """Return a positive 8x8 matrix: some eigenvalues far above the decay, the others below half of it."""
    generator = numpy_generator(seed, "target")
    axes, _ = np.linalg.qr(generator.standard_normal((2 * PAIRS, 2 * PAIRS)))
    spectrum = generator.uniform(0.8, 2.0, 2 * PAIRS)
    spectrum[config.rank :] = config.weight_decay * generator.uniform(0, 0.5, 2 * PAIRS - config.rank)
    return torch.from_numpy(axes * spectrum @ axes.T)


def train_columns(config: Config, seed: int, *, syre: bool) -> tuple[int, float]:
    """Return the rank of the trained product, and the speed off the mirror in the first step."""
    columns, optimizer = equal_columns(config, seed)
    target = target_matrix(config, seed)
    if syre:
        attach_to_columns(config, seed, optimizer)
    speed = 0.0
    for step in range(config.column_steps):
        optimizer.zero_grad()
        # Column by column: a product of matrices may round equal columns differently, and that would grow.
        product = torch.bmm(columns, columns.mT).sum(dim=0)
        torch.autograd.backward(0.25 * (product - target).square().sum())
        optimizer.step()
        if step == 0:
            across = (columns[:PAIRS] - columns[PAIRS:]).detach() / math.sqrt(2)
            speed = float(across.norm()) / COLUMN_RATE
    matrix = columns.detach()[:, :, 0]
    return int((torch.linalg.eigvalsh(matrix.T @ matrix) > USEFUL).sum()), speed


def predicted_speed(config: Config, seed: int) -> float:
    """Return the length of the escape force at the equal columns."""
    _, optimizer = equal_columns(config, seed)
    force = escape_force(attach_to_columns(config, seed, optimizer), EqualColumns())
    return float(torch.cat([part.flatten() for part in force.values()]).norm())


# The two forms of the same training.

TRAINERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}


class Small:
    """A 6-16-1 tanh network and its data."""

    def __init__(self, seed: int) -> None:
        generator = torch_generator(seed, "small")
        self.inputs = torch.randn(64, 6, generator=generator, dtype=torch.float64)
        self.target = torch.sin(self.inputs.sum(dim=1))
        shapes = [(16, 6), (16,), (16,)]
        self.start = [torch.randn(s, generator=generator, dtype=torch.float64) / 2 for s in shapes]

    def loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Mean squared error."""
        hidden = torch.tanh(self.inputs @ weights[0].T + weights[1])
        return (hidden @ weights[2] - self.target).square().mean()


def train_folded(seed: int, trainer: str, stretch: float) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the weights trained by the library, its offsets and its D."""
    small, (kind, options) = Small(seed), TRAINERS[trainer]
    weights = [nn.Parameter(tensor.clone()) for tensor in small.start]
    optimizer = kind(weights, weight_decay=GAP_DECAY, **options)
    syre = Syre(optimizer, sigma0=GAP_SIGMA0, sigma_d=stretch, seed=derive_seed(seed, "small"))
    for _ in range(GAP_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(small.loss(weights))
        optimizer.step()
    found = syre.named_offsets(), syre.named_stretches()
    return [weight.detach() for weight in weights], list(found[0].values()), list(found[1].values())


def train_shifted(
    seed: int, trainer: str, offsets: Sequence[Tensor], stretches: Sequence[Tensor], *, shift: float = 1.0
) -> list[Tensor]:
    """Train theta in the loss shifted by ``shift`` times the offset, and start and return the rest added.

    A shift of 1 is the paper's equation; 0 is the wrong implementation that moves the start only.
    """
    small, (kind, options) = Small(seed), TRAINERS[trainer]
    shifts = [shift * offset for offset in offsets]
    thetas = [nn.Parameter(s + o - r) for s, o, r in zip(small.start, offsets, shifts, strict=True)]
    optimizer = kind(thetas, weight_decay=0.0, **options)
    for _ in range(GAP_STEPS):
        optimizer.zero_grad()
        loss = small.loss([theta + offset for theta, offset in zip(thetas, shifts, strict=True)])
        if kind is not torch.optim.AdamW:
            squares = [(d * theta.square()).sum() for d, theta in zip(stretches, thetas, strict=True)]
            loss = loss + GAP_DECAY / 2 * torch.stack(squares).sum()
        torch.autograd.backward(loss)
        if kind is torch.optim.AdamW:
            with torch.no_grad():
                for theta, stretch in zip(thetas, stretches, strict=True):
                    theta.mul_(1 - options["lr"] * GAP_DECAY * stretch)
        optimizer.step()
    return [theta.detach() + offset for theta, offset in zip(thetas, shifts, strict=True)]


def gap(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """Return the largest difference of two sets of weights."""
    return max(float((a - b).abs().max()) for a, b in zip(these, those, strict=True))


def largest_gap(seed: int) -> float:
    """Return the largest gap between the two forms over three optimizers and both decays."""
    gaps = []
    for trainer in TRAINERS:
        for stretch in (0.0, GAP_STRETCH):
            folded, offsets, stretches = train_folded(seed, trainer, stretch)
            gaps.append(gap(folded, train_shifted(seed, trainer, offsets, stretches)))
    return max(gaps)


@lru_cache(maxsize=256)
def wrong_gap(config: Config, seed: int) -> float:
    """Return the gap of SGD that moves the start by an offset but decays toward zero."""
    generator = torch_generator(seed, "offset of the rival")
    start = Small(seed).start
    offsets = [GAP_SIGMA0 * torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in start]
    ones = [torch.ones_like(tensor) for tensor in start]
    ends = [train_shifted(seed, "sgd", offsets, ones, shift=shift) for shift in (1.0, 0.0)]
    return gap(*ends)


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Train regression and factorisation with and without Syre, and the small network in both forms."""
    factors, offsets = train_factors(config, seed, syre=True)
    plain, _ = train_factors(config, seed, syre=False)
    freed, trapped = ((pair[0] * pair[1])[:TRAPPED] for pair in (factors, plain))
    pull, stretched = stretching(config, seed, factors, offsets)
    rank, speed = train_columns(config, seed, syre=True)
    return {
        "form_gap": largest_gap(seed),
        "escape_speed": speed,
        "freed_pairs": int((np.abs(freed) > USEFUL).sum()),
        "freed_without": int((np.abs(trapped) > USEFUL).sum()),
        # Offset over length and not length over offset, which has no bound where the pulls are nearly equal.
        "offset_share": float(np.median(1 / stretched[np.abs(freed) <= USEFUL])),
        "rank": rank,
        "rank_without": train_columns(config, seed, syre=False)[0],
        "freed": freed.tolist(),
        "pull": pull.tolist(),
        "stretched": stretched.tolist(),
    }


def draw(record: Record) -> "Figure":
    """Draw each trapped pair against the lasso, and the useless ones against their amplification."""
    from matplotlib.figure import Figure

    seeds = [repetition_seed(record.seed, record.study.id, k) for k in record.repetitions]
    coefficients = np.array([lasso(record.config, seed)[0] for seed in seeds])
    freed = record.array("freed")
    figure = Figure(figsize=(9.6, 4.2))
    left, right = figure.subplots(1, 2)
    points: dict[str, Any] = {"ms": 5, "mew": 0, "alpha": 0.5, "color": MEASUREMENT, "zorder": 2}

    reach = 1.1 * float(np.abs(coefficients).max())
    left.plot([-reach, reach], [-reach, reach], lw=1.2, color=THEORY, label=r"lasso of strength $2\gamma$")
    left.plot([-reach, reach], [0, 0], "--", color=RIVAL, label="rival: trapped for ever")
    left.plot(coefficients.ravel(), freed.ravel(), "o", label="trained with Syre", **points)
    left.set_xlabel("coefficient of the lasso")
    left.set_ylabel("product $u_i w_i$ after training")
    left.set_title("Pairs that start at zero")
    left.legend(loc="lower right")

    useless = np.abs(freed) <= USEFUL
    axis = np.linspace(0, 0.9, 200)
    right.plot(axis, 1 / (1 - axis), lw=1.2, color=THEORY, label=r"$1/(1-|g|/2\gamma)$")
    right.plot(axis, np.ones_like(axis), "--", color=RIVAL, label="rival: the offset itself")
    right.plot(record.array("pull")[useless], record.array("stretched")[useless], "o", **points)
    right.set_xlim(-0.02, 0.92)
    right.set_ylim(0, 10)
    right.set_xlabel(r"pull of the loss over that of the decay, $|g|/2\gamma$")
    right.set_ylabel("length over that of the offset")
    right.set_title("Pairs that stay useless")
    right.legend(loc="upper left")
    figure.tight_layout()
    return figure


COUNT = "a count; at most one in two repetitions may be at the border of use when training ends"

STUDY = Study(
    title="Traps removed by an offset",
    paper=Paper("2408.15495", result="A frozen offset and weight decay remove every reflection symmetry"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"steps": 4000, "column_steps": 2000}},
    claims=[
        Claim(
            "form_gap",
            formula=r"\ell(\theta+\theta_0)+\gamma\|\theta\|_D^2=\ell(\theta')+\gamma\|\theta'-\theta_0\|_D^2",
            predict=lambda config: 0.0,
            margin=1e-9,
            because="rounding, which 60 steps of training amplify",
            rival=Rival("the start moves, the decay still pulls to zero", wrong_gap),
        ),
        Claim(
            "escape_speed",
            formula=r"P\theta'=0\ \Rightarrow\ \|P\nabla\ell_r\|=2\gamma\|P\theta_0\|",
            predict=predicted_speed,
            margin=1e-6,
            relative=True,
            because="rounding of a difference of equal weights, which is a millionth of them",
            rival=Rival(
                "weight decay taken for gamma", lambda config, seed: predicted_speed(config, seed) / 2
            ),
        ),
        Claim(
            "freed_pairs",
            formula=r"\#\{i\ \text{trapped}: w^{\text{lasso}}_i(2\gamma)\ne0\}",
            predict=predicted_useful,
            margin=0.5,
            because=COUNT,
            rival=Rival("all of them", lambda config: float(TRAPPED)),
        ),
        Claim(
            "freed_without",
            formula=r"P\theta=0\ \Rightarrow\ P\nabla\ell=0:\quad 0",
            predict=lambda config, seed: 0.0,
            margin=0.5,
            because=COUNT,
            rival=Rival("the pairs that the lasso keeps: no trap at all", predicted_useful),
        ),
        Claim(
            "offset_share",
            formula=r"|g|<2\gamma\ \Rightarrow\ \frac{u_0\mp w_0}{u\mp w}=1-\frac{|g|}{2\gamma}",
            predict=predicted_share,
            margin=0.03,
            because="the offset moves the pairs in use by the order of its size, and the slope with them",
            rival=Rival("the offset itself, the loss forgotten", lambda config, seed: 1.0),
        ),
        Claim(
            "rank",
            formula=r"\mathrm{rank}\,VV^T=\#\{i: \lambda_i(T)>2\gamma\}",
            predict=lambda config: float(config.rank),
            margin=0.5,
            because=COUNT,
            rival=Rival("offset without decay, which only moves the trap", lambda config: float(PAIRS)),
        ),
        Claim(
            "rank_without",
            formula=r"v_k=v_{k+4}\ \Rightarrow\ \mathrm{rank}\,VV^T=4",
            predict=lambda config: float(PAIRS),
            margin=0.5,
            because=COUNT,
            rival=Rival("descent finds its way out of a saddle", lambda config: float(config.rank)),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.symmetry.removal.Syre",
        "symdyn_core.symmetry.removal.escape_force",
        "symdyn_core.symmetry.folding.bypasses_gradient",
    ),
)
