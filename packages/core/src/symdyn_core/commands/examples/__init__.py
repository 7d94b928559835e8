"""Something to look at: small networks, trained on the spot on data of Python, scikit-learn or Debian."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from symdyn_core.commands.target import Target

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Example:
    """A network to train.

    Args:
        module: of this package, with a function ``build(seed, epochs, on_epoch) -> Target``.
        epochs: how long unless asked otherwise.
        text: one line on what it is.
    """

    module: str
    epochs: int
    text: str

    def build(self, seed: int, epochs: int, on_epoch: Progress) -> Target:
        """Train and return the network with held-out data; the global random state stays as it is.

        Args:
            seed: of the initial weights, the split and the order of the data.
            epochs: passes over the training data, at least 1.
            on_epoch: receives the training loss of each epoch.
        """
        # torch and scikit-learn are needed here, not for `symdyn --help`.
        recipe = importlib.import_module(f"{__name__}.{self.module}")
        target: Target = recipe.build(seed, epochs, on_epoch)
        return target


EXAMPLES: dict[str, Example] = {
    "digits": Example("digits", epochs=40, text="64-64-32-10 ReLU network, SGD, scikit-learn's digits"),
    "transformer": Example("transformer", epochs=3, text="2-layer character GPT, AdamW, Python's own manual"),
    "resnet": Example("resnet", epochs=15, text="residual CNN with BatchNorm, SGD, scikit-learn's digits"),
    "fashion": Example("fashion", epochs=10, text="CNN, SGD, 4,000 images of Fashion-MNIST"),
}
