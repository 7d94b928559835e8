r"""Which symmetries a network's state has kept: dead units, equal units, missing directions, lost capacity.

At a state that a group leaves in place, the model is one with fewer parameters, as many as the dimension of
the fixed states: two equal units do what one does, a unit without weights does nothing, and a hidden linear
layer of rank r does what one of width r does. What is counted here, for each layer:

- dead units: their weights are small beside those of the layer's stronger units;
- clusters of equal units: their weights differ by a small fraction, up to the scale and the sign that the
  layer's own symmetries do not see;
- the residual rotation O(h - rank) of the h hidden units between two linear maps;
- the parameters that remain, and the fraction of the capacity that is lost.

Source: arXiv 2502.05300 (remaining symmetry, capacity) and 2309.16932 (symmetric states); re-derived.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, Params, from_vector, frozen_copy, to_vector
from symdyn_core.symmetry.collapse import effective_rank, equal_units, weak_units
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.kinds import GeneralLinear, Permutation, Rotation
from symdyn_core.symmetry.matrices import WeightMatrix, weight_matrices
from symdyn_core.symmetry.report import SymmetryReport

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.05
DOUBLE = torch.finfo(torch.float64).eps

Share = tuple[Tensor, Tensor]
"""Numbers of parameter entries, shape (units, k), and the part of a unit that each unit counts for."""


@dataclass(frozen=True)
class UnitState:
    """What is left of the units of one layer, or of its attention heads.

    Args:
        layer: qualified name of the layer that writes to them.
        units: number of them.
        dead: those whose weights are negligible.
        clusters: groups of two or more live units that are equal.
    """

    layer: str
    units: int
    dead: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...]

    @property
    def distinct(self) -> int:
        """Number of live units that are left when equal ones count once."""
        return self.units - len(self.dead) - sum(len(cluster) - 1 for cluster in self.clusters)

    def shares(self) -> Tensor:
        """Return the part of a unit that each counts for: 0 if dead, 1/c in a cluster of c, else 1."""
        shares = torch.ones(self.units, dtype=torch.float64)
        shares[list(self.dead)] = 0.0
        for cluster in self.clusters:
            shares[list(cluster)] = 1.0 / len(cluster)
        return shares


@dataclass(frozen=True)
class RankState:
    """What is left of the directions between two linear maps.

    Args:
        layer: qualified name of the layer that writes to them.
        width: number of hidden units h.
        rank: number of directions whose weights are not negligible.
    """

    layer: str
    width: int
    rank: int

    @property
    def residual_rotation(self) -> int:
        """The n of the group O(n) that still leaves the state in place."""
        return self.width - self.rank


@dataclass(frozen=True)
class MatrixState:
    """The spectrum of one weight matrix.

    Args:
        layer: qualified name of the module, or of the parameter where no known module owns it.
        kind: class name of the module.
        shape: outputs and inputs.
        rank: numerical rank, at the precision in which the weights are stored.
        full_rank: the largest rank that the shape allows.
        effective_rank: number of directions that carry the spectrum.
        parameters: entries, with the bias of the module.
        effective_parameters: of these, those that are left when what is dead or equal is taken out.
    """

    layer: str
    kind: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    effective_rank: float
    parameters: int
    effective_parameters: float


@dataclass(frozen=True)
class RemainingSymmetry:
    """The symmetry that is left in the state of a network.

    Args:
        units: one entry per layer of exchangeable units.
        directions: one entry per pair of linear maps with nothing in between.
        matrices: one entry per weight matrix.
        parameters: of the whole network.
        effective_parameters: what is left of them.
    """

    units: tuple[UnitState, ...]
    directions: tuple[RankState, ...]
    matrices: tuple[MatrixState, ...]
    parameters: int
    effective_parameters: float

    @property
    def clusters(self) -> int:
        """Number of distinct live units, over all layers."""
        return sum(state.distinct for state in self.units)

    @property
    def rank(self) -> int:
        """Number of live directions between linear maps, over all layers."""
        return sum(state.rank for state in self.directions)

    @property
    def lost(self) -> float:
        """Fraction of the parameters that is lost."""
        return 1 - self.effective_parameters / self.parameters if self.parameters else 0.0

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per layer; what does not apply to a layer is missing in its row."""
        import pandas as pd

        rows: dict[str, dict[str, Any]] = {}
        for matrix in self.matrices:
            lost = 1 - matrix.effective_parameters / matrix.parameters
            rows[matrix.layer] = {
                "kind": matrix.kind,
                "shape": f"{matrix.shape[0]} x {matrix.shape[1]}",
                "rank": matrix.rank,
                "full_rank": matrix.full_rank,
                "effective_rank": matrix.effective_rank,
                "parameters": matrix.parameters,
                "effective_parameters": matrix.effective_parameters,
                "lost": lost,
            }
        for state in self.units:
            counts = {
                "units": state.units,
                "dead_units": len(state.dead),
                "duplicate_units": state.units - len(state.dead) - state.distinct,
                "distinct_units": state.distinct,
            }
            _add(rows.setdefault(state.layer, {}), counts)
        for direction in self.directions:
            counts = {"live_directions": direction.rank, "residual_rotation": direction.residual_rotation}
            _add(rows.setdefault(direction.layer, {}), counts)
        frame = pd.DataFrame.from_records([{"layer": layer, **row} for layer, row in rows.items()])
        whole = ["rank", "full_rank", "parameters", "units", "dead_units", "duplicate_units"]
        whole += ["distinct_units", "live_directions", "residual_rotation"]
        frame = frame.reindex(columns=COLUMNS)
        return frame.astype(dict.fromkeys(whole, "Int64"))


def _add(row: dict[str, Any], counts: dict[str, int]) -> None:
    for name, count in counts.items():  # a layer may have several groups of units: neurons, heads
        row[name] = row.get(name, 0) + count


COLUMNS = [
    "layer",
    "kind",
    "shape",
    "rank",
    "full_rank",
    "effective_rank",
    "units",
    "dead_units",
    "duplicate_units",
    "distinct_units",
    "live_directions",
    "residual_rotation",
    "parameters",
    "effective_parameters",
    "lost",
]


def symmetry_report(
    model: nn.Module, inputs: Tensor | None = None, *, tolerance: float = TOLERANCE
) -> "pd.DataFrame":
    """Return the table of :func:`remaining_symmetry`: one row per layer.

    Args:
        model: any module.
        inputs: a batch, to find the model's symmetries with; without it units are judged by what writes to
            them alone.
        tolerance: see :func:`remaining_symmetry`.

    Raises:
        InputError: see :func:`remaining_symmetry`.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> _ = nn.init.zeros_(model[0].weight[:2].detach()), nn.init.zeros_(model[0].bias[:2].detach())
    >>> symmetry_report(model).set_index("layer").loc["0", ["units", "dead_units", "rank"]].tolist()
    [4, 2, 2]
    """
    return remaining_symmetry(model, inputs, tolerance=tolerance).to_frame()


def remaining_symmetry(
    model: nn.Module,
    inputs: Tensor | None = None,
    *,
    symmetries: SymmetryReport | None = None,
    tolerance: float = TOLERANCE,
) -> RemainingSymmetry:
    r"""Count the dead units, equal units and missing directions of a network.

    With :math:`T_i` the weights that write to and read from unit i, a unit is dead if
    :math:`\|T_i\|\le\epsilon` times the median of the stronger half of its layer; live units belong together
    if :math:`\|T_i-T_j\|\le\epsilon\max(\|T_i\|,\|T_j\|)` (single linkage). Where the layer has a rescaling
    symmetry the units are balanced first, where it has sign flips the better sign counts. A direction
    between two linear maps is missing if the singular value of the balanced :math:`(T_i)_i` along it is at
    most :math:`\epsilon` times the largest. All thresholds are relative, so that the unit of the weights
    does not matter.

    Args:
        model: any module; it is copied, never changed.
        inputs: a batch, shape (n, ...), to find the symmetries with. Without it each linear or convolutional
            layer is judged by its own rows (incoming weights and bias), hidden or not.
        symmetries: of an earlier call of :func:`~symdyn_core.symmetry.find.find_symmetries`, to save finding
            them again: they do not change in training. Used in place of `inputs`.
        tolerance: :math:`\epsilon`, in (0, 1).

    Raises:
        InputError: tolerance out of range, not a module, parameters that are not finite, or symmetries of
            another model.

    Source: arXiv 2502.05300, remaining symmetry; the scale and sign are taken out here.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> with torch.no_grad():
    ...     for weights in (model[0].weight, model[0].bias, model[2].weight.T):
    ...         _ = weights[1].copy_(-weights[0])
    >>> state = remaining_symmetry(model, torch.eye(3))
    >>> state.units[0].clusters, state.clusters, state.effective_parameters
    (((0, 1),), 3, 20.0)
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance must be in (0, 1), got {tolerance}")
    stored = frozen_copy(model).named_parameters()
    epsilons = {name: torch.finfo(value.dtype).eps for name, value in stored}
    frozen = FrozenModel(model)
    if symmetries is None and inputs is not None:
        symmetries = find_symmetries(model, inputs)
    if symmetries is not None:
        _check_known(symmetries, frozen.params)
    weights = list(weight_matrices(frozen.module))
    if symmetries is None:
        units, directions, shares = _by_rows(weights, frozen.params, tolerance)
    else:
        units, directions, shares = _by_symmetry(symmetries, frozen.params, tolerance)
    kept = _kept(frozen.params, shares)
    return RemainingSymmetry(
        units,
        directions,
        tuple(_matrix_state(weight, kept, epsilons) for weight in weights),
        sum(value.numel() for value in frozen.params.values()),
        sum(float(value.sum()) for value in kept.values()),
    )


def _by_symmetry(
    symmetries: SymmetryReport, params: Params, tolerance: float
) -> tuple[tuple[UnitState, ...], tuple[RankState, ...], list[Share]]:
    numbers = _numbers(params)
    units, directions, shares = [], [], []
    for symmetry in (finding.symmetry for finding in symmetries.found):
        if isinstance(symmetry, Permutation):
            state = _unit_state(symmetry, symmetries, params, tolerance)
            units.append(state)
            parts = state.shares()
        elif isinstance(symmetry, GeneralLinear | Rotation):
            direction = _rank_state(symmetry, params, tolerance)
            directions.append(direction)
            part = direction.rank / direction.width if direction.width else 0.0
            parts = torch.full((symmetry.units.size,), part, dtype=torch.float64)
        else:
            continue
        shares += [
            (symmetry.units.incoming_weights(numbers), parts),
            (symmetry.units.outgoing_weights(numbers), parts),
        ]
    return tuple(units), tuple(directions), shares


def _unit_state(
    permutation: Permutation, symmetries: SymmetryReport, params: Params, tolerance: float
) -> UnitState:
    """Compare the units of a layer up to what its other symmetries do not see."""
    layer, size = permutation.layer, permutation.units.size
    idle = torch.zeros(size, dtype=torch.bool)
    for rescaling in _of_layer(symmetries, "positive rescaling", layer, size):
        incoming, outgoing = rescaling.units.squared_norms(params)
        # Balancing leaves a unit that has lost one side as it is: whatever the other side, it does nothing.
        idle |= (incoming == 0) | (outgoing == 0)
        params = rescaling.act(params, rescaling.balancing_element(params))
    for invariance in _of_layer(symmetries, "scale invariance", layer, size):
        charge = invariance.charge(params)
        assert charge is not None  # a scale always conserves a norm
        common = charge[charge > 0].median() if bool((charge > 0).any()) else charge.new_ones(())
        params = invariance.act(params, torch.where(charge > 0, common / charge, 1.0).sqrt())
    rows = torch.cat(
        [permutation.units.incoming_weights(params), permutation.units.outgoing_weights(params)], dim=1
    )
    signs = bool(_of_layer(symmetries, "sign flip", layer, size))
    return _state(layer, torch.where(idle[:, None], 0.0, rows), tolerance, up_to_sign=signs)


def _of_layer(symmetries: SymmetryReport, kind: str, layer: str, size: int) -> list[Any]:
    """Return the symmetries of one kind that act on the same units."""
    found: tuple[Any, ...] = symmetries.of_kind(kind)
    return [symmetry for symmetry in found if symmetry.layer == layer and symmetry.units.size == size]


def _state(layer: str, rows: Tensor, tolerance: float, *, up_to_sign: bool = False) -> UnitState:
    dead = weak_units(rows, tolerance)
    live = [unit for unit in range(len(rows)) if unit not in set(dead)]
    clusters = equal_units(rows[live], tolerance, up_to_sign=up_to_sign)
    return UnitState(
        layer, len(rows), tuple(dead), tuple(tuple(live[unit] for unit in cluster) for cluster in clusters)
    )


def _rank_state(symmetry: GeneralLinear | Rotation, params: Params, tolerance: float) -> RankState:
    units = symmetry.units
    bundles = []
    for places in (units.incoming, units.outgoing):
        rows = [units.rows(params, place) for place in places]
        gains = [1.0 if place.gain is None else params[place.gain].reshape(-1, 1) for place in places]
        bundles.append(torch.cat([row * gain for row, gain in zip(rows, gains, strict=True)], dim=1))
    width = units.size
    if isinstance(symmetry, Rotation) and symmetry.fixes_ones:
        # The direction (1, ..., 1) is not turned, and does not count.
        bundles = [bundle - bundle.mean(dim=0) for bundle in bundles]
        width -= 1
    if isinstance(symmetry, GeneralLinear):
        # A common factor moves weight from one side to the other and is not seen.
        sizes = [float(bundle.norm()) for bundle in bundles]
        if all(sizes):
            bundles = [bundle / size for bundle, size in zip(bundles, sizes, strict=True)]
    values = torch.linalg.svdvals(torch.cat(bundles, dim=1))
    return RankState(symmetry.layer, width, int((values > tolerance * values.max()).sum()))


def _by_rows(
    weights: list[WeightMatrix], params: Params, tolerance: float
) -> tuple[tuple[UnitState, ...], tuple[RankState, ...], list[Share]]:
    """Judge linear and convolutional layers by what writes to their units, their bias included."""
    numbers = _numbers(params)
    states, shares = [], []
    for weight in weights:
        if not weight.writes_units:
            continue
        parts = [params[name][rows] for name, rows in weight.parameters]
        bias = [part[:, None] for part in parts if part.shape == weight.blocks[0].shape[:1]]
        state = _state(weight.layer, torch.cat([*weight.blocks, *bias], dim=1), tolerance)
        states.append(state)
        for name, rows in weight.parameters:
            entries = numbers[name][rows]
            if len(entries) == state.units:  # not the scalars of a parametrization
                shares.append((entries.reshape(state.units, -1), state.shares()))
    return tuple(states), (), shares


def _kept(params: Params, shares: list[Share]) -> dict[str, Tensor]:
    """Return for each entry of each parameter the part of a parameter that it counts for."""
    kept = to_vector({name: torch.ones_like(value) for name, value in params.items()})
    for numbers, parts in shares:
        factors = parts[:, None].expand(numbers.shape)
        kept = kept.scatter_reduce(0, numbers.long().flatten(), factors.flatten(), "prod")
    return from_vector(kept, params)


def _check_known(symmetries: SymmetryReport, params: Params) -> None:
    for finding in symmetries.found:
        for name in finding.symmetry.parameters:
            if name not in params:
                raise InputError(f"symmetries must be those of this model, got one of {name!r}")


def _numbers(params: Params) -> dict[str, Tensor]:
    """Return parameters whose entries are numbered, so that a selection of weights says which they are."""
    size = sum(value.numel() for value in params.values())
    return from_vector(torch.arange(size, dtype=torch.float64), params)


def _matrix_state(weight: WeightMatrix, kept: Params, epsilons: dict[str, float]) -> MatrixState:
    spectra = weight.spectra()
    epsilon = max((epsilons[name] for name, _ in weight.parameters), default=DOUBLE)
    parts = [kept[name][rows] for name, rows in weight.parameters]
    return MatrixState(
        layer=weight.layer,
        kind=weight.kind,
        shape=weight.shape,
        rank=sum(_rank(values, block, epsilon) for values, block in zip(spectra, weight.blocks, strict=True)),
        full_rank=weight.full_rank,
        effective_rank=effective_rank(torch.cat(spectra)),
        parameters=sum(part.numel() for part in parts),
        effective_parameters=sum(float(part.sum()) for part in parts),
    )


def _rank(values: Tensor, block: Tensor, epsilon: float) -> int:
    """Return the number of singular values above those of the rounding errors of the entries.

    The usual threshold, epsilon times the larger side times the largest value, is above the largest value
    itself for a layer of a thousand units in half precision. Errors of independent sign have a norm of about
    epsilon times the root mean square entry times the sum of the roots of both sides; four times that.
    """
    rows, columns = block.shape
    noise = epsilon * float(block.square().mean().sqrt()) * (math.sqrt(rows) + math.sqrt(columns))
    return int((values > 4 * noise).sum())
