"""Lyapunov exponents of minibatch Hessians against closed forms, a literal product, and SGD on a network."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.lyapunov import lyapunov_spectrum, top_lyapunov
from symdyn_core.dynamics.random_products import block_standard_error, propagate
from symdyn_core.dynamics.stability import is_type_ii
from symdyn_core.dynamics.stable_rate import mean_square_limit, stable_learning_rate
from symdyn_core.errors import InputError


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tanh_net(inputs: int = 3, width: int = 4, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1)).double()


def line(size: int) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, size, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    return layer


def symmetric(count: int, size: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    matrices = np.random.default_rng(seed).standard_normal((count, size, size))
    return (matrices + matrices.swapaxes(1, 2)) / math.sqrt(2) + mean * np.eye(size)


class TestTopLyapunov:
    def test_commuting_matrices_have_their_own_exponents(self) -> None:
        entries = np.random.default_rng(0).standard_normal((4000, 3)) * [1, 2, 1] + [-0.2, 0.3, 1]
        found = top_lyapunov(lambda t: lambda v: entries[t, :, None] * v, 3, 0.5, k=3, steps=4000)
        expected = np.sort(np.log(np.abs(1 - 0.5 * entries[400:])).mean(axis=0))[::-1]
        assert np.allclose(found.exponents, expected, atol=0.01)
        spread = np.log(np.abs(1 - 0.5 * entries)).std(axis=0) / math.sqrt(3600)
        assert np.allclose(np.sort(found.standard_errors), np.sort(spread), rtol=0.35)

    def test_their_sum_is_that_of_the_logarithm_of_the_determinant(self) -> None:
        matrices = symmetric(2000, 3, mean=0.5)
        found = top_lyapunov(lambda t: lambda v: matrices[t] @ v, 3, 0.4, k=3, steps=2000)
        logs = np.log(np.abs(np.linalg.det(np.eye(3) - 0.4 * matrices[200:])))
        assert found.exponents.sum() == pytest.approx(logs.mean(), abs=1e-12)

    def test_literal_product_and_bounds(self) -> None:
        matrices, rate = symmetric(3000, 2, mean=0.3), 0.6
        found = top_lyapunov(lambda t: lambda v: matrices[t] @ v, 2, rate, steps=3000)
        steps = np.eye(2) - rate * matrices
        vector, total = np.array([1.0, 0.5]), 0.0
        for t, step in enumerate(steps):
            vector = step @ vector
            size = np.linalg.norm(vector)
            vector, total = vector / size, total + math.log(size) * (t >= 300)
        assert found.exponents[0] == pytest.approx(total / 2700, abs=1e-9)
        assert found.exponents[0] < np.log(np.linalg.norm(steps, 2, axis=(1, 2))).mean()
        assert 2 * found.exponents[0] > np.log(np.abs(np.linalg.det(steps))).mean()

    @pytest.mark.parametrize("momentum", [0.5, 0.9])
    def test_momentum_has_the_roots_of_its_characteristic_equation(self, momentum: float) -> None:
        rate, curvature, decay = 0.1, 2.0, 0.5
        found = top_lyapunov(
            lambda t: lambda v: curvature * v, 1, rate, k=2, steps=1000, momentum=momentum, weight_decay=decay
        )
        middle = 1 + momentum - rate * (curvature + 2 * decay)
        roots = np.abs(np.roots([1, -middle, momentum]))
        assert np.exp(found.exponents) == pytest.approx(np.sort(roots)[::-1], rel=0.01)

    def test_landing_on_zero(self) -> None:
        found = top_lyapunov(lambda t: lambda v: 2 * v, 2, 0.5, steps=50)
        assert found.exponents[0] == -math.inf
        assert found.attracts

    def test_errors_of_correlated_numbers_are_larger(self) -> None:
        generator = np.random.default_rng(0)
        noise, correlated = generator.standard_normal((64, 10_000)), np.zeros((64, 10_000))
        for t in range(1, 10_000):
            correlated[:, t] = 0.8 * correlated[:, t - 1] + noise[:, t]
        # The mean of such a series has standard deviation 1 / (1 - 0.8) / sqrt(n).
        assert block_standard_error(correlated.T).mean() == pytest.approx(5 / 100, rel=0.1)


class TestSpectrum:
    def test_orthogonal_inputs_have_the_closed_form(self) -> None:
        # Sample i pushes weight i alone: exponent log|1 - 2 rate x_i^2| / n each, a sample a step.
        scales = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
        data = torch.diag(scales), torch.zeros(3, 1).double()
        found = lyapunov_spectrum(line(3), mse_loss, *data, learning_rate=0.2, batch_size=1, k=3, steps=1500)
        expected = np.sort(np.log(np.abs(1 - 0.4 * scales.numpy() ** 2)) / 3)[::-1]
        assert np.abs(found.exponents - expected).max() < 4 * found.standard_errors.max()
        # The wrong law: the mean Hessian.
        mean = np.sort(np.log(np.abs(1 - 0.4 * scales.numpy() ** 2 / 3)))[::-1]
        assert np.abs(found.exponents - mean).max() > 8 * found.standard_errors.max()

    def test_full_batches_are_the_powers_of_one_matrix(self) -> None:
        model, inputs, targets = tanh_net(), normal(20, 3), normal(20, 1, seed=2)
        hessian = Curvature(model, mse_loss, inputs, targets).dense().numpy()
        for options in ({}, {"momentum": 0.0, "weight_decay": 0.1}):
            found = lyapunov_spectrum(
                model, mse_loss, inputs, targets, learning_rate=0.1, batch_size=20, steps=1000, **options
            )
            shifted = np.linalg.eigvalsh(hessian) + 2 * options.get("weight_decay", 0.0)
            assert found.exponents[0] == pytest.approx(np.log(np.abs(1 - 0.1 * shifted)).max(), abs=1e-3)

    def test_matrix_free_agrees_with_the_product_of_dense_matrices(self) -> None:
        model, inputs, targets = tanh_net(6, 12), normal(64, 6), normal(64, 1, seed=2)
        rate, batch = 0.15, 4
        free = lyapunov_spectrum(
            model, mse_loss, inputs, targets, learning_rate=rate, batch_size=batch, steps=400
        )
        blocks = Curvature(model, mse_loss, inputs, targets).sample_blocks(torch.eye(97).double()).numpy()
        generator = np.random.default_rng(5)

        def sampler(step: int):
            mean = blocks[generator.choice(64, batch, replace=False)].mean(axis=0)
            return lambda v: mean @ v

        dense = top_lyapunov(sampler, 97, rate, steps=1500)
        error = math.hypot(free.standard_errors[0], dense.standard_errors[0])
        assert abs(free.exponents[0] - dense.exponents[0]) < 4 * error
        assert error < 0.05

    def test_one_rate_for_each_parameter(self) -> None:
        inputs = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
        rates = torch.tensor([0.4, 0.05])
        found = lyapunov_spectrum(
            line(2),
            mse_loss,
            inputs,
            torch.zeros(2, 1).double(),
            learning_rate=rates,
            batch_size=2,
            k=2,
            steps=200,
        )
        assert np.exp(found.exponents) == pytest.approx([1 - 0.05 * 4, 1 - 0.4 * 1], abs=1e-3)

    def test_same_seed_same_numbers_and_refusals(self) -> None:
        model, inputs, targets = tanh_net(), normal(8, 3), normal(8, 1, seed=2)

        def run(**options) -> np.ndarray:
            settings = {"learning_rate": 0.1, "batch_size": 2, "steps": 50, **options}
            return lyapunov_spectrum(model, mse_loss, inputs, targets, **settings).growth

        assert np.array_equal(run(), run(progress=True))
        assert not np.array_equal(run(), run(seed=1))
        for wrong, message in (
            ({"batch_size": 9}, r"batch_size must be in \[1, n_samples=8\], got 9"),
            ({"learning_rate": -1.0}, "learning_rate must be finite and > 0, got -1"),
            ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1"),
            ({"weight_decay": -0.1}, "weight_decay must be finite and >= 0"),
            ({"steps": 10}, "steps must be at least 50, got 10"),
            ({"k": 22}, r"k must be in \[1, 21\], got 22"),
            (
                {"learning_rate": torch.ones(3)},
                r"learning_rate must be a number, or have shape \(P,\)=\(21,\)",
            ),
            ({"directions": torch.ones(21, 2000)}, "directions must be"),
        ):
            with pytest.raises(InputError, match=message):
                run(**wrong)
        with pytest.raises(InputError, match="dimension must be at least 1, got 0"):
            top_lyapunov(lambda t: lambda v: v, 0, 0.1)


class TestSampleBlocks:
    def test_are_the_hessians_of_single_samples(self) -> None:
        model, inputs, targets = tanh_net(), normal(6, 3), normal(6, 1, seed=2)
        curvature = Curvature(model, mse_loss, inputs, targets)
        directions = torch.linalg.qr(normal(21, 3))[0]
        blocks = curvature.sample_blocks(directions)
        for i in range(6):
            dense = curvature.on(torch.tensor([i])).dense()
            assert torch.allclose(blocks[i], directions.T @ dense @ directions, atol=1e-12)
        assert torch.allclose(
            curvature.sample_blocks(normal(21)).mean(), curvature.sample_blocks(3 * normal(21)).mean()
        )


class TestSymmetricSaddle:
    """A hidden unit at zero: whether SGD leaves the mirror of its sign, and how fast."""

    RATE, BATCH = 0.3, 1

    def saddle(self, size: int, noise: float) -> tuple[nn.Sequential, Tensor, Tensor]:
        inputs = normal(64, size)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Linear(size, 4, bias=False), nn.Tanh(), nn.Linear(4, 1, bias=False)
        model = nn.Sequential(*layers).double()
        vector = nn.utils.parameters_to_vector(model.parameters()).detach()
        vector[self.unit(size)] = 0.0
        nn.utils.vector_to_parameters(vector, model.parameters())
        targets = model(inputs).detach() + 0.3 * inputs[:, :1] + noise * normal(64, 1, seed=2)
        return model, inputs, targets

    def unit(self, size: int) -> list[int]:
        """Return where the incoming weights and the outgoing weight of unit 1 are among the parameters."""
        return [*range(size, 2 * size), 4 * size + 1]

    def measured_growth(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> np.ndarray:
        """Run torch.optim.SGD so close to zero that all is linear, everything but the unit standing still."""
        home = nn.utils.parameters_to_vector(model.parameters()).detach()
        unit, generator, growth = self.unit(inputs.shape[1]), torch.Generator().manual_seed(4), []
        optimizer = torch.optim.SGD(model.parameters(), lr=self.RATE)
        offset = normal(len(unit), seed=3)
        for _ in range(800):
            vector = home.clone()
            vector[unit] = 1e-6 * offset / offset.norm()
            nn.utils.vector_to_parameters(vector, model.parameters())
            batch = torch.randperm(64, generator=generator)[: self.BATCH]
            optimizer.zero_grad()
            mse_loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            offset = nn.utils.parameters_to_vector(model.parameters()).detach()[unit]
            growth.append(math.log(float(offset.norm()) / 1e-6))
        nn.utils.vector_to_parameters(home, model.parameters())
        return np.array(growth[80:])

    @pytest.mark.parametrize(
        ("size", "noise", "sign"),
        # Noise attracts across few directions and repels across many.
        [(1, 0.0, 1), (1, 1.0, -1), (4, 3.0, 1)],
    )
    def test_exponent_predicts_what_sgd_does(self, size: int, noise: float, sign: int) -> None:
        model, inputs, targets = self.saddle(size, noise)
        out = torch.eye(4 * size + 4, dtype=torch.float64)[:, self.unit(size)]
        assert is_type_ii(model, mse_loss, inputs, targets, directions=out)
        assert not is_type_ii(model, mse_loss, inputs, targets)
        settings = {"learning_rate": self.RATE, "batch_size": self.BATCH, "directions": out}
        found = lyapunov_spectrum(model, mse_loss, inputs, targets, steps=4000, **settings)
        growth = self.measured_growth(model, inputs, targets)
        error = math.hypot(found.standard_errors[0], block_standard_error(growth))
        assert growth.mean() == pytest.approx(found.exponents[0], abs=4 * error)
        assert found.decided
        assert math.copysign(1, growth.mean()) == sign
        # The rival, the Hessian of all samples, sees a saddle that repels in all cases.
        mean = Curvature(model, mse_loss, inputs, targets).sample_blocks(out).mean(dim=0)
        lowest = float(torch.linalg.eigvalsh(mean)[0])
        assert lowest < 0
        if noise:
            assert abs(math.log(1 - self.RATE * lowest) - growth.mean()) > 4 * error


class TestStableLearningRate:
    def test_one_direction(self) -> None:
        # Curvatures 2 x^2 of 0.5 and 8, a sample a step.
        x = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
        found = stable_learning_rate(line(1), mse_loss, x, torch.zeros(2, 1), batch_size=1)
        # (8 l - 1)(1 - l / 2) = 1
        exact = (8.5 - math.sqrt(8.5**2 - 32)) / 8
        assert found.low == 0
        assert found.high == pytest.approx(exact, abs=4 * found.standard_error + 0.002)
        assert found.standard_error < 0.02
        assert found.mean_square == pytest.approx(2 * 4.25 / ((0.25 + 64) / 2))
        assert found.mean_square_exact
        assert found.full_batch == pytest.approx(2 / 4.25)
        assert found.mean_square < found.high
        assert found.stays(0.9 * exact)
        assert not found.stays(1.2 * exact)
        assert str(found).startswith("attracts up to 0.2")

    def test_full_batches_stay_up_to_two_over_the_sharpness(self) -> None:
        model, inputs = tanh_net(), normal(40, 3)
        with torch.no_grad():
            targets = model(inputs)
        for momentum in (0.0, 0.8):
            found = stable_learning_rate(
                model, mse_loss, inputs, targets, batch_size=40, directions=3, momentum=momentum, steps=400
            )
            top = Curvature(model, mse_loss, inputs, targets).highest_eigenvalue()
            assert found.full_batch == pytest.approx(2 * (1 + momentum) / top, rel=1e-3)
            assert found.high == pytest.approx(found.full_batch, rel=0.01)
            assert found.leak < 1e-3
            assert math.isnan(found.mean_square) is (momentum > 0)

    def test_a_saddle_of_the_mean_that_attracts(self) -> None:
        model, inputs, targets = TestSymmetricSaddle().saddle(1, 1.0)
        out = torch.eye(8, dtype=torch.float64)[:, TestSymmetricSaddle().unit(1)]
        found = stable_learning_rate(
            model, mse_loss, inputs, targets, batch_size=1, directions=out, steps=2000
        )
        assert 0 < found.low < TestSymmetricSaddle.RATE < found.high
        assert found.mean_square == 0
        assert found.full_batch == 0
        assert found.lowest_curvature < 0
        assert found.leak < 1e-9
        assert "attracts from" in str(found)

    def test_mean_square_limit_is_where_the_exact_map_has_spectral_radius_one(self) -> None:
        blocks = symmetric(30, 3, mean=2.0)
        for share in (1.0, 0.25):
            limit = mean_square_limit(blocks, share)
            mean = blocks.mean(axis=0)
            radii = []
            for rate in (0.99 * limit, limit, 1.01 * limit):
                first = np.eye(3) - rate * mean
                spread = sum(np.kron(h - mean, h - mean) for h in blocks) / 30
                radii.append(
                    np.abs(np.linalg.eigvals(np.kron(first, first) + rate**2 * share * spread)).max()
                )
            assert radii[0] < 1 < radii[2]
            assert radii[1] == pytest.approx(1, abs=1e-10)

    def test_mean_square_ignores_directions_without_any_curvature(self) -> None:
        blocks = np.zeros((2, 2, 2))
        blocks[:, 0, 0] = [1.0, 3.0]
        assert mean_square_limit(blocks, 1.0) == pytest.approx(2 * 2 / 5)
        assert mean_square_limit(np.zeros((2, 2, 2)), 1.0) == math.inf
        assert mean_square_limit(-blocks, 1.0) == 0.0

    def test_fewer_directions_bound_from_above(self) -> None:
        model, inputs = tanh_net(), normal(40, 3)
        with torch.no_grad():
            targets = model(inputs)
        few, many = (
            stable_learning_rate(model, mse_loss, inputs, targets, batch_size=2, directions=d, steps=100)
            for d in (1, 6)
        )
        assert not few.mean_square_exact
        assert few.mean_square >= many.mean_square


def test_many_rates_at_once_are_the_single_runs() -> None:
    matrices = symmetric(60, 3)
    start = np.random.default_rng(1).standard_normal((1, 3, 2))
    together = propagate(lambda t, v: matrices[t] @ v, np.tile(start, (2, 1, 1)), [0.1, 0.5], 60)
    for column, rate in enumerate((0.1, 0.5)):
        alone = propagate(lambda t, v: matrices[t] @ v, start, [rate], 60)
        assert np.allclose(together[:, column], alone[:, 0], atol=1e-12)
