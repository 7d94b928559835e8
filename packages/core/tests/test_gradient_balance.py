"""Gradient balance against sums over all minibatches and steps of torch's optimizer, and its errors."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.dynamics.gradient_balance import BalanceReport, find_scale_pairs, gradient_balance
from symdyn_core.dynamics.universal import balanced_linear
from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.gradients import per_sample_gradients
from symdyn_core.symmetry.kinds import PositiveRescaling, ScaleInvariance, SignFlip
from symdyn_core.symmetry.rebalance import rebalance_
from symdyn_core.symmetry.units import Axis, Units

SIZE = 6


def network(*layers: Callable[[], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers)).double()


def relu_net() -> nn.Sequential:
    return network(lambda: nn.Linear(3, 4), nn.ReLU, lambda: nn.Linear(4, 2))


def linear_net(outputs: int = 2) -> nn.Sequential:
    return network(lambda: nn.Linear(3, 2, bias=False), lambda: nn.Linear(2, outputs, bias=False))


def data(n: int = SIZE, outputs: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "balance", "data")
    return (
        torch.randn(n, 3, generator=generator, dtype=torch.float64),
        torch.randn(n, outputs, generator=generator, dtype=torch.float64),
    )


def batch_gradients(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> list[dict[str, Tensor]]:
    found = []
    for batch in itertools.combinations(range(len(x)), batch_size):
        model.zero_grad()
        torch.autograd.backward(functional.mse_loss(model(x[list(batch)]), y[list(batch)]))
        found.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6])
def test_relu_units_over_all_minibatches(batch_size: int) -> None:
    model, (x, y) = relu_net(), data()
    report = gradient_balance(model, functional.mse_loss, x, y, batch_size=batch_size, learning_rate=0.2)
    gradients = batch_gradients(model, x, y, batch_size)
    incoming = torch.stack([g["0.weight"].square().sum(1) + g["0.bias"].square() for g in gradients]).mean(0)
    outgoing = torch.stack([g["2.weight"].square().sum(0) for g in gradients]).mean(0)
    assert [row.incoming for row in report.units] == pytest.approx(incoming.tolist(), rel=1e-12)
    assert [row.outgoing for row in report.units] == pytest.approx(outgoing.tolist(), rel=1e-12)
    (pair,) = report.pairs
    assert pair.ratio == pytest.approx(float(incoming.sum() / outgoing.sum()), rel=1e-12)
    assert pair.force == pytest.approx(0.2 * float(incoming.sum() - outgoing.sum()), rel=1e-9)
    assert (pair.decay, pair.matrix_gap) == (0.0, None)


def test_linear_pair_is_an_equality_of_matrices() -> None:
    model, (x, y) = linear_net(), data()
    (pair,) = gradient_balance(model, functional.mse_loss, x, y, batch_size=2).pairs
    gradients = batch_gradients(model, x, y, 2)
    first = torch.stack([g["0.weight"] @ g["0.weight"].T for g in gradients]).mean(dim=0)
    second = torch.stack([g["1.weight"].T @ g["1.weight"] for g in gradients]).mean(dim=0)
    assert pair.kind == "general linear"
    assert pair.incoming == pytest.approx(float(first.trace()), rel=1e-12)
    assert pair.matrix_gap == pytest.approx(
        float((first - second).norm() / ((first.norm() + second.norm()) / 2)), rel=1e-10
    )
    assert (pair.force, pair.force_error, pair.decay) == (None, None, None)


@pytest.mark.parametrize("net", [relu_net, linear_net])
def test_both_sides_say_how_the_charge_moves_in_the_next_step(net: Callable[[], nn.Sequential]) -> None:
    # A step and a decay so large that the second-order term of the decay is a quarter of the whole.
    rate, decay = 0.5, 1.0
    model, (x, y) = net(), data()
    last = "2.weight" if net is relu_net else "1.weight"
    changes = []
    for batch in itertools.combinations(range(SIZE), 2):
        run = copy.deepcopy(model)
        optimizer = torch.optim.SGD(run.parameters(), lr=rate, weight_decay=decay)
        torch.autograd.backward(functional.mse_loss(run(x[list(batch)]), y[list(batch)]))
        optimizer.step()
        values = []
        for at in (model, run):
            named = dict(at.named_parameters())
            incoming = sum(v.square().sum().item() for name, v in named.items() if name.startswith("0."))
            values.append(incoming - named[last].square().sum().item())
        changes.append(values[1] - values[0])
    settings: dict[str, Any] = {"learning_rate": rate, "weight_decay": decay, "batch_size": 2}
    (pair,) = gradient_balance(model, functional.mse_loss, x, y, **settings).pairs
    assert pair.force is not None
    assert pair.decay is not None
    assert rate * (pair.force - pair.decay) == pytest.approx(np.mean(changes), rel=1e-10)
    # The rivals: no second-order term, and half the decay.
    for wrong in (2 * decay, decay - rate * decay**2):
        rival = pair.decay * wrong / (2 * decay - rate * decay**2)
        assert rate * (pair.force - rival) != pytest.approx(np.mean(changes), rel=1e-2)


def test_names_and_symmetries_are_the_same_pair() -> None:
    model, (x, y) = relu_net(), data()
    (found,) = find_scale_pairs(model, x)
    by_name = gradient_balance(
        model, functional.mse_loss, x, y, [(("0.weight", "0.bias"), "2.weight"), found], learning_rate=0.1
    ).pairs
    assert (by_name[0].kind, by_name[1].kind) == ("exponential", "positive rescaling")
    for field in ("incoming", "outgoing", "ratio", "ratio_error", "force", "force_error"):
        assert getattr(by_name[0], field) == pytest.approx(getattr(by_name[1], field), rel=1e-10)


def test_scale_invariance_has_an_identity_with_decay() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4, bias=False)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.head(h / h.norm(dim=1, keepdim=True))  # type: ignore[no-any-return]

    model, (x, y) = network(Normalised)[0], data()
    scale = ScaleInvariance(Units("first", 1, (Axis("first.weight", 0, index=(0, 1, 2, 3)),), ()))
    settings: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.2}
    (row,) = gradient_balance(model, functional.mse_loss, x, y, [scale], **settings).pairs
    square = float(model.first.weight.detach().square().sum())  # type: ignore[union-attr,operator]
    assert row.decay == pytest.approx((2 * 0.2 - 0.1 * 0.2**2) * square, rel=1e-12)
    assert row.force == pytest.approx(0.1 * row.incoming, rel=1e-12)
    assert (row.outgoing, row.ratio) == (0.0, np.inf)


def solved_task(
    n: int, generator: torch.Generator, model: nn.Sequential
) -> tuple[Tensor, Tensor, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs and noisy labels of which the linear net is the regression, with the two covariances."""
    x_scale, noise_scale = torch.tensor([1.5, 1.0, 0.5]).double(), torch.tensor([0.3, 1.0]).double()
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) * x_scale
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64) * noise_scale
    with torch.no_grad():
        return x, model(x) + noise, np.diag(x_scale**2), np.diag(noise_scale**2)


def half_square(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().sum(dim=1).mean() / 2


def test_closed_form_balances_and_balanced_norms_do_not() -> None:
    model = linear_net()
    x, y, second_moment, label_covariance = solved_task(4000, torch_generator(0, "balance", "solved"), model)
    target = (model[1].weight @ model[0].weight).detach().numpy()
    left, values, right = np.linalg.svd(target)
    rival = np.sqrt(values)[:, None] * right[:2], left * np.sqrt(values)
    rows = []
    for layers in (balanced_linear(target, second_moment, label_covariance), rival):
        with torch.no_grad():
            model[0].weight.copy_(torch.from_numpy(layers[0]))
            model[1].weight.copy_(torch.from_numpy(layers[1]))
        rows += gradient_balance(model, half_square, x, y).pairs
    balanced, norms = rows
    assert balanced.matrix_gap is not None
    assert balanced.matrix_gap_error is not None
    assert balanced.matrix_gap_error < 0.06
    assert balanced.matrix_gap < 2.5 * balanced.matrix_gap_error
    assert abs(balanced.ratio - 1) < 4 * balanced.ratio_error < 0.2
    assert norms.matrix_gap is not None
    assert norms.matrix_gap_error is not None
    assert norms.matrix_gap > 10 * norms.matrix_gap_error
    assert abs(norms.ratio - 1) > 10 * norms.ratio_error


@pytest.mark.parametrize("batch_size", [1, 20])
def test_standard_errors_are_those_of_the_jackknife(batch_size: int) -> None:
    model, n = linear_net(), 400
    x, y, *_ = solved_task(n, torch_generator(0, "balance", "errors"), model)
    y = y + 0.5  # so that the mean gradient counts as well
    settings: dict[str, Any] = {"batch_size": batch_size, "learning_rate": 0.1, "replacement": True}
    (row,) = gradient_balance(model, half_square, x, y, **settings).pairs
    (chunk,) = per_sample_gradients(model, half_square, x, y)
    # All quadratic moments of the data without one sample, written out.
    sides, matrices = [], []
    for gradients in (chunk["0.weight"], chunk["1.weight"].mT):  # one row per hidden unit
        mean = (gradients.sum(dim=0) - gradients) / (n - 1)
        squares = torch.einsum("nij,nkj->nik", gradients, gradients)
        second = (squares.sum(dim=0) - squares) / (n - 1)
        of_mean = torch.einsum("nij,nkj->nik", mean, mean)
        matrices.append(of_mean + (second - of_mean) / batch_size)
        sides.append(torch.einsum("nii->n", matrices[-1]))

    def jackknife(values: Tensor) -> float:
        return float((values - values.mean(dim=0)).square().sum().mul((n - 1) / n).sqrt())

    assert row.ratio_error == pytest.approx(jackknife(sides[0] / sides[1]), rel=0.03)
    assert row.force_error == pytest.approx(jackknife(0.1 * (sides[0] - sides[1])), rel=0.03)
    size = (matrices[0].mean(dim=0).norm() + matrices[1].mean(dim=0).norm()) / 2
    assert row.matrix_gap_error == pytest.approx(jackknife(matrices[0] - matrices[1]) / float(size), rel=0.03)


def test_rebalance_is_the_entropic_balance_at_the_present_function() -> None:
    model, (x, y) = relu_net(), data(60)
    before = gradient_balance(model, functional.mse_loss, x, y)
    rebalance_(model, functional.mse_loss, x, y, to="noise")
    after = gradient_balance(model, functional.mse_loss, x, y)
    chunks = list(per_sample_gradients(model, functional.mse_loss, x, y))
    mean = {name: torch.cat([chunk[name] for chunk in chunks]).mean(dim=0) for name in chunks[0]}
    of_mean = (mean["0.weight"].square().sum(1) + mean["0.bias"].square(), mean["2.weight"].square().sum(0))
    for row, first, second in zip(after.units, *of_mean, strict=True):
        assert (row.incoming - float(first)) / (row.outgoing - float(second)) == pytest.approx(1, abs=1e-5)
    assert max(abs(row.ratio - 1) for row in before.units) > 0.3

    # Where nothing is left to learn there is no mean gradient, and the ratio itself is one.
    solved = linear_net(outputs=3)
    x, y = data(60, outputs=3)
    whitener = torch.linalg.inv(torch.linalg.cholesky(x.T @ x))
    with torch.no_grad():
        residual = y - x @ (whitener.T @ (whitener @ (x.T @ y)))  # no input explains anything of it
        labels = solved(x) + residual
    rebalance_(solved, half_square, x, labels, to="noise")
    (row,) = gradient_balance(solved, half_square, x, labels).pairs
    assert row.ratio == pytest.approx(1, abs=1e-6)
    assert row.matrix_gap == pytest.approx(0, abs=1e-6)


def test_dead_unit_has_no_ratio_and_the_report_is_a_table() -> None:
    model, (x, y) = relu_net(), data()
    with torch.no_grad():
        model[0].bias[1] = -1e3
    report = gradient_balance(model, functional.mse_loss, x, y)
    assert np.isnan(report.units[1].ratio)
    assert np.isfinite(report.pairs[0].ratio)
    table = report.to_frame(units=True)
    assert table["unit"].tolist() == [0, 1, 2, 3]
    assert report.to_frame()["layer"].tolist() == ["0"]
    assert list(BalanceReport((), ()).to_frame().columns) == list(table.columns)


def test_bad_input_is_named() -> None:
    model, (x, y) = relu_net(), data()

    def refuse(match: str, pairs: Any = None, of: nn.Module = model, **settings: Any) -> None:
        with pytest.raises(InputError, match=match):
            gradient_balance(of, functional.mse_loss, x, y, pairs, **settings)

    refuse(r"batch_size must be a whole number in \[1, n_samples=6\], got 7", batch_size=7)
    refuse("learning_rate must be given with weight_decay, got weight_decay=0.1", weight_decay=0.1)
    refuse("weight_decay must be finite and >= 0", weight_decay=-0.1, learning_rate=0.1)
    refuse("learning_rate must be finite and > 0, got 0.0", learning_rate=0.0)
    refuse("learning_rate [*] weight_decay must be < 1", weight_decay=20.0, learning_rate=0.1)
    smooth = network(lambda: nn.Linear(3, 4), nn.Sigmoid, lambda: nn.Linear(4, 2))
    refuse("must have a pair of weights with a scale symmetry between them", of=smooth)
    refuse("must have a pair of weights with a scale symmetry between them", [])
    pair = [(("0.weight", "0.bias"), "2.weight")]
    refuse("must leave the loss of every sample unchanged", pair, of=smooth)
    refuse("unknown parameter '1.weight'; did you mean", [("0.weight", "1.weight")])
    refuse("two groups of parameter names, got '0.weight'", ["0.weight"])
    refuse("must name each parameter once, with some on both sides", [("0.weight", "0.weight")])
    refuse("must name each parameter once, with some on both sides", [((), "0.weight")])
    units = Units("0", 4, (Axis("0.weight", 0),), (Axis("3.weight", 1),))
    refuse("unknown parameter '3.weight' of the positive rescaling given", [PositiveRescaling(units)])
    flip = SignFlip(Units("0", 4, (Axis("0.weight", 0),), (Axis("2.weight", 1),)))
    refuse("sign flip of layer '0' has no noise equilibrium", [flip])
    with pytest.raises(InputError, match="gradient of the loss must be finite"):
        gradient_balance(model, lambda outputs, labels: (outputs - labels).mean() / 0.0, x, y)
    with pytest.raises(InputError, match="must be the mean of the losses of single samples"):
        gradient_balance(model, lambda outputs, labels: (outputs - labels).square().sum(), x, y)
    model[0].bias.requires_grad_(False)
    refuse("both sides of a pair must be trained, got '0.bias' without requires_grad", pair)
