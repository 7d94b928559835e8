"""A linear layer that sends the error down through synapses of its own instead of the transposed weights.

Backpropagation needs each feedback synapse to equal a forward synapse that it cannot see ("weight
transport"). Here both are changed by the same locally available product, the error of the target times the
activity of the source, and both decay; what they do not share is then forgotten at a known rate, whatever the
data and the nonlinearity (:mod:`symdyn_neuro.assembly`). This is the two-synapse case of a four-synapse
heterosynaptic circuit after Liao et al. 2024 (arXiv:2412.20018), re-derived; it coincides with the circuit of
Kolen and Pollack (1994).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from symdyn_core.errors import InputError


class HSLinear(nn.Linear):
    r"""``nn.Linear`` with a separate, plastic ``feedback`` matrix; a drop-in replacement.

    Forward: $y = x W^\top + b$. Backward, for the error $g = \partial\ell/\partial y$ that arrives from
    above:

    .. math:: \delta x = g B, \qquad \delta W = \delta B = g^\top x, \qquad \delta b = \textstyle\sum g,

    with $B$ = ``feedback`` where backpropagation would have $\delta x = g W$. Since ``weight`` and
    ``feedback`` receive the same gradient, any optimiser that treats them alike assembles the circuit: under
    SGD with weight decay $B - W$ shrinks by exactly $1 - \eta\gamma$ a step. Put both in the same parameter
    group, and do not set the weight decay to zero: without it they never meet.

    A layer whose input needs no gradient, usually the first one, never uses its feedback.

    Args:
        in_features: size of the last axis of the input, at least 1.
        out_features: size of the last axis of the output, at least 1.
        bias: whether to add one.
        feedback_scale: standard deviation of the initial feedback times ``sqrt(out_features)``, its number of
            sources; finite, at least 0. Much below 1 the error arrives too weak and learning starts slowly.
        device: as for ``nn.Linear``.
        dtype: real floating point; as for ``nn.Linear``.
        generator: source of the initial values, on any device; torch's default generator where omitted, in
            which case weight and bias are those of ``nn.Linear`` at the same seed.

    Attributes:
        weight: $W$, shape ``(out_features, in_features)``.
        feedback: $B$, stored like ``weight``: shape ``(out_features, in_features)``.
        bias: $b$, shape ``(out_features,)``, or None.

    Raises:
        InputError: sizes, ``feedback_scale`` or ``dtype`` out of range; at the call, an input whose last axis
            is not ``in_features``; at a second differentiation, because the update is not a gradient and so
            has no Hessian.

    Source: arXiv:2412.20018 for the idea of the circuit; rule and law are re-derived here.

    >>> import torch
    >>> layer = HSLinear(2, 1, bias=False, generator=torch.Generator().manual_seed(0))
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
    ...     _ = layer.feedback.copy_(torch.tensor([[5.0, 7.0]]))
    >>> x = torch.tensor([10.0, 20.0], requires_grad=True)
    >>> layer(x).sum().backward()
    >>> x.grad, layer.weight.grad, layer.feedback.grad
    (tensor([5., 7.]), tensor([[10., 20.]]), tensor([[10., 20.]]))
    """

    feedback: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        feedback_scale: float = 1.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        # Not nn.Linear's __init__: it would draw from the default generator before ours is known.
        nn.Module.__init__(self)
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"dtype must be real floating point, got {dtype}")
        self.in_features = in_features
        self.out_features = out_features
        self.feedback_scale = check_feedback_scale(feedback_scale)
        shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.feedback = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters anew: weight and bias as ``nn.Linear`` does, then the feedback.

        Args:
            generator: source of the values; torch's default generator where omitted.
        """
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            # nn.Linear's own call, for the same values bit by bit.
            _draw(nn.init.kaiming_uniform_, self.weight, generator, a=math.sqrt(5))
            if self.bias is not None:
                _draw(nn.init.uniform_, self.bias, generator, a=-bound, b=bound)
        self.reset_feedback(generator)

    def reset_feedback(self, generator: torch.Generator | None = None) -> None:
        """Draw the feedback anew: normal, standard deviation ``feedback_scale / sqrt(out_features)``.

        Args:
            generator: source of the values; torch's default generator where omitted.
        """
        with torch.no_grad():
            _draw(
                nn.init.normal_,
                self.feedback,
                generator,
                std=self.feedback_scale / math.sqrt(self.out_features),
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``.

        Args:
            input: shape ``(..., in_features)``.

        Returns:
            Shape ``(..., out_features)``.
        """
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise InputError(
                f"input must have shape (..., in_features={self.in_features}), got {tuple(input.shape)}"
            )
        tensors: list[Tensor | None] = [input, self.weight, self.feedback, self.bias]
        if torch.is_autocast_enabled(input.device.type):
            # The casts are part of the graph, so that weight and feedback still get the same gradient.
            low = torch.get_autocast_dtype(input.device.type)
            tensors = [None if tensor is None else tensor.to(low) for tensor in tensors]
        return _apply(*tensors)


def check_feedback_scale(scale: float) -> float:
    """Return ``scale`` if it is a usable standard deviation.

    Raises:
        InputError: negative or not finite.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise InputError(f"feedback_scale must be finite and at least 0, got {scale}")
    return scale


class _HeterosynapticLinear(Function):
    """Linear map forward; backward the error goes through ``feedback``."""

    generate_vmap_rule = True  # per-sample gradients by torch.func.vmap

    @staticmethod
    def forward(input: Tensor, weight: Tensor, feedback: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    # Function.apply binds its arguments by inspect.signature(forward) at every call; found here, it need not
    # be worked out anew, which took a third of the layer's overhead.
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, _, feedback, _ = inputs
        ctx.save_for_backward(input, feedback)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = errors
        input, feedback = ctx.saved_tensors
        needs_input, needs_weight, needs_feedback, needs_bias = ctx.needs_input_grad
        rows = error.reshape(-1, error.shape[-1])
        d_input = error @ feedback if needs_input else None
        d_weight = rows.mT @ input.reshape(-1, input.shape[-1]) if needs_weight or needs_feedback else None
        d_bias = rows.sum(0) if needs_bias else None
        deltas = (d_input, d_weight if needs_weight else None, d_weight if needs_feedback else None, d_bias)
        return tuple(map(_once, deltas)) if torch.is_grad_enabled() else deltas


class _Once(Function):
    """Identity that can be computed but not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(update: Tensor) -> Tensor:
        return update.view_as(update)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> Tensor:
        raise InputError(
            "HSLinear can be differentiated once only: its update is not a gradient and has no Hessian "
            "(if no second derivative was meant, detach the parameters or work under torch.no_grad())"
        )


def _once(update: Tensor | None) -> Tensor | None:
    return None if update is None else cast(Tensor, _Once.apply(update))  # type: ignore[no-untyped-call]


def _heterosynaptic_linear(*tensors: Tensor | None) -> Tensor:
    return cast(Tensor, _HeterosynapticLinear.apply(*tensors))  # type: ignore[no-untyped-call]


# Opaque to torch.compile's tracer, which otherwise drops custom backward passes inside torch.func.grad
# without notice and trains by plain backpropagation (seen with torch 2.13). AOTAutograd still compiles both
# passes.
_apply: Callable[..., Tensor] = torch.compiler.allow_in_graph(  # type: ignore[no-untyped-call]
    _heterosynaptic_linear
)


def _draw(fill: Any, parameter: Tensor, generator: torch.Generator | None, **law: float) -> None:
    """Fill a parameter from a generator that may live on another device."""
    if generator is None or generator.device == parameter.device or parameter.is_meta:
        fill(parameter, generator=None if parameter.is_meta else generator, **law)
    else:
        parameter.copy_(
            fill(torch.empty_like(parameter, device=generator.device), generator=generator, **law)
        )
