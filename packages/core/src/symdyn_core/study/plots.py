"""The look of figures: theory a line, measurement points with intervals, the rival dashed.

Colours are told apart by readers with colour-vision deficiencies, and every series differs in shape as well.
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from symdyn_core.study.record import Record

THEORY = "#1f4e79"
MEASUREMENT = "#d1495b"
RIVAL = "#8a8a8a"

STYLE: Any = {  # matplotlib types every key of it by name
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "symdyn",  # same numbers, same file
}


def to_svg(figure: "Figure") -> str:
    """Render a figure as SVG text, the same bytes for the same figure."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return stream.getvalue()


def render(record: "Record") -> str:
    """Draw a record in the house's style and return the SVG text."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = record.study.draw(record)
    return to_svg(figure)


def draw_claims(record: "Record") -> "Figure":
    """Draw each claim as measured interval, predicted band and rival, in units of the margin.

    The default figure of studies whose claims have no curve behind them.
    """
    from matplotlib.figure import Figure

    results = record.results
    figure = Figure(figsize=(6.4, 1.2 + 0.6 * len(results)))
    axes: Axes = figure.subplots()
    axes.axvspan(-1, 1, color=THEORY, alpha=0.12, label="prediction ± margin")
    axes.axvline(0, color=THEORY)
    for row, result in enumerate(results):
        scale = result.margin or 1.0
        low, centre, high, rival = (
            max(-6.0, min(6.0, (value - result.predicted) / scale))
            for value in (result.low, result.measured, result.high, result.rival)
        )
        reach = [[centre - low], [high - centre]]
        label: dict[str, Any] = {"label": "measured, 95 % interval"} if row == 0 else {}
        axes.errorbar(centre, row, xerr=reach, fmt="o", color=MEASUREMENT, **label)
        label = {"label": "rival (clipped at 6)"} if row == 0 else {}
        axes.plot(rival, row, marker="x", color=RIVAL, linestyle="none", **label)
    axes.set_yticks(range(len(results)), [result.name.replace("_", " ") for result in results])
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlabel("(value - prediction) / margin")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 if len(results) < 3 else -0.25), ncols=3)
    return figure
