"""From a log density to distribution function, quantiles and averages."""

import numpy as np
import pytest
from scipy import stats

from symdyn_core.dynamics.tabulated_law import Antiderivative, TabulatedLaw

PROBABILITIES = np.array([1e-12, 1e-6, 0.01, 0.3, 0.5, 0.9, 0.999])


@pytest.mark.parametrize("width", [1e-5, 0.1, 3.0])
def test_normal_laws_of_any_width_are_found_on_one_range(width):
    centre = 0.123
    law = TabulatedLaw(lambda s: -(((s - centre) / width) ** 2) / 2, -40.0, 40.0)
    exact = stats.norm(centre, width)
    quantiles = law.quantile(PROBABILITIES)
    np.testing.assert_allclose((quantiles - exact.ppf(PROBABILITIES)) / width, 0, atol=1e-8)
    np.testing.assert_allclose(law.cdf(exact.ppf(PROBABILITIES)), PROBABILITIES, rtol=1e-7)
    assert law.log_normaliser == pytest.approx(np.log(width * np.sqrt(2 * np.pi)), abs=1e-11)
    assert law.expectation(lambda s: (s - centre) ** 2) == pytest.approx(width**2, rel=1e-11)


@pytest.mark.parametrize("shape", [0.003, 0.4, 7.0])
def test_what_lies_beyond_the_left_end_is_not_lost(shape):
    # The logarithm of a Gamma variable; of shape 0.003, a tenth of all values lies below exp(-35).
    law = TabulatedLaw(lambda s: shape * s - np.exp(s), -35.0, 8.0, left_rate=shape)
    exact = stats.gamma(shape)
    points = np.array([-300.0, -50.0, -35.0, -5.0, 0.0, 2.0])
    np.testing.assert_allclose(law.cdf(points), exact.cdf(np.exp(points)), rtol=1e-11, atol=1e-300)
    p = np.array([0.05, 0.3, 0.6, 0.99]) if shape > 0.01 else np.array([0.3, 0.6, 0.9, 0.99])
    np.testing.assert_allclose(law.cdf(law.quantile(p)), p, rtol=1e-11)
    expected = exact.ppf(p)
    np.testing.assert_allclose(np.exp(law.quantile(p)), expected, rtol=1e-8, atol=1e-250)


def test_antiderivative_keeps_its_digits_away_from_a_singularity():
    integral = Antiderivative(lambda s: np.exp(-s), -30.0, 5.0, zero=1.0)
    points = np.array([-30.0, -12.3, 0.0, 0.9, 1.0, 4.9])
    np.testing.assert_allclose(integral(points), np.exp(-1.0) - np.exp(-points), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(integral(np.array([-99.0, 99.0])), integral(np.array([-30.0, 5.0])))
