import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import Ridge

from symdyn_core.errors import InputError
from symdyn_core.landscape.deep_linear import (
    data_moments,
    deep_linear_expected_loss,
    deep_linear_minimum,
    dropout_noise_variance,
    origin_is_local_min,
)
from symdyn_core.landscape.effective import signal_retention

EXACT = settings(derandomize=True, deadline=None, max_examples=60)

NETWORKS = [
    # widths, weight decays, noise variances
    ([4], [0.1, 0.2], 0.0),
    ([4], [0.1, 0.2], 2.0),
    ([4, 5], [0.1, 0.05, 0.2], 0.5),
    ([2, 3], [0.1, 0.05, 0.2], [0.3, 1.5]),
    ([3, 1, 2], [0.02, 0.05, 0.1, 0.03], 0.5),
]


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(20, 3))
    return inputs, 1.5 * inputs @ generator.normal(size=3) + 0.3 * generator.normal(size=20)


def random_weights(widths, features, generator, scale=1.0):
    sizes = [features, *widths, 1]
    return [scale * generator.normal(size=(after, before)) for before, after in itertools.pairwise(sizes)]


def noise_of(noise_variance, depth):
    return list(np.broadcast_to(noise_variance, depth))


def loss_over_signs(weights, inputs, labels, decays, noise):
    """The loss as it is written: factors 1 ± σ on every hidden neuron, all patterns, one by one."""
    neurons = [len(weight) for weight in weights[:-1]]
    losses = []
    for signs in itertools.product((-1, 1), repeat=sum(neurons)):
        hidden, remaining = inputs, list(signs)
        for weight, variance in zip(weights[:-1], noise, strict=True):
            hidden = hidden @ weight.T
            for neuron in range(len(weight)):
                hidden[:, neuron] *= 1 + math.sqrt(variance) * remaining.pop(0)
        losses.append(np.mean((hidden @ weights[-1][0] - labels) ** 2))
    return np.mean(losses) + sum(d * np.sum(w**2) for d, w in zip(decays, weights, strict=True))


def scan_of_the_effective_loss(second, cross, label, widths, decays, noise):
    """The one-dimensional loss in the output magnitude b, transcribed with its products of widths."""
    widths, noise = np.array(widths), np.array(noise_of(noise, len(widths)))
    eigenvalues, basis = np.linalg.eigh(second)
    components = basis.T @ cross
    b = np.geomspace(1e-4, 1e2, 40_000)
    product = np.ones_like(b)
    for i in range(1, len(widths)):
        product *= b * np.sqrt(decays[-1] * widths[-1] / (decays[i] * widths[i] * widths[i - 1]))
    c = b * product
    first, second_order = np.prod(widths), np.prod(widths * (widths + noise))
    fit = sum(
        (c * first * m) ** 2 / (c**2 * second_order * a + decays[0] * widths[0])
        for a, m in zip(eigenvalues, components, strict=True)
    )
    loss = label - fit + len(widths) * decays[-1] * widths[-1] * b**2
    return min(label, loss.min())


@pytest.mark.parametrize(("widths", "decays", "noise"), NETWORKS)
def test_expected_loss_is_the_average_over_noise(data, widths, decays, noise):
    inputs, labels = data
    weights = random_weights(widths, 3, np.random.default_rng(1))
    literal = loss_over_signs(weights, inputs, labels, decays, noise_of(noise, len(widths)))
    exact = deep_linear_expected_loss(
        weights, *data_moments(inputs, labels), weight_decays=decays, noise_variance=noise
    )
    assert exact == pytest.approx(literal, rel=1e-12)


def test_expected_loss_is_the_same_in_torch_and_differentiable(data):
    second, cross, label = data_moments(*data)
    weights = random_weights([4, 5], 3, np.random.default_rng(1))
    settings = {"weight_decays": [0.1, 0.2, 0.3], "noise_variance": 0.5}
    tensors = [torch.tensor(weight, requires_grad=True) for weight in weights]
    loss = deep_linear_expected_loss(
        tensors, torch.from_numpy(second), torch.from_numpy(cross), label, **settings
    )
    assert loss.item() == pytest.approx(
        float(deep_linear_expected_loss(weights, second, cross, label, **settings))
    )
    loss.backward()
    step = 1e-6
    weights[1][2, 3] += step
    raised = deep_linear_expected_loss(weights, second, cross, label, **settings)
    assert tensors[1].grad[2, 3].item() == pytest.approx((raised - loss.item()) / step, rel=1e-4)


@pytest.mark.parametrize(("widths", "decays", "noise"), NETWORKS)
def test_minimum_is_stationary_balanced_and_has_the_stated_loss(data, widths, decays, noise):
    second, cross, label = data_moments(*data)
    solution = deep_linear_minimum(
        second, cross, label, widths=widths, weight_decays=decays, noise_variance=noise
    )
    assert not solution.trivial
    tensors = [torch.tensor(weight, requires_grad=True) for weight in solution.weights]
    loss = deep_linear_expected_loss(
        tensors,
        torch.from_numpy(second),
        torch.from_numpy(cross),
        label,
        weight_decays=decays,
        noise_variance=noise,
    )
    loss.backward()
    assert loss.item() == pytest.approx(solution.loss, rel=1e-12)
    assert max(tensor.grad.abs().max().item() for tensor in tensors) < 1e-8
    for decay, weight in zip(decays, solution.weights, strict=True):
        assert decay * np.sum(weight**2) == pytest.approx(solution.layer_penalty, rel=1e-12)
        assert np.linalg.matrix_rank(weight) == 1
    product = np.linalg.multi_dot(solution.weights[::-1])
    assert solution.coefficients == pytest.approx(product[0], rel=1e-9)


@pytest.mark.parametrize(("widths", "decays", "noise"), NETWORKS)
def test_minimum_agrees_with_a_scan_of_the_transcribed_formula(data, widths, decays, noise):
    moments = data_moments(*data)
    solution = deep_linear_minimum(*moments, widths=widths, weight_decays=decays, noise_variance=noise)
    scan = scan_of_the_effective_loss(*moments, widths, decays, noise)
    assert solution.loss == pytest.approx(scan, abs=1e-6)
    assert solution.loss <= scan + 1e-12


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_no_minimisation_finds_less(data, noise):
    moments = data_moments(*data)
    decays, shapes = [0.1, 0.05, 0.2], [(3, 3), (2, 3), (1, 2)]
    second, cross = torch.from_numpy(moments.second_moment), torch.from_numpy(moments.cross_moment)

    def loss(flat):
        weights = torch.tensor(flat, requires_grad=True)
        parts = [p.view(s) for p, s in zip(weights.split([9, 6, 2]), shapes, strict=True)]
        value = deep_linear_expected_loss(
            parts, second, cross, moments.label_moment, weight_decays=decays, noise_variance=noise
        )
        value.backward()
        return value.item(), weights.grad.numpy()

    generator = np.random.default_rng(2)
    found = [minimize(loss, generator.normal(size=17), jac=True, method="L-BFGS-B").fun for _ in range(10)]
    solution = deep_linear_minimum(*moments, widths=[3, 2], weight_decays=decays, noise_variance=noise)
    assert min(found) == pytest.approx(solution.loss, abs=1e-8)


@given(
    seed=st.integers(0, 10_000),
    widths=st.lists(st.integers(1, 5), min_size=0, max_size=4),
    noise=st.floats(0, 3),
    size=st.floats(0.05, 2),
)
@EXACT
def test_no_network_is_below_the_minimum(seed, widths, noise, size):
    generator = np.random.default_rng(seed)
    moments = data_moments(generator.normal(size=(6, 3)), generator.normal(size=6))
    decays = np.exp(generator.normal(size=len(widths) + 1) - 3)
    network = {"weight_decays": list(decays), "noise_variance": noise}
    solution = deep_linear_minimum(*moments, widths=widths, **network)
    at_minimum = deep_linear_expected_loss(list(solution.weights), *moments, **network)
    assert at_minimum == pytest.approx(solution.loss, rel=1e-9)
    assert solution.loss <= moments.label_moment
    other = random_weights(widths, 3, generator, scale=size)
    near = [w + 0.1 * size * generator.normal(size=w.shape) for w in solution.weights]
    for weights in (other, near):
        assert deep_linear_expected_loss(weights, *moments, **network) >= solution.loss - 1e-9


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 4),
    log_input=st.floats(-12, 12),
    log_label=st.floats(-12, 12),
)
@EXACT
def test_units_of_the_data_do_not_matter(seed, depth, log_input, log_label):
    """Inputs times α, labels times β: the same network in other units, at the same precision."""
    generator = np.random.default_rng(seed)
    second, cross, label = data_moments(generator.normal(size=(6, 3)), generator.normal(size=6))
    decays = np.exp(generator.normal(size=depth + 1) - 3)
    network = {"widths": [3] * depth, "noise_variance": 0.5}
    solution = deep_linear_minimum(second, cross, label, weight_decays=list(decays), **network)
    alpha, beta = math.exp(log_input), math.exp(log_label)
    scaled_decays = decays * beta**2
    scaled_decays[0] *= alpha**2
    scaled_decays[-1] /= beta**2
    scaled = deep_linear_minimum(
        alpha**2 * second,
        alpha * beta * cross,
        beta**2 * label,
        weight_decays=list(scaled_decays),
        **network,
    )
    assert scaled.trivial == solution.trivial
    assert scaled.loss / beta**2 == pytest.approx(solution.loss, rel=1e-9)
    assert scaled.coefficients * alpha / beta == pytest.approx(solution.coefficients, rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 10_000), depth=st.integers(1, 3), noise=st.floats(0, 2))
@EXACT
def test_rotating_the_inputs_rotates_the_solution(seed, depth, noise):
    generator = np.random.default_rng(seed)
    second, cross, label = data_moments(generator.normal(size=(6, 3)), generator.normal(size=6))
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    network = {"widths": [2] * depth, "weight_decays": [0.02] * (depth + 1), "noise_variance": noise}
    plain = deep_linear_minimum(second, cross, label, **network)
    turned = deep_linear_minimum(rotation @ second @ rotation.T, rotation @ cross, label, **network)
    assert turned.loss == pytest.approx(plain.loss, rel=1e-10)
    assert turned.coefficients == pytest.approx(rotation @ plain.coefficients, abs=1e-8)


def test_without_noise_widths_drop_out_and_only_the_product_of_decays_matters(data):
    moments = data_moments(*data)
    narrow = deep_linear_minimum(*moments, widths=[1, 1], weight_decays=[0.1, 0.05, 0.2])
    wide = deep_linear_minimum(*moments, widths=[7, 30], weight_decays=[0.05, 0.2, 0.1])
    assert wide.loss == pytest.approx(narrow.loss, rel=1e-13)
    assert wide.coefficients == pytest.approx(narrow.coefficients, rel=1e-10)
    noisy = deep_linear_minimum(*moments, widths=[7, 30], weight_decays=[0.05, 0.2, 0.1], noise_variance=1)
    assert noisy.loss > wide.loss + 0.01


def test_the_width_enters_beside_the_noise(data):
    """A wrong retention 1/(1+σ²), noise as on one neuron, gives another loss than d/(d+σ²)."""
    moments = data_moments(*data)
    network = {"weight_decays": [0.1, 0.2], "noise_variance": 0.5}
    right = deep_linear_minimum(*moments, widths=[4], **network)
    wrong = deep_linear_minimum(*moments, widths=[1], **network)
    assert right.retention == pytest.approx(4 / 4.5)
    assert wrong.loss - right.loss > 0.1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_noise_it_is_a_penalty_on_a_root_of_the_norm(depth):
    """One feature: $1 - 2w + w^2 + (D+1) γ |w|^{2/(D+1)}$, scanned."""
    w = np.linspace(0, 1, 200_001)
    loss = 1 - 2 * w + w**2 + (depth + 1) * 0.1 * w ** (2 / (depth + 1))
    solution = deep_linear_minimum(1.0, 1.0, widths=[3] * depth, weight_decays=[0.1] * (depth + 1))
    assert solution.loss == pytest.approx(loss.min(), abs=1e-9)
    assert solution.coefficients[0] == pytest.approx(w[loss.argmin()], abs=1e-4)


def test_depth_zero_is_ridge_regression(data):
    inputs, labels = data
    solution = deep_linear_minimum(*data_moments(inputs, labels), widths=[], weight_decays=[0.3])
    ridge = Ridge(alpha=0.3 * len(labels), fit_intercept=False).fit(inputs, labels)
    assert solution.coefficients == pytest.approx(ridge.coef_, rel=1e-10)
    assert solution.weights[0][0] == pytest.approx(ridge.coef_, rel=1e-10)
    loss = np.mean((inputs @ ridge.coef_ - labels) ** 2) + 0.3 * ridge.coef_ @ ridge.coef_
    assert solution.loss == pytest.approx(loss, rel=1e-12)
    assert solution.ridge == pytest.approx(0.3)


def test_one_hidden_layer_satisfies_its_stationarity_condition(data):
    second, cross, label = data_moments(*data)
    solution = deep_linear_minimum(
        second, cross, label, widths=[4], weight_decays=[0.1, 0.2], noise_variance=0.5
    )
    b = solution.weights[1][0, 0]
    inner = np.linalg.solve(b**2 * 4.5 * second + 0.1 * np.eye(3), cross)
    assert inner @ inner == pytest.approx(0.2 / 0.1, rel=1e-10)


@pytest.mark.parametrize(("width", "noise"), [(2, 1.0), (8, 1.0), (8, 10.0), (8, 100.0)])
def test_variance_in_the_isotropic_case(width, noise):
    cross, direction = np.array([0.9, -0.5, 0.3]), np.array([1.0, 2.0, 3.0])
    strength = np.linalg.norm(cross)
    solution = deep_linear_minimum(0.8, cross, widths=[width], weight_decays=[0.3, 0.3], noise_variance=noise)
    least = (strength - 0.3) / 0.8 * (cross @ direction) / strength
    assert solution.predict_mean([direction]) == pytest.approx([least * width / (width + noise)])
    expected = least**2 * noise * width / (width + noise) ** 2
    assert solution.predict_variance([direction]) == pytest.approx([expected])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_variance_is_that_over_all_masks(data, depth):
    inputs, labels = data
    rate = 0.4
    solution = deep_linear_minimum(
        *data_moments(inputs, labels),
        widths=[2] * depth,
        weight_decays=[0.05] * (depth + 1),
        noise_variance=dropout_noise_variance(rate),
    )
    mean, square = 0.0, 0.0
    for kept in itertools.product((0, 1), repeat=2 * depth):
        chance = math.prod(1 - rate if keep else rate for keep in kept)
        hidden = inputs @ solution.weights[0].T
        for layer in range(depth):
            mask = np.array(kept[2 * layer : 2 * layer + 2]) / (1 - rate)
            hidden = (hidden * mask) @ solution.weights[layer + 1].T
        mean, square = mean + chance * hidden[:, 0], square + chance * hidden[:, 0] ** 2
    assert solution.predict_mean(inputs) == pytest.approx(mean, rel=1e-9)
    assert solution.predict_variance(inputs) == pytest.approx(square - mean**2, rel=1e-9)


def test_features_of_very_different_scale_give_several_minima_and_the_lowest_is_found():
    """Strong features of little use and weak ones of much: two wells far apart besides zero."""
    second, cross = np.diag([1.0, 1e-8]), np.array([1.0, 2e-4])
    for decay in np.geomspace(1e-5, 1, 30):
        solution = deep_linear_minimum(second, cross, widths=[1, 1, 1], weight_decays=[decay] * 4)
        penalty = np.geomspace(1e-12, 10, 400_001)
        scale = penalty**3 / decay**4
        fit = 1 / (1 / scale + 1.0) + 4e-8 / (1 / scale + 1e-8)
        assert solution.loss <= 5.0 + min(0, (3 * penalty - fit).min()) + 1e-12
        assert solution.loss == pytest.approx(5.0 + min(0, (3 * penalty - fit).min()), abs=1e-8)


def test_fewer_samples_than_features():
    generator = np.random.default_rng(3)
    inputs = generator.normal(size=(4, 10))
    labels = generator.normal(size=4)
    solution = deep_linear_minimum(*data_moments(inputs, labels), widths=[5], weight_decays=[1e-9, 1e-9])
    assert solution.predict_mean(inputs) == pytest.approx(labels, abs=1e-6)


def test_centring_is_what_an_undecayed_bias_does(data):
    inputs, labels = data
    shifted = data_moments(inputs + np.array([5.0, 0.0, -2.0]), labels + 3.0, centre=True)
    centred = data_moments(inputs - inputs.mean(axis=0), labels - labels.mean())
    for one, other in zip(shifted, centred, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("decays", [[0.1, 0.2], [2.0, 1.9], [0.1, 0.05, 0.2], [0.3, 0.1, 0.2, 0.4]])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_curvature_at_zero_by_automatic_differentiation(data, decays, noise):
    second, cross, label = data_moments(*data)
    shapes = [(2, 3), *[(2, 2)] * (len(decays) - 2), (1, 2)]
    sizes = [math.prod(shape) for shape in shapes]

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        return deep_linear_expected_loss(
            parts,
            torch.from_numpy(second),
            torch.from_numpy(cross),
            label,
            weight_decays=decays,
            noise_variance=noise,
        )

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(sum(sizes), dtype=torch.float64))
    smallest = np.linalg.eigvalsh(hessian.numpy())[0]
    origin = origin_is_local_min(cross, decays)
    assert origin.smallest_curvature == pytest.approx(smallest, abs=1e-10)
    assert origin.is_local_min == (smallest > 0)


@given(log_ratio=st.floats(-3, 3), excess=st.floats(-1e-3, 1e-3))
@EXACT
def test_one_hidden_layer_is_trivial_exactly_where_zero_is_a_local_minimum(log_ratio, excess):
    decays = [0.5 * math.exp(log_ratio), 0.5 * math.exp(-log_ratio)]
    strength = 0.5 * (1 + excess)
    origin = origin_is_local_min(strength, decays)
    if abs(excess) > 1e-12:
        assert origin.is_local_min == (excess < 0)
        assert deep_linear_minimum(0.7, strength, widths=[3], weight_decays=decays).trivial == (excess < 0)


def test_dropout_noise_variance_is_the_variance_of_the_factor():
    factors = np.array([0.0, 1 / 0.75])
    chances = np.array([0.25, 0.75])
    assert chances @ factors == pytest.approx(1)
    assert dropout_noise_variance(0.25) == pytest.approx(chances @ (factors - 1) ** 2)


def test_no_signal_no_network():
    solution = deep_linear_minimum(1.0, [0.0, 0.0], 2.0, widths=[3], weight_decays=[0.1, 0.1])
    assert solution.trivial
    assert solution.loss == 2.0
    assert solution.ridge == math.inf
    assert all((weight == 0).all() for weight in solution.weights)


FINE = {"second_moment": 1.0, "cross_moment": [1.0, 0.5], "widths": [3], "weight_decays": [0.1, 0.1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [0]}, r"widths must be whole numbers >= 1, got \[0\]"),
        ({"widths": [2.5]}, "widths must be whole numbers"),
        ({"weight_decays": [0.1]}, "one number per layer = 2 .* got 1"),
        ({"weight_decays": [0.1, 0.0]}, r"weight_decays must be finite and > 0, got \[0.1, 0.0\]"),
        ({"weight_decays": [0.1, math.nan]}, "weight_decays must be finite"),
        ({"weight_decays": []}, "at least 1 layer"),
        ({"noise_variance": -1.0}, "noise_variance must be finite and >= 0, got -1.0"),
        ({"noise_variance": [0.1, 0.1]}, "one number or 1, one per hidden layer"),
        ({"cross_moment": [[1.0]]}, "cross_moment must be a number or of shape"),
        ({"cross_moment": []}, "cross_moment must be a number or of shape"),
        ({"cross_moment": [1.0, math.inf]}, "cross_moment must be finite"),
        ({"second_moment": np.eye(3)}, r"of shape \(2, 2\) .* got shape \(3, 3\)"),
        ({"second_moment": [[1.0, 0.5], [0.0, 1.0]]}, "second_moment must be symmetric"),
        ({"second_moment": [[1.0, 2.0], [2.0, 1.0]]}, "positive semi-definite, got the eigenvalue -1"),
        ({"second_moment": math.nan}, "second_moment must be finite"),
        ({"second_moment": [[1.0, 0.0], [0.0, 0.0]]}, "range of second_moment"),
        ({"second_moment": 0.0}, "range of second_moment"),
        ({"label_moment": 1.0}, "label_moment must be at least 1.25"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(InputError, match=message):
        deep_linear_minimum(**{**FINE, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data_moments([1.0], [1.0]), "inputs and labels must have shapes"),
        (lambda: data_moments([[1.0]], [1.0, 2.0]), r"got \(1, 1\) and \(2,\)"),
        (lambda: data_moments(np.empty((0, 2)), []), "neither empty"),
        (lambda: data_moments([[math.nan]], [1.0]), "inputs and labels must be finite"),
        (lambda: dropout_noise_variance(1.0), r"drop_rate must be in \[0, 1\), got 1.0"),
        (lambda: dropout_noise_variance(-0.1), "drop_rate must be in"),
        (lambda: origin_is_local_min(1.0, [0.1]), "at least 2 layers, got 1"),
        (lambda: origin_is_local_min(1.0, [0.1, -0.1]), "weight_decays must be finite and > 0"),
        (lambda: signal_retention([2], math.nan), "noise_variance must be finite"),
    ],
)
def test_other_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_weights_that_do_not_chain_are_refused():
    second, cross = np.eye(2), np.ones(2)
    good = [np.ones((3, 2)), np.ones((1, 3))]
    for weights in ([], [np.ones((3, 2)), np.ones((1, 2))], [np.ones((2, 2))], [np.ones(2)]):
        with pytest.raises(InputError, match="weights must chain"):
            deep_linear_expected_loss(weights, second, cross, 1.0, weight_decays=[0.1] * len(weights))
    with pytest.raises(InputError, match="one number per layer = 2, got 1"):
        deep_linear_expected_loss(good, second, cross, 1.0, weight_decays=[0.1])
    with pytest.raises(InputError, match="weights must chain"):
        deep_linear_expected_loss(good, np.eye(3), cross, 1.0, weight_decays=[0.1, 0.1])
