r"""What training does to the symmetries of a model, watched while it runs.

A charge that gradient flow conserves drifts under noise and decays under weight decay; units die or become
copies of each other; weight matrices lose rank. All of it is slow, much of it is not undone by more training,
and none of it shows in the loss. The monitor measures it every so many steps, warns once about each cause,
and keeps a table and a figure.
"""

import csv
import io
import logging
import math
import operator
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import SGD, AdamW, Optimizer

from symdyn_core.errors import InputError
from symdyn_core.files import check_writable, write_atomically
from symdyn_core.params import Inputs
from symdyn_core.symmetry.alarms import Alarm, Watch
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.kinds import Symmetry
from symdyn_core.symmetry.matrices import WeightMatrix, weight_matrices
from symdyn_core.symmetry.remaining import TOLERANCE
from symdyn_core.symmetry.report import SymmetryReport
from symdyn_core.symmetry.snapshot import (
    LayerState,
    Rows,
    Spectrum,
    Weights,
    bad_parameters,
    charge_shares,
    count_units,
    live_directions,
    spectrum,
    spectrum_work,
    touched,
    unit_weights,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

logger = logging.getLogger("symdyn")

# With the rest of the checks, a training run of few floating-point operations per weight stays below 2 %.
RANK_BUDGET = 0.005
# Matrices up to this smaller side are measured at every check: a millisecond each.
NARROW = 128
# Those up to this one are measured at the first check whatever it takes: a few seconds each.
WIDE = 2048

COLUMNS = ("step", "loss", *(field.name for field in fields(LayerState)))


@dataclass(frozen=True)
class Snapshot:
    """What one check measured.

    Args:
        step: of training.
        loss: as it was given; None if it was not.
        layers: one entry per layer.
        alarms: those that this check has raised.
    """

    step: int
    loss: float | None
    layers: tuple[LayerState, ...]
    alarms: tuple[Alarm, ...]

    def metrics(self) -> dict[str, float]:
        """Return all numbers by name, as experiment trackers take them: ``symmetry/<layer>/<name>``."""
        return {
            f"symmetry/{state.layer}/{name}": value
            for state in self.layers
            for name, value in state.numbers().items()
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row of the table per layer."""
        for state in self.layers:
            yield {"step": self.step, "loss": self.loss, **asdict(state)}


class SymmetryMonitor:
    r"""Charges, dead and equal units, and ranks of a model along its training, with alarms.

    Call :meth:`update` after every step. It measures every ``every`` steps and returns at once in between.
    The spectra of wide matrices would take longer than is bearable; they take turns, so that together they
    take no more than ``rank_budget`` of the running time.

    Args:
        model: any module, also one wrapped for data parallelism or compiled. It is read, never changed.
        example_inputs: a batch, or a tuple of several tensors, to find the model's symmetries with, once and
            on a copy. None, or a forward pass that cannot be read: only ranks are watched.
        every: steps from one check to the next, >= 1.
        symmetries: those of an earlier :func:`~symdyn_core.symmetry.find.find_symmetries`, to save finding
            them again; used in place of `example_inputs`.
        optimizer: whose learning rate and weight decay say what decay alone would do to the charges; may
            have schedules and several parameter groups.
        learning_rate: instead of the optimizer's, with `weight_decay`.
        weight_decay: as torch.optim.SGD and AdamW take it: a step multiplies the weights by
            1 - learning_rate * weight_decay.
        tolerance: fraction of a unit's weights below which it counts as dead, or as equal to another; (0, 1).
        rank_budget: part of the running time that spectra of matrices of more than 128 on both sides may take
            after the first check, in (0, 1]; None: all of them at every check.
        path: CSV file that is kept up to date; an existing one is replaced at the first check.

    Attributes:
        alarms: all alarms so far, also told as warnings of the logger ``symdyn``.
        snapshots: what every check has measured.
        symmetries: the symmetries that are watched.

    Raises:
        InputError: a value out of range, parameters that are spread over devices, a path that cannot be
            written, or symmetries of another model.

    Source: arXiv 2402.07193 (charges), 2309.16932 and 2502.05300 (what collapses).

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> monitor = SymmetryMonitor(model, torch.eye(3), every=10)
    >>> [step for step in range(25) if monitor.update(step)]
    [0, 10, 20]
    >>> _ = nn.init.ones_(model[0].weight.detach()), nn.init.zeros_(model[0].bias.detach())
    >>> _ = nn.init.ones_(model[2].weight.detach())
    >>> first, second = monitor.update(30).layers
    >>> first.charge, first.imbalance, first.duplicate_units  # 4 (2 - 3), over 4 (2 + 3); one unit four times
    (-4.0, -0.2, 3)
    >>> second.rank, second.full_rank
    (1, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs | None = None,
        *,
        every: int = 50,
        symmetries: SymmetryReport | None = None,
        optimizer: Optimizer | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        tolerance: float = TOLERANCE,
        rank_budget: float | None = RANK_BUDGET,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every must be a whole number >= 1, got {every!r}")
        if not 0 < tolerance < 1:
            raise InputError(f"tolerance must be in (0, 1), got {tolerance}")
        if rank_budget is not None and not 0 < rank_budget <= 1:
            raise InputError(f"rank_budget must be in (0, 1] or None, got {rank_budget}")
        if path is not None:
            check_writable(Path(path).parent)
        self.every = every
        self.tolerance = tolerance
        self.path = None if path is None else Path(path)
        self.snapshots: list[Snapshot] = []
        self._model = unwrapped(model)
        self._shapes = {name: value.shape for name, value in _parameters(self._model).items()}
        report = symmetries if symmetries is not None else self._find(example_inputs)
        # What holds up to the eps of a normalisation is conserved up to it; the rest of the report is large.
        findings = (*report.found, *report.approximate)
        self.symmetries: tuple[Symmetry, ...] = tuple(finding.symmetry for finding in findings)
        for symmetry in self.symmetries:
            for name in symmetry.parameters:
                if name not in self._shapes:
                    raise InputError(f"symmetries must be those of this model, got one of {name!r}")
        self._rows = Rows.of(self.symmetries)
        self._decay = _Decay(optimizer, learning_rate, weight_decay)
        self._turns = _Turns(rank_budget)
        self._watch = Watch()
        self._shares: dict[str, dict[str, float]] = {}  # of each charge, by parameter, at the last check
        self._places: dict[str, int] = {}
        self._seen: int | None = None
        self._next = -math.inf
        self._file_is_current = False

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms so far."""
        return self._watch.alarms

    def update(self, step: int, loss: float | Tensor | None = None) -> Snapshot | None:
        """Measure if it is time to; the first call always does.

        Args:
            step: number of optimizer steps taken so far; must not go back.
            loss: for table and figure; a tensor is read only when a check is due.

        Returns:
            What was measured, None between checks.

        Raises:
            InputError: the step goes back, or the parameters are no longer those that the monitor was made
                for.
        """
        step = operator.index(step)
        if self._seen is None:
            self._seen = step
        elif step < self._seen:
            raise InputError(f"step must not go back, got {step} after {self._seen}")
        self._decay.advance(step - self._seen)
        self._seen = step
        if step < self._next:
            return None
        self._next = (step // self.every + 1) * self.every
        return self._check(step, loss.detach().item() if isinstance(loss, Tensor) else loss)

    def to_frame(self) -> "pd.DataFrame":
        """Return the table: one row per check and layer; what was not measured is missing."""
        import pandas as pd

        rows = [row for snapshot in self.snapshots for row in snapshot.rows()]
        whole = ["units", "dead_units", "duplicate_units", "width", "live_directions", "full_rank", "rank"]
        frame = pd.DataFrame.from_records(rows, columns=list(COLUMNS))
        numbers = [name for name in COLUMNS if name not in ("step", "layer", "kind", *whole)]
        return frame.astype(
            {"step": "int64"} | dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, "float64")
        )

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table; the file is whole or untouched.

        Raises:
            InputError: the place cannot be written to.
        """
        return write_atomically(path, _csv(self.snapshots, header=True))

    def figure(self) -> "Figure":
        """Draw imbalance, ranks, lost units and loss along training, with the alarms.

        Raises:
            InputError: nothing has been measured yet.
        """
        from symdyn_core.symmetry.monitor_figure import draw

        return draw(self.snapshots, self.alarms)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in plain numbers and texts; neither model nor optimizer."""
        return {
            "seen": self._seen,
            "next": None if self._next == -math.inf else self._next,
            "shares": self._shares,
            "decay": self._decay.state_dict(),
            "watch": self._watch.state_dict(),
            "snapshots": [
                {
                    "step": snapshot.step,
                    "loss": snapshot.loss,
                    "layers": [asdict(row) for row in snapshot.layers],
                }
                for snapshot in self.snapshots
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a monitor of the same model.

        Raises:
            InputError: the state has charges of other layers.
        """
        if state["shares"] and set(state["shares"]) != set(self._rows.charges):
            raise InputError(
                f"the state must be that of a monitor with charges of {sorted(self._rows.charges)}, "
                f"got {sorted(state['shares'])}"
            )
        self._seen = state["seen"]
        self._next = -math.inf if state["next"] is None else state["next"]
        self._shares = {layer: dict(shares) for layer, shares in state["shares"].items()}
        self._decay.load_state_dict(state["decay"])
        self._watch.load_state_dict(state["watch"])
        by_step: dict[int, list[Alarm]] = {}
        for alarm in self.alarms:
            by_step.setdefault(alarm.step, []).append(alarm)
        self.snapshots = [
            Snapshot(
                entry["step"],
                entry["loss"],
                tuple(LayerState(**row) for row in entry["layers"]),
                tuple(by_step.get(entry["step"], [])),
            )
            for entry in state["snapshots"]
        ]
        self._file_is_current = False

    # -- one check ----------------------------------------------------------------------------------------

    def _check(self, step: int, loss: float | None) -> Snapshot:
        named = _parameters(self._model)
        self._check_shapes(named)
        params = {name: value.detach() for name, value in named.items()}
        device = next((value.device.type for value in params.values()), "cpu")
        with torch.no_grad(), torch.autocast(device, enabled=False):
            bad = list(bad_parameters(params))
            layers: dict[str, LayerState] = {}
            weights = Weights(params)
            self._measure_charges(layers, weights, self._decay.factors(named), bad)
            self._measure_units(layers, weights, bad)
            self._measure_ranks(layers, bad)
        self._decay.reset()
        states = sorted(layers.values(), key=lambda state: self._place(state.layer))
        alarms = self._watch.look(step, states, bad)
        for alarm in alarms:
            logger.warning("%s", alarm)
        snapshot = Snapshot(step, loss, tuple(states), alarms)
        self.snapshots.append(snapshot)
        if self.path is not None:
            self._write(snapshot)
        return snapshot

    def _measure_charges(
        self,
        layers: dict[str, LayerState],
        weights: Weights,
        decays: Mapping[str, float],
        bad: Sequence[str],
    ) -> None:
        for layer, symmetries in self._rows.charges.items():
            state = layers.setdefault(layer, LayerState(layer))
            state.kind = symmetries[0].kind
            if set(touched(*symmetries)) & set(bad):
                self._shares.pop(layer, None)
                continue
            shares: dict[str, float] = {}
            total = 0.0
            for symmetry in symmetries:
                own, norm = charge_shares(symmetry, weights)
                shares = {name: shares.get(name, 0.0) + own.get(name, 0.0) for name in shares | own}
                total += norm
            state.charge = sum(shares.values())
            if symmetries[0].units.outgoing and total > 0:
                state.imbalance = state.charge / total
            before = self._shares.get(layer)
            if before is not None:
                state.charge_change = state.charge - sum(before.values())
                if all(name in decays for name in before):
                    state.decay_change = sum((decays[name] - 1) * share for name, share in before.items())
            self._shares[layer] = shares

    def _measure_units(self, layers: dict[str, LayerState], weights: Weights, bad: Sequence[str]) -> None:
        for layer, groups in self._rows.units.items():
            state = layers.setdefault(layer, LayerState(layer))
            state.units = sum(permutation.units.size for permutation, _, _ in groups)
            counts = []
            for permutation, scales, signs in groups:
                if not set(touched(permutation, *scales)) & set(bad):
                    own = unit_weights(permutation, scales, weights)
                    counts.append(count_units(own, self.tolerance, up_to_sign=signs))
            if len(counts) == len(groups):
                state.distance = min(count.distance for count in counts)
                state.weakest = min(count.weakest for count in counts)
                state.dead_units = sum(count.dead for count in counts)
                state.duplicate_units = sum(count.duplicates for count in counts)
        for layer, linear in self._rows.directions.items():
            state = layers.setdefault(layer, LayerState(layer))
            state.width = sum(symmetry.units.size for symmetry in linear)
            if max(symmetry.units.size for symmetry in linear) <= NARROW and not set(touched(*linear)) & set(
                bad
            ):
                state.live_directions = sum(
                    live_directions(symmetry, weights, self.tolerance) for symmetry in linear
                )

    def _measure_ranks(self, layers: dict[str, LayerState], bad: Sequence[str]) -> None:
        matrices = list(weight_matrices(self._model))
        finite = [matrix for matrix in matrices if not {name for name, _ in matrix.parameters} & set(bad)]
        due = self._turns.choose(finite)
        for matrix in matrices:
            state = layers.setdefault(matrix.layer, LayerState(matrix.layer))
            state.full_rank = matrix.full_rank
            if matrix in due:
                ranks = self._turns.measure(matrix)
                state.rank, state.effective_rank = ranks.rank, ranks.effective_rank
        self._turns.finish()

    # -- the rest -----------------------------------------------------------------------------------------

    def _find(self, inputs: Inputs | None) -> SymmetryReport:
        nothing = SymmetryReport((), ())
        if inputs is None:
            return nothing
        try:
            return find_symmetries(self._model, inputs, method="structure", certificate=False)
        except InputError as error:
            logger.warning("no symmetries to watch, only the ranks of the weights: %s", error)
            return nothing

    def _place(self, layer: str) -> int:
        if layer not in self._places:
            self._places[layer] = _position(layer, list(self._shapes))
        return self._places[layer]

    def _check_shapes(self, named: Mapping[str, nn.Parameter]) -> None:
        for name, shape in self._shapes.items():
            if name not in named or named[name].shape != shape:
                now = f"has {tuple(named[name].shape)}" if name in named else "is gone"
                raise InputError(
                    f"parameter {name!r} had shape {tuple(shape)} when the monitor was made and now {now}; "
                    "make a new monitor after a change of the model"
                )

    def _write(self, snapshot: Snapshot) -> None:
        assert self.path is not None
        if self._file_is_current and self.path.exists():
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(_csv([snapshot], header=False))
        else:
            self.write_csv(self.path)
            self._file_is_current = True


class _Decay:
    """How much weight decay alone has shrunk each parameter since the last check."""

    def __init__(
        self, optimizer: Optimizer | None, learning_rate: float | None, weight_decay: float | None
    ) -> None:
        if (learning_rate is None) != (weight_decay is None):
            raise InputError("learning_rate and weight_decay must be given together, got one of them")
        if optimizer is not None and learning_rate is not None:
            raise InputError("expected an optimizer or learning_rate and weight_decay, got both")
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} must be finite and >= 0, got {value}")
        self._optimizer = optimizer
        self._fixed = None
        if learning_rate is not None and weight_decay is not None:
            self._fixed = _log_decay(learning_rate * weight_decay)
        self._logs: list[float] = []

    def advance(self, steps: int) -> None:
        """Count steps at the present rates."""
        rates = self._rates()
        self._logs += [0.0] * (len(rates) - len(self._logs))
        for group, rate in enumerate(rates):
            self._logs[group] += steps * rate

    def reset(self) -> None:
        """Start counting again."""
        self._logs = [0.0] * len(self._logs)

    def factors(self, named: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """Return what the squares of each parameter were multiplied by; nothing where it is not known."""
        if self._fixed is not None:
            return dict.fromkeys(named, math.exp(2 * self._logs[0]))
        if self._optimizer is None:
            return {}
        groups = {
            id(parameter): group
            for group, options in enumerate(self._optimizer.param_groups)
            for parameter in options["params"]
        }
        known = {name: self._logs[groups[id(value)]] for name, value in named.items() if id(value) in groups}
        return {name: math.exp(2 * log) for name, log in known.items() if not math.isnan(log)}

    def state_dict(self) -> dict[str, Any]:
        """Return the decay counted so far."""
        return {"logs": list(self._logs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self._logs = list(state["logs"])

    def _rates(self) -> list[float]:
        if self._fixed is not None:
            return [self._fixed]
        if self._optimizer is None:
            return []
        return [_group_decay(self._optimizer, options) for options in self._optimizer.param_groups]


def _group_decay(optimizer: Optimizer, options: Mapping[str, Any]) -> float:
    """Return the logarithm of what one step's decay multiplies a parameter by; NaN where it is not a factor.

    Plain and decoupled decay is a factor. Decay that passes through momentum is one in the long run, at the
    learning rate over one minus the momentum; through the preconditioner of Adam it is none.
    """
    decay = float(options.get("weight_decay", 0.0))
    if decay == 0:
        return 0.0
    rate = float(options["lr"])
    if isinstance(optimizer, SGD):
        momentum = options.get("momentum", 0.0)
        if momentum:
            rate *= (1 - options.get("dampening", 0.0)) / (1 - momentum)
    elif not (isinstance(optimizer, AdamW) or options.get("decoupled_weight_decay")):
        return math.nan
    return _log_decay(rate * decay)


def _log_decay(rate: float) -> float:
    return math.log1p(-rate) if rate < 1 else -math.inf


class _Turns:
    """Whose spectrum is due: all that are cheap, and of the others those that have waited longest."""

    def __init__(self, budget: float | None) -> None:
        self._budget = budget
        self._started: float | None = None  # when the first check was over
        self._spent = 0.0
        self._round = 0
        self._last: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._per_operation = 1e-9

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_started": None, "_spent": 0.0}  # the clock is that of the process

    def choose(self, matrices: Sequence[WeightMatrix]) -> set[WeightMatrix]:
        """Return the matrices to measure at this check."""
        self._round += 1
        left = 0.0
        if self._budget is not None and self._started is not None:
            left = self._budget * (time.perf_counter() - self._started) - self._spent
        due = set()
        for matrix in sorted(matrices, key=lambda matrix: self._last.get(matrix.layer, 0)):
            side = min(matrix.blocks[0].shape)
            if self._budget is not None and side > NARROW and (self._started is not None or side > WIDE):
                left -= self._seconds.get(matrix.layer, self._per_operation * spectrum_work(matrix))
                if left < 0:
                    continue  # and so for all wide ones behind it: the turns are kept
            due.add(matrix)
        return due

    def measure(self, matrix: WeightMatrix) -> Spectrum:
        """Return the spectrum, and keep the time that it took."""
        start = time.perf_counter()
        result = spectrum(matrix)
        seconds = time.perf_counter() - start
        self._last[matrix.layer] = self._round
        self._seconds[matrix.layer] = seconds
        if min(matrix.blocks[0].shape) > NARROW:
            self._per_operation = seconds / spectrum_work(matrix)
            self._spent += seconds
        return result

    def finish(self) -> None:
        """Start the clock once the first check is over: what it takes is part of the set-up."""
        if self._started is None:
            self._started, self._spent = time.perf_counter(), 0.0


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of data parallelism and of torch.compile.

    >>> layer = nn.Linear(1, 1, device="meta")
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name.

    Raises:
        InputError: there is one that does not hold its numbers here.
    """
    named = dict(model.named_parameters())
    for name, value in named.items():
        if isinstance(value, UninitializedParameter):
            raise InputError(f"parameter {name!r} is not initialised yet; run the lazy model once first")
        if value.is_meta or hasattr(value, "device_mesh"):
            where = "the meta device" if value.is_meta else "several devices"
            raise InputError(f"parameter {name!r} must hold all its numbers in one place, got one on {where}")
        if value.is_complex():
            raise InputError(f"parameter {name!r} must be real, got {value.dtype}")
    return named


def _position(layer: str, names: Sequence[str]) -> int:
    """Return the place of a layer's first parameter, for the order of the table."""
    base = layer.split(" (")[0]
    while base:
        for place, name in enumerate(names):
            if name == base or name.startswith(f"{base}."):
                return place
        base = base.rpartition(".")[0]
    return 0


def _csv(snapshots: Sequence[Snapshot], *, header: bool) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(row for snapshot in snapshots for row in snapshot.rows())
    return stream.getvalue()
