"""Mirrors on real networks: what they leave in place, which optimisers they trap, the Hessian's blocks."""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, Params, to_vector
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.kinds import GeneralLinear, Permutation, SignFlip
from symdyn_core.symmetry.mirror import (
    GroupProjector,
    Mirror,
    check_mirror,
    permutation_mirror,
    rotation_mirror,
    sign_mirror,
)
from symdyn_core.symmetry.units import Axis, Units

UNITS = Units("0", 6, (Axis("0.weight", 0), Axis("0.bias", 0)), (Axis("2.weight", 1),))
LINEAR = Units("0", 6, (Axis("0.weight", 0),), (Axis("1.weight", 1),))


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tanh_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def linear_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)).double()


def squared_error(model: nn.Module) -> Callable[[Params], Tensor]:
    frozen, inputs = FrozenModel(model), normal(20, 4)
    targets = normal(20, frozen(frozen.params, inputs).shape[1], seed=2)
    return lambda params: (frozen(params, inputs) - targets).square().mean()


def mirrors() -> dict[str, tuple[nn.Module, Mirror]]:
    return {
        "permutation": (tanh_net(), permutation_mirror(Permutation(UNITS), 1, 4)),
        "sign flip": (tanh_net(), sign_mirror(SignFlip(UNITS), 2)),
        "rotation": (linear_net(), rotation_mirror(GeneralLinear(LINEAR, 4, 3), normal(6))),
    }


@pytest.mark.parametrize("kind", mirrors())
class TestEveryMirror:
    def test_reflection_is_an_orthogonal_involution(self, kind: str) -> None:
        model, mirror = mirrors()[kind]
        params = FrozenModel(model).params
        image = mirror.reflect(params)
        assert torch.allclose(to_vector(mirror.reflect(image)), to_vector(params), atol=1e-14)
        assert float(to_vector(image).norm()) == pytest.approx(float(to_vector(params).norm()), rel=1e-13)

    def test_projection_is_the_nearest_fixed_state(self, kind: str) -> None:
        model, mirror = mirrors()[kind]
        params = FrozenModel(model).params
        fixed = mirror.project(params)
        assert mirror.distance(fixed) < 1e-14
        gap = float((to_vector(params) - to_vector(fixed)).norm())
        assert mirror.distance(params) == pytest.approx(gap, rel=1e-12)
        across, along = mirror.normal_part(params), {name: fixed[name] for name in mirror.parameters}
        assert abs(float(torch.dot(to_vector(across), to_vector(along)))) < 1e-13

    def test_stationarity_and_hessian_theorems(self, kind: str) -> None:
        model, mirror = mirrors()[kind]
        check = check_mirror(squared_error(model), FrozenModel(model).params, mirror)
        assert check.invariance < 1e-13
        assert check.normal_gradient < 1e-13 * max(1.0, check.gradient)
        assert check.commutator < 1e-12 * check.curvature

    def test_a_wrong_mirror_fails_every_check(self, kind: str) -> None:
        model, _ = mirrors()[kind]
        params = FrozenModel(model).params
        wrong = rotation_mirror("0.weight", normal(6, seed=9))  # turns what writes and not what reads
        check = check_mirror(squared_error(model), params, wrong)
        assert min(check.invariance, check.normal_gradient, check.commutator) > 1e-4

    def test_basis_spans_what_changes_sign(self, kind: str) -> None:
        model, mirror = mirrors()[kind]
        params = FrozenModel(model).params
        basis = mirror.normal_basis(params)
        assert basis.dimension == {"permutation": 6, "sign flip": 6, "rotation": 7}[kind]
        z = normal(basis.dimension, seed=3)
        step = basis.embed(z)
        image = mirror.reflect({**params, **step})
        assert all(torch.allclose(image[name], -step[name], atol=1e-13) for name in mirror.parameters)
        assert float(to_vector(step).norm()) == pytest.approx(float(z.norm()), rel=1e-12)
        assert float(basis.coordinates(params).norm()) == pytest.approx(mirror.distance(params), rel=1e-12)


def train(model: nn.Module, algorithm: str, mirror: Mirror, steps: int = 300) -> float:
    """Train from a fixed state with minibatches; return the distance to the mirror."""
    frozen = FrozenModel(model)
    weights = {name: value.detach().clone() for name, value in mirror.project(frozen.params).items()}
    leaves = [value.requires_grad_() for value in weights.values()]
    optimizer: torch.optim.Optimizer
    if algorithm == "sgd":
        optimizer = torch.optim.SGD(leaves, lr=0.05, momentum=0.9, weight_decay=1e-3)
    elif algorithm == "adam":
        optimizer = torch.optim.Adam(leaves, lr=1e-2)
    else:
        optimizer = torch.optim.AdamW(leaves, lr=1e-2)
    inputs, generator = normal(100, 4), torch.Generator().manual_seed(5)
    targets = (inputs @ normal(4, int(frozen(frozen.params, inputs).shape[1]), seed=6)).sin()
    for _ in range(steps):
        batch = torch.randperm(100, generator=generator)[:10]
        optimizer.zero_grad()
        torch.autograd.backward((frozen(weights, inputs[batch]) - targets[batch]).square().mean())
        optimizer.step()
    return mirror.distance({name: value.detach() for name, value in weights.items()})


@pytest.mark.parametrize("algorithm", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("kind", ["permutation", "sign flip"])
def test_discrete_mirrors_trap_every_optimizer(kind: str, algorithm: str) -> None:
    model, mirror = mirrors()[kind]
    # Rounding differs between equal units in a matrix product; training may amplify it, but not to this.
    assert train(model, algorithm, mirror) < 1e-9


def test_rotation_mirror_traps_sgd_and_not_adam() -> None:
    model, mirror = mirrors()["rotation"]
    assert train(model, "sgd", mirror) < 1e-12
    assert train(model, "adam", mirror) > 0.01
    assert train(model, "adamw", mirror) > 0.01


def test_builders_take_what_the_finder_finds() -> None:
    report = find_symmetries(tanh_net(), normal(16, 4))
    params = FrozenModel(tanh_net()).params
    swap = permutation_mirror(report.of_kind("permutation")[0], 0, 1)
    merged = UNITS.incoming_weights(swap.project(params))
    assert torch.equal(merged[0], merged[1])
    flip = sign_mirror(report.of_kind("sign flip")[0], 3)
    assert float(UNITS.outgoing_weights(flip.project(params))[3].norm()) == 0
    linear = find_symmetries(linear_net(), normal(16, 4)).of_kind("general linear")[0]
    lower = rotation_mirror(linear, normal(6)).project(FrozenModel(linear_net()).params)
    rows = torch.cat([LINEAR.incoming_weights(lower), LINEAR.outgoing_weights(lower)], dim=1)
    assert float(torch.linalg.svdvals(rows)[-1]) < 1e-14


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_explicit_normals_are_a_literal_transcription(k: int, seed: int) -> None:
    basis = torch.linalg.qr(normal(7, k, seed=seed))[0]
    params = {"a": normal(2, 2, seed=seed + 1), "b": normal(3, seed=seed + 2)}
    mirror = Mirror.from_normals({"a": basis[:4].reshape(2, 2, k), "b": basis[4:]})
    theta = to_vector(params)
    expected = theta - 2 * basis @ (basis.T @ theta)
    assert torch.allclose(to_vector(mirror.reflect(params)), expected, atol=1e-12)
    assert mirror.distance(params) == pytest.approx(float((basis.T @ theta).norm()), rel=1e-10)


def test_float32_parameters_stay_float32() -> None:
    params = {name: value.float() for name, value in FrozenModel(linear_net()).params.items()}
    image = rotation_mirror(GeneralLinear(LINEAR, 4, 3), normal(6)).reflect(params)
    assert {value.dtype for value in image.values()} == {torch.float32}


class TestGroupProjector:
    def test_generators_give_the_average_over_the_whole_group(self) -> None:
        identity = torch.eye(4, dtype=torch.float64)
        swaps = [identity[[1, 0, 2, 3]], identity[[0, 2, 1, 3]]]
        group = [identity[[*order, 3]] for order in permutations(range(3))]
        theta = {"w": normal(4)}
        average = torch.stack(group).mean(dim=0) @ theta["w"]
        assert torch.allclose(GroupProjector.from_matrices(swaps).project(theta)["w"], average, atol=1e-12)

    def test_swap_distance_is_that_of_the_two_units(self) -> None:
        params = FrozenModel(tanh_net()).params
        rows = torch.cat([UNITS.incoming_weights(params), UNITS.outgoing_weights(params)], dim=1)
        gap = float((rows[0] - rows[5]).norm()) / math.sqrt(2)
        assert GroupProjector.swap(Permutation(UNITS), 0, 5).delta(params) == pytest.approx(gap, rel=1e-12)
        assert GroupProjector.sign(SignFlip(UNITS), 2).delta(params) == pytest.approx(float(rows[2].norm()))

    def test_hessian_splits_and_its_blocks_have_the_right_sizes(self) -> None:
        model = tanh_net()
        projector, loss = GroupProjector.swap(Permutation(UNITS), 0, 1), squared_error(model)
        fixed = projector.project(FrozenModel(model).params)
        shapes = {name: value.shape for name, value in fixed.items()}

        def flat(vector: Tensor) -> Tensor:
            pieces = vector.split([shape.numel() for shape in shapes.values()])
            return loss({n: p.reshape(shapes[n]) for n, p in zip(shapes, pieces, strict=True)})

        hessian = torch.autograd.functional.hessian(flat, to_vector(fixed))
        split = projector.split_hessian(hessian, fixed)
        assert (len(split.symmetric), len(split.broken)) == (37 - 6, 6)
        assert float(split.cross.abs().max()) < 1e-13
        both = torch.cat([torch.linalg.eigvalsh(split.symmetric), torch.linalg.eigvalsh(split.broken)])
        assert torch.allclose(both.sort().values, torch.linalg.eigvalsh(hessian), atol=1e-12)

    def test_refuses_what_is_not_compact(self) -> None:
        with pytest.raises(InputError, match=r"matrices must be orthogonal, got g g\^T off by 3"):
            GroupProjector.from_matrices([torch.diag(torch.tensor([2.0, 0.5]))])
        with pytest.raises(InputError, match="square"):
            GroupProjector.from_matrices([])


def test_refusals() -> None:
    swap, flip = Permutation(UNITS), SignFlip(UNITS)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: permutation_mirror(flip, 0, 1), "symmetry must be a permutation, got sign flip"),
        (lambda: permutation_mirror(swap, 0, 6), r"a unit must be in \[0, 6\), got 6"),
        (lambda: permutation_mirror(swap, 2, 2), "i and j must be two units, got 2 twice"),
        (lambda: sign_mirror(swap, 0), "symmetry must be a sign flip, got permutation"),
        (lambda: rotation_mirror(swap, normal(6)), "symmetry must be general linear or a rotation"),
        (lambda: rotation_mirror("w", torch.zeros(3)), "direction must be a finite vector that is not zero"),
        (lambda: rotation_mirror(GeneralLinear(LINEAR, 4, 3), normal(5)), "must have 6 entries"),
        (lambda: Mirror.from_normals({"w": torch.ones(3, 1)}), "orthonormal columns, got O\\^T O off by 2"),
        (lambda: Mirror.from_normals({}), "same number k >= 1 of columns"),
        (lambda: permutation_mirror(swap, 0, 1).reflect({"v": normal(2)}), "which is not among v"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
