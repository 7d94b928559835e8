"""A training run in a folder: validated on shots of its own, and in the end a calibrated checkpoint.

Beside the files of :mod:`symdyn_qec.run_folder` the folder gets the checkpoint, and ``reliability.svg``, how
far its confidence can be trusted.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_core.random import derive_seed
from symdyn_qec.calibration import Bin, Calibration, draw_reliability, reliability
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import BivariateBicycleCode
from symdyn_qec.decoder import CompiledSymdynDecoder, SymdynDecoder
from symdyn_qec.distributed import processes
from symdyn_qec.networks.sector import BASES
from symdyn_qec.run_folder import Baseline, Point, run_in_folder
from symdyn_qec.training import Settings, Training
from symdyn_qec.validation import Validation, ValidationShots, count_baseline

# Values of p at which confidence is calibrated.
CALIBRATION_STRENGTHS = 8

RELIABILITY = "reliability.svg"


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
    start: Checkpoint | None = None,
    workers: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_point: Callable[[Point], None] = lambda point: None,
    on_baseline: Callable[[Baseline, int], None] = lambda baseline, shots: None,
) -> list[Point]:
    """Train a decoder, or go on with a run that was interrupted.

    Of several processes (:mod:`symdyn_qec.distributed`) the first alone writes and calls back.

    Args:
        code: to be decoded.
        settings: how to train; those of the run that is already in the folder, if there is one.
        out: folder of the run.
        validation: on which shots, how often, and against whom; where the folder has a baseline for as many
            shots at the same p, that one stays.
        device: where, as torch names it.
        half_precision: whether activations are bfloat16.
        compiled: whether to compile the network's parts.
        teacher: for a network of one sector, whom to learn from instead of from true flips.
        start: whose weights to begin with; of the same polynomials, and of the network that is to be trained.
        workers: processes that simulate ahead.
        on_step: called with the number of steps done and the loss.
        on_point: called with every new point of the learning curve.
        on_baseline: called with the failures of the baseline so far, and with the number of shots so far; for
            the last time with those on all shots, before the first step.

    Returns:
        The learning curve.

    Raises:
        InputError: a folder that cannot be written to, or with a run of other settings; a baseline that
            cannot decode the code.
        DependencyError: the package of the baseline is not installed.
    """
    from symdyn_core.plots import to_svg

    folder, validation = Path(out), validation or Validation()
    training = Training(
        code,
        settings,
        device=device,
        half_precision=half_precision,
        compiled=compiled,
        teacher=teacher,
        start=start,
    )
    cases = [
        ValidationShots.sample(
            bb_memory(code, validation.p, settings.rounds, basis),
            validation.shots,
            derive_seed(settings.seed, "validation", basis),
        )
        for basis in BASES
    ]
    curve, baseline = run_in_folder(
        training,
        lambda: training.run(workers),
        folder,
        identity={"code": repr(code), **dataclasses.asdict(settings), "start": _name(start)},
        steps=settings.steps,
        batch_size=settings.batch_size,
        every=validation.every,
        noise=f"p = {validation.p:g}",
        test=count_failures(training, cases, device),
        tested=len(BASES) * validation.shots,
        baseline=lambda: (
            None if validation.baseline is None else count_baseline(validation.baseline, cases, on_baseline)
        ),
        on_step=on_step,
        on_point=on_point,
        on_baseline=on_baseline,
    )
    if processes().rank:
        return curve
    record = dataclasses.asdict(settings) | {"device": device, "shots": settings.steps * settings.batch_size}
    record |= {"teacher": _name(teacher), "start": _name(start)}
    record |= {"curve": [dataclasses.asdict(point) for point in curve]}
    record |= {"baseline": None if baseline is None else dataclasses.asdict(baseline)}
    checkpoint = Checkpoint.of(training.averaged, code, settings.rounds, record)
    calibrate(checkpoint, settings.p, validation.shots, settings.seed, device).save(folder, "bfloat16")
    # As saved: rounded weights are what answers from now on.
    bins = measure_reliability(Checkpoint.load(folder), settings.p, validation.shots, settings.seed, device)
    write_atomically(folder / RELIABILITY, to_svg(draw_reliability(bins)))
    return curve


def _name(checkpoint: Checkpoint | None) -> str | None:
    return None if checkpoint is None else checkpoint.name


def count_failures(training: Training, cases: list[ValidationShots], device: str) -> Callable[[], int]:
    """Return a function that counts the failures of the weights that the training has when it is called.

    Args:
        training: whose averaged weights answer.
        cases: shots of each basis.
        device: where to decode, as torch names it.
    """
    checkpoint = Checkpoint.of(training.averaged, training.code, training.settings.rounds, {})

    def test() -> int:
        # Ready anew each time: on a CPU a decoder has a copy of the weights of when it was made.
        decoders = [CompiledSymdynDecoder(SymdynDecoder(device=device), checkpoint, basis) for basis in BASES]
        return sum(
            case.failures(decoder.predict(case.detectors).observables)
            for decoder, case in zip(decoders, cases, strict=True)
        )

    return test


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
    found = _answers(checkpoint, p, shots, seed, device, "calibration")
    return dataclasses.replace(checkpoint, calibration=Calibration.fit(*found))


def measure_reliability(
    checkpoint: Checkpoint, p: tuple[float, float], shots: int = 2048, seed: int = 0, device: str = "cpu"
) -> list[Bin]:
    """Find out on other shots than those of :func:`calibrate` how far a checkpoint's confidence is true.

    Args:
        checkpoint: with a calibration.
        p: as there.
        shots: likewise.
        seed: likewise; the shots are others for the same seed.
        device: likewise.

    Returns:
        Shots by stated confidence, for :func:`~symdyn_qec.calibration.draw_reliability`.

    Raises:
        InputError: a checkpoint that is not calibrated.
    """
    if checkpoint.calibration is None:
        raise InputError("reliability is that of a calibrated checkpoint: call calibrate first")
    found = _answers(checkpoint, p, shots, seed, device, "reliability")
    return reliability(checkpoint.calibration.confidence(found.doubt, found.weight), ~found.wrong)


class _Answers(NamedTuple):
    """Of a decoder, all of shape ``(shots,)``."""

    doubt: NDArray[np.float64]
    weight: NDArray[np.float64]
    wrong: NDArray[np.bool_]


def _answers(
    checkpoint: Checkpoint, p: tuple[float, float], shots: int, seed: int, device: str, purpose: str
) -> _Answers:
    """Decode shots of both bases at a few strengths; other shots for another purpose."""
    found: list[tuple[Any, Any, Any]] = []
    for basis in BASES:
        decoder = CompiledSymdynDecoder(SymdynDecoder(device=device), checkpoint, basis)
        for number, strength in enumerate(np.geomspace(*p, CALIBRATION_STRENGTHS)):
            circuit = bb_memory(checkpoint.code, float(strength), checkpoint.rounds, basis)
            sampler = circuit.compile_detector_sampler(seed=derive_seed(seed, purpose, basis, number))
            count = -(-shots // CALIBRATION_STRENGTHS)
            detectors, observables = sampler.sample(count, separate_observables=True)
            answer = decoder.predict(detectors)
            found.append((answer.doubt, answer.weight, (answer.observables != observables).any(axis=1)))
    return _Answers(*(np.concatenate(field) for field in zip(*found, strict=True)))
