"""What an ensemble trains, as one function of one replica's parameters and one minibatch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from symdyn_core.dynamics.ensemble_checkpoint import digest
from symdyn_core.dynamics.ensemble_vmap import BatchLoss
from symdyn_core.errors import InputError
from symdyn_core.params import LossFunction, Params, check_samples, frozen_copy

Samples = Tensor | tuple[Tensor, ...]
SampleLoss = Callable[..., Tensor]
"""Maps the parameters of one replica and one sample to one number."""


@dataclass(frozen=True)
class Problem:
    """A loss, its data and where all replicas start.

    Attributes:
        loss: of one replica's parameters and one minibatch, one argument per tensor of the data.
        data: tensors of n_samples rows.
        start: parameters of one replica.
        about: what tells this problem from others.
    """

    loss: BatchLoss
    data: tuple[Tensor, ...]
    start: dict[str, Tensor]
    about: dict[str, str]

    @property
    def device(self) -> torch.device:
        """Where data and parameters are."""
        return self.data[0].device


def read_problem(
    target: nn.Module | SampleLoss, data: Samples, loss_fn: LossFunction | None, start: Params | None
) -> Problem:
    """Return the problem of a model with a loss, or of a plain function of parameters and a sample.

    Raises:
        InputError: data that do not fit together or are not finite, or a model that cannot be trained so.
    """
    tensors = data if isinstance(data, tuple) else (data,)
    for place, tensor in enumerate(tensors):
        check_samples(f"data[{place}]" if isinstance(data, tuple) else "data", tensor)
    if not tensors or len({len(tensor) for tensor in tensors}) != 1:
        raise InputError(f"data must be tensors of one length, got {[len(tensor) for tensor in tensors]}")
    if len({tensor.device for tensor in tensors}) != 1:
        raise InputError(f"data must be on one device, got {[str(tensor.device) for tensor in tensors]}")
    about = {"data": digest(*tensors)}
    if isinstance(target, nn.Module):
        return _of_model(target, tensors, loss_fn, start, about)
    if not callable(target):
        raise InputError(f"target must be a model or a function, got {type(target).__name__}")
    if loss_fn is not None:
        raise InputError("loss_fn must be left out with a function: it is the loss itself")
    if not start:
        raise InputError("start must give the parameters of a plain function by name")
    _check_start(start, tensors[0].device)

    def mean_loss(params: Params, *samples: Tensor) -> Tensor:
        sample = samples if isinstance(data, tuple) else samples[0]
        return torch.func.vmap(target, in_dims=(None, 0), randomness="error")(params, sample).mean()

    return Problem(mean_loss, tensors, dict(start), about | {"target": _name(target)})


def _of_model(
    model: nn.Module,
    data: tuple[Tensor, ...],
    loss_fn: LossFunction | None,
    start: Params | None,
    about: dict[str, str],
) -> Problem:
    if not callable(loss_fn):
        raise InputError(f"loss_fn must be callable with a model, got {type(loss_fn).__name__}")
    if len(data) != 2:
        raise InputError(f"data must be (inputs, targets) with a model, got {len(data)} tensors")
    private = frozen_copy(model)
    check_deterministic(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise InputError("the model must have at least one trainable parameter")
    parameters = dict(private.named_parameters())
    given = dict(start or {})
    for name, tensor in given.items():
        if name not in trainable:
            raise InputError(f"start must name trainable parameters of the model, got {name!r}")
        if not isinstance(tensor, Tensor) or tensor.shape != parameters[name].shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"start[{name!r}] must have shape {tuple(parameters[name].shape)}, got {shape}")
    begin = {name: given.get(name, parameters[name]).detach() for name in trainable}
    _check_start(begin, data[0].device)
    loss = loss_fn

    def batch_loss(params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(torch.func.functional_call(private, dict(params), (inputs,)), targets)

    fixed = [tensor for name, tensor in parameters.items() if name not in trainable]
    about = about | {
        "model": repr(private),
        "fixed parameters and buffers": digest(*fixed, *private.buffers()),
        "loss_fn": _name(loss_fn),
    }
    return Problem(batch_loss, data, begin, about)


def check_deterministic(model: nn.Module) -> None:
    """Raise InputError if the samples of a minibatch interact, or if the model draws random numbers."""
    for name, module in model.named_modules():
        where = f"layer {name!r}, {type(module).__name__}," if name else f"{type(module).__name__}"
        # Instance normalisation has the same base class, but uses the statistics of one sample.
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch and (module.training or module.running_mean is None):
            raise InputError(f"{where} must be in evaluation mode: it makes the samples of a batch interact")
        for attribute in ("p", "dropout"):
            chance: Any = getattr(module, attribute, 0.0)
            drops = attribute == "dropout" or isinstance(module, nn.modules.dropout._DropoutNd)
            if module.training and drops and isinstance(chance, int | float) and chance > 0:
                raise InputError(f"{where} must be in evaluation mode: it drops entries at random")


def _check_start(start: Params, device: torch.device) -> None:
    for name, tensor in start.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"start[{name!r}] must be a tensor of float32 or float64, got {kind}")
        if tensor.device != device:
            raise InputError(
                f"start[{name!r}] must be on the device of the data, {device}, got {tensor.device}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"start[{name!r}] must be finite, got NaN or infinite entries")


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
