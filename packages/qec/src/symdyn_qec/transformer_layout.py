"""How the transformer sees a memory experiment: which stabiliser and cycle each detector belongs to."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_qec.codes import BivariateBicycleCode, CSSCode
from symdyn_qec.layout import unpacked
from symdyn_qec.networks.transformer import sharing_qubits

# Of a stabiliser in detector coordinates: x, y, and 0 for X checks, 1 for Z checks.
Position = tuple[int, int, int]


class TokenLayout:
    """Translates packed shots into what a :class:`~symdyn_qec.networks.transformer.CodeTransformer` reads.

    Args:
        code: its X checks are the first tokens, its Z checks the others.
        detectors: coordinates ``(x, y, t, kind)`` of each.
        rounds: cycles of the experiment; the readout makes one more.
        positions: of the tokens; by default where
            :func:`~symdyn_qec.circuits.memory_circuit` puts them.

    Raises:
        InputError: detectors that do not belong to the code, or two of one check in one cycle.

    >>> code = CSSCode([[1, 1, 1, 1]], [[1, 1, 1, 1]])
    >>> layout = TokenLayout(code, [(0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 1, 1)], rounds=1)
    >>> layout.checks(torch.tensor([[5]], dtype=torch.uint8)).tolist()  # the X check is absent at first
    [[[0, 2], [1, 2]]]
    """

    def __init__(
        self,
        code: CSSCode,
        detectors: Sequence[Sequence[float]],
        rounds: int,
        positions: Sequence[Position] | None = None,
    ) -> None:
        self.positions = tuple(positions or _positions(code))
        tokens = len(code.hx) + len(code.hz)
        if len(self.positions) != tokens:
            raise InputError(f"positions must be those of {tokens} checks, got {len(self.positions)}")
        self.related: NDArray[np.bool_] = sharing_qubits(code.hx, code.hz)
        self.num_detectors = len(detectors)
        if not detectors:
            raise InputError("detectors must be those of a memory experiment, got none")
        token = {position: index for index, position in enumerate(self.positions)}
        # Where the state of each check in each cycle comes from; one past the last detector means nowhere.
        place = np.full((rounds + 1, tokens), self.num_detectors)
        for index, (x, y, t, kind) in enumerate(detectors):
            position = (int(x), int(y), int(kind))
            if position not in token or not 0 <= t <= rounds:
                raise InputError(
                    f"detector {index} must be of a check of the code in a cycle up to {rounds}, "
                    f"got coordinates {(x, y, t, kind)}"
                )
            if place[int(t), token[position]] != self.num_detectors:
                raise InputError(f"detector {index} must be the only one with coordinates {(x, y, t, kind)}")
            place[int(t), token[position]] = index
        self.place = torch.from_numpy(place)

    def checks(self, detectors: Tensor) -> Tensor:
        """Return what the checks show: 0 absent, 1 quiet, 2 fired.

        Args:
            detectors: packed, bytes, shape ``(shots, ceil(detectors / 8))``.

        Returns:
            Bytes, shape ``(shots, cycles, tokens)``.
        """
        bits = unpacked(detectors, self.num_detectors) + 1
        return F.pad(bits, (0, 1))[:, self.place.to(bits.device)]


def _positions(code: CSSCode) -> list[Position]:
    """Return where :func:`symdyn_qec.circuits.memory_circuit` puts the checks of a code."""

    def place(check: int) -> tuple[int, int]:
        return divmod(check, code.m) if isinstance(code, BivariateBicycleCode) else (check, 0)

    return [
        (*place(check), kind)
        for kind, checks in enumerate((code.hx, code.hz))
        for check in range(len(checks))
    ]
