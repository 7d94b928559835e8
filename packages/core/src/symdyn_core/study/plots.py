"""Figures of records: a study's own, and the one that any claims have."""

from typing import TYPE_CHECKING, Any

from symdyn_core.plots import MEASUREMENT, RIVAL, STYLE, THEORY, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from symdyn_core.study.record import Record


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
