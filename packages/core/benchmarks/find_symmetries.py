"""What finding the symmetries of a model costs, in training steps of the same model in the same run.

The models are those of the zoo in ``tests/zoo.py`` and two of ordinary size. A training step is forward,
backward and AdamW on the batch that the model comes with, float32, one thread. The search is the structural
one, with verification: one traced forward pass, proposals, and float64 forward passes on at most 64 samples.
Small models pay mostly for the tracing, which costs the same however wide the layers are.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.symmetry.find import find_symmetries

ROUNDS = 3


def zoo_cases() -> list[tuple[str, nn.Module, Tensor]]:
    """Return name, model and inputs of every architecture in the zoo."""
    spec = importlib.util.spec_from_file_location(
        "symdyn_zoo", Path(__file__).parents[1] / "tests" / "zoo.py"
    )
    if spec is None or spec.loader is None:
        raise SystemExit("the zoo lies in tests/zoo.py of a source checkout")
    zoo = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    return [(case.name, *case.build()) for case in zoo.CASES]


def ordinary_cases() -> list[tuple[str, nn.Module, Tensor]]:
    """Return a perceptron and a transformer of the size that people train on a laptop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        perceptron = nn.Sequential(
            nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
        )
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        encoder = nn.Sequential(
            nn.Embedding(96, 128),
            nn.TransformerEncoder(layer, 4, enable_nested_tensor=False),
            nn.LayerNorm(128),
            nn.Linear(128, 96),
        )
        return [
            ("perceptron, 1.9M", perceptron, torch.randn(128, 784)),
            ("transformer, 0.8M", encoder, torch.randint(96, (16, 64))),
        ]


def seconds(action: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def training_step(model: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Return a function that takes one step of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        outputs = model(inputs)
        functional.mse_loss(outputs, torch.zeros_like(outputs)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    """Print a table: milliseconds of a step and of the search, and their ratio."""
    torch.set_num_threads(1)
    print(f"{'model':28s} {'step, ms':>9s} {'search, ms':>11s} {'steps':>7s}  symmetries")
    for name, model, inputs in (*zoo_cases(), *ordinary_cases()):
        model = model.float()
        inputs = inputs.float() if inputs.is_floating_point() else inputs
        step = training_step(model, inputs)
        step()
        report = find_symmetries(model, inputs, method="structure", certificate=False)
        steps, searches = [], []
        for _ in range(ROUNDS):  # interleaved, so that both see the same machine
            steps.append(statistics.median(seconds(step) for _ in range(5)))
            searches.append(
                seconds(
                    lambda m=model, x=inputs: find_symmetries(m, x, method="structure", certificate=False)
                )
            )
        one, search = statistics.median(steps), statistics.median(searches)
        print(f"{name:28s} {1e3 * one:9.1f} {1e3 * search:11.1f} {search / one:7.1f}  {len(report.found)}")


if __name__ == "__main__":
    main()
