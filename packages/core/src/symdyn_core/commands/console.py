"""Where commands write: results to standard output, everything else to standard error."""

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
    """Return the console for results. NO_COLOR and redirection are respected."""
    return Console(highlight=False)


def messages() -> Console:
    """Return the console for progress, hints and errors."""
    return Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """Return the one progress bar a command shows; it leaves no trace when it is done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=messages(),
        transient=True,
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
