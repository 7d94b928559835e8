"""The laws of assembly against real optimisers on networks that see random data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_neuro.assembly import predict_mismatch
from symdyn_neuro.layers import HSLinear
from symdyn_neuro.probes import feedback_mismatch

STEPS = 25


def measure_mismatch(
    seed: int, optimiser_class: type[torch.optim.Optimizer], **options: object
) -> np.ndarray:
    """Return the total mismatch at each step of a small tanh network that is fed random data."""
    generator = torch_generator(seed, "assembly")
    model = nn.Sequential(
        HSLinear(4, 6, dtype=torch.float64, generator=generator),
        nn.Tanh(),
        HSLinear(6, 3, dtype=torch.float64, generator=generator),
    )
    optimiser = optimiser_class(model.parameters(), **options)

    def total() -> float:
        return math.hypot(*feedback_mismatch(model).values())

    curve = [total()]
    for _ in range(STEPS):
        x, y = (torch.randn(5, n, dtype=torch.float64, generator=generator) for n in (4, 3))
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()
        curve.append(total())
    return np.array(curve)


@given(
    seed=st.integers(0, 2**32),
    learning_rate=st.floats(1e-3, 0.5),
    weight_decay=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
)
def test_sgd_obeys_the_law_for_any_data(seed, learning_rate, weight_decay, momentum, nesterov):
    nesterov = nesterov and momentum > 0
    settings = {"weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
    measured = measure_mismatch(seed, torch.optim.SGD, lr=learning_rate, **settings)
    predicted = predict_mismatch(measured[0], learning_rate=learning_rate, steps=STEPS, **settings)
    # Rounding only: relative to the start, as momentum may carry the mismatch through zero.
    np.testing.assert_allclose(measured, predicted, rtol=1e-9, atol=1e-10 * measured[0])


def test_adamw_obeys_the_law_and_adam_does_not():
    settings = {"lr": 0.05, "weight_decay": 0.4}
    law = {"learning_rate": 0.05, "weight_decay": 0.4, "steps": STEPS}
    decoupled = measure_mismatch(0, torch.optim.AdamW, **settings)
    np.testing.assert_allclose(decoupled, predict_mismatch(decoupled[0], **law), rtol=1e-9)
    coupled = measure_mismatch(0, torch.optim.Adam, **settings)
    assert abs(coupled[-1] / predict_mismatch(coupled[0], **law)[-1] - 1) > 0.1


def test_without_decay_nothing_assembles():
    measured = measure_mismatch(0, torch.optim.SGD, lr=0.1)
    np.testing.assert_allclose(measured, measured[0], rtol=1e-12)


def test_discrete_and_continuous_time_are_told_apart():
    measured = measure_mismatch(0, torch.optim.SGD, lr=0.1, weight_decay=0.2)
    assert measured[-1] / measured[0] == pytest.approx(0.98**STEPS, rel=1e-9)
    assert measured[-1] / measured[0] != pytest.approx(math.exp(-0.02 * STEPS), rel=1e-3)


def test_schedule_multiplies_its_factors():
    rates = [0.5, 0.1, 0.0]
    curve = predict_mismatch(2.0, learning_rate=rates, weight_decay=0.5, steps=3)
    np.testing.assert_allclose(curve, [2.0, 1.5, 1.425, 1.425])


def test_momentum_sums_to_the_rate_of_its_long_memory():
    """Slow decay with momentum mu proceeds at learning_rate / (1 - mu), to first order."""
    curve = predict_mismatch(1.0, learning_rate=0.01, weight_decay=0.01, steps=20_000, momentum=0.9)
    assert math.log(curve[-1] / curve[1000]) == pytest.approx(-0.01 * 0.01 / 0.1 * 19_000, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": -1.0}, "initial must be finite and at least 0, got -1"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and at least 0, got inf"),
        ({"learning_rate": -0.1}, "learning_rate must be finite and at least 0, got -0.1"),
        ({"learning_rate": [0.1, 0.2]}, r"one number or steps=3 of them, got shape \(2,\)"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"initial": 1.0, "learning_rate": 0.1, "weight_decay": 0.1, "steps": 3, **change}
    with pytest.raises(InputError, match=message):
        predict_mismatch(arguments.pop("initial"), **arguments)
