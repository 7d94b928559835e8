"""An audit as a page in the terminal: layers, symmetries, advice."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from symdyn_core.symmetry.audit import AuditReport, LayerAudit
    from symdyn_core.symmetry.find import Finding


def render(report: "AuditReport") -> Iterator[RenderableType]:
    """Yield the parts of the page, top to bottom."""
    yield _heading(report)
    yield _layers(report)
    yield _symmetries(report)
    yield _advice(report)


def _heading(report: "AuditReport") -> RenderableType:
    line = Text()
    line.append(report.model, style="bold")
    line.append(
        f"   {report.parameters:,} parameters   loss {report.loss:.4g} on {report.samples:,} samples\n"
    )
    return line


def _layers(report: "AuditReport") -> RenderableType:
    table = _table("Layers")
    table.add_column("layer", overflow="fold", min_width=5)
    table.add_column("shape", no_wrap=True)
    table.add_column("units", no_wrap=True)
    for heading in ("charge", "imbalance", "dead", "faded", "copies", "rank", "eff.\nrank", "in\nuse"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in report.layers:
        table.add_row(
            layer.name,
            f"{layer.fan_in} → {layer.width}",
            layer.activation,
            "–" if layer.charge is None else f"{layer.charge:+.3g}",
            "–" if layer.imbalance is None else f"{layer.imbalance:+.2f}",
            *_lost(layer),
            _marked(layer.rank, layer.rank < layer.full_rank),
            f"{layer.effective_rank:.1f}",
            f"{layer.activation_rank:.1f}",
        )
    return Group(
        table,
        _legend(
            "charge: squared norm of outgoing minus that of incoming weights, conserved by gradient flow; "
            "imbalance: over their sum, in [-1, 1]. dead: constant on the data; faded: a thousandth of the "
            "strongest unit or less; copies: cosine ≥ 0.999. rank, eff. rank: of the weights; in use: "
            "effective rank of the activations."
        ),
    )


def _lost(layer: "LayerAudit") -> Iterator[RenderableType]:
    for units in (layer.dead_units, layer.faded_units, layer.duplicate_pairs):
        yield Text("–") if layer.activation == "output" else _marked(len(units), bool(units))


def _marked(count: int, striking: bool) -> Text:
    return Text(str(count), style="bold yellow" if striking else "")


def _symmetries(report: "AuditReport") -> RenderableType:
    if not report.symmetries and not report.rejected:
        return Text("Symmetries: none.\n")
    table = _table("Symmetries")
    table.add_column("kind", no_wrap=True)
    table.add_column("layer", overflow="fold", min_width=5)
    table.add_column("group", no_wrap=True)
    for heading in ("dimension", "weights\nmoved", "outputs\nmoved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for finding in report.symmetries:
        table.add_row(*_row(finding), "[green]✔ verified[/]")
    for finding in report.rejected:
        table.add_row(*_row(finding), "[red]✘ rejected[/]")
    return Group(
        table,
        _legend(
            "Each was tested with random elements of its group on these data in float64; both changes are "
            "relative."
        ),
    )


def _row(finding: "Finding") -> Iterator[str]:
    symmetry = finding.symmetry
    yield symmetry.kind
    yield symmetry.layer
    yield symmetry.group
    yield str(symmetry.dimension) if symmetry.dimension else "discrete"
    yield f"{100 * finding.moved:.0f} %"
    yield f"{finding.error:.0e}" if finding.error else "0"


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
