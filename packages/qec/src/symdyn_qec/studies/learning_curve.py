r"""How many simulated shots does a decoder of a bicycle code need to learn from?

A few hundred, if it is told where errors were and knows the symmetry of the code. A network on the torus
is trained from nothing, on labels that say which data qubit flipped in which cycle; ordered statistics turn
its odds into a correction that explains all checks. Each shot is $2n(R+1)$ small lessons, and what is learnt
of one cell holds for all of them.

Set-up: memory of the [[72, 12, 6]] code under circuit noise. Every repetition trains a small network from
other weights on other shots, in float32 on one core, and keeps its averaged weights at a few moments, which
make the learning curve. All decoders decode the same fresh shots. Two controls stand beside the trained one.
*Without a network*: ordered statistics with equal odds for all qubits, which look for few flips and know
nothing of the circuit. *Scattered*: the same network, trained as long on the same shots, but told of every
check in a cell that has nothing to do with it; it has as many weights, shared just as much, and its symmetry
is not that of the code. And the trained network's suggestions are also taken as they are, without ordered
statistics.

The trained decoder fails at most half as often as each of the three. Its odds for translated shots are the
translated odds, after training as before; were a translated shot a new one to it, they would differ by
$\sqrt2$ times their spread.

Refuted if a decoder so trained fails more often, if a network learns as fast without the torus, or if
training breaks the symmetry.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_core.random import derive_seed, numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import BivariateBicycleCode, bivariate_bicycle
from symdyn_qec.layout import TorusLayout
from symdyn_qec.networks.sector import SectorNetwork
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.osd import OrderedStatistics
from symdyn_qec.training import Settings, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bits = NDArray[np.uint8]
Odds = NDArray[np.float32]
Network = TorusNetwork | SectorNetwork  # what training may hold; here the former

BATCH_SIZE, WARMUP, AVERAGE = 16, 10, 0.95
FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # of the shots, where the learning curve has points
SHOTS_AT_ONCE = 128


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    code: str = setting("bb72", choices=("bb72", "bb90", "bb108"), verify=("bb90",), help="The code.")
    p: float = setting(
        0.003, valid=(0.0025, 0.004), verify=(0.0026, 0.004), help="Strength of circuit noise."
    )
    rounds: int = setting(4, valid=(3, 5), verify=(3,), help="Cycles; more need more shots.")
    shots: int = setting(384, valid=(256, 1_000_000), help="Shots to learn from, in batches of 16.")
    learning_rate: float = setting(0.01, valid=(0.005, 0.02), help="The highest, of AdamW.")
    width: int = setting(16, valid=(16, 128), help="Features per node of the network.")
    layers: int = setting(2, valid=(2, 16), help="Rounds of messages.")
    tested: int = setting(256, valid=(256, 100_000), help="Fresh shots that each decoder decodes.")


class FreshShots:
    """Fresh shots, and what a decoder gets wrong of them."""

    def __init__(self, config: Config, seed: int) -> None:
        code = bivariate_bicycle(config.code)
        circuit = bb_memory(code, config.p, config.rounds)
        sampler = circuit.compile_detector_sampler(seed=derive_seed(seed, "test"))
        packed, self.observables = sampler.sample(config.tested, separate_observables=True, bit_packed=True)
        self.observables = np.unpackbits(self.observables, axis=1, bitorder="little", count=code.k)
        layout = TorusLayout(code, config.rounds)
        self.checks = layout.checks(torch.from_numpy(packed))
        # A detector is the change of a check; that of the readout ends the row, and their sum is net.
        self.syndromes: Bits = np.bitwise_xor.reduce(
            (self.checks[:, 1] == 2).flatten(2).byte().numpy(), axis=1
        )
        self._code, self._search = code, OrderedStatistics(code.hz)

    def odds(self, network: Network) -> Odds:
        """Return a network's log odds of net flips, shape ``(shots, n)``."""
        with torch.inference_mode():
            parts = [network.readout(part, "Z") for part in torch.split(self.checks, SHOTS_AT_ONCE)]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)

    def failures(self, odds: Odds) -> float:
        """Return the share of shots that fail when ordered statistics have these odds."""
        return self._failing(self._search.decode(odds, self.syndromes)[0])

    def failures_as_suggested(self, odds: Odds) -> float:
        """Return the share of shots that fail when every qubit likelier to be flipped than not is."""
        return self._failing((odds > 0).astype(np.uint8))

    def failures_alone(self) -> float:
        """Return the share of shots that fail when ordered statistics have equal odds."""
        return self.failures(np.full((len(self.syndromes), self._code.n), -1, dtype=np.float32))

    def _failing(self, flips: Bits) -> float:
        wrong = flips @ self._code.logicals("Z").T % 2 != self.observables
        return float(wrong.any(axis=1).mean())


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Train a decoder and its control from nothing, and test them on the same shots."""
    code, test = bivariate_bicycle(config.code), FreshShots(config, seed)
    training = begin(config, seed)
    curve = []
    for _ in training.run():
        if training.step * BATCH_SIZE in points(config):
            curve.append(test.failures(test.odds(training.averaged)))
    control = begin(config, seed)
    order = torch.from_numpy(numpy_generator(seed, "scattered").permutation(code.cells))
    for network in (control.network, control.averaged):
        scatter(network, order)
    for _ in control.run():
        pass
    odds = test.odds(training.averaged)
    alone, suggested = test.failures_alone(), test.failures_as_suggested(odds)
    scattered = test.failures(test.odds(control.averaged))
    return {
        "against_alone": curve[-1] / alone,
        "against_scattered": curve[-1] / scattered,
        "against_suggested": curve[-1] / suggested,
        "change": measure_change(code, training.averaged, test, seed),
        "curve": curve,
        "alone": alone,
        "scattered": scattered,
        "suggested": suggested,
    }


def points(config: Config) -> list[int]:
    """Return the numbers of shots after which the learning curve has a point."""
    return [round(config.shots * fraction / BATCH_SIZE) * BATCH_SIZE for fraction in FRACTIONS]


def begin(config: Config, seed: int) -> Training:
    """Return a network that has learnt nothing, and all that decides how it goes on."""
    settings = Settings(
        rounds=config.rounds,
        p=(config.p, config.p),
        width=config.width,
        layers=config.layers,
        batch_size=BATCH_SIZE,
        steps=round(config.shots / BATCH_SIZE),
        learning_rate=config.learning_rate,
        warmup=WARMUP,
        average=AVERAGE,
        seed=derive_seed(seed, "training"),
    )
    return Training(bivariate_bicycle(config.code), settings)


def scatter(network: nn.Module, order: Tensor) -> None:
    """Let a network see every check in another cell, always the same one."""

    def moved(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (checks,) = inputs
        return (checks.flatten(3)[..., order].view_as(checks),)

    network.register_forward_pre_hook(moved)


def measure_change(code: BivariateBicycleCode, network: Network, test: FreshShots, seed: int) -> float:
    """Return how far odds for translated shots are from the translated odds, in units of their spread."""
    shifts = list(code.shifts())[1:]
    shift = shifts[int(numpy_generator(seed, "shift").integers(len(shifts)))]
    cells = code.shifted_cells(shift)
    checks = test.checks[:SHOTS_AT_ONCE]
    with torch.inference_mode():
        odds = network.readout(checks, "Z").numpy()
        of_moved = network.readout(checks.roll(shift, dims=(3, 4)), "Z").numpy()
    difference = of_moved[:, np.concatenate([cells, code.cells + cells])] - odds
    return float(np.sqrt((difference**2).mean() / odds.var(axis=0).mean()))


def draw(record: Record) -> "Figure":
    """Failures after more and more shots, beside those of decoders that lack something."""
    from matplotlib.figure import Figure

    from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
    from symdyn_qec.rates import clopper_pearson

    config: Config = record.config
    total = config.tested * len(record.repetitions)

    def level(values: NDArray[np.float64]) -> tuple[float, float, float]:
        rate = float(values.mean())
        low, high = clopper_pearson(round(rate * total), total)
        return rate, rate - low, high - rate

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    shots = points(config)
    curves = record.array("curve")
    for curve in curves:
        axes.plot(shots, np.maximum(curve, 0.5 / config.tested), "-", lw=0.8, color=MEASUREMENT, alpha=0.4)
    rates, below, above = zip(*[level(column) for column in curves.T], strict=True)
    axes.errorbar(
        shots,
        rates,
        yerr=[below, above],
        fmt="o-",
        color=MEASUREMENT,
        label="trained (thin: each repetition)",
    )
    for place, (name, marker, label) in enumerate(
        [
            ("suggested", "v", "its suggestions, without ordered statistics"),
            ("alone", "s", "ordered statistics, without a network"),
            ("scattered", "D", "the same network, checks in other cells"),
        ]
    ):
        rate, low, high = level(record.array(name))
        axes.axhline(rate, color=RIVAL, linestyle="--", lw=1.2)
        axes.errorbar(
            shots[-1] * (1.2 + 0.12 * place),
            rate,
            yerr=[[low], [high]],
            fmt=marker,
            color=RIVAL,
            markeredgecolor=MEASUREMENT,
            label=label,
        )
    worst = min(float(record.array(name).mean()) for name in ("suggested", "alone", "scattered"))
    axes.plot(shots[-1] * np.array([0.8, 1.25]), [worst / 2] * 2, color=THEORY, label="claimed: below this")
    axes.set(xscale="log", yscale="log", xlabel="shots learnt from", ylabel="failures per shot")
    axes.set_title(f"{config.code}, {config.rounds} cycles, p = {config.p:g}: {total} test shots in all")
    axes.set_xticks(shots, [str(number) for number in shots])
    axes.minorticks_off()
    axes.set_ylim(top=1.1)
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick > 0.5 * axes.get_ylim()[0]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(loc="lower left", fontsize=9)
    return figure


def at_most_half(name: str, of: str, rival: str) -> Claim:
    """Claim that the trained decoder fails at most half as often as another."""
    return Claim(
        name,
        formula=rf"P_\text{{trained}} \le \tfrac12 P_\text{{{of}}}",
        predict=lambda config: 0.25,
        margin=0.25,
        because="the claim is a bound: anything from nothing to one half",
        rival=Rival(rival, lambda config: 1.0),
    )


STUDY = Study(
    title="Learning curve of a decoder trained from nothing",
    paper=Paper("2504.13043", result="neural decoders of circuit noise, trained here within seconds"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"rounds": 5, "shots": 2_048, "tested": 512}},
    claims=[
        at_most_half("against_alone", "without network", "nothing is learnt from so few shots"),
        at_most_half("against_scattered", "scattered", "with as many weights any symmetry teaches as fast"),
        at_most_half("against_suggested", "as suggested", "ordered statistics add nothing"),
        Claim(
            "change",
            formula=r"\|f(P_s D) - P_s f(D)\| = 0",
            predict=lambda config: 0.0,
            margin=1e-4,
            because="rounding in float32, in units of the odds' spread",
            rival=Rival("a translated shot is a new one: two draws of one spread", lambda config: 2**0.5),
        ),
    ],
    measure=measure,
    draw=draw,
    repetitions=3,
    time_limit=900.0,  # several times what the full preset takes on a busy core
    tools=(
        "symdyn_qec.training.Training",
        "symdyn_qec.networks.torus.TorusNetwork",
        "symdyn_qec.osd.OrderedStatistics",
    ),
)
