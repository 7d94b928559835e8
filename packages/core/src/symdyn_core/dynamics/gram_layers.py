r"""What single layers contribute: from input and output gradient to per-sample gradients of their parameters.

Every rule takes a layer, what went into it and the gradient by what came out, for n samples along one axis,
and gives one :class:`~symdyn_core.dynamics.gram.Factor` for each parameter of the layer. Layers are told by
their exact class: a subclass may compute something else.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.dynamics.gram import Direct, Factor, Outer, Rows

Rule = Callable[[Any, Tensor, Tensor, int, int], dict[str, Factor] | None]
"""(layer, input, output gradient, axis of the samples, number of samples) -> factors, None if it cannot."""


def factors_of(
    layer: nn.Module, inputs: Tensor, slopes: Tensor, axis: int, n: int
) -> dict[str, Factor] | None:
    """Return the per-sample gradients of a layer's own parameters for one use of it.

    Args:
        layer: of a class in :data:`RULES`.
        inputs: what went into it.
        slopes: gradient of the samples' losses by what came out, of the shape of the output.
        axis: along which the samples lie in both, n of them or each repeated equally often in a row.
        n: number of samples.

    Returns:
        By the name of the parameter in the layer; None where the samples do not lie along a batch axis.

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1)
    >>> x, d = torch.tensor([[3.0], [5.0]]), torch.tensor([[2.0], [1.0]])
    >>> {name: factor.moments() for name, factor in factors_of(line, x, d, 0, 2).items()}
    {'weight': (tensor([11.]), tensor([61.])), 'bias': (tensor([3.]), tensor([5.]))}
    """
    return RULES[type(layer)](layer, inputs, slopes, axis, n)


def _linear(layer: nn.Linear, inputs: Tensor, slopes: Tensor, axis: int, n: int) -> dict[str, Factor] | None:
    if axis >= inputs.ndim - 1:
        return None
    a, d = _by_sample(inputs, axis, n).flatten(1, -2), _by_sample(slopes, axis, n).flatten(1, -2)
    weight = Outer(d.unsqueeze(1), a.unsqueeze(1), (a.shape[-1], 1))
    found: dict[str, Factor] = {"weight": weight}
    if layer.bias is not None:
        found["bias"] = Direct(d[:, 0], weight) if d.shape[1] == 1 else Direct(d.sum(dim=1))
    return found


class Patches:
    """The patches of images that a convolution multiplies with its weight, formed when asked for.

    Args:
        layer: the convolution.
        inputs: shape (n, repeats, channels, *image).
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> None:
        self.layer, self.inputs = layer, inputs

    def __getitem__(self, samples: slice) -> Tensor:
        """Return shape (samples, groups, repeats * positions, kernel * channels of a group)."""
        layer, images = self.layer, self.inputs[samples]
        count, repeats, channels = images.shape[:3]
        images = images.flatten(0, 1)
        if any(layer._reversed_padding_repeated_twice):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            images = functional.pad(images, layer._reversed_padding_repeated_twice, mode=mode)
        # With the channels last, what is copied side by side lies side by side.
        images = images.movedim(1, -1).contiguous()
        kernel, size, strides = layer.kernel_size, images.shape[1:-1], images.stride()
        options = list(zip(size, kernel, layer.stride, layer.dilation, strict=True))
        out = [(whole - far * (edge - 1) - 1) // step + 1 for whole, edge, step, far in options]
        groups, positions = layer.groups, prod(out)
        windows = images.as_strided(
            (len(images), *out, *kernel, channels),
            (strides[0], *_times(strides[1:-1], layer.stride), *_times(strides[1:-1], layer.dilation), 1),
        )
        flat = windows.reshape(count, repeats * positions, prod(kernel), groups, channels // groups)
        return flat.permute(0, 3, 1, 2, 4).flatten(3)


def _times(strides: tuple[int, ...], factors: tuple[int, ...]) -> list[int]:
    return [stride * factor for stride, factor in zip(strides, factors, strict=True)]


def _convolution(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor, slopes: Tensor, axis: int, n: int
) -> dict[str, Factor] | None:
    if axis != 0 or inputs.ndim != len(layer.kernel_size) + 2:
        return None
    images, d = _by_sample(inputs, 0, n), _by_sample(slopes, 0, n).flatten(3)
    # (n, repeats, groups, rows, positions) -> (n, groups, repeats * positions, rows)
    grouped = torch.unflatten(d, 2, (layer.groups, -1)).permute(0, 2, 1, 4, 3).flatten(2, 3)
    inner = (layer.weight.shape[1], prod(layer.kernel_size))
    found: dict[str, Factor] = {"weight": Outer(grouped, Patches(layer, images), inner)}
    if layer.bias is not None:
        found["bias"] = Direct(d.sum(dim=(1, 3)))
    return found


def _embedding(
    layer: nn.Embedding, inputs: Tensor, slopes: Tensor, axis: int, n: int
) -> dict[str, Factor] | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        return None
    tokens, values = _by_sample(inputs, axis, n).flatten(1), _by_sample(slopes, axis, n).flatten(1, -2)
    if layer.padding_idx is not None:
        values = values.masked_fill((tokens == layer.padding_idx).unsqueeze(2), 0.0)
    return {"weight": Rows(tokens, values, layer.num_embeddings)}


def _layer_norm(
    layer: nn.LayerNorm | nn.RMSNorm, inputs: Tensor, slopes: Tensor, axis: int, n: int
) -> dict[str, Factor] | None:
    shape = list(layer.normalized_shape)
    if axis >= inputs.ndim - len(shape):
        return None
    if isinstance(layer, nn.RMSNorm):
        normal = functional.rms_norm(inputs, shape, None, layer.eps)
    else:
        normal = functional.layer_norm(inputs, shape, None, None, layer.eps)
    size = prod(shape)
    d, a = (_by_sample(tensor, axis, n).reshape(n, -1, size) for tensor in (slopes, normal))
    return _affine(layer, torch.einsum("nrm,nrm->nm", d, a), d.sum(dim=1))


def _channel_norm(layer: Any, inputs: Tensor, slopes: Tensor, axis: int, n: int) -> dict[str, Factor] | None:
    if axis != 0 or inputs.ndim < 2:
        return None
    if isinstance(layer, nn.GroupNorm):
        normal = functional.group_norm(inputs, layer.num_groups, None, None, layer.eps)
    else:
        normal = functional.batch_norm(
            inputs, layer.running_mean, layer.running_var, None, None, False, 0.0, layer.eps
        )
    d, a = (_by_sample(tensor, 0, n).flatten(3) for tensor in (slopes, normal))
    if d.ndim == 3:
        d, a = d.unsqueeze(3), a.unsqueeze(3)
    return _affine(layer, torch.einsum("nrms,nrms->nm", d, a), d.sum(dim=(1, 3)))


def _affine(layer: nn.Module, weight: Tensor, bias: Tensor) -> dict[str, Factor]:
    found: dict[str, Factor] = {}
    if layer.weight is not None:
        found["weight"] = Direct(weight)
    if getattr(layer, "bias", None) is not None:
        found["bias"] = Direct(bias)
    return found


def _by_sample(tensor: Tensor, axis: int, n: int) -> Tensor:
    """Return shape (n, repeats, ...): the axis of the samples first, with its repetitions beside it."""
    return torch.unflatten(tensor.movedim(axis, 0), 0, (n, -1))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _channel_norm,
    nn.BatchNorm1d: _channel_norm,
    nn.BatchNorm2d: _channel_norm,
    nn.BatchNorm3d: _channel_norm,
}
