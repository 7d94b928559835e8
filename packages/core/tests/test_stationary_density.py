"""The stationary law of a diagonal linear network: derivation, special cases, limits, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.dynamics.stationary_density import DiagonalNetStationary
from symdyn_core.errors import InputError

GAUSSIAN = LandscapeNoise.gaussian(k=1.0, sigma=math.sqrt(0.5))  # T_c = 0.4
SKEWED = LandscapeNoise(beta1=1.3, beta2=0.6, alpha1=1.7, alpha2=-0.4, alpha3=0.9)
CASES = [(0, 1, 0.0), (0, 3, 0.2), (1, 1, 0.0), (1, 4, 0.1), (2, 1, 0.0), (2, 3, 0.0), (5, 2, 0.0)]


def landscape_force(m, v):
    """The mean and a quarter of the variance of the gradient in v, from the definitions."""
    return 2 * (m.beta1 * v - m.beta2), m.alpha1 * v**2 - 2 * m.alpha2 * v + m.alpha3


def coefficients(m, v, temperature, depth, width, decay):
    """Drift and diffusion of v from the weights: Ito's formula at balanced, equal products."""
    weights = np.full((width, depth + 1), (v / width) ** (1 / (depth + 1)))

    def product(weights):
        return weights.prod(axis=1).sum()

    gradient = weights.prod(axis=1, keepdims=True) / weights
    slope, g = landscape_force(m, v)
    h = 1e-4 / np.abs(gradient).max() * np.abs(weights).min()
    bent = (product(weights + h * gradient) - 2 * product(weights) + product(weights - h * gradient)) / h**2
    size = (gradient**2).sum()
    drift = -size * slope - 2 * decay * (weights * gradient).sum() + 2 * temperature * g * bent
    return drift, 4 * temperature * g * size**2


@pytest.mark.parametrize(("depth", "width", "decay"), CASES)
@pytest.mark.parametrize("stats_", [GAUSSIAN, SKEWED], ids=["gaussian", "skewed"])
def test_no_probability_flows_under_the_weights_own_motion(stats_, depth, width, decay):
    law = DiagonalNetStationary(stats_, 0.15, depth=depth, width=width, weight_decay=decay)
    for v in (0.05, 0.3, 0.9, 1.7, 6.0):
        h = 1e-4 * v

        def inflow(at):
            return coefficients(stats_, at, 0.15, depth, width, decay)[1] * float(law.pdf(at)) / 2

        drift, _ = coefficients(stats_, v, 0.15, depth, width, decay)
        slope = (8 * (inflow(v + h) - inflow(v - h)) - inflow(v + 2 * h) + inflow(v - 2 * h)) / (12 * h)
        scale = abs(drift) * float(law.pdf(v)) + inflow(v) / v
        assert abs(slope - drift * float(law.pdf(v))) < 1e-5 * scale


@pytest.mark.parametrize(("depth", "width", "decay"), CASES)
@pytest.mark.parametrize("stats_", [GAUSSIAN, SKEWED], ids=["gaussian", "skewed"])
def test_density_distribution_quantiles_and_moments_belong_together(stats_, depth, width, decay):
    law = DiagonalNetStationary(stats_, 0.15, depth=depth, width=width, weight_decay=decay)
    p = np.array([0.01, 0.2, 0.5, 0.8, 0.99])
    v = law.quantile(p)
    np.testing.assert_allclose(law.cdf(v), p, rtol=1e-10)
    nodes, weights = np.polynomial.legendre.leggauss(80)
    for low, high, mass in zip(v[:-1], v[1:], np.diff(p), strict=True):
        at = low + (high - low) * (nodes + 1) / 2
        assert law.pdf(at) @ weights * (high - low) / 2 == pytest.approx(mass, abs=1e-9)
    # Averages through quantiles: v = Q(p) has a law whose mean is the integral of Q.
    edges = np.concatenate([[-12], np.linspace(-10, 10, 1001), [12]])
    grid = stats.logistic.cdf(edges)
    values = law.quantile((grid[1:] + grid[:-1]) / 2)
    assert law.mean() == pytest.approx(np.sum(values * np.diff(grid)), rel=5e-3)


def test_one_input_value_gives_the_normal_and_the_gamma_law():
    m = LandscapeNoise(1.5, 0.3, 0.0, 0.0, 0.8)
    v = np.array([0.01, 0.1, 0.4, 1.2])
    regression = DiagonalNetStationary(m, 0.1, depth=0, width=2, weight_decay=0.4)
    exact = stats.norm(0.3 / 1.7, math.sqrt(0.1 * 2 * 0.8 / 1.7))
    np.testing.assert_allclose(regression.logpdf(v), exact.logpdf(v), atol=1e-11)
    np.testing.assert_allclose(regression.cdf(v), exact.cdf(v), atol=1e-12)
    assert regression.var() == pytest.approx(exact.var())
    assert regression.mode() == pytest.approx(exact.mean())
    network = DiagonalNetStationary(m, 0.1, weight_decay=0.05)
    exact = stats.gamma(0.25 / (2 * 0.8 * 0.1) - 0.5, scale=2 * 0.8 * 0.1 / 1.5)
    np.testing.assert_allclose(network.logpdf(v), exact.logpdf(v), atol=1e-11)
    np.testing.assert_allclose(network.cdf(v), exact.cdf(v), atol=1e-12)
    np.testing.assert_allclose(network.quantile([1e-6, 0.5, 0.99]), exact.ppf([1e-6, 0.5, 0.99]), rtol=1e-9)
    assert (network.mean(), network.var()) == pytest.approx((exact.mean(), exact.var()))
    assert network.tail_exponent() == math.inf


@pytest.mark.parametrize("part", [0.5, 0.9, 0.985, 0.9999])
def test_moments_up_to_the_transition_count_what_has_collapsed(part):
    m = LandscapeNoise(1.5, 0.3, 0.0, 0.0, 0.8)
    temperature = part * m.critical_temperature()
    law = DiagonalNetStationary(m, temperature)
    exact = stats.gamma((1 / part - 1) / 2, scale=2 * 0.8 * temperature / 1.5)
    assert (law.mean(), law.var()) == pytest.approx((exact.mean(), exact.var()), rel=1e-9)


@given(temperature=st.floats(1e-5, 10), width=st.integers(1, 5))
def test_regression_on_gaussian_data_follows_student(temperature, width):
    law = DiagonalNetStationary(GAUSSIAN, temperature, depth=0, width=width)
    degrees = 1 + 1 / (2 * temperature * width)
    exact = stats.t(degrees, loc=1.0, scale=math.sqrt(0.25 / degrees))
    v = np.array([-3.0, 0.9, 1.0, 1.1, 40.0])
    np.testing.assert_allclose(law.logpdf(v), exact.logpdf(v), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(law.quantile([0.01, 0.5, 0.7]), exact.ppf([0.01, 0.5, 0.7]), rtol=1e-7)
    assert law.tail_exponent() == pytest.approx(degrees + 1)
    if abs(degrees - 2) > 1e-6:
        assert law.var() == pytest.approx(exact.var(), rel=1e-6)


def test_quantiles_of_the_literature_and_not_those_without_the_trace_of_the_noise():
    law = DiagonalNetStationary(GAUSSIAN, 0.12)
    np.testing.assert_allclose(
        law.quantile([0.1, 0.25, 0.5, 0.75, 0.9]), [0.431, 0.658, 0.882, 1.096, 1.323], atol=1e-3
    )
    # With the power -2 instead of -3/2 the median would be 0.791.
    median = optimize.brentq(
        lambda x: (
            integrate.quad(lambda v: float(law.pdf(v)) / math.sqrt(v), 0, x)[0]
            - integrate.quad(lambda v: float(law.pdf(v)) / math.sqrt(v), x, 50)[0]
        ),
        0.5,
        1.0,
    )
    assert median == pytest.approx(0.791, abs=1e-3)


def test_width_drops_out_of_the_two_layer_law_and_of_no_other():
    v = np.array([0.1, 0.7, 2.0])
    narrow, wide = (DiagonalNetStationary(SKEWED, 0.1, width=width) for width in (1, 8))
    np.testing.assert_allclose(narrow.logpdf(v), wide.logpdf(v), atol=1e-12)
    for depth in (0, 2):
        narrow, wide = (DiagonalNetStationary(SKEWED, 0.1, depth=depth, width=width) for width in (1, 8))
        assert np.abs(narrow.logpdf(v) - wide.logpdf(v)).max() > 0.1


def test_fluctuations_rise_and_then_vanish_at_the_transition():
    spread = [DiagonalNetStationary(GAUSSIAN, 0.4 * part).var() for part in (0.02, 0.3, 0.71, 0.985, 0.9999)]
    assert spread[0] == pytest.approx(0.008, abs=5e-4)
    assert spread[2] == pytest.approx(0.330, abs=1e-3)
    assert spread[3] == pytest.approx(0.050, abs=1e-3)
    assert spread[0] < spread[1] < spread[2] > spread[3] > 100 * spread[4]


def test_averages_of_the_motion_vanish():
    # The mean of d ln v is 4(beta2 - beta1 v) - 4 T g dt: it relates the first two moments.
    for m in (GAUSSIAN, SKEWED):
        law = DiagonalNetStationary(m, 0.15)
        second = law.var() + law.mean() ** 2
        noise = m.alpha1 * second - 2 * m.alpha2 * law.mean() + m.alpha3
        assert m.beta2 - m.beta1 * law.mean() == pytest.approx(0.15 * noise, rel=1e-8)


@pytest.mark.parametrize(("depth", "width", "decay"), CASES)
@pytest.mark.parametrize("temperature", [1e-6, 0.01, 0.1])
def test_mode_is_where_the_density_is_largest(depth, width, decay, temperature):
    law = DiagonalNetStationary(SKEWED, temperature, depth=depth, width=width, weight_decay=decay)
    mode = law.mode()
    assert law.logpdf(mode) >= law.logpdf(mode * np.linspace(0.3, 3.0, 20_001)).max() - 1e-12
    slope = law.logpdf(mode * (1 + 1e-5)) - law.logpdf(mode * (1 - 1e-5))
    curvature = law.logpdf(mode * (1 + 1e-5)) + law.logpdf(mode * (1 - 1e-5)) - 2 * law.logpdf(mode)
    assert abs(slope) <= 1e-3 * abs(curvature) + 1e-9


def test_mode_at_low_and_at_high_temperature():
    m, temperature = SKEWED, 1e-5
    slope = 10 * m.alpha2 * m.beta2 / m.beta1**2 - 7 * m.alpha1 * m.beta2**2 / m.beta1**3
    slope -= 3 * m.alpha3 / m.beta1
    mode = DiagonalNetStationary(m, temperature).mode()
    assert (mode - m.beta2 / m.beta1) / temperature == pytest.approx(slope, rel=1e-3)
    critical = m.critical_temperature()
    assert DiagonalNetStationary(m, 0.34 * critical).mode() == 0.0
    near_zero = DiagonalNetStationary(m, 0.34 * critical).pdf([1e-40, 1e-30])
    assert near_zero[0] > near_zero[1]
    assert DiagonalNetStationary(m, 0.33 * critical).mode() > 0


@pytest.mark.parametrize(("depth", "exponent"), [(1, 3.5), (2, 4.0), (4, 4.4), (0, None)])
def test_tail_is_a_power(depth, exponent):
    law = DiagonalNetStationary(SKEWED, 0.1, depth=depth)
    if exponent is None:
        exponent = 2 + SKEWED.beta1 / (0.1 * SKEWED.alpha1)
    assert law.tail_exponent() == pytest.approx(exponent)
    v = np.array([1e6, 1e7])
    assert -np.diff(law.logpdf(v))[0] / math.log(10) == pytest.approx(exponent, abs=1e-4)


def test_variance_of_regression_ends_where_its_tail_says():
    m = GAUSSIAN
    assert DiagonalNetStationary(m, 0.5, depth=0).var() == math.inf
    assert DiagonalNetStationary(m, 0.5, depth=0).tail_exponent() == 3.0
    assert DiagonalNetStationary(m, 0.25, depth=0, width=2).var() == math.inf
    assert math.isfinite(DiagonalNetStationary(m, 0.499, depth=0).var())


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_labels_of_the_other_sign_mirror_the_law(depth):
    m = SKEWED
    mirrored = LandscapeNoise(m.beta1, -m.beta2, m.alpha1, -m.alpha2, m.alpha3)
    law, image = DiagonalNetStationary(m, 0.1, depth=depth), DiagonalNetStationary(mirrored, 0.1, depth=depth)
    v = np.array([-0.3, 0.2, 1.0])
    np.testing.assert_allclose(image.pdf(-v), law.pdf(v), rtol=1e-12)
    np.testing.assert_allclose(image.cdf(-v), 1 - law.cdf(v), atol=1e-12)
    np.testing.assert_allclose(image.quantile([0.2, 0.7]), -law.quantile([0.8, 0.3]), rtol=1e-10)
    assert (image.mean(), image.mode(), image.var()) == pytest.approx((-law.mean(), -law.mode(), law.var()))


def test_a_wrong_sign_is_never_learnt():
    for depth in (1, 3):
        law = DiagonalNetStationary(GAUSSIAN, 0.1, depth=depth)
        assert law.pdf([-1.0, 0.0]).tolist() == [0.0, 0.0]
        assert law.cdf([-1.0, 0.0]).tolist() == [0.0, 0.0]
    assert DiagonalNetStationary(GAUSSIAN, 0.1, depth=0).cdf(0.0) > 1e-3


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"= 0.4, got 0.4: SGD collapses to zero"):
        DiagonalNetStationary(GAUSSIAN, 0.4)
    with pytest.raises(InputError, match=r"= 0.2, got 0.3: SGD collapses"):
        DiagonalNetStationary(GAUSSIAN, 0.3, weight_decay=0.5)
    with pytest.raises(InputError, match="weight_decay must be 0 at depth 2 >= 2, got 0.1"):
        DiagonalNetStationary(GAUSSIAN, 0.1, depth=2, weight_decay=0.1)
    with pytest.raises(InputError, match="beta2 must not be 0 at depth 3"):
        DiagonalNetStationary(LandscapeNoise.gaussian(0.0, 1.0), 0.1, depth=3)
    with pytest.raises(InputError, match=r"must be > 0, got 0 with alpha1=2, alpha3=2"):
        DiagonalNetStationary(LandscapeNoise.gaussian(1.0, 0.0), 0.1)
    with pytest.raises(InputError, match="temperature must be finite and > 0, got 0"):
        DiagonalNetStationary(GAUSSIAN, 0.0)
    with pytest.raises(InputError, match="depth must be a whole number >= 0, got -1"):
        DiagonalNetStationary(GAUSSIAN, 0.1, depth=-1)
    with pytest.raises(InputError, match="width must be a whole number >= 1, got 0"):
        DiagonalNetStationary(GAUSSIAN, 0.1, width=0)
    with pytest.raises(InputError, match="weight_decay must be finite and >= 0, got -1"):
        DiagonalNetStationary(GAUSSIAN, 0.1, weight_decay=-1.0)
    with pytest.raises(InputError, match=r"probability must be in \(0, 1\), got 1.0"):
        DiagonalNetStationary(GAUSSIAN, 0.1).quantile(1.0)
