"""Relay belief propagation, by relay-bp."""

from dataclasses import dataclass

import numpy as np
import sinter
import stim

from symdyn_core.random import numpy_generator
from symdyn_qec.baselines.compiled import CompiledBaseline, Packed
from symdyn_qec.baselines.extra import load
from symdyn_qec.baselines.problem import DecodingProblem
from symdyn_qec.baselines.rare import RareErrors


@dataclass(frozen=True)
class RelayBp(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Relay-BP on all detectors: min-sum with memory, disordered anew in every leg of a relay.

    Args:
        solutions: after how many the lightest is taken.
        sets: legs at most, each with memory strengths of its own.
        iterations: in each leg at most; 80 in the first one.
        first_memory: strength in the first leg.
        memory: lowest and highest strength in the other legs.

    Source: Mueller et al., arXiv 2506.01779, with the settings for the gross code's circuits.
    """

    solutions: int = 5
    sets: int = 100
    iterations: int = 60
    first_memory: float = 0.125
    memory: tuple[float, float] = (-0.24, 0.66)

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> CompiledBaseline:
        """Make ready for a detector error model."""
        relay_bp = load("relay_bp", "relay-bp")
        rare = RareErrors.of(dem)
        problem = DecodingProblem.of(rare)
        # Drawn here: the package draws anew for every shot, and answers would depend on the shots before.
        shape = (self.sets, problem.checks.shape[1])
        memories = numpy_generator(0, "memories").uniform(*self.memory, size=shape)
        decoder = relay_bp.RelayDecoderF64(
            problem.checks.tocsr(),
            error_priors=problem.priors,
            gamma0=self.first_memory,
            pre_iter=80,
            num_sets=self.sets,
            set_max_iter=self.iterations,
            explicit_gammas=memories,
            stop_nconv=self.solutions,
        )
        runner = relay_bp.ObservableDecoderRunner(decoder, problem.observables.tocsr())

        def decode(shots: Packed) -> Packed:
            bits = np.unpackbits(shots, axis=1, count=dem.num_detectors, bitorder="little")
            found = runner.decode_observables_batch(np.ascontiguousarray(bits[:, problem.detectors]))
            return np.packbits(found, axis=1, bitorder="little")

        return CompiledBaseline(rare, decode)
