"""HSLinear: the forward pass of nn.Linear, the error through its own synapses, the same update for both."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_neuro.layers import HSLinear


def layer_and_input(
    seed: int = 0, *, shape: tuple[int, ...] = (5,), features: tuple[int, int] = (4, 3), bias: bool = True
) -> tuple[HSLinear, Tensor]:
    generator = torch_generator(seed, "test")
    layer = HSLinear(*features, bias, dtype=torch.float64, generator=generator)
    inputs = torch.randn(*shape, features[0], dtype=torch.float64, generator=generator)
    return layer, inputs.requires_grad_()


@given(
    seed=st.integers(0, 2**32),
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    features=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
)
def test_forward_is_linear_and_backward_is_the_rule(seed, shape, features, bias):
    layer, x = layer_and_input(seed, shape=shape, features=features, bias=bias)
    y = layer(x)
    assert torch.equal(y, nn.functional.linear(x, layer.weight, layer.bias))

    error = torch.randn(y.shape, dtype=y.dtype, generator=torch_generator(seed, "error"))
    y.backward(error)
    torch.testing.assert_close(x.grad, torch.einsum("...o,oi->...i", error, layer.feedback))
    update = torch.einsum("...o,...i->oi", error, x)
    torch.testing.assert_close(layer.weight.grad, update)
    assert torch.equal(layer.weight.grad, layer.feedback.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, error.reshape(-1, features[1]).sum(0))


def test_is_backpropagation_when_the_feedback_equals_the_weight():
    layer, x = layer_and_input()
    with torch.no_grad():
        layer.feedback.copy_(layer.weight)
    parameters = (x, layer.weight, layer.bias)

    def through(function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*parameters).tanh().square().sum(), parameters)

    ours = through(lambda x, w, b: functional_call(layer, {"weight": w, "bias": b}, (x,)))
    for mine, true in zip(ours, through(nn.functional.linear), strict=True):
        torch.testing.assert_close(mine, true)


def test_differs_from_backpropagation_otherwise():
    layer, x = layer_and_input()
    layer(x).sum().backward()
    assert not torch.allclose(x.grad, layer.weight.sum(0).expand_as(x))


def test_a_network_learns_as_a_transcription_of_the_rule_without_autograd():
    """Three layers, ReLU, SGD with decay, 20 steps: the same numbers as the rule written out by hand."""
    rate, decay, generator = 0.1, 0.05, torch_generator(1, "network")
    sizes = [6, 5, 4, 3]
    layers = [HSLinear(m, n, dtype=torch.float64, generator=generator) for m, n in pairwise(sizes)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
    w, b, f = (
        [getattr(layer, name).detach().clone() for layer in layers] for name in ("weight", "bias", "feedback")
    )

    for _ in range(20):
        x = torch.randn(8, 6, dtype=torch.float64, generator=generator)
        target = torch.randint(3, (8,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimiser.step()

        activity, drive = [x], []
        for level in range(3):
            drive.append(activity[-1] @ w[level].T + b[level])
            activity.append(drive[-1].clamp(min=0))
        error = (torch.softmax(drive[2], -1) - nn.functional.one_hot(target, 3)) / len(x)
        for level in (2, 1, 0):
            below = error @ f[level] * (drive[level - 1] > 0) if level else None
            update = error.T @ activity[level]
            w[level] = w[level] - rate * (update + decay * w[level])
            f[level] = f[level] - rate * (update + decay * f[level])
            b[level] = b[level] - rate * (error.sum(0) + decay * b[level])
            error = below

    for layer, weight, bias, feedback in zip(layers, w, b, f, strict=True):
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(layer.bias, bias)
        torch.testing.assert_close(layer.feedback, feedback)


def test_every_route_through_torch_uses_the_feedback():
    """torch.compile around torch.func.grad is known to drop custom backward passes without notice."""
    layer, x = layer_and_input()
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    error = 2 * layer(x).detach()
    expected = error @ layer.feedback.detach()
    x = x.detach()
    torch.testing.assert_close(grad(loss)(x, parameters), expected)
    torch.testing.assert_close(torch.compile(grad(loss), backend="aot_eager")(x, parameters), expected)
    torch.testing.assert_close(vmap(grad(loss), in_dims=(0, None))(x, parameters), expected)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x.requires_grad_()
    compiled(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(layer.feedback.grad, error.T @ x.detach())

    per_sample = vmap(grad(loss, argnums=1), in_dims=(0, None))(x.detach(), parameters)
    torch.testing.assert_close(per_sample["weight"], torch.einsum("no,ni->noi", error, x.detach()))
    assert torch.equal(per_sample["weight"], per_sample["feedback"])


def test_equal_gradients_are_separate_tensors():
    """Whoever scales gradients in place, as clipping does, must not scale the shared one twice."""
    layer, x = layer_and_input()
    for _ in range(2):  # the first backward sets the gradients, the second adds to them
        layer(x).square().sum().backward()
        assert layer.weight.grad.data_ptr() != layer.feedback.grad.data_ptr()
    largest = layer.weight.grad.abs().max()
    nn.utils.clip_grad_value_(layer.parameters(), largest.item() / 2)
    nn.utils.clip_grad_norm_(layer.parameters(), 1e-3)
    assert torch.equal(layer.weight.grad, layer.feedback.grad)


@pytest.mark.parametrize("frozen", ["weight", "feedback", "bias"])
def test_frozen_parameters_get_no_gradient(frozen):
    layer, x = layer_and_input()
    getattr(layer, frozen).requires_grad_(False)
    layer(x).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is None} == {frozen}


def test_second_differentiation_is_refused():
    layer, x = layer_and_input()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(InputError, match="once only"):
        first.sum().backward()
    with pytest.raises(InputError, match="once only"):
        grad(lambda x: grad(lambda x: layer(x).square().sum())(x).sum())(x.detach())


def test_draws_weight_and_bias_as_linear_does_from_the_same_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ours = HSLinear(7, 5)
        torch.manual_seed(3)
        theirs = nn.Linear(7, 5)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_feedback_has_the_stated_scale_and_is_reproducible():
    def make() -> HSLinear:
        return HSLinear(400, 100, feedback_scale=0.5, generator=torch_generator(0, "scale"))

    layer = make()
    # The standard deviation of 40 000 normal numbers is known to 0.35 %; four of those.
    assert layer.feedback.std().item() == pytest.approx(0.5 / math.sqrt(100), rel=0.015)
    assert torch.equal(layer.feedback, make().feedback)
    assert torch.equal(layer.weight, make().weight)
    assert torch.count_nonzero(HSLinear(3, 2, feedback_scale=0, generator=torch_generator(0)).feedback) == 0


def test_state_copies_and_moves_like_any_module():
    layer, x = layer_and_input()
    other = HSLinear(4, 3, dtype=torch.float64, generator=torch_generator(9))
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), layer.parameters(), strict=True))
    assert set(layer.state_dict()) == {"weight", "feedback", "bias"}
    assert layer.to(torch.float32)(x.float()).dtype == torch.float32
    assert layer.feedback.dtype == torch.float32
    meta = HSLinear(4, 3, device="meta", generator=torch_generator(0))
    assert meta.to_empty(device="cpu").feedback.shape == (3, 4)


def test_mixed_precision_keeps_both_gradients_equal():
    generator = torch_generator(0)
    layer = HSLinear(4, 3, generator=generator)
    x = torch.randn(5, 4, generator=generator, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert torch.equal(layer.weight.grad, layer.feedback.grad)
    torch.testing.assert_close(x.grad, 2 * y.float() @ layer.feedback, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "in_features must be at least 1, got 0"),
        ((3, -1), {}, "out_features must be at least 1, got -1"),
        ((3, 2), {"feedback_scale": -1.0}, "feedback_scale must be finite and at least 0, got -1"),
        ((3, 2), {"feedback_scale": math.nan}, "feedback_scale must be finite"),
        ((3, 2), {"dtype": torch.complex64}, "dtype must be real floating point, got torch.complex64"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(InputError, match=message):
        HSLinear(*arguments, **options)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_bad_input_shape(shape):
    layer, _ = layer_and_input()
    with pytest.raises(InputError, match=r"\(\.\.\., in_features=4\)"):
        layer(torch.zeros(shape, dtype=torch.float64))
