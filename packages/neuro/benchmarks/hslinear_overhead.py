"""What a training step costs with HSLinear instead of nn.Linear.

Both networks take the same steps in this process, in turns, so that other load on the machine hits both; a
row reports the median of the paired ratios and their quartiles. Forward, backward and the optimiser's step
count: the extra work is one more parameter to update, and the dispatch of a custom backward pass.

    python packages/neuro/benchmarks/hslinear_overhead.py [threads]
"""

import statistics
import sys
import time

import torch
from torch import nn

from symdyn_neuro.layers import HSLinear

CASES = [(32, 64, 3), (32, 256, 3), (128, 512, 3), (256, 1024, 3), (512, 1024, 2)]  # batch, width, layers
ROUNDS, SECONDS = 15, 0.05


def network(layer: type[nn.Linear], width: int, layers: int) -> nn.Sequential:
    """Return a ReLU network of constant width."""
    return nn.Sequential(*(m for _ in range(layers) for m in (layer(width, width), nn.ReLU())))


def seconds_per_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, inputs: torch.Tensor, steps: int
) -> float:
    """Return the mean duration of some training steps."""
    start = time.perf_counter()
    for _ in range(steps):
        optimiser.zero_grad()
        model(inputs).square().mean().backward()
        optimiser.step()
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), SGD with weight decay, float32")
    print(
        f"{'batch':>6} {'width':>6} {'layers':>6} {'nn.Linear':>12} {'HSLinear':>12} {'ratio':>7}   quartiles"
    )
    for batch, width, layers in CASES:
        inputs = torch.randn(batch, width)
        runs = []
        for layer in (nn.Linear, HSLinear):
            model = network(layer, width, layers)
            runs.append((model, torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.01), inputs))
        steps = max(1, round(SECONDS / min(seconds_per_step(*run, steps=3) for run in runs)))
        times = [[seconds_per_step(*run, steps=steps) for run in runs] for _ in range(ROUNDS)]
        ratios = [ours / theirs for theirs, ours in times]
        low, middle, high = statistics.quantiles(ratios, n=4)
        theirs, ours = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
        print(
            f"{batch:>6} {width:>6} {layers:>6} {theirs:>9.0f} µs {ours:>9.0f} µs {middle:>7.2f}"
            f"   {low:.2f} - {high:.2f}"
        )


if __name__ == "__main__":
    main()
