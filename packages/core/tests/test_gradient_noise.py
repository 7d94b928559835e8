"""The covariance of per-sample gradients against gradients formed one by one."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.gradient_noise import GradientNoise, gradient_noise
from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, LossFunction, to_vector


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(n: int, k: int = 3) -> Tensor:
    return torch.arange(n) * 7 % k


def built(make, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype).eval()


def one_by_one(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, targets: Tensor) -> Tensor:
    """Per-sample gradients by plain backpropagation of every sample alone, shape (n, P)."""
    parameters = list(model.parameters())
    rows = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        found = torch.autograd.grad(
            loss_fn(model(x), y), parameters, materialize_grads=True, allow_unused=True
        )
        rows.append(torch.cat([slope.reshape(-1) for slope in found]))
    return torch.stack(rows)


def check_all(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    formed: set[str] = frozenset(),
    tolerance: float = 1e-9,
    **options,
) -> GradientNoise:
    """Hold everything a GradientNoise says against the brute-force covariance."""
    gradients = one_by_one(model, loss_fn, inputs, targets)
    n, size = gradients.shape
    centred = gradients - gradients.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    noise = gradient_noise(model, loss_fn, inputs, targets, **options)
    assert set(noise.formed) == formed
    scale = float(covariance.trace())

    def close(ours, theirs, unit: float = 1.0) -> None:
        ours, theirs = (torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs))
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= tolerance * unit

    close(to_vector(noise.mean), gradients.mean(dim=0))
    close(noise.trace, scale, scale)
    close(to_vector(noise.diagonal), covariance.diagonal(), scale)
    start = 0
    for name, parameter in model.named_parameters():
        block = covariance.diagonal()[start : start + parameter.numel()]
        close(noise.blocks[name], block.sum(), scale)
        assert noise.diagonal[name].shape == parameter.shape
        start += parameter.numel()
    vectors = normal(size, 3).to(gradients.dtype)
    close(noise.matvec(vectors), covariance @ vectors, scale)
    close(noise.matvec(vectors[:, 0]), covariance @ vectors[:, 0], scale)
    close(noise.along(vectors), torch.einsum("pk,pq,qk->k", vectors, covariance, vectors), scale * size)
    weights = normal(n, 2)
    close(
        noise.combinations(weights), centred.T @ weights.to(gradients.dtype) / (n - 1) ** 0.5, scale**0.5 * n
    )
    k = min(4, n - 1, size)
    expected = torch.linalg.eigvalsh(covariance.double()).flip(0)
    close(noise.eigenvalues(k), expected[:k], scale)
    values, found = noise.spectrum(k)
    close(values, expected[:k], scale)
    close(found.T @ found, torch.eye(k), 10)
    close(covariance @ found, found * values.to(found.dtype), 10 * scale)
    close(noise.effective_rank, scale**2 / float(covariance.square().sum()), size)
    close(noise.loss, loss_fn(model(inputs), targets).detach(), 10)
    return noise


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)
    )


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, (3, 1), groups=2, padding="same", dilation=(2, 1), bias=False),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Conv2d(8, 8, 2, groups=8, padding=1, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class Attention(nn.Module):
    """A tiny language model: tied embedding, learned positions, attention by hand, normalisation."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.first, self.last = nn.LayerNorm(6), nn.RMSNorm(6)
        self.qkv, self.out, self.head = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        heads = self.qkv(self.first(x)).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.head(self.last(x + self.out(mixed.transpose(1, 2).flatten(2))))


def language_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


class Exotic(nn.Module):
    """Parameters used by hand, beside a layer of a known class whose weight is used by hand as well."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.known = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(4)), nn.Parameter(torch.zeros(()))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sin(self.line(x) * self.scale) @ self.line.weight + self.shift
        return self.known(hidden)


class TimeFirst(nn.Module):
    """Layers that see samples along the second axis, or flattened with the time, this way or that."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.sample_major, self.time_major = (nn.Linear(4, 4) for _ in range(3))
        self.conv, self.out = nn.Conv1d(1, 2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, time, _ = x.shape
        x = torch.tanh(self.second(x.transpose(0, 1))).transpose(0, 1)
        x = torch.tanh(self.sample_major(x.flatten(0, 1))).unflatten(0, (n, time))
        x = (
            torch.tanh(self.time_major(x.transpose(0, 1).flatten(0, 1)))
            .unflatten(0, (time, n))
            .transpose(0, 1)
        )
        x = x + self.conv(x.flatten(0, 1).unsqueeze(1)).mean(dim=(1, 2)).reshape(n, time, 1)
        return self.out(x).mean(dim=1)


def test_mlp() -> None:
    check_all(built(mlp), cross_entropy, normal(20, 6), classes(20))
    check_all(built(mlp), mse_loss, normal(20, 6), normal(20, 3), chunk_size=7)


class Parallel(nn.Module):
    """Two layers whose outputs are added: what flows back to them is one and the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.left(x) + self.right(x.sin()) + x[:, :4])


def test_layers_side_by_side() -> None:
    check_all(built(Parallel), cross_entropy, normal(20, 6), classes(20))
    same = built(Parallel)
    same.right.bias = same.left.bias
    check_all(same, cross_entropy, normal(20, 6), classes(20))


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
def test_convolutions_with_groups_strides_and_padding(chunk_size: int | None) -> None:
    check_all(built(cnn), cross_entropy, normal(12, 2, 9, 8), classes(12), chunk_size=chunk_size)


def test_convolutions_of_other_dimensions() -> None:
    line = built(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1, stride=2, groups=2), nn.Flatten(), nn.Linear(16, 3)
        )
    )
    check_all(line, cross_entropy, normal(9, 2, 8), classes(9))
    cube = built(lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 3)))
    check_all(cube, cross_entropy, normal(9, 1, 3, 3, 3), classes(9))


@pytest.mark.parametrize("tied", [True, False])
def test_transformer_with_tied_embedding(tied: bool) -> None:
    tokens = torch.randint(11, (10, 5), generator=torch.Generator().manual_seed(0))
    model = built(lambda: Attention(tied))
    # The positions are the same for all samples: what flows back to them has lost the samples.
    check_all(model, language_loss, tokens, tokens.roll(-1, 1), formed={"positions.weight"})
    check_all(model, language_loss, tokens, tokens.roll(-1, 1), formed={"positions.weight"}, chunk_size=4)


def test_modules_without_a_rule() -> None:
    formed = {"line.weight", "scale", "shift"}
    noise = check_all(built(Exotic), cross_entropy, normal(10, 4), classes(10), formed=formed)
    assert noise.blocks["unused"] == 0
    check_all(built(Exotic), cross_entropy, normal(10, 4), classes(10), formed=formed, chunk_size=3)


def test_samples_along_other_axes() -> None:
    formed = {"time_major.weight", "time_major.bias"}
    check_all(built(TimeFirst), cross_entropy, normal(10, 5, 4), classes(10), formed=formed)


def test_layers_of_torch_that_use_weights_by_hand() -> None:
    layer = built(
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
        )
    )
    attention = {
        f"0.self_attn.{name}"
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }
    check_all(layer, cross_entropy, normal(8, 3, 4), classes(8), formed=attention)
    shared = built(lambda: nn.Linear(4, 4))
    twice = built(lambda: nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 3)))
    check_all(twice, cross_entropy, normal(8, 4), classes(8))
    weight_norm = built(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))))
    originals = {f"0.parametrizations.weight.original{i}" for i in (0, 1)}
    check_all(weight_norm, cross_entropy, normal(8, 4), classes(8), formed={*originals, "0.bias"})


def test_padding_and_repeated_tokens() -> None:
    tokens = torch.tensor([[0, 1, 1], [1, 2, 0], [2, 2, 2], [0, 0, 3]])
    model = built(
        lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3))
    )
    noise = check_all(model, cross_entropy, tokens, classes(4))
    assert not noise.diagonal["0.weight"][0].any()


@pytest.mark.parametrize("way", ["parameters", "iteration", "iteration on inner products"])
def test_many_samples(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "symdyn_core.dynamics.gradient_noise"
    if way != "parameters":
        monkeypatch.setattr(f"{here}.DENSE_PARAMETERS", 10)
        monkeypatch.setattr(f"{here}.DENSE_SAMPLES", 10)
    if way == "iteration":
        monkeypatch.setattr(f"{here}.GRAM_SAMPLES", 10)
    model = built(lambda: nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)))
    check_all(model, cross_entropy, normal(50, 6), classes(50))
    check_all(model, cross_entropy, normal(50, 6), classes(50), chunk_size=15)


def test_single_precision_stays_single() -> None:
    model = built(mlp, torch.float32)
    inputs, targets = normal(20, 6).float(), classes(20)
    noise = check_all(model, cross_entropy, inputs, targets, tolerance=2e-5)
    assert {value.dtype for value in noise.diagonal.values()} == {torch.float32}
    exact = gradient_noise(FrozenModel(model), cross_entropy, inputs, targets)
    assert exact.diagonal["0.weight"].dtype is torch.float64
    assert noise.trace == pytest.approx(exact.trace, rel=1e-5)


def test_the_model_is_left_alone() -> None:
    model = built(mlp)
    model.train()
    model[0].weight.grad = torch.ones(8, 6, dtype=torch.float64)
    model[2].weight.requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        noise = gradient_noise(model, cross_entropy, normal(20, 6), classes(20))
    noise.spectrum(2)
    assert model.training
    assert not calls
    assert len(model[0]._forward_hooks) == 1
    assert bool((model[0].weight.grad == 1).all())
    assert model[2].weight.grad is None
    assert not model[2].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_noise_of_batches() -> None:
    inputs, targets = normal(20, 6), classes(20)
    gradients = one_by_one(built(mlp), cross_entropy, inputs, targets)
    exact = gradient_noise(built(mlp), cross_entropy, inputs, targets)
    squared = float(gradients.mean(dim=0).square().sum())
    assert exact.noise_scale == pytest.approx(exact.trace / squared)
    assert exact.batch_covariance_factor(5) == pytest.approx(0.75 / 5)
    assert exact.batch_covariance_factor(5, True) == pytest.approx(0.95 / 5)
    endless = gradient_noise(built(mlp), cross_entropy, inputs, targets, population=math.inf)
    assert endless.batch_covariance_factor(5) == 1 / 5
    expected = squared - endless.trace / 20
    assert endless.noise_scale == pytest.approx(endless.trace / expected if expected > 0 else math.inf)


@pytest.mark.parametrize("width", [2, 8])
def test_alignment_and_noise_to_loss(width: int) -> None:
    model = built(lambda: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)))
    inputs, targets = normal(40, 3), normal(40, 2, seed=3)
    noise = gradient_noise(model, mse_loss, inputs, targets)
    hessian = Curvature(model, mse_loss, inputs, targets)
    covariance, dense = torch.cov(one_by_one(model, mse_loss, inputs, targets).T), hessian.dense()
    expected = float((covariance * dense).sum() / (covariance.norm() * dense.norm()))
    found = noise.alignment(hessian)
    assert found.low - 0.01 <= expected <= found.high + 0.01
    assert found.value == pytest.approx(expected, rel=1e-9 if width == 2 else 0.05)
    ratio = noise.noise_to_loss_ratio(hessian, probes=200)
    assert ratio.value == pytest.approx(float(covariance.trace() / (2 * noise.loss * dense.trace())))


def test_noise_follows_from_the_loss_where_theory_says_so() -> None:
    # Linear regression at its minimum with label noise independent of the inputs: C = 2 L H.
    line = built(lambda: nn.Linear(3, 1, bias=False))
    nn.init.zeros_(line.weight)
    inputs, targets = normal(20_000, 3), normal(20_000, 1, seed=5)

    def half(outputs: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(outputs, targets) / 2

    noise, hessian = gradient_noise(line, half, inputs, targets), Curvature(line, half, inputs, targets)
    assert noise.noise_to_loss_ratio(hessian).value == pytest.approx(1, abs=0.04)
    assert noise.alignment(hessian).value == pytest.approx(1, abs=0.01)


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets, reduction="sum")


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x - x.mean(dim=0))


def test_bad_input() -> None:
    model, inputs, targets = built(mlp), normal(20, 6), normal(20, 3)
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        gradient_noise(model, mse_loss, inputs[:1], targets[:1])
    with pytest.raises(InputError, match="mean of the losses of single samples, got"):
        gradient_noise(model, summed, inputs, targets)
    with pytest.raises(InputError, match="independent of each other"):
        gradient_noise(built(Coupled), mse_loss, inputs, targets)
    with pytest.raises(
        InputError, match=r"'1' must not normalise by the statistics of the batch.*model.eval\(\)"
    ):
        gradient_noise(built(cnn).train(), cross_entropy, normal(12, 2, 9, 8), classes(12))
    with pytest.raises(InputError, match="chunk_size must be at least 1, got 0"):
        gradient_noise(model, mse_loss, inputs, targets, chunk_size=0)
    with pytest.raises(InputError, match="population must be at least n_samples=20"):
        gradient_noise(model, mse_loss, inputs, targets, population=10)
    with pytest.raises(InputError, match="must be float32 or float64, got torch.bfloat16"):
        gradient_noise(built(mlp, torch.bfloat16), mse_loss, inputs, targets)
    mixed = built(mlp)
    mixed[0].float()
    with pytest.raises(InputError, match=r"of one dtype, got torch.float32 and torch.float64 \('2.weight'\)"):
        gradient_noise(mixed, mse_loss, inputs, targets)
    with pytest.raises(InputError, match="must have parameters"):
        gradient_noise(nn.Tanh(), mse_loss, inputs, inputs)
    with pytest.raises(InputError, match="the model fails on inputs of shape"):
        gradient_noise(model, mse_loss, inputs[:, :2], targets)
    with pytest.raises(InputError, match="the loss must depend on the parameters"):
        gradient_noise(model, lambda outputs, targets: outputs.detach().mean(), inputs, targets)
    noise = gradient_noise(model, mse_loss, inputs, targets)
    with pytest.raises(
        InputError, match=r"k must be in \[1, min\(n_samples - 1, n_parameters\)=19\], got 20"
    ):
        noise.eigenvalues(20)
    with pytest.raises(InputError, match=r"vectors must have shape \(P,\) or \(P, k\) with P=114"):
        noise.matvec(normal(3))
    with pytest.raises(InputError, match=r"batch_size must be in \[1, population=20\]"):
        noise.batch_covariance_factor(21)
    with pytest.raises(InputError, match="curvature must be that of the same model"):
        noise.alignment(Curvature(built(mlp)[0], mse_loss, inputs, normal(20, 8)))


def test_noise_without_more_directions_has_no_more_eigenvectors() -> None:
    line = built(lambda: nn.Linear(4, 1, bias=False))
    inputs = torch.eye(4, dtype=torch.float64)[torch.arange(12) % 2]
    noise = gradient_noise(line, mse_loss, inputs, normal(12, 1))
    assert float(noise.eigenvalues(4)[2]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match=r"k must be in \[1, rank=2\]"):
        noise.spectrum(4)
