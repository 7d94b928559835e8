"""The look of figures: theory a line, measurement points with intervals, the rival dashed.

Colours are told apart by readers with colour-vision deficiencies, and every series differs in shape as well.
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
