"""The trained decoder of any circuit: matching where that is clear, the network's answer elsewhere."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import stim
import torch
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.graph_checkpoint import GraphCheckpoint
from symdyn_qec.packed_decoder import PackedDecoder, placed
from symdyn_qec.threads import limited_threads

if TYPE_CHECKING:
    from symdyn_qec.decoder import SymdynDecoder


# What is known of all errors of many shots at once would fill the memory.
SHOTS_AT_ONCE = 1024


class GraphPrediction(NamedTuple):
    """What the decoder makes of some shots.

    Fields:
        observables: predicted flips, bits, shape ``(shots, k)``.
        doubt: negative log probability that the network gives its answer, shape ``(shots,)``.
        confidence: calibrated probability that all observables are right, shape ``(shots,)``; NaN where the
            checkpoint is not calibrated.
        kept: whether the confidence is at least ``postselect``; true where that is not given, likewise.
    """

    observables: BitMatrix
    doubt: NDArray[np.float64]
    confidence: NDArray[np.float64]
    kept: NDArray[np.bool_]


class CompiledGraphDecoder(PackedDecoder):
    """A network on a graph of detectors that is ready for its circuit; made by ``SymdynDecoder``.

    Args:
        settings: of the decoder.
        checkpoint: for the circuit.
        dem: of the circuit; its probabilities count.

    Raises:
        InputError: a model of another circuit, an unknown device, or ``postselect`` with a checkpoint that is
            not calibrated.
    """

    def __init__(
        self, settings: "SymdynDecoder", checkpoint: GraphCheckpoint, dem: stim.DetectorErrorModel
    ) -> None:
        self.settings, self.calibration = settings, checkpoint.calibration
        if self.calibration is None and settings.postselect is not None:
            raise InputError(
                f"postselect needs a calibrated checkpoint, and {checkpoint.name} is not calibrated"
            )
        self.num_detectors = checkpoint.graph.layout.num_detectors
        self._reader = checkpoint.graph.reader(dem, checkpoint.name)
        self._network = placed(checkpoint.network, settings.device)
        # What is compiled at its first use is so now; no shot shall wait for it.
        self.predict(np.ones((1, self.num_detectors), dtype=np.bool_))

    def predict(self, detectors: NDArray[Any]) -> GraphPrediction:
        """Decode shots.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``, as Stim's
                ``bit_packed=True`` gives them; or one by one, ``bool``, shape ``(shots, detectors)``.

        Raises:
            InputError: another type or width.
        """
        shots = self.unpacked(np.asarray(detectors))
        starts = range(0, max(len(shots), 1), SHOTS_AT_ONCE)
        parts = [self._predict_block(shots[start : start + SHOTS_AT_ONCE]) for start in starts]
        return GraphPrediction(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def _predict_block(self, shots: BitMatrix) -> GraphPrediction:
        seen = self._reader.read(shots)
        observables = seen.observables.copy()
        odds = np.repeat(-seen.preference.astype(np.float64)[:, None], observables.shape[1], axis=1)
        with limited_threads(self.settings.threads):
            for start in range(0, len(seen.open), self.settings.batch_size):
                part = slice(start, start + self.settings.batch_size)
                odds[seen.open[part]] = self._log_odds(seen.fired[part], seen.edges[part], seen.shot[part])
        observables ^= (odds > 0).astype(np.uint8)
        doubt = np.logaddexp(0.0, -np.abs(odds)).sum(axis=1)
        if self.calibration is None:
            confidence = np.full(len(doubt), np.nan)
        else:
            confidence = self.calibration.confidence(doubt, np.zeros(len(doubt)))
        least = self.settings.postselect
        kept = np.ones(len(doubt), np.bool_) if least is None else confidence >= least
        return GraphPrediction(observables, doubt, confidence, kept)

    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables and which shots to keep, as sinter's methods want them."""
        found = self.predict(detectors)
        return found.observables, None if self.settings.postselect is None else found.kept

    def _log_odds(
        self, fired: BitMatrix, edges: NDArray[np.float32], shot: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the network's log odds that what was predicted is wrong, shape ``(shots, k)``."""
        device, half = torch.device(self.settings.device), self.settings.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            odds = self._network(
                torch.from_numpy(fired).to(device, torch.float32),
                torch.from_numpy(edges).to(device),
                torch.from_numpy(shot).to(device),
            )
        found: NDArray[np.float32] = odds.float().cpu().numpy()
        return found
