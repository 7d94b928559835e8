import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_core.landscape.deep_linear import deep_linear_expected_loss, deep_linear_minimum
from symdyn_core.landscape.phases import (
    critical_weight_decay,
    effective_loss,
    order_parameter,
    spinodal_weight_decay,
    torch_weight_decay,
    transition_order,
)

EXACT = settings(derandomize=True, deadline=None, max_examples=60)

CROSS = np.array([0.9, -0.5, 0.3])
STRENGTH = float(np.linalg.norm(CROSS))
INPUTS = 0.7  # isotropic E[xx^T]


def random_data(seed):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(8, 3)) * np.exp(generator.normal(size=3))
    labels = inputs @ generator.normal(size=3)
    return inputs.T @ inputs / 8, inputs.T @ labels / 8


def literal_effective_loss(b, eigenvalues, components, depth, width, noise, decay):
    total = decay * depth * width**2 * b**2
    for a, m in zip(eigenvalues, components, strict=True):
        top = width ** (2 * depth) * b ** (2 * depth) * m**2
        total -= top / (width**depth * (noise + width) ** depth * a * b ** (2 * depth) + decay)
    return total


@given(
    seed=st.integers(0, 1000),
    depth=st.integers(1, 4),
    width=st.integers(1, 6),
    noise=st.floats(0, 3),
    decay=st.floats(0.01, 2),
    b=st.floats(0, 2),
)
@EXACT
def test_effective_loss_is_the_formula(seed, depth, width, noise, decay, b):
    second, cross = random_data(seed)
    eigenvalues, basis = np.linalg.eigh(second)
    literal = literal_effective_loss(b, eigenvalues, basis.T @ cross, depth, width, noise, decay)
    computed = effective_loss(
        b, second, cross, depth=depth, width=width, noise_variance=noise, weight_decay=decay
    )
    assert float(computed) == pytest.approx(literal, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_least_effective_loss_is_that_of_the_network(depth):
    second, cross = random_data(1)
    network = {"depth": depth, "width": 4, "noise_variance": 0.5}
    decay = 0.5 * critical_weight_decay(second, cross, **network)
    solution = deep_linear_minimum(
        second, cross, 20.0, widths=[4] * depth, weight_decays=[decay] * (depth + 1), noise_variance=0.5
    )
    state = order_parameter(decay, second, cross, **network)
    b = np.append(np.linspace(0, 2, 2001), state.magnitude)
    losses = effective_loss(b, second, cross, 20.0, weight_decay=decay, **network)
    assert losses[-1] == pytest.approx(solution.loss, rel=1e-12)
    assert losses.argmin() == b.size - 1
    assert state.slope == pytest.approx(np.linalg.norm(solution.coefficients))
    # All layers have the same norm: hidden ones d b, so the output's d entries are sqrt(d) b each.
    assert solution.weights[-1] == pytest.approx(np.full((1, 4), math.sqrt(4) * state.magnitude))


@given(
    depth=st.integers(1, 6),
    width=st.integers(1, 20),
    noise=st.floats(0, 5),
    strength=st.floats(0.01, 100),
    inputs=st.floats(0.01, 100),
)
@EXACT
def test_thresholds_of_isotropic_inputs_in_closed_form(depth, width, noise, strength, inputs):
    top = width ** (2 * depth) * strength**2
    bottom = width**depth * (width + noise) ** depth * inputs
    first, second = depth / (depth + 1), (depth - 1) / (depth + 1)
    critical = (top / (depth * width) ** 2) ** first * ((depth - 1) / bottom) ** second
    spinodal = (top * (depth + 1) ** 2 / (2 * depth * width) ** 2) ** first * (
        (depth - 1) / ((depth + 1) * bottom)
    ) ** second
    network = {"depth": depth, "width": width, "noise_variance": noise}
    assert critical_weight_decay(inputs, [strength, 0.0], **network) == pytest.approx(critical, rel=1e-10)
    assert spinodal_weight_decay(inputs, [0.0, strength], **network) == pytest.approx(spinodal, rel=1e-10)


@given(seed=st.integers(0, 1000), depth=st.integers(1, 5), noise=st.floats(0, 3))
@EXACT
def test_the_best_network_learns_below_the_critical_weight_decay_only(seed, depth, noise):
    second, cross = random_data(seed)
    network = {"depth": depth, "width": 3, "noise_variance": noise}
    critical = critical_weight_decay(second, cross, **network)
    assert order_parameter(critical * (1 - 1e-7), second, cross, **network).phase == "learning"
    assert order_parameter(critical * (1 + 1e-7), second, cross, **network).phase == "trivial"


@given(seed=st.integers(0, 1000), depth=st.integers(2, 5), noise=st.floats(0, 3))
@EXACT
def test_a_trained_network_survives_up_to_the_spinodal_only(seed, depth, noise):
    second, cross = random_data(seed)
    network = {"depth": depth, "width": 3, "noise_variance": noise}
    critical = critical_weight_decay(second, cross, **network)
    spinodal = spinodal_weight_decay(second, cross, **network)
    assert spinodal > critical
    for weight_decay, phase in ((spinodal * 0.999, "learning"), (spinodal * 1.001, "trivial")):
        state = order_parameter(weight_decay, second, cross, branch="learning", **network)
        assert state.phase == phase
    middle = math.sqrt(critical * spinodal)
    assert order_parameter(middle, second, cross, **network).phase == "trivial"
    assert order_parameter(middle, second, cross, branch="learning", **network).slope > 0


@given(seed=st.integers(0, 1000), width=st.integers(1, 9), noise=st.floats(0, 3))
@EXACT
def test_one_hidden_layer_has_its_transition_at_the_signal_for_any_data(seed, width, noise):
    second, cross = random_data(seed)
    network = {"depth": 1, "width": width, "noise_variance": noise}
    assert critical_weight_decay(second, cross, **network) == pytest.approx(np.linalg.norm(cross))
    assert spinodal_weight_decay(second, cross, **network) == pytest.approx(np.linalg.norm(cross))


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_jump_is_universal(depth, noise):
    network = {"depth": depth, "width": 4, "noise_variance": noise}
    full = STRENGTH / INPUTS * (4 / (4 + noise)) ** depth
    just_below = critical_weight_decay(INPUTS, CROSS, **network) * (1 - 1e-9)
    state = order_parameter(just_below, INPUTS, CROSS, **network)
    assert state.slope / full == pytest.approx((depth - 1) / depth, abs=1e-7)
    just_below = spinodal_weight_decay(INPUTS, CROSS, **network) * (1 - 1e-9)
    state = order_parameter(just_below, INPUTS, CROSS, branch="learning", **network)
    assert state.slope / full == pytest.approx((depth - 1) / (2 * depth), abs=1e-4)


def test_one_hidden_layer_fades_as_a_square_root():
    for fraction in (0.5, 0.9, 0.99):
        state = order_parameter(fraction * STRENGTH, INPUTS, CROSS, depth=1, width=4, noise_variance=1.0)
        assert state.magnitude**2 == pytest.approx((1 - fraction) * STRENGTH / (4 * 5 * INPUTS))
        assert state.slope == pytest.approx((1 - fraction) * STRENGTH / INPUTS * 4 / 5)


def test_without_hidden_layer_there_is_no_transition():
    assert transition_order(0) is None
    assert critical_weight_decay(INPUTS, CROSS, depth=0) == math.inf
    assert spinodal_weight_decay(INPUTS, CROSS, depth=0) == math.inf
    for weight_decay in (0.1, 10.0, 1e6):
        state = order_parameter(weight_decay, INPUTS, CROSS, depth=0)
        assert state.phase == "learning"
        assert state.slope == pytest.approx(STRENGTH / (INPUTS + weight_decay))


def test_without_signal_nothing_is_learned():
    assert critical_weight_decay(INPUTS, [0.0], depth=2) == 0
    assert spinodal_weight_decay(INPUTS, [0.0], depth=2) == 0
    assert order_parameter(1e-3, INPUTS, [0.0], depth=2).phase == "trivial"
    assert order_parameter(1e-3, INPUTS, [0.0], depth=0).phase == "trivial"


def test_noise_lowers_the_threshold_of_deep_networks_only():
    for depth in (1, 2, 3):
        quiet = critical_weight_decay(INPUTS, CROSS, depth=depth, width=4)
        noisy = critical_weight_decay(INPUTS, CROSS, depth=depth, width=4, noise_variance=2.0)
        assert quiet == pytest.approx(critical_weight_decay(INPUTS, CROSS, depth=depth, width=100))
        assert (noisy < quiet * 0.99) == (depth > 1)


@pytest.mark.parametrize("depth", [1, 2])
def test_hysteresis_of_gradient_descent(depth):
    """Raise weight decay step by step, then lower it: at depth 2 the way back is another one."""
    network = {"depth": depth, "width": 3, "noise_variance": 0.5}
    spinodal = spinodal_weight_decay(INPUTS, CROSS, **network)
    second, cross = INPUTS * torch.eye(3, dtype=torch.float64), torch.from_numpy(CROSS)
    start = deep_linear_minimum(
        INPUTS,
        CROSS,
        widths=[3] * depth,
        weight_decays=[0.4 * spinodal] * (depth + 1),
        noise_variance=0.5,
    )
    weights = [torch.tensor(weight, requires_grad=True) for weight in start.weights]

    def descend(weight_decay):
        optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
        for _ in range(120):
            optimizer.zero_grad()
            loss = deep_linear_expected_loss(
                weights, second, cross, 1.0, weight_decays=[weight_decay] * (depth + 1), noise_variance=0.5
            )
            loss.backward()
            optimizer.step()
        product = weights[0]
        for weight in weights[1:]:
            product = weight @ product
        return product.norm().item()

    for fraction in (0.7, 0.85):
        predicted = order_parameter(fraction * spinodal, INPUTS, CROSS, branch="learning", **network)
        assert descend(fraction * spinodal) == pytest.approx(predicted.slope, rel=0.02)
    assert descend(1.1 * spinodal) < 1e-3
    with torch.no_grad():
        for weight in weights:
            weight += 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    descend(0.8 * spinodal)
    back = descend(0.5 * spinodal)
    learned = order_parameter(0.5 * spinodal, INPUTS, CROSS, **network).slope
    assert back == pytest.approx(learned if depth == 1 else 0.0, abs=1e-3)


@pytest.mark.parametrize("half_loss", [False, True])
def test_torch_weight_decay_is_the_one_of_an_optimizer(half_loss):
    """SGD on a loss with or without the factor 1/2 ends at the minimum for the same penalty."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    labels = inputs @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    sizes = [(3, 2), (1, 3)]
    first, last = (0.5 * torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    first.requires_grad_()
    last.requires_grad_()
    optimizer = torch.optim.SGD(
        [first, last], lr=0.1, weight_decay=torch_weight_decay(0.4, half_loss=half_loss)
    )
    for _ in range(600):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss((inputs @ first.T @ last.T)[:, 0], labels)
        (loss / 2 if half_loss else loss).backward()
        optimizer.step()
    solution = deep_linear_minimum(
        inputs.T @ inputs / 30, inputs.T @ labels / 30, widths=[3], weight_decays=[0.4, 0.4]
    )
    assert (last @ first)[0].detach().numpy() == pytest.approx(solution.coefficients, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transition_order(-1), "depth must be a whole number >= 0, got -1"),
        (lambda: transition_order(1.5), "depth must be a whole number"),
        (lambda: torch_weight_decay(-0.1, half_loss=True), "weight_decay must be finite and >= 0, got -0.1"),
        (lambda: torch_weight_decay(math.inf, half_loss=True), "weight_decay must be finite"),
        (lambda: critical_weight_decay(1.0, 1.0, depth=-1), "depth must be a whole number"),
        (lambda: critical_weight_decay(1.0, 1.0, depth=2, width=0), "widths must be whole numbers >= 1"),
        (lambda: spinodal_weight_decay(1.0, 1.0, depth=2, noise_variance=-1.0), "noise_variance must be"),
        (lambda: order_parameter(0.0, 1.0, 1.0, depth=1), "weight_decay must be finite and > 0, got 0.0"),
        (lambda: order_parameter(0.1, 1.0, 1.0, depth=1, branch="best"), "branch must be 'global' or"),
        (lambda: effective_loss(-1.0, 1.0, 1.0, depth=1, weight_decay=0.1), "magnitude must be >= 0"),
        (lambda: effective_loss(1.0, 1.0, 1.0, depth=0, weight_decay=0.1), "depth must be at least 1"),
        (lambda: effective_loss(1.0, 1.0, 1.0, depth=1, weight_decay=-1.0), "weight_decay must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
