"""``symdyn qec train``: train a decoder for a bicycle code from nothing."""

from pathlib import Path
from typing import Annotated

import typer

from symdyn_core.commands.console import messages, output, progress_bar, say
from symdyn_core.errors import InputError, Interrupted

DEFAULT_P = "0.001:0.006"


def train(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run; resumed if there is one in it.")
    ],
    code: Annotated[
        str, typer.Option(metavar="CODE", help="Bicycle code: bb72, bb90, bb108, bb144, bb288.")
    ] = "bb72",
    p: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Range of noise strengths.")] = DEFAULT_P,
    rounds: Annotated[int, typer.Option(help="Cycles of the experiments.")] = 6,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Shots per step, a multiple of 16.")] = 64,
    network: Annotated[
        str, typer.Option(help="torus, or sector: smaller, for decoders in a hurry.")
    ] = "torus",
    teacher: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Learn from it: a folder, or a shipped one such as bb72."),
    ] = None,
    width: Annotated[int, typer.Option(help="Features per node of the network.")] = 48,
    layers: Annotated[int, typer.Option(help="Rounds of messages.")] = 6,
    learning_rate: Annotated[float, typer.Option(help="Highest, of AdamW.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of weights and shots.")] = 0,
    validate_every: Annotated[int, typer.Option(help="Steps between validations, and between saves.")] = 500,
    validate_at: Annotated[float, typer.Option(help="Noise strength of the validation shots.")] = 0.003,
    validate_shots: Annotated[int, typer.Option(help="Validation shots of each basis.")] = 2048,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it.")] = "cpu",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Activations in bfloat16: for CUDA and CPUs made for it.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network; needs a C++ compiler.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that simulate ahead.")] = 0,
) -> None:
    """Train a decoder for both memory experiments of a bicycle code, on simulated shots.

    Writes a checkpoint that `SymdynDecoder` reads, the learning curve, and all that it takes to go on after
    an interruption: run the same command again.
    """
    from symdyn_qec.checkpoint import Checkpoint, shipped
    from symdyn_qec.codes import bivariate_bicycle
    from symdyn_qec.training import Settings
    from symdyn_qec.training_run import Point, Validation
    from symdyn_qec.training_run import train as run

    settings = Settings(
        network=network,
        rounds=rounds,
        p=_range(p),
        width=width,
        layers=layers,
        batch_size=batch_size,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )
    if validate_every < 1 or validate_shots < 1:
        raise InputError(
            "--validate-every and --validate-shots must be at least 1, "
            f"got {validate_every} and {validate_shots}"
        )
    with messages().status("looking for light logical operators"):
        subject = bivariate_bicycle(code)
        subject.logicals("Z"), subject.logicals("X")
    with progress_bar() as bar:
        task = bar.add_task("training", total=steps)

        def point(reached: Point) -> None:
            failed = f"{reached.failures} of {reached.tested} shots fail"
            say(f"step {reached.step}: loss {reached.loss:.4f}, {failed}")

        try:
            curve = run(
                subject,
                settings,
                out,
                validation=Validation(validate_every, validate_at, validate_shots),
                device=device,
                half_precision=bf16,
                compiled=compile_,
                teacher=None if teacher is None else Checkpoint.load(shipped().get(teacher, Path(teacher))),
                workers=workers,
                on_step=lambda step, loss: bar.update(task, completed=step, description=f"loss {loss:.3f}"),
                on_point=point,
            )
        except KeyboardInterrupt:
            raise Interrupted(f"run the same command again to go on from the last save in {out}") from None
    last = curve[-1]
    output().print(
        f"{last.shots:,} shots in {last.seconds:.0f} s; at p = {validate_at:g} "
        f"{last.failures} of {last.tested} shots fail ({last.rate:.2%})"
    )
    say(f"wrote the checkpoint to {out}")


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high or low)
    except ValueError as error:
        raise InputError(f"--p must be a range such as {DEFAULT_P}, got {text!r}") from error
