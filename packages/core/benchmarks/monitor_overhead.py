"""Training with and without a SymmetryMonitor, step by step in turn in one process.

Two copies of a model take the same batches in turn, one of them watched: what the watched one takes longer,
its calls between checks included, is the overhead. Set-up (finding the symmetries, and the first check, which
measures every spectrum) is paid once and stands in columns of its own.

Two unwatched copies differ by one to three percent over a few hundred steps, by where their memory lies:
"checks / training" is the figure to hold against 2 %, "with / without" the check on it in long runs.

    python packages/core/benchmarks/monitor_overhead.py --help
"""

import argparse
import copy
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from symdyn_core.symmetry.monitor import RANK_BUDGET, SymmetryMonitor

VOCABULARY, CONTEXT, WIDTH = 256, 64, 256


def mlp() -> nn.Module:
    """1.9 million parameters."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


class Block(nn.Module):
    """Pre-norm attention and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream behind the block."""
        heads = self.qkv(self.first(x)).unflatten(2, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.relu(self.up(self.second(x))))


class Transformer(nn.Module):
    """A language model of 1.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, shape (batch, context, vocabulary)."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class Run:
    """One training run; the time of its steps adds up."""

    def __init__(self, model: nn.Module, monitor: SymmetryMonitor | None = None) -> None:
        self.model, self.monitor = model, monitor
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.seconds = 0.0
        self.checks: list[float] = []

    def step(self, number: int, inputs: Tensor, targets: Tensor) -> None:
        """Take one step."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())
        loss.backward()
        self.optimizer.step()
        trained = time.perf_counter()
        checked = self.monitor is not None and self.monitor.update(number, loss) is not None
        end = time.perf_counter()
        if checked:
            self.checks.append(end - trained)
        self.seconds += end - start


def compare(name: str, steps: int, every: int, generator: torch.Generator) -> list[str]:
    """Return the row of one model."""
    if name == "MLP":
        plain, inputs = mlp(), torch.randn(128, 784, generator=generator)
        targets = torch.randint(10, (128,), generator=generator)
    else:
        plain = Transformer()
        inputs = torch.randint(VOCABULARY, (16, CONTEXT), generator=generator)
        targets = torch.randint(VOCABULARY, (16, CONTEXT), generator=generator)
    watched = copy.deepcopy(plain)
    start = time.perf_counter()
    # The monitor's clock runs while the other copy trains, too: half the budget for half the time.
    monitor = SymmetryMonitor(watched, inputs, every=every, rank_budget=RANK_BUDGET / 2)
    found = time.perf_counter() - start
    runs = [Run(plain), Run(watched, monitor)]
    for run in runs:
        run.step(0, inputs, targets)
    first = runs[1].checks[0]
    for run in runs:
        run.seconds, run.checks = 0.0, []
    for number in range(1, steps + 1):
        for run in runs if number % 2 else reversed(runs):
            run.step(number, inputs, targets)
    size = sum(value.numel() for value in plain.parameters())
    share = sum(runs[1].checks) / (runs[1].seconds - sum(runs[1].checks))
    return [
        f"{name}, {size / 1e6:.2f} M",
        f"{1e3 * runs[0].seconds / steps:.1f}",
        f"{1e3 * sum(runs[1].checks) / len(runs[1].checks):.1f}",
        f"{100 * share:.2f} %",
        f"{runs[1].seconds / runs[0].seconds:.3f}",
        f"{found:.1f}",
        f"{first:.2f}",
        str(sum(state.rank is not None for snapshot in monitor.snapshots[1:] for state in snapshot.layers)),
    ]


def main() -> None:
    """Train both models and print the table."""
    parser = argparse.ArgumentParser(description="what watching a training run costs")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--models", nargs="+", default=["MLP", "transformer"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table("model", title=f"{options.steps} steps, a check every {options.every}, one thread")
    for column in (
        "step, ms",
        "check, ms",
        "checks / training",
        "with / without",
        "find, s",
        "first check, s",
    ):
        table.add_column(column, justify="right")
    table.add_column("spectra", justify="right")
    generator = torch.Generator().manual_seed(0)
    for name in options.models:
        table.add_row(*compare(name, options.steps, options.every, generator))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
