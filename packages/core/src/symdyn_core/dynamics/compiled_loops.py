"""What compiled simulations of few variables share: checks of the user's functions, and running groups."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError

Array = NDArray[np.float64]
Compiled = Any
"""A function compiled with ``numba.njit``."""

# Replicas that step in turn: what they draw ahead stays in the second level of cache.
LANES = 8


def check_start(start: ArrayLike) -> Array:
    """Return a copy of the start, shape (R, k)."""
    state = np.array(start, dtype=float, order="C")
    if state.ndim != 2 or not state.size:
        raise InputError(f"start must have the shape (R, k), got {state.shape}")
    if not np.isfinite(state).all():
        raise InputError("start must be finite, got NaN or infinite entries")
    return state


def check_compiled(function: Compiled, name: str, *dimensions: int) -> None:
    """Refuse what is not compiled, or does not compile for float64 arrays of these numbers of dimensions."""
    import numba
    from numba.core.errors import NumbaError

    if not hasattr(function, "py_func"):
        raise InputError(f"{name} must be compiled with numba.njit, got {function!r}")
    try:
        function.compile(tuple(numba.types.Array(numba.float64, count, "C") for count in dimensions))
    except NumbaError as error:
        raise InputError(
            f"{name} does not compile for float64 arrays of {dimensions} dimensions: {error}"
        ) from error


def run_groups(
    run: Callable[[slice], Iterator[int]],
    replicas: int,
    name: str,
    *,
    threads: int,
    progress: bool,
    total: int,
) -> None:
    """Run all groups of replicas, in threads if asked to; compiled loops release the interpreter's lock.

    Args:
        run: takes all steps of a group; yields how many it took since it last did.
        replicas: in all.
        name: what the progress bar says.
        threads: groups at the same time.
        progress: whether to show a bar, on a terminal.
        total: steps of all replicas.
    """
    from rich.console import Console
    from rich.progress import Progress

    groups = [slice(first, min(first + LANES, replicas)) for first in range(0, replicas, LANES)]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(name, total=total)

        def complete(group: slice) -> None:
            for advanced in run(group):
                bar.advance(task, advanced)

        if threads == 1:
            for group in groups:
                complete(group)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(complete, groups))
