"""What all compiled baselines share: checked and packed shots, and flips that are known in advance."""

from collections.abc import Callable

import numpy as np
import sinter
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.baselines.rare import RareErrors

Packed = NDArray[np.uint8]


class CompiledBaseline(sinter.CompiledDecoder):  # type: ignore[misc]  # sinter has no types
    """A decoder that is ready for one detector error model.

    Args:
        rare: the model.
        decode: from shots to predictions, both packed little endian, for the rare errors alone; a prediction
            may have one byte more, not zero where the shot is to be discarded.
    """

    def __init__(self, rare: RareErrors, decode: Callable[[Packed], Packed]) -> None:
        self._decode = decode
        self._width = -(-rare.model.num_detectors // 8)
        self._num_observables = rare.model.num_observables
        self._known = np.packbits(rare.detectors, bitorder="little") if rare.detectors.any() else None
        self._follows = np.packbits(rare.observables, bitorder="little") if rare.observables.any() else None

    def decode_shots_bit_packed(self, *, bit_packed_detection_event_data: Packed) -> Packed:
        """Decode for sinter.

        Args:
            bit_packed_detection_event_data: ``uint8``, little endian, shape ``(shots, ceil(detectors / 8))``.

        Returns:
            Observables, ``uint8``, little endian, shape ``(shots, ceil(k / 8))``, perhaps with the byte for
            discards.

        Raises:
            InputError: shots of another type or width.
        """
        shots = bit_packed_detection_event_data
        if shots.ndim != 2 or shots.dtype != np.uint8 or shots.shape[1] != self._width:
            raise InputError(
                f"bit_packed_detection_event_data must be packed, uint8 of shape (shots, {self._width}), "
                f"got {shots.dtype} of shape {shots.shape}"
            )
        if not len(shots):
            return np.zeros((0, -(-self._num_observables // 8)), dtype=np.uint8)
        if self._known is not None:
            shots = shots ^ self._known
        predictions = self._decode(shots)
        if self._follows is not None:
            predictions[:, : len(self._follows)] ^= self._follows
        return predictions


def shot_by_shot(
    rare: RareErrors, decode: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Callable[[Packed], Packed]:
    """Return a function on packed shots from one on the detectors of one shot, bits.

    Args:
        rare: the model.
        decode: from detectors, shape ``(num_detectors,)``, to observables, shape ``(k,)``.
    """

    def decode_all(shots: Packed) -> Packed:
        bits = np.unpackbits(shots, axis=1, count=rare.model.num_detectors, bitorder="little")
        predictions = np.array([decode(shot) for shot in bits], dtype=np.uint8)
        return np.packbits(predictions, axis=1, bitorder="little")

    return decode_all
