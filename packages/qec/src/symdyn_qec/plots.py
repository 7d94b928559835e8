"""Figures of benchmarks: logical error rates with their intervals, and how long single shots take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from symdyn_core.plots import MEASUREMENT, STYLE, THEORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from symdyn_qec.results import Result

# Told apart by readers with colour-vision deficiencies, and by shape as well.
COLOURS = (THEORY, MEASUREMENT, "#2e8b57", "#e0a030", "#7a4fa3", "#555555")
MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def draw_rates(results: Sequence["Result"]) -> "Figure":
    """Draw logical error rates on a log scale with 95 % intervals.

    The abscissa is the noise strength if there are several, else the distance if there are several, with a
    band for the intervals; else the circuit, or the decoder if there is but one circuit. Without any failure
    the upper end of the interval is drawn as a triangle pointing down.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.circuit for result in results))
    abscissa = _abscissa(results)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.0), layout="constrained")
        axes = figure.subplots()
        series = _series(results, abscissa)
        for index, (label, group) in enumerate(series.items()):
            if abscissa == "decoder":
                x = np.array([index])
            elif abscissa == "circuit":
                beside = 0.12 * (index - (len(series) - 1) / 2)  # or the intervals would hide each other
                x = np.array([names.index(result.circuit) + beside for result in group])
            else:
                x = np.array([float(getattr(result, abscissa)) for result in group])
            _draw_series(
                axes, x, group, label, index, joined=abscissa in ("p", "distance") and len(group) > 1
            )
        axes.set_yscale("log")
        axes.set_ylabel("logical error rate per shot")
        if abscissa == "p":
            axes.set_xscale("log")
            axes.set_xlabel("physical error rate p")
        elif abscissa == "distance":
            axes.set_xlabel("code distance")
            axes.set_xticks(sorted({r.distance for r in results if r.distance is not None}))
        else:
            places = list(series) if abscissa == "decoder" else names
            axes.set_xticks(range(len(places)), places, rotation=20, ha="right")
            axes.margins(x=0.2)
        title = "95 % intervals" + (";\n▽ upper end,\nno failure seen" if _clean(results) else "")
        figure.legend(loc="outside right upper", title=title, alignment="left")
    return figure


def draw_latencies(results: Sequence["Result"]) -> "Figure":
    """Draw how the CPU times of calls with a single shot are distributed, a panel for each circuit.

    The ordinate is the share of shots in each of the bins, which are equally wide in the logarithm; ticks
    below mark the longest shots.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.circuit for result in results))
    decoders = list(dict.fromkeys(result.decoder for result in results))
    times = {
        (result.circuit, result.decoder): np.maximum(result.timing.latencies, 1e-9)
        for result in results
        if result.timing
    }
    shortest, longest = min(map(np.min, times.values())), max(map(np.max, times.values()))
    bins = np.geomspace(shortest / 1.2, longest * 1.2, 60)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.6 + 2.4 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), sharex=True, squeeze=False).ravel()
        for name, axes in zip(names, panels, strict=True):
            for index, decoder in enumerate(decoders):
                if (name, decoder) not in times:
                    continue
                taken = times[name, decoder]
                colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
                share = np.histogram(taken, bins)[0] / len(taken)
                axes.stairs(share, bins, color=colour, linestyle=dash, linewidth=1.5, label=decoder)
                axes.plot(taken.max(), 0, marker="|", markersize=14, color=colour, clip_on=False)
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.set_ylabel("share of shots")
            axes.set_title(name)
        panels[-1].set_xlabel("CPU time of one shot on its own, seconds")
        handles = [axes.get_legend_handles_labels() for axes in panels]
        lines = {label: line for pair in handles for line, label in zip(*pair, strict=True)}
        figure.legend(list(lines.values()), list(lines), loc="outside right upper")
    return figure


def _draw_series(
    axes: "Axes", x: np.ndarray, group: Sequence["Result"], label: str, index: int, joined: bool
) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    rates = np.array([result.failures / result.shots for result in group])
    low, high = np.array([result.interval for result in group]).T
    seen = rates > 0
    axes.errorbar(
        x[seen],
        rates[seen],
        yerr=[(rates - low)[seen], (high - rates)[seen]],
        marker=marker,
        linestyle="-" if joined else "none",
        linewidth=1.5,
        capsize=3,
        color=colour,
        label=label,
    )
    if joined:
        # On a log scale no band goes down to zero, so that there is none where nothing failed.
        axes.fill_between(x, low, high, where=seen, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x[~seen], high[~seen], marker="v", linestyle="none", fillstyle="none", color=colour)


def _abscissa(results: Sequence["Result"]) -> str:
    for name in ("p", "distance"):
        values = {getattr(result, name) for result in results}
        if None not in values and len(values) > 1:
            return name
    return "circuit" if len({result.circuit for result in results}) > 1 else "decoder"


def _series(results: Sequence["Result"], abscissa: str) -> dict[str, list["Result"]]:
    """Return the points of each line, in the order of the abscissa."""
    distances = {result.distance for result in results}
    series: dict[str, list[Result]] = {}
    for result in results:
        apart = abscissa == "p" and len(distances) > 1
        label = f"{result.decoder}, d={result.distance}" if apart else result.decoder
        series.setdefault(label, []).append(result)
    if abscissa in ("p", "distance"):
        for points in series.values():
            points.sort(key=lambda result: float(getattr(result, abscissa)))
    return series


def _clean(results: Sequence["Result"]) -> bool:
    return any(result.failures == 0 for result in results)
