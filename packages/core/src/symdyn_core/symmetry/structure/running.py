r"""Batch normalisation by running statistics: an affine map of each channel, its statistics constants.

In terms of its gain :math:`a=\gamma/\sigma` and its offset :math:`c=\beta-\gamma\mu/\sigma` it is
:math:`y=ax+c`, and symmetries act on (a, c) as on any gain and bias. On the module's own parameters the same
action is what :class:`Folded` makes of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from symdyn_core.params import FrozenModel, Params, statistics_layers
from symdyn_core.symmetry.kinds import Generator, PositiveRescaling, Symmetry


@dataclass(frozen=True, eq=False)
class Fold:
    """Names and constants of one normalisation.

    Args:
        weight: name of its gain.
        bias: name of its shift.
        mean: running mean, shape (channels,).
        deviation: running standard deviation, eps included, shape (channels,).
    """

    weight: str
    bias: str
    mean: Tensor
    deviation: Tensor


class _Affine(nn.Module):
    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


def fold_running_statistics(model: FrozenModel) -> tuple[Fold, ...]:
    """Replace every normalisation by running statistics with its affine map; return what was replaced.

    Shared ones and those without gain and shift are left as they are.
    """
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.module.modules():
        for child_name, child in parent.named_children():
            owners.setdefault(id(child), []).append((parent, child_name))
    folds = []
    for norm in statistics_layers(model.module):
        places = owners.get(id(norm), [])
        mean, variance = norm.running_mean, norm.running_var
        gain, shift = norm.weight, norm.bias
        if not isinstance(gain, nn.Parameter) or not isinstance(shift, nn.Parameter):
            continue
        if (
            norm.training
            or not isinstance(mean, Tensor)
            or not isinstance(variance, Tensor)
            or len(places) != 1
        ):
            continue
        parent, child_name = places[0]
        setattr(parent, child_name, _Affine(gain, shift))
        deviation = torch.sqrt(variance + torch.as_tensor(norm.eps))
        folds.append(Fold(names[id(gain)], names[id(shift)], mean, deviation))
    return tuple(folds)


def fold(params: Params, folds: tuple[Fold, ...]) -> dict[str, Tensor]:
    """Return the parameters with gains and offsets of the affine maps in place of gains and shifts."""
    folded = dict(params)
    for one in folds:
        folded[one.weight] = params[one.weight] / one.deviation
        folded[one.bias] = params[one.bias] - folded[one.weight] * one.mean
    return folded


def unfold(folded: Params, folds: tuple[Fold, ...]) -> dict[str, Tensor]:
    """Return the inverse of :func:`fold`."""
    params = dict(folded)
    for one in folds:
        params[one.weight] = folded[one.weight] * one.deviation
        params[one.bias] = folded[one.bias] + folded[one.weight] * one.mean
    return params


@dataclass(frozen=True, eq=False)
class Folded(Symmetry):
    """A symmetry that acts on the affine maps behind normalisations by running statistics.

    Args:
        inner: the symmetry, as it acts on gains and offsets of the affine maps.
        folds: the normalisations it touches.
    """

    inner: Symmetry
    folds: tuple[Fold, ...]

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of the inner symmetry."""
        return self.inner.kind

    @property
    def layer(self) -> str:
        """The layer of the inner symmetry."""
        return self.inner.layer

    @property
    def parameters(self) -> tuple[str, ...]:
        """Those of the inner symmetry, and the shifts that follow the gains."""
        shifts = (fold.bias for fold in self.folds)
        return tuple(dict.fromkeys((*self.inner.parameters, *shifts)))

    @property
    def group(self) -> str:
        """The group of the inner symmetry."""
        return self.inner.group

    @property
    def dimension(self) -> int:
        """The dimension of the inner symmetry."""
        return self.inner.dimension

    @property
    def order(self) -> int | None:
        """The order of the inner symmetry."""
        return self.inner.order

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return an element of the inner group."""
        return self.inner.random_element(generator)

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the transformed parameters."""
        return unfold(self.inner.act(fold(params, self.folds), element), self.folds)

    def generators(self) -> Iterator[Generator]:
        """Yield the generators of the inner symmetry, carried over."""
        for generator in self.inner.generators():
            yield partial(self._velocity, generator)

    def _velocity(self, generator: Generator, params: Params) -> dict[str, Tensor]:
        inner: Mapping[str, Tensor] = generator(fold(params, self.folds))
        gains = (fold.weight for fold in self.folds)
        names = dict.fromkeys((*self.parameters, *gains))
        whole = {name: inner.get(name, torch.zeros_like(params[name])) for name in names}
        carried = unfold(whole, self.folds)  # linear, so that it maps velocities as it maps parameters
        return {name: carried[name] for name in self.parameters}

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the nearest state in terms of the affine maps that is left in place."""
        return unfold(self.inner.project(fold(params, self.folds)), self.folds)


def carried_over(symmetry: Symmetry, folds: tuple[Fold, ...]) -> Symmetry:
    """Return the symmetry of the affine maps as one of the module's own parameters."""
    names = set(symmetry.parameters)
    touched = tuple(one for one in folds if {one.weight, one.bias} & names)
    if not touched:
        return symmetry
    if isinstance(symmetry, PositiveRescaling):
        writing = {place.parameter for place in symmetry.units.incoming if place.power == 1}
        if all({one.weight, one.bias} <= writing for one in touched):
            return symmetry  # gain and shift by the same factor: the same action in both terms
    return Folded(symmetry, touched)
