"""The trained transformer as a decoder for sinter.

Its answer is a class of logical errors, found observable after observable, and the probability that the
network gives it. Nothing makes sure that the answer agrees with the checks: what is not learnt is not known.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sinter
import stim
import torch
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.packed_decoder import PackedDecoder, check_postselect, placed
from symdyn_qec.threads import limited_threads
from symdyn_qec.transformer_checkpoint import TransformerCheckpoint


class TransformerPrediction(NamedTuple):
    """What the transformer makes of some shots.

    Fields:
        observables: predicted flips, bits, shape ``(shots, k)``.
        log_probability: natural, of all of them together, at most 0, shape ``(shots,)``.
    """

    observables: BitMatrix
    log_probability: NDArray[np.float32]


class TransformerDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """A trained transformer as a sinter decoder.

    It holds settings and a path, never weights, so that it can be sent to worker processes.

    Args:
        checkpoint: folder.
        beam: classes followed at a time, at least 1; see
            :meth:`~symdyn_qec.networks.transformer.CodeTransformer.decode`.
        postselect: keep a shot only if the network gives its answer at least this probability, in [0, 1];
            sinter counts all others as discards. By default every shot is kept.
        batch_size: shots that go through the network together, at least 1.
        device: where the network runs, as torch names it; by default the CPU.
        threads: that torch may use on the CPU, at least 1; sinter starts a process for every core.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        beam: int = 1,
        postselect: float | None = None,
        batch_size: int = 64,
        device: str | None = None,
        threads: int = 1,
    ) -> None:
        check_postselect(postselect)
        for name, value in (("beam", beam), ("batch_size", batch_size), ("threads", threads)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.checkpoint, self.beam, self.postselect = Path(checkpoint), beam, postselect
        self.batch_size, self.device, self.threads = batch_size, device or "cpu", threads

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> "CompiledTransformerDecoder":
        """Load the weights and make ready for a circuit.

        Args:
            dem: of the circuit; its probabilities do not matter.

        Raises:
            InputError: a checkpoint that cannot be read or is for another circuit, or an unknown device.
        """
        checkpoint = TransformerCheckpoint.load(self.checkpoint)
        checkpoint.check(dem)
        return CompiledTransformerDecoder(self, checkpoint)


class CompiledTransformerDecoder(PackedDecoder):
    """A transformer that is ready for one circuit; made by :class:`TransformerDecoder`."""

    def __init__(self, settings: TransformerDecoder, checkpoint: TransformerCheckpoint) -> None:
        self.settings, self._layout = settings, checkpoint.layout
        self.num_detectors = checkpoint.layout.num_detectors
        self.num_observables = checkpoint.network.num_observables
        self._network = placed(checkpoint.network, settings.device)

    def predict(self, detectors: NDArray[Any]) -> TransformerPrediction:
        """Decode shots.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``, as Stim's
                ``bit_packed=True`` gives them; or one by one, ``bool``, shape ``(shots, detectors)``.

        Raises:
            InputError: another type or width.
        """
        packed, size = self.packed(np.asarray(detectors)), self.settings.batch_size
        observables = np.zeros((len(packed), self.num_observables), dtype=np.uint8)
        log_probability = np.zeros(len(packed), dtype=np.float32)
        with torch.inference_mode(), limited_threads(self.settings.threads):
            for start in range(0, len(packed), size):
                part = slice(start, start + size)
                checks = self._layout.checks(torch.from_numpy(packed[part]).to(self.settings.device))
                answer = self._network.decode(self._network.encode(checks), self.settings.beam)
                observables[part], log_probability[part] = (field.cpu().numpy() for field in answer)
        return TransformerPrediction(observables, log_probability)

    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables and which shots to keep, as sinter's methods want them."""
        found, least = self.predict(detectors), self.settings.postselect
        return found.observables, None if least is None else np.exp(found.log_probability) >= least
