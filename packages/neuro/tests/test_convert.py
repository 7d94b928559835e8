"""Conversion keeps the function, the objects and what cannot be converted; and it can be undone."""

import copy

import pytest
import torch
from torch import nn

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_neuro.convert import backprop_, heterosynaptic_
from symdyn_neuro.layers import HSLinear


class Classifier(nn.Module):
    """A model with everything that may stand in the way."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8, bias=False))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.frozen(self.body(self.body(x))))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier()


def test_converts_what_it_can_and_reports_the_rest(model):
    report = heterosynaptic_(model, skip={"body.0"}, generator=torch_generator(0))
    assert report.converted == ("body.2",)
    assert isinstance(model.body[2], HSLinear)
    assert report.kept == {
        "embedding": "Embedding has no heterosynaptic version",
        "attention": "MultiheadAttention has no heterosynaptic version",
        "attention.out_proj": (
            "NonDynamicallyQuantizableLinear is a subclass of Linear with a behaviour of its own"
        ),
        "norm": "LayerNorm has no heterosynaptic version",
        "body.0": "skipped",
        "frozen": "its weight is frozen",
        "head": "its weight is shared with another module",
    }
    assert "body.2" in str(report).splitlines()[0]


def test_keeps_the_function_the_objects_and_the_hooks(model):
    words = torch.arange(6).reshape(2, 3)
    before, layer, weight, calls = model(words), model.body[0], model.body[0].weight, []
    layer.register_forward_hook(lambda *_: calls.append(1))
    heterosynaptic_(model, generator=torch_generator(0))
    assert torch.equal(model(words), before)
    assert model.body[0] is layer
    assert layer.weight is weight
    assert len(calls) == 2  # the body runs twice


def test_the_converted_layer_follows_the_rule_with_the_dtype_of_its_weight(model):
    model.double()
    heterosynaptic_(model, feedback_scale=2.0, generator=torch_generator(0))
    layer = model.body[0]
    assert layer.feedback.dtype == torch.float64
    assert layer.feedback_scale == 2.0
    x = torch.ones(1, 8, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.feedback.sum(0, keepdim=True))
    assert torch.equal(layer.feedback.grad, layer.weight.grad)


def test_feedback_is_reproducible(model):
    twin = copy.deepcopy(model)
    for each in (model, twin):
        heterosynaptic_(each, generator=torch_generator(5))
    assert torch.equal(model.body[2].feedback, twin.body[2].feedback)


def test_a_second_conversion_changes_nothing(model):
    heterosynaptic_(model, generator=torch_generator(0))
    before = model.body[0].feedback
    assert heterosynaptic_(model, generator=torch_generator(1)).converted == ()
    assert model.body[0].feedback is before


def test_a_single_layer_converts_and_reports_itself():
    layer = backprop_(HSLinear(3, 2, generator=torch_generator(0)))
    report = heterosynaptic_(layer, generator=torch_generator(1))
    assert isinstance(layer, HSLinear)
    assert str(report) == "converted: (the model itself)\nkept: none"


def test_backprop_undoes_it(model):
    names, words = list(model.state_dict()), torch.arange(4).reshape(1, 4)
    before = model(words)
    heterosynaptic_(model, generator=torch_generator(0))
    assert list(model.state_dict()) != names
    assert backprop_(model) is model
    assert list(model.state_dict()) == names
    assert type(model.body[0]) is nn.Linear
    assert torch.equal(model(words), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": {"boddy.0"}}, "skip must name layers of the model, got 'boddy.0'; it has .*body.0"),
        ({"feedback_scale": -0.5}, "feedback_scale must be finite and at least 0, got -0.5"),
    ],
)
def test_bad_arguments_leave_the_model_alone(model, options, message):
    with pytest.raises(InputError, match=message):
        heterosynaptic_(model, generator=torch_generator(0), **options)
    assert not any(isinstance(module, HSLinear) for module in model.modules())
