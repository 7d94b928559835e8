"""The collapse exponent against closed forms, a literal product of matrices, and SGD on a network."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel
from symdyn_core.symmetry.attraction import (
    attracting_learning_rates,
    collapse_exponent,
    critical_learning_rate,
    normal_curvature,
)
from symdyn_core.symmetry.kinds import Permutation, SignFlip
from symdyn_core.symmetry.mirror import Mirror, permutation_mirror, sign_mirror
from symdyn_core.symmetry.units import Axis, Units


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(count: int, size: int, *, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    matrices = np.random.default_rng(seed).standard_normal((count, size, size))
    return (matrices + matrices.swapaxes(1, 2)) / math.sqrt(2) + mean * np.eye(size)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=30), st.floats(0.01, 0.3), st.floats(0, 1))
def test_one_direction_is_the_mean_logarithm(values: list[float], rate: float, decay: float) -> None:
    expected = sum(math.log(abs(1 - rate * (h + 2 * decay))) for h in values) / len(values)
    found = collapse_exponent(values, rate, decay)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_second_order_has_the_wrong_sign_where_the_exact_formula_does_not() -> None:
    # Scalar product with noise 6 at learning rate 0.5: curvatures -2 (c +- 6).
    curvatures, rate = np.array([-2 * (1 + 6), -2 * (1 - 6)]), 0.5
    second = -rate * curvatures.mean() - rate**2 / 2 * (curvatures**2).mean()
    assert second < -4
    assert collapse_exponent(curvatures, rate).value == pytest.approx(math.log(8 * 4) / 2)


@pytest.mark.parametrize(("signal", "noise"), [(0.3, 1.0), (0.2, 1.5), (0.5, 0.8)])
def test_exact_threshold_of_the_toy_model(signal: float, noise: float) -> None:
    curvatures = [-2 * (signal + noise), -2 * (signal - noise)]
    window = attracting_learning_rates(curvatures)
    assert window is not None
    exact = signal / (noise**2 - signal**2)
    # Where the product of the factors reaches minus one: (1 + 2 eta c)^2 - (2 eta noise)^2 = -1.
    upper = (signal + math.sqrt(2 * noise**2 - signal**2)) / (2 * (noise**2 - signal**2))
    assert window == pytest.approx((exact, upper), rel=1e-8)
    assert critical_learning_rate(curvatures) == window[0]


def test_weight_decay_alone_makes_every_small_learning_rate_attract() -> None:
    assert critical_learning_rate([-1.0, -1.0]) is None
    assert critical_learning_rate([-1.0, -1.0], weight_decay=0.6) == 0.0
    # The factor two of the convention: 0.4 would be enough if gamma stood for 2 gamma.
    assert critical_learning_rate([-1.0, -1.0], weight_decay=0.4) is None


def test_a_signal_stronger_than_its_noise_never_collapses() -> None:
    assert critical_learning_rate([-2 * (1 + 0.5), -2 * (1 - 0.5)]) is None
    assert attracting_learning_rates([0.0, 0.0]) is None


class TestSeveralDirections:
    def test_commuting_matrices_have_the_largest_of_their_exponents(self) -> None:
        entries = np.random.default_rng(0).standard_normal((200, 3)) * [1, 2, 1] + [-0.2, 0.3, 1]
        matrices = np.stack([np.diag(row) for row in entries])
        for rate in (0.01, 0.1, 0.5, 2.0):
            expected = np.log(np.abs(1 - rate * entries)).mean(axis=0).max()
            assert collapse_exponent(matrices, rate).value == pytest.approx(expected, abs=1e-9)

    def test_agrees_with_a_literal_product_of_matrices(self) -> None:
        matrices, rate = symmetric(100, 4, mean=0.5), 0.3
        generator = np.random.default_rng(7)
        growth, total = np.eye(4), 0.0
        for _ in range(20_000):
            growth = (np.eye(4) - rate * (matrices[generator.integers(100)] + 0.2 * np.eye(4))) @ growth
            size = np.linalg.norm(growth)
            growth, total = growth / size, total + math.log(size)
        found = collapse_exponent(matrices, rate, weight_decay=0.1)
        # Over 12 orders of the matrices the value spreads by 0.005, the literal product by 0.003.
        assert found.value == pytest.approx(total / 20_000, abs=0.025)

    def test_noise_attracts_across_one_direction_and_repels_across_many(self) -> None:
        # To second order eta^2 ((k + 1) / 2 - 2) for these matrices of mean zero: it changes sign at k = 3.
        rate = 0.05
        for size, sign in ((1, -1), (8, 1)):
            matrices = symmetric(2000, size)
            matrices -= matrices.mean(axis=0)
            value = collapse_exponent(matrices, rate).value
            assert math.copysign(1, value) == sign
            assert value == pytest.approx(rate**2 * ((size + 1) / 2 - 2), rel=0.3)

    def test_interval_covers_the_exponent_of_fresh_samples(self) -> None:
        truth = collapse_exponent(symmetric(4000, 3, mean=0.3, seed=99), 0.4).value
        covered = 0
        for seed in range(8):
            found = collapse_exponent(symmetric(60, 3, mean=0.3, seed=seed), 0.4, seed=seed)
            covered += found.low <= truth <= found.high
        assert covered >= 6  # of 8 at 95 %: fewer than that once in 170

    def test_saddle_of_the_mean_repels_at_small_and_attracts_at_larger_learning_rates(self) -> None:
        entries = np.array([[-2.6, 4.0], [1.4, 4.0]])
        window = attracting_learning_rates(np.stack([np.diag(row) for row in entries]))
        assert window == pytest.approx((0.3 / 0.91, 0.5), rel=1e-6)  # the second direction ends it at 2/4

    def test_landing_on_the_mirror_in_one_step(self) -> None:
        assert collapse_exponent([2.0, 1.0], 0.5).value == -math.inf
        assert collapse_exponent(np.stack([2 * np.eye(2)] * 3), 0.5).value == -math.inf


def tanh_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


UNITS = Units("0", 4, (Axis("0.weight", 0), Axis("0.bias", 0)), (Axis("2.weight", 1),))


class TestNormalCurvature:
    @pytest.mark.parametrize(
        "mirror", [permutation_mirror(Permutation(UNITS), 0, 2), sign_mirror(SignFlip(UNITS), 1)]
    )
    def test_is_the_block_of_the_whole_hessian(self, mirror: Mirror) -> None:
        model, inputs, targets = tanh_net(), normal(20, 3), normal(20, 1, seed=2)
        found = normal_curvature(model, mirror, mse_loss, inputs, targets, batch_size=20, batches=1)[0]
        frozen = FrozenModel(model)
        fixed, basis = mirror.project(frozen.params), mirror.normal_basis(frozen.params)

        def loss(z: Tensor) -> Tensor:
            moved = {name: fixed[name] + step for name, step in basis.embed(z).items()}
            return mse_loss(frozen({**fixed, **moved}, inputs), targets)

        assert torch.allclose(
            found, torch.autograd.functional.hessian(loss, torch.zeros(5, dtype=torch.float64)), atol=1e-12
        )

    def test_predicts_how_fast_sgd_leaves_or_nears_a_mirror(self) -> None:
        # The parameters along the mirror stand still, so that only the linear growth across it is tested.
        model, inputs, targets = tanh_net(), normal(64, 3), 2 * normal(64, 1, seed=2)
        mirror = sign_mirror(SignFlip(UNITS), 1)
        rate, decay = 0.3, 0.01
        curvature = normal_curvature(model, mirror, mse_loss, inputs, targets, batch_size=4, batches=200)
        predicted = collapse_exponent(curvature, rate, decay)
        frozen = FrozenModel(model)
        fixed, basis = mirror.project(frozen.params), mirror.normal_basis(frozen.params)
        z, generator, total = normal(5, seed=3), torch.Generator().manual_seed(4), 0.0
        z = 1e-6 * z / z.norm()
        for _ in range(800):
            batch = torch.randperm(64, generator=generator)[:4]
            z = z.detach().requires_grad_()
            moved = {name: fixed[name] + step for name, step in basis.embed(z).items()}
            loss = mse_loss(frozen({**fixed, **moved}, inputs[batch]), targets[batch])
            (slope,) = torch.autograd.grad(loss, z)
            z = (z - rate * (slope + 2 * decay * z)).detach()
            total += math.log(float(z.norm()) / 1e-6)
            z = 1e-6 * z / z.norm()
        # The walk's own error, about 0.3 / sqrt(800), is a third of the half width of the interval.
        assert predicted.low < total / 800 < predicted.high
        # The mean Hessian alone says something else.
        steepest = float(torch.linalg.eigvalsh(curvature.mean(dim=0))[0])
        assert math.log(1 - rate * (steepest + 2 * decay)) > predicted.high

    def test_refusals(self) -> None:
        mirror, inputs = sign_mirror(SignFlip(UNITS), 1), normal(8, 3)
        with pytest.raises(InputError, match=r"batch_size must be in \[1, n_samples=8\], got 9"):
            normal_curvature(tanh_net(), mirror, mse_loss, inputs, normal(8, 1), batch_size=9)
        with pytest.raises(InputError, match="the loss must be one number"):
            normal_curvature(tanh_net(), mirror, lambda f, y: f - y, inputs, normal(8, 1), batch_size=4)


def test_refusals() -> None:
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got 0"):
        collapse_exponent([1.0, 2.0], 0)
    with pytest.raises(InputError, match=r"weight_decay must be finite and >= 0, got -1"):
        collapse_exponent([1.0, 2.0], 0.1, -1)
    with pytest.raises(InputError, match=r"curvatures must have shape \(n,\) or \(n, k, k\), got \(2, 3\)"):
        collapse_exponent(np.ones((2, 3)), 0.1)
    with pytest.raises(InputError, match="symmetric"):
        collapse_exponent(np.arange(8.0).reshape(2, 2, 2), 0.1)
    with pytest.raises(InputError, match="finite"):
        critical_learning_rate([1.0, math.nan])
