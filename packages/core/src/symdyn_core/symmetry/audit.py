"""Audit a trained network: its symmetries, what they conserve, what has collapsed, and what to do."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, LossFunction, Params, evaluate_loss
from symdyn_core.symmetry.advice import advise
from symdyn_core.symmetry.collapse import (
    ActivityMoments,
    duplicate_pairs,
    effective_rank,
    faded_units,
    numerical_rank,
)
from symdyn_core.symmetry.find import Finding, SymmetryReport, find_symmetries
from symdyn_core.symmetry.kinds import GeneralLinear, PositiveRescaling, SignFlip, Symmetry
from symdyn_core.symmetry.page import render
from symdyn_core.symmetry.trace import Layer, trace_chain

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True)
class LayerAudit:
    r"""What the audit says of one linear layer and the units it writes to.

    Args:
        name: qualified name of the layer.
        fan_in: inputs of a unit.
        width: number of units.
        activation: name of the function applied to the units; ``output`` for the last layer.
        charges: :math:`C_i=\|w^{out}_i\|^2-\|w^{in}_i\|^2` of every unit where gradient flow conserves it
            (for linear units: the diagonal of the charge matrix), else None.
        imbalance: :math:`\sum_i C_i/\sum_i(\|w^{in}_i\|^2+\|w^{out}_i\|^2)` in [-1, 1], or None; positive
            where the outgoing weights are the larger ones.
        unit_imbalances: the same for every unit.
        dead_units: hidden units whose activation is the same for every sample.
        faded_units: hidden units that move the next layer by less than a thousandth of what the
            strongest one does.
        duplicate_pairs: ``(i, j)`` for every unit j that copies an earlier unit i.
        rank: numerical rank of the weight matrix at the precision it is stored in.
        effective_rank: of the weight matrix.
        activation_rank: effective rank of the centred activations on the data.
    """

    name: str
    fan_in: int
    width: int
    activation: str
    charges: tuple[float, ...] | None
    imbalance: float | None
    unit_imbalances: tuple[float, ...] | None
    dead_units: tuple[int, ...]
    faded_units: tuple[int, ...]
    duplicate_pairs: tuple[tuple[int, int], ...]
    rank: int
    effective_rank: float
    activation_rank: float

    @property
    def charge(self) -> float | None:
        """The charges added up."""
        return None if self.charges is None else sum(self.charges)

    @property
    def full_rank(self) -> int:
        """The largest rank a matrix of this shape can have."""
        return min(self.fan_in, self.width)


@dataclass(frozen=True)
class AuditReport:
    """Symmetries, charges and collapse of a network; prints as a page in a terminal or notebook.

    Args:
        model: class name of the network.
        parameters: number of its parameters.
        frozen: names of those that do not train.
        samples: number of samples that activations were measured on.
        loss: on these samples, in evaluation mode.
        layers: one entry per linear layer.
        symmetries: verified on the data.
        rejected: proposed by the structure, refuted by the numbers.
    """

    model: str
    parameters: int
    frozen: tuple[str, ...]
    samples: int
    loss: float
    layers: tuple[LayerAudit, ...]
    symmetries: tuple[Finding, ...]
    rejected: tuple[Finding, ...]

    @property
    def dimension(self) -> int:
        """Number of directions in parameter space along which the function does not change."""
        return SymmetryReport(self.symmetries, ()).dimension

    @property
    def advice(self) -> list[str]:
        """What to do, most pressing first, one plain sentence or a few for each finding."""
        return advise(self)

    def to_frame(self, rows: str = "layers") -> "pd.DataFrame":
        """Return a table with one row per layer, or one per symmetry.

        Args:
            rows: ``layers`` or ``symmetries``.

        Raises:
            InputError: another word.
        """
        import pandas as pd

        if rows not in ("layers", "symmetries"):
            raise InputError(f"rows must be 'layers' or 'symmetries', got {rows!r}")
        if rows == "symmetries":
            columns = ["kind", "layer", "parameters", "group", "dimension", "error", "moved"]
            return pd.DataFrame([finding.to_dict() for finding in self.symmetries], columns=columns)
        return pd.DataFrame(
            {
                "layer": layer.name,
                "fan_in": layer.fan_in,
                "width": layer.width,
                "activation": layer.activation,
                "charge": layer.charge,
                "imbalance": layer.imbalance,
                "dead_units": len(layer.dead_units),
                "faded_units": len(layer.faded_units),
                "duplicate_pairs": len(layer.duplicate_pairs),
                "rank": layer.rank,
                "effective_rank": layer.effective_rank,
                "activation_rank": layer.activation_rank,
            }
            for layer in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = asdict(self)
        values["dimension"] = self.dimension
        values["symmetries"] = [finding.to_dict() for finding in self.symmetries]
        values["rejected"] = [finding.to_dict() for finding in self.rejected]
        values["layers"] = [asdict(layer) | {"charge": layer.charge} for layer in self.layers]
        values["advice"] = self.advice
        loaded: dict[str, Any] = json.loads(json.dumps(values))
        return loaded

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        yield from render(self)


def audit(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    chunk_size: int = 1024,
) -> AuditReport:
    """Return the symmetries of a network, what they conserve, and how far its layers have collapsed.

    Args:
        model: a fully connected network; it is copied, never changed, and judged in evaluation mode.
        loss_fn: maps (outputs, targets) to one number.
        inputs: shape (n_samples, ...); held-out data, a few hundred samples or more.
        targets: shape (n_samples, ...).
        seed: draws the group elements that verify the symmetries.
        chunk_size: samples per forward pass, at least 1; the results do not depend on it.

    Raises:
        InputError: the model is not covered yet, the data do not fit, or the loss is not one finite number.

    Source: charges from arXiv 2402.07193, collapsed states from arXiv 2309.16932; re-derived.

    >>> with torch.random.fork_rng():
    ...     model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(20, 2)
    ...     report = audit(model, nn.functional.mse_loss, x, x[:, :1])
    >>> [(finding.symmetry.kind, finding.symmetry.group) for finding in report.symmetries]
    [('positive rescaling', 'R_+^3'), ('permutation', 'S_3')]
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
    loss = evaluate_loss(model, loss_fn, inputs, targets)
    found = find_symmetries(model, inputs, seed=seed)
    frozen = FrozenModel(model)
    chain = trace_chain(frozen)
    moments = [ActivityMoments(layer.fan_out) for layer in chain.layers]
    for chunk in torch.split(inputs, chunk_size):
        for moment, (before, after) in zip(moments, chain.units(chunk), strict=True):
            moment.add(before, after)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    layers = [
        _audit_layer(layer, reader, moment, found, frozen.params, dtypes[layer.weight])
        for layer, reader, moment in zip(chain.layers, (*chain.layers[1:], None), moments, strict=True)
    ]
    return AuditReport(
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in frozen.params.values()),
        frozen=tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
        samples=len(inputs),
        loss=loss,
        layers=tuple(layers),
        symmetries=found.found,
        rejected=found.rejected,
    )


def _audit_layer(
    layer: Layer,
    reader: Layer | None,
    moments: ActivityMoments,
    found: SymmetryReport,
    params: Params,
    dtype: torch.dtype,
) -> LayerAudit:
    own = [finding.symmetry for finding in found.found if finding.symmetry.layer == layer.name]
    lost = _LostUnits() if reader is None else _lost_units(own, moments, params[reader.weight].T)
    balance = _balance(own, params)
    values = torch.linalg.svdvals(params[layer.weight])
    return LayerAudit(
        name=layer.name,
        fan_in=layer.fan_in,
        width=layer.fan_out,
        activation=layer.activation.name if layer.activation else "output",
        charges=balance.charges,
        imbalance=balance.imbalance,
        unit_imbalances=balance.unit_imbalances,
        dead_units=lost.dead,
        faded_units=lost.faded,
        duplicate_pairs=lost.copies,
        rank=numerical_rank(values, (layer.fan_out, layer.fan_in), torch.finfo(dtype).eps),
        effective_rank=effective_rank(values),
        activation_rank=effective_rank(moments.singular_values()),
    )


class _LostUnits(NamedTuple):
    dead: tuple[int, ...] = ()
    faded: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()


def _lost_units(own: Sequence[Symmetry], moments: ActivityMoments, outgoing: Tensor) -> _LostUnits:
    dead = [int(unit) for unit in torch.nonzero(moments.constant).flatten()]
    faded = faded_units(moments.spread(), outgoing)
    copies: list[tuple[int, int]] = []
    # Among linear units nothing distinguishes a copy from any other combination; there the rank tells.
    if not any(isinstance(symmetry, GeneralLinear) for symmetry in own):
        lost = {*dead, *faded}
        alive = [unit for unit in range(len(outgoing)) if unit not in lost]
        pairs = duplicate_pairs(
            moments.products[alive][:, alive],
            up_to_scale=any(isinstance(symmetry, PositiveRescaling) for symmetry in own),
            up_to_sign=any(isinstance(symmetry, SignFlip) for symmetry in own),
        )
        copies = [(alive[original], alive[copy]) for original, copy in pairs]
    return _LostUnits(tuple(dead), tuple(faded), tuple(copies))


class _Balance(NamedTuple):
    charges: tuple[float, ...] | None = None
    imbalance: float | None = None
    unit_imbalances: tuple[float, ...] | None = None


def _balance(own: Sequence[Symmetry], params: Params) -> _Balance:
    for symmetry in own:
        if isinstance(symmetry, PositiveRescaling | GeneralLinear):
            incoming, outgoing = symmetry.units.squared_norms(params)
            charges, totals = outgoing - incoming, outgoing + incoming
            return _Balance(
                charges=tuple(charges.tolist()),
                imbalance=_ratio(float(charges.sum()), float(totals.sum())),
                unit_imbalances=tuple(map(_ratio, charges.tolist(), totals.tolist())),
            )
    return _Balance()


def _ratio(charge: float, total: float) -> float:
    return charge / total if total > 0 else 0.0
