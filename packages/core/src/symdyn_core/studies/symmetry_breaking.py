r"""Does training go from symmetry to symmetry?

Three experiments on what leaves a symmetric state, when, and what returns to it.

*Tied units.* Two hidden units of a small tanh network (5-8-2, 200 samples) start equal. The swap of the two
then leaves the state in place, so no minibatch can tell them apart: SGD with momentum and weight decay, and
AdamW, must end with the units equal, up to rounding. From the same start with a kick of $10^{-3}$ to one
weight they must part: the tied state is a saddle. (So is it for rounding errors, which a matrix product makes
differently in each unit: in a run many times as long they would part the units as well.)

*Learning.* A linear network $W_2W_1$ (6-12-5), started at $10^{-4}$, learns a target with singular values
4, 2, 1 by gradient descent. Only $p_k=\frac12(W_1v_k+W_2^\top u_k)$ grows, and the mode is half learned at
$t_k=\frac1{2s_k}\ln(s_k/a_k-1)$. Here $a_k=\|p_k\|^2$ counts without the components of $p_k$ along the
hidden directions that stronger modes have taken: they shrink again. On the plateaus between the jumps the
loss follows the logistic growth of the next mode.

*Forgetting.* With a penalty $\gamma(\|W_1\|^2+\|W_2\|^2)$ the modes end at $\max(s_k-2\gamma,0)$: the weak
ones become symmetric again.

Refuted if tied units part by more than rounding; if a mode is learned at another time than predicted, in
particular at that of $a_k$ with all its components, or of the size of the product $W_2W_1$; if the loss on
the plateau is another; or if decay leaves other strengths, in particular those of a penalty with $\gamma/2$.
The experiments are on networks that can be solved or nearly so. The source's claims on layered
representations and on the symmetries of large models are hypotheses that this study does not test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.random import numpy_generator, torch_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_core.study.record import repetition_seed
from symdyn_core.symmetry.breaking import (
    predict_jump_times,
    predict_mode_growth,
    predict_mode_strengths,
    transitions,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

STRENGTHS = (4.0, 2.0, 1.0)
INPUTS, OUTPUTS = 6, 5
TIME_STEP = 2e-3
TIME = 18.0
LOGGED = 10  # steps between two entries of the log
CURVE_POINTS = 180
USED = 0.05  # of the strongest mode: from there on a singular value is a direction in use
DECAYED_START, DECAYED_STEP, DECAYED_TIME = 0.3, 1e-2, 30.0
KICK = 1e-3
PARTED = 5  # kicks: far more than a kick that decays, or stays, would leave


@dataclass(frozen=True)
class Config:
    """Settings of the three experiments."""

    start: float = setting(
        1e-4,
        valid=(1e-6, 3e-4),
        verify=(1e-5, 3e-4),
        help="size of the entries that the linear net starts at",
    )
    hidden: int = setting(12, valid=(8, 32), verify=(8, 24), help="hidden units of the linear net")
    weight_decay: float = setting(
        0.25, valid=(0.1, 2.5), verify=(0.75, 1.25, 2.25), help="gamma of gamma |W|^2, half of torch's"
    )
    networks: int = setting(4, valid=(4, 1000), help="linear networks per repetition")
    tied_steps: int = setting(
        600, valid=(200, 800), verify=(300,), help="steps of SGD and of AdamW from tied units"
    )
    kicked_steps: int = setting(1500, valid=(1500, 100_000), help="steps of SGD from the kicked start")


@dataclass(frozen=True)
class LinearStart:
    """Target and initial weights of the linear networks of one repetition; one network a row."""

    target: Array
    first: Array
    second: Array


def linear_start(config: Config, seed: int) -> LinearStart:
    """Draw the singular vectors and the start, at size one."""
    generator = numpy_generator(seed, "linear")
    runs, modes = config.networks, len(STRENGTHS)
    left = np.linalg.qr(generator.standard_normal((runs, OUTPUTS, modes)))[0]
    right = np.linalg.qr(generator.standard_normal((runs, INPUTS, modes)))[0]
    return LinearStart(
        (left * np.array(STRENGTHS)) @ right.swapaxes(1, 2),
        generator.standard_normal((runs, config.hidden, INPUTS)),
        generator.standard_normal((runs, OUTPUTS, config.hidden)),
    )


def learn(config: Config, seed: int) -> dict[str, Any]:
    """Run gradient descent from a small start; return when modes are half learned, and the loss between."""
    start = linear_start(config, seed)
    first, second = config.start * start.first, config.start * start.second
    left, _, right = np.linalg.svd(start.target)
    left, right = left[:, :, : len(STRENGTHS)], right[:, : len(STRENGTHS)]
    entries = []
    for step in range(round(TIME / TIME_STEP)):
        product = second @ first
        residual = start.target - product
        if step % LOGGED == 0:
            strengths = np.einsum("rok,roi,rki->rk", left, product, right)
            entries.append((strengths, 0.5 * np.square(residual).sum(axis=(1, 2)), product))
        slopes = second.swapaxes(1, 2) @ residual, residual @ first.swapaxes(1, 2)
        first, second = first + TIME_STEP * slopes[0], second + TIME_STEP * slopes[1]
    times = LOGGED * TIME_STEP * np.arange(len(entries))
    path, loss, products = (np.array(values) for values in zip(*entries, strict=True))
    used = np.linalg.svd(products, compute_uv=False) > USED * STRENGTHS[0]
    jumps: Array = np.array([half_learned(times, path[:, run]) for run in range(config.networks)])
    middles = (jumps[:, 1:] + jumps[:, :-1]) / 2
    plateaus = [np.interp(middle, times, loss[:, run]) for run, middle in enumerate(middles)]
    changes = [
        transitions(
            {"step": step, "loss": loss[step, run], "clusters": config.hidden, "rank": used[step, run].sum()}
            for step in range(len(times))
        )
        for run in range(config.networks)
    ]
    return {
        "jumps": jumps.mean(axis=0),
        "plateaus": np.mean(plateaus, axis=0),
        "transitions": float(np.mean([len(found) for found in changes])),
        "loss_curve": loss[:: len(times) // CURVE_POINTS, 0],
    }


def half_learned(times: NDArray[Any], strengths: NDArray[Any]) -> list[float]:
    """Return when each mode first passes half of its final strength, interpolated; strengths (times, k)."""
    found = []
    for mode, final in zip(strengths.T, STRENGTHS, strict=True):
        after = int((mode > final / 2).argmax())
        found.append(float(np.interp(final / 2, mode[after - 1 : after + 1], times[after - 1 : after + 1])))
    return found


def forget(config: Config, seed: int) -> Array:
    """Return the singular values that gradient descent with weight decay ends at, mean over networks."""
    start = linear_start(config, seed)
    first, second = DECAYED_START * start.first, DECAYED_START * start.second
    for _ in range(round(DECAYED_TIME / DECAYED_STEP)):
        residual = start.target - second @ first
        slopes = second.swapaxes(1, 2) @ residual, residual @ first.swapaxes(1, 2)
        first = first + DECAYED_STEP * (slopes[0] - 2 * config.weight_decay * first)
        second = second + DECAYED_STEP * (slopes[1] - 2 * config.weight_decay * second)
    strengths = np.linalg.svd(second @ first, compute_uv=False)[:, : len(STRENGTHS)]
    return np.asarray(strengths.mean(axis=0))


def train_tied(config: Config, seed: int, algorithm: str, *, kick: float = 0.0) -> float:
    """Train the tanh network from two equal units; return how far apart their weights end."""
    generator = torch_generator(seed, "tied")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = normal(200, 5)
    targets = (inputs @ normal(5, 2)).sin()
    first, bias, second = normal(8, 5) / 5**0.5, torch.zeros(8, dtype=torch.float64), normal(2, 8) / 8**0.5
    first[1], second[:, 1] = first[0], second[:, 0]
    first[1, 0] += kick
    weights = [first.requires_grad_(), bias.requires_grad_(), second.requires_grad_()]
    optimizer: torch.optim.Optimizer
    if algorithm == "adamw":
        optimizer = torch.optim.AdamW(weights, lr=1e-2)
        steps = config.tied_steps
    else:
        optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3)
        steps = config.kicked_steps if kick else config.tied_steps
    for _ in range(steps):
        batch = torch.randperm(len(inputs), generator=generator)[:16]
        outputs = (inputs[batch] @ first.T + bias).tanh() @ second.T
        optimizer.zero_grad()
        torch.autograd.backward((outputs - targets[batch]).square().mean())
        optimizer.step()
    with torch.no_grad():
        units = torch.cat([first, bias[:, None], second.T], dim=1)
        return float((units[0] - units[1]).norm() / 2**0.5)


def measure(config: Config, seed: int) -> Mapping[str, Any]:
    """Run the three experiments once."""
    learned, left = learn(config, seed), forget(config, seed)
    return {
        "tied_sgd": train_tied(config, seed, "sgd"),
        "tied_adamw": train_tied(config, seed, "adamw"),
        "parted": float(train_tied(config, seed, "sgd", kick=KICK) > PARTED * KICK),
        "first_jump": float(learned["jumps"][0]),
        "last_jump": float(learned["jumps"][-1]),
        "first_plateau": float(learned["plateaus"][0]),
        "last_plateau": float(learned["plateaus"][-1]),
        "transitions": learned["transitions"],
        "strength_left": float(left.sum()),
        "modes_left": left.tolist(),
        "loss_curve": learned["loss_curve"].tolist(),
    }


def networks(config: Config, seed: int) -> list[tuple[Array, Array, Array]]:
    """Return target and initial weights of each network."""
    start = linear_start(config, seed)
    return list(zip(start.target, config.start * start.first, config.start * start.second, strict=True))


def predict_jump(config: Config, seed: int, mode: int) -> float:
    """Return the mean time at which a mode is half learned."""
    return float(np.mean([predict_jump_times(*weights)[mode] for weights in networks(config, seed)]))


def jump_of_whole_start(config: Config, seed: int, mode: int) -> float:
    """Return the same if the components along directions already taken counted as well."""
    times = []
    for target, first, second in networks(config, seed):
        left, strengths, right = np.linalg.svd(target)
        start = np.sum(((first @ right[mode] + second.T @ left[:, mode]) / 2) ** 2)
        times.append(np.log(strengths[mode] / start - 1) / (2 * strengths[mode]))
    return float(np.mean(times))


def jump_of_product(config: Config, seed: int, mode: int) -> float:
    """Return the same if the mode grew from the size of the product of the layers."""
    strength = STRENGTHS[mode]
    starts = [float(np.linalg.norm(second @ first)) for _, first, second in networks(config, seed)]
    return float(np.mean([np.log(strength / start - 1) / (2 * strength) for start in starts]))


def predict_plateau(config: Config, seed: int, learned: int) -> float:
    """Return the mean loss halfway between two predicted jumps."""
    losses = []
    for weights in networks(config, seed):
        middle = predict_jump_times(*weights)[learned - 1 : learned + 1].mean()
        modes = predict_mode_growth(*weights, [middle])[0]
        losses.append(0.5 * float(np.square(np.array(STRENGTHS) - modes).sum()))
    return float(np.mean(losses))


def predict_left(config: Config, factor: float = 1.0) -> float:
    """Return the sum of what decay leaves of the modes."""
    return float(predict_mode_strengths(STRENGTHS, factor * config.weight_decay).sum())


def draw(record: Record) -> "Figure":
    """Draw the loss of learning and the modes that decay leaves."""
    from matplotlib.figure import Figure

    config: Config = record.config
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)

    weights = networks(config, repetition_seed(record.seed, record.study.id, record.repetitions[0]))[0]
    fine = np.linspace(0, TIME, 600)
    modes = predict_mode_growth(*weights, fine)
    left.plot(fine, 0.5 * np.square(np.array(STRENGTHS) - modes).sum(axis=1), color=THEORY, zorder=3)
    wrong = [jump_of_product(config, 0, k) for k in range(len(STRENGTHS))]
    levels = [0.5 * np.square(STRENGTHS[k:]).sum() for k in range(len(STRENGTHS) + 1)]
    left.step([0, *wrong, TIME], [*levels, 0.0], where="post", color=RIVAL, linestyle="--")
    curve = record.array("loss_curve")[0]
    left.plot(np.linspace(0, TIME, len(curve)), curve, "o", ms=3, color=MEASUREMENT)
    left.set(title="learning, one network", xlabel="time (steps x learning rate)", ylabel="loss")

    decays = np.linspace(0, 2.5, 200)
    for k, strength in enumerate(STRENGTHS):
        kept = [predict_mode_strengths([strength], decay)[0] for decay in decays]
        half = [predict_mode_strengths([strength], decay / 2)[0] for decay in decays]
        right.plot(decays, kept, color=THEORY, label="theory" if k == 0 else None)
        right.plot(decays, half, "--", color=RIVAL, label="rival" if k == 0 else None)
    found = record.array("modes_left")
    for k in range(found.shape[1]):
        right.plot(np.full(len(found), config.weight_decay), found[:, k], "o", ms=5, color=MEASUREMENT)
    right.set(
        title="what weight decay leaves", xlabel=r"weight decay $\gamma$", ylabel="strength of the mode"
    )
    handles = [
        right.plot([], [], color=THEORY)[0],
        right.plot([], [], "--", color=RIVAL)[0],
        right.plot([], [], "o", color=MEASUREMENT)[0],
    ]
    labels = ["theory", r"rivals: start at $\|W_2W_1\|$; penalty with $\gamma/2$", "gradient descent"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


TIED = "a matrix product rounds equal units differently, and what parts the kicked units amplifies it"
STEP = "steps of finite size delay a mode by the fraction s_k dt / 2 of its time: 0.4 % for the first"

STUDY = Study(
    title="From symmetry to symmetry",
    paper=Paper(
        "2502.05300", result="symmetric states hold training until broken; jumps break, weight decay restores"
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"networks": 200, "kicked_steps": 6000}},
    claims=[
        Claim(
            "tied_sgd",
            formula=r"P_G\theta_0=\theta_0\ \Rightarrow\ \|(I-P_G)\theta_t\|=0\ \text{(SGD, momentum)}",
            predict=lambda config: 0.0,
            margin=1e-6,
            because=TIED,
            rival=Rival("minibatch noise parts the units as it parts kicked ones", lambda config: 1.0),
        ),
        Claim(
            "tied_adamw",
            formula=r"P_G\theta_0=\theta_0\ \Rightarrow\ \|(I-P_G)\theta_t\|=0\ \text{(AdamW)}",
            predict=lambda config: 0.0,
            margin=1e-6,
            because=TIED,
            rival=Rival("minibatch noise parts the units as it parts kicked ones", lambda config: 1.0),
        ),
        Claim(
            "parted",
            formula=r"\lambda_{\min}\big((I-P_G)H(I-P_G)\big)<0\ \Rightarrow\ \|(I-P_G)\theta_t\|\gg\epsilon",
            predict=lambda config: 1.0,
            margin=0.05,
            because="none: the tied state is a saddle from every start tried, and a kick grows exponentially",
            rival=Rival("the tied state holds perturbed units as well", lambda config: 0.0),
        ),
        Claim(
            "first_jump",
            formula=r"t_1=\frac{1}{2s_1}\ln(s_1/a_1-1),\quad a_1=\|\tfrac12(W_1v_1+W_2^\top u_1)\|^2",
            predict=lambda config, seed: predict_jump(config, seed, 0),
            margin=0.006,
            relative=True,
            because=STEP,
            rival=Rival(
                "growth from the product of the layers", lambda config, seed: jump_of_product(config, seed, 0)
            ),
        ),
        Claim(
            "last_jump",
            formula=r"t_3=\frac{1}{2s_3}\ln(s_3/a_3-1),\quad a_3=\|(I-\Pi_{1,2})p_3\|^2",
            predict=lambda config, seed: predict_jump(config, seed, 2),
            margin=0.002,
            relative=True,
            because=f"{STEP}, 0.1 % for the last",
            rival=Rival(
                "components along directions already taken count as well",
                lambda config, seed: jump_of_whole_start(config, seed, 2),
            ),
        ),
        Claim(
            "first_plateau",
            formula=r"L(\tfrac{t_1+t_2}{2})=\tfrac12\sum_k(s_k-a_k(t))^2\approx\tfrac12(s_2^2+s_3^2)",
            predict=lambda config, seed: predict_plateau(config, seed, 1),
            margin=0.002,
            relative=True,
            because=STEP,
            rival=Rival(
                "the next mode has not begun", lambda config: 0.5 * float(np.square(STRENGTHS[1:]).sum())
            ),
        ),
        Claim(
            "last_plateau",
            formula=r"L(\tfrac{t_2+t_3}{2})=\tfrac12\sum_k(s_k-a_k(t))^2\approx\tfrac12s_3^2",
            predict=lambda config, seed: predict_plateau(config, seed, 2),
            margin=0.002,
            relative=True,
            because=STEP,
            rival=Rival(
                "the next mode has not begun", lambda config: 0.5 * float(np.square(STRENGTHS[2:]).sum())
            ),
        ),
        Claim(
            "transitions",
            formula=r"O(h)\to O(h-1)\to O(h-2)\to O(h-3)",
            predict=lambda config: float(len(STRENGTHS)),
            margin=0.01,
            because="none; every jump uses one direction",
            rival=Rival("all modes at once", lambda config: 1.0),
        ),
        Claim(
            "strength_left",
            formula=r"\sum_k\max(s_k-2\gamma,0)",
            predict=predict_left,
            margin=0.02,
            because="a mode exactly at the threshold fades as 1/(2t), to 0.017 at the end",
            rival=Rival("a penalty with a further factor 1/2", lambda config: predict_left(config, 0.5)),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_core.symmetry.breaking.predict_jump_times",
        "symdyn_core.symmetry.breaking.restored_modes",
        "symdyn_core.symmetry.breaking.transitions",
        "symdyn_core.symmetry.mirror.GroupProjector",
        "symdyn_core.symmetry.remaining.remaining_symmetry",
    ),
)
