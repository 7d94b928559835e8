r"""Which samples each replica sees at each step: a pure function of seed, replica and step.

Every replica owns a Philox stream with the key (seed, replica). Philox is a counter: the number at any place
of the stream costs the same as the first, so that a resumed run, a run in pieces and a run of one replica
among thousands draw the same minibatches bit for bit.

Source: Philox 4x64-10, Salmon et al. (2011).
"""

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError

Indices = NDArray[np.int64]

# Philox numbers come in fours, one counter value each.
_WORDS = 4
# The fourth word of the counter separates the uses of one key.
_WITH_REPLACEMENT, _EPOCHS = 0, 1


class MinibatchStream:
    r"""Minibatches of independent replicas.

    With replacement every index is independent and uniform (to :math:`2^{-53}n` in relative terms).
    Without, each replica goes through the samples in epochs, shuffled afresh each time by sorting random
    numbers; samples that no longer fill a batch are left out of that epoch.

    Args:
        seed: in [0, 2^64).
        n_samples: number of samples, >= 1.
        batch_size: >= 1, and at most n_samples without replacement.
        replacement: whether an index may occur again before the others were drawn.

    Raises:
        InputError: a value out of range.

    >>> stream = MinibatchStream(seed=0, n_samples=4, batch_size=2, replacement=False)
    >>> epoch = stream.indices(range(7, 8), range(0, 2))
    >>> epoch.shape, sorted(epoch.ravel().tolist())
    ((1, 2, 2), [0, 1, 2, 3])
    """

    def __init__(self, seed: int, n_samples: int, batch_size: int, replacement: bool) -> None:
        if not 0 <= seed < 2**64:
            raise InputError(f"seed must be in [0, 2^64), got {seed}")
        if n_samples < 1:
            raise InputError(f"n_samples must be at least 1, got {n_samples}")
        if batch_size < 1 or (not replacement and batch_size > n_samples):
            most = "any size" if replacement else f"at most n_samples={n_samples} without replacement"
            raise InputError(f"batch_size must be at least 1 and {most}, got {batch_size}")
        self.seed, self.n_samples, self.batch_size = seed, n_samples, batch_size
        self.replacement = replacement
        self._orders: dict[int, tuple[int, Indices]] = {}  # of each replica: its epoch, and the order in it

    def indices(self, replicas: range, steps: range) -> Indices:
        """Return the samples of these replicas at these steps, shape (replicas, steps, batch_size)."""
        drawn = np.empty((len(replicas), len(steps), self.batch_size), dtype=np.int64)
        for row, replica in enumerate(replicas):
            if self.replacement:
                drawn[row] = self._independent(replica, steps)
            else:
                drawn[row] = self._shuffled(replica, steps)
        return drawn

    def _independent(self, replica: int, steps: range) -> Indices:
        start, count = steps.start * self.batch_size, len(steps) * self.batch_size
        skipped = start % _WORDS
        words = self._philox(replica, start // _WORDS, _WITH_REPLACEMENT).random_raw(skipped + count)
        uniform = (words[skipped:] >> np.uint64(11)) * 2.0**-53
        return (uniform * self.n_samples).astype(np.int64).reshape(len(steps), self.batch_size)

    def _shuffled(self, replica: int, steps: range) -> Indices:
        per_epoch = self.n_samples // self.batch_size
        pieces, step = [], steps.start
        while step < steps.stop:
            epoch, first = divmod(step, per_epoch)
            last = min(first + steps.stop - step, per_epoch)
            pieces.append(self._order(replica, epoch)[first * self.batch_size : last * self.batch_size])
            step += last - first
        return np.concatenate(pieces).reshape(len(steps), self.batch_size)

    def _order(self, replica: int, epoch: int) -> Indices:
        known = self._orders.get(replica)
        if known is None or known[0] != epoch:
            keys = self._philox(replica, 0, _EPOCHS, epoch).random_raw(self.n_samples)
            # Stable, so that the order is defined even in the event of a tie.
            known = (epoch, np.argsort(keys, kind="stable"))
            self._orders[replica] = known
        return known[1]

    def _philox(self, replica: int, place: int, use: int, epoch: int = 0) -> np.random.Philox:
        key = np.array([self.seed, replica], dtype=np.uint64)
        return np.random.Philox(key=key, counter=np.array([place, 0, epoch, use], dtype=np.uint64))
