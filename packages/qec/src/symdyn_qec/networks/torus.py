r"""A convolution over the space-time torus of a bivariate bicycle code, equivariant under its translations.

Every cell of the torus holds a left and a right data qubit, an X and a Z check; every cycle is one more layer
of the same cells. Messages run along the edges of the Tanner graph and between neighbouring cycles, with one
matrix for each monomial of the code and each kind of node. Translations of the torus permute cells and leave
the matrices alone, so that they act on the network's outputs exactly as on its inputs.

A message to a neighbour is a matrix product followed by a cyclic shift: there is no table of neighbours, and
a compiler fuses the shifts of one update into a single pass over memory.

Source: derived for arXiv 2504.13043 (symmetry) and after the direction-wise messages of arXiv 2604.08358.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed
from symdyn_qec.codes import Basis, BivariateBicycleCode, Monomial

# What a check can show in a cycle, times whether the cycle is the first, in between or the last.
CHECK_STATES = ("absent", "quiet", "fired")
POSITIONS = ("first", "middle", "last")


class Flips(NamedTuple):
    """What a network believes of every data qubit, as log odds of a flip.

    Fields:
        increments: per cycle, shape ``(shots, 2, cycles, n)``; index 0 of the second axis are bit flips.
        net: over all cycles, shape ``(shots, 2, n)``.
    """

    increments: Tensor
    net: Tensor


class TorusNetwork(nn.Module):
    r"""Predicts flips of data qubits from the detectors of a bicycle code's memory experiment.

    Layer by layer, first data qubits and then checks are updated with

    .. math:: x \leftarrow x + \mathrm{GELU}\Big(\mathrm{LayerNorm}\Big(\sum_k W_k x_k\Big)\Big),

    the sum running over the node itself in this, the last and the next cycle, and over its six neighbours.

    Args:
        code: sets the torus and the monomials; three terms in each polynomial.
        width: features per node, at least 1.
        layers: at least 1.
        seed: of the weights to start from.

    Raises:
        InputError: a value out of range.

    Any number of cycles, either basis: checks that are not measured in a cycle are marked as absent.

    >>> from symdyn_qec.codes import bivariate_bicycle
    >>> network = TorusNetwork(bivariate_bicycle("bb72"), width=8, layers=1)
    >>> flips = network(torch.zeros(5, 2, 7, 6, 6, dtype=torch.uint8))
    >>> tuple(flips.increments.shape), tuple(flips.net.shape)
    ((5, 2, 7, 72), (5, 2, 72))
    """

    def __init__(self, code: BivariateBicycleCode, width: int, layers: int, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise InputError(f"width and layers must be at least 1, got {width} and {layers}")
        self.code, self.width = code, width
        # Torch's layers draw from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights"))
            # Data qubits start from their position in time alone.
            self.check_embedding = nn.Parameter(torch.randn(2, len(POSITIONS) * len(CHECK_STATES), width))
            self.data_embedding = nn.Parameter(torch.randn(2, len(POSITIONS), width))
            self.layers = nn.ModuleList(TorusLayer(code.a, code.b, width) for _ in range(layers))
            self.last_data = DataUpdate(code.a, code.b, width)
            self.heads = nn.ModuleList(Head(width) for _ in range(2))

    def forward(self, checks: Tensor) -> Flips:
        """Return the log odds of flips.

        Args:
            checks: what every check shows in every cycle: 0 absent, 1 quiet, 2 fired; X checks first, whole
                numbers, shape ``(shots, 2, cycles, l, m)``.
        """
        shots, _, cycles, _, _ = checks.shape
        position = torch.ones(cycles, dtype=torch.long, device=checks.device)
        position[0], position[-1] = 0, 2
        code = checks.long() + len(CHECK_STATES) * position.view(1, 1, cycles, 1, 1)
        # A product with a one-hot vector: the gradient of a look-up in a tiny table is slow.
        shown = F.one_hot(code, self.check_embedding.shape[1]).to(_compute_type(checks))
        x, z = (shown[:, kind] @ self.check_embedding[kind].to(shown.dtype) for kind in range(2))
        start = self.data_embedding[:, position].to(shown.dtype).view(2, 1, cycles, 1, 1, -1)
        left, right = start.expand(2, shots, cycles, self.code.l, self.code.m, self.width)
        for layer in self.layers:
            left, right, x, z = layer(left, right, x, z)
        left, right = self.last_data(left, right, x, z)
        of_left, of_right = self.heads[0](left), self.heads[1](right)
        increments = torch.cat([of_left[0], of_right[0]], dim=-1)
        return Flips(increments, odd_log_odds(increments) + torch.cat([of_left[1], of_right[1]], dim=-1))

    def readout(self, checks: Tensor, basis: Basis) -> Tensor:
        """Return the log odds of the net flips that the readout sees, shape ``(shots, n)``.

        Args:
            checks: X checks first, shape ``(shots, 2, cycles, l, m)``.
            basis: of the experiment.
        """
        flips: Flips = self(checks)
        return flips.net[:, 0 if basis == "Z" else 1]


class TorusLayer(nn.Module):
    """One round of messages: checks to data qubits, then data qubits to checks."""

    def __init__(self, a: tuple[Monomial, ...], b: tuple[Monomial, ...], width: int) -> None:
        super().__init__()
        self.data = DataUpdate(a, b, width)
        self.checks = CheckUpdate(a, b, width)

    def forward(
        self, left: Tensor, right: Tensor, x: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all nodes after the round."""
        left, right = self.data(left, right, x, z)
        x, z = self.checks(left, right, x, z)
        return left, right, x, z


class DataUpdate(nn.Module):
    """Left qubit h hears X checks ``h - a`` and Z checks ``h + b``; right ones ``h - b`` and ``h + a``."""

    def __init__(self, a: tuple[Monomial, ...], b: tuple[Monomial, ...], width: int) -> None:
        super().__init__()
        self.a, self.b = a, b
        self.from_left, self.from_right = _matrices(width, 3), _matrices(width, 3)
        self.from_x, self.from_z = _matrices(width, 6), _matrices(width, 6)
        self.left, self.right = Residual(width), Residual(width)

    def forward(self, left: Tensor, right: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data qubits after the update."""
        of_x = _products(x, self.from_x)
        of_z = _products(z, self.from_z)
        to_left = _from_cells(of_x[:3], self.a, -1) + _from_cells(of_z[:3], self.b, 1)
        to_right = _from_cells(of_x[3:], self.b, -1) + _from_cells(of_z[3:], self.a, 1)
        to_left = to_left + _through_time(_products(left, self.from_left))
        to_right = to_right + _through_time(_products(right, self.from_right))
        return self.left(left, to_left), self.right(right, to_right)


class CheckUpdate(nn.Module):
    """X check g hears left qubits ``g + a`` and right ones ``g + b``; Z check g ``g - b`` and ``g - a``."""

    def __init__(self, a: tuple[Monomial, ...], b: tuple[Monomial, ...], width: int) -> None:
        super().__init__()
        self.a, self.b = a, b
        self.from_x, self.from_z = _matrices(width, 3), _matrices(width, 3)
        self.from_left, self.from_right = _matrices(width, 6), _matrices(width, 6)
        self.x, self.z = Residual(width), Residual(width)

    def forward(self, left: Tensor, right: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the checks after the update."""
        of_left = _products(left, self.from_left)
        of_right = _products(right, self.from_right)
        to_x = _from_cells(of_left[:3], self.a, 1) + _from_cells(of_right[:3], self.b, 1)
        to_z = _from_cells(of_left[3:], self.b, -1) + _from_cells(of_right[3:], self.a, -1)
        to_x = to_x + _through_time(_products(x, self.from_x))
        to_z = to_z + _through_time(_products(z, self.from_z))
        return self.x(x, to_x), self.z(z, to_z)


class Residual(nn.Module):
    """Add what was heard, normalised and bent."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, own: Tensor, heard: Tensor) -> Tensor:
        """Return the nodes with what they heard."""
        return own + F.gelu(self.norm(heard)).to(own.dtype)


class Head(nn.Module):
    """Log odds of both kinds of flips of one side's qubits: in every cycle, and a correction to their sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        of_cycle, correction = nn.Linear(2 * width, 2), nn.Linear(2 * width, 2)
        # Errors are rare: start from there, and without a correction.
        nn.init.constant_(of_cycle.bias, -4.0)
        nn.init.zeros_(correction.weight)
        nn.init.zeros_(correction.bias)
        self.cycle = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), of_cycle)
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), correction)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return log odds, shape ``(shots, 2, cycles, n / 2)``, and corrections, ``(shots, 2, n / 2)``."""
        normal = self.norm(data)
        cycles = self.cycle(normal).float().flatten(2, 3)
        net = self.net(normal.mean(dim=1)).float().flatten(1, 2)
        return cycles.permute(0, 3, 1, 2), net.permute(0, 2, 1)


def odd_log_odds(log_odds: Tensor) -> Tensor:
    r"""Return the log odds that an odd number of independent events happen.

    With :math:`1 - 2 p_t = -\tanh(l_t / 2)` the product over t is ``1 - 2 p`` of the sum modulo 2.

    Args:
        log_odds: shape ``(..., events, n)``.

    Returns:
        Shape ``(..., n)``, within about 16 of zero.

    >>> odd_log_odds(torch.tensor([[0.0], [3.0]])).item()  # one fair coin is enough
    -0.0
    """
    even = torch.prod(-torch.tanh(log_odds / 2), dim=-2).clamp(-1 + 1e-7, 1 - 1e-7)
    return torch.log1p(-even) - torch.log1p(even)


def _matrices(width: int, count: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(width, count * width) / (9 * width) ** 0.5)


def _products(nodes: Tensor, matrices: Tensor) -> tuple[Tensor, ...]:
    """Return the nodes times each of several matrices, in one large product."""
    return torch.split(nodes @ matrices.to(nodes.dtype), nodes.shape[-1], dim=-1)


def _from_cells(messages: tuple[Tensor, ...], terms: tuple[Monomial, ...], sign: int) -> Tensor:
    """Sum the messages that cell h gets from the cells ``h + sign * term``."""
    moved = [
        torch.roll(message, shifts=(-sign * i, -sign * j), dims=(2, 3))
        for message, (i, j) in zip(messages, terms, strict=True)
    ]
    return moved[0] + moved[1] + moved[2]


def _through_time(messages: tuple[Tensor, ...]) -> Tensor:
    """Sum what a node gets from itself now, in the last and in the next cycle."""
    now, last, following = messages
    before = (0, 0, 0, 0, 0, 0, 1, 0)
    after = (0, 0, 0, 0, 0, 0, 0, 1)
    return now + F.pad(last[:, :-1], before) + F.pad(following[:, 1:], after)


def _compute_type(like: Tensor) -> torch.dtype:
    """Return the type of activations: that of autocast where it is on, else the default."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.get_default_dtype()
