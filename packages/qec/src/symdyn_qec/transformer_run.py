"""A training run of the transformer in a folder, with the files of :mod:`symdyn_qec.training_run`."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from symdyn_core.errors import InputError
from symdyn_core.files import check_writable, write_atomically
from symdyn_core.random import derive_seed
from symdyn_qec.codes import CSSCode
from symdyn_qec.training_run import CURVE, FIGURE, SECONDS_BETWEEN_FIGURES, STATE, Point, Validation, draw
from symdyn_qec.transformer_checkpoint import TransformerCheckpoint
from symdyn_qec.transformer_decoder import CompiledTransformerDecoder, TransformerDecoder
from symdyn_qec.transformer_training import TransformerSettings, TransformerTraining, memory


def train_transformer(
    code: CSSCode,
    settings: TransformerSettings,
    out: str | os.PathLike[str],
    *,
    validation: Validation | None = None,
    device: str = "cpu",
    half_precision: bool = False,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_point: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Train a transformer, or go on with a run that was interrupted.

    Args:
        code: to be decoded.
        settings: how to train; those of the run that is already in the folder, if there is one.
        out: folder of the run.
        validation: on which shots, and how often.
        device: where, as torch names it.
        half_precision: whether the layers' activations are bfloat16.
        on_step: called with the number of steps done and the loss.
        on_point: called with every new point of the learning curve.

    Returns:
        The learning curve.

    Raises:
        InputError: a folder that cannot be written to, or with a run of another code or other settings.

    >>> import tempfile
    >>> import numpy as np
    >>> code, check = CSSCode([[1] * 4], [[1] * 4]), Validation(shots=16)
    >>> settings = TransformerSettings(rounds=2, width=8, layers=1, heads=2, batch_size=16, steps=2)
    >>> dem = memory(code, 0.01, settings).detector_error_model()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     curve = train_transformer(code, settings, folder, validation=check)
    ...     decoder = TransformerDecoder(folder, beam=2).compile_decoder_for_dem(dem=dem)
    >>> curve[-1].shots, decoder.predict(np.zeros((3, dem.num_detectors), dtype=bool)).observables.shape
    (32, (3, 2))
    """
    from symdyn_core.plots import to_svg

    folder, validation = Path(out), validation or Validation()
    check_writable(folder)
    training = TransformerTraining(code, settings, device=device, half_precision=half_precision)
    curve = _resume(training, folder)
    record = dataclasses.asdict(settings) | {"device": device, "shots": settings.steps * settings.batch_size}
    checkpoint = TransformerCheckpoint.of(training.averaged, code, settings, record)
    failures = _test(checkpoint, settings, validation, device)
    seconds, start, losses = curve[-1].seconds if curve else 0.0, time.perf_counter(), list[float]()
    drawn = start
    for loss in training.run():
        losses.append(loss)
        on_step(training.step, loss)
        if training.step % validation.every and training.step < settings.steps:
            continue
        seconds += time.perf_counter() - start
        shots, mean = training.step * settings.batch_size, sum(losses) / len(losses)
        curve.append(Point(training.step, shots, seconds, mean, failures(), validation.shots))
        on_point(curve[-1])
        _save(training, folder, curve)
        if training.step == settings.steps or time.perf_counter() - drawn > SECONDS_BETWEEN_FIGURES:
            write_atomically(folder / FIGURE, to_svg(draw(curve, validation.p)))
            drawn = time.perf_counter()
        losses, start = [], time.perf_counter()
    record["curve"] = [dataclasses.asdict(point) for point in curve]
    checkpoint.save(folder)
    return curve


def _test(
    checkpoint: TransformerCheckpoint, settings: TransformerSettings, validation: Validation, device: str
) -> Callable[[], int]:
    """Return a function that counts the failures of the present weights on the validation shots."""
    circuit = memory(checkpoint.code, validation.p, settings)
    sampler = circuit.compile_detector_sampler(seed=derive_seed(settings.seed, "validation", settings.basis))
    detectors, observables = sampler.sample(validation.shots, separate_observables=True)
    # The folder is where weights would be read from; these are in memory already.
    decoder = CompiledTransformerDecoder(TransformerDecoder("", device=device), checkpoint)
    return lambda: int((decoder.predict(detectors).observables != observables).any(axis=1).sum())


def _identity(training: TransformerTraining) -> dict[str, Any]:
    """Return all that must be equal for a run to be gone on with, as JSON gives it back."""
    checks = [
        matrix.tobytes() + repr(matrix.shape).encode() for matrix in (training.code.hx, training.code.hz)
    ]
    digest = hashlib.sha256(b"".join(checks)).hexdigest()
    return {"code": digest, **json.loads(json.dumps(dataclasses.asdict(training.settings)))}


def _save(training: TransformerTraining, folder: Path, curve: list[Point]) -> None:
    progress = {
        "settings": _identity(training),
        "step": training.step,
        "curve": [dataclasses.asdict(point) for point in curve],
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in training.state().items()}
    content = safetensors.torch.save(tensors, metadata={"progress": json.dumps(progress)})
    write_atomically(folder / STATE, content)
    rows = [",".join(map(str, dataclasses.astuple(point))) for point in curve]
    write_atomically(folder / CURVE, "\n".join([",".join(vars(curve[0])), *rows]) + "\n")


def _resume(training: TransformerTraining, folder: Path) -> list[Point]:
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
    for name, value in _identity(training).items():
        if (found := progress["settings"].get(name)) != value:
            raise InputError(
                f"{folder} holds a run with {name}={found}, not {value}; give the same or another folder"
            )
    training.restore(tensors, progress["step"])
    return [Point(**point) for point in progress["curve"]]
