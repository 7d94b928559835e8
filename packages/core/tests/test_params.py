"""A model as a function of its parameters, and the guard at the edge."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, evaluate_loss, from_vector, frozen_copy, to_vector

shapes = st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4)


def small_net(dropout: float = 0.5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(dropout), nn.Linear(5, 2))


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(shapes)
def test_vector_and_named_parameters_are_inverse(sizes: list[tuple[int, ...]]) -> None:
    params = {str(k): normal(*size, seed=k) for k, size in enumerate(sizes)}
    vector = to_vector(params)
    assert len(vector) == sum(value.numel() for value in params.values())
    back = from_vector(vector, params)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], params[name]) for name in params)


def test_a_vector_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"vector must have shape \(3,\), got \(2,\)"):
        from_vector(torch.zeros(2), {"w": torch.zeros(3)})


def test_frozen_model_is_the_float64_evaluation_mode_function() -> None:
    model, inputs = small_net(), normal(7, 3)
    frozen = FrozenModel(model)
    expected = copy.deepcopy(model).double().eval()(inputs.double())
    assert torch.equal(frozen(frozen.params, inputs), expected)
    halved = {name: value / 2 for name, value in frozen.params.items()}
    assert not torch.allclose(frozen(halved, inputs), expected)


def test_the_callers_model_is_left_alone() -> None:
    model, inputs = small_net(), normal(7, 3)
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("model"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("layer"))
    model[0].weight.grad = torch.ones(5, 3)
    model[3].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    frozen = FrozenModel(model)
    frozen(frozen.params, inputs)
    evaluate_loss(model, mse_loss, inputs, torch.zeros(7, 2))
    assert calls == []
    assert model.training
    assert model[2].training
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight.grad, torch.ones(5, 3))
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(model._forward_hooks) == 1
    assert frozen.params["0.weight"].grad is None


def test_a_random_model_does_not_move_the_callers_random_state() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())

    before = torch.get_rng_state()
    frozen = FrozenModel(Noisy())
    frozen({}, torch.zeros(2, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_parameters_appear_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.utils.skip_init(nn.Linear, 2, 2, bias=False)
            nn.init.eye_(self.a.weight)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    frozen = FrozenModel(Tied())
    assert list(frozen.params) == ["a.weight"]
    ones = torch.ones(1, 2, dtype=torch.float64)
    assert frozen({"a.weight": 3 * torch.eye(2, dtype=torch.float64)}, ones).tolist() == [[9.0, 9.0]]


def test_loss_is_the_models_own_in_evaluation_mode() -> None:
    model, inputs = small_net(), normal(9, 3)
    labels = torch.arange(9) % 2
    expected = cross_entropy(copy.deepcopy(model).eval()(inputs), labels).item()
    assert evaluate_loss(model, cross_entropy, inputs, labels) == expected
    # A loss with float32 weights of its own works because the model keeps its dtype here.
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    assert evaluate_loss(model, weighted, inputs, labels) > 0


def spoilt(value: float | complex) -> nn.Module:
    model = small_net()
    if isinstance(value, complex):
        return model.to(torch.complex64)
    model[0].bias.data[1] = value
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("net", r"model must be a torch.nn.Module, got str"),
        (spoilt(float("nan")), r"parameter '0.bias' must be finite"),
        (spoilt(float("inf")), r"parameter '0.bias' must be finite"),
        (nn.Sequential(nn.LazyLinear(3)), r"parameter '0.weight' is not initialised yet"),
    ],
)
def test_unusable_models_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrozenModel(model)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"parameter '0.weight' must be real, got torch.complex64"):
        FrozenModel(spoilt(1j))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = small_net()
    model.cache = (model[0].weight * 2,)  # not a leaf: torch refuses to copy it
    with pytest.raises(InputError, match="model cannot be copied: RuntimeError"):
        FrozenModel(model)


def raising(outputs: Tensor, targets: Tensor) -> Tensor:
    raise KeyError("first line\nsecond line")


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


good, zeros = normal(4, 3), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("model", "loss_fn", "inputs", "targets", "message"),
    [
        (small_net(), mse_loss, good.numpy(), zeros, r"inputs must be a torch.Tensor, got ndarray"),
        (small_net(), mse_loss, good, None, r"targets must be a torch.Tensor, got NoneType"),
        (small_net(), mse_loss, good, zeros[:3], r"the same length, got 4 and 3"),
        (
            small_net(),
            mse_loss,
            good[:0],
            zeros[:0],
            r"inputs must hold at least one sample, got shape \(0, 3\)",
        ),
        (small_net(), mse_loss, good / 0, zeros, r"inputs must be finite"),
        (small_net(), "mse", good, zeros, r"loss_fn must be callable, got str"),
        (
            small_net(),
            mse_loss,
            good[:, :2],
            zeros,
            r"the model fails on inputs of shape \(4, 2\): RuntimeError",
        ),
        (Pair(), mse_loss, good, zeros, r"the model must return one tensor, got tuple"),
        (
            small_net(),
            raising,
            good,
            zeros,
            r"outputs of shape \(4, 2\) and targets of shape \(4, 2\): KeyError",
        ),
        (
            small_net(),
            lambda o, t: (o - t) ** 2,
            good,
            zeros,
            r"the loss must be one number, got shape \(4, 2\)",
        ),
        (small_net(), lambda o, t: (o - t).sum() / 0, good, zeros, r"the loss must be finite"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(model, loss_fn, inputs, targets, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate_loss(model, loss_fn, inputs, targets)
    assert "\n" not in str(caught.value)


class Uninitialised(nn.Module):
    def __init__(self):
        pass


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise ValueError("one of a kind")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Uninitialised(), r"Uninitialised.__init__ must call super"),
        (nn.Linear(2, 1, device="meta"), "'weight' must hold numbers, got one on the meta device"),
        (nn.utils.skip_init(Uncopyable, 2, 1), "model cannot be copied: ValueError: one of a kind"),
    ],
    ids=["uninitialised", "meta", "uncopyable"],
)
def test_models_that_cannot_be_evaluated_are_named(model, message):
    if isinstance(model, Uncopyable):
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
    with pytest.raises(InputError, match=message):
        frozen_copy(model)


def test_sparse_data_and_complex_losses_are_named():
    ones = torch.ones(3, 2)
    with pytest.raises(InputError, match=r"inputs must be a dense tensor of numbers, got torch.sparse_coo"):
        evaluate_loss(nn.Identity(), mse_loss, ones.to_sparse(), ones)
    with pytest.raises(InputError, match=r"the loss must be real, got torch.complex64"):
        evaluate_loss(nn.Identity(), lambda outputs, targets: outputs.sum() * 1j, ones, ones)
