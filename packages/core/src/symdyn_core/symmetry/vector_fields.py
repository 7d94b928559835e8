r"""The family of vector fields in which the numerical search looks for symmetries.

Each is a motion of the parameters, :math:`\dot\theta=\sum_k c_kA_k\theta`, linear in unknown
coefficients and affine in the parameters:

=======  ===============================================  ==================================
field    what it does                                     unknowns
=======  ===============================================  ==================================
scale    :math:`\dot\theta_i=c_i\theta_i` along an axis   the length of the axis
mix      :math:`\dot\theta_i=\sum_jC_{ij}\theta_j`        its square
shift    :math:`\dot\theta_i=c_i` along an axis           the length of the axis
cross    :math:`\dot b=Wc`, a bias follows a weight       the number of columns of the weight
follow   :math:`\dot b_i=\gamma_ic_i`, or a gain          the length of the vectors
=======  ===============================================  ==================================

For a gradient g of any function, :math:`g\cdot A_k\theta` is read off for all k at once: for an axis whose
mode-a unfolding of gradient and parameter are G and T, mix is :math:`GT^T`, scale its diagonal, shift the sum
of G over the other axes.
"""

import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from symdyn_core.errors import InputError, unknown
from symdyn_core.params import Params


@dataclass(frozen=True)
class Place:
    """The entries ``start:stop`` along one axis of a parameter.

    >>> place = Place("w", axis=1, start=0, stop=2)
    >>> place.rows({"w": torch.tensor([[1.0, 2.0, 3.0]])}).tolist()
    [[1.0], [2.0]]
    >>> print(place)
    w[:, 0:2]
    """

    parameter: str
    axis: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of entries along the axis."""
        return self.stop - self.start

    def rows(self, params: Params) -> Tensor:
        """Return these entries as a matrix, one row for each entry along the axis."""
        value = self._in_front(params[self.parameter])
        return value[self.start : self.stop].reshape(self.size, -1)

    def filled(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return a tensor shaped like the parameter that holds these rows and zeros elsewhere."""
        zeros = torch.zeros_like(self._in_front(like))
        middle = rows.reshape(self.size, *zeros.shape[1:])
        filled = torch.cat([zeros[: self.start], middle, zeros[self.stop :]])
        return filled.movedim(0, self.axis) if like.ndim else filled.reshape(())

    def _in_front(self, value: Tensor) -> Tensor:
        return value.movedim(self.axis, 0) if value.ndim else value.reshape(1)

    def __str__(self) -> str:
        return f"{self.parameter}[{', '.join([':'] * self.axis + [f'{self.start}:{self.stop}'])}]"


@dataclass(frozen=True)
class Pair:
    r"""Places that one change of basis may mix, as query and key or value and output of an attention head.

    Args:
        writers: mapped by :math:`\exp C`.
        readers: what reads them; mapped by :math:`\exp(-C^T)` where ``imposed``.
        imposed: whether one matrix moves all places, n^2 unknowns. Otherwise each place has a matrix of its
            own, and the search finds out how they belong together.
    """

    writers: tuple[Place, ...]
    readers: tuple[Place, ...]
    imposed: bool = False

    def __post_init__(self) -> None:
        sizes = sorted({place.size for place in self.places})
        if len(sizes) != 1 or sizes[0] < 1:
            raise InputError(f"the places of a pair must have one positive length, got {sizes}")

    @property
    def places(self) -> tuple[Place, ...]:
        """Writers and readers."""
        return (*self.writers, *self.readers)


class VectorField(ABC):
    """A vector field on the parameters, linear in ``size`` coefficients."""

    verb: ClassVar[str]
    constant: ClassVar[bool] = False
    """Whether the field is the same at all parameters."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of coefficients."""

    @property
    @abstractmethod
    def places(self) -> tuple[Place, ...]:
        """What is moved."""

    @abstractmethod
    def read(self, gradients: Params, params: Params) -> Tensor:
        r"""Return :math:`g\cdot A_k\theta` for each coefficient, shape (size,)."""

    @abstractmethod
    def tangents(self, params: Params, coefficients: Tensor) -> list[Tensor]:
        """Return how the parameter of each place moves; ``coefficients`` has shape (size,)."""

    def asymmetry(self, coefficients: Tensor) -> Tensor:
        """Return what vanishes where the field is that of a symmetric matrix.

        Args:
            coefficients: shape (fields, size).

        Returns:
            Shape (fields, anything), linear in the coefficients.
        """
        return coefficients

    def describe(self, coefficients: Tensor) -> str:
        """Return what fields with these coefficients, shape (fields, size), do, in a few words."""
        used = int((coefficients.abs() > 0).any(dim=0).sum())
        along = f" ({used} of {self.size})" if used < self.size else ""
        return f"{self.verb} {self.places[0]}{along}"


@dataclass(frozen=True)
class Scale(VectorField):
    """Entries along an axis times factors.

    >>> scale = Scale(Place("w", axis=0, start=0, stop=2))
    >>> scale.tangents({"w": torch.tensor([[1.0], [2.0]])}, torch.tensor([0.0, 1.0]))
    [tensor([[0.],
            [2.]])]
    """

    verb = "scales"
    place: Place

    @property
    def size(self) -> int:
        """One factor an entry."""
        return self.place.size

    @property
    def places(self) -> tuple[Place, ...]:
        """The one place."""
        return (self.place,)

    def read(self, gradients: Params, params: Params) -> Tensor:
        """Return the sums of gradient times parameter."""
        return (self.place.rows(gradients) * self.place.rows(params)).sum(dim=1)

    def tangents(self, params: Params, coefficients: Tensor) -> list[Tensor]:
        """Return the entries times their coefficients."""
        rows = coefficients[:, None] * self.place.rows(params)
        return [self.place.filled(rows, params[self.place.parameter])]

    def asymmetry(self, coefficients: Tensor) -> Tensor:
        """Return nothing: a diagonal matrix is symmetric."""
        return coefficients[:, :0]


@dataclass(frozen=True)
class Mix(VectorField):
    """Entries along axes mapped by a matrix C, those that read them by its negative transpose."""

    verb = "mixes"
    writers: tuple[Place, ...]
    readers: tuple[Place, ...] = ()

    @property
    def size(self) -> int:
        """The entries of the matrix."""
        return self.writers[0].size ** 2

    @property
    def places(self) -> tuple[Place, ...]:
        """Writers, then readers."""
        return (*self.writers, *self.readers)

    def read(self, gradients: Params, params: Params) -> Tensor:
        """Return the products of the unfolded gradients and parameters."""
        writers = sum(place.rows(gradients) @ place.rows(params).T for place in self.writers)
        readers = sum(place.rows(params) @ place.rows(gradients).T for place in self.readers)
        return torch.as_tensor(writers - readers).reshape(-1)

    def tangents(self, params: Params, coefficients: Tensor) -> list[Tensor]:
        """Return C times the rows of writers, and minus its transpose times those of readers."""
        n = self.writers[0].size
        matrix = coefficients.reshape(n, n)
        maps = [matrix] * len(self.writers) + [-matrix.T] * len(self.readers)
        return [
            place.filled(by @ place.rows(params), params[place.parameter])
            for place, by in zip(self.places, maps, strict=True)
        ]

    def asymmetry(self, coefficients: Tensor) -> Tensor:
        """Return C minus its transpose."""
        n = self.writers[0].size
        matrices = coefficients.reshape(-1, n, n)
        return (matrices - matrices.mT).flatten(1)

    def describe(self, coefficients: Tensor) -> str:
        """Return what is mixed, or scaled where all matrices are diagonal."""
        n = self.writers[0].size
        matrices = coefficients.reshape(-1, n, n)
        diagonal = bool((matrices == torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))).all())
        what = ", ".join(map(str, self.writers))
        against = f" against {', '.join(map(str, self.readers))}" if self.readers else ""
        return f"{'scales' if diagonal else self.verb} {what}{against}"


@dataclass(frozen=True)
class Shift(VectorField):
    """Numbers added to the entries along an axis."""

    verb = "shifts"
    constant = True
    place: Place

    @property
    def size(self) -> int:
        """One number an entry."""
        return self.place.size

    @property
    def places(self) -> tuple[Place, ...]:
        """The one place."""
        return (self.place,)

    def read(self, gradients: Params, params: Params) -> Tensor:
        """Return the sums of the gradient."""
        return self.place.rows(gradients).sum(dim=1)

    def tangents(self, params: Params, coefficients: Tensor) -> list[Tensor]:
        """Return the coefficients, repeated along the other axes."""
        rows = coefficients[:, None] * torch.ones_like(self.place.rows(params))
        return [self.place.filled(rows, params[self.place.parameter])]


@dataclass(frozen=True)
class Cross(VectorField):
    """A bias moves by the weight times a vector, as when what the weight reads is shifted."""

    verb = "moves"
    bias: Place
    weight: Place
    columns: int

    @property
    def size(self) -> int:
        """One number for each column of the weight."""
        return self.columns

    @property
    def places(self) -> tuple[Place, ...]:
        """The bias; the weight is read."""
        return (self.bias,)

    def read(self, gradients: Params, params: Params) -> Tensor:
        """Return the weight, transposed, times the gradient of the bias."""
        return self.weight.rows(params).T @ self.bias.rows(gradients)[:, 0]

    def tangents(self, params: Params, coefficients: Tensor) -> list[Tensor]:
        """Return the weight times the coefficients."""
        rows = self.weight.rows(params) @ coefficients
        return [self.bias.filled(rows, params[self.bias.parameter])]

    def describe(self, coefficients: Tensor) -> str:
        """Return which bias follows which weight."""
        return f"{self.verb} {self.bias} by {self.weight.parameter} times a vector"


@dataclass(frozen=True)
class Follow(VectorField):
    """A vector moves by another one, entry by entry, as the bias of a norm by its gain."""

    verb = "moves"
    place: Place
    source: Place

    @property
    def size(self) -> int:
        """One number an entry."""
        return self.place.size

    @property
    def places(self) -> tuple[Place, ...]:
        """The vector that moves; the other one is read."""
        return (self.place,)

    def read(self, gradients: Params, params: Params) -> Tensor:
        """Return the gradient times the vector that is read."""
        return (self.place.rows(gradients) * self.source.rows(params))[:, 0]

    def tangents(self, params: Params, coefficients: Tensor) -> list[Tensor]:
        """Return the vector that is read times the coefficients."""
        rows = coefficients[:, None] * self.source.rows(params)
        return [self.place.filled(rows, params[self.place.parameter])]

    def describe(self, coefficients: Tensor) -> str:
        """Return which vector follows which."""
        return f"{self.verb} {self.place} by {self.source.parameter} times factors"


def whole_axes(params: Params) -> list[Place]:
    """Return every axis of every parameter."""
    return [
        Place(name, axis, 0, size)
        for name, value in params.items()
        for axis, size in enumerate(value.shape or (1,))
    ]


def diagonal_family(params: Params, pairs: Sequence[Pair] = ()) -> tuple[VectorField, ...]:
    """Return scales and shifts along all axes, crosses and follows within modules, mixes of pairs.

    Raises:
        InputError: a pair names an unknown parameter or entries that it does not have.
    """
    mixes = pair_family(params, pairs)
    taken = defaultdict(list)
    for place in (place for move in mixes for place in move.places):
        taken[place.parameter, place.axis].append(place)
    scales = [
        Scale(part) for axis in whole_axes(params) for part in _rest(axis, taken[axis.parameter, axis.axis])
    ]
    return (*mixes, *scales, *_crosses(params), *_follows(params), *map(Shift, whole_axes(params)))


def linear_family(params: Params) -> tuple[VectorField, ...]:
    """Return mixes and shifts along all axes, crosses and follows within modules."""
    mixes = [Mix((place,)) for place in whole_axes(params)]
    return (*mixes, *_crosses(params), *_follows(params), *map(Shift, whole_axes(params)))


def pair_family(params: Params, pairs: Sequence[Pair]) -> tuple[VectorField, ...]:
    """Return the mixes of pairs alone.

    Raises:
        InputError: a pair names an unknown parameter or entries that it does not have.
    """
    for place in (place for pair in pairs for place in pair.places):
        if place.parameter not in params:
            raise InputError(unknown("parameter", place.parameter, params))
        shape = tuple(params[place.parameter].shape)
        if not (0 <= place.axis < len(shape) and 0 <= place.start < place.stop <= shape[place.axis]):
            raise InputError(f"{place} must lie in a parameter of shape {shape}")
    fields: dict[VectorField, None] = {}  # in order, and each place once
    for pair in pairs:
        if pair.imposed:
            fields[Mix(pair.writers, pair.readers)] = None
        else:
            fields |= {Mix((place,)): None for place in pair.places}
    return tuple(fields)


def _rest(axis: Place, taken: Sequence[Place]) -> list[Place]:
    """Return the parts of an axis outside the places taken, which may overlap."""
    parts, start = [], axis.start
    for place in sorted(taken, key=lambda place: place.start):
        if place.start > start:
            parts.append(replace(axis, start=start, stop=place.start))
        start = max(start, place.stop)
    return [*parts, replace(axis, start=start)] if start < axis.stop else parts


def _crosses(params: Params) -> list[Cross]:
    """Return the crosses of each vector with each matrix of the same module and as many rows."""
    vectors = [name for name, value in params.items() if value.ndim == 1]
    matrices = [name for name, value in params.items() if value.ndim == 2]
    return [
        Cross(
            Place(bias, 0, 0, len(params[bias])),
            Place(weight, 0, 0, len(params[bias])),
            params[weight].shape[1],
        )
        for weight in matrices
        for bias in vectors
        if bias.rpartition(".")[0] == weight.rpartition(".")[0] and len(params[bias]) == len(params[weight])
    ]


def _follows(params: Params) -> list[Follow]:
    """Return the follows of each vector after an earlier one of the same module and length."""
    vectors = [Place(name, 0, 0, len(value)) for name, value in params.items() if value.ndim == 1]
    return [
        Follow(later, earlier)
        for earlier, later in itertools.combinations(vectors, 2)
        if earlier.size == later.size
        and earlier.parameter.rpartition(".")[0] == later.parameter.rpartition(".")[0]
    ]
