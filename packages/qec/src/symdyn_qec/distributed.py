"""One training in several processes, as torchrun starts them: each on its own shots and device.

Every process has all weights and takes every step with the gradient averaged over processes, so that weights
stay equal; the first process alone reads and writes files, validates and speaks. Without torchrun there is
one process, and every function here says so at once.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from symdyn_core.errors import InputError, SymdynError
from symdyn_core.random import derive_seed

T = TypeVar("T")

# What torchrun tells each process.
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")

# The others wait while the first counts a baseline, which may take hours; a process that dies ends all.
PATIENCE = timedelta(days=7)

# Seconds in which the first process says what is wrong, and torchrun ends the others, which would repeat it.
GRACE = 10.0


class Processes(NamedTuple):
    """Of a training.

    Fields:
        rank: number of this one; the first is 0.
        world: how many there are.
    """

    rank: int
    world: int


def processes() -> Processes:
    """Return which process of how many this one is.

    >>> processes()
    Processes(rank=0, world=1)
    """
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes(0, 1)


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Work together with the other processes that torchrun has started; do nothing without it.

    Of processes other than the first nothing is seen but the error that ends them.

    Args:
        device: as torch names it; "cuda" gives each process of a machine its own.

    Yields:
        The device of this process.

    Raises:
        InputError: one and the same CUDA device for all, or more processes than CUDA devices.

    >>> with joined("cpu") as device:
    ...     device, processes().world
    ('cpu', 1)
    """
    if any(name not in os.environ for name in ENVIRONMENT) or os.environ["WORLD_SIZE"] == "1":
        yield device
        return
    others = os.environ["RANK"] != "0"
    with ExitStack() as stack:
        if others:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            own = _own_device(device, int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
            yield str(own)
            dist.barrier()
        except SymdynError:
            if others:
                time.sleep(GRACE)
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _own_device(device: str, local_rank: int) -> torch.device:
    """Return the device of a process, by its number on its machine."""
    asked = torch.device(device)
    if asked.type != "cuda":
        return asked
    if asked.index is not None:
        raise InputError(f"device must be cuda, of which every process takes its own, got {device}")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            "there must be a CUDA device for every process of a machine, "
            f"got {torch.cuda.device_count()} and process {local_rank}, counted from 0"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def from_first(make: Callable[[], T]) -> T:
    """Return in every process what the first one makes, while the others wait.

    Args:
        make: called in the first process alone; what it returns can be pickled.

    Raises:
        SymdynError: what it raises in the first process is raised in all.

    >>> from_first(lambda: 3)
    3
    """
    rank, world = processes()
    if world == 1:
        return make()
    sent: list[object] = [None, None]
    if rank == 0:
        try:
            sent[0] = make()
        except SymdynError as error:
            sent[1] = error
    dist.broadcast_object_list(sent, src=0)
    if isinstance(sent[1], SymdynError):
        raise sent[1]
    return cast(T, sent[0])


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their averages over processes.

    Args:
        parameters: the same in all processes; those without a gradient are left out.
    """
    world = processes().world
    if world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    parts = torch.split(flat / world, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def least(number: int, device: torch.device) -> int:
    """Return the least of the numbers that processes have.

    Args:
        number: of this process.
        device: likewise.

    >>> least(7, torch.device("cpu"))
    7
    """
    if processes().world == 1:
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def share(batch_size: int, multiple: int = 1) -> int:
    """Return how many shots of a batch are those of this process.

    Args:
        batch_size: shots of all processes.
        multiple: what every share must be a multiple of.

    Raises:
        InputError: shares that are not, if there are several.

    >>> share(64)
    64
    """
    world = processes().world
    if world > 1 and batch_size % (world * multiple):
        raise InputError(
            f"batch_size must be a multiple of {world * multiple} in {world} processes, got {batch_size}"
        )
    return batch_size // world


def own_seed(seed: int) -> int:
    """Return the seed of this process's shots: another for every process and every number of processes.

    >>> own_seed(5)
    5
    """
    rank, world = processes()
    return seed if world == 1 else derive_seed(seed, "process", rank, world)
