"""Matching with weights from belief propagation, by beliefmatching."""

import warnings
from dataclasses import dataclass

import numpy as np
import sinter
import stim

from symdyn_qec.baselines.compiled import CompiledBaseline, shot_by_shot
from symdyn_qec.baselines.extra import load
from symdyn_qec.baselines.matching import graphlike


@dataclass(frozen=True)
class BeliefMatching(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Belief propagation on all errors, whose marginals become the weights of a matching.

    Args:
        iterations: of belief propagation at most.

    Source: Higgott et al., arXiv 2203.04948.
    """

    iterations: int = 20

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledBaseline:
        """Make ready for a detector error model whose errors are split into parts of at most two detectors.

        Raises:
            InputError: a part flips more detectors.
        """
        make, rare = load("beliefmatching", "beliefmatching").BeliefMatching, graphlike(dem)
        if not rare.parts():  # which beliefmatching does not expect
            return CompiledBaseline(rare, shot_by_shot(rare, lambda _: np.zeros_like(rare.observables)))
        with warnings.catch_warnings():
            # It calls ldpc by its old name, which ldpc complains about.
            warnings.filterwarnings("ignore", "This is the old syntax for the `bp_decoder`", UserWarning)
            decoder = make.from_detector_error_model(rare.model, max_bp_iters=self.iterations)
        return CompiledBaseline(rare, shot_by_shot(rare, decoder.decode))
