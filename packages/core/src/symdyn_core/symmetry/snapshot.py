r"""The state of a training run's symmetries at one step, measured cheaply enough to be taken while it runs.

Everything is linear in the number of parameters but two things: comparing units with each other, which is
done on a random projection of their weights, and spectra, which the monitor rations. What is measured stays
on the device of the model; only sums, norms and eigenvalues leave it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.params import Params
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.collapse import effective_rank, weak_units
from symdyn_core.symmetry.kinds import (
    GeneralLinear,
    Permutation,
    PositiveRescaling,
    ScaleInvariance,
    Symmetry,
)
from symdyn_core.symmetry.matrices import WeightMatrix
from symdyn_core.symmetry.units import Axis, Units

# Units are compared in so many random directions first. Two copies come out further apart than twice their
# distance once in 10,000 times (chi-square with 8 degrees of freedom beyond 32); of the half million pairs of
# 1000 unlike units hardly one comes out as near as copies, and that is told by all its weights.
DIRECTIONS = 8
SLACK = 2.0
# Partners looked at for each unit, so that a layer of nothing but copies costs no more than its width.
PARTNERS = 8
# Units whose pairs are formed at a time, so that memory is linear in the width.
BLOCK = 2048
# Units nearest to another one, of which the smallest distance is taken.
NEAREST = 4
# Eigenvalues of a Gram matrix in float64 carry an error of about 1e-15 of the largest; singular values, their
# roots, are noise below this fraction of the largest.
RESOLUTION = 1e-7


@dataclass
class LayerState:
    """What was measured for one layer at one step; None where it does not apply or was not due.

    Attributes:
        layer: qualified name. Where two kinds of symmetry with a charge meet in one layer, the second has a
            row of its own, named with the kind.
        kind: the symmetry behind the charge.
        charge: its charge, summed over the units (the trace, where the charge is a matrix).
        charge_change: since the last check.
        decay_change: what weight decay alone would have changed it by.
        imbalance: charge over the squared norm of all weights concerned, in [-1, 1]; negative if incoming
            weights are the larger.
        units: number of exchangeable units.
        distance: Euclidean distance to the nearest state with a dead unit or two equal ones.
        weakest: smallest norm of a unit's weights, relative to the median one.
        dead_units: units with negligible weights.
        duplicate_units: live units that copy another one.
        width: number of directions between two linear maps.
        live_directions: of these, those that carry weights.
        full_rank: the largest rank that the shape of the weight matrix allows.
        rank: number of singular values above the rounding of the weights.
        effective_rank: see :func:`~symdyn_core.symmetry.collapse.effective_rank`.
    """

    layer: str
    kind: str | None = None
    charge: float | None = None
    charge_change: float | None = None
    decay_change: float | None = None
    imbalance: float | None = None
    units: int | None = None
    distance: float | None = None
    weakest: float | None = None
    dead_units: int | None = None
    duplicate_units: int | None = None
    width: int | None = None
    live_directions: int | None = None
    full_rank: int | None = None
    rank: int | None = None
    effective_rank: float | None = None

    def numbers(self) -> dict[str, float]:
        """Return what was measured, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class Rows:
    """The symmetries of a model, sorted by the row of the log that they are measured for.

    Args:
        charges: symmetries with a charge, by the name of the row; of one kind in each.
        units: permutations by the name of the row, each with the scales of the same units and whether
            these have signs.
        directions: general linear groups by the name of the row.
    """

    charges: dict[str, list[PositiveRescaling | GeneralLinear]]
    units: dict[str, list[tuple[Permutation, tuple[PositiveRescaling, ...], bool]]]
    directions: dict[str, list[GeneralLinear]]

    @classmethod
    def of(cls, symmetries: Sequence[Symmetry]) -> "Rows":
        """Sort symmetries."""
        rows = cls({}, {}, {})
        for symmetry in symmetries:
            if isinstance(symmetry, PositiveRescaling | GeneralLinear):
                first = rows.charges.get(symmetry.layer)
                alone = first is None or first[0].kind == symmetry.kind
                name = symmetry.layer if alone else f"{symmetry.layer} ({symmetry.kind})"
                rows.charges.setdefault(name, []).append(symmetry)
            if isinstance(symmetry, GeneralLinear):
                rows.directions.setdefault(symmetry.layer, []).append(symmetry)
            if isinstance(symmetry, Permutation):
                same = [other for other in symmetries if _same_units(other, symmetry)]
                scales = tuple(other for other in same if isinstance(other, PositiveRescaling))
                signs = any(other.kind == "sign flip" for other in same)
                rows.units.setdefault(symmetry.layer, []).append((symmetry, scales, signs))
        return rows


def _same_units(symmetry: Symmetry, permutation: Permutation) -> bool:
    units = getattr(symmetry, "units", None)
    return (
        isinstance(units, Units)
        and (units.layer, units.size) == (permutation.layer, permutation.units.size)
        and symmetry.kind in ("positive rescaling", "scale invariance", "sign flip")
    )


Watched = PositiveRescaling | GeneralLinear | Permutation


class Weights:
    """The parameters at one check, and the norms of their rows, each computed once."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._squares: dict[tuple[str, int, tuple[int, ...] | None], Tensor] = {}

    def params(self, *symmetries: Watched) -> dict[str, Tensor]:
        """Return the parameters that symmetries read, in single precision at least."""
        wide = (torch.float32, torch.float64)
        values = ((name, self._params[name]) for name in touched(*symmetries))
        return {name: value if value.dtype in wide else value.float() for name, value in values}

    def squared_norms(self, units: Units, axis: Axis, params: Params) -> Tensor:
        """Return the squared norms of the rows along one axis, shape (units,)."""
        place = _place(axis)
        if place not in self._squares:
            self._squares[place] = units.rows(params, axis).square().sum(dim=1)
        return self._squares[place]


def touched(*symmetries: Watched) -> tuple[str, ...]:
    """Return the parameters that symmetries read, the gains in front of their readers among them."""
    places = [place for symmetry in symmetries for place in symmetry.units.axes]
    gains = [place.gain for place in places if place.gain is not None]
    return tuple(dict.fromkeys([*(place.parameter for place in places), *gains]))


def charge_shares(
    symmetry: PositiveRescaling | GeneralLinear, weights: Weights
) -> tuple[dict[str, float], float]:
    r"""Return what each parameter contributes to the charge, and the squared norm of all that do.

    The charge is a sum of squares with signs, so that under weight decay alone, which multiplies parameter
    :math:`p` by :math:`d_p`, it would become :math:`\sum_pd_p^2C_p`.

    Returns:
        shares: :math:`C_p` by parameter; their sum is ``symmetry.charge(params).sum()``, the trace for a
            matrix.
        norm: the sum of the same squares, powers included, without the signs.
    """
    units = symmetry.units
    if isinstance(symmetry, GeneralLinear):
        powers = [1.0] * len(units.incoming) + [-1.0] * len(units.outgoing)
    else:
        powers = [symmetry.power(place) for place in units.axes]
    # Rows are summed in the precision of the weights, pairwise, and added up in float64.
    params = weights.params(symmetry)
    norms = [weights.squared_norms(units, place, params).sum(dtype=torch.float64) for place in units.axes]
    sign = 1.0 if isinstance(symmetry, ScaleInvariance) else -1.0
    shares: dict[str, float] = {}
    total = 0.0
    for place, power, norm in zip(units.axes, powers, torch.stack(norms).tolist(), strict=True):
        shares[place.parameter] = shares.get(place.parameter, 0.0) + sign * power * norm
        total += abs(power) * norm
    return shares, total


@dataclass(frozen=True)
class UnitWeights:
    """All weights of each unit, in pieces that stay where the model has them.

    Args:
        pieces: matrices of shape (units, weights of a unit there).
        squares: squared norms of their rows, shape (units,) for each.
        factors: of each unit, shape (units,) for each piece.
    """

    pieces: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.pieces[0])

    @classmethod
    def of(cls, units: Units, weights: Weights, params: Params) -> "UnitWeights":
        """Return the weights as they are."""
        pieces = tuple(units.rows(params, axis) for axis in units.axes)
        squares = tuple(weights.squared_norms(units, axis, params) for axis in units.axes)
        return cls(pieces, squares, tuple(map(torch.ones_like, squares)))

    def norms(self) -> Tensor:
        """Return the norm of each unit's weights, shape (units,)."""
        pairs = zip(self.factors, self.squares, strict=True)
        return torch.stack([factor.square() * square for factor, square in pairs]).sum(dim=0).sqrt()

    def select(self, units: Tensor) -> Tensor:
        """Return the weights of some units side by side, shape (len(units), weights of a unit)."""
        pairs = zip(self.pieces, self.factors, strict=True)
        chosen = [piece.index_select(0, units) * factor[units, None] for piece, factor in pairs]
        return torch.cat(chosen, dim=1)

    def projected(self) -> Tensor:
        """Return the weights in 8 random directions, shape (units, 8); all of them if that is cheaper."""
        widths = [piece.shape[1] for piece in self.pieces]
        if min(len(self), sum(widths)) <= DIRECTIONS:
            return self.select(torch.arange(len(self), device=self.pieces[0].device))
        generator = torch_generator(0, "monitor", "projection", sum(widths))
        directions = torch.randn(DIRECTIONS, sum(widths), generator=generator) / math.sqrt(DIRECTIONS)
        parts = directions.to(self.pieces[0]).split_with_sizes(widths, dim=1)
        terms = zip(self.pieces, parts, self.factors, strict=True)
        # The large matrix on the right: several times faster for the columns of a weight.
        return torch.stack([(part @ piece.T) * factor for piece, part, factor in terms]).sum(dim=0).T


def unit_weights(
    permutation: Permutation, scales: Sequence[PositiveRescaling], weights: Weights
) -> UnitWeights:
    """Return the weights of each unit, with the scales that its own symmetries do not see taken out.

    A unit that has lost all weights of one side does nothing, and counts as one without weights.
    """
    units, params = permutation.units, weights.params(permutation, *scales)
    if len(scales) == 1 and not isinstance(scales[0], ScaleInvariance):
        powers = {_place(axis): scales[0].power(axis) for axis in scales[0].units.axes}
        places = [_place(axis) for axis in units.axes]
        if set(powers) <= set(places):
            # The usual case, without a copy of the parameters.
            own = UnitWeights.of(units, weights, params)
            return _balanced(own, [powers.get(place, 0.0) for place in places])
    alive = torch.ones(units.size, dtype=torch.bool, device=params[units.parameters[0]].device)
    for scale in scales:
        if isinstance(scale, ScaleInvariance):
            norms = scale.charge(params)
            some = norms[norms > 0]
            common = some.median() if len(some) else norms.new_ones(())
            element = torch.where(norms > 0, common / norms, 1.0).sqrt()
        else:
            incoming, outgoing = scale.units.squared_norms(params)
            alive &= (incoming > 0) & (outgoing > 0)
            element = scale.balancing_element(params)
        params = scale.act(params, element)
    own = UnitWeights.of(units, Weights(params) if scales else weights, params)
    return replace(own, factors=tuple(factor * alive for factor in own.factors))


def _balanced(weights: UnitWeights, powers: Sequence[float]) -> UnitWeights:
    """Return the weights with :meth:`PositiveRescaling.balancing_element` as factors."""
    sides = []
    for side in (1, -1):
        pairs = zip(powers, weights.squares, strict=True)
        sides.append(torch.stack([max(side * power, 0.0) * square for power, square in pairs]).sum(dim=0))
    incoming, outgoing = sides
    alive = (incoming > 0) & (outgoing > 0)
    element = torch.where(alive, outgoing / incoming, 1.0) ** 0.25
    return replace(weights, factors=tuple(element**power * alive for power in powers))


def _place(axis: Axis) -> tuple[str, int, tuple[int, ...] | None]:
    return axis.parameter, axis.axis, axis.index


@dataclass(frozen=True)
class UnitCounts:
    """How the units of one layer stand to each other; see :class:`LayerState`."""

    distance: float
    weakest: float
    dead: int
    duplicates: int


def count_units(weights: UnitWeights, tolerance: float, *, up_to_sign: bool = False) -> UnitCounts:
    r"""Return how near the units are to zero and to each other.

    A unit is dead if its norm is at most :math:`\epsilon` times the median of the stronger half; live units
    are copies if :math:`\|T_i-T_j\|\le\epsilon\max(\|T_i\|,\|T_j\|)`, or through others (single linkage).
    Which pairs may be copies is seen in a random projection, so that the cost is linear in the weights; these
    pairs are then compared exactly.

    Args:
        weights: of the units.
        tolerance: :math:`\epsilon`.
        up_to_sign: whether a unit may be the negative of another.

    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 0.0], [0.0, 0.0]])
    >>> permutation = Permutation(Units("0", 4, (Axis("w", 0),), ()))
    >>> count_units(unit_weights(permutation, (), Weights({"w": rows})), 0.05)
    UnitCounts(distance=0.0, weakest=0.0, dead=1, duplicates=1)
    """
    norms = weights.norms()
    dead = weak_units(norms.cpu()[:, None], tolerance)
    live = torch.ones_like(norms, dtype=torch.bool)
    live[dead] = False
    least, median = float(norms.min()), float(norms.median())
    copies, gap = _copies(weights, norms, live, tolerance, up_to_sign)
    weakest = least / median if median > 0 else 0.0
    return UnitCounts(min(gap / math.sqrt(2), least), weakest, len(dead), copies)


def _copies(
    weights: UnitWeights, norms: Tensor, live: Tensor, tolerance: float, up_to_sign: bool
) -> tuple[int, float]:
    """Return how many live units copy another one, and the smallest distance of two."""
    units = torch.nonzero(live).flatten()
    if len(units) < 2:
        return 0, math.inf
    limits, points = tolerance * norms[units], weights.projected()[units]
    pairs = torch.cat(
        [_near(points, start, SLACK * limits.max(), up_to_sign) for start in range(0, len(units), BLOCK)]
    )
    chunks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    gaps = torch.cat([_gaps(weights, units[chunk], up_to_sign) for chunk in chunks])
    linked = pairs[gaps <= limits[pairs].amax(dim=1)]
    return _linked(linked.cpu(), len(units)), float(gaps.min())


def _near(points: Tensor, start: int, limit: Tensor, up_to_sign: bool) -> Tensor:
    """Return pairs of points that are near each other, from a block of points, shape (pairs, 2)."""
    block = points[start : start + BLOCK]
    squares = points.square().sum(dim=1, keepdim=True)
    own = squares[start : start + BLOCK]
    if up_to_sign:
        gaps = (block @ points.T).abs_().mul_(-2).add_(own).add_(squares.T)
    else:  # in one product, as passing over all pairs takes most of the time
        left = torch.cat([-2 * block, torch.ones_like(own), own], dim=1)
        gaps = left @ torch.cat([points, squares, torch.ones_like(squares)], dim=1).T
    gaps.diagonal(start).fill_(math.inf)
    nearest = gaps.amin(dim=1)
    chosen = nearest <= torch.maximum(
        limit.square(), nearest.topk(min(NEAREST, len(block)), largest=False)[0][-1]
    )
    chosen = torch.nonzero(chosen).flatten()
    partners = gaps[chosen].topk(min(PARTNERS, len(points) - 1), largest=False)[1]
    return torch.stack([(chosen[:, None] + start).expand_as(partners), partners], dim=2).reshape(-1, 2)


def _gaps(weights: UnitWeights, pairs: Tensor, up_to_sign: bool) -> Tensor:
    """Return the distance of each pair of units, shape (pairs,)."""
    first, second = weights.select(pairs[:, 0]), weights.select(pairs[:, 1])
    gaps = (first - second).norm(dim=1)
    return torch.minimum(gaps, (first + second).norm(dim=1)) if up_to_sign else gaps


def _linked(edges: Tensor, count: int) -> int:
    """Return how many units must go until no two are linked through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(edges):
        return 0
    pairs = edges.numpy()
    ones = pairs[:, 0] * 0 + 1
    links = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return count - int(connected_components(links, directed=False)[0])


@dataclass(frozen=True)
class Spectrum:
    """The ranks of one weight matrix."""

    rank: int
    effective_rank: float


def spectrum(matrix: WeightMatrix) -> Spectrum:
    r"""Return rank and effective rank from the Gram matrix of the smaller side, in float64.

    A singular value counts if it exceeds four times what rounding errors of independent sign in the entries
    amount to, :math:`\epsilon\,\mathrm{rms}(W)(\sqrt m+\sqrt n)` with the :math:`\epsilon` of the dtype that
    the weights are stored in, and :math:`10^{-7}` of the largest.
    """
    epsilon = torch.finfo(matrix.blocks[0].dtype).eps
    blocks = torch.stack(matrix.blocks)
    values = _singular_values(blocks)
    rows, columns = blocks.shape[1:]
    power = values.square().sum(dim=1, keepdim=True) / (rows * columns)
    noise = 4 * epsilon * power.sqrt() * (math.sqrt(rows) + math.sqrt(columns))
    floor = torch.maximum(noise, RESOLUTION * values.amax(dim=1, keepdim=True))
    return Spectrum(int((values > floor).sum()), effective_rank(values.flatten()))


def spectrum_work(matrix: WeightMatrix) -> float:
    """Return the floating-point operations of :func:`spectrum`, the eigenvalues counted as they take time."""
    rows, columns = matrix.blocks[0].shape
    short, long = sorted((rows, columns))
    return len(matrix.blocks) * (2.0 * short**2 * long + 8.0 * short**3)


def _singular_values(blocks: Tensor) -> Tensor:
    """Return the singular values of each block, shape (blocks, smaller side), float64 on the CPU."""
    if blocks.device.type == "mps":  # has neither float64 nor eigenvalues
        blocks = blocks.cpu()
    blocks = blocks.to(torch.float64)
    if blocks.shape[1] > blocks.shape[2]:
        blocks = blocks.mT
    squares: Tensor = torch.linalg.eigvalsh(blocks @ blocks.mT)
    return squares.clamp(min=0).sqrt().cpu()


def live_directions(symmetry: GeneralLinear, weights: Weights, tolerance: float) -> int:
    r"""Return how many directions between two linear maps carry more than a fraction of the weights.

    The singular values of incoming and outgoing weights side by side, each divided by its norm, that exceed
    :math:`\epsilon` times the largest.
    """
    params = weights.params(symmetry)
    bundles = [symmetry.incoming_weights(params), symmetry.outgoing_weights(params)]
    sizes = [float(bundle.norm()) for bundle in bundles]
    if all(sizes):
        bundles = [bundle / size for bundle, size in zip(bundles, sizes, strict=True)]
    values = _singular_values(torch.cat(bundles, dim=1)[None])[0]
    return int((values > tolerance * values.max()).sum())


def bad_parameters(params: Params) -> Iterator[str]:
    """Yield the names of the parameters that hold NaN or infinite entries."""
    named = {name: value for name, value in params.items() if value.is_floating_point() and value.numel()}
    by_place: dict[tuple[Any, Any], list[str]] = {}
    for name, value in named.items():
        by_place.setdefault((value.device, value.dtype), []).append(name)
    for names in by_place.values():
        norms = torch.stack(torch._foreach_norm([named[name] for name in names])).cpu()
        for name, norm in zip(names, norms.tolist(), strict=True):
            # A norm may overflow where no entry does.
            if not math.isfinite(norm) and not bool(torch.isfinite(named[name]).all()):
                yield name
