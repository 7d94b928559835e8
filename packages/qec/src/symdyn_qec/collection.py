"""Logical error rates from many worker processes, sampled and decoded by sinter.

This is for millions of shots: nothing is timed but the workers, and every decoder sees shots of its own.
They are fresh at every call, as sinter seeds its workers from the operating system. What can be kept is the
counts, in sinter's CSV format (``resume``); a later call adds to them.
"""

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile

import sinter

from symdyn_core.errors import InputError
from symdyn_qec.baselines.registry import decoder_info, make_decoder
from symdyn_qec.experiment import Experiment, check_experiments
from symdyn_qec.results import Benchmark, Result

# A worker takes about half a second to start; below this many shots another one costs more than it brings.
SHOTS_PER_WORKER = 100_000


def collect(
    experiments: Iterable[Experiment],
    decoders: Iterable[str] = ("pymatching",),
    shots: int = 100_000,
    max_errors: int | None = None,
    workers: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    custom_decoders: Mapping[str, sinter.Decoder] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Benchmark:
    """Sample circuits and decode the shots, in worker processes, with ``sinter.collect``.

    As with everything that starts processes, a script must call this below ``if __name__ == "__main__":``.

    Args:
        experiments: circuits; their names must differ.
        decoders: names in :data:`~symdyn_qec.baselines.registry.DECODERS`, or of ``custom_decoders``.
        shots: per circuit and decoder, at least 1.
        max_errors: stop a circuit and decoder after about this many errors, at least 1.
        workers: processes, at least 1; by default as many as the work and the machine's cores warrant.
        resume: CSV file of counts in sinter's format; they count towards ``shots``, and new ones are added.
        custom_decoders: further decoders by name, or other ones for known names; workers must be able to
            unpickle them.
        progress: called with the part of the shots that is done, in [0, 1].

    Raises:
        InputError: no or equal experiments, unknown decoders, counts out of range, a custom decoder that does
            not get to a worker, an unusable ``resume`` file, a circuit that a decoder cannot work with. Such
            a circuit may show only while decoding.
        DependencyError: a decoder's package is not installed.
    """
    cases, names, custom = list(experiments), list(dict.fromkeys(decoders)), dict(custom_decoders or {})
    check_experiments(cases)
    if not names:
        raise InputError("nothing to do: expected at least one decoder")
    for what, value in (("shots", shots), ("max_errors", max_errors), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{what} must be at least 1, got {value}")
    _check_transport(custom)
    used = {name: custom[name] if name in custom else make_decoder(name) for name in names}
    tasks = [
        (case, case.task(name, name not in custom and decoder_info(name).graphlike))
        for case in cases
        for name in names
    ]
    done = _kept(resume)
    finished = sum(min(shots, done[task.strong_id()]) for _, task in tasks if task.strong_id() in done)

    def report(update: sinter.Progress) -> None:
        nonlocal finished
        finished += sum(stats.shots for stats in update.new_stats)
        if progress is not None:
            progress(finished / (shots * len(tasks)))

    try:
        collected = sinter.collect(
            custom_decoders=used,
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


def default_workers(shots: int) -> int:
    """Return a sensible number of processes: no more than cores, no more than the work is worth."""
    return max(1, min(os.cpu_count() or 1, -(-shots // SHOTS_PER_WORKER)))


def _check_transport(decoders: Mapping[str, sinter.Decoder]) -> None:
    """Raise InputError if a worker could not unpickle a decoder; sinter would wait for it forever."""
    if not decoders:
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        for name, decoder in decoders.items():
            try:
                process.submit(pickle.loads, pickle.dumps(decoder)).result()
            except Exception as error:  # pickling runs code of the decoder's author
                raise InputError(
                    f"decoder {name!r} cannot be sent to a worker, which must import its class: {error}"
                ) from error


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
        strong_id=stats.strong_id,
    )
