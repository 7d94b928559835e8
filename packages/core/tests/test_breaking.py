"""Jump times, plateaus and restored modes against gradient flow itself, and the reading of logs."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.symmetry.breaking import (
    predict_jump_times,
    predict_mode_growth,
    predict_mode_strengths,
    predict_plateau_losses,
    restored_modes,
    transitions,
)
from symdyn_core.symmetry.kinds import Permutation
from symdyn_core.symmetry.mirror import GroupProjector
from symdyn_core.symmetry.units import Axis, Units

STRENGTHS = np.array([4.0, 2.0, 1.0])


def problem(seed: int, hidden: int = 12, scale: float = 1e-4) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((5, 3)))[0]
    right = np.linalg.qr(generator.standard_normal((6, 3)))[0]
    first, second = generator.standard_normal((hidden, 6)), generator.standard_normal((5, hidden))
    return (left * STRENGTHS) @ right.T, scale * first, scale * second, left, right


def flow(
    target: np.ndarray, first: np.ndarray, second: np.ndarray, dt: float, steps: int, decay: float = 0.0
):
    for _ in range(steps):
        yield first, second
        residual = target - second @ first
        slopes = second.T @ residual - 2 * decay * first, residual @ first.T - 2 * decay * second
        first, second = first + dt * slopes[0], second + dt * slopes[1]


@pytest.mark.parametrize("hidden", [12, 4])
def test_modes_follow_the_predicted_growth(hidden: int) -> None:
    target, first, second, left, right = problem(3, hidden)
    dt = 2e-3
    path = np.array([np.diag(left.T @ w2 @ w1 @ right) for w1, w2 in flow(target, first, second, dt, 6000)])
    jumps = [dt * float((path[:, k] > s / 2).argmax()) for k, s in enumerate(STRENGTHS)]
    predicted = predict_jump_times(target, first, second)
    # Euler steps of s dt / 2 = 0.4 % for the first mode, less for the others.
    assert jumps == pytest.approx(predicted, rel=0.005)
    growth = predict_mode_growth(target, first, second, dt * np.arange(6000))
    assert np.abs(growth[:, 2] - path[:, 2]).max() < 0.01


def test_components_along_learned_directions_do_not_count() -> None:
    # The third mode starts along the hidden direction of the first, but for a small rest.
    target = np.diag(STRENGTHS)
    first = 1e-4 * np.array([[1.0, 0, 1.0], [0, 1.0, 0], [0, 0, 0.1]])
    times = predict_jump_times(target, first, first.T)
    assert times[2] == pytest.approx(math.log(1 / (0.1e-4) ** 2 - 1) / 2)
    path = [w2[2] @ w1[:, 2] for w1, w2 in flow(target, first, first.T, 2e-3, 7000)]
    assert 2e-3 * float((np.array(path) > 0.5).argmax()) == pytest.approx(times[2], rel=0.003)


def test_a_mode_without_a_hidden_direction_of_its_own_is_never_learned() -> None:
    times = predict_jump_times(np.diag(STRENGTHS), 1e-3 * np.ones((2, 3)), 1e-3 * np.ones((3, 2)))
    assert np.isfinite(times[0])
    assert np.isinf(times[1:]).all()
    growth = predict_mode_growth(np.diag(STRENGTHS), 1e-3 * np.ones((2, 3)), 1e-3 * np.ones((3, 2)), [50.0])
    assert growth[0].tolist() == pytest.approx([4.0, 0.0, 0.0])


@pytest.mark.parametrize("decay", [0.25, 0.75, 1.25, 2.25])
def test_weight_decay_leaves_what_is_predicted(decay: float) -> None:
    target, first, second, *_ = problem(1, scale=0.3)
    *_, (w1, w2) = flow(target, first, second, 0.02, 1500, decay)
    left = np.linalg.svd(w2 @ w1, compute_uv=False)[:3]
    assert left == pytest.approx(predict_mode_strengths(STRENGTHS, decay), abs=1e-4)
    assert restored_modes(STRENGTHS, decay) == tuple(np.flatnonzero(left < 1e-3).tolist())


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_plateaus_are_sums_over_modes_not_yet_learned(values: list[float]) -> None:
    losses, ordered = predict_plateau_losses(values), sorted(values, reverse=True)
    for r in range(len(values) + 1):
        assert losses[r] == pytest.approx(0.5 * sum(s * s for s in ordered[r:]), abs=1e-12)


def test_a_kick_grows_at_the_rate_of_the_broken_block() -> None:
    # Two tied units fitted to two opposite bumps: the tied state is a saddle.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    targets = (2 * inputs[:, :1]).tanh() - (inputs[:, :1] + 2 * inputs[:, 1:]).tanh()
    shapes = {"w": (2, 2), "v": (1, 2)}

    def loss(vector: Tensor) -> Tensor:
        w, v = vector[:4].reshape(2, 2), vector[4:].reshape(1, 2)
        return 0.5 * ((inputs @ w.T).tanh() @ v.T - targets).square().mean()

    def as_params(vector: Tensor) -> dict[str, Tensor]:
        return {"w": vector[:4].reshape(shapes["w"]), "v": vector[4:].reshape(shapes["v"])}

    def descend(theta: Tensor, rate: float, steps: int, tie: GroupProjector | None = None) -> Tensor:
        for _ in range(steps):
            theta = theta.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(theta), theta)
            theta = (theta - rate * slope).detach()
            if tie is not None:
                fixed = tie.project(as_params(theta))
                theta = torch.cat([fixed["w"].flatten(), fixed["v"].flatten()])
        return theta

    swap = GroupProjector.swap(Permutation(Units("w", 2, (Axis("w", 0),), (Axis("v", 1),))), 0, 1)
    tied = descend(torch.tensor([0.5, 0.3, 0.5, 0.3, 0.4, 0.4], dtype=torch.float64), 0.5, 1500, swap)
    split = swap.split_hessian(torch.autograd.functional.hessian(loss, tied), as_params(tied))
    rates = torch.linalg.eigvalsh(split.broken)
    assert rates[0] < -0.01  # a saddle
    assert torch.linalg.eigvalsh(split.symmetric)[0] > -1e-6  # of tied states a minimum
    kicked = tied + 1e-7 * torch.tensor([1, 0.5, -1, -0.5, 0.3, -0.3], dtype=torch.float64)
    early = descend(kicked, 0.05, 250)
    late = descend(early, 0.05, 150)
    growth = math.log(swap.delta(as_params(late)) / swap.delta(as_params(early))) / 150
    assert growth == pytest.approx(math.log(1 - 0.05 * float(rates[0])), rel=0.02)


class TestTransitions:
    LOG = (
        {"step": 0, "loss": 4.0, "clusters": 2, "rank": 0},
        {"step": 10, "loss": 3.0, "clusters": 3, "rank": 0},
        {"step": 20, "loss": 2.9, "clusters": 3, "rank": 0},
        {"step": 30, "loss": 3.5, "clusters": 3, "rank": 1},
    )

    def test_are_changes_of_clusters_or_rank(self) -> None:
        found = transitions(self.LOG)
        assert [(change.step, change.before, change.after) for change in found] == [
            (10, (2, 0), (3, 0)),
            (30, (3, 0), (3, 1)),
        ]
        assert [change.loss_change for change in found] == pytest.approx([-1.0, 0.6])

    def test_reads_a_table_as_it_reads_records(self) -> None:
        assert transitions(pd.DataFrame(self.LOG)) == transitions(self.LOG)
        assert transitions([]) == []

    def test_refusals(self) -> None:
        with pytest.raises(InputError, match="entry 0 of the log must have 'rank', got step, loss, clusters"):
            transitions([{"step": 0, "loss": 1.0, "clusters": 1}])
        with pytest.raises(InputError, match="steps must increase, got 0 after 30"):
            transitions([self.LOG[3], self.LOG[0]])


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"second @ first must have the shape \(2, 2\) of target"):
        predict_jump_times(np.eye(2), np.ones((3, 2)), np.ones((2, 4)))
    with pytest.raises(InputError, match="the start must be small: mode 0 of strength 1 starts at"):
        predict_jump_times([[1.0]], [[2.0]], [[2.0]])
    with pytest.raises(InputError, match="target must be a matrix"):
        predict_jump_times([1.0], [[2.0]], [[2.0]])
    with pytest.raises(InputError, match="singular_values must be finite and not negative"):
        predict_plateau_losses([1.0, -1.0])
    with pytest.raises(InputError, match="weight_decay must be finite and >= 0, got -1"):
        restored_modes([1.0], -1.0)
