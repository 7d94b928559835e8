"""On which shots a training is validated, and which other decoder it is measured against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import ArrayLike, NDArray

from symdyn_qec.baselines.registry import decoder_info, make_decoder
from symdyn_qec.circuits import error_model
from symdyn_qec.run_folder import Baseline

Bits = NDArray[np.bool_]

# The other decoder may take a second for a shot; who waits wants to see that it moves.
SHOTS_BETWEEN_REPORTS = 32


@dataclass(frozen=True)
class Validation:
    """On which shots to validate, how often, and against whom.

    Fields:
        every: steps.
        p: noise strength.
        shots: of each basis.
        baseline: a decoder of :data:`~symdyn_qec.baselines.registry.DECODERS` that decodes the same shots
            once, before training starts; ``None`` for no comparison.
    """

    every: int = 500
    p: float = 0.003
    shots: int = 2048
    baseline: str | None = None


@dataclass(frozen=True, eq=False)
class ValidationShots:
    r"""Shots of a circuit whose observables are known.

    Fields:
        circuit: that they are of.
        detectors: bits, shape ``(shots, detectors)``.
        observables: bits, shape ``(shots, k)``.

    >>> import stim
    >>> circuit = stim.Circuit("X_ERROR(1) 0\nM 0\nDETECTOR rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-1]")
    >>> shots = ValidationShots.sample(circuit, 5, seed=0)
    >>> shots.failures(shots.detectors), shots.failures(~shots.detectors)
    (0, 5)
    """

    circuit: stim.Circuit
    detectors: Bits
    observables: Bits

    @classmethod
    def sample(cls, circuit: stim.Circuit, shots: int, seed: int) -> "ValidationShots":
        """Sample shots of a circuit."""
        sampler = circuit.compile_detector_sampler(seed=seed)
        return cls(circuit, *sampler.sample(shots, separate_observables=True))

    def failures(self, predictions: ArrayLike) -> int:
        """Return on how many shots any observable is wrong.

        Args:
            predictions: bits, shape ``(shots, k)``.
        """
        return int((np.asarray(predictions) != self.observables).any(axis=1).sum())


def count_baseline(
    name: str,
    cases: Sequence[ValidationShots],
    report: Callable[[Baseline, int], None] = lambda baseline, shots: None,
) -> Baseline:
    """Return on how many shots a decoder fails; where it gives up it fails.

    Args:
        name: of the decoder, in :data:`~symdyn_qec.baselines.registry.DECODERS`.
        cases: shots of one or several circuits, which have detectors and observables.
        report: called every few shots with the failures so far, and with the number of shots so far.

    Raises:
        InputError: an unknown decoder, or a circuit that it cannot work with.
        DependencyError: its package is not installed; the message says what to install.
    """
    decoder, graphlike = make_decoder(name), decoder_info(name).graphlike
    failures = done = 0
    for case in cases:
        dem = error_model(case.circuit, "the validation circuit", graphlike)
        compiled = decoder.compile_decoder_for_dem(dem=dem)
        for start in range(0, len(case.detectors), SHOTS_BETWEEN_REPORTS):
            part = slice(start, start + SHOTS_BETWEEN_REPORTS)
            detectors, truth = (
                np.packbits(bits[part], axis=1, bitorder="little")
                for bits in (case.detectors, case.observables)
            )
            found = compiled.decode_shots_bit_packed(bit_packed_detection_event_data=detectors)
            width = truth.shape[1]
            # A byte more says whether the decoder gives up.
            failures += int(((found[:, :width] != truth).any(axis=1) | found[:, width:].any(axis=1)).sum())
            done += len(truth)
            report(Baseline(name, failures), done)
    return Baseline(name, failures)
