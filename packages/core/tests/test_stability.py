"""Probabilistic stability along one direction against closed forms and the numbers of a random walk."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

from symdyn_core.dynamics.effective_rate import effective_learning_rate
from symdyn_core.dynamics.pathological import periodic_max, product_net, sharp_vs_flat
from symdyn_core.dynamics.stability import (
    escape_time_estimate,
    is_type_ii,
    largest_sample_gradient,
    log_drift,
    lyapunov_exponent,
    max_collapse_free_learning_rate,
    saddle_phase,
    stability,
)
from symdyn_core.dynamics.windows import attracting_learning_rates, attractive_learning_rate_intervals
from symdyn_core.errors import InputError

curvatures = st.lists(st.floats(-4, 4).filter(lambda h: abs(h) > 1e-2), min_size=1, max_size=8)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("rate", "exponent"), [(0.1, 0.0385), (0.3, 0.0567), (0.6, -0.0639), (0.9, -0.6365), (1.2, -0.1928)]
    )
    def test_a_maximum_that_attracts_grows_in_every_moment(self, rate: float, exponent: float) -> None:
        verdict = stability([1.0, -2.0], rate)
        assert verdict.exponent.value == pytest.approx(exponent, abs=1e-4)
        assert verdict.probability is (exponent < 0)
        assert not verdict.l1
        assert not verdict.l2
        assert verdict.second_moment == pytest.approx(((1 - rate) ** 2 + (1 + 2 * rate) ** 2) / 2)

    @settings(deadline=None, max_examples=30)
    @given(curvatures, st.floats(0.01, 2))
    def test_the_notions_are_nested(self, values: list[float], rate: float) -> None:
        verdict = stability(values, rate)
        assert verdict.probability or not verdict.l1  # Jensen
        assert verdict.l1 or not verdict.l2
        if np.mean(values) < 0:
            assert not verdict.l1

    def test_small_learning_rates_follow_the_expansion(self) -> None:
        values, rate = np.array([0.7, -1.3, 2.0]), 1e-3
        expansion = -rate * values.mean() - rate**2 / 2 * np.square(values).mean()
        assert lyapunov_exponent(values, rate).value == pytest.approx(expansion, abs=1e-8)

    def test_standard_error_is_that_of_a_mean(self) -> None:
        values = np.random.default_rng(0).normal(size=400)
        logs = np.log(np.abs(1 - 0.3 * values))
        assert stability(values, 0.3).standard_error == pytest.approx(logs.std() / 20, rel=0.1)

    def test_landing_on_the_point(self) -> None:
        verdict = stability([2.0, -5.0], 0.5)
        assert verdict.exponent.value == -math.inf
        assert verdict.probability
        assert verdict.standard_error == 0
        assert log_drift([2.0, -5.0], 0.5) == -math.inf

    def test_weight_decay_shifts_every_curvature(self) -> None:
        assert stability([1.0, -2.0], 0.3, 0.25).exponent.value == pytest.approx(
            stability([1.5, -1.5], 0.3).exponent.value
        )


class TestWindows:
    @settings(deadline=None, max_examples=30)
    @given(curvatures, st.integers(0, 1000))
    def test_the_exponent_is_negative_inside_and_nowhere_else(self, values: list[float], seed: int) -> None:
        windows = attractive_learning_rate_intervals(values)
        ends = np.array([end for window in windows for end in window])
        assert (np.diff(ends) > 0).all()
        top = 1.2 * ends[-1] if ends.size else 3.0
        rates = np.random.default_rng(seed).uniform(1e-6, top, 200)
        if ends.size:  # so near a border the sign is that of rounding
            rates = rates[np.abs(rates[:, None] / np.maximum(ends, 1e-9) - 1).min(axis=1) > 1e-8]
        poles = np.array([1 / h for h in values if h > 0])
        if poles.size:
            rates = rates[np.abs(rates[:, None] / poles - 1).min(axis=1) > 1e-8]
        for rate in rates:
            inside = any(low < rate < high for low, high in windows)
            assert inside == (log_drift(values, rate) < 0)

    def test_windows_accumulate_at_the_inverse_curvatures(self) -> None:
        values = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
        windows = attractive_learning_rate_intervals(values)
        for pole in 1 / values:
            assert any(low < pole < high for low, high in windows)
        assert len(windows) > 1

    def test_agrees_with_the_scan_for_samples(self) -> None:
        values = [-2.6, 1.4, 0.3, -0.2]
        assert attractive_learning_rate_intervals(values)[0] == pytest.approx(
            attracting_learning_rates(values), rel=1e-8
        )

    def test_probabilities_decide(self) -> None:
        # p log(1 - l) + (1 - p) log(1 + 2 l) = 0 at l = 1/2 for p = 1/2; a rarer push out attracts earlier.
        even = attractive_learning_rate_intervals([1.0, -2.0], [1, 1])[0][0]
        rare = attractive_learning_rate_intervals([1.0, -2.0], [0.6, 0.4])[0][0]
        assert even == pytest.approx(0.5, abs=1e-12)
        assert rare < even
        assert 0.6 * math.log(1 - rare) + 0.4 * math.log(1 + 2 * rare) == pytest.approx(0, abs=1e-12)

    def test_edge_cases(self) -> None:
        assert attractive_learning_rate_intervals([-1.0, -3.0]) == []
        assert attractive_learning_rate_intervals([0.0]) == []
        assert attractive_learning_rate_intervals([4.0]) == [(0.0, pytest.approx(0.5))]
        assert attractive_learning_rate_intervals([4.0, 4.0], weight_decay=0.5) == [(0.0, pytest.approx(0.4))]
        many = attractive_learning_rate_intervals([4.0, 1.0, 0.1])
        assert attractive_learning_rate_intervals([4.0, 1.0, 0.1], thinnest=0.1) == many[:1]


class TestPhases:
    @pytest.mark.parametrize(
        ("signal", "noise", "rate", "phase", "right", "wrong"),
        [
            (1.0, 0.3, 0.1, "correct", 0.095, -0.106),
            (0.3, 1.0, 0.2, "correct", 0.040, -0.085),
            (0.05, 1.0, 0.8, "collapse", -0.409, -0.634),
            (0.2, 3.0, 1.0, "unstable", 1.011, 1.062),
            (0.5, 1.5, 0.8, "incorrect", -0.327, 0.038),
        ],
    )
    def test_the_five_cases(
        self, signal: float, noise: float, rate: float, phase: str, right: float, wrong: float
    ) -> None:
        found = saddle_phase([signal + noise, signal - noise], rate)
        assert found.phase == phase
        assert found.right.value == pytest.approx(right, abs=6e-4)
        assert found.wrong.value == pytest.approx(wrong, abs=6e-4)
        mirrored = saddle_phase([-signal + noise, -signal - noise], rate)
        assert (mirrored.phase, mirrored.right.value) == (phase, pytest.approx(found.right.value))

    def test_correct_in_mean_square_or_in_probability_only(self) -> None:
        assert saddle_phase([1.3, -0.7], 0.2).numeral == "Ib"
        assert saddle_phase([1.3, -0.7], 0.62).numeral == "Ia"  # E(1 - 0.62 z)^2 = 1.05

    def test_a_larger_batch_makes_collapse_harder(self) -> None:
        single = [1.05, -0.95]
        rates = [max_collapse_free_learning_rate(single, size) for size in (1, 2, 4, 16)]
        assert rates == sorted(rates)
        assert rates[0] == pytest.approx(2 * 0.05 / (1 - 0.05**2), rel=1e-9)
        # Two samples: z = 1.05, 0.05 twice, -0.95.
        exact = attractive_learning_rate_intervals([-1.05, -0.05, 0.95], [1, 2, 1])[0][0]
        assert rates[1] == pytest.approx(exact, rel=0.05)
        assert max_collapse_free_learning_rate([1.0, 2.0]) == math.inf
        assert max_collapse_free_learning_rate([1.0, -1.0]) == 0.0


class TestEscape:
    def test_a_random_walk_takes_as_long(self) -> None:
        # From 1e-12 to 1e-6 and no further: the walk of log|w| is exact, and Wald's identity too.
        generator, rate = np.random.default_rng(0), 0.3
        walk = np.log(np.abs(1 - rate * generator.choice([1.0, -2.0], size=(400, 4000)))).cumsum(axis=1)
        first, second = ((walk > size).argmax(axis=1).mean() for size in (0.0, math.log(1e6)))
        expected = escape_time_estimate([1.0, -2.0], rate, 1e-12, radius=1e-6)
        assert second - first == pytest.approx(expected, rel=0.06)

    def test_diverges_at_the_edge_while_the_mean_curvature_stays(self) -> None:
        times = [escape_time_estimate([1.0, -2.0], rate, 1e-6) for rate in (0.3, 0.4, 0.45, 0.499)]
        assert [round(time) for time in times[:3]] == [244, 359, 628]
        assert times[3] > 2e4
        assert escape_time_estimate([1.0, -2.0], 0.5 + 1e-9, 1e-6) == math.inf


def product(first: float, second: float) -> nn.Sequential:
    net = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 1, 1, bias=False) for _ in range(2)))
    nn.init.constant_(net[0].weight, first)
    nn.init.constant_(net[1].weight, second)
    return net


class TestTypeTwo:
    def test_origin_of_a_product_and_not_its_minimum_with_noise(self) -> None:
        x, y = torch.ones(2, 1), torch.tensor([[1.0], [-0.5]])
        assert is_type_ii(product(0, 0), mse_loss, x, y)
        assert not is_type_ii(product(0.5, 0.5), mse_loss, x, y)  # a sample's slope is not the mean's
        # |dl/du| = |2 (uw - y) w| with w = 0.5: the largest is 2 * 0.75 * 0.5, in both weights.
        found = largest_sample_gradient(product(0.5, 0.5), mse_loss, x, y)
        assert found == pytest.approx(0.75 * math.sqrt(2))

    def test_along_some_directions_only(self) -> None:
        x, y = torch.ones(2, 1), torch.tensor([[1.0], [-0.5]])
        antisymmetric = torch.tensor([1.0, -1.0])
        assert is_type_ii(product(0.5, 0.5), mse_loss, x, y, directions=antisymmetric)


class TestLandscapes:
    @pytest.mark.parametrize("landscape", [periodic_max(), sharp_vs_flat(), product_net()])
    def test_slopes_and_curvatures_are_those_of_the_losses(self, landscape) -> None:
        step = 1e-4
        for sample in landscape.samples:
            for point in landscape.points.values():
                position = point.position
                rotation = np.eye(1) if position.ndim == 0 else np.array([[1, 1], [1, -1]]) / math.sqrt(2)
                assert np.allclose(landscape.sample_gradient(position, sample), 0, atol=1e-15)
                for direction, values in zip(rotation, point.curvatures, strict=True):
                    move = step * (direction[0] if position.ndim == 0 else direction)
                    around = [landscape.sample_loss(position + k * move, sample) for k in (-1, 0, 1)]
                    measured = (around[0] - 2 * around[1] + around[2]) / step**2
                    assert measured == pytest.approx(values[landscape.samples == sample][0], abs=1e-6)
            away = np.full(np.shape(position), 0.7) * (1 if position.ndim == 0 else np.array([1.0, 0.4]))
            slope = np.atleast_1d(landscape.sample_gradient(away, sample))
            for axis, direction in enumerate(np.eye(slope.size)):
                move = 1e-5 * (direction[0] if position.ndim == 0 else direction)
                change = landscape.sample_loss(away + move, sample) - landscape.sample_loss(
                    away - move, sample
                )
                assert change / 2e-5 == pytest.approx(slope[axis], abs=1e-8)

    def test_mean_and_draws(self) -> None:
        landscape = periodic_max((2.0, -3.0), (0.25, 0.75))
        assert float(landscape.gradient(1.0)) == pytest.approx(-1.75 * math.sin(1))
        drawn = landscape.draw(4000, np.random.default_rng(0))
        assert (drawn == 2.0).mean() == pytest.approx(0.25, abs=0.03)

    def test_windows_of_the_periodic_landscape(self) -> None:
        landscape = periodic_max()
        root = math.sqrt(17)
        for rate, maximum, minimum in ((0.3, False, True), (0.6, True, True), (0.9, True, False)):
            assert landscape.attracts("max", rate) is maximum
            assert landscape.attracts("min", rate) is minimum
        for point, edge in (("max", (1 + root) / 4), ("min", (root - 1) / 4), ("max", 0.5)):
            assert landscape.exponents_at(point, edge)[0] == pytest.approx(0, abs=1e-12)


class TestEffectiveLearningRate:
    def one_step(self, make, slope: float = 3.0, steps: int = 1) -> float:
        weight = nn.Parameter(torch.tensor([2.0]))
        optimizer = make([weight])
        for _ in range(steps):
            optimizer.zero_grad()
            (slope * weight).sum().backward()
            before = weight.item()
            optimizer.step()
        moved = (before - weight.item()) / slope
        found = float(effective_learning_rate(optimizer))
        assert moved == pytest.approx(found, rel=1e-4)
        return found

    def test_is_what_one_step_moves_by_per_slope(self) -> None:
        optim = torch.optim
        assert self.one_step(lambda p: optim.SGD(p, lr=0.1)) == pytest.approx(0.1)
        for amsgrad in (False, True):
            found = self.one_step(
                lambda p, a=amsgrad: optim.Adam(p, lr=0.1, betas=(0.0, 0.9), amsgrad=a), steps=3
            )
            assert found == pytest.approx(0.1 / 3, rel=1e-6)
        self.one_step(lambda p: optim.AdamW(p, lr=0.1, betas=(0.0, 0.9), weight_decay=0.0), steps=2)
        self.one_step(lambda p: optim.RMSprop(p, lr=0.1), steps=2)
        self.one_step(lambda p: optim.RMSprop(p, lr=0.1, centered=True), steps=2)
        self.one_step(lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.3), steps=3)

    def test_order_and_refusals(self) -> None:
        pair = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
        groups = [{"params": pair[:1]}, {"params": pair[1:], "lr": 0.5}]
        assert effective_learning_rate(torch.optim.SGD(groups, lr=0.1)).tolist() == [0.1, 0.1, 0.5]
        with pytest.raises(InputError, match="optimizer must have taken at least one step"):
            effective_learning_rate(torch.optim.Adam(pair))
        rprop = torch.optim.Rprop(pair)
        for parameter in pair:
            parameter.grad = torch.ones_like(parameter)
        rprop.step()
        with pytest.raises(InputError, match="optimizer must be SGD, Adam, .* got Rprop"):
            effective_learning_rate(rprop)


def test_refusals() -> None:
    with pytest.raises(InputError, match="learning_rate must be finite and > 0, got 0"):
        stability([1.0], 0)
    with pytest.raises(
        InputError, match=r"h_values must be a finite vector of length >= 1, got shape \(0,\)"
    ):
        stability([], 0.1)
    with pytest.raises(InputError, match="probabilities must be 2 positive numbers, got"):
        attractive_learning_rate_intervals([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="thinnest must be finite and >= 0, got -1"):
        attractive_learning_rate_intervals([1.0], thinnest=-1)
    with pytest.raises(InputError, match=r"delta must be in \(0, radius=1.0\), got 2"):
        escape_time_estimate([1.0], 0.1, 2)
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        max_collapse_free_learning_rate([1.0], 0)
    with pytest.raises(InputError, match="tol must be > 0, got 0"):
        is_type_ii(product(0, 0), mse_loss, torch.ones(2, 1), torch.ones(2, 1), tol=0)
    with pytest.raises(InputError, match=r"directions must have shape \(P, d\) with P=2 .*, got \(3,\)"):
        is_type_ii(product(0, 0), mse_loss, torch.ones(2, 1), torch.ones(2, 1), directions=torch.ones(3))
    with pytest.raises(InputError, match="directions must be linearly independent"):
        is_type_ii(product(0, 0), mse_loss, torch.ones(2, 1), torch.ones(2, 1), directions=torch.ones(2, 2))
    with pytest.raises(InputError, match="x_values must have a negative mean, got 1"):
        periodic_max((1.0, 1.0))
    with pytest.raises(InputError, match="b_values must have a positive mean"):
        sharp_vs_flat((-1.0,))
    with pytest.raises(InputError, match="unknown point 'minn' of periodic_max; did you mean min"):
        periodic_max().exponents_at("minn", 0.1)
