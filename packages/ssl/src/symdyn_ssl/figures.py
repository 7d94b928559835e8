"""Figures of predictions, ready to be saved."""

from typing import TYPE_CHECKING

import numpy as np

from symdyn_core.plots import STYLE, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from symdyn_ssl.stepwise import StepwiseTheory


def draw_staircase(theory: "StepwiseTheory", init_std: float) -> "Figure":
    """Draw the predicted loss and, below it, the predicted eigenvalues against time.

    Args:
        theory: of the pairs.
        init_std: standard deviation of the initial weights.

    Returns:
        A figure of 6.4 x 5 inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    times = theory.step_times(init_std=init_std)
    end = times[-1] + 2 * theory.widths[-1]
    t = np.linspace(0, end, 1000)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(t, theory.loss(t, init_std=init_std), color=THEORY)
        above.set(ylabel="loss", ylim=(0, None), title="Predicted staircase")
        below.plot(t, theory.eigenvalues(t, init_std=init_std), color=THEORY)
        below.set(xlabel="time = learning rate × steps", ylabel="embedding eigenvalues", xlim=(0, end))
    return figure
