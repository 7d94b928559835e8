"""A stability report as a page: in the terminal, and in HTML with its figure."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from symdyn_core.pages import inline, render_page
from symdyn_core.plots import MEASUREMENT, RIVAL, STYLE, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from symdyn_core.dynamics.stability_report import StabilityReport

_WIDTH, _HEIGHT = 7.6, 3.4  # inches


def render(report: "StabilityReport") -> Iterator[RenderableType]:
    """Yield the parts of the terminal's page, top to bottom."""
    line = Text()
    line.append(report.model, style="bold")
    line.append(
        f"   {report.parameters:,} parameters   loss {report.loss:.4g} on {_samples(report)}"
        f"   gradient {report.gradient_norm:.3g}\n"
    )
    yield line
    table = _table("Up to which learning rate it stays")
    table.add_column("by")
    table.add_column("limit", justify="right")
    table.add_column(f"at {report.learning_rate:g}")
    for row in limits(report):
        table.add_row(*row)
    yield Padding(table, (0, 0, 1, 0))
    table = _table(f"Along the directions of largest curvature, at {report.learning_rate:g}")
    for heading in ("curvature", "Lyapunov exponent", "± s.e.", "factor per step"):
        table.add_column(heading, justify="right")
    for cells in directions(report):
        table.add_row(*cells)
    yield Padding(Group(table, Text(_LEGEND, style="dim")), (0, 0, 1, 0))
    advice = Table.grid(padding=(0, 1))
    advice.add_column(justify="right", style="bold")
    advice.add_column()
    for number, sentence in enumerate(report.advice, start=1):
        advice.add_row(f"{number}.", Padding(Text(sentence), (0, 0, 1, 0)))
    yield Group(Text("What it means", style="bold"), advice)


_LEGEND = (
    "Curvatures and exponents are both in descending order and need not belong to each other: the products "
    "of minibatch Hessians mix the directions."
)


def limits(report: "StabilityReport") -> list[tuple[str, str, str]]:
    """Return a row for each notion of staying: what it is, up to where, and what it says here."""
    found = report.limits
    if math.isnan(found.high):
        window = "never"
    elif found.low > 0:
        window = f"{found.low:.4g} … {found.high:.4g}"
    else:
        window = f"{found.high:.4g} ± {found.standard_error:.1g}"
    at_most = "" if found.mean_square_exact else "≤ "
    full = "attracts" if report.learning_rate < found.full_batch else "repels"
    return [
        ("probability (top Lyapunov exponent)", window, report.verdict),
        ("mean square (L2)", f"{at_most}{found.mean_square:.4g}", report.mean_square_verdict),
        ("gradient descent (2 / largest curvature)", f"{found.full_batch:.4g}", full),
    ]


def directions(report: "StabilityReport") -> list[tuple[str, str, str, str]]:
    """Return a row for each direction: curvature, exponent, its error, the factor."""
    return [
        (f"{h:.4g}", f"{exponent:+.4f}", f"{error:.4f}", f"{math.exp(exponent):.4f}")
        for h, exponent, error in zip(
            report.curvatures, report.exponents, report.standard_errors, strict=True
        )
    ]


def page(report: "StabilityReport", title: str | None = None) -> str:
    """Return the HTML page; the same report gives the same bytes."""
    return render_page(
        "symdyn_core.dynamics",
        "stability.html",
        title=title or report.model,
        kind="Stability",
        advice=report.advice,
        filters={},
        report=report,
        samples=_samples(report),
        limits=limits(report),
        directions=directions(report),
        figure=inline(draw(report), "stability"),
        legend=_LEGEND,
    )


def draw(report: "StabilityReport") -> "Figure":
    """Draw the top exponent against the learning rate, with the three limits and the present one."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        rates, exponents = zip(*report.curve, strict=True)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.plot(rates, exponents, color=THEORY, label="top Lyapunov exponent")
        found = report.limits
        lines = (
            (found.full_batch, RIVAL, ":", "gradient descent"),
            (found.mean_square, RIVAL, "--", "mean square"),
            (found.high, THEORY, "-.", "probability"),
        )
        for place, color, style, label in lines:
            if math.isfinite(place) and place > 0:
                axes.axvline(place, color=color, linestyle=style, linewidth=1.4, label=f"limit: {label}")
        axes.errorbar(
            [report.learning_rate],
            [report.exponents[0]],
            yerr=[1.96 * report.standard_errors[0]],
            fmt="o",
            color=MEASUREMENT,
            label="your learning rate",
            zorder=5,
        )
        axes.set(xlabel="learning rate", ylabel="exponent per step", xlim=(0, rates[-1]))
        axes.set_title("below zero: SGD stays")
        figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _samples(report: "StabilityReport") -> str:
    if report.samples == report.given:
        return f"{report.samples:,} samples"
    return f"{report.samples:,} of {report.given:,} samples"


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
