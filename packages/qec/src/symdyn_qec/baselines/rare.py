"""Detector error models with every error less likely than not, as most decoders need them."""

from dataclasses import dataclass

import numpy as np
import stim
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RareErrors:
    r"""A model in which no error has a probability above 1/2, and what it takes to use it for another one.

    An error of probability p > 1/2 is one that always happens together with one of probability 1 - p. Those
    that always happen are flips known in advance: of detectors, to be undone before decoding, and of
    observables, to be added after it. Errors that cannot happen, and those without detectors, about which a
    decoder cannot learn anything, are left out.

    Fields:
        model: the rare errors; flattened.
        detectors: known flips, bits, shape ``(num_detectors,)``.
        observables: known flips, bits, shape ``(num_observables,)``.

    >>> rare = RareErrors.of(stim.DetectorErrorModel("error(0.75) D0 L0\nerror(0.5) D1\nerror(0.9) L1"))
    >>> print(rare.model)
    error(0.25) D0 L0
    error(0.5) D1
    logical_observable L1
    >>> rare.detectors.tolist(), rare.observables.tolist()
    ([1, 0], [1, 1])
    """

    model: stim.DetectorErrorModel
    detectors: NDArray[np.uint8]
    observables: NDArray[np.uint8]

    @classmethod
    def of(cls, dem: stim.DetectorErrorModel) -> "RareErrors":
        """Rewrite a model; splits into parts, as matching uses them, are kept."""
        model = stim.DetectorErrorModel()
        detectors = np.zeros(dem.num_detectors, dtype=np.uint8)
        observables = np.zeros(dem.num_observables, dtype=np.uint8)
        for instruction in dem.flattened():
            if instruction.type != "error":
                model.append(instruction)
                continue
            p, targets = instruction.args_copy()[0], instruction.targets_copy()
            flipped: set[int] = set()
            for target in targets:
                if target.is_relative_detector_id():
                    flipped ^= {target.val}
            if p > 0.5:
                p = 1 - p
                detectors[list(flipped)] ^= 1
                for target in targets:
                    if target.is_logical_observable_id():
                        observables[target.val] ^= 1
            if p and flipped:
                model.append("error", p, targets)
        return cls(_of_size(model, dem), detectors, observables)

    def whole(self) -> stim.DetectorErrorModel:
        """Return the model with every error in one part, for decoders that do not know about parts.

        >>> print(RareErrors.of(stim.DetectorErrorModel("error(0.25) D0 D1 ^ D1 D2 L0")).whole())
        error(0.25) D0 D2 L0
        """
        model = stim.DetectorErrorModel()
        for instruction in self.model:
            if instruction.type != "error":
                model.append(instruction)
                continue
            flipped: dict[stim.DemTarget, bool] = {}
            for target in instruction.targets_copy():
                if not target.is_separator():
                    flipped[target] = not flipped.get(target, False)
            model.append("error", instruction.args_copy(), [target for target, odd in flipped.items() if odd])
        return model

    def parts(self) -> list[tuple[list[int], list[int]]]:
        """Return detectors and observables of every part into which errors are split.

        >>> RareErrors.of(stim.DetectorErrorModel("error(0.1) D0 D1 ^ D2 L0")).parts()
        [([0, 1], []), ([2], [0])]
        """
        found: list[tuple[list[int], list[int]]] = []
        for instruction in self.model:
            if instruction.type == "error":
                for group in instruction.target_groups():
                    found.append(
                        (
                            [target.val for target in group if target.is_relative_detector_id()],
                            [target.val for target in group if target.is_logical_observable_id()],
                        )
                    )
        return found


def _of_size(model: stim.DetectorErrorModel, dem: stim.DetectorErrorModel) -> stim.DetectorErrorModel:
    """Declare the last detector and observable where no error that is left mentions them."""
    if model.num_detectors < dem.num_detectors:
        model.append("detector", [], [stim.target_relative_detector_id(dem.num_detectors - 1)])
    if model.num_observables < dem.num_observables:
        model.append("logical_observable", [], [stim.target_logical_observable_id(dem.num_observables - 1)])
    return model
