import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_finance.market import Economy, SymmetricMarket, clear
from symdyn_finance.wealth import gini, herfindahl, wealth_alpha

ECONOMY = Economy(trade_rate=0.5, cash_preference=0.4, redistribution=0.01, income_risk=0.1)

economies = st.builds(
    Economy,
    trade_rate=st.floats(0.01, 1.0),
    cash_preference=st.floats(0.05, 0.95),
    redistribution=st.floats(0.0, 1.0),
    income_risk=st.floats(0.0, 2.0),
)
seeds = st.integers(0, 2**32)
powers_of_two = st.integers(-30, 30).map(lambda k: 2.0**k)
exactly = settings(derandomize=True, deadline=None, max_examples=60)


def state(seed, n_agents=40):
    generator = np.random.default_rng(seed)
    return np.exp(generator.standard_normal(n_agents)), np.exp(generator.standard_normal(n_agents))


def after(economy, cash, shares, seed, steps=5):
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        cash, shares, price, volume = economy.step(cash, shares, generator)
    return cash, shares, price, volume


@exactly
@given(economies, seeds, powers_of_two)
def test_currency_unit_is_bit_exact_for_powers_of_two(economy, seed, a):
    cash, shares = state(seed)
    plain, scaled = after(economy, cash, shares, seed), after(economy, a * cash, shares, seed)
    np.testing.assert_array_equal(scaled[0], a * plain[0])
    np.testing.assert_array_equal(scaled[1], plain[1])
    np.testing.assert_array_equal(scaled[2:], (a * plain[2], plain[3]))  # NaN where nobody traded


@exactly
@given(economies, seeds, powers_of_two)
def test_share_split_is_bit_exact_for_powers_of_two(economy, seed, b):
    cash, shares = state(seed)
    plain, scaled = after(economy, cash, shares, seed), after(economy, cash, b * shares, seed)
    np.testing.assert_array_equal(scaled[0], plain[0])
    np.testing.assert_array_equal(scaled[1], b * plain[1])
    np.testing.assert_array_equal(scaled[2:], (plain[2] / b, b * plain[3]))


@exactly
@given(st.floats(0.01, 1.0), seeds)
def test_duality_of_cash_and_shares(trade_rate, seed):
    cash, shares = state(seed)
    mirror_cash, mirror_shares = shares, cash
    generator = np.random.default_rng(seed)
    for _ in range(20):
        buys = generator.random(cash.size) < 0.6
        cash, shares, price, _ = clear(cash, shares, buys, trade_rate)
        mirror_cash, mirror_shares, mirror_price, _ = clear(mirror_cash, mirror_shares, ~buys, trade_rate)
        assert price * mirror_price == pytest.approx(1.0, rel=1e-13)
    np.testing.assert_allclose(mirror_cash, shares, rtol=1e-12)
    np.testing.assert_allclose(mirror_shares, cash, rtol=1e-12)


@exactly
@given(economies, seeds)
def test_agents_are_interchangeable(economy, seed):
    cash, shares = state(seed)
    generator = np.random.default_rng(seed)
    order = generator.permutation(cash.size)
    buys, shocks = economy.decide(cash.size, generator), generator.standard_normal(cash.size)
    traded = clear(cash, shares, buys, economy.trade_rate)
    permuted = clear(cash[order], shares[order], buys[order], economy.trade_rate)
    np.testing.assert_allclose(permuted.shares, traded.shares[order], rtol=1e-12)
    np.testing.assert_allclose(
        economy.pay(permuted.cash, shocks[order]), economy.pay(traded.cash, shocks)[order], rtol=1e-12
    )


@exactly
@given(economies, seeds)
def test_nothing_is_lost_or_negative(economy, seed):
    cash, shares = state(seed)
    new_cash, new_shares, *_ = after(economy, cash, shares, seed)
    assert new_cash.sum() == pytest.approx(cash.sum(), rel=1e-13)
    assert new_shares.sum() == pytest.approx(shares.sum(), rel=1e-13)
    assert (new_cash >= 0).all()
    assert (new_shares >= 0).all()


def test_conservation_over_a_long_run():
    market = SymmetricMarket(2000, 0.5, 0.5, 0.01, 0.14)
    market.run(3000, observe_every=1000)
    assert market.cash.sum() == pytest.approx(2000, rel=1e-12)
    assert market.shares.sum() == pytest.approx(2000, rel=1e-12)


@exactly
@given(economies, seeds)
def test_step_is_a_literal_transcription_of_the_rules(economy, seed):
    cash, shares = state(seed, n_agents=7)
    generator = np.random.default_rng(seed)
    buys, xi = economy.decide(7, generator), generator.standard_normal(7)
    rate, kappa, sigma = economy.trade_rate, economy.redistribution, economy.income_risk

    m, s = list(cash), list(shares)
    demand = sum(rate * m[i] for i in range(7) if buys[i])
    supply = sum(rate * s[i] for i in range(7) if not buys[i])
    if demand > 0 and supply > 0:
        price = demand / supply
        for i in range(7):
            if buys[i]:
                m[i], s[i] = m[i] - rate * m[i], s[i] + rate * m[i] / price
            else:
                m[i], s[i] = m[i] + rate * s[i] * price, s[i] - rate * s[i]
    total = sum(m)
    m = [m[i] * math.exp(sigma * xi[i]) for i in range(7)]
    scale = total / sum(m)
    m = [(1 - kappa) * scale * m[i] + kappa * total / 7 for i in range(7)]

    found = economy.step(cash, shares, np.random.default_rng(seed))
    np.testing.assert_allclose(found.cash, m, rtol=1e-12)
    np.testing.assert_allclose(found.shares, s, rtol=1e-12)


def test_inflation_is_redistribution():
    rate, steps = 0.02, 300
    minting = SymmetricMarket(500, 0.5, 0.4, 0.0, 0.1, mint=rate, seed=3)
    taxing = SymmetricMarket(500, 0.5, 0.4, rate / (1 + rate), 0.1, seed=3)
    inflated, plain = minting.run(steps), taxing.run(steps)
    purchasing_power = (1 + rate) ** -np.arange(steps)
    np.testing.assert_allclose(inflated.price * purchasing_power, plain.price, rtol=1e-11)
    np.testing.assert_allclose(inflated.gini, plain.gini, rtol=1e-10)
    np.testing.assert_allclose(minting.cash / (1 + rate) ** steps, taxing.cash, rtol=1e-11)
    # The rate itself is the wrong law.
    wrong = SymmetricMarket(500, 0.5, 0.4, rate, 0.1, seed=3).run(steps)
    assert abs(inflated.price * purchasing_power / wrong.price - 1).max() > 1e-4


def test_one_sided_market_does_not_trade():
    cash, shares = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    for buys in (np.array([True, True]), np.array([False, False])):
        new_cash, new_shares, price, volume = clear(cash, shares, buys, 0.5)
        np.testing.assert_array_equal(new_cash, cash)
        np.testing.assert_array_equal(new_shares, shares)
        assert math.isnan(price)
        assert volume == 0


def test_same_seed_same_path_in_any_number_of_runs():
    whole = SymmetricMarket(100, 0.5, 0.4, 0.01, 0.1, seed=5)
    parts = SymmetricMarket(100, 0.5, 0.4, 0.01, 0.1, seed=5)
    other = SymmetricMarket(100, 0.5, 0.4, 0.01, 0.1, seed=6)
    once, first, second = whole.run(30), parts.run(10), parts.run(20)
    np.testing.assert_array_equal(once.price, np.concatenate([first.price, second.price]))
    assert second.start == 10
    assert not np.array_equal(once.price, other.run(30).price)


def test_path_and_agents_as_frames():
    market = SymmetricMarket(50, 0.5, 0.4, 0.01, 0.1)
    market.run(3)
    seen = []
    path = market.run(7, observe_every=3, progress=seen.append)
    frame = path.to_frame()
    assert list(frame.index) == list(range(3, 10))
    assert list(frame.columns) == ["price", "turnover", "gini", "herfindahl", "alpha"]
    assert list(np.flatnonzero(frame["gini"].notna())) == [0, 3, 6]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(path.returns, np.log(frame["price"]).diff().dropna())
    agents = market.to_frame()
    np.testing.assert_allclose(agents["wealth"], agents["cash"] + market.fair_price * agents["shares"])


def test_observed_inequality_is_that_before_the_trade():
    cash, shares = state(1)
    market = SymmetricMarket(40, 0.5, 0.4, 0.01, 0.1, cash=cash, shares=shares)
    wealth = market.wealth
    path = market.run(1)
    assert path.gini[0] == gini(wealth)
    assert path.herfindahl[0] == herfindahl(wealth)
    assert path.alpha[0] == wealth_alpha(wealth)


def test_agents_who_own_nothing_have_no_pareto_exponent():
    market = SymmetricMarket(3, 0.5, 0.5, 0.0, 0.0, cash=[0, 1, 1], shares=[0, 1, 1])
    assert np.isnan(market.run(2).alpha).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_agents": 1}, r"n_agents must be a whole number >= 2, got 1"),
        ({"n_agents": math.inf}, r"n_agents must be"),
        ({"n_agents": 10**14}, r"n_agents must fit into memory, got 100000000000000"),
        ({"n_agents": 10**30}, r"n_agents must fit into memory"),
        ({"trade_rate": 0.0}, r"trade_rate must be in \(0, 1\], got 0.0"),
        ({"cash_preference": 1.0}, r"cash_preference must be in \(0, 1\), got 1.0"),
        ({"redistribution": -0.1}, r"redistribution must be in \[0, 1\], got -0.1"),
        ({"income_risk": math.nan}, r"income_risk must be in \[0, 10\], got nan"),
        ({"mint": -1.0}, r"mint must be finite and >= 0, got -1.0"),
        ({"cash": [1.0]}, r"cash must have shape \(n_agents,\) = \(10,\), got \(1,\)"),
        ({"shares": [-1.0] + [1.0] * 9}, r"shares must be finite, >= 0 and not all zero"),
    ],
)
def test_bad_input(arguments, message):
    good = {
        "n_agents": 10,
        "trade_rate": 0.5,
        "cash_preference": 0.5,
        "redistribution": 0.01,
        "income_risk": 0.1,
    }
    with pytest.raises(InputError, match=message):
        SymmetricMarket(**{**good, **arguments})


def test_a_run_that_no_number_can_hold():
    with pytest.raises(InputError, match=r"steps must fit into memory, got 1000000000000000"):
        SymmetricMarket(10, 0.5, 0.5, 0.01, 0.1).run(10**15)
    with pytest.raises(InputError, match=r"mint must not create more money .*, got 1.0 in 1000 steps"):
        SymmetricMarket(10, 0.5, 0.5, 0.01, 0.1, mint=1.0).run(1000)
    assert math.isfinite(SymmetricMarket(10, 0.5, 0.5, 0.01, 0.1, mint=1.0).run(400).gini[-1])


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 2, "observe_every": 0}])
def test_bad_run(arguments):
    with pytest.raises(InputError, match=r"must be .* got 0"):
        SymmetricMarket(10, 0.5, 0.5, 0.01, 0.1).run(**arguments)
