r"""Many replicas of SGD on a handful of parameters, compiled: a replica's step costs about ten nanoseconds.

Each replica obeys, with :math:`\hat g` the mean of the gradient over a minibatch,

$$b_{t+1}=\mu b_t+\hat g(\theta_t)+\lambda\theta_t,\qquad\theta_{t+1}=\theta_t-\eta\,b_{t+1},$$

as ``torch.optim.SGD`` does. The gradient is a function of the user's, compiled by numba into the loop.
Random numbers are drawn in blocks (:mod:`~symdyn_core.dynamics.streams`); then all replicas of a group take
a step in turn, so that the processor works on several of them while it waits for one's arithmetic. Memory
does not grow with the number of steps: averages over time are running means.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.dynamics.compiled_loops import Array, Compiled, check_compiled, check_start, run_groups
from symdyn_core.dynamics.few_samples import sample_source
from symdyn_core.errors import InputError

_BLOCK = 32_768  # random numbers drawn ahead for a group of replicas: they stay in the second level of cache

# What a replica is doing.
_MOVING, _STOPPED, _DIVERGED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class FewResult:
    r"""Where the replicas are after the last step, and averages over their way.

    Attributes:
        params: shape (R, k); a diverged replica stays where it was last finite, a stopped one where it
            stopped.
        alive: shape (R,), whether the replica stayed finite.
        steps_survived: shape (R,), the steps it took before it diverged or stopped.
        stopped_at: shape (R,), the number of steps after which ``stop_when`` first held, -1 if it never did.
        steps: the number of steps asked for.
        mean: shape (R, k), average of :math:`\theta` over time, NaN for diverged replicas and for those that
            stopped before averaging began; None if not asked for.
        covariance: shape (R, k, k), of :math:`\theta` over time, about that mean.
    """

    params: Array
    alive: NDArray[np.bool_]
    steps_survived: NDArray[np.int64]
    stopped_at: NDArray[np.int64]
    steps: int
    mean: Array | None
    covariance: Array | None

    @property
    def second(self) -> Array | None:
        r"""Average of :math:`\theta\theta^\top` over time, shape (R, k, k)."""
        if self.mean is None or self.covariance is None:
            return None
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def diverged(self) -> float:
        """The fraction of replicas that did not stay finite."""
        return float(1 - self.alive.mean())


def simulate_few(
    gradient: Compiled,
    start: ArrayLike,
    *,
    draws: Sequence[str] = (),
    data: ArrayLike | None = None,
    batch_size: int = 1,
    replacement: bool = True,
    learning_rate: float | ArrayLike,
    steps: int,
    seed: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    average_after: int | None = None,
    stop_when: Compiled | None = None,
    threads: int = 1,
    progress: bool = False,
) -> FewResult:
    r"""Run SGD on R independent replicas of a model of k parameters.

    The gradient of one sample is ``gradient(theta, draw, out)``, compiled with ``numba.njit``: it reads
    ``theta``, shape (k,), and the sample ``draw``, shape (d,), and writes :math:`\partial\ell/\partial\theta`
    into ``out``, shape (k,); all float64. It must set every entry of ``out``. Indices are not checked while
    the replicas run; one uncompiled call at the start checks them.

    The first call with a gradient compiles it, which takes about a second; later ones do not.

    Args:
        gradient: of the loss of one sample.
        start: shape (R, k).
        draws: what each entry of a sample is: "normal", "uniform" on [0, 1) or "sign" (-1 or 1), all
            independent; every sample is fresh.
        data: in place of ``draws``, the samples, shape (n_samples, d).
        batch_size: samples per step, >= 1.
        replacement: with data, whether they are drawn independently; otherwise each replica goes through them
            in epochs, shuffled afresh each time, leaving out rows that no longer fill a batch; this keeps an
            order of the rows per replica in memory.
        learning_rate: > 0, one number or one per replica, shape (R,).
        steps: >= 1.
        seed: of all random numbers. Replica r draws the same ones whatever R is and whatever ``threads`` is.
        momentum: :math:`\mu` in [0, 1), as ``torch.optim.SGD`` has it, without dampening.
        weight_decay: :math:`\lambda`, as ``torch.optim.SGD`` has it: the loss gains
            :math:`\lambda\|\theta\|^2/2`.
        average_after: average the state over time after more than this many steps, in [0, steps).
        stop_when: ``stop_when(theta) -> bool``, compiled; a replica stops where it first holds.
        threads: how many run groups of replicas at the same time.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: a value out of range; a gradient that is not compiled, does not compile, uses an index out
            of bounds or leaves an entry of its result unset.

    A linear loss moves by one learning rate a step; the parabola's noise settles at
    :math:`\mathrm{Var}\,\theta=\eta/(2-\eta)=\frac13` for :math:`\eta=\frac12`:

    >>> import numba
    >>> @numba.njit
    ... def parabola(theta, draw, out):
    ...     out[0] = theta[0] - draw[0]
    >>> end = simulate_few(parabola, np.zeros((64, 1)), draws=["sign"], learning_rate=0.5, steps=2000, seed=0,
    ...                    average_after=100)
    >>> round(float(end.second.mean()), 2)
    0.33
    """
    theta = check_start(start)
    rates = _check_rates(learning_rate, len(theta))
    _check_scalars(steps, momentum, weight_decay, average_after, threads)
    source = sample_source(draws, data, batch_size, replacement, seed, len(theta))
    _check_gradient(gradient, theta[0], source.example())
    if stop_when is not None:
        _check_predicate(stop_when, theta[0])
    kernel = _kernel(gradient, stop_when, theta.shape[1], batch_size == 1)

    replicas, size = theta.shape
    buffers = np.zeros_like(theta)
    status, lasted = np.zeros(replicas, dtype=np.int8), np.full(replicas, steps)
    means, spreads = np.zeros((replicas, size)), np.zeros((replicas, size, size))
    average_from = steps if average_after is None else average_after

    def run(group: slice) -> Iterator[int]:
        """Take all steps of a group of replicas, in blocks; yield the number of steps of each block."""
        lanes, done = group.stop - group.start, 0
        numbers = lanes * batch_size * source.columns  # per step
        block = min(steps, max(1, _BLOCK // max(1, numbers)))
        drawn = np.empty(numbers * block)
        moved = [array[group] for array in (theta, buffers, rates, status, lasted, means, spreads)]
        while done < steps and (status[group] == _MOVING).any():
            part = min(block, steps - done)
            samples = drawn[: numbers * part].reshape(lanes, part, batch_size, source.columns)
            source.fill(group, samples.reshape(lanes, part * batch_size, source.columns))
            kernel(*moved, samples, momentum, weight_decay, done, average_from)
            done += part
            yield part * lanes

    run_groups(run, replicas, "SGD", threads=threads, progress=progress, total=replicas * steps)

    alive = status != _DIVERGED
    averaged = np.where(alive, lasted - average_from, 0)
    if average_after is not None:
        never = averaged <= 0
        means[never], spreads[never] = math.nan, math.nan
        spreads /= np.maximum(averaged, 1)[:, None, None]
    return FewResult(
        params=theta,
        alive=alive,
        steps_survived=lasted,
        stopped_at=np.where(status == _STOPPED, lasted, -1),
        steps=steps,
        mean=None if average_after is None else means,
        covariance=None if average_after is None else spreads,
    )


@cache
def _kernel(gradient: Compiled, stop_when: Compiled | None, size: int, single: bool) -> Any:
    """Compile the steps of a group for one gradient.

    The number of parameters is a constant of the compiled code: with loops of known length it is several
    times as fast. Without the loop over a batch of one sample it is faster by a quarter.
    """
    import numba

    def advance(
        params: Array,
        buffers: Array,
        rates: Array,
        status: NDArray[np.int8],
        lasted: NDArray[np.int64],
        means: Array,
        spreads: Array,
        samples: Array,
        momentum: float,
        weight_decay: float,
        done: int,
        average_from: int,
    ) -> None:
        lanes, steps, batch = samples.shape[0], samples.shape[1], samples.shape[2]
        share = 1 / batch  # a division in the loop would cost as much as the rest of a step
        moves, another = np.empty((lanes, size)), np.empty(size)
        if stop_when is not None and done == 0:
            for lane in range(lanes):
                if stop_when(params[lane]):
                    status[lane], lasted[lane] = _STOPPED, 0
        for step in range(steps):
            for lane in range(lanes):
                if status[lane] != _MOVING:
                    continue
                theta, move = params[lane], moves[lane]
                gradient(theta, samples[lane, step, 0], move)
                if not single:
                    for sample in range(1, batch):
                        gradient(theta, samples[lane, step, sample], another)
                        for i in range(size):
                            move[i] += another[i]
                finite = True
                for i in range(size):
                    push = share * move[i] + weight_decay * theta[i]
                    if momentum != 0:
                        push += momentum * buffers[lane, i]
                        buffers[lane, i] = push
                    move[i] = theta[i] - rates[lane] * push
                    finite &= abs(move[i]) < np.inf
                if not finite:
                    status[lane], lasted[lane] = _DIVERGED, done + step
                    continue
                for i in range(size):
                    theta[i] = move[i]
                count = done + step + 1 - average_from
                if count > 0:  # Welford's running mean and sum of squares about it
                    for i in range(size):
                        move[i] = theta[i] - means[lane, i]
                        means[lane, i] += move[i] / count
                    for i in range(size):
                        for j in range(size):
                            spreads[lane, i, j] += move[i] * (theta[j] - means[lane, j])
                if stop_when is not None and stop_when(theta):
                    status[lane], lasted[lane] = _STOPPED, done + step + 1

    return numba.njit(advance, nogil=True)


def _check_rates(learning_rate: float | ArrayLike, replicas: int) -> Array:
    """Return one learning rate per replica."""
    rates = np.asarray(learning_rate, dtype=float)
    if rates.shape not in ((), (replicas,)):
        raise InputError(
            f"learning_rate must be one number or have the shape ({replicas},), got {rates.shape}"
        )
    if not (np.isfinite(rates).all() and (rates > 0).all()):
        raise InputError(f"learning_rate must be finite and > 0, got {rates.min()}")
    return np.full(replicas, rates) if rates.ndim == 0 else rates.copy()


def _check_scalars(
    steps: int, momentum: float, weight_decay: float, average_after: int | None, threads: int
) -> None:
    """Refuse numbers out of range."""
    if steps < 1:
        raise InputError(f"steps must be >= 1, got {steps}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    if not math.isfinite(weight_decay):
        raise InputError(f"weight_decay must be finite, got {weight_decay}")
    if average_after is not None and not 0 <= average_after < steps:
        raise InputError(f"average_after must be in [0, steps={steps}), got {average_after}")
    if threads < 1:
        raise InputError(f"threads must be >= 1, got {threads}")


def _check_gradient(gradient: Compiled, theta: Array, draw: Array) -> None:
    """Call the gradient once without compiling it, where Python checks the indices."""
    check_compiled(gradient, "gradient", 1, 1, 1)
    out = np.full_like(theta, np.nan)
    try:
        with np.errstate(all="ignore"):
            gradient.py_func(theta.copy(), draw, out)
    except IndexError as error:
        shapes = f"theta ({theta.size},), draw ({draw.size},), out ({theta.size},)"
        raise InputError(f"gradient uses an index out of bounds of {shapes}: {error}") from error
    if np.isnan(out).any():
        raise InputError(f"gradient must set every entry of out to a number, got {out} at {theta}")


def _check_predicate(stop_when: Compiled, theta: Array) -> None:
    """Call the predicate once without compiling it, where Python checks the indices."""
    check_compiled(stop_when, "stop_when", 1)
    try:
        answer = stop_when.py_func(theta.copy())
    except IndexError as error:
        raise InputError(
            f"stop_when uses an index out of bounds of theta ({theta.size},): {error}"
        ) from error
    if not isinstance(answer, bool | np.bool_):
        raise InputError(f"stop_when must return True or False, got {answer!r}")
