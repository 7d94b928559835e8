r"""Training shots of bicycle codes with dense labels: which data qubit flipped in which cycle.

A memory experiment tells of a shot only its detectors and a dozen observables. The simulator knows more: the
Pauli frame of every data qubit after every cycle. Its change during cycle t is the *increment*
:math:`\delta_{q,t}`; the last one, t = R, holds the errors of the readout. The net flip
:math:`e_q = \bigoplus_t \delta_{q,t}` obeys

.. math:: H e = \bigoplus_t D_t \pmod 2

exactly, D being the detectors of the checks of the experiment's own basis: labels of this kind turn decoding
into a local prediction for every qubit and cycle.

Increments are defined up to stabilisers, which flip nothing that can be seen. A network cannot predict an
arbitrary choice, so that every increment is multiplied by checks until none would make it lighter.

Source: derived for arXiv 2504.13043.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed
from symdyn_qec.circuits import bb_memory, check_rounds
from symdyn_qec.codes import Basis, BivariateBicycleCode, check_basis

PackedBits = NDArray[np.uint8]

# Simulated shots are packed eight to a byte, and the simulator works in words of 256.
SHOTS_PER_WORD = 8

# Two passes over the checks leave hardly anything that a third would change.
SWEEPS = 2

# The cycle of `symdyn_qec.circuits.bb_memory`; one more tick comes before the first.
TICKS_PER_CYCLE = 8

CLEARED_BY = {"R": "RX", "RX": "R"}


class IncrementShots(NamedTuple):
    """Shots in rows, their bits packed eight to a byte, little endian, as Stim's b8 format has them.

    Fields:
        detectors: in the circuit's order, shape ``(shots, ceil(detectors / 8))``.
        flips: increments by X and by Z errors, gauge fixed, in the order ``(sector, cycle, qubit)``, sector 0
            being bit flips, which Z checks see; shape ``(shots, ceil(2 (rounds + 1) n / 8))``. Those of the
            sector that the readout does not reveal end with the last cycle: the readout's entry is zero.
        observables: shape ``(shots, ceil(observables / 8))``.
    """

    detectors: PackedBits
    flips: PackedBits
    observables: PackedBits


class IncrementSampler:
    """Samples of a bicycle code's memory experiment with increment labels.

    Args:
        code: the code.
        rounds: cycles R, at least 1.
        basis: "X" or "Z".

    Raises:
        InputError: a value out of range.

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> sampler = IncrementSampler(bivariate_bicycle("bb72"), rounds=2)
    >>> shots = sampler.sample(p=0.003, shots=256, seed=1)
    >>> shots.detectors.shape, shots.flips.shape
    ((256, 18), (256, 54))
    """

    def __init__(self, code: BivariateBicycleCode, rounds: int, basis: Basis = "Z") -> None:
        self.code, self.rounds, self.basis = code, rounds, check_basis(basis)
        check_rounds(rounds)
        self._circuits: dict[float, list[stim.Circuit]] = {}

    def sample(self, p: float, shots: int, seed: int) -> IncrementShots:
        """Simulate shots at one noise strength.

        Args:
            p: noise strength in [0, 0.75].
            shots: a positive multiple of 8.
            seed: of this call; the same seed gives the same shots on machines of the same vector width.
        """
        if shots < 1 or shots % SHOTS_PER_WORD:
            raise InputError(f"shots must be a positive multiple of {SHOTS_PER_WORD}, got {shots}")
        code, rounds = self.code, self.rounds
        simulator = stim.FlipSimulator(
            batch_size=shots,
            disable_stabilizer_randomization=True,
            num_qubits=2 * code.n,
            seed=derive_seed(seed, "increments", self.basis),
        )
        frames = np.zeros((2, rounds + 1, code.n, -(-shots // SHOTS_PER_WORD)), dtype=np.uint8)
        *cycles, readout = self._parts(p)
        for t, cycle in enumerate(cycles):
            simulator.do(cycle)
            xs, zs, _, _, _ = simulator.to_numpy(bit_packed=True, output_xs=True, output_zs=True)
            frames[0, t], frames[1, t] = xs[: code.n], zs[: code.n]
        simulator.do(readout)
        _, _, measured, _, _ = simulator.to_numpy(bit_packed=True, output_measure_flips=True)
        _, _, _, detectors, observables = simulator.to_numpy(
            bit_packed=True, transpose=True, output_detector_flips=True, output_observable_flips=True
        )
        own = 0 if self.basis == "Z" else 1
        frames[own, rounds] = measured[-code.n :]
        frames[1 - own, rounds] = frames[1 - own, rounds - 1]
        flips = frames.copy()
        flips[:, 1:] ^= frames[:, :-1]
        fix_gauge(flips[0], code.hx)
        fix_gauge(flips[1], code.hz)
        by_shot = np.unpackbits(flips, axis=-1, bitorder="little").reshape(-1, shots).T
        return IncrementShots(detectors, np.packbits(by_shot, axis=-1, bitorder="little"), observables)

    def _parts(self, p: float) -> list[stim.Circuit]:
        """Return the cycles and the readout; writing them out costs more than simulating a thousand shots."""
        if p not in self._circuits:
            self._circuits[p] = list(_cycles(bb_memory(self.code, p, self.rounds, self.basis)))
        return self._circuits[p]


def fix_gauge(flips: PackedBits, stabilizers: NDArray[np.uint8]) -> None:
    """Multiply flips by stabilisers, in place, until they are light.

    The checks are gone through in their order, twice; one that overlaps with more than half of its six qubits
    is applied, one that overlaps with exactly half where that moves flips onto its first qubit.

    Args:
        flips: packed shots, shape ``(..., n, shots / 8)``.
        stabilizers: supports, bits, shape ``(m, n)``, all of weight 6.

    The flips on four qubits of a check become the two others:

    >>> flips = np.array([[1], [1], [1], [1], [0], [0]], dtype=np.uint8)
    >>> fix_gauge(flips, np.ones((1, 6), dtype=np.uint8))
    >>> flips.ravel().tolist()
    [0, 0, 0, 0, 1, 1]
    """
    supports = [np.flatnonzero(row) for row in stabilizers]
    if any(len(support) != 6 for support in supports):
        raise InputError("stabilizers must all have weight 6, that of a bicycle code's checks")
    for _ in range(SWEEPS):
        for support in supports:
            a, b, c, d, e, f = (flips[..., qubit, :] for qubit in support)
            # Two full adders and their sum: the number of flips on the check, in binary.
            ab, de = a ^ b, d ^ e
            low_1, high_1 = ab ^ c, (a & b) | (c & ab)
            low_2, high_2 = de ^ f, (d & e) | (f & de)
            carry, highs = low_1 & low_2, high_1 ^ high_2
            ones, twos, fours = low_1 ^ low_2, highs ^ carry, (high_1 & high_2) | (carry & highs)
            lighter = fours | (ones & twos & ~a)
            for qubit in support:
                flips[..., qubit, :] ^= lighter


def _cycles(circuit: stim.Circuit) -> Iterator[stim.Circuit]:
    """Cut a memory experiment into its cycles and the readout.

    Without randomised stabilisers a preparation does not clear the frame that commutes with it, and the next
    cycle's CNOTs would spread what is left of an ancilla's frame over its check: harmless for detectors and
    observables, ruinous for labels. A noiseless preparation in the other basis first clears it.
    """
    part, ticks = stim.Circuit(), 0
    for instruction in circuit.flattened():
        if instruction.name in CLEARED_BY:
            part.append(CLEARED_BY[instruction.name], instruction.targets_copy())
        part.append(instruction)
        if instruction.name == "TICK":
            ticks += 1
            if ticks > 1 and (ticks - 1) % TICKS_PER_CYCLE == 0:
                yield part
                part = stim.Circuit()
    yield part
