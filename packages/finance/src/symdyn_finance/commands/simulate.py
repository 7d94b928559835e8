"""``symdyn finance simulate``: a symmetric market, run and held against its mean field."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from symdyn_core.commands.console import number, output, progress_bar, say
from symdyn_core.errors import InputError

if TYPE_CHECKING:
    from symdyn_finance.market import MarketPath, SymmetricMarket
    from symdyn_finance.mean_field import MeanField

OBSERVE_EVERY = 10


def simulate(
    agents: Annotated[int, typer.Option(help="Number of agents.")] = 10_000,
    steps: Annotated[int, typer.Option(help="Steps to run.")] = 5_000,
    trade_rate: Annotated[
        float, typer.Option(help="Fraction of a holding traded per step, in (0, 1].")
    ] = 0.5,
    cash_preference: Annotated[
        float, typer.Option(help="Probability to sell; the cash fraction of wealth, in (0, 1).")
    ] = 0.5,
    redistribution: Annotated[
        float, typer.Option(help="Fraction of cash paid out as equal wages per step, in [0, 1].")
    ] = 0.01,
    income_risk: Annotated[float, typer.Option(help="Standard deviation of log income per step.")] = 0.14,
    mint: Annotated[
        float, typer.Option(help="Money created per head and step, as a fraction of all money.")
    ] = 0.0,
    warm_up: Annotated[
        int | None, typer.Option(help="Steps before the measurement.", show_default="half of the steps")
    ] = None,
    seed: Annotated[int, typer.Option(help="Moves all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for market.csv, wealth.csv and figure.svg.")] = Path(
        "out/finance"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Simulate a symmetric market and hold it against its mean field.

    Everyone starts with one unit of cash and one share; all inequality is made by the market.
    """
    if steps < 20:
        raise InputError(f"--steps must be at least 20, got {steps}")
    skipped = steps // 2 if warm_up is None else warm_up
    if not 0 <= skipped <= steps - 10:
        raise InputError(f"--warm-up must be in [0, steps - 10 = {steps - 10}], got {skipped}")

    from symdyn_core.files import check_writable, write_atomically
    from symdyn_core.plots import to_svg
    from symdyn_finance.figures import draw_market
    from symdyn_finance.market import SymmetricMarket
    from symdyn_finance.mean_field import mean_field

    market = SymmetricMarket(agents, trade_rate, cash_preference, redistribution, income_risk, mint, seed)
    theory = mean_field(market)
    check_writable(out)
    with progress_bar() as bar:
        task = bar.add_task(f"{agents} agents", total=steps)
        path = market.run(steps, OBSERVE_EVERY, progress=lambda done: bar.update(task, completed=done))

    rows = compare(market, path, theory, skipped)
    figure = to_svg(draw_market(market, path, theory, skipped))
    files = [
        write_atomically(out / "market.csv", path.to_frame().to_csv()),
        write_atomically(out / "wealth.csv", market.to_frame().to_csv()),
        write_atomically(out / "figure.svg", figure),
    ]
    if as_json:
        document = {
            "settings": {
                "agents": agents, "steps": steps, "warm_up": skipped, "trade_rate": trade_rate,
                "cash_preference": cash_preference, "redistribution": redistribution,
                "income_risk": income_risk, "mint": mint, "seed": seed,
            },
            "observables": {
                name: {"predicted": finite(predicted), "measured": finite(measured)}
                for name, (predicted, measured) in rows.items()
            },
            "files": [str(file) for file in files],
        }  # fmt: skip
        typer.echo(json.dumps(document))
    else:
        print_table(rows, f"{agents} agents, steps {skipped + 1}-{steps}")
        for file in files:
            say(f"wrote {file}")


def compare(
    market: "SymmetricMarket", path: "MarketPath", theory: "MeanField", skipped: int
) -> dict[str, tuple[float, float]]:
    """Return prediction and measurement of every observable after the warm-up.

    Where money is created, the price is compared in the money of the first step.
    """
    import numpy as np

    log_price = np.log(path.price) - np.arange(len(path)) * np.log1p(market.economy.mint)
    later = slice(skipped, None)
    # Where one side of the market was empty nobody traded, and there is no price and no return.
    quoted = log_price[later][np.isfinite(log_price[later])]
    returns = path.returns[later][np.isfinite(path.returns[later])]
    return {
        "alpha": (theory.alpha, float(np.nanmean(path.alpha[later]))),
        "price": (theory.price, float(np.exp(quoted.mean())) if quoted.size else math.nan),
        "turnover": (theory.turnover, float(path.turnover[later].mean())),
        "gini": (theory.gini, float(np.nanmean(path.gini[later]))),
        "herfindahl": (theory.herfindahl, float(np.nanmean(path.herfindahl[later]))),
        "volatility": (theory.volatility, float(returns.std()) if returns.size else math.nan),
    }


MEANING = {
    "alpha": "alpha, wealth exponent (N -> inf)",
    "price": "price",
    "turnover": "turnover per step",
    "gini": "Gini of wealth",
    "herfindahl": "Herfindahl of wealth",
    "volatility": "volatility per step",
}


def print_table(rows: dict[str, tuple[float, float]], title: str) -> None:
    """Print prediction beside measurement."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("mean field", "measured", "difference"):
        table.add_column(heading, justify="right")
    for name, (predicted, measured) in rows.items():
        difference = f"{measured / predicted - 1:+.1%}" if math.isfinite(measured / predicted) else "–"
        table.add_row(MEANING[name], number(predicted), number(measured), difference)
    output().print(table)


def finite(value: float) -> float | None:
    """Return the number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
