"""``symdyn neuro ...``: local learning rules at work, from the command line."""

import typer

from symdyn_neuro.commands.train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Networks that learn by heterosynaptic plasticity.",
)


@app.callback()
def neuro() -> None:
    """Networks that learn by heterosynaptic plasticity."""


app.command("train")(train)
