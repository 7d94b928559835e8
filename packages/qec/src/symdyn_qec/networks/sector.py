r"""A small convolution over the space-time torus that decodes one sector and reads the other as hints.

A memory experiment needs the flips of one kind only: bit flips where Z is read out, phase flips where X is.
Checks of that *sector* are nodes that exchange messages with the data qubits; those of the other one are read
once, as hints of errors that flip both. This is little more than half of the work of
:class:`~symdyn_qec.networks.torus.TorusNetwork` at the same width, and for a decoder on one CPU core that
counts.

One network serves both bases. Mapping cell h to -h and left qubits to right ones turns the X checks of a
bicycle code into its Z checks, and an X memory into a Z memory, up to the order of the gates within a cycle;
the network is told the basis for what that order changes.

All that a node hears is gathered into one row, so that an update is one matrix product.

Source: derived for arXiv 2504.13043.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed
from symdyn_qec.codes import Basis, BivariateBicycleCode, Monomial
from symdyn_qec.networks.neighbours import ITSELF, Step, backwards, forwards, reverse, rows_after
from symdyn_qec.networks.torus import CHECK_STATES, POSITIONS, odd_log_odds

BASES: tuple[Basis, Basis] = ("Z", "X")

# Features of a hint. It says three things; more features would be work without use.
HINT_WIDTH = 16


class SectorView:
    """An experiment of either basis as the network sees it: as one that reads out Z.

    Args:
        code: the code.
        basis: of the experiment.

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> view = SectorView(bivariate_bicycle("bb72"), "X")
    >>> seen = view.checks(torch.arange(72).view(1, 2, 1, 6, 6))
    >>> seen[0, :, 0, 0, 1].tolist()  # X check (0, 5) as own, Z check (0, 5) as a hint
    [5, 41]
    """

    def __init__(self, code: BivariateBicycleCode, basis: Basis) -> None:
        self.basis = basis
        cells = np.arange(code.cells).reshape(code.l, code.m)
        if basis == "X":
            i, j = np.ogrid[: code.l, : code.m]
            cells = cells[-i % code.l, -j % code.m]
        flat = cells.ravel()
        halves = [flat, code.cells + flat]
        self._cells = torch.from_numpy(flat)
        self._kinds = [0, 1] if basis == "X" else [1, 0]
        # Where each qubit that the network sees is in the code.
        self.qubits = torch.from_numpy(np.concatenate(halves[::-1] if basis == "X" else halves))

    def checks(self, checks: Tensor) -> Tensor:
        """Return checks of the sector first, then hints; shapes ``(shots, 2, cycles, l, m)``."""
        flat = checks.flatten(3)[:, self._kinds]
        return flat[..., self._cells.to(checks.device)].view(checks.shape)

    def flips(self, flips: Tensor) -> Tensor:
        """Return the sector's flips as the network sees qubits, ``(shots, cycles, n)``.

        Args:
            flips: bit flips first, shape ``(shots, 2, cycles, n)``.
        """
        return flips[:, 0 if self.basis == "Z" else 1][..., self.qubits.to(flips.device)]

    def back(self, values: Tensor) -> Tensor:
        """Return values of the network's qubits in the code's order, shape ``(..., n)``."""
        return values[..., torch.argsort(self.qubits).to(values.device)]


class SectorNetwork(nn.Module):
    r"""Predicts the flips of one sector's data qubits from a memory experiment of a bicycle code.

    Layer by layer, first data qubits and then checks are updated with

    .. math:: x \leftarrow x + \mathrm{GELU}\Big(\mathrm{LayerNorm}\Big(\sum_k W_k x_k\Big)\Big),

    the sum running over the node itself in this, the last and the next cycle, and over its neighbours: three
    checks, or six data qubits.

    Args:
        code: sets the torus and the monomials.
        width: features per node, at least 1.
        layers: at least 1.
        seed: of the weights to start from.

    Raises:
        InputError: a value out of range.

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> network = SectorNetwork(bivariate_bicycle("bb72"), width=8, layers=1)
    >>> increments, net = network(torch.zeros(5, 2, 7, 6, 6, dtype=torch.uint8), torch.zeros(5))
    >>> tuple(increments.shape), tuple(net.shape)
    ((5, 7, 72), (5, 72))
    """

    def __init__(self, code: BivariateBicycleCode, width: int, layers: int, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise InputError(f"width and layers must be at least 1, got {width} and {layers}")
        self.code, self.width = code, width
        states = len(BASES) * len(POSITIONS) * len(CHECK_STATES)
        # Torch's layers draw from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights"))
            self.check_embedding = nn.Parameter(torch.randn(states, width))
            self.hint_embedding = nn.Parameter(torch.randn(states, HINT_WIDTH))
            self.data_embedding = nn.Parameter(torch.randn(2, len(BASES) * len(POSITIONS), width))
            self.hints = nn.ParameterList(_matrices(9, HINT_WIDTH, width) for _ in range(2))
            self.layers = nn.ModuleList(SectorLayer(width) for _ in range(layers))
            self.last_data = nn.ModuleList(SectorUpdate(6, width) for _ in range(2))
            self.heads = nn.ModuleList(SectorHead(width) for _ in range(2))
        self._tables: dict[tuple[int, int], Tables] = {}

    def forward(self, checks: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log odds of flips in every cycle and net of all cycles, in the view's order of qubits.

        Args:
            checks: 0 absent, 1 quiet, 2 fired; the sector's first, then hints; whole numbers, shape
                ``(shots, 2, cycles, l, m)``; see :class:`SectorView`.
            basis: 0 for a Z memory, 1 for an X memory, shape ``(shots,)``.

        Returns:
            Shapes ``(shots, cycles, n)`` and ``(shots, n)``.
        """
        shots, _, cycles, _, _ = checks.shape
        table = self._table(shots, cycles, checks.device)
        position = torch.ones(cycles, dtype=torch.long, device=checks.device)
        position[0], position[-1] = 0, 2
        place = position + len(POSITIONS) * basis.long().view(-1, 1)
        state = (checks.flatten(3).long() + len(CHECK_STATES) * place.view(shots, 1, cycles, 1)).transpose(
            0, 1
        )
        own = _look_up(self.check_embedding, state[0].flatten())
        hints = _look_up(self.hint_embedding, state[1].flatten())
        place = place.view(-1, 1).expand(-1, self.code.cells).flatten()
        left, right = (
            _look_up(start, place) + hear(mix, edges, hints)
            for start, mix, edges in zip(self.data_embedding, self.hints, table.hints, strict=True)
        )
        for layer in self.layers:
            left, right, own = layer(left, right, own, table)
        left, right = (
            update(x, table.left if side == 0 else table.right, x, own)
            for side, (update, x) in enumerate(zip(self.last_data, (left, right), strict=True))
        )
        shape = (shots, cycles, self.code.cells, self.width)
        parts = [head(x.view(shape)) for head, x in zip(self.heads, (left, right), strict=True)]
        increments = torch.cat([part[0] for part in parts], dim=-1)
        return increments, odd_log_odds(increments) + torch.cat([part[1] for part in parts], dim=-1)

    def readout(self, checks: Tensor, basis: Basis) -> Tensor:
        """Return the log odds of the net flips that the readout sees, shape ``(shots, n)``.

        Args:
            checks: X checks first, shape ``(shots, 2, cycles, l, m)``.
            basis: of the experiment.
        """
        view = SectorView(self.code, basis)
        number = torch.full((len(checks),), BASES.index(basis), device=checks.device)
        return view.back(self(view.checks(checks), number)[1])

    def _table(self, shots: int, cycles: int, device: torch.device) -> "Tables":
        key = (shots, cycles)
        if key not in self._tables:
            if len(self._tables) >= 4:  # batches come in one size, the last in another
                self._tables.clear()
            self._tables[key] = Tables(self.code, shots, cycles, device)
        return self._tables[key]


class Edges(NamedTuple):
    """Who hears whom, in one kind of update.

    Fields:
        heard: for every node that hears, rows of those that it hears, the sources one after the other and
            then a row of zeros, shape ``(rows, sum of terms)``.
        hearers: for every source, the rows of those that hear its nodes, or of zeros, each of shape
            ``(rows, terms)``; the way of the gradients.
    """

    heard: Tensor
    hearers: tuple[Tensor, ...]


class Tables:
    """The edges between left qubits, right qubits and checks of all shots of a batch.

    Args:
        code: the code.
        shots: in the batch.
        cycles: of the experiment.
        device: where the network is.
    """

    def __init__(self, code: BivariateBicycleCode, shots: int, cycles: int, device: torch.device) -> None:
        self._shape, self._device = (shots, cycles, code.l, code.m), device
        self.left = self._edges(ITSELF, forwards(code.b))
        self.right = self._edges(ITSELF, forwards(code.a))
        self.own = self._edges(ITSELF, backwards(code.b), backwards(code.a))
        self.hints = [self._edges(hint_steps(terms)) for terms in (code.a, code.b)]

    def _edges(self, *sources: tuple[Step, ...]) -> Edges:
        rows = int(np.prod(self._shape))
        heard = [
            np.where(found < rows, found + place * rows, len(sources) * rows)
            for place, steps in enumerate(sources)
            for found in (rows_after(self._shape, step) for step in steps)
        ]
        hearers = [[rows_after(self._shape, step) for step in reverse(steps)] for steps in sources]
        return Edges(self._index(heard), tuple(map(self._index, hearers)))

    def _index(self, rows: list[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.stack(rows, axis=1).astype(np.int32)).to(self._device)


def hint_steps(terms: tuple[Monomial, ...]) -> tuple[Step, ...]:
    """Return the steps from a data qubit to the hints that it hears: three checks in three cycles."""
    return tuple((time, step[1]) for step in backwards(terms) for time, _ in ITSELF)


class Heard(torch.autograd.Function):
    """What nodes hear: the rows of their sources side by side, times one matrix.

    The gradient takes the same way back, where torch's own would add up row by row.
    """

    @staticmethod
    def forward(ctx: Any, mix: Tensor, edges: Edges, *sources: Tensor) -> Tensor:
        """Return the products, shape ``(rows, width)``."""
        nodes = _with_zeros(sources)
        ctx.save_for_backward(mix, nodes)
        ctx.edges = edges
        return _product(nodes, edges.heard, mix.to(nodes.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of matrix and sources."""
        mix, nodes = ctx.saved_tensors
        heard, hearers = ctx.edges
        width = nodes.shape[1]
        back = _with_zeros((gradient,))
        parts = mix.to(gradient.dtype).split([index.shape[1] * width for index in hearers])
        of_sources = (
            _product(back, index, part.view(-1, width, part.shape[1]).transpose(1, 2).flatten(0, 1))
            for index, part in zip(hearers, parts, strict=True)
        )
        return _matrix_gradient(nodes, heard, gradient.contiguous()).to(mix.dtype), None, *of_sources


def hear(mix: Tensor, edges: Edges, *sources: Tensor) -> Tensor:
    """Return the rows of the sources that each node hears side by side, times the matrix."""
    if not torch.is_grad_enabled():
        return _product(_with_zeros(sources), edges.heard, mix.to(sources[0].dtype))
    heard: Tensor = Heard.apply(mix, edges, *sources)  # type: ignore[no-untyped-call]  # torch's own
    return heard


class SectorLayer(nn.Module):
    """One round of messages: checks to data qubits, then data qubits to checks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right, self.own = (
            SectorUpdate(6, width),
            SectorUpdate(6, width),
            SectorUpdate(9, width),
        )

    def forward(
        self, left: Tensor, right: Tensor, own: Tensor, table: Tables
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all nodes after the round."""
        left, right = self.left(left, table.left, left, own), self.right(right, table.right, right, own)
        return left, right, self.own(own, table.own, own, left, right)


class SectorUpdate(nn.Module):
    """Add what was heard: mixed, normalised and bent."""

    def __init__(self, heard: int, width: int) -> None:
        super().__init__()
        self.mix = _matrices(heard, width, width)
        self.bend = Bend(width)

    def forward(self, own: Tensor, edges: Edges, *sources: Tensor) -> Tensor:
        """Return the nodes, shape ``(rows, width)``, with what they heard."""
        bent: Tensor = self.bend(own, hear(self.mix, edges, *sources))
        return bent


class Bend(nn.Module):
    """The part of an update that a compiler fuses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, own: Tensor, heard: Tensor) -> Tensor:
        """Return the nodes with what they heard, normalised and bent."""
        return own + F.gelu(self.norm(heard)).to(own.dtype)


class SectorHead(nn.Module):
    """Log odds of the flips of one side's qubits: in every cycle, and a correction to their sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        of_cycle, correction = nn.Linear(2 * width, 1), nn.Linear(2 * width, 1)
        # Errors are rare: start from there, and without a correction.
        nn.init.constant_(of_cycle.bias, -4.0)
        nn.init.zeros_(correction.weight)
        nn.init.zeros_(correction.bias)
        self.cycle = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), of_cycle)
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), correction)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return log odds, shape ``(shots, cycles, n / 2)``, and corrections, ``(shots, n / 2)``."""
        normal = self.norm(data)
        return self.cycle(normal).squeeze(-1).float(), self.net(normal.mean(dim=1)).squeeze(-1).float()


def _with_zeros(sources: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([*sources, sources[0].new_zeros(1, sources[0].shape[1])])


def _product(nodes: Tensor, index: Tensor, matrix: Tensor) -> Tensor:
    if _fast(nodes, matrix):
        from symdyn_qec.networks import gather_product as fast

        if fast.fits(len(index), matrix.shape[1]):
            found = fast.gather_product(nodes.numpy(), index.numpy(), matrix.contiguous().numpy())
            return torch.from_numpy(found)
    return F.embedding(index, nodes).flatten(1) @ matrix


def _matrix_gradient(nodes: Tensor, index: Tensor, gradient: Tensor) -> Tensor:
    if _fast(nodes, gradient):
        from symdyn_qec.networks import gather_product as fast

        if fast.fits(len(index), gradient.shape[1]) and nodes.shape[1] % fast.MATRIX_ROWS == 0:
            found = fast.matrix_gradient(nodes.numpy(), index.numpy(), gradient.numpy())
            return torch.from_numpy(found)
    return F.embedding(index, nodes).flatten(1).T @ gradient


def _fast(*factors: Tensor) -> bool:
    """Whether our own product on the CPU takes these; numba, which it needs, is slow to import."""
    here = all(factor.device.type == "cpu" and factor.dtype == torch.float32 for factor in factors)
    return here and not torch.compiler.is_exporting()


def _matrices(terms: int, width: int, out: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(terms * width, out) / (terms * width) ** 0.5)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # A product with a one-hot vector: the gradient of a look-up in a tiny table is slow.
    return F.one_hot(index, len(table)).to(table.dtype) @ table
