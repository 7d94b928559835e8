"""Balanced linear nets: their equations, what a change of inputs leaves of them, how sharp they are."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor, nn

from symdyn_core.dynamics.entropy import entropic_loss
from symdyn_core.dynamics.universal import balanced_linear, platonic_gram, sharpness_prediction
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator, torch_generator

Array = NDArray[np.float64]


def covariance(size: int, generator: np.random.Generator) -> Array:
    root = generator.standard_normal((size, size))
    return np.asarray(root @ root.T + 0.2 * np.eye(size))


def root_of(matrix: Array) -> Array:
    values, basis = np.linalg.eigh(matrix)
    return np.asarray((basis * np.sqrt(values.clip(min=0))) @ basis.T)


def similarity(gram: Array, other: Array) -> float:
    """Linear CKA of two Gram matrices, uncentred."""
    return float((gram * other).sum() / (np.linalg.norm(gram) * np.linalg.norm(other)))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 2), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_layers_solve_their_equations(d_y: int, d_x: int, rank: int, extra: int, seed: int) -> None:
    generator = numpy_generator(seed, "universal")
    rank = min(rank, d_y, d_x)
    target = generator.standard_normal((d_y, rank)) @ generator.standard_normal((rank, d_x))
    x, noise = covariance(d_x, generator), covariance(d_y, generator)
    first, second = balanced_linear(target, x, noise, dim=min(d_y, d_x) + extra)
    assert first.shape == (min(d_y, d_x) + extra, d_x)
    assert second @ first == pytest.approx(target, abs=1e-9)
    left, right = np.trace(x) * second.T @ noise @ second, np.trace(noise) * first @ x @ first.T
    assert left == pytest.approx(right, abs=1e-8 * (1 + np.abs(left).max()))
    root = root_of(x)
    inverse = np.linalg.inv(root)
    mean = root_of(root @ target.T @ noise @ target @ root)
    gram = inverse @ mean @ inverse * np.sqrt(np.trace(x) / np.trace(noise))
    # The square root of a singular matrix is known to the root of rounding only.
    assert platonic_gram(target, x, noise) == pytest.approx(gram, abs=1e-5 * (1 + np.abs(gram).max()))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_representation_goes_along_with_the_inputs(seed: int) -> None:
    generator = numpy_generator(seed, "platonic")
    target, seen = generator.standard_normal((3, 4)), generator.standard_normal((20, 4))
    x, noise = covariance(4, generator), covariance(3, generator)
    instrument = generator.standard_normal((4, 4)) + 2 * np.eye(4)
    through = target @ np.linalg.inv(instrument)
    grams, norms = [], []
    for v, moment, inputs in (
        (target, x, seen),
        (through, instrument @ x @ instrument.T, seen @ instrument.T),
    ):
        grams.append(inputs @ platonic_gram(v, moment, noise) @ inputs.T)
        _, values, right = np.linalg.svd(v, full_matrices=False)
        norms.append(inputs @ (right.T * values) @ right @ inputs.T)
    assert similarity(*grams) == pytest.approx(1, abs=1e-9)
    assert similarity(*norms) < 1 - 1e-5  # balanced norms: another representation for every instrument


def design(x_variances: list[float], noise_variances: list[float]) -> tuple[Tensor, Tensor]:
    """Inputs and noise whose second moments are exact: each input direction with all signs of the noise."""
    directions = torch.diag(torch.tensor(x_variances, dtype=torch.float64).mul(len(x_variances)).sqrt())
    scales = torch.tensor(noise_variances, dtype=torch.float64).sqrt()
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(scales))), dtype=torch.float64)
    pairs = list(itertools.product(directions, signs * scales))
    return torch.stack([x for x, _ in pairs]), torch.stack([noise for _, noise in pairs])


def half_square(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().sum(dim=1).mean() / 2


def two_layers(first: Any, second: Any) -> nn.Sequential:
    layers = [torch.as_tensor(np.asarray(layer), dtype=torch.float64) for layer in (first, second)]
    model = nn.Sequential(
        *(nn.utils.skip_init(nn.Linear, w.shape[1], w.shape[0], bias=False, dtype=w.dtype) for w in layers)
    )
    with torch.no_grad():
        for module, weight in zip(model, layers, strict=True):
            module.weight.copy_(weight)
    return model


def test_minimisers_of_the_entropic_loss_share_their_representation() -> None:
    # From random starts, by the differentiated entropic loss: the closed form is used only to compare.
    x_variances, noise_variances = [1.5, 1.0, 0.4], [0.8, 0.3]
    target = np.array([[1.0, 0.4, -0.3], [-0.2, 0.9, 0.6]])
    instrument = np.array([[1.2, 0.3, 0.0], [-0.4, 0.6, 0.2], [0.1, 0.0, 0.9]])
    x, noise = design(x_variances, noise_variances)
    labels = x @ torch.from_numpy(target).T + noise
    grams = []
    for k, inputs in enumerate((x, x @ torch.from_numpy(instrument).T)):
        start = torch_generator(k, "universal", "start")
        model = two_layers(torch.randn(2, 3, generator=start), torch.randn(2, 2, generator=start))
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=3000, tolerance_grad=1e-13, tolerance_change=1e-16,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(
            model: nn.Sequential = model,
            inputs: Tensor = inputs,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> Tensor:
            optimizer.zero_grad()
            loss = entropic_loss(
                model, half_square, inputs, labels, learning_rate=1e-3, batch_size=1, differentiable=True
            )
            torch.autograd.backward(loss)
            return loss.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        hidden = model[0](inputs).detach().numpy()
        grams.append(hidden @ hidden.T)
    assert similarity(*grams) > 0.9999
    closed = x.numpy() @ platonic_gram(target, np.diag(x_variances), np.diag(noise_variances)) @ x.numpy().T
    assert similarity(grams[0], closed) > 0.9999
    assert grams[0] == pytest.approx(closed, abs=0.02 * np.abs(closed).max())


def test_sharpness_by_brute_force() -> None:
    a, b, x_variances, noise_variances = [1.0, -0.5], [0.6, 1.1, -0.3], [1.5, 1.0, 0.4], [0.9, 0.2]
    x, noise = design(x_variances, noise_variances)
    labels = x @ torch.tensor([b]).double().T @ torch.tensor([a]).double() + noise

    def model(scale: float) -> nn.Sequential:
        return two_layers([[w / scale for w in b]], [[scale * u] for u in a])

    def entropic(log_scale: float) -> float:
        at = model(np.exp(log_scale))
        return float(entropic_loss(at, half_square, x, labels, learning_rate=1.0, batch_size=1))

    def trace(log_scale: float) -> float:
        at = model(np.exp(log_scale))
        shapes = [parameter.shape for parameter in at.parameters()]

        def loss(vector: Tensor) -> Tensor:
            first, second = torch.split(vector, [shape.numel() for shape in shapes])
            return half_square(x @ first.reshape(shapes[0]).T @ second.reshape(shapes[1]).T, labels)

        vector = torch.cat([parameter.detach().reshape(-1) for parameter in at.parameters()])
        return float(torch.autograd.functional.hessian(loss, vector).trace())

    found = sharpness_prediction(a, b, np.diag(x_variances), np.diag(noise_variances))
    entropic_scale = np.exp(optimize.minimize_scalar(entropic, bounds=(-2, 2), options={"xatol": 1e-9}).x)
    flattest_scale = np.exp(optimize.minimize_scalar(trace, bounds=(-2, 2), options={"xatol": 1e-9}).x)
    assert found.scale_entropic == pytest.approx(entropic_scale, rel=1e-5)
    assert found.scale_flattest == pytest.approx(flattest_scale, rel=1e-5)
    assert found.trace_entropic == pytest.approx(trace(np.log(found.scale_entropic)), rel=1e-10)
    assert found.trace_flattest == pytest.approx(trace(np.log(found.scale_flattest)), rel=1e-10)
    assert found.excess > 1.01
    equal = sharpness_prediction(a, b, np.diag(x_variances), 0.7 * np.eye(2))
    assert equal.scale_entropic == pytest.approx(equal.scale_flattest, rel=1e-12)
    assert equal.excess == pytest.approx(1, abs=1e-12)


def test_bad_input_is_named() -> None:
    eye, target = np.eye(2), [[1.0, 0.5], [0.2, 0.7]]
    for call in (balanced_linear, platonic_gram):
        for arguments, match in (
            (
                (target, np.diag([1.0, 0.0]), eye),
                "second_moment must be positive definite, got the eigenvalue 0",
            ),
            ((target, eye, np.diag([1.0, -1.0])), "label_covariance must be positive definite"),
            ((target, np.eye(3), eye), r"second_moment must have shape \(2, 2\), got \(3, 3\)"),
            ((target, [[1.0, 0.5], [0.0, 1.0]], eye), "second_moment must be symmetric"),
            (([1.0, 2.0], eye, eye), r"target must have shape \(d_y, d_x\), got \(2,\)"),
            (([[np.nan, 1.0]], eye, [[1.0]]), "target must be finite"),
        ):
            with pytest.raises(InputError, match=match):
                call(*arguments)  # type: ignore[operator]
    with pytest.raises(InputError, match="dim must be a whole number >= 2, the rank of target, got 1"):
        balanced_linear(target, eye, eye, dim=1)

    one = [1.0, 0.0]
    for given_, match in (
        ((one, one, eye, np.diag([0.0, 1.0])), "label_covariance must have noise along outgoing, got 0"),
        ((one, one, np.diag([0.0, 1.0]), eye), "second_moment must have inputs along incoming, got 0"),
        ((one, one, eye, 0 * eye), "label_covariance must have noise along outgoing, got 0"),
        (([0.0, 0.0], one, eye, eye), "outgoing must not be zero"),
        ((one, [[1.0]], eye, eye), "incoming must be a non-empty vector"),
        ((one, [np.inf, 1.0], eye, eye), "incoming must be finite"),
        (
            (one, one, eye, np.eye(3)),
            r"label_covariance must have shape \(2, 2\) as outgoing has, got \(3, 3\)",
        ),
        (
            (one, one, eye, [[1.0, 2.0], [2.0, 1.0]]),
            "label_covariance must be positive semidefinite, got the",
        ),
        ((one, one, [[1.0, 2.0], [0.0, 1.0]], eye), "second_moment must be symmetric"),
        ((one, one, np.nan * eye, eye), "second_moment must be finite"),
    ):
        with pytest.raises(InputError, match=match):
            sharpness_prediction(*given_)
