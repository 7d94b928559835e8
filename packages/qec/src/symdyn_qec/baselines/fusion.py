"""Minimum-weight perfect matching by fusion-blossom, through sinter's own adapter."""

from dataclasses import dataclass

import sinter
import stim

from symdyn_qec.baselines.compiled import CompiledBaseline, Packed
from symdyn_qec.baselines.extra import require
from symdyn_qec.baselines.matching import graphlike


@dataclass(frozen=True)
class FusionBlossom(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Fusion-blossom, for models that sinter's adapter would refuse as well: it knows no likely errors.

    Source: Wu and Zhong, arXiv 2305.08307.
    """

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledBaseline:
        """Make ready for a detector error model whose errors are split into parts of at most two detectors.

        Raises:
            InputError: a part flips more detectors.
        """
        require("fusion_blossom", "fusion_blossom")
        rare = graphlike(dem)
        compiled = sinter.BUILT_IN_DECODERS["fusion_blossom"].compile_decoder_for_dem(dem=rare.model)

        def decode(shots: Packed) -> Packed:
            found: Packed = compiled.decode_shots_bit_packed(bit_packed_detection_event_data=shots)
            return found

        return CompiledBaseline(rare, decode)
