"""The law of balance: exact identities in discrete time, and real torch models."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from symdyn_core.dynamics.balance import BalanceNoise, balance_rate, balance_step_factor, layer_balance
from symdyn_core.errors import InputError

coordinate = st.floats(-3, 3)


@pytest.fixture(autouse=True)
def own_randomness():
    """torch initialises layers from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def two_layer_data(outputs=2, inputs=3, samples=3, seed=0):
    """A network f = u (w x), data, and A = d l / d(u w^T) for the squared error: 2 (f - y) x^T."""
    rng = np.random.default_rng(seed)
    u, w = rng.normal(size=outputs), rng.normal(size=inputs)
    x, y = rng.normal(size=(samples, inputs)), rng.normal(size=(samples, outputs))
    residual = np.outer(x @ w, u) - y
    return u, w, x, y, 2 * residual[:, :, None] * x[:, None, :]


def mean_change_of_charge(u, w, x, y, learning_rate, batch_size):
    """Average |u|^2 - |w|^2 after one SGD step over every batch with replacement, minus its value before."""
    after = []
    for batch in itertools.product(range(len(x)), repeat=batch_size):
        xb, yb = x[list(batch)], y[list(batch)]
        residual = np.outer(xb @ w, u) - yb
        new_u = u - learning_rate * 2 * (residual * (xb @ w)[:, None]).mean(axis=0)
        new_w = w - learning_rate * 2 * ((residual @ u)[:, None] * xb).mean(axis=0)
        after.append(new_u @ new_u - new_w @ new_w)
    return np.mean(after) - (u @ u - w @ w)


@given(u=coordinate, w=coordinate, x=coordinate, learning_rate=st.floats(0.001, 3))
def test_a_step_on_scalars_multiplies_the_charge_by_the_stated_factor(u, w, x, learning_rate):
    weights = torch.tensor([u, w], dtype=torch.float64, requires_grad=True)
    product = (weights[0] * weights[1]).detach().requires_grad_()

    def loss(v):
        return torch.sin(v * x) + (v - x) ** 2  # any loss of the product

    (gradient,) = torch.autograd.grad(loss(product), product)
    optimizer = torch.optim.SGD([weights], lr=learning_rate)
    loss(weights[0] * weights[1]).backward()
    optimizer.step()
    new_u, new_w = weights.detach().tolist()
    expected = (u**2 - w**2) * float(balance_step_factor(gradient.item(), learning_rate))
    size = max(1.0, new_u**2 + new_w**2)
    assert new_u**2 - new_w**2 == pytest.approx(expected, abs=1e-12 * size)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 1)])
def test_discrete_rate_is_the_mean_over_all_batches(shape, batch_size):
    u, w, x, y, gradients = two_layer_data(*shape)
    noise = BalanceNoise.from_gradients(gradients)
    predicted = noise.discrete_rate(u, w, learning_rate=0.3, batch_size=batch_size)
    measured = mean_change_of_charge(u, w, x, y, 0.3, batch_size) / 0.3
    assert predicted == pytest.approx(measured, rel=1e-11)


def test_wrong_laws_are_told_apart():
    u, w, x, y, gradients = two_layer_data(samples=6)
    noise = BalanceNoise.from_gradients(gradients)
    # The part of the change that scales with 1/S belongs to the noise: separate it from gradient descent.
    one, two = (mean_change_of_charge(u, w, x, y, 0.3, size) / 0.3 for size in (1, 2))
    law = noise.rate(u, w, learning_rate=0.3)
    assert law == pytest.approx(2 * (one - two), rel=1e-10)
    uncentred_u = np.einsum("nik,njk->ij", gradients, gradients) / len(x)
    uncentred_w = np.einsum("nik,nil->kl", gradients, gradients) / len(x)
    uncentred = BalanceNoise(uncentred_u, uncentred_w, noise.mean).rate(u, w, learning_rate=0.3)
    transposed = -balance_rate(w, u, gradients.transpose(0, 2, 1), learning_rate=0.3)
    assert transposed == pytest.approx(law, rel=1e-12)  # the roles of u and w are a matter of naming ...
    assert abs(uncentred - law) > 0.1 * abs(law)  # ... but centring is not


def test_rate_is_the_difference_of_the_traces_of_the_gradient_covariances():
    u, w, x, y, gradients = two_layer_data(outputs=3, inputs=2, samples=20)

    def loss(u, w, x, y):
        return ((u * (w @ x) - y) ** 2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))
    of_u, of_w = per_sample(*(torch.tensor(a) for a in (u, w, x, y)))
    traces = [float(torch.cov(g.T, correction=0).trace()) for g in (of_u, of_w)]
    rate = balance_rate(u, w, gradients, learning_rate=0.1, batch_size=5)
    assert rate == pytest.approx(0.1 / 5 * (traces[0] - traces[1]), rel=1e-12)


def test_norm_ratio_is_the_ratio_of_dimensions_under_label_noise_alone():
    outputs, inputs = 2, 5
    noise = BalanceNoise(
        4 * inputs * np.eye(outputs), 4 * outputs * np.eye(inputs), np.zeros((outputs, inputs))
    )
    assert noise.norm_ratio_window() == pytest.approx((outputs / inputs, outputs / inputs))
    u, w = np.sqrt(outputs) * np.eye(outputs)[0], np.sqrt(inputs) * np.eye(inputs)[0]
    assert noise.rate(u, w, learning_rate=0.1) == pytest.approx(0.0, abs=1e-14)
    assert noise.balancing_factor(u, w) == pytest.approx(1.0)


def test_window_excludes_nothing_where_the_noise_has_a_flat_direction():
    flat = np.diag([1.0, 0.0])
    assert BalanceNoise(flat, flat, np.zeros((2, 2))).norm_ratio_window() == (0.0, np.inf)
    silent = np.zeros((2, 2))
    assert BalanceNoise(silent, silent, silent).norm_ratio_window() == (0.0, np.inf)


@given(
    gradients=st.lists(st.lists(coordinate, min_size=6, max_size=6), min_size=8, max_size=8),
    u=st.lists(coordinate, min_size=2, max_size=2),
    w=st.lists(coordinate, min_size=3, max_size=3),
)
def test_balanced_norms_lie_in_the_window(gradients, u, w):
    noise = BalanceNoise.from_gradients(np.array(gradients).reshape(8, 2, 3))
    factor = noise.balancing_factor(u, w)
    if not (np.isfinite(factor) and 1e-3 < factor < 1e3):  # no noise, or none but rounding
        return
    ratio = factor**4 * np.dot(u, u) / np.dot(w, w)
    low, high = noise.norm_ratio_window()
    assert low * (1 - 1e-6) <= ratio <= high * (1 + 1e-6)


# Real models


def classifier(activation=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6), activation or nn.ReLU(), nn.Linear(6, 3), nn.Dropout(0.5)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(7, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    return net.to(dtype), x.to(dtype), labels


def per_sample_gradients(net, x, labels):
    """Gradients of the two hidden layers' weights, by torch.func: the definition, sample by sample."""
    net = copy.deepcopy(net).double().eval()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params, x, label):
        return F.cross_entropy(torch.func.functional_call(net, params, (x[None],)), label[None])

    return params, torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, x.double(), labels)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.Identity()])
def test_layer_balance_agrees_with_per_sample_gradients(activation):
    net, x, labels = classifier(activation)
    balance = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    params, gradients = per_sample_gradients(net, x, labels)
    incoming = torch.cat([gradients["2.weight"], gradients["2.bias"][:, :, None]], dim=2)  # (n, units, d_w)
    outgoing = gradients["4.weight"].transpose(1, 2)  # (n, units, d_u)
    charges = (params["4.weight"] ** 2).sum(0) - (params["2.weight"] ** 2).sum(1) - params["2.bias"] ** 2
    np.testing.assert_allclose(balance.charges, charges.numpy(), rtol=1e-12)
    for traces, of in zip(balance.noise_traces, (outgoing, incoming), strict=True):
        np.testing.assert_allclose(
            traces, of.var(dim=0, correction=0).sum(dim=1).numpy(), rtol=1e-9, atol=1e-14
        )
    for unit in range(6):
        a = balance.gradients(unit)
        np.testing.assert_allclose(a @ balance.incoming_weights[unit], outgoing[:, unit].numpy(), atol=1e-12)
        np.testing.assert_allclose(
            balance.outgoing_weights[unit] @ a, incoming[:, unit].numpy(), rtol=1e-9, atol=1e-12
        )
        rate = balance_rate(
            balance.outgoing_weights[unit], balance.incoming_weights[unit], a, learning_rate=0.1, batch_size=2
        )
        assert balance.rates(learning_rate=0.1, batch_size=2)[unit] == pytest.approx(
            rate, rel=1e-9, abs=1e-14
        )


def test_predicted_rate_is_what_torch_sgd_does_on_average():
    net, x, labels = classifier(dtype=torch.float64)
    net.eval()
    balance = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    learning_rate, changes = 0.2, []
    for sample in range(len(x)):
        trained = copy.deepcopy(net)
        optimizer = torch.optim.SGD(trained.parameters(), lr=learning_rate)
        F.cross_entropy(trained(x[[sample]]), labels[[sample]]).backward()
        optimizer.step()
        after = layer_balance(trained, F.cross_entropy, x, labels, incoming="2", outgoing="4")
        changes.append(after.charges - balance.charges)
    predicted = [
        BalanceNoise.from_gradients(balance.gradients(unit)).discrete_rate(
            balance.outgoing_weights[unit], balance.incoming_weights[unit], learning_rate=learning_rate
        )
        for unit in range(6)
    ]
    np.testing.assert_allclose(np.mean(changes, axis=0) / learning_rate, predicted, rtol=1e-9, atol=1e-12)


def test_balancing_factors_balance_a_real_network_without_changing_it():
    net, x, labels = classifier(dtype=torch.float64)
    net.eval()
    balance = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    factors = torch.tensor(np.nan_to_num(balance.balancing_factors(), nan=1.0))
    outputs = net(x)
    with torch.no_grad():
        net[2].weight /= factors[:, None]
        net[2].bias /= factors
        net[4].weight *= factors
    torch.testing.assert_close(net(x), outputs)
    balanced = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    size = balance.noise_traces[0] + balance.noise_traces[1]
    before, after = (
        np.abs(b.rates(learning_rate=1.0)) / np.maximum(size, 1e-300) for b in (balance, balanced)
    )
    assert before.max() > 0.1
    assert after.max() < 1e-9
    for unit, (u, w) in enumerate(zip(balanced.outgoing_weights, balanced.incoming_weights, strict=True)):
        low, high = balanced.norm_ratio_window(unit)
        assert low * (1 - 1e-9) <= u @ u / (w @ w) <= high


def test_a_silent_unit_has_no_rate_and_no_factor():
    net, x, labels = classifier()
    with torch.no_grad():
        net[2].bias[0] = -1e3
    balance = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    assert balance.rates(learning_rate=1.0)[0] == 0
    assert np.isnan(balance.balancing_factors()[0])
    assert np.isfinite(balance.balancing_factors()[1:]).any()


def test_equal_samples_make_no_noise():
    net, x, _ = classifier()
    x, labels = x[:1].repeat(7, 1), torch.zeros(7, dtype=torch.long)
    balance = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    assert not balance.rates(learning_rate=1.0).any()
    assert np.isnan(balance.balancing_factors()).all()


def test_the_model_is_left_as_it_was():
    net, x, labels = classifier()
    before = copy.deepcopy(net.state_dict())
    calls = []
    net[2].register_forward_hook(lambda *_: calls.append(1))
    layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    assert net.training
    assert not calls
    assert all(p.grad is None and p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_at_a_minimum_the_check_does_not_mistake_cancellation_for_inconsistency():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y = x + torch.tensor([0.1, -0.1, 0, 0.1, -0.2, 0.1, 0, -0.1, 0.1], dtype=torch.float64)[:, None]
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(float((x * y).sum() / (x * x).sum()))
        net[1].weight.fill_(1.0)
    balance = layer_balance(net, F.mse_loss, x, y, incoming="0", outgoing="1")
    assert np.isfinite(balance.rates(learning_rate=0.1)).all()


class Skip(nn.Module):
    """The hidden units are also read by a second layer, so rescaling them changes the output."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.other = nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.second(h) + self.other(h)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(self.first(x)))


def test_networks_without_the_symmetry_are_refused():
    net, x, labels = classifier()
    with pytest.raises(InputError, match=r"elementwise map with phi\(z\) = phi'\(z\) z"):
        layer_balance(net, F.cross_entropy, x, labels, incoming="0", outgoing="2")  # tanh between
    with pytest.raises(InputError, match="elementwise"):
        layer_balance(net, F.cross_entropy, x, labels, incoming="4", outgoing="2")  # wrong order
    with pytest.raises(InputError, match="through layer 'second' only"):
        layer_balance(Skip(), F.cross_entropy, x, labels, incoming="first", outgoing="second")
    with pytest.raises(InputError, match="once in a forward pass, was used 2 times"):
        layer_balance(Twice(), F.cross_entropy, x, labels, incoming="first", outgoing="second")


def test_bad_input_is_named():
    net, x, labels = classifier()
    with pytest.raises(InputError, match=r"nn.Linear \(0, 2, 4\), got '3'"):
        layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="3")
    with pytest.raises(InputError, match="one vector per sample"):
        layer_balance(net, lambda o, t: o.sum(), x[:, None], labels, incoming="2", outgoing="4")
    with pytest.raises(InputError, match="loss fails on a batch of one sample"):
        layer_balance(net, lambda o, t: o, x, labels, incoming="2", outgoing="4")
    with pytest.raises(InputError, match="same length"):
        layer_balance(net, F.cross_entropy, x, labels[:3], incoming="2", outgoing="4")
    balance = layer_balance(net, F.cross_entropy, x, labels, incoming="2", outgoing="4")
    with pytest.raises(InputError, match=r"unit must be in \[0, 5\], got 6"):
        balance.norm_ratio_window(6)
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        balance.rates(learning_rate=0.1, batch_size=0)
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got -1"):
        balance_step_factor(1.0, learning_rate=-1.0)
    with pytest.raises(InputError, match="3 axes, got shape"):
        balance_rate([1.0], [1.0], [[1.0]], learning_rate=0.1)
    with pytest.raises(InputError, match=r"lengths of the gradient matrix \(1, 1\), got 2 and 1"):
        balance_rate([1.0, 2.0], [1.0], [[[1.0]]], learning_rate=0.1)
    with pytest.raises(InputError, match="gradients must be finite"):
        BalanceNoise.from_gradients([[[np.nan]]])
    with pytest.raises(InputError, match=r"outgoing must have shape \(1, 1\)"):
        BalanceNoise(np.eye(2), np.eye(2), np.zeros((1, 2)))
