"""Trace, diagonal and top-10 spectrum of the gradient noise against BackPACK and torch.func, same batch.

Every method returns the same three quantities of the unbiased covariance of 256 per-sample gradients; what
they return is compared before anything is timed. The peers are used as well as we know how: BackPACK's
BatchGrad with an extension hook that takes inner products and squares layer by layer and frees the gradients,
or with the gradients kept, and vmap(grad) at once or in chunks of samples; the fastest of them counts. The
methods take turns in one process; printed is the median of the rounds, also in plain training steps.

Memory is measured in a process of its own for each method: by how much the resident size grows at its peak
over that of a process that has trained a step, looked at every half millisecond, results included.

    python packages/core/benchmarks/gradient_noise.py --help
"""

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from symdyn_core.dynamics.gradient_noise import gradient_noise

BATCH, TOP = 256, 10
Result = tuple[float, Tensor, Tensor]
"""Trace, diagonal of shape (P,), largest eigenvalues."""


def mnist_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    """784-512-512-10, 0.67 million parameters."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    ), (784,)


def digits_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    """64-256-256-10, 85 thousand parameters."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)), (
        64,
    )


def digits_cnn() -> tuple[nn.Module, tuple[int, ...]]:
    """Two convolutions of 16 and 32 channels on 8 x 8 images, 10 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    ), (1, 8, 8)  # fmt: skip


def fashion_cnn() -> tuple[nn.Module, tuple[int, ...]]:
    """LeNet-like, on 28 x 28 images, 0.11 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10),
    ), (1, 28, 28)  # fmt: skip


def strided_cnn() -> tuple[nn.Module, tuple[int, ...]]:
    """Four strided convolutions up to 128 channels on 32 x 32 images, 0.24 million parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    ), (3, 32, 32)  # fmt: skip


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "MLP 784-512-512-10": mnist_mlp,
    "MLP 64-256-256-10": digits_mlp,
    "CNN 16-32, 8x8": digits_cnn,
    "CNN 16-32-64, 28x28": fashion_cnn,
    "CNN 32-64-128-128, 32x32": strided_cnn,
}


@dataclass(frozen=True)
class Problem:
    """A model with a batch."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, name: str) -> "Problem":
        """Return the model of this name with random data."""
        torch.manual_seed(0)
        model, shape = MODELS[name]()
        return cls(model, torch.randn(BATCH, *shape), torch.randint(10, (BATCH,)))


def from_moments(total: Tensor, squares: Tensor, gram: Tensor) -> Result:
    """Return the three quantities from sums of gradients, of their squares, and from inner products."""
    mean = total / BATCH
    diagonal = (squares - BATCH * mean**2) / (BATCH - 1)
    gram = gram.double()
    rows = gram.mean(dim=0)
    centred = gram - rows - rows[:, None] + rows.mean()
    return float(diagonal.sum()), diagonal, torch.linalg.eigvalsh(centred / (BATCH - 1)).flip(0)[:TOP]


def ours(problem: Problem) -> Result:
    """Layer by layer, from inputs and output gradients."""
    noise = gradient_noise(problem.model, cross_entropy, problem.inputs, problem.targets)
    diagonal = torch.cat([value.flatten() for value in noise.diagonal.values()])
    return noise.trace, diagonal, noise.eigenvalues(TOP)


def from_gradients(gradients: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums, sums of squares and inner products of gradients, each of shape (samples, m)."""
    gram = sum(g @ g.T for g in gradients)
    assert isinstance(gram, Tensor)
    moments = [(g.sum(0), (g * g).sum(0)) for g in gradients]
    total, squares = (torch.cat(parts) for parts in zip(*moments, strict=True))
    return total, squares, gram


def with_vmap(problem: Problem, samples: int = BATCH) -> Result:
    """Gradients of all samples from vmap(grad), ``samples`` at a time."""
    params = {name: value.detach() for name, value in problem.model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(problem.model, params, (x.unsqueeze(0),))
        return cross_entropy(outputs, y.unsqueeze(0))

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), chunk_size=samples)
    found = per_sample(params, problem.inputs, problem.targets)
    return from_moments(*from_gradients([value.flatten(1) for value in found.values()]))


def with_backpack(problem: Problem) -> Result:
    """BackPACK's BatchGrad, all gradients kept."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model, loss_fn = extend(problem.model), extend(nn.CrossEntropyLoss(reduction="sum"))
    with backpack(BatchGrad()):
        loss_fn(model(problem.inputs), problem.targets).backward()
    gradients = [parameter.grad_batch.flatten(1) for parameter in model.parameters()]
    result = from_moments(*from_gradients(gradients))
    for parameter in model.parameters():
        parameter.grad = None
        del parameter.grad_batch
    return result


def with_backpack_hook(problem: Problem) -> Result:
    """BackPACK's BatchGrad, used up layer by layer as the backward pass goes."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model, loss_fn = extend(problem.model), extend(nn.CrossEntropyLoss(reduction="sum"))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    gram = torch.zeros(BATCH, BATCH)

    def use_up(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            g = parameter.grad_batch.flatten(1)
            gram.add_(g @ g.T)
            found[id(parameter)] = g.sum(0), (g * g).sum(0)
            del parameter.grad_batch

    with backpack(BatchGrad(), extension_hook=use_up):
        loss_fn(model(problem.inputs), problem.targets).backward()
    total, squares = (
        torch.cat([found[id(parameter)][part] for parameter in model.parameters()]) for part in (0, 1)
    )
    for parameter in model.parameters():
        parameter.grad = None
    return from_moments(total, squares, gram)


def step(problem: Problem) -> None:
    """A plain forward and backward pass."""
    cross_entropy(problem.model(problem.inputs), problem.targets).backward()
    for parameter in problem.model.parameters():
        parameter.grad = None


METHODS: dict[str, Callable[[Problem], Result]] = {
    "symdyn": ours,
    "vmap": with_vmap,
    "vmap, 32 at a time": lambda problem: with_vmap(problem, 32),
    "BackPACK": with_backpack,
    "BackPACK, hook": with_backpack_hook,
}


def check(reference: Result, other: Result, name: str) -> None:
    """Stop unless two methods agree."""
    for ours, theirs in zip(reference, other, strict=True):
        first, second = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
        gap = float((first - second).norm() / second.norm())
        if not gap < 1e-4:
            raise SystemExit(f"{name} disagrees by {gap:.2g}")


def timed(name: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of every method, and of a plain step."""
    run: dict[str, Callable[[Problem], object]] = {"step": step, **METHODS}
    problems = {method: Problem.of(name) for method in run}  # BackPACK leaves its hooks on the model
    reference = ours(Problem.of(name))
    for method, call in METHODS.items():
        check(reference, call(problems[method]), f"{method} on {name}")
    seconds: dict[str, list[float]] = {method: [] for method in run}
    for _ in range(rounds):
        for method, call in run.items():
            start = time.perf_counter()
            call(problems[method])
            seconds[method].append(time.perf_counter() - start)
    return {method: statistics.median(values) for method, values in seconds.items()}


def peak(name: str, method: str) -> float:
    """Return by how many MiB a method raises the peak of a process of its own."""
    command = [sys.executable, __file__, "--peak", name, method]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def resident() -> int:
    """Return the bytes of memory this process holds; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_peak(name: str, method: str) -> None:
    """Print by how many MiB a method raises the peak of this process."""
    if method.startswith("BackPACK"):
        import backpack.extensions  # noqa: F401  # not part of what the method needs
    problem = Problem.of(name)
    small = Problem(problem.model, problem.inputs[:4], problem.targets[:4])
    step(problem)
    gradient_noise(small.model, cross_entropy, small.inputs, small.targets)  # loads what is loaded lazily
    torch.linalg.eigvalsh(torch.eye(BATCH, dtype=torch.float64))
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen[0] = max(seen[0], resident())
            time.sleep(5e-4)

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = METHODS[method](problem)
    done.set()
    watcher.join()
    assert result[0] > 0
    print((max(seen[0], resident()) - before) / 2**20)


def cell(seconds: float, step: float, memory: float) -> str:
    """Return milliseconds, in steps, and MiB."""
    return f"{1e3 * seconds:.0f} ({seconds / step:.1f}) / {memory:.0f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="gradient noise against BackPACK and torch.func")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # BackPACK's hooks fire on a first layer whose input takes no gradient, as they should.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if options.peak:
        measure_peak(*options.peak)
        return
    title = f"trace + diagonal + top-{TOP} spectrum, batch {BATCH}, one thread: ms (steps) / extra MiB"
    table = Table(
        "model", "step", *METHODS, "faster than the best peer", "memory of the leanest peer", title=title
    )
    for name in options.models:
        seconds = timed(name, options.rounds)
        memory = {method: peak(name, method) for method in METHODS}
        peers = [method for method in METHODS if method != "symdyn"]
        table.add_row(
            name,
            f"{1e3 * seconds['step']:.1f}",
            *(cell(seconds[method], seconds["step"], memory[method]) for method in METHODS),
            f"{min(seconds[method] for method in peers) / seconds['symdyn']:.1f} x",
            f"{min(memory[method] for method in peers) / max(memory['symdyn'], 0.1):.1f} x ours",
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
