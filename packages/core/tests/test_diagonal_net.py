"""A product of two weights on noisy data: moments, growth near zero, and the transition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.errors import InputError

number = st.floats(-5, 5).map(lambda value: round(value, 3))
data = st.lists(st.tuples(number, number), min_size=2, max_size=30).filter(lambda p: any(x for x, _ in p))


@given(data=data, v=number)
def test_gradient_variance_is_the_variance_of_the_gradients(data, v):
    x, y = np.array(data).T
    gradients = 2 * (v * x - y) * x
    noise = LandscapeNoise.from_data(x, y)
    size = max(1.0, float((gradients**2).max()))
    assert noise.gradient_variance(v) == pytest.approx(gradients.var(), abs=1e-9 * size)
    assert gradients.mean() == pytest.approx(2 * (noise.beta1 * v - noise.beta2), abs=1e-9 * size)


def test_gaussian_moments_are_the_limit_of_sampled_ones():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400_000)
    sampled = LandscapeNoise.from_data(x, 0.7 * x + 1.3 * rng.standard_normal(x.size))
    exact = LandscapeNoise.gaussian(0.7, 1.3)
    for name in ("beta1", "beta2", "alpha1", "alpha2", "alpha3"):
        assert getattr(sampled, name) == pytest.approx(getattr(exact, name), rel=0.03), name


@given(data=data, learning_rate=st.floats(0.001, 1), batch_size=st.integers(1, 2))
def test_nothing_depends_on_the_sign_of_the_labels(data, learning_rate, batch_size):
    x, y = np.array(data).T
    if abs((x * y).mean()) < 1e-9:  # without a signal there is no sign to follow
        return
    one, other = LandscapeNoise.from_data(x, y), LandscapeNoise.from_data(x, -y)
    assert one.critical_temperature(0.1) == pytest.approx(other.critical_temperature(0.1))
    assert one.discrete_growth_rate(learning_rate) == pytest.approx(other.discrete_growth_rate(learning_rate))


def mean_log_by_mixture(k, sigma, learning_rate):
    """E ln|1 + 2 lr x(kx + sigma e)|: given x, the square is noncentral chi^2, a Poisson mixture of chi^2."""

    def given_x(x):
        mean, spread = 1 + 2 * learning_rate * k * x**2, 2 * learning_rate * sigma * abs(x)
        half = (mean / spread) ** 2 / 2
        if half > 400:  # ln(mean) minus the asymptotic series of the logarithm's curvature
            r = 1 / (2 * half)
            return math.log(mean) - r / 2 - 3 * r**2 / 4 - 5 * r**3 / 2
        terms = np.arange(int(half + 12 * math.sqrt(half) + 40))
        mixture = stats.poisson.pmf(terms, half) @ special.digamma(terms + 0.5)
        return math.log(spread) + (math.log(2) + mixture) / 2

    integral, _ = integrate.quad(lambda x: 2 * stats.norm.pdf(x) * given_x(x), 1e-9, 12, limit=400)
    return integral


@pytest.mark.parametrize("k", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("learning_rate", [0.05, 0.4, 3.0])
def test_gaussian_criterion_agrees_with_an_independent_integral(k, learning_rate):
    rate = LandscapeNoise.gaussian(k, 0.8).discrete_growth_rate(learning_rate)
    assert rate == pytest.approx(2 / learning_rate * mean_log_by_mixture(k, 0.8, learning_rate), abs=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "learning_rate", "decay"), [(4, 0.4, 0.0), (4, 0.5, 0.3), (16, 3.0, 0.5)]
)
def test_gaussian_criterion_for_batches_agrees_with_sampling(batch_size, learning_rate, decay):
    # The last case has 2 * learning_rate * decay > 1: the decay alone would flip the sign of the weights.
    rng = np.random.default_rng(1)
    x, e = rng.standard_normal((2, 200_000, batch_size))
    logs = np.log(np.abs(1 + 2 * learning_rate * ((x * (0.2 * x + e)).mean(axis=1) - decay)))
    rate = LandscapeNoise.gaussian(0.2, 1.0).discrete_growth_rate(learning_rate, batch_size, decay)
    error = logs.std() / math.sqrt(logs.size)
    assert learning_rate / 2 * rate == pytest.approx(logs.mean(), abs=5 * error)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_sampled_criterion_agrees_with_the_mean_over_all_batches(batch_size):
    x, y = np.array([1.0, 0.5, -2.0, 1.5]), np.array([0.8, -1.0, -0.5, 1.0])
    means = [np.mean(batch) for batch in itertools.product(x * y, repeat=batch_size)]
    expected = 2 / 0.2 * np.log(np.abs(1 + 2 * 0.2 * (np.array(means) - 0.05))).mean()
    rate = LandscapeNoise.from_data(x, y).discrete_growth_rate(0.2, batch_size, weight_decay=0.05)
    assert rate == pytest.approx(expected, abs=1e-12 if batch_size == 1 else 2e-3)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_growth_rates_agree_to_second_order_in_the_step(batch_size):
    noise = LandscapeNoise.gaussian(0.3, 1.0)
    errors = []
    for learning_rate in (0.02, 0.01, 0.005):
        continuous = noise.growth_rate(learning_rate, batch_size, weight_decay=0.1)
        mean_square = -4 * learning_rate * (noise.beta2 - 0.1) ** 2  # of first order, and not in the law
        exact = noise.discrete_growth_rate(learning_rate, batch_size, weight_decay=0.1)
        errors.append(abs(exact - continuous - mean_square))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(orders > 1.8), (errors, orders)


def test_weights_under_sgd_grow_as_predicted():
    k, learning_rate, batch_size, decay, steps = 0.3, 0.3, 2, 0.1, 400
    rng = np.random.default_rng(2)
    u = w = np.full(2000, 1e-30)
    for _ in range(steps):
        x, e = rng.standard_normal((2, batch_size, u.size))
        of_product = (2 * (u * w * x - k * x - e) * x).mean(axis=0)
        u, w = (
            u - learning_rate * (of_product * w + 2 * decay * u),
            w - learning_rate * (of_product * u + 2 * decay * w),
        )
    growth = np.log(np.abs(u * w) / 1e-60) / (learning_rate * steps)
    noise = LandscapeNoise.gaussian(k, 1.0)
    error = growth.std() / math.sqrt(growth.size)
    assert growth.mean() == pytest.approx(
        noise.discrete_growth_rate(learning_rate, batch_size, decay), abs=4 * error
    )
    assert abs(growth.mean() - noise.discrete_growth_rate(learning_rate, batch_size)) > 20 * error
    assert abs(growth.mean() - noise.discrete_growth_rate(learning_rate, batch_size, 2 * decay)) > 20 * error


@pytest.mark.parametrize("k", [0.03, 0.1, 0.2])
def test_window_of_collapse_is_where_the_growth_rate_is_negative(k):
    noise = LandscapeNoise.gaussian(k, 1.0)
    low, high = noise.collapse_window()
    assert noise.discrete_critical_learning_rate() == low
    for edge in (low, high):
        assert noise.discrete_growth_rate(edge) == pytest.approx(0.0, abs=1e-9)
    for inside in np.geomspace(1.01 * low, 0.99 * high, 9):
        assert noise.discrete_growth_rate(inside) < 0
    for outside in (*np.geomspace(0.01 * low, 0.99 * low, 9), *np.geomspace(1.01 * high, 100 * high, 9)):
        assert noise.discrete_growth_rate(outside) > 0


def test_large_batches_scale_the_window_until_there_is_none():
    noise = LandscapeNoise.gaussian(0.01, 1.0)
    for batch_size in (4, 64):
        critical = noise.discrete_critical_learning_rate(batch_size)
        assert critical == pytest.approx(batch_size * noise.critical_temperature(), rel=0.03)
    # The same temperature, but the mean of the batch now outweighs its noise.
    assert LandscapeNoise.gaussian(0.1, 1.0).collapse_window(batch_size=64) is None


def test_window_approaches_the_critical_temperature_for_weak_signals():
    gaps = []
    for k in (0.1, 0.03, 0.01):
        noise = LandscapeNoise.gaussian(k, 1.0)
        gaps.append(1 - noise.discrete_critical_learning_rate() / noise.critical_temperature())
    assert gaps[0] < 0.07
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.002


@pytest.mark.parametrize(
    ("k", "sigma"), [(0.25, 1.0), (0.3, 1.0), (0.5, 1.0), (1.0, math.sqrt(0.5)), (3.0, 1.0)]
)
def test_a_strong_signal_never_collapses_although_it_has_a_critical_temperature(k, sigma):
    noise = LandscapeNoise.gaussian(k, sigma)
    assert noise.collapse_window() is None
    assert noise.discrete_critical_learning_rate() is None
    assert 0 < noise.critical_temperature() < 1
    assert all(noise.discrete_growth_rate(rate) > 0 for rate in np.geomspace(0.001, 100, 60))


def test_sampled_data_have_the_window_of_their_distribution():
    rng = np.random.default_rng(3)
    x = rng.standard_normal(200_000)
    y = 0.2 * x + rng.standard_normal(x.size)
    sampled, exact = LandscapeNoise.from_data(x, y), LandscapeNoise.gaussian(0.2, 1.0)
    np.testing.assert_allclose(sampled.collapse_window(), exact.collapse_window(), rtol=0.1)
    weak = LandscapeNoise.from_data(x, y - 0.1 * x)
    # beta2 of this sample differs from 0.1 by two per cent, and the window with it.
    reference = LandscapeNoise.gaussian(weak.beta2, 1.0)
    for batch_size in (1, 2):
        assert weak.discrete_critical_learning_rate(batch_size) == pytest.approx(
            reference.discrete_critical_learning_rate(batch_size), rel=0.1
        )


def test_weight_decay_takes_from_the_signal():
    noise = LandscapeNoise.gaussian(0.1, 1.0)
    assert noise.critical_temperature(0.04) == pytest.approx(0.06 / 1.02)
    assert noise.critical_temperature(0.2) == 0.0
    assert noise.growth_rate(0.06 / 1.02, weight_decay=0.04) == pytest.approx(0.0)
    assert noise.discrete_critical_learning_rate(weight_decay=0.04) == pytest.approx(0.06 / 1.02, rel=0.05)
    assert noise.discrete_critical_learning_rate(weight_decay=0.2) == 0.0


def test_limits_without_signal_and_without_noise():
    low, high = LandscapeNoise.gaussian(0.0, 1.0).collapse_window()
    assert (low, high) == (
        0.0,
        pytest.approx(LandscapeNoise.gaussian(1e-3, 1.0).collapse_window()[1], rel=0.01),
    )
    assert LandscapeNoise.gaussian(1e-4, 1.0).collapse_window() == pytest.approx((1e-4, high), rel=1e-3)
    assert LandscapeNoise.gaussian(0.1, 0.0).collapse_window() is None
    silent = LandscapeNoise.from_data([1.0, -1.0], [0.5, -0.5])
    assert silent.critical_temperature() == math.inf
    assert silent.collapse_window() is None
    assert LandscapeNoise.from_data([1.0, 1.0], [-1.0, 3.0]).discrete_growth_rate(0.5) == -math.inf


def test_bad_input_is_named():
    noise = LandscapeNoise.gaussian(0.1, 1.0)
    with pytest.raises(InputError, match="two vectors of one length"):
        LandscapeNoise.from_data([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="must be finite, got NaN"):
        LandscapeNoise.from_data([1.0, np.nan], [1.0, 1.0])
    with pytest.raises(InputError, match="beta1 must be > 0"):
        LandscapeNoise.from_data([0.0, 0.0], [1.0, 2.0])
    with pytest.raises(InputError, match=r"sigma finite and >= 0, got 0.1 and -1"):
        LandscapeNoise.gaussian(0.1, -1.0)
    with pytest.raises(InputError, match=r"alpha2\^2 must be <= alpha1 alpha3 = 1"):
        LandscapeNoise(1.0, 1.0, 1.0, 2.0, 1.0)
    with pytest.raises(InputError, match="the moments must be finite"):
        LandscapeNoise(1.0, math.inf, 1.0, 0.0, 1.0)
    with pytest.raises(InputError, match="use from_data or gaussian"):
        LandscapeNoise(1.0, 0.1, 2.0, 0.2, 1.02).discrete_critical_learning_rate()
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        noise.collapse_window(batch_size=0)
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got 0"):
        noise.growth_rate(0.0)
    with pytest.raises(InputError, match="weight_decay must be finite and >= 0, got -1"):
        noise.critical_temperature(-1.0)
