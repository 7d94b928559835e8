"""The weight matrices of a model, one row per unit: of linear, convolutional, attention, embedding layers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """One weight as a matrix.

    Args:
        layer: qualified name of the module; with the name of the part where a module has several.
        kind: class name of the module.
        blocks: matrices of shape (units, inputs), one for each group of a convolution, else one.
        parameters: names of the parameters behind it, the bias among them, and which of their rows.
        writes_units: whether each row writes to a unit, as in linear, convolutional and attention layers. The
            rows of an embedding are tokens, those of a recurrent layer gates; those of a convolution in
            groups read different inputs, and a transposed one keeps its units along another axis.
    """

    layer: str
    kind: str
    blocks: tuple[Tensor, ...]
    parameters: tuple[tuple[str, slice], ...]
    writes_units: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Units and inputs of each."""
        return sum(len(block) for block in self.blocks), self.blocks[0].shape[1]

    @property
    def full_rank(self) -> int:
        """The largest rank that the shape allows, the groups of a convolution added up."""
        return sum(min(block.shape) for block in self.blocks)

    def spectra(self) -> list[Tensor]:
        """Return the singular values of each block, descending."""
        return [torch.linalg.svdvals(block) for block in self.blocks]


def weight_matrices(model: nn.Module) -> Iterator[WeightMatrix]:
    """Yield every weight of two or more axes as a matrix, in the order of the modules.

    A weight that several modules share is told once, under its first name; a weight that a parametrization
    computes as it is computed.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(8, 2))
    >>> [(weight.layer, weight.kind, weight.shape) for weight in weight_matrices(model)]
    [('0', 'Conv2d', (8, 75)), ('2', 'Linear', (2, 8))]
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    told: set[int] = set()
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        own = {short: names[id(parameter)] for short, parameter in module.named_parameters(recurse=False)}
        for part, weight in _weights(module):
            if isinstance(weight, nn.Parameter):
                if id(weight) in told:
                    continue
                told.add(id(weight))
            yield from _as_matrices(name, module, part, weight.detach(), own)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of two or more axes that belong to a module itself."""
    weights = dict(module.named_parameters(recurse=False))
    computed = getattr(module, "parametrizations", None)
    if isinstance(computed, nn.ModuleDict):
        weights = {name: getattr(module, name) for name in computed} | weights
    for name, weight in weights.items():
        if weight.ndim >= 2 and weight.numel():
            yield name, weight


def _as_matrices(
    name: str, module: nn.Module, part: str, weight: Tensor, own: dict[str, str]
) -> Iterator[WeightMatrix]:
    kind = type(module).__name__
    if part == "weight":
        sources = [own[key] for key in ("weight", "bias") if key in own]
        if part not in own:  # computed by a parametrization, whose parameters stand behind it
            prefix = f"{name}." if name else ""
            behind = module.get_submodule("parametrizations.weight").named_parameters()
            sources += [f"{prefix}parametrizations.weight.{key}" for key, _ in behind]
        groups = getattr(module, "groups", 1)
        blocks = torch.split(weight, len(weight) // groups)
        transposed = isinstance(module, _ConvTransposeNd)
        if transposed:  # its first axis is that of the inputs
            blocks = tuple(block.transpose(0, 1) for block in blocks)
        matrices = tuple(block.reshape(len(block), -1) for block in blocks)
        behind_all = tuple((source, slice(None)) for source in sources)
        writes = isinstance(module, nn.Linear | _ConvNd) and not transposed and len(blocks) == 1
        yield WeightMatrix(name or "model", kind, matrices, behind_all, writes)
    elif part == "in_proj_weight":
        size = len(weight) // 3
        for number, letter in enumerate("qkv"):
            rows = slice(number * size, (number + 1) * size)
            sources = [own[key] for key in ("in_proj_weight", "in_proj_bias") if key in own]
            label = f"{name}.{letter}" if name else letter
            behind_part = tuple((source, rows) for source in sources)
            yield WeightMatrix(label, kind, (weight[rows],), behind_part, True)
    else:
        label = f"{name}.{part}" if name else part
        behind_part = ((own[part], slice(None)),) if part in own else ()
        yield WeightMatrix(label, kind, (weight.reshape(len(weight), -1),), behind_part, False)
