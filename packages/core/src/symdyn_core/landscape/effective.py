r"""The one number to which the landscape of a deep linear network reduces.

Notation: $D$ hidden layers of widths $d_i$ with multiplicative noise of variance $\sigma_i^2$, weight decays
$\gamma_i$ of the $D+1$ layers, $G = \prod_i\gamma_i$, retention $\rho = \prod_i d_i/(d_i+\sigma_i^2)$, data
$A = E[xx^T]$ and $m = E[xy]$. At every stationary point all layers carry the same penalty
$S = \gamma_i\|W_i\|^2$. Minimising over everything else at fixed $S$ leaves

$$L(S) - E[y^2] = -\rho\, m^T (A + I/s)^{-1} m + D S, \qquad s = S^D / (\rho G),$$

so the network is ridge regression with ridge $1/s$, shrunk by $\rho$, where $s$, the *scale*, is the
network's choice. Widths and noise enter through $\rho$ only, weight decays through their product only.

Source: arXiv 2202.04777 (form of the global minimum) and 2205.12510 (effective loss); this form re-derived.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from symdyn_core.errors import InputError

FloatArray = NDArray[np.float64]

# Eigenvalues of E[xx^T] below this fraction of the largest are rounding errors of zero.
RANK_TOLERANCE = 1e-12
# Spacing of scans in log s. The loss is a sum of logistic functions of log s and an exponential: nothing
# happens on lengths much shorter than one.
SCAN_STEP = 0.05


def signal_retention(widths: Sequence[int], noise_variance: float | Sequence[float] = 0.0) -> float:
    r"""Return $\rho = \prod_i d_i/(d_i+\sigma_i^2)$, the factor by which noise shrinks the best prediction.

    Args:
        widths: hidden widths >= 1; empty for a network without hidden layer.
        noise_variance: of the factor on each hidden neuron, >= 0; one number, or one per hidden layer.

    Returns:
        A number in (0, 1].

    Raises:
        InputError: a width below one, a negative variance, or a wrong number of variances.

    Source: arXiv 2202.04777; re-derived from the second moment of a product of independent sums.

    Example:
        >>> signal_retention([4], 1.0)
        0.8
    """
    for width in widths:
        if not (float(width).is_integer() and width >= 1):
            raise InputError(f"widths must be whole numbers >= 1, got {list(widths)}")
    variances = noise_per_layer(noise_variance, len(widths))
    return math.prod(width / (width + variance) for width, variance in zip(widths, variances, strict=True))


def noise_per_layer(noise_variance: float | Sequence[float], depth: int) -> list[float]:
    """Return one noise variance per hidden layer.

    Raises:
        InputError: a negative variance, or a number of variances that is neither one nor the depth.

    Example:
        >>> noise_per_layer(0.5, 2)
        [0.5, 0.5]
    """
    variances = np.asarray(noise_variance, dtype=float)
    if variances.ndim == 0:
        variances = np.full(depth, variances)
    if variances.shape != (depth,):
        raise InputError(
            f"noise_variance must be one number or {depth}, one per hidden layer, got shape {variances.shape}"
        )
    if not (np.isfinite(variances).all() and (variances >= 0).all()):
        raise InputError(f"noise_variance must be finite and >= 0, got {noise_variance}")
    return [float(variance) for variance in variances]


def cross_moment_vector(cross_moment: ArrayLike) -> FloatArray:
    """Return $E[xy]$ as a vector; a number counts as one feature.

    Raises:
        InputError: more than one dimension, no entry, or an entry that is not finite.

    Example:
        >>> cross_moment_vector(2.0).tolist()
        [2.0]
    """
    cross = np.atleast_1d(np.asarray(cross_moment, dtype=float))
    if cross.ndim != 1 or cross.size == 0:
        raise InputError(f"cross_moment must be a number or of shape (n_features,), got shape {cross.shape}")
    if not np.isfinite(cross).all():
        raise InputError("cross_moment must be finite, got NaN or infinity")
    return cross


@dataclass(frozen=True)
class Signal:
    r"""The data in the eigenbasis of $E[xx^T]$, without the directions in which $x$ does not vary.

    Attributes:
        eigenvalues: $a_k > 0$ in increasing order, shape (rank,).
        components: $m_k$, shape (rank,).
        basis: orthonormal columns, shape (n_features, rank).
    """

    eigenvalues: FloatArray
    components: FloatArray
    basis: FloatArray

    @classmethod
    def of(cls, second_moment: ArrayLike, cross_moment: ArrayLike) -> "Signal":
        """Diagonalise the moments.

        Args:
            second_moment: $E[xx^T]$, shape (n_features, n_features), or a number $a$ for $a I$.
            cross_moment: $E[xy]$, shape (n_features,), or a number for one feature.

        Raises:
            InputError: wrong shapes, not finite, not symmetric, not positive semi-definite, or a cross moment
                along a direction in which the inputs do not vary.

        Example:
            >>> Signal.of([[2.0, 0.0], [0.0, 1.0]], [3.0, 4.0]).strength
            5.0
        """
        cross = cross_moment_vector(cross_moment)
        second = np.asarray(second_moment, dtype=float)
        if second.ndim == 0:
            second = second * np.eye(cross.size)
        if second.shape != (cross.size, cross.size):
            raise InputError(
                f"second_moment must be a number or of shape ({cross.size}, {cross.size}) to go with "
                f"cross_moment, got shape {second.shape}"
            )
        if not np.isfinite(second).all():
            raise InputError("second_moment must be finite, got NaN or infinity")
        size = float(np.abs(second).max())
        if np.abs(second - second.T).max() > 1e-9 * size:
            raise InputError("second_moment must be symmetric")
        eigenvalues, basis = np.linalg.eigh((second + second.T) / 2)
        if eigenvalues[0] < -1e-9 * size:
            raise InputError(
                f"second_moment must be positive semi-definite, got the eigenvalue {eigenvalues[0]:g}"
            )
        kept = eigenvalues > RANK_TOLERANCE * size
        components = basis.T @ cross
        if math.hypot(*components[~kept]) > math.sqrt(RANK_TOLERANCE) * math.hypot(*components):
            raise InputError(
                "cross_moment must lie in the range of second_moment: no data have E[xy] along a "
                "direction in which x does not vary"
            )
        return cls(eigenvalues[kept], components[kept], basis[:, kept])

    @property
    def strength(self) -> float:
        r"""Norm $\|m\|$ of the cross moment."""
        return math.hypot(*self.components)

    @property
    def explainable(self) -> float:
        """$m^T A^{-1} m$, the part of $E[y^2]$ that least squares explains."""
        return float((self.components**2 / self.eigenvalues).sum())

    def explained(self, scale: ArrayLike) -> FloatArray:
        r"""Return $m^T(A+I/s)^{-1}m$ at each scale $s \ge 0$, in the shape of `scale`.

        Example:
            >>> Signal.of(1.0, 2.0).explained([0.0, 1.0]).tolist()
            [0.0, 2.0]
        """
        s = np.asarray(scale, dtype=float)[..., None]
        return np.asarray((self.components**2 * (s / (1 + s * self.eigenvalues))).sum(axis=-1))

    def marginal(self, scale: ArrayLike) -> FloatArray:
        r"""Return the derivative of :meth:`explained`, $\sum_k m_k^2/(1+s a_k)^2$, in the shape of `scale`.

        Example:
            >>> Signal.of(1.0, 2.0).marginal([0.0, 1.0]).tolist()
            [4.0, 1.0]
        """
        s = np.asarray(scale, dtype=float)[..., None]
        return np.asarray(((self.components / (1 + s * self.eigenvalues)) ** 2).sum(axis=-1))

    def ridge_coefficients(self, scale: float) -> FloatArray:
        r"""Return $(A+I/s)^{-1}m$ at a scale $s \ge 0$, shape (n_features,).

        Example:
            >>> Signal.of(1.0, [2.0, 4.0]).ridge_coefficients(1.0).tolist()
            [1.0, 2.0]
        """
        return np.asarray(self.basis @ (self.components * (scale / (1 + scale * self.eigenvalues))))


@dataclass(frozen=True)
class EffectiveProblem:
    r"""The loss as a function of the scale $s$; see the module docstring.

    Attributes:
        signal: the data.
        depth: number $D \ge 0$ of hidden layers.
        retention: $\rho$, from :func:`signal_retention`.
        log_decay: $\log G$, the sum of the logarithms of the weight decays.

    Example:
        One hidden layer with $a=1$, $m=2$, $\gamma=1$: $-4s/(1+s) + s$ is least at $s=1$.

        >>> problem = EffectiveProblem(Signal.of(1.0, 2.0), depth=1, retention=1.0, log_decay=0.0)
        >>> scale, loss = problem.best()
        >>> round(scale, 9), round(loss, 9)
        (1.0, -1.0)
    """

    signal: Signal
    depth: int
    retention: float
    log_decay: float

    def layer_penalty(self, scale: ArrayLike) -> FloatArray:
        r"""Return $S = (\rho G s)^{1/D}$ at each scale > 0; needs a hidden layer."""
        logs = math.log(self.retention) + self.log_decay + np.log(scale)
        return np.asarray(np.exp(logs / self.depth))

    def scale(self, layer_penalty: ArrayLike) -> FloatArray:
        r"""Return $s = S^D/(\rho G)$, the inverse of :meth:`layer_penalty`, at each penalty >= 0."""
        factor = math.exp(-(math.log(self.retention) + self.log_decay) / self.depth)
        return np.asarray((np.asarray(layer_penalty, dtype=float) * factor) ** self.depth)

    def loss(self, scale: ArrayLike) -> FloatArray:
        r"""Return $L - E[y^2]$, the loss above that of the zero network, at each scale > 0."""
        explained = -self.retention * self.signal.explained(scale)
        return explained if self.depth == 0 else explained + self.depth * self.layer_penalty(scale)

    def minima(self) -> list[float]:
        r"""Return the scales $s > 0$ of all local minima of the loss, in increasing order.

        Stationary are the $s$ with $\sum_k m_k^2\,s^{1-1/D}/(1+s a_k)^2 = (\rho^{1-D} G)^{1/D}$, minima those
        where the left side falls through the right. No minimum lies outside a finite range that the moments
        determine, so scanning it finds them all, at any scale of the data.
        """
        signal, depth = self.signal, self.depth
        if depth == 0:
            return [math.exp(-self.log_decay)]
        if signal.strength == 0:
            return []
        threshold = (self.log_decay + (1 - depth) * math.log(self.retention)) / depth
        if depth == 1:
            # The left side falls from |m|^2, and not faster than |m|^2 / (1 + s a_max)^2.
            excess = math.expm1(math.log(signal.strength) - threshold / 2)
            if excess <= 0:
                return []
            landmarks = np.array([math.log(excess) - math.log(signal.eigenvalues[-1])])
        else:
            # Term k of the left side rises up to here, and falls from here on.
            landmarks = math.log((depth - 1) / (depth + 1)) - np.log(signal.eigenvalues[::-1])
        # The left side is less than its limit for large s, which meets the right side here.
        tail = 2 * math.log(math.hypot(*(signal.components / signal.eigenvalues)))
        last = (tail - threshold) * depth / (depth + 1)
        # One step more on either side: for isotropic data a minimum may lie at the bound itself.
        scan = np.arange(landmarks[0] - SCAN_STEP, last + 2 * SCAN_STEP, SCAN_STEP)
        grid = np.unique(np.concatenate([scan, landmarks]))

        def balance(log_scale: ArrayLike) -> FloatArray:
            left = (1 - 1 / depth) * np.asarray(log_scale) + np.log(signal.marginal(np.exp(log_scale)))
            return np.asarray(left - threshold)

        heights = balance(grid)
        falls = np.flatnonzero((heights[:-1] > 0) & (heights[1:] <= 0))
        return [math.exp(brentq(balance, grid[i], grid[i + 1], xtol=1e-14, rtol=1e-14)) for i in falls]

    def best(self, *, zero: bool = True) -> tuple[float, float]:
        """Return ``(scale, loss)`` of the lowest minimum, ``(0, 0)`` for the zero network.

        Args:
            zero: whether the zero network competes; without it, zero is returned only if nothing else is
                there.
        """
        candidates = [(float(self.loss(scale)), scale) for scale in self.minima()]
        if zero or not candidates:
            candidates.append((0.0, 0.0))
        loss, scale = min(candidates)
        return scale, loss
