"""``symdyn finance ...``: a market economy from the command line."""

import typer

from symdyn_finance.commands.simulate import simulate

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Market economies whose laws follow from symmetry.",
)


@app.callback()
def finance() -> None:
    """Market economies whose laws follow from symmetry."""


app.command("simulate")(simulate)
