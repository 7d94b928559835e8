"""Shots per second, end to end: our benchmark, bare `sinter.collect`, a bare Stim and PyMatching loop.

All sample the same circuit and decode it with PyMatching on one core; ours in this process, and in a worker
as sinter does. They take turns, so that a busy machine is busy for all. Wall time of the whole call, with the
start of the worker process; the median of the repeats.
Run: python benchmarks/decode_throughput.py [--shots N] [--repeats N]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pymatching
import sinter

from symdyn_qec.benchmark import Experiment, benchmark, collect

BATCH = 1_024  # as sinter's


def with_symdyn(case: Experiment, shots: int) -> int:
    """Run our benchmark and return the errors."""
    return benchmark([case], shots=shots, budget=None).results[0].errors


def with_symdyn_worker(case: Experiment, shots: int) -> int:
    """Let our benchmark use a worker process of sinter and return the errors."""
    return collect([case], shots=shots, workers=1).results[0].errors


def with_sinter(case: Experiment, shots: int) -> int:
    """Run sinter as its documentation does."""
    task = sinter.Task(circuit=case.circuit, decoder="pymatching")
    return int(sinter.collect(num_workers=1, tasks=[task], max_shots=shots)[0].errors)


def with_a_loop(case: Experiment, shots: int) -> int:
    """Sample and decode batches in this process."""
    dem = case.circuit.detector_error_model(decompose_errors=True)
    matching = pymatching.Matching.from_detector_error_model(dem)
    sampler = case.circuit.compile_detector_sampler()
    errors = 0
    for start in range(0, shots, BATCH):
        size = min(BATCH, shots - start)
        detectors, observables = sampler.sample(size, separate_observables=True, bit_packed=True)
        predicted = matching.decode_batch(detectors, bit_packed_shots=True, bit_packed_predictions=True)
        errors += int((predicted != observables).any(axis=1).sum())
    return errors


def main() -> None:
    """Print one row per circuit and contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    contenders: dict[str, Callable[[Experiment, int], int]] = {
        "symdyn benchmark": with_symdyn,
        "symdyn with --workers 1": with_symdyn_worker,
        "sinter.collect": with_sinter,
        "stim + pymatching loop": with_a_loop,
    }
    print(f"{'circuit':26}{'contender':26}{'shots/s':>10}{'time/ours':>11}{'error rate':>12}")
    for distance in (3, 5, 7):
        case = Experiment.generate("surface", p=0.005, distance=distance)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        errors = dict.fromkeys(contenders, 0)
        for _ in range(arguments.repeats):
            for name, contender in contenders.items():
                start = time.perf_counter()
                errors[name] += contender(case, arguments.shots)
                seconds[name].append(time.perf_counter() - start)
        ours = statistics.median(seconds["symdyn benchmark"])
        for name in contenders:
            median = statistics.median(seconds[name])
            rate = errors[name] / (arguments.shots * arguments.repeats)
            print(f"{case.name:26}{name:26}{arguments.shots / median:10.0f}{median / ours:11.2f}{rate:12.4%}")


if __name__ == "__main__":
    main()
