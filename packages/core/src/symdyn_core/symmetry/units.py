"""The weights of hidden units: which axis of which parameter they lie along.

Every symmetry between the units of a layer acts on two bundles of weights: those that write to a unit (rows
of the layer's weight matrix, entries of its bias) and those that read from it (columns of the next layer's
matrix). Both are seen here as matrices with one row per unit, whatever the shapes of the parameters behind
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symdyn_core.params import Params

RowMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Axis:
    """One axis of a named parameter; its index is the number of the unit."""

    parameter: str
    axis: int


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
    """

    layer: str
    size: int
    incoming: tuple[Axis, ...]
    outgoing: tuple[Axis, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters touched, each once."""
        return tuple(dict.fromkeys(axis.parameter for axis in (*self.incoming, *self.outgoing)))

    def incoming_weights(self, params: Params) -> Tensor:
        """Return the weights that write to the units, shape (size, incoming weights of a unit)."""
        return self._rows(params, self.incoming)

    def outgoing_weights(self, params: Params) -> Tensor:
        """Return the weights that read from the units, shape (size, outgoing weights of a unit)."""
        return self._rows(params, self.outgoing)

    def squared_norms(self, params: Params) -> tuple[Tensor, Tensor]:
        """Return the squared norms of every unit's incoming and outgoing weights, each of shape (size,)."""
        incoming, outgoing = self.incoming_weights(params), self.outgoing_weights(params)
        return incoming.square().sum(dim=1), outgoing.square().sum(dim=1)

    def transform(self, params: Params, incoming: RowMap, outgoing: RowMap) -> dict[str, Tensor]:
        """Return the parameters with both bundles mapped, every other parameter as it is.

        Args:
            params: parameters by name.
            incoming: map of a (size, k) matrix to one of the same shape, for any k.
            outgoing: the same for the weights that read from the units.
        """
        changed = dict(params)
        for axes, row_map in ((self.incoming, incoming), (self.outgoing, outgoing)):
            for place in axes:
                moved = changed[place.parameter].movedim(place.axis, 0)
                rows = row_map(moved.reshape(self.size, -1))
                changed[place.parameter] = rows.reshape(moved.shape).movedim(0, place.axis)
        return changed

    def _rows(self, params: Params, axes: Sequence[Axis]) -> Tensor:
        rows = [params[place.parameter].movedim(place.axis, 0).reshape(self.size, -1) for place in axes]
        return torch.cat(rows, dim=1)
