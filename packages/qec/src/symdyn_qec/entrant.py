"""A decoder at work on the shots of one circuit: it decodes them until it has had enough, and counts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import sinter
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.timing import Stopwatch

Packed = NDArray[np.uint8]

# Single calls, for latencies: until there are this many, but for no more than half of the time.
SINGLE_SHOTS = 1000

# How long a decoder may work in one call, about, before progress is shown.
TURN = 1.0


@dataclass(frozen=True)
class Limits:
    """When a decoder stops; by whatever comes first, after the shot that went beyond it.

    Fields:
        shots: at least 1.
        seconds: of thread-CPU time for decoding, positive; ``None`` for any.
        errors: about how many failures, at least 1; ``None`` for any.
    """

    shots: int = 100_000
    seconds: float | None = 10.0
    errors: int | None = None

    def __post_init__(self) -> None:
        for what, value in (("shots", self.shots), ("max_errors", self.errors)):
            if value is not None and value < 1:
                raise InputError(f"{what} must be at least 1, got {value}")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"budget must be a positive number of seconds, got {self.seconds}")


@dataclass(eq=False)
class Entrant:
    """A decoder at work on one circuit.

    Fields:
        name: of the decoder.
        compiled: ready for the circuit.
        observables: of the circuit.
        limits: when to stop.
        watch: its times.
        shots, errors, discards: so far.
        only_this, only_reference, paired_shots: so far, against the first decoder.
    """

    name: str
    compiled: sinter.CompiledDecoder
    observables: int
    limits: Limits
    watch: Stopwatch
    shots: int = 0
    errors: int = 0
    discards: int = 0
    only_this: int = 0
    only_reference: int = 0
    paired_shots: int = 0
    last: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    @property
    def progress(self) -> float:
        """Which part of the work is done, in [0, 1]."""
        limits = self.limits
        parts = [self.shots / limits.shots]
        if limits.seconds is not None:
            parts.append(self.watch.decoding / limits.seconds)
        if limits.errors is not None:
            parts.append((self.errors + self.discards) / limits.errors)
        return min(1.0, max(parts))

    def work(self, detectors: Packed, observables: Packed, report: Callable[[], None]) -> None:
        """Decode a block of shots, or the first of them if the limits are reached before its end.

        Args:
            detectors: packed, one row per shot.
            observables: likewise.
            report: called now and then.
        """
        failed: list[NDArray[np.bool_]] = []
        place = 0
        while place < len(detectors) and self.progress < 1:
            size = min(self._turn(), len(detectors) - place)
            part = slice(place, place + size)
            failed.append(self._decode(detectors[part], observables[part]))
            place += size
            report()
        self.last = np.concatenate(failed) if failed else np.zeros(0, dtype=np.bool_)

    def pair(self, reference: "Entrant") -> None:
        """Count the shots of the last block that only one of two decoders failed on."""
        both = min(len(self.last), len(reference.last))
        this, other = self.last[:both], reference.last[:both]
        self.paired_shots += both
        self.only_this += int((this & ~other).sum())
        self.only_reference += int((other & ~this).sum())

    def _turn(self) -> int:
        """Return how many shots to decode in one call."""
        watch, limits = self.watch, self.limits
        half = float("inf") if limits.seconds is None else limits.seconds / 2
        if len(watch.latencies) < SINGLE_SHOTS and watch.decoding < half:
            return 1
        seconds = TURN if limits.seconds is None else min(TURN, limits.seconds - watch.decoding)
        each = watch.decoding / self.shots
        return max(1, min(limits.shots - self.shots, int(seconds / max(each, 1e-9))))

    def _decode(self, detectors: Packed, observables: Packed) -> NDArray[np.bool_]:
        """Decode shots, count, and return which failed."""
        wrong, discarded = self._judge(
            self.watch.decode(
                len(detectors),
                lambda: self.compiled.decode_shots_bit_packed(bit_packed_detection_event_data=detectors),
            ),
            observables,
        )
        self.shots += len(detectors)
        self.errors += int((wrong & ~discarded).sum())
        self.discards += int(discarded.sum())
        return wrong | discarded

    def _judge(self, predictions: Packed, truth: Packed) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which predictions are wrong, and which shots the decoder discards."""
        width = truth.shape[1]
        if predictions.dtype != np.uint8 or predictions.shape not in (
            truth.shape,
            (len(truth), width + 1),
        ):
            raise InputError(
                f"decoder {self.name} must return packed observables, uint8 of shape {truth.shape}, or one "
                f"column more for discards, got {predictions.dtype} of shape {predictions.shape}"
            )
        # What the last byte has beyond the observables means nothing.
        used = np.packbits(np.ones(self.observables, dtype=np.uint8), bitorder="little")
        wrong = (((predictions[:, :width] ^ truth) & used) != 0).any(axis=1)
        discarded = (predictions[:, width:] != 0).any(axis=1)
        return wrong, discarded
