r"""The lasso as a scikit-learn estimator, for losses that lasso solvers do not accept.

Any differentiable loss of a linear model, L1-penalised, by minimising over two factors of each coefficient
(see :mod:`symdyn_core.symmetry.sparsity`). For squared error, logistic, Huber or Poisson loss, prefer
scikit-learn, celer or skglm: coordinate descent with screening gives the same coefficients tens to hundreds
of times faster. What remains for this one is the loss nobody has written a solver for, and teaching.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.symmetry.penalty import kkt_violation

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["lbfgs", "adam"]

_START = 0.3  # standard deviation of the factors' random start, in the units of sqrt(coefficient)
_TAU = 1e-3  # relative size from which a coefficient counts as non-zero before the polish decides
_FLOOR = 1e-8  # absolute size below which it never does
_POLISH_ROUNDS = 50


class SpredLasso(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    r"""L1-penalised linear model with any differentiable loss.

    $$\min_{w,b}\ \ell(Xw+b,\ y)+\alpha\|w\|_1$$

    solved over $w=u\odot v$ with the smooth penalty $\frac\alpha2(\|u\|^2+\|v\|^2)$. With ``polish`` the
    support and signs so found start an active-set search on $w$ itself, which ends at the exact minimum with
    exact zeros; without it coefficients below a thousandth of the largest become zero, which costs accuracy.

    It finds a global minimum if the loss is convex in its first argument. For squared error use
    ``sklearn.linear_model.Lasso``: the same result, tens to hundreds of times faster.

    Args:
        alpha: strength of the penalty, > 0; that of ``Lasso`` under the default loss.
        loss: ``loss(prediction, y)`` of two float64 tensors of shape (n_samples,), returning a scalar and
            differentiable; half the mean squared error by default.
        fit_intercept: whether to fit an intercept, which is not penalised.
        solver: ``"lbfgs"`` (full-batch quasi-Newton) or ``"adam"`` (with a cosine schedule).
        polish: whether to finish on the support.
        max_iter: iterations of L-BFGS (at most) or of Adam (exactly).
        learning_rate: of Adam.
        tol: a violation of the optimality conditions above ``tol * alpha`` gives a ``ConvergenceWarning``.
        random_state: of the start; an int, a ``RandomState`` or None.

    Attributes:
        coef_: shape (n_features,).
        intercept_: a float; 0.0 without intercept.
        n_iter_: iterations of the solver.
        kkt_residual_: largest violation of the optimality conditions of ``coef_``, in units of the gradient.
        n_features_in_: number of features seen.

    Source:
        arXiv:2210.01212; the polish is ours.

    >>> X, y = [[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]], [4.0, 0.5, -4.0, -0.5]
    >>> SpredLasso(alpha=0.5).fit(X, y).coef_.round(6).tolist()  # soft thresholding at 0.25
    [1.75, 0.0]
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        loss: Loss | None = None,
        fit_intercept: bool = True,
        solver: Solver = "lbfgs",
        polish: bool = True,
        max_iter: int = 2000,
        learning_rate: float = 0.1,
        tol: float = 1e-4,
        random_state: Any = 0,
    ) -> None:
        self.alpha = alpha
        self.loss = loss
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.polish = polish
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "SpredLasso":
        """Fit the coefficients.

        Args:
            X: features, shape (n_samples, n_features).
            y: targets, shape (n_samples,).

        Returns:
            The estimator itself.

        Raises:
            InputError: a parameter out of range, or a loss that is not a finite, differentiable scalar.
        """
        for name in ("alpha", "learning_rate", "tol"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be finite and > 0, got {getattr(self, name)}")
        if self.max_iter < 1:
            raise InputError(f"max_iter must be at least 1, got {self.max_iter}")
        if self.solver not in get_args(Solver):
            raise InputError(f"solver must be one of {', '.join(get_args(Solver))}, got {self.solver!r}")
        features, target = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        target = np.asarray(target, dtype=np.float64)
        problem = _Problem(features, target, self.loss or half_squared_error, self)
        weight, bias, self.n_iter_ = problem.solve_factors(check_random_state(self.random_state))
        magnitude = np.abs(weight)
        weight = np.where(magnitude > max(_FLOOR, _TAU * magnitude.max()), weight, 0.0)
        if self.polish:
            weight, bias = problem.polish(weight, bias)
        self.kkt_residual_ = problem.kkt_residual(weight, bias)
        if self.kkt_residual_ > self.tol * self.alpha:
            warnings.warn(
                f"optimality conditions violated by {self.kkt_residual_:.3g} > tol * alpha = "
                f"{self.tol * self.alpha:.3g}; raise max_iter{'' if self.polish else ' or set polish=True'}",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.coef_ = weight
        self.intercept_ = float(bias - problem.centre @ weight)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Return $Xw+b$, shape (n_samples,): with a custom loss, the loss's first argument."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(features @ self.coef_ + self.intercept_)


def half_squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    r"""Return $\frac{1}{2n}\sum_i(\hat y_i-y_i)^2$, the loss of scikit-learn's ``Lasso``.

    >>> half_squared_error(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])).item()
    1.0
    """
    return 0.5 * (prediction - y).square().mean()


class _Problem:
    """The penalised loss as a function of coefficients and intercept, features centred."""

    def __init__(self, X: Array, y: Array, loss: Loss, settings: SpredLasso) -> None:
        # A free intercept absorbs the centre, so centring only makes the problem better conditioned.
        self.centre = X.mean(axis=0) if settings.fit_intercept else np.zeros(X.shape[1])
        self.X, self.y, self.loss, self.settings = X - self.centre, torch.from_numpy(y.copy()), loss, settings
        self.alpha, self.n_features = float(settings.alpha), X.shape[1]
        self.start_bias = float(y.mean()) if settings.fit_intercept else 0.0

    def risk(self, weight: Array, bias: float) -> tuple[float, Array, float]:
        """Return the loss without penalty, its gradient in the coefficients and in the intercept."""
        prediction = torch.from_numpy(self.X @ weight + bias).requires_grad_()
        value = self.loss(prediction, self.y)
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.requires_grad:
            raise InputError("loss must return a scalar tensor that depends differentiably on the prediction")
        if not torch.isfinite(value):
            raise InputError(f"loss must be finite wherever the solver looks, got {value.item()}")
        (slope,) = torch.autograd.grad(value, prediction)
        residual = slope.numpy()
        return value.item(), self.X.T @ residual, float(residual.sum()) * self.settings.fit_intercept

    def factor_objective(self, theta: Array) -> tuple[float, Array]:
        """Return loss plus decay of the factors ``theta = (u, v, b)``, and the gradient."""
        u, v = theta[: self.n_features], theta[self.n_features : -1]
        value, slope, slope_bias = self.risk(u * v, theta[-1])
        decay = self.alpha / 2 * float(u @ u + v @ v)
        return value + decay, np.concatenate(
            [slope * v + self.alpha * u, slope * u + self.alpha * v, [slope_bias]]
        )

    def solve_factors(self, random: np.random.RandomState) -> tuple[Array, float, int]:
        """Minimise over the factors from a random start; return coefficients, intercept, iterations."""
        start = np.append(_START * random.standard_normal(2 * self.n_features), self.start_bias)
        theta, iterations = (self._lbfgs if self.settings.solver == "lbfgs" else self._adam)(start)
        return theta[: self.n_features] * theta[self.n_features : -1], float(theta[-1]), max(iterations, 1)

    def _lbfgs(self, start: Array) -> tuple[Array, int]:
        limit = self.settings.max_iter
        options = {"maxiter": limit, "maxfun": 3 * limit, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-9}
        found = minimize(self.factor_objective, start, jac=True, method="L-BFGS-B", options=options)
        return found.x, int(found.nit)

    def _adam(self, start: Array) -> tuple[Array, int]:
        theta = torch.nn.Parameter(torch.from_numpy(start))
        # The decay is part of the gradient handed over, hence coupled.
        optimizer = torch.optim.Adam([theta], lr=self.settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.settings.max_iter)
        for _ in range(self.settings.max_iter):
            theta.grad = torch.from_numpy(self.factor_objective(theta.detach().numpy())[1])
            optimizer.step()
            schedule.step()
        return theta.detach().numpy(), self.settings.max_iter

    def polish(self, weight: Array, bias: float) -> tuple[Array, float]:
        r"""Minimise on the support with signs held, then let coefficients in or turn, until none wants to.

        With signs $s$ held the penalty is the linear $\alpha s\cdot w$ on the orthant $s\odot w\ge 0$. Each
        round lowers the objective, so no support comes twice.
        """
        sign = np.sign(weight)
        for _ in range(_POLISH_ROUNDS):
            weight, bias = self._solve_orthant(sign, weight, bias)
            slope = self.risk(weight, bias)[1]
            entering = (weight == 0) & (np.abs(slope) > self.alpha * (1 + 1e-9))
            sign = np.where(entering, -np.sign(slope), np.sign(weight))
            if not entering.any():
                break
        return weight, bias

    def _solve_orthant(self, sign: Array, weight: Array, bias: float) -> tuple[Array, float]:
        active = np.flatnonzero(sign)

        def objective(part: Array) -> tuple[float, Array]:
            full = np.zeros(self.n_features)
            full[active] = part[:-1]
            value, slope, slope_bias = self.risk(full, part[-1])
            penalty = self.alpha * sign[active]
            return value + float(penalty @ part[:-1]), np.append(slope[active] + penalty, slope_bias)

        bounds = [(0.0, None) if s > 0 else (None, 0.0) for s in sign[active]] + [(None, None)]
        options = {"maxiter": 2000, "maxfun": 6000, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12}
        start = np.append(weight[active], bias)
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        full = np.zeros(self.n_features)
        full[active] = found.x[:-1]
        return full, float(found.x[-1])

    def kkt_residual(self, weight: Array, bias: float) -> float:
        """Return the largest violation of the optimality conditions."""
        _, slope, slope_bias = self.risk(weight, bias)
        violation = kkt_violation(torch.from_numpy(weight), torch.from_numpy(slope), self.alpha, tau=0.0)
        return max(violation, abs(slope_bias))
