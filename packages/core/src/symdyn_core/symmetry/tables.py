"""The symmetries of a model as tables for the terminal."""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from symdyn_core.symmetry.report import Finding, SymmetryReport


def symmetry_tables(report: "SymmetryReport") -> "Iterator[RenderableType]":
    """Yield the table of symmetries and what is known of its completeness."""
    table = Table(
        title="Symmetries", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("kind")
    table.add_column("layer", overflow="fold")
    table.add_column("group")
    table.add_column("dimension", justify="right")
    table.add_column("weights\nmoved", justify="right")
    table.add_column("outputs\nmoved", justify="right")
    table.add_column("")
    for findings, mark in (
        (report.found, "[green]✔ verified[/]"),
        (report.approximate, "[yellow]≈ up to eps[/]"),
        (report.rejected, "[red]✘ rejected[/]"),
    ):
        for group in gathered(findings):
            first, symmetry = group[0], group[0].symmetry
            dimension = sum(finding.symmetry.dimension for finding in group)
            table.add_row(
                symmetry.kind,
                symmetry.layer,
                symmetry.group + (f"  ×{len(group)}" if len(group) > 1 else ""),
                str(dimension) if symmetry.order is None else "discrete",
                f"{100 * first.moved:.0f} %",
                f"{max(finding.error for finding in group):.0e}",
                mark,
            )
    yield table
    yield Text(report.completeness())
    for units in report.dead_units:
        if units.constant:
            yield Text(
                f"{len(units.constant)} dead units in {units.layer!r}: flat for these data, not counted."
            )
    for note in report.notes:
        yield Text(f"Note: {note}.")


def gathered(findings: "tuple[Finding, ...]") -> "list[list[Finding]]":
    """Return findings of the same kind, layer and group together: the heads of an attention layer."""
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        symmetry = finding.symmetry
        groups[symmetry.kind, symmetry.layer, symmetry.group].append(finding)
    return list(groups.values())
