r"""How irreversible a process is, from sampled paths: fitted chains and the mean of a heavy-tailed weight.

Source: arXiv 2202.13311, degree of reversibility; the estimators are standard (importance sampling).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from symdyn_core.dynamics.markov_paths import MarkovPaths, check_paths
from symdyn_core.errors import InputError


def fit_chain(paths: ArrayLike, n_states: int | None = None, pseudocount: float = 0.0) -> MarkovPaths:
    """Return the chain that fits sampled paths best: shares of first states and of transitions.

    Args:
        paths: states in [0, n), shape (n_paths, steps + 1).
        n_states: n; one more than the largest state seen if left out.
        pseudocount: added to every count. Above zero no transition is impossible, which keeps rare ones from
            looking absolutely irreversible, at the price of a bias.

    Raises:
        InputError: paths that are none, or a state that nothing leaves.

    >>> fit_chain([[0, 1, 0], [0, 0, 1]]).transition.tolist()
    [[0.333..., 0.666...], [1.0, 0.0]]
    """
    states = check_paths(paths, n_states)
    n = int(states.max()) + 1 if n_states is None else n_states
    if not (math.isfinite(pseudocount) and pseudocount >= 0):
        raise InputError(f"pseudocount must be finite and >= 0, got {pseudocount}")
    pairs = states[:, :-1].ravel() * n + states[:, 1:].ravel()
    counts = np.bincount(pairs, minlength=n * n).reshape(n, n) + pseudocount
    starts = np.bincount(states[:, 0], minlength=n) + pseudocount
    if (left := counts.sum(axis=1) == 0).any():
        raise InputError(
            f"paths must leave every state to fit a chain, got none that leaves {np.argmax(left)}"
        )
    return MarkovPaths(starts / starts.sum(), counts / counts.sum(axis=1, keepdims=True), states.shape[1] - 1)


@dataclass(frozen=True)
class GammaEstimate:
    r""":math:`\gamma` from a sample of paths, with what tells whether to believe it.

    Attributes:
        log_gamma: :math:`\log\langle e^{2R}\rangle`.
        log_overlap: :math:`\log\langle e^R\rangle`: near 0, unless the sample misses the paths that count, or
            there are absolutely irreversible ones.
        effective_sample_size: :math:`(\sum w)^2/\sum w^2` of the weights :math:`w=e^{2R}`. Of the order of
            one, a single path decides.
    """

    log_gamma: float
    log_overlap: float
    effective_sample_size: float

    @property
    def gamma(self) -> float:
        r""":math:`\gamma`; infinite where float64 ends."""
        return math.exp(self.log_gamma) if self.log_gamma < math.log(np.finfo(float).max) else math.inf


def estimate_gamma(log_ratios: ArrayLike) -> GammaEstimate:
    r"""Estimate :math:`\gamma=\langle e^{2R}\rangle_P` from the log ratios of paths drawn from P.

    The mean of a heavy-tailed quantity: look at the effective sample size. Of a chain,
    ``fit_chain(paths).reversal_gamma()`` is far more precise.

    Args:
        log_ratios: R of every path, shape (k,); minus infinity where the reversed path is impossible.

    Raises:
        InputError: no ratios, NaN, plus infinity, or nothing but minus infinity.

    >>> estimate = estimate_gamma(np.log([0.5, 1.5]))
    >>> round(estimate.gamma, 9), round(estimate.effective_sample_size, 4)  # 2.5^2 / (0.25^2 + 2.25^2)
    (1.25, 1.2195)
    """
    ratios = np.asarray(log_ratios, dtype=float)
    if ratios.ndim != 1 or ratios.size == 0:
        raise InputError(f"log_ratios must be a vector, got shape {ratios.shape}")
    if np.isnan(ratios).any() or ratios.max() == math.inf or ratios.max() == -math.inf:
        raise InputError("log_ratios must be below infinity and some of them finite")
    count = math.log(ratios.size)
    total, squares = float(logsumexp(2 * ratios)), float(logsumexp(4 * ratios))
    return GammaEstimate(total - count, float(logsumexp(ratios)) - count, math.exp(2 * total - squares))
