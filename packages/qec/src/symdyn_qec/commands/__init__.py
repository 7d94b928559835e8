"""``symdyn qec ...``: decoders on circuits, from the command line."""

import typer

from symdyn_qec.commands.benchmark import BenchmarkCommand, benchmark
from symdyn_qec.commands.export import export
from symdyn_qec.commands.train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Quantum error correction: decoders trained, and measured on Stim circuits.",
)


@app.callback()
def qec() -> None:
    """Quantum error correction: decoders trained, and measured on Stim circuits."""


app.command("benchmark", cls=BenchmarkCommand)(benchmark)
app.command("export")(export)
app.command("train")(train)
