"""A residual convolutional network that reads scikit-learn's digits as images of 8 by 8 pixels."""

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from symdyn_core.commands.examples import Progress
from symdyn_core.commands.examples.training import initialized, split, train
from symdyn_core.commands.target import Target
from symdyn_core.random import torch_generator


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each with BatchNorm (K. He et al., arXiv 1512.03385).

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: of the first convolution. Where the shape changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, height, width) to (n, channels_out, height / stride, width / stride)."""
        inner = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, one residual block per stage, the mean over the image and a linear classifier.

    Args:
        channels: of the stages; each after the first halves the image.
        classes: number of outputs.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        blocks = [ResidualBlock(channels[0], channels[0])]
        blocks += [ResidualBlock(before, after, stride=2) for before, after in pairwise(channels)]
        self.stages = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 1, height, width) to logits (n, classes)."""
        logits: Tensor = self.classifier(self.stages(self.stem(images)).mean(dim=(2, 3)))
        return logits


def build(seed: int, epochs: int, on_epoch: Progress) -> Target:
    """Train a two-stage residual network on scikit-learn's digits by SGD with decay; hold out a fifth."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels)
    generator = torch_generator(seed, "example", "resnet")
    training, held_out = split(len(inputs), generator)
    model = initialized(
        ResNet, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    )
    train(
        model,
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        inputs[training],
        targets[training],
        epochs=epochs,
        batch_size=64,
        generator=generator,
        on_epoch=on_epoch,
        cosine=True,
    )
    return Target(model, cross_entropy, inputs[held_out], targets[held_out])
