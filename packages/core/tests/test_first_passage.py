"""First passage times against closed forms, over the whole range of the numbers."""

import math

import numpy as np
import pytest

from symdyn_core.dynamics.first_passage import log_mfpt_1d, mfpt_1d
from symdyn_core.errors import InputError


@pytest.mark.parametrize("length", [1.0, 10.0, 100.0, 350.0, 700.0])
def test_against_the_drift(length):
    # With f = -1, g = 1 from a wall at 0: T(b) = (e^{2b} - 1) / 2 - b, up to e^1400.
    exact = 2 * length - math.log(2) + math.log1p(-math.exp(-2 * length) * (1 + 2 * length))
    time = log_mfpt_1d(lambda x: -np.ones_like(x), np.ones_like, start=0.0, absorbing=length, reflecting=0.0)
    assert time == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("length", [1.0, 100.0, 700.0])
def test_along_the_drift(length):
    # T(b) = b - (1 - e^{-2b}) / 2: the weights of the integral fall by e^-1400 without being lost.
    time = mfpt_1d(np.ones_like, np.ones_like, start=0.0, absorbing=length, reflecting=0.0)
    assert time == pytest.approx(length - (1 - math.exp(-2 * length)) / 2, rel=1e-4)


def test_noise_is_in_itos_sense():
    # dx = -a x dt + s x dB is in log x a walk with drift -(a + s^2 / 2): Stratonovich's would have -a.
    decay, noise, length = 1.0, 0.7, 3.0
    drift = decay + noise**2 / 2
    steepness = 2 * drift / noise**2
    exact = (math.expm1(steepness * length) / steepness - length) / drift
    time = mfpt_1d(lambda x: -decay * x, lambda x: noise * x, 1.0, absorbing=math.exp(length), reflecting=1.0)
    assert time == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("noise", [1e-300, 1e-3, 1e3, 1e300])
def test_noise_whose_square_is_no_number(noise):
    time = log_mfpt_1d(np.zeros_like, lambda x: np.full_like(x, noise), 0.0, absorbing=1.0, reflecting=0.0)
    assert time == pytest.approx(-2 * math.log(noise), abs=1e-9)


def test_numbers_stand_for_constants():
    numbers = log_mfpt_1d(lambda x: -1.0, lambda x: 2.0, 0.5, absorbing=3.0, reflecting=0.0)
    arrays = log_mfpt_1d(
        lambda x: -np.ones_like(x), lambda x: np.full_like(x, 2.0), 0.5, absorbing=3.0, reflecting=0.0
    )
    assert numbers == arrays


@pytest.mark.parametrize(
    ("drift", "diffusion", "message"),
    [
        (lambda x: x[:3], np.ones_like, r"drift must return one value per place, \(\d+,\), got \(3,\)"),
        (np.zeros_like, lambda x: x[:, None], "diffusion must return one value per place"),
        (np.ones_like, lambda x: np.full_like(x, 1e-300), "the noise is too weak"),
    ],
)
def test_bad_fields(drift, diffusion, message):
    with pytest.raises(InputError, match=message):
        log_mfpt_1d(drift, diffusion, 0.5, absorbing=1.0, reflecting=0.0)
