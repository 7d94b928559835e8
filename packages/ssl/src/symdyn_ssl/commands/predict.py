"""``symdyn ssl predict``: the steps of a training, from pairs of views alone."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symdyn_core.commands.console import number, output, say
from symdyn_core.errors import InputError

if TYPE_CHECKING:
    from symdyn_ssl.stepwise import StepwiseTheory

# From here on the closed form's leading order in the initial eigenvalues is off by some per cent.
NOT_SMALL = 0.05
# A next direction as close as this competes for the last step.
CLOSE = 0.9


def predict(
    views: Annotated[
        Path, typer.Argument(metavar="VIEWS.npz", help="An .npz file with the two views of each sample.")
    ],
    dim: Annotated[
        int | None, typer.Option(help="Width of the embedding.", show_default="8, or fewer features")
    ] = None,
    init_std: Annotated[float, typer.Option(help="Standard deviation of the initial weights.")] = 1e-4,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of gradient descent; adds the column of optimiser steps.")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of gradient descent, in [0, 1).")] = 0.0,
    x: Annotated[str, typer.Option("--x", help="Name of the array with one view.")] = "x",
    x_prime: Annotated[
        str, typer.Option("--x-prime", help="Name of the array with the other view.")
    ] = "x_prime",
    center: Annotated[bool, typer.Option(help="Subtract the mean over both views first.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for steps.csv and staircase.svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Predict when a linear encoder learns which direction of your data, before any training.

    For the loss ||C - I||^2 (Barlow Twins without normalisation) and gradient descent from small random
    weights. Time is learning rate times steps.
    """
    from symdyn_ssl.pairs import load_pairs
    from symdyn_ssl.stepwise import StepwiseTheory

    pairs = load_pairs(views, x, x_prime)
    n_pairs, features = pairs.x.shape
    width = min(8, features) if dim is None else dim
    theory = StepwiseTheory.from_pairs(pairs.x, pairs.x_prime, width, center=center)
    rows = predicted_steps(theory, init_std, learning_rate, momentum)
    remarks = remarks_on(theory, init_std, learning_rate, momentum)
    if len(pairs.sample_shape) > 1:
        remarks.insert(0, f"samples of shape {pairs.sample_shape} were flattened to {features} features")
    if out is not None:
        write(out, theory, init_std, rows)
    if as_json:
        document = {
            "pairs": n_pairs, "features": features, "dim": theory.dim, "init_std": init_std,
            "learning_rate": learning_rate, "momentum": momentum, "final_loss": theory.dim - theory.n_modes,
            "modes": rows, "remarks": remarks,
        }  # fmt: skip
        typer.echo(json.dumps(document))
    else:
        title = f"{n_pairs} pairs, {features} features, embedding of {theory.dim}, initial std {init_std:g}"
        print_table(rows, title)
        for remark in remarks:
            say(f"note: {remark}")


def predicted_steps(
    theory: "StepwiseTheory", init_std: float, learning_rate: float | None, momentum: float
) -> list[dict[str, Any]]:
    """Return one row per direction that is learned, in order; a quantity not asked for is None."""
    import numpy as np

    from symdyn_ssl.stepwise import optimiser_steps

    if (largest := largest_initial(theory, init_std)) >= 0.5:
        small = (NOT_SMALL / largest_initial(theory, 1.0)) ** 0.5
        raise InputError(
            f"init_std must be small for steps to exist, got {init_std:g}, at which an eigenvalue starts "
            f"at {largest:.2g}, above one half; try {small:.1g}"
        )
    times = theory.step_times(init_std=init_std)
    columns = {
        "gamma": theory.gamma,
        "time": times,
        "spread": theory.step_time_spread,
        "width": theory.widths,
    }
    if learning_rate is not None:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            steps = optimiser_steps(times, learning_rate=learning_rate, momentum=momentum, gamma=theory.gamma)
        if not np.isfinite(steps).all():
            raise InputError(f"learning_rate must give a finite number of steps, got {learning_rate}")
        columns["step"] = steps
    elif not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    columns["loss_after"] = theory.plateaus[1:]
    return [
        {"mode": mode, **{name: float(values[mode - 1]) for name, values in columns.items()}}
        for mode in range(1, theory.n_modes + 1)
    ]


def largest_initial(theory: "StepwiseTheory", init_std: float) -> float:
    """Return the largest eigenvalue of the embeddings' covariance at initialisation."""
    import numpy as np

    with np.errstate(over="ignore"):
        return float((theory.gamma * theory.initial_scales(init_std=init_std) ** 2).max())


def remarks_on(
    theory: "StepwiseTheory", init_std: float, learning_rate: float | None, momentum: float
) -> list[str]:
    """Return what a user should know before trusting the numbers."""
    from symdyn_ssl.stepwise import largest_learning_rate

    remarks = []
    if never := theory.dim - theory.n_modes:
        remarks.append(
            f"only {theory.n_modes} directions have a positive covariance across the views; "
            f"{never} of {theory.dim} dimensions are never learned, and the loss ends at {never}"
        )
    if (largest := largest_initial(theory, init_std)) > NOT_SMALL:
        remarks.append(f"the initialisation is not small, an eigenvalue starts at {largest:.2g}: rough times")
    if theory.n_modes < len(theory.spectrum) and theory.spectrum[theory.n_modes] > CLOSE * theory.gamma[-1]:
        remarks.append(
            f"direction {theory.n_modes + 1} is nearly as strong as direction {theory.n_modes} "
            f"(gamma {theory.spectrum[theory.n_modes]:.3g}): the last step may come early and learn a mixture"
        )
    stable = largest_learning_rate(theory.gamma, momentum=momentum)
    if learning_rate is None:
        remarks.append(f"gradient descent is stable below a learning rate of {stable:.3g}")
    elif learning_rate >= stable:
        remarks.append(f"gradient descent is unstable: the learning rate must be below {stable:.3g}")
    return remarks


def write(folder: Path, theory: "StepwiseTheory", init_std: float, rows: list[dict[str, Any]]) -> None:
    """Write the table as CSV and the staircase as SVG."""
    from symdyn_core.files import write_atomically
    from symdyn_core.plots import to_svg
    from symdyn_ssl.figures import draw_staircase

    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    say(f"wrote {write_atomically(folder / 'steps.csv', text.getvalue())}")
    say(f"wrote {write_atomically(folder / 'staircase.svg', to_svg(draw_staircase(theory, init_std)))}")


HEADINGS = {
    "mode": "mode",
    "gamma": "gamma",
    "time": "step time",
    "spread": "±",
    "width": "rise",
    "step": "optimiser step",
    "loss_after": "loss after",
}


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """Print one line per direction."""
    from rich.table import Table

    caption = "±: between random initialisations. rise: from 10 % to 90 %."
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in rows[0]:
        table.add_column(HEADINGS[name], justify="right")
    for row in rows:
        cells = {name: number(value) for name, value in row.items()}
        if "step" in cells:
            cells["step"] = f"{row['step']:,.0f}"
        table.add_row(*cells.values())
    output().print(table)
