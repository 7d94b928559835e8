"""``symdyn qec benchmark``: how often decoders fail on circuits, and how fast they are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from symdyn_core.commands.console import output, progress_bar, say
from symdyn_core.errors import InputError, Interrupted
from symdyn_core.files import check_writable, write_atomically
from symdyn_qec.commands.many import spread

if TYPE_CHECKING:
    from rich.table import Table

    from symdyn_qec.benchmark import Benchmark, Experiment


class BenchmarkCommand(TyperCommand):
    """A command whose options ``--distance``, ``--p`` and ``--decoders`` take several values each."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's own alias
        """Bring several values in a row into the form that the parser knows."""
        options = {"--distance": _is_number, "--p": _is_number, "--decoders": _is_name}
        return super().parse_args(ctx, spread(args, options))


def benchmark(
    circuits: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CIRCUIT.stim ...]", help="Stim circuits to decode.", show_default=False),
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Generate circuits of this code: surface, repetition.", metavar="CODE")
    ] = None,
    distance: Annotated[
        list[int] | None,
        typer.Option(help="Code distances, one or several: --distance 3 5.", metavar="D ..."),
    ] = None,
    rounds: Annotated[
        str, typer.Option(help="Rounds: a number, or d for as many as the distance.", metavar="N|d")
    ] = "d",
    p: Annotated[
        list[float] | None,
        typer.Option(help="Strengths of uniform circuit noise, one or several.", metavar="P ..."),
    ] = None,
    shots: Annotated[int, typer.Option(help="Shots per circuit and decoder.", metavar="N")] = 100_000,
    max_errors: Annotated[
        int | None, typer.Option(help="Stop a circuit and decoder after this many errors.", metavar="N")
    ] = None,
    decoders: Annotated[
        list[str] | None,
        typer.Option(
            help="Decoders by sinter's names, one or several.", metavar="NAME ...", show_default="pymatching"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes.", metavar="N", show_default="as cores and shots warrant")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="CSV of counts in sinter's format: keep them, add the new ones.", metavar="FILE"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results.csv and figure.svg.", metavar="DIR")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per row on standard output.")
    ] = False,
) -> None:
    """Measure logical error rates of decoders on Stim circuits.

    Give circuits as files, or let them be generated:

        symdyn qec benchmark --code surface --distance 3 5 --rounds d --p 0.005 --shots 100000

    Every run samples fresh shots. Intervals are Clopper-Pearson at 95 %; the rate per round is that of one
    observable; the time per shot is that of one worker, for sampling and decoding.
    """
    experiments = _experiments(circuits or [], code, distance or [], _rounds(rounds), p or [])
    from symdyn_qec.benchmark import benchmark as run

    names = list(dict.fromkeys(decoders or ["pymatching"]))
    if out is not None:
        check_writable(out)
    bar = progress_bar()
    task = bar.add_task("shots", total=max(shots, 0) * len(experiments) * len(names))

    def advance(done: int) -> None:
        bar.start()  # not earlier: bad input should leave one line, not a bar
        bar.advance(task, done)

    try:
        result = run(
            experiments,
            decoders=names,
            shots=shots,
            max_errors=max_errors,
            workers=workers,
            resume=resume,
            progress=advance,
        )
    except KeyboardInterrupt:
        kept = f"the counts so far are in {resume}" if resume else "--resume FILE would have kept the counts"
        raise Interrupted(kept) from None
    finally:
        if bar.live.is_started:
            bar.stop()
    if as_json:
        for row in result.results:
            typer.echo(json.dumps(row.to_dict()))
    else:
        output().print(_table(result))
    if out is not None:
        from symdyn_core.plots import to_svg

        written = [
            write_atomically(out / "results.csv", result.to_csv()),
            write_atomically(out / "figure.svg", to_svg(result.figure())),
        ]
        say("wrote " + " and ".join(map(str, written)))


def _experiments(
    circuits: list[str], code: str | None, distances: list[int], rounds: int | None, strengths: list[float]
) -> list["Experiment"]:
    from symdyn_qec.benchmark import Experiment

    if circuits and (code is not None or distances or strengths):
        raise InputError("give circuits as files or --code with --distance and --p, not both")
    if circuits:
        return [Experiment.read(path, rounds) for path in circuits]
    if code is None:
        raise InputError("nothing to do: give circuits as files, or --code with --distance and --p")
    if not strengths:
        raise InputError(f"--code {code} needs --p, for example --p 0.005")
    sizes: list[int | None] = list(dict.fromkeys(distances)) or [None]
    return [
        Experiment.generate(code, p, distance, rounds) for p in dict.fromkeys(strengths) for distance in sizes
    ]


def _table(result: "Benchmark") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("circuit, decoder", overflow="fold")
    for heading in ("shots", "errors", "rate", "95 % interval", "per round", "µs/shot"):
        table.add_column(heading, justify="right", no_wrap=True)
    circuit = ""
    for row in result.results:
        if row.circuit != circuit:
            circuit = row.circuit
            table.add_row(escape(circuit))
        low, high = row.interval
        table.add_row(
            f"  {row.decoder}",
            f"{row.shots}",
            f"{row.errors}" + (f" + {row.discards} discarded" if row.discards else ""),
            f"{row.error_rate:.3g}",
            escape(f"[{low:.3g}, {high:.3g}]"),
            "–" if row.per_round is None else f"{row.per_round:.3g}",
            f"{row.microseconds_per_shot:.2f}",
        )
    return table


def _rounds(text: str) -> int | None:
    if text == "d":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--rounds must be a whole number or d, got {text!r}") from error


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_name(word: str) -> bool:
    """Decoders have plain names; files have a dot or a slash, options a leading dash."""
    return not word.startswith("-") and "." not in word and "/" not in word
