"""Belief propagation alone, in as many versions as it takes until one answer is well ahead.

Where it comes to a conclusion belief propagation is mostly right, and versions of it that are wrong are
mostly wrong in different ways. Four versions agree on nearly all shots; about the others more are asked,
until one answer has four votes more than any other. Shots that stay undecided are for a better decoder, see
:mod:`symdyn_qec.escalation`.
"""

from typing import Any, NamedTuple

import numpy as np
import sinter
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.correlated_sectors import CorrelatedSectors
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.min_sum import LANES, MinSum
from symdyn_qec.packed_decoder import PackedDecoder

# Beliefs of a few versions on all parts of the errors of shots, at once.
BELIEFS_AT_ONCE = 1 << 24


class MinSumPrediction(NamedTuple):
    """What belief propagation makes of some shots.

    Fields:
        observables: that most versions predict, bits, shape ``(shots, k)``; those of the first version where
            none came to a conclusion.
        confidence: by how many votes this answer is ahead, as a share of all versions that were asked; 1 if
            the first few agree. Not a probability. Shape ``(shots,)``.
        versions: how many were asked, shape ``(shots,)``.
    """

    observables: BitMatrix
    confidence: NDArray[np.float64]
    versions: NDArray[np.int64]


class MinSumDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Min-sum belief propagation on two kinds of checks that tell each other of errors they have in common.

    Args:
        members: versions at most, at least 1.
        lead: votes that an answer must be ahead of any other, at least 1; so many versions are asked at a
            time.
        seed: of what distinguishes versions.

    Raises:
        InputError: a value out of range.

    >>> from symdyn_qec.circuits import memory_circuit
    >>> circuit = memory_circuit("bb72", p=0.001, rounds=2)
    >>> decoder = MinSumDecoder().compile_decoder_for_dem(dem=circuit.detector_error_model())
    >>> sampler = circuit.compile_detector_sampler(seed=5)
    >>> detectors, observables = sampler.sample(99, separate_observables=True)
    >>> found = decoder.predict(detectors)
    >>> bool((found.observables == observables).all()), int(found.versions.min())
    (True, 4)
    """

    def __init__(self, *, members: int = 60, lead: int = 4, seed: int = 0) -> None:
        for name, value in (("members", members), ("lead", lead)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.members, self.lead, self.seed = members, lead, seed

    @property
    def undecided_below(self) -> float:
        """Confidence of which those shots fall short that stay undecided after all versions."""
        return min(self.lead / self.members, 1.0)

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
        self._members, self._lead = settings.members, settings.lead
        self._sectors = CorrelatedSectors.of(self._rare)
        self._flips = self._sectors.observables.astype(np.float32)
        self._propagation = MinSum(self._sectors, seed=settings.seed)
        # What is compiled at its first use is so now; no shot shall wait for it.
        for shots in (1, LANES):
            self.predict(np.zeros((shots, self.num_detectors), dtype=np.bool_))

    def predict(self, detectors: NDArray[Any]) -> MinSumPrediction:
        """Decode shots.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``, as Stim's
                ``bit_packed=True`` gives them; or one by one, ``bool``, shape ``(shots, detectors)``.

        Raises:
            InputError: another type or width.
        """
        shots = self.unpacked(np.asarray(detectors)) ^ self._rare.detectors
        size = max(BELIEFS_AT_ONCE // (self._lead * max(len(self._flips), 1)), LANES)
        parts = [self._voted(shots[start : start + size]) for start in range(0, max(len(shots), 1), size)]
        observables, confidence, versions = (np.concatenate(field) for field in zip(*parts, strict=True))
        return MinSumPrediction(observables ^ self._rare.observables, confidence, versions)

    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables; all shots are kept."""
        return self.predict(detectors).observables, None

    def _voted(self, shots: BitMatrix) -> MinSumPrediction:
        """Ask versions about shots, more of them where they disagree."""
        own, other = shots[:, self._sectors.own.detectors], shots[:, self._sectors.other.detectors]
        observables = np.zeros((len(shots), self._flips.shape[1]), np.uint8)
        ahead, asked = np.zeros(len(shots)), np.full(len(shots), self._lead)
        open_ = np.arange(len(shots))
        answers = np.zeros((len(shots), 0, observables.shape[1]), np.uint8)
        concluded: NDArray[np.bool_] = np.zeros((len(shots), 0), np.bool_)
        for first in range(0, self._members, self._lead):
            versions = range(first, min(first + self._lead, self._members))
            found = self._propagation.decode(own[open_], other[open_], versions)
            # Counts of a few hundred errors are exact in float32, and a product of floats is a fast one.
            flips = ((found.errors.astype(np.float32) @ self._flips).astype(np.int64) & 1).astype(np.uint8)
            answers = np.concatenate([answers, flips], axis=1)
            concluded = np.concatenate([concluded, found.legs > 0], axis=1)
            leader, lead = leading(answers, concluded)
            observables[open_] = answers[np.arange(len(open_)), leader]
            ahead[open_], asked[open_] = lead, versions.stop
            going_on = lead < self._lead
            open_, answers, concluded = open_[going_on], answers[going_on], concluded[going_on]
            if not len(open_):
                break
        return MinSumPrediction(observables, ahead / asked, asked)


def leading(answers: BitMatrix, concluded: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a version whose answer has the most votes, and by how many it is ahead of the next answer.

    Args:
        answers: of versions, shape ``(shots, versions, k)``.
        concluded: whose answers count, shape ``(shots, versions)``.

    >>> votes = np.array([[[0], [1], [1], [1]]], np.uint8)
    >>> leading(votes, np.array([[True, True, True, False]]))
    (array([1]), array([1]))
    """
    same = concluded[:, :, None] & concluded[:, None, :]
    for bit in np.moveaxis(answers, 2, 0):
        same &= bit[:, :, None] == bit[:, None, :]
    votes = same.sum(axis=2)
    leader, rows = votes.argmax(axis=1), np.arange(len(votes))
    against = np.where(same[rows, leader], 0, votes).max(axis=1)
    return leader, votes[rows, leader] - against
