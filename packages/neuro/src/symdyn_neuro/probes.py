"""What a circuit is doing while it learns: does its update point downhill, has its feedback assembled?

The probes only look: parameters, ``.grad``, buffers (running statistics) and the random state are afterwards
what they were before.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from symdyn_core.errors import InputError
from symdyn_neuro.layers import HSLinear

LossFunction = Callable[[Any, Any], Tensor]


def gradient_alignment(
    model: nn.Module, loss_fn: LossFunction, inputs: Any, targets: Any
) -> dict[str, float]:
    r"""Return, layer by layer, the cosine between the model's update and the true gradient of the loss.

    .. math:: \cos_l = \frac{\langle u_l, \nabla_l\ell\rangle}{\|u_l\|\,\|\nabla_l\ell\|}

    where $u_l$ is what ``backward()`` delivers to the parameters of layer $l$ under the model's own rule, and
    $\nabla_l\ell$ what it would deliver if the error travelled through the transposed weights. Both are taken
    at the same weights, on the same data and with the same random numbers (dropout).

    Args:
        model: any module; its :class:`~symdyn_neuro.layers.HSLinear` layers are those that may deviate.
        loss_fn: ``loss_fn(model(inputs), targets)`` returns a scalar.
        inputs: one batch, in whatever form the model takes as its single argument.
        targets: whatever the loss takes.

    Returns:
        A cosine in [-1, 1] for every submodule that owns trainable parameters, by its name in
        ``model.named_modules()``; weight and bias count as one vector, the feedback is left out. NaN where
        one of the two vectors vanishes.

    Raises:
        InputError: the loss is not a finite scalar, or nothing in the model can be trained.

    Source: re-derived probe; reported for such circuits since feedback alignment (Lillicrap et al. 2016).

    >>> import torch
    >>> layers = [HSLinear(2, 1, bias=False, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    >>> model = nn.Sequential(HSLinear(1, 2, False, generator=torch.Generator().manual_seed(0)), layers[0])
    >>> with torch.no_grad():
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, 4.0]]))
    ...     _ = model[1].feedback.copy_(torch.tensor([[4.0, 3.0]]))
    >>> cosines = gradient_alignment(model, nn.functional.mse_loss, torch.ones(1, 1), torch.ones(1, 1))
    >>> {name: round(cosine, 6) for name, cosine in cosines.items()}  # (3, 4) . (4, 3) / 25
    {'0': 0.96, '1': 1.0}
    """
    trainable = {
        name: parameter.detach().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not _is_feedback(model, name)
    }
    if not trainable:
        raise InputError(f"{type(model).__name__} has no trainable parameters to compare gradients of")
    update = _gradients(model, trainable, {}, loss_fn, inputs, targets)
    symmetric = {
        _join(name, "feedback"): layer.weight.detach() for name, layer in _heterosynaptic_layers(model)
    }
    truth = _gradients(model, trainable, symmetric, loss_fn, inputs, targets)

    layers: dict[str, list[str]] = {}
    for name in trainable:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        layer: _cosine([update[n] for n in names], [truth[n] for n in names])
        for layer, names in layers.items()
    }


def feedback_mismatch(model: nn.Module) -> dict[str, float]:
    r"""Return $\|B - W\|_F$ of every heterosynaptic layer: how far its feedback is from assembled.

    :func:`symdyn_neuro.assembly.predict_mismatch` says how it shrinks. The square root of the sum of squares
    over the layers obeys the same law.

    Args:
        model: any module.

    Returns:
        Frobenius norm, at least 0, by layer name as in ``model.named_modules()``; empty where the model has
        no :class:`~symdyn_neuro.layers.HSLinear`.

    >>> import torch
    >>> layer = HSLinear(2, 1, generator=torch.Generator().manual_seed(0))
    >>> with torch.no_grad():
    ...     _ = layer.feedback.copy_(layer.weight + torch.tensor([[3.0, 4.0]]))
    >>> round(feedback_mismatch(nn.Sequential(layer))["0"], 6)
    5.0
    """
    return {
        name: float(torch.linalg.vector_norm((layer.feedback - layer.weight).detach(), dtype=torch.float64))
        for name, layer in _heterosynaptic_layers(model)
    }


def _heterosynaptic_layers(model: nn.Module) -> list[tuple[str, HSLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, HSLinear)]


def _is_feedback(model: nn.Module, parameter: str) -> bool:
    owner, _, name = parameter.rpartition(".")
    return name == "feedback" and isinstance(model.get_submodule(owner), HSLinear)


def _join(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _gradients(
    model: nn.Module,
    trainable: Mapping[str, Tensor],
    replaced: Mapping[str, Tensor],
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
) -> dict[str, Tensor]:
    """Return what backward delivers to each trainable tensor while other tensors are replaced."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {tensor.device.index for tensor in trainable.values() if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        outputs = functional_call(model, {**trainable, **buffers, **replaced}, (inputs,))
        loss = loss_fn(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"loss_fn must return a scalar tensor, got {found}")
        if not torch.isfinite(loss):
            raise InputError(f"the loss must be finite to compare gradients, got {loss.item()}")
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the model's trainable parameters")
        found_gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(trainable.items(), found_gradients, strict=True)
    }


def _cosine(left: list[Tensor], right: list[Tensor]) -> float:
    # Each vector is normalised before the product, so that tiny gradients do not underflow; parallel vectors
    # may then give 1 + 1e-16.
    a, b = (torch.cat([tensor.flatten().double() for tensor in tensors]) for tensors in (left, right))
    cosine = (a / torch.linalg.vector_norm(a)) @ (b / torch.linalg.vector_norm(b))
    return float(cosine.clamp(-1.0, 1.0))
