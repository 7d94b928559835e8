"""Small networks on real data that ship with scikit-learn, trained on the spot: something to audit."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from symdyn_core.commands.target import Target

if TYPE_CHECKING:
    import torch
    from torch import nn

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Example:
    """A network to train.

    Args:
        build: ``build(seed, epochs, on_epoch)`` trains and returns the network with held-out data;
            ``on_epoch`` receives the training loss of each epoch.
        epochs: how long unless asked otherwise.
        text: one line on what it is.
    """

    build: Callable[[int, int, Progress], Target]
    epochs: int
    text: str


def digits(seed: int, epochs: int, on_epoch: Progress) -> Target:
    """Train a 64-64-32-10 ReLU network on scikit-learn's digits by SGD with decay; hold out a fifth."""
    import torch
    from sklearn.datasets import load_digits
    from torch.nn.functional import cross_entropy

    from symdyn_core.random import torch_generator

    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    generator = torch_generator(seed, "example", "digits")
    order = torch.randperm(len(inputs), generator=generator)
    held_out, training = order[: len(order) // 5], order[len(order) // 5 :]
    model = _multilayer_perceptron((64, 64, 32, 10), generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(epochs):
        batches = torch.split(training[torch.randperm(len(training), generator=generator)], 64)
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs[batch]), targets[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item()
        on_epoch(total / len(batches))
    return Target(model, cross_entropy, inputs[held_out], targets[held_out])


def _multilayer_perceptron(widths: tuple[int, ...], generator: "torch.Generator") -> "nn.Sequential":
    """Return a ReLU network with He's initialisation, drawn from the given generator only."""
    from torch import nn

    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        # Created without values: nn.Linear would draw them from the global generator.
        layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


EXAMPLES: dict[str, Example] = {
    "digits": Example(digits, epochs=40, text="64-64-32-10 ReLU network, SGD, scikit-learn's digits"),
}
