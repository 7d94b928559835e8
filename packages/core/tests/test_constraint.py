"""Constraints by symmetry: exact above the threshold, broken below it, and nothing else is moved."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.constraint import (
    antisymmetric,
    constraint_violation,
    dcs,
    dcs_threshold,
    equal_entries,
    linear_constraint,
    merge_dcs,
)
from symdyn_core.symmetry.factors import check_factor_decay, factor_groups
from symdyn_core.symmetry.sparsity import merge_spred, spred


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "constraint"), dtype=torch.float64)


def linear(inputs: int, outputs: int = 1) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, dtype=torch.float64)
    layer.weight.data = 0.3 * normal(outputs, inputs, seed=7)
    return layer


def quadratic(layer: nn.Module, hessian: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """A convex loss that couples every entry with every other."""

    def loss() -> Tensor:
        deviation = layer.weight.reshape(-1) - target
        return 0.5 * deviation @ hessian @ deviation

    return loss


def constrained_minimum(hessian: Tensor, target: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise under the hard constraint, in a basis of its solutions; return with the gradient across it."""
    allowed = torch.linalg.svd(normals, full_matrices=True).U[:, normals.shape[1] :]
    minimum = allowed @ torch.linalg.solve(allowed.T @ hessian @ allowed, allowed.T @ hessian @ target)
    return minimum, normals.T @ hessian @ (minimum - target)


def train(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int = 600) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def problem(size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    root = normal(size, size, seed=seed)
    return root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64), normal(size, seed=seed + 1)


NORMALS = torch.linalg.qr(normal(8, 3, seed=5)).Q


@pytest.mark.parametrize(("group", "init"), [(False, "pretrained"), (True, "random")])
def test_the_constraint_holds_from_the_threshold_on_and_biases_nothing(group: bool, init: Any) -> None:
    hessian, target = problem()
    minimum, slope = constrained_minimum(hessian, target, NORMALS)
    threshold = float(slope.norm() if group else slope.abs().max())
    found = {}
    for share in (0.9, 1.1):
        layer = linear(8)
        loss = quadratic(layer, hessian, target)
        groups = dcs(layer, "weight", NORMALS, alpha=share * threshold, group=group, init=init)
        train(loss, torch.optim.SGD(groups, lr=0.2, momentum=0.9))
        found[share] = layer
        if share > 1:
            assert dcs_threshold(layer, loss)["weight"] == pytest.approx(threshold, rel=1e-9)
    assert constraint_violation(found[0.9])["weight"] > 1e-2
    assert constraint_violation(found[1.1])["weight"] < 1e-6
    reports = {share: merge_dcs(layer) for share, layer in found.items()}
    assert not reports[0.9].holds
    assert reports[1.1].holds
    torch.testing.assert_close(found[1.1].weight.detach().reshape(-1), minimum, rtol=0, atol=1e-8)
    # Of a group all is broken together, of components only those that the data pull at most.
    assert (reports[0.9].parameters[0].broken, reports[0.9].parameters[0].total) == (
        (1, 1) if group else (1, 3)
    )


def test_a_broken_constraint_is_where_the_convex_problem_says() -> None:
    """Optimality under alpha |O^T theta|_1, and under the 2-norm: the slope across is alpha times a sign."""
    hessian, target = problem()
    slope = constrained_minimum(hessian, target, NORMALS)[1]
    for group in (False, True):
        alpha = 0.4 * float(slope.norm() if group else slope.abs().max())
        layer = linear(8)
        groups = dcs(layer, "weight", NORMALS, alpha=alpha, group=group)
        train(quadratic(layer, hessian, target), torch.optim.SGD(groups, lr=0.2, momentum=0.9))
        theta = layer.weight.detach().reshape(-1)
        gradient = hessian @ (theta - target)
        c = NORMALS.T @ theta
        along = gradient - NORMALS @ (NORMALS.T @ gradient)
        assert along.abs().max() < 1e-9
        if group:
            torch.testing.assert_close(NORMALS.T @ gradient, -alpha * c / c.norm(), rtol=1e-6, atol=1e-9)
        else:
            broken = c.abs() > 1e-6
            assert broken.any()
            torch.testing.assert_close((NORMALS.T @ gradient)[broken], -alpha * c[broken].sign())
            assert ((NORMALS.T @ gradient).abs() <= alpha * (1 + 1e-9)).all()


def test_all_entries_constrained_to_zero_is_spred() -> None:
    """With O = 1 the exact penalty is the lasso: step by step the same as spred from the same factors."""
    hessian, target = problem()
    plain, constrained = linear(8), linear(8)
    one = spred(plain, alpha=0.3)
    other = dcs(constrained, "weight", torch.eye(8), alpha=0.3)
    train(quadratic(plain, hessian, target), torch.optim.SGD(one, lr=0.1), 50)
    train(quadratic(constrained, hessian, target), torch.optim.SGD(other, lr=0.1), 50)
    torch.testing.assert_close(constrained.weight, plain.weight, rtol=1e-12, atol=1e-14)


def test_equal_units_of_a_network_stay_where_nothing_pulls_them_apart() -> None:
    """Two hidden units tied by an axis constraint on both of their weights; the data need only one."""
    model = nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 1))
    x = normal(64, 3, seed=3)
    y = torch.tanh(x[:, :1])
    dcs(model, "0.weight", equal_entries([0, 0, 1, 2]), axis=0, alpha=0.1, group=True)
    groups = dcs(model, "2.weight", equal_entries([0, 0, 1, 2]), axis=1, alpha=0.1, group=True)
    assert [(len(group["params"]), group.get("weight_decay")) for group in groups] == [(4, 0.1), (2, None)]
    optimizer = torch.optim.Adam(groups, lr=0.05)
    train(lambda: 0.5 * (model(x) - y).square().mean(), optimizer, 400)
    assert merge_dcs(model).holds
    torch.testing.assert_close(model[0].weight[0], model[0].weight[1])
    torch.testing.assert_close(model[2].weight[:, 0], model[2].weight[:, 1])
    assert (model[0].weight[1] - model[0].weight[2]).abs().max() > 0.1


@given(seed=st.integers(0, 10**6), axis=st.sampled_from([0, 1, -1]), k=st.integers(1, 2))
def test_an_axis_is_the_kronecker_product_on_the_flat_parameter(seed: int, axis: int, k: int) -> None:
    value = normal(3, 4, seed=seed)
    normals = torch.linalg.qr(normal(value.shape[axis], k, seed=seed + 1)).Q
    one = torch.eye(4 if axis == 0 else 3, dtype=torch.float64)
    flat = np.kron(normals, one) if axis == 0 else np.kron(one, normals)
    layers = [linear(4, 3) for _ in range(2)]
    for layer in layers:
        layer.weight.data = value.clone()
    dcs(layers[0], "weight", normals, axis=axis, alpha=0.1)
    dcs(layers[1], "weight", torch.from_numpy(flat), alpha=0.1)
    for layer in layers:
        torch.testing.assert_close(layer.weight, value, rtol=1e-12, atol=1e-12)  # pretrained
    loss = [lambda layer=layer: layer.weight.pow(3).sum() for layer in layers]
    assert constraint_violation(layers[0])["weight"] == pytest.approx(
        constraint_violation(layers[1])["weight"]
    )
    assert dcs_threshold(layers[0], loss[0])["weight"] == pytest.approx(
        dcs_threshold(layers[1], loss[1])["weight"]
    )
    torch.testing.assert_close(layers[0].weight, value, rtol=1e-12, atol=1e-12)  # left as it was


# Builders


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=8).filter(lambda labels: len(set(labels)) < len(labels))
)
def test_equal_entries_are_all_the_contrasts_and_no_more(labels: list[int]) -> None:
    normals = equal_entries(labels)
    n, classes = len(labels), len(set(labels))
    assert normals.shape == (n, n - classes)
    torch.testing.assert_close(normals.T @ normals, torch.eye(n - classes, dtype=torch.float64))
    allowed = torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64)[torch.tensor(labels)]
    assert (normals.T @ allowed).abs().max() < 1e-12


def test_circulant_and_antisymmetric_matrices_satisfy_theirs() -> None:
    i = torch.arange(4)
    kernel = normal(4)
    circulant = kernel[(i[:, None] - i) % 4]
    normals = equal_entries((i[:, None] - i) % 4)
    assert normals.shape == (16, 12)
    assert (normals.T @ circulant.reshape(-1)).abs().max() < 1e-12
    matrix = normal(4, 4)
    normals = antisymmetric(4)
    torch.testing.assert_close(normals.T @ normals, torch.eye(10, dtype=torch.float64))
    assert (normals.T @ (matrix - matrix.T).reshape(-1)).abs().max() < 1e-12
    symmetric = (matrix + matrix.T).reshape(-1)
    torch.testing.assert_close(normals @ (normals.T @ symmetric), symmetric)


def test_equivariance_is_a_linear_constraint() -> None:
    """W S = S W for the cyclic shift S leaves the circulant matrices."""
    shift, one = torch.eye(4, dtype=torch.float64).roll(1, 0), torch.eye(4, dtype=torch.float64)
    normals = linear_constraint(torch.kron(one, shift.T.contiguous()) - torch.kron(shift, one))
    i = torch.arange(4)
    expected = equal_entries((i[:, None] - i) % 4)
    torch.testing.assert_close(normals @ normals.T, expected @ expected.T)


# Refusals


def test_decoupled_or_other_decay_cannot_take_a_step() -> None:
    layer = linear(8)
    groups = dcs(layer, "weight", NORMALS, alpha=0.2)
    layer.weight.sum().backward()
    for make, message in (
        (lambda: torch.optim.AdamW(groups), "outside the gradient"),
        (lambda: torch.optim.SGD(layer.parameters(), lr=0.1), r"weight_decay=alpha=0\.2 in SGD, got 0"),
    ):
        before = layer.weight.detach().clone()
        with pytest.raises(InputError, match=message):
            make().step()
        assert torch.equal(layer.weight, before)
    twin = copy.deepcopy(layer)
    twin.weight.sum().backward()
    with pytest.raises(InputError, match="outside the gradient"):
        torch.optim.AdamW(factor_groups(twin)).step()


def test_only_the_factors_are_decayed() -> None:
    """w follows the optimizer's own decay, and by itself raises no warning about weights without any."""
    layer = linear(8)
    optimizer = torch.optim.SGD(dcs(layer, "weight", NORMALS, alpha=0.2), lr=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0]
    assert optimizer.param_groups[1]["params"] == [layer.parametrizations.weight.original0]
    check_factor_decay(optimizer)


@pytest.mark.parametrize("group", [False, True])
def test_equal_factors_are_refused(group: bool) -> None:
    """O^T theta of magnitude one and a mask of one would never change sign."""
    layer = linear(2)
    layer.weight.data = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    normals = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    with pytest.raises(InputError, match=r"1 of 1 products in weight have magnitude scale²=1"):
        dcs(layer, "weight", normals, alpha=0.1, group=group)
    assert not parametrize.is_parametrized(layer)
    dcs(layer, "weight", normals, alpha=0.1, group=group, scale=0.5)


def test_equal_factors_would_have_constrained_the_sign() -> None:
    """What that refusal spares the user: the data want a negative component, and it ends at zero."""
    layer = linear(2)
    groups = dcs(layer, "weight", torch.tensor([[0.0], [1.0]]), alpha=0.1, init="random")
    mask, vector = groups[0]["params"]
    vector.data.copy_(mask.data)
    loss = quadratic(layer, torch.eye(2, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64))
    train(loss, torch.optim.SGD(groups, lr=0.1), 1000)
    torch.testing.assert_close(
        layer.weight.detach(), torch.tensor([[1.0, 0.0]], dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_a_start_on_the_constraint_can_leave_it() -> None:
    """v = 0 beside a mask of one is no trap: the gradient in v does not vanish."""
    layer = linear(2)
    layer.weight.data.zero_()
    groups = dcs(layer, "weight", equal_entries([0, 0]), alpha=0.1)
    target = torch.tensor([1.0, -1.0], dtype=torch.float64)
    train(quadratic(layer, torch.eye(2, dtype=torch.float64), target), torch.optim.SGD(groups, lr=0.1), 500)
    expected = (2**0.5 - 0.1) / 2**0.5  # soft thresholding of the difference
    torch.testing.assert_close(layer.weight.detach(), target[None] * expected)


def tied_model() -> nn.Module:
    model = nn.Sequential(linear(3, 3), linear(3, 3))
    model[1].weight = model[0].weight
    return model


EYE = torch.eye(8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: linear(8), {"alpha": -1.0}, "alpha must be finite and > 0, got -1.0"),
        (lambda: linear(8), {"init": "zeros"}, "init must be one of pretrained, random, got 'zeros'"),
        (lambda: linear(8), {"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
        (lambda: linear(8), {"name": "wieght"}, "no parameter 'wieght'; it has: weight"),
        (lambda: linear(8), {"normals": EYE[:7]}, r"shape \(8 entries, k\), k in \[1, 8\], got \(7, 8\)"),
        (lambda: linear(8), {"normals": EYE[:, :0]}, r"k in \[1, 8\], got \(8, 0\)"),
        (lambda: linear(8), {"axis": 2}, r"axis must be in \[-2, 1\], got 2"),
        (lambda: linear(8), {"axis": 0}, r"\(1 along axis 0, k\)"),
        (
            lambda: linear(8),
            {"normals": 2 * EYE},
            r"orthonormal columns, got O\^T O that differs from 1 by 3",
        ),
        (lambda: linear(8), {"normals": EYE * torch.nan}, "orthonormal columns"),
        (lambda: linear(8).requires_grad_(False), {}, "frozen"),
        (tied_model, {"name": "0.weight"}, "one tied parameter; untie"),
        (
            lambda: nn.Sequential(linear(8), linear(8)),
            {"name": "*.weight"},
            "name must be that of one parameter",
        ),
    ],
)
def test_bad_input_changes_nothing(build: Any, options: dict[str, Any], message: str) -> None:
    module = build()
    with pytest.raises(InputError, match=message):
        dcs(module, **{"name": "weight", "normals": EYE[:, :2], "alpha": 0.1} | options)
    assert not any(parametrize.is_parametrized(child) for child in module.modules())


def test_builders_and_reports_refuse_bad_input() -> None:
    with pytest.raises(InputError, match="equations must not all be zero"):
        linear_constraint(torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"finite matrix \(m, n\), got shape \(3,\)"):
        linear_constraint([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="labels must be integers, got torch.float32"):
        equal_entries([0.0, 0.0])
    with pytest.raises(InputError, match="some label twice, got 3 different ones"):
        equal_entries([0, 1, 2])
    with pytest.raises(InputError, match="size must be at least 1, got 0"):
        antisymmetric(0)
    layer = linear(8)
    for ask in (merge_dcs, constraint_violation, lambda m: dcs_threshold(m, lambda: m.weight.sum())):
        with pytest.raises(InputError, match="no weight in factors"):
            ask(layer)
    spred(layer, alpha=0.1)
    with pytest.raises(InputError, match="already parametrized"):
        dcs(layer, "weight", NORMALS, alpha=0.1)
    with pytest.raises(InputError, match="no weight in factors"):
        merge_dcs(layer)
    merge_spred(layer)
    layer.weight.data[0, 0] = torch.inf
    dcs(layer, "weight", NORMALS, alpha=0.1, init="random")
    with pytest.raises(InputError, match="not finite"):
        merge_dcs(layer)
    with pytest.raises(InputError, match=r"tau must be in \[0, 1\), got 1"):
        merge_dcs(layer, tau=1)


def test_a_model_may_carry_both_and_sheds_each_by_itself() -> None:
    model = nn.Sequential(linear(8, 8), nn.ReLU(), linear(8, 1))
    x = normal(5, 8)
    before = model(x)
    spred(model, ["0.weight"], alpha=0.1)
    groups = dcs(model, "2.weight", NORMALS, alpha=0.2)
    assert [group.get("weight_decay") for group in groups] == [0.1, 0.2, None]
    torch.testing.assert_close(model(x), before)
    merge_spred(model, tau=0.0)
    assert set(constraint_violation(model)) == {"2.weight"}
    merge_dcs(model, tau=0.0)
    torch.testing.assert_close(model(x), before)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "2.weight"]
