r"""Which part of a network does strong weight decay delete, and what brings it back?

Two networks on real data. A residual net reads scikit-learn's digits: $h=x+V\tanh(Wx+c)$, logits $Rh+b$. A
transformer with one block and two heads predicts the next letter of Python's own manual. Each has a part that
is a product ($VW$; output times value) in which both factors may change sign: a mirror. At zero, training
cannot tell its two sides apart.

**Collapse.** Near zero the part grows at rate $\kappa-\lambda$ under weight decay $\lambda$. The curvature
$\kappa$ is the largest singular value of $\mathbb E[g\,\tilde a^T]$: the force on the part's output times
its input. For the residual net, stationarity of the readout makes it $\lambda\,\|R^T(R\,b)\|$, so that the
critical decay follows from multinomial logistic regression alone; it is held against networks trained from
usual initial weights. For attention the input is the mean of what came before; the rate is measured at the
network that strong decay has left.

**Trap.** What strong decay leaves is tiny; some thousand steps later float32 makes it zero, the study at
once. With moderate decay (SGD; for the transformer AdamW) zero is a saddle, and still training does not
leave it: the residual net ends at the optimum of logistic regression, the transformer no better than the
entropy of a letter given the one before. Only exact zeros are trapped. A remainder $\epsilon$ returns after
a time $\log(1/\epsilon)/(\kappa-\lambda)$, under AdamW within a few hundred steps.

**Repair.** The same training with Syre, attached to the trapped weights without moving them: full rank, the
held-out loss of a network that never collapsed (accuracy gains about one point), and a transformer that
beats the entropy of pairs.

**No repair.** Where the decay is above critical, the loss itself prefers the collapsed state. Syre makes
all singular values nonzero, as large as its offsets predict, and the held-out loss gains nothing. This is
for small offsets: one as large as usual initial weights changes the loss that the decay prefers. Nor can
`rebalance_` help a collapsed part: it moves along symmetries, which change no output.

Refuted if a block dies at another decay, if plain training leaves the mirror, or if Syre fails where zero
is a saddle or helps where it is not.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.commands.examples.training import initialized
from symdyn_core.commands.examples.transformer import GPT, manual, next_token_loss, windows
from symdyn_core.estimate import Estimate, mean
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator, torch_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed
from symdyn_core.symmetry.collapse import numerical_rank
from symdyn_core.symmetry.removal import Syre

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# The residual net: SGD with momentum on all training samples.
LEARNING_RATE, MOMENTUM = 0.3, 0.9
BRACKET = (0.06, 0.48)  # of the critical decay; halved on a log scale
HALVINGS = 6  # to a bracket of 3 %
HALVING_STEPS = 200
# Largest singular value of VW: 4 at the start, 0.36 in the end at 0.9 of the critical decay; at the critical
# decay, where it falls most slowly, 0.01 after so many steps.
ALIVE = 0.025
REPAIR_SCALE = 0.1  # of Syre, in usual initial weights, where zero is a saddle
MASKED_SCALE = 0.05  # and where it is not: small, as the prediction is of first order

# The transformer.
CONTEXT, WIDTH, HEADS, BATCH = 16, 16, 2, 32
COLLAPSE_STEPS = 120  # of SGD
SETTLE_STEPS = 40  # and of gradient descent, so that what is not attention comes to rest
ADAMW_DECAY = 0.1
ATTENTION_SCALE = 1.0
HELD_OUT, JUDGED = 1024, 2048  # windows
PROBED = 128  # windows on which the growth of a small attention is measured
PROBE_STEPS = 30
CURVE = 25  # steps a point of the figure averages over


@dataclass(frozen=True)
class Config:
    """Weight decays and sizes."""

    strong_decay: float = setting(
        0.25, valid=(0.22, 0.4), verify=(0.22, 0.35), help="of the residual net, to collapse it"
    )
    moderate_decay: float = setting(
        0.01, valid=(0.005, 0.03), verify=(0.02,), help="of the residual net, at which zero is a saddle"
    )
    attention_decay: float = setting(
        0.1, valid=(0.08, 0.15), verify=(0.08, 0.15), help="of the transformer, to collapse its attention"
    )
    width: int = setting(8, valid=(4, 32), verify=(4, 16), help="hidden units of the residual block")
    samples: int = setting(
        300, valid=(300, 1400), verify=(700,), help="digits to train on; the rest is held out"
    )
    residual_steps: int = setting(250, valid=(250, 10_000), help="steps of the residual net, full batch")
    transformer_steps: int = setting(220, valid=(200, 20_000), help="steps of the transformer by AdamW")


# --- the residual net ---------------------------------------------------------------------------------------


class ResidualNet(nn.Module):
    """One residual block in front of a linear readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(64, width)
        self.down = nn.Linear(width, 64, bias=False)
        self.readout = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 64) to logits (n, 10)."""
        logits: Tensor = self.readout(x + self.down(torch.tanh(self.up(x))))
        return logits

    def block(self) -> list[nn.Parameter]:
        """The weights that are zero in the collapsed state."""
        return [*self.up.parameters(), *self.down.parameters()]

    def gains(self) -> Tensor:
        """Singular values of the block's linear part, descending."""
        values: Tensor = torch.linalg.svdvals((self.down.weight @ self.up.weight).detach())
        return values


class Digits(NamedTuple):
    """Images (n, 64) in [0, 1] and labels (n,) of the training and the held-out part."""

    images: Array
    labels: NDArray[np.int64]
    held_out_images: Array
    held_out_labels: NDArray[np.int64]


@cache
def all_digits() -> tuple[Array, NDArray[np.int64]]:
    """Read the file once."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images / 16.0, labels


def digits(config: Config, seed: int) -> Digits:
    """Return the data of one repetition."""
    images, labels = all_digits()
    order = numpy_generator(seed, "digits").permutation(len(images))
    training, held_out = order[: config.samples], order[config.samples :]
    return Digits(images[training], labels[training], images[held_out], labels[held_out])


class Residual:
    """Training of residual nets on one repetition's digits."""

    def __init__(self, config: Config, seed: int) -> None:
        data = digits(config, seed)
        self.config, self.seed = config, seed
        self.images, self.labels = torch.tensor(data.images).float(), torch.tensor(data.labels)
        self.held_out = torch.tensor(data.held_out_images).float(), torch.tensor(data.held_out_labels)

    def network(self, stream: str) -> ResidualNet:
        """Return a network with usual initial weights."""
        generator = torch_generator(self.seed, "residual", stream)
        return initialized(
            lambda: ResidualNet(self.config.width),
            lambda weight: nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator),
        )

    def train(
        self, network: ResidualNet, weight_decay: float, steps: int, *, syre_scale: float = 0.0
    ) -> ResidualNet:
        """Train a copy; with Syre, from the same weights."""
        network = copy.deepcopy(network)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=weight_decay
        )
        if syre_scale:
            attach_syre(optimizer, network, syre_scale, self.seed)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(network(self.images), self.labels))
            optimizer.step()
        return network

    def halve_bracket(self) -> tuple[float, list[tuple[float, float]]]:
        """Search the decay at which the block dies; return it, and every decay tried with the gain left."""
        low, high = BRACKET
        start, tried = self.network("bracket"), []
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            gain = float(self.train(start, middle, HALVING_STEPS).gains()[0])
            tried.append((middle, gain))
            low, high = (middle, high) if gain > ALIVE else (low, middle)
        return math.sqrt(low * high), tried

    def penalised_loss(self, network: ResidualNet, weight_decay: float) -> float:
        """Training loss with the penalty that weight decay is the gradient of."""
        with torch.no_grad():
            squares = sum(float(parameter.square().sum()) for parameter in network.parameters())
            return (
                float(functional.cross_entropy(network(self.images), self.labels))
                + weight_decay / 2 * squares
            )

    def held_out_loss(self, network: ResidualNet) -> float:
        """Cross entropy on digits never seen."""
        with torch.no_grad():
            return float(functional.cross_entropy(network(self.held_out[0]), self.held_out[1]))

    def accuracy(self, network: ResidualNet) -> float:
        """Fraction of unseen digits read correctly."""
        with torch.no_grad():
            return float((network(self.held_out[0]).argmax(1) == self.held_out[1]).double().mean())


def attach_syre(optimizer: torch.optim.Optimizer, network: nn.Module, scale: float, seed: int) -> Syre:
    """Attach Syre without moving the weights: its pull alone has to do the work."""
    return Syre(optimizer, scale=scale, seed=seed, fold=False, model=network)


def measure_residual(config: Config, seed: int) -> dict[str, Any]:
    """Collapse, trap, repair and what is not repaired."""
    residual = Residual(config, seed)
    strong, moderate, steps = config.strong_decay, config.moderate_decay, config.residual_steps
    critical, tried = residual.halve_bracket()
    collapsed = residual.train(residual.network("start"), strong, steps)
    left = float(collapsed.gains()[0])
    with torch.no_grad():
        for weight in collapsed.block():
            weight.zero_()
    plain = residual.train(collapsed, moderate, steps)
    repaired = residual.train(collapsed, moderate, steps, syre_scale=REPAIR_SCALE)
    unbroken = residual.train(residual.network("unbroken"), moderate, steps)
    masked = residual.train(collapsed, strong, steps, syre_scale=MASKED_SCALE)
    networks = {
        "collapsed": collapsed,
        "plain": plain,
        "repaired": repaired,
        "unbroken": unbroken,
        "masked": masked,
    }
    losses = {name: residual.held_out_loss(network) for name, network in networks.items()}
    trap = losses["plain"] - losses["unbroken"]
    return {
        "critical_decay": critical,
        "decays_and_gains": tried,
        "gain_left": left,
        "trapped_loss": residual.penalised_loss(plain, moderate),
        "trapped_gain": float(plain.gains()[0]),
        "repaired_rank": weight_rank(repaired.down.weight @ repaired.up.weight),
        "repaired_share": (losses["plain"] - losses["repaired"]) / trap,
        "masked_rank": weight_rank(masked.down.weight @ masked.up.weight),
        "masked_gain": float(masked.gains().norm()),
        "masked_share": (losses["collapsed"] - losses["masked"]) / (losses["collapsed"] - losses["unbroken"]),
        **{f"held_out_loss_{name}": loss for name, loss in losses.items()},
        **{f"accuracy_{name}": residual.accuracy(network) for name, network in networks.items()},
    }


def weight_rank(matrix: Tensor) -> int:
    """Return the numerical rank of a product of float32 weights."""
    values = torch.linalg.svdvals(matrix.detach())
    return numerical_rank(values, (matrix.shape[0], matrix.shape[1]), torch.finfo(matrix.dtype).eps)


# --- the transformer ----------------------------------------------------------------------------------------


@cache
def letters() -> tuple[str, Tensor, int]:
    """Return the manual in lower-case letters and single spaces, its windows, and how many characters."""
    text = re.sub("[^a-z]+", " ", manual().lower())
    return text, *windows(text, CONTEXT + 1)


def attention_parameters(network: GPT) -> list[nn.Parameter]:
    """Return what is zero in the collapsed state: all of the attention but the bias of its output."""
    named = dict(network.blocks.named_parameters())
    return [p for name, p in named.items() if ".attention." in name and name != "0.attention.output.bias"]


def attention_product(network: GPT) -> Tensor:
    """Return output times value, summed over the heads, shape (width, width)."""
    weights = dict(network.named_parameters())
    product: Tensor = weights["blocks.0.attention.output.weight"] @ weights["blocks.0.attention.value.weight"]
    return product.detach()


class Transformer:
    """Training of transformers on one repetition's windows of the manual."""

    def __init__(self, seed: int) -> None:
        _, pieces, self.alphabet = letters()
        order = torch.randperm(len(pieces), generator=torch_generator(seed, "windows"))
        self.seed = seed
        self.training, self.held_out = pieces[order[HELD_OUT:]], pieces[order[:HELD_OUT]]
        self.probed = self.training[:PROBED]

    def network(self) -> GPT:
        """Return a network with usual initial weights."""
        generator = torch_generator(self.seed, "transformer")
        return initialized(
            lambda: GPT(self.alphabet, width=WIDTH, heads=HEADS, layers=1, context=CONTEXT),
            lambda weight: nn.init.normal_(weight, std=WIDTH**-0.5, generator=generator),
        )

    def train(self, network: GPT, optimizer: torch.optim.Optimizer, steps: int, stream: str) -> list[float]:
        """Train in place on random windows, or on the probed ones; return the loss of every step.

        The learning rate falls along a cosine.
        """
        generator = torch_generator(self.seed, "batches", stream)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for _ in range(steps):
            batch = self.training[torch.randint(len(self.training), (BATCH,), generator=generator)]
            optimizer.zero_grad()
            loss = self.loss(network, self.probed if stream == "settle" else batch)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    def loss(self, network: GPT, pieces: Tensor) -> Tensor:
        """Cross entropy of the next letter."""
        return next_token_loss(network(pieces[:, :-1]), pieces[:, 1:])


def parameter_groups(network: GPT, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: as usual, neither embeddings nor normalisations decay."""
    linear = [p for layer in network.modules() if isinstance(layer, nn.Linear) for p in layer.parameters()]
    decayed = {id(parameter) for parameter in linear}
    others = [parameter for parameter in network.parameters() if id(parameter) not in decayed]
    return [{"params": linear, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@lru_cache(maxsize=64)
def collapsed_transformer(config: Config, seed: int) -> tuple[GPT, float]:
    """Return the network after training with strong decay, and how much of its attention was left.

    What was left is set to zero. It is where both the measurement and the theory of the rate begin; neither
    changes it.
    """
    transformer = Transformer(seed)
    network = transformer.network()
    optimizer = torch.optim.SGD(parameter_groups(network, config.attention_decay), lr=0.5, momentum=0.9)
    transformer.train(network, optimizer, COLLAPSE_STEPS, "collapse")
    left = float(torch.linalg.svdvals(attention_product(network))[0])
    with torch.no_grad():
        for parameter in attention_parameters(network):
            parameter.zero_()
    optimizer = torch.optim.SGD(parameter_groups(network, config.attention_decay), lr=0.2, momentum=0.9)
    transformer.train(network, optimizer, SETTLE_STEPS, "settle")
    return network, left


def measure_transformer(config: Config, seed: int) -> dict[str, Any]:
    """Growth of a small attention, trap and repair."""
    transformer = Transformer(seed)
    collapsed, left = collapsed_transformer(config, seed)
    plain, plain_losses = continued(transformer, collapsed, config.transformer_steps)
    repaired, repaired_losses = continued(transformer, collapsed, config.transformer_steps, syre=True)
    with torch.no_grad():
        judged = transformer.training[:JUDGED]
        trapped_loss, repaired_loss = (
            float(transformer.loss(network, judged)) for network in (plain, repaired)
        )
        held_out = [float(transformer.loss(n, transformer.held_out)) for n in (plain, repaired)]
    return {
        "attention_left": left,
        "attention_rate": measure_rate(transformer, collapsed, config.attention_decay),
        "trapped_entropy": trapped_loss,
        "trapped_attention": float(torch.linalg.svdvals(attention_product(plain))[0]),
        "repaired_heads": weight_rank(attention_product(repaired)),
        "repaired_entropy": repaired_loss,
        "held_out_entropies": held_out,
        "plain_curve": curve(plain_losses),
        "repaired_curve": curve(repaired_losses),
    }


def continued(
    transformer: Transformer, collapsed: GPT, steps: int, *, syre: bool = False
) -> tuple[GPT, list[float]]:
    """Train a copy of the collapsed network on by AdamW; return it and its losses."""
    network = copy.deepcopy(collapsed)
    optimizer = torch.optim.AdamW(parameter_groups(network, ADAMW_DECAY), lr=0.02, fused=True)
    if syre:
        attach_syre(optimizer, network, ATTENTION_SCALE, transformer.seed)
    return network, transformer.train(network, optimizer, steps, "continued")


def measure_rate(transformer: Transformer, collapsed: GPT, weight_decay: float) -> float:
    """Return the growth per unit of time of a tiny attention under gradient descent with weight decay."""
    network = copy.deepcopy(collapsed).double()
    parameters = attention_parameters(network)
    generator = torch_generator(transformer.seed, "tiny attention")
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=1e-10, generator=generator)  # linear also if it grows
    # Decay alone would end in one step, so that the largest curvature outlives the others soonest.
    learning_rate = 1 / weight_decay
    optimizer = torch.optim.SGD(parameters, lr=learning_rate, weight_decay=weight_decay)
    sizes = []
    for _ in range(PROBE_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(transformer.loss(network, transformer.probed))
        optimizer.step()
        sizes.append(float(torch.cat([p.detach().flatten() for p in parameters]).norm()))
    factor = math.exp(math.log(sizes[-1] / sizes[-11]) / 10)
    return (factor - 1) / learning_rate


def curve(losses: list[float]) -> list[float]:
    """Average the losses of every few steps."""
    return [float(np.mean(losses[k : k + CURVE])) for k in range(0, len(losses) - CURVE + 1, CURVE)]


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Run both networks once."""
    return {**measure_residual(config, seed), **measure_transformer(config, seed)}


# --- theory -------------------------------------------------------------------------------------------------


class Readout(NamedTuple):
    """Logistic regression: weights with bias (10, 65), penalised loss, and the force on a residual block.

    ``force`` is minus the gradient along a linear map from (x, 1) to the stream, shape (64, 65).
    """

    weights: Array
    loss: float
    force: Array


def logistic_regression(data: Digits, weight_decay: float, anchor: Array | float = 0.0) -> Readout:
    """Solve multinomial logistic regression whose penalty pulls weights and bias toward an anchor."""
    from scipy.optimize import minimize

    inputs = np.column_stack([data.images, np.ones(len(data.images))])
    answers = np.eye(10)[data.labels]

    def objective(vector: Array) -> tuple[float, Array]:
        weights = vector.reshape(10, 65)
        logits = inputs @ weights.T
        normaliser = np.logaddexp.reduce(logits, axis=1)
        surplus = np.exp(logits - normaliser[:, None]) - answers
        loss = (normaliser - (logits * answers).sum(axis=1)).mean()
        pull = weights - anchor
        gradient = surplus.T @ inputs / len(inputs) + weight_decay * pull
        return float(loss + weight_decay / 2 * (pull**2).sum()), gradient.ravel()

    options = {"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-8}
    solution = minimize(objective, np.zeros(650), jac=True, method="L-BFGS-B", options=options)
    weights = solution.x.reshape(10, 65)
    # Stationarity: minus the gradient of the bare loss is what the penalty pulls with.
    force = weights[:, :64].T @ (weight_decay * (weights - anchor))
    return Readout(weights, float(solution.fun), force)


@lru_cache(maxsize=64)
def predict_critical_decay(config: Config, seed: int) -> float:
    """Return the decay that equals the curvature which a readout trained at it leaves to a block."""
    from scipy.optimize import brentq

    data = digits(config, seed)

    def excess(log_decay: float) -> float:
        decay = math.exp(log_decay)
        return float(np.linalg.norm(logistic_regression(data, decay).force, 2)) / decay - 1

    root: float = brentq(excess, math.log(0.01), math.log(2.0), xtol=1e-4)
    return math.exp(root)


@lru_cache(maxsize=64)
def predict_trapped_loss(config: Config, seed: int, decays: float = 1.0) -> float:
    """Return the optimum of logistic regression: all a residual net without its block can reach."""
    return logistic_regression(digits(config, seed), decays * config.moderate_decay).loss


def trapped_accuracy(data: Digits, weight_decay: float) -> float:
    """Return the fraction of unseen digits that logistic regression reads."""
    weights = logistic_regression(data, weight_decay).weights
    answers = (data.held_out_images @ weights[:, :64].T + weights[:, 64]).argmax(axis=1)
    return float((answers == data.held_out_labels).mean())


@lru_cache(maxsize=64)
def masked_offsets(config: Config, seed: int) -> tuple[Array, Array, Array]:
    """Return Syre's offsets of (W c), V and (R b), shapes (width, 65), (64, width), (10, 65)."""
    network = Residual(config, seed).network("start")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, weight_decay=1.0)
    named = attach_syre(optimizer, network, MASKED_SCALE, seed).named_offsets()
    offsets = {name: offset.double().numpy() for name, offset in named.items()}
    up = np.column_stack([offsets["up.weight"], offsets["up.bias"]])
    readout = np.column_stack([offsets["readout.weight"], offsets["readout.bias"]])
    return up, offsets["down.weight"], readout


@lru_cache(maxsize=64)
def predict_masked_gain(config: Config, seed: int) -> float:
    r"""Return the Frobenius norm of VW where the pull of Syre balances decay and curvature.

    $\lambda V-KW^T=\lambda V_0$ and $\lambda W^T-K^TV=\lambda W_0^T$ for the force $K$, whose singular values
    are below $\lambda$.
    """
    up, down, readout = masked_offsets(config, seed)
    decay = config.strong_decay
    force = logistic_regression(digits(config, seed), decay, readout).force
    v = np.linalg.solve(decay**2 * np.eye(64) - force @ force.T, decay * (decay * down + force @ up.T))
    w = up.T + force.T @ v / decay
    return float(np.linalg.norm(v @ w[:64].T))


def offset_gain(config: Config, seed: int) -> float:
    """Return the same where the weights rest on their offsets."""
    up, down, _ = masked_offsets(config, seed)
    return float(np.linalg.norm(down @ up[:, :64]))


@lru_cache(maxsize=64)
def predict_attention_rate(config: Config, seed: int, decays: float = 1.0) -> float:
    r"""Return :math:`\kappa-\lambda` at the collapsed transformer.

    $\kappa$ is the largest singular value of the sum, over texts and positions, of the force on what
    attention writes times the mean of all normalised inputs so far, with a 1 for the bias of the values.
    Queries and keys play no part: to first order attention is even.
    """
    network, _ = collapsed_transformer(config, seed)
    weights = {name: parameter.detach().double() for name, parameter in network.named_parameters()}
    pieces = Transformer(seed).probed

    def normalised(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    stream = weights["token.weight"][pieces[:, :-1]] + weights["position.weight"]
    counts = torch.arange(1.0, CONTEXT + 1, dtype=torch.float64)[:, None]
    so_far = normalised(stream, "blocks.0.norm1").cumsum(dim=1) / counts
    so_far = torch.cat([so_far, torch.ones_like(so_far[..., :1])], dim=-1)
    written = (weights["blocks.0.attention.output.bias"] + torch.zeros_like(stream)).requires_grad_()
    middle = stream + written
    inner = functional.gelu(linear(normalised(middle, "blocks.0.norm2"), "blocks.0.up"))
    logits = linear(normalised(middle + linear(inner, "blocks.0.down"), "norm"), "head")
    loss = functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
    (force,) = torch.autograd.grad(loss, written)
    curvature = float(torch.linalg.svdvals(torch.einsum("nti,ntj->ij", force, so_far))[0])
    return curvature - decays * config.attention_decay


@cache
def pair_entropy(known: int = 1) -> float:
    """Return the entropy of a letter of the manual given as many before it, in nats."""
    text, _, _ = letters()
    whole = Counter(text[k : k + known + 1] for k in range(len(text) - known))
    given = Counter(text[k : k + known] for k in range(len(text) - known))
    total = len(text) - known
    return -sum(count / total * math.log(count / given[part[:-1]]) for part, count in whole.items())


def share_below_pairs(losses: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the share of runs that read more than one letter back."""
    return mean([float(loss < pair_entropy()) for loss in losses], confidence)


# --- the study ----------------------------------------------------------------------------------------------


def draw(record: Record) -> "Figure":
    """Draw what decay leaves of the residual block, and what the transformer learns with and without Syre."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 9.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1)
    seeds = [repetition_seed(record.seed, record.study.id, k) for k in record.repetitions]
    tried = record.array("decays_and_gains")
    relative = tried[..., 0] / np.array([[predict_critical_decay(record.config, seed)] for seed in seeds])
    top.axvline(1.0, color=THEORY, label="theory")
    top.axvline(0.5, color=RIVAL, linestyle="--", label="rival: twice the decay")
    style: dict[str, Any] = {"ms": 5, "color": MEASUREMENT, "alpha": 0.6}
    top.plot(relative.ravel(), tried[..., 1].ravel(), "o", label="trained networks", **style)
    top.set(
        xlabel="weight decay / critical decay of logistic regression", ylabel=r"gain $\|VW\|$ of the block"
    )
    top.set_title("Residual net on digits: above a critical decay the block dies")
    top.legend(loc="center right")

    data = [digits(record.config, seed) for seed in seeds]
    trapped = np.mean([trapped_accuracy(d, record.config.moderate_decay) for d in data])
    middle.axhline(100 * trapped, color=THEORY, label="theory for the trapped: logistic regression")
    names = {"plain": "trapped", "repaired": "trapped, with Syre", "unbroken": "never collapsed"}
    for place, name in enumerate(names):
        estimate = mean(record.values(f"accuracy_{name}"))
        reach = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        reach = [[100 * side[0] if math.isfinite(side[0]) else 0.0] for side in reach]  # of one repetition
        middle.errorbar(place, 100 * estimate.value, yerr=reach, fmt="o", ms=5, color=MEASUREMENT)
    middle.set_xticks(range(len(names)), list(names.values()))
    middle.set(xlim=(-0.5, len(names) - 0.5), ylabel="unseen digits read, %")
    middle.set_title("The same network after moderate decay")
    middle.legend(loc="upper left")

    bottom.axhline(pair_entropy(), color=THEORY, label="entropy given one letter before: no attention")
    bottom.axhline(
        pair_entropy(2), color=RIVAL, linestyle="--", label="rival: attention returns, two letters"
    )
    for name, marker, label in (("plain", "o", "as it is"), ("repaired", "s", "with Syre")):
        curves = record.array(f"{name}_curve")
        steps = CURVE * (np.arange(curves.shape[1]) + 0.5)
        spread = 2 * curves.std(axis=0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else None
        style = {"color": MEASUREMENT, "mfc": MEASUREMENT if name == "plain" else "white", "ms": 5}
        bottom.errorbar(steps, curves.mean(axis=0), yerr=spread, fmt=marker, label=label, **style)
    bottom.set(xlabel="step of AdamW after the collapse", ylabel="training loss, nats a letter")
    bottom.set_title("Transformer: a collapsed attention is trapped, Syre frees it")
    bottom.legend()
    return figure


STUDY = Study(
    title="Collapse and repair of a residual net and a transformer",
    paper=Paper(
        "2408.15495", result="Syre removes the traps of reflection symmetry, not the preference of the decay"
    ),
    version=1,
    config=Config,
    presets={
        "quick": {},
        "full": {"samples": 1400, "width": 16, "residual_steps": 2000, "transformer_steps": 3000},
    },
    claims=[
        Claim(
            "critical_decay",
            formula=r"\|R^T(R\,b)\|=1 \text{ for the logistic regression } (R,b) \text{ at } \lambda_c",
            predict=predict_critical_decay,
            margin=0.04,
            relative=True,
            because="the search ends at a bracket of 3 %, and near the transition a block dies slowly",
            rival=Rival("twice the decay", lambda config, seed: predict_critical_decay(config, seed) / 2),
        ),
        Claim(
            "trapped_loss",
            formula=r"\min_{R,b}\ \text{cross entropy}(Rx+b)+\tfrac{\lambda}{2}(\|R\|^2+\|b\|^2)",
            predict=predict_trapped_loss,
            margin=1e-4,
            relative=True,
            because="finite training, in single precision",
            rival=Rival("twice the decay", lambda config, seed: predict_trapped_loss(config, seed, 2.0)),
        ),
        Claim(
            "repaired_rank",
            formula=r"\text{force } \lambda P\theta_0\ne0:\ \operatorname{rank} VW=\text{width}",
            predict=lambda config: config.width,
            margin=0.5,
            because="a whole number",
            rival=Rival("trapped as without Syre", lambda config: 0),
        ),
        Claim(
            "repaired_share",
            formula=r"(L_{\text{trapped}}-L_{\text{Syre}})/(L_{\text{trapped}}-L_{\text{unbroken}})=1",
            predict=lambda config: 1.0,
            margin=0.15,
            because="other minima of the same network, and an offset of a tenth of the usual weights",
            rival=Rival("rank without use", lambda config: 0.0),
        ),
        Claim(
            "masked_rank",
            formula=r"\operatorname{rank} VW=\text{width}\ \text{also above } \lambda_c",
            predict=lambda config: config.width,
            margin=0.5,
            because="a whole number",
            rival=Rival("collapsed as without Syre", lambda config: 0),
        ),
        Claim(
            "masked_gain",
            formula=r"\lambda V-KW^T=\lambda V_0,\quad \lambda W^T-K^TV=\lambda W_0^T",
            predict=predict_masked_gain,
            margin=0.03,
            relative=True,
            because="first order in the offset, a twentieth of the usual weights",
            rival=Rival("the weights rest on their offsets", offset_gain),
        ),
        Claim(
            "masked_share",
            formula=r"(L_{\text{collapsed}}-L_{\text{Syre}})/(L_{\text{collapsed}}-L_{\text{unbroken}})=O(\sigma_0^2)",
            predict=lambda config: 0.0,
            margin=0.02,
            because="what is left is of second order in the offset",
            rival=Rival("full rank is full capacity", lambda config: 1.0),
        ),
        Claim(
            "attention_rate",
            formula=r"\kappa-\lambda,\quad \kappa=\sigma_{\max}\,\mathbb E\,g_t\,(\overline{x}_{\le t},1)",
            predict=predict_attention_rate,
            margin=1e-3,
            because="other directions and higher orders have not died out entirely",
            rival=Rival(
                "half the decay, from the penalty without its 1/2",
                lambda config, seed: predict_attention_rate(config, seed, 0.5),
            ),
        ),
        Claim(
            "trapped_entropy",
            formula=r"H(\text{letter}\mid\text{the one before})",
            predict=lambda config: pair_entropy(),
            margin=0.06,
            because="a bound: finite training and weight decay leave the loss a little above",
            rival=Rival("attention returns: two letters before", lambda config: pair_entropy(2)),
        ),
        Claim(
            "repaired_heads",
            formula=r"\text{force } \lambda P\theta_0\ne0:\ \operatorname{rank} OV=\text{width}",
            predict=lambda config: WIDTH,
            margin=0.5,
            because="a whole number",
            rival=Rival("trapped as without Syre", lambda config: 0),
        ),
        Claim(
            "reads_beyond_pairs",
            formula=r"L_{\text{Syre}}<H(\text{letter}\mid\text{the one before})",
            predict=lambda config: 1.0,
            margin=0.1,
            because="a run is either below or not",
            rival=Rival("trapped as without Syre", lambda config: 0.0),
            measured="repaired_entropy",
            estimator=share_below_pairs,
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.symmetry.removal.Syre",
        "symdyn_core.symmetry.removal.escape_force",
        "symdyn_core.symmetry.audit.audit",
        "symdyn_core.symmetry.rebalance.rebalance_",
    ),
    repetitions=4,
)
