"""Units that are the same for every sample: what they add to the flat directions is no symmetry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from symdyn_core.params import FrozenModel, Inputs, Params
from symdyn_core.symmetry.structure.forward import Trace, UnitPoint, Watcher, plain_operations
from symdyn_core.symmetry.structure.propose import layer_name


@dataclass(frozen=True)
class DeadUnits:
    """Units of one layer whose activation function does nothing on the data.

    Args:
        layer: qualified name of the layer that writes to them.
        constant: units with the same activation for every sample.
        linear: units that an activation of the ReLU family passes on unchanged for every sample.
    """

    layer: str
    constant: tuple[int, ...]
    linear: tuple[int, ...]


def dead_units(model: FrozenModel, params: Params, trace: Trace, inputs: Inputs) -> tuple[DeadUnits, ...]:
    """Return the units that are constant, or never bent, on the inputs, layer by layer.

    Args:
        model: the network.
        params: where it is looked at.
        trace: of a forward pass of the same network.
        inputs: the data.
    """
    found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def see(point: UnitPoint, before: Tensor, after: Tensor) -> None:
        origin = trace.ledger.origins[int(point.labels[0])]
        if origin is None or before.shape != after.shape or point.axis >= after.ndim:
            return
        if after.shape[point.axis] != len(point.labels):
            return
        rows = [value.movedim(point.axis, 0).reshape(len(point.labels), -1) for value in (before, after)]
        constant = (rows[1] == rows[1][:, :1]).all(dim=1)
        linear = (rows[0] == rows[1]).all(dim=1) & ~constant
        key = (layer_name(origin.parameter), origin.position)
        if key in found:  # a recurrent layer, once for each step
            constant, linear = constant & found[key][0], linear & found[key][1]
        found[key] = (constant, linear)

    with torch.no_grad(), plain_operations(), Watcher(trace.points, see):
        model(params, inputs)
    return tuple(
        DeadUnits(layer, *(tuple((torch.nonzero(which).flatten() + start).tolist()) for which in pair))
        for (layer, start), pair in found.items()
        if any(bool(which.any()) for which in pair)
    )
