"""All that can happen to a small circuit, by adding up its errors one after the other."""

import numpy as np
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.mechanisms import Mechanisms

# A table of 2^(detectors + observables) numbers in float64 takes half a gigabyte here.
MAX_BITS = 26


def outcome_probabilities(dem: stim.DetectorErrorModel) -> NDArray[np.float64]:
    r"""Return how likely each set of observables flips together with each set of detectors.

    Takes as many passes over a table of :math:`2^{D + k}` numbers as there are errors.

    Args:
        dem: of D detectors and k observables, D + k at most 26.

    Returns:
        Shape ``(2**k, 2**D)``; observable and detector i are the i-th lowest bits of the places.

    Raises:
        InputError: a model too large.

    >>> outcome_probabilities(stim.DetectorErrorModel("error(0.25) D0 L0\nerror(0.25) L0")).tolist()
    [[0.5625, 0.0625], [0.1875, 0.1875]]
    """
    n, bits = dem.num_detectors, dem.num_detectors + dem.num_observables
    if bits > MAX_BITS:
        raise InputError(f"dem must have at most {MAX_BITS} detectors and observables, got {bits}")
    found = Mechanisms.of(dem)
    weights = np.left_shift(1, np.arange(n + 1)) * (np.arange(n + 1) < n)
    flips = weights[found.detectors].sum(axis=1)
    flips += np.left_shift(found.observables.astype(np.int64), np.arange(n, bits)).sum(axis=1)
    likely, place = np.zeros(2**bits), np.arange(2**bits)
    likely[0] = 1
    for flip, p in zip(flips, found.probabilities, strict=True):
        likely = (1 - p) * likely + p * likely[place ^ flip]
    return likely.reshape(-1, 2**n)


def failure_rate(truth: NDArray[np.float64], belief: NDArray[np.float64] | None = None) -> float:
    """Return how often a decoder fails that takes the likeliest observables for the given detectors.

    Args:
        truth: of :func:`outcome_probabilities`.
        belief: what the decoder takes for these, with the same shape; by default the truth, which no decoder
            can improve on.

    Raises:
        InputError: other shapes.

    >>> failure_rate(np.array([[0.5, 0.125], [0.25, 0.125]]))
    0.375
    """
    beliefs = truth if belief is None else belief
    if beliefs.shape != truth.shape:
        raise InputError(f"belief must have the shape {truth.shape} of truth, got {beliefs.shape}")
    chosen = beliefs.argmax(axis=0)
    return float(1 - np.take_along_axis(truth, chosen[None], axis=0).sum())
