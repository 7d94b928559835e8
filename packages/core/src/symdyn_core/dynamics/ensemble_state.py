"""The replicas of an ensemble on their way: where they are, what was recorded, and how they go on."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symdyn_core.dynamics.ensemble_checkpoint import Identity, digest, load_checkpoint, save_checkpoint
from symdyn_core.dynamics.ensemble_observables import Observable, ObservableStatistics
from symdyn_core.dynamics.ensemble_rates import LearningRates
from symdyn_core.dynamics.minibatches import MinibatchStream
from symdyn_core.dynamics.replica_optimizers import Buffers, Rate, ReplicaOptimizer
from symdyn_core.errors import InputError, SymdynError

# Steps for which minibatches are drawn ahead, and numbers kept of the observables until they are taken in.
_BLOCK, _RECORD_NUMBERS = 64, 2**22


class Diverged(SymdynError):
    """A replica's loss or parameters are not finite any more, and the caller asked for an error."""


class DivergenceWarning(UserWarning):
    """Some replicas' losses or parameters are not finite any more; the others went on."""


class Stepper(Protocol):
    """Takes a step of stacked replicas, in place; see ``VmapStepper.step``."""

    def step(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Buffers],
        batch: Tensor,
        rate: Rate,
        step: int,
        moving: Tensor,
    ) -> Tensor:
        """Take one step and return the losses before it, shape (replicas,)."""
        ...


class Ensemble:
    """The state of all replicas, and how it advances."""

    def __init__(
        self,
        stepper: Stepper,
        optimizer: ReplicaOptimizer,
        stream: MinibatchStream,
        params: dict[str, Tensor],
        rates: LearningRates,
        observables: dict[str, Observable],
        every: int,
        burn_in: int,
    ) -> None:
        self._stepper, self._stream, self._rates = stepper, stream, rates
        self._every, self._burn_in = every, burn_in
        self.params = params
        self.buffers = {
            name: {buffer: torch.zeros_like(tensor) for buffer in optimizer.buffers}
            for name, tensor in params.items()
        }
        self.replicas = len(next(iter(params.values())))
        self._device = next(iter(params.values())).device
        self.diverged_at = torch.full((self.replicas,), -1, device=self._device)
        self.done, self.chunk_size, self.raises = 0, self.replicas, False
        self._observables = observables
        self.statistics: dict[str, ObservableStatistics] = {}
        self._first_values: dict[str, str] = {}
        for name, observable in observables.items():
            values = torch.cat([self._values(name, rows) for rows in self._chunks()])
            self.statistics[name] = ObservableStatistics(observable, tuple(values.shape[1:]), self.replicas)
            self._first_values[name] = digest(values)
            self.statistics[name].update(0, _rows(values), np.full(self.replicas, True), settled=False)

    def about_observables(self) -> dict[str, str]:
        """Return what tells the observables from others, their first values included."""
        return {
            f"observable {name}": f"{observable.settings()} {self._first_values[name]}"
            for name, observable in self._observables.items()
        }

    def next_stop(self, steps: int, checkpoint_every: int | None) -> int:
        """Return where the next block of steps ends."""
        numbers = self.replicas * sum(int(np.prod(one.shape)) for one in self.statistics.values())
        records = max(1, _RECORD_NUMBERS // max(1, numbers))
        stop = min(steps, self.done + min(_BLOCK, records * self._every))
        if checkpoint_every:
            stop = min(stop, (self.done // checkpoint_every + 1) * checkpoint_every)
        return stop

    def advance(self, stop: int, last: int, report: Callable[[int], None]) -> None:
        """Take all replicas to step ``stop``, chunk by chunk; the run is to end at step ``last``."""
        steps = range(self.done, stop)
        rates = [self._rates[step] for step in steps]
        recorded = [step for step in range(self.done + 1, stop + 1) if step % self._every == 0]
        shapes = {name: int(np.prod(one.shape)) for name, one in self.statistics.items()}
        values = {name: np.empty((len(recorded), self.replicas, size)) for name, size in shapes.items()}
        alive = np.empty((len(recorded), self.replicas), dtype=bool)
        for rows in self._chunks():
            params = {name: tensor[rows] for name, tensor in self.params.items()}
            buffers = {
                name: {key: tensor[rows] for key, tensor in kept.items()}
                for name, kept in self.buffers.items()
            }
            drawn = self._stream.indices(range(rows.start, rows.stop), steps).swapaxes(0, 1)
            batches = torch.from_numpy(np.ascontiguousarray(drawn)).to(self._device)
            for place, step in enumerate(steps):
                rate = rates[place]
                if isinstance(rate, Tensor):
                    rate = rate[rows]
                moving = self.diverged_at[rows] < 0
                losses = self._stepper.step(params, buffers, batches[place], rate, step, moving)
                self._mark(rows, losses.isfinite(), step)
                due = bool(values) and (step + 1) % self._every == 0
                # Where this looks must not depend on the blocks: these depend on the number of replicas.
                if due or (step + 1) % _BLOCK == 0 or step + 1 == last:
                    self._mark(rows, _finite(params), step + 1)
                if due:
                    record = (step + 1 - recorded[0]) // self._every
                    alive[record, rows] = (self.diverged_at[rows] < 0).cpu().numpy()
                    for name in values:
                        values[name][record, rows] = _rows(self._values(name, rows))
            report((rows.stop - rows.start) * len(steps))
        # Record by record over all replicas: so what is kept does not depend on chunks and blocks.
        for record, step in enumerate(recorded):
            for name, statistics in self.statistics.items():
                statistics.update(step, values[name][record], alive[record], settled=step > self._burn_in)
        self.done = stop

    def _mark(self, rows: slice, finite: Tensor, step: int) -> None:
        if bool(finite.all()):
            return
        here = self.diverged_at[rows]
        new = ~finite & (here < 0)
        if not bool(new.any()):
            return
        here[new] = step
        if self.raises:
            raise Diverged(
                f'{divergence(self.diverged_at)}; lower the learning rate or take on_divergence="record"'
            )

    def _values(self, name: str, rows: slice) -> Tensor:
        params = {key: tensor[rows] for key, tensor in self.params.items()}
        function = torch.func.vmap(self._observables[name].function, randomness="error")
        try:
            with torch.no_grad():
                values = function(params)
        except Exception as error:
            raise InputError(f"observable {name!r} fails: {type(error).__name__}: {error}") from error
        if not isinstance(values, Tensor):
            raise InputError(f"observable {name!r} must return a tensor, got {type(values).__name__}")
        return values.detach()

    def _chunks(self) -> Iterator[slice]:
        for first in range(0, self.replicas, self.chunk_size):
            yield slice(first, min(first + self.chunk_size, self.replicas))

    def save(self, folder: str | os.PathLike[str], identity: Identity) -> None:
        """Write the state; it carries a digest of the learning rates so far."""
        arrays: dict[str, NDArray[Any]] = {"diverged_at": self.diverged_at.cpu().numpy()}
        arrays |= {f"params/{name}": tensor.cpu().numpy() for name, tensor in self.params.items()}
        for name, kept in self.buffers.items():
            arrays |= {f"buffers/{key}/{name}": tensor.cpu().numpy() for key, tensor in kept.items()}
        for name, statistics in self.statistics.items():
            arrays |= {f"statistics/{name}/{key}": value for key, value in statistics.state().items()}
        rates = {"learning_rate": self._rates.digest(self.done)}
        save_checkpoint(folder, {**identity, **rates}, self.done, arrays)

    def resume(self, folder: str | os.PathLike[str], identity: Identity, steps: int) -> None:
        """Take over the state in the folder, if there is one."""
        found = load_checkpoint(folder, lambda done: {**identity, "learning_rate": self._rates.digest(done)})
        if found is None:
            return
        self.done, arrays = found
        if self.done > steps:
            raise InputError(
                f"steps must be at least the {self.done} of the checkpoint in {folder}, got {steps}"
            )
        self.diverged_at.copy_(torch.from_numpy(arrays["diverged_at"]))
        for name, tensor in self.params.items():
            tensor.copy_(torch.from_numpy(arrays[f"params/{name}"]))
            for key, kept in self.buffers[name].items():
                kept.copy_(torch.from_numpy(arrays[f"buffers/{key}/{name}"]))
        for name, statistics in self.statistics.items():
            prefix = f"statistics/{name}/"
            statistics.restore(
                {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
            )


def divergence(diverged_at: Tensor) -> str:
    """Return in words which replica diverged first, when, and how many survive.

    >>> divergence(torch.tensor([-1, 12, 7, -1]))
    'replica 2 is not finite any more after 7 steps; 2 of 4 replicas survive'
    """
    last = torch.iinfo(diverged_at.dtype).max
    replica = int(torch.where(diverged_at < 0, last, diverged_at).argmin())
    return (
        f"replica {replica} is not finite any more after {int(diverged_at[replica])} steps; "
        f"{int((diverged_at < 0).sum())} of {len(diverged_at)} replicas survive"
    )


def _rows(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.reshape(len(values), -1).cpu().double().numpy())


def _finite(params: Mapping[str, Tensor]) -> Tensor:
    # The largest entry is NaN or infinite if any is; this is faster than asking each of them.
    largest = [
        torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), torch.inf, dim=1)
        for tensor in params.values()
    ]
    return torch.stack(largest).isfinite().all(dim=0)
