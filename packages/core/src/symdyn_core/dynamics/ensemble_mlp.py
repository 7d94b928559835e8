r"""A step of SGD on stacked multilayer perceptrons, by the closed form of their gradient.

With :math:`\delta_l` the derivative of the loss by what layer l puts out, a layer's gradient is
:math:`\delta_l^\top a_{l-1}`: one batched matrix product, which writes straight into the parameters. No graph
is built and no gradient is stored; the intermediate results stay in buffers that are used again.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from symdyn_core.dynamics.ensemble_vmap import held
from symdyn_core.dynamics.replica_optimizers import SGD, Buffers, Rate, ReplicaOptimizer
from symdyn_core.params import LossFunction

_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Identity: None}


@dataclass(frozen=True)
class Layer:
    """A linear layer by the names of its parameters, and what follows it: "relu", "tanh" or None."""

    weight: str
    bias: str | None
    activation: str | None


@dataclass(frozen=True)
class Perceptron:
    """What of a model and its loss the closed form needs; ``cross_entropy`` or else the squared error."""

    layers: tuple[Layer, ...]
    cross_entropy: bool


def read_perceptron(
    model: nn.Module, loss_fn: LossFunction, optimizer: ReplicaOptimizer, inputs: Tensor, targets: Tensor
) -> Perceptron | str:
    """Return the perceptron, or why the closed form does not cover this problem."""
    layers = _layers(model)
    if isinstance(layers, str):
        return layers
    if not isinstance(optimizer, SGD) or optimizer.nesterov or optimizer.dampening:
        return "the optimizer must be SGD without dampening and Nesterov's step"
    kind = _loss_kind(loss_fn)
    if kind is None:
        return f"the loss must be cross_entropy or mse_loss with default settings, got {_name(loss_fn)}"
    weights = dict(model.named_parameters())
    dtype, width = weights[layers[0].weight].dtype, weights[layers[-1].weight].shape[0]
    if inputs.ndim != 2 or inputs.dtype != dtype:
        return f"inputs must be a matrix of {dtype}, got shape {tuple(inputs.shape)} of {inputs.dtype}"
    if kind == "cross_entropy":
        if targets.ndim != 1 or targets.dtype != torch.int64:
            return f"targets must be class numbers, got shape {tuple(targets.shape)} of {targets.dtype}"
        if int(targets.min()) < 0 or int(targets.max()) >= width:
            return f"targets must be in [0, {width}), got {int(targets.min())} to {int(targets.max())}"
    elif tuple(targets.shape) != (len(inputs), width) or targets.dtype != dtype:
        return f"targets must have shape ({len(inputs)}, {width}) of {dtype}, got {tuple(targets.shape)}"
    return Perceptron(tuple(layers), kind == "cross_entropy")


def _layers(model: nn.Module) -> list[Layer] | str:
    if type(model) is not nn.Sequential:
        return f"the model must be a torch.nn.Sequential, got {type(model).__name__}"
    layers: list[Layer] = []
    for name, module in model._modules.items():  # named_children() leaves out a module that comes twice
        if type(module) is nn.Linear:
            bias = None if module.bias is None else f"{name}.bias"
            layers.append(Layer(f"{name}.weight", bias, None))
        elif type(module) in _ACTIVATIONS and layers:
            activation = _ACTIVATIONS[type(module)]
            if activation and layers[-1].activation:
                return "the model must have one activation per layer"
            if activation:
                layers[-1] = Layer(layers[-1].weight, layers[-1].bias, activation)
        else:
            return f"the model must consist of Linear, ReLU, Tanh and Identity, got {type(module).__name__}"
    if not layers:
        return "the model must have a linear layer"
    wanted = {name for layer in layers for name in (layer.weight, layer.bias) if name}
    if wanted != {name for name, parameter in model.named_parameters() if parameter.requires_grad}:
        return "the model's parameters must all be trainable, and its own: no two layers may share them"
    return layers


def _loss_kind(loss_fn: LossFunction) -> str | None:
    if loss_fn is nn.functional.cross_entropy:
        return "cross_entropy"
    if loss_fn is nn.functional.mse_loss:
        return "mse_loss"
    if type(loss_fn) is nn.CrossEntropyLoss:
        plain = loss_fn.weight is None and loss_fn.label_smoothing == 0 and loss_fn.ignore_index < 0
        return "cross_entropy" if plain and loss_fn.reduction == "mean" else None
    if type(loss_fn) is nn.MSELoss:
        return "mse_loss" if loss_fn.reduction == "mean" else None
    return None


def _name(loss_fn: object) -> str:
    return loss_fn.__name__ if inspect.isroutine(loss_fn) else type(loss_fn).__name__


class MlpStepper:
    """Steps of SGD for a perceptron; the arguments of :meth:`step` are those of ``VmapStepper.step``."""

    def __init__(self, perceptron: Perceptron, optimizer: SGD, inputs: Tensor, targets: Tensor) -> None:
        self._perceptron, self._optimizer = perceptron, optimizer
        self._inputs, self._targets = inputs, targets
        self._kept: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @torch.no_grad()
    def step(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Buffers],
        batch: Tensor,
        rate: Rate,
        step: int,
        moving: Tensor,
    ) -> Tensor:
        """Take one step, in place, and return the losses before it, shape (replicas,)."""
        replicas, size = batch.shape
        flat = batch.reshape(-1)
        inputs = self._space("inputs", (replicas * size, self._inputs.shape[1]))
        torch.index_select(self._inputs, 0, flat, out=inputs)
        activations = [inputs.view(replicas, size, -1)]
        for layer in self._perceptron.layers:
            activations.append(self._forward(layer, params, activations[-1]))
        losses, delta = self._loss(activations[-1], self._targets.index_select(0, flat))
        with held(params, buffers, ~(moving & losses.isfinite())):
            self._backward(params, buffers, activations, delta, rate)
        return losses

    def _forward(self, layer: Layer, params: Mapping[str, Tensor], below: Tensor) -> Tensor:
        weight = params[layer.weight]
        out = self._space(layer.weight, (*below.shape[:2], weight.shape[1]))
        if layer.bias is None:
            torch.bmm(below, weight.mT, out=out)
        else:
            torch.baddbmm(params[layer.bias].unsqueeze(1), below, weight.mT, out=out)
        if layer.activation == "relu":
            out.relu_()
        elif layer.activation == "tanh":
            out.tanh_()
        return out

    def _loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean losses, shape (replicas,), and their derivative by the outputs."""
        replicas, size, width = outputs.shape
        if not self._perceptron.cross_entropy:
            delta = torch.sub(outputs, targets.view(outputs.shape), out=self._space("delta", outputs.shape))
            losses = delta.square().mean(dim=(1, 2))
            return losses, delta.mul_(2 / (size * width))
        logarithm = torch.log_softmax(outputs, 2, out=self._space("delta", outputs.shape))
        classes = targets.view(replicas, size, 1)
        losses = logarithm.gather(2, classes).mean(dim=(1, 2)).neg_()
        delta = logarithm.exp_().mul_(1 / size)
        return losses, delta.scatter_add_(2, classes, self._minus_share(classes, delta))

    def _minus_share(self, classes: Tensor, like: Tensor) -> Tensor:
        return torch.full((), -1 / classes.shape[1], dtype=like.dtype, device=like.device).expand(
            classes.shape
        )

    def _backward(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Buffers],
        activations: list[Tensor],
        delta: Tensor,
        rate: Rate,
    ) -> None:
        if isinstance(rate, Tensor) and not self._optimizer.momentum:
            # The derivatives are linear in delta: scaled here once, they are the steps themselves.
            rate = rate.to(delta.dtype).view(-1, 1, 1)
        for place in reversed(range(len(self._perceptron.layers))):
            layer, below, out = self._perceptron.layers[place], activations[place], activations[place + 1]
            if layer.activation == "relu":
                torch.ops.aten.threshold_backward.grad_input(delta, out, 0, grad_input=delta)
            elif layer.activation == "tanh":
                torch.ops.aten.tanh_backward.grad_input(delta, out, grad_input=delta)
            weight, derivative = params[layer.weight], delta
            if place:  # before the weight moves
                delta = torch.bmm(derivative, weight, out=self._space(f"delta {place}", below.shape))
            self._move(weight, buffers.get(layer.weight, {}), derivative.mT, below, rate)
            if layer.bias is not None:
                # As a product with ones: the bias is a weight of a constant input.
                bias = params[layer.bias].unsqueeze(1)
                kept = {name: kept.unsqueeze(1) for name, kept in buffers.get(layer.bias, {}).items()}
                self._move(bias, kept, self._ones(derivative), derivative, rate)

    def _move(self, parameter: Tensor, buffers: Buffers, left: Tensor, right: Tensor, rate: Rate) -> None:
        """Descend along the gradient ``left @ right``."""
        decay = self._optimizer.weight_decay
        if self._optimizer.momentum:
            buffer = buffers["momentum"].baddbmm_(left, right, beta=self._optimizer.momentum)
            if decay:
                buffer.add_(parameter, alpha=decay)
            if isinstance(rate, Tensor):
                parameter.addcmul_(buffer, rate.to(parameter.dtype).view(-1, 1, 1), value=-1)
            else:
                parameter.add_(buffer, alpha=-rate)
        elif isinstance(rate, Tensor):
            parameter.mul_(1 - rate * decay) if decay else None
            parameter.baddbmm_(left, right * rate, alpha=-1)
        else:
            parameter.baddbmm_(left, right, beta=1 - rate * decay, alpha=-rate)

    def _ones(self, derivative: Tensor) -> Tensor:
        key = ("ones", tuple(derivative.shape[:2]))
        if key not in self._kept:
            self._kept[key] = derivative.new_ones(derivative.shape[0], 1, derivative.shape[1])
        return self._kept[key]

    def _space(self, name: str, shape: tuple[int, ...]) -> Tensor:
        key = (name, tuple(shape))
        if key not in self._kept:
            self._kept[key] = self._inputs.new_empty(shape)
        return self._kept[key]
