"""Accuracy against time, when the least confident shots are decoded again by a slower decoder.

All decode the same shots of the bb72 memory, 6 rounds. The first decoder decodes all of them, the second the
least confident part of the largest share asked for; every smaller share follows from the same answers. Times
are CPU time of this thread per shot, the first decoder's on all shots and the second's on its part.
Run: python benchmarks/escalation.py [--first NAME] [--second NAME] [--p P] [--shots N] [--shares S ...]
    [--figure FILE.svg]
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from symdyn_core.plots import MEASUREMENT, to_svg
from symdyn_qec.baselines.registry import decoder_info, make_decoder
from symdyn_qec.circuits import memory_circuit
from symdyn_qec.rates import clopper_pearson

SHARES = (0.0, 0.0025, 0.005, 0.01, 0.02)
BATCH = 64


def main() -> None:
    """Print one row per share, and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", default="min-sum")
    parser.add_argument("--second", default="symdyn")
    parser.add_argument("--p", type=float, default=0.003)
    parser.add_argument("--shots", type=int, default=4_000)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    decoder_info(f"{arguments.first}+{arguments.second}")  # a clear error for names that do not go together

    circuit = memory_circuit("bb72", p=arguments.p, rounds=6)
    dem = circuit.detector_error_model()
    sampler = circuit.compile_detector_sampler(seed=arguments.seed)
    shots, truth = sampler.sample(arguments.shots, separate_observables=True, bit_packed=True)
    first = make_decoder(arguments.first).compile_decoder_for_dem(dem=dem)
    second = make_decoder(arguments.second).compile_decoder_for_dem(dem=dem)

    start = time.thread_time()
    parts = [first.predict(shots[k : k + BATCH]) for k in track(range(0, len(shots), BATCH), arguments.first)]
    seconds = time.thread_time() - start
    confidence = np.concatenate([part.confidence for part in parts])
    wrong = (
        np.concatenate([np.packbits(p.observables, axis=1, bitorder="little") for p in parts]) != truth
    ).any(axis=1)
    order = np.argsort(confidence, kind="stable")
    better, cost = wrong.copy(), np.zeros(len(shots))
    for shot in track(order[: int(max(arguments.shares) * len(shots))], arguments.second):
        start = time.thread_time()
        answer = second.decode_shots_bit_packed(bit_packed_detection_event_data=shots[shot : shot + 1])
        cost[shot] = time.thread_time() - start
        better[shot] = bool(
            (answer[0, : truth.shape[1]] != truth[shot]).any() or answer[0, truth.shape[1] :].any()
        )

    table = Table(
        "escalated", "below confidence", "failures", "rate", "95 % interval", "ms per shot", box=None
    )
    curve = []
    for share in arguments.shares:
        again = order[: int(share * len(shots))]
        failed = int(wrong.sum() - wrong[again].sum() + better[again].sum())
        each = (seconds + cost[again].sum()) / len(shots) * 1e3
        low, high = clopper_pearson(failed, len(shots))
        below = f"{confidence[again[-1]]:.3f}" if len(again) else "–"
        interval = f"[{low:.2%}, {high:.2%}]"
        table.add_row(
            f"{share:.2%}", below, str(failed), f"{failed / len(shots):.2%}", interval, f"{each:.2f}"
        )
        curve.append((each, failed / len(shots), low, high, share))
    console = Console()
    console.print(
        f"{arguments.first}, then {arguments.second}; bb72, 6 rounds, p = {arguments.p:g}, {len(shots)} shots"
    )
    console.print(table)
    if arguments.figure:
        arguments.figure.write_text(draw(curve), encoding="utf-8")


def draw(curve: list[tuple[float, float, float, float, float]]) -> str:
    """Return the curve as SVG."""
    from matplotlib.figure import Figure

    each, rate, low, high, shares = np.array(curve).T
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(each, rate, [rate - low, high - rate], fmt="o-", color=MEASUREMENT)
    for x, y, share in zip(each, rate, shares, strict=True):
        axes.annotate(f"{share:.2%}", (x, y), xytext=(6, 4), textcoords="offset points")
    axes.set(yscale="log", xlabel="CPU time per shot (ms)", ylabel="failures per shot")
    axes.set_title("share of shots decoded again")
    return to_svg(figure)


if __name__ == "__main__":
    main()
