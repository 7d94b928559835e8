r"""Step times when directions of close eigenvalues compete for the same output.

While the embedding is small the weights grow linearly, $\dot W = 4 W \Gamma$. A step happens when the top
eigenvalue of $W \Gamma W^\top$ in that linear law reaches one (half-way on the logistic). From then on the
output $u$ that has grown encodes $r = u^\top W$, normalised to $r \Gamma r^\top = 1$; inserting
$W = u r + W_\perp$ into the gradient flow leaves to first order in $W_\perp$

$$\dot W_\perp = 4 W_\perp (\Gamma - \Gamma r^\top r \Gamma):$$

the other outputs go on growing linearly under the covariance with $r$ deflated, until the next step. If $r$
is an eigenvector this is the closed form of the paper; if it is a mixture of close ones it is not, and this
law still holds. The mixture is the one of the linear law at the step: saturation slows all parts of an output
alike, and the growth that the first half of a rise loses is made up for in the second.

Source: an extension of arXiv 2303.15438 (sequential learning from small initialisation), derived here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]

# exp(700) is near the largest double; amplitudes that have not grown by then are zero.
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class CompetingSteps:
    """When each step comes and what is learned in it.

    Attributes:
        times: ascending, shape ``(n_steps,)``; infinite for a step that never comes.
        encoder: what each step adds to the encoder, as rows, ``(n_steps, n_coordinates)``; zero for a step
            that never comes. The trained weights are these rows up to a rotation of the outputs.
    """

    times: Array
    encoder: Array


def competing_steps(amplitudes: Array, gamma: Array) -> CompetingSteps:
    r"""Predict the steps of a training from small initial weights, every direction competing.

    To leading order in the initial scale. Rises that overlap in time act on each other, which is left out: on
    digits from weights of 1e-4 the times hold to 0.3 % and the encoder to some per cent.

    Args:
        amplitudes: initial weights in the eigenbasis, $W(0) V$, shape ``(dim, n_directions)``.
        gamma: positive eigenvalues of the contrastive covariance, shape ``(n_directions,)``.

    Returns:
        ``min(dim, n_directions)`` steps, the encoder in the eigenbasis.

    >>> aligned = np.diag([1e-3, 1e-3])
    >>> steps = competing_steps(aligned, np.array([1.0, 0.25]))
    >>> steps.times.round(3)                            # log(1e6) / 8 and log(4e6) / 2
    array([1.727, 7.601])
    >>> abs(steps.encoder).round(3)                     # 1 / sqrt(gamma)
    array([[1., 0.],
           [0., 2.]])
    """
    weights, covariance = np.array(amplitudes), np.diag(gamma)
    n_steps = min(weights.shape[0], len(gamma))
    times, encoder = np.full(n_steps, np.inf), np.zeros((n_steps, len(gamma)))
    now = 0.0
    for step in range(n_steps):
        rates, basis = np.linalg.eigh(covariance)
        projected, metric = weights @ basis, basis.T @ (gamma[:, None] * basis)
        wait = _time_to_one(projected, rates, metric)
        if wait is None:
            break
        now += wait
        weights = (projected * np.exp(4 * rates * wait)) @ basis.T
        output = np.linalg.eigh(weights @ (gamma[:, None] * weights.T))[1][:, -1]
        learned = output @ weights
        times[step], encoder[step] = now, learned / np.sqrt(learned @ (gamma * learned))
        weights -= np.outer(output, learned)
        pull = covariance @ learned
        covariance -= np.outer(pull, pull) / (learned @ pull)
    return CompetingSteps(times, encoder)


def _time_to_one(projected: Array, rates: Array, metric: Array) -> float | None:
    """Return when the top eigenvalue of the linear law reaches one, 0 if it has, None if it never does."""

    def log_top(time: float) -> float:
        grown = projected * np.exp(4 * rates * time)
        top = float(np.linalg.eigvalsh(grown @ metric @ grown.T)[-1])
        return float(np.log(top)) if top > 0 else -np.inf

    start = log_top(0.0)
    if start >= 0:
        return 0.0
    growing = rates[(projected != 0).any(axis=0) & (rates > 0)]
    if not growing.size:
        return None
    # The fastest direction that is present bounds the growth from above.
    latest = -start / (8 * float(growing[-1]))
    while log_top(latest) < 0:
        latest *= 2
        if 4 * growing[-1] * latest > _LARGEST_EXPONENT:
            return None
    return float(brentq(log_top, 0.0, latest, rtol=1e-12))
