r"""From the covariance of one sample's gradient to that of a minibatch: exact for a finite data set.

With :math:`\Sigma=\frac1{N-1}\sum_i(g_i-g)(g_i-g)^T` over a data set of N samples, the mean gradient of a
batch of B has the covariance

.. math:: \frac1B\Big(1-\frac1N\Big)\Sigma\ \text{(with replacement)},\qquad
          \frac1B\Big(1-\frac BN\Big)\Sigma\ \text{(without)}.

With replacement the samples are independent, each with the covariance :math:`(1-1/N)\Sigma` of a uniform
draw. Without it two of them have the covariance :math:`-\Sigma/N`, because all N deviations add up to zero;
hence :math:`\frac1B(1-\frac1N)-\frac{B-1}{B}\frac1N`. A subset of n samples estimates :math:`\Sigma` without
bias if its own divisor is n - 1.

Source: arXiv 2102.05375 for minibatch noise; the corrections derived, and checked by enumeration.
"""

import math

from symdyn_core.errors import InputError


def batch_covariance_factor(
    batch_size: int, population: float = math.inf, *, replacement: bool = False
) -> float:
    r"""Return by what to multiply :math:`\Sigma` to get the covariance of a minibatch's mean gradient.

    Args:
        batch_size: B, at least 1; at most the population if drawn without replacement.
        population: N, the number of samples that batches are drawn from; infinite if always fresh.
        replacement: whether a sample may come twice in a batch.

    Raises:
        InputError: a value out of range.

    >>> batch_covariance_factor(2, 4), batch_covariance_factor(2, 4, replacement=True)
    (0.25, 0.375)
    """
    check_population(population)
    if not (float(batch_size).is_integer() and batch_size >= 1):
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    if not replacement and batch_size > population:
        raise InputError(
            f"batch_size must be in [1, population={population:g}] without replacement, got {batch_size}"
        )
    return (1 - (1 if replacement else batch_size) / population) / batch_size


def squared_mean(squared_norm: float, trace: float, n_samples: int, population: float = math.inf) -> float:
    r"""Return an unbiased estimate of :math:`|g|^2` of the whole population from the mean of some samples.

    .. math:: \mathbb E|\bar g|^2=|g|^2+\Big(\frac1n-\frac1N\Big)\operatorname{tr}\Sigma.

    It is negative where the mean cannot be told from zero.

    Args:
        squared_norm: :math:`|\bar g|^2`, of the mean over the samples looked at.
        trace: :math:`\operatorname{tr}\Sigma` of the gradient of one sample.
        n_samples: n, in [1, population], drawn without replacement.
        population: N.

    Raises:
        InputError: fewer samples than one, or more than there are.

    >>> squared_mean(3.0, trace=8.0, n_samples=4), squared_mean(3.0, trace=8.0, n_samples=4, population=8)
    (1.0, 2.0)
    """
    check_population(population, n_samples)
    return squared_norm - (1 / n_samples - 1 / population) * trace


def check_population(population: float, n_samples: int = 1) -> None:
    """Raise InputError unless so many samples can come from a population of this size."""
    if not (population == math.inf or float(population).is_integer()):
        raise InputError(f"population must be a whole number or infinite, got {population!r}")
    if n_samples < 1:
        raise InputError(f"n_samples must be at least 1, got {n_samples}")
    if population < n_samples:
        raise InputError(f"population must be at least n_samples={n_samples}, got {population!r}")
