"""What decoders did on circuits: counts, rates, times, and the files and figures made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sinter

from symdyn_qec.pairing import Paired
from symdyn_qec.rates import block_to_per_logical, clopper_pearson
from symdyn_qec.timing import Timing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result:
    """What one decoder did on one circuit.

    A discarded shot counts as a failure: a decoder must not look better by refusing the hard shots.

    Fields:
        circuit, decoder: names.
        distance, rounds, p: of the circuit, ``None`` where unknown.
        observables: of the circuit; a shot with any of them wrong is an error.
        shots, errors, discards: counts.
        seconds: spent on the shots. Thread-CPU time of decoding, where ``timing`` says more; else the wall
            time of sinter's workers, added up: sampling and decoding, without start and compilation.
        strong_id: sinter's identity of the circuit, the decoder and all else that matters.
        seed: of the shots; ``None`` where sinter drew them.
        timing: ``None`` where sinter's workers decoded.
        paired: against the first decoder on the same shots; ``None`` for that one itself.
        skipped: why there are no shots; empty where there are.
    """

    circuit: str
    decoder: str
    distance: int | None
    rounds: int | None
    p: float | None
    observables: int
    shots: int
    errors: int
    discards: int
    seconds: float
    strong_id: str = ""
    seed: int | None = None
    timing: Timing | None = None
    paired: Paired | None = None
    skipped: str = ""

    @property
    def failures(self) -> int:
        """Errors and discards."""
        return self.errors + self.discards

    @property
    def error_rate(self) -> float | None:
        """Failures per shot, (errors + discards) / shots; ``None`` without shots."""
        return self.failures / self.shots if self.shots else None

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson 95 % interval of the error rate; without shots it can be anything."""
        return clopper_pearson(self.failures, self.shots) if self.shots else (0.0, 1.0)

    @property
    def per_round(self) -> float | None:
        """Error rate per logical observable and round, ``None`` where the number of rounds is unknown."""
        return self._per_round(self.error_rate)

    @property
    def per_round_interval(self) -> tuple[float | None, float | None]:
        """The interval, converted like the rate."""
        low, high = self.interval
        return self._per_round(low), self._per_round(high)

    @property
    def seconds_per_shot(self) -> float | None:
        """Time of a shot among many: of batches, where there were any."""
        if self.timing is not None and self.timing.batch is not None:
            return self.timing.batch
        return self.seconds / self.shots if self.shots else None

    def to_dict(self) -> dict[str, Any]:
        """Return counts, rates and times under their column names; times in microseconds."""
        low, high = self.interval if self.shots else (None, None)
        round_low, round_high = self.per_round_interval if self.shots else (None, None)
        timing, paired = self.timing, self.paired
        return {
            "circuit": self.circuit,
            "decoder": self.decoder,
            "distance": self.distance,
            "rounds": self.rounds,
            "p": self.p,
            "observables": self.observables,
            "seed": self.seed,
            "shots": self.shots,
            "errors": self.errors,
            "discards": self.discards,
            "error_rate": self.error_rate,
            "low": low,
            "high": high,
            "per_round": self.per_round,
            "per_round_low": round_low,
            "per_round_high": round_high,
            "microseconds_per_shot": _micro(self.seconds_per_shot),
            "single_shots": len(timing.latencies) if timing else None,
            "single_mean": _micro(timing.mean) if timing else None,
            "single_p50": _micro(timing.p50) if timing else None,
            "single_p99": _micro(timing.p99) if timing else None,
            "single_max": _micro(timing.max) if timing else None,
            "construction": _micro(timing.construction) if timing else None,
            "cores": timing.cores if timing else None,
            "reference": paired.reference if paired else None,
            "paired_shots": paired.shots if paired else None,
            "only_this": paired.only_this if paired else None,
            "only_reference": paired.only_reference if paired else None,
            "p_value": paired.p_value if paired else None,
            "skipped": self.skipped or None,
        }

    def to_sinter(self) -> sinter.TaskStats:
        """Return the counts as sinter keeps them."""
        known = {"d": self.distance, "r": self.rounds, "p": self.p, "seed": self.seed}
        return sinter.TaskStats(
            strong_id=self.strong_id,
            decoder=self.decoder,
            json_metadata={"name": self.circuit}
            | {key: value for key, value in known.items() if value is not None},
            shots=self.shots,
            errors=self.errors,
            discards=self.discards,
            seconds=self.seconds,
        )

    def _per_round(self, rate: float | None) -> float | None:
        if self.rounds is None or rate is None:
            return None
        return block_to_per_logical(rate, self.observables, self.rounds)


@dataclass(frozen=True)
class Benchmark:
    """Results, circuit by circuit, each with the decoders in the order asked for."""

    results: tuple[Result, ...] = field(default=())

    @property
    def measured(self) -> Sequence[Result]:
        """The results that have shots."""
        return [result for result in self.results if result.shots]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per circuit and decoder."""
        import pandas as pd

        return pd.DataFrame([result.to_dict() for result in self.results])

    def to_csv(self) -> str:
        """Return the frame as CSV text."""
        return str(self.to_frame().to_csv(index=False))

    def to_sinter_csv(self) -> str:
        """Return the counts in sinter's CSV format, as ``sinter plot`` and ``sinter combine`` read it."""
        lines = [sinter.CSV_HEADER, *(result.to_sinter().to_csv_line() for result in self.measured)]
        return "\n".join(lines) + "\n"

    def figure(self) -> "Figure":
        """Return error rates with intervals, against p or distance if several were run, else by circuit."""
        from symdyn_qec.plots import draw_rates

        return draw_rates(self.measured)

    def latency_figure(self) -> "Figure | None":
        """Return how the times of single shots are distributed, ``None`` where none were taken."""
        from symdyn_qec.plots import draw_latencies

        timed = [result for result in self.measured if result.timing and result.timing.latencies]
        return draw_latencies(timed) if timed else None

    def page(self, title: str = "Decoders compared") -> str:
        """Return the results as an HTML page that stands alone."""
        from symdyn_qec.benchmark_page import page

        return page(self, title)


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds
