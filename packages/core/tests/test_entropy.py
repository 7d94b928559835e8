"""The entropic loss against sums over all minibatches, and its flow against hand-made integration."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.dynamics.entropy import entropic_loss, modified_flow_check
from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator

Vector = NDArray[np.float64]

SIZE = 5


def network(*layers: Callable[[], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers)).double()


def tanh_net() -> nn.Sequential:
    return network(lambda: nn.Linear(3, 4), nn.Tanh, lambda: nn.Linear(4, 2))


def data(n: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "entropy", "data")
    return (
        torch.randn(n, 3, generator=generator, dtype=torch.float64),
        torch.randn(n, 2, generator=generator, dtype=torch.float64),
    )


def squared_gradient(model: nn.Module, x: Tensor, y: Tensor, rates: dict[str, float | Tensor]) -> float:
    model.zero_grad()
    torch.autograd.backward(functional.mse_loss(model(x), y))
    return sum(
        float((torch.as_tensor(rates[name], dtype=torch.float64) * value.grad.square()).sum())
        for name, value in model.named_parameters()
        if value.grad is not None
    )


@pytest.mark.parametrize(
    ("batch_size", "replacement"), [(1, False), (2, False), (4, False), (5, False), (3, True)]
)
@pytest.mark.parametrize("differentiable", [False, True])
def test_mean_over_all_minibatches(batch_size: int, replacement: bool, differentiable: bool) -> None:
    model, (x, y) = tanh_net(), data()
    batches: Any = (
        itertools.product(range(SIZE), repeat=batch_size)
        if replacement
        else itertools.combinations(range(SIZE), batch_size)
    )
    rates: dict[str, float | Tensor] = dict.fromkeys(dict(model.named_parameters()), 1.0)
    squares = [squared_gradient(model, x[list(batch)], y[list(batch)], rates) for batch in batches]
    with torch.no_grad():
        loss = float(functional.mse_loss(model(x), y))
    found = entropic_loss(
        model, functional.mse_loss, x, y, learning_rate=0.3, batch_size=batch_size, replacement=replacement,
        differentiable=differentiable,
    )  # fmt: skip
    assert found.item() == pytest.approx(loss + 0.3 / 4 * np.mean(squares), rel=1e-12)


def test_parts_with_a_learning_rate_for_each_weight() -> None:
    model, (x, y) = tanh_net(), data()
    rates: dict[str, float | Tensor] = {
        "0.weight": torch.rand(4, 3, generator=torch_generator(0, "rates"), dtype=torch.float64),
        "0.bias": 0.0,
        "2.weight": torch.tensor([[0.1], [0.4]], dtype=torch.float64),
        "2.bias": 0.2,
    }
    each = np.mean([squared_gradient(model, x[[k]], y[[k]], rates) for k in range(SIZE)])
    of_mean = squared_gradient(model, x, y, rates)
    found = entropic_loss(model, functional.mse_loss, x, y, learning_rate=rates, batch_size=1, parts=True)
    assert float(found.mean_gradient) == pytest.approx(of_mean / 4, rel=1e-12)
    assert float(found.noise) == pytest.approx((each - of_mean) / 4, rel=1e-12)
    assert float(found.total) == pytest.approx(
        float(found.loss + found.mean_gradient + found.noise), rel=1e-12
    )


@pytest.mark.parametrize("batch_size", [2, SIZE])
def test_gradient_of_the_regulariser(batch_size: int) -> None:
    model, (x, y) = tanh_net(), data()
    settings: dict[str, Any] = {"learning_rate": 0.3, "batch_size": batch_size}
    total = entropic_loss(model, functional.mse_loss, x, y, differentiable=True, **settings)
    model.zero_grad()
    torch.autograd.backward(total)
    for parameter in model.parameters():
        assert parameter.grad is not None
        flat, slope = parameter.data.view(-1), parameter.grad.view(-1)
        for k in (0, len(flat) - 1):
            ends = []
            for shift in (1e-5, -2e-5):
                flat[k] += shift
                ends.append(float(entropic_loss(model, functional.mse_loss, x, y, **settings)))
            flat[k] += 1e-5
            assert float(slope[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_frozen_parameters_do_not_count() -> None:
    model, (x, y) = tanh_net(), data()
    model[0].requires_grad_(False)
    rates: dict[str, float | Tensor] = {"0.weight": 0.0, "0.bias": 0.0, "2.weight": 0.3, "2.bias": 0.3}
    square = squared_gradient(model, x, y, rates) / 4
    for differentiable in (False, True):
        found = entropic_loss(
            model, functional.mse_loss, x, y, learning_rate=0.3, batch_size=SIZE, parts=True,
            differentiable=differentiable,
        )  # fmt: skip
        assert found.mean_gradient.item() == pytest.approx(square, rel=1e-12)


def test_trains_a_float32_classifier_with_less_gradient_noise() -> None:
    x, y = data(20)
    labels = (y[:, 0] > y[:, 1]).long()
    ends = []
    for learning_rate in (1e-6, 2.0):
        model = tanh_net().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(40):
            optimizer.zero_grad()
            loss = entropic_loss(
                model, functional.cross_entropy, x.float(), labels, learning_rate=learning_rate, batch_size=1,
                differentiable=True,
            )  # fmt: skip
            assert loss.dtype == torch.float32
            torch.autograd.backward(loss)
            optimizer.step()
        ends.append(
            entropic_loss(
                model,
                functional.cross_entropy,
                x.float(),
                labels,
                learning_rate=1.0,
                batch_size=1,
                parts=True,
            )
        )
    plain, regularised = ends
    assert float(regularised.noise) < 0.8 * float(plain.noise)
    assert float(regularised.loss) < 0.69


class Bowl(nn.Module):
    """A smooth loss of four weights that is not quadratic; the data are only there to be asked for."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        quartic = self.theta.pow(4).sum() / 4 + (self.theta[0] * self.theta[1] + self.theta[2]).cos()
        return (quartic + self.theta[1:].prod()) * x


BOWL = [0.8, -0.6, 0.5, 0.9]
ONE = torch.ones(1, 1, dtype=torch.float64)


def mean_output(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.mean()


def bowl_gradient(t: Vector) -> Vector:
    s = np.sin(t[0] * t[1] + t[2])
    gradient: Vector = (
        t**3 - s * np.array([t[1], t[0], 1, 0]) + np.array([0, t[2] * t[3], t[1] * t[3], t[1] * t[2]])
    )
    return gradient


def local_error(rate: float, coefficient: float) -> float:
    """Runge-Kutta by hand; the Hessian's product with the gradient by central differences."""

    def drift(t: Vector) -> Vector:
        g = bowl_gradient(t)
        shift = 1e-5 * g
        product = (bowl_gradient(t + shift) - bowl_gradient(t - shift)) / 2e-5
        velocity: Vector = -g - 2 * coefficient * rate * product
        return velocity

    start = np.array(BOWL)
    t, h = start.copy(), rate / 8
    for _ in range(8):
        k1 = drift(t)
        k2 = drift(t + h / 2 * k1)
        k3 = drift(t + h / 2 * k2)
        k4 = drift(t + h * k3)
        t = t + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return float(np.linalg.norm(t - (start - rate * bowl_gradient(start))))


def test_local_errors_by_hand_and_the_rival_coefficient() -> None:
    check = modified_flow_check(Bowl(BOWL), mean_output, ONE, ONE, learning_rate=0.02)
    rates = 0.02 * check.fractions
    assert check.errors == pytest.approx([local_error(rate, 1 / 4) for rate in rates], rel=1e-3)
    assert check.errors_without == pytest.approx([local_error(rate, 0.0) for rate in rates], rel=1e-3)
    assert check.order == pytest.approx(3, abs=0.1)
    assert check.order_without == pytest.approx(2, abs=0.1)
    assert check.explained > 0.95
    rival = np.log2(local_error(0.02, 1 / 2) / local_error(0.01, 1 / 2))
    assert rival == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("rates", [0.2, {"0.weight": 0.4, "0.bias": 0.0, "2.weight": 0.1, "2.bias": 0.2}])
def test_orders_on_a_network(rates: Any) -> None:
    model, (x, y) = tanh_net(), data()
    before = [parameter.clone() for parameter in model.parameters()]
    check = modified_flow_check(model, functional.mse_loss, x, y, learning_rate=rates)
    assert check.order == pytest.approx(3, abs=0.2)
    assert check.order_without == pytest.approx(2, abs=0.2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_kinks_of_relu_units_lower_the_orders() -> None:
    model, (x, y) = network(lambda: nn.Linear(3, 20), nn.ReLU, lambda: nn.Linear(20, 2)), data(60)
    check = modified_flow_check(model, functional.mse_loss, x, y, learning_rate=0.6)
    assert check.order < 2.6
    assert check.order_without < 1.85
    assert check.explained < 0.5
    assert (check.uncertainty < 0.1 * check.errors).all()
    smooth = modified_flow_check(tanh_net(), functional.mse_loss, *data(), learning_rate=0.2, halvings=1)
    assert (smooth.uncertainty < 1e-3 * smooth.errors).all()


def test_attention_can_be_regularised() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
            self.read = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.mix(x, x, x, need_weights=False)[0].mean(dim=1))  # type: ignore[no-any-return]

    model, (_, y) = network(Attention)[0], data()
    x = torch.randn(SIZE, 3, 4, generator=torch_generator(0, "tokens"), dtype=torch.float64)
    settings: dict[str, Any] = {"learning_rate": 0.3, "batch_size": 2}
    total = entropic_loss(model, functional.mse_loss, x, y, differentiable=True, **settings)
    torch.autograd.backward(total)
    assert model.mix.in_proj_weight.grad is not None  # type: ignore[union-attr]
    assert total.item() == pytest.approx(
        entropic_loss(model, functional.mse_loss, x, y, **settings).item(), rel=1e-10
    )
    check = modified_flow_check(model, functional.mse_loss, x, y, learning_rate=0.2, halvings=1)
    assert check.order > 2.7


def test_bad_input_is_named() -> None:
    model, (x, y) = tanh_net(), data()
    good: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 2}

    def refuse(match: str, of: nn.Module = model, loss: Any = functional.mse_loss, **changed: Any) -> None:
        with pytest.raises(InputError, match=match):
            entropic_loss(of, loss, x, y, **{**good, **changed})

    refuse(r"batch_size must be a whole number in \[1, n_samples=5\], got 6", batch_size=6)
    refuse(r"batch_size must be a whole number in \[1, n_samples=5\], got 0", batch_size=0)
    refuse("learning_rate must be finite and > 0, got -1.0", learning_rate=-1.0)
    refuse("learning_rate must be finite and > 0, got nan", learning_rate=float("nan"))
    refuse(
        "unknown parameter '0.wieght' in learning_rate; did you mean 0.weight",
        learning_rate={"0.wieght": 0.1},
    )
    refuse("must name every trainable parameter, got none for '0.bias'", learning_rate={"0.weight": 0.1})
    names = dict.fromkeys(dict(model.named_parameters()), 0.1)
    refuse("learning_rate of '2.bias' must be finite and >= 0", learning_rate={**names, "2.bias": -0.1})
    wide = {**names, "2.bias": torch.ones(3)}
    refuse(r"must broadcast, got shape \(3,\) for a parameter of shape \(2,\)", learning_rate=wide)
    refuse("must be > 0 for one parameter at least", learning_rate=dict.fromkeys(names, 0.0))
    refuse("model must be a torch.nn.Module, got str", of="net")  # type: ignore[arg-type]
    frozen = tanh_net().requires_grad_(False)
    refuse("must have a trainable parameter", of=frozen)

    def infinite(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.mse_loss(outputs, labels) / 0.0

    def summed(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.mse_loss(outputs, labels, reduction="sum")

    for differentiable in (False, True):
        refuse("the loss must be finite, got inf", loss=infinite, differentiable=differentiable)
        refuse("must be the mean of the losses of single samples", loss=summed, differentiable=differentiable)
    normed = network(lambda: nn.Linear(3, 2), lambda: nn.BatchNorm1d(2))
    refuse("batch normalisation in training mode", of=normed, differentiable=True)
    dropped = network(lambda: nn.Linear(3, 2), nn.Dropout)
    refuse("dropout in training mode", of=dropped, differentiable=True)
    for of in (normed, dropped):
        assert torch.isfinite(
            entropic_loss(of.eval(), functional.mse_loss, x, y, differentiable=True, **good)
        )


def test_flow_check_names_what_is_wrong() -> None:
    def refuse(match: str, model: nn.Module, **changed: Any) -> None:
        with pytest.raises(InputError, match=match):
            modified_flow_check(
                model, mean_output, ONE, ONE, **{"learning_rate": 0.02, "halvings": 1, **changed}
            )

    refuse("halvings must be a whole number in", Bowl(BOWL), halvings=0)
    refuse("the gradient must not vanish", Bowl([0.0, 0.0, 0.0, 0.0]))
    refuse("too small to tell the flows apart", Bowl(BOWL), learning_rate=1e-9)
    refuse("flow must stay finite", Bowl([1e70, 1.0, 1.0, 1.0]))
    refuse("cannot be integrated closely enough", Bowl([1.0, 1.0, 1.0, 1.0]), learning_rate=1.3)
