"""``symdyn neuro train``: a classifier that learns by a local rule, watched while its circuit assembles."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from symdyn_core.commands.console import number, output, progress_bar, say
from symdyn_core.errors import InputError
from symdyn_core.files import check_writable, write_atomically
from symdyn_neuro.rules import Rule

if TYPE_CHECKING:
    from rich.table import Table

    from symdyn_neuro.history import History

EXAMPLES = ("digits",)
HIDDEN = (128, 64)
BATCH_SIZE = 32
TABLE_ROWS = 12


def train(
    example: Annotated[
        str, typer.Option(help="Data: digits (scikit-learn, 8 x 8 pixels).", metavar="NAME")
    ] = "digits",
    rule: Annotated[Rule, typer.Option(help="How the error travels down.")] = Rule.HETEROSYNAPTIC,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", metavar="N")] = 40,
    learning_rate: Annotated[float, typer.Option(help="Of SGD.", metavar="RATE")] = 0.2,
    weight_decay: Annotated[
        float, typer.Option(help="Of SGD; what makes the circuit assemble.", metavar="DECAY")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Moves all randomness.", metavar="N")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for history.csv and figure.svg.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Train a 64-128-64-10 ReLU network and compare its circuit with the law it should obey.

    Prints, over the epochs: accuracy on held-out data; the cosine between each layer's update and the true
    gradient; the mismatch between feedback and weights, measured and predicted.
    """
    if example not in EXAMPLES:
        raise InputError(f"unknown example {example!r}; expected one of {', '.join(EXAMPLES)}")
    if out is not None:
        check_writable(out)

    from symdyn_neuro import training
    from symdyn_neuro.history import History
    from symdyn_neuro.tasks import digits

    task = digits(seed=seed)
    model = training.perceptron([task.features, *HIDDEN, task.classes], rule=rule, seed=seed)
    progress = training.train(
        model,
        task,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        batch_size=BATCH_SIZE,
        seed=seed,
    )
    if rule is Rule.HETEROSYNAPTIC and weight_decay == 0:
        say("note: without weight decay the feedback never aligns with the weights")
    snapshots = []
    with progress_bar() as bar, _one_thread():
        entry = bar.add_task("epochs", total=epochs)
        for snapshot in progress:
            snapshots.append(snapshot)
            bar.update(entry, completed=snapshot.epoch)
    history = History(snapshots, rule, learning_rate, weight_decay)

    if as_json:
        head = {"example": example, "rule": str(rule), "learning_rate": learning_rate}
        settings = {"weight_decay": weight_decay, "batch_size": BATCH_SIZE, "seed": seed}
        typer.echo(json.dumps({**head, **settings, "epochs": history.rows()}))
    else:
        output().print(_table(history))
    if out is not None:
        from symdyn_core.plots import to_svg

        written = [
            write_atomically(out / "history.csv", history.to_csv()),
            write_atomically(out / "figure.svg", to_svg(history.figure())),
        ]
        say("wrote " + " and ".join(map(str, written)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: more do not help so small a network, and on a busy machine they hurt."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(history: "History") -> "Table":
    """Return about a dozen epochs of a history, the first and the last among them."""
    from rich.table import Table

    rows = history.rows()
    table = Table(box=None, header_style="bold", pad_edge=False)
    cosines = [f"cosine {layer}" for layer in rows[0]["alignment"]]
    for heading in ("epoch", "loss", "accuracy", *cosines, "mismatch", "predicted"):
        table.add_column(heading, justify="right")
    last = len(rows) - 1
    stride = -(-last // TABLE_ROWS)
    for row in [*rows[:last:stride], rows[last]]:
        table.add_row(
            str(row["epoch"]),
            f"{row['loss']:.4f}",
            f"{row['accuracy']:.4f}",
            *("–" if cosine is None else f"{cosine:.4f}" for cosine in row["alignment"].values()),
            number(row["mismatch"]),
            number(row["predicted_mismatch"]),
        )
    return table
