"""Real data to learn from, split and scaled, as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator


@dataclass(frozen=True)
class Classification:
    """Inputs ``(n, features)`` in floating point and targets ``(n,)``, int64 class numbers, in two parts."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def __post_init__(self) -> None:
        for part, inputs, targets in (
            ("train", self.train_inputs, self.train_targets),
            ("test", self.test_inputs, self.test_targets),
        ):
            if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or not len(inputs):
                raise InputError(
                    f"{part}_inputs must have shape (n, features) and {part}_targets (n,) with n >= 1, "
                    f"got {tuple(inputs.shape)} and {tuple(targets.shape)}"
                )
            if targets.dtype != torch.int64:
                raise InputError(f"{part}_targets must be int64 class numbers, got {targets.dtype}")
            if not torch.isfinite(inputs).all():
                raise InputError(f"{part}_inputs must be finite")
        if self.train_inputs.shape[1] != self.test_inputs.shape[1]:
            raise InputError(
                f"train and test inputs must have the same number of features, got "
                f"{self.train_inputs.shape[1]} and {self.test_inputs.shape[1]}"
            )

    @property
    def features(self) -> int:
        """Size of one input."""
        return self.train_inputs.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes: the largest class number plus one."""
        return int(max(self.train_targets.max(), self.test_targets.max())) + 1


def digits(*, seed: int, test_size: int = 360) -> Classification:
    """Return scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, 10 classes.

    Grey values are divided by their maximum 16; the mean training image is subtracted.

    Args:
        seed: which images are held out.
        test_size: how many, in [1, 1796].

    Raises:
        InputError: ``test_size`` out of range.

    >>> task = digits(seed=0)
    >>> task.train_inputs.shape, task.test_inputs.shape, task.classes
    (torch.Size([1437, 64]), torch.Size([360, 64]), 10)
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    if not 1 <= test_size < len(images):
        raise InputError(f"test_size must be in [1, {len(images) - 1}], got {test_size}")
    order = torch.randperm(len(images), generator=torch_generator(seed, "digits"))
    inputs = torch.as_tensor(images, dtype=torch.float32)[order] / 16
    targets = torch.as_tensor(labels, dtype=torch.int64)[order]
    inputs -= inputs[test_size:].mean(0)
    return Classification(inputs[test_size:], targets[test_size:], inputs[:test_size], targets[:test_size])
