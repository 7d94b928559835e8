"""Train a classifier under any rule and watch its circuit assemble."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_neuro.convert import backprop_
from symdyn_neuro.layers import HSLinear
from symdyn_neuro.probes import feedback_mismatch, gradient_alignment
from symdyn_neuro.rules import Rule
from symdyn_neuro.tasks import Classification

PROBE_SIZE = 512


@dataclass(frozen=True)
class Snapshot:
    """The state of training after an epoch; epoch 0 is the untrained model.

    Attributes:
        epoch: passes over the training data done.
        steps: optimiser steps done.
        loss: cross-entropy in nats on the probe batch, the first training samples (at most 512).
        accuracy: fraction of the test set classified correctly.
        alignment: :func:`~symdyn_neuro.probes.gradient_alignment` on the probe batch.
        mismatch: :func:`~symdyn_neuro.probes.feedback_mismatch`.
    """

    epoch: int
    steps: int
    loss: float
    accuracy: float
    alignment: dict[str, float]
    mismatch: dict[str, float]

    @property
    def total_mismatch(self) -> float:
        """Mismatch of all layers together: root of the sum of squares; NaN where no layer has feedback."""
        return math.hypot(*self.mismatch.values()) if self.mismatch else math.nan


def perceptron(sizes: Sequence[int], *, rule: Rule = Rule.HETEROSYNAPTIC, seed: int) -> nn.Sequential:
    """Return a ReLU network whose layers are called ``layer1``, ``layer2`` ...

    Weights and feedback are the same for every rule at the same seed. The first layer is an ``nn.Linear``
    under every rule: nothing below it needs an error.

    Args:
        sizes: widths from input to output, at least two, each at least 1.
        rule: how the error travels down.
        seed: initial values.

    Raises:
        InputError: fewer than two sizes, or one below 1.

    >>> [type(layer).__name__ for layer in perceptron([4, 3, 2], seed=0)]
    ['Linear', 'ReLU', 'HSLinear']
    """
    if len(sizes) < 2:
        raise InputError(f"sizes must name input and output at least, got {list(sizes)}")
    generator = torch_generator(seed, "perceptron")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (below, above) in enumerate(pairwise(sizes), start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU()
        layer = HSLinear(below, above, generator=generator)
        layer.feedback.requires_grad_(rule is not Rule.FROZEN_FEEDBACK)
        layers[f"layer{number}"] = backprop_(layer) if number == 1 or rule is Rule.BACKPROP else layer
    return nn.Sequential(layers)


def train(
    model: nn.Module,
    task: Classification,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int = 32,
    seed: int,
) -> Iterator[Snapshot]:
    """Train a classifier by SGD on cross-entropy, one epoch per snapshot taken from the iterator.

    Constant learning rate, no momentum, every parameter decays; samples left over from the last full batch of
    an epoch wait for the next one. So the mismatch after ``steps`` steps is
    :func:`~symdyn_neuro.assembly.predict_mismatch` exactly.

    Args:
        model: maps ``(batch, features)`` to logits ``(batch, classes)``; trained in place.
        task: the data, on the model's device.
        epochs: at least 1.
        learning_rate: finite, above 0.
        weight_decay: finite, at least 0.
        batch_size: in [1, number of training samples].
        seed: order of the samples.

    Returns:
        ``epochs + 1`` snapshots, the first before training.

    Raises:
        InputError: an argument out of range; while iterating, a loss that is not finite any more.

    >>> from symdyn_neuro.tasks import digits
    >>> task = digits(seed=0)
    >>> before, after = train(
    ...     perceptron([64, 16, 10], seed=0), task, epochs=1, learning_rate=0.2, weight_decay=0.01, seed=0
    ... )
    >>> after.steps, after.accuracy > before.accuracy  # 1437 // 32 steps
    (44, True)
    >>> round(after.total_mismatch / before.total_mismatch, 5), round((1 - 0.2 * 0.01) ** 44, 5)
    (0.91568, 0.91568)
    """
    if epochs < 1:
        raise InputError(f"epochs must be at least 1, got {epochs}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and above 0, got {learning_rate}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be finite and at least 0, got {weight_decay}")
    largest = min(torch.finfo(parameter.dtype).max for parameter in model.parameters())
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if value > largest:
            raise InputError(f"{name} must be at most {largest:.3g}, as the model's weights, got {value}")
    samples = len(task.train_inputs)
    if not 1 <= batch_size <= samples:
        raise InputError(f"batch_size must be in [1, n_samples={samples}], got {batch_size}")
    return _train(model, task, epochs, learning_rate, weight_decay, batch_size, seed)


def _train(
    model: nn.Module,
    task: Classification,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
) -> Iterator[Snapshot]:
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    generator = torch_generator(seed, "order of samples")
    inputs, targets = task.train_inputs, task.train_targets
    steps = 0
    yield _snapshot(model, task, epoch=0, steps=steps)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for batch in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            steps += 1
        yield _snapshot(model, task, epoch=epoch, steps=steps)


def _snapshot(model: nn.Module, task: Classification, *, epoch: int, steps: int) -> Snapshot:
    inputs, targets = task.train_inputs[:PROBE_SIZE], task.train_targets[:PROBE_SIZE]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loss = float(F.cross_entropy(model(inputs), targets))
            accuracy = float((model(task.test_inputs).argmax(-1) == task.test_targets).double().mean())
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged: the loss is {loss} after epoch {epoch}; lower the learning_rate"
            )
        alignment = gradient_alignment(model, F.cross_entropy, inputs, targets)
    finally:
        model.train(training)
    return Snapshot(epoch, steps, loss, accuracy, alignment, feedback_mismatch(model))
