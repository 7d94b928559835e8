"""Exact laws of a chain's paths by transfer matrices, against lists of all paths."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.dynamics.markov_paths import MarkovPaths
from symdyn_core.dynamics.uncertainty import tur_current, utur_bound
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator

chains = st.builds(
    lambda seed, n, steps, c: random_chain(numpy_generator(seed, "chain"), n, steps, c),
    st.integers(0, 10**6),
    st.integers(2, 3),
    st.integers(1, 4),
    st.sampled_from([0.3, 1.0, 3.0]),
)


def random_chain(generator, n, steps, concentration):
    transition = generator.random((n, n)) ** 2 + 0.02
    initial = generator.dirichlet(np.full(n, concentration)) + 1e-6
    return MarkovPaths(initial / initial.sum(), transition / transition.sum(axis=1, keepdims=True), steps)


def current(generator, n):
    d = generator.standard_normal((n, n))
    return d - d.T


class Listed:
    """Every path of a chain, one by one, literally as the definitions say."""

    def __init__(self, chain):
        def chance(path, start):
            return start[path[0]] * math.prod(chain.transition[a, b] for a, b in itertools.pairwise(path))

        self.paths = list(itertools.product(range(chain.n_states), repeat=chain.steps + 1))
        self.p = np.array([chance(path, chain.initial) for path in self.paths])
        last = np.array(
            [
                sum(p for p, x in zip(self.p, self.paths, strict=True) if x[-1] == k)
                for k in range(chain.n_states)
            ]
        )
        backwards = [path[::-1] for path in self.paths]
        self.q = np.array([chance(path, chain.initial) for path in backwards])
        reversed_process = np.array([chance(path, last) for path in backwards])
        self.entropy = float(self.p @ np.log(self.p / reversed_process))
        self.divergence = float(last @ np.log(last / chain.initial))
        self.ratio = np.log(self.q / self.p)

    def moments(self, d):
        totals = np.array([sum(d[a, b] for a, b in itertools.pairwise(path)) for path in self.paths])
        mean = float(self.p @ totals)
        return mean, float(self.p @ (totals - mean) ** 2)


@settings(max_examples=40)
@given(chain=chains, seed=st.integers(0, 100))
def test_transfer_matrices_agree_with_the_list_of_all_paths(chain, seed):
    listed = Listed(chain)
    d = current(numpy_generator(seed, "current"), chain.n_states)
    assert chain.entropy_production() == pytest.approx(listed.entropy, abs=1e-12)
    assert chain.nonstationarity() == pytest.approx(listed.divergence, abs=1e-12)
    assert chain.reversal_gamma() == pytest.approx(float(listed.p @ np.exp(2 * listed.ratio)), rel=1e-11)
    found = chain.current_statistics(d)
    assert (found.mean, found.variance) == pytest.approx(listed.moments(d), rel=1e-10, abs=1e-13)
    assert chain.mean_squared_tanh() == pytest.approx(
        float(listed.p @ np.tanh(listed.ratio / 2) ** 2), rel=1e-10
    )
    states, chances = chain.paths()
    assert [tuple(path) for path in states.tolist()] == listed.paths
    np.testing.assert_allclose(chances, listed.p, rtol=1e-12)
    np.testing.assert_allclose(chain.log_ratios(states), listed.ratio, atol=1e-12)


@settings(max_examples=40)
@given(chain=chains, seed=st.integers(0, 100))
def test_no_current_beats_its_bounds(chain, seed):
    found = chain.current_statistics(current(numpy_generator(seed, "current"), chain.n_states))
    squared = found.mean**2
    tanh, plain = chain.tanh_bound(found.mean), chain.least_variance(found.mean)
    # Some chains of two states reach the tanh^2 bound, so that rounding decides the sign of the slack.
    assert found.variance >= tanh * (1 - 1e-9)
    assert tanh >= plain * (1 - 1e-9)
    assert found.variance >= utur_bound(found.mean, -found.mean, chain.reversal_gamma()) * (1 - 1e-9)
    assert utur_bound(found.mean, -found.mean, chain.reversal_gamma()) == pytest.approx(
        4 * squared / (chain.reversal_gamma() - 1), rel=1e-6
    )


@settings(max_examples=30)
@given(chain=chains)
def test_reversal_has_the_cost_of_entropy_and_nonstationarity(chain):
    ratios, weights = chain.log_ratio_law()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert -(weights @ ratios) == pytest.approx(
        chain.entropy_production() + chain.nonstationarity(), abs=1e-11
    )
    assert weights @ np.exp(ratios) == pytest.approx(1, abs=1e-11)
    assert weights @ np.exp(2 * ratios) == pytest.approx(chain.reversal_gamma(), rel=1e-11)


def test_entropy_production_alone_bounds_stationary_chains_only():
    generator = numpy_generator(0, "chains")
    beaten = {True: 0, False: 0}
    for _ in range(300):
        chain = random_chain(generator, 2, 3, 1.0)
        d = current(generator, 2)
        for stationary in beaten:
            used = MarkovPaths.stationary(chain.transition, 3) if stationary else chain
            found = used.current_statistics(d)
            beaten[stationary] += found.variance < tur_current(found.mean, used.entropy_production()) * (
                1 - 1e-9
            )
    assert beaten[True] == 0
    assert beaten[False] > 60


def test_long_chains_neither_overflow_nor_cancel():
    ring = np.array([[0.1, 0.6, 0.3], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1]])
    drift, rate = 0.3, 0.3 * math.log(2)
    for steps in (10, 20_000):
        chain = MarkovPaths.stationary(ring, steps)
        assert chain.nonstationarity() == pytest.approx(0, abs=1e-12)
        assert chain.entropy_production() == pytest.approx(steps * rate, rel=1e-9)
        # Steps round the ring are independent: +1 with 0.6, -1 with 0.3.
        found = chain.current_statistics([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
        assert found.mean == pytest.approx(steps * drift, rel=1e-9)
        assert found.variance == pytest.approx(steps * (0.9 - drift**2), rel=1e-9)
        assert chain.log_reversal_gamma() == pytest.approx(
            steps * math.log(0.1 + 0.3**2 / 0.6 + 0.6**2 / 0.3), rel=1e-9
        )
    assert chain.reversal_gamma() == math.inf
    far = MarkovPaths.stationary(ring, 300)
    ratios, _ = far.log_ratio_law()
    assert ratios.size < 2000
    assert far.least_variance(90.0) <= far.tanh_bound(90.0)


def test_samples_follow_the_law():
    chain = MarkovPaths([0.2, 0.0, 0.8], [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 0.9, 0.1]], steps=2)
    paths = chain.sample(40_000, numpy_generator(1, "paths"))
    states, chances = chain.paths()
    counts = np.array([(paths == path).all(axis=1).sum() for path in states])
    assert counts[chances == 0].sum() == 0
    seen = chances > 0
    chi2 = ((counts[seen] - 40_000 * chances[seen]) ** 2 / (40_000 * chances[seen])).sum()
    assert chi2 < 2.5 * seen.sum()


def test_a_start_without_reverse_still_has_a_current_and_an_entropy_production():
    chain = MarkovPaths([1.0, 0.0], [[0.5, 0.5], [0.5, 0.5]], steps=1)
    assert chain.entropy_production() == pytest.approx(math.log(2))
    assert chain.current_statistics([[0, 1], [-1, 0]]).mean == 0.5
    for quantity in (chain.nonstationarity, chain.reversal_gamma, chain.log_ratio_law):
        with pytest.raises(InputError, match="initial must be > 0 wherever a path can end.*got 0 in state 1"):
            quantity()


def test_a_one_way_transition_is_named_unless_nothing_gets_there():
    transition = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.0, 0.7]]
    message = "every transition must have a reverse, got 0.3 from state 2 to state 0 and 0 back"
    chain = MarkovPaths([0.2, 0.2, 0.6], transition, steps=2)
    for quantity in (chain.entropy_production, chain.reversal_gamma, chain.mean_squared_tanh):
        with pytest.raises(InputError, match=message):
            quantity()
    assert MarkovPaths([0.5, 0.5, 0.0], transition, steps=2).entropy_production() > 0


@pytest.mark.parametrize(
    ("transition", "sets"),
    [
        ([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], r"\[0, 1\], \[2\]"),
        ([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.1, 0.1, 0.8]], r"\[0, 1\], \[2\]"),
    ],
)
def test_a_reducible_chain_has_no_one_stationary_law(transition, sets):
    with pytest.raises(InputError, match=f"transition must be irreducible.*fall apart into {sets}"):
        MarkovPaths.stationary(transition, steps=3)


FAIR = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MarkovPaths([0.5, 0.5], [[0.5, 0.4], [0.5, 0.5]], 1),
            "row 0 of transition must sum to 1, got 0.9",
        ),
        (lambda: MarkovPaths([0.5, 0.4], FAIR, 1), "initial must sum to 1, got 0.9"),
        (lambda: MarkovPaths([1.5, -0.5], FAIR, 1), "initial must hold finite probabilities >= 0, got -0.5"),
        (
            lambda: MarkovPaths([0.5, 0.5], [[math.nan, 1.0], [0.5, 0.5]], 1),
            "transition must hold finite .* got nan",
        ),
        (
            lambda: MarkovPaths([0.5, 0.5], [[math.inf, 1.0], [0.5, 0.5]], 1),
            "transition must hold finite .* got inf",
        ),
        (
            lambda: MarkovPaths([1.0], FAIR, 1),
            r"must have shapes \(n,\) and \(n, n\), got \(1,\) and \(2, 2\)",
        ),
        (lambda: MarkovPaths([0.5, 0.5], FAIR, 0), "steps must be a whole number >= 1, got 0"),
        (lambda: MarkovPaths([0.5, 0.5], FAIR, 1.5), "steps must be a whole number >= 1, got 1.5"),
        (lambda: MarkovPaths([0.5, 0.5], FAIR, 30).paths(), "must be at most 2,000,000 to list paths"),
        (
            lambda: MarkovPaths([0.5, 0.5], FAIR, 1).current_statistics([1.0]),
            "increments must be finite and of shape",
        ),
        (
            lambda: MarkovPaths([0.5, 0.5], FAIR, 1).log_ratios([[0, 1, 0]]),
            "must have steps . 1 = 2 states, got 3",
        ),
        (
            lambda: MarkovPaths([0.5, 0.5], np.eye(2), 1).log_ratios([[0, 1]]),
            "paths must be possible, got .0, 1.",
        ),
        (
            lambda: MarkovPaths([0.5, 0.5], FAIR, 1).sample(0, numpy_generator(0)),
            "size must be at least 1, got 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_too_many_kinds_of_paths_are_refused():
    chain = random_chain(numpy_generator(2, "chain"), 6, 40, 1.0)
    with pytest.raises(InputError, match="R must take at most 500,000 values to be listed"):
        chain.log_ratio_law()
