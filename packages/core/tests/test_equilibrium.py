"""Noise equilibria against numerical minimisation, other starts on the orbit, and the paper's example."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.optimize import linprog, minimize, minimize_scalar
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import Params
from symdyn_core.symmetry.charges import ExponentialSymmetry, Step, charge_drift
from symdyn_core.symmetry.equilibrium import (
    Term,
    commuting_noise_equilibrium,
    general_linear_noise_equilibrium,
    linear_net_noise_equilibrium,
    noise_balance,
    noise_equilibrium,
    noise_forms,
    orbit_minimum,
    symmetry_noise,
)
from symdyn_core.symmetry.gradients import GradientMoments
from symdyn_core.symmetry.kinds import (
    GeneralLinear,
    Permutation,
    PositiveRescaling,
    ScaleInvariance,
    Symmetry,
)
from symdyn_core.symmetry.units import Axis, Units

Array = NDArray[np.float64]
LAYER = Units("0", 3, (Axis("w", 0), Axis("b", 0)), (Axis("v", 1),))
RESCALING = PositiveRescaling(LAYER)
LINEAR = GeneralLinear(LAYER, fan_in=5, fan_out=4)


def positive_definite(size: int, seed: int) -> Array:
    root = np.random.default_rng(seed).standard_normal((size, size + 2))
    return np.asarray(root @ root.T / size)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed: int = 0, samples: int = 40) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters and per-sample gradients with unequal noise."""
    params = {"w": normal((3, 4), seed), "b": normal((3,), seed + 1), "v": normal((4, 3), seed + 2)}
    scale = {"w": 0.2, "b": 1.0, "v": 3.0}
    gradients = {
        name: 0.5 + scale[name] * normal((samples, *value.shape), seed + 10 + len(value.shape) + len(name))
        for name, value in params.items()
    }
    gradients["v"] = gradients["v"].flip(0) * torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    return params, gradients


def covector(symmetry: Symmetry, gradients: Params, element: Tensor) -> dict[str, Tensor]:
    """Return the gradients at the parameters that the element leads to."""
    inverse = torch.linalg.inv(element).T if element.ndim == 2 else 1 / element
    return dict(torch.func.vmap(lambda gradient: symmetry.act(gradient, inverse))(dict(gradients)))


@given(size=st.integers(2, 6), seed=st.integers(0, 10_000), shift=st.floats(-1, 1))
def test_equilibrium_is_the_least_noise_and_does_not_depend_on_the_start(
    size: int, seed: int, shift: float
) -> None:
    generator = np.random.default_rng(seed).standard_normal((size, size))
    generator = (generator + generator.T) / 2
    covariance = positive_definite(size, seed + 1)
    if np.linalg.eigvalsh(generator)[0] * np.linalg.eigvalsh(generator)[-1] > 0:
        return

    def noise(at: float) -> float:
        inverse = expm(-at * generator)
        return math.log(np.trace(inverse @ covariance @ inverse))

    found = noise_equilibrium(generator, covariance)
    least = minimize_scalar(noise, bracket=(found - 1, found + 1), tol=1e-12)
    assert noise(found) <= least.fun + 1e-12
    drift = np.trace(expm(-2 * found * generator) @ generator @ covariance)
    assert abs(drift) < 1e-8 * np.exp(noise(found)) * np.abs(generator).max()
    inverse = expm(-shift * generator)
    elsewhere = noise_equilibrium(generator, inverse @ covariance @ inverse)
    assert elsewhere == pytest.approx(found - shift, abs=1e-7)


def test_noise_on_one_side_only_runs_away() -> None:
    assert noise_equilibrium([1.0, -1.0], np.diag([1.0, 0.0])) == math.inf
    assert noise_equilibrium([1.0, -1.0], np.diag([0.0, 1.0])) == -math.inf
    assert noise_equilibrium(np.eye(3), positive_definite(3, 0)) == math.inf
    assert math.isnan(noise_equilibrium([1.0, -1.0, 0.0], np.diag([0.0, 0.0, 1.0])))


@pytest.mark.parametrize(
    ("generator", "covariance", "message"),
    [
        ([[0.0, 1.0], [0.0, 0.0]], np.eye(2), "generator must be symmetric"),
        ([1.0, -1.0], np.eye(3), "must have one size, got 2 and 3"),
        ([1.0, math.nan], np.eye(2), "generator must be finite"),
        ([1.0, -1.0], [1.0, 1.0], "noise_covariance must be a square matrix"),
        ([0.0, 0.0], np.eye(2), "generator must not be zero"),
    ],
)
def test_bad_matrices_are_refused(generator: object, covariance: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        noise_equilibrium(generator, covariance)  # type: ignore[arg-type]


def test_extreme_scales_stay_exact() -> None:
    large = torch.tensor([1e200, 1e-200, 1.0], dtype=torch.float64)
    found = orbit_minimum([Term(-1.0, 1 / large), Term(1.0, large)])
    expected = torch.tensor([-100.0, 100.0, 0.0], dtype=torch.float64) * math.log(10)
    assert torch.allclose(found, expected, rtol=1e-12)


@given(generators=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_commuting_family_is_the_least_noise(generators: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    powers = random.standard_normal((generators, 12))
    noise = np.exp(2 * random.standard_normal(12))
    try:
        point = commuting_noise_equilibrium(powers, noise)
    except InputError:
        # Dual: then the origin is not inside the convex hull of the exponents.
        inside = linprog(
            np.zeros(12),
            A_eq=np.vstack([powers, np.ones(12)]),
            b_eq=[0.0] * generators + [1.0],
            bounds=(1e-7, 1),
        )
        assert inside.status == 2
        return
    forces = powers @ (noise * np.exp(-2 * point @ powers))
    total = (noise * np.exp(-2 * point @ powers)).sum()
    assert np.abs(forces).max() < 1e-9 * total
    if generators == 1:
        assert point[0] == pytest.approx(noise_equilibrium(powers[0], np.diag(noise)), abs=1e-9)


def test_commuting_family_names_the_way_out() -> None:
    with pytest.raises(InputError, match=r"runs away along \[0.0, 1.0\]"):
        commuting_noise_equilibrium([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], [1.0, 1.0, 1.0])
    # Directions that change nothing stay at zero.
    assert commuting_noise_equilibrium([[1.0, -1.0], [1.0, -1.0]], [16.0, 1.0]) == pytest.approx(
        [math.log(2) / 2] * 2
    )
    with pytest.raises(InputError, match="noise must be >= 0"):
        commuting_noise_equilibrium([[1.0, -1.0]], [1.0, -1.0])
    with pytest.raises(InputError, match=r"exponents must have shape \(k, P=3\)"):
        commuting_noise_equilibrium([[1.0, -1.0]], [1.0, 1.0, 1.0])


def test_general_linear_equilibrium_is_the_least_noise() -> None:
    incoming, outgoing = (torch.tensor(positive_definite(3, seed)) for seed in (1, 2))
    found = general_linear_noise_equilibrium(incoming, outgoing)
    assert found is not None
    inverse = torch.linalg.inv(found)
    assert torch.allclose(inverse.T @ incoming @ inverse, found @ outgoing @ found.T, rtol=1e-11)

    def noise(entries: Array) -> float:
        matrix = entries.reshape(3, 3)
        there = np.linalg.inv(matrix)
        return float(np.trace(there.T @ incoming.numpy() @ there + matrix @ outgoing.numpy() @ matrix.T))

    least = minimize(noise, np.eye(3).ravel(), tol=1e-12)
    assert noise(found.numpy()) <= least.fun + 1e-9
    assert torch.allclose(
        found.T @ found, torch.tensor(least.x.reshape(3, 3).T @ least.x.reshape(3, 3)), rtol=1e-3
    )


def test_general_linear_noise_on_one_side_runs_away() -> None:
    flat = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert general_linear_noise_equilibrium(flat, torch.eye(2, dtype=torch.float64)) is None
    assert general_linear_noise_equilibrium(torch.eye(2, dtype=torch.float64), 0 * flat) is None


V = np.array([[1.5, 0.3], [0.0, 0.8]])
SIGMA_X, SIGMA_EPS = np.diag([0.3, 1.0]), np.diag([1.6, 0.4])


def test_the_papers_linear_net() -> None:
    u, w = linear_net_noise_equilibrium(V, SIGMA_X, SIGMA_EPS, dim=2)
    assert np.allclose(u @ w, V, atol=1e-14)
    noise_of_w, noise_of_u = w @ SIGMA_X @ w.T / 1.3, u.T @ SIGMA_EPS @ u / 2.0
    assert np.allclose(noise_of_w, noise_of_u, atol=1e-14)
    assert np.diag(u @ u.T) == pytest.approx([0.853, 1.524], abs=5e-4)
    assert np.trace(u.T @ SIGMA_EPS @ u) == pytest.approx(1.974, abs=5e-4)
    assert np.trace(w @ SIGMA_X @ w.T) == pytest.approx(1.283, abs=5e-4)


@given(seed=st.integers(0, 1000), extra=st.integers(0, 2))
def test_any_linear_net_agrees_with_the_general_linear_group(seed: int, extra: int) -> None:
    random = np.random.default_rng(seed)
    target = random.standard_normal((3, 4))
    inputs, labels = positive_definite(4, seed + 1), positive_definite(3, seed + 2)
    u, w = linear_net_noise_equilibrium(target, inputs, labels, dim=3 + extra)
    assert u.shape == (3, 3 + extra)
    assert w.shape == (3 + extra, 4)
    assert np.allclose(u @ w, target, atol=1e-9)
    # From another point of the orbit, by the other closed form. <GG^T> = 4 Tr Sx Se and <G^TG> = 4 Tr Se Sx.
    start_u = random.standard_normal((3, 3))
    start_w = np.linalg.solve(start_u, target)
    incoming = torch.tensor(start_u.T @ labels @ start_u * np.trace(inputs))
    outgoing = torch.tensor(start_w @ inputs @ start_w.T * np.trace(labels))
    element = general_linear_noise_equilibrium(incoming, outgoing)
    assert element is not None
    there = start_u @ np.linalg.inv(element.numpy())
    assert np.allclose(there @ there.T, u @ u.T, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 1}, "dim must be a whole number >= 2, the rank of target, got 1"),
        ({"second_moment": np.eye(3)}, "second_moment must have shape"),
        ({"label_covariance": np.diag([1.0, 0.0])}, "label_covariance must be positive definite"),
        ({"target": [1.0, 2.0]}, "target must have shape"),
    ],
)
def test_linear_net_refuses(change: dict[str, object], message: str) -> None:
    given = {"target": V, "second_moment": SIGMA_X, "label_covariance": SIGMA_EPS, "dim": 2, **change}
    with pytest.raises(InputError, match=message):
        linear_net_noise_equilibrium(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetry", [RESCALING, LINEAR], ids=["rescaling", "general linear"])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_drift_vanishes_at_the_equilibrium(symmetry: Symmetry, decay: float) -> None:
    params, gradients = layer()
    step = Step(0.1, 4, 40, decay)
    moments = GradientMoments.of([gradients], noise_forms([symmetry]))
    noise = symmetry_noise([symmetry], moments, params)[0]
    element = noise.factors(step.noise_factor, step.decay_factor)
    assert element is not None
    there = symmetry.act(params, element)
    drift = charge_drift(symmetry, covector(symmetry, gradients, element), there, 0.1, 4, decay)
    scale = float(drift.noise.abs().max() + noise.noise.max() * step.noise_factor)
    assert float((drift.noise + drift.weight_decay).abs().max()) < 1e-11 * scale
    before = charge_drift(symmetry, gradients, params, 0.1, 4, decay)
    assert float((before.noise + before.weight_decay).abs().max()) > 1e-2 * scale


def test_balance_lies_between_the_extremes_and_has_the_sign_of_the_drift() -> None:
    params, gradients = layer()
    balance = noise_balance(RESCALING, gradients)
    assert bool((balance.abs() <= 1).all())
    drift = charge_drift(RESCALING, gradients, params, 0.1, 1).noise
    assert torch.equal(balance.sign(), drift.sign())
    assert 0 < float(noise_balance(LINEAR, gradients)) <= 1
    silent = {name: torch.full_like(g, 1 / 3) for name, g in gradients.items()}
    assert noise_balance(RESCALING, silent).tolist() == [0.0] * 3
    assert noise_balance(RESCALING, {**gradients, "v": silent["v"]}).tolist() == [-1.0] * 3
    own = ExponentialSymmetry(torch.cat([torch.ones(15), -torch.ones(12)]), ("w", "b", "v"))
    assert -1 < float(noise_balance(own, gradients)) < 1
    with pytest.raises(InputError, match="permutation of layer '0' has no noise equilibrium"):
        noise_balance(Permutation(LAYER), gradients)


@pytest.mark.parametrize("symmetry", [RESCALING, LINEAR], ids=["rescaling", "general linear"])
def test_relaxation_rate_is_the_slope_of_the_drift(symmetry: Symmetry) -> None:
    params, gradients = layer()
    step = Step(0.1, 4, 40, 0.02)
    forms = noise_forms([symmetry])

    def noise_at(element: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        there = symmetry.act(params, element)
        moments = GradientMoments.of([covector(symmetry, gradients, element)], forms)
        noise = symmetry_noise([symmetry], moments, there)[0]
        charge = symmetry.charge(there)
        assert charge is not None
        return (
            charge,
            step.drift(noise.of_charge, 0 * charge, charge).total,
            noise.relaxation_rate(step.noise_factor, step.decay_factor),
        )

    start = symmetry_noise([symmetry], GradientMoments.of([gradients], forms), params)[0]
    element = start.factors(step.noise_factor, step.decay_factor)
    assert element is not None
    _, _, rate = noise_at(element)
    if symmetry is RESCALING:
        ends = [noise_at(element * math.exp(sign * 1e-5)) for sign in (1, -1)]
        slope = -(ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0])
        assert torch.allclose(slope, rate, rtol=1e-6)
        return
    # The slowest of the symmetric displacements, found by brute force over a basis.
    charges, drifts = [], []
    for i in range(3):
        for j in range(i + 1):
            nudge = torch.zeros(3, 3, dtype=torch.float64)
            nudge[i, j] = nudge[j, i] = 1e-5
            ends = [noise_at(torch.linalg.matrix_exp(sign * nudge) @ element) for sign in (1, -1)]
            charges.append((ends[0][0] - ends[1][0]).tril().flatten())
            drifts.append((ends[0][1] - ends[1][1]).tril().flatten())
    kept = torch.ones(3, 3).tril().flatten().bool()
    change, drift = (torch.stack(rows)[:, kept] for rows in (charges, drifts))
    rates = torch.linalg.eigvals(-drift @ torch.linalg.inv(change)).real
    assert float(rates.min()) == pytest.approx(float(rate), rel=1e-5)


def test_scale_invariant_weights_rest_at_the_fourth_root() -> None:
    scale = ScaleInvariance(Units("0", 1, (Axis("w", 0),), ()))
    params = {"w": normal((1, 5), 0)}
    gradients = {"w": normal((30, 1, 5), 1)}
    trace = float(gradients["w"].flatten(start_dim=1).var(dim=0, correction=0).sum())
    squared = float(params["w"].square().sum())
    moments = GradientMoments.of([gradients], noise_forms([scale]))
    noise = symmetry_noise([scale], moments, params)[0]
    step = Step(0.01, 2, 30, 1e-3, replacement=True)
    factor = noise.factors(step.noise_factor, step.decay_factor)
    assert factor is not None
    # |w|^4 = T Tr(Sigma at unit norm) / (2 lambda), up to the finite step of the decay.
    predicted = (0.01 / 2) * (trace * squared) / (2 * 1e-3)
    assert float((factor**2 * squared) ** 2) == pytest.approx(predicted, rel=1e-5)
    assert float(noise.balance) == 1.0
    assert noise.factors(1.0, 0.0) == torch.inf
