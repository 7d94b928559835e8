"""Weights on their way: AdamW along a cosine, and a moving average of what it finds."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_qec.distributed import average_gradients

LOWEST_RATE = 0.02  # of the highest, at the end


def cosine_rate(step: int, steps: int, highest: float, warmup: int) -> float:
    """Return the learning rate of a step: up along a line, and down along a cosine.

    >>> round(cosine_rate(4, 1000, 1.0, warmup=10), 3), round(cosine_rate(999, 1000, 1.0, warmup=10), 3)
    (0.5, 0.02)
    """
    falling = LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return highest * min(1.0, (step + 1) / max(warmup, 1)) * falling


class Optimisation:
    """A network in training, its average and the optimizer.

    Args:
        network: in training.
        averaged: another one with the same weights, which becomes the average.
        average: decay of the average, in [0, 1); early on it forgets faster, so that the start is soon gone.
        clip: largest norm of the gradient.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, average: float, clip: float) -> None:
        self.network, self.averaged, self.average, self.clip = network, averaged, average, clip
        self.optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        self.step = 0

    def advance(self, loss: Tensor, rate: float) -> None:
        """Take a step, the same in all processes: with the gradient of their mean loss.

        Args:
            loss: of the network, on the shots of this process.
            rate: of learning.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        average_gradients(self.network.parameters())
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(self.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.averaged.parameters())
            weights: list[Tensor] = list(self.network.parameters())
            torch._foreach_lerp_(averages, weights, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that decide how training goes on, by name."""
        found = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return found

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on from a :meth:`state`, to bit-equal weights on a CPU.

        Raises:
            InputError: a state of another network.
        """
        for prefix, network in (("network.", self.network), ("averaged.", self.averaged)):
            own = {
                name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
            }
            try:
                network.load_state_dict(own)
            except RuntimeError as error:
                raise InputError(f"the state is of another network: {str(error).splitlines()[0]}") from error
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            kind, *place = name.split(".")
            if kind == "optimizer":
                moments.setdefault(int(place[0]), {})[place[1]] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = step
