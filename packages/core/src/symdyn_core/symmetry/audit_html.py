"""An audit as one HTML page with its figures: readable offline, on a phone and on paper."""

import importlib.metadata
import re
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from symdyn_core.plots import to_svg
from symdyn_core.symmetry import page as terminal
from symdyn_core.symmetry.audit_figures import draw_charges, draw_map, draw_spectra
from symdyn_core.symmetry.tables import gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("symdyn_core.symmetry", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shape=terminal.shape,
        ends=terminal.equilibrium,
        steps=terminal.steps,
        percent=lambda value: "–" if value is None else f"{100 * value:.0f} %",
        number=lambda value, form: "–" if value is None else format(value, form),
        several=lambda reasons: "; ".join(reasons),
    )
    return environment.get_template("audit.html").render(
        report=report,
        title=title or report.model,
        version=importlib.metadata.version("symdyn-core"),
        advice=[_lead(sentence) for sentence in report.advice],
        map=_inline(draw_map(report), "map"),
        charges=_inline(draw_charges(report), "charges"),
        spectra=_inline(draw_spectra(report), "spectra"),
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


def _lead(sentence: str) -> tuple[str, str]:
    """Split a sentence behind the word that says what it is about, if it has one.

    >>> _lead("Copies: 1 of 8 in '0'."), _lead("Nothing.")
    (('Copies: ', "1 of 8 in '0'."), ('', 'Nothing.'))
    """
    head, colon, rest = sentence.partition(": ")
    return (head + colon, rest) if colon and len(head) <= 40 else ("", sentence)


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


def _inline(figure: "Figure | None", name: str) -> Markup:
    """Return a figure as SVG for the middle of a page, its ids told apart from those of the other figures."""
    if figure is None:
        return Markup("")
    svg = to_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    return Markup(
        re.sub(r'(<svg [^>]*?)width="[^"]*pt"', r"\1", svg, count=1).replace(' height="', ' data-height="', 1)
    )
