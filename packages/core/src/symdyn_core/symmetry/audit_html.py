"""An audit as one HTML page with its figures: readable offline, on a phone and on paper."""

from typing import TYPE_CHECKING, Any

from symdyn_core.pages import inline, render_page
from symdyn_core.symmetry import page as terminal
from symdyn_core.symmetry.audit_figures import draw_charges, draw_map, draw_spectra
from symdyn_core.symmetry.tables import gathered

if TYPE_CHECKING:
    from symdyn_core.symmetry.audit import AuditReport

_MEANING = {
    "positive rescaling": "a unit's incoming weights times s, its outgoing weights over s",
    "norm gain": "gain and shift of a normalisation times s, what reads them over s",
    "scale invariance": "weights in front of a normalisation times s",
    "general linear": "any invertible matrix between two linear maps, and its inverse",
    "rotation": "a rotation of directions of which only the length is seen",
    "translation": "an offset that nothing sees, or that something else takes back",
    "permutation": "units, or whole heads, change places",
    "sign flip": "all weights of a unit change sign",
}


def page(report: "AuditReport", title: str | None = None) -> str:
    """Return the page; the same report gives the same bytes.

    Args:
        report: what to show.
        title: what was audited; by default the class of the model.
    """
    return render_page(
        "symdyn_core.symmetry",
        "audit.html",
        title=title or report.model,
        kind="Audit",
        advice=report.advice,
        filters={
            "shape": terminal.shape,
            "ends": terminal.equilibrium,
            "steps": terminal.steps,
            "percent": lambda value: "–" if value is None else f"{100 * value:.0f} %",
        },
        report=report,
        map=inline(draw_map(report), "map"),
        charges=inline(draw_charges(report), "charges"),
        spectra=inline(draw_spectra(report), "spectra"),
        kinds=_kinds(report),
        findings=[
            (mark, words, list(terminal.row(group)))
            for findings, mark, words in (
                (report.symmetries, "✔", "verified"),
                (report.approximate, "≈", "up to eps"),
                (report.rejected, "✘", "rejected"),
            )
            for group in gathered(findings)
        ],
    )


def _kinds(report: "AuditReport") -> list[dict[str, Any]]:
    """Return for each kind what it does, in how many layers, and its dimension."""
    kinds = dict.fromkeys(finding.symmetry.kind for finding in report.symmetries)
    rows = []
    for kind in kinds:
        own = [finding.symmetry for finding in report.symmetries if finding.symmetry.kind == kind]
        discrete = all(symmetry.order is not None for symmetry in own)
        rows.append(
            {
                "kind": kind,
                "meaning": _MEANING.get(kind, ""),
                "layers": len({symmetry.layer for symmetry in own}),
                "dimension": "discrete" if discrete else f"{sum(s.dimension for s in own):,}",
            }
        )
    return rows
