"""Sparsity by weight decay: the penalty is exact, and every silent way to get another one is refused."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn.utils import parametrize

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator, torch_generator
from symdyn_core.symmetry.decay import has_coupled_decay
from symdyn_core.symmetry.factors import EvadedPenaltyWarning, check_factor_decay, factor_groups
from symdyn_core.symmetry.penalty import kkt_violation, predict_imbalance, predict_penalty
from symdyn_core.symmetry.sparsity import kkt_residual, merge_spred, spred

ALPHA = 0.2


def make(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    """Build a module with a private random state."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return build()


def linear(inputs: int = 40, outputs: int = 1, *, bias: bool = False) -> nn.Linear:
    return make(lambda: nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64))


@pytest.fixture(scope="module")
def regression() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thirty samples of forty features, four of which matter."""
    random = numpy_generator(0, "sparsity")
    X = random.standard_normal((30, 40))
    w = np.r_[2.0, -1.5, 1.0, -0.5, np.zeros(36)]
    return X, X @ w + 0.1 * random.standard_normal(30)


def squared_loss(layer: nn.Module, X: Any, y: Any) -> Callable[[], torch.Tensor]:
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    return lambda: 0.5 * (layer(X).squeeze(1) - y).square().mean()


def train(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def lasso(X: Any, y: Any, alpha: float, **options: Any) -> NDArray[np.float64]:
    return (
        Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=10**6, random_state=0, **options)
        .fit(X, y)
        .coef_
    )


def objective(X: Any, y: Any, w: Any, alpha: float) -> float:
    return float(0.5 * np.mean((X @ w - y) ** 2) + alpha * np.abs(w).sum())


# The penalty


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0.1, 10), st.integers(2, 4))
def test_no_factorization_is_cheaper(w: float, decay: float, first: float, depth: int) -> None:
    """Any factors with product w cost at least the predicted penalty, and equal ones exactly that."""
    rest = np.abs(w / first) ** (1 / (depth - 1))
    cost = decay / 2 * (first**2 + (depth - 1) * rest**2)
    predicted = float(predict_penalty(w, decay, depth))
    assert cost >= predicted * (1 - 1e-12) - 1e-12
    equal = np.abs(w) ** (1 / depth)
    assert decay / 2 * depth * equal**2 == pytest.approx(predicted)


@given(st.floats(-1, 1), st.floats(0.05, 1))
def test_zero_is_a_minimum_exactly_where_the_lasso_says(gradient: float, decay: float) -> None:
    """Hessian at u = v = 0 has the eigenvalues decay +- gradient."""

    def training_loss(theta: torch.Tensor) -> torch.Tensor:
        u, v = theta
        return gradient * u * v + decay / 2 * (u**2 + v**2) + (u * v) ** 2

    hessian = torch.autograd.functional.hessian(training_loss, torch.zeros(2, dtype=torch.float64))
    expected = sorted([decay - gradient, decay + gradient])
    np.testing.assert_allclose(torch.linalg.eigvalsh(hessian), expected, atol=1e-12)
    is_minimum = kkt_violation(torch.zeros(1), torch.tensor([gradient], dtype=torch.float64), decay) == 0
    assert is_minimum == (abs(gradient) <= decay)


def test_imbalance_decays_at_twice_the_decay_whatever_the_loss() -> None:
    """A transcription of gradient descent, with a loss that is far from quadratic."""
    u = torch.tensor([0.9, -0.3], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([0.1, 0.8], dtype=torch.float64, requires_grad=True)
    start = (u**2 - v**2).detach().numpy()
    for _ in range(4000):
        loss = torch.cosh(u * v - torch.tensor([1.0, -2.0])).sum()
        for factor, slope in zip((u, v), torch.autograd.grad(loss, (u, v)), strict=True):
            factor.data -= 2.5e-4 * (slope + 0.7 * factor.data)
    found = (u**2 - v**2).detach().numpy()
    np.testing.assert_allclose(found, predict_imbalance(start, 0.7, 1.0), rtol=5e-3)
    assert not np.allclose(found, predict_imbalance(start, 0.35, 1.0), rtol=0.1)


# Training solves the lasso


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {"momentum": 0.9, "lr": 0.1}), (torch.optim.Adam, {"lr": 0.05})],
)
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_training_ends_at_the_lasso(regression: Any, optimizer: Any, options: Any, init: Any) -> None:
    X, y = regression
    layer = linear()
    groups = spred(layer, alpha=ALPHA, init=init)
    loss = squared_loss(layer, X, y)
    train(loss, optimizer(groups, **options), 1000)
    assert kkt_residual(layer, loss, ALPHA, tau=1e-2) < 1e-4
    report = merge_spred(layer)
    w, reference = layer.weight.detach().numpy()[0], lasso(X, y, ALPHA)
    assert objective(X, y, w, ALPHA) == pytest.approx(objective(X, y, reference, ALPHA), rel=1e-6)
    np.testing.assert_array_equal(w != 0, reference != 0)
    assert (report.kept, report.total) == ((reference != 0).sum(), 40)


def test_the_strength_is_the_decay_and_not_twice_or_half_of_it(regression: Any) -> None:
    X, y = regression
    layer = linear()
    loss = squared_loss(layer, X, y)
    train(loss, torch.optim.SGD(spred(layer, alpha=ALPHA, init="random"), lr=0.1, momentum=0.9), 1500)
    w = layer.weight.detach().numpy()[0]
    for factor, gap in ((1.0, 0.0), (0.5, 0.01), (2.0, 0.01)):
        reference = lasso(X, y, factor * ALPHA)
        excess = objective(X, y, reference, ALPHA) / objective(X, y, w, ALPHA) - 1
        assert excess == pytest.approx(0, abs=1e-5) if gap == 0 else excess > gap
    assert kkt_residual(layer, loss, ALPHA, tau=1e-2) < 1e-4
    assert kkt_residual(layer, loss, 2 * ALPHA, tau=1e-2) == pytest.approx(ALPHA, rel=1e-3)


@pytest.mark.parametrize(("mode", "axis"), [("in_features", 1), ("out_features", 0)])
def test_scalar_masks_are_the_group_lasso(mode: Any, axis: int) -> None:
    """With an orthogonal design the group lasso is solved by shrinking each group's norm."""
    target = torch.randn(5, 6, generator=torch_generator(0, "target"), dtype=torch.float64)
    target *= torch.linspace(0.05, 1, target.shape[axis]).reshape([-1, 1] if axis == 0 else [1, -1])
    layer = linear(6, 5)
    optimizer = torch.optim.SGD(spred(layer, alpha=0.8, mode=mode, init="random"), lr=0.2, momentum=0.8)
    loss = lambda: 0.5 * (layer.weight - target).square().sum()  # noqa: E731
    train(loss, optimizer, 1500)
    norms = target.norm(dim=1 - axis, keepdim=True)
    expected = target * (1 - 0.8 / norms).clamp(min=0)
    assert kkt_residual(layer, loss, 0.8, mode=mode) < 1e-6
    report = merge_spred(layer)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-6, atol=1e-8)
    assert report.kept == int((norms > 0.8).sum()) < report.total == norms.numel()


# The module


def test_pretrained_start_keeps_the_function_and_the_decay_of_the_rest() -> None:
    model = make(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2)))
    x = torch.randn(4, 2, 3, 3, generator=torch_generator(0))
    before = model(x)
    groups = spred(model, alpha=ALPHA, mode="in_features")
    torch.testing.assert_close(model(x), before)
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert {id(p) for p in named.values()} == set(decays)
    for name, parameter in named.items():
        assert decays[id(parameter)] == (0.01 if "bias" in name else ALPHA)
    assert model[0].parametrizations.weight.original0.shape == (1, 2, 1, 1)


def test_transposed_convolutions_count_inputs_along_axis_zero() -> None:
    layer = make(lambda: nn.ConvTranspose2d(4, 3, 2))
    spred(layer, alpha=ALPHA, mode="in_features")
    assert layer.parametrizations.weight.original0.shape == (4, 1, 1, 1)


def test_random_starts_follow_the_seed_and_leave_the_global_generator() -> None:
    starts = []
    for seed in (0, 0, 1):
        layer = linear()
        spred(layer, alpha=ALPHA, init="random", seed=seed)
        u, v = layer.parametrizations.weight.parameters()
        assert not torch.equal(u, v)
        starts.append(layer.weight.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def language_model(seed: int) -> Any:
    """Embedding, normalisation, attention, a recurrent cell and a head tied to the embedding."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.recurrent = nn.GRUCell(4, 4)
            self.head = nn.Linear(4, 7)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> Any:
            x = self.norm(self.embed(tokens))
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head(self.recurrent(x.flatten(0, 1)))

    return make(Model, seed).double()


TOKENS = torch.arange(14).reshape(2, 7) % 7


def test_a_whole_model_in_one_call() -> None:
    """Every weight, whatever the layer; no bias, no normalisation; a tied one once and for both holders."""
    model, plain = language_model(0), language_model(0)
    spred(model, alpha=ALPHA)
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))
    names = [name.partition(".parametrizations")[0] for name, _ in model.named_parameters()]
    assert len(names) == len(list(plain.parameters())) + 5  # two factors for each of five weights
    assert not any("norm" in name for name in names if names.count(name) > 1)
    assert (model.embed.weight - model.head.weight).abs().max() == 0

    def loss(model: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(TOKENS), TOKENS.flatten())

    # At u = 1, v = w the gradient in v is that in w, in every layer: nothing is missed or counted twice.
    loss(model).backward()
    loss(plain).backward()
    for name in ("embed.weight", "attention.in_proj_weight", "recurrent.weight_hh"):
        owner, _, local = name.partition(".")
        factor = model.get_parameter(f"{owner}.parametrizations.{local}.original1")
        torch.testing.assert_close(factor.grad, plain.get_parameter(name).grad)
    expected = max(kkt_violation(p.detach(), p.grad, ALPHA) for p in plain.parameters() if p.ndim > 1)
    assert kkt_residual(model, lambda: loss(model), ALPHA) == pytest.approx(expected)
    assert kkt_residual(plain, lambda: loss(plain), ALPHA) == pytest.approx(expected)

    twin = copy.deepcopy(model)
    for each in (model, twin):
        report = merge_spred(each, tau=0.0)
        assert report.layers[0].name == "embed.weight"
        assert each.head.weight is each.embed.weight
        torch.testing.assert_close(each(TOKENS), plain(TOKENS))
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}


def test_names_patterns_and_exclusions_choose() -> None:
    model = language_model(0)
    spred(model, ["recurrent.*"], exclude=["*bias*", "weight_hh"], alpha=ALPHA)
    changed = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    assert changed == ["recurrent"]
    assert list(model.recurrent.parametrizations) == ["weight_ih"]
    spred(model, ["attention.in_proj_weight"], alpha=2 * ALPHA, mode="out_features", block=2)
    assert sorted(group.get("weight_decay", 0) for group in factor_groups(model)) == [0, ALPHA, 2 * ALPHA]


def test_attention_heads_vanish_as_one() -> None:
    """A head is a block of outputs of the value projection; here the loss asks for one of the two."""
    layer = linear(6, 4)
    target = torch.randn(4, 6, generator=torch_generator(0, "heads"), dtype=torch.float64)
    target[2:] *= 0.1
    loss = lambda: 0.5 * (layer.weight - target).square().sum()  # noqa: E731
    groups = spred(layer, alpha=0.8, mode="out_features", block=2, init="random")
    train(loss, torch.optim.SGD(groups, lr=0.2, momentum=0.8), 1500)
    assert kkt_residual(layer, loss, 0.8, mode="out_features", block=2) < 1e-6
    assert str(merge_spred(layer)) == "weight: 1 of 2 blocks of 2 outputs (50.0 %)"
    expected = (
        target
        * (1 - 0.8 / target.unflatten(0, (2, 2)).flatten(1).norm(dim=1)).clamp(min=0)[[0, 0, 1, 1], None]
    )
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-6, atol=1e-8)


def test_embeddings_count_tokens_as_inputs() -> None:
    layer = make(lambda: nn.Embedding(7, 4))
    spred(layer, alpha=ALPHA, mode="in_features")
    assert layer.parametrizations.weight.original0.shape == (7, 1)


def test_an_l1_strength_means_something_only_with_decay_of_the_next_layer() -> None:
    """A ReLU unit v relu(w x) fits y = x at x = 1, with w > 0 penalised by alpha and v decayed by gamma.

    The cheapest way to a product p has alpha w = gamma v^2, so w = (gamma p^2 / alpha)^(1/3). With gamma = 0
    there is no cheapest: w shrinks for ever, and the unit fits as if there were no penalty.
    """
    alpha, gamma = 0.05, 0.02
    products, norms = {}, {}
    for decay in (0.0, gamma):
        model = make(
            lambda: nn.Sequential(*(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)))
        )
        model.double()
        for p in model.parameters():
            p.data.fill_(0.9)
        x = torch.ones(1, 1, dtype=torch.float64)
        optimizer = torch.optim.SGD(
            spred(model, ["0.weight"], alpha=alpha), lr=0.1, momentum=0.9, weight_decay=decay
        )
        with nullcontext() if decay else pytest.warns(EvadedPenaltyWarning, match=r"1 weight.* \(1, 1\) are"):
            check_factor_decay(optimizer)
            for _ in range(700):
                optimizer.zero_grad()
                (0.5 * (model(x) - 1).square().sum()).backward()
                optimizer.step()
        w, v = model[0].weight.item(), model[2].weight.item()
        products[decay], norms[decay] = w * v, w
    assert norms[gamma] == pytest.approx((gamma * products[gamma] ** 2 / alpha) ** (1 / 3), rel=1e-6)
    assert norms[0.0] < norms[gamma] / 3
    assert 1 - products[0.0] < (1 - products[gamma]) / 3


def test_full_names_choose_one_layer() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    spred(model, names=["1.weight"], alpha=ALPHA)
    assert [parametrize.is_parametrized(layer) for layer in model] == [False, True]


def test_merge_leaves_a_plain_module() -> None:
    layer = linear(3)
    layer.weight.data = torch.tensor([[1.5, -4e-4, 0.2]], dtype=torch.float64)
    spred(layer, alpha=ALPHA)
    assert str(merge_spred(layer, tau=1e-3)) == "weight: 2 of 3 entries (66.7 %)"
    assert type(layer) is nn.Linear
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.requires_grad
    assert layer.weight.tolist() == [[1.5, 0.0, 0.2]]
    with pytest.raises(InputError, match="no weight in factors"):
        merge_spred(layer)


def test_merge_of_a_vanished_layer_keeps_no_dust() -> None:
    layer = linear(3)
    layer.weight.data = torch.tensor([[3e-12, -1e-12, 2e-12]], dtype=torch.float64)
    spred(layer, alpha=ALPHA)
    assert merge_spred(layer).kept == 0
    assert layer.weight.tolist() == [[0.0, 0.0, 0.0]]


def test_merge_keeps_a_frozen_weight_a_parameter_and_refuses_a_diverged_one() -> None:
    layer = linear(3)
    spred(layer, alpha=ALPHA)
    layer.requires_grad_(False)
    merge_spred(layer)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert not layer.weight.requires_grad
    layer.requires_grad_(True)
    layer.weight.data[0, 0] = torch.nan
    spred(layer, alpha=ALPHA)
    with pytest.raises(InputError, match="not finite"):
        merge_spred(layer)


def test_kkt_residual_is_zero_at_scikit_learns_solution(regression: Any) -> None:
    X, y = regression
    layer = linear()
    layer.weight.data = torch.tensor(lasso(X, y, ALPHA))[None]
    loss = squared_loss(layer, X, y)
    assert kkt_residual(layer, loss, ALPHA) < 1e-9
    assert kkt_residual(layer, loss, ALPHA / 2) > ALPHA / 4
    spred(layer, alpha=ALPHA)  # the same of a factorized weight
    assert kkt_residual(layer, loss, ALPHA) < 1e-9


# Refusals


def adam_decoupled(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, decoupled_weight_decay=True)


@pytest.mark.parametrize(
    "make_optimizer",
    [torch.optim.AdamW, adam_decoupled, torch.optim.Adafactor],
    ids=["AdamW", "Adam", "Adafactor"],
)
def test_decoupled_decay_cannot_take_a_step(make_optimizer: Any) -> None:
    layer = linear(4)
    optimizer = make_optimizer(spred(layer, alpha=ALPHA))
    before = layer.weight.detach().clone()
    layer.weight.sum().backward()
    with pytest.raises(InputError, match="outside the gradient"):
        optimizer.step()
    assert torch.equal(layer.weight, before)
    with pytest.raises(InputError, match="outside the gradient"):
        check_factor_decay(optimizer)


def test_decoupled_decay_would_not_have_been_the_lasso(regression: Any) -> None:
    """What the refusal spares the user: the same training on bare factors, which nothing watches."""
    X, y = regression
    best = objective(X, y, lasso(X, y, ALPHA), ALPHA)
    gaps = {}
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        generator = torch_generator(0, "factors")
        u, v = (0.3 * torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(2))
        factors = [u.requires_grad_(), v.requires_grad_()]
        features, target = torch.tensor(X), torch.tensor(y)
        loss = lambda: 0.5 * (features @ (u * v) - target).square().mean()  # noqa: B023, E731
        train(loss, kind(factors, lr=0.05, weight_decay=ALPHA), 800)
        gaps[kind] = objective(X, y, (u * v).detach().numpy(), ALPHA) / best - 1
    assert gaps[torch.optim.Adam] < 1e-5
    assert gaps[torch.optim.AdamW] > 0.5


def test_copies_are_guarded_too() -> None:
    layer = linear(4)
    spred(layer, alpha=ALPHA)
    twin = copy.deepcopy(layer)
    optimizer = torch.optim.AdamW(factor_groups(twin))
    twin.weight.sum().backward()
    with pytest.raises(InputError, match="outside the gradient"):
        optimizer.step()


def test_an_optimizer_that_stepped_a_copy_before_its_first_use_is_guarded_too() -> None:
    layer = linear(4)
    spred(layer, alpha=ALPHA)
    twin = copy.deepcopy(layer)
    optimizer = torch.optim.AdamW(twin.parameters())
    optimizer.step()  # nothing moves without gradients, and nothing is known of a copy that was never used
    twin.weight.sum().backward()
    with pytest.raises(InputError, match="weight_decay=alpha"):
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 2 * ALPHA])
def test_decay_other_than_alpha_is_refused(decay: float) -> None:
    layer = linear(4)
    spred(layer, alpha=ALPHA)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=decay)  # the groups were ignored
    layer.weight.sum().backward()
    with pytest.raises(InputError, match=r"weight_decay=alpha=0\.2 in SGD, got"):
        optimizer.step()


def test_decay_changed_on_the_way_is_refused() -> None:
    layer = linear(4)
    optimizer = torch.optim.SGD(spred(layer, alpha=ALPHA), lr=0.1)
    layer.weight.sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.3
    with pytest.raises(InputError, match=r"got 0\.3"):
        optimizer.step()


def test_other_optimizers_are_left_alone() -> None:
    spred(linear(4), alpha=ALPHA)
    other = linear(4)
    other.weight.sum().backward()
    torch.optim.AdamW(other.parameters()).step()


def test_equal_factors_are_refused_with_the_reason() -> None:
    """A batch norm's scale is one, as is the mask: the natural way into the trap."""
    layer = nn.BatchNorm1d(3)
    with pytest.raises(InputError, match=r"3 of 3 products in weight .* \|u\| = \|v\|.* non-negative"):
        spred(layer, ["weight"], alpha=ALPHA)
    assert not parametrize.is_parametrized(layer)
    spred(layer, ["weight"], alpha=ALPHA, scale=2.0)
    with pytest.raises(InputError, match="change sign"):
        layer.weight = torch.tensor([1.0, -4.0, 2.0])


def test_equal_factors_solve_the_non_negative_lasso(regression: Any) -> None:
    """What that refusal spares the user."""
    X, y = regression
    layer = linear()
    groups = spred(layer, alpha=ALPHA, init="random")
    u, v = layer.parametrizations.weight.parameters()
    v.data.copy_(u.data)
    train(squared_loss(layer, X, y), torch.optim.Adam(groups, lr=0.05), 1000)
    w = layer.weight.detach().numpy()[0]
    assert (w >= 0).all()
    constrained = objective(X, y, lasso(X, y, ALPHA, positive=True), ALPHA)
    assert objective(X, y, w, ALPHA) == pytest.approx(constrained, rel=1e-4)
    assert constrained > 1.2 * objective(X, y, lasso(X, y, ALPHA), ALPHA)


def frozen_model() -> nn.Module:
    return linear(3).requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (linear, {"alpha": 0.0}, "alpha must be finite and > 0, got 0.0"),
        (linear, {"alpha": float("nan")}, "alpha must be"),
        (linear, {"mode": "rows"}, "mode must be one of elementwise, in_features, out_features, got 'rows'"),
        (linear, {"init": "zeros"}, "init must be one of"),
        (linear, {"scale": -1.0}, "scale must be finite and > 0"),
        (linear, {"names": "weight"}, "names must be a list"),
        (linear, {"names": ["wieght"]}, "no parameter 'wieght'; it has: weight"),
        (linear, {"exclude": ["weight"]}, "no weight .* that is not excluded"),
        (lambda: language_model(0), {"mode": "in_features"}, "of which in_features are different axes"),
        (lambda: nn.BatchNorm1d(3), {}, "no weight .parameter of two or more axes."),
        (lambda: make(lambda: nn.LSTM(3, 3)), {}, "weight_ih_l0 belongs to a recurrent layer"),
        (linear, {"block": 2}, "needs mode in_features or out_features"),
        (
            linear,
            {"mode": "in_features", "block": 3},
            "block must divide the 40 in_features of weight, got 3",
        ),
        (frozen_model, {}, "frozen"),
        (lambda: nn.LayerNorm(3), {"names": ["weight"], "mode": "in_features"}, "has no axis of in_features"),
        (lambda: make(lambda: nn.Conv1d(4, 4, 1, groups=2)), {"mode": "in_features"}, "grouped convolution"),
    ],
)
def test_bad_input_changes_nothing(build: Any, options: dict[str, Any], message: str) -> None:
    module = build()
    with pytest.raises(InputError, match=message):
        spred(module, **{"alpha": ALPHA} | options)
    assert not any(parametrize.is_parametrized(child) for child in module.modules())


def test_a_second_call_and_a_stacked_parametrization_are_refused() -> None:
    layer = linear(3)
    spred(layer, alpha=ALPHA)
    with pytest.raises(InputError, match="already parametrized"):
        spred(layer, alpha=ALPHA)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    with pytest.raises(InputError, match="another parametrization on top"):
        merge_spred(layer)


# Which optimizers couple their decay

COUPLED = [
    (torch.optim.SGD, {"lr": 0.0}),  # as at the start of a warm-up
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"amsgrad": True, "maximize": True}),
    (torch.optim.Adam, {"lr": torch.tensor(1e-3)}),
    (torch.optim.Adagrad, {}),
    (torch.optim.RMSprop, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.ASGD, {}),
]
DECOUPLED = [
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"lr": 0.0}),
    (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"decoupled_weight_decay": True}),
    (torch.optim.Adafactor, {}),
    (torch.optim.Rprop, {}),  # has no decay at all
]


@pytest.mark.parametrize(
    ("kind", "options", "coupled"),
    [(*case, True) for case in COUPLED] + [(*case, False) for case in DECOUPLED],
)
def test_coupled_decay_is_told_by_behaviour(kind: Any, options: dict[str, Any], coupled: bool) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = kind([("weight", parameter)], **options)
    assert has_coupled_decay(optimizer) is coupled
    assert torch.equal(parameter, torch.ones(3, 2))
    assert not optimizer.state or kind in (torch.optim.Adagrad,)


def test_a_foreign_optimizer_is_told_by_behaviour() -> None:
    """Sign descent with decay outside the sign, as Lion has it; neither name nor options give it away."""

    class SignDescent(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
            super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad.sign())

    assert not has_coupled_decay(SignDescent([nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1))


def test_an_optimizer_that_cannot_be_asked_is_refused_with_the_cause() -> None:
    class Stubborn(torch.optim.SGD):
        def __init__(self, params: Any, *, secret: str) -> None:
            super().__init__(params, lr=0.1)

    optimizer = Stubborn([nn.Parameter(torch.ones(2))], secret="x")
    with pytest.raises(InputError, match="cannot tell whether Stubborn .* TypeError"):
        has_coupled_decay(optimizer)
    with pytest.raises(InputError, match=r"group must be in \[0, 0\], got 1"):
        has_coupled_decay(optimizer, 1)
