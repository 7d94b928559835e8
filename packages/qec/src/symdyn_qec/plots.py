"""Figures of benchmarks: logical error rates with their intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from symdyn_core.plots import MEASUREMENT, STYLE, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from symdyn_qec.benchmark import Result

# Told apart by readers with colour-vision deficiencies, and by shape as well.
COLOURS = (THEORY, MEASUREMENT, "#2e8b57", "#e0a030", "#7a4fa3", "#555555")
MARKERS = "osD^vP"


def draw_rates(results: Sequence["Result"]) -> "Figure":
    """Draw logical error rates on a log scale with 95 % intervals.

    The abscissa is the noise strength if there are several, else the distance if there are several, else the
    circuit. Without any failure the upper end of the interval is drawn as a triangle pointing down.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.circuit for result in results))
    abscissa = _abscissa(results)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        series = _series(results, abscissa)
        for index, (label, group) in enumerate(series.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            if abscissa == "circuit":
                beside = 0.12 * (index - (len(series) - 1) / 2)  # or the intervals would hide each other
                x = np.array([names.index(result.circuit) + beside for result in group])
            else:
                x = np.array([float(getattr(result, abscissa)) for result in group])
            rates = np.array([result.error_rate for result in group])
            low, high = np.array([result.interval for result in group]).T
            seen = rates > 0
            line = "-" if abscissa != "circuit" and len(group) > 1 else "none"
            axes.errorbar(
                x[seen],
                rates[seen],
                yerr=[(rates - low)[seen], (high - rates)[seen]],
                marker=marker,
                linestyle=line,
                linewidth=1.5,
                capsize=3,
                color=colour,
                label=label,
            )
            axes.plot(x[~seen], high[~seen], marker="v", linestyle="none", fillstyle="none", color=colour)
        axes.set_yscale("log")
        axes.set_ylabel("logical error rate per shot")
        if abscissa == "p":
            axes.set_xscale("log")
            axes.set_xlabel("physical error rate p")
        elif abscissa == "distance":
            axes.set_xlabel("code distance")
            axes.set_xticks(sorted({r.distance for r in results if r.distance is not None}))
        else:
            axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
            axes.margins(x=0.2)
        axes.legend(
            title="95 % intervals; ▽ upper end, no failure seen" if _clean(results) else "95 % intervals"
        )
    return figure


def _abscissa(results: Sequence["Result"]) -> str:
    for name in ("p", "distance"):
        values = {getattr(result, name) for result in results}
        if None not in values and len(values) > 1:
            return name
    return "circuit"


def _series(results: Sequence["Result"], abscissa: str) -> dict[str, list["Result"]]:
    """Return the points of each line, in the order of the abscissa."""
    series: dict[str, list[Result]] = {}
    for result in results:
        apart = abscissa == "p" and result.distance is not None
        label = f"{result.decoder}, d={result.distance}" if apart else result.decoder
        series.setdefault(label, []).append(result)
    if abscissa != "circuit":
        for points in series.values():
            points.sort(key=lambda result: float(getattr(result, abscissa)))
    return series


def _clean(results: Sequence["Result"]) -> bool:
    return any(result.error_rate == 0 for result in results)
