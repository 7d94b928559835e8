"""``symdyn qec train``: train a decoder from nothing, for a bicycle code or for any circuit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from symdyn_core.commands.console import messages, output, progress_bar, say
from symdyn_core.errors import DependencyError, InputError, Interrupted

if TYPE_CHECKING:
    from symdyn_qec.checkpoint import Checkpoint
    from symdyn_qec.experiment import Experiment
    from symdyn_qec.run_folder import Baseline, Point

T = TypeVar("T")

# How often, on how many shots, and whether against another decoder.
Check = tuple[int, int, bool]

# Strengths of the noise that a circuit made here is trained at.
STRENGTHS = 8


@dataclass(frozen=True)
class _Run:
    """A training that is ready to begin.

    Fields:
        start: takes the callbacks and returns the learning curve.
        steps: of it.
        noise: of the validation shots, in words.
    """

    start: "Callable[..., list[Point]]"
    steps: int
    noise: str


def _in_every_process(command: Callable[..., None]) -> Callable[..., None]:
    """Let torchrun start a command that has a device."""

    @wraps(command)
    def run(**options: Any) -> None:
        from symdyn_qec.distributed import joined

        with joined(options["device"]) as own:
            command(**options | {"device": own})

    return run


@_in_every_process
def train(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run; resumed if there is one in it.")
    ],
    circuits: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CIRCUIT.stim", help="Your circuit, at one or several strengths of its noise."
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help="Instead: bb72 and its like, surface, color, and so on. (default: bb72)"
        ),
    ] = None,
    distance: Annotated[int | None, typer.Option(help="Of codes that come in several.")] = None,
    basis: Annotated[
        str, typer.Option(help="Memory that is kept, Z or X; bicycle codes are trained for both.")
    ] = "Z",
    p: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Range of noise strengths. (default: 0.001:0.006; not bicycles 0.001:0.008)",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Cycles of the experiments. (default: 6; not bicycles the distance)")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 4000,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Shots per step. (default: 64, a multiple of 16; not bicycles 256)"),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="For bicycle codes: torus, or sector, smaller, for decoders in a hurry. "
            "(default: that of --start-from, or torus)"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Learn from it: a folder, or a shipped one such as bb72."),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Begin with its weights, be it for a smaller code; bicycle codes of equal polynomials.",
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Features per node. (default: that of --start-from, or 48)")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Rounds of messages. (default: that of --start-from, or 6)")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Highest, of AdamW. (default: 0.002; not bicycles 0.003; with --start-from 0.0003)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and shots.")] = 0,
    validate_every: Annotated[int, typer.Option(help="Steps between validations, and between saves.")] = 500,
    validate_at: Annotated[
        float | None,
        typer.Option(help="Noise strength of the validation shots. (default: 0.003; not bicycles 0.005)"),
    ] = None,
    validate_shots: Annotated[
        int | None,
        typer.Option(help="Validation shots. (default: 2048 of each basis; not bicycles 20000)"),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare",
            help="Whether the best decoder without a network decodes the validation shots as well, once.",
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it.")] = "cpu",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Activations in bfloat16: for CUDA and CPUs made for it.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network; needs a C++ compiler.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that simulate ahead.")] = 0,
) -> None:
    """Train a decoder on simulated shots, for both memory experiments of a bicycle code or for a circuit.

    Writes a checkpoint that `SymdynDecoder` reads, the learning curve, and all that it takes to go on after
    an interruption: run the same command again. On several GPUs: `torchrun --nproc-per-node 4 --no-python
    symdyn qec train --device cuda ...`, with the same shots per step, shared by the processes.
    """
    from symdyn_qec.circuits import SCALABLE
    from symdyn_qec.training_run import RELIABILITY

    for name, value in (("--validate-every", validate_every), ("--validate-shots", validate_shots)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    common = {"steps": steps, "seed": seed}
    hardware = {"device": device, "half_precision": bf16, "compiled": compile_, "workers": workers}
    if circuits or code in SCALABLE:
        for name, given in (("--network", network), ("--teacher", teacher), ("--start-from", start_from)):
            if given is not None:
                raise InputError(f"{name} is for bicycle codes, got {given}")
        cases = (
            _read(
                circuits,
                {
                    "--code": code,
                    "--distance": distance,
                    "--p": p,
                    "--rounds": rounds,
                    "--validate-at": validate_at,
                },
            )
            if circuits
            else _made(code or "", distance, rounds, basis, p or "0.001:0.008", _or(validate_at, 0.005))
        )
        own: dict[str, Any] = {
            "width": _or(width, 48),
            "layers": _or(layers, 6),
            "batch_size": _or(batch_size, 256),
            "learning_rate": _or(learning_rate, 3e-3),
        }
        check = (validate_every, _or(validate_shots, 20_000), compare)
        run = _graph(*cases, common | own, check)
    else:
        if distance is not None:
            raise InputError(f"--distance is for codes that come in several, got {distance}")
        start = _checkpoint(start_from)
        own = {
            "network": _or(network, start.kind if start else "torus"),
            "width": _or(width, start.network.width if start else 48),
            "layers": _or(layers, len(start.network.layers) if start else 6),
            "rounds": _or(rounds, 6),
            "p": _range(_or(p, "0.001:0.006")),
            "batch_size": _or(batch_size, 64),
            "learning_rate": _or(learning_rate, 3e-4 if start else 2e-3),
        }
        check = (validate_every, _or(validate_shots, 2048), compare)
        run = _bicycle(
            _or(code, "bb72"), _checkpoint(teacher), start, common | own, _or(validate_at, 0.003), check
        )
    curve, against = _followed(run, out, hardware)
    last = curve[-1]
    line = (
        f"{last.shots:,} shots in {last.seconds:.0f} s; at {run.noise} "
        f"{last.failures} of {last.tested} shots fail ({last.rate:.2%})"
    )
    if against is not None:
        line += f", {against.name} {against.failures} ({against.failures / last.tested:.2%})"
    output().print(line)
    say(f"wrote the checkpoint to {out}, and how far its confidence can be trusted to {out / RELIABILITY}")


def _checkpoint(name: str | None) -> "Checkpoint | None":
    """Return a checkpoint of a bicycle code, a shipped one or that of a folder."""
    from symdyn_qec.checkpoint import Checkpoint
    from symdyn_qec.shipped import shipped

    return None if name is None else Checkpoint.load(shipped().get(name, Path(name)))


def _bicycle(
    code: str,
    teacher: "Checkpoint | None",
    start_from: "Checkpoint | None",
    settings: dict[str, Any],
    validate_at: float,
    check: Check,
) -> _Run:
    """Return the training of a network on a torus."""
    from symdyn_qec.codes import bivariate_bicycle
    from symdyn_qec.training import Settings
    from symdyn_qec.training_run import train as start
    from symdyn_qec.validation import Validation

    how = Settings(**settings)
    every, shots, compare = check
    with messages().status("looking for light logical operators"):
        subject = bivariate_bicycle(code)
        subject.logicals("Z"), subject.logicals("X")
    begin = partial(
        start,
        subject,
        how,
        teacher=teacher,
        start=start_from,
        validation=Validation(every, validate_at, shots, _installed("bposd") if compare else None),
    )
    return _Run(begin, how.steps, f"p = {validate_at:g}")


def _graph(
    train_on: "list[Experiment]", test_on: "Experiment", settings: dict[str, Any], check: Check
) -> _Run:
    """Return the training of a network on a graph of detectors."""
    from symdyn_qec.graph_run import train_graph
    from symdyn_qec.graph_training import GraphSettings, circuit_graph
    from symdyn_qec.validation import Validation

    how, circuits = GraphSettings(**settings), [case.circuit for case in train_on]
    every, shots, compare = check
    rival = "symdyn-matching" if circuit_graph(circuits).matched else "min-sum"
    validation = Validation(every, shots=shots, baseline=_installed(rival) if compare else None)
    begin = partial(train_graph, circuits, how, test_circuit=test_on.circuit, validation=validation)
    return _Run(begin, how.steps, test_on.name)


def _read(paths: list[Path], refused: dict[str, Any]) -> "tuple[list[Experiment], Experiment]":
    """Return circuits from files, and that of the middle for validation."""
    from symdyn_qec.experiment import Experiment, check_experiments

    for name, given in refused.items():
        if given is not None:
            raise InputError(f"{name} goes without circuits from files, got {given}")
    cases = [Experiment.read(path) for path in paths]
    check_experiments(cases)
    return cases, cases[len(cases) // 2]


def _made(
    code: str, distance: int | None, rounds: int | None, basis: str, p: str, validate_at: float
) -> "tuple[list[Experiment], Experiment]":
    """Return a circuit at several strengths of its noise, and for validation at one more."""
    import numpy as np

    from symdyn_qec.codes import check_basis
    from symdyn_qec.experiment import Experiment

    low, high = _range(p)
    if not 0 < low <= high:
        raise InputError(f"--p must be a range of positive strengths, lower:higher, got {p}")
    strengths = [float(value) for value in np.geomspace(low, high, STRENGTHS if high > low else 1)]
    *cases, test = (
        Experiment.generate(code, value, distance, rounds, check_basis(basis))
        for value in (*strengths, validate_at)
    )
    return cases, test


def _followed(run: _Run, out: Path, hardware: dict[str, Any]) -> "tuple[list[Point], Baseline | None]":
    """Train behind a progress bar; return the learning curve, and what it was compared with."""
    against: Baseline | None = None
    with progress_bar() as bar:
        task = bar.add_task("training", total=run.steps)

        def baseline(found: "Baseline", shots: int) -> None:
            nonlocal against
            against = found
            bar.update(task, description=f"{found.name}: {found.failures} of {shots} shots fail")

        def point(reached: "Point") -> None:
            rival = "" if against is None else f", {against.name} {against.failures}"
            failed = f"{reached.failures} of {reached.tested} shots fail{rival}"
            say(f"step {reached.step}: loss {reached.loss:.4f}, {failed}")

        try:
            curve = run.start(
                out=out,
                on_step=lambda step, loss: bar.update(task, completed=step, description=f"loss {loss:.3f}"),
                on_point=point,
                on_baseline=baseline,
                **hardware,
            )
        except KeyboardInterrupt:
            raise Interrupted(f"run the same command again to go on from the last save in {out}") from None
    return curve, against


def _installed(decoder: str) -> str | None:
    """Return a decoder to compare with; where it is not installed say so, for training does not need it."""
    from symdyn_qec.baselines.registry import make_decoder

    try:
        make_decoder(decoder)
    except DependencyError as error:
        say(f"no comparison with {decoder}: {error}")
        return None
    return decoder


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high or low)
    except ValueError as error:
        raise InputError(f"--p must be a range such as 0.001:0.006, got {text!r}") from error
