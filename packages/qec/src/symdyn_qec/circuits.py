r"""Memory experiments as Stim circuits: bivariate bicycle, rotated surface and repetition codes.

All of them have uniform circuit noise of one strength p: a two-qubit depolarising channel after every CNOT, a
flip after every preparation and before every measurement, and a one-qubit depolarising channel on idle data
qubits, in every tick of bicycle codes and once a round, on all data qubits, in Stim's surface and repetition
circuits. Detectors of bicycle codes have coordinates ``(i, j, t, kind)``: the cell of the check, time in
rounds, and 0 for X checks, 1 for Z checks.
"""

import os
from pathlib import Path

import numpy as np
import stim
from numpy.typing import ArrayLike

from symdyn_core.errors import InputError, unknown
from symdyn_qec import gf2
from symdyn_qec.codes import NAMED, Basis, BivariateBicycleCode, bivariate_bicycle, check_basis

# Far beyond what can be sampled, and small enough for Stim's counters.
MAX_ROUNDS = 10**9
MAX_DISTANCE = 1000

# Beyond 3/4 a depolarising channel is no longer a mixture of Pauli errors.
MAX_P = 0.75

# Which neighbour all checks of one kind touch in each tick. X checks: 0, 1, 2 are the terms of A (left data)
# and 3, 4, 5 those of B (right). Z checks: 0, 1, 2 are the terms of B (left) and 3, 4, 5 those of A (right).
# In this order, unlike most, the checks do not disturb each other although both kinds use the same ticks.
X_SCHEDULE = (None, 1, 4, 3, 5, 0, 2)
Z_SCHEDULE = (3, 5, 0, 1, 2, 4, None)


def bb_memory(
    code: BivariateBicycleCode,
    p: float,
    rounds: int,
    basis: Basis = "Z",
    observables: ArrayLike | None = None,
    idle: bool = True,
) -> stim.Circuit:
    r"""Return the memory experiment of a bivariate bicycle code with depth-8 syndrome extraction.

    All data qubits are prepared in ``basis``, all checks are measured in each of ``rounds`` cycles of eight
    ticks (seven of them with CNOTs), all data qubits are measured in ``basis``. Preparation and readout are
    noisy. Detectors: checks of the same basis at t = 0 .. rounds (the last from the readout), those of the
    other basis at t = 1 .. rounds - 1. Observables: the parities of the readout on ``observables``.

    Args:
        code: with three terms in each of its polynomials.
        p: noise strength in [0, 0.75].
        rounds: cycles, at least 1.
        basis: "X" or "Z".
        observables: supports of logical operators of that basis, bits, shape ``(o, n)``; by default
            ``code.logicals(basis)``.
        idle: whether idle data qubits depolarise.

    Raises:
        InputError: a value out of range, or an observable that is not a logical operator of the code.

    The cycles after the first are one REPEAT block. Ask Stim for ``detector_error_model(flatten_loops=True)``
    where every error mechanism should appear once; folded loops leave some of them in two parts.

    Source: the cycle of Bravyi et al., arXiv 2308.07915, in the variant of arXiv 2504.13043.

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> circuit = bb_memory(bivariate_bicycle("bb72"), p=0.001, rounds=6)
    >>> circuit.num_detectors, circuit.num_observables  # 36 * 7 + 36 * 5
    (432, 12)
    """
    check_noise(p)
    check_rounds(rounds)
    check_basis(basis)
    if len(code.a) != 3 or len(code.b) != 3:
        raise InputError(f"the depth-8 cycle needs three terms in each polynomial, got {code!r}")
    supports = code.logicals(basis) if observables is None else gf2.bits(observables, "observables")
    opposite: Basis = "Z" if basis == "X" else "X"
    if supports.shape[1] != code.n or (supports.astype(int) @ code.checks(opposite).T % 2).any():
        raise InputError(
            f"observables must be {basis} operators on n={code.n} qubits that commute with every "
            f"{opposite} check, got an array of shape {supports.shape}"
        )
    return _Builder(code, p, rounds, basis, supports, idle).circuit()


class _Builder:
    """Qubits: left data, right data, X ancillas, Z ancillas, each in the order of the cells."""

    def __init__(
        self,
        code: BivariateBicycleCode,
        p: float,
        rounds: int,
        basis: Basis,
        observables: gf2.BitMatrix,
        idle: bool,
    ) -> None:
        self.code, self.p, self.rounds, self.basis = code, p, rounds, basis
        self.observables, self.idle = observables, idle
        cells = code.cells
        self.data = list(range(code.n))
        self.x_ancillas = list(range(code.n, code.n + cells))
        self.z_ancillas = list(range(code.n + cells, 2 * code.n))
        forwards, backwards = (*code.a, *code.b), [(-i, -j) for i, j in (*code.b, *code.a)]
        self.x_neighbours = [code.shifted_cells(s) + cells * (d > 2) for d, s in enumerate(forwards)]
        self.z_neighbours = [code.shifted_cells(s) + cells * (d > 2) for d, s in enumerate(backwards)]

    def circuit(self) -> stim.Circuit:
        circuit = stim.Circuit()
        for qubit in range(2 * self.code.n):
            kind, cell = divmod(qubit, self.code.cells)
            circuit.append("QUBIT_COORDS", [qubit], [*divmod(cell, self.code.m), kind])
        self._prepare(circuit, self.basis, self.data)
        self._prepare(circuit, "Z", self.z_ancillas)
        circuit.append("TICK")
        circuit += self._cycle(first=True)
        if self.rounds > 1:
            circuit.append(stim.CircuitRepeatBlock(self.rounds - 1, self._cycle(first=False)))
        self._read_out(circuit)
        return circuit

    def _cycle(self, first: bool) -> stim.Circuit:
        cycle = stim.Circuit()
        for tick in range(8):
            if tick == 0:
                self._prepare(cycle, "X", self.x_ancillas)
            pairs = self._cnots(tick)
            if pairs:
                cycle.append("CX", pairs)
                cycle.append("DEPOLARIZE2", pairs, self.p)
            if tick == 6:
                cycle.append("M", self.z_ancillas, self.p)
            if tick == 7:
                cycle.append("MX", self.x_ancillas, self.p)
                self._prepare(cycle, "Z", self.z_ancillas)
            resting = sorted(set(self.data) - set(pairs))
            if self.idle and resting:
                cycle.append("DEPOLARIZE1", resting, self.p)
            cycle.append("TICK")
        # In the record of one cycle the Z checks come first: they are measured one tick earlier.
        cells = self.code.cells
        for kind, start in (("X", -cells), ("Z", -2 * cells)):
            if first and kind != self.basis:
                continue
            for cell in range(cells):
                records = [start + cell] if first else [start + cell, start + cell - 2 * cells]
                self._detector(cycle, kind, cell, records)
        cycle.append("SHIFT_COORDS", [], [0, 0, 1])
        return cycle

    def _cnots(self, tick: int) -> list[int]:
        """Return control, target, control, target ... of a tick's CNOTs."""
        pairs: list[int] = []
        if tick < 7 and (direction := X_SCHEDULE[tick]) is not None:
            pairs += np.stack([self.x_ancillas, self.x_neighbours[direction]], axis=1).ravel().tolist()
        if tick < 7 and (direction := Z_SCHEDULE[tick]) is not None:
            pairs += np.stack([self.z_neighbours[direction], self.z_ancillas], axis=1).ravel().tolist()
        return pairs

    def _read_out(self, circuit: stim.Circuit) -> None:
        n, cells = self.code.n, self.code.cells
        circuit.append("M" if self.basis == "Z" else "MX", self.data, self.p)
        last = -n - (cells if self.basis == "X" else 2 * cells)
        for cell, support in enumerate(self.code.checks(self.basis)):
            self._detector(circuit, self.basis, cell, [*(np.flatnonzero(support) - n).tolist(), last + cell])
        for index, support in enumerate(self.observables):
            records = [stim.target_rec(qubit - n) for qubit in np.flatnonzero(support).tolist()]
            circuit.append("OBSERVABLE_INCLUDE", records, index)

    def _prepare(self, circuit: stim.Circuit, basis: str, qubits: list[int]) -> None:
        circuit.append("R" if basis == "Z" else "RX", qubits)
        circuit.append("X_ERROR" if basis == "Z" else "Z_ERROR", qubits, self.p)

    def _detector(self, circuit: stim.Circuit, kind: str, cell: int, records: list[int]) -> None:
        targets = [stim.target_rec(record) for record in records]
        circuit.append("DETECTOR", targets, [*divmod(cell, self.code.m), 0, int(kind == "Z")])


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
    return _generated(f"surface_code:rotated_memory_{check_basis(basis).lower()}", distance, rounds, p)


def repetition_memory(distance: int, rounds: int, p: float) -> stim.Circuit:
    """Return Stim's memory experiment of the repetition code under uniform circuit noise.

    Args: as for :func:`surface_memory`; it protects against bit flips only.

    >>> repetition_memory(distance=3, rounds=3, p=0.001).num_detectors
    8
    """
    return _generated("repetition_code:memory", distance, rounds, p)


# The codes that a name and a distance determine, and those that the name alone determines.
SCALABLE = ("surface", "repetition")
CODES = (*SCALABLE, *NAMED)


def memory_circuit(
    code: str, *, p: float, rounds: int, distance: int | None = None, basis: Basis = "Z"
) -> stim.Circuit:
    """Return the memory experiment of a code by name.

    Args:
        code: surface, repetition, or a bivariate bicycle code: bb72, bb90, bb108, bb144, bb288.
        p: noise strength in [0, 0.75].
        rounds: at least 1.
        distance: needed by surface and repetition, refused by the others.
        basis: "X" or "Z"; the repetition code keeps only "Z".

    >>> memory_circuit("repetition", distance=5, rounds=2, p=0.01).num_qubits
    9
    """
    if code not in CODES:
        raise InputError(unknown("code", code, CODES))
    if code in NAMED:
        if distance is not None:
            raise InputError(f"code {code} has a fixed distance; leave it out, got {distance}")
        return bb_memory(bivariate_bicycle(code), p=p, rounds=rounds, basis=basis)
    if distance is None:
        raise InputError(f"code {code} needs a distance")
    if code == "surface":
        return surface_memory(distance, rounds, p, basis)
    if check_basis(basis) != "Z":
        raise InputError(f"the repetition code keeps only basis Z, got {basis!r}")
    return repetition_memory(distance, rounds, p)


def read_circuit(path: str | os.PathLike[str]) -> stim.Circuit:
    """Read a circuit that can be decoded from a Stim file.

    Raises:
        InputError: the file cannot be read or parsed, or the circuit lacks detectors or observables; one line
            with the file's name.
    """
    try:
        circuit = stim.Circuit(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a Stim circuit: it is not text") from error
    except ValueError as error:
        raise InputError(f"{path} is not a Stim circuit: {_first_line(error)}") from error
    for what, count in (("detectors", circuit.num_detectors), ("observables", circuit.num_observables)):
        if count == 0:
            raise InputError(f"{path} has no {what}; a circuit needs detectors and observables to be decoded")
    return circuit


def error_model(circuit: stim.Circuit, name: str, graphlike: bool = False) -> stim.DetectorErrorModel:
    """Return the detector error model that decoders of a circuit work with.

    Args:
        circuit: with deterministic detectors and observables.
        name: of the circuit, for messages.
        graphlike: whether to split every mechanism into parts of at most two detectors, as matching needs.

    Raises:
        InputError: a detector or observable is not deterministic, or a mechanism cannot be split.

    >>> error_model(repetition_memory(3, 1, 0.01), "example", graphlike=True).num_detectors
    4
    """
    try:
        model = circuit.detector_error_model(approximate_disjoint_errors=True)
    except ValueError as error:
        raise InputError(f"{name} has no detector error model: {_first_line(error)}") from error
    if not graphlike:
        return model
    try:
        return circuit.detector_error_model(approximate_disjoint_errors=True, decompose_errors=True)
    except ValueError as error:
        raise InputError(
            f"{name} cannot be decoded by matching: some of its errors flip more than two detectors "
            "and do not split into pairs"
        ) from error


def check_noise(p: float) -> None:
    """Raise InputError unless p is a strength that every channel of the circuits can have."""
    if not 0 <= p <= MAX_P:
        raise InputError(f"p must be in [0, {MAX_P}], got {p}")


def check_rounds(rounds: int) -> None:
    """Raise InputError unless there is at least one round, and no more than a circuit can count."""
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    if rounds > MAX_ROUNDS:
        raise InputError(f"rounds must be at most {MAX_ROUNDS}, got {rounds}")


def _generated(task: str, distance: int, rounds: int, p: float) -> stim.Circuit:
    check_noise(p)
    check_rounds(rounds)
    if distance < 2:
        raise InputError(f"distance must be at least 2, got {distance}")
    if distance > MAX_DISTANCE:
        raise InputError(f"distance must be at most {MAX_DISTANCE}, got {distance}")
    return stim.Circuit.generated(
        task,
        distance=distance,
        rounds=rounds,
        after_clifford_depolarization=p,
        before_round_data_depolarization=p,
        before_measure_flip_probability=p,
        after_reset_flip_probability=p,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
