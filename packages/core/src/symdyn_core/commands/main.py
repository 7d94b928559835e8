"""The ``symdyn`` command: core's own commands, and one group for every installed application."""

import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from symdyn_core import __version__
from symdyn_core.commands import studies
from symdyn_core.commands.audit import audit
from symdyn_core.commands.console import say
from symdyn_core.commands.noise import noise
from symdyn_core.commands.stability import stability
from symdyn_core.errors import Interrupted, SymdynError

BAD_INPUT, INTERRUPTED = 2, 130

# Some versions of typer carry a click of their own: its exceptions are reached through the public one.
UsageError: Any
ClickException: Any
UsageError, ClickException = typer.BadParameter.__mro__[1:3]

app = typer.Typer(
    name="symdyn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Symmetries of the loss, the noise of SGD, and what they make a network learn.",
    epilog="Add --debug to any command to see the traceback of an error.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"symdyn {__version__}")
        raise typer.Exit


@app.callback()
def symdyn(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Symmetries of the loss, the noise of SGD, and what they make a network learn."""


studies_panel = "Studies: theory against measurement"
app.command("list", rich_help_panel=studies_panel)(studies.list_studies)
app.command("show", rich_help_panel=studies_panel)(studies.show)
app.command("run", rich_help_panel=studies_panel)(studies.run)
app.command("gallery", rich_help_panel=studies_panel)(studies.gallery)
app.command("cite", rich_help_panel=studies_panel)(studies.cite)
app.command("audit", rich_help_panel="Your own model")(audit)
app.command("noise", rich_help_panel="Your own model")(noise)
app.command("stability", rich_help_panel="Your own model")(stability)


def add_applications() -> None:
    """Add the command group of every installed distribution that declares ``symdyn.commands``."""
    for point in sorted(entry_points(group="symdyn.commands"), key=lambda point: point.name):
        try:
            application = point.load()
        except Exception as error:  # noqa: BLE001  # one broken application must not take the others down
            say(f"symdyn {point.name} is not available: {type(error).__name__}: {error}")
            continue
        app.add_typer(application, name=point.name, rich_help_panel="Applications")


def main() -> None:
    """Run the command line: one line and status 2 for bad input, a traceback only for our own defects."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get("SYMDYN_DEBUG"))
    studies.show_tracebacks = debug
    add_applications()
    try:
        status = app(arguments, standalone_mode=False) or 0
        if status == INTERRUPTED:  # what typer makes of Ctrl-C in a command that does not handle it
            say("interrupted")
    except Interrupted as stop:
        say(f"interrupted; {stop}")
        status = INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        status = INTERRUPTED
    except (SymdynError, ClickException, OSError) as error:
        if debug:
            traceback.print_exc()
        status = _complain(error)
    try:
        sys.stdout.flush()
    except OSError:  # already reported: nobody reads on, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _complain(error: Any) -> int:
    text = error.format_message() if isinstance(error, ClickException) else str(error)
    line = " ".join(text.split())
    if line and isinstance(error, UsageError) and error.ctx is not None:
        line = f"{line.rstrip('.')} (see `{error.ctx.command_path} --help`)"
    if line:  # a bare command has printed its help instead
        say(f"error: {line}")
    return BAD_INPUT


if __name__ == "__main__":
    main()
