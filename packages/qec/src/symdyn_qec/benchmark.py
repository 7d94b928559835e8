"""Logical error rates of decoders on circuits, sampled and decoded by sinter.

Shots are fresh at every call: sinter seeds its workers from the operating system, there is no seed to give.
What can be kept is the counts, in the CSV format of sinter (``resume``); a later call adds to them.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import sinter
import stim

from symdyn_core.errors import DependencyError, InputError, unknown
from symdyn_qec.circuits import check_rounds, error_model, memory_circuit, read_circuit
from symdyn_qec.codes import NAMED
from symdyn_qec.rates import block_to_per_logical, clopper_pearson

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# A worker takes about half a second to start; below this many shots another one costs more than it brings.
SHOTS_PER_WORKER = 100_000


@dataclass(frozen=True)
class DecoderInfo:
    """What has to be known about one of sinter's decoders before it is used.

    Fields:
        module: importable name of the package it needs, ``None`` if sinter itself suffices.
        graphlike: whether it needs errors split into parts of at most two detectors.
    """

    module: str | None
    graphlike: bool


DECODERS: Mapping[str, DecoderInfo] = {
    "pymatching": DecoderInfo("pymatching", graphlike=True),
    "pymatching-correlated": DecoderInfo("pymatching", graphlike=True),
    "fusion_blossom": DecoderInfo("fusion_blossom", graphlike=True),
    "hypergraph_union_find": DecoderInfo("mwpf", graphlike=False),
    "mw_parity_factor": DecoderInfo("mwpf", graphlike=False),
    "vacuous": DecoderInfo(None, graphlike=False),
}


@dataclass(frozen=True)
class Experiment:
    """A circuit to decode, with what is known about it.

    Fields:
        name: shown in results.
        circuit: with detectors and observables.
        distance, rounds, p: ``None`` where unknown; ``rounds`` turns rates per shot into rates per round.
    """

    name: str
    circuit: stim.Circuit
    distance: int | None = None
    rounds: int | None = None
    p: float | None = None

    @classmethod
    def generate(
        cls, code: str, p: float, distance: int | None = None, rounds: int | None = None
    ) -> "Experiment":
        """Return a memory experiment by the name of its code.

        Args:
            code: as for :func:`symdyn_qec.circuits.memory_circuit`.
            p: noise strength in [0, 0.75].
            distance: for the codes that come in several.
            rounds: as many as the distance by default, where there is one.

        >>> Experiment.generate("surface", p=0.01, distance=3).name
        'surface d=3 r=3 p=0.01'
        """
        cycles = distance if rounds is None else rounds
        if cycles is None and code in NAMED:
            raise InputError(f"code {code} needs a number of rounds")
        circuit = memory_circuit(code, p=p, rounds=1 if cycles is None else cycles, distance=distance)
        parts = [code, *([f"d={distance}"] if distance is not None else []), f"r={cycles}", f"p={p:g}"]
        return cls(" ".join(parts), circuit, distance, cycles, p)

    @classmethod
    def read(cls, path: str | os.PathLike[str], rounds: int | None = None) -> "Experiment":
        """Return the circuit of a ``.stim`` file.

        A name in sinter's style, like ``d=5,r=15,p=0.002.stim``, says distance, rounds and noise; ``rounds``
        overrides it.

        Raises:
            InputError: ``rounds`` below 1, or as :func:`symdyn_qec.circuits.read_circuit`.
        """
        if rounds is not None:
            check_rounds(rounds)
        said = dict(re.findall(r"(?:^|,)(d|r|p)=([^,]*)", Path(path).stem))
        distance, named_rounds, p = (
            _number(said.get(key), kind) for key, kind in (("d", int), ("r", int), ("p", float))
        )
        return cls(str(path), read_circuit(path), distance, rounds if rounds is not None else named_rounds, p)


@dataclass(frozen=True)
class Result:
    """What one decoder did on one circuit.

    A discarded shot counts as a failure: a decoder must not look better by refusing the hard shots.

    Fields:
        circuit, decoder: names.
        distance, rounds, p: of the circuit, ``None`` where unknown.
        observables: of the circuit; a shot with any of them wrong is an error.
        shots, errors, discards: counts.
        seconds: of the workers, added up: sampling and decoding, without start and compilation.
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

    @property
    def error_rate(self) -> float:
        """Failures per shot, (errors + discards) / shots."""
        return (self.errors + self.discards) / self.shots

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson 95 % interval of the error rate."""
        return clopper_pearson(self.errors + self.discards, self.shots)

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
    def microseconds_per_shot(self) -> float:
        """Wall time of one worker for sampling and decoding one shot."""
        return 1e6 * self.seconds / self.shots

    def to_dict(self) -> dict[str, Any]:
        """Return counts and rates under their column names."""
        low, high = self.interval
        round_low, round_high = self.per_round_interval
        counts = asdict(self)
        del counts["seconds"]
        return counts | {
            "error_rate": self.error_rate,
            "low": low,
            "high": high,
            "per_round": self.per_round,
            "per_round_low": round_low,
            "per_round_high": round_high,
            "microseconds_per_shot": self.microseconds_per_shot,
        }

    def _per_round(self, rate: float) -> float | None:
        return None if self.rounds is None else block_to_per_logical(rate, self.observables, self.rounds)


@dataclass(frozen=True)
class Benchmark:
    """The results of :func:`benchmark`, circuit by circuit, each with the decoders in the order asked for."""

    results: tuple[Result, ...] = field(default=())

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per circuit and decoder."""
        import pandas as pd

        return pd.DataFrame([result.to_dict() for result in self.results])

    def to_csv(self) -> str:
        """Return the frame as CSV text."""
        return str(self.to_frame().to_csv(index=False))

    def figure(self) -> "Figure":
        """Return error rates with intervals, against p or distance if several were run, else by circuit."""
        from symdyn_qec.plots import draw_rates

        return draw_rates(self.results)


def benchmark(
    experiments: Iterable[Experiment],
    decoders: Iterable[str] = ("pymatching",),
    shots: int = 100_000,
    max_errors: int | None = None,
    workers: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Sample circuits and decode the shots, in worker processes, with ``sinter.collect``.

    As with everything that starts processes, a script must call this below ``if __name__ == "__main__":``.

    Args:
        experiments: circuits; their names must differ.
        decoders: names in :data:`DECODERS`.
        shots: per circuit and decoder, at least 1.
        max_errors: stop a circuit and decoder after about this many errors, at least 1.
        workers: processes, at least 1; by default as many as the work and the machine's cores warrant.
        resume: CSV file of counts in sinter's format; they count towards ``shots``, and new ones are added.
        progress: called with the number of shots done since the last call.

    Raises:
        InputError: no or equal experiments, unknown decoders, counts out of range, a circuit that a decoder
            cannot work with, an unusable ``resume`` file. Such a circuit may show only while decoding.
        DependencyError: a decoder's package is not installed.
    """
    cases = list(experiments)
    names = list(dict.fromkeys(decoders))
    if not cases or not names:
        raise InputError("nothing to do: expected at least one circuit and one decoder")
    for what, value in (("shots", shots), ("max_errors", max_errors), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{what} must be at least 1, got {value}")
    if len({case.name for case in cases}) < len(cases):
        raise InputError(f"every circuit must be given once, got {', '.join(case.name for case in cases)}")
    for name in names:
        check_decoder(name)

    tasks = [(case, _task(case, name)) for case in cases for name in names]
    done = _kept(resume)
    if progress is not None:
        progress(sum(min(shots, done[task.strong_id()]) for _, task in tasks if task.strong_id() in done))

    def report(update: sinter.Progress) -> None:
        if progress is not None:
            progress(sum(stats.shots for stats in update.new_stats))

    try:
        collected = sinter.collect(
            num_workers=workers or default_workers(shots * len(tasks)),
            tasks=[task for _, task in tasks],
            max_shots=shots,
            max_errors=max_errors,
            max_batch_seconds=1,  # how often workers report, for progress and for what an interruption loses
            save_resume_filepath=None if resume is None else Path(resume),
            progress_callback=report,
        )
    except (RuntimeError, ValueError) as error:
        if error.__cause__ is None:
            raise
        # What went wrong in a worker: a decoder met a circuit that it cannot work with.
        raise InputError(f"decoding failed: {error.__cause__}") from error
    found = {stats.strong_id: stats for stats in collected}
    return Benchmark(tuple(_result(case, found[task.strong_id()]) for case, task in tasks))


def check_decoder(name: str) -> DecoderInfo:
    """Return what is known of a decoder.

    Raises:
        InputError: unknown name; the message suggests the nearest.
        DependencyError: its package is not installed.
    """
    if name not in DECODERS:
        raise InputError(unknown("decoder", name, list(DECODERS)))
    info = DECODERS[name]
    if info.module is not None and find_spec(info.module) is None:
        package = info.module.replace("_", "-")
        raise DependencyError(f"decoder {name} needs the package {package}: pip install {package}")
    return info


def default_workers(shots: int) -> int:
    """Return a sensible number of processes: no more than cores, no more than the work is worth."""
    return max(1, min(os.cpu_count() or 1, -(-shots // SHOTS_PER_WORKER)))


def _task(case: Experiment, decoder: str) -> sinter.Task:
    known = {"d": case.distance, "r": case.rounds, "p": case.p}
    return sinter.Task(
        circuit=case.circuit,
        decoder=decoder,
        detector_error_model=error_model(case.circuit, case.name, graphlike=DECODERS[decoder].graphlike),
        json_metadata={"name": case.name} | {key: value for key, value in known.items() if value is not None},
    )


def _kept(resume: str | os.PathLike[str] | None) -> dict[str, int]:
    """Return the shots in a file of counts by sinter's identity; make sure that the file can be added to."""
    if resume is None:
        return {}
    path = Path(resume)
    try:
        if path.exists():
            with path.open("a"):
                pass
            if path.stat().st_size == 0:
                raise ValueError("it is empty")
            return {stats.strong_id: stats.shots for stats in sinter.read_stats_from_csv_files(path)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} does not hold counts in sinter's format: {error}") from error
    return {}


def _result(case: Experiment, stats: sinter.TaskStats) -> Result:
    return Result(
        circuit=case.name,
        decoder=stats.decoder,
        distance=case.distance,
        rounds=case.rounds,
        p=case.p,
        observables=case.circuit.num_observables,
        shots=stats.shots,
        errors=stats.errors,
        discards=stats.discards,
        seconds=stats.seconds,
    )


def _number(text: str | None, kind: type[int] | type[float]) -> Any:
    # A name that only looks like sinter's style says nothing.
    try:
        value = kind(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= (1 if kind is int else 0) else None
