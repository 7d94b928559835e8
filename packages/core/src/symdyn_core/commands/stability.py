"""``symdyn stability``: does SGD stay where a network is, and up to which learning rate."""

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


def stability(
    learning_rate: Annotated[float, typer.Option(help="Of SGD without momentum.", show_default=False)],
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
    weight_decay: Annotated[float, typer.Option(help="Of SGD, as torch takes it.")] = 0.0,
    samples: Annotated[int, typer.Option(help="Look at so many samples at most, drawn at random.")] = 1000,
    steps: Annotated[int, typer.Option(help="Minibatches whose effects are multiplied.")] = 1000,
    html: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write a page with a figure as well.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    seed: Annotated[int, typer.Option(help="Draws samples and minibatches, and trains the example.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs to train the example.", show_default="the example's own")
    ] = None,
) -> None:
    """Say whether SGD stays at a network's parameters, and up to which learning rate it would.

    Give TARGET or --example. What decides is the mean logarithm of the growth of small deviations under
    random minibatches; what the mean square and gradient descent would have said is printed beside it.
    """
    check_page(html)
    subject, title = load_subject(target, example, seed, epochs)

    from symdyn_core.dynamics.stability_report import stability_report

    try:
        # The model and the loss are the user's; what they print is not a result.
        with redirect_stdout(sys.stderr):
            report = stability_report(
                subject.model,
                subject.loss_fn,
                subject.inputs,
                subject.targets,
                learning_rate=learning_rate,
                batch_size=batch_size,
                weight_decay=weight_decay,
                samples=samples,
                steps=steps,
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
