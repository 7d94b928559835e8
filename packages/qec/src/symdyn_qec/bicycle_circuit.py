r"""Memory experiments of bivariate bicycle codes with the syndrome extraction made for them, of depth 8.

Their noise is uniform, of strength p: a two-qubit depolarising channel after every CNOT, a flip after every
preparation and before every measurement, and a one-qubit depolarising channel on idle data qubits in every
tick. Detectors have coordinates ``(i, j, t, kind)``: the cell of the check, time in rounds, and 0 for X
checks, 1 for Z checks.
"""

import numpy as np
import stim
from numpy.typing import ArrayLike

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.codes import Basis, BivariateBicycleCode, check_basis
from symdyn_qec.css_circuit import NEVER, css_circuit
from symdyn_qec.memory import check_noise, check_rounds, observed

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
    return _Builder(code, p, rounds, basis, observed(code, basis, observables), idle).circuit()


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


def torus_circuit(
    code: BivariateBicycleCode, rounds: int, basis: Basis = "Z", observables: ArrayLike | None = None
) -> stim.Circuit:
    """Return the memory experiment of a code on a torus with any number of terms, without noise.

    X checks, then Z checks, as in :func:`~symdyn_qec.css_circuit.css_circuit`, whose detectors it has; every
    check touches its neighbours in the order of the polynomials' terms. So the circuit, unlike one from a
    general colouring of edges, has all translations of the torus as symmetries.

    Args: as for :func:`bb_memory`.

    >>> from symdyn_qec.codes import toric
    >>> circuit = torus_circuit(toric(3), rounds=2)
    >>> circuit.num_detectors, circuit.num_observables  # 9 * 3 + 9 * 1
    (36, 2)
    """
    x_ticks, z_ticks = np.full(code.hx.shape, NEVER), np.full(code.hz.shape, NEVER)
    cells, own = code.cells, np.arange(code.cells)
    for tick, shift in enumerate((*code.a, *code.b)):
        x_ticks[own, code.shifted_cells(shift) + cells * (tick >= len(code.a))] = tick
    for tick, (i, j) in enumerate((*code.b, *code.a)):
        z_ticks[own, code.shifted_cells((-i, -j)) + cells * (tick >= len(code.b))] = tick
    places = np.tile(np.stack(np.divmod(own, code.m), axis=1), (2, 1))
    return css_circuit(code, rounds, basis, observables, x_ticks, z_ticks, places)
