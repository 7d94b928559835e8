"""Many replicas of SGD on digits: together, against one after the other in plain torch.

The network is 64-32-10 with ReLU, every replica has its own minibatches and its own copy of the parameters.
All contestants draw the same minibatches; the largest difference of the final parameters is reported. The
loop is what one writes without this package: a model, ``torch.optim.SGD`` and a Python loop over replicas.
Its cost per replica does not depend on how many there are, so that a few of them are timed. CPU time of one
thread; the contestants take turns, the ratio is that of the best of several rounds. Beside it: the peak of
memory allocated by Python and NumPy at two numbers of steps.

    python packages/core/benchmarks/ensemble_vs_loop.py --help
"""

import argparse
import copy
import time
import tracemalloc
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from symdyn_core.dynamics.ensemble import simulate
from symdyn_core.dynamics.ensemble_observables import Observable
from symdyn_core.dynamics.minibatches import MinibatchStream
from symdyn_core.dynamics.replica_optimizers import SGD, Adam, ReplicaOptimizer
from symdyn_core.random import derive_seed, torch_generator

SEED, BATCH, RATE = 0, 32, 0.05
OPTIMIZERS: dict[str, tuple[ReplicaOptimizer, type[torch.optim.Optimizer], dict[str, float]]] = {
    "SGD": (SGD(), torch.optim.SGD, {}),
    "momentum": (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (Adam(), torch.optim.Adam, {}),
}


def digits() -> tuple[Tensor, Tensor]:
    """Return the 1797 images as rows in [0, 1], and their classes."""
    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)


def network() -> nn.Module:
    """Return a 64-32-10 network whose parameters do not depend on torch's own generator."""
    layers = [nn.utils.skip_init(nn.Linear, *widths) for widths in ((64, 32), (32, 10))]
    for place, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            random = torch.rand(parameter.shape, generator=torch_generator(SEED, name, place))
            parameter.data = (2 * random - 1) / layer.in_features**0.5
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def loop(model: nn.Module, data: tuple[Tensor, Tensor], optimizer: str, replicas: int, steps: int) -> dict:
    """Train one replica after the other."""
    _, kind, settings = OPTIMIZERS[optimizer]
    stream = MinibatchStream(derive_seed(SEED, "minibatches"), len(data[0]), BATCH, replacement=True)
    trained: dict[str, list[Tensor]] = {}
    for replica in range(replicas):
        mine = copy.deepcopy(model)
        moves = kind(mine.parameters(), lr=RATE, **settings)
        for batch in torch.from_numpy(stream.indices(range(replica, replica + 1), range(steps))[0]):
            moves.zero_grad()
            nn.functional.cross_entropy(mine(data[0][batch]), data[1][batch]).backward()
            moves.step()
        for name, parameter in mine.named_parameters():
            trained.setdefault(name, []).append(parameter.detach())
    return {name: torch.stack(rows) for name, rows in trained.items()}


def compare(optimizer: str, replicas: int, steps: int, looped: int, rounds: int) -> list[list[str]]:
    """Return a row of the table for each contestant."""
    model, data = network(), digits()
    ensemble = partial(
        simulate,
        model,
        data,
        loss_fn=nn.functional.cross_entropy,
        batch_size=BATCH,
        seed=SEED,
        learning_rate=RATE,
        optimizer=OPTIMIZERS[optimizer][0],
    )
    paths = ["vmap", "mlp"] if isinstance(OPTIMIZERS[optimizer][0], SGD) else ["vmap"]
    contestants = {"loop": lambda: loop(model, data, optimizer, looped, steps)} | {
        path: partial(lambda path: ensemble(replicas=replicas, steps=steps, path=path).params, path)
        for path in paths
    }
    sizes = {"loop": looped} | dict.fromkeys(paths, replicas)
    ensemble(replicas=8, steps=2)  # the first call imports
    best = dict.fromkeys(contestants, float("inf"))
    found = {}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            begin = time.process_time()
            found[name] = contestants[name]()
            seconds = (time.process_time() - begin) / (sizes[name] * steps)
            best[name] = min(best[name], seconds)
    rows = []
    for name in contestants:
        gap = max(
            float((found[name][key][:looped] - tensor).abs().max()) for key, tensor in found["loop"].items()
        )
        ratio = best["loop"] / best[name]
        rows.append([optimizer, str(replicas), name, f"{1e6 * best[name]:.1f}", f"{ratio:.1f}", f"{gap:.0e}"])
    return rows


def peak_memory(steps: int) -> float:
    """Return the largest memory in MB that Python and NumPy held in a run with observables."""
    observables = {"norm": Observable(lambda params: params["0.weight"].square().sum(), threshold=30.0)}
    tracemalloc.start()
    simulate(
        network(),
        digits(),
        loss_fn=nn.functional.cross_entropy,
        replicas=64,
        batch_size=BATCH,
        steps=steps,
        seed=SEED,
        learning_rate=RATE,
        observables=observables,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description="an ensemble against a Python loop over replicas")
    parser.add_argument("--replicas", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--looped", type=int, default=32, help="replicas of the loop that are timed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("optimizer", title=f"digits, 64-32-10, batch {BATCH}, {options.steps} steps, one thread")
    for column in ("replicas", "contestant", "us / replica step", "ratio", "difference"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    for optimizer in options.optimizers:
        for replicas in options.replicas:
            looped = min(options.looped, replicas)
            for row in compare(optimizer, replicas, options.steps, looped, options.rounds):
                table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    short, long = peak_memory(200), peak_memory(2000)
    console.print(
        f"peak memory with a recorded observable: {short:.2f} MB at 200 steps, {long:.2f} MB at 2000"
    )


if __name__ == "__main__":
    main()
