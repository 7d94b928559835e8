r"""Translations of the parameters that a network does not notice.

Four mechanisms make an offset invisible: it is taken up again further on (two biases on the same units; a
bias and, through the next weights, the next bias), a normalisation removes it (a bias in front of
BatchNorm, the mean in front of LayerNorm, a common offset of logits under softmax), or what it multiplies
sums to zero (weights that read a LayerNorm). None conserves a charge that is quadratic in the parameters.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from symdyn_core.params import Params
from symdyn_core.symmetry.kinds import Generator, Symmetry, nothing_in_place
from symdyn_core.symmetry.units import Axis, Units


class _Translation(Symmetry):
    kind = "translation"

    @property
    def group(self) -> str:
        """The vectors."""
        return f"R^{self.dimension}" if self.dimension > 1 else "R"

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return a normal vector."""
        return torch.randn(self.dimension, generator=generator, dtype=torch.float64)

    def generators(self) -> Iterator[Generator]:
        """Yield one generator for each entry of the vector."""
        for entry in range(self.dimension):
            yield partial(self._velocity, entry)

    def _velocity(self, entry: int, params: Params) -> dict[str, Tensor]:
        element = torch.zeros(self.dimension, dtype=torch.float64)
        element[entry] = 1.0
        moved = self.act(params, element)
        # The action is affine in the vector.
        return {name: moved[name] - params[name] for name in self.parameters}

    def project(self, params: Params) -> dict[str, Tensor]:
        """Raise: a shift leaves nothing in place."""
        raise nothing_in_place(self.kind)

    def distance(self, params: Params) -> float:
        """Return infinity: a shift leaves nothing in place."""
        return math.inf


@dataclass(frozen=True)
class Reader:
    """A weight that reads shifted units, and the bias behind it that takes the shift up.

    Args:
        weight: of which the axis in question is the one along the units.
        bias: along the axis that remains.
    """

    weight: Axis
    bias: Axis


@dataclass(frozen=True)
class Translation(_Translation):
    r"""Offsets of the same units: :math:`b+v` in one place, taken back elsewhere or not seen at all.

    An element is v, shape (units,). ``offsets`` are shifted by ``power * v``, times the gain that lies
    between, if any; where weights W read the shifted units, their next bias is shifted by :math:`-Wv`.

    >>> shift = Translation("0", 1, (Axis("b", 0),), (Reader(Axis("v", 1), Axis("c", 0)),))
    >>> params = {"b": torch.zeros(1), "v": torch.tensor([[2.0]]), "c": torch.zeros(1)}
    >>> shift.act(params, torch.ones(1))["c"]
    tensor([-2.])
    """

    name: str
    size: int
    offsets: tuple[Axis, ...]
    readers: tuple[Reader, ...] = ()

    @property
    def layer(self) -> str:
        """Qualified name of the layer that writes to the units."""
        return self.name

    @property
    def parameters(self) -> tuple[str, ...]:
        """What is shifted; weights that are only read do not count."""
        axes = (*self.offsets, *(reader.bias for reader in self.readers))
        return tuple(dict.fromkeys(axis.parameter for axis in axes))

    @property
    def dimension(self) -> int:
        """One per unit."""
        return self.size

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with all offsets moved."""
        moved = dict(params)
        for reader in self.readers:
            rows = Units("", self.size, (), (reader.weight,)).outgoing_weights(params)
            # Of each unit: its columns, then the outputs, then positions inside a kernel, which add up.
            copies = len(reader.weight.index or range(self.size)) // self.size
            weight = rows.reshape(
                self.size, copies, len(reader.bias.index or ()) or self._outputs(params, reader), -1
            )
            taken = torch.einsum("u,ucok->o", element.to(weight), weight)
            outputs = Units("", len(taken), (reader.bias,), ())
            moved = outputs.transform_axes(moved, lambda _, rows, t=taken: rows - t[:, None])  # type: ignore[misc]
        for place in self.offsets:
            units = Units("", self.size, (place,), ())
            shift = place.power * element
            if place.gain is not None:
                shift = shift.to(params[place.gain]) * params[place.gain]
            moved = units.transform_axes(moved, lambda _, rows, s=shift: rows + s.to(rows)[:, None])  # type: ignore[misc]
        return moved

    def _outputs(self, params: Params, reader: Reader) -> int:
        return params[reader.bias.parameter].shape[reader.bias.axis]


@dataclass(frozen=True)
class MeanShift(_Translation):
    r"""All entries along one axis by the same amount: :math:`W+g^{-1}\mathbf 1a^T`.

    Not seen where a normalisation or softmax removes the mean of what W writes, or where what W reads through
    the gain g has mean zero; what W reads of a shift behind the gain is then taken back by the next bias. An
    element is a, shape (weights of a unit,).

    >>> shift = MeanShift(Units("0", 2, (Axis("w", 0),), ()), columns=1)
    >>> shift.act({"w": torch.tensor([[1.0], [2.0]])}, torch.tensor([0.5]))["w"].tolist()
    [[1.5], [2.5]]
    """

    units: Units
    columns: int
    """Weights of a unit."""
    offset: str | None = None
    """Shift of the normalisation that W reads, shape (units,)."""
    bias: Axis | None = None
    """Where the bias behind W lies."""

    @property
    def layer(self) -> str:
        """Qualified name of the layer."""
        return self.units.layer

    @property
    def parameters(self) -> tuple[str, ...]:
        """The weight, and the bias that makes up for the shift of the normalisation."""
        return (*self.units.parameters, *([self.bias.parameter] if self.bias else []))

    @property
    def dimension(self) -> int:
        """One for each weight of a unit."""
        return self.columns

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters with the shift added to each unit's weights."""

        def shift(place: Axis, rows: Tensor) -> Tensor:
            row = element.to(rows)[None, :]
            return rows + (row if place.gain is None else row / params[place.gain].reshape(-1, 1))

        moved = self.units.transform_axes(params, shift)
        if self.bias is None or self.offset is None:
            return moved
        ones = self.units.rows(moved, self.units.axes[0]) - self.units.rows(params, self.units.axes[0])
        read = params[self.offset].reshape(1, -1) @ ones
        outputs = Units("", self.columns, (self.bias,), ())
        return outputs.transform_axes(moved, lambda _, rows: rows - read.reshape(-1, 1))
