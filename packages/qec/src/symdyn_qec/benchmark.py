"""Decoders on circuits: how often they fail and how long they take, all on the same shots.

:func:`benchmark` decodes in this process and times every decoder;
:func:`~symdyn_qec.collection.collect` counts failures with many processes.
"""

from collections.abc import Callable, Iterable, Mapping

import sinter

from symdyn_core.errors import InputError
from symdyn_qec.baselines.registry import decoder_info
from symdyn_qec.collection import collect
from symdyn_qec.comparison import Refusal, compare_on
from symdyn_qec.entrant import Limits
from symdyn_qec.experiment import Experiment, check_experiments
from symdyn_qec.results import Benchmark, Result

__all__ = ["Benchmark", "Experiment", "Result", "benchmark", "collect"]


def benchmark(
    experiments: Iterable[Experiment],
    decoders: Iterable[str] = ("pymatching",),
    shots: int = 100_000,
    budget: float | None = 10.0,
    max_errors: int | None = None,
    seed: int = 0,
    custom_decoders: Mapping[str, sinter.Decoder] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Benchmark:
    """Decode the same shots with several decoders, one thread for each in turn.

    For each circuit there is one stream of shots, the same for the same seed; every decoder decodes the first
    of them, as many as its limits allow. A decoder whose package is missing, or that cannot work with a
    circuit, is skipped with a row that says why.

    Args:
        experiments: circuits; their names must differ.
        decoders: names in :data:`~symdyn_qec.baselines.registry.DECODERS`, or of ``custom_decoders``; the
            others are compared with the first one.
        shots: per circuit and decoder at most, at least 1.
        budget: thread-CPU seconds of decoding per circuit and decoder, positive; the shot or batch that
            exceeds it is the last one. ``None`` for as long as it takes.
        max_errors: stop a circuit and decoder after about this many failures, at least 1.
        seed: of the shots.
        custom_decoders: further decoders by name, or other ones for known names.
        progress: called with the part of the work that is done, in [0, 1].

    Raises:
        InputError: no or equal experiments, unknown decoders, counts out of range, or no decoder that can
            work with any of the circuits.
        DependencyError: no decoder is left, because packages are missing.

    >>> found = benchmark([Experiment.generate("repetition", p=0.1, distance=3)], shots=500, seed=1)
    >>> found.results[0].shots, found.results[0].paired
    (500, None)
    """
    cases, names, custom = list(experiments), list(dict.fromkeys(decoders)), dict(custom_decoders or {})
    limits = Limits(shots, budget, max_errors)
    check_experiments(cases)
    if not names:
        raise InputError("nothing to do: expected at least one decoder")
    for name in names:
        if name not in custom:
            decoder_info(name)
    rows: list[Result] = []
    refusals: list[Refusal] = []
    for index, case in enumerate(cases):

        def report(part: float, done: int = index) -> None:
            if progress is not None:
                progress((done + part) / len(cases))

        found, refused = compare_on(case, names, limits, seed, custom, report)
        rows += found
        refusals += refused
    if not any(row.shots for row in rows):
        raise refusals[0]
    return Benchmark(tuple(rows))
