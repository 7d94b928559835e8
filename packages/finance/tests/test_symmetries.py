import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_finance.market import Economy, clear
from symdyn_finance.symmetries import check_symmetries

ECONOMY = Economy(trade_rate=0.5, cash_preference=0.4, redistribution=0.02, income_risk=0.1)


def trade(cash, shares, generator):
    return clear(cash, shares, generator.random(cash.size) >= 0.4, 0.5)


def mirrored_trade(cash, shares, generator):
    return clear(cash, shares, generator.random(cash.size) < 0.4, 0.5)


def test_our_market_has_all_of_them():
    for seed in range(3):
        report = check_symmetries(ECONOMY.step, seed=seed)
        assert report.holds
        assert report.violated == []
        assert [check.holds for check in report.checks] == [True, True, None, True, True]


def test_trade_alone_is_dual():
    report = check_symmetries(trade, dual=mirrored_trade)
    assert [check.holds for check in report.checks] == [True] * 5


def test_income_in_cash_breaks_duality():
    def dual(cash, shares, generator):
        traded = mirrored_trade(cash, shares, generator)
        return traded._replace(cash=ECONOMY.pay(traded.cash, generator.standard_normal(cash.size)))

    assert check_symmetries(ECONOMY.step, dual=dual).violated == ["S3 duality"]


def fixed_order(cash, shares, generator):
    """Everyone spends up to one unit of money, whatever its worth."""
    buys = generator.random(cash.size) >= 0.4
    spent, offered = np.minimum(cash, 1.0) * buys, 0.5 * shares * ~buys
    price = spent.sum() / offered.sum()
    return cash - spent + offered * price, shares - offered + spent / price, price


def whole_shares(cash, shares, generator):
    """Sellers bring one share each, if they have it."""
    buys = generator.random(cash.size) >= 0.4
    spent, offered = 0.5 * cash * buys, np.minimum(shares, 1.0) * ~buys
    price = spent.sum() / offered.sum()
    return cash - spent + offered * price, shares - offered + spent / price, price


def first_come(cash, shares, generator):
    """The first agent collects a commission."""
    new_cash, new_shares, price, _ = trade(cash, shares, generator)
    commission = 0.01 * new_cash
    new_cash = new_cash - commission
    new_cash[0] += commission.sum()
    return new_cash, new_shares, price


def dividend(cash, shares, generator):
    """Shares pay out of nowhere, in proportion to their worth."""
    new_cash, new_shares, price, _ = trade(cash, shares, generator)
    return new_cash + 0.001 * price * new_shares, new_shares, price


def share_leak(cash, shares, generator):
    new_cash, new_shares, price, _ = trade(cash, shares, generator)
    return new_cash, 0.999 * new_shares, price


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (fixed_order, ["S1 currency unit"]),
        (whole_shares, ["S2 share split"]),
        (first_come, ["S4 equal agents"]),
        (dividend, ["S5 closure"]),
        (share_leak, ["S5 closure"]),
    ],
)
def test_a_broken_rule_is_caught_and_named(rule, broken):
    report = check_symmetries(rule)
    assert report.violated == broken
    assert not report.holds
    assert "VIOLATED" in str(report)
    assert list(report.to_frame().query("holds == False").index) == broken


def test_a_rule_without_randomness():
    def barter(cash, shares, generator):
        return np.full_like(cash, cash.mean()), np.full_like(shares, shares.mean()), cash.sum() / shares.sum()

    assert check_symmetries(barter, dual=barter).holds

    def privilege(cash, shares, generator):
        cash = cash.copy()
        cash[0], cash[1] = cash[0] + 0.01 * cash[1], 0.99 * cash[1]
        return cash, shares.copy(), 1 * cash.sum() / shares.sum()

    assert check_symmetries(privilege).violated == ["S4 equal agents"]


def test_own_state():
    cash, shares = np.arange(1.0, 9.0), np.arange(8.0, 0.0, -1.0)
    assert check_symmetries(trade, cash=cash, shares=shares).holds


GLOBAL = np.random.default_rng(0)


def changes_arguments(cash, shares, generator):
    cash *= 2
    return cash, shares, 1.0


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (lambda m, s, g: trade(m, s, GLOBAL), {}, "two runs with one seed differ"),
        (changes_arguments, {}, "changed the cash or shares"),
        (lambda m, s, g: None, {}, r"must return \(cash, shares, price"),
        (lambda m, s, g: (m, s), {}, r"must return \(cash, shares, price"),
        (lambda m, s, g: (m[1:], s, 1.0), {}, "shape"),
        (trade, {"repetitions": 1}, "repetitions must be at least 2, got 1"),
        (trade, {"cash": np.ones(3), "shares": np.ones(4)}, "one length"),
        (trade, {"cash": np.zeros(3), "shares": np.ones(3)}, "positive totals"),
    ],
)
def test_bad_input(rule, arguments, message):
    with pytest.raises(InputError, match=message):
        check_symmetries(rule, **arguments)
