r"""Minibatch SGD on linear regression, exactly: where it settles, how it fluctuates, when it diverges.

The loss of a sample is :math:`\ell=\frac12(w^Tx-y)^2` with :math:`x\sim N(0,A)`,
:math:`y=u^Tx+\epsilon`, :math:`\mathrm{Var}\,\epsilon=\sigma^2`, and every batch is fresh. With weight decay
:math:`w^T\gamma w` the drift is :math:`K(w-w_*)`, :math:`K=A+2\gamma`, :math:`w_*=K^{-1}Au`; without,
:math:`w_*=u`. The gradient noise depends on the parameters,

.. math:: C(w)=\tfrac1S\big(Aee^TA+(e^TAe)A+\sigma^2A\big),\quad e=w-u,

and the stationary covariance :math:`\Sigma` of w solves, with :math:`M=\Lambda K` and momentum :math:`\mu`,

.. math:: (1-\mu)(M\Sigma+\Sigma M^T)-\tfrac{1+\mu^2}{1-\mu^2}M\Sigma M^T
          +\tfrac{\mu}{1-\mu^2}(M^2\Sigma+\Sigma M^{T2})=\Lambda\,\mathbb E[C]\,\Lambda

together with :math:`\mathbb E[C]`, which depends on :math:`\Sigma`: nothing is expanded in the learning rate.

**Numerics.** The substitution :math:`w=\Lambda^{1/2}v` turns a symmetric positive definite matrix of
learning rates into learning rate one with :math:`A'=\Lambda^{1/2}A\Lambda^{1/2}` and
:math:`K'=\Lambda^{1/2}K\Lambda^{1/2}`. If these two commute (always without weight decay, whether
:math:`\Lambda` commutes with A or not) the equations separate and the answer is closed; otherwise the linear
equation for :math:`\Sigma` is solved by GMRES.

Source: arXiv 2102.05375, covariance of noise and parameters for label noise and for L2 regularisation,
preconditioning; its equations were re-derived, and joined into one that has labels' noise, decay, momentum
and matrices of learning rates at once.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator, eigs, gmres

from symdyn_core.dynamics.stationary import damping, symmetric
from symdyn_core.errors import InputError

Array = NDArray[np.float64]

RANK_TOLERANCE = 1e-12  # eigenvalues of A below this fraction of the largest are zero
COMMUTING_TOLERANCE = 1e-10  # of off-diagonal entries in the common eigenbasis


@dataclass(frozen=True, eq=False)
class LinearSGD:
    r"""The stationary state of SGD on linear regression with fresh Gaussian samples.

    Args:
        second_moment: :math:`A=\mathbb E[xx^T]`, shape (d, d), symmetric, positive semi-definite.
        learning_rate: :math:`\eta>0`, or a matrix :math:`\Lambda` of them, shape (d, d), symmetric and
            positive definite.
        batch_size: :math:`S\ge1`.
        label_noise_variance: :math:`\sigma^2\ge0`.
        momentum: :math:`\mu` in [0, 1) of :math:`m\leftarrow\mu m+g`, :math:`w\leftarrow w-\Lambda m`.
        weight_decay: :math:`\gamma` of the penalty :math:`\gamma\|w\|^2`, half of torch's; may be negative.
            Or a symmetric matrix, of :math:`w^T\gamma w`.
        target: :math:`u`, shape (d,), or :math:`\mathbb E[uu^T]`, shape (d, d); needed with decay only.

    Directions without data (null vectors of A) and without decay never move: their covariance is given as 0.

    Raises:
        InputError: a matrix that is not square, finite, symmetric or definite as required, or a number out of
            range. A learning rate beyond the stability edge is an error when a stationary value is asked.

    One parameter, :math:`\Sigma=\eta\sigma^2/(S(2-\eta a(1+2/S)))`, diverging at :math:`\eta a=2S/(S+2)`:

    >>> sgd = LinearSGD([[1.0]], learning_rate=0.5, batch_size=2, label_noise_variance=1.0)
    >>> covariance, loss = sgd.param_covariance()[0, 0], sgd.train_loss()
    >>> [round(float(value), 9) for value in (covariance, loss, sgd.max_learning_rate())]
    [0.25, 0.625, 1.0]
    """

    second_moment: ArrayLike
    learning_rate: float | ArrayLike
    batch_size: int
    label_noise_variance: float = 0.0
    momentum: float = 0.0
    weight_decay: float | ArrayLike = 0.0
    target: ArrayLike | None = None

    def __post_init__(self) -> None:
        moment = symmetric("second_moment", self.second_moment)
        lowest, highest = np.linalg.eigvalsh(moment)[[0, -1]]
        if lowest < -RANK_TOLERANCE * abs(highest) or highest <= 0:
            raise InputError(
                f"second_moment must be positive semi-definite and not zero, got the eigenvalue {lowest:.6g}"
            )
        size = len(moment)
        rates = self._rates
        if rates.shape != (size, size):
            raise InputError(f"learning_rate must be a number or of shape {(size, size)}, got {rates.shape}")
        if not (lowest := np.linalg.eigvalsh(rates)[0]) > 0:
            raise InputError(
                f"learning_rate must be > 0 or positive definite, got the eigenvalue {lowest:.6g}"
            )
        if not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise InputError(f"batch_size must be a whole number >= 1, got {self.batch_size!r}")
        if not (math.isfinite(self.label_noise_variance) and self.label_noise_variance >= 0):
            raise InputError(f"label_noise_variance must be >= 0, got {self.label_noise_variance}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum}")
        if self._decay.shape != (size, size):
            raise InputError(
                f"weight_decay must be a number or of shape {(size, size)}, got {self._decay.shape}"
            )
        if self.target is None:
            if self._decay.any():
                raise InputError("target must be given with a weight decay: it is pulled away from it")
        elif np.shape(self.target) not in ((size,), (size, size)):
            raise InputError(
                f"target must have shape {(size,)} or {(size, size)}, got {np.shape(self.target)}"
            )
        elif not np.isfinite(np.asarray(self.target, dtype=float)).all():
            raise InputError("target must be finite, got NaN or infinite entries")

    @classmethod
    def damped_newton(
        cls,
        second_moment: ArrayLike,
        learning_rate: float,
        batch_size: int,
        label_noise_variance: float = 0.0,
        momentum: float = 0.0,
    ) -> "LinearSGD":
        r"""Precondition with the inverse Hessian, :math:`\Lambda=\eta A^{-1}`.

        The covariance is :math:`\frac{\eta\sigma^2}{gS-\eta d}A^{-1}`,
        :math:`g=2(1-\mu)-\big(\frac{1-\mu}{1+\mu}+\frac1S\big)\eta`: the edge falls with the dimension d.

        Raises:
            InputError: as the constructor, or a second moment without inverse.

        >>> newton = LinearSGD.damped_newton([[4.0]], 0.5, batch_size=2, label_noise_variance=1.0)
        >>> round(float(newton.param_covariance()[0, 0]), 9)  # 0.5 / (2 (2 - 0.75) - 0.5) / 4
        0.0625
        """
        moment = symmetric("second_moment", second_moment)
        lowest, highest = np.linalg.eigvalsh(moment)[[0, -1]]
        if lowest <= RANK_TOLERANCE * highest:
            raise InputError(f"second_moment must be positive definite, got the eigenvalue {lowest:.6g}")
        rates = learning_rate * np.linalg.inv(moment)
        return cls(moment, (rates + rates.T) / 2, batch_size, label_noise_variance, momentum)

    # --- what a user asks -----------------------------------------------------------------------------------

    def mean_params(self) -> Array:
        r"""Return where the parameters settle on average, :math:`w_*=(A+2\gamma)^{-1}Au`, shape (d,).

        Raises:
            InputError: no target vector was given.
        """
        if self.target is None or np.ndim(self.target) != 1:
            raise InputError("mean_params needs the target as a vector")
        target = np.asarray(self.target, dtype=float)
        mean: Array = target - self._pull @ target
        return mean

    def param_covariance(self) -> Array:
        r"""Return :math:`\Sigma=\mathrm{Cov}[w]`, shape (d, d).

        Without decay :math:`\frac{\sigma^2}{S}\big(1+\frac{\kappa}{S}\big)\Lambda G^{-1}`,
        :math:`G=2(1-\mu)I-\big(\frac{1-\mu}{1+\mu}+\frac1S\big)\Lambda A`, :math:`1+\kappa/S=1/(1-q)`,
        :math:`q=\mathrm{Tr}[\Lambda AG^{-1}]/S`.

        Raises:
            InputError: there is no stationary covariance; the message says which condition fails.
        """
        return self._stationary[0].copy()

    def noise_covariance(self, params: ArrayLike | None = None) -> Array:
        r"""Return the covariance of the minibatch gradient, shape (d, d).

        Args:
            params: w, where it is wanted, shape (d,); the average over the stationary state if left out.

        Raises:
            InputError: no stationary state, or parameters without a target to compare them with.

        >>> sgd = LinearSGD([[1.0]], 0.5, batch_size=2, label_noise_variance=1.0, target=[3.0])
        >>> float(sgd.noise_covariance([4.0])[0, 0])  # (1 + 1 + 1) / 2
        1.5
        """
        if params is None:
            return self._noise(self._stationary[0] + self._offset)
        if self.target is None or np.ndim(self.target) != 1:
            raise InputError("noise_covariance at given parameters needs the target as a vector")
        if np.shape(params) != (len(self._moment),):
            raise InputError(f"params must have shape ({len(self._moment)},), got {np.shape(params)}")
        error = np.asarray(params, dtype=float) - np.asarray(self.target, dtype=float)
        return self._noise(np.outer(error, error))

    def train_loss(self) -> float:
        r"""Return the mean loss of a sample, :math:`\frac12(\sigma^2+\mathrm{Tr}[A\,\mathbb E\,ee^T])`.

        The penalty is not part of it. Without decay it is :math:`\sigma^2/(2(1-q))`.

        Raises:
            InputError: there is no stationary covariance.
        """
        return self._stationary[1] / 2

    def test_loss(self) -> float:
        r"""Return the mean loss on labels without noise, :math:`\frac12\mathrm{Tr}[A\,\mathbb E\,ee^T]`.

        Raises:
            InputError: there is no stationary covariance.

        Fifty samples at once leave nothing but the bias of the decay, here half of the target:

        >>> round(LinearSGD([[1.0]], 1e-9, 50, weight_decay=0.5, target=[1.0]).test_loss(), 6)
        0.125
        """
        return (self._stationary[1] - self.label_noise_variance) / 2

    def is_stable(self) -> bool:
        """Return whether mean and covariance of the parameters converge."""
        return not self._failure(1.0)

    def max_learning_rate(self) -> float | Array:
        """Return the learning rate at which the covariance diverges, everything else held fixed.

        Returns:
            A number; for a matrix of learning rates, the multiple of it that lies on the edge. 0 if the
            penalised loss has no minimum, so that no learning rate is stable.
        """
        factor = self._largest_factor()
        return factor * self._rates if np.ndim(self.learning_rate) else factor * float(self._rates[0, 0])

    def scaling_law_violation(self, factor: float) -> float:
        r"""Return the relative change of the loss gap if learning rate and batch size both grow by a factor.

        The linear scaling rule says 0. It fails at small S, through :math:`1+\kappa/S`, and at large
        learning rates, through G, which holds them without S.

        Args:
            factor: > 0, such that factor times batch size is a whole number.

        Raises:
            InputError: a batch size that is not whole, no label noise, or one of the two is not stable.

        One parameter at (0.1, 1) has :math:`\mathrm{Tr}[A\Sigma]=0.1/1.7`; at (1, 10), :math:`0.1/0.8`:

        >>> round(LinearSGD([[1.0]], 0.1, 1, 1.0).scaling_law_violation(10.0), 9)  # 1.7 / 0.8 - 1
        1.125
        """
        batch_size = self.batch_size * factor
        whole = math.isfinite(batch_size) and abs(batch_size - round(batch_size)) <= 1e-9 * batch_size
        if not (factor > 0 and whole):
            raise InputError(
                f"factor must be > 0 and give a whole batch size, got {factor} x {self.batch_size}"
            )
        if self.label_noise_variance == 0:
            raise InputError("label_noise_variance must be > 0: without it there is no loss gap to scale")
        rates = factor * self._rates if np.ndim(self.learning_rate) else factor * float(self._rates[0, 0])
        scaled = replace(self, learning_rate=rates, batch_size=round(batch_size))
        return scaled.test_loss() / self.test_loss() - 1

    # --- the matrices ---------------------------------------------------------------------------------------

    @cached_property
    def _moment(self) -> Array:
        return symmetric("second_moment", self.second_moment)

    @cached_property
    def _rates(self) -> Array:
        return _matrix("learning_rate", self.learning_rate, len(self._moment))

    @cached_property
    def _decay(self) -> Array:
        return _matrix("weight_decay", self.weight_decay, len(self._moment))

    @cached_property
    def _pull(self) -> Array:
        """(A + 2 decay)^-1 2 decay, which takes u to u - w*."""
        curvature = self._moment + 2 * self._decay
        return np.asarray(np.linalg.pinv(curvature, rcond=RANK_TOLERANCE) @ (2 * self._decay))

    @cached_property
    def _offset(self) -> Array:
        """Second moment of u - w*."""
        if self.target is None:
            return np.zeros_like(self._moment)
        target = np.asarray(self.target, dtype=float)
        second = np.outer(target, target) if target.ndim == 1 else symmetric("target", target)
        return self._pull @ second @ self._pull.T

    def _noise(self, error: Array) -> Array:
        """Covariance of the minibatch gradient at a second moment of the error w - u."""
        moment = self._moment
        level = float((moment * error).sum()) + self.label_noise_variance
        return (moment @ error @ moment + level * moment) / self.batch_size

    # --- the solution, in coordinates w = basis v with learning rate one ------------------------------------

    @cached_property
    def _modes(self) -> "_Modes":
        values, vectors = np.linalg.eigh(self._rates)
        root = vectors * np.sqrt(values) @ vectors.T
        data, drift = root @ self._moment @ root, root @ (self._moment + 2 * self._decay) @ root
        # A generic combination has the common eigenvectors even where one of the two is degenerate.
        scale = np.abs(np.linalg.eigvalsh(data)).max() / max(np.abs(np.linalg.eigvalsh(drift)).max(), 1e-300)
        rotation = np.linalg.eigh(data + 0.5 * (math.sqrt(5) - 1) * scale * drift)[1]
        turned = [rotation.T @ matrix @ rotation for matrix in (data, drift)]
        loose = max(
            np.abs(matrix - np.diag(np.diag(matrix))).max() / np.abs(matrix).max() for matrix in turned
        )
        if commuting := bool(loose <= COMMUTING_TOLERANCE):
            turned = [np.diag(np.diag(matrix)) for matrix in turned]
        else:
            rotation = np.linalg.eigh(drift)[1]
            turned = [rotation.T @ data @ rotation, np.diag(np.diag(rotation.T @ drift @ rotation))]
        back = np.linalg.inv(root @ rotation)
        curvature = np.diag(turned[1]).copy()
        curvature[np.abs(curvature) < RANK_TOLERANCE * np.abs(curvature).max()] = 0.0
        return _Modes(root @ rotation, turned[0], curvature, back @ self._offset @ back.T, commuting)

    @cached_property
    def _moving(self) -> NDArray[np.bool_]:
        """Which directions have data or decay."""
        a = np.diag(self._modes.data)
        return np.asarray((a > RANK_TOLERANCE * a.max()) | (self._modes.curvature != 0))

    @property
    def _lowest_curvature(self) -> float:
        return float(self._modes.curvature[self._moving].min())

    def _failure(self, factor: float) -> str:
        """Return which condition of stability fails at a multiple of the learning rates, or ''."""
        modes, mu, size = self._modes, self.momentum, self.batch_size
        k, a = factor * modes.curvature, factor * np.diag(modes.data)
        if self._lowest_curvature <= 0:
            return f"the penalised loss has no minimum: its lowest curvature is {self._lowest_curvature:.6g}"
        moving = self._moving
        own = a**2 / size if modes.commuting else np.zeros_like(a)
        room = 2 * (1 - mu) - (1 - mu) / (1 + mu) * k[moving] - own[moving] / k[moving]
        if (room <= 0).any():
            return f"G > 0 fails: its smallest eigenvalue is {room.min():.6g}"
        q = self._feedback(factor)
        return "" if q < 1 else f"q < 1 fails: the noise that the parameters' own spread makes is q = {q:.6g}"

    def _feedback(self, factor: float) -> float:
        """Return q, by how much the spread of the parameters reproduces itself through the noise it makes."""
        modes, size = self._modes, self.batch_size
        a, left = factor * np.diag(modes.data), self._damping(factor)
        if modes.commuting:
            room = np.diag(left) - a**2 / size
            return float(sum(a[i] ** 2 / room[i] for i in np.flatnonzero(a)) / size)
        operator = LinearOperator((a.size**2, a.size**2), matvec=lambda v: self._reproduce(v, factor))
        start = np.eye(a.size).ravel()
        return float(np.abs(eigs(operator, k=1, v0=start, return_eigenvectors=False)).max())

    def _reproduce(self, flat: Array, factor: float) -> Array:
        """Return the covariance made by the noise that a covariance makes."""
        data = factor * self._modes.data
        error = flat.reshape(data.shape)
        noise = (data @ error @ data + (data * error).sum() * data) / self.batch_size
        made: Array = noise / self._damping(factor)
        return made.ravel()

    def _damping(self, factor: float) -> Array:
        """What multiplies the covariance in its equation; 1 where nothing moves and there is no noise."""
        left = damping(factor * self._modes.curvature, self.momentum)
        return np.where(left == 0, 1.0, left)

    @cached_property
    def _stationary(self) -> tuple[Array, float]:
        """The covariance, and label noise plus Tr[A E ee^T]."""
        if failure := self._failure(1.0):
            edge = self._largest_factor()
            where = f"{1 / edge:.4g} times the stability edge" if edge else "or any other"
            raise InputError(f"no stationary covariance at this learning_rate, {where}: {failure}")
        modes, size, sigma2 = self._modes, self.batch_size, self.label_noise_variance
        offset, data = modes.offset, modes.data
        if modes.commuting:
            a = np.diag(data)
            seen = np.outer(a, a) != 0
            room = np.where(seen, self._damping(1.0) - np.outer(a, a) / size, 1.0)
            of_offset = np.outer(a, a) * offset / (size * room)
            per_level = np.diag(a) / (size * room)
            level = (sigma2 + (data * (offset + of_offset)).sum()) / (1 - (data * per_level).sum())
            spread = of_offset + level * per_level
        else:
            noise = data @ offset @ data + (sigma2 + (data * offset).sum()) * data
            shape = (data.size, data.size)
            system = LinearOperator(shape, matvec=lambda v: v - self._reproduce(v, 1.0))
            source = (noise / size / self._damping(1.0)).ravel()
            found, unfinished = gmres(system, source, rtol=1e-13, atol=0.0, restart=100, maxiter=20)
            if unfinished:
                raise InputError(
                    f"the equation of the covariance is too close to the stability edge: {unfinished}"
                )
            spread = found.reshape(data.shape)
            level = sigma2 + float((data * (spread + offset)).sum())
        covariance = modes.basis @ spread @ modes.basis.T
        return (covariance + covariance.T) / 2, float(level)

    def _largest_factor(self) -> float:
        """Return the multiple of the learning rates that lies on the edge."""
        modes, mu = self._modes, self.momentum
        if self._lowest_curvature <= 0:
            return 0.0
        # The feedback q grows with the factor, and passes 1 before the mean diverges.
        low, high = 0.0, 2 * (1 + mu) / float(modes.curvature.max())
        if modes.commuting:
            a, k = np.diag(modes.data), modes.curvature
            seen = k > 0
            shrink = (1 - mu) / (1 + mu) * k[seen] ** 2 + a[seen] ** 2 / self.batch_size
            high = float((2 * (1 - mu) * k[seen] / shrink).min())
        for _ in range(200):
            middle = (low + high) / 2
            if middle in (low, high):
                break
            low, high = (low, middle) if self._failure(middle) else (middle, high)
        return low


@dataclass(frozen=True, eq=False)
class _Modes:
    """Coordinates v, w = basis v, in which the learning rate is one and the drift diagonal."""

    basis: Array
    data: Array  # A, shape (d, d); diagonal if everything commutes
    curvature: Array  # eigenvalues of K, shape (d,)
    offset: Array
    commuting: bool


def _matrix(what: str, value: float | ArrayLike, size: int) -> Array:
    """Return a number as that multiple of the identity, and a matrix checked."""
    if np.ndim(value):
        return symmetric(what, value)
    number = float(np.asarray(value))
    if not math.isfinite(number):
        raise InputError(f"{what} must be finite, got {number}")
    return number * np.eye(size)
