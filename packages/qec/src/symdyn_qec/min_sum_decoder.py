"""Belief propagation alone, in several versions that have to agree.

Where it comes to a conclusion belief propagation is mostly right, and if a version of it with priors
perturbed a little is wrong as well, it is mostly wrong in another way. What all versions agree on is right
almost always, and found in a fraction of the time that a network takes; the rest is for a better decoder, see
:mod:`symdyn_qec.escalation`.
"""

from typing import Any, NamedTuple

import numpy as np
import sinter
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.baselines.problem import DecodingProblem
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.min_sum import MinSum
from symdyn_qec.packed_decoder import PackedDecoder

# The first version is the most cautious one: what it concludes is wrong least often.
FIRST_SCALE, SCALE = 0.625, 0.7

# Standard deviation of the logarithms of perturbed priors.
PERTURBATION = 0.5

ROUNDS = 15

# Beliefs in thousands of errors of all versions at once would fill the memory.
SHOTS_AT_ONCE = 1024


class MinSumPrediction(NamedTuple):
    """What belief propagation makes of some shots.

    Fields:
        observables: as the first version predicts them, bits, shape ``(shots, k)``.
        confidence: share of the versions that come to the conclusion of the first; 0 where that comes to
            none. Not a probability. Shape ``(shots,)``.
    """

    observables: BitMatrix
    confidence: NDArray[np.float64]


class MinSumDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Min-sum belief propagation with the detectors that determine the observables.

    Args:
        members: versions, at least 1.
        seed: of their perturbations.

    Raises:
        InputError: too few members.

    >>> from symdyn_qec.circuits import memory_circuit
    >>> circuit = memory_circuit("bb72", p=0.001, rounds=2)
    >>> decoder = MinSumDecoder().compile_decoder_for_dem(dem=circuit.detector_error_model())
    >>> sampler = circuit.compile_detector_sampler(seed=5)
    >>> detectors, observables = sampler.sample(99, separate_observables=True)
    >>> found = decoder.predict(detectors)
    >>> agreed = found.confidence == 1
    >>> int(agreed.sum()), bool((found.observables == observables)[agreed].all())
    (99, True)
    """

    def __init__(self, *, members: int = 5, seed: int = 0) -> None:
        if members < 1:
            raise InputError(f"members must be at least 1, got {members}")
        self.members, self.seed = members, seed

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> "CompiledMinSumDecoder":
        """Make ready for a circuit.

        Args:
            dem: of the circuit.
        """
        return CompiledMinSumDecoder(self, dem)


class CompiledMinSumDecoder(PackedDecoder):
    """Belief propagation that is ready for one circuit; made by :class:`MinSumDecoder`."""

    def __init__(self, settings: MinSumDecoder, dem: stim.DetectorErrorModel) -> None:
        self.num_detectors, self._rare = dem.num_detectors, RareErrors.of(dem)
        self._problem = DecodingProblem.of(self._rare, one_sector=True)
        self._flips = self._problem.observables.toarray().T.astype(np.float32)
        priors = self._problem.priors
        versions = [priors]
        for member in range(1, settings.members):
            noise = numpy_generator(settings.seed, "priors", member).normal(size=len(priors))
            versions.append(np.minimum(priors * np.exp(PERTURBATION * noise), 0.5))
        scales = [FIRST_SCALE, *[SCALE] * (settings.members - 1)]
        self._propagation = MinSum(self._problem.checks, np.stack(versions), scales, ROUNDS)
        # What is compiled at its first use is so now; no shot shall wait for it.
        self.predict(np.zeros((1, self.num_detectors), dtype=np.bool_))

    def predict(self, detectors: NDArray[Any]) -> MinSumPrediction:
        """Decode shots.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``, as Stim's
                ``bit_packed=True`` gives them; or one by one, ``bool``, shape ``(shots, detectors)``.

        Raises:
            InputError: another type or width.
        """
        shots = self.unpacked(np.asarray(detectors)) ^ self._rare.detectors
        syndromes = shots[:, self._problem.detectors]
        starts = range(0, max(len(syndromes), 1), SHOTS_AT_ONCE)
        parts = [self._agreed(syndromes[start : start + SHOTS_AT_ONCE]) for start in starts]
        observables, confidence = (np.concatenate(field) for field in zip(*parts, strict=True))
        return MinSumPrediction(observables ^ self._rare.observables, confidence)

    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables; all shots are kept."""
        return self.predict(detectors).observables, None

    def _agreed(self, syndromes: BitMatrix) -> tuple[BitMatrix, NDArray[np.float64]]:
        """Return the observables of the first version, and the share of versions that agree."""
        found = self._propagation.decode(syndromes)
        # Counts of a few hundred errors are exact in float32, and a product of floats is a fast one.
        observables = ((found.errors.astype(np.float32) @ self._flips).astype(np.int64) & 1).astype(np.uint8)
        first, concluded = observables[:, 0], found.rounds > 0
        agree = concluded & concluded[:, :1] & (observables == first[:, None]).all(axis=2)
        return first, agree.mean(axis=1)
