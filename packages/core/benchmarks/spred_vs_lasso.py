"""Factorized training against coordinate descent on the same lasso, interleaved in one process.

Reports CPU time (median over rounds), the relative gap of the objective to the best value found by anyone,
the number of non-zero coefficients, and the ratio of CPU times to scikit-learn's ``Lasso`` as it comes.

    python packages/core/benchmarks/spred_vs_lasso.py --help
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.linalg import toeplitz
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from symdyn_core.random import numpy_generator
from symdyn_core.symmetry.lasso import SpredLasso
from symdyn_core.symmetry.sparsity import merge_spred, spred

Array = NDArray[np.float64]


def regression(samples: int, features: int, seed: int) -> tuple[Array, Array]:
    """Features correlated as 0.5 to the power of their distance; a tenth of the samples' number matter."""
    random = numpy_generator(seed, "benchmark")
    root = np.linalg.cholesky(toeplitz(0.5 ** np.arange(features)))
    X = random.standard_normal((samples, features)) @ root.T
    coefficients = np.zeros(features)
    chosen = random.choice(features, samples // 10, replace=False)
    coefficients[chosen] = random.standard_normal(len(chosen))
    return X, X @ coefficients + 0.5 * random.standard_normal(samples)


def train_layer(X: Array, y: Array, alpha: float, steps: int) -> Array:
    """What a user of ``spred`` does: a linear layer, Adam with a cosine, merge; in single precision."""
    features, target = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    layer = torch.nn.Linear(X.shape[1], 1, bias=False, device="meta").to_empty(device="cpu")
    optimizer = torch.optim.Adam(spred(layer, alpha=alpha, init="random"), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (layer(features).squeeze(1) - target).square().mean()).backward()
        optimizer.step()
        schedule.step()
    merge_spred(layer)
    return layer.weight.detach().double().numpy()[0]


def solvers(alpha: float, steps: int) -> dict[str, Callable[[Array, Array], Array]]:
    """Return the contestants by name; the first is what the others are compared with."""

    def estimator(make: Callable[[], Any]) -> Callable[[Array, Array], Array]:
        return lambda X, y: make().fit(X, y).coef_

    plain: dict[str, Any] = {"fit_intercept": False}
    return {
        "sklearn Lasso": estimator(lambda: Lasso(alpha=alpha, max_iter=100_000, **plain)),
        "sklearn Lasso, tol 1e-8": estimator(lambda: Lasso(alpha=alpha, max_iter=100_000, tol=1e-8, **plain)),
        "SpredLasso, L-BFGS": estimator(lambda: SpredLasso(alpha, **plain)),
        "SpredLasso, L-BFGS, no polish": estimator(lambda: SpredLasso(alpha, polish=False, **plain)),
        f"SpredLasso, Adam {steps}": estimator(
            lambda: SpredLasso(alpha, solver="adam", max_iter=steps, **plain)
        ),
        f"spred, Adam {steps}, float32": lambda X, y: train_layer(X, y, alpha, steps),
    }


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description="spred against scikit-learn's Lasso on the same data")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument(
        "--strength", type=float, default=0.1, help="alpha as a share of its largest useful value"
    )
    parser.add_argument("--steps", type=int, default=1000, help="of Adam")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    X, y = regression(options.samples, options.features, options.seed)
    alpha = options.strength * float(np.abs(X.T @ y).max()) / len(y)
    contestants = solvers(alpha, options.steps)

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    found: dict[str, Array] = {}
    for _ in range(options.rounds):
        for name, solve in contestants.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the gap column says it
                start = time.process_time()
                found[name] = solve(X, y)
                seconds[name].append(time.process_time() - start)

    objective = {
        name: 0.5 * float(np.mean((X @ w - y) ** 2)) + alpha * float(np.abs(w).sum())
        for name, w in found.items()
    }
    best = min(objective.values())
    unit = statistics.median(next(iter(seconds.values())))
    title = f"{options.samples} samples, {options.features} features, alpha = {options.strength:g} alpha_max"
    table = Table("solver", title=f"{title}, {options.rounds} rounds, one thread")
    for column in ("CPU ms", "ratio", "relative gap", "non-zero"):
        table.add_column(column, justify="right")
    for name, times in seconds.items():
        cpu = statistics.median(times)
        gap = objective[name] / best - 1
        row = [f"{1e3 * cpu:.0f}", f"{cpu / unit:.1f}", f"{gap:.1e}", str(int((found[name] != 0).sum()))]
        table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
