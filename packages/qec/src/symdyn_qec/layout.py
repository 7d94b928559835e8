"""How a network sees the detectors of a bicycle code: as checks on the torus, cycle by cycle."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import Basis, BivariateBicycleCode


class TorusLayout:
    """Translates packed shots into what a :class:`~symdyn_qec.networks.torus.TorusNetwork` reads and learns.

    Args:
        code: the code.
        rounds: cycles R, at least 1.
        basis: "X" or "Z".

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> layout = TorusLayout(bivariate_bicycle("bb72"), rounds=2)
    >>> quiet = torch.zeros(1, 18, dtype=torch.uint8)  # 144 detectors
    >>> layout.checks(quiet).flatten(3).sum(dim=3).tolist()  # X checks compared once, Z checks three times
    [[[0, 36, 0], [36, 36, 36]]]
    """

    def __init__(self, code: BivariateBicycleCode, rounds: int, basis: Basis = "Z") -> None:
        self.code, self.rounds, self.basis = code, rounds, basis
        circuit = bb_memory(code, p=0.001, rounds=rounds, basis=basis)
        self.num_detectors = circuit.num_detectors
        # Where the state of each check in each cycle comes from; one past the last detector means nowhere.
        place = np.full((2, rounds + 1, code.l, code.m), self.num_detectors)
        for detector, (i, j, t, kind) in circuit.get_detector_coordinates().items():
            place[int(kind), int(t), int(i), int(j)] = detector
        self.place = place

    def checks(self, detectors: Tensor) -> Tensor:
        """Return what the checks show: 0 absent, 1 quiet, 2 fired.

        Args:
            detectors: packed, bytes, shape ``(shots, ceil(detectors / 8))``.

        Returns:
            X checks first, bytes, shape ``(shots, 2, rounds + 1, l, m)``.
        """
        bits = unpacked(detectors, self.num_detectors) + 1
        padded = torch.nn.functional.pad(bits, (0, 1))
        return padded[:, torch.from_numpy(self.place).to(bits.device)]

    def flips(self, flips: Tensor) -> Tensor:
        """Return increments from packed ones: bit flips first, shape ``(shots, 2, rounds + 1, n)``."""
        shape = (2, self.rounds + 1, self.code.n)
        return unpacked(flips, int(np.prod(shape))).reshape(-1, *shape)

    def learnable(self) -> NDArray[np.bool_]:
        """Return which increments detectors tell something of, shape ``(2, rounds + 1)``.

        In the sector of the readout all; in the other those between its first and its last detector.
        """
        mask = np.ones((2, self.rounds + 1), dtype=bool)
        mask[1 if self.basis == "Z" else 0, [0, -1]] = False
        return mask


def unpacked(packed: Tensor, width: int) -> Tensor:
    """Return bits from bytes, little endian, shape ``(shots, width)``.

    >>> unpacked(torch.tensor([[5]], dtype=torch.uint8), 4).tolist()
    [[1, 0, 1, 0]]
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(1)[:, :width]
