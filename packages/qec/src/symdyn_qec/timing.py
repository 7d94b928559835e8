"""CPU time of a decoder: making it ready, one shot at a time, and many at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# Above this the decoder has threads of its own, and the time of the calling thread is not all it took.
MANY_CORES = 1.25


@dataclass(frozen=True)
class Timing:
    """Thread-CPU time of decoding, in seconds: what it would take on an idle core.

    Fields:
        construction: from the detector error model to the first decoded shot.
        batch: per shot, where many are handed over at once; ``None`` if that was not done.
        latencies: of calls with a single shot, sorted.
        cores: CPU time of the whole process over that of the decoding thread; 1, unless the decoder starts
            threads.

    >>> timing = Timing(construction=0.5, batch=1.0, latencies=(1.0, 2.0, 3.0, 10.0), cores=1.0)
    >>> timing.mean, timing.p50, timing.max
    (4.0, 2.5, 10.0)
    """

    construction: float
    batch: float | None
    latencies: tuple[float, ...]
    cores: float

    @property
    def mean(self) -> float | None:
        """Mean time of a call with one shot."""
        return float(np.mean(self.latencies)) if self.latencies else None

    @property
    def p50(self) -> float | None:
        """Median time of a call with one shot."""
        return self._quantile(0.5)

    @property
    def p99(self) -> float | None:
        """Time that one call in a hundred exceeds."""
        return self._quantile(0.99)

    @property
    def max(self) -> float | None:
        """Longest time of a call with one shot."""
        return self._quantile(1.0)

    def _quantile(self, q: float) -> float | None:
        return float(np.quantile(self.latencies, q)) if self.latencies else None


@dataclass
class Stopwatch:
    """Adds up the times of calls.

    Fields:
        construction, decoding: thread-CPU seconds so far.
        latencies: of each call with one shot.
        batched_shots, batched_seconds: of the calls with several.
        process: CPU seconds of the whole process while it decoded.
    """

    construction: float = 0.0
    decoding: float = 0.0
    latencies: list[float] = field(default_factory=list)
    batched_shots: int = 0
    batched_seconds: float = 0.0
    process: float = 0.0

    def construct(self, call: Callable[[], T]) -> T:
        """Return what a call returns, and count its time as construction."""
        start = time.thread_time()
        result = call()
        self.construction += time.thread_time() - start
        return result

    def decode(self, shots: int, call: Callable[[], T]) -> T:
        """Return what a call that decodes some shots returns, and count its time."""
        process, start = time.process_time(), time.thread_time()
        result = call()
        seconds = time.thread_time() - start
        self.process += time.process_time() - process
        self.decoding += seconds
        if shots == 1:
            self.latencies.append(seconds)
        else:
            self.batched_shots += shots
            self.batched_seconds += seconds
        return result

    def read(self) -> Timing:
        """Return the times."""
        batch = self.batched_seconds / self.batched_shots if self.batched_shots else None
        cores = max(self.process / self.decoding, 1.0) if self.decoding else 1.0
        return Timing(self.construction, batch, tuple(sorted(self.latencies)), cores)
