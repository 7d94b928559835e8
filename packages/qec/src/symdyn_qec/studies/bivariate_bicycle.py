r"""How do the translations of a bivariate bicycle code act on its noisy syndrome measurement?

The code lives on a torus, and all its checks are translates of two. Neural decoders for it are built on the
hope that this symmetry survives in what a decoder sees: detectors and logical observables of a circuit in
which preparation, gates, idling and readout are all noisy. It does, exactly, with one twist. A detector moves
with its check. An observable, moved by the shift s, becomes a sum of observables and of checks, and checks
have outcomes of their own: $D \mapsto P_s D$, $o \mapsto M_s o + C_s D$ modulo 2. Without the detector term
$C_s D$ most error mechanisms are left without an image.

Set-up: syndrome extraction of depth 8 on the [[72, 12, 6]] code, or a larger one, with uniform circuit noise.
Stim's simulator counts the checks whose outcomes are undetermined on a maximally mixed state, which leaves k
logical qubits. It samples the circuit without noise: no detector may fire, though most orders of the gates
would make all of them coin flips. It lists all error mechanisms of the noisy circuit, and each is looked up
after a random translation. It samples the noisy circuit, where the readout of translated logical operators is
compared with $M_s o$ alone; the two must differ exactly as often as $C_s D$ is odd.

Refuted by a single error mechanism without an image or with another probability, by a detector that fires
without noise, or by another number of logical qubits.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import stim

from symdyn_core.estimate import proportion
from symdyn_core.random import derive_seed, numpy_generator
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_qec.automorphism import Automorphism, compare_mechanisms, dem_automorphism
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import BivariateBicycleCode, Shift, bivariate_bicycle, check_basis
from symdyn_qec.mechanisms import Mechanisms, parity_rates

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NOISELESS_SHOTS = 256


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    code: str = setting(
        "bb72", choices=("bb72", "bb90", "bb108", "bb144"), verify=("bb90",), help="The code."
    )
    basis: str = setting("Z", choices=("X", "Z"), verify=("X",), help="Basis of the memory experiment.")
    p: float = setting(0.003, valid=(0.001, 0.02), verify=(0.001, 0.01), help="Strength of circuit noise.")
    rounds: int = setting(6, valid=(2, 12), verify=(3, 9), help="Cycles of syndrome extraction.")
    shots: int = setting(8_192, valid=(4_096, 1_000_000), help="Noisy shots per repetition.")


@lru_cache(maxsize=2)
def _model(config: Config) -> tuple[BivariateBicycleCode, stim.Circuit, Mechanisms]:
    code = bivariate_bicycle(config.code)
    circuit = bb_memory(code, config.p, config.rounds, check_basis(config.basis))
    return code, circuit, Mechanisms.of(circuit.detector_error_model(flatten_loops=True))


def _symmetry(config: Config, seed: int) -> tuple[Shift, Automorphism]:
    """Draw the repetition's translation, never the identity, and return how it acts."""
    code, circuit, _ = _model(config)
    shifts = list(code.shifts())[1:]
    shift = shifts[int(numpy_generator(seed, "shift").integers(len(shifts)))]
    return shift, dem_automorphism(code, circuit, shift, check_basis(config.basis))


def predict_logical_qubits(config: Config) -> float:
    """Return k from the ranks of the check matrices."""
    return float(bivariate_bicycle(config.code).k)


def predict_detector_term(config: Config, seed: int) -> float:
    """Return the probability that an observable's detector term is odd, averaged over observables."""
    return float(parity_rates(_model(config)[2], _symmetry(config, seed)[1].detector_term).mean())


def _laws_differ(config: Config, seed: int) -> "NDArray[np.bool_]":
    """Return for each mechanism whether the law without detector term gives it another image."""
    term = _symmetry(config, seed)[1].detector_term
    return np.asarray(_model(config)[2].parities(term).any(axis=1))


def predict_unmatched_if_linear(config: Config, seed: int) -> float:
    """Return the share of mechanisms on which the two laws disagree."""
    return float(_laws_differ(config, seed).mean())


def predict_change_if_linear(config: Config, seed: int) -> float:
    """Return the largest probability among those mechanisms, in units of p."""
    return float(_model(config)[2].probabilities[_laws_differ(config, seed)].max()) / config.p


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Draw a translation and hold it against the circuit."""
    code, _, mechanisms = _model(config)
    shift, symmetry = _symmetry(config, seed)
    exact = compare_mechanisms(mechanisms, symmetry)
    linear = compare_mechanisms(mechanisms, symmetry.without_detector_term())
    return {
        "shift": list(shift),
        "logical_qubits": measure_logical_qubits(code, seed),
        "noiseless_flips": measure_noiseless_flips(config, seed),
        "unmatched": exact.unmatched / exact.mechanisms,
        "probability_change": exact.max_difference / config.p,
        "unmatched_if_linear": linear.unmatched / linear.mechanisms,
        "detector_term": measure_detector_term(config, seed),
    }


def measure_logical_qubits(code: BivariateBicycleCode, seed: int) -> float:
    """Measure all checks on one half of n Bell pairs: each random outcome fixes a qubit, k are left."""
    simulator = stim.TableauSimulator(seed=derive_seed(seed, "tableau"))
    simulator.h(*range(code.n))
    simulator.cx(*np.stack([np.arange(code.n), code.n + np.arange(code.n)], axis=1).ravel().tolist())
    checks = [(letter, row) for letter, rows in (("X", code.hx), ("Z", code.hz)) for row in rows]
    undetermined = 0
    for index in numpy_generator(seed, "order").permutation(len(checks)):
        letter, row = checks[index]
        operator = stim.PauliString(2 * code.n)
        for qubit in np.flatnonzero(row):
            operator[int(qubit)] = letter
        undetermined += simulator.peek_observable_expectation(operator) == 0
        simulator.measure_observable(operator)
    return float(code.n - undetermined)


def measure_noiseless_flips(config: Config, seed: int) -> float:
    """Return the share of detectors that fire in a circuit without noise."""
    circuit = bb_memory(_model(config)[0], 0.0, config.rounds, check_basis(config.basis))
    sampler = circuit.compile_sampler(seed=derive_seed(seed, "noiseless"))
    # Without a reference sample: compared with one, flips of a random detector could hide.
    flips = circuit.compile_m2d_converter(skip_reference_sample=True).convert(
        measurements=sampler.sample(NOISELESS_SHOTS), append_observables=False
    )
    return float(flips.mean())


def measure_detector_term(config: Config, seed: int) -> float:
    """Return the share of shots and operators where the readout of a translated operator differs from M o."""
    code, circuit, _ = _model(config)
    shift, symmetry = _symmetry(config, seed)
    sampler = circuit.compile_sampler(seed=derive_seed(seed, "noisy"))
    record = sampler.sample(config.shots)
    _, observables = circuit.compile_m2d_converter(skip_reference_sample=True).convert(
        measurements=record, separate_observables=True
    )
    moved = code.translate(code.logicals(check_basis(config.basis)), (-shift[0], -shift[1]))
    readout = record[:, -code.n :].astype(np.uint8)
    differs = (readout @ moved.T + observables.astype(np.uint8) @ symmetry.observable_map.T) % 2
    return float(differs.mean())


def draw(record: Record) -> "Figure":
    """Both laws on the mechanisms (left) and on samples (right), for the translation of each repetition."""
    from matplotlib.figure import Figure

    from symdyn_core.plots import MEASUREMENT, RIVAL, THEORY
    from symdyn_core.study.record import repetition_seed

    config, where = record.config, np.arange(len(record.repetitions))
    seeds = [repetition_seed(record.seed, record.study.id, k) for k in record.repetitions]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)

    left.axhline(0, color=THEORY, label="theory: $M_s o + C_s D$")
    rival = [predict_unmatched_if_linear(config, seed) for seed in seeds]
    left.plot(where, rival, "--", color=RIVAL, label="theory, were $M_s o$ the law")
    left.plot(where, record.array("unmatched"), "o", color=MEASUREMENT, label="measured with $M_s o + C_s D$")
    left.plot(
        where,
        record.array("unmatched_if_linear"),
        "s",
        color=MEASUREMENT,
        fillstyle="none",
        label="measured with $M_s o$ alone",
    )
    left.set_title("mechanisms without image")
    left.set_ylabel("fraction")
    left.set_yticks(np.linspace(0, 1, 6))

    theory = [predict_detector_term(config, seed) for seed in seeds]
    right.step(where, theory, where="mid", color=THEORY, label="theory: $C_s D$ odd")
    right.axhline(0, color=RIVAL, linestyle="--", label="no detector term")
    measured = record.array("detector_term")
    intervals = [proportion([np.arange(config.shots) < round(value * config.shots)]) for value in measured]
    reach = np.array(
        [[value - i.low, i.high - value] for value, i in zip(measured, intervals, strict=True)]
    ).T
    right.errorbar(where, measured, yerr=reach, fmt="o", color=MEASUREMENT, label="sampled, 95 % interval")
    right.set_title("readout differs from $M_s o$")

    for axes in (left, right):
        axes.set_xticks(where, ["({}, {})".format(*shift) for shift in record.values("shift")], rotation=45)
        axes.set_xlabel("translation s (cells)")
        axes.set_ylim(-0.05, 1.35 if axes is left else 0.75)
        axes.legend(loc="upper left", fontsize=8)
    return figure


LINEAR = "observables are carried to sums of observables, without a detector term"

STUDY = Study(
    title="Exact symmetry of bivariate bicycle circuits",
    paper=Paper(
        "2504.13043",
        result="the code's parameters, and the translations that a decoder of its circuit may rely on",
    ),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"code": "bb144", "rounds": 12, "shots": 65_536}},
    claims=[
        Claim(
            "logical_qubits",
            formula=r"k = n - \operatorname{rank} H_X - \operatorname{rank} H_Z",
            predict=predict_logical_qubits,
            margin=0.0,
            because="a count",
            rival=Rival("every check is independent of the others", lambda config: 0.0),
        ),
        Claim(
            "noiseless_flips",
            formula=r"D = 0 \text{ at } p = 0",
            predict=lambda config: 0.0,
            margin=0.0,
            because="a count",
            rival=Rival("X and Z checks of the same ticks randomise each other", lambda config: 0.5),
        ),
        Claim(
            "unmatched",
            formula=r"(D, o) \text{ a mechanism} \Rightarrow (P_s D,\, M_s o + C_s D) \text{ a mechanism}",
            predict=lambda config: 0.0,
            margin=0.0,
            because="a count",
            rival=Rival(LINEAR, predict_unmatched_if_linear),
        ),
        Claim(
            "probability_change",
            formula=r"\max |p(P_s D,\, M_s o + C_s D) - p(D, o)| / p = 0",
            predict=lambda config: 0.0,
            margin=1e-9,
            because="rounding of the probabilities of merged mechanisms",
            rival=Rival(LINEAR, predict_change_if_linear),
        ),
        Claim(
            "detector_term",
            formula=r"P(\text{readout of } T_{-s} L \ne M_s o) = P(C_s D \text{ odd})"
            r" = \tfrac12 [1 - \prod_{i:\, C_s D_i \text{ odd}} (1 - 2 p_i)]",
            predict=predict_detector_term,
            margin=0.01,
            because="sampling: more than six standard errors at the smallest number of shots",
            rival=Rival(LINEAR, lambda config: 0.0),
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_qec.codes.BivariateBicycleCode",
        "symdyn_qec.circuits.bb_memory",
        "symdyn_qec.automorphism.dem_automorphism",
        "symdyn_qec.automorphism.verify_equivariance",
    ),
)
