"""A benchmark as a page: in the terminal, and in HTML with its figures."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from symdyn_core.pages import inline, render_page
from symdyn_qec.baselines.registry import DECODERS
from symdyn_qec.timing import MANY_CORES

if TYPE_CHECKING:
    from symdyn_qec.pairing import Paired
    from symdyn_qec.results import Benchmark, Result

_COUNTS = ("shots", "errors", "rate", "95 % interval", "per round")
_PAIRED = ("alone : first", "sign test")
_TIMES = ("ready in", "per shot, batch", "one shot, mean", "p50", "p99", "max")
_WORKERS = ("per shot",)

# Below this many failures an interval spans more than a factor of about four.
FEW_FAILURES = 10

# Two decoders differ if chance splits their failures so unequally less often than this.
SIGNIFICANT = 0.05


def render(benchmark: "Benchmark") -> Iterator[RenderableType]:
    """Yield the parts of the terminal's page, top to bottom."""
    results = benchmark.results
    timed = any(result.timing for result in results)
    paired = any(result.paired for result in results)
    yield _table((*_COUNTS, *(_PAIRED if paired else ()), *(() if timed else _WORKERS)), results)
    if timed:
        yield Text()
        yield _table(_TIMES, [result for result in results if result.timing])
    for line in notes(benchmark):
        yield Text()
        yield Text(line)


def page(benchmark: "Benchmark", title: str) -> str:
    """Return the HTML page; the same results give the same bytes."""
    results = benchmark.results
    names = list(dict.fromkeys(result.decoder for result in results))
    timed = any(result.timing for result in results)
    counts = (*_COUNTS, *_PAIRED, *(() if timed else _WORKERS))
    return render_page(
        "symdyn_qec",
        "benchmark.html",
        title=title,
        kind="Benchmark",
        advice=findings(benchmark),
        filters={},
        circuits=[(circuit, list(group)) for circuit, group in groupby(results, lambda r: r.circuit)],
        counts=counts,
        times=_TIMES if timed else (),
        cells=cells,
        seed=results[0].seed,
        decoders=len(names),
        shots=sum(result.shots for result in results),
        rates=inline(benchmark.figure(), "rates"),
        latencies=inline(benchmark.latency_figure(), "latencies"),
        settings=[(name, DECODERS[name].settings if name in DECODERS else "custom") for name in names],
    )


def cells(result: "Result", columns: Sequence[str]) -> list[str]:
    """Return what a table has about a result under some headings."""
    return [_cell(result, column) for column in columns]


def duration(seconds: float | None) -> str:
    """Format a time with three significant digits and a unit.

    >>> duration(4.56e-06), duration(0.0123), duration(12.3), duration(None)
    ('4.56 µs', '12.3 ms', '12.3 s', '–')
    """
    if seconds is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return (
                f"{seconds / size:.3g} {unit}" if seconds < 999.5 * size else f"{seconds / size:.0f} {unit}"
            )
    raise AssertionError  # every time has a unit


def notes(benchmark: "Benchmark") -> list[str]:
    """Return what has to be said about single rows: why decoders were skipped, what their times leave out."""
    lines = [
        f"skipped {result.decoder} on {result.circuit}: {result.skipped}"
        for result in benchmark.results
        if result.skipped
    ]
    lines += [
        f"{result.decoder} on {result.circuit} used {result.timing.cores:.1f} threads; "
        "the times are those of one of them"
        for result in benchmark.results
        if result.timing and result.timing.cores > MANY_CORES
    ]
    return lines


def findings(benchmark: "Benchmark") -> list[str]:
    """Return in sentences which decoder to use for which circuit, and what is left open."""
    found: list[str] = []
    for circuit, group in groupby(benchmark.results, lambda result: result.circuit):
        rows = [result for result in group if result.shots]
        if not rows:
            continue
        # One failure more than seen: few shots without any failure are no merit.
        best = min(rows, key=lambda result: (result.failures + 1) / result.shots)
        fastest = min(rows, key=lambda result: result.seconds / result.shots)
        found += [
            f"For accuracy: {best.decoder} on {circuit}, which failed on {best.failures} of {best.shots:,} "
            f"shots at {duration(best.seconds_per_shot)} each.",
            f"For speed: {fastest.decoder} on {circuit}, {duration(fastest.seconds_per_shot)} a shot, "
            f"{fastest.failures} of {fastest.shots:,} failed.",
        ]
        found += [_verdict(row.decoder, row.paired) for row in rows if row.paired is not None]
        few = [row.decoder for row in rows if row.failures < FEW_FAILURES]
        if few:
            found.append(
                f"Decode more shots: {', '.join(few)} failed on fewer than {FEW_FAILURES} of {circuit}; "
                "more shots or time would narrow the interval."
            )
    return found + [line[0].upper() + line[1:] for line in notes(benchmark)]


def _verdict(name: str, paired: "Paired") -> str:
    if paired.p_value >= SIGNIFICANT:
        word = "no difference seen"
    else:
        word = "better" if paired.only_this < paired.only_reference else "worse"
    return (
        f"{name} against {paired.reference}: {word}; of {paired.shots:,} shots that both decoded "
        f"{paired.only_this} failed with {name} alone and {paired.only_reference} with {paired.reference} "
        f"alone (sign test, p = {paired.p_value:.2g})."
    )


def _table(columns: Sequence[str], results: Sequence["Result"]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("circuit, decoder", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for circuit, group in groupby(results, lambda result: result.circuit):
        table.add_row(Text(circuit))
        for result in group:
            table.add_row(Text(f"  {result.decoder}"), *map(Text, cells(result, columns)))
    return table


def _cell(result: "Result", column: str) -> str:
    timing, paired = result.timing, result.paired
    if result.skipped:
        return "skipped" if column == "shots" else "–"
    low, high = result.interval
    match column:
        case "shots":
            return str(result.shots)
        case "errors":
            return f"{result.errors}" + (f" + {result.discards} discarded" if result.discards else "")
        case "rate":
            return f"{result.failures / result.shots:.3g}"
        case "95 % interval":
            return f"[{low:.3g}, {high:.3g}]"
        case "per round":
            return "–" if result.per_round is None else f"{result.per_round:.3g}"
        case "alone : first":
            return "–" if paired is None else f"{paired.only_this} : {paired.only_reference}"
        case "sign test":
            return "–" if paired is None else f"{paired.p_value:.2g}"
        case "per shot":
            return duration(result.seconds_per_shot)
    assert timing is not None  # all other columns are of timed results
    seconds = {
        "ready in": timing.construction,
        "per shot, batch": timing.batch,
        "one shot, mean": timing.mean,
        "p50": timing.p50,
        "p99": timing.p99,
        "max": timing.max,
    }
    return duration(seconds[column])
