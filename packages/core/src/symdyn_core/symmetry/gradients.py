"""Per-sample gradients of a model, and their moments in one pass over the data."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.mean_loss import check_mean_loss
from symdyn_core.params import FrozenModel, LossFunction, Params, check_data, to_float64

Quadratic = Callable[[Params], Tensor]
"""A quadratic form of one sample's gradient, or several of them in one tensor."""

# Per-sample gradients kept at a time, in numbers: 64 MiB of float64.
CHUNK_NUMBERS = 2**23


@dataclass(frozen=True)
class GradientMoments:
    r"""The mean of per-sample gradients, and averages of quadratic forms of what is left without it.

    Attributes:
        n_samples: how many there were.
        mean: $\bar g$ by parameter name.
        centred: $\frac1N\sum_iQ(g_i-\bar g)$ for each quadratic form $Q$ asked for.

    >>> gradients = {"w": torch.tensor([[1.0], [3.0]])}
    >>> GradientMoments.of([gradients], [lambda g: g["w"].square().sum()])
    GradientMoments(n_samples=2, mean={'w': tensor([2.])}, centred=[tensor(1.)])
    """

    n_samples: int
    mean: dict[str, Tensor]
    centred: list[Tensor]

    @classmethod
    def of(cls, chunks: Iterable[Params], forms: Sequence[Quadratic]) -> "GradientMoments":
        """Accumulate in one pass; memory is that of one chunk.

        Args:
            chunks: per-sample gradients by parameter name, each of shape (samples of the chunk, ...).
            forms: quadratic forms of one sample's gradient.

        Raises:
            InputError: no samples, or gradients that are not of the same samples or not finite.
        """
        count, mean, sums = 0, {}, []
        for chunk in chunks:
            here = _chunk_size(chunk)
            if not here:
                continue
            centre = {name: gradient.mean(dim=0) for name, gradient in chunk.items()}
            centred = {name: gradient - centre[name] for name, gradient in chunk.items()}
            spread = [torch.func.vmap(form)(centred).sum(dim=0) for form in forms]
            if not count:
                count, mean, sums = here, centre, spread
                continue
            # Chan's update: centring by the chunk avoids the cancellation of E[g^2] - E[g]^2.
            gap = {name: centre[name] - mean[name] for name in mean}
            weight = count * here / (count + here)
            sums = [a + b + weight * form(gap) for a, b, form in zip(sums, spread, forms, strict=True)]
            mean = {name: mean[name] + gap[name] * (here / (count + here)) for name in mean}
            count += here
        if not count:
            raise InputError("per_sample_gradients must hold at least one sample, got none")
        return cls(count, mean, [total / count for total in sums])


def _chunk_size(chunk: Params) -> int:
    sizes = {len(gradient) for gradient in chunk.values()}
    if len(sizes) != 1:
        raise InputError(f"per_sample_gradients must have one length, got {sorted(sizes)}")
    for name, gradient in chunk.items():
        if not bool(torch.isfinite(gradient).all()):
            raise InputError(f"the gradient of {name!r} must be finite, got NaN or infinite entries")
    return sizes.pop()


def per_sample_gradients(
    model: FrozenModel | nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    params: Params | None = None,
    chunk_size: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of every sample's loss, chunk by chunk, in float64 and evaluation mode.

    In training mode a model whose samples interact (batch normalisation) has no per-sample gradients; its
    evaluation mode has.

    Args:
        model: copied, never changed.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples; called on single samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        params: where the gradients are taken; the model's own parameters by default.
        chunk_size: samples at a time; by default as many as fit into 64 MiB.

    Yields:
        The gradients by parameter name, each of shape (samples of the chunk, *parameter shape).

    Raises:
        InputError: the data do not fit together, model or loss fails, or the loss is not the mean of the
            losses of single samples.

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.ones_(line.weight)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> [g["weight"].flatten().tolist() for g in per_sample_gradients(line, nn.functional.mse_loss, x, y)]
    [[2.0, 8.0]]
    """
    check_data(inputs, targets)
    frozen = model if isinstance(model, FrozenModel) else FrozenModel(model)
    at = {name: value.detach() for name, value in (params or frozen.params).items()}
    inputs, targets = to_float64(inputs), to_float64(targets)
    if chunk_size is None:
        chunk_size = max(1, CHUNK_NUMBERS // max(1, sum(value.numel() for value in at.values())))
    if chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}")

    def sample_loss(values: Params, x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(frozen.module, dict(values), (x.unsqueeze(0),))
        return loss_fn(outputs, y.unsqueeze(0)).reshape(())

    for start in range(0, len(inputs), chunk_size):
        x, y = inputs[start : start + chunk_size], targets[start : start + chunk_size]
        gradients, losses = _gradients(sample_loss, at, x, y)
        if start == 0:
            with torch.no_grad():
                together = float(torch.as_tensor(loss_fn(frozen(at, x), y)))
            check_mean_loss(together, losses.tolist())
        yield gradients


def _gradients(
    sample_loss: Callable[[Params, Tensor, Tensor], Tensor], params: dict[str, Tensor], x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    of_sample = torch.func.grad_and_value(sample_loss)
    try:
        with torch.random.fork_rng(devices=[]):
            return torch.func.vmap(of_sample, in_dims=(None, 0, 0))(params, x, y)
    except RuntimeError:
        # Not every operation has a batching rule; one by one they all have a gradient.
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            pairs = [of_sample(params, *pair) for pair in zip(x, y, strict=True)]
    except Exception as error:
        shape = tuple(x[:1].shape)
        raise InputError(f"the loss of a sample of shape {shape} has no gradient: {error}") from error
    gradients = {name: torch.stack([gradient[name] for gradient, _ in pairs]) for name in params}
    return gradients, torch.stack([loss for _, loss in pairs])
