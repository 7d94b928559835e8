"""Compiled ensembles of few parameters: the same as torch, as naive loops and as closed forms."""

import numba
import numpy as np
import pytest
import torch

from symdyn_core.dynamics import few
from symdyn_core.dynamics.few import simulate_few
from symdyn_core.errors import InputError

DATA = np.random.default_rng(0).standard_normal((12, 3))


@numba.njit
def regression(theta, draw, out):
    residual = theta[0] * draw[0] + theta[1] * draw[1] - draw[2]
    out[0] = 2 * residual * draw[0]
    out[1] = 2 * residual * draw[1]


@numba.njit
def follow(theta, draw, out):
    out[0] = -draw[0]


@numba.njit
def parabola(theta, draw, out):
    out[0] = theta[0] - draw[0]


@numba.njit
def explosive(theta, draw, out):
    out[0] = -(theta[0] ** 3)


@numba.njit
def beyond_three(theta):
    return theta[0] > 3


@numba.njit
def overrun(theta, draw, out):
    out[1] = theta[0]


@numba.njit
def forgetful(theta, draw, out):
    pass


def plain(theta, draw, out):
    out[0] = theta[0]


@numba.njit
def ill_typed(theta, draw, out):
    out[0] = theta.nothing


@numba.njit
def not_a_predicate(theta):
    return theta[0]


@numba.njit
def far(theta):
    return theta[5] > 0


def regress(**changes):
    settings = {"data": DATA, "learning_rate": 0.05, "steps": 40, "seed": 1, "batch_size": 3}
    return simulate_few(regression, np.ones((11, 2)), **{**settings, **changes})


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3), (0.7, 0.2)])
def test_full_batches_move_as_torch_does(momentum, weight_decay):
    # An epoch that is one batch holds every row, in whatever order: nothing random is left.
    result = regress(
        batch_size=12, replacement=False, momentum=momentum, weight_decay=weight_decay, learning_rate=0.1
    )
    theta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    rows = torch.tensor(DATA)
    for _ in range(40):
        optimizer.zero_grad()
        (rows[:, :2] @ theta - rows[:, 2]).square().mean().backward()
        optimizer.step()
    assert result.params == pytest.approx(np.tile(theta.detach().numpy(), (11, 1)), rel=1e-10)


@pytest.mark.parametrize("settings", [{}, {"replacement": False}, {"momentum": 0.5}])
def test_a_replica_is_the_same_among_many_alone_and_in_threads(settings):
    many, few_ = (
        regress(**settings),
        simulate_few(
            regression,
            np.ones((2, 2)),
            **{"data": DATA, "learning_rate": 0.05, "steps": 40, "seed": 1, "batch_size": 3, **settings},
        ),
    )
    assert (many.params[:2] == few_.params).all()
    assert (many.params == regress(threads=3, **settings).params).all()
    assert len(np.unique(many.params[:, 0])) == 11
    assert (many.params != regress(**{**settings, "seed": 2}).params).all()


def test_blocks_do_not_matter(monkeypatch):
    whole = regress(steps=101, average_after=20, replacement=False, momentum=0.3)
    monkeypatch.setattr(few, "_BLOCK", 8 * 3 * 3 * 7)
    parts = regress(steps=101, average_after=20, replacement=False, momentum=0.3)
    for name in ("params", "mean", "covariance"):
        assert (getattr(whole, name) == getattr(parts, name)).all(), name


def test_it_walks_as_its_random_numbers_do():
    from symdyn_core.dynamics import streams
    from symdyn_core.random import derive_seed

    result = simulate_few(
        follow, np.zeros((3, 1)), draws=["uniform"], learning_rate=[1.0, 2.0, 0.5], steps=50, seed=9
    )
    numbers = np.empty((3, 50, 1))
    streams.fill_uniform(streams.stream_states(derive_seed(9, "draws"), 3, 1), 0, numbers)
    walked = numbers[:, :, 0].sum(axis=1) * [1.0, 2.0, 0.5]
    assert result.params[:, 0] == pytest.approx(walked, rel=1e-12)


def test_epochs_use_every_row_once_and_leave_out_what_fills_no_batch():
    rows = 2.0 ** np.arange(5)[:, None]

    def epoch(batch_size, steps):
        return simulate_few(
            follow, np.zeros((30, 1)), data=rows, batch_size=batch_size, replacement=False,
            learning_rate=float(batch_size), steps=steps, seed=0,
        ).params[:, 0]  # fmt: skip

    assert (epoch(1, 5) == 31).all()
    assert (epoch(1, 10) == 62).all()
    assert {bin(int(total)).count("1") for total in epoch(2, 2)} == {4}
    assert len(set(epoch(2, 2))) == 5  # another row is left out each time


def test_time_averages_are_those_of_the_trajectory():
    states = np.stack([regress(steps=steps).params for steps in range(1, 41)])
    result = regress(average_after=25)
    assert result.mean == pytest.approx(states[25:].mean(axis=0), rel=1e-12)
    assert result.covariance[4] == pytest.approx(np.cov(states[25:, 4].T, bias=True), rel=1e-9)
    naive = np.einsum("tri,trj->rij", states[25:], states[25:]) / 15
    assert result.second == pytest.approx(naive, rel=1e-12)
    assert regress().mean is None
    assert regress().second is None


def test_averages_keep_their_digits_far_from_zero():
    shifted = np.array([[1e8 + 1], [1e8 - 1]])
    result = simulate_few(
        parabola,
        np.full((4, 1), 1e8),
        data=shifted,
        learning_rate=0.5,
        steps=100_000,
        seed=0,
        average_after=0,
    )
    assert result.covariance.ravel() == pytest.approx(np.full(4, 1 / 3), rel=0.05)  # lr / (2 - lr)


def test_stationary_variance_of_an_autoregression():
    # theta' = (1 - lr) theta + lr z with a mean of S draws: lr / (2 - lr) / S
    result = simulate_few(
        parabola, np.zeros((64, 1)), draws=["normal"], batch_size=2, learning_rate=0.5, steps=20_000, seed=4,
        average_after=100,
    )  # fmt: skip
    assert result.second.mean() == pytest.approx(1 / 6, rel=0.01)
    assert abs(result.mean.mean()) < 0.005


def test_diverged_replicas_freeze_and_are_counted():
    start = np.array([[0.1], [3.0], [0.2], [50.0]])
    result = simulate_few(explosive, start, learning_rate=1.0, steps=12, seed=0, average_after=0)
    states, survived = start[:, 0].copy(), np.full(4, 12)
    for replica in range(4):
        for step in range(12):
            with np.errstate(over="ignore"):
                moved = states[replica] + states[replica] ** 3
            if not np.isfinite(moved):
                survived[replica] = step
                break
            states[replica] = moved
    assert result.alive.tolist() == [True, False, True, False]
    assert result.steps_survived.tolist() == survived.tolist()
    assert result.params[:, 0] == pytest.approx(states, rel=1e-12)
    assert result.diverged == 0.5
    assert np.isnan(result.mean[:, 0]).tolist() == [False, True, False, True]
    assert np.isnan(result.covariance[:, 0, 0]).tolist() == [False, True, False, True]


def test_first_passage_of_a_random_walk():
    # Steps of +-1 from 0 until beyond 3, that is 4: the reflection principle gives the law of the time.
    walk = {"draws": ["sign"], "learning_rate": 1.0, "seed": 2, "stop_when": beyond_three}
    result = simulate_few(follow, np.zeros((20_000, 1)), steps=16, **walk)
    passed = result.stopped_at >= 0
    assert (result.params[passed, 0] == 4).all()
    assert (result.params[~passed, 0] < 4).all()
    assert result.alive.all()
    assert (result.steps_survived == np.where(passed, result.stopped_at, 16)).all()
    # P(max >= 4 within n steps) = 2 P(S_n > 4) + P(S_n = 4); first possible at 4 steps with 2^-4
    assert (result.stopped_at == 4).mean() == pytest.approx(1 / 16, abs=0.007)
    from scipy import stats

    ups = stats.binom(16, 0.5)
    assert passed.mean() == pytest.approx(2 * ups.sf(10) + ups.pmf(10), abs=0.014)
    at_once = simulate_few(follow, np.full((3, 1), 5.0), steps=4, average_after=0, **walk)
    assert at_once.stopped_at.tolist() == [0, 0, 0]
    assert np.isnan(at_once.mean).all()


def test_without_samples_it_is_gradient_descent():
    result = simulate_few(explosive, np.array([[0.5]]), learning_rate=0.1, steps=2, seed=0)
    assert result.params[0, 0] == pytest.approx(0.5125 + 0.1 * 0.5125**3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ({"batch_size": 13, "replacement": False}, r"batch_size must be in \[1, n_samples=12\], got 13"),
        ({"data": None, "draws": ["sign"] * 3, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"draws": ["sign"]}, "draws or data, not both"),
        ({"data": None, "draws": ["cauchy"]}, "unknown kind of draw 'cauchy'"),
        ({"data": None, "draws": "normal"}, r"such as \['normal'\]"),
        ({"data": DATA[0]}, r"shape \(n_samples, d\), got \(3,\)"),
        ({"data": DATA * np.nan}, "data must be finite"),
        ({"data": DATA[:, :2]}, "index out of bounds"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0.0"),
        ({"learning_rate": [0.1, 0.2]}, r"have the shape \(11,\), got \(2,\)"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": np.inf}, "weight_decay must be finite, got inf"),
        ({"average_after": 40}, r"average_after must be in \[0, steps=40\), got 40"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"stop_when": not_a_predicate}, "stop_when must return True or False, got"),
        ({"stop_when": far}, "stop_when uses an index out of bounds"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        regress(**changes)


@pytest.mark.parametrize(
    ("gradient", "start", "message"),
    [
        (plain, [[1.0]], "gradient must be compiled with numba.njit"),
        (ill_typed, [[1.0]], "gradient does not compile for float64 arrays"),
        (overrun, [[1.0]], "index out of bounds of theta"),
        (forgetful, [[1.0]], "set every entry of out"),
        (explosive, [1.0], r"start must have the shape \(R, k\), got \(1,\)"),
        (explosive, [[np.nan]], "start must be finite"),
    ],
)
def test_bad_gradients_and_starts(gradient, start, message):
    with pytest.raises(InputError, match=message):
        simulate_few(gradient, start, learning_rate=0.1, steps=1, seed=0)
