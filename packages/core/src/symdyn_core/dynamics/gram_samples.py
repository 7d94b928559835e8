"""Per-sample gradients of a whole model, chunk by chunk, from one forward and backward pass each.

Hooks write down what goes into every known layer, and the backward pass gives the gradient by what comes out;
nothing is trusted unseen. The first chunk is compared with a run of one or two samples alone: it tells along
which axis of a layer's input the samples lie, and whether they are independent of each other. The graph of
the backward pass tells how often a parameter was used: only if each use was one of a known layer is the
layer's rule taken, and ``torch.func`` differentiates sample by sample otherwise.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from symdyn_core.dynamics.gram import BLOCK_NUMBERS, Direct, Factor, merged
from symdyn_core.dynamics.gram_layers import RULES, factors_of
from symdyn_core.errors import InputError
from symdyn_core.mean_loss import check_mean_loss
from symdyn_core.params import FrozenModel, LossFunction, check_data, frozen_copy
from symdyn_core.symmetry.structure.forward import plain_operations

# Numbers of inputs, output gradients and formed gradients kept for a chunk: 128 MiB in float32.
CHUNK_NUMBERS = 2**25
CHUNK_SAMPLES = 4096  # the inner products of two chunks are held: 128 MiB
CHECK_SAMPLES = 4  # of the check of the loss, at most


@dataclass
class _Use:
    """One call of a known layer."""

    name: str
    inputs: Tensor
    version: int
    edge: GradientEdge
    shape: torch.Size
    slopes: Tensor | None = None

    @property
    def intact(self) -> bool:
        """Whether the input is still what it was, not overwritten since."""
        return self.inputs._version == self.version


@dataclass(frozen=True)
class _Run:
    """A forward and backward pass; the slopes are those of the samples' own losses."""

    uses: list[_Use]
    outputs: Tensor
    loss: float
    edges: Counter[str]


class SampleGradients:
    """The gradients of every sample's loss, in evaluation mode and the model's own dtype, on its device.

    Args:
        model: copied, never changed.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        chunk_size: samples at a time; by default as many as fit into 128 MiB of float32.

    Attributes:
        n_samples: n.
        params: the model's parameters by qualified name; a tied parameter appears once.
        chunks: the samples of each chunk.
        formed: parameters whose gradients are formed sample by sample, for want of a rule.

    Raises:
        InputError: data that do not fit together, a model or loss that fails, samples that are coupled, or a
            loss that is not the mean over samples.
    """

    def __init__(
        self,
        model: FrozenModel | nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        targets: Tensor,
        *,
        chunk_size: int | None = None,
    ) -> None:
        check_data(inputs, targets)
        if not callable(loss_fn):
            raise InputError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
        if len(inputs) < 2:
            raise InputError(f"the noise of the gradient needs at least 2 samples, got {len(inputs)}")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        self._module = _private(model.module if isinstance(model, FrozenModel) else model)
        self.params = dict(self._module.named_parameters())
        first = next(iter(self.params.values()))
        self._loss_fn = loss_fn
        self._inputs, self._targets = (_like(data, first) for data in (inputs, targets))
        self.n_samples = len(inputs)
        self._layers = {name: layer for name, layer in self._module.named_modules() if type(layer) in RULES}
        self._aliases = self._names_of_parameters()

        alone = self._run(slice(0, 1 if 2 in (chunk_size, self.n_samples) else 2))
        size = chunk_size or min(CHUNK_SAMPLES, max(3, CHUNK_NUMBERS // max(1, _numbers(alone))))
        together = self._run(slice(0, min(size, self.n_samples)))
        self._check_independent(alone, together)
        self._check_mean(together)
        self._axes = _axes(alone, together)
        collected = self._collect(together)
        self.formed = [name for name, factor in collected.items() if factor is None]
        formed_numbers = sum(self.params[name].numel() for name in self.formed)
        if chunk_size is None and self.formed:
            size = max(1, min(size, CHUNK_NUMBERS // formed_numbers))
        starts = range(0, self.n_samples, size)
        self.chunks = [slice(start, min(start + size, self.n_samples)) for start in starts]
        self._first = (together.loss, collected) if self.chunks[0].stop == len(together.outputs) else None
        self._keep = (_numbers(alone) + formed_numbers) * self.n_samples <= CHUNK_NUMBERS
        self._kept: dict[int, tuple[float, dict[str, Factor]]] = {}

    def factors(self, index: int) -> tuple[float, dict[str, Factor]]:
        """Return the mean loss of a chunk and the gradients of its samples, by parameter name.

        A parameter that the loss does not depend on is left out.

        Raises:
            InputError: the loss is not finite, or the model computes this chunk otherwise than the first.
        """
        if index in self._kept:
            return self._kept[index]
        samples = self.chunks[index]
        if index == 0 and self._first is not None:
            (loss, collected), self._first = self._first, None
        else:
            run = self._run(samples)
            loss, collected = run.loss, self._collect(run)
        lost = [name for name, factor in collected.items() if factor is None and name not in self.formed]
        if lost:
            raise InputError(
                f"the model must use {lost[0]!r} in the same way for all samples; it does not for samples "
                f"{samples.start} to {samples.stop - 1}"
            )
        found = {name: factor for name, factor in collected.items() if factor is not None}
        found = {name: factor for name, factor in found.items() if name not in self.formed}
        found |= {name: Direct(gradients) for name, gradients in self._form(samples).items()}
        whole = {name: found[name] for name in self.params if name in found}
        if self._keep:
            self._kept[index] = (loss, whole)
        return loss, whole

    def _collect(self, run: _Run) -> dict[str, Factor | None]:
        """Return the gradients by parameters that are used only through rules, and None for all others."""
        found: dict[str, list[Factor]] = {name: [] for name in self.params}
        if [use.name for use in run.uses] == [name for name, _ in self._axes]:
            for use, (name, axis) in zip(run.uses, self._axes, strict=True):
                if axis is None or use.slopes is None or use.inputs.shape[axis] % len(run.outputs):
                    continue
                factors = factors_of(self._layers[name], use.inputs, use.slopes, axis, len(run.outputs))
                for local, factor in (factors or {}).items():
                    found[self._aliases[name, local]].append(factor)
        complete = {name for name, factors in found.items() if len(factors) == run.edges[name]}
        return {
            name: merged(factors) if factors and name in complete else None
            for name, factors in found.items()
            if factors or name not in complete
        }

    def _names_of_parameters(self) -> dict[tuple[str, str], str]:
        names = {id(parameter): name for name, parameter in self.params.items()}
        return {
            (name, local): names[id(parameter)]
            for name, layer in self._layers.items()
            for local, parameter in layer.named_parameters(recurse=False)
        }

    def _run(self, samples: slice) -> _Run:
        x, y = self._inputs[samples], self._targets[samples]
        uses: list[_Use] = []
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), _recording(self._layers, uses):
            try:
                outputs = self._module(x)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"the model fails on inputs of shape {tuple(x.shape)}: {_one_line(error)}"
                ) from error
            if not isinstance(outputs, Tensor):
                raise InputError(f"the model must return a tensor, got {type(outputs).__name__}")
            if outputs.ndim == 0 or len(outputs) != len(x):
                raise InputError(
                    f"the model must return one output per sample, got shape {tuple(outputs.shape)} for "
                    f"{len(x)} samples"
                )
            loss = self._loss(outputs, y)
        if loss.grad_fn is None:
            raise InputError("the loss must depend on the parameters through differentiable operations")
        try:
            # The loss is a mean: so many times it, the slopes are those of the samples' own losses.
            scale = torch.full_like(loss, len(x))
            edges = [use.edge for use in uses]
            slopes = torch.autograd.grad(loss, edges, scale, allow_unused=True) if uses else ()
        except RuntimeError as error:
            raise InputError(f"the loss has no gradient: {_one_line(error)}") from error
        for use, slope in zip(uses, slopes, strict=True):
            use.slopes = None if slope is None else slope.detach()
        names = {id(parameter): name for name, parameter in self.params.items()}
        return _Run(uses, outputs.detach(), float(loss.detach()), _edges(loss.grad_fn, names))

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            loss = torch.as_tensor(self._loss_fn(outputs, targets))
        except Exception as error:
            shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
            raise InputError(f"the loss fails on {shapes}: {_one_line(error)}") from error
        if loss.numel() != 1:
            raise InputError(f"the loss must be one number, got shape {tuple(loss.shape)}")
        if not bool(torch.isfinite(loss)):
            raise InputError(f"the loss must be finite, got {float(loss.detach())}")
        return loss.reshape(())

    def _check_independent(self, alone: _Run, together: _Run) -> None:
        count = min(len(alone.outputs), len(together.outputs))
        gap = (alone.outputs[:count] - together.outputs[:count]).abs().max()
        if not gap <= _tolerance(together.outputs) * together.outputs.abs().max():
            raise InputError(
                f"the samples of a batch must be independent of each other: the output of the first ones "
                f"changes by {float(gap):.3g} with the others in the batch"
            )

    def _check_mean(self, run: _Run) -> None:
        chosen = torch.linspace(0, len(run.outputs) - 1, min(CHECK_SAMPLES, len(run.outputs))).long()
        outputs, targets = run.outputs[chosen], self._targets[chosen]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            together = float(self._loss(outputs, targets))
            pairs = zip(torch.split(outputs, 1), torch.split(targets, 1), strict=True)
            single = [float(self._loss(*pair)) for pair in pairs]
        check_mean_loss(together, single, _tolerance(outputs), torch.finfo(outputs.dtype).eps)

    def _form(self, samples: slice) -> dict[str, Tensor]:
        """Return the gradients of the samples by the parameters without a rule, shape (samples, m) each."""
        if not self.formed:
            return {}
        chosen = {name: self.params[name].detach() for name in self.formed}

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self._module, params, (x.unsqueeze(0),))
            return self._loss_fn(outputs, y.unsqueeze(0)).reshape(())

        of_sample = torch.func.grad(loss)
        step = max(1, BLOCK_NUMBERS // sum(value.numel() for value in chosen.values()))
        pieces: list[dict[str, Tensor]] = []
        x, y = self._inputs[samples], self._targets[samples]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), plain_operations():
            for pair in zip(torch.split(x, step), torch.split(y, step), strict=True):
                try:
                    piece = torch.func.vmap(of_sample, in_dims=(None, 0, 0))(chosen, *pair)
                except (
                    RuntimeError
                ):  # not every operation has a batching rule; one by one they have a gradient
                    single = [of_sample(chosen, *sample) for sample in zip(*pair, strict=True)]
                    piece = {name: torch.stack([one[name] for one in single]) for name in chosen}
                pieces.append(piece)
        return {
            name: torch.cat([piece[name].reshape(-1, chosen[name].numel()) for piece in pieces])
            for name in chosen
        }


def _private(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters take gradients, after refusing what has no per-sample gradients."""
    for name, layer in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (
            layer.training or layer.running_mean is None
        ):
            remedy = "call model.eval()" if layer.running_mean is not None else "it keeps no others"
            raise InputError(
                f"{name!r} must not normalise by the statistics of the batch, which couple its samples: none "
                f"of them has a gradient of its own; {remedy}"
            )
    copied = frozen_copy(model)
    for module in copied.modules():
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    parameters = list(copied.named_parameters())
    if not parameters:
        raise InputError("the model must have parameters, got none")
    for name, parameter in parameters:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(f"parameter {name!r} must be float32 or float64, got {parameter.dtype}")
        if parameter.dtype != parameters[0][1].dtype:
            kinds = f"{parameters[0][1].dtype} and {parameter.dtype} ({name!r})"
            raise InputError(f"the parameters must be of one dtype, got {kinds}")
        parameter.requires_grad_(True)
    return copied


@contextmanager
def _recording(layers: dict[str, nn.Module], uses: list[_Use]) -> Iterator[None]:
    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                # Taken here, the edge is that of the output before anything overwrites it in place.
                inputs = (args[0] if args else kwargs["input"]).detach()
                uses.append(_Use(name, inputs, inputs._version, get_gradient_edge(output), output.shape))

        return hook

    handles = [layer.register_forward_hook(hook_of(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edges(root: Node, names: dict[int, str]) -> Counter[str]:
    """Count how often the graph of a backward pass leads to each parameter."""
    found: Counter[str] = Counter()
    nodes, seen = [root], {root}
    while nodes:
        for following, _ in nodes.pop().next_functions:
            if following is None:
                continue
            variable = getattr(following, "variable", None)
            if variable is not None:
                found[names.get(id(variable), "")] += 1
            elif following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def _axes(alone: _Run, together: _Run) -> list[tuple[str, int | None]]:
    """Return along which axis of its input the samples lie, for every use of a layer; None if along none."""
    if [use.name for use in alone.uses] != [use.name for use in together.uses]:
        return [("", None)]
    few, many = len(alone.outputs), len(together.outputs)
    return [
        (use.name, _axis(other, use, few, many)) for other, use in zip(alone.uses, together.uses, strict=True)
    ]


def _axis(alone: _Use, together: _Use, few: int, many: int) -> int | None:
    ours, theirs = alone.inputs.shape, together.inputs.shape
    if len(ours) != len(theirs) or not (alone.intact and together.intact):
        return None
    differing = [axis for axis in range(len(ours)) if ours[axis] != theirs[axis]]
    if len(differing) != 1 or theirs[differing[0]] % many or ours[differing[0]] % few:
        return None
    axis = differing[0]
    if ours[axis] // few != theirs[axis] // many:
        return None
    if alone.slopes is None or together.slopes is None:
        return axis if alone.slopes is together.slopes else None
    # Several samples may share an axis with something else, time first or sample first: the values tell.
    rows = min(few, many) * (ours[axis] // few)
    for one, other in ((alone.inputs, together.inputs), (alone.slopes, together.slopes)):
        one, other = one.narrow(axis, 0, rows).double(), other.narrow(axis, 0, rows).double()
        # A unit on the edge of being active may switch by rounding, so the difference as a whole counts.
        if not (one - other).norm() <= 100 * _tolerance(together.slopes) * other.norm():
            return None
    return axis


def _tolerance(tensor: Tensor) -> float:
    """Return the relative difference that rounding may make between batches of different size."""
    return 1e-4 if tensor.dtype == torch.float32 else 1e-8


def _numbers(run: _Run) -> int:
    """Return how many numbers of a sample are kept."""
    return sum(use.inputs.numel() + use.shape.numel() for use in run.uses) // len(run.outputs)


def _like(data: Tensor, parameter: Tensor) -> Tensor:
    data = data.detach().to(parameter.device)
    return data.to(parameter.dtype) if data.is_floating_point() else data


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
