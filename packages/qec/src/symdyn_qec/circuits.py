r"""Memory experiments as Stim circuits, by the name of their code, their noise or their file.

Every detector has coordinates: ``(x, y, t, kind)`` in bicycle, toric and other CSS codes, kind being 0 for X
checks and 1 for Z checks, and ``(x, y, t)`` or ``(x, t)`` in surface, colour and repetition codes, which Stim
generates. Time t counts rounds.

Uniform circuit noise is that of the literature on each code: a two-qubit depolarising channel after every
CNOT, a flip after every preparation and before every measurement, and a one-qubit depolarising channel on
idle data qubits, in every tick of bicycle codes and once a round, on all data qubits, in Stim's circuits. All
else is put in by :func:`~symdyn_qec.noise_models.with_noise`.
"""

import stim

from symdyn_core.errors import InputError, unknown
from symdyn_qec.bicycle_circuit import bb_memory, torus_circuit
from symdyn_qec.codes import NAMED, Basis, BivariateBicycleCode, CSSCode, bivariate_bicycle, check_basis
from symdyn_qec.codes import toric as toric_code
from symdyn_qec.css_circuit import css_circuit
from symdyn_qec.memory import MAX_P, MAX_ROUNDS, check_noise, check_rounds
from symdyn_qec.noise_models import BIAS, Noise, NoiseModel, noise_model, with_noise
from symdyn_qec.reading import check_model, error_model, read_circuit, read_dem

__all__ = [
    "CODES",
    "MAX_DISTANCE",
    "MAX_P",
    "MAX_ROUNDS",
    "SCALABLE",
    "bb_memory",
    "check_model",
    "check_noise",
    "check_rounds",
    "error_model",
    "memory_circuit",
    "read_circuit",
    "read_dem",
    "repetition_memory",
    "surface_memory",
    "with_noise",
]

MAX_DISTANCE = 1000

# What Stim generates: the task, with the basis to fill in, and the bases there are.
GENERATED: dict[str, tuple[str, tuple[Basis, ...]]] = {
    "surface": ("surface_code:rotated_memory_{}", ("X", "Z")),
    "surface-unrotated": ("surface_code:unrotated_memory_{}", ("X", "Z")),
    "repetition": ("repetition_code:memory", ("Z",)),
    "color": ("color_code:memory_xyz", ("Z",)),
}

# The codes that a name and a distance determine, and those that the name alone determines.
SCALABLE = (*GENERATED, "toric")
CODES = (*SCALABLE, *NAMED)


def surface_memory(distance: int, rounds: int, p: float, basis: Basis = "Z") -> stim.Circuit:
    """Return Stim's memory experiment of the rotated surface code under uniform circuit noise.

    Args:
        distance: at least 2.
        rounds: at least 1.
        p: noise strength in [0, 0.75].
        basis: the logical operator that is kept, "X" or "Z".

    >>> surface_memory(distance=3, rounds=3, p=0.001).num_detectors
    24
    """
    return memory_circuit("surface", distance=distance, rounds=rounds, p=p, basis=basis)


def repetition_memory(distance: int, rounds: int, p: float) -> stim.Circuit:
    """Return Stim's memory experiment of the repetition code under uniform circuit noise.

    Args: as for :func:`surface_memory`; it protects against bit flips only.

    >>> repetition_memory(distance=3, rounds=3, p=0.001).num_detectors
    8
    """
    return memory_circuit("repetition", distance=distance, rounds=rounds, p=p)


def memory_circuit(
    code: str | CSSCode,
    *,
    p: float,
    rounds: int,
    distance: int | None = None,
    basis: Basis = "Z",
    noise: Noise = "uniform",
    bias: float = BIAS,
) -> stim.Circuit:
    """Return the memory experiment of a code.

    Args:
        code: surface (rotated), surface-unrotated, repetition, color, toric, or a bivariate bicycle code:
            bb72, bb90, bb108, bb144, bb288; or any :class:`~symdyn_qec.codes.CSSCode`.
        p: noise strength in [0, 0.75], in [0, 0.15] for si1000.
        rounds: at least 1; at least 2 for color.
        distance: needed by the first five, refused by the others; odd for color.
        basis: "X" or "Z"; repetition and color keep only "Z".
        noise: uniform, si1000 or biased, see :mod:`symdyn_qec.noise_models`.
        bias: of the biased noise: how much likelier Z is than X and Y together.

    Raises:
        InputError: an unknown name or a value out of range.

    >>> memory_circuit("repetition", distance=5, rounds=2, p=0.01).num_qubits
    9
    >>> [memory_circuit(CSSCode([[1] * 4], [[1] * 4]), p=0.01, rounds=2, basis=b).num_detectors for b in "XZ"]
    [4, 4]
    """
    check_basis(basis)
    if isinstance(code, str) and code not in CODES:
        raise InputError(unknown("code", code, CODES))
    model = noise_model(noise, p, bias)
    check_rounds(rounds)
    if not isinstance(code, str):
        if distance is not None:
            raise InputError(f"a code given by its checks has a fixed distance; leave it out, got {distance}")
        return _of_checks(code, rounds, basis, model)
    if code in NAMED:
        if distance is not None:
            raise InputError(f"code {code} has a fixed distance; leave it out, got {distance}")
        return _of_checks(bivariate_bicycle(code), rounds, basis, model)
    if distance is None:
        raise InputError(f"code {code} needs a distance")
    if distance < 2:
        raise InputError(f"distance must be at least 2, got {distance}")
    if distance > MAX_DISTANCE:
        raise InputError(f"distance must be at most {MAX_DISTANCE}, got {distance}")
    if code == "toric":
        return _of_checks(toric_code(distance), rounds, basis, model)
    return _generated(code, distance, rounds, basis, model)


def _of_checks(code: CSSCode, rounds: int, basis: Basis, model: NoiseModel) -> stim.Circuit:
    if code.k == 0:
        raise InputError(f"code must have logical qubits to keep, got k=0 on n={code.n} qubits")
    if not isinstance(code, BivariateBicycleCode):
        return with_noise(css_circuit(code, rounds, basis), model)
    if len(code.a) != 3 or len(code.b) != 3:
        return with_noise(torus_circuit(code, rounds, basis), model)
    if model == NoiseModel.uniform(model.two_qubit):
        return bb_memory(code, model.two_qubit, rounds, basis)
    return with_noise(bb_memory(code, 0.0, rounds, basis).without_noise(), model)


def _generated(code: str, distance: int, rounds: int, basis: Basis, model: NoiseModel) -> stim.Circuit:
    task, bases = GENERATED[code]
    if basis not in bases:
        raise InputError(f"the {code} code keeps only basis {' or '.join(bases)}, got {basis!r}")
    if code == "color" and (distance % 2 == 0 or rounds < 2):
        raise InputError(
            f"the color code needs an odd distance and at least 2 rounds, got {distance} and {rounds}"
        )
    p = model.two_qubit
    uniform = model == NoiseModel.uniform(p)
    circuit = stim.Circuit.generated(
        task.format(basis.lower()),
        distance=distance,
        rounds=rounds,
        after_clifford_depolarization=p,
        before_round_data_depolarization=p,
        before_measure_flip_probability=p,
        after_reset_flip_probability=p,
    )
    return circuit if uniform else with_noise(circuit.without_noise(), model)
