"""What does it cost to know the steps of a training: predicting them, or training and looking?

Both get the same pairs and the same initial weights, in one process, alternating; the prediction includes
diagonalising the data. Training stops when its loss is below 1e-3, at a learning rate that keeps its steps
within two per cent of gradient flow, and at a quarter of the largest stable one, about the cheapest way to
see a staircase at all. The kernel form grows as the cube of the number of pairs.

Run: python benchmarks/predict_vs_train.py
"""

import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from symdyn_ssl.augment import digit_pairs
from symdyn_ssl.kernel import KernelSSL
from symdyn_ssl.simulate import simulate_linear_ssl
from symdyn_ssl.steps import measure_steps
from symdyn_ssl.stepwise import StepwiseTheory, largest_learning_rate

DIM, REPEATS = 6, 3


def fastest(work: Callable[[], object]) -> float:
    """Return the least CPU seconds of a few calls."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Print one line per way of knowing the steps."""
    torch.set_num_threads(1)
    print(f"digits, 64 features, embedding of {DIM}; CPU seconds, best of {REPEATS}; {platform.machine()}")
    print(f"{'pairs':>6} {'how':<34} {'seconds':>9} {'x closed form':>14} {'largest error of a step':>24}")
    for pairs in (250, 500):
        x, x_prime = digit_pairs(pairs)
        weights = np.random.default_rng(0).normal(0, 1e-4, (DIM, 64))
        theory = StepwiseTheory.from_pairs(x, x_prime, DIM)
        gentle = 0.01 / theory.gamma[0]
        bold = largest_learning_rate(theory.gamma) / 4

        def train(rate: float, x=x, x_prime=x_prime, weights=weights) -> np.ndarray:
            run = simulate_linear_ssl(x, x_prime, DIM, learning_rate=rate, weights0=weights, record_every=2)
            return rate * measure_steps(run.steps, run.eigenvalues).times

        def closed(x=x, x_prime=x_prime, weights=weights) -> np.ndarray:
            return np.sort(StepwiseTheory.from_pairs(x, x_prime, DIM).step_times(weights0=weights))

        def competing(x=x, x_prime=x_prime, weights=weights) -> np.ndarray:
            return StepwiseTheory.from_pairs(x, x_prime, DIM).competing_steps(weights).times

        def kernel(x=x, x_prime=x_prime, weights=weights) -> np.ndarray:
            model = KernelSSL("linear", DIM).fit(x, x_prime)
            return model.competing_steps(x @ weights.T, x_prime @ weights.T).times

        truth = train(0.002 / theory.gamma[0])  # gradient flow to 0.4 %
        ways = {
            "predict, closed form": closed,
            "predict, competing directions": competing,
            "predict, kernel form": kernel,
            "train, learning rate 0.01 / gamma_1": lambda gentle=gentle: train(gentle),
            "train, quarter of the largest rate": lambda bold=bold: train(bold),
        }
        base = fastest(closed)
        for name, work in ways.items():
            seconds = fastest(work)
            error = np.abs(work() / truth - 1).max()
            print(f"{pairs:>6} {name:<34} {seconds:>9.4f} {seconds / base:>14.1f} {error:>24.2%}")


if __name__ == "__main__":
    main()
