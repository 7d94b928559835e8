"""A training run in a folder: saved as it goes, resumed where it stopped, validated on shots of its own.

The folder holds ``training.safetensors``, all that decides how training goes on, in one file that is replaced
as a whole; ``curve.csv`` and ``figure.svg``, the learning curve; and in the end the checkpoint.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch

from symdyn_core.errors import InputError
from symdyn_core.files import check_writable, write_atomically
from symdyn_core.random import derive_seed
from symdyn_qec.calibration import Calibration
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import BivariateBicycleCode
from symdyn_qec.decoder import CompiledSymdynDecoder, SymdynDecoder
from symdyn_qec.networks.sector import BASES
from symdyn_qec.rates import clopper_pearson
from symdyn_qec.training import Settings, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Values of p at which confidence is calibrated.
CALIBRATION_STRENGTHS = 8

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
        failures: of the averaged weights on the validation shots of both bases.
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
class Validation:
    """On which shots to validate, and how often.

    Fields:
        every: steps.
        p: noise strength.
        shots: of each basis.
    """

    every: int = 500
    p: float = 0.003
    shots: int = 2048


def train(
    code: BivariateBicycleCode,
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    validation: Validation | None = None,
    device: str = "cpu",
    half_precision: bool = False,
    compiled: bool = False,
    teacher: Checkpoint | None = None,
    workers: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_point: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Train a decoder, or go on with a run that was interrupted.

    Args:
        code: to be decoded.
        settings: how to train; those of the run that is already in the folder, if there is one.
        out: folder of the run.
        validation: on which shots, and how often.
        device: where, as torch names it.
        half_precision: whether activations are bfloat16.
        compiled: whether to compile the network's parts.
        teacher: for a network of one sector, whom to learn from instead of from true flips.
        workers: processes that simulate ahead.
        on_step: called with the number of steps done and the loss.
        on_point: called with every new point of the learning curve.

    Returns:
        The learning curve.

    Raises:
        InputError: a folder that cannot be written to, or with a run of other settings.
    """
    from symdyn_core.plots import to_svg

    folder, validation = Path(out), validation or Validation()
    check_writable(folder)
    training = Training(
        code, settings, device=device, half_precision=half_precision, compiled=compiled, teacher=teacher
    )
    curve = _resume(training, folder)
    test = _Test(code, settings, validation, training, device)
    seconds, start, losses = curve[-1].seconds if curve else 0.0, time.perf_counter(), list[float]()
    drawn = start
    for loss in training.run(workers):
        losses.append(loss)
        on_step(training.step, loss)
        if training.step % validation.every and training.step < settings.steps:
            continue
        seconds += time.perf_counter() - start
        shots, mean = training.step * settings.batch_size, sum(losses) / len(losses)
        curve.append(
            Point(training.step, shots, seconds, mean, test.failures(), len(BASES) * validation.shots)
        )
        on_point(curve[-1])
        _save(training, folder, curve)
        if training.step == settings.steps or time.perf_counter() - drawn > SECONDS_BETWEEN_FIGURES:
            write_atomically(folder / FIGURE, to_svg(draw(curve, validation.p)))
            drawn = time.perf_counter()
        losses, start = [], time.perf_counter()
    record = dataclasses.asdict(settings) | {"device": device, "shots": settings.steps * settings.batch_size}
    record |= {"teacher": None if teacher is None else teacher.name}
    record |= {"curve": [dataclasses.asdict(point) for point in curve]}
    checkpoint = Checkpoint.of(training.averaged, code, settings.rounds, record)
    calibrate(checkpoint, settings.p, validation.shots, settings.seed, device).save(folder, "bfloat16")
    return curve


def calibrate(
    checkpoint: Checkpoint, p: tuple[float, float], shots: int = 2048, seed: int = 0, device: str = "cpu"
) -> Checkpoint:
    """Find out on fresh shots how sure a checkpoint's answers are.

    Args:
        checkpoint: as trained.
        p: lowest and highest noise strength; as many shots are taken at each of a few values between them.
        shots: of each basis.
        seed: of the shots.
        device: where to decode, as torch names it.

    Returns:
        The checkpoint with its calibration.
    """
    found: list[tuple[Any, Any, Any]] = []
    for basis in BASES:
        decoder = CompiledSymdynDecoder(SymdynDecoder(device=device), checkpoint, basis)
        for number, strength in enumerate(np.geomspace(*p, CALIBRATION_STRENGTHS)):
            circuit = bb_memory(checkpoint.code, float(strength), checkpoint.rounds, basis)
            sampler = circuit.compile_detector_sampler(seed=derive_seed(seed, "calibration", basis, number))
            count = -(-shots // CALIBRATION_STRENGTHS)
            detectors, observables = sampler.sample(count, separate_observables=True)
            answer = decoder.predict(detectors)
            found.append((answer.doubt, answer.weight, (answer.observables != observables).any(axis=1)))
    return dataclasses.replace(
        checkpoint,
        calibration=Calibration.fit(*(np.concatenate(field) for field in zip(*found, strict=True))),
    )


class _Test:
    """Validation shots of both bases, and decoders that share the weights in training."""

    def __init__(
        self,
        code: BivariateBicycleCode,
        settings: Settings,
        validation: Validation,
        training: Training,
        device: str,
    ) -> None:
        checkpoint = Checkpoint.of(training.averaged, code, settings.rounds, {})
        self._cases = []
        for basis in BASES:
            circuit = bb_memory(code, validation.p, settings.rounds, basis)
            sampler = circuit.compile_detector_sampler(seed=derive_seed(settings.seed, "validation", basis))
            detectors, observables = sampler.sample(validation.shots, separate_observables=True)
            decoder = CompiledSymdynDecoder(SymdynDecoder(device=device), checkpoint, basis)
            self._cases.append((decoder, detectors, observables))

    def failures(self) -> int:
        """Decode all shots with the present weights."""
        return sum(
            int((decoder.predict(detectors).observables != observables).any(axis=1).sum())
            for decoder, detectors, observables in self._cases
        )


def _save(training: Training, folder: Path, curve: list[Point]) -> None:
    progress = {
        "code": repr(training.code),
        "settings": dataclasses.asdict(training.settings),
        "step": training.step,
        "curve": [dataclasses.asdict(point) for point in curve],
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in training.state().items()}
    content = safetensors.torch.save(tensors, metadata={"progress": json.dumps(progress)})
    write_atomically(folder / STATE, content)
    rows = [",".join(map(str, dataclasses.astuple(point))) for point in curve]
    write_atomically(folder / CURVE, "\n".join([",".join(vars(curve[0])), *rows]) + "\n")


def _resume(training: Training, folder: Path) -> list[Point]:
    """Restore the run in a folder, if there is one; return its learning curve."""
    path = folder / STATE
    if not path.exists():
        return []
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not the state of a training run: {error}") from error
    # JSON has no tuples.
    wanted = {"code": repr(training.code), **json.loads(json.dumps(dataclasses.asdict(training.settings)))}
    found = {"code": progress["code"], **progress["settings"]}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(
                f"{folder} holds a run with {name}={found.get(name)}, not {value}; "
                "give the same or another folder"
            )
    training.restore(tensors, progress["step"])
    return [Point(**point) for point in progress["curve"]]


def draw(curve: list[Point], p: float) -> "Figure":
    """Draw loss and failure rate against shots.

    Args:
        curve: at least one point.
        p: noise strength of the validation shots.
    """
    from matplotlib.figure import Figure

    from symdyn_core.plots import MEASUREMENT

    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shots = [point.shots for point in curve]
    left.plot(shots, [point.loss for point in curve], "o-", ms=3, color=MEASUREMENT)
    left.set(xlabel="shots learnt from", ylabel="loss", title="training", xscale="log", yscale="log")
    bounds = [clopper_pearson(point.failures, point.tested) for point in curve]
    right.plot(shots, [point.rate for point in curve], "o-", ms=3, color=MEASUREMENT)
    right.fill_between(shots, *zip(*bounds, strict=True), color=MEASUREMENT, alpha=0.2, linewidth=0)
    right.set(
        xlabel="shots learnt from",
        ylabel="failures per shot",
        title=f"validation at p = {p:g}, with 95 % intervals",
        xscale="log",
        yscale="log",
    )
    return figure
