"""The stationary state of SGD on linear regression: exact moments, the paper's formulas, edges, errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.dynamics.linear_sgd import LinearSGD
from symdyn_core.dynamics.optimal_decay import optimal_weight_decay, stable_weight_decays
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator

# --- the recursion of the moments, step by step -------------------------------------------------------------


def matrices(model):
    size = len(model.second_moment)
    rates, decay = (
        value * np.eye(size) if np.ndim(value) == 0 else np.asarray(value)
        for value in (model.learning_rate, model.weight_decay)
    )
    return np.asarray(model.second_moment), rates, decay


def noise_at(model, error_moment):
    """Covariance of a minibatch gradient of Gaussian data, by Isserlis' theorem, entry by entry."""
    a = np.asarray(model.second_moment)
    size = len(a)
    c = model.label_noise_variance * a.copy()
    for i in range(size):
        for j in range(size):
            for k in range(size):
                for m in range(size):  # E x_i x_j x_k x_m - E x_i x_k E x_j x_m
                    c[i, j] += (a[i, j] * a[k, m] + a[i, m] * a[k, j]) * error_moment[k, m]
    return c / model.batch_size


def moment_map(model):
    """One step of the second moments of (w - w*, buffer), as a linear map and an offset."""
    a, rates, decay = matrices(model)
    size = len(a)
    k, mu = a + 2 * decay, model.momentum
    eye = np.eye(size)
    step = np.block([[eye - rates @ k, -mu * rates], [k, mu * eye]])
    kick = np.vstack([-rates, eye])
    target = np.zeros(size) if model.target is None else np.asarray(model.target)
    shift = target - np.linalg.solve(k, a @ target)
    offset = np.outer(shift, shift)

    def advance(moments):
        spread = moments[:size, :size]
        return step @ moments @ step.T + kick @ noise_at(model, spread + offset) @ kick.T

    return advance, offset, size


def moment_operator(model):
    advance, _, size = moment_map(model)
    zero = np.zeros((2 * size, 2 * size))
    source = advance(zero)
    columns = []
    for entry in range(4 * size * size):
        unit = zero.copy()
        unit.flat[entry] = 1.0
        columns.append((advance(unit) - source).ravel())
    return np.array(columns).T, source.ravel()


def exact_covariance(model):
    operator, source = moment_operator(model)
    size = len(model.second_moment)
    solved = np.linalg.solve(np.eye(len(source)) - operator, source)
    return solved.reshape(2 * size, 2 * size)[:size, :size]


def growth_of_moments(model):
    return float(np.abs(np.linalg.eigvals(moment_operator(model)[0])).max())


def definite(seed, size, lowest=0.2):
    generator = numpy_generator(seed, "matrix")
    basis, _ = np.linalg.qr(generator.standard_normal((size, size)))
    return basis * generator.uniform(lowest, 1.0, size) @ basis.T


CASES = {
    "labels": LinearSGD(definite(0, 3), 0.3, 2, 1.3),
    "labels, momentum": LinearSGD(definite(1, 3), 0.2, 3, 0.7, momentum=0.6),
    "matrix of rates": LinearSGD(definite(2, 3), 0.5 * definite(3, 3), 2, 1.0, momentum=0.3),
    "decay": LinearSGD(definite(4, 3), 0.3, 4, 0.0, weight_decay=0.15, target=[1.0, -2.0, 0.5]),
    "negative decay": LinearSGD(definite(5, 2), 0.5, 4, 0.5, weight_decay=-0.05, target=[1.0, 2.0]),
    "all, not commuting": LinearSGD(
        definite(6, 3), 0.6 * definite(7, 3), 3, 0.4, momentum=0.5, weight_decay=0.1, target=[1.0, 0.0, -1.0]
    ),
    "matrix of decays": LinearSGD(
        definite(8, 2), 0.3, 2, 0.2, weight_decay=0.2 * definite(9, 2), target=[1.0, 1.0]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_covariance_is_the_fixed_point_of_the_moments(name):
    model = CASES[name]
    covariance = model.param_covariance()
    np.testing.assert_allclose(covariance, exact_covariance(model), rtol=1e-8, atol=1e-10)
    offset = moment_map(model)[1]
    a = np.asarray(model.second_moment)
    np.testing.assert_allclose(
        model.noise_covariance(), noise_at(model, covariance + offset), rtol=1e-8, atol=1e-10
    )
    excess = float(np.trace(a @ (covariance + offset)))
    assert model.test_loss() == pytest.approx(excess / 2)
    assert model.train_loss() == pytest.approx((model.label_noise_variance + excess) / 2)


@pytest.mark.parametrize("name", CASES)
def test_edge_is_where_the_moments_stop_to_converge(name):
    model = CASES[name]
    assert model.is_stable()
    assert growth_of_moments(model) < 1
    for factor, stable in ((0.999, True), (1.001, False)):
        at = replace(model, learning_rate=factor * np.asarray(model.max_learning_rate()))
        assert at.is_stable() is stable, factor
        assert (growth_of_moments(at) < 1) is stable, factor
    with pytest.raises(InputError, match=r"1\.001 times the stability edge: (G > 0|q < 1) fails"):
        at.param_covariance()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 3),
    batch_size=st.integers(1, 20),
    momentum=st.sampled_from([0.0, 0.3, 0.9]),
    step=st.floats(0.01, 2.5),
    decay=st.sampled_from([0.0, 0.1, -0.02]),
)
def test_stability_and_covariance_of_any_model(seed, size, batch_size, momentum, step, decay):
    model = LinearSGD(
        definite(seed, size), step, batch_size, 1.0, momentum, decay, target=np.arange(1.0, size + 1)
    )
    growth = growth_of_moments(model)
    if abs(growth - 1) < 1e-6:
        return
    assert model.is_stable() is (growth < 1)
    if model.is_stable():
        exact = exact_covariance(model)
        np.testing.assert_allclose(
            model.param_covariance(), exact, rtol=1e-6, atol=1e-9 * np.abs(exact).max()
        )


# --- the formulas of the paper, letter by letter ------------------------------------------------------------


def label_noise_covariance(a, rates, batch_size, sigma2, mu):
    """Result 3."""
    eye = np.eye(len(a))
    g = 2 * (1 - mu) * eye - ((1 - mu) / (1 + mu) + 1 / batch_size) * rates @ a
    trace = np.trace(rates @ a @ np.linalg.inv(g))
    kappa = trace / (1 - trace / batch_size)
    return sigma2 / batch_size * (1 + kappa / batch_size) * rates @ np.linalg.inv(g)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.8])
def test_label_noise_formula(mu):
    a = definite(10, 3)
    for rates in (0.3 * np.eye(3), 0.2 * a @ a + 0.1 * np.eye(3)):
        expected = label_noise_covariance(a, rates, 3, 1.7, mu)
        np.testing.assert_allclose(LinearSGD(a, rates, 3, 1.7, mu).param_covariance(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("learning_rate", "batch_size", "momentum", "expected"),
    [
        (0.6, 2, 0.0, (0.4326, 0.3070)),
        (1.0, 8, 0.0, (0.1756, 0.1069)),
        (0.3, 4, 0.5, (0.1047, 0.0947)),
        (0.2, 2, 0.8, (0.7310, 0.5992)),
    ],
)
def test_published_configurations(learning_rate, batch_size, momentum, expected):
    model = LinearSGD(np.diag([1.0, 0.5]), learning_rate, batch_size, 1.0, momentum)
    assert np.diag(model.param_covariance()) == pytest.approx(expected, abs=6e-5)
    continuous = learning_rate / (2 * batch_size * (1 - momentum))
    assert abs(continuous / expected[0] - 1) > 0.15


def test_published_edge():
    assert LinearSGD(np.diag([1.0, 0.5]), 0.1, 2).max_learning_rate() == pytest.approx(0.9468, abs=5e-5)


def decayed_test_loss(a, u, gamma, rate, batch_size):
    """Result 5; its Gamma is the gradient's, twice ours."""
    eye = np.eye(len(a))
    k = a + gamma
    inverse = np.linalg.inv(k)
    g_inverse = np.linalg.inv(2 * eye - rate * (k + inverse @ a @ a / batch_size))
    big_u = np.outer(u, u)
    t = np.trace(a @ a @ inverse @ g_inverse)
    share = 1 - rate / batch_size * t
    kappa = t / share
    r = np.trace(
        np.linalg.matrix_power(a, 3) @ inverse @ inverse @ inverse @ gamma @ gamma @ g_inverse @ big_u
    )
    bias = np.trace(a @ inverse @ inverse @ gamma @ gamma @ big_u)
    return rate / (2 * batch_size) * (bias * kappa + r / share) + bias / 2


@pytest.mark.parametrize("decay", [0.3, 0.15, -0.05])
def test_loss_under_decay_formula(decay):
    a, u = definite(11, 3), np.array([1.0, -0.5, 2.0])
    for gamma in (decay * np.eye(3), decay * a @ a):
        model = LinearSGD(a, 0.4, 3, weight_decay=gamma, target=u)
        assert model.test_loss() == pytest.approx(decayed_test_loss(a, u, 2 * gamma, 0.4, 3))


def test_second_moment_of_the_target_averages_over_targets():
    a, targets = definite(12, 2), np.array([[1.0, 0.5], [-2.0, 1.0]])
    average = np.mean([LinearSGD(a, 0.4, 3, weight_decay=0.1, target=u).test_loss() for u in targets])
    together = LinearSGD(a, 0.4, 3, weight_decay=0.1, target=targets.T @ targets / 2)
    assert together.test_loss() == pytest.approx(average)


def test_damped_newton_formula():
    a, rate, batch_size, sigma2, mu = definite(13, 4), 0.3, 5, 1.2, 0.4
    g = 2 * (1 - mu) - ((1 - mu) / (1 + mu) + 1 / batch_size) * rate
    expected = rate * sigma2 / (g * batch_size - rate * 4) * np.linalg.inv(a)
    newton = LinearSGD.damped_newton(a, rate, batch_size, sigma2, mu)
    np.testing.assert_allclose(newton.param_covariance(), expected, rtol=1e-9)


# --- what follows -------------------------------------------------------------------------------------------


def test_no_noise_no_spread():
    np.testing.assert_array_equal(LinearSGD(definite(14, 3), 0.3, 2).param_covariance(), 0.0)


def test_small_steps_fluctuate_like_in_continuous_time():
    model = LinearSGD(definite(15, 3), 1e-6, 4, 2.0, momentum=0.5)
    np.testing.assert_allclose(model.param_covariance(), 1e-6 * 2 / (2 * 4 * 0.5) * np.eye(3), atol=1e-11)


def test_units_do_not_matter():
    """Rescaled inputs, with the rates rescaled to match, give the same loss."""
    a, scale = definite(16, 3), np.diag([1.0, 3.0, 0.2])
    inverse = np.linalg.inv(scale)
    rates = 0.3 * definite(17, 3)
    one = LinearSGD(a, rates, 2, 1.0, 0.2)
    other = LinearSGD(scale @ a @ scale, inverse @ rates @ inverse, 2, 1.0, 0.2)
    assert one.train_loss() == pytest.approx(other.train_loss())
    np.testing.assert_allclose(
        inverse @ one.param_covariance() @ inverse, other.param_covariance(), rtol=1e-9
    )


def test_directions_without_data_stay_where_they_are():
    model = LinearSGD(np.diag([1.0, 0.0]), 0.5, 2, 1.0)
    np.testing.assert_allclose(model.param_covariance(), np.diag([0.25, 0.0]), rtol=1e-12)
    decayed = LinearSGD(np.diag([1.0, 0.0]), 0.5, 2, 1.0, weight_decay=0.1, target=[1.0, 1.0])
    assert decayed.mean_params() == pytest.approx([1 / 1.2, 0.0])
    np.testing.assert_allclose(decayed.param_covariance(), exact_covariance(decayed), atol=1e-12)


def test_directions_without_data_do_not_disturb_the_others():
    def blocks(matrix, corner):
        return np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), corner * np.eye(1)]])

    a, rates, decay = definite(20, 2), 0.4 * definite(21, 2), 0.1 * definite(22, 2)
    small = LinearSGD(a, rates, 3, 0.5, weight_decay=decay, target=[1.0, -1.0])
    large = LinearSGD(
        blocks(a, 0.0), blocks(rates, 0.3), 3, 0.5, weight_decay=blocks(decay, 0.0), target=[1.0, -1.0, 2.0]
    )
    np.testing.assert_allclose(
        large.param_covariance(), blocks(small.param_covariance(), 0.0), rtol=1e-8, atol=1e-12
    )
    assert large.mean_params() == pytest.approx([*small.mean_params(), 2.0])
    assert np.linalg.norm(large.max_learning_rate()[:2, :2]) == pytest.approx(
        np.linalg.norm(small.max_learning_rate())
    )


def test_linear_scaling_rule_fails_at_both_ends():
    a = np.diag([1.0, 0.5])
    assert abs(LinearSGD(a, 1e-3, 4, 1.0).scaling_law_violation(2.0)) < 1e-3
    assert LinearSGD(a, 0.2, 1, 1.0).scaling_law_violation(4.0) > 0.05
    one, four = LinearSGD(a, 0.2, 1, 1.0), LinearSGD(a, 0.8, 4, 1.0)
    expected = np.trace(a @ four.param_covariance()) / np.trace(a @ one.param_covariance()) - 1
    assert one.scaling_law_violation(4.0) == pytest.approx(expected)


def test_stable_decays_are_an_interval():
    for rates in (0.9, np.diag([0.9, 0.5, 0.3])):
        model = LinearSGD(np.diag([1.0, 0.4, 0.0]), rates, 6, momentum=0.3, target=np.ones(3))
        low, high = stable_weight_decays(model)
        for decay in np.linspace(low - 0.5, high + 0.5, 50):
            assert replace(model, weight_decay=float(decay)).is_stable() is bool(low < decay < high), decay


def test_best_decay_is_none_where_plain_sgd_is_stable():
    for rate in (0.2, 1.0, 1.55):
        assert optimal_weight_decay(LinearSGD([[1.0]], rate, 8, target=[1.0])) == 0.0


def test_best_decay_beyond_the_edge_is_negative():
    """Note's case: at learning rate x a = 1.65, S = 8 the gradient's decay -0.085 reaches 0.0536."""
    model = LinearSGD([[1.0]], 1.65, 8, target=[1.0])
    assert not model.is_stable()
    best = optimal_weight_decay(model)
    assert 2 * best == pytest.approx(-0.085, abs=1e-3)
    lowest = replace(model, weight_decay=best).test_loss()
    assert lowest == pytest.approx(0.0536, abs=1e-4)
    for decay in np.linspace(-0.4, 0.2, 200):
        other = replace(model, weight_decay=float(decay))
        assert not other.is_stable() or other.test_loss() >= lowest * (1 - 1e-9)


def test_best_decay_with_label_noise_is_positive_and_in_many_dimensions_a_minimum():
    model = LinearSGD(definite(18, 3), 0.5, 2, 1.0, target=[0.3, 0.1, -0.2])
    best = optimal_weight_decay(model)
    assert best > 0
    losses = [replace(model, weight_decay=best * scale).test_loss() for scale in (1.0, 0.9, 1.05, 0.2, 0.5)]
    assert losses[0] == min(losses)


def test_ensemble_has_the_covariance():
    """Result 3 with momentum in an ensemble of 4000 runs, averaged over time; the note's third case."""
    generator = numpy_generator(0, "ensemble")
    scales = np.sqrt([1.0, 0.5])
    w, buffer = np.zeros((2, 4000, 2))
    total = np.zeros((2, 2))
    for step in range(300):
        x = generator.standard_normal((4000, 4, 2)) * scales
        error = np.einsum("rsd,rd->rs", x, w) - generator.standard_normal((4000, 4))
        buffer = 0.5 * buffer + np.einsum("rs,rsd->rd", error, x) / 4
        w = w - 0.3 * buffer
        if step >= 100:
            total += w.T @ w / 4000 / 200
    model = LinearSGD(np.diag([1.0, 0.5]), 0.3, 4, 1.0, 0.5)
    np.testing.assert_allclose(np.diag(total), np.diag(model.param_covariance()), rtol=0.02)


def test_noise_at_given_parameters_is_that_of_drawn_batches():
    a = definite(19, 2)
    u, w = np.array([1.0, -1.0]), np.array([0.3, 0.8])
    generator = numpy_generator(1, "batches")
    x = generator.multivariate_normal(np.zeros(2), a, size=(100_000, 3))
    errors = x @ (w - u) - generator.standard_normal((100_000, 3)) * math.sqrt(0.6)
    measured = np.cov((errors[..., None] * x).mean(axis=1).T)
    np.testing.assert_allclose(LinearSGD(a, 0.1, 3, 0.6, target=u).noise_covariance(w), measured, rtol=0.03)


# --- bad input ----------------------------------------------------------------------------------------------


def test_learning_rate_beyond_the_edge_says_which_condition_fails():
    with pytest.raises(InputError, match=r"2 times the stability edge: q < 1 fails: .* q = \d"):
        LinearSGD(np.eye(5), 2 * LinearSGD(np.eye(5), 0.1, 2).max_learning_rate(), 2, 1.0).param_covariance()
    with pytest.raises(InputError, match=r"G > 0 fails: its smallest eigenvalue is -2"):
        LinearSGD([[1.0]], 2.0, 1, 1.0).param_covariance()
    with pytest.raises(
        InputError, match=r"or any other: the penalised loss has no minimum: its lowest curvature is -0.02"
    ):
        LinearSGD([[1.0]], 0.1, 1, 1.0, weight_decay=-0.6, target=[1.0]).train_loss()
    assert LinearSGD([[1.0]], 0.1, 1, weight_decay=-0.6, target=[1.0]).max_learning_rate() == 0.0


def test_bad_input_is_named():
    eye = np.eye(2)
    with pytest.raises(InputError, match=r"second_moment must be a square matrix, got shape \(2,\)"):
        LinearSGD([1.0, 2.0], 0.1, 1)
    with pytest.raises(InputError, match=r"second_moment must be symmetric, got entries that differ by 1"):
        LinearSGD([[1.0, 1.0], [0.0, 1.0]], 0.1, 1)
    with pytest.raises(InputError, match="second_moment must be positive semi-definite .* eigenvalue -1"):
        LinearSGD(np.diag([1.0, -1.0]), 0.1, 1)
    with pytest.raises(InputError, match="second_moment must be finite"):
        LinearSGD([[np.nan]], 0.1, 1)
    with pytest.raises(InputError, match="learning_rate must be > 0 or positive definite, got .* 0$"):
        LinearSGD(eye, 0.0, 1)
    with pytest.raises(InputError, match=r"learning_rate must be a number or of shape \(2, 2\), got"):
        LinearSGD(eye, 0.1 * np.eye(3), 1)
    with pytest.raises(InputError, match="learning_rate must be finite, got nan"):
        LinearSGD(eye, math.nan, 1)
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        LinearSGD(eye, 0.1, 0)
    with pytest.raises(InputError, match="label_noise_variance must be >= 0, got -1"):
        LinearSGD(eye, 0.1, 1, -1.0)
    with pytest.raises(InputError, match=r"momentum must be in \[0, 1\), got 1"):
        LinearSGD(eye, 0.1, 1, momentum=1.0)
    with pytest.raises(InputError, match="target must be given with a weight decay"):
        LinearSGD(eye, 0.1, 1, weight_decay=0.1)
    with pytest.raises(InputError, match=r"target must have shape \(2,\) or \(2, 2\), got \(3,\)"):
        LinearSGD(eye, 0.1, 1, target=[1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="target must be finite"):
        LinearSGD(eye, 0.1, 1, target=[1.0, math.inf])
    with pytest.raises(InputError, match=r"weight_decay must be a number or of shape \(2, 2\)"):
        LinearSGD(eye, 0.1, 1, weight_decay=np.eye(3), target=[1.0, 2.0])
    with pytest.raises(InputError, match="second_moment must be positive definite, got the eigenvalue 0"):
        LinearSGD.damped_newton(np.diag([1.0, 0.0]), 0.1, 1)
    with pytest.raises(InputError, match="needs the target as a vector"):
        LinearSGD(eye, 0.1, 1).mean_params()
    with pytest.raises(InputError, match="needs the target as a vector"):
        LinearSGD(eye, 0.1, 1).noise_covariance([1.0, 1.0])
    with pytest.raises(InputError, match=r"params must have shape \(2,\), got \(3,\)"):
        LinearSGD(eye, 0.1, 1, target=[1.0, 1.0]).noise_covariance([1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="factor must be > 0 and give a whole batch size, got 0.5 x 3"):
        LinearSGD(eye, 0.1, 3, 1.0).scaling_law_violation(0.5)
    with pytest.raises(InputError, match="label_noise_variance must be > 0"):
        LinearSGD(eye, 0.1, 2).scaling_law_violation(2.0)
    with pytest.raises(InputError, match="the best decay depends on it"):
        optimal_weight_decay(LinearSGD(eye, 0.1, 2))
    with pytest.raises(InputError, match="must commute for a stable weight decay"):
        optimal_weight_decay(LinearSGD(definite(0, 2), definite(1, 2), 2, target=[1.0, 0.0]))
    with pytest.raises(InputError, match="no weight decay is stable: G > 0 fails for all"):
        optimal_weight_decay(LinearSGD([[1.0]], 3.0, 1, target=[1.0]))
    with pytest.raises(InputError, match="no weight decay is stable: q < 1 fails for all"):
        optimal_weight_decay(LinearSGD(np.eye(40), 0.5, 2, target=np.ones(40)))
