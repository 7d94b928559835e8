"""The transformer against the convolution over the torus, from nothing, with the same time of one CPU core.

Both learn BB72 in 6 cycles at mixed noise and are tested on the same shots of its Z memory. The transformer
learns the twelve observables of that memory, as in arXiv 2504.13043, the convolution the increments of both
memories, decoded by ordered statistics. Steps are fitted to the budget by the time that the first few take;
times are CPU seconds, waiting for other programs apart.
Run: python benchmarks/transformer_vs_torus.py [--seconds S] [--shots N] [--p P] [--seed N]
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch

from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.decoder import CompiledSymdynDecoder, SymdynDecoder
from symdyn_qec.rates import clopper_pearson
from symdyn_qec.training import Settings, Training
from symdyn_qec.transformer_checkpoint import TransformerCheckpoint
from symdyn_qec.transformer_decoder import CompiledTransformerDecoder, TransformerDecoder
from symdyn_qec.transformer_training import TransformerSettings, TransformerTraining

# The first steps make ready what later ones reuse; the next few tell how long a step takes.
FIRST, TIMED = 2, 6

CODE = bivariate_bicycle("bb72")


class Learner(Protocol):
    """What both trainings are."""

    step: int

    def run(self) -> Iterator[float]:
        """Take the remaining steps."""


S = TypeVar("S", bound=Settings)
L = TypeVar("L", bound=Learner)


def trained(settings: S, start: Callable[[S], L], seconds: float) -> tuple[L, S]:
    """Train for about so many CPU seconds; print how it went."""
    trial = start(dataclasses.replace(settings, steps=FIRST + TIMED)).run()
    list(itertools.islice(trial, FIRST))
    before = time.process_time()
    list(trial)
    steps = max(1, int(seconds / ((time.process_time() - before) / TIMED)))
    settings = dataclasses.replace(settings, steps=steps)
    learner, before = start(settings), time.process_time()
    losses = list(learner.run())
    spent, share = time.process_time() - before, max(1, steps // 10)
    print(
        f"  {steps} steps, {steps * settings.batch_size} shots, {spent:.0f} CPU s; "
        f"loss {np.mean(losses[:share]):.4f} in the first tenth, {np.mean(losses[-share:]):.4f} in the last",
        flush=True,
    )
    return learner, settings


def report(name: str, wrong: np.ndarray) -> None:
    """Print the rate of failures with its interval."""
    low, high = clopper_pearson(int(wrong.sum()), len(wrong))
    print(
        f"{name:36}{wrong.sum():6d} of {len(wrong)}  {wrong.mean():8.2%} [{low:.2%}, {high:.2%}]", flush=True
    )


def main() -> None:
    """Print one row per decoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--shots", type=int, default=2000)
    parser.add_argument("--p", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampler = bb_memory(CODE, arguments.p, rounds=6).compile_detector_sampler(seed=arguments.seed)
    detectors, truth = sampler.sample(arguments.shots, separate_observables=True)

    print("convolution over the torus, width 32, 3 layers")
    own = Settings(width=32, layers=3, seed=arguments.seed, average=0.99)
    torus, own = trained(own, lambda settings: Training(CODE, settings), arguments.seconds)
    of_torus = CompiledSymdynDecoder(
        SymdynDecoder(), Checkpoint.of(torus.averaged, CODE, own.rounds, {}), "Z"
    )

    print("transformer, width 32, 2 layers, 4 heads")
    other = TransformerSettings(width=32, layers=2, heads=4, seed=arguments.seed, average=0.99)
    transformer, other = trained(
        other, lambda settings: TransformerTraining(CODE, settings), arguments.seconds
    )
    checkpoint = TransformerCheckpoint.of(transformer.averaged, CODE, other, {})

    report("without decoding", truth.any(axis=1))
    report("torus", (of_torus.predict(detectors).observables != truth).any(axis=1))
    for beam in (1, 16):
        decoder = CompiledTransformerDecoder(TransformerDecoder("", beam=beam), checkpoint)
        answers = decoder.predict(detectors).observables != truth
        report(f"transformer, beam {beam}", answers.any(axis=1))
        print(f"  of single observables {answers.mean():.2%} wrong; without decoding {truth.mean():.2%}")


if __name__ == "__main__":
    main()
