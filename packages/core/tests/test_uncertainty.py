"""Thermodynamic and financial bounds on precision, and the estimators that feed them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.dynamics.markov_paths import MarkovPaths
from symdyn_core.dynamics.path_samples import estimate_gamma, fit_chain
from symdyn_core.dynamics.uncertainty import (
    implied_gamma_lower_bound,
    max_sharpe,
    tanh_bound,
    tur_current,
    utur_bound,
)
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator


def laws(seed, size, hidden=0):
    """Two laws on ``size`` points; of the first, the last ``hidden`` points have no weight."""
    generator = numpy_generator(seed, "laws")
    p, q = generator.dirichlet(np.ones(size), size=2)
    p[size - hidden :] = 0
    return p / p.sum(), q, generator


@given(seed=st.integers(0, 10**6), size=st.integers(2, 9))
def test_no_observable_beats_the_universal_bound_and_the_weight_reaches_it(seed, size):
    p, q, generator = laws(seed, size)
    weight = q / p
    gamma = float(p @ weight**2)
    for f in (generator.standard_normal(size), generator.exponential(size=size) ** 3, 2 - 3 * weight):
        mean = float(p @ f)
        variance = float(p @ (f - mean) ** 2)
        assert variance >= utur_bound(mean, float(q @ f), gamma) * (1 - 1e-9)
    assert utur_bound(mean, float(q @ f), gamma) == pytest.approx(variance, rel=1e-7)


@given(seed=st.integers(0, 10**6), size=st.integers(4, 9), hidden=st.integers(1, 2))
def test_with_absolute_irreversibility_only_what_the_first_law_reaches_counts(seed, size, hidden):
    p, q, generator = laws(seed, size, hidden)
    seen = p > 0
    p, q = p[seen], q[seen]
    weight = q / p
    overlap, gamma = float(q.sum()), float(p @ weight**2)
    assert overlap < 1
    for f in (generator.standard_normal(p.size), 1 + 2 * weight):
        mean = float(p @ f)
        variance = float(p @ (f - mean) ** 2)
        assert variance >= utur_bound(mean, float(q @ f), gamma, overlap) * (1 - 1e-9)
    assert utur_bound(mean, float(q @ f), gamma, overlap) == pytest.approx(variance, rel=1e-7)


def test_bounds_at_their_limits():
    assert utur_bound(1.0, 2.0, math.inf) == 0
    assert utur_bound(1.0, 1.0, 1.0) == 0
    assert tur_current(0.0, 0.0) == tanh_bound(0.0, 0.0) == 0
    assert tur_current(1.0, 0.0) > 1e14  # a current that costs nothing: as good as impossible
    assert tur_current(1e-17, 0.0) < 1e-18  # ... but what rounding leaves of a current is none
    assert tur_current(2.0, 1e-9) == pytest.approx(8e9, rel=1e-6)  # linear response: 2 mean^2 / cost
    assert tur_current(1.0, 2000.0) == 0
    assert tur_current(1.0, 0.5, 0.25) == tur_current(1.0, 0.75) == pytest.approx(2 / math.expm1(0.75))
    assert tanh_bound(2.0, 1.0) == 0
    assert max_sharpe(gamma=1.0) == 0


def test_sharpe_ratios_of_the_stock_stay_below_the_bound_and_a_power_claim_reaches_it():
    drift, rate, volatility = 0.12, 0.03, 0.2
    price_of_risk = (drift - rate) / volatility
    for horizon, bound, stock in ((0.25, 0.05193, 0.04925), (1.0, 0.22446, 0.18152)):
        limit = max_sharpe(market_price_of_risk=price_of_risk, horizon=horizon) ** 2
        assert limit == pytest.approx(bound, abs=5e-6)
        excess = (1 - math.exp((rate - drift) * horizon)) ** 2 / math.expm1(volatility**2 * horizon)
        assert excess == pytest.approx(stock, abs=5e-6)
        # S is lognormal under both laws; its power -price_of_risk / volatility is the discount factor.
        power = -price_of_risk / volatility
        size = volatility**2 * horizon

        def moment(a, growth, size=size):
            return math.exp(a * (growth - size / 2) + a**2 * size / 2)

        mean, priced = moment(power, drift * horizon), moment(power, rate * horizon)
        variance = moment(2 * power, drift * horizon) - mean**2
        assert (priced - mean) ** 2 / variance == pytest.approx(limit, rel=1e-12)
        assert limit > price_of_risk**2 * horizon


def test_implied_gamma_is_the_best_portfolios_squared_sharpe_ratio():
    generator = numpy_generator(0, "returns")
    returns = generator.standard_normal((400, 3)) @ generator.standard_normal((3, 3)) + [0.2, 0.0, -0.1]
    gamma = implied_gamma_lower_bound(returns)
    covariance = np.cov(returns.T, bias=True)
    best = np.linalg.solve(covariance, returns.mean(axis=0))
    for portfolio in (best, *generator.standard_normal((50, 3))):
        earned = returns @ portfolio
        assert (earned.mean() / earned.std()) ** 2 <= (gamma - 1) * (1 + 1e-9)
    assert ((returns @ best).mean() / (returns @ best).std()) ** 2 == pytest.approx(gamma - 1, rel=1e-9)
    assert implied_gamma_lower_bound(returns * [1e-6, 1.0, 1e6]) == pytest.approx(gamma, rel=1e-9)


def test_the_correction_takes_hindsight_out():
    generator = numpy_generator(1, "returns")
    truth = 1 + 5 * 0.2**2
    plain, corrected = np.array(
        [
            [implied_gamma_lower_bound(sample), implied_gamma_lower_bound(sample, corrected=True)]
            for sample in generator.standard_normal((600, 60, 5)) + 0.2
        ]
    ).T
    assert plain.mean() - truth > 0.08  # about n / T = 1/12
    assert corrected.mean() == pytest.approx(truth, abs=0.03)  # cut off at 1, it is a little high


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_gamma_from_samples(seed):
    generator = numpy_generator(seed, "ratios")
    ratios = generator.normal(-0.02, 0.2, size=4000)
    estimate = estimate_gamma(ratios)
    assert estimate.gamma == pytest.approx(np.mean(np.exp(2 * ratios)))
    assert estimate.gamma == pytest.approx(math.exp(0.04), rel=0.05)
    assert estimate.log_overlap == pytest.approx(0, abs=0.02)
    assert 0.8 * 4000 < estimate.effective_sample_size < 4000
    shifted = estimate_gamma(ratios + 800)
    assert shifted.gamma == math.inf
    assert shifted.log_gamma == pytest.approx(estimate.log_gamma + 1600)
    assert estimate_gamma([0.0, -math.inf]).gamma == pytest.approx(0.5)


def test_a_heavy_tail_shows_in_the_effective_sample_size():
    ratios = numpy_generator(2, "ratios").normal(-12.5, 5.0, size=4000)  # mean of e^R is 1, gamma is e^25
    estimate = estimate_gamma(ratios)
    assert estimate.effective_sample_size < 10
    assert estimate.log_gamma < 20


def test_a_fitted_chain_gives_gamma_back():
    generator = numpy_generator(3, "chain")
    chain = MarkovPaths([0.5, 0.3, 0.2], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.25, 0.25, 0.5]], steps=4)
    paths = chain.sample(20_000, generator)
    fitted = fit_chain(paths)
    assert np.abs(fitted.transition - chain.transition).max() < 0.02
    assert fitted.reversal_gamma() - 1 == pytest.approx(chain.reversal_gamma() - 1, rel=0.15)
    direct = estimate_gamma(chain.log_ratios(paths))
    assert direct.gamma - 1 == pytest.approx(chain.reversal_gamma() - 1, rel=0.2)
    assert direct.log_overlap == pytest.approx(0, abs=0.03)


def test_a_pseudocount_lets_a_rare_transition_be_reversible():
    paths = np.array([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(
        InputError, match="every transition must have a reverse, got 1 from state 0 to state 1"
    ):
        fit_chain(paths).reversal_gamma()
    assert fit_chain(paths, pseudocount=0.5).transition[1, 0] == pytest.approx(0.5 / 4)
    assert fit_chain(paths, pseudocount=0.5).reversal_gamma() > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: utur_bound(math.nan, 1.0, 2.0), "mean and reference_mean must be finite, got nan"),
        (lambda: utur_bound(0.0, 1.0, 0.5), r"gamma must be >= overlap\*\*2 = 1, got 0.5"),
        (lambda: utur_bound(0.0, 1.0, math.nan), "gamma must be >="),
        (lambda: utur_bound(0.0, 1.0, 1.0), "the laws agree, but the means differ by 1"),
        (lambda: utur_bound(0.0, 1.0, 2.0, overlap=0.0), r"overlap must be in \(0, 1\], got 0"),
        (lambda: tur_current(1.0, -0.1), "entropy_production must be >= 0, got -0.1"),
        (lambda: tur_current(1.0, 0.1, math.nan), "nonstationarity must be >= 0, got nan"),
        (lambda: tur_current(math.inf, 1.0), "mean must be finite, got inf"),
        (lambda: tanh_bound(1.0, 1.5), r"mean_squared_tanh must be in \[0, 1\], got 1.5"),
        (lambda: tanh_bound(math.nan, 0.5), "mean must be finite, got nan"),
        (lambda: max_sharpe(), "expected either gamma or market_price_of_risk with horizon"),
        (lambda: max_sharpe(2.0, 0.1, 1.0), "expected either gamma or"),
        (lambda: max_sharpe(0.9), "gamma must be finite and >= 1, got 0.9"),
        (lambda: max_sharpe(market_price_of_risk=0.4), "must be given together"),
        (
            lambda: max_sharpe(market_price_of_risk=math.nan, horizon=1.0),
            "market_price_of_risk must be finite",
        ),
        (lambda: max_sharpe(market_price_of_risk=0.4, horizon=0.0), "horizon must be finite and > 0, got 0"),
        (lambda: implied_gamma_lower_bound([]), r"must have shape \(periods, assets\)"),
        (lambda: implied_gamma_lower_bound([1.0, math.nan]), "excess_returns must be finite"),
        (lambda: implied_gamma_lower_bound([1.0]), "at least 2 periods for 1 assets, got 1"),
        (lambda: implied_gamma_lower_bound([0.1, 0.1, 0.1]), "of asset 0 must vary"),
        (
            lambda: implied_gamma_lower_bound([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]]),
            "must not be combinations of each other",
        ),
        (lambda: estimate_gamma([]), "log_ratios must be a vector"),
        (lambda: estimate_gamma([0.0, math.inf]), "below infinity"),
        (lambda: estimate_gamma([-math.inf]), "some of them finite"),
        (lambda: fit_chain([[0]]), "with steps >= 1"),
        (lambda: fit_chain([[0.0, 1.0]]), "whole numbers"),
        (lambda: fit_chain([[0, 3]], n_states=2), r"states in \[0, n_states=2\), got 0 to 3"),
        (lambda: fit_chain([[0, 1]]), "got none that leaves 1"),
        (lambda: fit_chain([[0, 1]], pseudocount=-1.0), "pseudocount must be finite and >= 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
