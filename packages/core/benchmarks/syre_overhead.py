"""What Syre adds to a training step: plain AdamW, the naive parametrization and the folded form, interleaved.

Reports the CPU time of a whole step (forward, backward, optimizer), the median over rounds, and what each
form adds to the plain one: the median of the ratios within the rounds, because the machine drifts between.

    python packages/core/benchmarks/syre_overhead.py --help
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parametrize

from symdyn_core.random import torch_generator
from symdyn_core.symmetry.removal import Syre

LEARNING_RATE, DECAY, SCALE = 1e-3, 0.1, 1.0
Step = Callable[[], None]


class Shift(nn.Module):
    """The naive form: the layer computes with theta + theta0."""

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        fan_in = weight.shape[1:].numel() if weight.ndim > 1 else weight.numel()
        self.register_buffer("offset", torch.randn(weight.shape, generator=generator) * SCALE / fan_in**0.5)

    def forward(self, theta: Tensor) -> Tensor:
        """Add the offset."""
        return theta + self.offset


class Transformer(nn.Module):
    """Three pre-norm encoder blocks of width 208 over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(512, 208)
        block = nn.TransformerEncoderLayer(208, 4, 832, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(208, 512)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, (batch, tokens, 512)."""
        logits: Tensor = self.head(self.blocks(self.embedding(tokens)))
        return logits


def perceptron() -> nn.Module:
    """1.86 million parameters."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def convolutional() -> nn.Module:
    """0.28 million parameters, nearly all of the time in convolutions."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 160, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 10))


def workloads(shrink: int) -> dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]]:
    """Return model, inputs and labels by name, the batches ``shrink`` times smaller."""
    generator = torch_generator(0, "benchmark")
    images = torch.randn(128 // shrink, 784, generator=generator)
    pictures = torch.randn(32 // shrink, 3, 32, 32, generator=generator)
    tokens = torch.randint(512, (16 // shrink, 64), generator=generator)
    labels = torch.randint(10, (128,), generator=generator)
    return {
        "MLP": (perceptron, images, labels[: len(images)]),
        "CNN": (convolutional, pictures, labels[: len(pictures)]),
        "transformer": (Transformer, tokens, tokens.roll(-1, dims=1).flatten()),
    }


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> Step:
    """Return one whole step of training."""

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs).flatten(0, -2), labels).backward()
        optimizer.step()

    return step


def contestants(make: Callable[[], nn.Module], inputs: Tensor, labels: Tensor) -> dict[str, Step]:
    """Return the three forms of one training; the first is what the others are compared with."""
    steps = {}
    for name in ("plain", "naive", "folded"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
        if name == "naive":
            generator = torch_generator(0, "offsets")
            for module in list(model.modules()):
                if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                    continue
                for local, weight in list(module.named_parameters(recurse=False)):
                    parametrize.register_parametrization(module, local, Shift(weight.detach(), generator))
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
        if name == "folded":
            Syre(optimizer, scale=SCALE, model=model)
        steps[name] = training_step(model, optimizer, inputs, labels)
    return steps


def timed(step: Step, repeats: int) -> float:
    """Return the CPU seconds of one step, the mean of a few in a row."""
    start = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - start) / repeats


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description="what Syre adds to a step of AdamW")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=5, help="steps of one form in a row")
    parser.add_argument(
        "--quick", action="store_true", help="small batches, 3 rounds: a check, no measurement"
    )
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    torch.set_num_threads(1)

    title = f"AdamW, one thread, median of {rounds} rounds of {options.repeats} steps"
    table = Table("model", "parameters", title=title)
    for column in ("plain, CPU ms", "naive parametrize", "folded (Syre)"):
        table.add_column(column, justify="right")
    for name, (make, inputs, labels) in workloads(shrink=8 if options.quick else 1).items():
        steps = contestants(make, inputs, labels)
        for step in steps.values():
            timed(step, 2)
        seconds: dict[str, list[float]] = {form: [] for form in steps}
        for turn in range(rounds):
            forms = list(steps)
            for form in [*forms[turn % 3 :], *forms[: turn % 3]]:  # none is always first after another
                seconds[form].append(timed(steps[form], options.repeats))
        row = [name, f"{sum(p.numel() for p in make().parameters()) / 1e6:.2f} M"]
        row.append(f"{1e3 * statistics.median(seconds['plain']):.1f}")
        for form in ("naive", "folded"):
            ratios = [mine / plain for mine, plain in zip(seconds[form], seconds["plain"], strict=True)]
            row.append(f"{100 * (statistics.median(ratios) - 1):+.1f} %")
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
