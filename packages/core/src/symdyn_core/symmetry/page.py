"""An audit as a page in the terminal: layers, charges, symmetries, advice."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from symdyn_core.symmetry.tables import gathered

if TYPE_CHECKING:
    from symdyn_core.symmetry.audit import AuditReport
    from symdyn_core.symmetry.audit_charges import ChargeAudit
    from symdyn_core.symmetry.audit_layers import LayerAudit
    from symdyn_core.symmetry.report import Finding


def render(report: "AuditReport") -> Iterator[RenderableType]:
    """Yield the parts of the page, top to bottom."""
    yield _heading(report)
    yield _layers(report)
    if report.charges:
        yield _charges(report)
    yield _symmetries(report)
    if report.not_covered:
        yield _not_covered(report)
    yield _advice(report)


def _heading(report: "AuditReport") -> RenderableType:
    line = Text()
    line.append(report.model, style="bold")
    line.append(
        f"   {report.parameters:,} parameters   loss {report.loss:.4g} on {report.samples:,} samples"
        f"   {100 * report.lost:.2g} % of the parameters lost\n"
    )
    return line


def _layers(report: "AuditReport") -> RenderableType:
    table = _table("Layers")
    table.add_column("layer", overflow="fold", min_width=5)
    table.add_column("shape", no_wrap=True)
    table.add_column("units", no_wrap=True)
    for heading in ("dead", "faded", "copies", "rank", "eff.\nrank", "in\nuse", "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in report.layers:
        table.add_row(
            layer.name,
            shape(layer),
            layer.activation or "–",
            *_lost(layer),
            Text("–")
            if layer.rank is None
            else _marked(str(layer.rank), layer.rank < (layer.full_rank or 0)),
            "–" if layer.effective_rank is None else f"{layer.effective_rank:.1f}",
            "–" if layer.activation_rank is None else f"{layer.activation_rank:.1f}",
            Text("–") if layer.lost is None else _marked(f"{100 * layer.lost:.0f} %", layer.lost >= 0.005),
        )
    return Group(
        table,
        _legend(
            "dead: constant on the data or without weights; faded: a thousandth of the strongest unit or "
            "less; copies: cosine ≥ 0.999. rank, eff. rank: of the weights; in use: effective rank of the "
            "activations. lost: weights of dead, faded and copied units or of missing directions."
        ),
    )


def shape(layer: "LayerAudit") -> str:
    """Return what a layer maps to what."""
    return f"{layer.width} units" if layer.fan_in is None else f"{layer.fan_in} → {layer.width}"


def _lost(layer: "LayerAudit") -> Iterator[RenderableType]:
    for units in (layer.dead_units, layer.faded_units, layer.duplicate_pairs):
        judged = layer.by_activity or units
        yield _marked(str(len(units)), bool(units)) if judged else Text("–")


def _marked(text: str, striking: bool) -> Text:
    return Text(text, style="bold yellow" if striking else "")


def _charges(report: "AuditReport") -> RenderableType:
    table = _table("Charges")
    table.add_column("kind", no_wrap=True)
    table.add_column("layer", overflow="fold", min_width=5)
    for heading in ("units", "charge", "imbalance"):
        table.add_column(heading, justify="right", no_wrap=True)
    if report.training is not None:
        for heading in ("at\nequilibrium", "steps\nto it"):
            table.add_column(heading, justify="right", no_wrap=True)
    for charge in report.charges:
        ends = [] if report.training is None else [equilibrium(charge), steps(charge)]
        table.add_row(
            charge.kind,
            charge.layer,
            str(len(charge.charges)),
            f"{charge.charge:+.3g}",
            "–" if charge.imbalance is None else f"{charge.imbalance:+.2f}",
            *ends,
        )
    text = (
        "charge: squared norm of outgoing minus that of incoming weights, conserved by gradient flow, added "
        "up over the units; imbalance: over the sum of both, in [-1, 1]. Weight decay takes charges to zero."
    )
    if report.training is not None:
        text += (
            f" at equilibrium: where noise and decay are in balance at learning rate "
            f"{report.training.learning_rate:g}, batch size {report.training.batch_size}, weight decay "
            f"{report.training.weight_decay:g}; steps in which a small distance falls by a factor e."
        )
    return Group(table, _legend(text))


def equilibrium(charge: "ChargeAudit") -> str:
    """Return where the charge ends; how many units have no such place."""
    if charge.equilibria is None:
        return "–"
    reached = [value for value in charge.equilibria if value is not None]
    if not reached:
        return "none"
    missing = len(charge.equilibria) - len(reached)
    return f"{sum(reached):+.3g}" + (f" ({missing} none)" if missing else "")


def steps(charge: "ChargeAudit") -> str:
    """Return the median number of steps, two digits."""
    return "–" if charge.relaxation_steps is None else f"{float(f'{charge.relaxation_steps:.2g}'):,.0f}"


def _symmetries(report: "AuditReport") -> RenderableType:
    if not report.symmetries and not report.rejected and not report.approximate:
        return Text("Symmetries: none.\n")
    table = _table("Symmetries")
    table.add_column("kind", no_wrap=True)
    table.add_column("layer", overflow="fold", min_width=5)
    table.add_column("group", no_wrap=True)
    for heading in ("dimension", "weights\nmoved", "outputs\nmoved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for findings, mark in (
        (report.symmetries, "[green]✔ verified[/]"),
        (report.approximate, "[yellow]≈ up to eps[/]"),
        (report.rejected, "[red]✘ rejected[/]"),
    ):
        for group in gathered(findings):
            table.add_row(*row(group), mark)
    return Group(
        table,
        _legend(
            "Each was tested with random elements of its group on these data in float64; both changes are "
            f"relative. {report.found.completeness()}"
            + "".join(f" Note: {note}." for note in report.found.notes)
        ),
    )


def row(group: "list[Finding]") -> Iterator[str]:
    """Yield kind, layer, group, dimension and both changes of symmetries of one kind, layer and group."""
    first = group[0]
    symmetry = first.symmetry
    yield symmetry.kind
    yield symmetry.layer
    yield symmetry.group + (f" × {len(group)}" if len(group) > 1 else "")
    dimension = sum(finding.symmetry.dimension for finding in group)
    yield f"{dimension:,}" if symmetry.order is None else "discrete"
    yield f"{100 * first.moved:.0f} %"
    error = max(finding.error for finding in group)
    yield f"{error:.0e}" if error else "0"


def _not_covered(report: "AuditReport") -> RenderableType:
    lines = [Text("Not covered", style="bold yellow")]
    lines += [Text(f"• {reason}") for reason in report.not_covered]
    return Padding(Group(*lines), (0, 0, 1, 0))


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _legend(text: str) -> RenderableType:
    return Padding(Text(text, style="dim"), (0, 0, 1, 0))


def _advice(report: "AuditReport") -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="bold")
    table.add_column()
    for number, sentence in enumerate(report.advice, start=1):
        table.add_row(
            f"{number}.", Padding(Text(sentence), (0, 0, 0 if number == len(report.advice) else 1, 0))
        )
    return Group(Text("What to do", style="bold"), table)
