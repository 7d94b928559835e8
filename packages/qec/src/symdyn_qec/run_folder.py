"""A training run in a folder: goes on after an interruption, keeps a learning curve.

The folder holds ``training.safetensors``, all that decides how training goes on, in one file that is replaced
as a whole; and ``curve.csv`` and ``figure.svg``, the learning curve.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import safetensors
import safetensors.torch
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.files import check_writable, write_atomically
from symdyn_qec.distributed import from_first, processes
from symdyn_qec.rates import clopper_pearson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A figure takes a second or two; who follows a long run can wait for the next.
SECONDS_BETWEEN_FIGURES = 60.0

STATE, CURVE, FIGURE = "training.safetensors", "curve.csv", "figure.svg"


@dataclass(frozen=True)
class Point:
    """A point of the learning curve.

    Fields:
        step: of the optimizer.
        shots: learnt from.
        seconds: of training, validation apart, over all sittings.
        loss: averaged over the steps since the last point.
        failures: of the averaged weights on the validation shots.
        tested: how many these were.
    """

    step: int
    shots: int
    seconds: float
    loss: float
    failures: int
    tested: int

    @property
    def rate(self) -> float:
        """Failures per shot; a shot fails if any observable is wrong."""
        return self.failures / self.tested


@dataclass(frozen=True)
class Baseline:
    """What a run is measured against: another decoder on the same validation shots.

    Fields:
        name: of the decoder.
        failures: of it.
    """

    name: str
    failures: int


class Resumable(Protocol):
    """A training that can be gone on with."""

    @property
    def step(self) -> int:
        """Steps taken."""

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that decide how training goes on, by name."""

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on from a state."""


def run_in_folder(
    training: Resumable,
    losses: Callable[[], Iterator[float]],
    out: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    steps: int,
    batch_size: int,
    every: int,
    noise: str,
    test: Callable[[], int],
    tested: int,
    baseline: Callable[[], Baseline | None] = lambda: None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_point: Callable[[Point], None] = lambda point: None,
    on_baseline: Callable[[Baseline, int], None] = lambda baseline, shots: None,
) -> tuple[list[Point], Baseline | None]:
    """Take all steps of a training, or those that are left where a folder holds a part of it.

    Of several processes the first alone reads and writes files, tests, counts the baseline and calls back,
    and the losses of the learning curve are its own.

    Args:
        training: at its start.
        losses: called once what the folder holds is restored; takes a step for every loss that it yields.
        out: folder of the run.
        identity: all that must be equal for a run to be gone on with, as JSON can hold it.
        steps: of the whole run.
        batch_size: shots of a step.
        every: steps between validations, and between saves; there is one at the end as well.
        noise: of the validation shots, in words, such as "p = 0.003".
        test: returns how many validation shots the weights of now fail on.
        tested: how many validation shots there are.
        baseline: counts what another decoder fails on; called before the first step, unless the folder has
            the count for as many shots under the same noise, or no step is left.
        on_step: called with the number of steps done and the loss.
        on_point: called with every new point of the learning curve.
        on_baseline: called with the baseline and ``tested`` once it is known, before the first step.

    Returns:
        The learning curve, and the baseline if there is one.

    Raises:
        InputError: a folder that cannot be written to, with a run of another identity, or with a state that
            cannot be read.
    """
    from symdyn_core.plots import to_svg

    folder, wanted = Path(out), json.loads(json.dumps(identity))  # JSON has no tuples
    from_first(lambda: check_writable(folder))
    first = processes().rank == 0
    saved = _resume(training, folder, wanted)
    curve, known = saved.curve, saved.baseline_on(noise, tested)
    if known is None and training.step < steps:
        known = from_first(baseline)
    if known is not None and first:
        on_baseline(known, tested)
    seconds, start, since = curve[-1].seconds if curve else 0.0, time.perf_counter(), list[float]()
    drawn = start
    for loss in losses():
        since.append(loss)
        if first:
            on_step(training.step, loss)
        if training.step % every and training.step < steps:
            continue
        seconds += time.perf_counter() - start
        mean = sum(since) / len(since)
        failures = from_first(test)
        curve.append(Point(training.step, training.step * batch_size, seconds, mean, failures, tested))
        if first:
            on_point(curve[-1])
            _save(training, folder, wanted, _Saved(curve, known, noise, tested))
        if first and (training.step == steps or time.perf_counter() - drawn > SECONDS_BETWEEN_FIGURES):
            write_atomically(folder / FIGURE, to_svg(draw(curve, noise, known)))
            drawn = time.perf_counter()
        since, start = [], time.perf_counter()
    return curve, known


@dataclass(frozen=True)
class _Saved:
    """What a folder knows of a run beside its tensors.

    Fields:
        curve: so far.
        baseline: if there is one.
        noise: of the shots it was counted on.
        tested: how many these were.
    """

    curve: list[Point]
    baseline: Baseline | None = None
    noise: str = ""
    tested: int = 0

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> "_Saved":
        points, baseline = progress["curve"], progress["baseline"]
        return cls(
            [Point(**point) for point in points],
            None if baseline is None else Baseline(**baseline),
            str(progress["noise"]),
            int(progress["tested"]),
        )

    def baseline_on(self, noise: str, tested: int) -> Baseline | None:
        """Return the baseline if it was counted on these shots; a run may be validated on others later."""
        return self.baseline if (self.noise, self.tested) == (noise, tested) else None


def _save(training: Resumable, folder: Path, identity: Mapping[str, Any], saved: _Saved) -> None:
    progress = {"identity": identity, "step": training.step, **dataclasses.asdict(saved)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in training.state().items()}
    content = safetensors.torch.save(tensors, metadata={"progress": json.dumps(progress)})
    write_atomically(folder / STATE, content)
    rows = [",".join(map(str, dataclasses.astuple(point))) for point in saved.curve]
    write_atomically(folder / CURVE, "\n".join([",".join(vars(saved.curve[0])), *rows]) + "\n")


def _resume(training: Resumable, folder: Path, identity: Mapping[str, Any]) -> _Saved:
    """Restore the run in a folder, if there is one; return what else is known of it."""
    found = from_first(lambda: _read(folder, identity))
    if found is None:
        return _Saved([])
    saved, tensors, step = found
    training.restore(tensors, step)
    return saved


def _read(folder: Path, identity: Mapping[str, Any]) -> tuple[_Saved, dict[str, Tensor], int] | None:
    """Return the run in a folder, if there is one: what is known of it, its state and steps."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found, step, saved = dict(progress["identity"]), int(progress["step"]), _Saved.of(progress)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not the state of a training run: {error}") from error
    for name, value in identity.items():
        if found.get(name) != value:
            raise InputError(
                f"{folder} holds a run with {name}={found.get(name)}, not {value}; "
                "give the same or another folder"
            )
    return saved, tensors, step


def draw(curve: list[Point], noise: str, baseline: Baseline | None = None) -> "Figure":
    """Draw loss and failure rate against shots.

    Args:
        curve: at least one point.
        noise: of the validation shots, in words.
        baseline: on as many of them as the last point of the curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    from symdyn_core.plots import MEASUREMENT, RIVAL

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shots = [point.shots for point in curve]
    left.plot(shots, [point.loss for point in curve], "o-", ms=3, color=MEASUREMENT)
    left.set(xlabel="shots learnt from", ylabel="loss", title="training", xscale="log", yscale="log")
    bounds = [clopper_pearson(point.failures, point.tested) for point in curve]
    right.plot(shots, [point.rate for point in curve], "o-", ms=3, color=MEASUREMENT)
    right.fill_between(shots, *zip(*bounds, strict=True), color=MEASUREMENT, alpha=0.2, linewidth=0)
    right.set(
        xlabel="shots learnt from",
        ylabel="failures per shot, 95 % intervals",
        title=f"validation, {noise}",
        xscale="log",
        yscale="log",
    )
    for axes in (left, right):
        # What a run covers may be less than a decade, whose ticks would then say nothing.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_minor_formatter("{x:.4g}")
        axes.yaxis.set_major_formatter("{x:.4g}")
    if baseline is not None:
        tested = curve[-1].tested
        # The count is in the label as well: a logarithmic axis has no place for no failures.
        label = f"{baseline.name}: {baseline.failures} of {tested}"
        right.axhline(baseline.failures / tested, linestyle="--", color=RIVAL, label=label)
        right.legend(frameon=False)
    return figure
