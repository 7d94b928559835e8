"""A small convolutional network that tells clothes apart: Fashion-MNIST, 28 by 28 pixels, ten kinds.

The images come from a folder with the four gzipped files of the data set (H. Xiao et al., arXiv 1708.07747),
as Debian's package dataset-fashion-mnist and torchvision's ``FashionMNIST/raw`` have them.
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from symdyn_core.commands.examples import Progress
from symdyn_core.commands.examples.training import initialized, train
from symdyn_core.commands.target import Target
from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator

VARIABLE = "SYMDYN_FASHION_MNIST"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SIDE, CLASSES = 28, 10
TRAINED, JUDGED = 4_000, 1_000  # images of the 60,000 for training and of the 10,000 for testing


def convolutional_network() -> nn.Sequential:
    """Return two 3x3 convolutions, each with a ReLU and a 2x2 maximum, and a linear classifier.

    >>> with torch.device("meta"):  # no values, so that no random numbers are drawn
    ...     sum(parameter.numel() for parameter in convolutional_network().parameters())
    2698
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, CLASSES),
    )


def build(seed: int, epochs: int, on_epoch: Progress) -> Target:
    """Train a convolutional network on 4,000 images by SGD with decay; judge it on 1,000 test images.

    Raises:
        InputError: the data are not there, or not whole.
    """
    folder = data_folder()
    generator = torch_generator(seed, "example", "fashion")
    inputs, targets = _drawn(*read_images(folder, "train"), TRAINED, generator)
    held_out = _drawn(*read_images(folder, "t10k"), JUDGED, generator)
    model = initialized(
        convolutional_network,
        lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator),
    )
    train(
        model,
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        inputs,
        targets,
        epochs=epochs,
        batch_size=64,
        generator=generator,
        on_epoch=on_epoch,
        cosine=True,
    )
    return Target(model, cross_entropy, *held_out)


def data_folder() -> Path:
    """Return the folder that the environment variable names, or the one of Debian's package."""
    return Path(os.environ.get(VARIABLE) or DEBIAN)


def read_images(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images, shape (n, 28, 28), and labels below ten, shape (n,).

    Args:
        folder: holds ``<part>-images-idx3-ubyte.gz`` and ``<part>-labels-idx1-ubyte.gz``.
        part: ``train`` or ``t10k``, as the files are named.

    Raises:
        InputError: a file is missing, is damaged or holds something else.
    """
    images_path, labels_path = (folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or len(images) == 0:
        raise InputError(f"{images_path} must hold images of shape (n, {SIDE}, {SIDE}), got {images.shape}")
    if labels.shape != (len(images),):
        raise InputError(
            f"{labels_path} must hold {len(images)} labels, one an image, got shape {labels.shape}"
        )
    if labels.max() >= CLASSES:
        raise InputError(f"{labels_path} must hold labels below {CLASSES}, got {labels.max()}")
    return images, labels


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of bytes in a gzipped idx file.

    The format is two zeros, 8 for bytes, the number of axes, the length of each axis as four bytes with the
    highest first, then the entries, last axis fastest.

    Raises:
        InputError: no such file, not readable, or not a whole gzipped idx file of bytes.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise InputError(
            f"Fashion-MNIST is not there: looked for {path}; apt install dataset-fashion-mnist, "
            f"or set {VARIABLE} to the folder that holds its .gz files"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} must be a whole gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    if not 4 < start <= len(content):
        found = f"{len(content)} bytes that start with {content[:4]!r}" if content else "an empty file"
        raise InputError(f"{path} must hold an idx array of bytes, got {found}")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise InputError(f"{path} must hold an array of shape {shape}, got {len(content) - start} entries")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _drawn(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], at_most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return some of the images, shape (n, 1, 28, 28) with values in [0, 1], and their labels."""
    chosen = torch.randperm(len(images), generator=generator)[:at_most].numpy()
    inputs = torch.tensor(images[chosen] / 255.0, dtype=torch.float32).unsqueeze(1)
    return inputs, torch.tensor(labels[chosen], dtype=torch.long)
