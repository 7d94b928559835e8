"""What the numerical search for symmetries costs, in gradients and in training steps of the same model.

The pairs of one attention head (query-key, value-output, and a query with the wrong head's key) in a model
of width 64 with four heads of 16, searched on a small input; the unit is one training step of SGD with
momentum on a batch of 32 sequences, in the same precision, process and thread.

    python packages/core/benchmarks/numeric_search.py --help
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from symdyn_core.random import torch_generator
from symdyn_core.symmetry.numeric import search
from symdyn_core.symmetry.vector_fields import Pair, Place


class Attention(nn.Module):
    """Causal self-attention and a linear head, as small as a block can be."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended sequence."""
        B, T, D = x.shape
        q, k, v = (
            p(x).view(B, T, self.heads, D // self.heads).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(B, T, D))


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Return the median processor time of a call."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    """Time both in turn and print the table."""
    parser = argparse.ArgumentParser(description="the numerical search in units of training steps")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--head", type=int, default=16, help="width of a head")
    parser.add_argument("--batch", type=int, default=32, help="sequences in a training step")
    parser.add_argument("--length", type=int, default=32, help="tokens in a sequence of a training step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch_generator(options.seed, "benchmark")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    d = options.head
    model = nn.Module.double(Attention(options.width, options.width // d))
    params = {name: value.detach() for name, value in model.named_parameters()}

    def f(point: object, inputs: object) -> Tensor:
        outputs: Tensor = torch.func.functional_call(model, point, (inputs,))
        return outputs

    def place(name: str, axis: int, head: int) -> Place:
        return Place(f"{name}.weight", axis, head * d, (head + 1) * d)

    small = normal(2, 6, options.width)
    batch, target = (normal(options.batch, options.length, options.width) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch), target).backward()
        optimizer.step()

    pairs = {
        "query 0, key 0": (place("q", 0, 0), place("k", 0, 0)),
        "value 0, output 0": (place("v", 0, 0), place("o", 1, 0)),
        "query 0, key 1 (no symmetry)": (place("q", 0, 0), place("k", 0, 1)),
    }
    title = f"head of {d}, width {options.width}, step on {options.batch} x {options.length}, one thread"
    table = Table("pair", title=title)
    for column in ("matrices", "unknowns", "gradients", "per unknown", "found", "training steps"):
        table.add_column(column, justify="right")
    step()
    for name, (writer, reader) in pairs.items():
        for imposed in (False, True):
            pair = Pair((writer,), (reader,), imposed)

            def look(pair: Pair = pair) -> object:
                return search(f, params, small, pairs=[pair], family="pairs", samples=2, seed=options.seed)

            found = search(f, params, small, pairs=[pair], family="pairs", samples=2, seed=options.seed)
            ratios = [seconds(look, 1) / seconds(step, 10) for _ in range(options.rounds)]
            table.add_row(
                name,
                "imposed" if imposed else "free",
                str(found.unknowns),
                str(found.gradients),
                f"{found.gradients / found.unknowns:.2f}",
                str(found.dimension),
                f"{statistics.median(ratios):.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
