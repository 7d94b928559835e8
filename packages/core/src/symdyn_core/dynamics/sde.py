r"""Itô equations integrated for many walkers at once, by a scheme that survives superlinear noise.

For :math:`dx=f(x)\,dt+G(x)\,dB` the Euler step :math:`x+fh+G\sqrt h\,\xi` diverges in finite time, however
small :math:`h`, once f or G grows faster than x. The stationary laws of SGD on products of weights are of
this kind: the noise itself, growing like :math:`v^2` or faster, makes the power-law tail. Two measures
cure it, and both are exact in the limit of small steps.

*Steps adapted to the place* (Fang and Giles 2020): within each step a walker takes substeps so short that
neither the drift nor the noise moves it by more than a given fraction of its own scale,

$$h=\min\Big(\text{step},\;\frac{\epsilon^2 s^2}{\|G\|^2},\;\frac{\epsilon s}{|f|}\Big),\qquad
s=\max(1,|x|),$$

which depends on the present state only, so that the increments stay Gaussian and unbiased. Taming
(Hutzenthaler, Jentzen and Kloeden 2012; Sabanis 2016) or truncating (Mao 2015) the coefficients also
prevents the divergence, and clipping the increments too, but they change the law at a fixed step: on heavy
tails that error is large, see the tests.

*Logarithmic coordinates* for what stays positive: :math:`y=\ln x` obeys
:math:`dy=(f/x-\|G\|^2/2x^2)\,dt+(G/x)\,dB`, in which multiplicative noise is additive, x cannot change
its sign, and the noise-induced tail is confined by a drift. There :math:`s=1`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.dynamics.compiled_loops import Array, Compiled, check_compiled, check_start, run_groups
from symdyn_core.errors import InputError, unknown
from symdyn_core.random import derive_seed

NOISES = ("diagonal", "scalar", "general")
SCHEMES = ("adaptive", "euler")
COORDINATES = ("plain", "log")

Noise = Literal["diagonal", "scalar", "general"]
Scheme = Literal["adaptive", "euler"]
Coordinates = Literal["plain", "log"]

_BLOCK = 256  # steps between two updates of the progress bar

# In logarithmic coordinates the coefficients are evaluated no nearer to zero than this; below it they are
# taken for linear, which every smooth law with f(0) = G(0) = 0 is.
_NEAREST = 1e-150
# Far out on a heavy tail substeps are so short that time hardly moves, and rightly so: the excursion is
# short. A walker that needs more of them than this within a step is stuck at a singularity.
_MOST = 10_000_000


@dataclass(frozen=True, eq=False)
class SdeResult:
    """Where the walkers are at the end, and averages over their way.

    Attributes:
        state: shape (R, k); a diverged walker stays where it was last finite.
        alive: shape (R,), whether the walker stayed finite.
        steps_survived: shape (R,), full steps before it diverged.
        substeps: shape (R,), how many substeps each walker took.
        mean: shape (R, k), average of the state over the ends of the steps, NaN for walkers that diverged;
            None if not asked for.
        covariance: shape (R, k, k), about that mean.
    """

    state: Array
    alive: NDArray[np.bool_]
    steps_survived: NDArray[np.int64]
    substeps: NDArray[np.int64]
    mean: Array | None
    covariance: Array | None

    @property
    def diverged(self) -> float:
        """The fraction of walkers that did not stay finite."""
        return float(1 - self.alive.mean())


def integrate_sde(
    drift: Compiled,
    diffusion: Compiled,
    start: ArrayLike,
    *,
    step: float,
    steps: int,
    seed: int,
    noise: Noise = "diagonal",
    sources: int | None = None,
    scheme: Scheme = "adaptive",
    coordinates: Coordinates = "plain",
    tolerance: float = 0.1,
    average_after: int | None = None,
    threads: int = 1,
    progress: bool = False,
) -> SdeResult:
    r"""Integrate :math:`dx=f(x)\,dt+G(x)\,dB`, understood in Itô's sense, for R walkers in k dimensions.

    Args:
        drift: ``drift(x, out)``, compiled with ``numba.njit``, writes :math:`f(x)` into ``out``, shape (k,).
        diffusion: ``diffusion(x, out)``, compiled, writes the strength of the noise into ``out``: of shape
            (k,) for "diagonal" (each coordinate has its own Brownian motion) and for "scalar" (all share
            one), of shape (k, sources) for "general".
        start: shape (R, k).
        step: time between two ends of steps, > 0.
        steps: >= 1.
        seed: of all random numbers; walker r draws the same ones whatever R is.
        noise: "diagonal", "scalar" or "general".
        sources: number of independent Brownian motions of general noise.
        scheme: "adaptive" takes substeps, "euler" is the plain Euler-Maruyama step.
        coordinates: "log" integrates :math:`\ln x`; all coordinates must be positive.
        tolerance: :math:`\epsilon` of the adaptive scheme, in (0, 1].
        average_after: average the state over the ends of the steps after more than this many, in [0, steps).
        threads: how many run groups of walkers at the same time.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: a value out of range; a function that is not compiled or does not compile.

    Source: Fang and Giles, Ann. Appl. Probab. 30 (2020), adaptive Euler-Maruyama.

    Without noise it is Euler's method, here for :math:`\dot x=-x`:

    >>> import numba
    >>> @numba.njit
    ... def decay(x, out):
    ...     out[0] = -x[0]
    >>> @numba.njit
    ... def silence(x, out):
    ...     out[0] = 0.0
    >>> end = integrate_sde(decay, silence, [[1.0]], step=0.1, steps=2, seed=0, scheme="euler")
    >>> round(float(end.state[0, 0]), 12)
    0.81
    """
    state = check_start(start)
    _check(state, step, steps, noise, sources, scheme, coordinates, tolerance, average_after, threads)
    check_compiled(drift, "drift", 1, 1)
    check_compiled(diffusion, "diffusion", 1, 2 if noise == "general" else 1)
    from symdyn_core.dynamics.streams import stream_states

    walkers, size = state.shape
    motions = sources or {"diagonal": size, "scalar": 1}[noise]
    kernel = _kernel(drift, diffusion, size, sources)
    streams = stream_states(derive_seed(seed, "noise"), walkers, 1)
    if coordinates == "log":
        state = np.log(state)
    alive = np.ones(walkers, dtype=bool)
    lasted, substeps = np.full(walkers, steps), np.zeros(walkers, dtype=np.int64)
    means, spreads = np.zeros((walkers, size)), np.zeros((walkers, size, size))
    average_from = steps if average_after is None else average_after
    fraction = tolerance if scheme == "adaptive" else math.inf

    def run(group: slice) -> Iterator[int]:
        """Take all steps of a group of walkers, in blocks; yield the number of steps of each block."""
        moved = [array[group] for array in (state, streams, alive, lasted, substeps, means, spreads)]
        for done in range(0, steps, _BLOCK):
            part = min(_BLOCK, steps - done)
            kernel(*moved, step, part, fraction, motions, coordinates == "log", done, average_from)
            yield part * (group.stop - group.start)

    run_groups(run, walkers, "SDE", threads=threads, progress=progress, total=walkers * steps)
    means[~alive], spreads[~alive] = math.nan, math.nan
    return SdeResult(
        state=np.exp(state) if coordinates == "log" else state,
        alive=alive,
        steps_survived=lasted,
        substeps=substeps,
        mean=None if average_after is None else means,
        covariance=None if average_after is None else spreads / (steps - average_from),
    )


@cache
def _kernel(drift: Compiled, diffusion: Compiled, size: int, sources: int | None) -> Any:
    """Compile the steps of a group of walkers for one equation."""
    import numba

    from symdyn_core.dynamics.streams import next_normal

    general = sources is not None
    shape = (size,) if sources is None else (size, sources)

    def advance(
        states: Array,
        streams: NDArray[np.uint64],
        alive: NDArray[np.bool_],
        lasted: NDArray[np.int64],
        substeps: NDArray[np.int64],
        means: Array,
        spreads: Array,
        step: float,
        steps: int,
        fraction: float,
        motions: int,
        logarithmic: bool,
        done: int,
        average_from: int,
    ) -> None:
        scalar = motions < size
        x, force, strength, moved = np.empty(size), np.empty(size), np.empty(shape), np.empty(size)
        normal = np.empty(motions)
        for walker in range(len(states)):
            state, stream = states[walker], streams[walker, 0]
            for number in range(done, done + steps):
                if not alive[walker]:
                    break
                left, taken = step, 0
                while left > 0:
                    for i in range(size):
                        x[i] = max(np.exp(state[i]), _NEAREST) if logarithmic else state[i]
                    drift(x, force)
                    diffusion(x, strength)
                    scale, speed, spread = 1.0, 0.0, 0.0
                    for i in range(size):
                        unit, power = x[i] if logarithmic else 1.0, 0.0  # power: squared norm of a row of G
                        if general:
                            for j in range(motions):
                                strength[i, j] /= unit
                                power += strength[i, j] ** 2
                        else:
                            strength[i] /= unit
                            power = strength[i] ** 2
                        if logarithmic:
                            force[i] = force[i] / unit - power / 2
                        else:
                            scale += x[i] ** 2
                        speed += force[i] ** 2
                        spread += power
                    # scale is now s^2, or within a factor 2 of it
                    h = left
                    if fraction < np.inf:
                        h = min(h, fraction**2 * scale / spread if spread > 0 else np.inf)
                        h = min(h, fraction * np.sqrt(scale / speed) if speed > 0 else np.inf)
                    taken += 1
                    finite = taken <= _MOST
                    for j in range(motions):
                        normal[j] = next_normal(stream) * np.sqrt(h)
                    for i in range(size):
                        moved[i] = state[i] + force[i] * h
                        if general:
                            for j in range(motions):
                                moved[i] += strength[i, j] * normal[j]
                        else:
                            moved[i] += strength[i] * normal[0 if scalar else i]
                        finite &= abs(moved[i]) < np.inf
                    if not finite:
                        alive[walker], lasted[walker] = False, number
                        break
                    for i in range(size):
                        state[i] = moved[i]
                    left = left - h if left > h else 0.0
                substeps[walker] += taken
                count = number + 1 - average_from
                if alive[walker] and count > 0:  # Welford's running mean and sum of squares about it
                    for i in range(size):
                        x[i] = np.exp(state[i]) if logarithmic else state[i]
                        moved[i] = x[i] - means[walker, i]
                        means[walker, i] += moved[i] / count
                    for i in range(size):
                        for j in range(size):
                            spreads[walker, i, j] += moved[i] * (x[j] - means[walker, j])

    return numba.njit(advance, nogil=True, error_model="numpy")


def _check(
    state: Array,
    step: float,
    steps: int,
    noise: str,
    sources: int | None,
    scheme: str,
    coordinates: str,
    tolerance: float,
    average_after: int | None,
    threads: int,
) -> None:
    """Refuse values out of range."""
    for kind, name, known in (
        ("noise", noise, NOISES),
        ("scheme", scheme, SCHEMES),
        ("coordinates", coordinates, COORDINATES),
    ):
        if name not in known:
            raise InputError(unknown(kind, name, known))
    if not (math.isfinite(step) and step > 0):
        raise InputError(f"step must be finite and > 0, got {step}")
    if steps < 1:
        raise InputError(f"steps must be >= 1, got {steps}")
    if (noise == "general") != (sources is not None) or (sources is not None and sources < 1):
        raise InputError(f"sources must be >= 1 for general noise and None for other noise, got {sources}")
    if not 0 < tolerance <= 1:
        raise InputError(f"tolerance must be in (0, 1], got {tolerance}")
    if coordinates == "log" and not (state > 0).all():
        raise InputError(f"start must be > 0 in logarithmic coordinates, got {state.min()}")
    if average_after is not None and not 0 <= average_after < steps:
        raise InputError(f"average_after must be in [0, steps={steps}), got {average_after}")
    if threads < 1:
        raise InputError(f"threads must be >= 1, got {threads}")
