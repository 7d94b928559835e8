"""Compiled ensembles against vectorised NumPy and PyTorch, and the Ito integrator against torchsde.

Reports steps of one replica per second of CPU time, the ratio to the fastest peer, and how far the stationary
moments differ. torchsde is in the extra ``bench``.

    python packages/core/benchmarks/few_parameters.py --help
"""

import argparse
import math
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from symdyn_core.dynamics.few import simulate_few
from symdyn_core.dynamics.sde import integrate_sde
from symdyn_core.random import numpy_generator, torch_generator

RATE = 0.1
REPLICAS = 4096


@numba.njit
def parabola(theta, draw, out):
    """A noisy target for one parameter."""
    out[0] = theta[0] - draw[0]


@numba.njit
def product(theta, draw, out):
    """Regression by a product of two parameters."""
    error = (theta[0] * theta[1] - 1.0) * draw[0] - 0.1 * draw[1]
    out[0], out[1] = error * draw[0] * theta[1], error * draw[0] * theta[0]


@numba.njit
def decay(x, out):
    """Drift of the Ornstein-Uhlenbeck process."""
    out[:] = -x


@numba.njit
def unit(x, out):
    """Its noise."""
    out[:] = 1.0


def numpy_parabola(kind: str, steps: int) -> float:
    """Step all replicas at once; return the mean square."""
    random, theta = numpy_generator(1, "benchmark"), np.zeros(REPLICAS)
    for _ in range(steps):
        theta -= RATE * (theta - numpy_draw(random, kind))
    return float((theta**2).mean())


def numpy_draw(random: np.random.Generator, kind: str) -> np.ndarray:
    """Draw one number per replica."""
    if kind == "normal":
        return random.standard_normal(REPLICAS)
    if kind == "uniform":
        return random.random(REPLICAS)
    return random.integers(0, 2, REPLICAS, dtype=np.int8) * 2.0 - 1.0


def torch_parabola(kind: str, steps: int) -> float:
    """Do the same with PyTorch."""
    random, theta = torch_generator(1, "benchmark"), torch.zeros(REPLICAS, dtype=torch.float64)
    for _ in range(steps):
        if kind == "normal":
            draw = torch.randn(REPLICAS, generator=random, dtype=torch.float64)
        elif kind == "uniform":
            draw = torch.rand(REPLICAS, generator=random, dtype=torch.float64)
        else:
            draw = torch.randint(0, 2, (REPLICAS,), generator=random).double().mul_(2).sub_(1)
        theta.sub_(theta.sub(draw), alpha=RATE)
    return float((theta**2).mean())


def numpy_product(steps: int) -> float:
    """Step all products at once; return the mean product."""
    random, u, w = numpy_generator(1, "benchmark"), np.ones(REPLICAS), np.ones(REPLICAS)
    for _ in range(steps):
        x, noise = random.standard_normal((2, REPLICAS))
        error = RATE * ((u * w - 1.0) * x - 0.1 * noise) * x
        u, w = u - error * w, w - error * u
    return float((u * w).mean())


def torch_product(steps: int) -> float:
    """Do the same with PyTorch."""
    random = torch_generator(1, "benchmark")
    u, w = torch.ones(2, REPLICAS, dtype=torch.float64)
    for _ in range(steps):
        x, noise = torch.randn(2, REPLICAS, generator=random, dtype=torch.float64)
        error = RATE * ((u * w - 1.0) * x - 0.1 * noise) * x
        u, w = u - error * w, w - error * u
    return float((u * w).mean())


def ours(gradient: object, draws: list[str], size: int, steps: int) -> np.ndarray:
    """Run the compiled ensemble; return the parameters."""
    start = np.full((REPLICAS, size), 0.0 if size == 1 else 1.0)
    return simulate_few(gradient, start, draws=draws, learning_rate=RATE, steps=steps, seed=1).params


class Decay(torch.nn.Module):
    """The Ornstein-Uhlenbeck process as torchsde wants it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the drift."""
        return -y

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the strength of the noise."""
        return torch.ones_like(y)


def torchsde_decay(steps: int) -> float:
    """Integrate with torchsde's Euler scheme; return the mean square."""
    import torchsde

    times = torch.tensor([0.0, steps * 0.01])
    motion = torchsde.BrownianInterval(0.0, steps * 0.01, size=(REPLICAS, 1), entropy=1, dtype=torch.float64)
    start = torch.zeros(REPLICAS, 1, dtype=torch.float64)
    return float((torchsde.sdeint(Decay(), start, times, bm=motion, dt=0.01, method="euler")[-1] ** 2).mean())


def our_decay(steps: int) -> float:
    """Integrate with the adaptive scheme; return the mean square."""
    start = np.zeros((REPLICAS, 1))
    return float((integrate_sde(decay, unit, start, step=0.01, steps=steps, seed=1).state ** 2).mean())


def best(run: Callable[[int], float], steps: int, rounds: int) -> tuple[float, float]:
    """Return the most replica-steps per CPU second seen, and what the run returned."""
    seconds, value = math.inf, math.nan
    for _ in range(rounds):
        start = time.process_time()
        value = run(steps)
        seconds = min(seconds, time.process_time() - start)
    return REPLICAS * steps / seconds, value


def main() -> None:
    """Time all cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="steps of every replica")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the best counts")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def mean_square(kind: str) -> Callable[[int], float]:
        return lambda steps: float((ours(parabola, [kind], 1, steps) ** 2).mean())

    cases: list[tuple[str, Callable[[int], float], dict[str, Callable[[int], float]]]] = [
        (
            f"one parameter, {kind} draws",
            mean_square(kind),
            {
                "numpy": lambda steps, kind=kind: numpy_parabola(kind, steps),
                "torch": lambda steps, kind=kind: torch_parabola(kind, steps),
            },
        )
        for kind in ("sign", "uniform", "normal")
    ]
    cases.append(
        (
            "two parameters, two normal draws",
            lambda steps: float(ours(product, ["normal", "normal"], 2, steps).prod(axis=1).mean()),
            {"numpy": numpy_product, "torch": torch_product},
        )
    )
    cases.append(("Ito equation, one variable", our_decay, {"torchsde": torchsde_decay}))
    table = Table(
        title=f"{REPLICAS} replicas, one thread, speeds in million steps per second of CPU time", box=None
    )
    for heading in ("case", "symdyn", "peer", "its speed", "ratio", "moment", "peer's"):
        table.add_column(heading, justify="left" if heading in ("case", "peer") else "right")
    for name, mine, peers in cases:
        mine(1)  # compiles
        own, moment = best(mine, args.steps, args.rounds)
        measured = {peer: best(run, max(args.steps // 4, 1), args.rounds) for peer, run in peers.items()}
        peer, (speed, other) = max(measured.items(), key=lambda item: item[1][0])
        table.add_row(
            name, f"{own / 1e6:.1f}", peer, f"{speed / 1e6:.2f}", f"{own / speed:.1f}",
            f"{moment:.4f}", f"{other:.4f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
