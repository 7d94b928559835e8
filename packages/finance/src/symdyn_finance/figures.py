"""Pictures of a market."""

from typing import TYPE_CHECKING

import numpy as np

from symdyn_core.plots import MEASUREMENT, RIVAL, STYLE, THEORY
from symdyn_finance.mean_field import WealthLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from symdyn_finance.market import MarketPath, SymmetricMarket
    from symdyn_finance.mean_field import MeanField

# More points than a screen has columns only make the file large.
LONGEST_LINE = 1500


def draw_market(
    market: "SymmetricMarket", path: "MarketPath", theory: "MeanField", warm_up: int = 0
) -> "Figure":
    """Draw what a market did beside what the mean field says of it.

    Three panels: the price with the predicted band of two standard deviations, inequality on its way to the
    predicted Gini coefficient, and the distribution of wealth at the end.

    Args:
        market: as it is after the run.
        path: of that run.
        theory: its mean field.
        warm_up: steps of the path that are still on their way; shaded.

    Returns:
        The figure, 9.6 x 5.4 inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "font.size": 10, "lines.linewidth": 1.5}):
        figure = Figure(figsize=(9.6, 5.4))
        figure.subplots_adjust(wspace=0.25, hspace=0.25)
        panels = figure.subplot_mosaic([["price", "wealth"], ["gini", "wealth"]])
        _draw_price(panels["price"], market, path, theory)
        _draw_gini(panels["gini"], path, theory)
        _draw_wealth(panels["wealth"], market, theory)
        for name in ("price", "gini"):
            if warm_up > 0:
                panels[name].axvspan(path.start, path.start + warm_up, color=RIVAL, alpha=0.15, lw=0)
        panels["price"].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
        panels["gini"].legend(loc="lower right", fontsize=8)
        panels["wealth"].legend(loc="lower left", fontsize=8)
    return figure


def _draw_price(axes: "Axes", market: "SymmetricMarket", path: "MarketPath", theory: "MeanField") -> None:
    step = path.start + np.arange(len(path))
    fair = market.fair_price * (1 + market.economy.mint) ** (step - float(market.time))
    # A one-step return is the difference of two prices with independent noise.
    band = np.exp(2 * theory.volatility / np.sqrt(2))
    thin = slice(None, None, max(1, len(path) // LONGEST_LINE))
    axes.plot(step[thin], path.price[thin], color=MEASUREMENT, lw=0.6, label="measured")
    axes.plot(step[thin], fair[thin], color=THEORY, label="mean field, two standard deviations")
    for edge in (fair / band, fair * band):
        axes.plot(step[thin], edge[thin], color=THEORY, lw=0.8)
    axes.set(ylabel="price / cash per share", yscale="log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")


def _draw_gini(axes: "Axes", path: "MarketPath", theory: "MeanField") -> None:
    seen = np.flatnonzero(np.isfinite(path.gini))
    seen = seen[:: max(1, seen.size // LONGEST_LINE)]
    axes.plot(path.start + seen, path.gini[seen], color=MEASUREMENT, label="measured")
    axes.axhline(theory.gini, color=THEORY, label="mean field")
    axes.set(xlabel="step", ylabel="Gini coefficient of wealth", ylim=(0, None))


def _draw_wealth(axes: "Axes", market: "SymmetricMarket", theory: "MeanField") -> None:
    w = market.wealth / market.wealth.mean()
    edges = np.geomspace(w.min() * 0.999, w.max() * 1.001, 40)
    counts, _ = np.histogram(w, edges)
    there = counts > 0
    centres, cell = np.sqrt(edges[1:] * edges[:-1])[there], (w.size * np.diff(edges))[there]
    # One standard deviation of the count; a single agent's bar would reach zero, off a logarithmic scale.
    error = np.minimum(np.sqrt(counts[there]), 0.99 * counts[there]) / cell
    axes.errorbar(
        centres, counts[there] / cell, error, fmt="o", ms=3.5, color=MEASUREMENT, label="measured, last step"
    )
    grid = np.geomspace(edges[0], edges[-1], 300)
    if 1 < theory.alpha < np.inf:
        infinite = WealthLaw.inverse_gamma(theory.alpha).pdf(grid)
        label = rf"infinite market: inverse gamma, $\alpha={theory.alpha:.2f}$"
        axes.plot(grid, infinite, "--", color=RIVAL, label=label)
    axes.plot(grid, theory.pdf(grid), color=THEORY, label=f"mean field, {market.n_agents} agents")
    lowest = float((1 / cell).min())
    axes.set(xlabel="wealth / mean", ylabel="probability density", xscale="log", yscale="log")
    axes.set_ylim(bottom=lowest / 3)
