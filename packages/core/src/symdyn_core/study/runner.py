"""Run studies: every repetition of every study is one task, spread over processes by joblib.

The numbers do not depend on the engine, on the number of processes or on the order in which tasks finish: a
repetition is a pure function of configuration and seed, and each runs on a single thread.
"""

import dataclasses
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from symdyn_core.errors import DependencyError, InputError, SymdynError
from symdyn_core.study.record import Measurements, Record, plain, repetition_seed


@dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Args:
        name: ``local`` (processes on this machine) or ``dask`` (a cluster's workers).
        jobs: processes; -1 for one per core. Ignored by dask.
        scheduler: address of the dask scheduler, such as ``tcp://10.0.0.5:8786``.
    """

    name: str = "local"
    jobs: int = -1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ("local", "dask"):
            raise InputError(f"engine must be local or dask, got {self.name!r}")
        if self.jobs == 0 or self.jobs < -1:
            raise InputError(f"jobs must be positive, or -1 for one per core, got {self.jobs}")
        if (self.name == "dask") != (self.scheduler is not None):
            raise InputError("the dask engine, and only it, needs --scheduler ADDRESS")

    def activate(self) -> AbstractContextManager[Any]:
        """Return the context in which joblib sends tasks to this engine."""
        import joblib

        if self.name == "local":
            return joblib.parallel_config(  # type: ignore[no-any-return]
                "loky", n_jobs=self.jobs, inner_max_num_threads=1
            )
        try:
            from distributed import Client
        except ImportError as error:
            raise DependencyError(
                "the dask engine needs the extra: pip install 'symdyn-core[dask]'"
            ) from error
        try:
            client = Client(self.scheduler, timeout=10)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"cannot reach a dask scheduler at {self.scheduler}: {error}") from error
        return joblib.parallel_config("dask", client=client)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Outcome:
    """What came back of one task: measurements, or the reason why there are none (and the traceback)."""

    measurements: Measurements | None
    seconds: float
    error: str | None = None
    trace: str | None = None


def run(
    records: Sequence[Record],
    repetitions: Sequence[int],
    *,
    out: Path | None = None,
    engine: Engine | None = None,
    on_repetition: Callable[[Record, Outcome], None] = lambda record, outcome: None,
) -> list[Record]:
    """Complete each record to its number of repetitions.

    A repetition that raises marks its record with an error; the other records go on. With `out`, each record
    is saved after every repetition, so an interrupted run continues where it stopped.

    Args:
        records: as resumed from disk, or empty.
        repetitions: how many repetitions each record should hold in the end.
        out: folder of the records; nothing is written without it.
        engine: local processes by default.
        on_repetition: called with the record, and what came back, after each repetition.

    Raises:
        SymdynError: a worker process died under its task.
    """
    import joblib

    state = list(records)
    tasks = [
        (index, k)
        for index, record in enumerate(state)
        for k in range(repetitions[index])
        if k not in record.samples
    ]
    engine = engine or Engine()
    if engine.name == "local" and len(tasks) == 1:
        engine = Engine(jobs=1)  # a pool of processes costs more than it brings
    with engine.activate(), _worker_deaths_named(), _replaced_workers_unsaid():
        outcomes = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(_task)(index, k, *_measurement(state[index], k)) for index, k in tasks
        )
        for index, k, outcome in outcomes:
            record = state[index]
            if outcome.measurements is not None:
                record = record.with_sample(k, outcome.measurements, outcome.seconds)
            elif record.error is None:
                record = dataclasses.replace(record, error=f"repetition {k}: {outcome.error}")
            state[index] = record
            if out is not None:
                record.save(out, finished=False)
            on_repetition(record, outcome)
    return state


def run_repetition(
    measure: Callable[[Any, int], Measurements], config: Any, seed: int, limit: float
) -> Outcome:
    """Measure once, on one thread, within ``limit`` seconds."""
    start = time.perf_counter()
    try:
        with single_threaded(), time_limit(limit):
            measurements = plain(measure(config, seed))
        return Outcome(measurements, time.perf_counter() - start)
    except Exception as error:  # noqa: BLE001  # a study that raises is an ERROR row; the others still run
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(None, time.perf_counter() - start, reason, traceback.format_exc())


@contextmanager
def _replaced_workers_unsaid() -> Iterator[None]:
    """Keep quiet of workers that joblib replaces once they have grown, as when kernels are compiled there.

    Their tasks are done by then: nothing is lost.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        yield


@contextmanager
def _worker_deaths_named() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise SymdynError(
            "a worker process died, perhaps for lack of memory; what is finished is kept, "
            "and --jobs 1 runs the rest one by one"
        ) from error


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run BLAS, OpenMP and torch on one thread: sums come out the same on every machine and engine."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        if torch:
            torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


def time_limit(seconds: float) -> AbstractContextManager[None]:
    """Raise TimeoutError in the block after ``seconds``.

    Works where the system has interval timers and in the main thread, which is where worker processes run
    their tasks; elsewhere (Windows, threads of a dask worker) there is no limit.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return _alarm(seconds)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"one repetition took longer than its limit of {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _measurement(
    record: Record, repetition: int
) -> tuple[Callable[[Any, int], Measurements], Any, int, float]:
    # Only the function travels, by name: claims hold lambdas, which do not need to cross processes.
    seed = repetition_seed(record.seed, record.study.id, repetition)
    return record.study.measure, record.config, seed, record.study.time_limit


def _task(
    index: int,
    repetition: int,
    measure: Callable[[Any, int], Measurements],
    config: Any,
    seed: int,
    limit: float,
) -> tuple[int, int, Outcome]:
    return index, repetition, run_repetition(measure, config, seed, limit)
