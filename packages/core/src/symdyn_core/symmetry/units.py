"""The weights of hidden units: which axis of which parameter they lie along.

Every symmetry between the units of a layer acts on two bundles of weights: those that write to a unit (rows
of the layer's weight matrix, entries of its bias) and those that read from it (columns of the next layer's
matrix). Both are seen here as matrices with one row per unit, whatever the shapes of the parameters behind
them: a unit may be a neuron, a channel, a direction of a residual stream or a whole attention head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symdyn_core.params import Params

RowMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Axis:
    """One axis of a named parameter, and which of its entries belong to which unit.

    Args:
        parameter: qualified name.
        axis: of the parameter.
        index: positions along the axis, the same number for each unit, all those of the first unit first;
            None if the entry number is the number of the unit.
        power: a rescaling by s multiplies these weights by ``s**power`` where they write to a unit, and
            divides them by it where they read from one.
        gain: parameter of shape (size,) that multiplies the units before these weights read them.
    """

    parameter: str
    axis: int
    index: tuple[int, ...] | None = None
    power: float = 1.0
    gain: str | None = None


@dataclass(frozen=True)
class Units:
    """The hidden units of one layer.

    Args:
        layer: qualified name of the layer that writes to them.
        size: number of units.
        incoming: where the weights that write to the units lie.
        outgoing: where the weights that read from the units lie.

    >>> units = Units("0", 2, (Axis("w", 0), Axis("b", 0)), (Axis("v", 1),))
    >>> params = {"w": torch.eye(2), "b": torch.tensor([5.0, 6.0]), "v": torch.tensor([[3.0, 4.0]])}
    >>> units.incoming_weights(params).tolist()
    [[1.0, 0.0, 5.0], [0.0, 1.0, 6.0]]
    >>> units.outgoing_weights(params).tolist()
    [[3.0], [4.0]]

    A channel that is flattened before it is read owns several columns:

    >>> Units("0", 2, (), (Axis("v", 1, index=(0, 1, 2, 3)),)).outgoing_weights({"v": torch.ones(1, 4)}).shape
    torch.Size([2, 2])
    """

    layer: str
    size: int
    incoming: tuple[Axis, ...]
    outgoing: tuple[Axis, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All places, those that write first."""
        return (*self.incoming, *self.outgoing)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters touched, each once."""
        return tuple(dict.fromkeys(axis.parameter for axis in self.axes))

    def incoming_weights(self, params: Params) -> Tensor:
        """Return the weights that write to the units, shape (size, incoming weights of a unit)."""
        return self._joined(params, self.incoming)

    def outgoing_weights(self, params: Params) -> Tensor:
        """Return the weights that read from the units, shape (size, outgoing weights of a unit)."""
        return self._joined(params, self.outgoing)

    def all_weights(self, params: Params) -> Tensor:
        """Return both bundles side by side, shape (size, weights of a unit)."""
        return self._joined(params, self.axes)

    def squared_norms(self, params: Params) -> tuple[Tensor, Tensor]:
        """Return the squared norms of every unit's incoming and outgoing weights, each of shape (size,)."""
        incoming, outgoing = self.incoming_weights(params), self.outgoing_weights(params)
        return incoming.square().sum(dim=1), outgoing.square().sum(dim=1)

    def rows(self, params: Params, place: Axis) -> Tensor:
        """Return the weights along one axis, shape (size, weights of a unit there)."""
        return self._select(params[place.parameter], place).reshape(self.size, -1)

    def transform(self, params: Params, incoming: RowMap, outgoing: RowMap) -> dict[str, Tensor]:
        """Return the parameters with both bundles mapped, every other parameter as it is.

        Args:
            params: parameters by name.
            incoming: map of a (size, k) matrix to one of the same shape, for any k.
            outgoing: the same for the weights that read from the units.
        """
        return self.transform_axes(
            params, lambda place, rows: (incoming if place in self.incoming else outgoing)(rows)
        )

    def transform_axes(self, params: Params, mapping: Callable[[Axis, Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the parameters with the rows along each axis mapped, every other parameter as it is.

        Args:
            params: parameters by name.
            mapping: of an axis and its (size, k) rows to a matrix of the same shape.
        """
        changed = dict(params)
        for place in self.axes:
            value = changed[place.parameter]
            selected = self._select(value, place)
            rows = mapping(place, selected.reshape(self.size, -1)).reshape(selected.shape)
            if place.index is None:
                changed[place.parameter] = rows.movedim(0, place.axis)
            else:
                positions = torch.tensor(place.index, device=value.device)
                changed[place.parameter] = value.movedim(place.axis, 0).index_copy(0, positions, rows)
                changed[place.parameter] = changed[place.parameter].movedim(0, place.axis)
        return changed

    def tangent(self, params: Params, mapping: Callable[[Axis, Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the velocity of the touched parameters, zero where no axis reaches.

        Args:
            params: parameters by name.
            mapping: of an axis and its (size, k) rows to their velocity.
        """
        moved: dict[str, Tensor] = {name: torch.zeros_like(params[name]) for name in self.parameters}
        for place in self.axes:
            alone = Units(self.layer, self.size, (place,), ())
            blank = {place.parameter: torch.zeros_like(params[place.parameter])}
            velocity = mapping(place, self.rows(params, place))
            piece = alone.transform_axes(blank, lambda _, rows, v=velocity: v.reshape(rows.shape))  # type: ignore[misc]
            moved[place.parameter] = moved[place.parameter] + piece[place.parameter]
        return moved

    def _joined(self, params: Params, axes: Sequence[Axis]) -> Tensor:
        if not axes:
            return next(iter(params.values())).new_zeros(self.size, 0)
        return torch.cat([self.rows(params, place) for place in axes], dim=1)

    def _select(self, value: Tensor, place: Axis) -> Tensor:
        moved = value.movedim(place.axis, 0)
        return moved if place.index is None else moved[torch.tensor(place.index, device=value.device)]
