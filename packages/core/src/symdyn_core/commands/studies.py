"""``symdyn list | show | run | gallery | cite``: studies from the command line."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from symdyn_core.commands.console import VERDICT_STYLE, messages, number, output, progress_bar
from symdyn_core.errors import InputError, Interrupted, SymdynError

if TYPE_CHECKING:
    from symdyn_core.study.record import Record
    from symdyn_core.study.registry import Entry
    from symdyn_core.study.runner import Outcome
    from symdyn_core.study.spec import Study

OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of the records and the gallery.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]
StudyId = Annotated[str, typer.Argument(metavar="ID", help="A study, as `symdyn list` names it.")]

MOST_REPETITIONS = 10_000

show_tracebacks = False  # set by `symdyn --debug`


def list_studies(out: OutOption = Path("out"), as_json: JsonOption = False) -> None:
    """List every study, its latest verdict, and every paper still without one."""
    from symdyn_core.study.catalogue import catalogue

    rows = catalogue(out)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row.to_dict(), ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("study", "paper", "title", "verdict"):
        table.add_column(heading, no_wrap=heading in ("study", "paper"))
    for row in rows:
        dim = "" if row.id else "dim"
        verdict = VERDICT_STYLE.get(row.verdict, row.verdict)
        table.add_row(row.id or f"({row.package})", row.paper, escape(row.title), verdict, style=dim)
        if row.error:
            table.add_row("", "", f"[red]{escape(row.error)}[/]", "")
    output().print(table)


def show(study_id: StudyId) -> None:
    """Show a study: its text, claims, settings and presets."""
    import dataclasses

    from rich.padding import Padding

    study = _load_one(study_id)
    console = output()
    console.print(f"[bold]{study.id}[/]  {escape(study.title)}  (version {study.version})")
    console.print(f"{study.paper.title}. {study.paper.authors}. arXiv:{study.paper.arxiv}", style="dim")
    console.print(f"Tested: {escape(study.paper.result)}\n")
    for paragraph in study.text.split("\n\n"):
        console.print(" ".join(paragraph.split()) + "\n", markup=False)
    config = study.configure("quick")
    for claim in study.claims:
        margin = f"{100 * claim.margin:g} %" if claim.relative else number(claim.margin)
        predicted = "one per repetition" if claim.per_repetition else number(claim.predict(config))
        console.print(f"claim [bold]{claim.name}[/]: {predicted} ± {margin}")
        for word, text in (("law", claim.formula), ("margin", claim.because), ("rival", claim.rival.name)):
            console.print(Padding(f"{word}: {escape(text)}", (0, 0, 0, 2)))
    console.print()
    settings = Table(
        "setting", "default", "valid", "meaning", title="Settings (--set NAME=VALUE)", title_justify="left"
    )
    for field in dataclasses.fields(study.config):
        valid, choices = field.metadata.get("valid"), field.metadata.get("choices")
        allowed = f"{valid[0]:g} … {valid[1]:g}" if valid else ", ".join(map(str, choices or ()))
        settings.add_row(field.name, str(field.default), allowed, field.metadata.get("help", ""))
    console.print(settings)
    for name, values in study.presets.items():
        changes = ", ".join(f"{key}={value}" for key, value in values.items()) or "the defaults"
        console.print(f"preset [bold]{name}[/]: {changes}; {study.repetitions} repetitions")
    console.print("tools: " + ", ".join(study.tools), soft_wrap=True)


def run(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Studies or packages; all of them by default."),
    ] = None,
    preset: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Master seed: moves all randomness.")] = 0,
    repetitions: Annotated[
        int | None, typer.Option(help="Independent repetitions.", show_default="the study's own")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    engine: Annotated[str, typer.Option(help="local, or dask with --scheduler.")] = "local",
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler, tcp://host:port.")
    ] = None,
    out: OutOption = Path("out"),
    force: Annotated[bool, typer.Option("--force", help="Measure again, whatever is on disk.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run studies and judge their claims. Finished repetitions are kept and never run twice.

    Exit status: 0 if every claim is CONFIRMED, 1 if some is not, 2 for bad input.
    """
    from symdyn_core.files import check_writable
    from symdyn_core.study import runner
    from symdyn_core.study.registry import select

    overrides = _parse_settings(settings or [])
    if repetitions is not None and not 1 <= repetitions <= MOST_REPETITIONS:
        raise InputError(f"--repetitions must be in [1, {MOST_REPETITIONS}], got {repetitions}")
    where = runner.Engine(engine, jobs, scheduler)
    entries = select(ids or [])
    if overrides and len(entries) != 1:
        raise InputError(f"--set needs exactly one study ID, got {len(entries)} studies")
    check_writable(out)
    start = time.perf_counter()
    records, broken = _prepare(entries, preset, overrides, seed, out, force)
    targets = [repetitions or record.study.repetitions for record in records]
    done = _run_with_progress(records, targets, out, where)
    rows = [
        _finish(record, target, out, changed=record is not before)
        for before, record, target in zip(records, done, targets, strict=True)
    ] + broken
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        _print_verdicts(rows, time.perf_counter() - start)
    raise typer.Exit(0 if all(row["verdict"] == "CONFIRMED" for row in rows) else 1)


def gallery(out: OutOption = Path("out")) -> None:
    """Write index.html and a page per study from the records; works offline."""
    from symdyn_core.study.gallery import write_gallery

    with messages().status("writing the gallery"):
        index = write_gallery(out)
    output().print(f"gallery: {index}", markup=False, soft_wrap=True)


def cite(study_id: StudyId) -> None:
    """Print the BibTeX entry of a study's paper; an arXiv id works too."""
    from symdyn_core.study.paper import bibliography, bibtex

    known = bibliography().get(study_id)
    if known is None:
        typer.echo(_load_one(study_id).paper.bibtex())
    else:
        typer.echo(bibtex(known.arxiv, known.title, known.authors, known.year, known.venue))


def _load_one(study_id: str) -> "Study":
    from symdyn_core.errors import unknown
    from symdyn_core.study.registry import entries, load

    known = entries()
    if study_id not in known:
        raise InputError(unknown("study", study_id, known))
    try:
        return load(known[study_id])
    except Exception as error:
        raise InputError(f"{study_id} cannot be loaded: {type(error).__name__}: {error}") from error


def _parse_settings(settings: list[str]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--set expects NAME=VALUE, got {text!r}")
        if name in parsed:
            raise InputError(f"--set gives {name} twice: {parsed[name]} and {value}")
        parsed[name] = value
    return parsed


def _prepare(
    entries: "list[Entry]", preset: str, overrides: dict[str, str], seed: int, out: Path, force: bool
) -> "tuple[list[Record], list[dict[str, Any]]]":
    """Return the records to complete, and an ERROR row for each study that cannot be loaded."""
    from symdyn_core.study.record import Record
    from symdyn_core.study.registry import load

    records, broken = [], []
    for entry in entries:
        try:
            study = load(entry)
        except SymdynError:
            raise
        except Exception as error:  # noqa: BLE001  # shown as this study's ERROR row; the others still run
            reason = entry.error or f"{type(error).__name__}: {error}".splitlines()[0]
            row = {"id": entry.id, "paper": entry.arxiv, "package": entry.package, "preset": preset}
            broken.append({**row, "claims": [], "verdict": "ERROR", "error": reason})
            continue
        record = Record(study, preset, study.configure(preset, overrides), seed)
        records.append(record if force else record.resumed(out))
    return records, broken


def _run_with_progress(records: "list[Record]", targets: list[int], out: Path, engine: Any) -> "list[Record]":
    from symdyn_core.study import runner

    missing = [
        sum(k not in record.samples for k in range(target))
        for record, target in zip(records, targets, strict=True)
    ]
    if not sum(missing):
        return records
    left = Counter({record.study.id: count for record, count in zip(records, missing, strict=True)})
    with progress_bar() as bar:
        task = bar.add_task(f"{sum(map(bool, missing))} studies", total=sum(missing))

        def advance(record: "Record", outcome: "Outcome") -> None:
            left[record.study.id] -= 1
            unfinished = sum(count > 0 for count in left.values())
            bar.update(task, advance=1, description=f"{unfinished} studies to go; {record.study.id}")
            if outcome.trace and show_tracebacks:
                print(outcome.trace, file=sys.stderr)  # noqa: T201

        try:
            return runner.run(records, targets, out=out, engine=engine, on_repetition=advance)
        except KeyboardInterrupt:
            raise Interrupted("what is finished is kept, the same command continues from there") from None


def _finish(record: "Record", target: int, out: Path, *, changed: bool) -> dict[str, Any]:
    """Judge, draw, save and return the row of a record; a claim that cannot be judged is the study's error.

    What is saved holds every repetition ever made; the row speaks of those that were asked for.
    """
    import dataclasses
    import traceback

    from symdyn_core.files import write_atomically
    from symdyn_core.study.plots import render

    folder = record.folder(out)
    try:
        row = record.only(target).summary()
        if record.error is None and (changed or not (folder / "figure.svg").exists()):
            write_atomically(folder / "figure.svg", render(record))
    except SymdynError:
        raise
    except Exception as error:  # noqa: BLE001  # predict(), an estimator or draw() of one study failed
        if show_tracebacks:
            traceback.print_exc()
        record = dataclasses.replace(record, error=f"{type(error).__name__}: {error}".splitlines()[0])
        row = record.summary()
        changed = True
    if changed:
        record.save(out)
    return {**row, "record": str(folder)}


def _print_verdicts(rows: list[dict[str, Any]], seconds: float) -> None:
    console = output()
    wide = console.width >= 100
    headings = ["claim", "predicted", "measured", *(["95 % interval"] if wide else []), "rival", "verdict"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("claim", "verdict") else "right")
    for row in rows:
        table.add_row(f"\n[bold]{row['id']}[/]")
        if "error" in row:
            table.add_row("  not measured", *[""] * (len(headings) - 2), VERDICT_STYLE["ERROR"])
        for claim in row["claims"]:
            interval = f"{number(claim['low'])} … {number(claim['high'])}"
            excluded = "" if claim["rival_excluded"] else " [yellow]not excluded[/]"
            table.add_row(
                f"  {claim['name'].replace('_', ' ')}",
                f"{number(claim['predicted'])} ± {claim['margin']:.2g}",
                number(claim["measured"]),
                *([interval] if wide else []),
                number(claim["rival"]) + excluded,
                VERDICT_STYLE[claim["verdict"]],
            )
    console.print(table)
    console.print()
    for row in rows:
        if "error" in row:
            console.print(f"{row['id']}: {row['error']}", markup=False, soft_wrap=True)
    tally = Counter(row["verdict"] for row in rows)
    words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(tally.items()))
    console.print(f"{len(rows)} {'study' if len(rows) == 1 else 'studies'}: {words} ({seconds:.1f} s)")
