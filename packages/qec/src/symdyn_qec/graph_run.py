"""A training run of a network for any circuit, with the files of :mod:`symdyn_qec.training_run`."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import stim

from symdyn_core.files import write_atomically
from symdyn_core.random import derive_seed
from symdyn_qec.calibration import Bin, Calibration, draw_reliability, reliability
from symdyn_qec.decoder import SymdynDecoder
from symdyn_qec.distributed import processes
from symdyn_qec.graph_checkpoint import GraphCheckpoint
from symdyn_qec.graph_decoder import CompiledGraphDecoder, GraphPrediction
from symdyn_qec.graph_training import GraphSettings, GraphTraining
from symdyn_qec.mechanisms import errors_per_shot
from symdyn_qec.run_folder import Baseline, Point, run_in_folder
from symdyn_qec.training_run import RELIABILITY
from symdyn_qec.validation import Validation, ValidationShots, count_baseline


def train_graph(
    circuits: Sequence[stim.Circuit],
    settings: GraphSettings,
    out: str | os.PathLike[str],
    *,
    test_circuit: stim.Circuit | None = None,
    validation: Validation | None = None,
    device: str = "cpu",
    half_precision: bool = False,
    compiled: bool = False,
    workers: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_point: Callable[[Point], None] = lambda point: None,
    on_baseline: Callable[[Baseline, int], None] = lambda baseline, shots: None,
) -> list[Point]:
    """Train a decoder of a circuit, or go on with a run that was interrupted.

    Of several processes (:mod:`symdyn_qec.distributed`) the first alone writes and calls back.

    Args:
        circuits: one circuit at one or several strengths of its noise, which are taken equally often.
        settings: how to train; those of the run that is already in the folder, if there is one.
        out: folder of the run.
        test_circuit: validation shots are of this one; by default of the first in the list.
        validation: how many shots, how often, and against whom; ``p`` does not count.
        device: where, as torch names it.
        half_precision: whether activations are bfloat16.
        compiled: whether to compile the network.
        workers: processes that simulate ahead.
        on_step: called with the number of steps done and the loss.
        on_point: called with every new point of the learning curve.
        on_baseline: called with the failures of the baseline so far, and with the number of shots so far.

    Returns:
        The learning curve.

    Raises:
        InputError: circuits that differ in more than the strength of their noise or cannot be decoded, a
            folder that cannot be written to, or one with a run of other circuits or settings.
        DependencyError: the package of the baseline is not installed.
    """
    from symdyn_core.plots import to_svg

    folder, validation = Path(out), validation or Validation()
    training = GraphTraining(
        circuits, settings, device=device, half_precision=half_precision, compiled=compiled
    )
    circuit = circuits[0] if test_circuit is None else test_circuit
    shots = ValidationShots.sample(circuit, validation.shots, derive_seed(settings.seed, "validation"))
    model = circuit.detector_error_model(approximate_disjoint_errors=True)
    untrained = GraphCheckpoint.of(training.averaged, training.graph, {})
    decoder = CompiledGraphDecoder(SymdynDecoder(device=device), untrained, model)
    curve, baseline = run_in_folder(
        training,
        lambda: training.run(workers),
        folder,
        identity={"circuits": _digest(circuits), **dataclasses.asdict(settings)},
        steps=settings.steps,
        batch_size=settings.batch_size,
        every=validation.every,
        noise=f"{errors_per_shot(model):.3g} errors per shot",
        test=lambda: shots.failures(decoder.predict(shots.detectors).observables),
        tested=validation.shots,
        baseline=lambda: (
            None if validation.baseline is None else count_baseline(validation.baseline, [shots], on_baseline)
        ),
        on_step=on_step,
        on_point=on_point,
        on_baseline=on_baseline,
    )
    if processes().rank:
        return curve
    models = [circuit.detector_error_model(approximate_disjoint_errors=True) for circuit in circuits]
    record = dataclasses.asdict(settings) | {"device": device, "shots": settings.steps * settings.batch_size}
    record |= {"errors_per_shot": [errors_per_shot(model) for model in models]}
    record |= {"curve": [dataclasses.asdict(point) for point in curve]}
    record |= {"baseline": None if baseline is None else dataclasses.asdict(baseline)}
    checkpoint = GraphCheckpoint.of(training.averaged, training.graph, record)
    calibrate_graph(checkpoint, circuits, validation.shots, settings.seed, device).save(folder, "bfloat16")
    # As saved: rounded weights are what answers from now on.
    bins = _reliability(GraphCheckpoint.load(folder), circuits, validation.shots, settings.seed, device)
    write_atomically(folder / RELIABILITY, to_svg(draw_reliability(bins)))
    return curve


def calibrate_graph(
    checkpoint: GraphCheckpoint,
    circuits: Sequence[stim.Circuit],
    shots: int = 2048,
    seed: int = 0,
    device: str = "cpu",
) -> GraphCheckpoint:
    """Find out on fresh shots how sure a checkpoint's answers are.

    Args:
        checkpoint: as trained.
        circuits: that it was trained on; equally many shots are taken of each.
        shots: of all together.
        seed: of the shots.
        device: where to decode, as torch names it.

    Returns:
        The checkpoint with its calibration.
    """
    found, wrong = _decoded(checkpoint, circuits, shots, derive_seed(seed, "calibration"), device)
    calibration = Calibration.fit(found.doubt, np.zeros_like(found.doubt), wrong)
    return dataclasses.replace(checkpoint, calibration=calibration)


def _reliability(
    checkpoint: GraphCheckpoint, circuits: Sequence[stim.Circuit], shots: int, seed: int, device: str
) -> list[Bin]:
    found, wrong = _decoded(checkpoint, circuits, shots, derive_seed(seed, "reliability"), device)
    return reliability(found.confidence, ~wrong)


def _decoded(
    checkpoint: GraphCheckpoint, circuits: Sequence[stim.Circuit], shots: int, seed: int, device: str
) -> tuple[GraphPrediction, np.ndarray]:
    """Return answers to shots of all circuits, and which of them are wrong."""
    answers, wrong = [], []
    for number, circuit in enumerate(circuits):
        model = circuit.detector_error_model(approximate_disjoint_errors=True)
        decoder = CompiledGraphDecoder(SymdynDecoder(device=device), checkpoint, model)
        some = ValidationShots.sample(circuit, -(-shots // len(circuits)), derive_seed(seed, number))
        answers.append(decoder.predict(some.detectors))
        wrong.append((answers[-1].observables != some.observables).any(axis=1))
    together = GraphPrediction(*(np.concatenate(field) for field in zip(*answers, strict=True)))
    return together, np.concatenate(wrong)


def _digest(circuits: Sequence[stim.Circuit]) -> str:
    return hashlib.sha256("\n".join(map(str, circuits)).encode()).hexdigest()
