"""The lasso as a scikit-learn estimator: the same minimum as coordinate descent, and losses beyond it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_core.symmetry.lasso import SpredLasso


def data(seed: int = 0, n: int = 40, p: int = 60) -> tuple[Any, Any]:
    random = numpy_generator(seed, "lasso")
    X = random.standard_normal((n, p)) * random.uniform(0.5, 2, p) + random.uniform(-3, 3, p)
    w = np.zeros(p)
    w[:5] = random.standard_normal(5) * 2
    return X, X @ w + 4 + 0.3 * random.standard_normal(n)


def logistic(prediction: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-y * prediction).mean()


def liblinear(X: Any, y: Any, alpha: float) -> Any:
    solver = LogisticRegression(
        l1_ratio=1.0,
        C=1 / (alpha * len(y)),
        solver="liblinear",
        fit_intercept=False,
        tol=1e-10,
        max_iter=10**5,
        random_state=0,
    )
    return solver.fit(X, y).coef_[0]


@parametrize_with_checks([SpredLasso(max_iter=300), SpredLasso(solver="adam", max_iter=100)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_accepts_the_estimator(estimator: Any, check: Any) -> None:
    state = np.random.get_state()  # noqa: NPY002  # some of scikit-learn's checks draw from the global generator
    check(estimator)
    np.random.set_state(state)  # noqa: NPY002


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.02, 1.2),
    fit_intercept=st.booleans(),
    solver=st.sampled_from(["lbfgs", "adam"]),
)
def test_it_ends_where_coordinate_descent_does(
    seed: int, share: float, fit_intercept: bool, solver: Any
) -> None:
    """Any strength from many features down to none, with columns of unequal scale and mean."""
    X, y = data(seed, n=25, p=30)
    centred, target = (X - X.mean(0), y - y.mean()) if fit_intercept else (X, y)
    alpha = share * float(np.abs(centred.T @ target).max()) / len(y)
    found = SpredLasso(alpha, fit_intercept=fit_intercept, solver=solver, max_iter=400).fit(X, y)
    reference = Lasso(
        alpha=alpha, fit_intercept=fit_intercept, tol=1e-13, max_iter=10**6, random_state=0
    ).fit(X, y)
    np.testing.assert_allclose(found.coef_, reference.coef_, atol=1e-5)
    assert found.intercept_ == pytest.approx(reference.intercept_, abs=1e-4)
    np.testing.assert_array_equal(found.coef_ != 0, np.abs(reference.coef_) > 1e-6 * (share < 1))


def test_without_polish_it_is_close_but_rounded() -> None:
    X, y = data()
    with pytest.warns(ConvergenceWarning, match="set polish=True"):
        rough = SpredLasso(0.05, polish=False).fit(X, y)
    fine = SpredLasso(0.05).fit(X, y)
    np.testing.assert_allclose(rough.coef_, fine.coef_, atol=0.02)
    assert fine.kkt_residual_ < 1e-6 < rough.kkt_residual_


def test_too_few_iterations_are_reported() -> None:
    X, y = data()
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        SpredLasso(0.05, solver="adam", max_iter=3, polish=False).fit(X, y)


def test_a_loss_with_a_solver_of_its_own_agrees_with_it() -> None:
    """L1-penalised logistic regression, against liblinear's."""
    X, y = data(n=80, p=20)
    label = np.sign(y - np.median(y))
    alpha = 0.05

    found = SpredLasso(alpha, loss=logistic, fit_intercept=False).fit(X, label)
    np.testing.assert_allclose(found.coef_, liblinear(X, label, alpha), atol=1e-5)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_on_diabetes_it_keeps_the_same_measurements_as_the_lasso(share: float) -> None:
    X, y = load_diabetes(return_X_y=True)
    alpha = share * float(np.abs(X.T @ (y - y.mean())).max()) / len(y)
    found = SpredLasso(alpha).fit(X, y)
    reference = Lasso(alpha=alpha, tol=1e-13, max_iter=10**6, random_state=0).fit(X, y)
    np.testing.assert_array_equal(found.coef_ != 0, reference.coef_ != 0)
    np.testing.assert_allclose(found.coef_, reference.coef_, rtol=1e-6)
    assert found.score(X, y) == pytest.approx(reference.score(X, y), abs=1e-9)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_on_breast_cancer_it_keeps_the_same_measurements_as_liblinear(share: float) -> None:
    """Thirty measurements, some correlated to 0.998: the support is the hard part."""
    X, label = load_breast_cancer(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), 2.0 * label - 1
    alpha = share * float(np.abs(X.T @ y).max()) / 2 / len(y)
    found = SpredLasso(alpha, loss=logistic, fit_intercept=False).fit(X, y)
    reference = liblinear(X, y, alpha)
    np.testing.assert_array_equal(found.coef_ != 0, reference != 0)
    np.testing.assert_allclose(found.coef_, reference, atol=1e-5)
    assert found.kkt_residual_ < 1e-6 * alpha


def test_a_loss_without_a_solver_resists_outliers() -> None:
    """What the estimator is for: a bounded-influence loss, one tenth of the targets corrupted."""
    X, y = data(n=100, p=20)
    clean = SpredLasso(0.05).fit(X, y)
    y = y.copy()
    y[:10] += 100.0

    def log_cosh(prediction: Tensor, y: Tensor) -> Tensor:
        residual = (prediction - y).abs()
        return (residual + torch.nn.functional.softplus(-2 * residual) - np.log(2)).mean()

    robust = SpredLasso(0.05, loss=log_cosh).fit(X, y)
    fragile = SpredLasso(0.05).fit(X, y)
    assert np.abs(robust.coef_ - clean.coef_).max() < 0.15
    assert np.abs(fragile.coef_ - clean.coef_).max() > 1.0


def test_the_random_state_moves_the_start_and_not_the_minimum() -> None:
    X, y = data()
    fits = [SpredLasso(0.1, random_state=seed).fit(X, y) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].coef_, fits[1].coef_)
    np.testing.assert_allclose(fits[0].coef_, fits[2].coef_, atol=1e-6)
    assert fits[0].n_iter_ != fits[2].n_iter_


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be finite and > 0, got 0.0"),
        ({"tol": -1.0}, "tol must be finite and > 0"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"solver": "sgd"}, "solver must be one of lbfgs, adam, got 'sgd'"),
        ({"loss": lambda p, y: (p - y) ** 2}, "must return a scalar tensor"),
        ({"loss": lambda p, y: torch.zeros(())}, "depends differentiably"),
        ({"loss": lambda p, y: p.sum() * torch.inf}, "loss must be finite"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpredLasso(**options).fit(*data())
