"""How fast is a step of the symmetric market, next to general frameworks and to plain NumPy?

The same rules everywhere: draw buyer or seller, clear, settle, income shock, redistribution; double precision
and normal shocks. Engines are interleaved, each timed in CPU seconds, the best of three rounds counts. What
comes out is checked too: every engine must conserve cash and shares and settle to the same Gini coefficient.

    python packages/finance/benchmarks/market_step.py

Peers: mesa and agentpy (``pip install "symdyn-finance[bench]"``); one that is not installed is left out.
"""

import importlib.util
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from symdyn_finance.market import SymmetricMarket
from symdyn_finance.wealth import gini

RATE, Q, KAPPA, SIGMA = 0.5, 0.5, 0.01, 0.14
Engine = Callable[[], tuple[NDArray[np.float64], NDArray[np.float64]]]


def ours(n_agents: int, steps: int) -> Engine:
    """Return a run of this package's market."""
    market = SymmetricMarket(n_agents, RATE, Q, KAPPA, SIGMA)

    def run() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        market.run(steps, observe_every=steps)
        return market.cash, market.shares

    return run


def plain_numpy(n_agents: int, steps: int) -> Engine:
    """Return a run of the rules as one would write them in a notebook, with masks and indexing."""
    generator = np.random.default_rng(0)
    cash, shares = np.ones(n_agents), np.ones(n_agents)

    def run() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        nonlocal cash, shares
        for _ in range(steps):
            buys = generator.random(n_agents) < 1 - Q
            sells = ~buys
            spent, offered = RATE * cash[buys], RATE * shares[sells]
            price = spent.sum() / offered.sum()
            cash[buys] -= spent
            shares[buys] += spent / price
            shares[sells] -= offered
            cash[sells] += offered * price
            total = cash.sum()
            cash = cash * np.exp(SIGMA * generator.standard_normal(n_agents))
            cash = (1 - KAPPA) * cash * total / cash.sum() + KAPPA * total / n_agents
        return cash, shares

    return run


def with_mesa(n_agents: int, steps: int) -> Engine:
    """Return a run of the rules on mesa's agents."""
    import mesa

    class Trader(mesa.Agent):
        def __init__(self, model: mesa.Model) -> None:
            super().__init__(model)
            self.cash, self.shares, self.buys = 1.0, 1.0, False

        def order(self) -> None:
            self.buys = self.random.random() < 1 - Q
            if self.buys:
                self.model.demand += RATE * self.cash
            else:
                self.model.supply += RATE * self.shares

        def settle(self) -> None:
            price = self.model.demand / self.model.supply
            if self.buys:
                spent = RATE * self.cash
                self.cash -= spent
                self.shares += spent / price
            else:
                offered = RATE * self.shares
                self.shares -= offered
                self.cash += offered * price
            self.model.before += self.cash
            self.cash *= math.exp(SIGMA * self.random.gauss(0.0, 1.0))
            self.model.after += self.cash

        def share(self) -> None:
            total = self.model.before
            self.cash = (1 - KAPPA) * self.cash * total / self.model.after + KAPPA * total / n_agents

    class Market(mesa.Model):
        def __init__(self) -> None:
            super().__init__(seed=0)
            Trader.create_agents(self, n_agents)

        def step(self) -> None:
            self.demand = self.supply = self.before = self.after = 0.0
            self.agents.do("order").do("settle").do("share")

    market = Market()

    def run() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        for _ in range(steps):
            market.step()
        return np.array(market.agents.get("cash")), np.array(market.agents.get("shares"))

    return run


def with_agentpy(n_agents: int, steps: int) -> Engine:
    """Return a run of the rules on agentpy's agents."""
    import agentpy

    class Trader(agentpy.Agent):
        def setup(self) -> None:
            self.cash, self.shares, self.buys = 1.0, 1.0, False

        def order(self) -> None:
            self.buys = self.model.random.random() < 1 - Q
            if self.buys:
                self.model.demand += RATE * self.cash
            else:
                self.model.supply += RATE * self.shares

        def settle(self) -> None:
            price = self.model.demand / self.model.supply
            if self.buys:
                spent = RATE * self.cash
                self.cash -= spent
                self.shares += spent / price
            else:
                offered = RATE * self.shares
                self.shares -= offered
                self.cash += offered * price
            self.model.before += self.cash
            self.cash *= math.exp(SIGMA * self.model.random.gauss(0.0, 1.0))
            self.model.after += self.cash

        def share(self) -> None:
            total = self.model.before
            self.cash = (1 - KAPPA) * self.cash * total / self.model.after + KAPPA * total / n_agents

    class Market(agentpy.Model):
        def setup(self) -> None:
            self.traders = agentpy.AgentList(self, n_agents, Trader)

        def step(self) -> None:
            self.demand = self.supply = self.before = self.after = 0.0
            self.traders.order()
            self.traders.settle()
            self.traders.share()

    market = Market({"seed": 0})
    market.sim_setup(steps=10**9, seed=0)

    def run() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        for _ in range(steps):
            market.step()
        return np.array(list(market.traders.cash)), np.array(list(market.traders.shares))

    return run


def measure(engines: dict[str, Engine], work: dict[str, float]) -> dict[str, float]:
    """Return agent-steps per CPU second, best of three interleaved rounds."""
    best = dict.fromkeys(engines, 0.0)
    for _ in range(3):
        for name, run in engines.items():
            start = time.process_time()
            cash, shares = run()
            best[name] = max(best[name], work[name] / (time.process_time() - start))
            for held in (cash, shares):
                assert abs(held.sum() / held.size - 1) < 1e-9, f"{name} does not conserve"
    return best


def main() -> None:
    """Print the table."""
    slow = {"mesa": with_mesa, "agentpy": with_agentpy}
    peers = {name: make for name, make in slow.items() if importlib.util.find_spec(name)}
    for name in slow.keys() - peers.keys():
        print(f"{name} is not installed and left out")
    print(f"{'agents':>9}  {'engine':<16} {'agent-steps / CPU s':>20}  {'symdyn is faster by':>20}")
    for n_agents in (1_000, 10_000, 100_000):
        makers = {"symdyn": ours, "NumPy, notebook": plain_numpy, **peers}
        # Some tenths of a second of work each: a Python call per agent costs a microsecond or two.
        steps = {name: max(2, (250_000 if name in peers else 5_000_000) // n_agents) for name in makers}
        engines = {name: make(n_agents, steps[name]) for name, make in makers.items()}
        rates = measure(engines, {name: float(n_agents * count) for name, count in steps.items()})
        for name, rate in rates.items():
            print(f"{n_agents:>9}  {name:<16} {rate:>20.3g}  {rates['symdyn'] / rate:>19.1f}x")
        if n_agents == 1_000:
            ginis = {name: gini(np.add(*run())) for name, run in engines.items()}
            spread = max(ginis.values()) - min(ginis.values())
            assert spread < 0.1, f"the engines disagree on inequality: {ginis}"
            print(" " * 11 + "Gini: " + ", ".join(f"{name} {value:.3f}" for name, value in ginis.items()))


if __name__ == "__main__":
    main()
