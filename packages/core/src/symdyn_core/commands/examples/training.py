"""What the examples share: weights from a seed, a held-out fifth, epochs of minibatches."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from symdyn_core.commands.examples import Progress

Model = TypeVar("Model", bound=nn.Module)


def initialized(build: Callable[[], Model], draw: Callable[[Tensor], Tensor]) -> Model:
    """Return a network whose matrices come from ``draw``; biases are 0, normalisations do nothing yet.

    Args:
        build: constructs the network of Linear, Conv2d, Embedding, LayerNorm and BatchNorm2d layers.
        draw: fills a weight in place.
    """
    # Created without values: the constructors would draw them from the global generator.
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            draw(module.weight)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()
    return model


def split(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices of the training samples and of a held-out fifth.

    >>> training, held_out = split(10, torch.Generator())
    >>> len(training), len(held_out)
    (8, 2)
    """
    order = torch.randperm(samples, generator=generator)
    return order[samples // 5 :], order[: samples // 5]


def train(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    on_epoch: Progress,
    cosine: bool = False,
) -> None:
    """Train in place on shuffled minibatches and leave the network in evaluation mode.

    Args:
        model: maps a minibatch of ``inputs`` to outputs.
        loss_fn: maps (outputs, targets) to one number.
        optimizer: of the model's parameters.
        inputs: training data, shape (samples, ...).
        targets: shape (samples, ...).
        epochs: passes over the data.
        batch_size: samples a step; the last minibatch of an epoch may be smaller.
        generator: draws the order of the data.
        on_epoch: receives the mean loss of each epoch's minibatches.
        cosine: whether the learning rate falls to zero along a cosine.
    """
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    model.train()
    for _ in range(epochs):
        batches = torch.split(torch.randperm(len(inputs), generator=generator), batch_size)
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs[batch]), targets[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.item()
        on_epoch(total / len(batches))
    model.eval()
