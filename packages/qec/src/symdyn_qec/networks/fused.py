"""Networks on one CPU core, shot by shot, with everything that a shot needs in the cache.

This computes what the modules compute, in float32, from their weights. All nodes of a shot are rows of one
array, in two copies: an update reads one and writes the other. A single shot takes no longer than one of
many.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_qec.codes import Basis
from symdyn_qec.networks import gather_product as fast
from symdyn_qec.networks.neighbours import ITSELF, Step, backwards, forwards, rows_after
from symdyn_qec.networks.sector import BASES, SectorLayer, SectorNetwork, SectorUpdate, SectorView, hint_steps
from symdyn_qec.networks.torus import CHECK_STATES, POSITIONS, TorusLayer, TorusNetwork, odd_log_odds

Floats = NDArray[np.float32]


class Heard(NamedTuple):
    """Neighbours of one kind: where they are, their matrices, and whether they were updated just before."""

    kind: int
    steps: tuple[Step, ...]
    matrices: list[Tensor]
    updated: bool = False


class Rows:
    """Where nodes are: kinds one after the other, twice, and a row of zeros.

    Args:
        kinds: how many.
        shape: cycles, l and m.
    """

    def __init__(self, kinds: int, shape: tuple[int, int, int]) -> None:
        self.kinds, self.shape, self.count = kinds, (1, *shape), int(np.prod(shape))
        self.total = 2 * kinds * self.count + 1

    def of(self, kind: int, copy: int) -> int:
        """Return the first row of a kind."""
        return (copy * self.kinds + kind) * self.count

    def update(self, kind: int, copy: int, norm: nn.LayerNorm, sources: list[Heard]) -> fast.Update:
        """Return the update of a kind that reads one copy and writes the other."""
        index = []
        for source in sources:
            first = self.of(source.kind, 1 - copy if source.updated else copy)
            for step in source.steps:
                rows = rows_after(self.shape, step)
                index.append(np.where(rows < self.count, first + rows, self.total - 1))
        matrices = torch.cat([matrix for source in sources for matrix in source.matrices])
        return fast.Update(
            heard=np.stack(index, axis=1).astype(np.int32),
            matrix=_floats(matrices),
            scale=_floats(norm.weight),
            shift=_floats(norm.bias),
            own=self.of(kind, copy),
            to=self.of(kind, 1 - copy),
        )


def fused(
    network: TorusNetwork | SectorNetwork, basis: Basis, cycles: int
) -> "FusedTorus | FusedSector | None":
    """Return a network in this form, or ``None`` where its size does not allow it.

    Args:
        network: with its weights; later changes to them are not seen.
        basis: of the experiment.
        cycles: with the readout.
    """
    if not fast.fits(cycles * network.code.cells, network.width):
        return None
    if isinstance(network, TorusNetwork):
        return FusedTorus(network, basis, cycles)
    return FusedSector(network, basis, cycles)


class FusedTorus:
    """A :class:`~symdyn_qec.networks.torus.TorusNetwork` for one basis.

    Args:
        network: with its weights; later changes to them are not seen.
        basis: of the experiment.
        cycles: with the readout.
    """

    def __init__(self, network: TorusNetwork, basis: Basis, cycles: int) -> None:
        self._sector = 0 if basis == "Z" else 1
        self._heads = network.heads
        self._rows = Rows(4, (cycles, network.code.l, network.code.m))
        self._position = _positions(cycles)
        self._checks = _floats(network.check_embedding)
        self._data = _floats(network.data_embedding)[:, self._position].repeat(network.code.cells, axis=1)
        updates = []
        left, right, x, z = range(4)
        layers = cast("list[TorusLayer]", list(network.layers))
        data = [*(layer.data for layer in layers), network.last_data]
        for number, part in enumerate(data):
            copy, a, b = number % 2, part.a, part.b
            of_x, of_z = _matrices(part.from_x), _matrices(part.from_z)
            for kind, own, norm, to_x, to_z, place in (
                (left, part.from_left, part.left, a, b, slice(3)),
                (right, part.from_right, part.right, b, a, slice(3, 6)),
            ):
                itself = Heard(kind, ITSELF, _matrices(own))
                heard = [Heard(x, backwards(to_x), of_x[place]), Heard(z, forwards(to_z), of_z[place])]
                updates.append(self._rows.update(kind, copy, norm.norm, [itself, *heard]))
            if number == len(layers):
                break
            checks = layers[number].checks
            of_left, of_right = _matrices(checks.from_left), _matrices(checks.from_right)
            for kind, own, norm, to_left, to_right, place in (
                (x, checks.from_x, checks.x, forwards(a), forwards(b), slice(3)),
                (z, checks.from_z, checks.z, backwards(b), backwards(a), slice(3, 6)),
            ):
                itself = Heard(kind, ITSELF, _matrices(own))
                heard = [
                    Heard(left, to_left, of_left[place], updated=True),
                    Heard(right, to_right, of_right[place], updated=True),
                ]
                updates.append(self._rows.update(kind, copy, norm.norm, [itself, *heard]))
        self._updates, self._last = fast.Updates(updates), len(data) % 2

    def __call__(self, checks: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the log odds of flips, ``(shots, cycles, n)``, and of net flips, ``(shots, n)``.

        Args:
            checks: what every check shows, shape ``(shots, 2, cycles, l, m)``; see the network.
        """
        shots, _, cycles, _, _ = checks.shape
        rows, width = self._rows, self._checks.shape[2]
        nodes = np.zeros((rows.total, width), dtype=np.float32)
        data = np.empty((2, shots, rows.count, width), dtype=np.float32)
        state = checks.reshape(shots, 2, rows.count) + len(CHECK_STATES) * self._position.repeat(
            rows.count // cycles
        )
        for shot in range(shots):
            nodes[: 2 * rows.count] = self._data.reshape(-1, width)
            for kind in range(2):
                first = rows.of(2 + kind, 0)
                nodes[first : first + rows.count] = self._checks[kind][state[shot, kind]]
            self._updates(nodes)
            first = rows.of(0, self._last)
            data[:, shot] = nodes[first : first + 2 * rows.count].reshape(2, rows.count, width)
        return self._read(torch.from_numpy(data).view(2, shots, *rows.shape[1:], width))

    def _read(self, data: Tensor) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            parts = [head(side) for head, side in zip(self._heads, data, strict=True)]
            increments = torch.cat([part[0][:, self._sector] for part in parts], dim=-1)
            corrections = torch.cat([part[1][:, self._sector] for part in parts], dim=-1)
            return increments.numpy(), (odd_log_odds(increments) + corrections).numpy()


class FusedSector:
    """A :class:`~symdyn_qec.networks.sector.SectorNetwork` for one basis.

    Args:
        network: with its weights; later changes to them are not seen.
        basis: of the experiment.
        cycles: with the readout.
    """

    def __init__(self, network: SectorNetwork, basis: Basis, cycles: int) -> None:
        code = network.code
        self._view = SectorView(code, basis)
        self._heads = network.heads
        self._rows = Rows(3, (cycles, code.l, code.m))
        position = _positions(cycles) + len(POSITIONS) * BASES.index(basis)
        self._states = len(CHECK_STATES) * position.repeat(code.cells)
        self._checks, self._hints = _floats(network.check_embedding), _floats(network.hint_embedding)
        self._data = _floats(network.data_embedding)[:, position].repeat(code.cells, axis=1)
        shape = (1, cycles, code.l, code.m)
        self._hinted = [
            (
                np.stack([rows_after(shape, step) for step in hint_steps(terms)], axis=1).astype(np.int32),
                _floats(mix),
            )
            for terms, mix in zip((code.a, code.b), network.hints, strict=True)
        ]
        self._nothing = np.zeros((1, self._hints.shape[1]), dtype=np.float32)
        left, right, own = range(3)
        updates = []
        layers = cast("list[SectorLayer]", list(network.layers))
        data = [(layer.left, layer.right) for layer in layers]
        data.append(cast("tuple[SectorUpdate, SectorUpdate]", tuple(network.last_data)))
        for number, (of_left, of_right) in enumerate(data):
            copy = number % 2
            for kind, part, steps in ((left, of_left, forwards(code.b)), (right, of_right, forwards(code.a))):
                heard = [Heard(kind, ITSELF, [part.mix]), Heard(own, steps, [])]
                updates.append(self._rows.update(kind, copy, part.bend.norm, heard))
            if number == len(layers):
                break
            part = layers[number].own
            heard = [
                Heard(own, ITSELF, [part.mix]),
                Heard(left, backwards(code.b), [], updated=True),
                Heard(right, backwards(code.a), [], updated=True),
            ]
            updates.append(self._rows.update(own, copy, part.bend.norm, heard))
        self._updates, self._last = fast.Updates(updates), len(data) % 2

    def __call__(self, checks: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the log odds of flips, ``(shots, cycles, n)``, and of net flips, ``(shots, n)``.

        Args:
            checks: what every check shows, X checks first, shape ``(shots, 2, cycles, l, m)``.
        """
        shots, _, cycles, _, _ = checks.shape
        rows, width = self._rows, self._checks.shape[1]
        nodes = np.zeros((rows.total, width), dtype=np.float32)
        data = np.empty((2, shots, rows.count, width), dtype=np.float32)
        seen = self._view.checks(torch.from_numpy(checks)).numpy().reshape(shots, 2, rows.count)
        for shot, (own, hints) in enumerate(seen + self._states):
            heard = np.concatenate([self._hints[hints], self._nothing])
            for side, (index, mix) in enumerate(self._hinted):
                nodes[rows.of(side, 0) : rows.of(side + 1, 0)] = self._data[side] + fast.gather_product(
                    heard, index, mix
                )
            nodes[rows.of(2, 0) : rows.of(3, 0)] = self._checks[own]
            self._updates(nodes)
            first = rows.of(0, self._last)
            data[:, shot] = nodes[first : first + 2 * rows.count].reshape(2, rows.count, width)
        with torch.inference_mode():
            sides = torch.from_numpy(data).view(2, shots, cycles, -1, width)
            parts = [head(side) for head, side in zip(self._heads, sides, strict=True)]
            increments = torch.cat([part[0] for part in parts], dim=-1)
            net = odd_log_odds(increments) + torch.cat([part[1] for part in parts], dim=-1)
            return self._view.back(increments).numpy(), self._view.back(net).numpy()


def _positions(cycles: int) -> NDArray[np.int64]:
    """Return 0 for the first cycle, 2 for the last and 1 for those in between."""
    position = np.ones(cycles, dtype=np.int64)
    position[0], position[-1] = 0, len(POSITIONS) - 1
    return position


def _matrices(stacked: Tensor) -> list[Tensor]:
    """Return the matrices that a network holds side by side."""
    return list(torch.split(stacked, stacked.shape[0], dim=1))


def _floats(values: Tensor) -> Floats:
    found: Floats = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return found
