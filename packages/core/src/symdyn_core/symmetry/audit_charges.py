"""What the symmetries of a network conserve: charges now, and where noise and decay take them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from symdyn_core.params import FrozenModel, Params
from symdyn_core.symmetry.kinds import GeneralLinear, PositiveRescaling, ScaleInvariance
from symdyn_core.symmetry.rebalance import EquilibriumReport, EquilibriumRow
from symdyn_core.symmetry.report import Finding, SymmetryReport
from symdyn_core.symmetry.tables import gathered

COLUMNS = (
    "kind",
    "layer",
    "group",
    "units",
    "charge",
    "imbalance",
    "equilibrium",
    "drift",
    "relaxation_steps",
)


@dataclass(frozen=True)
class ChargeAudit:
    r"""The charges of symmetries of one kind, layer and group: those of a layer, or of all heads.

    Args:
        kind: of the symmetry.
        layer: qualified name of the layer whose units are transformed.
        group: of one symmetry.
        charges: of every unit, :math:`C_i=\|w^{out}_i\|^2-\|w^{in}_i\|^2`; for linear units the diagonal of
            the charge matrix; for a scale invariance the squared norm.
        imbalances: the same over the sum of the two norms, in [-1, 1]; None where there are no two sides: for
            a scale invariance, and for what a numeric search found.
        imbalance: that of all units together.
        scale: mean over the units of the sum of both norms, the yardstick of the charges.
        equilibria: charges where noise and decay are in balance, None where there is no such place; of a
            general linear group one number, the trace. None if it was not asked for.
        balances: of the gradient noise, in [-1, 1]; 0 is the noise equilibrium.
        drifts: expected change of each charge in the next step of SGD.
        relaxation_steps: in which the distance to the equilibrium falls by a factor e, the median over the
            units.
        statuses: how many units are ``at equilibrium``, ``moving``, ...
    """

    kind: str
    layer: str
    group: str
    charges: tuple[float, ...]
    imbalances: tuple[float, ...] | None
    imbalance: float | None
    scale: float
    equilibria: tuple[float | None, ...] | None = None
    balances: tuple[float, ...] | None = None
    drifts: tuple[float, ...] | None = None
    relaxation_steps: float | None = None
    statuses: dict[str, int] | None = None

    @property
    def charge(self) -> float:
        """The charges added up."""
        return sum(self.charges)

    @property
    def equilibrium(self) -> float | None:
        """The charges added up where noise and decay are in balance; None if some unit has no such place."""
        if not self.equilibria or any(charge is None for charge in self.equilibria):
            return None
        return sum(charge for charge in self.equilibria if charge is not None)

    def to_row(self) -> dict[str, Any]:
        """Return what a table shows of it."""
        return {
            "kind": self.kind,
            "layer": self.layer,
            "group": self.group,
            "units": len(self.charges),
            "charge": self.charge,
            "imbalance": self.imbalance,
            "equilibrium": self.equilibrium,
            "drift": None if self.drifts is None else sum(self.drifts),
            "relaxation_steps": self.relaxation_steps,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"charge": self.charge, "equilibrium": self.equilibrium}


def audit_charges(
    model: nn.Module, found: SymmetryReport, equilibrium: EquilibriumReport | None = None
) -> tuple[ChargeAudit, ...]:
    """Return the charges of all symmetries that conserve one, those of all heads of a layer together.

    Args:
        model: the network.
        found: its symmetries.
        equilibrium: where noise and decay take the charges.
    """
    params = FrozenModel(model, any_output=True).params
    rows = list(equilibrium.rows) if equilibrium is not None else []
    audits = []
    for group in gathered((*found.found, *found.approximate)):
        charged = [finding for finding in group if finding.symmetry.charge(params) is not None]
        if charged:
            first = charged[0].symmetry
            own = [row for row in rows if (row.kind, row.layer) == (first.kind, first.layer)]
            size = first.units.size if isinstance(first, PositiveRescaling) else None
            audits.append(_audit(charged, params, _of_group(own, charged, size)))
    return tuple(audits)


def _of_group(
    rows: Sequence[EquilibriumRow], group: Sequence[Finding], size: int | None
) -> Sequence[EquilibriumRow]:
    """Return the rows of a group; none where they cannot be told from those of another of the same layer."""
    expected = len(group) * (size or 1)
    return rows if len(rows) == expected else ()


def _audit(group: Sequence[Finding], params: Params, rows: Sequence[EquilibriumRow]) -> ChargeAudit:
    first = group[0].symmetry
    charges, totals = (torch.cat(parts) for parts in zip(*(_norms(f, params) for f in group), strict=True))
    imbalances = None
    if isinstance(first, PositiveRescaling | GeneralLinear) and not isinstance(first, ScaleInvariance):
        imbalances = tuple(map(_ratio, charges.tolist(), totals.tolist()))
    times = [row.relaxation_steps for row in rows if row.relaxation_steps is not None]
    statuses = [row.status for row in rows]
    return ChargeAudit(
        kind=first.kind,
        layer=first.layer,
        group=first.group + (f" × {len(group)}" if len(group) > 1 else ""),
        charges=tuple(charges.tolist()),
        imbalances=imbalances,
        imbalance=None if imbalances is None else _ratio(float(charges.sum()), float(totals.sum())),
        scale=float(totals.mean()),
        equilibria=tuple(row.equilibrium_charge for row in rows) if rows else None,
        balances=tuple(row.noise_balance for row in rows) if rows else None,
        drifts=tuple(row.drift for row in rows) if rows else None,
        relaxation_steps=median(times) if times else None,
        statuses={status: statuses.count(status) for status in dict.fromkeys(statuses)} if rows else None,
    )


def _norms(finding: Finding, params: Params) -> tuple[Tensor, Tensor]:
    """Return the charges of a symmetry's units, and the sum of the norms that they are the difference of."""
    symmetry = finding.symmetry
    if isinstance(symmetry, GeneralLinear):
        incoming, outgoing = symmetry.units.squared_norms(params)
        return outgoing - incoming, outgoing + incoming
    charge = symmetry.charge(params)
    assert charge is not None  # only those with a charge are asked for
    if isinstance(symmetry, PositiveRescaling):
        sizes = [abs(power) * norm for power, norm in symmetry.weighted_norms(params)]
        return charge, torch.stack(sizes).sum(dim=0)
    return charge.reshape(-1), charge.abs().reshape(-1)


def _ratio(charge: float, total: float) -> float:
    return charge / total if total > 0 else 0.0
