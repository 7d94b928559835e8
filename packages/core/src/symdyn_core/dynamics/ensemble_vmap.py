r"""A step of any optimizer on stacked replicas of any loss, by ``torch.func``."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from symdyn_core.dynamics.replica_optimizers import Buffers, Rate, ReplicaOptimizer

BatchLoss = Callable[..., Tensor]
"""Maps the parameters of one replica and the samples of one minibatch to one number."""


@contextmanager
def held(params: Mapping[str, Tensor], buffers: Mapping[str, Buffers], still: Tensor) -> Iterator[None]:
    """Undo what happens inside to the replicas that are ``still``, shape (replicas,), boolean."""
    if not bool(still.any()):
        yield
        return
    tensors = [*params.values(), *(tensor for kept in buffers.values() for tensor in kept.values())]
    before = [tensor[still] for tensor in tensors]
    yield
    for tensor, rows in zip(tensors, before, strict=True):
        tensor[still] = rows


class VmapStepper:
    """Steps of any optimizer; the gradient of each replica is autograd's, all replicas at a time.

    Args:
        loss: of one replica on one minibatch.
        optimizer: what moves the parameters.
        data: tensors of n_samples rows.
    """

    def __init__(self, loss: BatchLoss, optimizer: ReplicaOptimizer, data: tuple[Tensor, ...]) -> None:
        self._optimizer, self._data = optimizer, data
        self._gradients = torch.func.vmap(torch.func.grad_and_value(loss), randomness="error")

    def gradients(self, params: Mapping[str, Tensor], batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the gradients by name, shape (replicas, ...), and the losses, shape (replicas,)."""
        flat = batch.reshape(-1)
        samples = [
            tensor.index_select(0, flat).view(*batch.shape, *tensor.shape[1:]) for tensor in self._data
        ]
        gradients, losses = self._gradients(dict(params), *samples)
        return gradients, losses.detach()

    def step(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Buffers],
        batch: Tensor,
        rate: Rate,
        step: int,
        moving: Tensor,
    ) -> Tensor:
        """Take one step, in place, and return the losses before it.

        Args:
            params: by name, shape (replicas, ...).
            buffers: of the optimizer, by name of the parameter.
            batch: which samples each replica sees, shape (replicas, batch_size).
            rate: the learning rate.
            step: how many steps were taken.
            moving: which replicas are not frozen, shape (replicas,); one whose loss is not finite is not
                moved either.

        Returns:
            Shape (replicas,).
        """
        gradients, losses = self.gradients(params, batch)
        with torch.no_grad(), held(params, buffers, ~(moving & losses.isfinite())):
            for name, parameter in params.items():
                gradient = gradients[name].contiguous()
                self._optimizer.update(parameter, gradient, buffers[name], rate, step)
        return losses
