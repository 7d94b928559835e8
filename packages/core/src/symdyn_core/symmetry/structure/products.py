"""Products entry by entry: exponents add up, and a factor may cancel."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.ledger import Term, squeeze, squeeze_all
from symdyn_core.symmetry.structure.pointwise import single
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.terms import collected, places_in_memory, reciprocal


def mul(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a product or quotient demands."""
    a, b = args[0], args[1]
    terms_a, terms_b = state.of(a), state.of(b)
    if terms_a is None or terms_b is None:
        return single(state, func, args, kwargs, out, a if terms_b is None else b)
    inverse = func._overloadpacket.__name__.startswith("div")
    if a is b and not inverse:
        state.ledger.mark(state.ledger.squared, terms_a)
        return state.set(out, [t.raised(2, 0) for t in terms_a])
    state.set(out, multiply_terms(state, a, b, out.shape, inverse=inverse))


def multiply_terms(
    state: State, a: Tensor, b: Tensor, shape: torch.Size, *, inverse: bool = False
) -> list[Term]:
    """Return the terms of a product, after entering which units meet."""
    spread = [[t.moved(t.ids.expand(shape)) for t in state.of(value) or ()] for value in (a, b)]
    gain = [state.gain(value) for value in (a, b)]
    sides = ((b, spread[0], spread[1], gain[1], gain[0]), (a, spread[1], spread[0], gain[0], gain[1]))
    for value, terms, others, other_gain, own_gain in sides:
        keys = places_in_memory(value).expand(shape)
        for term in terms:
            axes = [axis for axis, varies in enumerate(term.variation()) if varies]
            if not any(keys.shape[axis] > 1 and keys.stride(axis) != 0 for axis in axes):
                continue
            if own_gain is not None:
                state.ledger.mark(state.ledger.scaled, [term])
                continue
            if other_gain is None:
                state.ledger.mark(state.ledger.unturned, [term])
                state.ledger.mark(state.ledger.gated, [term])
                # A label meets the same factors as another one if the factor does not vary along both.
                state.ledger.sign_with(term.ids.contiguous(), keys.contiguous())
            else:
                state.ledger.mark(state.ledger.scaled, [term])
        if other_gain is not None:
            state.ledger.gains.add(other_gain)
            for place, term in enumerate(terms):
                terms[place] = replace(term, gains=(*term.gains, other_gain))
            for place, term in enumerate(others):
                others[place] = replace(term, gains=(*term.gains, other_gain))
    first, second = spread
    for one in first:
        for other in second:
            if any(v and w for v, w in zip(one.variation(), other.variation(), strict=True)):
                state.ledger.tie(*squeeze_all([one, other]))
    if inverse:
        second = [reciprocal(t) for t in second]
    return cancelled(state, collected([*first, *second]))


def cancelled(state: State, terms: list[Term]) -> list[Term]:
    """Return the terms without factors that are known to cancel, as in x / |x|."""
    scaled = [t for t in terms if t.scale]
    if len(scaled) < 2:
        return terms
    rows = torch.unique(torch.stack([ids.reshape(-1) for ids in squeeze_all(scaled)], dim=1), dim=0)
    powers = [t.scale for t in scaled]
    if all(state.ledger.exponents.is_zero(label) for label in torch.unique(rows).tolist()):
        return terms  # nothing cancels: none of them changes
    if any(state.ledger.exponents.reduce(zip(row, powers, strict=True)) for row in rows.tolist()):
        return terms
    return [replace(t, scale=0.0) for t in terms if not is_unsigned_total(state, t)]


def is_unsigned_total(state: State, term: Term) -> bool:
    """Whether a term is a total of others whose sign is fixed."""
    labels = torch.unique(squeeze(term.ids)).tolist()
    return all(
        state.ledger.origins[k] is None and (not term.sign or state.ledger.parities.is_zero(k))
        for k in labels
    )


def weight_norm(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what a weight of given length and direction demands."""
    direction, length, axis = args[0], args[1], args[2] if len(args) > 2 else 0
    rows: list[Term] = []
    others: list[Term] = []
    for term in state.of(direction) or ():
        (rows if term.varies(axis) else others).append(term)
    # The length of a row does not see the signs of its entries, but every factor but the row's own.
    for term in others:
        state.ledger.demand_terms([replace(term, sign=0)])
    directions = [replace(t, scale=0.0) for t in rows]
    lengths = [t.moved(t.ids.expand(out[0].shape)) for t in state.of(length) or ()]
    for one in directions:
        for other in lengths:
            if other.varies(axis):
                state.ledger.unite(one.ids, other.ids)
    state.set(out[0], [*directions, *others, *lengths])
    state.set(out[1], None)
