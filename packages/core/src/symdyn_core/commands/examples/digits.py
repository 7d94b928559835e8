"""A fully connected ReLU network that reads scikit-learn's digits."""

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from symdyn_core.commands.examples import Progress
from symdyn_core.commands.examples.training import initialized, split, train
from symdyn_core.commands.target import Target
from symdyn_core.random import torch_generator


def build(seed: int, epochs: int, on_epoch: Progress) -> Target:
    """Train a 64-64-32-10 ReLU network on scikit-learn's digits by SGD with decay; hold out a fifth."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    generator = torch_generator(seed, "example", "digits")
    training, held_out = split(len(inputs), generator)
    model = initialized(
        lambda: multilayer_perceptron(64, 64, 32, 10),
        lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator),
    )
    train(
        model,
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
        inputs[training],
        targets[training],
        epochs=epochs,
        batch_size=64,
        generator=generator,
        on_epoch=on_epoch,
    )
    return Target(model, cross_entropy, inputs[held_out], targets[held_out])


def multilayer_perceptron(*widths: int) -> nn.Sequential:
    """Return a chain of linear layers with a ReLU between any two.

    >>> with torch.device("meta"):  # no values, so that no random numbers are drawn
    ...     multilayer_perceptron(4, 3, 2)
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
