r"""How fast does a circuit without weight transport learn to backpropagate?

Backpropagation sends the error down through the transposed forward weights $W$, which a feedback synapse
cannot see. Give the way down weights $B$ of its own, random at the start, and let both change by the same
product of error and activity and decay alike. The data then cancel from $B - W$, and the mismatch is
forgotten by exactly $1 - \eta\gamma$ a step ($\eta$ learning rate, $\gamma$ weight decay), whatever the task
and the nonlinearity. This is the two-synapse case of a four-synapse heterosynaptic circuit after Liao et al.
2024; the laws are re-derived, as the equations of the paper itself are not reproduced here.

Set-up: a ReLU network learns scikit-learn's handwritten digits by SGD, once as such a circuit and once by
backpropagation with the same decay, from the same weights and on the same sequence of batches. After each
epoch we measure $\|B-W\|$ over all layers, the cosine between the update of each hidden layer and its true
gradient, and the accuracy on held-out digits.

Four predictions. The mismatch decays at the discrete-time rate, which the continuous-time limit misses by a
fraction $\eta\gamma/2$. A mismatch that is small and unrelated to the error turns the update by an angle
proportional to it, so that $1-\cos$ vanishes as its square, at twice the rate. At the end the update of every
hidden layer is the gradient. The circuit then is as accurate as backpropagation.

Refuted if the mismatch decays at any other rate (without decay it stays as it is), if the misalignment
follows the mismatch itself instead of its square, if a hidden layer keeps an update of its own, or if the
circuit is no better than a readout of hidden layers that never learned. A network much wider than the default
leaves that last question open, as its random features suffice for digits. Nor does accuracy tell the circuit
from one with fixed random feedback, which learns the digits as well: the cosine does.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from symdyn_core.estimate import geometric_mean, slope
from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_neuro.assembly import predict_mismatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from symdyn_neuro.training import Snapshot

BATCH_SIZE = 32
TEST_SIZE = 599  # a third of the digits
USUAL_ACCURACY = 0.95  # what backpropagation reaches, or a little less


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    learning_rate: float = setting(0.5, valid=(0.2, 0.5), verify=(0.2, 0.3), help="of SGD, constant")
    weight_decay: float = setting(
        0.01, valid=(0.004, 0.01), verify=(0.005,), help="of SGD; much more makes the network itself decay"
    )
    hidden_layers: int = setting(2, valid=(1, 2), verify=(1,), help="each of `width` ReLU units")
    width: int = setting(32, valid=(24, 128), verify=(64,), help="units of each hidden layer")
    duration: float = setting(
        4.0, valid=(3.5, 6.0), verify=(5.0,), help="in units of 1 / (learning_rate * weight_decay) steps"
    )


def measure(config: Config, seed: int) -> dict[str, object]:
    """Train circuit and backpropagation side by side and watch."""
    from symdyn_neuro.rules import Rule
    from symdyn_neuro.tasks import digits
    from symdyn_neuro.training import perceptron, train

    task = digits(seed=seed, test_size=TEST_SIZE)
    sizes = [task.features, *[config.width] * config.hidden_layers, task.classes]
    time_unit = 1 / (config.learning_rate * config.weight_decay)
    epochs = round(config.duration * time_unit / (len(task.train_inputs) // BATCH_SIZE))

    def history(rule: Rule) -> "list[Snapshot]":
        return list(
            train(
                perceptron(sizes, rule=rule, seed=seed),
                task,
                epochs=epochs,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                batch_size=BATCH_SIZE,
                seed=seed,
            )
        )

    def accuracy(snapshots: "list[Snapshot]") -> float:
        # Over the last quarter of the epochs, so that the noise of single SGD iterates averages out.
        last = snapshots[-max(1, epochs // 4) :]
        return math.fsum(snapshot.accuracy for snapshot in last) / len(last)

    circuit, backprop = history(Rule.HETEROSYNAPTIC), history(Rule.BACKPROP)
    steps = [snapshot.steps for snapshot in circuit]
    mismatch = [snapshot.total_mismatch for snapshot in circuit]
    # The last layer receives its error directly; the others through feedback.
    hidden = [list(snapshot.alignment.values())[:-1] for snapshot in circuit]
    misalignment = [math.exp(math.fsum(math.log(1 - c) for c in row) / len(row)) for row in hidden]
    return {
        "steps": steps,
        "mismatch": mismatch,
        "misalignment": misalignment,
        "log_mismatch": [[t, math.log(m)] for t, m in zip(steps, mismatch, strict=True)],
        # Before one unit of time the network still finds its features and the angle is not small.
        "log_misalignment": [
            [t, math.log(m)] for t, m in zip(steps, misalignment, strict=True) if t >= time_unit
        ],
        "final_alignment": min(hidden[-1]),
        "accuracy": accuracy(circuit),
        "accuracy_gap": accuracy(circuit) - accuracy(backprop),
    }


def rate(config: Config) -> float:
    """Logarithm of the factor by which the mismatch changes in a step."""
    curve = predict_mismatch(
        1.0, learning_rate=config.learning_rate, weight_decay=config.weight_decay, steps=1
    )
    return math.log(curve[1])


def accuracy_gap_of_a_readout(config: Config, seed: int) -> float:
    """Return the gap if the hidden layers kept their first weights: a least-squares readout of them."""
    import torch

    from symdyn_neuro.tasks import digits
    from symdyn_neuro.training import perceptron

    task = digits(seed=seed, test_size=TEST_SIZE)
    sizes = [task.features, *[config.width] * config.hidden_layers, task.classes]
    with torch.no_grad():
        hidden = perceptron(sizes, seed=seed)[:-1]
        features, unseen = (
            torch.nn.functional.pad(hidden(inputs).double(), (0, 1), value=1.0)  # one feature for the bias
            for inputs in (task.train_inputs, task.test_inputs)
        )
        labels = torch.nn.functional.one_hot(task.train_targets).double()
        answers = (unseen @ (torch.linalg.pinv(features) @ labels)).argmax(dim=1)
    return float((answers == task.test_targets).double().mean()) - USUAL_ACCURACY


def draw(record: Record) -> "Figure":
    """Mismatch and misalignment against the number of steps, on a logarithmic scale."""
    from matplotlib.figure import Figure

    config = record.config
    steps = record.array("steps")[0]
    time_unit = 1 / (config.learning_rate * config.weight_decay)
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()

    def points(name: str, **style: Any) -> list[float]:
        estimates = [geometric_mean(column) for column in record.array(name).T]
        reach = [[e.value - e.low for e in estimates], [min(e.high - e.value, e.value) for e in estimates]]
        centre = [e.value for e in estimates]
        axes.errorbar(
            steps, centre, yerr=reach, color=MEASUREMENT, ms=4.5, lw=1, ls="none", zorder=3, **style
        )
        return centre

    mismatch = points("mismatch", marker="o", label=r"mismatch $\|B-W\|$")
    misalignment = points("misalignment", marker="s", mfc="white", label=r"misalignment $1-\cos$")
    law = predict_mismatch(
        1.0, learning_rate=config.learning_rate, weight_decay=config.weight_decay, steps=int(steps[-1])
    )
    axes.plot(
        mismatch[0] * law,
        color=THEORY,
        zorder=3,
        label=r"theory: $(1-\eta\gamma)^t$ and $(1-\eta\gamma)^{2t}$",
    )
    start = next(k for k, t in enumerate(steps) if t >= time_unit)
    late = range(int(steps[start]), int(steps[-1]) + 1)
    ratio = law[late.start :] / law[late.start]
    axes.plot(late, misalignment[start] * ratio**2, color=THEORY)
    axes.plot(late, misalignment[start] * ratio, color=RIVAL, ls="--", label=r"rival: $1-\cos$ not squared")
    axes.set_yscale("log")
    axes.set_xlabel("SGD steps $t$")
    axes.set_ylabel("distance from backpropagation")
    axes.set_title(
        rf"Digits: learning rate $\eta={config.learning_rate:g}$, decay $\gamma={config.weight_decay:g}$"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=9)
    return figure


STUDY = Study(
    title="Feedback assembles itself at a known rate",
    paper=Paper(
        "2412.20018",
        result="a heterosynaptic circuit wires itself from random connectivity into one that backpropagates",
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"weight_decay": 0.005, "duration": 6.0}},
    claims=[
        Claim(
            "mismatch_rate",
            formula=r"\frac{\log\|B_t-W_t\|-\log\|B_0-W_0\|}{t} = \log(1-\eta\gamma)",
            predict=rate,
            margin=1e-5,
            relative=True,
            because="single precision: rounding accumulates to less than 1e-6 of the rate",
            rival=Rival("continuous-time limit", lambda config: -config.learning_rate * config.weight_decay),
            measured="log_mismatch",
            estimator=slope,
        ),
        Claim(
            "misalignment_rate",
            formula=r"\frac{d}{dt}\log(1-\cos) = 2\log(1-\eta\gamma)",
            predict=lambda config: 2 * rate(config),
            margin=0.15,
            relative=True,
            because="asymptotic law: the weights and errors that the mismatch adds to still drift a little",
            rival=Rival("proportional to the mismatch, not to its square", rate),
            measured="log_misalignment",
            estimator=slope,
        ),
        Claim(
            "final_alignment",
            formula=r"\min_l\cos(\Delta W_l, -\nabla_l\ell) = 1",
            predict=lambda config: 1.0,
            margin=0.01,
            because="the mismatch left at the end, at most e^-3.5 of the initial one, enters squared",
            rival=Rival(
                "a mismatch as large as the weights stays, turning the update by 45 degrees",
                lambda config: math.sqrt(0.5),
            ),
        ),
        Claim(
            "accuracy_gap",
            formula=r"\mathrm{acc}_{\mathrm{circuit}} - \mathrm{acc}_{\mathrm{backprop}} = 0",
            predict=lambda config: 0.0,
            margin=0.015,
            because="the circuit takes another way to its features before it is assembled",
            rival=Rival(
                "no hidden layer learns without weight transport, only the readout does",
                accuracy_gap_of_a_readout,
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_neuro.layers.HSLinear",
        "symdyn_neuro.convert.heterosynaptic_",
        "symdyn_neuro.assembly.predict_mismatch",
        "symdyn_neuro.probes.gradient_alignment",
        "symdyn_neuro.probes.feedback_mismatch",
    ),
)
