"""Escape laws against quadrature, and the exponents of a model against its dense Hessian."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.escape import (
    critical_effective_dimension,
    escape_power,
    escape_rate,
    log_escape_rate,
    log_loss_stationary,
    power_law_exponent,
)
from symdyn_core.dynamics.escape_spectrum import BULK, escape_exponent
from symdyn_core.dynamics.first_passage import log_mfpt_1d, mfpt_1d
from symdyn_core.errors import InputError


def double_well(temperature):
    """Return drift and noise of the walk in L = 1/2 + (x^2 - 1)^2 / 4, whose noise is 2 T L."""
    return lambda x: -x * (x**2 - 1), lambda x: np.sqrt(2 * temperature * (0.5 + (x**2 - 1) ** 2 / 4))


@pytest.mark.parametrize(("temperature", "least"), [(0.06, 0.95), (0.03, 0.98), (0.015, 0.99)])
def test_the_rate_is_that_of_the_mean_first_passage_time(temperature, least):
    exact = -math.log(2) - log_mfpt_1d(*double_well(temperature), start=1.0, absorbing=0.0, reflecting=4.0)
    law = log_escape_rate(0.5, 0.75, 2.0, -1.0, learning_rate=temperature / 2, batch_size=1)
    assert least < math.exp(exact - law) < 1  # ever better at lower temperatures


def test_the_same_rate_to_the_left_and_to_the_right():
    drift, noise = double_well(0.05)
    right = log_mfpt_1d(drift, noise, start=1.0, absorbing=0.0, reflecting=4.0)
    left = log_mfpt_1d(drift, noise, start=-1.0, absorbing=0.0, reflecting=-4.0)
    assert left == pytest.approx(right, rel=1e-12)


def test_times_beyond_the_largest_number():
    drift, noise = double_well(0.0005)
    law = -log_escape_rate(0.5, 0.75, 2.0, -1.0, learning_rate=0.00025, batch_size=1) - math.log(2)
    assert law > 710  # e^710 is no number
    assert log_mfpt_1d(drift, noise, start=1.0, absorbing=0.0, reflecting=2.0) == pytest.approx(law, abs=0.01)
    assert mfpt_1d(drift, noise, start=1.0, absorbing=0.0, reflecting=2.0) == math.inf
    assert escape_rate(0.5, 1e300, 2.0, -1.0, learning_rate=0.1, batch_size=50) == 0.0


def test_a_brownian_motion_with_drift():
    # With f = -1, g = 1 from a wall at 0: T(b) = (e^{2b} - 1) / 2 - b.
    time = mfpt_1d(lambda x: -np.ones_like(x), np.ones_like, start=0.0, absorbing=3.0, reflecting=0.0)
    assert time == pytest.approx((math.exp(6) - 1) / 2 - 3, rel=1e-5)


@pytest.mark.parametrize(("outliers", "power"), [(1, 5.5), (2, 5.0), (4, 4.0)])
def test_first_passage_times_grow_with_the_power_of_the_loss_ratio(outliers, power):
    # The radius of a walk in n dimensions in L = (r^2 + 1) / 2 has the extra drift of its n - 1 angles.
    temperature = 0.2
    times = []
    for ratio in (60.0, 120.0):
        times.append(
            log_mfpt_1d(
                lambda r: -r + (outliers - 1) * temperature * (r**2 + 1) / 2 / r,
                lambda r: np.sqrt(temperature * (r**2 + 1)),
                start=0.1,
                absorbing=math.sqrt(ratio - 1),
                reflecting=1e-3,
            )
        )
    assert (times[1] - times[0]) / math.log(2) == pytest.approx(power, abs=0.05)
    assert escape_power(1.0, learning_rate=temperature, batch_size=1, outliers=outliers) == power


def test_the_stationary_law_of_a_parabola_is_students():
    x = np.linspace(-3, 3, 7)
    density = log_loss_stationary((x**2 + 1) / 2, curvature=1.0, learning_rate=0.5, batch_size=1)
    phi = power_law_exponent(1.0, 0.5, 1)
    assert np.diff(density) == pytest.approx(-phi * np.diff(np.log(x**2 + 1)))
    assert critical_effective_dimension(1.0, 0.5, 1) == 6.0


def half_square(output, target):
    return (output - target).square().mean() / 2


def layer(inputs, outputs, bias=True):
    """Return a layer whose weights are set later: torch's own would draw from the global generator."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, dtype=torch.float64)


@pytest.fixture
def network():
    """Return a small net with its data: outputs of one dimension, targets close to what it says."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(layer(6, 5), nn.Tanh(), layer(5, 1))
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(80, 6, generator=generator, dtype=torch.float64) * torch.tensor([9, 3, 1, 1, 1, 0.1])
    with torch.no_grad():
        y = net(x) + 0.1 * torch.randn(80, 1, generator=generator, dtype=torch.float64)
    return net, x, y


def test_the_exponents_of_a_model(network):
    result = escape_exponent(network[0], half_square, *network[1:], learning_rate=0.05, batch_size=4)
    values = torch.linalg.eigvalsh(Curvature(network[0], half_square, *network[1:]).dense()).flip(0)
    outliers = values[values >= BULK * values[0]].tolist()
    assert 1 < len(outliers) < 41
    assert list(result.outliers) == pytest.approx(outliers)
    assert result.complete
    assert result.curvature == pytest.approx(math.prod(outliers) ** (1 / len(outliers)))
    assert result.temperature == pytest.approx(0.05 * result.curvature / 4)
    assert result.power == pytest.approx(1 + 1 / result.temperature - len(outliers) / 2)
    assert result.holds


def test_a_way_out_and_a_limit(network):
    dimension = sum(weight.numel() for weight in network[0].parameters())
    way = torch.zeros(dimension, dtype=torch.float64)
    way[-1] = 2.0  # the bias of the output, whose curvature is one
    settings = {"learning_rate": 0.05, "batch_size": 4, "way_out": way}
    result = escape_exponent(network[0], half_square, *network[1:], max_outliers=1, **settings)
    assert result.curvature == pytest.approx(1.0)
    assert (result.dimension, result.complete) == (1, False)
    with pytest.raises(InputError, match=r"way_out must be a vector of shape \(41,\), got \(3,\)"):
        escape_exponent(network[0], half_square, *network[1:], **{**settings, "way_out": way[:3]})


def test_a_minimum_that_does_not_hold():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = layer(8, 1, bias=False)
    with torch.no_grad():
        line.weight.zero_()
    result = escape_exponent(line, half_square, x, x[:, :1], learning_rate=1.0, batch_size=1)
    assert result.dimension == 8
    assert not result.holds
    assert result.power <= 0


def test_not_a_minimum():
    x = torch.ones(2, 1, dtype=torch.float64)
    line = layer(1, 1, bias=False)
    with torch.no_grad():
        line.weight.zero_()
    with pytest.raises(InputError, match="not a minimum: the largest eigenvalue of the Hessian is -2"):
        escape_exponent(line, lambda o, t: -(o - t).square().mean(), x, x, learning_rate=0.1, batch_size=1)


RATES = {"learning_rate": 0.1, "batch_size": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_law_exponent(0.0, 0.1, 1), "curvature must be finite and > 0, got 0.0"),
        (lambda: power_law_exponent(1.0, -0.1, 1), "learning_rate must be finite and > 0, got -0.1"),
        (lambda: power_law_exponent(1.0, 0.1, 0), "batch_size must be >= 1, got 0"),
        (lambda: escape_power(1.0, 0.5, 1, 6), r"does not hold SGD: outliers < .* = 6 fails, got 6"),
        (lambda: escape_power(1.0, 0.5, 1, 0), "outliers must be >= 1, got 0"),
        (lambda: escape_rate(0.0, 1.0, 1.0, -1.0, **RATES), "got 0.0 and 1.0; a minimum of loss zero"),
        (lambda: escape_rate(2.0, 1.0, 1.0, -1.0, **RATES), "0 < loss_minimum < loss_saddle must hold"),
        (lambda: escape_rate(1.0, 2.0, 1.0, 1.0, **RATES), "curvature_saddle must be < 0, got 1.0"),
        (
            lambda: escape_rate(1.0, 2.0, 1.0, -1.0, determinant_ratio=-1.0, **RATES),
            "determinant_ratio must be finite and > 0, got -1.0",
        ),
        (lambda: log_loss_stationary([1.0, 0.0], 1.0, 0.1, 1), "losses must be finite and > 0, got 0.0"),
        (
            lambda: mfpt_1d(np.zeros_like, np.ones_like, 4.0, absorbing=3.0, reflecting=0.0),
            "start must lie between reflecting=0.0 and absorbing=3.0, and not on the latter, got 4.0",
        ),
        (
            lambda: mfpt_1d(np.zeros_like, np.zeros_like, 1.0, absorbing=3.0, reflecting=0.0),
            "diffusion finite and > 0",
        ),
        (
            lambda: mfpt_1d(lambda x: 1e9 * x, np.ones_like, 1.0, absorbing=3.0, reflecting=0.0),
            "the potential is too steep",
        ),
        (
            lambda: mfpt_1d(np.zeros_like, np.ones_like, math.nan, absorbing=3.0, reflecting=0.0),
            "start, absorbing and reflecting must be finite",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(InputError, match=message):
        call()
