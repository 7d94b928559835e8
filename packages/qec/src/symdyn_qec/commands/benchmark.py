"""``symdyn qec benchmark``: how often decoders fail on circuits, and how fast they are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from symdyn_core.commands.console import output, progress_bar, say
from symdyn_core.errors import InputError, Interrupted
from symdyn_core.files import check_writable, write_atomically
from symdyn_qec.commands.many import spread

if TYPE_CHECKING:
    from symdyn_qec.benchmark import Benchmark, Experiment

DEFAULT_SHOTS, DEFAULT_BUDGET = 100_000, 10.0


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
        str | None,
        typer.Option(
            help="Generate memory experiments of this code: surface, repetition, toric, bb72, bb144 ...",
            metavar="CODE",
        ),
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
    basis: Annotated[str, typer.Option(help="Logical operators that are kept.", metavar="Z|X")] = "Z",
    decoders: Annotated[
        list[str] | None,
        typer.Option(
            help="Decoders, one or several; the others are compared with the first.",
            metavar="NAME ...",
            show_default="pymatching",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Network for the decoder symdyn, instead of a shipped one.", metavar="DIR"),
    ] = None,
    custom_decoders: Annotated[
        str | None,
        typer.Option(help="Function that returns sinter decoders by name.", metavar="MODULE:FUNCTION"),
    ] = None,
    shots: Annotated[
        int, typer.Option(help="Shots per circuit and decoder at most.", metavar="N")
    ] = DEFAULT_SHOTS,
    budget: Annotated[
        float | None,
        typer.Option(
            help="CPU seconds of decoding per circuit and decoder.",
            metavar="SECONDS",
            show_default=f"{DEFAULT_BUDGET:g}",
        ),
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option(help="Stop a circuit and decoder after this many failures.", metavar="N")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the shots.", metavar="N", show_default="0")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Count failures with this many of sinter's processes, untimed.", metavar="N"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="CSV of counts in sinter's format: keep them, let sinter's processes add new ones.",
            metavar="FILE",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.csv, counts.csv as sinter plots it, and figures.", metavar="DIR"
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page with tables and figures.", metavar="FILE")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per row on standard output.")
    ] = False,
) -> None:
    """Compare decoders on the same shots of Stim circuits: failures and CPU time.

    Give circuits as files, or let them be generated:

        symdyn qec benchmark --code bb72 --p 0.003 --decoders symdyn bposd --budget 60

    A decoder stops when its time is spent. Intervals are Clopper-Pearson at 95 %, discarded shots count as
    failures, the rate per round is that of one observable. With --workers or --resume sinter's processes
    decode instead: fresh shots for every decoder, and nothing timed but the workers.
    """
    experiments = _experiments(circuits or [], code, distance or [], _rounds(rounds), p or [], basis)
    names = list(dict.fromkeys(decoders or ["pymatching"]))
    custom = _custom(custom_decoders, checkpoint)
    _check_places(out, html)
    many = workers is not None or resume is not None
    if many and (budget is not None or seed is not None):
        raise InputError("--budget and --seed are for decoding without --workers and --resume")
    from symdyn_qec.benchmark import benchmark as compare
    from symdyn_qec.benchmark import collect

    bar = progress_bar()
    task = bar.add_task("percent", total=100)

    def show(part: float) -> None:
        bar.start()  # not earlier: bad input should leave one line, not a bar
        bar.update(task, completed=round(100 * part))

    common: dict[str, Any] = {
        "decoders": names,
        "shots": shots,
        "max_errors": max_errors,
        "custom_decoders": custom,
        "progress": show,
    }
    try:
        if many:
            result = collect(experiments, workers=workers, resume=resume, **common)
        else:
            seconds = DEFAULT_BUDGET if budget is None else budget
            result = compare(experiments, budget=seconds, seed=seed or 0, **common)
    except KeyboardInterrupt:
        kept = (
            f"the counts so far are in {resume}" if resume else "nothing is kept; a smaller --budget ends it"
        )
        raise Interrupted(kept) from None
    finally:
        if bar.live.is_started:
            bar.stop()
    if as_json:
        for row in result.results:
            typer.echo(json.dumps(row.to_dict()))
    else:
        from symdyn_qec.benchmark_page import render

        for part in render(result):
            output().print(part)
    _write(result, out, html)


def _check_places(out: Path | None, html: Path | None) -> None:
    """Find out before the work, not after it, whether results have a place."""
    if out is not None:
        check_writable(out)
    if html is not None:
        if html.is_dir():
            raise InputError(f"--html must name a file, got the folder {html}")
        check_writable(html.parent)


def _write(result: "Benchmark", out: Path | None, html: Path | None) -> None:
    written = []
    if out is not None:
        from symdyn_core.plots import to_svg

        figures = {"figure.svg": result.figure(), "latencies.svg": result.latency_figure()}
        texts = {"results.csv": result.to_csv(), "counts.csv": result.to_sinter_csv()}
        texts |= {name: to_svg(figure) for name, figure in figures.items() if figure is not None}
        written += [write_atomically(out / name, text) for name, text in texts.items()]
    if html is not None:
        written.append(write_atomically(html, result.page()))
    if written:
        say("wrote " + ", ".join(map(str, written)))


def _custom(function: str | None, checkpoint: Path | None) -> dict[str, Any]:
    """Return the decoders that the user brings."""
    custom: dict[str, Any] = {}
    if checkpoint is not None:
        from symdyn_qec.decoder import SymdynDecoder

        custom["symdyn"] = SymdynDecoder(checkpoint)
    if function is not None:
        from symdyn_qec.custom import load_decoders

        custom |= load_decoders(function)
    return custom


def _experiments(
    circuits: list[str],
    code: str | None,
    distances: list[int],
    rounds: int | None,
    strengths: list[float],
    basis: str,
) -> list["Experiment"]:
    from symdyn_qec.benchmark import Experiment
    from symdyn_qec.codes import check_basis

    if circuits and (code is not None or distances or strengths or basis != "Z"):
        raise InputError("give circuits as files or --code with --distance, --p and --basis, not both")
    if circuits:
        return [Experiment.read(path, rounds) for path in circuits]
    if code is None:
        raise InputError("nothing to do: give circuits as files, or --code with --distance and --p")
    if not strengths:
        raise InputError(f"--code {code} needs --p, for example --p 0.005")
    sizes: list[int | None] = list(dict.fromkeys(distances)) or [None]
    return [
        Experiment.generate(code, p, distance, rounds, check_basis(basis))
        for p in dict.fromkeys(strengths)
        for distance in sizes
    ]


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
