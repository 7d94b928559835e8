r"""Does a decoder know when it is wrong?

A network gives log odds of a flip for each data qubit. What it leaves in doubt and what had to be changed
to explain the checks are two numbers per shot; scaled on shots whose answers were known, they state a
probability that the answer is right. If it is one, then of many fresh shots as many fail as their stated
probabilities of failure add up to, and those that are stated to be doubtful fail as often as stated.

Set-up: memory of the [[72, 12, 6]] code, 6 cycles, with the small network of the package. Theory never sees
a truth: it decodes shots of its own and averages what the confidences say. The measurement decodes other
shots and counts failures, over all and among the shots stated to be right with less than nine in ten.

Refuted if more or fewer shots fail than stated. The rival takes the network at its word: the probability of
its answer, were all qubits independent.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from symdyn_core.estimate import proportion
from symdyn_core.random import derive_seed
from symdyn_core.study import Claim, Paper, Record, Rival, Study, setting
from symdyn_qec.calibration import draw_reliability, reliability
from symdyn_qec.circuits import memory_circuit
from symdyn_qec.codes import check_basis
from symdyn_qec.decoder import CompiledSymdynDecoder, Prediction, SymdynDecoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOUBTFUL = 0.9
SHOTS_OF_THEORY = 4_000


@dataclass(frozen=True)
class Config:
    """Settings of the study; code and cycles are those of the shipped checkpoint."""

    p: float = setting(
        0.005, valid=(0.004, 0.006), verify=(0.0045, 0.0055), help="Strength of circuit noise."
    )
    basis: str = setting("Z", choices=("X", "Z"), verify=("X",), help="Basis of the memory experiment.")
    shots: int = setting(600, valid=(600, 1_000_000), help="Shots per repetition.")


@lru_cache(maxsize=2)
def _decoder(p: float, basis: str) -> tuple[Any, CompiledSymdynDecoder]:
    circuit = memory_circuit("bb72", p=p, rounds=6, basis=check_basis(basis))
    decoder = SymdynDecoder(fast=True).compile_decoder_for_dem(dem=circuit.detector_error_model())
    return circuit, decoder


@lru_cache(maxsize=2)
def _stated(p: float, basis: str) -> Prediction:
    """Decode shots of theory's own; their truth is never sampled."""
    circuit, decoder = _decoder(p, basis)
    seed = derive_seed(0, "confidence of theory", basis)
    return decoder.predict(circuit.compile_detector_sampler(seed=seed).sample(SHOTS_OF_THEORY))


def predict_failures(config: Config) -> float:
    """Return the mean stated probability of failure."""
    return float(1 - _stated(config.p, config.basis).confidence.mean())


def predict_doubtful_failures(config: Config) -> float:
    """Return the mean stated probability of failure of the doubtful shots."""
    confidence = _stated(config.p, config.basis).confidence
    return float(1 - confidence[confidence < DOUBTFUL].mean())


def _at_its_word(config: Config) -> "np.ndarray[Any, np.dtype[np.float64]]":
    stated = _stated(config.p, config.basis)
    return 1 - np.exp(-stated.doubt - stated.weight)


def predict_failures_at_its_word(config: Config) -> float:
    """Return the rival's mean probability of failure."""
    return float(_at_its_word(config).mean())


def predict_doubtful_failures_at_its_word(config: Config) -> float:
    """Return the rival's mean probability of failure of the doubtful shots."""
    doubtful = _stated(config.p, config.basis).confidence < DOUBTFUL
    return float(_at_its_word(config)[doubtful].mean())


def measure(config: Config, seed: int) -> dict[str, Any]:
    """Decode fresh shots; outcomes are lists of zeros and ones, a shot each."""
    circuit, decoder = _decoder(config.p, config.basis)
    sampler = circuit.compile_detector_sampler(seed=derive_seed(seed, "shots"))
    detectors, observables = sampler.sample(config.shots, separate_observables=True)
    found = decoder.predict(detectors)
    wrong = (found.observables != observables).any(axis=1).astype(int)
    return {
        "failures": wrong.tolist(),
        "doubtful_failures": wrong[found.confidence < DOUBTFUL].tolist(),
        "confidence": found.confidence.round(6).tolist(),
    }


def draw(record: Record) -> "Figure":
    """Share of failures against what was stated, in bins of equal stated failures."""
    confidence, wrong = (np.concatenate(record.values(name)) for name in ("confidence", "failures"))
    figure = draw_reliability(reliability(confidence, wrong == 0))
    config: Config = record.config
    figure.axes[0].set_title(f"bb72, {config.basis}, p = {config.p:g}, {len(wrong)} shots", fontsize=10)
    return figure


AT_ITS_WORD = "the network at its word: independent qubits"

STUDY = Study(
    title="A decoder that knows when it is wrong",
    paper=Paper("2504.13043", result="a neural decoder's output as a probability; its calibration is ours"),
    version=1,
    config=Config,
    presets={"quick": {}, "full": {"shots": 4_000}},
    claims=[
        Claim(
            "failures",
            formula=r"P(\text{wrong}) = E[1 - \text{confidence}]",
            predict=predict_failures,
            margin=0.04,
            because="three numbers are fitted to all strengths at once; theory samples too",
            rival=Rival(AT_ITS_WORD, predict_failures_at_its_word),
            estimator=proportion,
        ),
        Claim(
            "doubtful_failures",
            formula=r"P(\text{wrong} \mid \text{confidence} < 0.9) = E[1 - \text{confidence} \mid < 0.9]",
            predict=predict_doubtful_failures,
            margin=0.1,
            because="as above; six standard errors of two samples of a fifth of the shots",
            rival=Rival(AT_ITS_WORD, predict_doubtful_failures_at_its_word),
            estimator=proportion,
        ),
    ],
    measure=measure,
    draw=draw,
    tools=(
        "symdyn_qec.decoder.SymdynDecoder",
        "symdyn_qec.calibration.Calibration",
        "symdyn_qec.escalation.EscalatingDecoder",
    ),
)
