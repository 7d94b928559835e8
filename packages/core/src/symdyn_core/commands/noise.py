"""``symdyn noise``: how noisy a network's gradients are, and what that makes of training."""

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


def noise(
    learning_rate: Annotated[float, typer.Option(help="Of SGD.", show_default=False)],
    batch_size: Annotated[int, typer.Option(help="Of SGD.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="file.py:function or module:function, returning (model, loss_fn, inputs, targets).",
            show_default=False,
        ),
    ] = None,
    example: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Train an example: {', '.join(EXAMPLES)}.")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of SGD, as torch takes it.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Of SGD, as torch takes it.")] = 0.0,
    with_replacement: Annotated[
        bool, typer.Option("--with-replacement", help="Batches are drawn with replacement.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Look at so many samples at most, drawn at random.")] = 1000,
    top: Annotated[int, typer.Option(help="Eigenvalues of noise and Hessian.")] = 10,
    html: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write a page with figures as well.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    seed: Annotated[int, typer.Option(help="Draws samples and probes, and trains the example.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs to train the example.", show_default="the example's own")
    ] = None,
) -> None:
    """Measure the noise of a network's minibatch gradients, and say what it does to training.

    Give TARGET or --example. Prints trace, spectrum and layers of the noise, the noise scale, the loss at
    which SGD settles with these settings, and other batch sizes with the learning rate of the same noise.
    """
    check_page(html)
    subject, title = load_subject(target, example, seed, epochs)

    from symdyn_core.dynamics.noise_measurement import noise_report

    try:
        # The model and the loss are the user's; what they print is not a result.
        with redirect_stdout(sys.stderr):
            report = noise_report(
                subject.model,
                subject.loss_fn,
                subject.inputs,
                subject.targets,
                learning_rate=learning_rate,
                batch_size=batch_size,
                momentum=momentum,
                weight_decay=weight_decay,
                replacement=with_replacement,
                samples=samples,
                top=top,
                seed=seed,
                progress=True,
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
