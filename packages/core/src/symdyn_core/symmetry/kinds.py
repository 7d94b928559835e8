r"""The kinds of parameter symmetry: transformations of the weights that leave a network's function unchanged.

A symmetry is a group acting on the parameters, :math:`f(g\theta, x) = f(\theta, x)` for all parameters and
inputs. A continuous one conserves a charge under gradient flow (arXiv 2402.07193); a discrete one, and every
reflection inside a continuous one, has states that it leaves in place, and training that falls into such a
state has lost capacity (arXiv 2309.16932).

===================  ===================================  ==========================  ======================
kind                 acts on a layer of n units as        exists where                leaves in place
===================  ===================================  ==========================  ======================
positive rescaling   incoming times s, outgoing over s    s > 0 passes through        a unit without weights
scale invariance     incoming times s                     a normalisation follows     a unit without weights
norm gain            gain and bias times s, readers /s    weights read a norm         a unit without weights
permutation          units change places                  always                      two equal units
sign flip            all weights of a unit change sign    activation is odd           a unit without weights
general linear       incoming times M, outgoing over M    nothing acts in between     a layer of lower rank
rotation             incoming and outgoing times R        only the norm is seen       a layer of lower rank
translation          see :mod:`.translation`              an offset is not seen       nothing
===================  ===================================  ==========================  ======================
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import Params
from symdyn_core.symmetry.units import Axis, Units

Generator = Callable[[Params], dict[str, Tensor]]
"""An infinitesimal transformation: the velocity of every parameter it touches."""


class Symmetry(ABC):
    """A group that acts on the parameters and leaves the function of the network unchanged."""

    kind: ClassVar[str]
    """The field's word for it."""

    @property
    @abstractmethod
    def layer(self) -> str:
        """Qualified name of the layer whose units are transformed."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """Qualified names of the parameters touched."""

    @property
    @abstractmethod
    def group(self) -> str:
        """The group, in one word: ``S_8``, ``Z_2^8``, ``R_+^8``, ``GL(8)``, ``O(8)``, ``R^8``."""

    @property
    def dimension(self) -> int:
        """Dimension of the orbit through a generic point; 0 for a discrete group."""
        return 0

    @property
    def order(self) -> int | None:
        """Number of elements of a discrete group; None for a continuous one."""
        return None

    @abstractmethod
    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a group element far from the identity, as :meth:`act` takes it."""

    @abstractmethod
    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the transformed parameters; those not touched are passed on."""

    def generators(self) -> Iterator[Generator]:
        """Yield a basis of the Lie algebra, each as ``params -> velocities``; nothing if discrete."""
        yield from ()

    def charge(self, params: Params) -> Tensor | None:
        r"""Return what gradient flow conserves because of this symmetry; None where nothing quadratic is.

        Quadratic, :math:`C_k=\theta^TA_k\theta` with symmetric :math:`A_k`: on a gradient in place of the
        parameters it is what one step of SGD adds, over the squared learning rate.
        """
        return None

    @abstractmethod
    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the nearest state that a reflection of the group leaves in place.

        Where the group has no reflection (positive factors) any element but the identity counts.

        Raises:
            InputError: no element but the identity leaves anything in place.
        """

    def distance(self, params: Params) -> float:
        """Return the Euclidean distance to :meth:`project`; infinite where nothing is left in place."""
        projected = self.project(params)
        squares = [(projected[name] - params[name]).square().sum() for name in self.parameters]
        return math.sqrt(float(sum(squares)))


@dataclass(frozen=True)
class _UnitSymmetry(Symmetry):
    units: Units

    @property
    def layer(self) -> str:
        return self.units.layer

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.units.parameters

    def _without_weakest(self, params: Params) -> dict[str, Tensor]:
        weakest = self.units.all_weights(params).norm(dim=1).argmin()
        keep = torch.ones(self.units.size, dtype=torch.bool)
        keep[weakest] = False
        return self.units.transform_axes(params, lambda _, rows: rows * keep[:, None].to(rows))


@dataclass(frozen=True)
class PositiveRescaling(_UnitSymmetry):
    r"""Each unit's incoming weights times :math:`s_i>0`, its outgoing weights divided by it.

    Exists where the activation is positively homogeneous: ReLU, leaky ReLU. An element is the vector
    :math:`s`, shape (units,).

    >>> rescaling = PositiveRescaling(Units("0", 1, (Axis("w", 0),), (Axis("v", 1),)))
    >>> params = {"w": torch.tensor([[3.0]]), "v": torch.tensor([[2.0]])}
    >>> rescaling.act(params, torch.tensor([2.0]))
    {'w': tensor([[6.]]), 'v': tensor([[1.]])}
    >>> rescaling.charge(params)
    tensor([-5.])
    """

    kind = "positive rescaling"

    @property
    def group(self) -> str:
        """Positive factors, one per unit."""
        return f"R_+^{self.units.size}" if self.units.size > 1 else "R_+"

    @property
    def dimension(self) -> int:
        """One per unit."""
        return self.units.size

    def power(self, place: Axis) -> float:
        """Return the power of s that multiplies the weights along an axis."""
        return place.power if place in self.units.incoming else -place.power

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return log-normal factors."""
        return torch.exp(0.5 * torch.randn(self.units.size, generator=generator, dtype=torch.float64))

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with incoming rows times ``element`` and outgoing rows divided by it."""
        return self.units.transform_axes(
            params, lambda place, rows: rows * (element ** self.power(place)).to(rows)[:, None]
        )

    def generators(self) -> Iterator[Generator]:
        """Yield one generator per unit."""
        for unit in range(self.units.size):
            yield partial(self._velocity, unit)

    def _velocity(self, unit: int, params: Params) -> dict[str, Tensor]:
        def velocity(place: Axis, rows: Tensor) -> Tensor:
            moved = torch.zeros_like(rows)
            moved[unit] = self.power(place) * rows[unit]
            return moved

        return self.units.tangent(params, velocity)

    def weighted_norms(self, params: Params) -> list[tuple[float, Tensor]]:
        """Return for each axis the power of s and the squared norms of its rows, shape (units,)."""
        return [
            (self.power(place), self.units.rows(params, place).square().sum(dim=1))
            for place in self.units.axes
        ]

    def charge(self, params: Params) -> Tensor:
        r"""Return :math:`C_i=\|w^{out}_i\|^2-\|w^{in}_i\|^2`, shape (units,).

        Source: arXiv 2402.07193, the Noether charge of A = diag(1 on outgoing, -1 on incoming); constant
        under gradient flow, and :math:`\dot C=-2\lambda C` under the weight decay :math:`\lambda\theta`.
        """
        norms = self.weighted_norms(params)
        return -torch.stack([power * norm for power, norm in norms]).sum(dim=0)

    def balancing_element(self, params: Params) -> Tensor:
        r"""Return the factors that make every charge zero, :math:`s_i^2=\|w^{out}_i\|/\|w^{in}_i\|`.

        A unit without incoming or without outgoing weights cannot be balanced and keeps the factor 1. Weights
        with a power other than one count with it, and the factor is then exact to first order.
        """
        norms = self.weighted_norms(params)
        incoming = sum(power * norm for power, norm in norms if power > 0)
        outgoing = sum(-power * norm for power, norm in norms if power < 0)
        incoming, outgoing = torch.as_tensor(incoming).sqrt(), torch.as_tensor(outgoing).sqrt()
        possible = (incoming > 0) & (outgoing > 0)
        return torch.where(possible, torch.sqrt(outgoing / incoming), torch.ones_like(incoming))

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters without the weakest unit: only a zero unit is left in place."""
        return self._without_weakest(params)


@dataclass(frozen=True)
class NormGain(PositiveRescaling):
    """Gain and bias of a normalisation times s, the weights that read it divided by s.

    The readers absorb the gain: positive rescaling of each direction behind a LayerNorm or RMSNorm.
    """

    kind = "norm gain"


@dataclass(frozen=True)
class ScaleInvariance(PositiveRescaling):
    """Weights in front of a normalisation, times s: nothing has to absorb the factor.

    >>> scale = ScaleInvariance(Units("0", 1, (Axis("w", 0),), ()))
    >>> scale.charge({"w": torch.tensor([[3.0, 4.0]])})
    tensor([25.])
    """

    kind = "scale invariance"

    def charge(self, params: Params) -> Tensor:
        r"""Return :math:`C_i=\|w_i\|^2`, shape (units,).

        Source: arXiv 2402.07193, A = I: constant under gradient flow, never decreasing under SGD.
        """
        return -super().charge(params)


@dataclass(frozen=True)
class Permutation(_UnitSymmetry):
    """The units of a layer change places. An element lists, for each place, the unit that moves there.

    >>> swap = Permutation(Units("0", 2, (Axis("w", 0),), (Axis("v", 1),)))
    >>> params = {"w": torch.tensor([[1.0], [2.0]]), "v": torch.tensor([[3.0, 4.0]])}
    >>> swap.act(params, torch.tensor([1, 0]))
    {'w': tensor([[2.],
            [1.]]), 'v': tensor([[4., 3.]])}
    """

    kind = "permutation"

    @property
    def group(self) -> str:
        """The symmetric group."""
        return f"S_{self.units.size}"

    @property
    def order(self) -> int:
        """Number of orders of the units."""
        return math.factorial(self.units.size)

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a random cycle through all units."""
        order = torch.randperm(self.units.size, generator=generator)
        # No unit stays in its place, so that the weights of each one are tested.
        cycle = torch.empty_like(order)
        cycle[order] = order.roll(1)
        return cycle

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with unit ``element[i]`` in place i."""
        return self.units.transform_axes(params, lambda _, rows: rows[element])

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters with the two most similar units replaced by their mean."""
        weights = self.units.all_weights(params)
        gaps = torch.cdist(weights, weights)
        gaps.fill_diagonal_(math.inf)
        pair = list(divmod(int(gaps.argmin()), self.units.size))

        def merge(_: Axis, rows: Tensor) -> Tensor:
            merged = rows.clone()
            merged[pair] = rows[pair].mean(dim=0)
            return merged

        return self.units.transform_axes(params, merge)

    def distance(self, params: Params) -> float:
        r"""Return :math:`\min_{i<j}\|\theta_i-\theta_j\|/\sqrt2`: a swap leaves two equal units in place."""
        return float(torch.nn.functional.pdist(self.units.all_weights(params)).min()) / math.sqrt(2)


@dataclass(frozen=True)
class SignFlip(_UnitSymmetry):
    """All weights of a unit change sign. An element is a vector of +1 and -1, shape (units,).

    Exists where the activation is odd: tanh.

    >>> flip = SignFlip(Units("0", 1, (Axis("w", 0),), (Axis("v", 1),)))
    >>> flip.distance({"w": torch.tensor([[3.0]]), "v": torch.tensor([[4.0]])})
    5.0
    """

    kind = "sign flip"

    @property
    def group(self) -> str:
        """A sign for each unit."""
        return f"Z_2^{self.units.size}" if self.units.size > 1 else "Z_2"

    @property
    def order(self) -> int:
        """Number of choices of signs."""
        return int(2**self.units.size)

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return random signs, at least one of them negative."""
        signs = 1.0 - 2.0 * torch.randint(2, (self.units.size,), generator=generator, dtype=torch.float64)
        chosen = torch.randint(self.units.size, (1,), generator=generator)
        signs[chosen] = -1.0
        return signs

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with all weights of unit i times ``element[i]``."""
        return self.units.transform_axes(params, lambda _, rows: rows * element[:, None].to(rows))

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters without the weakest unit: a flip leaves only a zero unit in place."""
        return self._without_weakest(params)


@dataclass(frozen=True)
class _MatrixSymmetry(_UnitSymmetry):
    """A group of n x n matrices acting on the units, with lower rank as what it leaves in place."""

    def incoming_weights(self, params: Params) -> Tensor:
        """Return the rows that transform with the matrix, shape (n, weights)."""
        return self.units.incoming_weights(params)

    def outgoing_weights(self, params: Params) -> Tensor:
        """Return the rows that transform with its inverse transpose, shape (n, weights)."""
        return self.units.outgoing_weights(params)

    def project(self, params: Params) -> dict[str, Tensor]:
        r"""Return the parameters without the weakest direction n: the state that I - 2nn^T leaves in place.

        Source: arXiv 2309.16932, the mirrors of a rotation symmetry are I - 2nn^T for every unit vector n.
        """
        weights = self.units.all_weights(params)
        weakest = torch.linalg.eigh(weights @ weights.T).eigenvectors[:, :1]
        return self.units.transform_axes(params, lambda _, rows: rows - weakest @ (weakest.T @ rows))


@dataclass(frozen=True)
class GeneralLinear(_MatrixSymmetry):
    r"""Between two linear maps: incoming rows :math:`Mw`, outgoing rows :math:`M^{-T}v`, any invertible M.

    Contains the permutations, sign flips and rescalings of the same units. An element is M, shape
    (units, units).

    >>> gl = GeneralLinear(Units("0", 1, (Axis("w", 0),), (Axis("v", 1),)), fan_in=1, fan_out=1)
    >>> gl.act({"w": torch.tensor([[3.0]]), "v": torch.tensor([[2.0]])}, torch.tensor([[-2.0]]))
    {'w': tensor([[-6.]]), 'v': tensor([[-1.]])}
    """

    kind = "general linear"

    fan_in: int
    """Incoming weights of a unit, bias included."""
    fan_out: int
    """Outgoing weights of a unit."""

    @property
    def group(self) -> str:
        """The invertible matrices."""
        return f"GL({self.units.size})"

    @property
    def dimension(self) -> int:
        r"""Return :math:`n^2-(n-n_{in})_+(n-n_{out})_+`.

        The second term is the dimension of the matrices I + X with XW = 0 and VX = 0, which move nothing;
        they exist only where the layer is wider than both what writes to it and what reads from it.
        """
        n = self.units.size
        return n * n - max(n - self.fan_in, 0) * max(n - self.fan_out, 0)

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a random matrix with singular values in [1/2, 2], so that rounding is not amplified."""
        n = self.units.size
        left, right = (random_rotation(n, generator) for _ in range(2))
        scales = 2 ** (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        element: Tensor = left @ (scales[:, None] * right)
        return element

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with incoming rows mapped by M and outgoing rows by its inverse transpose."""
        return self.units.transform(
            params,
            lambda rows: element.to(rows) @ rows,
            lambda rows: torch.linalg.solve(element.T.to(rows), rows),
        )

    def generators(self) -> Iterator[Generator]:
        """Yield one generator for each entry of M."""
        n = self.units.size
        for entry in range(n * n):
            yield partial(self._velocity, *divmod(entry, n))

    def _velocity(self, i: int, j: int, params: Params) -> dict[str, Tensor]:
        def velocity(place: Axis, rows: Tensor) -> Tensor:
            moved = torch.zeros_like(rows)
            if place in self.units.incoming:
                moved[i] = rows[j]
            else:
                moved[j] = -rows[i]
            return moved

        return self.units.tangent(params, velocity)

    def charge(self, params: Params) -> Tensor:
        r"""Return :math:`C=w^{out}w^{out\,T}-w^{in}w^{in\,T}`, shape (units, units), symmetric.

        Source: arXiv 2402.07193, the charges of all symmetric generators at once; re-derived.
        """
        incoming, outgoing = self.units.incoming_weights(params), self.units.outgoing_weights(params)
        return outgoing @ outgoing.T - incoming @ incoming.T


@dataclass(frozen=True)
class Rotation(_MatrixSymmetry):
    r"""Where only the length of the units' vector is seen: incoming rows and outgoing rows times R.

    Weights that read through a gain :math:`\gamma` are mapped by :math:`\gamma^{-1}R\gamma`, what is added
    behind it by :math:`\gamma R\gamma^{-1}`: linear in each weight, rational in the gain. An element is
    R, shape (units, units), orthogonal.

    >>> rotation = Rotation(Units("0", 2, (Axis("w", 0),), ()))
    >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> rotation.act({"w": torch.tensor([[1.0], [2.0]])}, quarter)["w"].tolist()
    [[-2.0], [1.0]]
    """

    kind = "rotation"

    fixes_ones: bool = False
    """Whether R must keep the vector (1, ..., 1), as in front of a LayerNorm."""

    @property
    def group(self) -> str:
        """The orthogonal matrices; those that keep one vector are the orthogonal group of one less."""
        return f"O({self.units.size - self.fixes_ones})"

    @property
    def dimension(self) -> int:
        """Return the number of planes."""
        n = self.units.size - self.fixes_ones
        return n * (n - 1) // 2

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a random rotation."""
        basis = self._basis()
        return basis @ random_rotation(basis.shape[1], generator) @ basis.T + self._kept(basis)

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with all rows rotated, through the gain where there is one."""
        return self.units.transform_axes(
            params, lambda place, rows: self._through_gain(params, place, rows, element)
        )

    def generators(self) -> Iterator[Generator]:
        """Yield one generator per plane."""
        basis = self._basis()
        for i in range(basis.shape[1]):
            for j in range(i):
                plane = torch.outer(basis[:, i], basis[:, j]) - torch.outer(basis[:, j], basis[:, i])
                yield partial(self._velocity, plane)

    def _velocity(self, plane: Tensor, params: Params) -> dict[str, Tensor]:
        return self.units.tangent(params, lambda place, rows: self._through_gain(params, place, rows, plane))

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters without the weakest direction that the group turns."""
        basis = self._basis().to(next(iter(params.values())))
        dressed = [self._gain(params, place) * self.units.rows(params, place) for place in self.units.axes]
        weights = basis.T @ torch.cat(dressed, dim=1)
        weakest = basis @ torch.linalg.eigh(weights @ weights.T).eigenvectors[:, :1]
        removal = torch.eye(self.units.size, dtype=weakest.dtype) - weakest @ weakest.T
        return self.act(params, removal)

    def _gain(self, params: Params, place: Axis) -> Tensor | float:
        """Return what takes rows to where R acts: the gain for what reads behind it, else its inverse."""
        if place.gain is None:
            return 1.0
        gain = params[place.gain].reshape(-1, 1)
        return 1 / gain if place in self.units.incoming else gain

    def _through_gain(self, params: Params, place: Axis, rows: Tensor, matrix: Tensor) -> Tensor:
        gain = self._gain(params, place)
        turned: Tensor = matrix.to(rows) @ (gain * rows) / gain
        return turned

    def _basis(self) -> Tensor:
        n = self.units.size
        if not self.fixes_ones:
            return torch.eye(n, dtype=torch.float64)
        # The columns behind the first of a QR decomposition that starts with the vector of ones.
        start = torch.eye(n, dtype=torch.float64)
        start[:, 0] = 1.0
        basis: Tensor = torch.linalg.qr(start)[0][:, 1:]
        return basis

    def _kept(self, basis: Tensor) -> Tensor:
        return torch.eye(self.units.size, dtype=torch.float64) - basis @ basis.T


@dataclass(frozen=True)
class PlaneRotation(_UnitSymmetry):
    r"""Rotary position codes turn planes of a head; turning queries and keys alike is not seen.

    Unit k is the plane of its two rows in each axis, ``index`` listing first row, second row plane by plane.
    With the rescaling of the same planes this is multiplication by a complex number per frequency. An element
    is the vector of angles, shape (units,).

    >>> plane = PlaneRotation(Units("q", 1, (Axis("w", 0, index=(0, 1)),), ()))
    >>> plane.act({"w": torch.tensor([[1.0], [0.0]])}, torch.tensor([math.pi / 2]))["w"].round().abs()
    tensor([[0.],
            [1.]])
    """

    kind = "rotation"

    @property
    def group(self) -> str:
        """A circle for each plane."""
        return f"SO(2)^{self.units.size}"

    @property
    def dimension(self) -> int:
        """One per plane."""
        return self.units.size

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return random angles."""
        return 2 * math.pi * torch.rand(self.units.size, generator=generator, dtype=torch.float64)

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with every plane turned by its angle."""

        def turn(_: Axis, rows: Tensor) -> Tensor:
            first, second = rows.reshape(self.units.size, 2, -1).unbind(dim=1)
            cos, sin = element.cos().to(rows)[:, None], element.sin().to(rows)[:, None]
            return torch.stack([cos * first - sin * second, sin * first + cos * second], dim=1)

        return self.units.transform_axes(params, turn)

    def generators(self) -> Iterator[Generator]:
        """Yield one generator per plane."""
        for plane in range(self.units.size):
            yield partial(self._velocity, plane)

    def _velocity(self, plane: int, params: Params) -> dict[str, Tensor]:
        def velocity(_: Axis, rows: Tensor) -> Tensor:
            pairs = rows.reshape(self.units.size, 2, -1)
            moved = torch.zeros_like(pairs)
            moved[plane, 0], moved[plane, 1] = -pairs[plane, 1], pairs[plane, 0]
            return moved.reshape(rows.shape)

        return self.units.tangent(params, velocity)

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters without the weakest plane."""
        return self._without_weakest(params)


def random_rotation(size: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix, uniformly distributed, shape (size, size), float64."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def nothing_in_place(kind: str) -> InputError:
    """Return the error of a symmetry whose elements leave no state in place."""
    return InputError(f"a {kind} leaves no state in place, so that there is nothing to project onto")
