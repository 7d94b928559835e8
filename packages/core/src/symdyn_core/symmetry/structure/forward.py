"""Run a model once and write down what every operation demands of the transformations of its weights.

The forward pass is recorded as it happens, operation by operation, below whatever classes and containers it
is written in: attention, recurrent layers and hand-written normalisations are seen as the same few dozen
operations. What is recorded is the path taken for these inputs; a path that depends on the values of the
parameters is refused.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from symdyn_core.params import FrozenModel, Inputs, Params
from symdyn_core.symmetry.structure import rules
from symdyn_core.symmetry.structure.ledger import Labels, Ledger
from symdyn_core.symmetry.structure.state import DataDependent, State


class Untraceable(Exception):
    """The forward pass cannot be read off one run; the message says why."""


@dataclass(frozen=True)
class UnitPoint:
    """Where units pass through a function that acts on each of them alone.

    Args:
        function: name of the operation.
        occurrence: how many of this name there have been, this one included.
        labels: of the units, shape (n,).
        axis: of the tensor that the units lie along.
    """

    function: str
    occurrence: int
    labels: Labels
    axis: int


@dataclass(frozen=True)
class Trace:
    """What one forward pass demands.

    Args:
        ledger: the demands.
        points: where units pass through functions of single entries, in order.
        uncovered: operations without a rule, with how often they occurred.
        operations: number of operations.
        used: parameters that the forward pass reads, in the order of their first use.
    """

    ledger: Ledger
    points: tuple[UnitPoint, ...]
    uncovered: dict[str, int]
    operations: int
    used: tuple[str, ...]


def trace(
    model: FrozenModel, params: Params, inputs: Inputs, output: Callable[[Tensor], Tensor] | None = None
) -> Trace:
    """Return what the forward pass on these inputs demands of the parameters.

    Args:
        model: the function.
        params: where it is evaluated; generic values show more than special ones.
        inputs: a few samples.
        output: the map under which invariance is asked.

    Raises:
        Untraceable: the path depends on values computed from the parameters.
    """
    state = State(params)
    mode = _Recorder(state)
    try:
        with torch.no_grad(), plain_operations(), mode:
            outputs = model(params, inputs)
            if output is not None:
                outputs = output(outputs)
    except DataDependent as reason:
        raise Untraceable(
            "its path depends on values that it computes (a number or a branch read from a tensor)"
        ) from reason
    except _Unreadable as reason:
        raise Untraceable(f"an operation is used in a way that no rule expects ({reason})") from reason
    rules.finish(state, outputs)
    points = tuple(UnitPoint(*unit) for unit in state.units)
    return Trace(state.ledger, points, state.uncovered, state.ledger.time, tuple(state.used))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, state: State) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = state

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overwritten = func._schema.is_mutable and args and isinstance(args[0], Tensor)
        before = self.state.remembered(args[0]) if overwritten else None
        out = func(*args, **kwargs)
        if before is not None:
            args = (before, *args[1:])
        try:
            rules.apply(self.state, func, args, kwargs, out)
        except DataDependent:
            raise
        except Exception as error:
            raise _Unreadable(f"{func}: {type(error).__name__}: {error}") from error
        return out


class _Unreadable(Exception):
    passes_through = True  # a defect of a rule, not a failure of the model


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands the values before and after chosen operations of a forward pass to a function.

    Args:
        points: the operations.
        see: called with a point and the tensors before and after it.
    """

    def __init__(
        self, points: tuple[UnitPoint, ...], see: Callable[[UnitPoint, Tensor, Tensor], None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._points = {(point.function, point.occurrence): point for point in points}
        self._see = see
        self._counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        self._counts[name] += 1
        point = self._points.get((name, self._counts[name]))
        before = args[0].clone() if point is not None else None
        out = func(*args, **(kwargs or {}))
        if point is not None and before is not None:
            self._see(point, before, out[0] if isinstance(out, tuple | list) else out)
        return out


@contextmanager
def plain_operations() -> Iterator[None]:
    """Have attention computed by its single operations instead of fused ones, here only."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
