"""A noise report as a page: in the terminal, and in HTML with its figures."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from symdyn_core.pages import inline, render_page
from symdyn_core.plots import MEASUREMENT, RIVAL, STYLE, THEORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from symdyn_core.dynamics.noise_report import LayerNoise, NoiseReport

SHOWN_LAYERS = 12  # in the terminal; the page has all
SHOWN_DIRECTIONS = 10
_WIDTH, _HEIGHT = 8.6, 3.5  # inches

_SPECTRUM = ("noise eigenvalue", "share", "together")
_CURVATURE = ("curvature", "noise along it", "noise / curvature")
_LAYERS = ("layer", "parameters", "noise", "share", "noise / signal")
_EQUIVALENTS = ("batch size", "learning rate", "linear rule", "")


def render(report: "NoiseReport") -> Iterator[RenderableType]:
    """Yield the parts of the terminal's page, top to bottom."""
    line = Text()
    line.append(report.model, style="bold")
    line.append(
        f"   {report.parameters:,} parameters   loss {report.loss:.4g} on {_samples(report)}"
        f"   gradient {report.gradient_norm:.3g}\n"
    )
    yield line
    grid = Table.grid(padding=(0, 3, 0, 0))
    for name, value in facts(report):
        grid.add_row(Text(name, style="dim"), value)
    yield Padding(grid, (0, 0, 1, 0))
    shown = sorted(report.layers, key=lambda layer: -layer.share)[:SHOWN_LAYERS]
    left = len(report.layers) - len(shown)
    title = "Layer by layer" + (f", the {len(shown)} noisiest of {len(report.layers)}" if left else "")
    yield _table(title, _LAYERS, layers([layer for layer in report.layers if layer in shown]), words=1)
    yield _table("Largest eigenvalues of the noise", _SPECTRUM, spectrum(report))
    yield _table("Along the directions of largest curvature", _CURVATURE, curvature(report))
    if report.equivalents:
        yield _table("The same loss gap with other batches", _EQUIVALENTS, equivalents(report))
    advice = Table.grid(padding=(0, 1))
    advice.add_column(justify="right", style="bold")
    advice.add_column()
    for number, sentence in enumerate(report.advice, start=1):
        advice.add_row(f"{number}.", Padding(Text(sentence), (0, 0, 1, 0)))
    yield Group(Text("What it means", style="bold"), advice)


def facts(report: "NoiseReport") -> list[tuple[str, str]]:
    """Return the key figures: what it is, and its value in words or numbers."""
    tail = "–" if report.tail_index is None else _number(report.tail_index)
    return [
        ("noise of one sample's gradient (trace)", f"{report.trace:.4g}"),
        (f"noise of a batch of {report.batch_size}", f"{report.batch_trace:.4g}"),
        ("noise scale (critical batch size)", _number(report.noise_scale)),
        ("the same, weighted by curvature", _number(report.critical_batch_size)),
        ("noise over 2 loss × curvature", _number(report.noise_to_loss)),
        ("effective number of directions", f"{report.effective_rank:.3g}"),
        ("predicted stationary loss gap", _number(report.loss_gap)),
        ("squared gradient over that at rest", _number(report.descent)),
        ("edge of the learning rate", _number(report.edge)),
        ("tail index, steepest direction", tail),
    ]


def spectrum(report: "NoiseReport") -> list[tuple[str, ...]]:
    """Return a row for each of the largest eigenvalues of the noise."""
    rows: list[tuple[str, ...]] = []
    together = 0.0
    for value, share in zip(report.spectrum, report.shares, strict=True):
        together += share
        rows.append((f"{value:.4g}", f"{100 * share:.1f} %", f"{100 * together:.1f} %"))
    return rows[:SHOWN_DIRECTIONS]


def curvature(report: "NoiseReport") -> list[tuple[str, ...]]:
    """Return a row for each direction of largest curvature."""
    rows: list[tuple[str, ...]] = [
        (f"{h:.4g}", f"{along:.4g}", f"{along / h:.3g}" if h > 0 else "–")
        for h, along in zip(report.curvatures, report.noise_along, strict=True)
    ]
    return rows[:SHOWN_DIRECTIONS]


def layers(rows: "Sequence[LayerNoise]") -> list[tuple[str, ...]]:
    """Return a row for each layer."""
    return [
        (
            layer.name,
            f"{layer.parameters:,}",
            f"{layer.trace:.4g}",
            f"{100 * layer.share:.1f} %",
            _number(layer.noise_to_signal),
        )
        for layer in rows
    ]


def equivalents(report: "NoiseReport") -> list[tuple[str, ...]]:
    """Return a row for each batch size: its learning rate, the linear rule's, and a remark."""
    rows: list[tuple[str, ...]] = []
    for row in report.equivalents:
        remark = "" if row.linear_is_stable else "linear rule unstable"
        if row.batch_size == report.batch_size:
            remark = "now"
        rows.append((f"{row.batch_size:,}", f"{row.learning_rate:.4g}", f"{row.linear:.4g}", remark))
    return rows


def page(report: "NoiseReport", title: str | None = None) -> str:
    """Return the HTML page; the same report gives the same bytes."""
    return render_page(
        "symdyn_core.dynamics",
        "noise.html",
        title=title or report.model,
        kind="Gradient noise",
        advice=report.advice,
        filters={},
        report=report,
        samples=_samples(report),
        facts=facts(report),
        tables=[
            ("The same loss gap with other batches", _EQUIVALENTS, equivalents(report), 0),
            ("Layer by layer", _LAYERS, layers(report.layers), 1),
            ("Largest eigenvalues of the noise", _SPECTRUM, spectrum(report), 0),
            ("Along the directions of largest curvature", _CURVATURE, curvature(report), 0),
        ],
        figure=inline(draw(report), "noise"),
    )


def draw(report: "NoiseReport") -> "Figure":
    """Draw the noise along the curvature, and the learning rates of other batch sizes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_curvature(left, report)
        _draw_equivalents(right, report)
    return figure


def _draw_curvature(axes: "Axes", report: "NoiseReport") -> None:
    pairs = [pair for pair in zip(report.curvatures, report.noise_along, strict=True) if min(pair) > 0]
    if pairs:
        steep, along = zip(*pairs, strict=True)
        axes.loglog(steep, along, "o", ms=5, color=MEASUREMENT, label="measured")
        if report.loss > 0:
            ends = [min(steep), max(steep)]
            from_loss = [2 * report.loss * h for h in ends]
            axes.loglog(ends, from_loss, "--", color=RIVAL, label="2 loss × curvature")
        axes.legend(fontsize=9)
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
    else:
        axes.text(0.5, 0.5, "no noise along positive curvature", ha="center", transform=axes.transAxes)
    axes.set(xlabel="curvature", ylabel="noise along it")
    axes.set_title("noise and curvature")


def _draw_equivalents(axes: "Axes", report: "NoiseReport") -> None:
    axes.set_title("same loss gap")
    axes.set(xlabel="batch size", ylabel="learning rate")
    if not report.equivalents:
        axes.text(0.5, 0.5, "no stationary state", ha="center", transform=axes.transAxes)
        return
    from matplotlib.ticker import NullLocator

    sizes = [row.batch_size for row in report.equivalents]
    axes.loglog(sizes, [row.learning_rate for row in report.equivalents], "-", color=THEORY, label="theory")
    axes.loglog(sizes, [row.linear for row in report.equivalents], "--", color=RIVAL, label="linear rule")
    if report.edge is not None:
        axes.axhline(report.edge, color="black", linestyle=":", linewidth=1.4, label="edge of stability")
    axes.loglog([report.batch_size], [report.learning_rate], "o", color=MEASUREMENT, label="now", zorder=5)
    _plain_ticks(axes.yaxis)
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45 if len(sizes) > 6 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9)


def _plain_ticks(axis: "Axis") -> None:
    """Label a logarithmic axis by numbers, a few of them, whether it spans decades or not."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if math.isfinite(value) else "∞"


def _samples(report: "NoiseReport") -> str:
    if report.samples == report.given:
        return f"{report.samples:,} samples"
    return f"{report.samples:,} of {report.given:,} samples"


def _table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0
) -> RenderableType:
    """Return a table whose first columns, ``words`` of them, are texts."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < words or not heading else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return Padding(table, (0, 0, 1, 0))
