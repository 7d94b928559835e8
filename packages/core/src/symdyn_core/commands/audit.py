"""``symdyn audit``: the symmetries of a network, what they conserve, what has collapsed, what to do."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from symdyn_core.commands.console import messages, output, say
from symdyn_core.commands.examples import EXAMPLES
from symdyn_core.commands.subject import check_page, load_subject
from symdyn_core.errors import InputError, TargetError
from symdyn_core.files import write_atomically


def audit(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="file.py:function or module:function, returning (model, loss_fn, inputs, targets).",
            show_default=False,
        ),
    ] = None,
    example: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Train and audit an example: {', '.join(EXAMPLES)}.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write a page with figures as well.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of SGD; with --batch-size: say where its noise takes the weights.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of SGD.", show_default=False)] = None,
    weight_decay: Annotated[float, typer.Option(help="Of SGD, as torch takes it.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Draws the test transformations, and trains the example.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs to train the example.", show_default="the example's own")
    ] = None,
) -> None:
    """Audit a network: find its symmetries, verify them, and say what training made of them.

    Give TARGET or --example. The model is judged on the inputs it comes with and is never changed.
    """
    # What is wrong with the options is said before the work, not after it.
    _check_options(learning_rate, batch_size, weight_decay, html)
    subject, title = load_subject(target, example, seed, epochs)

    from symdyn_core.symmetry.audit import audit as audit_model

    try:
        # The model and the loss are the user's; what they print is not a result.
        with messages().status("auditing"), redirect_stdout(sys.stderr):
            report = audit_model(
                subject.model,
                subject.loss_fn,
                subject.inputs,
                subject.targets,
                learning_rate=learning_rate,
                batch_size=batch_size,
                weight_decay=weight_decay,
                seed=seed,
            )
    except InputError as error:
        raise TargetError(f"{target or example}: {error}") from error
    if html is not None:
        with messages().status("drawing"):
            write_atomically(html, report.to_html(title))
        say(f"wrote {html}")
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        output().print(report)


def _check_options(
    learning_rate: float | None, batch_size: int | None, weight_decay: float, html: Path | None
) -> None:
    if (learning_rate is None) != (batch_size is None):
        raise InputError(
            f"--learning-rate and --batch-size belong together, got {learning_rate} and {batch_size}"
        )
    if weight_decay and learning_rate is None:
        raise InputError("--weight-decay belongs to --learning-rate and --batch-size, got neither")
    check_page(html)
