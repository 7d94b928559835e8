"""Sums, means, norms and pooling over axes."""

import math
from dataclasses import replace
from typing import Any

from symdyn_core.symmetry.structure.contractions import common_total
from symdyn_core.symmetry.structure.ledger import Term
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.terms import first_along


def reduce(state: State, plain: str, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what a sum, mean, norm or variance over axes demands."""
    x = args[0]
    terms = state.of(x) or []
    result = out[0] if isinstance(out, tuple | list) else out
    dims = next((v for v in (*args[1:], *kwargs.values()) if isinstance(v, list | tuple)), None)
    if (
        dims is None
        and len(args) > 1
        and isinstance(args[1], int)
        and plain not in ("norm", "linalg_vector_norm")
    ):
        dims = [args[1]]
    axes = sorted({d % x.ndim for d in dims}) if dims else list(range(x.ndim))
    degree, parity = {"var": (2.0, 0), "std": (1.0, 0), "norm": (1.0, 0), "linalg_vector_norm": (1.0, 0)}.get(
        plain, (1.0, 1)
    )
    if plain in ("norm", "linalg_vector_norm", "var", "std"):
        state.ledger.mark(state.ledger.squared, terms)
    elif plain in ("amax", "amin", "logsumexp", "prod"):
        state.ledger.mark(state.ledger.nonlinear, terms)
        state.ledger.mark(state.ledger.unturned, terms)
        state.ledger.demand_terms(
            terms if plain in ("logsumexp", "prod") else [replace(t, scale=0.0) for t in terms]
        )
    state.read([t for t in terms if any(t.varies(axis) for axis in axes)])
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    summed: list[Term] = []
    kept: list[Term] = []
    for term in terms:
        (summed if any(term.varies(axis) for axis in axes) else kept).append(term)
    results = [t.moved(first_along(t.ids, axes)) for t in kept]
    if summed:
        order = [axis for axis in range(x.ndim) if axis not in axes]
        flat = [
            t.moved(t.ids.permute(*order, *axes).reshape(math.prod(x.shape[a] for a in order), -1))
            for t in summed
        ]
        if plain in ("sum", "mean"):
            state.ledger.mark(state.ledger.scaled, summed)
            state.ledger.mark(state.ledger.centred, [t for t in summed if t.sign])
        total = common_total(state, flat, flat[0].ids.shape[0], free=True)
        if total is not None:
            results.append(total.moved(total.ids.reshape(shape)))
    raised = [t.raised(degree, parity) for t in results]
    state.set(result, [t.moved(t.ids.reshape(result.shape)) for t in raised])


def pool(state: State, plain: str, args: Any, out: Any) -> None:
    """Enter what pooling over positions demands."""
    x = args[0]
    result = out[0] if isinstance(out, tuple | list) else out
    terms = state.of(x) or []
    if "max" in plain:
        state.ledger.mark(state.ledger.nonlinear, terms)
        state.ledger.mark(state.ledger.unturned, terms)
        state.ledger.demand_terms([replace(t, scale=0.0) for t in terms])
    axes = list(range(x.ndim - (1 if "1d" in plain else 3 if "3d" in plain else 2), x.ndim))
    kept = []
    for term in terms:
        if any(term.varies(axis) for axis in axes):
            state.give_up([term])
        else:
            kept.append(term.moved(first_along(term.ids, axes).expand(result.shape)))
    state.set(result, kept)
