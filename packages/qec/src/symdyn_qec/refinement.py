r"""Relabellings of detectors that could be symmetries, from the hypergraph of error mechanisms alone.

Two detectors that a symmetry exchanges look alike: they take part in equally many mechanisms of each
probability, with partners that look alike. Colour refinement makes this precise: every vertex gets a colour
from the colours around it, again and again, until no colour splits. Fixing one detector by hand, and then
another where needed, splits the colours until all differ; the relabellings are those that send the fixed
detectors somewhere else with the same outcome.

Colours are 64-bit hashes that do not depend on the labels. A collision could only propose a wrong
relabelling, and every one is verified afterwards; see :mod:`symdyn_qec.discovery`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.mechanisms import Mechanisms

Colours = NDArray[np.uint64]


class Refinement:
    """Colour refinement on the mechanisms of one model.

    Args:
        mechanisms: of the model.
        tolerance: probabilities that differ by less are the same.
    """

    def __init__(self, mechanisms: Mechanisms, tolerance: float) -> None:
        self.num_detectors = mechanisms.num_detectors
        self.mechanism, slot = np.nonzero(mechanisms.detectors < self.num_detectors)
        self.detector = mechanisms.detectors[self.mechanism, slot]
        self.kinds = probability_kinds(mechanisms, tolerance)

    def start(self) -> Colours:
        """Return one colour for all detectors, but each its own for those that nothing flips."""
        colours = np.zeros(self.num_detectors, dtype=np.uint64)
        still = np.setdiff1d(np.arange(self.num_detectors), self.detector)
        colours[still] = still + 1
        return self.refine(colours)

    def refine(self, colours: Colours) -> Colours:
        """Return the colours of detectors after as many steps as still split some."""
        count = len(np.unique(colours))
        while True:
            around = self.kinds.copy()
            np.add.at(around, self.mechanism, _mixed(colours)[self.detector])
            gathered = np.zeros_like(colours)
            np.add.at(gathered, self.detector, _mixed(around)[self.mechanism])
            colours = _mixed(colours + _mixed(gathered))
            if (finer := len(np.unique(colours))) == count:
                return colours
            count = finer

    def single_out(self, colours: Colours, detector: int) -> Colours:
        """Return the refined colours after one detector got a colour of its own."""
        changed = colours.copy()
        changed[detector] = _mixed(~changed[detector : detector + 1])[0]
        return self.refine(changed)


def probability_kinds(mechanisms: Mechanisms, tolerance: float) -> Colours:
    """Return a number for the probability of each mechanism, the same for probabilities that are the same."""
    order = np.argsort(mechanisms.probabilities, kind="stable")
    steps = np.diff(mechanisms.probabilities[order], prepend=0.0) > tolerance
    kinds = np.empty(len(mechanisms), dtype=np.uint64)
    kinds[order] = np.cumsum(steps).astype(np.uint64)
    return kinds


def permutations(mechanisms: Mechanisms, tolerance: float, limit: int) -> Iterator[NDArray[np.int64]]:
    r"""Yield all relabellings of the detectors under which the refined colours stay, the identity among them.

    Args:
        mechanisms: of the model.
        tolerance: probabilities that differ by less are the same.
        limit: how many detectors may be tried as images before giving up.

    Raises:
        InputError: the limit is reached: the model has too many symmetries, or nearly has them.

    >>> import stim
    >>> chain = Mechanisms.of(stim.DetectorErrorModel("error(0.1) D0 D1\nerror(0.1) D1 D2"))
    >>> sorted(p.tolist() for p in permutations(chain, tolerance=0, limit=10))
    [[0, 1, 2], [2, 1, 0]]
    """
    refinement = Refinement(mechanisms, tolerance)
    stages = [refinement.start()]
    cells: list[np.uint64] = []
    while len(np.unique(stages[-1])) < refinement.num_detectors:
        values, first, sizes = np.unique(stages[-1], return_index=True, return_counts=True)
        smallest = np.flatnonzero(sizes == sizes[sizes > 1].min())[0]
        cells.append(values[smallest])
        stages.append(refinement.single_out(stages[-1], int(first[smallest])))
    tries = 0

    def extend(depth: int, colours: Colours) -> Iterator[NDArray[np.int64]]:
        nonlocal tries
        if depth == len(cells):
            images = np.empty(refinement.num_detectors, dtype=np.int64)
            images[np.argsort(stages[-1])] = np.argsort(colours)
            yield images
            return
        for detector in np.flatnonzero(colours == cells[depth]).tolist():
            if (tries := tries + 1) > limit:
                raise InputError(
                    f"the search for symmetries must end within limit={limit} tries; the model has more, as "
                    "many detectors look alike"
                )
            following = refinement.single_out(colours, detector)
            if (np.sort(following) == np.sort(stages[depth + 1])).all():
                yield from extend(depth + 1, following)

    yield from extend(0, stages[0])


def _mixed(values: Colours) -> Colours:
    """Return values scrambled, bit by bit, so that sums of them hardly ever agree by chance (splitmix64)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
