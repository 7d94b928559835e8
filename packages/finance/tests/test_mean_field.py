import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from symdyn_core.errors import InputError
from symdyn_finance.market import Economy, SymmetricMarket
from symdyn_finance.mean_field import WealthLaw, calibrate, exponents, mean_field

ECONOMY = Economy(trade_rate=0.5, cash_preference=0.5, redistribution=0.01, income_risk=0.02**0.5)


def test_infinite_market_has_an_inverse_gamma_law():
    theory = mean_field(ECONOMY)
    assert theory.alpha == pytest.approx(2.5, rel=1e-12)
    assert theory.herfindahl == theory.volatility == 0
    scipy_law = stats.invgamma(theory.alpha, scale=theory.alpha - 1)
    w = np.geomspace(0.05, 100, 50)
    np.testing.assert_allclose(theory.pdf(w), scipy_law.pdf(w), rtol=1e-12)
    np.testing.assert_allclose(theory.law.survival(w), scipy_law.sf(w), rtol=1e-12)
    assert theory.law.moment(1) == pytest.approx(1, rel=1e-12)
    assert theory.law.moment(3) == math.inf


@pytest.mark.parametrize(
    ("rate", "alpha"),
    [(1.0, 1 + 2 * 0.01 / 0.02), (1e-9, 1 + 2 * 0.01 / (0.5 * 0.02))],
    ids=["all is traded: cash-only wealth model", "nothing is traded: frozen portfolios"],
)
def test_limits_of_the_exponent(rate, alpha):
    assert mean_field(Economy(rate, 0.5, 0.01, 0.02**0.5)).alpha == pytest.approx(alpha, rel=1e-6)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(-8, 3).filter(lambda p: abs(p) > 1e-6), st.floats(0.1, 20), st.floats(0.1, 20))
def test_law_against_scipy(p, a, b):
    law = WealthLaw(p, a, b)
    peer = stats.geninvgauss(p, math.sqrt(a * b), scale=math.sqrt(b / a))
    w = peer.mean() * np.array([0.3, 1.0, 2.0])
    np.testing.assert_allclose(law.pdf(w), peer.pdf(w), rtol=1e-8)
    np.testing.assert_allclose(law.survival(w), peer.sf(w), rtol=1e-4)
    assert law.moment(1) == pytest.approx(peer.mean(), rel=1e-9)


def test_gini_of_the_finite_law_by_direct_quadrature():
    law = mean_field(ECONOMY, n_agents=500).law
    # Gini = integral of F (1 - F) over the mean.
    w = np.geomspace(1e-3, 1e3, 100_001)
    survival = law.survival(w)
    assert law.gini() == pytest.approx(integrate.trapezoid(survival * (1 - survival), w), rel=1e-5)


def test_finite_law_tends_to_the_infinite_one():
    infinite = mean_field(ECONOMY)
    gaps = [abs(mean_field(ECONOMY, n_agents=n).gini - infinite.gini) for n in (10**3, 10**5, 10**7, 10**9)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6
    # <w^2> = (alpha - 1) / (alpha - 2) = 3, approached slowly: the tail decides it.
    assert mean_field(ECONOMY, n_agents=10**12).herfindahl * 10**12 == pytest.approx(3, rel=1e-3)


def test_inverse_gaussian_point():
    # At N kappa q = lambda closure gives p = -1/2 and a = b: then H is a fraction.
    rate, q, kappa, sigma, n = 0.5, 0.5, 0.01, 0.14, 100
    theory = mean_field(Economy(rate, q, kappa, sigma), n_agents=n)
    assert theory.law.p == pytest.approx(-0.5, abs=1e-8)
    risk = sigma**2 * theory.cash_fraction_squared
    expected = (risk + 4 * kappa * q) / (4 * rate - 2 * rate**2 / (2 - rate))
    assert theory.herfindahl == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n_agents", [20, 1000, 10**6])
def test_closure(n_agents):
    law = mean_field(ECONOMY, n_agents=n_agents).law
    assert law.moment(1) == pytest.approx(1, abs=1e-9)
    assert law.moment(2) / n_agents == pytest.approx(mean_field(ECONOMY, n_agents).herfindahl, rel=1e-8)


@pytest.mark.parametrize(
    "economy",
    [
        Economy(0.5, 0.5, 0.01, 0.14),
        Economy(0.8, 0.4, 0.01, 0.12),
        Economy(0.5, 0.5, 0.005, 0.0),  # no income risk: trade alone makes inequality
        Economy(1.0, 0.3, 0.01, 0.1),
    ],
)
def test_small_markets_settle_to_the_finite_law(economy):
    n_agents, renewal = 400, 1 / (economy.redistribution * economy.cash_preference)
    market = SymmetricMarket(n_agents, *_rules(economy), seed=1)
    market.run(round(6 * renewal), observe_every=10**9)
    path = market.run(round(60 * renewal), observe_every=20)
    theory = mean_field(market)
    q = economy.cash_preference
    assert np.nanmean(path.herfindahl) == pytest.approx(theory.herfindahl, rel=0.05)
    assert np.nanmean(path.gini) == pytest.approx(theory.gini, rel=0.03)
    assert path.returns.std() == pytest.approx(theory.volatility, rel=0.04)
    assert path.turnover.mean() == pytest.approx(theory.turnover, rel=0.01)
    assert np.exp(np.log(path.price).mean()) == pytest.approx(theory.price, rel=0.01)
    # What the infinite market would show is a wrong law here.
    if theory.alpha < 4:
        infinite = math.sqrt(2 * (theory.alpha - 1) / (theory.alpha - 2) / n_agents / (q * (1 - q)))
        assert theory.alpha <= 2 or abs(path.returns.std() / infinite - 1) > 0.08
        assert abs(np.nanmean(path.gini) / mean_field(economy).gini - 1) > 0.03


def test_price_is_in_the_units_of_the_market():
    market = SymmetricMarket(10, *_rules(ECONOMY), cash=np.full(10, 6.0), shares=np.full(10, 2.0))
    assert mean_field(market).price == pytest.approx(3.0)
    assert mean_field(market).price == pytest.approx(market.fair_price)
    assert mean_field(ECONOMY, money_per_share=3.0).price == pytest.approx(3.0)


def test_inflation_acts_as_redistribution():
    minting = Economy(0.5, 0.4, 0.0, 0.1, mint=0.02)
    taxing = Economy(0.5, 0.4, 0.02 / 1.02, 0.1)
    assert mean_field(minting, 1000) == mean_field(taxing, 1000)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.floats(0.05, 0.95), st.floats(0.05, 1.0), st.floats(1e-4, 0.1), st.floats(0.02, 0.5))
def test_calibrate_inverts_the_mean_field(q, rate, kappa, sigma):
    economy = Economy(rate, q, kappa, sigma)
    theory = mean_field(economy)
    found = calibrate(theory.cash_fraction, theory.turnover, theory.gini, sigma)
    assert found.trade_rate == pytest.approx(rate, rel=1e-9)
    assert found.cash_preference == q
    assert found.redistribution == pytest.approx(kappa, rel=1e-6)


def test_size_exponent_on_the_stationary_ensemble():
    # Volatility is sqrt(H) up to a constant; medians, since H has a heavy tail. Equal agents would give 1/2.
    generator = np.random.default_rng(0)
    sizes = np.array([300, 3000, 30000])
    for alpha in (1.5, 3.0):
        typical = []
        for n in sizes:
            w = (alpha - 1) / generator.gamma(alpha, size=(400, n))
            typical.append(np.median(np.sqrt((w * w).sum(axis=1)) / w.sum(axis=1)))
        slope = np.polyfit(np.log(sizes), np.log(typical), 1)[0]
        assert -slope == pytest.approx(exponents(alpha)["volatility_size"], abs=0.03)


def test_inverse_cubic_law_from_square_root_impact():
    assert exponents(1.5, impact=0.5)["returns"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_field(Economy(0.5, 0.5, 0.0, 0.1)), "redistribution or mint must be positive"),
        (lambda: mean_field(Economy(0.5, 0.5, 0.1, 0.0)), "income_risk must be positive"),
        (lambda: mean_field(ECONOMY, n_agents=1), "n_agents must be at least 2, got 1"),
        (lambda: mean_field(Economy(0.9, 0.3, 0.05, 0.05), n_agents=2), "no stationary state"),
        (lambda: mean_field(ECONOMY).pdf([0.0]), "must be positive"),
        (lambda: WealthLaw.inverse_gamma(1.0), "above 1"),
        (lambda: calibrate(1.0, 0.2, 0.4, 0.1), "cash_fraction must be in"),
        (lambda: calibrate(0.5, 0.6, 0.4, 0.1), "turnover must be in"),
        (lambda: calibrate(0.5, 0.2, 1.0, 0.1), "gini must be in"),
        (lambda: calibrate(0.5, 0.2, 0.4, 0.0), "income_risk must be positive"),
        (lambda: calibrate(0.5, 0.2, 0.01, 1.0), "redistribution must be in"),
        (lambda: exponents(1.0), "alpha must be above 1"),
        (lambda: exponents(2.0, impact=0.0), "impact must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def _rules(economy):
    return economy.trade_rate, economy.cash_preference, economy.redistribution, economy.income_risk
