"""A training run's symmetries as a figure: imbalance, ranks, lost units and loss along the steps."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from symdyn_core.errors import InputError
from symdyn_core.plots import MEASUREMENT, RIVAL, STYLE
from symdyn_core.symmetry.alarms import LOPSIDED, Alarm
from symdyn_core.symmetry.snapshot import LayerState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from symdyn_core.symmetry.monitor import Snapshot

NAMED = 8  # layers that a legend names one by one
LISTED = 10  # alarms that are written out
DASHES = ("-", "--", "-.", ":")

Series = dict[str, tuple[list[int], list[float]]]
Value = Callable[[LayerState], float | None]


def draw(snapshots: Sequence["Snapshot"], alarms: Sequence[Alarm]) -> "Figure":
    """Draw all panels for which something was measured.

    Raises:
        InputError: there is nothing to draw.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if not snapshots:
        raise InputError("nothing has been measured yet: call update() first")
    panels: list[tuple[str, Series, tuple[float, float] | None]] = [
        ("imbalance of the charge", _series(snapshots, _imbalance), (-1.05, 1.05)),
        ("effective rank / full rank", _series(snapshots, _rank_share), (0, 1.05)),
        ("units lost, part of the layer", _series(snapshots, _lost_share), (-0.03, 1.03)),
        ("loss", _losses(snapshots), None),
    ]
    panels = [panel for panel in panels if panel[1]]
    shown = alarms[:LISTED]
    with mpl.rc_context(STYLE):
        text = 0.22 * (len(shown) + 2 if shown else 1)
        figure = Figure(figsize=(8.5, 2.3 * max(len(panels), 1) + text + 0.5), layout="constrained")
        figure.suptitle(f"Symmetries along training, {snapshots[-1].step:,} steps", x=0.01, ha="left")
        colours = _colours([state.layer for state in snapshots[-1].layers])
        axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (label, series, limits) in zip(axes, panels, strict=False):
            _lines(ax, series, colours)
            ax.set_ylabel(label, fontsize=9)
            if limits is not None:
                ax.set_ylim(limits)
            _marks(ax, shown)
        if panels and panels[0][1] and panels[0][0].startswith("imbalance"):
            for limit in (-LOPSIDED, LOPSIDED):
                axes[0].axhline(limit, color=RIVAL, linewidth=1, linestyle="--")
        axes[-1].set_xlabel(_listing(alarms), loc="left", fontsize=9)
    return figure


def _imbalance(state: LayerState) -> float | None:
    return state.imbalance


def _rank_share(state: LayerState) -> float | None:
    if state.effective_rank is None or not state.full_rank:
        return None
    return state.effective_rank / state.full_rank


def _lost_share(state: LayerState) -> float | None:
    if state.dead_units is None or state.duplicate_units is None or not state.units:
        return None
    return (state.dead_units + state.duplicate_units) / state.units


def _series(snapshots: Sequence["Snapshot"], value: Value) -> Series:
    series: Series = {}
    for snapshot in snapshots:
        for state in snapshot.layers:
            number = value(state)
            if number is not None:
                steps, numbers = series.setdefault(state.layer, ([], []))
                steps.append(snapshot.step)
                numbers.append(number)
    return series


def _losses(snapshots: Sequence["Snapshot"]) -> Series:
    pairs = [(snapshot.step, snapshot.loss) for snapshot in snapshots if snapshot.loss is not None]
    return {"": ([step for step, _ in pairs], [loss for _, loss in pairs])} if pairs else {}


def _colours(layers: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    # The bright end of the map is not seen on white.
    shades = colormaps["viridis"]
    return {layer: shades(0.85 * k / max(len(layers) - 1, 1)) for k, layer in enumerate(layers)}


def _lines(ax: "Axes", series: Series, colours: dict[str, Any]) -> None:
    many = len(series) > NAMED
    for dash, (layer, (steps, numbers)) in zip(cycle(DASHES), series.items(), strict=False):
        ax.plot(
            steps,
            numbers,
            color=colours.get(layer, MEASUREMENT if layer else "#333333"),
            linestyle="-" if many else dash,
            linewidth=1.0 if many else 2.0,
            marker="o" if len(steps) < 30 else None,
            markersize=3,
            label=layer,
        )
    if many:
        first, *_, last = series
        ax.set_title(f"{len(series)} layers, dark {first} to bright {last}", fontsize=8, loc="right")
    elif any(series):
        ax.legend(fontsize=8, title="layer", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _marks(ax: "Axes", alarms: Sequence[Alarm]) -> None:
    by_step: dict[int, list[str]] = {}
    for number, alarm in enumerate(alarms, 1):
        by_step.setdefault(alarm.step, []).append(str(number))
    for step, numbers in by_step.items():
        ax.axvline(step, color=MEASUREMENT, linewidth=1.2, linestyle=":")
        ax.annotate(
            ",".join(numbers),
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -9),
            textcoords="offset points",
            fontsize=8,
            color=MEASUREMENT,
        )


def _listing(alarms: Sequence[Alarm]) -> str:
    lines = ["step"]
    if alarms:
        lines += ["", "Alarms"]
    for number, alarm in enumerate(alarms[:LISTED], 1):
        lines.append(f"{number}  step {alarm.step:,}, layer {alarm.layer}: {alarm.reason}")
    if len(alarms) > LISTED:
        lines.append(f"and {len(alarms) - LISTED} more")
    return "\n".join(lines)
