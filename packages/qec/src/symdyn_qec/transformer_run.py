"""A training run of the transformer in a folder, with the files of :mod:`symdyn_qec.run_folder`."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any

from symdyn_core.random import derive_seed
from symdyn_qec.codes import CSSCode
from symdyn_qec.run_folder import Baseline, Point, run_in_folder
from symdyn_qec.transformer_checkpoint import TransformerCheckpoint
from symdyn_qec.transformer_decoder import CompiledTransformerDecoder, TransformerDecoder
from symdyn_qec.transformer_training import TransformerSettings, TransformerTraining, memory
from symdyn_qec.validation import Validation, ValidationShots, count_baseline


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
    on_baseline: Callable[[Baseline, int], None] = lambda baseline, shots: None,
) -> list[Point]:
    """Train a transformer, or go on with a run that was interrupted.

    Args:
        code: to be decoded.
        settings: how to train; those of the run that is already in the folder, if there is one.
        out: folder of the run.
        validation: on which shots, how often, and against whom; where the folder has a baseline for as many
            shots at the same p, that one stays.
        device: where, as torch names it.
        half_precision: whether the layers' activations are bfloat16.
        on_step: called with the number of steps done and the loss.
        on_point: called with every new point of the learning curve.
        on_baseline: called with the failures of the baseline so far, and with the number of shots so far; for
            the last time with those on all shots, before the first step.

    Returns:
        The learning curve.

    Raises:
        InputError: a folder that cannot be written to, or with a run of another code or other settings; a
            baseline that cannot decode the code.
        DependencyError: the package of the baseline is not installed.

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
    validation = validation or Validation()
    training = TransformerTraining(code, settings, device=device, half_precision=half_precision)
    record = dataclasses.asdict(settings) | {"device": device, "shots": settings.steps * settings.batch_size}
    checkpoint = TransformerCheckpoint.of(training.averaged, code, settings, record)
    shots = ValidationShots.sample(
        memory(code, validation.p, settings),
        validation.shots,
        derive_seed(settings.seed, "validation", settings.basis),
    )
    # The folder is where weights would be read from; these are in memory already.
    decoder = CompiledTransformerDecoder(TransformerDecoder("", device=device), checkpoint)
    curve, baseline = run_in_folder(
        training,
        training.run,
        out,
        identity=_identity(code, settings),
        steps=settings.steps,
        batch_size=settings.batch_size,
        every=validation.every,
        noise=f"p = {validation.p:g}",
        test=lambda: shots.failures(decoder.predict(shots.detectors).observables),
        tested=validation.shots,
        baseline=lambda: (
            None if validation.baseline is None else count_baseline(validation.baseline, [shots], on_baseline)
        ),
        on_step=on_step,
        on_point=on_point,
        on_baseline=on_baseline,
    )
    record["curve"] = [dataclasses.asdict(point) for point in curve]
    record["baseline"] = None if baseline is None else dataclasses.asdict(baseline)
    checkpoint.save(out)
    return curve


def _identity(code: CSSCode, settings: TransformerSettings) -> dict[str, Any]:
    """Return all that must be equal for a run to be gone on with."""
    checks = [matrix.tobytes() + repr(matrix.shape).encode() for matrix in (code.hx, code.hz)]
    return {"code": hashlib.sha256(b"".join(checks)).hexdigest(), **dataclasses.asdict(settings)}
