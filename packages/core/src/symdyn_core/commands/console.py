"""Where commands write: results to standard output, everything else to standard error."""

import os

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)


def output() -> Console:
    """Return the console for results: as wide as the terminal, 120 columns in a file or a pipe."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console


def messages() -> Console:
    """Return the console for progress, hints and errors."""
    return Console(stderr=True, highlight=False, emoji=False)


def say(line: str) -> None:
    """Print one line to standard error as it is, unwrapped."""
    messages().print(line, markup=False, soft_wrap=True)


def progress_bar() -> Progress:
    """Return the one progress bar a command shows: on a terminal only, without a trace when it is done."""
    console = messages()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


VERDICT_STYLE = {
    "CONFIRMED": "[green]✔ CONFIRMED[/]",
    "INCONCLUSIVE": "[yellow]◌ INCONCLUSIVE[/]",
    "REFUTED": "[red]✘ REFUTED[/]",
    "ERROR": "[bold red]! ERROR[/]",
}


def number(value: float | None) -> str:
    """Format a number for a table: four significant digits, exact zero as 0.

    >>> number(0.123456), number(0.0), number(12345.6)
    ('0.1235', '0', '1.235e+04')
    """
    return "–" if value is None else f"{value:.4g}"
