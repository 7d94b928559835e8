"""``symdyn ssl ...``: what self-supervised learning will learn from your pairs, and when."""

import typer

from symdyn_ssl.commands.example import example
from symdyn_ssl.commands.predict import predict

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Self-supervised learning: when representations grow, from the data alone.",
)


@app.callback()
def ssl() -> None:
    """Self-supervised learning: when representations grow, from the data alone."""


app.command("predict")(predict)
app.command("example")(example)
