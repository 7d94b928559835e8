"""Minimum-weight perfect matching, plain and correlated, by PyMatching."""

from dataclasses import dataclass

import sinter
import stim

from symdyn_core.errors import InputError
from symdyn_qec.baselines.compiled import CompiledBaseline, Packed
from symdyn_qec.baselines.rare import RareErrors


@dataclass(frozen=True)
class Matching(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """PyMatching.

    Args:
        correlated: whether to match a second time, with weights that follow from the first matching and from
            which edges belong to the same errors.

    Source: Higgott and Gidney, arXiv 2303.15933; Fowler, arXiv 1310.0863.
    """

    correlated: bool = False

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledBaseline:
        """Make ready for a detector error model whose errors are split into parts of at most two detectors.

        Raises:
            InputError: a part flips more detectors.
        """
        import pymatching

        rare = graphlike(dem)
        matching = pymatching.Matching.from_detector_error_model(
            rare.model, enable_correlations=self.correlated
        )

        def decode(shots: Packed) -> Packed:
            found: Packed = matching.decode_batch(
                shots,
                bit_packed_shots=True,
                bit_packed_predictions=True,
                enable_correlations=self.correlated,
            )
            return found

        return CompiledBaseline(rare, decode)


def graphlike(dem: stim.DetectorErrorModel) -> RareErrors:
    """Return the rare errors of a model that matching can decode.

    Raises:
        InputError: some part of an error flips more than two detectors.
    """
    rare = RareErrors.of(dem)
    most = max((len(detectors) for detectors, _ in rare.parts()), default=0)
    if most > 2:
        raise InputError(
            "dem must have errors split into parts of at most two detectors for matching, "
            f"got one of {most}; ask Stim for decompose_errors=True"
        )
    return rare
