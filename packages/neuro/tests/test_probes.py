"""The probes say what they should and leave no trace."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_neuro.layers import HSLinear
from symdyn_neuro.probes import feedback_mismatch, gradient_alignment
from symdyn_neuro.training import Rule, perceptron


def batch(n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_generator(0, "batch")
    return torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def test_backpropagation_is_aligned_with_itself():
    model = perceptron([6, 5, 4, 3], rule=Rule.BACKPROP, seed=0)
    cosines = gradient_alignment(model, F.cross_entropy, *batch())
    assert cosines == pytest.approx({"layer1": 1.0, "layer2": 1.0, "layer3": 1.0})


def test_equals_the_cosine_of_gradients_found_by_swapping_the_feedback():
    model = perceptron([6, 5, 4, 3], seed=0)
    inputs, targets = batch()
    cosines = gradient_alignment(model, F.cross_entropy, inputs, targets)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        layers = ("layer1", "layer2", "layer3")
        return {
            n: torch.cat([getattr(model, n).weight.grad.flatten(), getattr(model, n).bias.grad])
            for n in layers
        }

    update = gradients()
    with torch.no_grad():
        for layer in (model.layer2, model.layer3):
            layer.feedback.copy_(layer.weight)
    truth = gradients()
    expected = {name: F.cosine_similarity(update[name], truth[name], dim=0).item() for name in update}
    assert cosines == pytest.approx(expected, abs=1e-6)
    assert cosines["layer3"] == pytest.approx(1.0)
    assert abs(cosines["layer1"]) < 0.9
    assert gradient_alignment(model, F.cross_entropy, inputs, targets)["layer1"] == pytest.approx(1.0)


def test_reversed_feedback_points_uphill():
    model = perceptron([6, 5, 3], seed=0)
    with torch.no_grad():
        model.layer2.feedback.copy_(-model.layer2.weight)
    assert gradient_alignment(model, F.cross_entropy, *batch())["layer1"] == pytest.approx(-1.0)


def test_leaves_no_trace_and_sees_the_same_dropout_twice():
    layer1, relu, layer2 = perceptron([6, 5, 3], rule=Rule.BACKPROP, seed=0)
    model = nn.Sequential(layer1, nn.BatchNorm1d(5), relu, nn.Dropout(0.5), layer2)
    layer1.weight.grad = torch.ones(5, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cosines = gradient_alignment(model, F.cross_entropy, *batch())  # the random state is watched by conftest
    assert all(cosine == pytest.approx(1.0) for cosine in cosines.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(layer1.weight.grad, torch.ones(5, 6))
    assert layer2.weight.grad is None
    assert model.training


def test_works_without_gradient_mode_and_on_a_bare_layer():
    layer = HSLinear(6, 3, generator=torch_generator(0))
    with torch.no_grad():
        assert gradient_alignment(layer, F.cross_entropy, *batch()) == pytest.approx({"": 1.0})


def test_a_vanishing_gradient_has_no_direction():
    model = perceptron([6, 5, 3], seed=0)
    with torch.no_grad():
        model.layer1.bias.fill_(-100.0)  # every hidden unit is silent
    cosines = gradient_alignment(model, F.cross_entropy, *batch())
    assert math.isnan(cosines["layer1"])
    assert cosines["layer2"] == pytest.approx(1.0)


def test_mismatch_is_the_frobenius_norm_by_layer():
    model = perceptron([6, 5, 4, 3], seed=0)
    expected = {
        n: (getattr(model, n).feedback - getattr(model, n).weight).norm().item() for n in ("layer2", "layer3")
    }
    assert feedback_mismatch(model) == pytest.approx(expected)
    assert feedback_mismatch(perceptron([6, 5, 3], rule=Rule.BACKPROP, seed=0)) == {}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, t: F.cross_entropy(y, t, reduction="none"), r"must return a scalar tensor, got \(16,\)"),
        (lambda y, t: 1.0, "must return a scalar tensor, got float"),
        (lambda y, t: F.cross_entropy(y, t) * math.nan, "loss must be finite to compare gradients, got nan"),
        (lambda y, t: y.detach().sum(), "does not depend on the model's trainable parameters"),
    ],
)
def test_bad_losses(loss, message):
    with pytest.raises(InputError, match=message):
        gradient_alignment(perceptron([6, 5, 3], seed=0), loss, *batch())


def test_nothing_to_train():
    model = perceptron([6, 5, 3], seed=0).requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        gradient_alignment(model, F.cross_entropy, *batch())
