"""Whether a loss is the mean of the losses of single samples, which all of the theory assumes."""

from collections.abc import Sequence

import numpy as np

from symdyn_core.errors import InputError

DOUBLE = float(np.finfo(np.float64).eps)


def check_mean_loss(
    together: float, single: Sequence[float], tolerance: float = 1e-8, epsilon: float = DOUBLE
) -> None:
    """Raise InputError unless a loss is the mean of those of single samples.

    Losses that are rounding errors themselves, as those of a network that fits its targets exactly, differ
    freely.

    Args:
        together: loss of the samples as a batch.
        single: of each by itself.
        tolerance: relative to the mean absolute loss.
        epsilon: of the numbers that the losses were computed in.

    >>> check_mean_loss(2.0, [1.0, 3.0])
    >>> check_mean_loss(0.0, [2e-33, 4e-33])
    >>> check_mean_loss(4.0, [1.0, 3.0])
    Traceback (most recent call last):
        ...
    symdyn_core.errors.InputError: the loss must be the mean of the losses of single samples, got 4 for ...
    """
    losses = np.asarray(single, dtype=float)
    average, scale = float(losses.mean()), float(np.abs(losses).mean())
    # Residuals of size epsilon have squares of its square.
    if not abs(together - average) <= tolerance * scale + epsilon**1.5:
        raise InputError(
            f"the loss must be the mean of the losses of single samples, got {together:g} for "
            f"{len(losses)} samples together and a mean of {average:g} one by one"
        )
