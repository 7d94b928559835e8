"""What the units of a network do on data: one pass, in pieces, whatever the network is made of."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, to_float64
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.certificate import generic_point
from symdyn_core.symmetry.collapse import ActivityMoments
from symdyn_core.symmetry.structure.forward import Trace, UnitPoint, Watcher, plain_operations, trace
from symdyn_core.symmetry.structure.propose import layer_name
from symdyn_core.symmetry.structure.running import fold, fold_running_statistics

# Second moments of more units than these would fill the memory, and of more places of an image or a text only
# cost time: neighbouring places say the same.
LARGEST, PLACES = 2048, 32
_TRACED_SAMPLES = 2


@dataclass
class UnitActivity:
    """What the units behind one nonlinearity do on the data.

    Args:
        layer: qualified name of the layer that writes to them; of a recurrent layer, of the weight.
        function: name of the nonlinearity.
        start: number of the first unit among the rows of the layer.
        size: number of units.
        moments: of what goes in and comes out; None for more than 2048 units.
        seen: how often the nonlinearity was passed, in all pieces.
    """

    layer: str
    function: str
    start: int
    size: int
    moments: ActivityMoments | None
    seen: int = 0
    _least: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))
    _most: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))

    @property
    def constant(self) -> Tensor:
        """Which units have the same activation for every sample and place, shape (size,)."""
        return self._least == self._most

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add what goes in and comes out, each of shape (samples, places, size)."""
        self.seen += 1
        self._least = torch.minimum(self._least, after.amin(dim=(0, 1)))
        self._most = torch.maximum(self._most, after.amax(dim=(0, 1)))
        if self.moments is not None:
            self.moments.add(_thinned(before), _thinned(after))


@dataclass(frozen=True)
class Activity:
    """What a network does on data.

    Args:
        units: one entry per nonlinearity and layer, in the order of the forward pass.
        outputs: moments of what each linear and convolutional layer puts out, by qualified name.
    """

    units: tuple[UnitActivity, ...]
    outputs: dict[str, ActivityMoments]


def watch_activity(model: nn.Module, inputs: Tensor, chunk_size: int) -> Activity:
    """Return what the units of a model do on data, in evaluation mode.

    Args:
        model: any module that can be traced.
        inputs: shape (n_samples, ...).
        chunk_size: samples per forward pass.

    Raises:
        Untraceable: the forward pass cannot be read.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ...     activity = watch_activity(model, torch.randn(10, 3), 4)
    >>> [(units.layer, units.function, units.size) for units in activity.units], list(activity.outputs)
    ([('0', 'relu', 4)], ['0', '2'])
    """
    frozen = FrozenModel(model, any_output=True)
    folds = fold_running_statistics(frozen)
    params = fold(frozen.params, folds)
    samples = to_float64(inputs)
    point = generic_point(params, torch_generator(0, "activity"))
    # Some models take no other number of samples than the one they come with.
    few = samples[:_TRACED_SAMPLES] if _runs(frozen, samples[:_TRACED_SAMPLES]) else samples
    traced = trace(frozen, point, few)
    found: dict[tuple[str, str, int], UnitActivity] = {}
    outputs: dict[str, ActivityMoments] = {}
    with torch.no_grad(), plain_operations():
        for chunk in torch.split(samples, chunk_size if len(few) <= _TRACED_SAMPLES else len(samples)):

            def see(point: UnitPoint, before: Tensor, after: Tensor, count: int = len(chunk)) -> None:
                _add_units(found, traced, point, (before, after), count)

            with _output_moments(frozen.module, outputs, len(chunk)), Watcher(traced.points, see):
                frozen(params, chunk)
    return Activity(tuple(_whole(found)), outputs)


def _runs(model: FrozenModel, inputs: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(model.params, inputs)
    except InputError:
        return False
    return True


def _add_units(
    found: dict[tuple[str, str, int], UnitActivity],
    traced: Trace,
    point: UnitPoint,
    values: tuple[Tensor, Tensor],
    count: int,
) -> None:
    origin, size = traced.ledger.origins[int(point.labels[0])], len(point.labels)
    before, after = values
    if origin is None or before.shape != after.shape or point.axis >= after.ndim:
        return
    if after.shape[point.axis] != size:
        return
    layer = _writer(origin.parameter)
    key = (layer, point.function, origin.position)
    if key not in found:
        moments = ActivityMoments(size) if size <= LARGEST else None
        found[key] = UnitActivity(layer, point.function.strip("_"), origin.position, size, moments)
    if found[key].size == size:
        found[key].add(*(_by_sample(value.movedim(point.axis, -1), count) for value in values))


def _writer(parameter: str) -> str:
    """Return the layer, or for a recurrent layer, which has several weights, the one of the hidden state.

    >>> _writer("fc.weight"), _writer("rnn.bias_ih_l0")
    ('fc', 'rnn.weight_hh_l0')
    """
    recurrent = re.fullmatch(r"(.*?)(?:weight|bias)_[ih]h(_l\d+(?:_reverse)?)?", parameter)
    if recurrent is None:
        return layer_name(parameter)
    return f"{recurrent[1]}weight_hh{recurrent[2] or ''}"


def _whole(found: dict[tuple[str, str, int], UnitActivity]) -> Iterator[UnitActivity]:
    """Leave out what a recurrent layer calls its state by in the first step only."""
    most: Counter[tuple[str, str]] = Counter()
    for (layer, function, _), units in found.items():
        most[layer, function] = max(most[layer, function], units.seen)
    told: set[tuple[str, int]] = set()
    for (layer, function, start), units in found.items():
        if "weight_hh" not in layer:
            yield units
        elif 2 * units.seen > most[layer, function]:
            if (layer, start) in told:  # the cell state of an LSTM goes by the name of one of its gates
                units.layer, units.start = layer.replace("weight_hh", "cell"), 0
            told.add((layer, start))
            yield units


def _by_sample(values: Tensor, count: int) -> Tensor:
    """Return values of shape (samples, places, units); in one place where the samples do not come first."""
    if len(values) == count:
        return values.reshape(count, -1, values.shape[-1])
    return values.reshape(-1, 1, values.shape[-1])


def _thinned(values: Tensor) -> Tensor:
    kept = values[:, :: max(1, -(-values.shape[1] // PLACES))]
    return kept.reshape(-1, values.shape[-1])


@contextmanager
def _output_moments(module: nn.Module, outputs: dict[str, ActivityMoments], count: int) -> Iterator[None]:
    """Gather the moments of what linear and convolutional layers put out."""
    handles = []
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | _ConvNd):
            continue

        def record(layer: nn.Module, _: object, out: object, name: str = name or "model") -> None:
            axis = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]
            if not isinstance(out, Tensor) or out.shape[axis] > LARGEST:
                return
            values = _thinned(_by_sample(out.movedim(axis, -1), count))
            outputs.setdefault(name, ActivityMoments(values.shape[1])).add(values, values)

        handles.append(layer.register_forward_hook(record))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
