"""A decoder without training for any circuit that matching can decode: it sums over explanations.

Matching answers with the one likeliest set of errors. What counts is which class of them is likelier
altogether; see :mod:`symdyn_qec.class_matching`.
"""

from typing import Any, NamedTuple

import numpy as np
import sinter
import stim
from numpy.typing import NDArray
from scipy.special import expit

from symdyn_core.errors import InputError
from symdyn_qec.class_matching import ClassMatching
from symdyn_qec.gf2 import BitMatrix
from symdyn_qec.packed_decoder import PackedDecoder, check_postselect
from symdyn_qec.split_model import SplitModel


class ClassPrediction(NamedTuple):
    """What the decoder makes of some shots.

    Fields:
        observables: predicted flips, bits, shape ``(shots, 1)``.
        log_odds: that they are right, as far as explanations were found; not negative, shape ``(shots,)``.
        confidence: the same as a probability, a little too sure, likewise.
        kept: whether the confidence is at least ``postselect``; true where that is not given, likewise.
    """

    observables: BitMatrix
    log_odds: NDArray[np.float32]
    confidence: NDArray[np.float64]
    kept: NDArray[np.bool_]


class ClassDecoder(sinter.Decoder):  # type: ignore[misc]  # sinter has no types
    """Decodes circuits with one observable and a boundary, such as those of surface codes.

    Args:
        members: matchings of each class, at least 2; more of them find more explanations.
        postselect: keep a shot only if the answer is right with at least this probability, in [0, 1]; sinter
            counts all others as discards.

    Raises:
        InputError: a value out of range.

    >>> from symdyn_qec.circuits import surface_memory
    >>> circuit = surface_memory(3, 3, 0.005)
    >>> dem = circuit.detector_error_model(decompose_errors=True)
    >>> decoder = ClassDecoder().compile_decoder_for_dem(dem=dem)
    >>> sampler = circuit.compile_detector_sampler(seed=5)
    >>> detectors, observables = sampler.sample(99, separate_observables=True)
    >>> int((decoder.predict(detectors).observables != observables).sum()) < 10
    True
    """

    def __init__(self, *, members: int = 8, postselect: float | None = None) -> None:
        check_postselect(postselect)
        if members < 2:
            raise InputError(f"members must be at least 2, got {members}")
        self.members, self.postselect = members, postselect

    def compile_decoder_for_dem(self, *, dem: stim.DetectorErrorModel) -> "CompiledClassDecoder":
        """Make ready for a circuit.

        Args:
            dem: its errors split into parts of at most two detectors.

        Raises:
            InputError: several observables, parts of more detectors, or no boundary that the observable
                divides, as on a torus; errors likelier than not.
        """
        return CompiledClassDecoder(self, dem)


class CompiledClassDecoder(PackedDecoder):
    """A decoder that is ready for one circuit; made by :class:`ClassDecoder`."""

    def __init__(self, settings: ClassDecoder, dem: stim.DetectorErrorModel) -> None:
        self.settings, self.num_detectors = settings, dem.num_detectors
        split = SplitModel.of(dem)
        self._matching = ClassMatching(split, split.probabilities(dem, "this circuit"), settings.members)
        # What is compiled at its first use is so now; no shot shall wait for it.
        self._matching.candidates(np.zeros((1, self.num_detectors), dtype=np.uint8))

    def predict(self, detectors: NDArray[Any]) -> ClassPrediction:
        """Decode shots.

        Args:
            detectors: packed little endian, ``uint8``, shape ``(shots, ceil(detectors / 8))``, as Stim's
                ``bit_packed=True`` gives them; or one by one, ``bool``, shape ``(shots, detectors)``.

        Raises:
            InputError: another type or width.
        """
        shots = self.unpacked(np.asarray(detectors))
        observables, log_odds, _, _ = self._matching.decide(shots)
        confidence, least = expit(log_odds.astype(np.float64)), self.settings.postselect
        kept = np.ones(len(shots), np.bool_) if least is None else confidence >= least
        return ClassPrediction(observables[:, None], log_odds, confidence, kept)

    def answer(self, detectors: NDArray[Any]) -> tuple[BitMatrix, NDArray[np.bool_] | None]:
        """Return predicted observables and which shots to keep, as sinter's methods want them."""
        found = self.predict(detectors)
        return found.observables, None if self.settings.postselect is None else found.kept
