r"""The detectors that matter for the observables, where the others see only errors of the other kind.

In a circuit of a CSS code X errors flip Z checks and Z errors flip X checks. If all observables are of one
basis, the checks of the other basis say nothing about them beyond what Y errors tie together. Decoders by
belief propagation run on a model several times smaller without these checks, and within practical times
they are the more accurate for it.
"""

from collections import defaultdict

import numpy as np
import stim
from numpy.typing import NDArray
from scipy import sparse

from symdyn_qec.mechanisms import Mechanisms

# The last of four coordinates: 0 for X checks, 1 for Z checks.
KINDS = (0.0, 1.0)


def observable_sector(
    dem: stim.DetectorErrorModel, mechanisms: Mechanisms | None = None
) -> NDArray[np.bool_]:
    r"""Return which detectors to keep to predict the observables.

    Those of one kind where coordinates ``(x, y, t, kind)`` tell them apart. Otherwise those connected to an
    observable by errors that are not the sum of two others, as Y errors are. All, where less would not
    determine the observables: where two errors that flip the same of the kept detectors, or none of them,
    would flip different observables.

    Args:
        dem: any detector error model.
        mechanisms: of the model, if they are known already.

    Returns:
        Shape ``(num_detectors,)``.

    Of a bit flip, a phase flip and both, only the first and the last flip the observable:

    >>> text = "error(0.1) D0 L0\nerror(0.1) D1\nerror(0.1) D0 D1 L0"
    >>> observable_sector(stim.DetectorErrorModel(text)).tolist()
    [True, False]
    """
    found = Mechanisms.of(dem) if mechanisms is None else mechanisms
    for mask in _by_kind(dem):
        if _determines(found, mask):
            return mask
    mask = _by_connection(found)
    if _determines(found, mask):
        return mask
    return np.ones(dem.num_detectors, dtype=np.bool_)


def _by_kind(dem: stim.DetectorErrorModel) -> list[NDArray[np.bool_]]:
    """Return the detectors of each kind, if all have one."""
    coordinates = dem.get_detector_coordinates()
    places = [coordinates[index] for index in range(dem.num_detectors)]
    if not all(len(place) == 4 and place[3] in KINDS for place in places):
        return []
    return [np.array([place[3] == kind for place in places]) for kind in KINDS]


def _by_connection(found: Mechanisms) -> NDArray[np.bool_]:
    """Return the detectors connected to an observable by errors that are not sums of two others."""
    n = found.num_detectors
    sets = [frozenset(row[row < n].tolist()) for row in found.detectors]
    flips = [int.from_bytes(np.packbits(row).tobytes(), "big") for row in found.observables]
    known = set(zip(sets, flips, strict=True))
    touching: defaultdict[int, list[int]] = defaultdict(list)
    for index, detectors in enumerate(sets):
        for detector in detectors:
            touching[detector].append(index)

    def is_sum(index: int) -> bool:
        whole = sets[index]
        # One of the two parts has the first detector.
        candidates = touching[min(whole)] if len(whole) > 1 else []
        return any(
            sets[part] < whole and (whole - sets[part], flips[index] ^ flips[part]) in known
            for part in candidates
        )

    single = [index for index, detectors in enumerate(sets) if detectors and not is_sum(index)]
    pairs = np.array([(min(sets[index]), other) for index in single for other in sets[index]]).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    return np.isin(labels, [labels[min(sets[index])] for index in single if flips[index]])


def _determines(found: Mechanisms, mask: NDArray[np.bool_]) -> bool:
    """Return whether errors with equal flips of the kept detectors have equal flips of observables."""
    n = found.num_detectors
    kept = np.append(mask, False)[found.detectors]
    rows = np.sort(np.where(kept, found.detectors, n), axis=1)
    # The error that is no error, too: what flips no kept detector must flip no observable.
    rows = np.vstack([rows, np.full((1, rows.shape[1]), n)])
    flips = np.vstack([found.observables, np.zeros((1, found.observables.shape[1]), dtype=np.uint8)])
    return len(np.unique(rows, axis=0)) == len(np.unique(np.hstack([rows, flips]), axis=0))
