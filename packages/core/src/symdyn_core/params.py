"""A model as a pure function of its parameters, without touching the caller's model.

A module carries state that theory must not depend on or disturb: training mode, hooks, gradients, dtype,
device. Everything here works on a private copy in evaluation mode without hooks; :class:`FrozenModel` is that
copy in float64 on the CPU, as a map ``(parameters, inputs) -> outputs``.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from symdyn_core.errors import InputError

Params = Mapping[str, Tensor]
Inputs = Tensor | tuple[Tensor, ...]
LossFunction = Callable[[Tensor, Tensor], Tensor]


def to_vector(params: Params) -> Tensor:
    """Return all parameters as one vector, in the order of the mapping.

    >>> to_vector({"w": torch.eye(2), "b": torch.tensor([5.0])}).tolist()
    [1.0, 0.0, 0.0, 1.0, 5.0]
    """
    return torch.cat([tensor.reshape(-1) for tensor in params.values()]) if params else torch.zeros(0)


def from_vector(vector: Tensor, like: Params) -> dict[str, Tensor]:
    """Return the entries of ``vector`` under the names and shapes of ``like``; inverse of :func:`to_vector`.

    Raises:
        InputError: the vector has another length than ``like``.

    >>> from_vector(torch.tensor([1.0, 2.0]), {"b": torch.zeros(2)})
    {'b': tensor([1., 2.])}
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        raise InputError(f"vector must have shape ({sum(sizes)},), got {tuple(vector.shape)}")
    pieces = torch.split(vector, sizes)
    return {name: piece.reshape(like[name].shape) for name, piece in zip(like, pieces, strict=True)}


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model in evaluation mode, without hooks and without gradients.

    Hooks are left behind because they belong to the caller's training loop: run on a copy, a hook that
    records activations would write into the caller's records.

    Raises:
        InputError: not a module, parameters not yet initialised, complex or not finite, or the module refuses
            to be copied.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if "_parameters" not in vars(model):
        raise InputError(f"{type(model).__name__}.__init__ must call super().__init__() of torch.nn.Module")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(f"parameter {name!r} is not initialised yet; run the lazy model once first")
        if parameter.is_meta:
            raise InputError(f"parameter {name!r} must hold numbers, got one on the meta device")
        if parameter.is_complex():
            raise InputError(f"parameter {name!r} must be real, got {parameter.dtype}")
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise InputError(f"parameter {name!r} must be finite, got NaN or infinite entries")
    try:
        private = copy.deepcopy(model).requires_grad_(False).eval()
    except Exception as error:
        raise InputError(f"model cannot be copied: {_one_line(error)}") from error
    for module in private.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for parameter in private.parameters():
        parameter.grad = None
    return private


class FrozenModel:
    """The function ``f(parameters, inputs)`` of a model, in float64 on the CPU.

    Args:
        model: any module that maps one or several tensors to one tensor; it is copied, never changed.
        batch_statistics: whether normalisation layers that can normalise by the statistics of the batch do
            so, as in training; everything else is as in evaluation.
        any_output: whether the model may return several tensors, in tuples, lists or mappings; they are then
            flattened into one.

    Attributes:
        params: the model's parameters by qualified name, float64; a tied parameter appears once.

    Raises:
        InputError: see :func:`frozen_copy`.

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1)
    >>> _ = nn.init.ones_(line.weight), nn.init.zeros_(line.bias)
    >>> f = FrozenModel(line)
    >>> double = {name: 2 * value for name, value in f.params.items()}
    >>> f(double, torch.full((1, 1), 3.0)).item()
    6.0
    """

    def __init__(self, model: nn.Module, *, batch_statistics: bool = False, any_output: bool = False) -> None:
        self.module = frozen_copy(model).to(device="cpu", dtype=torch.float64)
        if batch_statistics:
            for norm in statistics_layers(self.module):
                norm.train()
        self.params: dict[str, Tensor] = dict(self.module.named_parameters())
        self._any_output = any_output

    def __call__(self, params: Params, inputs: Inputs) -> Tensor:
        """Return the outputs at other parameter values.

        Raises:
            InputError: the model does not run on these inputs, or returns something else than one tensor.
        """

        def call(*arguments: Tensor) -> Any:
            outputs = torch.func.functional_call(self.module, dict(params), arguments)
            return flat_outputs(outputs) if self._any_output else outputs

        return run(call, to_float64(inputs))


def statistics_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that normalise by the statistics of the batch when they train."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def flat_outputs(outputs: Any) -> Tensor:
    """Return the floating-point tensors in a nest of tuples, lists and mappings, as one.

    A single tensor is returned as it is. Of a mapping with ``logits``, only these count: what such models
    return beside them are caches.

    >>> flat_outputs((torch.ones(2), {"state": [torch.zeros(1)]}))
    tensor([1., 1., 0.])
    """
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        outputs = outputs["logits"]
    if isinstance(outputs, Tensor):
        return outputs
    found: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                found.append(value.reshape(-1))
        elif isinstance(value, Mapping):
            collect(list(value.values()))
        elif isinstance(value, list | tuple):
            for entry in value:
                collect(entry)

    collect(outputs)
    if not found:
        raise InputError(f"the model must return tensors, got {type(outputs).__name__}")
    return torch.cat(found)


@overload
def to_float64(inputs: Tensor) -> Tensor: ...
@overload
def to_float64(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]: ...
def to_float64(inputs: Inputs) -> Inputs:
    """Return the inputs on the CPU, in float64 if they are floating point and as they are otherwise."""
    if isinstance(inputs, tuple):
        return tuple(to_float64(tensor) for tensor in inputs)
    inputs = inputs.detach().to("cpu")
    return inputs.to(torch.float64) if inputs.is_floating_point() else inputs


def run(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """Return ``model(inputs)``, or ``model(*inputs)``, and leave the global random state as it was.

    Raises:
        InputError: the model raises, or returns something else than one tensor.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = model(*arguments)
    except InputError:
        raise
    except Exception as error:
        if getattr(error, "passes_through", False):
            raise
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in arguments)
        raise InputError(f"the model fails on inputs of shape {shapes}: {_one_line(error)}") from error
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model must return one tensor, got {type(outputs).__name__}")
    return outputs


def check_samples(what: str, data: object) -> None:
    """Raise InputError, naming ``what``, unless the data are a finite tensor of at least one sample."""
    if not isinstance(data, Tensor):
        raise InputError(f"{what} must be a torch.Tensor, got {type(data).__name__}")
    if data.layout is not torch.strided or data.is_quantized or data.is_meta:
        raise InputError(f"{what} must be a dense tensor of numbers, got {data.layout} of {data.dtype}")
    if data.ndim == 0 or data.numel() == 0:
        raise InputError(f"{what} must hold at least one sample, got shape {tuple(data.shape)}")
    if not bool(torch.isfinite(data).all()):
        raise InputError(f"{what} must be finite, got NaN or infinite entries")


def check_data(inputs: Tensor, targets: Tensor) -> None:
    """Raise InputError unless both are finite tensors with the same, positive number of samples."""
    check_samples("inputs", inputs)
    check_samples("targets", targets)
    if len(inputs) != len(targets):
        raise InputError(
            f"inputs and targets must have the same length, got {len(inputs)} and {len(targets)}"
        )


def evaluate_loss(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, targets: Tensor) -> float:
    """Return ``loss_fn(model(inputs), targets)`` in evaluation mode, in the model's own dtype.

    Args:
        model: maps ``inputs`` to one tensor; it is copied, never changed.
        loss_fn: maps (outputs, targets) to one number.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).

    Raises:
        InputError: the data do not fit together, model or loss raises, or the loss is not one finite number.

    >>> ones = torch.ones(4, 1)
    >>> evaluate_loss(nn.Identity(), nn.functional.mse_loss, 3 * ones, ones)
    4.0
    """
    check_data(inputs, targets)
    if not callable(loss_fn):
        raise InputError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    with torch.no_grad():
        outputs = run(frozen_copy(model), inputs)
        try:
            loss = torch.as_tensor(loss_fn(outputs, targets))
        except Exception as error:
            shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
            raise InputError(f"the loss fails on {shapes}: {_one_line(error)}") from error
    if loss.numel() != 1:
        raise InputError(f"the loss must be one number, got shape {tuple(loss.shape)}")
    if loss.is_complex():
        raise InputError(f"the loss must be real, got {loss.dtype}")
    if not math.isfinite(loss.item()):
        raise InputError(f"the loss must be finite, got {loss.item()}")
    return float(loss)


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
