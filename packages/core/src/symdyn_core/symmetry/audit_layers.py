"""What is left of each layer: rank of weights and activations, units that died, faded or became copies."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from symdyn_core.params import FrozenModel, Params
from symdyn_core.symmetry.activity import Activity, UnitActivity
from symdyn_core.symmetry.collapse import duplicate_pairs, effective_rank, faded_units
from symdyn_core.symmetry.kinds import GeneralLinear, PositiveRescaling, Symmetry
from symdyn_core.symmetry.matrices import WeightMatrix, weight_matrices
from symdyn_core.symmetry.remaining import MatrixState, UnitState, remaining_symmetry
from symdyn_core.symmetry.report import SymmetryReport
from symdyn_core.symmetry.structure.running import Folded, fold
from symdyn_core.symmetry.units import Units

_NAMES = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "leaky_relu": "leaky ReLU",
    "prelu_kernel": "PReLU",
}
# Where a positive factor, or the sign, of what goes in comes out again; the symmetries of a layer do not say
# so: behind a normalisation they may be those of its gain.
_HOMOGENEOUS = ("relu", "leaky_relu")
_ODD = ("tanh", "erf", "sin", "atan", "asinh")

COLUMNS = (
    "layer",
    "kind",
    "fan_in",
    "width",
    "activation",
    "charge",
    "imbalance",
    "dead_units",
    "faded_units",
    "duplicate_pairs",
    "rank",
    "full_rank",
    "effective_rank",
    "activation_rank",
    "lost",
)


@dataclass(frozen=True)
class LayerAudit:
    r"""What the audit says of one weight matrix, of the units it writes to, or of units without a matrix.

    Args:
        name: qualified name of the layer; with the rows, for units that are a part of its outputs.
        kind: class name of the module; ``units`` for units that no matrix stands for.
        fan_in: inputs of a unit; None for mere units.
        width: number of units.
        activation: name of the function applied to the units; ``linear`` where the next linear map follows
            directly; None where units do not pass through a function one by one.
        rank: numerical rank of the weights at the precision they are stored in; None for mere units.
        full_rank: the largest rank that the shape allows.
        effective_rank: of the weights.
        singular_values: of the weights, descending.
        activation_rank: effective rank of the centred activations on the data; of a layer whose units pass
            through no function, of its outputs. None where they were not seen.
        strengths: of every unit, relative to the strongest: how far it moves what reads it on the data, or
            where that was not seen the norm of its weights.
        by_activity: whether the strengths are from the data.
        dead_units: whose activation is the same for every sample; of units that were not seen on the data,
            those whose weights are negligible.
        faded_units: that move the next layer by less than a thousandth of what the strongest one does.
        duplicate_pairs: ``(i, j)`` for every unit j that copies an earlier unit i.
        charges: of every unit, where one symmetry of this layer conserves them, else None.
        imbalance: of the charges, in [-1, 1]; positive where the outgoing weights are the larger ones.
        unit_imbalances: the same for every unit.
        lost: fraction of the layer's weights that belong to units which are dead, faded or copies, or to
            directions that are missing; None for mere units.
    """

    name: str
    kind: str
    fan_in: int | None
    width: int
    activation: str | None
    rank: int | None
    full_rank: int | None
    effective_rank: float | None
    singular_values: tuple[float, ...]
    activation_rank: float | None
    strengths: tuple[float, ...]
    by_activity: bool
    dead_units: tuple[int, ...]
    faded_units: tuple[int, ...]
    duplicate_pairs: tuple[tuple[int, int], ...]
    charges: tuple[float, ...] | None
    imbalance: float | None
    unit_imbalances: tuple[float, ...] | None
    lost: float | None

    @property
    def charge(self) -> float | None:
        """The charges added up."""
        return None if self.charges is None else sum(self.charges)

    @property
    def lost_units(self) -> int:
        """Number of units that are dead, faded or copies."""
        return len({*self.dead_units, *self.faded_units, *(copy for _, copy in self.duplicate_pairs)})

    def to_row(self) -> dict[str, Any]:
        """Return what a table shows of it."""
        return {
            "layer": self.name,
            "kind": self.kind,
            "fan_in": self.fan_in,
            "width": self.width,
            "activation": self.activation,
            "charge": self.charge,
            "imbalance": self.imbalance,
            "dead_units": len(self.dead_units),
            "faded_units": len(self.faded_units),
            "duplicate_pairs": len(self.duplicate_pairs),
            "rank": self.rank,
            "full_rank": self.full_rank,
            "effective_rank": self.effective_rank,
            "activation_rank": self.activation_rank,
            "lost": self.lost,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"charge": self.charge}


class _Lost(NamedTuple):
    """Units without a function of their own."""

    dead: tuple[int, ...] = ()
    faded: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_weights(cls, state: UnitState | None) -> "_Lost":
        """Return the units that are lost by the looks of their weights."""
        if state is None:
            return cls()
        pairs = [(cluster[0], copy) for cluster in state.clusters for copy in cluster[1:]]
        return cls(state.dead, (), tuple(sorted(pairs)))

    def shares(self, size: int) -> Tensor:
        """Return the part of a unit that each counts for: copies share what one of them does."""
        shares = torch.ones(size, dtype=torch.float64)
        groups: dict[int, list[int]] = {}
        for original, copy in self.copies:
            groups.setdefault(original, [original]).append(copy)
        for group in groups.values():
            shares[group] = 1 / len(group)
        shares[[*self.dead, *self.faded]] = 0.0
        return shares


class _UnitSet(NamedTuple):
    """Units behind a nonlinearity, where their weights lie, what is lost of them and how strong each is."""

    activity: UnitActivity
    units: Units | None
    lost: _Lost
    effects: Tensor

    @property
    def owner(self) -> str:
        """The matrix that writes to them."""
        return self.activity.layer.replace("cell_l", "weight_hh_l")

    def without_lost(self, kept: Params) -> dict[str, Tensor]:
        """Return for each entry of each parameter what part of it is left."""
        if self.units is None:
            return dict(kept)
        shares = self.lost.shares(self.activity.size)[:, None]
        return self.units.transform_axes(kept, lambda _, rows: rows * shares)

    def to_fields(self) -> dict[str, Any]:
        """Return what a layer's audit says of them."""
        moments = self.activity.moments
        return {
            "activation": _NAMES.get(self.activity.function, self.activity.function),
            "activation_rank": effective_rank(moments.singular_values()) if moments is not None else None,
            "strengths": _relative(self.effects),
            "by_activity": True,
            "dead_units": self.lost.dead,
            "faded_units": self.lost.faded,
            "duplicate_pairs": self.lost.copies,
        }


def audit_layers(
    model: nn.Module, found: SymmetryReport, activity: Activity
) -> tuple[tuple[LayerAudit, ...], float]:
    """Return one entry per weight matrix and set of units, and the fraction of all parameters that is lost.

    Args:
        model: the network.
        found: its symmetries.
        activity: what its units do on the data.
    """
    params = FrozenModel(model, any_output=True).params
    symmetries = [finding.symmetry for finding in found.found]
    remaining = remaining_symmetry(model, symmetries=found) if symmetries else remaining_symmetry(model)
    by_weights = {(state.layer, state.units): state for state in remaining.units}
    waiting = [_unit_set(units, symmetries, params) for units in activity.units]
    kept = {name: torch.ones_like(value) for name, value in params.items()}
    for one in waiting:
        kept = one.without_lost(kept)
    layers: list[LayerAudit] = []
    for weight, state in zip(weight_matrices(model), remaining.matrices, strict=True):
        own = [one for one in waiting if one.owner == weight.layer]
        waiting = [one for one in waiting if one.owner != weight.layer]
        matching = [one for one in own if (one.activity.start, one.activity.size) == (0, weight.shape[0])]
        named = [symmetry for symmetry in symmetries if symmetry.layer == weight.layer]
        alone = _Lost.of_weights(by_weights.get((weight.layer, weight.shape[0])))
        layers.append(
            LayerAudit(
                **_of_matrix(weight, state, kept),
                **_of_charges(named, weight.shape[0], params),
                **_of_units(matching[0] if matching else None, weight, alone, named, activity),
            )
        )
        layers += [_mere_units(one) for one in own if not any(one is other for other in matching[:1])]
    layers += [_mere_units(one) for one in waiting]
    numbers = sum(value.numel() for value in params.values())
    still = min(sum(float(value.sum()) for value in kept.values()), remaining.effective_parameters)
    return tuple(layers), 1 - still / numbers if numbers else 0.0


def _unit_set(
    activity: UnitActivity,
    symmetries: Sequence[Symmetry],
    params: Params,
) -> "_UnitSet":
    """Judge the units behind a nonlinearity by what they do on the data."""
    layer, size = activity.layer, activity.size
    whole = (
        [s for s in symmetries if s.layer == layer and s.kind == "permutation"] if not activity.start else []
    )
    permutation = next((s for s in whole if (units := _units_of(s)) and units.size == size), None)
    units = _units_of(permutation) if permutation is not None else None
    dead = [int(unit) for unit in torch.nonzero(activity.constant).flatten()]
    outgoing = _readers(permutation, params) if permutation is not None else None
    if activity.moments is None:
        return _UnitSet(activity, units, _Lost(tuple(dead)), torch.where(activity.constant, 0.0, 1.0))
    effects = activity.moments.spread()
    effects[activity.constant] = 0.0
    if outgoing is not None:
        faded = [unit for unit in faded_units(effects, outgoing) if unit not in set(dead)]
        effects = effects * outgoing.norm(dim=1)
    else:
        faded = []
    alive = [unit for unit in range(size) if unit not in {*dead, *faded}]
    pairs = duplicate_pairs(
        activity.moments.products[alive][:, alive],
        up_to_scale=activity.function in _HOMOGENEOUS,
        up_to_sign=activity.function in _ODD,
    )
    copies = tuple((alive[original], alive[copy]) for original, copy in pairs)
    return _UnitSet(activity, units, _Lost(tuple(dead), tuple(faded), copies), effects)


def _of_matrix(weight: WeightMatrix, state: MatrixState, kept: Params) -> dict[str, Any]:
    parts = [kept[name][rows] for name, rows in weight.parameters]
    total = sum(part.numel() for part in parts)
    still = min(sum(float(part.sum()) for part in parts), state.effective_parameters)
    values = torch.cat(weight.spectra()).double().sort(descending=True).values
    return {
        "name": weight.layer,
        "kind": weight.kind,
        "fan_in": weight.shape[1],
        "width": weight.shape[0],
        "rank": state.rank,
        "full_rank": state.full_rank,
        "effective_rank": state.effective_rank,
        "singular_values": tuple(values.tolist()),
        "lost": 1 - still / total if total else None,
    }


def _of_charges(named: Sequence[Symmetry], width: int, params: Params) -> dict[str, Any]:
    """Return the charges of the units of a layer: those of one symmetry that acts on all of them."""
    for symmetry in named:
        if type(symmetry) is PositiveRescaling or isinstance(symmetry, GeneralLinear):
            incoming, outgoing = _squared_norms(symmetry, params)
            if len(incoming) == width:
                charges, totals = outgoing - incoming, outgoing + incoming
                return {
                    "charges": tuple(charges.tolist()),
                    "imbalance": _ratio(float(charges.sum()), float(totals.sum())),
                    "unit_imbalances": tuple(map(_ratio, charges.tolist(), totals.tolist())),
                }
    return {"charges": None, "imbalance": None, "unit_imbalances": None}


def _squared_norms(symmetry: PositiveRescaling | GeneralLinear, params: Params) -> tuple[Tensor, Tensor]:
    """Return what the charge is the difference of, incoming and outgoing, each of shape (units,)."""
    if isinstance(symmetry, GeneralLinear):
        return symmetry.units.squared_norms(params)
    norms = symmetry.weighted_norms(params)
    zero = torch.zeros(symmetry.units.size, dtype=torch.float64)
    incoming, outgoing = (
        sum((sign * power * norm for power, norm in norms if sign * power > 0), zero) for sign in (1, -1)
    )
    return incoming, outgoing


def _of_units(
    one: "_UnitSet | None",
    weight: WeightMatrix,
    alone: "_Lost",
    named: Sequence[Symmetry],
    activity: Activity,
) -> dict[str, Any]:
    """Return what is known of a matrix's units; without a nonlinearity, from weights alone."""
    if one is not None:
        return one.to_fields()
    moments = activity.outputs.get(weight.layer)
    rows = torch.cat([block.double().norm(dim=1) for block in weight.blocks])
    return {
        "activation": "linear" if any(isinstance(s, GeneralLinear) for s in named) else None,
        "activation_rank": effective_rank(moments.singular_values()) if moments is not None else None,
        "strengths": _relative(rows),
        "by_activity": False,
        "dead_units": alone.dead,
        "faded_units": (),
        "duplicate_pairs": alone.copies,
    }


def _mere_units(one: "_UnitSet") -> LayerAudit:
    start, size = one.activity.start, one.activity.size
    rows = "" if one.activity.layer != one.owner else f"[{start}:{start + size}]"
    return LayerAudit(
        name=one.activity.layer + rows,
        kind="units",
        fan_in=None,
        width=size,
        rank=None,
        full_rank=None,
        effective_rank=None,
        singular_values=(),
        lost=None,
        charges=None,
        imbalance=None,
        unit_imbalances=None,
        **one.to_fields(),
    )


def _units_of(symmetry: Symmetry) -> Units | None:
    units: Units | None = getattr(symmetry.inner if isinstance(symmetry, Folded) else symmetry, "units", None)
    return units


def _readers(symmetry: Symmetry, params: Params) -> Tensor | None:
    """Return the weights that read from the units that a symmetry exchanges, shape (units, k).

    Linear and convolutional weights keep their inputs along the second axis. The scales of normalisations by
    running statistics are taken as they act.
    """
    units = _units_of(symmetry)
    assert units is not None  # only symmetries of units are asked for
    as_acted_on = fold(params, symmetry.folds) if isinstance(symmetry, Folded) else params
    rows = [units.rows(as_acted_on, place) for place in units.axes if place.axis == 1]
    return torch.cat(rows, dim=1) if rows else None


def _relative(effects: Tensor) -> tuple[float, ...]:
    largest = float(effects.max()) if effects.numel() else 0.0
    return tuple((effects / largest if largest else effects).tolist())


def _ratio(charge: float, total: float) -> float:
    return charge / total if total > 0 else 0.0
