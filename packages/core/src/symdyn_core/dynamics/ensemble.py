r"""Many independent replicas of SGD on one loss, at a fraction of the cost of one after the other.

Every replica draws its own minibatches and obeys, for SGD,

$$b_{t+1}=\mu b_t+\frac1S\sum_{i\in B_t}\nabla\ell_i(\theta_t)+\lambda\theta_t,\qquad
\theta_{t+1}=\theta_t-\eta\,b_{t+1},$$

or the arithmetic of another optimizer of ``torch.optim``. All replicas take a step together: by
``torch.func`` for any model, by closed-form matrix products for plain multilayer perceptrons. What is
recorded on the way are statistics of a stream, so that memory does not grow with the number of steps.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from symdyn_core.dynamics.ensemble_checkpoint import digest
from symdyn_core.dynamics.ensemble_mlp import MlpStepper, Perceptron, read_perceptron
from symdyn_core.dynamics.ensemble_observables import Observable, ObservableStatistics, OfParams
from symdyn_core.dynamics.ensemble_problem import Problem, SampleLoss, Samples, read_problem
from symdyn_core.dynamics.ensemble_rates import LearningRate, LearningRates
from symdyn_core.dynamics.ensemble_state import DivergenceWarning, Ensemble, divergence
from symdyn_core.dynamics.ensemble_vmap import VmapStepper
from symdyn_core.dynamics.minibatches import MinibatchStream
from symdyn_core.dynamics.replica_optimizers import SGD, Adam, ReplicaOptimizer, RMSprop
from symdyn_core.errors import InputError, unknown
from symdyn_core.params import LossFunction, Params
from symdyn_core.random import derive_seed

if TYPE_CHECKING:
    import pandas as pd

# Numbers that one step of a chunk of replicas goes through, parameters and samples. Closed form: with what is
# computed from them they stay in the cache. Autograd has more to do per operation, and gains from long ones.
_CHUNK_NUMBERS = {"mlp": 2**19, "vmap": 2**21}


@dataclass(frozen=True, eq=False)
class EnsembleResult:
    """Where the replicas are after the last step, and what was recorded on their way.

    Attributes:
        params: by name, shape (R, ...); a diverged replica stays where it was when that was seen.
        diverged_at: steps after which a replica was seen not to be finite, -1 if it is, shape (R,),
            on the CPU.
        statistics: by name of the observable.
        steps: how many every replica was to take.
        path: "vmap" or "mlp".
    """

    params: dict[str, Tensor]
    diverged_at: Tensor
    statistics: dict[str, ObservableStatistics]
    steps: int
    path: str

    @property
    def alive(self) -> Tensor:
        """Which replicas are finite, shape (R,), boolean."""
        return self.diverged_at < 0

    @property
    def diverged(self) -> float:
        """The fraction of replicas that are not finite any more."""
        return 1 - self.alive.double().mean().item()

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per observable and entry: mean, its standard error, deviation, quartiles, count."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for name, statistics in self.statistics.items():
            columns = {
                "mean": statistics.mean,
                "standard_error": statistics.standard_error,
                "standard_deviation": np.sqrt(statistics.variance),
            }
            if statistics.has_quantiles:
                columns |= {f"quantile_{level}": statistics.quantile(level) for level in (0.25, 0.5, 0.75)}
            for place, entry in enumerate(np.ndindex(statistics.shape)):
                row: dict[str, Any] = {"observable": name, "entry": ",".join(map(str, entry))}
                row |= {column: float(values.reshape(-1)[place]) for column, values in columns.items()}
                rows.append(row | {"count": statistics.count, "skipped": statistics.skipped})
        return pd.DataFrame(rows)


def simulate(
    target: nn.Module | SampleLoss,
    data: Samples,
    *,
    loss_fn: LossFunction | None = None,
    start: Params | None = None,
    starts: Params | None = None,
    replicas: int,
    batch_size: int,
    replacement: bool = True,
    steps: int,
    seed: int,
    learning_rate: LearningRate,
    optimizer: ReplicaOptimizer | None = None,
    observables: Mapping[str, Observable | OfParams] | None = None,
    every: int = 1,
    burn_in: int = 0,
    path: Literal["auto", "vmap", "mlp"] = "auto",
    chunk_size: int | None = None,
    on_divergence: Literal["warn", "record", "raise"] = "warn",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
) -> EnsembleResult:
    r"""Run R independent replicas of a stochastic optimizer.

    Args:
        target: a model, trained on ``loss_fn(model(inputs), targets)``; or the loss of one sample,
            ``loss(params, sample)``, whose mean over the minibatch is trained. The model is copied and runs
            in evaluation mode; parameters that do not require a gradient stay as they are.
        data: with a model (inputs, targets); with a function a tensor or a tuple of tensors, whose rows are
            the samples.
        loss_fn: with a model, maps (outputs, targets) to the mean over the samples.
        start: one replica's parameters by name, where all replicas start; by default the model's own.
        starts: in their place, where each replica starts: by name, shape (R, ...).
        replicas: R, >= 1.
        batch_size: >= 1.
        replacement: whether the samples of all steps are drawn independently; otherwise each replica goes
            through the data in epochs, shuffled afresh each time, and leaves out samples that no longer fill
            a batch.
        steps: >= 1.
        seed: of all minibatches. Those of replica r depend on seed and r alone, not on R or ``chunk_size``.
        learning_rate: >= 0; a number, one per replica, shape (R,), or a function of the step, from 0, that
            returns either.
        optimizer: see :mod:`~symdyn_core.dynamics.replica_optimizers`; plain SGD by default.
        observables: functions of the parameters of one replica, by name.
        every: record after steps whose number is a multiple of this.
        burn_in: record only after steps beyond this number; first passages are seen from the start.
        path: "mlp" is the closed form for ``nn.Sequential`` of Linear, ReLU, Tanh and Identity with
            cross_entropy or mse_loss and SGD; "vmap" takes everything; "auto" chooses "mlp" where it can.
        chunk_size: replicas that step together; by default so many that they fit into the cache.
        on_divergence: what happens besides to replicas that are not finite any more, which are frozen and
            recorded in the result: a :class:`DivergenceWarning` at the end, nothing, or at once
            :class:`Diverged`.
        checkpoint: folder of the state; a run of which it holds the state goes on from there.
        checkpoint_every: steps between two states written, >= 1; by default only the last state is written.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: a value out of range, data that do not fit or are not finite, a model whose samples
            interact or that draws random numbers, a problem that path="mlp" does not cover, a checkpoint of
            another run.
        Diverged: with on_divergence="raise".

    On the parabola with labels of size one the noise settles at
    :math:`\mathrm{Var}\,\theta=\eta/(2-\eta)=\frac13` for :math:`\eta=\frac12`:

    >>> def loss(params, sample):
    ...     return (params["x"] - sample) ** 2 / 2
    >>> end = simulate(loss, torch.tensor([-1.0, 1.0]), start={"x": torch.zeros(())}, replicas=200,
    ...                batch_size=1, steps=150, seed=0, learning_rate=0.5, burn_in=20,
    ...                observables={"x": lambda params: params["x"]})
    >>> round(float(end.statistics["x"].variance), 2)
    0.33
    """
    _check_counts(replicas, steps, every, burn_in, chunk_size, checkpoint_every)
    if path not in ("auto", "vmap", "mlp"):
        raise InputError(unknown("path", str(path), ["auto", "vmap", "mlp"]))
    if on_divergence not in ("warn", "record", "raise"):
        raise InputError(unknown("on_divergence", str(on_divergence), ["warn", "record", "raise"]))
    optimizer = SGD() if optimizer is None else optimizer
    if not isinstance(optimizer, SGD | Adam | RMSprop):
        raise InputError(f"optimizer must be SGD, Adam, AdamW or RMSprop, got {type(optimizer).__name__}")
    if start is None and starts is not None and not isinstance(target, nn.Module):
        start = {
            name: tensor[0] for name, tensor in starts.items() if isinstance(tensor, Tensor) and len(tensor)
        }
    problem = read_problem(target, data, loss_fn, start)
    stream = MinibatchStream(derive_seed(seed, "minibatches"), len(problem.data[0]), batch_size, replacement)
    params = _stack(problem.start, starts, replicas)
    rates = LearningRates(learning_rate, replicas)
    chosen = {
        name: entry if isinstance(entry, Observable) else Observable(entry)
        for name, entry in (observables or {}).items()
    }
    general = VmapStepper(problem.loss, optimizer, problem.data)
    first_batch = torch.from_numpy(stream.indices(range(1), range(1))[:, 0]).to(problem.device)
    first_loss = _try(general, params, first_batch)
    stepper = _fast(target, loss_fn, optimizer, problem, path) or general
    ensemble = Ensemble(stepper, optimizer, stream, params, rates, chosen, every, burn_in)
    name = "mlp" if isinstance(stepper, MlpStepper) else "vmap"
    ensemble.chunk_size = chunk_size or _chunk_size(problem, batch_size, name)
    ensemble.raises = on_divergence == "raise"
    identity: dict[str, Any] = {
        **problem.about,
        "optimizer": repr(optimizer),
        "path": name,
        "replicas": replicas,
        "batch_size": batch_size,
        "replacement": replacement,
        "seed": seed,
        "every": every,
        "burn_in": burn_in,
        "parameters": ", ".join(params),
        "starts": digest(*params.values()),
        **ensemble.about_observables(),
        "first loss": digest(first_loss),
    }
    if checkpoint is not None:
        ensemble.resume(checkpoint, identity, steps)
    with _bar(progress, replicas * steps, replicas * ensemble.done) as advance:
        while ensemble.done < steps:
            ensemble.advance(ensemble.next_stop(steps, checkpoint_every), steps, advance)
            if checkpoint is not None and (
                ensemble.done == steps or (checkpoint_every and ensemble.done % checkpoint_every == 0)
            ):
                ensemble.save(checkpoint, identity)
    diverged_at = ensemble.diverged_at.cpu()
    for statistics in ensemble.statistics.values():
        statistics.close(diverged_at.numpy())
    if on_divergence == "warn" and bool((diverged_at >= 0).any()):
        warnings.warn(divergence(diverged_at), DivergenceWarning, stacklevel=2)
    return EnsembleResult(ensemble.params, diverged_at, ensemble.statistics, steps, name)


def _fast(
    target: nn.Module | SampleLoss,
    loss_fn: LossFunction | None,
    optimizer: ReplicaOptimizer,
    problem: Problem,
    path: str,
) -> MlpStepper | None:
    if path == "vmap":
        return None
    found: Perceptron | str = "the target must be a model"
    if isinstance(target, nn.Module) and loss_fn is not None:
        found = read_perceptron(target, loss_fn, optimizer, *problem.data)
    if isinstance(found, Perceptron):
        assert isinstance(optimizer, SGD)
        return MlpStepper(found, optimizer, *problem.data)
    if path == "mlp":
        raise InputError(f'path="mlp" does not cover this problem: {found}')
    return None


def _stack(start: Params, starts: Params | None, replicas: int) -> dict[str, Tensor]:
    if starts is not None:
        if set(starts) != set(start):
            raise InputError(f"starts must name the parameters {sorted(start)}, got {sorted(starts)}")
        for name, tensor in starts.items():
            shape = (replicas, *start[name].shape)
            if tensor.shape != shape or tensor.dtype != start[name].dtype:
                raise InputError(
                    f"starts[{name!r}] must have shape {shape} of {start[name].dtype}, "
                    f"got {tuple(tensor.shape)} of {tensor.dtype}"
                )
            if tensor.device != start[name].device:
                raise InputError(f"starts[{name!r}] must be on {start[name].device}, got {tensor.device}")
            if not bool(tensor.isfinite().all()):
                raise InputError(f"starts[{name!r}] must be finite, got NaN or infinite entries")
        return {name: starts[name].detach().clone().contiguous() for name in start}
    return {name: tensor.detach().expand(replicas, *tensor.shape).clone() for name, tensor in start.items()}


def _try(stepper: VmapStepper, params: Params, batch: Tensor) -> Tensor:
    """Return the loss of the first replica's first minibatch."""
    first = {name: tensor[:1] for name, tensor in params.items()}
    try:
        _, losses = stepper.gradients(first, batch)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise InputError(
            f"the loss fails on a minibatch: {type(error).__name__}: {text[0] if text else ''}"
        ) from error
    return losses


def _chunk_size(problem: Problem, batch_size: int, path: str) -> int:
    samples = batch_size * sum(tensor[0].numel() for tensor in problem.data)
    return max(
        8, _CHUNK_NUMBERS[path] // (samples + sum(tensor.numel() for tensor in problem.start.values()))
    )


def _check_counts(
    replicas: int, steps: int, every: int, burn_in: int, chunk_size: int | None, checkpoint_every: int | None
) -> None:
    counts = {"replicas": replicas, "steps": steps, "every": every}
    counts |= {} if chunk_size is None else {"chunk_size": chunk_size}
    counts |= {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 <= burn_in < steps:
        raise InputError(f"burn_in must be in [0, steps={steps}), got {burn_in}")


@contextmanager
def _bar(progress: bool, total: int, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("replicas", total=total, completed=done)
        yield lambda advanced: bar.advance(task, advanced)
