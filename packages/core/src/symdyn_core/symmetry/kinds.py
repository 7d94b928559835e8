r"""The kinds of parameter symmetry: transformations of the weights that leave a network's function unchanged.

A symmetry is a group acting on the parameters, :math:`f(g\theta, x) = f(\theta, x)` for all parameters and
inputs. A continuous one conserves a charge under gradient flow (arXiv 2402.07193); a discrete one, and every
reflection inside a continuous one, has states that it leaves in place, and training that falls into such a
state has lost capacity (arXiv 2309.16932).

===================  ===================================  =====================  ======================
kind                 acts on a layer of n units as        exists where           leaves in place
===================  ===================================  =====================  ======================
positive rescaling   incoming times s, outgoing over s    s > 0 passes through   a unit without weights
permutation          units change places                  always                 two equal units
sign flip            all weights of a unit change sign    activation is odd      a unit without weights
general linear       incoming times M, outgoing over M    activation is linear   a layer of lower rank
translation          bias + v, next bias - Wv             activation is linear   nothing
===================  ===================================  =====================  ======================
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from symdyn_core.params import Params
from symdyn_core.symmetry.units import Units


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
        """The group, in one word: ``S_8``, ``Z_2^8``, ``R_+^8``, ``GL(8)``, ``R^8``."""

    @property
    def dimension(self) -> int:
        """Dimension of the orbit through a generic point; 0 for a discrete group."""
        return 0

    @abstractmethod
    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a group element far from the identity, as :meth:`act` takes it."""

    @abstractmethod
    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the transformed parameters; those not touched are passed on."""

    def charge(self, params: Params) -> Tensor | None:
        """Return what gradient flow conserves because of this symmetry; None where nothing is conserved."""
        return None

    @abstractmethod
    def distance(self, params: Params) -> float:
        """Return the Euclidean distance to the nearest state that a reflection of the group leaves in place.

        Where the group has no reflection (positive factors) any element but the identity counts; where none
        leaves anything in place the distance is infinite.
        """


@dataclass(frozen=True)
class _UnitSymmetry(Symmetry):
    units: Units

    @property
    def layer(self) -> str:
        return self.units.layer

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.units.parameters

    def _all_weights(self, params: Params) -> Tensor:
        return torch.cat([self.units.incoming_weights(params), self.units.outgoing_weights(params)], dim=1)


@dataclass(frozen=True)
class PositiveRescaling(_UnitSymmetry):
    r"""Each unit's incoming weights times :math:`s_i>0`, its outgoing weights divided by it.

    Exists where the activation is positively homogeneous: ReLU, leaky ReLU. An element is the vector
    :math:`s`, shape (units,).

    >>> from symdyn_core.symmetry.units import Axis
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
        return f"R_+^{self.units.size}"

    @property
    def dimension(self) -> int:
        """One per unit."""
        return self.units.size

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return log-normal factors."""
        return torch.exp(0.5 * torch.randn(self.units.size, generator=generator, dtype=torch.float64))

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with incoming rows times ``element`` and outgoing rows divided by it."""
        factors = element[:, None]
        return self.units.transform(params, lambda rows: rows * factors, lambda rows: rows / factors)

    def charge(self, params: Params) -> Tensor:
        r"""Return :math:`C_i=\|w^{out}_i\|^2-\|w^{in}_i\|^2`, shape (units,).

        Source: arXiv 2402.07193, the Noether charge of A = diag(1 on outgoing, -1 on incoming); constant
        under gradient flow, and :math:`\dot C=-2\lambda C` under the weight decay :math:`\lambda\theta`.
        """
        incoming, outgoing = self.units.squared_norms(params)
        return outgoing - incoming

    def balancing_element(self, params: Params) -> Tensor:
        r"""Return the factors that make every charge zero, :math:`s_i^2=\|w^{out}_i\|/\|w^{in}_i\|`.

        A unit without incoming or without outgoing weights cannot be balanced and keeps the factor 1.
        """
        incoming = self.units.incoming_weights(params).norm(dim=1)
        outgoing = self.units.outgoing_weights(params).norm(dim=1)
        possible = (incoming > 0) & (outgoing > 0)
        return torch.where(possible, torch.sqrt(outgoing / incoming), torch.ones_like(incoming))

    def distance(self, params: Params) -> float:
        """Return the norm of the weakest unit: a factor other than 1 leaves only a zero unit in place."""
        return float(self._all_weights(params).norm(dim=1).min())


@dataclass(frozen=True)
class Permutation(_UnitSymmetry):
    """The units of a layer change places. An element lists, for each place, the unit that moves there.

    >>> from symdyn_core.symmetry.units import Axis
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

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a random cycle through all units."""
        order = torch.randperm(self.units.size, generator=generator)
        # No unit stays in its place, so that the weights of each one are tested.
        cycle = torch.empty_like(order)
        cycle[order] = order.roll(1)
        return cycle

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with unit ``element[i]`` in place i."""
        return self.units.transform(params, lambda rows: rows[element], lambda rows: rows[element])

    def distance(self, params: Params) -> float:
        r"""Return :math:`\min_{i<j}\|\theta_i-\theta_j\|/\sqrt2`: a swap leaves two equal units in place."""
        return float(torch.nn.functional.pdist(self._all_weights(params)).min()) / math.sqrt(2)


@dataclass(frozen=True)
class SignFlip(_UnitSymmetry):
    """All weights of a unit change sign. An element is a vector of +1 and -1, shape (units,).

    Exists where the activation is odd: tanh.

    >>> from symdyn_core.symmetry.units import Axis
    >>> flip = SignFlip(Units("0", 1, (Axis("w", 0),), (Axis("v", 1),)))
    >>> flip.distance({"w": torch.tensor([[3.0]]), "v": torch.tensor([[4.0]])})
    5.0
    """

    kind = "sign flip"

    @property
    def group(self) -> str:
        """A sign for each unit."""
        return f"Z_2^{self.units.size}"

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return random signs, at least one of them negative."""
        signs = 1.0 - 2.0 * torch.randint(2, (self.units.size,), generator=generator, dtype=torch.float64)
        chosen = torch.randint(self.units.size, (1,), generator=generator)
        signs[chosen] = -1.0
        return signs

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with all weights of unit i times ``element[i]``."""
        signs = element[:, None]
        return self.units.transform(params, lambda rows: rows * signs, lambda rows: rows * signs)

    def distance(self, params: Params) -> float:
        """Return the norm of the weakest unit: a flip leaves only a unit without weights in place."""
        return float(self._all_weights(params).norm(dim=1).min())


@dataclass(frozen=True)
class GeneralLinear(_UnitSymmetry):
    r"""Between two linear maps: incoming rows :math:`Mw`, outgoing rows :math:`M^{-T}v`, any invertible M.

    Contains the permutations, sign flips and rescalings of the same units. An element is M, shape
    (units, units).

    >>> from symdyn_core.symmetry.units import Axis
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
        left, right = (
            torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for _ in range(2)
        )
        scales = 2 ** (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        element: Tensor = left @ (scales[:, None] * right)
        return element

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with incoming rows mapped by M and outgoing rows by its inverse transpose."""
        return self.units.transform(
            params, lambda rows: element @ rows, lambda rows: torch.linalg.solve(element.T, rows)
        )

    def charge(self, params: Params) -> Tensor:
        r"""Return :math:`C=w^{out}w^{out\,T}-w^{in}w^{in\,T}`, shape (units, units), symmetric.

        Source: arXiv 2402.07193, the charges of all symmetric generators at once; re-derived.
        """
        incoming, outgoing = self.units.incoming_weights(params), self.units.outgoing_weights(params)
        return outgoing @ outgoing.T - incoming @ incoming.T

    def distance(self, params: Params) -> float:
        """Return the least singular value of all weights: the distance to a layer of lower rank.

        Source: arXiv 2309.16932, the mirrors of a rotation symmetry are I - 2nn^T for every unit vector n.
        """
        weights = self._all_weights(params)
        return float(torch.linalg.eigvalsh(weights @ weights.T)[0].clamp(min=0).sqrt())


@dataclass(frozen=True)
class Translation(Symmetry):
    r"""Between two linear maps with biases: :math:`b+v`, next bias :math:`b'-W'v`.

    An element is v, shape (units,). Conserves no charge that is a function of the parameters alone.

    >>> shift = Translation("0", 1, bias="b", next_weight="v", next_bias="c")
    >>> params = {"b": torch.zeros(1), "v": torch.tensor([[2.0]]), "c": torch.zeros(1)}
    >>> shift.act(params, torch.ones(1))["c"]
    tensor([-2.])
    """

    kind = "translation"

    name: str
    size: int
    bias: str
    next_weight: str
    next_bias: str

    @property
    def layer(self) -> str:
        """Qualified name of the first of the two linear maps."""
        return self.name

    @property
    def parameters(self) -> tuple[str, ...]:
        """Both biases; the weight is read, not changed."""
        return (self.bias, self.next_bias)

    @property
    def group(self) -> str:
        """The vectors."""
        return f"R^{self.size}"

    @property
    def dimension(self) -> int:
        """One per unit."""
        return self.size

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a normal vector."""
        return torch.randn(self.size, generator=generator, dtype=torch.float64)

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with both biases moved."""
        moved = {
            self.bias: params[self.bias] + element,
            self.next_bias: params[self.next_bias] - params[self.next_weight] @ element,
        }
        return {**params, **moved}

    def distance(self, params: Params) -> float:
        """Return infinity: a shift leaves nothing in place."""
        return math.inf
