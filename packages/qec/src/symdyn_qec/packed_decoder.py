"""What all of our decoders do alike: they take shots packed or not, and answer sinter."""

from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np
import sinter
from numpy.typing import NDArray
from torch import nn

from symdyn_core.errors import InputError
from symdyn_qec.gf2 import BitMatrix

Network = TypeVar("Network", bound=nn.Module)


class PackedDecoder(sinter.CompiledDecoder):  # type: ignore[misc]  # sinter has no types
    """A decoder that is ready for one circuit.

    Attributes:
        num_detectors: of the circuit.
    """

    num_detectors: int

    @abstractmethod
    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables, shape ``(shots, k)``, and which shots to keep, ``None`` for all."""

    def decode_shots_bit_packed(
        self, *, bit_packed_detection_event_data: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Decode for sinter.

        Args:
            bit_packed_detection_event_data: ``uint8``, little endian, shape ``(shots, ceil(detectors / 8))``.

        Returns:
            Observables, ``uint8``, little endian, shape ``(shots, ceil(k / 8))``; with ``postselect`` one
            byte more, which is 1 where sinter shall discard the shot.

        Raises:
            InputError: as for ``predict``; and for shots that are not packed.
        """
        name = "bit_packed_detection_event_data"
        if bit_packed_detection_event_data.dtype != np.uint8:
            raise InputError(f"{name} must be packed, uint8, got {bit_packed_detection_event_data.dtype}")
        observables, kept = self.answer(self.packed(bit_packed_detection_event_data, name))
        packed = np.packbits(observables, axis=1, bitorder="little")
        return packed if kept is None else np.hstack([packed, ~kept[:, None]]).astype(np.uint8)

    def packed(self, detectors: NDArray[Any], name: str = "detectors") -> NDArray[np.uint8]:
        """Return shots packed, or raise InputError that says what is expected.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``; or one by
                one, ``bool``, shape ``(shots, detectors)``.
            name: for messages.
        """
        width, packed_width = self.num_detectors, -(-self.num_detectors // 8)
        expected = (
            f"{name} must be packed, uint8 of shape (shots, {packed_width}), "
            f"or bool of shape (shots, {width})"
        )
        seen = f"got {detectors.dtype} of shape {detectors.shape}"
        if detectors.ndim != 2:
            raise InputError(f"{expected}; {seen}")
        if detectors.dtype == np.bool_ and detectors.shape[1] == width:
            return np.packbits(detectors, axis=1, bitorder="little")
        if detectors.dtype == np.uint8 and detectors.shape[1] == packed_width:
            return np.ascontiguousarray(detectors)
        if detectors.dtype == np.uint8 and detectors.shape[1] == width:
            raise InputError(f"{expected}; {seen}: unpacked shots must be bool")
        if detectors.dtype == np.bool_ and detectors.shape[1] == packed_width:
            raise InputError(f"{expected}; {seen}: packed shots must be uint8")
        raise InputError(f"{expected}; {seen}")

    def unpacked(self, detectors: NDArray[Any], name: str = "detectors") -> BitMatrix:
        """Return shots as bits, shape ``(shots, detectors)``; as :meth:`packed` otherwise."""
        packed = self.packed(detectors, name)
        return np.unpackbits(packed, axis=1, count=self.num_detectors, bitorder="little")


def check_postselect(postselect: float | None) -> None:
    """Raise InputError unless a threshold is a probability, or ``None``."""
    # A comparison that also turns down NaN.
    if postselect is not None and not 0 <= postselect <= 1:
        raise InputError(f"postselect must be a probability in [0, 1], got {postselect}")


def placed(network: Network, device: str) -> Network:
    """Return a network on a device, ready to predict.

    Raises:
        InputError: a device that torch does not have here.
    """
    try:
        return network.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch's answer where it was built without CUDA
        raise InputError(f"device must be one that torch has here, got {device!r}: {error}") from error
