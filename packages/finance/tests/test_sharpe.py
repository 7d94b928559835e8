import math

import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_finance.sharpe import (
    hansen_jagannathan_bound,
    implied_gamma_lower_bound,
    market_price_of_risk,
    max_sharpe,
)

DRIFT, RATE, VOLATILITY = 0.12, 0.03, 0.2


@pytest.mark.parametrize("horizon", [0.25, 1.0])
def test_no_claim_on_a_simulated_stock_beats_the_bound(horizon):
    """Claims valued by simulation under both laws: none earns more per risk, a power of the stock ties."""
    draws = numpy_generator(0, "stock").standard_normal(200_000)
    draws = np.concatenate([draws, -draws])

    def stock(growth):
        return np.exp((growth - VOLATILITY**2 / 2) * horizon + VOLATILITY * math.sqrt(horizon) * draws)

    theta = market_price_of_risk(DRIFT, RATE, VOLATILITY)
    bound = max_sharpe(market_price_of_risk=theta, horizon=horizon)

    def sharpe(payoff):
        seen = payoff(stock(DRIFT))
        return abs(seen.mean() - payoff(stock(RATE)).mean()) / seen.std()

    tie = sharpe(lambda s: s ** (-theta / VOLATILITY))
    assert tie == pytest.approx(bound, rel=0.01)
    claims = [lambda s, k=k: np.maximum(s - k, 0) for k in (0.95, 1.0, 1.05)]
    claims += [lambda s, k=k: s > k for k in (0.9, 1.0, 1.1)]
    claims += [lambda s: s, lambda s: -np.log(s)]
    best = max(sharpe(claim) for claim in claims)
    assert best < 1.005 * bound
    assert best < tie


def test_the_square_root_rule_lies_below():
    bound = max_sharpe(market_price_of_risk=0.45, horizon=1.0)
    assert 0.45 < bound == pytest.approx(math.sqrt(0.22446), abs=1e-5)


def test_a_discount_factor_of_least_volatility_prices_the_returns():
    """m = 1 - (R - mu) S^-1 mu prices every excess return at zero and has the volatility of the bound."""
    returns = numpy_generator(1, "returns").standard_normal((300, 4)) * [0.01, 0.02, 0.05, 0.1] + 0.004
    mean, covariance = returns.mean(axis=0), np.cov(returns.T, bias=True)
    factor = 1 - (returns - mean) @ np.linalg.solve(covariance, mean)
    np.testing.assert_allclose(factor @ returns / 300, 0, atol=1e-12)
    assert factor.std() == pytest.approx(hansen_jagannathan_bound(returns), rel=1e-9)
    assert hansen_jagannathan_bound(returns, 0.97) == pytest.approx(0.97 * factor.std(), rel=1e-9)
    assert implied_gamma_lower_bound(returns) == pytest.approx(1 + factor.var(), rel=1e-9)
    corrected = hansen_jagannathan_bound(returns, corrected=True)
    assert corrected < hansen_jagannathan_bound(returns)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: market_price_of_risk(0.1, math.nan, 0.2), "drift and rate must be finite, got 0.1 and nan"),
        (lambda: market_price_of_risk(0.1, 0.0, 0.0), "volatility must be finite and > 0, got 0.0"),
        (
            lambda: hansen_jagannathan_bound([0.1, 0.2], discount=0.0),
            "discount must be finite and > 0, got 0.0",
        ),
        (lambda: hansen_jagannathan_bound([0.1]), "at least 2 periods"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
