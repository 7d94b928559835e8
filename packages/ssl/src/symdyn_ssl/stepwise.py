r"""When does a linear self-supervised encoder learn which direction, and what is its loss meanwhile?

The encoder is $f(x) = Wx$, $W \in \mathbb R^{d \times m}$, the loss is the un-normalised Barlow Twins loss
$L = \|C - I_d\|_F^2$ with the cross-view covariance of the embeddings

$$C = W \Gamma W^\top,\qquad \Gamma = \frac{1}{2n} \sum_{i=1}^n (x_i x_i'^\top + x_i' x_i^\top).$$

From a small initialisation gradient flow $\dot W = -4 (C - I) W \Gamma$ learns the eigenvectors of $\Gamma$
one at a time, largest eigenvalue $\gamma_1$ first; one eigenvalue of $C$ rises from 0 to 1 per step, and the
loss falls by one. Time $t$ is learning rate times steps for plain gradient descent.

This is not the loss that libraries ship as Barlow Twins: they standardise the embeddings over the batch and
weigh the off-diagonal by about 0.005. A loss blind to the embeddings' scale has no small initialisation.

Source: arXiv 2303.15438; the step times, curves and plateaus were re-derived.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import polygamma, psi

from symdyn_core.errors import InputError
from symdyn_ssl.competition import CompetingSteps, competing_steps
from symdyn_ssl.pairs import as_pairs, as_samples

Array = NDArray[np.float64]


def contrastive_covariance(x: ArrayLike, x_prime: ArrayLike) -> Array:
    r"""Return the covariance across views.

    $\Gamma = \frac{1}{2n} \sum_i (x_i x_i'^\top + x_i' x_i^\top)$, of the data as they are: subtract the mean
    first if the encoder's output is to be centred.

    Args:
        x: one view, shape ``(n_pairs, n_features)``.
        x_prime: the other view of the same samples, same shape.

    Returns:
        Symmetric matrix ``(n_features, n_features)``; noise independent between views does not add to it, and
        some of its eigenvalues may be negative.

    Raises:
        InputError: the arrays are no pairs.

    >>> contrastive_covariance([[1, 0], [0, 2]], [[1, 1], [0, 2]])
    array([[0.5 , 0.25],
           [0.25, 2.  ]])
    """
    first, second = as_pairs(x, x_prime)
    product = first.T @ second
    return (product + product.T) / (2 * len(first))


@dataclass(frozen=True)
class StepwiseTheory:
    """What a linear encoder learns from given pairs, and when.

    Args:
        spectrum: all positive eigenvalues of the contrastive covariance, descending, shape ``(n_positive,)``.
        basis: the eigenvectors as rows, shape ``(n_positive, n_features)``.
        mean: what :meth:`embed` subtracts from its input, shape ``(n_features,)``.
        dim: width of the embedding.

    The first ``n_modes = min(dim, n_positive)`` directions are learned. Where data have fewer positive
    directions than the embedding has dimensions, the other ``dim - n_modes`` dimensions stay at zero for
    ever, and the loss ends at ``dim - n_modes``.

    >>> views = [[3, 0], [-3, 0], [0, 1], [0, -1]]
    >>> theory = StepwiseTheory.from_pairs(views, views, dim=2)
    >>> theory.gamma
    array([4.5, 0.5])
    >>> theory.loss([0, 2, 100], init_std=1e-4).round(2)         # steps near t = 0.5 and t = 5
    array([2., 1., 0.])
    """

    spectrum: Array
    basis: Array
    mean: Array
    dim: int

    @classmethod
    def from_pairs(cls, x: ArrayLike, x_prime: ArrayLike, dim: int, *, center: bool = True) -> Self:
        """Diagonalise the contrastive covariance of the data.

        Args:
            x: one view, shape ``(n_pairs, n_features)``.
            x_prime: the other view of the same samples, same shape.
            dim: width of the embedding, in ``[1, n_features]``.
            center: subtract the mean over both views first; without it the first direction learned is usually
                the mean itself.

        Raises:
            InputError: the arrays are no pairs, ``dim`` is out of range, or no direction has a positive
                covariance across views, so that nothing can be learned.
        """
        first, second = as_pairs(x, x_prime)
        if not 1 <= dim <= first.shape[1]:
            raise InputError(f"dim must be in [1, n_features={first.shape[1]}], got {dim}")
        mean = (first.mean(axis=0) + second.mean(axis=0)) / 2 if center else np.zeros(first.shape[1])
        values, vectors = _eigenpairs(first - mean, second - mean)
        # An eigenvalue that is zero in exact arithmetic comes out as rounding noise of this size.
        positive = values > np.finfo(np.float64).eps * len(values) * np.abs(values).max()
        if not positive.any():
            raise InputError(
                "no direction has a positive covariance across the two views, so nothing can be learned; "
                f"the largest eigenvalue is {values[0]:.3g}"
            )
        return cls(spectrum=values[positive], basis=vectors.T[positive], mean=mean, dim=int(dim))

    @property
    def n_modes(self) -> int:
        """How many directions are ever learned."""
        return min(self.dim, len(self.spectrum))

    @property
    def gamma(self) -> Array:
        """Eigenvalues of the directions that are learned, in the order of learning, shape ``(n_modes,)``."""
        return self.spectrum[: self.n_modes]

    @property
    def directions(self) -> Array:
        """Unit eigenvectors that are learned, as rows, shape ``(n_modes, n_features)``."""
        return self.basis[: self.n_modes]

    @property
    def widths(self) -> Array:
        r"""Time of each rise from 10 % to 90 %, $\log 81 / (8 \gamma_j)$, shape ``(n_modes,)``."""
        return np.asarray(np.log(81) / (8 * self.gamma))

    @property
    def plateaus(self) -> Array:
        """Loss before the first step, between the steps and after the last, shape ``(n_modes + 1,)``."""
        return self.dim - np.arange(self.n_modes + 1, dtype=np.float64)

    @property
    def step_time_spread(self) -> Array:
        r"""Standard deviation of the step times between random Gaussian initialisations, ``(n_modes,)``.

        $\sqrt{\psi'((d - j + 1) / 2)} / (8 \gamma_j)$, whatever the scale of the initialisation: the
        logarithm of a $\chi^2_k$ variable has variance $\psi'(k / 2)$.
        """
        return np.asarray(np.sqrt(polygamma(1, self._degrees / 2)) / (8 * self.gamma))

    def initial_scales(self, *, weights0: ArrayLike | None = None, init_std: float | None = None) -> Array:
        r"""Return the initial scale $s_j(0)$ from which each direction effectively starts.

        With the weights given, $s_j(0) = |R_{jj}|$ of $W(0) V = QR$: of its column a direction keeps the part
        orthogonal to those that have grown before. For random weights $R_{jj}^2 \sim \sigma^2
        \chi^2_{d-j+1}$, and the value returned is the geometric mean $\sigma \sqrt{2 \exp \psi((d-j+1)/2)}$,
        so that the step times computed from it are the expected ones.

        Args:
            weights0: initial weights ``W``, shape ``(dim, n_features)``; or
            init_std: standard deviation of independent Gaussian weights, positive.

        Returns:
            Shape ``(n_modes,)``, in the unit of the weights.

        Raises:
            InputError: not exactly one of the two given, wrong shape, not finite, or not positive.
        """
        if (weights0 is None) == (init_std is None):
            raise InputError("exactly one of weights0 and init_std must be given")
        if weights0 is not None:
            amplitudes = self._weights(weights0) @ self.directions.T
            return np.asarray(np.abs(np.diag(np.linalg.qr(amplitudes, mode="r"))))
        assert init_std is not None
        if not 0 < init_std < np.inf:
            raise InputError(f"init_std must be positive and finite, got {init_std}")
        return np.asarray(init_std * np.sqrt(2 * np.exp(psi(self._degrees / 2))))

    def step_times(self, *, weights0: ArrayLike | None = None, init_std: float | None = None) -> Array:
        r"""Return the time at which each eigenvalue of ``C`` passes one half.

        $\tau_j = \log(1 / \lambda_j(0) - 1) / (8 \gamma_j)$ with $\lambda_j(0) = \gamma_j s_j(0)^2$.

        The formula lets direction $j$ compete only with those before it. Where the next eigenvalue is close
        (say $\gamma_{j+1} > 0.9\, \gamma_j$) the larger of two initial amplitudes may win, and the step
        comes earlier; :meth:`competing_steps` accounts for that.

        Args:
            weights0: see :meth:`initial_scales`.
            init_std: see :meth:`initial_scales`.

        Returns:
            Times, shape ``(n_modes,)``. Infinite for a direction that is absent from the initial weights,
            negative for one that starts above one half (minus infinity from 1 upwards).

        >>> pairs = [[2.0], [-2.0]]
        >>> theory = StepwiseTheory.from_pairs(pairs, pairs, dim=1)     # gamma = 4
        >>> theory.step_times(weights0=[[0.005]]).round(4)              # log(1e4 - 1) / 32
        array([0.2878])
        """
        log_initial = self._log_initial(weights0, init_std)
        with np.errstate(divide="ignore", over="ignore"):
            log_left = np.log(np.maximum(1 - np.exp(log_initial), 0))
            return np.asarray((log_left - log_initial) / (8 * self.gamma))

    def competing_steps(self, weights0: ArrayLike) -> CompetingSteps:
        """Return the steps with every direction competing, in the order in which they come.

        Unlike :meth:`step_times` this holds for close eigenvalues too, where a step may come earlier and
        learn a mixture of directions; see :func:`symdyn_ssl.competition.competing_steps`.

        Args:
            weights0: initial weights ``W``, shape ``(dim, n_features)``.

        Returns:
            Times, shape ``(n_modes,)``, and the trained encoder up to rotation, ``(n_modes, n_features)``.
        """
        steps = competing_steps(self._weights(weights0) @ self.basis.T, self.spectrum)
        return CompetingSteps(steps.times, steps.encoder @ self.basis)

    def eigenvalues(
        self, t: ArrayLike, *, weights0: ArrayLike | None = None, init_std: float | None = None
    ) -> Array:
        r"""Return the eigenvalues of the embeddings' cross-view covariance at time ``t``.

        $\lambda_j(t) = 1 / (1 + (\lambda_j(0)^{-1} - 1) e^{-8 \gamma_j t})$: exact where the rows of the
        initial weights are aligned with the directions, otherwise to leading order in the initial scale.

        Args:
            t: one time or an array of them, at least 0; learning rate times steps.
            weights0: see :meth:`initial_scales`.
            init_std: see :meth:`initial_scales`.

        Returns:
            Shape ``(*t.shape, n_modes)``.
        """
        times = np.asarray(t, dtype=np.float64)
        if not (np.isfinite(times) & (times >= 0)).all():
            raise InputError("t must be finite and at least 0")
        log_initial = self._log_initial(weights0, init_std)
        # A direction that starts at zero stays there: the exponential is infinite at every time.
        with np.errstate(over="ignore"):
            left = np.exp(-8 * self.gamma * times[..., None] - log_initial)
            return np.asarray(1 / (1 + (1 - np.exp(log_initial)) * left))

    def loss(
        self, t: ArrayLike, *, weights0: ArrayLike | None = None, init_std: float | None = None
    ) -> Array:
        r"""Return the loss at time ``t``: $\sum_j (1 - \lambda_j(t))^2$, plus 1 per dimension never learned.

        Args:
            t: see :meth:`eigenvalues`.
            weights0: see :meth:`initial_scales`.
            init_std: see :meth:`initial_scales`.

        Returns:
            Shape of ``t``.
        """
        rising = self.eigenvalues(t, weights0=weights0, init_std=init_std)
        return np.asarray(((1 - rising) ** 2).sum(axis=-1) + (self.dim - self.n_modes))

    def embed(self, x: ArrayLike) -> Array:
        r"""Return the embedding that a small initialisation ends at: $f_j(x) = \gamma_j^{-1/2} v_j^\top x$.

        The training ends at this up to a rotation of the outputs. Of all encoders of zero loss it has the
        smallest weights, $\|W\|_F^2 = \sum_j 1 / \gamma_j$.

        Args:
            x: samples, shape ``(n_samples, n_features)``.

        Returns:
            Shape ``(n_samples, n_modes)``.

        Raises:
            InputError: wrong number of features, or not finite.
        """
        samples = as_samples("x", x)
        if samples.shape[1] != len(self.mean):
            raise InputError(f"x must have {len(self.mean)} features, got {samples.shape[1]}")
        return np.asarray((samples - self.mean) @ self.directions.T / np.sqrt(self.gamma))

    def _log_initial(self, weights0: ArrayLike | None, init_std: float | None) -> Array:
        """Return the logarithm of each initial eigenvalue; the eigenvalue of a tiny start underflows."""
        scales = self.initial_scales(weights0=weights0, init_std=init_std)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.gamma) + 2 * np.log(scales))

    @property
    def _degrees(self) -> Array:
        """Dimensions of the embedding that are still free when each direction's turn comes."""
        return self.dim - np.arange(self.n_modes, dtype=np.float64)

    def _weights(self, weights0: ArrayLike) -> Array:
        weights = as_samples("weights0", weights0)
        expected = (self.dim, len(self.mean))
        if weights.shape != expected:
            raise InputError(f"weights0 must have shape (dim, n_features)={expected}, got {weights.shape}")
        return weights


def optimiser_steps(
    time: ArrayLike, *, learning_rate: float, momentum: float = 0.0, gamma: ArrayLike | None = None
) -> Array:
    r"""Convert gradient-flow time to steps of gradient descent with heavy-ball momentum.

    $k = t (1 - \mu) / \eta$ for small steps. With ``gamma`` the growth that a finite step really makes is
    used: a small amplitude obeys $w_{k+1} = (1 + \mu + 4 \gamma \eta) w_k - \mu w_{k-1}$ and so grows by the
    larger root $z$ of $z^2 - (1 + \mu + 4 \gamma \eta) z + \mu = 0$ per step, hence
    $k = 4 \gamma t / \log z$.

    Args:
        time: times, any shape.
        learning_rate: positive.
        momentum: in [0, 1), of ``torch.optim.SGD`` with ``dampening=0``.
        gamma: eigenvalue of the direction that each time belongs to, broadcast against ``time``.

    Returns:
        Number of steps, not rounded.

    Raises:
        InputError: a learning rate or momentum out of range.

    >>> optimiser_steps([2.0], learning_rate=0.01, momentum=0.9)
    array([20.])
    >>> optimiser_steps([2.0], learning_rate=0.25, gamma=1.0).round(3)         # 8 / log 2
    array([11.542])
    """
    _check_optimiser(learning_rate, momentum)
    times = np.asarray(time, dtype=np.float64)
    if gamma is None:
        return np.asarray(times * (1 - momentum) / learning_rate)
    push = 4 * np.asarray(gamma, dtype=np.float64) * learning_rate
    # z - 1, written so that nothing cancels: the positive root of y^2 + (1 - momentum - push) y - push = 0.
    half = (1 - momentum - push) / 2
    root = np.hypot(half, np.sqrt(push))
    gain = np.where(half > 0, push / (root + np.abs(half)), root - half)
    return np.asarray(4 * np.asarray(gamma) * times / np.log1p(gain))


def largest_learning_rate(gamma: ArrayLike, *, momentum: float = 0.0) -> float:
    r"""Return $(1 + \mu) / (4 \gamma_1)$, the learning rate above which descent leaves the learned solution.

    The curvature of the loss at its minimum is at most $8 \gamma_1$ (along the first direction's own scale),
    and heavy-ball descent is stable below $2 (1 + \mu)$ over the curvature.

    Args:
        gamma: eigenvalues that are learned; the largest counts.
        momentum: in [0, 1).

    >>> largest_learning_rate([0.5, 0.25])
    0.5
    """
    _check_optimiser(1.0, momentum)
    return (1 + momentum) / (4 * float(np.max(gamma)))


def _check_optimiser(learning_rate: float, momentum: float) -> None:
    if not 0 < learning_rate < np.inf:
        raise InputError(f"learning_rate must be positive and finite, got {learning_rate}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")


def _eigenpairs(x: Array, x_prime: Array) -> tuple[Array, Array]:
    """Return eigenvalues, descending, and eigenvectors as columns, of the contrastive covariance."""
    n, n_features = x.shape
    if n_features > 2 * n:
        # All samples lie in a space of 2n dimensions: work there, never with a matrix of features squared.
        basis, coordinates = np.linalg.qr(np.vstack([x, x_prime]).T)
        values, vectors = _eigenpairs(coordinates.T[:n], coordinates.T[n:])
        vectors = basis @ vectors
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            covariance = contrastive_covariance(x, x_prime)
        if not np.isfinite(covariance).all():
            raise InputError("the covariance of the views overflows; rescale the data")
        ascending, vectors = np.linalg.eigh(covariance)
        values, vectors = ascending[::-1], vectors[:, ::-1]
    # Eigenvectors are defined up to sign: make the largest component positive.
    peaks = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return values, vectors * np.where(peaks < 0, -1.0, 1.0)
