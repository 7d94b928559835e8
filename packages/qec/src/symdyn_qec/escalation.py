"""A quick decoder for all shots, and a better one for the few that it is not sure of.

A calibrated decoder knows which shots it may be wrong about, and so do versions of belief propagation that
do not come to agree. Most failures are among a few per cent of the shots: decoded again by a decoder that is
slow but accurate, they cost little on average.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import sinter
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.gf2 import BitMatrix

# Shots that are right with less than this probability are decoded again.
BELOW = 0.98


class Escalated(NamedTuple):
    """What two decoders make of some shots.

    Fields:
        observables: predicted flips, bits, shape ``(shots, k)``.
        confidence: of the first decoder, shape ``(shots,)``.
        escalated: whether the answer is that of the second, shape ``(shots,)``.
        discarded: whether the second decoder gave the shot up, shape ``(shots,)``.
    """

    observables: BitMatrix
    confidence: NDArray[np.float64]
    escalated: NDArray[np.bool_]
    discarded: NDArray[np.bool_]


class Confident(Protocol):
    """What a first decoder says of shots."""

    @property
    def observables(self) -> BitMatrix:
        """Predicted flips, bits, shape ``(shots, k)``."""

    @property
    def confidence(self) -> NDArray[np.float64]:
        """How sure it is, in [0, 1], NaN where it does not know; shape ``(shots,)``."""


class ConfidentDecoder(Protocol):
    """A first decoder that is ready for a circuit."""

    def predict(self, detectors: NDArray[Any]) -> Confident:
        """Decode shots, packed or not."""


class EscalatingDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Two decoders as one for sinter.

    Args:
        first: decodes every shot, such as :class:`~symdyn_qec.decoder.SymdynDecoder` or
            :class:`~symdyn_qec.min_sum_decoder.MinSumDecoder`; what it is compiled to has ``predict``.
        second: any sinter decoder; its answer counts where the first one is not sure.
        below: a confidence, in [0, 1]: shots of less are escalated. By default what the first decoder says
            of itself (``undecided_below``), otherwise 0.98.

    Raises:
        InputError: a confidence out of range, or a first decoder that discards shots.

    >>> from symdyn_qec.baselines.registry import make_decoder
    >>> from symdyn_qec.decoder import SymdynDecoder
    >>> decoder = EscalatingDecoder(SymdynDecoder(), make_decoder("vacuous"), below=0.9)
    >>> decoder.below
    0.9
    """

    def __init__(self, first: sinter.Decoder, second: sinter.Decoder, below: float | None = None) -> None:
        below = getattr(first, "undecided_below", BELOW) if below is None else below
        if not 0 <= below <= 1:
            raise InputError(f"below must be a probability in [0, 1], got {below}")
        if getattr(first, "postselect", None) is not None:
            raise InputError("the first decoder must keep every shot: leave its postselect out")
        self.first, self.second, self.below = first, second, below

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> "CompiledEscalatingDecoder":
        """Make both ready.

        Args:
            dem: of the circuit.

        Raises:
            InputError: a circuit that the first decoder has no checkpoint for, or one that is not calibrated;
                the second decoder may raise what it likes.
        """
        first = self.first.compile_decoder_for_dem(dem=dem)
        if not hasattr(first, "predict"):
            raise InputError(f"the first decoder must tell how sure it is, and {self.first} does not")
        if np.isnan(first.predict(np.zeros((1, dem.num_detectors), dtype=np.bool_)).confidence).any():
            raise InputError("escalation needs a calibrated checkpoint, and this one is not calibrated")
        return CompiledEscalatingDecoder(first, self.second.compile_decoder_for_dem(dem=dem), self.below)


class CompiledEscalatingDecoder(sinter.CompiledDecoder):  # type: ignore[misc]  # sinter has no types
    """Both decoders, ready for a circuit; made by :class:`EscalatingDecoder`."""

    def __init__(self, first: ConfidentDecoder, second: sinter.CompiledDecoder, below: float) -> None:
        self.first, self.second, self.below = first, second, below

    def predict(self, detectors: NDArray[Any]) -> Escalated:
        """Decode shots.

        Args:
            detectors: as the first decoder takes them, packed or not.

        Raises:
            InputError: as there.
        """
        shots = np.asarray(detectors)
        found = self.first.predict(shots)
        escalated = found.confidence < self.below
        observables, discarded = found.observables.copy(), np.zeros(len(found.confidence), dtype=np.bool_)
        if escalated.any():
            doubtful = shots[escalated]
            if doubtful.dtype == np.bool_:
                doubtful = np.packbits(doubtful, axis=1, bitorder="little")
            answer = self.second.decode_shots_bit_packed(bit_packed_detection_event_data=doubtful)
            k = observables.shape[1]
            observables[escalated] = np.unpackbits(answer, axis=1, count=k, bitorder="little")
            discarded[escalated] = answer[:, -(-k // 8) :].any(axis=1)
        return Escalated(observables, found.confidence, escalated, discarded)

    def decode_shots_bit_packed(
        self, *, bit_packed_detection_event_data: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Decode for sinter; a last byte tells shots that the second decoder discards, if there are any.

        Args:
            bit_packed_detection_event_data: as for the first decoder.
        """
        found = self.predict(bit_packed_detection_event_data)
        packed = np.packbits(found.observables, axis=1, bitorder="little")
        if not found.discarded.any():
            return packed
        return np.hstack([packed, found.discarded[:, None].astype(np.uint8)])
