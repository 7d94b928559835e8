"""Sums: what is added up must transform alike."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.ledger import Term, squeeze_all
from symdyn_core.symmetry.structure.pointwise import single
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.terms import confuses, reciprocal, telling, varying


def add(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a sum or difference demands."""
    a, b = args[0], args[1]
    touched = [value for value in (a, b) if state.of(value) is not None]
    if len(touched) == 1:
        return single(state, func, args, kwargs, out, touched[0])
    state.set(out, sum_terms(state, a, b, out.shape))


def sum_terms(state: State, a: Tensor, b: Tensor, shape: torch.Size) -> list[Term]:
    """Enter that two summands transform alike and return the terms of their sum."""
    spread = []
    for value, other in ((a, b), (b, a)):
        terms = state.of(value) or []
        if id(value) in state.raw:
            gains = next((t.gains for t in state.of(other) or () if t.gains), ())
            terms = [replace(t, gains=gains) for t in terms]
            state.add_source(terms)
        spread.append([t.moved(t.ids.expand(shape)) for t in terms])
    first, second = spread
    if {t.gains for t in first if varying(t)} != {t.gains for t in second if varying(t)}:
        state.ledger.mark(state.ledger.unturned, [*first, *second])
    if not {id(a), id(b)} & state.raw.keys():
        state.ledger.carried.update(gain for t in (*first, *second) for gain in t.gains)
    for value, other, mine, theirs in ((a, b, first, second), (b, a, second, first)):
        hold_extra_axes(state, mine, theirs, other, parameter=id(value) in state.raw)
    weighing = [[t for t in terms if t.scale and varying(t)] for terms in (first, second)]
    plain = len(weighing[0]) == len(weighing[1]) == 1
    for one in first:
        for term in second:
            shared = any(v and w for v, w in zip(one.variation(), term.variation(), strict=True))
            if shared and not note_planes(state, first, second):
                state.ledger.unite(*squeeze_all([one, term]), plain=plain and bool(one.scale and term.scale))
    groups: dict[tuple[bool, ...], tuple[list[Term], list[Term]]] = {}
    for place, terms in enumerate((first, second)):
        for term in terms:
            groups.setdefault(term.variation(), ([], []))[place].append(term)
    if sum(any(key) for key in groups) > 1 and all(mine and theirs for mine, theirs in groups.values()):
        for mine, theirs in groups.values():
            state.ledger.demand_terms([*mine, *(reciprocal(t) for t in theirs)])
    else:
        state.ledger.demand_terms([*first, *(reciprocal(t) for t in second)])
    # Both transform alike; the side that tells more axes apart with simpler labels says most.
    return max((first, second), key=telling)


def hold_extra_axes(
    state: State, mine: list[Term], theirs: list[Term], other: Tensor, *, parameter: bool
) -> None:
    """Pin labels along axes on which the other summand has no units: positions."""
    for term in list(mine):
        axes = [axis for axis, varies in enumerate(term.variation()) if varies]
        matched = [t for t in theirs if any(t.varies(axis) for axis in axes)]
        if parameter and not axes and any(map(varying, mine)):
            state.ledger.demand_terms([term])  # a common factor of the others, without loss
            mine.remove(term)
            continue
        if not axes or (matched and not (parameter and all(confuses(term, t) for t in matched))):
            continue
        state.ledger.demand_terms([term])
        state.ledger.mark(state.ledger.unturned, [term])
        state.ledger.mark(state.ledger.scaled, [term])
        # What is the same for all units does not tell them apart.
        sizes = [other.shape[k - term.ids.ndim] if term.ids.ndim - k <= other.ndim else 1 for k in axes]
        if matched or any(size > 1 for size in sizes):
            state.ledger.mark(state.ledger.fixed, [term])
        if parameter:
            mine.remove(term)


def note_planes(state: State, mine: list[Term], theirs: list[Term]) -> bool:
    """Remember pairs of units that a constant rotation mixes, as rotary position codes do."""
    if not len(mine) == len(theirs) == 1:
        return False
    pairs = torch.stack([ids.reshape(-1) for ids in squeeze_all([mine[0], theirs[0]])], dim=1)
    crossing = {(min(p), max(p)) for p in torch.unique(pairs, dim=0).tolist()}
    if not all(a != b and on_one_axis(state, a, b) for a, b in crossing):
        return False
    state.ledger.planes.update(crossing)
    return True


def on_one_axis(state: State, a: int, b: int) -> bool:
    """Whether two labels lie along the same axis of the same parameter."""
    one, other = state.ledger.origins[a], state.ledger.origins[b]
    return (
        one is not None and other is not None and (one.parameter, one.axis) == (other.parameter, other.axis)
    )
