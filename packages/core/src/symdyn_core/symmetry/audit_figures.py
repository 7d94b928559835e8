"""Figures of an audit: charges and where they end, spectra of the matrices, the units that are left."""

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from symdyn_core.plots import MEASUREMENT, RIVAL, STYLE, THEORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from symdyn_core.symmetry.audit import AuditReport
    from symdyn_core.symmetry.audit_charges import ChargeAudit
    from symdyn_core.symmetry.audit_layers import LayerAudit

WIDTH = 7.6  # inches
ROWS = 40  # charges or layers drawn, those of the largest units first
COLUMNS = 128  # cells of a row of the map; wider layers go on in the next line
LINES = 8  # lines of a layer; still wider layers have several units a cell
SPECTRA = 24
_TICK = "#111111"


def draw_charges(report: "AuditReport") -> "Figure | None":
    """Draw each unit's charge, and where noise and decay take it; None where nothing has two sides."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    charges = [charge for charge in report.charges if charge.imbalances is not None][:ROWS]
    if not charges:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.25 + 0.32 * len(charges)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=RIVAL, linewidth=1, linestyle="--")
        for line, charge in enumerate(charges):
            _draw_charge(axes, line, charge)
        axes.set_yticks(range(len(charges)), [_label(charge) for charge in charges], fontsize=9)
        axes.set_ylim(len(charges) - 0.4, -0.6)
        _charge_scale(axes, charges)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(
            "← incoming weights larger      charge / mean squared norm of a unit      outgoing larger →",
            fontsize=9,
        )
        _charge_legend(figure, any(_ends(charge) for charge in charges))
    return figure


def _draw_charge(axes: "Axes", line: int, charge: "ChargeAudit") -> None:
    values = [value / charge.scale for value in charge.charges] if charge.scale else list(charge.charges)
    # Units side by side, in their order, so that many of them remain points and not a blot.
    places = [line + 0.5 * (k / max(len(values) - 1, 1) - 0.5) for k in range(len(values))]
    axes.plot(
        values,
        places,
        linestyle="none",
        marker="o",
        markersize=3.5 if len(values) <= 64 else 2.2,
        alpha=0.55,
        color=MEASUREMENT,
        markeredgewidth=0,
    )
    ends = _ends(charge)
    if ends:
        axes.vlines(ends, line - 0.34, line + 0.34, color=THEORY, linewidth=0.6, alpha=0.3)
        axes.vlines([median(ends)], line - 0.42, line + 0.42, color=THEORY, linewidth=2.4)


def _ends(charge: "ChargeAudit") -> list[float]:
    """Return the charges at equilibrium in the unit of the figure; of a general linear group one per unit."""
    ends = [end for end in charge.equilibria or () if end is not None]
    units = len(charge.charges) / len(charge.equilibria or (1,))
    return [end / charge.scale / units for end in ends] if charge.scale else []


def _charge_scale(axes: "Axes", charges: "Sequence[ChargeAudit]") -> None:
    """Make the axis linear where most units are and logarithmic beyond."""
    values = [v / charge.scale for charge in charges if charge.scale for v in charge.charges]
    values += [end for charge in charges for end in _ends(charge)]
    widest = max(map(abs, values), default=1.0)
    if widest > 3:
        axes.set_xscale("symlog", linthresh=1, linscale=1)
        axes.set_xlim(-1.6 * widest, 1.6 * widest)
        axes.minorticks_off()
    else:
        axes.set_xlim(-1.1 * max(widest, 0.5), 1.1 * max(widest, 0.5))


def _charge_legend(figure: "Figure", has_ends: bool) -> None:
    from matplotlib.lines import Line2D

    now = Line2D([], [], linestyle="none", marker="o", color=MEASUREMENT, markersize=5)
    balanced = Line2D([], [], color=RIVAL, linestyle="--", linewidth=1)
    handles, labels = [now, balanced], ["units now", "balanced, where weight decay leads"]
    if has_ends:
        end = Line2D([], [], linestyle="none", marker="|", color=THEORY, markersize=13, markeredgewidth=2.4)
        handles.append(end)
        labels.append("noise and decay in balance (median)")
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=9, handletextpad=0.4)


def _label(charge: "ChargeAudit") -> str:
    kind = {"positive rescaling": "", "general linear": " (linear)", "norm gain": " (gain)"}
    return short(charge.layer, 30) + kind.get(charge.kind, f" ({charge.kind})")


def short(name: str, length: int = 22) -> str:
    """Return a name that fits, its end rather than its beginning.

    >>> short("encoder.layers.11.attention.output", 20)
    '…11.attention.output'
    """
    return name if len(name) <= length else "…" + name[1 - length :]


def draw_spectra(report: "AuditReport") -> "Figure | None":
    """Draw the singular values of each matrix on a logarithmic scale, and where its numerical rank ends."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    layers = [layer for layer in report.layers if any(layer.singular_values)][:SPECTRA]
    if not layers:
        return None
    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        smallest = min(_visible(layer)[-1] / layer.singular_values[0] for layer in layers)
        for number, axes in enumerate(grid.flat):
            if number < len(layers):
                _draw_spectrum(axes, layers[number])
                axes.set_ylim(max(smallest / 2, 1e-9), 1.6)
            else:
                axes.set_visible(False)
        figure.supxlabel("number of the singular value", fontsize=9)
        figure.supylabel("relative to the largest", fontsize=9)
    return figure


def _visible(layer: "LayerAudit") -> Sequence[float]:
    """Return the singular values that a logarithmic axis can show."""
    floor = layer.singular_values[0] * 1e-9
    return [value for value in layer.singular_values if value > floor]


def _draw_spectrum(axes: "Axes", layer: "LayerAudit") -> None:
    largest = layer.singular_values[0]
    numbers = range(1, len(layer.singular_values) + 1)
    values = [max(value / largest, 1e-12) for value in layer.singular_values]
    axes.semilogy(numbers, values, color=THEORY, linewidth=1.6)
    rank = layer.rank or 0
    lost = rank < (layer.full_rank or 0)
    axes.axvline(
        rank + 0.5,
        color=MEASUREMENT if lost else RIVAL,
        linewidth=1.4 if lost else 1,
        linestyle="-" if lost else ":",
    )
    axes.axvline(layer.effective_rank or 0, color=THEORY, linewidth=1, linestyle="--", alpha=0.7)
    axes.set_title(short(layer.name, 24), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_xlim(0, len(layer.singular_values) + 1)
    axes.minorticks_off()
    axes.locator_params(axis="x", integer=True, nbins=4)


def draw_map(report: "AuditReport") -> "Figure | None":
    """Draw every unit as a cell, as dark as it is strong, with marks on those that are lost."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    layers = [layer for layer in report.layers if layer.strengths][:ROWS]
    if not layers:
        return None
    columns = min(COLUMNS, max(len(layer.strengths) for layer in layers))
    heights = [min(LINES, math.ceil(len(layer.strengths) / columns)) for layer in layers]
    gap = 0.9
    total = sum(heights) + gap * len(layers)
    with mpl.rc_context(STYLE):
        line = 0.13 if max(heights) > 1 else 0.2
        figure = Figure(figsize=(WIDTH, 1.4 + line * total), layout="constrained")
        axes = figure.subplots()
        top = 0.0
        ticks = []
        for layer, height in zip(layers, heights, strict=True):
            _draw_units(axes, layer, top, height, columns)
            ticks.append(top + height / 2)
            top += height + gap
        axes.set_yticks(
            ticks, [short(layer.name, 28) + ("" if layer.by_activity else " *") for layer in layers]
        )
        axes.tick_params(axis="y", labelsize=8, length=0)
        axes.set_xticks([])
        axes.set_xlim(-0.5, columns + 0.5)
        axes.set_ylim(top, -gap)
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        _map_legend(figure, axes, any(not layer.by_activity for layer in layers))
    return figure


def _draw_units(axes: "Axes", layer: "LayerAudit", top: float, height: int, columns: int) -> None:
    import numpy as np

    strengths = np.asarray(layer.strengths)
    each = math.ceil(len(strengths) / (height * columns))  # units in a cell
    cells = math.ceil(len(strengths) / each)
    padded = np.full(height * columns * each, np.nan)
    padded[: len(strengths)] = strengths
    shown = np.full((height * columns, each), np.nan)
    shown[:] = padded.reshape(-1, each)
    image = np.full(height * columns, np.nan)
    image[:cells] = np.nanmean(shown[:cells], axis=1)
    axes.imshow(
        np.sqrt(image.reshape(height, columns)),  # the eye tells weak units from zero ones better so
        extent=(0, columns, top + height, top),
        cmap="Blues",
        vmin=-0.12,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
    )
    for line in range(height):
        width = min(columns, cells - line * columns)
        axes.plot(
            [0, width, width, 0, 0],
            [top + line, top + line, top + line + 1, top + line + 1, top + line],
            color="#c3cbd2",
            linewidth=0.5,
            clip_on=False,
        )
    copies = [copy for _, copy in layer.duplicate_pairs]
    for units, marker, colour in (
        (layer.dead_units, "x", MEASUREMENT),
        (layer.faded_units, "v", "#8a5a00"),
        (copies, "s", _TICK),
    ):
        places = [unit // each for unit in units]
        axes.plot(
            [place % columns + 0.5 for place in places],
            [top + place // columns + 0.5 for place in places],
            linestyle="none",
            marker=marker,
            markersize=4,
            color=colour,
            markerfacecolor="none",
            markeredgewidth=1.1,
        )


def _map_legend(figure: "Figure", axes: "Axes", weights_alone: bool) -> None:
    import matplotlib as mpl
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = mpl.colormaps["Blues"]
    style: dict[str, Any] = {
        "linestyle": "none",
        "markersize": 6,
        "markerfacecolor": "none",
        "markeredgewidth": 1.3,
    }
    handles = [
        Patch(facecolor=colours(1.0), label="as strong as the strongest"),
        Patch(facecolor=colours((0.1 + 0.12) / 1.12), edgecolor="#9aa5af", label="a hundredth of it"),
        Line2D([], [], marker="x", color=MEASUREMENT, label="dead", **style),
        Line2D([], [], marker="v", color="#8a5a00", label="faded", **style),
        Line2D([], [], marker="s", color=_TICK, label="copy", **style),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8.5, handletextpad=0.4)
    if weights_alone:
        axes.set_xlabel(
            "* by the norm of the weights; others by how far a unit moves what reads it", fontsize=8
        )
