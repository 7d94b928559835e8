r"""Memory experiments of any CSS code: its X checks are measured, then its Z checks, in every cycle.

Measuring the two kinds in separate phases makes every detector deterministic whatever the code and whatever
the order of the gates. Within a phase the CNOTs form the edges of a bipartite graph of checks and data
qubits; its edges are coloured with as few colours as the largest degree (Kőnig's theorem), and each colour is
a tick. A cycle takes as many ticks as the largest degrees of both graphs together, and two more for the
measurements.

Such an order is not optimised against faults that spread: the circuit's distance can be below the code's.
"""

import numpy as np
import stim
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.codes import Basis, CSSCode, check_basis
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.memory import check_rounds, observed

# In this matrix of ticks, no CNOT.
NEVER = -1


def edge_colouring(checks: ArrayLike) -> NDArray[np.int64]:
    """Return the tick in which each check touches each of its qubits, as few ticks as possible.

    No check and no qubit appears twice in a tick; there are as many ticks as the heaviest row or column has
    ones. Edges are coloured one after the other; where no colour is free at both ends, two colours are
    exchanged along a path, which frees one.

    Args:
        checks: bits, shape ``(m, n)``.

    Returns:
        Ticks from 0, and -1 where there is no edge, shape ``(m, n)``.

    >>> edge_colouring([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).tolist()
    [[1, 0, -1], [-1, 1, 0], [0, -1, 1]]
    """
    matrix = gf2.bits(checks, "checks")
    m, n = matrix.shape
    degree = int(max(matrix.sum(axis=0).max(initial=0), matrix.sum(axis=1).max(initial=0)))
    # partner[v, c]: the vertex at the other end of v's edge of colour c; checks first, then qubits.
    partner = np.full((m + n, degree), NEVER)
    for check, qubit in np.argwhere(matrix).tolist():
        u, v = check, m + qubit
        at_check, at_qubit = (int(np.flatnonzero(partner[w] == NEVER)[0]) for w in (u, v))
        if partner[v, at_check] != NEVER:
            # The path from v with colours at_check, at_qubit, at_check ... never reaches u.
            path, colour = [v], at_check
            while (following := int(partner[path[-1], colour])) != NEVER:
                path.append(following)
                colour = at_qubit if colour == at_check else at_check
            partner[np.ix_(path, [at_check, at_qubit])] = partner[np.ix_(path, [at_qubit, at_check])]
        partner[u, at_check], partner[v, at_check] = v, u
    ticks = np.full((m, n), NEVER)
    for check, colour in np.argwhere(partner[:m] != NEVER).tolist():
        ticks[check, partner[check, colour] - m] = colour
    return ticks


def css_circuit(
    code: CSSCode,
    rounds: int,
    basis: Basis = "Z",
    observables: ArrayLike | None = None,
    x_ticks: ArrayLike | None = None,
    z_ticks: ArrayLike | None = None,
    positions: ArrayLike | None = None,
) -> stim.Circuit:
    """Return the memory experiment of a CSS code, without noise.

    All data qubits are prepared in ``basis``, all checks are measured in each of ``rounds`` cycles, all data
    qubits are measured in ``basis``. Detectors: checks of the same basis at t = 0 .. rounds (the last from
    the readout), those of the other basis at t = 1 .. rounds - 1. Their coordinates are ``(x, y, t, kind)``:
    the position of the check, time in rounds, and 0 for X checks, 1 for Z checks. Observables: the parities
    of the readout on ``observables``.

    Args:
        code: the code.
        rounds: cycles, at least 1.
        basis: "X" or "Z".
        observables: supports of logical operators of that basis, bits, shape ``(o, n)``; by default
            ``code.logicals(basis)``.
        x_ticks: the tick of each CNOT of the X checks, -1 where there is none, shape ``(m_x, n)``; by default
            :func:`edge_colouring`. One that is invariant under the code's symmetries keeps them.
        z_ticks: the same for the Z checks, shape ``(m_z, n)``.
        positions: x and y of all X checks, then of all Z checks, shape ``(m_x + m_z, 2)``; by default
            (index, 0).

    Raises:
        InputError: a value out of range, an observable that is not a logical operator of the code, or ticks
            in which a qubit is used twice.

    The cycles after the first are one REPEAT block.

    >>> steane = [[1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    >>> circuit = css_circuit(CSSCode(steane, steane), rounds=3)
    >>> circuit.num_detectors, circuit.num_observables, circuit.num_ticks  # 3 * 4 + 3 * 2, 1, 1 + 3 * 10
    (18, 1, 31)
    """
    check_rounds(rounds)
    supports = observed(code, check_basis(basis), observables)
    schedules = (_schedule(code.hx, x_ticks, "x_ticks"), _schedule(code.hz, z_ticks, "z_ticks"))
    return _Builder(code, rounds, basis, supports, schedules, _positions(code, positions)).circuit()


class _Builder:
    """Qubits: data, X ancillas, Z ancillas. In the record of a cycle the X checks come first."""

    def __init__(
        self,
        code: CSSCode,
        rounds: int,
        basis: Basis,
        observables: BitMatrix,
        schedules: tuple[NDArray[np.int64], NDArray[np.int64]],
        positions: NDArray[np.float64],
    ) -> None:
        self.code, self.rounds, self.basis, self.observables = code, rounds, basis, observables
        self.schedules, self.positions = schedules, positions
        n, self.m_x, self.m_z = code.n, len(code.hx), len(code.hz)
        self.data = list(range(n))
        self.x_ancillas = list(range(n, n + self.m_x))
        self.z_ancillas = list(range(n + self.m_x, n + self.m_x + self.m_z))

    def circuit(self) -> stim.Circuit:
        circuit = stim.Circuit()
        _append(circuit, "R" if self.basis == "Z" else "RX", self.data)
        _append(circuit, "RX", self.x_ancillas)
        circuit.append("TICK")
        circuit += self._cycle(first=True)
        if self.rounds > 1:
            circuit.append(stim.CircuitRepeatBlock(self.rounds - 1, self._cycle(first=False)))
        self._read_out(circuit)
        return circuit

    def _cycle(self, first: bool) -> stim.Circuit:
        cycle = stim.Circuit()
        self._phase(cycle, self.schedules[0], self.x_ancillas, from_ancilla=True)
        _append(cycle, "MX", self.x_ancillas)
        _append(cycle, "R", self.z_ancillas)
        cycle.append("TICK")
        self._phase(cycle, self.schedules[1], self.z_ancillas, from_ancilla=False)
        _append(cycle, "M", self.z_ancillas)
        _append(cycle, "RX", self.x_ancillas)  # for the next cycle; in vain after the last
        cycle.append("TICK")
        checks = self.m_x + self.m_z
        for check in range(checks):
            if first and (check < self.m_x) != (self.basis == "X"):
                continue
            records = [check - checks] if first else [check - checks, check - 2 * checks]
            self._detector(cycle, check, records)
        cycle.append("SHIFT_COORDS", [], [0, 0, 1])
        return cycle

    def _phase(
        self, cycle: stim.Circuit, ticks: NDArray[np.int64], ancillas: list[int], from_ancilla: bool
    ) -> None:
        for tick in range(int(ticks.max(initial=NEVER)) + 1):
            pairs: list[int] = []
            for check, qubit in np.argwhere(ticks == tick).tolist():
                pairs += [ancillas[check], qubit] if from_ancilla else [qubit, ancillas[check]]
            _append(cycle, "CX", pairs)
            cycle.append("TICK")

    def _read_out(self, circuit: stim.Circuit) -> None:
        n, checks = self.code.n, self.m_x + self.m_z
        _append(circuit, "M" if self.basis == "Z" else "MX", self.data)
        offset = 0 if self.basis == "X" else self.m_x
        for index, support in enumerate(self.code.checks(self.basis)):
            check = offset + index
            self._detector(circuit, check, [*(np.flatnonzero(support) - n).tolist(), check - checks - n])
        for index, support in enumerate(self.observables):
            records = [stim.target_rec(qubit - n) for qubit in np.flatnonzero(support).tolist()]
            circuit.append("OBSERVABLE_INCLUDE", records, index)

    def _detector(self, circuit: stim.Circuit, check: int, records: list[int]) -> None:
        targets = [stim.target_rec(record) for record in records]
        circuit.append("DETECTOR", targets, [*self.positions[check].tolist(), 0, int(check >= self.m_x)])


def _append(circuit: stim.Circuit, name: str, qubits: list[int]) -> None:
    """Append a gate unless it acts on nothing, as where a code has no checks of one kind."""
    if qubits:
        circuit.append(name, qubits)


def _schedule(checks: BitMatrix, ticks: ArrayLike | None, name: str) -> NDArray[np.int64]:
    if ticks is None:
        return edge_colouring(checks)
    schedule = np.asarray(ticks, dtype=np.int64)
    if schedule.shape != checks.shape or ((schedule >= 0) != (checks == 1)).any():
        raise InputError(
            f"{name} must be 0 or more for the qubits of each check and -1 elsewhere, shape {checks.shape}, "
            f"got shape {schedule.shape}"
        )
    for tick in range(int(schedule.max(initial=NEVER)) + 1):
        used = schedule == tick
        if (used.sum(axis=0) > 1).any() or (used.sum(axis=1) > 1).any():
            raise InputError(f"{name} must use every qubit once in a tick, but not in tick {tick}")
    return schedule


def _positions(code: CSSCode, positions: ArrayLike | None) -> NDArray[np.float64]:
    m_x, m_z = len(code.hx), len(code.hz)
    if positions is None:
        index = np.concatenate([np.arange(m_x), np.arange(m_z)]).astype(np.float64)
        return np.stack([index, np.zeros_like(index)], axis=1)
    places = np.asarray(positions, dtype=np.float64)
    if places.shape != (m_x + m_z, 2):
        raise InputError(f"positions must have shape {(m_x + m_z, 2)}, got {places.shape}")
    return places
