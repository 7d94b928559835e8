"""Belief propagation with ordered statistics decoding, by ldpc."""

from dataclasses import dataclass

import numpy as np
import sinter
import stim
from numpy.typing import NDArray

from symdyn_qec.baselines.compiled import CompiledBaseline, shot_by_shot
from symdyn_qec.baselines.extra import load
from symdyn_qec.baselines.problem import DecodingProblem
from symdyn_qec.baselines.rare import RareErrors


@dataclass(frozen=True)
class BpOsd(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """BP-OSD: min-sum with an adaptive scaling factor, then a combination sweep where it did not converge.

    The best configuration on bivariate bicycle codes is the default one. With few iterations on all detectors
    it fails ten times as often and takes thirty times as long.

    Args:
        one_sector: whether to decode only with the detectors that determine the observables.
        iterations: of belief propagation at most.
        order: of the combination sweep; as many as there are columns beyond a basis, if that is less, because
            ldpc does not check it.

    Source: Panteleev and Kalachev, arXiv 1904.02703; Roffe et al., arXiv 2005.07016.
    """

    one_sector: bool = True
    iterations: int = 1000
    order: int = 7

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledBaseline:
        """Make ready for a detector error model."""
        rare = RareErrors.of(dem)
        problem = DecodingProblem.of(rare, self.one_sector)
        order = min(self.order, problem.free)
        decoder = load("ldpc", "bposd").BpOsdDecoder(
            problem.checks,
            error_channel=problem.priors.tolist(),
            max_iter=self.iterations,
            bp_method="minimum_sum",
            ms_scaling_factor=0.0,  # adaptive: 1 - 2 ** -iteration
            osd_method="OSD_CS" if order else "OSD_0",
            osd_order=order,
        )

        def decode(shot: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return problem.predict(decoder.decode(shot[problem.detectors]))

        return CompiledBaseline(rare, shot_by_shot(rare, decode))
