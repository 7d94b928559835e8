"""Search for the likeliest error with A*, by Tesseract."""

from dataclasses import dataclass

import numpy as np
import sinter
import stim

from symdyn_qec.baselines.compiled import CompiledBaseline, Packed
from symdyn_qec.baselines.extra import load
from symdyn_qec.baselines.rare import RareErrors


@dataclass(frozen=True)
class Tesseract(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Tesseract with one of its own presets; shots that it gives up on are discarded, not guessed.

    Args:
        preset: as Tesseract names it for sinter. The short beam is nearly optimal on the bivariate bicycle
            code of 72 qubits.

    Source: Aghababaie Beni, Higgott and Shutty, arXiv 2503.10988.
    """

    preset: str = "tesseract-short-beam"

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledBaseline:
        """Make ready for a detector error model."""
        rare = RareErrors.of(dem)
        settings = load("tesseract_decoder", "tesseract").make_tesseract_sinter_decoders_dict()[self.preset]
        decoder = settings.compile_decoder_for_dem(dem=rare.whole()).decoder

        def decode(shots: Packed) -> Packed:
            # One by one, as only this way tells whether a search ran out of its budget.
            bits = np.unpackbits(shots, axis=1, count=dem.num_detectors, bitorder="little").astype(np.bool_)
            predictions = np.zeros((len(shots), dem.num_observables), dtype=np.bool_)
            given_up = np.zeros((len(shots), 1), dtype=np.uint8)
            for index, shot in enumerate(bits):
                predictions[index] = decoder.decode(shot)
                given_up[index] = decoder.low_confidence_flag
            return np.hstack([np.packbits(predictions, axis=1, bitorder="little"), given_up])

        return CompiledBaseline(rare, decode)
