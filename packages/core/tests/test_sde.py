"""Itô equations: exact laws, superlinear noise that plain Euler does not survive, and its rivals' bias."""

import math

import numba
import numpy as np
import pytest
from scipy import stats

from symdyn_core.dynamics.diagonal_net import LandscapeNoise
from symdyn_core.dynamics.sde import integrate_sde
from symdyn_core.dynamics.stationary_density import DiagonalNetStationary
from symdyn_core.errors import InputError

# The product of a diagonal net on Gaussian data, k = 1, sigma^2 = 1/2, at T = 0.12: noise like v^2, v^(7/3).
TEMPERATURE = 0.12


@numba.njit
def drift_one(x, out):
    g = 2 * (x[0] - 1) ** 2 + 0.5
    out[0] = -4 * x[0] * (x[0] - 1) + x[0] * 4 * TEMPERATURE * g


@numba.njit
def noise_one(x, out):
    out[0] = 2 * x[0] * math.sqrt(4 * TEMPERATURE * (2 * (x[0] - 1) ** 2 + 0.5))


@numba.njit
def drift_two(x, out):
    g = 2 * (x[0] - 1) ** 2 + 0.5
    out[0] = -6 * abs(x[0]) ** (4 / 3) * (x[0] - 1) + 3 * abs(x[0]) ** (5 / 3) * 4 * TEMPERATURE * g


@numba.njit
def noise_two(x, out):
    out[0] = 3 * abs(x[0]) ** (4 / 3) * math.sqrt(4 * TEMPERATURE * (2 * (x[0] - 1) ** 2 + 0.5))


@numba.njit
def decay(x, out):
    out[:] = -x


@numba.njit
def unit(x, out):
    out[:] = 1.0


@numba.njit
def proportional(x, out):
    out[:] = 0.5 * x


@numba.njit
def nothing(x, out):
    out[:] = 0.0


@numba.njit
def mixing(x, out):
    out[0, 0], out[0, 1], out[0, 2] = 1.0, 0.0, 1.0
    out[1, 0], out[1, 1], out[1, 2] = 0.5, 2.0, 0.0


@numba.njit
def square(x, out):
    out[0] = x[0] ** 2


def net(depth, **changes):
    functions = (drift_one, noise_one) if depth == 1 else (drift_two, noise_two)
    settings = {"step": 0.02, "steps": 300, "seed": 1, "coordinates": "log", **changes}
    walkers = settings.pop("walkers", 4000)
    return integrate_sde(*functions, np.full((walkers, 1), 0.9), **settings)


def kolmogorov(values, depth):
    """Return the largest distance to the stationary distribution function."""
    law = DiagonalNetStationary(LandscapeNoise.gaussian(1.0, math.sqrt(0.5)), TEMPERATURE, depth)
    return stats.ks_1samp(values, law.cdf).statistic


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("coordinates", ["log", "plain"])
def test_superlinear_noise_settles_at_the_stationary_law(depth, coordinates):
    end = net(depth, coordinates=coordinates)
    assert end.alive.all()
    # 1.63 / sqrt(4000) = .026 is exceeded once in a hundred; the rest is the bias of a step of 0.02.
    assert kolmogorov(end.state[:, 0], depth) < 0.035


@pytest.mark.parametrize(("depth", "step"), [(1, 0.02), (2, 0.002)])
def test_plain_euler_diverges(depth, step):
    end = net(depth, scheme="euler", coordinates="plain", step=step, steps=round(12 / step), walkers=500)
    assert end.diverged > 0.1  # in twelve units of time; shorter steps only delay it
    assert np.isfinite(end.state).all()
    assert (end.steps_survived[~end.alive] < round(12 / step)).all()


@pytest.mark.parametrize("remedy", ["taming", "clipping"])
def test_taming_and_clipping_miss_the_law_at_the_same_step(remedy):
    """What the adaptive scheme is preferred to: increments divided by their size plus one, or clipped."""
    rng, x, step = np.random.default_rng(0), np.full(6000, 0.9), 0.02
    for _ in range(600):
        g = 2 * (x - 1) ** 2 + 0.5
        force = -6 * np.abs(x) ** (4 / 3) * (x - 1) + 3 * np.abs(x) ** (5 / 3) * 4 * TEMPERATURE * g
        push = 3 * np.abs(x) ** (4 / 3) * np.sqrt(4 * TEMPERATURE * g) * math.sqrt(step)
        change = force * step + push * rng.standard_normal(x.size)
        x = x + (change / (1 + np.abs(change)) if remedy == "taming" else np.clip(change, -0.25, 0.25))
    assert kolmogorov(x, 2) > 0.06


@pytest.mark.parametrize("tolerance", [0.05, 0.2])
def test_the_substeps_are_as_short_as_the_tolerance_says(tolerance):
    # Geometric Brownian motion in logarithmic coordinates: |G| = 1/2 and f = -1/8, everywhere.
    end = integrate_sde(
        nothing, proportional, np.ones((4, 1)), step=2.0, steps=3, seed=0, coordinates="log",
        tolerance=tolerance,
    )  # fmt: skip
    assert (end.substeps == 3 * math.ceil(2.0 / (tolerance / 0.5) ** 2 - 1e-9)).all()


@pytest.mark.parametrize("coordinates", ["log", "plain"])
def test_geometric_brownian_motion(coordinates):
    end = integrate_sde(
        nothing,
        proportional,
        np.full((20_000, 1), 2.0),
        step=0.01,
        steps=100,
        seed=3,
        coordinates=coordinates,
    )
    logs = np.log(end.state[:, 0] / 2)
    assert stats.ks_1samp(logs, stats.norm(-1 / 8, 1 / 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("scheme", ["adaptive", "euler"])
def test_ornstein_uhlenbeck_in_two_dimensions(scheme):
    # Euler's stationary variance at step h is 1 / (2 - h); the noises differ in the correlation.
    settings = {
        "step": 0.1,
        "steps": 2000,
        "seed": 5,
        "scheme": scheme,
        "tolerance": 0.9,
        "average_after": 100,
    }
    for noise, correlation in (("diagonal", 0.0), ("scalar", 1.0)):
        end = integrate_sde(decay, unit, np.zeros((400, 2)), noise=noise, **settings)
        second = (end.covariance + end.mean[:, :, None] * end.mean[:, None, :]).mean(axis=0)
        # 400 walkers over 190 correlation times of the square: a standard error of 0.7 %. The tolerance
        # allows whole steps, so that both schemes are Euler's.
        assert second[0, 0] == pytest.approx(1 / 1.9, rel=0.03)
        assert second[0, 1] / second[0, 0] == pytest.approx(correlation, abs=0.02)
        assert abs(end.mean.mean()) < 0.02


def test_general_noise_adds_up():
    # Brownian motion with G G^T = [[2, .5], [.5, 4.25]] for three time units.
    end = integrate_sde(
        nothing, mixing, np.zeros((40_000, 2)), step=0.5, steps=6, seed=2, noise="general", sources=3,
        scheme="euler",
    )  # fmt: skip
    expected = 3 * np.array([[2.0, 0.5], [0.5, 4.25]])
    assert np.cov(end.state.T) == pytest.approx(expected, rel=0.03, abs=0.1)


def test_drift_that_explodes_is_reported_not_followed_for_ever():
    # x' = x^2 from 1 reaches infinity at time 1: no scheme may pass it.
    end = integrate_sde(square, nothing, [[1.0], [0.1]], step=0.25, steps=6, seed=0, tolerance=0.05)
    assert end.alive.tolist() == [False, True]
    assert end.steps_survived.tolist()[1] == 6
    assert end.steps_survived[0] in (3, 4)  # Euler's own explosion comes a little late
    assert end.state[1, 0] == pytest.approx(1 / (10 - 1.5), rel=0.02)


def test_a_collapsing_walker_stays_positive_until_its_logarithm_leaves_the_numbers():
    end = integrate_sde(
        decay,
        proportional,
        np.ones((8, 1)),
        step=0.5,
        steps=1500,
        seed=0,
        coordinates="log",
        average_after=10,
    )
    assert end.alive.all()
    assert (end.state >= 0).all()  # ln x is about -875: x itself underflows
    assert np.isfinite(end.mean).all()


def test_averages_and_independence_of_the_number_of_walkers():
    many, two = net(1, walkers=9, steps=40, average_after=15), net(1, walkers=2, steps=40, average_after=15)
    states = np.stack([net(1, walkers=9, steps=steps).state for steps in range(16, 41)])
    assert many.mean == pytest.approx(states.mean(axis=0), rel=1e-9)
    assert many.covariance[:, :, 0] == pytest.approx(states.var(axis=0), rel=1e-9)
    assert (many.state[:2] == two.state).all()
    assert (many.state == net(1, walkers=9, steps=40, threads=2).state).all()
    assert net(1, walkers=2, steps=3).mean is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0.0}, "step must be finite and > 0, got 0.0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"noise": "scaler"}, "unknown noise 'scaler'; did you mean scalar?"),
        ({"scheme": "milstein"}, "unknown scheme 'milstein'"),
        ({"coordinates": "polar"}, "unknown coordinates 'polar'"),
        ({"noise": "general"}, "sources must be >= 1 for general noise"),
        ({"sources": 2}, "None for other noise, got 2"),
        ({"tolerance": 0.0}, r"tolerance must be in \(0, 1\], got 0.0"),
        ({"average_after": 600}, r"average_after must be in \[0, steps=300\), got 600"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        net(1, walkers=2, **changes)


def test_bad_starts_and_functions():
    with pytest.raises(InputError, match=r"start must be > 0 in logarithmic coordinates, got -1.0"):
        integrate_sde(decay, unit, [[-1.0]], step=0.1, steps=1, seed=0, coordinates="log")
    with pytest.raises(InputError, match="drift must be compiled"):
        integrate_sde(math.sin, unit, [[1.0]], step=0.1, steps=1, seed=0)
    with pytest.raises(InputError, match="diffusion does not compile"):
        integrate_sde(decay, mixing, [[1.0, 1.0]], step=0.1, steps=1, seed=0)
