r"""Breaking and restoring symmetry in training: when a mode is learned, and which modes decay forgets.

A linear network :math:`f=W_2W_1x` on whitened inputs, started small, sits at a symmetric state: no direction
of its h hidden units is used, and the rotations O(h) leave it in place. It learns the singular modes
:math:`s_k` of the target V one after the other; each jump of the loss uses one direction and leaves
O(h - r). Weight decay undoes this from the weakest mode on.

What follows is exact for these networks. That jumps in the training of *any* network are symmetries breaking
is what :func:`transitions` lets one look at, and no more: that the layered structure of representations
follows from the symmetries of each layer, and that noise, decay and augmentation always favour symmetric
states, are **hypotheses** of the source (its claims on hierarchy and on control), for which this module is no
evidence. Across several directions gradient noise can also drive away from a symmetric state; see
:mod:`~symdyn_core.symmetry.attraction`.

Source: arXiv 2502.05300 (symmetry to symmetry, restoration); formulas derived, for linear nets known since
A. Saxe, J. McClelland and S. Ganguli, ICLR 2014.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

ROUNDING = 1e-12  # of singular values, relative to the largest


def predict_jump_times(target: ArrayLike, first: ArrayLike, second: ArrayLike) -> Array:
    r"""Return when gradient flow on :math:`\tfrac12\|V-W_2W_1\|_F^2` learns each singular mode by half.

    With :math:`V=\sum_ks_ku_kv_k^T` only :math:`p_k=\tfrac12(W_1v_k+W_2^Tu_k)` grows, at the rate
    :math:`s_k`, and its square follows the logistic law: it reaches :math:`s_k/2` at

    .. math:: t_k=\frac1{2s_k}\ln\Big(\frac{s_k}{a_k}-1\Big),

    where :math:`a_k` is the square of :math:`p_k` without its components along the hidden directions that
    stronger modes have taken before: those shrink again once the stronger mode is learned.

    Args:
        target: V, shape (outputs, inputs).
        first: :math:`W_1` at the start, shape (hidden, inputs).
        second: :math:`W_2` at the start, shape (outputs, hidden).

    Returns:
        Time of each mode of V, from the largest singular value down, shape (rank of V,); infinite for a mode
        that the start does not contain. Exact for small starts and well separated singular values.

    Raises:
        InputError: shapes that do not fit, entries that are not finite, or a start in which a mode is already
            as strong as in the target.

    Source: arXiv 2502.05300; the component along earlier modes is derived here.

    :math:`a=(0.1)^2` and s = 1 give :math:`\tfrac12\ln99`:

    >>> round(float(predict_jump_times([[1.0]], [[0.1]], [[0.1]])[0]), 6) == round(math.log(99) / 2, 6)
    True
    """
    strengths, starts = _growing_modes(target, first, second)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(strengths / starts - 1) / (2 * strengths))


def predict_mode_growth(target: ArrayLike, first: ArrayLike, second: ArrayLike, times: ArrayLike) -> Array:
    r"""Return how strong each mode is along gradient flow, from a small start.

    .. math:: a_k(t)=\frac{s_k}{1+(s_k/a_k-1)e^{-2s_kt}},

    so that the loss is :math:`\tfrac12\sum_k(s_k-a_k(t))^2`. The start :math:`a_k` is that of
    :func:`predict_jump_times`.

    Args:
        target: V, shape (outputs, inputs).
        first: :math:`W_1` at the start, shape (hidden, inputs).
        second: :math:`W_2` at the start, shape (outputs, hidden).
        times: shape (n,), not negative.

    Returns:
        Shape (n, rank of V).

    Raises:
        InputError: see :func:`predict_jump_times`.

    >>> predict_mode_growth([[2.0]], [[0.1]], [[0.1]], [0.0, 100.0]).round(6).tolist()
    [[0.01], [2.0]]
    """
    strengths, starts = _growing_modes(target, first, second)
    fall = np.exp(-2 * np.multiply.outer(np.asarray(times, dtype=float), strengths))
    # Written so that a mode the start does not contain stays at zero.
    return np.asarray(strengths * starts / (starts + (strengths - starts) * fall))


def _growing_modes(target: ArrayLike, first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    """Return the singular values of the target and the strength that each mode effectively starts with."""
    v, w1, w2 = (_matrix(name, m) for name, m in (("target", target), ("first", first), ("second", second)))
    if w2.shape[0] != v.shape[0] or w1.shape[1] != v.shape[1] or w2.shape[1] != w1.shape[0]:
        raise InputError(
            f"second @ first must have the shape {v.shape} of target, got {w2.shape} @ {w1.shape}"
        )
    left, strengths, right = np.linalg.svd(v, full_matrices=False)
    strengths = strengths[strengths > ROUNDING * max(strengths.max(), math.ulp(0.0))]
    starts = np.zeros(len(strengths))
    taken = np.zeros((w1.shape[0], 0))
    for k, strength in enumerate(strengths):
        growing = (w1 @ right[k] + w2.T @ left[:, k]) / 2
        free = growing - taken @ (taken.T @ growing)
        size = float(np.linalg.norm(free))
        if size <= ROUNDING * float(np.linalg.norm(growing)):
            continue  # all hidden directions that this mode starts along are taken
        if size**2 >= strength:
            raise InputError(
                f"the start must be small: mode {k} of strength {strength:.3g} starts at {size**2:.3g}"
            )
        starts[k] = size**2
        taken = np.column_stack([taken, free / size])
    return strengths, starts


def predict_plateau_losses(singular_values: ArrayLike) -> Array:
    r"""Return the loss on each plateau, :math:`\tfrac12\sum_{j>r}s_j^2` for r = 0, 1, ... modes learned.

    Args:
        singular_values: of the target, shape (k,), not negative.

    Returns:
        Shape (k + 1,), from the start to the end of training.

    Raises:
        InputError: not a vector, negative or not finite.

    >>> predict_plateau_losses([4.0, 2.0, 1.0]).tolist()
    [10.5, 2.5, 0.5, 0.0]
    """
    squares = np.square(_strengths(singular_values))
    return np.asarray(np.append(np.cumsum(squares[::-1])[::-1], 0.0) / 2)


def predict_mode_strengths(singular_values: ArrayLike, weight_decay: float) -> Array:
    r"""Return what weight decay leaves of each mode, :math:`\max(s_k-2\gamma,0)`.

    The minimum of :math:`\tfrac12\|V-W_2W_1\|_F^2+\gamma(\|W_1\|_F^2+\|W_2\|_F^2)`.

    Args:
        singular_values: of the target, shape (k,), not negative; sorted descending in what is returned.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.

    Raises:
        InputError: values out of range.

    Source: arXiv 2502.05300, restoration by weight decay; there :math:`\gamma/2` is written for
    :math:`\gamma`.

    >>> predict_mode_strengths([4.0, 2.0, 1.0], weight_decay=0.75).tolist()
    [2.5, 0.5, 0.0]
    """
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    return np.maximum(_strengths(singular_values) - 2 * weight_decay, 0.0)


def restored_modes(singular_values: ArrayLike, weight_decay: float) -> tuple[int, ...]:
    r"""Return the modes whose symmetry weight decay restores: those with :math:`s_k\le2\gamma`.

    Args:
        singular_values: of the target, shape (k,), not negative.
        weight_decay: :math:`\gamma\ge0` of :math:`\gamma\|\theta\|^2`, half of torch's.

    Returns:
        Their numbers, counted from 0 for the strongest mode.

    Raises:
        InputError: values out of range.

    >>> restored_modes([4.0, 2.0, 1.0], weight_decay=0.75)
    (2,)
    """
    strengths = predict_mode_strengths(singular_values, weight_decay)
    return tuple(int(k) for k in np.flatnonzero(strengths == 0))


@dataclass(frozen=True)
class Transition:
    """A change of the symmetry of the state between two entries of a log.

    Args:
        step: of the first entry after the change.
        before: distinct units (``clusters``) and live directions (``rank``) before.
        after: the same after; more of either means that a symmetry was broken, fewer that one was restored.
        loss_change: change of the loss between the two entries.
    """

    step: float
    before: tuple[int, int]
    after: tuple[int, int]
    loss_change: float


def transitions(log: "pd.DataFrame | Iterable[Mapping[str, Any]]") -> list[Transition]:
    """Return where the symmetry of the state changed in training.

    Args:
        log: entries in the order of training, each with ``step``, ``loss``, ``clusters`` and ``rank``, as
            :class:`~symdyn_core.symmetry.remaining.RemainingSymmetry` counts them; a table with these columns
            or records with these keys.

    Raises:
        InputError: a key that is missing, or steps that do not increase.

    >>> log = [
    ...     {"step": 0, "loss": 10.5, "clusters": 4, "rank": 0},
    ...     {"step": 1, "loss": 10.4, "clusters": 4, "rank": 0},
    ...     {"step": 2, "loss": 2.5, "clusters": 4, "rank": 1},
    ... ]
    >>> [(change.step, change.before, change.after) for change in transitions(log)]
    [(2, (4, 0), (4, 1))]
    """
    records = [dict(record) for record in (_records(log) if hasattr(log, "columns") else log)]
    for number, record in enumerate(records):
        if missing := [key for key in ("step", "loss", "clusters", "rank") if key not in record]:
            raise InputError(f"entry {number} of the log must have {missing[0]!r}, got {', '.join(record)}")
    found = []
    for earlier, later in pairwise(records):
        if not later["step"] > earlier["step"]:
            raise InputError(f"steps must increase, got {later['step']} after {earlier['step']}")
        before, after = ((int(entry["clusters"]), int(entry["rank"])) for entry in (earlier, later))
        if before != after:
            change = float(later["loss"]) - float(earlier["loss"])
            found.append(Transition(later["step"], before, after, change))
    return found


def _records(table: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = table.to_dict("records")
    return records


def _matrix(name: str, values: ArrayLike) -> Array:
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2 or matrix.size == 0:
        raise InputError(f"{name} must be a matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} must be finite, got NaN or infinite entries")
    return matrix


def _strengths(singular_values: ArrayLike) -> Array:
    values = np.asarray(singular_values, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"singular_values must have shape (k,), got {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError("singular_values must be finite and not negative")
    return np.sort(values)[::-1]
