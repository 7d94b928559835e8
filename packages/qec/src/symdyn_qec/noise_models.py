r"""Circuit noise: how strongly each kind of operation fails, and a function that makes any circuit so noisy.

Three models of one strength p, as multiples of p:

==================  =======  ======  ===============================
operation           uniform  SI1000  biased
==================  =======  ======  ===============================
two-qubit gate      1        1       1, mostly ZI, IZ and ZZ
one-qubit gate      1        1/10    1, mostly Z
preparation         1        2       1, a flip
measurement         1        5       1, a flip of the result
idle                1        1/10    1, mostly Z
waiting             0        2       0
==================  =======  ======  ===============================

A qubit is idle in a tick in which nothing acts on it. It waits, besides, in a tick in which other qubits are
prepared or measured and it is neither: their resonators disturb it.

Source: SI1000, "superconducting inspired", from the table of noise models of Gidney, Newman, Fowler and
Broughton, arXiv 2108.10457. There two-qubit gates are CZ; here all of them count alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product
from typing import Literal, get_args

import stim

from symdyn_core.errors import InputError, unknown
from symdyn_qec.memory import MAX_P, check_noise

Noise = Literal["uniform", "si1000", "biased"]

# How much likelier than X and Y together Z is where nobody says otherwise: moderate, as in cat qubits and
# spins.
BIAS = 10.0

# The strongest operation of SI1000 fails five times as often as its p says.
SI1000_MEASUREMENT = 5


@dataclass(frozen=True)
class NoiseModel:
    r"""The probability with which each kind of operation fails.

    Fields:
        two_qubit: of a gate on two qubits; one of the 15 Pauli operators follows it.
        one_qubit: of a gate on one qubit; one of the 3 Pauli operators follows it.
        preparation: the qubit starts in the other state of the basis.
        measurement: the result is reported wrongly; the state is not touched.
        idle: of a qubit on which nothing acts in a tick; a Pauli operator.
        waiting: besides, where others are prepared or measured in that tick and it is neither.
        bias: eta, how much likelier Z is than X and Y together; 1/2 makes all Pauli operators equally likely.
            On two qubits the probability of :math:`P \otimes Q` is in proportion to r(P) r(Q), with r = 1
            for I and Z and :math:`r = 1 / 2\eta` for X and Y.

    Raises:
        InputError: a probability outside [0, 0.75], or a bias that is not positive.

    >>> NoiseModel.si1000(0.001).measurement
    0.005
    """

    two_qubit: float = 0.0
    one_qubit: float = 0.0
    preparation: float = 0.0
    measurement: float = 0.0
    idle: float = 0.0
    waiting: float = 0.0
    bias: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "bias" and not 0 <= value <= MAX_P:
                raise InputError(f"{field.name} must be in [0, {MAX_P}], got {value}")
        if not 0 < self.bias < float("inf"):
            raise InputError(f"bias must be positive and finite, got {self.bias}")

    @classmethod
    def uniform(cls, p: float) -> "NoiseModel":
        """Return the model in which everything fails with probability p, in [0, 0.75]."""
        check_noise(p)
        return cls(two_qubit=p, one_qubit=p, preparation=p, measurement=p, idle=p)

    @classmethod
    def si1000(cls, p: float) -> "NoiseModel":
        """Return the superconducting inspired model, p in [0, 0.15]."""
        most = MAX_P / SI1000_MEASUREMENT
        if not 0 <= p <= most:
            raise InputError(
                f"p must be in [0, {most:g}] for si1000, whose measurements fail at 5 p, got {p}"
            )
        return cls(
            two_qubit=p,
            one_qubit=p / 10,
            preparation=2 * p,
            measurement=SI1000_MEASUREMENT * p,
            idle=p / 10,
            waiting=2 * p,
        )

    @classmethod
    def biased(cls, p: float, bias: float = BIAS) -> "NoiseModel":
        """Return the uniform model with gates and idle qubits biased to Z, p in [0, 0.75].

        Preparations and measurements flip with probability p in any basis: they fail with their apparatus,
        not because the qubit loses its phase.
        """
        check_noise(p)
        return cls(two_qubit=p, one_qubit=p, preparation=p, measurement=p, idle=p, bias=bias)

    def on_one(self, p: float) -> tuple[str, list[float]]:
        """Return Stim's name and arguments of the channel on one qubit that fails with probability p.

        >>> NoiseModel(bias=0.5).on_one(0.003), NoiseModel(bias=1).on_one(0.5)
        (('DEPOLARIZE1', [0.003]), ('PAULI_CHANNEL_1', [0.125, 0.125, 0.25]))
        """
        if self.bias == 0.5:
            return "DEPOLARIZE1", [p]
        rare = p / (2 * (1 + self.bias))
        return "PAULI_CHANNEL_1", [rare, rare, p - 2 * rare]

    def on_two(self, p: float) -> tuple[str, list[float]]:
        """Return Stim's name and arguments of the channel on two qubits that fails with probability p."""
        if self.bias == 0.5:
            return "DEPOLARIZE2", [p]
        rare = 1 / (2 * self.bias)
        weights = [first * second for first, second in product((1, rare, rare, 1), repeat=2)][1:]
        return "PAULI_CHANNEL_2", [p * weight / sum(weights) for weight in weights]


def noise_model(name: str, p: float, bias: float = BIAS) -> NoiseModel:
    """Return a noise model by name.

    Args:
        name: uniform, si1000 or biased.
        p: its strength.
        bias: of the biased one, see :class:`NoiseModel`.

    Raises:
        InputError: an unknown name or a strength out of range.

    >>> noise_model("uniform", 0.001) == NoiseModel.biased(0.001, bias=0.5)
    True
    """
    if name == "biased":
        return NoiseModel.biased(p, bias)
    models: dict[str, Callable[[float], NoiseModel]] = {
        "uniform": NoiseModel.uniform,
        "si1000": NoiseModel.si1000,
    }
    if name not in models:
        raise InputError(unknown("noise model", name, get_args(Noise)))
    return models[name](p)


def with_noise(circuit: stim.Circuit, model: NoiseModel) -> stim.Circuit:
    r"""Return a circuit with the channels of a noise model put in, tick by tick.

    A channel follows each gate and each preparation, a measurement gets its probability as its argument, and
    at the end of a tick idle qubits, then waiting ones, suffer theirs. All qubits of the circuit exist all
    the time; what happens to them before their preparation has no consequence. A tick without any operation
    takes no time. A REPEAT block begins and ends a tick of its own. Paulis controlled by a measurement record
    are bookkeeping, without noise.

    A wrong measurement leaves the state alone. Where a qubit is measured and goes on without a preparation,
    that differs from a flip before the measurement, which some authors use, SI1000's among them.

    Args:
        circuit: without noise; see ``stim.Circuit.without_noise``.
        model: the noise. Channels of probability zero are left out.

    Raises:
        InputError: the circuit is noisy already, or has a gate of any number of qubits (SPP).

    In the second tick the gate and the idle qubit happen to suffer the same:

    >>> print(with_noise(stim.Circuit("R 0 1\nTICK\nH 0\nTICK\nM 0"), NoiseModel.si1000(0.01)))
    R 0 1
    X_ERROR(0.02) 0 1
    TICK
    H 0
    DEPOLARIZE1(0.001) 0 1
    TICK
    M(0.05) 0
    DEPOLARIZE1(0.001) 1
    DEPOLARIZE1(0.02) 1
    """
    return _Ticks(model, set(range(circuit.num_qubits))).noisy(circuit)


class _Ticks:
    """Goes through a circuit and remembers on which qubits the present tick acted."""

    def __init__(self, model: NoiseModel, qubits: set[int]) -> None:
        self.model, self.qubits = model, qubits

    def noisy(self, circuit: stim.Circuit) -> stim.Circuit:
        result = stim.Circuit()
        self._start()
        for instruction in circuit:
            if instruction.name == "REPEAT":
                self._end(result)
                result.append(
                    stim.CircuitRepeatBlock(instruction.repeat_count, self.noisy(instruction.body_copy()))
                )
                continue
            if instruction.name == "TICK":
                self._end(result)
                result.append(instruction)
            else:
                self._operation(result, instruction)
        self._end(result)
        return result

    def _start(self) -> None:
        self.acted_on: set[int] = set()
        self.reset_or_measured: set[int] = set()

    def _end(self, result: stim.Circuit) -> None:
        if self.acted_on:
            _append(result, *self.model.on_one(self.model.idle), sorted(self.qubits - self.acted_on))
        if self.reset_or_measured:
            others = sorted(self.qubits - self.reset_or_measured)
            _append(result, *self.model.on_one(self.model.waiting), others)
        self._start()

    def _operation(self, result: stim.Circuit, instruction: stim.CircuitInstruction) -> None:
        gate = stim.gate_data(instruction.name)
        if not (gate.is_unitary or gate.is_reset or gate.produces_measurements or gate.is_noisy_gate):
            result.append(instruction)
            return
        arguments = instruction.gate_args_copy()
        if any(arguments) or (gate.is_noisy_gate and not gate.produces_measurements):
            raise InputError(f"circuit must be without noise, got a noisy {instruction.name}")
        if instruction.name == "MPAD":  # constants in the record, not qubits
            result.append(instruction)
            return
        groups = [group for group in instruction.target_groups() if all(_is_qubit(t) for t in group)]
        qubits = [target.value for group in groups for target in group]
        self.acted_on.update(qubits)
        if gate.is_unitary:
            result.append(instruction)
            if gate.is_two_qubit_gate:
                _append(result, *self.model.on_two(self.model.two_qubit), qubits)
            elif gate.is_single_qubit_gate:
                _append(result, *self.model.on_one(self.model.one_qubit), qubits)
            else:
                raise InputError(f"gates must act on one or two qubits each, got {instruction.name}")
            return
        self.reset_or_measured.update(qubits)
        noise = [self.model.measurement] if gate.produces_measurements and self.model.measurement else []
        result.append(instruction.name, instruction.targets_copy(), noise, tag=instruction.tag)
        if gate.is_reset:
            # The flip of a preparation in X anticommutes with X, and so on.
            flip = "Z_ERROR" if instruction.name.endswith("X") else "X_ERROR"
            _append(result, flip, [self.model.preparation], qubits)


def _is_qubit(target: stim.GateTarget) -> bool:
    return not (target.is_measurement_record_target or target.is_sweep_bit_target)


def _append(circuit: stim.Circuit, name: str, arguments: list[float], qubits: list[int]) -> None:
    if qubits and any(arguments):
        circuit.append(name, qubits, arguments)
