"""Matrix-free curvature against the dense Hessian of torch.func."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, from_vector, to_vector


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(width: int = 4, outputs: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, outputs))


def dense_hessian(model: nn.Module, loss_fn, inputs: Tensor, targets: Tensor) -> Tensor:
    frozen = FrozenModel(model)

    def loss(vector: Tensor) -> Tensor:
        moved = from_vector(vector, frozen.params)
        return loss_fn(torch.func.functional_call(frozen.module, moved, (inputs,)), targets)

    return torch.func.jacrev(torch.func.jacrev(loss))(to_vector(frozen.params))


def check_all(model: nn.Module, loss_fn, inputs: Tensor, targets: Tensor, **options) -> None:
    curvature = Curvature(model, loss_fn, inputs, targets, **options)
    expected = dense_hessian(model, loss_fn, inputs, targets)
    vectors = normal(curvature.dimension, 3)
    assert torch.allclose(curvature.matvec(vectors), expected @ vectors, atol=1e-12)
    assert torch.allclose(curvature.matvec(vectors[:, 0]), expected @ vectors[:, 0], atol=1e-12)
    assert torch.allclose(curvature.dense(), expected, atol=1e-12)


def test_products_are_those_of_the_dense_hessian() -> None:
    check_all(net(), mse_loss, normal(20, 3), normal(20, 2))
    check_all(net(), cross_entropy, normal(20, 3), torch.arange(20) % 2)


def test_chunks_add_up_and_minibatches_are_their_own_mean() -> None:
    inputs, targets = normal(20, 3), normal(20, 2)
    check_all(net(), mse_loss, inputs, targets, chunk_size=7)
    batch = Curvature(net(), mse_loss, inputs, targets).on(torch.tensor([3, 3, 5]))
    chosen = torch.tensor([3, 3, 5])
    assert batch.n_samples == 3
    assert torch.allclose(
        batch.dense(), dense_hessian(net(), mse_loss, inputs[chosen], targets[chosen]), atol=1e-12
    )


def test_attention_and_other_parameters() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.utils.skip_init(nn.Linear, 3, 9, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(x).chunk(3, dim=-1)
            return nn.functional.scaled_dot_product_attention(q, k, v).mean(dim=1)

    inputs, targets = normal(6, 4, 3), normal(6, 3)
    model = Attention()
    nn.init.zeros_(model.heads.weight)
    curvature = Curvature(model, mse_loss, inputs, targets, params={"heads.weight": normal(9, 3)})
    v, step = normal(27), 1e-5

    def slope(sign: float) -> Tensor:
        moved = {"heads.weight": normal(9, 3) + sign * step * v.reshape(9, 3)}
        return Curvature(model, mse_loss, inputs, targets, params=moved).gradient()

    # Central differences: the error is of second order in the step.
    assert torch.allclose(curvature.matvec(v), (slope(1) - slope(-1)) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("width", [4, 30])  # dense and by iteration
def test_extreme_eigenvalues(width: int) -> None:
    inputs, targets = normal(40, 3), normal(40, 2)
    model = net(width)
    curvature = Curvature(model, mse_loss, inputs, targets)
    expected = torch.linalg.eigvalsh(dense_hessian(model, mse_loss, inputs, targets))
    values, vectors = curvature.top_eigenvalues(5)
    largest = expected[expected.abs().argsort(descending=True)][:5]
    assert torch.allclose(values, largest, atol=1e-7)
    assert torch.allclose(curvature.matvec(vectors), vectors * values, atol=1e-6)
    assert torch.allclose(vectors.T @ vectors, torch.eye(5, dtype=torch.float64), atol=1e-9)
    assert curvature.lowest_eigenvalue() == pytest.approx(float(expected[0]), abs=1e-7)
    assert curvature.highest_eigenvalue() == pytest.approx(float(expected[-1]), abs=1e-7)
    lowest, ways_down = curvature.lowest_eigenvectors(3)
    assert torch.allclose(lowest, expected[:3], atol=1e-7)
    assert torch.allclose(curvature.matvec(ways_down), ways_down * lowest, atol=1e-6)


def test_trace_interval_covers_the_trace_and_is_narrower_with_more_probes() -> None:
    inputs, targets = normal(40, 3), normal(40, 2)
    curvature = Curvature(net(30), mse_loss, inputs, targets)
    expected = float(dense_hessian(net(30), mse_loss, inputs, targets).trace())
    estimates = [curvature.trace(seed) for seed in range(20)]
    assert sum(e.low <= expected <= e.high for e in estimates) >= 16  # of 20 at 95 %: fewer once in 390
    more = curvature.trace(probes=90)
    assert more.high - more.low < 0.5 * (estimates[0].high - estimates[0].low)
    exact = Curvature(net(1, 1), mse_loss, inputs, targets[:, :1]).trace()
    assert exact.low == exact.high


def test_gauss_newton_is_the_whole_hessian_of_a_linear_model_and_positive_otherwise() -> None:
    inputs = normal(20, 3)
    linear = net()[0]
    curvature = Curvature(linear, cross_entropy, inputs, torch.arange(20) % 4)
    vectors = normal(16, 2)
    assert torch.allclose(curvature.gauss_newton_matvec(vectors), curvature.matvec(vectors), atol=1e-12)
    bent = Curvature(net(), mse_loss, inputs, normal(20, 2), chunk_size=6)
    matrix = bent.gauss_newton_matvec(torch.eye(bent.dimension, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-12
    frozen = FrozenModel(net())
    jacobian = torch.autograd.functional.jacobian(
        lambda v: frozen(from_vector(v, frozen.params), inputs).reshape(-1), to_vector(frozen.params)
    )
    assert torch.allclose(matrix, jacobian.T @ jacobian * (2 / 40), atol=1e-12)


def test_a_loss_linear_in_the_parameters_is_flat() -> None:
    curvature = Curvature(net()[0], lambda f, y: (f * y).mean(), normal(5, 3), normal(5, 4))
    assert torch.equal(curvature.matvec(torch.ones(16)), torch.zeros(16, dtype=torch.float64))


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f: Tensor) -> Tensor:
        ctx.save_for_backward(f)
        return f.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def test_refusals() -> None:
    inputs, targets = normal(8, 3), normal(8, 2)
    with pytest.raises(InputError, match="the loss must be the mean of the losses of single samples"):
        Curvature(net(), nn.MSELoss(reduction="sum"), inputs, targets)
    with pytest.raises(InputError, match="the loss must be one number, got shape"):
        Curvature(net(), lambda f, y: f - y, inputs, targets)
    with pytest.raises(InputError, match="the loss must be finite, got nan"):
        Curvature(net(), lambda f, y: (f * math.nan).mean(), inputs, targets)
    with pytest.raises(InputError, match="inputs and targets must have the same length, got 8 and 7"):
        Curvature(net(), mse_loss, inputs, targets[:7])
    with pytest.raises(InputError, match="the loss must depend on the parameters"):
        Curvature(net(), lambda f, y: mse_loss(f.detach(), y), inputs, targets).gradient()
    with pytest.raises(InputError, match="the loss has no second derivative"):
        Curvature(net(), lambda f, y: OnceOnly.apply(f).mean(), inputs, targets)
    with pytest.raises(InputError, match="the model must have parameters"):
        Curvature(nn.Tanh(), mse_loss, inputs, inputs)
    with pytest.raises(InputError, match="chunk_size must be at least 1, got 0"):
        Curvature(net(), mse_loss, inputs, targets, chunk_size=0)
    curvature = Curvature(net(), mse_loss, inputs, targets)
    with pytest.raises(InputError, match=r"vectors must have shape \(P,\) or \(P, k\) with P=26, got \(3,\)"):
        curvature.matvec(torch.ones(3))
    with pytest.raises(InputError, match=r"k must be in \[1, n_parameters=26\], got 27"):
        curvature.top_eigenvalues(27)
    with pytest.raises(InputError, match="probes must be at least 6, got 5"):
        curvature.trace(probes=5)
    with pytest.raises(InputError, match=r"indices must be in \[0, n_samples=8\), got 2 to 8"):
        curvature.on(torch.tensor([2, 8]))
    for wrong in (torch.tensor([0.5]), torch.zeros(0, dtype=torch.int64), torch.ones(8, dtype=torch.bool)):
        with pytest.raises(InputError, match="indices must be a vector of whole numbers"):
            curvature.on(wrong)
