r"""Which labels can a decoder learn from, when errors are defined only up to stabilisers?

A simulator can tell a neural decoder more than whether a shot failed: which data qubit flipped in which cycle
of syndrome extraction. These *increments* make decoding a local problem. There are two traps, and neither
shows in detectors or observables. A fault on an ancilla runs through the rest of its check and leaves up to
six flips that are two or three once multiplied by the check: a network cannot predict so arbitrary a choice.
And what a fault has left on an ancilla, unless it is cleared, spreads a whole check in every later cycle.

Theory reads the circuit. Each fault of a cycle is carried through the gates that follow it: it leaves a set
of flips $s$ with a probability $P_s$. Without gauge fixing a qubit is flipped with the probability that an
odd number of the faults reach it, $\tfrac12[1-\prod_c(1-2r_c)]$ with $r_c$ that of noise channel c. After
multiplication by checks a set counts with the least weight $w(s)$ in its class, and to second order

$$n \cdot \text{rate} = \sum_s P_s\, w(s) + \tfrac12 \sum_{s, s'} P_s P_{s'} [w(s + s') - w(s) - w(s')],$$

pairs of the same channel excluded, as only one of its faults happens. Ancillas that are not cleared add to
cycle t a check with the probability that an odd number of faults has met its ancilla in t cycles.

Set-up: memory of the [[72, 12, 6]] code, or a larger one, under uniform circuit noise. The labels of the
sampler that training uses, and Pauli frames of the circuit as the simulator gives them, with ancillas cleared
and not.

Refuted if any of the three kinds of labels is denser or sparser than that, if labels get denser from cycle to
cycle although ancillas are cleared, or by one shot whose labels, net of all cycles, do not explain all
checks, $H e = \bigoplus_t D_t$.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_core.random import derive_seed
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import Basis, BivariateBicycleCode, bivariate_bicycle, check_basis
from symdyn_qec.increments import IncrementSampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rates = NDArray[np.float64]
Bits = NDArray[np.uint8]

TICKS_PER_CYCLE = 8
# Channels that leave each of their Pauli operators but the identity equally often.
DEPOLARIZING = {"DEPOLARIZE1": 1, "DEPOLARIZE2": 2}
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    code: str = setting("bb72", choices=("bb72", "bb90", "bb108"), verify=("bb90",), help="The code.")
    basis: str = setting("Z", choices=("X", "Z"), verify=("X",), help="Basis of the memory experiment.")
    p: float = setting(0.003, valid=(0.001, 0.005), verify=(0.001, 0.005), help="Strength of circuit noise.")
    rounds: int = setting(6, valid=(3, 12), verify=(4, 9), help="Cycles of syndrome extraction.")
    shots: int = setting(32_768, valid=(16_384, 1_000_000), help="Shots per repetition, a multiple of 256.")


# --- measurement --------------------------------------------------------------------------------------------


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Sample labels of all three kinds; rates are per data qubit, in the cycles after the first."""
    labels, unexplained = measure_labels(config, seed)
    cleared = measure_frames(config, derive_seed(seed, "cleared"), clear=True)
    uncleared = measure_frames(config, derive_seed(seed, "uncleared"), clear=False)
    return {
        "label_rate": float(labels[1:].mean()),
        "frame_rate": float(cleared[1:].mean()),
        "gain": float(labels[1:].mean() / cleared[1:].mean()),
        "growth": float(labels[-1] / labels[1]),
        "uncleared_rate": float(uncleared[-1]),
        "unexplained": unexplained,
        "labels": labels.tolist(),
        "cleared": cleared.tolist(),
        "uncleared": uncleared.tolist(),
    }


def measure_labels(config: Config, seed: int) -> tuple[Rates, float]:
    """Return the rates of training labels in each cycle, and the share of shots that they do not explain."""
    basis = check_basis(config.basis)
    code, sector = bivariate_bicycle(config.code), 0 if basis == "Z" else 1
    shots = IncrementSampler(code, config.rounds, basis).sample(config.p, config.shots, seed)
    every = np.unpackbits(shots.flips, axis=1, bitorder="little", count=2 * (config.rounds + 1) * code.n)
    flips = every.reshape(config.shots, 2, config.rounds + 1, code.n)[:, sector]
    coordinates = bb_memory(code, config.p, config.rounds, basis).get_detector_coordinates()
    of_check: list[list[int]] = [[] for _ in range(code.cells)]
    for index, (i, j, _, kind) in coordinates.items():
        if kind == 1 - sector:
            of_check[int(i) * code.m + int(j)].append(index)
    detectors = np.unpackbits(shots.detectors, axis=1, bitorder="little", count=len(coordinates))
    fired = np.bitwise_xor.reduce(detectors[:, of_check], axis=2)
    explained = np.bitwise_xor.reduce(flips, axis=1) @ code.checks(basis).T % 2
    rates: Rates = flips[:, :-1].mean(axis=(0, 2))
    return rates, float((fired != explained).any(axis=1).mean())


def measure_frames(config: Config, seed: int, clear: bool) -> Rates:
    """Return the rates at which data qubits change their Pauli frame in each cycle."""
    code, basis = bivariate_bicycle(config.code), check_basis(config.basis)
    simulator = stim.FlipSimulator(
        batch_size=config.shots, disable_stabilizer_randomization=True, num_qubits=2 * code.n, seed=seed
    )
    # A preparation clears only the frame that does not commute with it. The noise of preparations stays.
    clearing = stim.Circuit()
    clearing.append("R", range(code.n, code.n + code.cells))
    clearing.append("RX", range(code.n + code.cells, 2 * code.n))
    before, rates = np.zeros((code.n, -(-config.shots // 8)), dtype=np.uint8), []
    for cycle in cycles(bb_memory(code, config.p, config.rounds, basis)):
        simulator.do(cycle)
        xs, zs, _, _, _ = simulator.to_numpy(bit_packed=True, output_xs=True, output_zs=True)
        now = (xs if basis == "Z" else zs)[: code.n]
        rates.append(np.bitwise_count(now ^ before).sum() / (code.n * config.shots))
        before = now.copy()
        if clear:
            simulator.do(clearing)
    return np.array(rates)


def cycles(circuit: stim.Circuit) -> Iterator[stim.Circuit]:
    """Yield the cycles of a memory experiment, the first one with the preparation, without the readout."""
    part, ticks = stim.Circuit(), -1
    for instruction in circuit.flattened():
        part.append(instruction)
        if instruction.name == "TICK":
            ticks += 1
            if ticks and ticks % TICKS_PER_CYCLE == 0:
                yield part
                part = stim.Circuit()


# --- theory -------------------------------------------------------------------------------------------------


class Channel(NamedTuple):
    """What one noise channel leaves at the end of its cycle, one alternative in a row.

    Fields:
        flips: of data qubits, bits, shape ``(alternatives, n)``.
        ancillas: flips left on ancillas that spread them, bits, shape ``(alternatives, cells)``.
        probabilities: shape ``(alternatives,)``.
    """

    flips: Bits
    ancillas: Bits
    probabilities: Rates


@lru_cache(maxsize=8)
def channels(name: str, basis: Basis, p: float) -> tuple[Channel, ...]:
    """Carry every fault of a cycle through the gates after it."""
    code = bivariate_bicycle(name)
    letter = "X" if basis == "Z" else "Z"  # the Pauli operator that flips what is read out
    spreading = slice(code.n, code.n + code.cells) if basis == "Z" else slice(code.n + code.cells, 2 * code.n)
    _, cycle, *_ = cycles(bb_memory(code, p, rounds=2, basis=basis))
    after, found = stim.Circuit(), []
    for instruction in reversed(cycle):
        if instruction.name == "CX":
            after.insert(0, instruction)
        elif instruction.name in DEPOLARIZING or instruction.name == f"{letter}_ERROR":
            for targets in instruction.target_groups():
                places = [target.value for target in targets]
                found.append(_channel(code, letter, places, instruction, after, spreading))
    return tuple(found)


def _channel(
    code: BivariateBicycleCode,
    letter: str,
    places: list[int],
    instruction: stim.CircuitInstruction,
    after: stim.Circuit,
    spreading: slice,
) -> Channel:
    """Return the alternatives of one channel, those with the same flips of the sector taken together."""
    (p,), qubits = instruction.gate_args_copy(), len(places)
    # Of the 4^q - 1 operators, 2^q have each pattern of flips.
    each = p * 2**qubits / (4**qubits - 1) if instruction.name in DEPOLARIZING else p
    rows = []
    for pattern in range(1, 2**qubits):
        fault = stim.PauliString(2 * code.n)
        for index, place in enumerate(places):
            if pattern >> index & 1:
                fault[place] = letter
        xs, zs = fault.after(after).to_numpy()
        rows.append(xs if letter == "X" else zs)
    left = np.array(rows, dtype=np.uint8)
    return Channel(left[:, : code.n], left[:, spreading], np.full(len(rows), each))


def odd(probabilities: Rates) -> float:
    """Return the probability that an odd number of independent events happen."""
    return float((1 - np.prod(1 - 2 * probabilities)) / 2)


@lru_cache(maxsize=8)
def _predict_frame_rate(name: str, basis: Basis, p: float) -> float:
    reached = np.array([channel.probabilities @ channel.flips for channel in channels(name, basis, p)])
    return float(np.mean([odd(qubit) for qubit in reached.T]))


def predict_frame_rate(config: Config) -> float:
    """Return how often a data qubit flips in a cycle, gauge not fixed, ancillas cleared. Exact."""
    return _predict_frame_rate(config.code, check_basis(config.basis), config.p)


def predict_uncleared_rates(config: Config) -> Rates:
    """Return the same for each cycle where ancillas are not cleared: three checks spread to a qubit.

    Cycle 0 is left out, as preparation belongs to it.
    """
    name, basis = config.code, check_basis(config.basis)
    every = channels(name, basis, config.p)
    met = np.array([channel.probabilities @ channel.ancillas for channel in every])
    direct = np.array([channel.probabilities @ channel.flips for channel in every])
    code = bivariate_bicycle(name)
    spread = code.checks("X" if basis == "Z" else "Z").astype(bool)

    def rate(t: int, qubit: int) -> float:
        return odd(np.append(np.tile(met[:, spread[:, qubit]].ravel(), t), direct[:, qubit]))

    # A left qubit and a right one; the others are their translates.
    return np.array([(rate(t, 0) + rate(t, code.cells)) / 2 for t in range(1, config.rounds)])


def predict_label_rate(config: Config) -> float:
    """Return how often a data qubit flips in a cycle after multiplication by checks, to second order."""
    return _predict_label_rate(config.code, check_basis(config.basis), config.p)


@lru_cache(maxsize=8)
def _predict_label_rate(name: str, basis: Basis, p: float) -> float:
    code, every = bivariate_bicycle(name), channels(name, basis, p)
    weigh = Lightest(code.checks("X" if basis == "Z" else "Z"))
    chance: defaultdict[bytes, float] = defaultdict(float)
    for channel in every:
        for row, probability in zip(channel.flips, channel.probabilities, strict=True):
            chance[row.tobytes()] += float(probability)
    sets = np.array([np.frombuffer(key, dtype=np.uint8) for key in chance])
    probability = np.array(list(chance.values()))
    alone = weigh(sets)
    total = float(probability @ alone)
    # Translations carry pairs to pairs of the same weight: one first partner of each orbit is enough.
    orbits: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, row in enumerate(sets):
        orbits[min(moved.tobytes() for moved in code.translates(row))].append(index)
    for members in orbits.values():
        first = members[0]
        change = weigh(sets ^ sets[first]) - alone - alone[first]
        total += len(members) * float(probability[first] * (probability @ change)) / 2
    for channel in every:
        own = weigh(channel.flips)
        both = weigh((channel.flips[:, None] ^ channel.flips).reshape(-1, code.n)).reshape(len(own), -1)
        total -= float(channel.probabilities @ (both - own - own[:, None]) @ channel.probabilities) / 2
    return total / code.n


class Lightest:
    """Least weight of a set of flips up to products of at most two checks."""

    def __init__(self, checks: Bits) -> None:
        pairs = [checks[a] ^ checks[b] for a, b in combinations(range(len(checks)), 2)]
        self._products = np.vstack([checks, np.array(pairs)]).astype(np.float32)
        self._weights = self._products.sum(axis=1)

    def __call__(self, sets: Bits) -> Rates:
        """Return the weights of sets, bits, shape ``(sets, n)``."""
        found = np.empty(len(sets))
        for start in range(0, len(sets), ROWS_AT_ONCE):
            part = sets[start : start + ROWS_AT_ONCE].astype(np.float32)
            best = (self._weights - 2 * (part @ self._products.T)).min(axis=1)
            found[start : start + ROWS_AT_ONCE] = part.sum(axis=1) + np.minimum(best, 0)
        return found


def predict_readout_errors(config: Config) -> float:
    """Return the share of shots with an error of the readout, which the label of the last cycle holds."""
    return 1 - (1 - config.p) ** bivariate_bicycle(config.code).n


# --- figure -------------------------------------------------------------------------------------------------


def draw(record: Record) -> "Figure":
    """Rates of the three kinds of labels in each cycle, as predicted and as measured."""
    from matplotlib.figure import Figure

    from symdyn_core.estimate import mean
    from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY

    config: Config = record.config
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    wide, near = figure.subplots(1, 2)
    where = np.arange(1, config.rounds)
    fixed, frame = predict_label_rate(config), predict_frame_rate(config)
    kinds = [
        ("uncleared", "s", "none", "ancillas not cleared"),
        ("cleared", "D", "none", "ancillas cleared"),
        ("labels", "o", "full", "and gauge fixed: the labels"),
    ]
    for axes in (wide, near):
        for level in (frame, fixed):
            axes.hlines(level, 0.8, config.rounds - 0.8, color=THEORY)
        for name, marker, fill, label in kinds[axes is near :]:
            found = [mean(column) for column in record.array(name)[:, 1:].T]
            axes.errorbar(
                where,
                [one.value for one in found],
                yerr=[[one.value - one.low for one in found], [one.high - one.value for one in found]],
                fmt=marker,
                fillstyle=fill,
                color=MEASUREMENT,
                label=label,
            )
        axes.set_xticks(where)
        axes.set_xlabel("cycle")
    wide.plot(where, predict_uncleared_rates(config), "--", color=RIVAL, label="theory, ancillas not cleared")
    wide.plot([], [], color=THEORY, label="theory, ancillas cleared")
    wide.set(ylabel="flips per data qubit and cycle", title="ancillas spread what is left on them")
    wide.set_ylim(0, 1.75 * wide.get_ylim()[1])
    wide.legend(loc="upper left", fontsize=9)
    near.set_title(f"multiplied by checks: {fixed / frame:.2f} of the flips")
    near.set_ylim(0.9 * fixed, 1.1 * frame)
    near.text(0.97, (frame - 0.9 * fixed) / (1.1 * frame - 0.9 * fixed) - 0.04, "as simulated", ha="right",
              va="top", transform=near.transAxes)  # fmt: skip
    return figure


SAMPLING = "more than six standard errors of the sample"
UNCLEARED = "ancillas are not cleared, and spread whole checks"

STUDY = Study(
    title="Labels of circuit noise up to stabilisers",
    paper=Paper("2504.13043", result="dense labels for decoders of circuit noise, and how light they can be"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"shots": 262_144}},
    claims=[
        Claim(
            "label_rate",
            formula=r"\frac1n\Big(\sum_s P_s w(s) + \tfrac12 \sum_{s, s'} P_s P_{s'}"
            r" [w(s + s') - w(s) - w(s')]\Big)",
            predict=predict_label_rate,
            margin=0.01,
            relative=True,
            because="sets of three faults, and a rule that goes from check to check; each about 0.2 per cent",
            rival=Rival("no gauge is fixed", predict_frame_rate),
        ),
        Claim(
            "frame_rate",
            formula=r"\tfrac12 [1 - \prod_c (1 - 2 r_c)]",
            predict=predict_frame_rate,
            margin=0.02,
            relative=True,
            because=SAMPLING,
            rival=Rival(UNCLEARED, lambda config: float(predict_uncleared_rates(config).mean())),
        ),
        Claim(
            "gain",
            formula=r"\text{labels with gauge fixed} / \text{without}",
            predict=lambda config: predict_label_rate(config) / predict_frame_rate(config),
            margin=0.02,
            because=SAMPLING,
            rival=Rival("multiplication by checks makes nothing lighter", lambda config: 1.0),
        ),
        Claim(
            "growth",
            formula=r"\text{rate in the last cycle} / \text{in the second} = 1",
            predict=lambda config: 1.0,
            margin=0.03,
            because=SAMPLING,
            rival=Rival(
                UNCLEARED,
                lambda config: float(
                    predict_uncleared_rates(config)[-1] / predict_uncleared_rates(config)[0]
                ),
            ),
        ),
        Claim(
            "uncleared_rate",
            formula=r"\tfrac12 [1 - \prod_c (1 - 2 r_c) \prod_{c'} (1 - 2 r_{c'})^t],"
            r"\ c' \text{ on the ancillas of three checks}, t = R - 1",
            predict=lambda config: float(predict_uncleared_rates(config)[-1]),
            margin=0.03,
            relative=True,
            because=SAMPLING,
            rival=Rival("what is left on ancillas stays there", predict_frame_rate),
        ),
        Claim(
            "unexplained",
            formula=r"H e = \bigoplus_t D_t \text{ on every shot}",
            predict=lambda config: 0.0,
            margin=0.0,
            because="a count",
            rival=Rival(
                "labels end with the last cycle, without errors of the readout", predict_readout_errors
            ),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_qec.increments.IncrementSampler",
        "symdyn_qec.increments.fix_gauge",
        "symdyn_qec.circuits.bb_memory",
    ),
)
