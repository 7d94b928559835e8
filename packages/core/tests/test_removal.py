"""Syre against the shifted loss written out, and where a user's training loop may surprise it."""

import copy
import itertools
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from symdyn_core.errors import InputError
from symdyn_core.params import Params
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.folding import bypasses_gradient
from symdyn_core.symmetry.removal import Syre, SyreWarning, escape_force

DECAY, SIGMA0 = 0.05, 0.1
MakeOptimizer = Callable[..., torch.optim.Optimizer]


class Shift(nn.Module):
    """The naive form: the trained parameter is theta, the layer computes with theta + theta0."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, theta: Tensor) -> Tensor:
        return theta + self.offset


def syre_penalty(params: Sequence[Tensor], theta0: Sequence[Tensor], gamma: float) -> Tensor:
    """The folded penalty as a term of the loss."""
    terms = [(weight - offset).square().sum() for weight, offset in zip(params, theta0, strict=True)]
    return gamma * torch.stack(terms).sum()


def network(*widths: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    generator = torch_generator(seed, "weights")
    with torch.no_grad():
        for weight in model.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(draw / math.sqrt(weight.shape[-1]))
    return model


def regression(
    inputs: int = 6, samples: int = 64, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch_generator(1, "regression")
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.sin(x.sum(dim=1, keepdim=True)).to(dtype)


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    loss: Tensor = (model(x) - y).square().mean()
    loss.backward()
    return loss


def weights(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def largest_gap(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(these, those, strict=True))


def syre_on(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Syre:
    return Syre(optimizer, **{"sigma0": SIGMA0, "model": model, **options})


def schedule(optimizer: torch.optim.Optimizer, step: int, base: float) -> None:
    """Change the learning rate and the decay from step to step."""
    for group in optimizer.param_groups:
        group["lr"] = base * (0.55 + 0.45 * math.cos(step / 9))
        group["weight_decay"] = DECAY * (1 + 0.5 * math.sin(step / 5))


def train_folded(
    make: MakeOptimizer, base: float, steps: int, x: Tensor, y: Tensor
) -> tuple[list[Tensor], Syre]:
    model = network(6, 16, 16, 1)
    optimizer = make(model.parameters(), lr=base, weight_decay=DECAY)
    syre = syre_on(model, optimizer)
    for step in range(steps):
        schedule(optimizer, step, base)
        backward(model, x, y)
        optimizer.step()
    return weights(model), syre


def train_naive(
    make: MakeOptimizer, base: float, steps: int, x: Tensor, y: Tensor, offsets: dict[str, Tensor]
) -> list[Tensor]:
    """The shifted loss, the optimizer's own decay toward zero; return theta + theta0."""
    model = network(6, 16, 16, 1)
    for name, offset in offsets.items():
        module, _, local = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(module), local, Shift(offset))
    thetas = [
        model.get_submodule(module).parametrizations[local].original  # type: ignore[union-attr,index]
        for module, _, local in (name.rpartition(".") for name in offsets)
    ]
    optimizer = make(thetas, lr=base, weight_decay=DECAY)
    for step in range(steps):
        schedule(optimizer, step, base)
        backward(model, x, y)
        optimizer.step()
    return [theta.detach() + offset for theta, offset in zip(thetas, offsets.values(), strict=True)]


def with_options(kind: type[torch.optim.Optimizer], **options: Any) -> MakeOptimizer:
    def make(params: Any, **others: Any) -> torch.optim.Optimizer:
        return kind(params, **options, **others)

    return make


OPTIMIZERS: dict[str, tuple[MakeOptimizer, float]] = {
    "sgd": (with_options(torch.optim.SGD), 0.05),
    "sgd nesterov": (with_options(torch.optim.SGD, momentum=0.9, nesterov=True), 0.02),
    "sgd one by one": (with_options(torch.optim.SGD, momentum=0.9, foreach=False), 0.02),
    "sgd fused": (with_options(torch.optim.SGD, momentum=0.9, fused=True), 0.02),
    "adam": (with_options(torch.optim.Adam), 0.01),
    "adam fused": (with_options(torch.optim.Adam, fused=True), 0.01),
    "adam decoupled": (with_options(torch.optim.Adam, decoupled_weight_decay=True), 0.01),
    "adamw": (with_options(torch.optim.AdamW), 0.01),
    "adamw amsgrad": (with_options(torch.optim.AdamW, amsgrad=True, foreach=True), 0.01),
    "adamw fused": (with_options(torch.optim.AdamW, fused=True), 0.01),
    "nadam": (with_options(torch.optim.NAdam), 0.01),
    "nadam decoupled": (with_options(torch.optim.NAdam, decoupled_weight_decay=True), 0.01),
    "radam": (with_options(torch.optim.RAdam), 0.01),
    "radam decoupled": (with_options(torch.optim.RAdam, decoupled_weight_decay=True), 0.01),
    "adagrad": (with_options(torch.optim.Adagrad), 0.05),
    "adadelta": (with_options(torch.optim.Adadelta), 0.5),
    "adamax": (with_options(torch.optim.Adamax), 0.01),
    "rmsprop": (with_options(torch.optim.RMSprop, momentum=0.5, centered=True), 0.003),
    "asgd": (with_options(torch.optim.ASGD, lambd=0.0), 0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_folded_form_takes_the_steps_of_the_shifted_loss(name: str) -> None:
    make, base = OPTIMIZERS[name]
    x, y = regression()
    folded, syre = train_folded(make, base, 25, x, y)
    naive = train_naive(make, base, 25, x, y, syre.named_offsets())
    assert largest_gap(folded, naive) < 1e-9  # rounding; it grows with the number of steps
    toward_zero = train_naive(make, base, 25, x, y, {n: 0 * o for n, o in syre.named_offsets().items()})
    assert largest_gap(folded, toward_zero) > 0.01


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad, torch.optim.AdamW])
def test_a_maximised_objective_decays_to_the_same_place(make: MakeOptimizer) -> None:
    ends = []
    for maximize in (False, True):
        model = network(6, 8, 1)
        optimizer = make(model.parameters(), lr=0.05, weight_decay=DECAY, maximize=maximize)
        syre_on(model, optimizer, sigma_d=0.2)
        for _ in range(10):
            model.zero_grad()
            loss = (model(regression()[0]) - regression()[1]).square().mean()
            (-loss if maximize else loss).backward()
            optimizer.step()
        ends.append(weights(model))
    assert largest_gap(*ends) < 1e-14


def test_muon_which_takes_matrices_only() -> None:
    target = torch.randn(4, 6, generator=torch_generator(0, "target"))
    start = torch.randn(4, 6, generator=torch_generator(0, "start"))
    ends = []
    for naive in (False, True):
        weight = nn.Parameter(start.clone())
        optimizer = torch.optim.Muon([weight], lr=0.01, weight_decay=0.5)
        if not naive:
            offset = Syre(optimizer, sigma0=SIGMA0).named_offsets()["0"]
        for _ in range(20):
            optimizer.zero_grad()
            (weight + naive * offset - target).square().sum().backward()
            optimizer.step()
        ends.append(weight.detach() + naive * offset)
    # Muon orthogonalises in bfloat16, where a gradient off by rounding may be off by 2^-8.
    assert torch.allclose(*ends, atol=0.01 * 20 * 2**-8)
    assert (ends[0] - start).abs().max() > 0.05


@pytest.mark.parametrize("name", ["sgd nesterov", "adam", "adamw", "adamw fused"])
def test_anisotropic_decay_written_out(name: str) -> None:
    make, _ = OPTIMIZERS[name]
    x, y = regression()
    model = network(6, 16, 1)
    optimizer = make(model.parameters(), lr=0.02, weight_decay=0.5)
    syre = syre_on(model, optimizer, sigma_d=0.17)
    offsets = list(syre.named_offsets().values())
    factors = list(syre.named_stretches().values())
    entries = torch.cat([factor.flatten() for factor in factors])
    assert 0.7 < float(entries.min()) < 0.75 < 1.25 < float(entries.max()) < 1.3
    assert len(entries.unique()) == len(entries)
    naive = copy.deepcopy(model)
    plain = make(naive.parameters(), lr=0.02, weight_decay=0.0)
    decoupled = name.startswith("adamw")
    for _ in range(60):
        backward(model, x, y)
        optimizer.step()
        backward(naive, x, y)
        with torch.no_grad():
            for weight, offset, factor in zip(naive.parameters(), offsets, factors, strict=True):
                pull = 0.5 * factor * (weight - offset)
                if decoupled:
                    weight.sub_(0.02 * pull)
                else:
                    cast(Tensor, weight.grad).add_(pull)
        plain.step()
    assert largest_gap(weights(model), weights(naive)) < 1e-9


def test_the_penalty_in_the_loss_and_a_closure_give_the_same_run() -> None:
    x, y = regression()
    model, naive = network(6, 16, 1), network(6, 16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=2 * 0.03)
    syre = syre_on(model, optimizer, fold=False)
    plain = torch.optim.SGD(naive.parameters(), lr=0.05, momentum=0.9)
    theta0 = list(syre.named_offsets().values())
    for step in range(30):
        if step % 2:
            optimizer.step(lambda: backward(model, x, y))
        else:
            optimizer.step(closure=lambda: backward(model, x, y))
        naive.zero_grad()
        loss = (naive(x) - y).square().mean() + syre_penalty(list(naive.parameters()), theta0, gamma=0.03)
        loss.backward()
        plain.step()
    assert largest_gap(weights(model), weights(naive)) < 1e-12


def test_a_closure_sees_weights_that_have_not_moved_yet() -> None:
    seen = []
    model = network(6, 4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=DECAY)
    syre_on(model, optimizer, sigma_d=0.3)
    before = weights(model)

    def closure() -> Tensor:
        seen.append(largest_gap(weights(model), before))
        return backward(model, *regression())

    optimizer.step(closure)
    assert seen == [0.0]


def test_ridge_regression_ends_at_the_shifted_solution() -> None:
    x, y = regression()
    layer = nn.utils.skip_init(nn.Linear, 6, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    gamma = 0.2
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=2 * gamma)
    theta0 = Syre(optimizer, scale=1.0).named_offsets()["0"].T
    for _ in range(500):
        backward(layer, x, y)
        optimizer.step()
    second_moment, cross_moment = x.T @ x / len(x), x.T @ y / len(x)
    solution = torch.linalg.solve(second_moment + gamma * torch.eye(6), cross_moment + gamma * theta0)
    assert torch.allclose(layer.weight.detach().T, solution, atol=1e-12)


class Duplicates:
    """The mirror that exchanges hidden units 0 and 1 of a network with one hidden layer."""

    def project(self, params: Params) -> dict[str, Tensor]:
        out = {name: tensor.clone() for name, tensor in params.items()}
        for name, axis in {"0.weight": 0, "0.bias": 0, "2.weight": 1}.items():
            rows = out[name].movedim(axis, 0)
            rows[:2] = rows[:2].mean(dim=0, keepdim=True)
        return out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_escape_force_is_all_that_acts_across_a_mirror(seed: int) -> None:
    model, mirror = network(6, 5, 1, seed=seed), Duplicates()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.3)
    syre = syre_on(model, optimizer, fold=False, seed=seed)
    force = escape_force(syre, mirror)
    before = mirror.project(dict(model.named_parameters()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(before[name])
    backward(model, *regression())
    optimizer.step()
    after = {name: weight.detach() for name, weight in model.named_parameters()}
    across = {name: after[name] - symmetric for name, symmetric in mirror.project(after).items()}
    assert max(float(force[name].abs().max()) for name in ("0.weight", "2.weight")) > 0.3 * SIGMA0 / 4
    assert largest_gap(list(across.values()), list(force.values())) < 1e-14
    assert float(force["2.bias"].abs().max()) == 0.0


def train_product(signal: float, decay: float, sigma0: float | None) -> tuple[float, float, list[float]]:
    """Train (uw - signal)^2 / 2 from u = w = 0; return u, w and the offsets."""
    pair = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2)]
    optimizer = torch.optim.SGD(pair, lr=0.2, weight_decay=decay)
    offsets = [0.0, 0.0]
    if sigma0 is not None:
        offsets = [float(o) for o in Syre(optimizer, sigma0=sigma0, fold=False).named_offsets().values()]
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (pair[0] * pair[1] - signal).square()).backward()
        optimizer.step()
    return pair[0].item(), pair[1].item(), offsets


def test_a_trapped_pair_is_freed_where_the_loss_wants_it() -> None:
    assert train_product(1.0, 0.2, sigma0=None)[:2] == (0.0, 0.0)
    u, w, _ = train_product(1.0, 0.2, sigma0=1e-4)
    assert u * w == pytest.approx(1.0 - 0.2, abs=1e-3)  # up to the order of the offset: soft threshold


def test_a_pair_that_the_decay_wants_dead_stays_without_use() -> None:
    gamma, sigma0 = 0.3, 1e-3
    u, w, (u0, w0) = train_product(0.4, 2 * gamma, sigma0)
    g = -0.4  # slope of the loss in uw at zero
    determinant = 4 * gamma**2 - g**2
    # Up to uw, of order sigma0^2, in the slope.
    assert u == pytest.approx((4 * gamma**2 * u0 - 2 * gamma * g * w0) / determinant, rel=1e-4)
    assert w == pytest.approx((4 * gamma**2 * w0 - 2 * gamma * g * u0) / determinant, rel=1e-4)


def test_clipping_bounds_the_gradient_and_not_the_pull() -> None:
    model = network(6, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=DECAY)
    syre = syre_on(model, optimizer)
    expected = []
    backward(model, *regression())
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    for weight, offset in zip(model.parameters(), syre.named_offsets().values(), strict=True):
        assert weight.grad is not None
        expected.append(weight.detach() - weight.grad - DECAY * (weight.detach() - offset))
    optimizer.step()
    assert largest_gap(weights(model), expected) < 1e-15


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_parameters_without_gradient_stay_in_place(make: MakeOptimizer) -> None:
    model = network(6, 4, 1)
    optimizer = make(model.parameters(), lr=0.1, weight_decay=DECAY)
    syre_on(model, optimizer)
    model[0].weight.requires_grad_(False)
    before = weights(model)
    backward(model, *regression())
    optimizer.step()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])


@pytest.mark.parametrize("name", ["sgd", "sgd fused", "adam", "adam fused", "adamw", "adamw fused"])
@pytest.mark.parametrize("sigma_d", [0.0, 0.3])
def test_a_gradient_scaler_changes_nothing(name: str, sigma_d: float) -> None:
    make, base = OPTIMIZERS[name]
    x, y = regression(dtype=torch.float32)
    ends = []
    for scaled in (False, True):
        model = network(6, 8, 1, dtype=torch.float32)
        optimizer = make(model.parameters(), lr=base, weight_decay=1.0)
        syre_on(model, optimizer, sigma_d=sigma_d)
        # On a device of its own the scaler would have to wait for a GPU; the arithmetic is the same.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(12):
            model.zero_grad()
            loss = (model(x) - y).square().mean()
            if step == 5:  # one step overflows, and is left out by hand where there is no scaler
                if not scaled:
                    continue
                loss = loss * math.inf
            scaler.scale(loss).backward()
            if scaled and step == 7:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        ends.append(weights(model))
    assert largest_gap(*ends) < 1e-5  # single precision: the scale is a power of two, but sums are reordered


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_a_learning_rate_held_in_a_tensor(make: MakeOptimizer) -> None:
    ends = []
    for rate in (0.01, torch.tensor(0.01, dtype=torch.float64)):
        model = network(6, 8, 1)
        optimizer = make(model.parameters(), lr=rate, weight_decay=DECAY, foreach=False)
        syre_on(model, optimizer, sigma_d=0.1)
        for _ in range(5):
            backward(model, *regression())
            optimizer.step()
        ends.append(weights(model))
    assert largest_gap(*ends) < 1e-14


def test_a_scheduler_of_torch_moves_the_pull() -> None:
    weight = nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.4)
    offset = Syre(optimizer, sigma0=1.0, fold=False).named_offsets()["0"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    expected = torch.zeros(1, 3, dtype=torch.float64)
    for step in range(3):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        scheduler.step()
        expected += 0.5 * 0.5**step * 0.4 * (offset - expected)
    assert torch.allclose(weight.detach(), expected, rtol=1e-14)


def test_a_compiled_model_takes_the_same_steps() -> None:
    ends = []
    for compiled in (False, True):
        model = network(6, 8, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=DECAY)
        call: Any = torch.compile(model, backend="aot_eager") if compiled else model
        syre_on(call, optimizer)
        for _ in range(3):
            backward(call, *regression())
            optimizer.step()
        ends.append(weights(model))
    torch.compiler.reset()
    assert largest_gap(*ends) < 1e-14


DDP_RANK = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from symdyn_core.symmetry.removal import Syre

rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 3).double())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
torch.manual_seed(100 + rank)  # whatever else the ranks draw differently
syre = Syre(optimizer, sigma0=0.5, model=model)
for step in range(5):
    x = torch.arange(32, dtype=torch.float64).reshape(8, 4).add(step).sin()[4 * rank : 4 * rank + 4]
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
torch.save([p.detach() for p in model.parameters()], f"{out}.{rank}")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_of_a_distributed_run_share_the_offset(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DDP_RANK, str(rank), str(tmp_path / "meet"), str(tmp_path / "end")]
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    Syre(optimizer, sigma0=0.5, model=model)
    for step in range(5):
        x = torch.arange(32, dtype=torch.float64).reshape(8, 4).add(step).sin()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for rank in range(2):
        assert largest_gap(torch.load(tmp_path / f"end.{rank}"), weights(model)) < 1e-14


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    def build(seed: int, *, fold: bool) -> tuple[nn.Module, torch.optim.Optimizer, Syre]:
        model = network(6, 8, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=DECAY)
        return model, optimizer, syre_on(model, optimizer, seed=seed, sigma_d=0.2, fold=fold)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            backward(model, *regression())
            optimizer.step()

    model, optimizer, syre = build(7, fold=True)
    train(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "syre": syre.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")
    train(model, optimizer)

    again, optimizer, syre = build(0, fold=False)
    loaded = torch.load(tmp_path / "checkpoint.pt")  # weights_only: numbers and tensors
    again.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    syre.load_state_dict(loaded["syre"])
    assert largest_gap(weights(again), list(loaded["model"].values())) == 0.0
    train(again, optimizer)
    assert largest_gap(weights(again), weights(model)) == 0.0


def test_loading_refuses_to_count_the_offset_twice() -> None:
    model = network(6, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY)
    syre = syre_on(model, optimizer)
    state = syre.state_dict()
    with pytest.raises(InputError, match="fold=False"):
        syre.load_state_dict(state)
    model.load_state_dict(model.state_dict())  # weights of a checkpoint: they have their offset
    before = weights(model)
    syre.load_state_dict(state)
    assert largest_gap(weights(model), before) == 0.0


def test_loading_refuses_another_state() -> None:
    model, other = network(6, 4, 1), network(6, 5, 1)
    make = with_options(torch.optim.SGD, lr=0.1, weight_decay=DECAY)
    syre = syre_on(model, make(model.parameters()), fold=False)
    state = syre_on(other, make(other.parameters())).state_dict()
    with pytest.raises(InputError, match="shapes of the state must be those of the optimizer"):
        syre.load_state_dict(state)
    with pytest.raises(InputError, match="version of the state must be 1, got 9"):
        syre.load_state_dict({**state, "version": 9})
    with pytest.raises(InputError, match="not a state of Syre: sigma0 missing"):
        syre.load_state_dict({key: value for key, value in state.items() if key != "sigma0"})


def test_detach_leaves_the_ordinary_optimizer() -> None:
    model = network(6, 4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=DECAY)
    syre = syre_on(model, optimizer)
    plain = copy.deepcopy(model)
    ordinary = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=DECAY)
    syre.detach()
    syre.detach()
    for net, opt in ((model, optimizer), (plain, ordinary)):
        backward(net, *regression())
        opt.step()
    assert largest_gap(weights(model), weights(plain)) == 0.0


def test_offsets_have_the_stated_size_and_depend_on_the_seed_alone() -> None:
    def offsets(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        model = network(400, 100, 1, dtype=dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY)
        start = weights(model)
        syre = Syre(optimizer, scale=2.0, seed=seed, model=model)
        found = syre.named_offsets()
        assert largest_gap(weights(model), [a + b for a, b in zip(start, found.values(), strict=True)]) == 0.0
        return found

    first, single, second = offsets(0), offsets(0, torch.float32), offsets(1)
    assert float(first["0.weight"].std()) == pytest.approx(2 / math.sqrt(400), rel=0.02)  # 40 000 draws
    assert float(first["0.bias"].std()) == pytest.approx(2 / math.sqrt(400), rel=0.3)  # 100 draws
    assert float(first["2.weight"].std()) == pytest.approx(2 / math.sqrt(100), rel=0.3)
    assert all(torch.equal(first[name].float(), single[name]) for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_a_vector_takes_the_fan_in_of_its_layer_whatever_the_groups() -> None:
    model = network(400, 100, 9)
    groups = [{"params": [model[2].bias, model[0].bias]}, {"params": [model[0].weight, model[2].weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=DECAY)
    state = Syre(optimizer, scale=1.0, model=model).state_dict()
    assert state["sigma0"] == [0.1, 0.05, 0.05, 0.1]
    state = Syre(torch.optim.SGD(model.parameters(), weight_decay=DECAY), scale=1.0).state_dict()
    assert state["sigma0"] == [0.05, 0.05, 0.1, 0.1]  # without the model: the matrix before it in the group
    with pytest.raises(
        InputError, match=r"cannot tell the fan-in of parameter '0' of shape \[9\]: give model="
    ):
        Syre(optimizer, scale=1.0)


@pytest.mark.parametrize("known", [True, False])
def test_normalisation_layers_are_left_alone_unless_asked_for(known: bool) -> None:
    model = nn.Sequential(network(6, 4)[0], nn.LayerNorm(4, bias=known, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY)
    syre = Syre(optimizer, scale=1.0, model=model if known else None)
    moved = [bool((offset != 0).all()) for offset in syre.named_offsets().values()]
    assert moved == ([True, True, False, False] if known else [True, True, False])
    syre.detach()
    syre = Syre(optimizer, scale=1.0, params=[model[1].weight])
    assert [bool((offset != 0).all()) for offset in syre.named_offsets().values()][:3] == [False, False, True]
    backward(model, regression()[0], torch.zeros(64, 4, dtype=torch.float64))
    optimizer.step()  # the others decay toward zero, on purpose


@pytest.mark.parametrize("sigma_d", [0.0, 0.3])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_parameters_of_a_group_may_go_different_ways(make: MakeOptimizer, sigma_d: float) -> None:
    weight, bias, scale = (nn.Parameter(torch.zeros(n, 2, dtype=torch.float64)) for n in (3, 2, 1))
    optimizer = make([weight, bias, scale], lr=0.1, weight_decay=0.5)
    both = [
        Syre(optimizer, sigma0=0.3, sigma_d=sigma_d, seed=k, params=[parameter], fold=False)
        for k, parameter in enumerate([weight, bias])
    ]
    theta0 = [both[0].named_offsets()["0"], both[1].named_offsets()["1"], torch.zeros_like(scale)]
    factors = [both[0].named_stretches()["0"], both[1].named_stretches()["1"], torch.ones_like(scale)]
    expected = [torch.full_like(offset, 2.0) for offset in theta0]
    for parameter in (weight, bias, scale):
        nn.init.constant_(parameter, 2.0)
    for _ in range(3):
        for parameter in (weight, bias, scale):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        expected = [w - 0.05 * d * (w - o) for w, o, d in zip(expected, theta0, factors, strict=True)]
    assert largest_gap([weight.detach(), bias.detach(), scale.detach()], expected) < 1e-14


def test_a_normalisation_scale_keeps_its_own_decay_beside_the_pull() -> None:
    model = nn.Sequential(network(6, 4)[0], nn.LayerNorm(4, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    syre_on(model, optimizer, fold=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model[1].weight, torch.full((4,), 0.95, dtype=torch.float64), rtol=1e-15)


def test_the_decay_of_the_groups_is_what_the_user_set_except_during_a_step() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    syre = Syre(optimizer, sigma0=0.1)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5

    def fail() -> float:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        optimizer.step(fail)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    weight.grad = torch.zeros(2, 2)
    optimizer.state[weight]["exp_avg"] = torch.zeros(3, 3)  # the step itself fails
    with pytest.raises(RuntimeError, match="size of tensor"):
        optimizer.step()
    syre.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_new_parameters_are_refused_until_covered() -> None:
    model = network(6, 4, 1)
    still = {"params": list(model[0].parameters()), "weight_decay": 0.0}
    optimizer = torch.optim.SGD([still], lr=0.1, weight_decay=DECAY)
    with pytest.raises(InputError, match="no parameter with weight_decay > 0: an offset without decay"):
        syre_on(model, optimizer)
    optimizer.add_param_group({"params": [model[2].weight]})
    syre = syre_on(model, optimizer)
    optimizer.add_param_group({"params": [model[2].bias]})
    backward(model, *regression())
    with pytest.raises(InputError, match=r"shape \[1\] in group 2 decays and has no offset .* call cover"):
        optimizer.step()
    assert syre.cover() == 1
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = DECAY
    with pytest.raises(InputError, match="in group 0 decays and has no offset"):
        optimizer.step()
    assert syre.cover() == 2
    assert syre.cover() == 0
    optimizer.step()


class TrustRatio(torch.optim.Optimizer):
    """What LARS and LAMB have in common: the step has the length of the weights."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                direction = weight.grad + group["weight_decay"] * weight.detach()
                weight.data.sub_(group["lr"] * weight.detach().norm() * direction / direction.norm())


class Undecided(torch.optim.Optimizer):
    """A decay that is scaled by the square of the learning rate."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.mul_(1 - group["lr"] ** 2 * group["weight_decay"]).sub_(group["lr"] * weight.grad)


class NeedsMore(TrustRatio):
    """An optimizer that cannot be copied: it wants an argument we know nothing of."""

    def __init__(self, params: Any, secret: int, weight_decay: float = 0.0) -> None:
        super().__init__(params, weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (TrustRatio, "TrustRatio takes steps that depend on the weights themselves"),
        (torch.optim.Adafactor, "Adafactor takes steps that depend on the weights themselves"),
        (torch.optim.ASGD, "ASGD takes steps that depend on the weights themselves"),
        (Undecided, "the weight decay of Undecided neither enters the gradient nor multiplies"),
        (with_options(NeedsMore, secret=1), "cannot tell how NeedsMore decays .* say decoupled=True"),
    ],
)
def test_optimizers_that_do_not_fold_are_refused_and_nothing_moves(make: MakeOptimizer, message: str) -> None:
    model = network(6, 4, 1)
    before = weights(model)
    with pytest.raises(InputError, match=message):
        syre_on(model, make(model.parameters(), weight_decay=DECAY))
    assert largest_gap(weights(model), before) == 0.0


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.Rprop, torch.optim.SparseAdam])
def test_optimizers_without_decay_are_refused(make: MakeOptimizer) -> None:
    with pytest.raises(InputError, match="has no weight decay that could pull toward an offset"):
        syre_on(network(6, 4, 1), make(list(network(6, 4, 1).parameters())))


def test_an_optimizer_that_cannot_be_asked_may_be_explained() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    Syre(NeedsMore([weight], secret=1, weight_decay=DECAY), sigma0=0.1, decoupled=False)
    assert bool((weight != 0).all())


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.utils.skip_init(nn.Embedding, 5, 3, sparse=True)
    nn.init.zeros_(embedding.weight)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1, weight_decay=DECAY)
    Syre(optimizer, sigma0=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="dense gradients"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma0": 0.0}, "sigma0 must be a positive number or 'fan_in', got 0.0"),
        ({"sigma0": "fan_out"}, "sigma0 must be a positive number or 'fan_in', got 'fan_out'"),
        ({"scale": math.nan}, "scale must be a positive number, got nan"),
        ({"sigma_d": 0.6}, "sigma_d must be in [0, 0.577)"),
        ({"model": 3}, "model must be a torch.nn.Module, got int"),
        ({"params": [nn.Parameter(torch.zeros(1))]}, "params must be parameters of the optimizer; entry 0"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD(network(6, 4, 1).parameters(), lr=0.1, weight_decay=DECAY)
    with pytest.raises(InputError) as caught:
        Syre(optimizer, **{"scale": 1.0, **options})
    assert message in str(caught.value)
    with pytest.raises(InputError, match=r"optimizer must be a torch.optim.Optimizer, got Linear"):
        Syre(nn.Linear(1, 1, device="meta"))  # type: ignore[arg-type]


def test_complex_and_lazy_parameters_are_refused() -> None:
    lazy = nn.LazyLinear(2)
    for weight in (nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64)), *lazy.parameters()):
        with pytest.raises(InputError, match=r"must be real floating point|is not initialised yet"):
            Syre(torch.optim.SGD([weight], lr=0.1, weight_decay=DECAY), sigma0=0.1)


def test_settings_without_effect_warn() -> None:
    with pytest.warns(SyreWarning, match="the published default 0.01 is often too small"):
        Syre(torch.optim.SGD(network(6, 4, 1).parameters(), lr=0.1, weight_decay=DECAY))
    half = network(6, 4, 1, dtype=torch.bfloat16)
    with pytest.warns(SyreWarning, match="half-precision parameters"):
        Syre(torch.optim.SGD(half.parameters(), lr=0.1, weight_decay=DECAY), scale=1.0)


def test_what_half_precision_loses() -> None:
    start = 0.03 * torch.randn(1, 100_000, generator=torch_generator(0, "start"))
    changed = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(start.to(dtype, copy=True))
        optimizer = torch.optim.AdamW([weight], lr=3e-4, weight_decay=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyreWarning)
            Syre(optimizer, sigma0=0.01 / math.sqrt(512), fold=False)
        plain = nn.Parameter(start.to(dtype, copy=True))
        ordinary = torch.optim.AdamW([plain], lr=3e-4, weight_decay=0.1)
        for parameter, opt in ((weight, optimizer), (plain, ordinary)):
            parameter.grad = torch.zeros_like(parameter)
            opt.step()
        changed[dtype] = float((weight != plain).double().mean())
    assert changed[torch.float32] > 0.5
    assert changed[torch.bfloat16] < 0.01


def test_nothing_warns_or_moves_the_global_generator_in_a_proper_run() -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.AdamW(network(6, 4, 1).parameters())
        Syre(optimizer, scale=1.0)
        assert bypasses_gradient(optimizer)
    assert torch.equal(torch.get_rng_state(), before)
