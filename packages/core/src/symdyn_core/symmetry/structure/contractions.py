"""Contractions: summands must transform alike, whatever factors share the load."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.ledger import Reading, Term
from symdyn_core.symmetry.structure.pointwise import plus_constant
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.sums import sum_terms
from symdyn_core.symmetry.structure.terms import collected, reciprocal


def addmm(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a bias plus a matrix product demands."""
    bias, a, b = args
    product = a @ b
    contract(state, a[None], b[None], lifted(state, a), lifted(state, b), product)
    if state.of(product) is None:
        product_terms = state.of(bias)
        if product_terms is not None:
            plus_constant(state, product_terms, bias, product, out)
            if id(bias) in state.raw and not bool(product.any()):
                state.raw[id(out)] = state.raw[id(bias)]
        return
    if state.of(bias) is None:
        return plus_constant(state, state.of(product) or [], product, bias, out)
    state.set(out, sum_terms(state, product, bias, out.shape))


def baddbmm(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a sum with a batch of matrix products demands."""
    bias, a, b = args
    product = torch.bmm(a, b)
    contract(state, a, b, state.of(a), state.of(b), product)
    if kwargs.get("beta", 1) == 0 or state.of(bias) is None:
        return plus_constant(
            state, state.of(product) or [], product, 0.0 if kwargs.get("beta", 1) == 0 else bias, out
        )
    state.set(out, sum_terms(state, product, bias, out.shape))


def mm(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a matrix product demands."""
    a, b = args
    contract(state, a[None], b[None], lifted(state, a), lifted(state, b), out)


def bmm(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a batch of matrix products demands."""
    a, b = args
    contract(state, a, b, state.of(a), state.of(b), out)


def mv(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a matrix times a vector demands."""
    a, b = args
    column = [t.moved(t.ids[None, :, None]) for t in state.of(b) or ()] if state.of(b) is not None else None
    product = out[:, None]
    contract(state, a[None], b[None, :, None], lifted(state, a), column, product)
    state.set(out, [t.moved(t.ids[..., 0]) for t in state.of(product) or ()])


def dot(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a scalar product demands."""
    a, b = args
    row = [t.moved(t.ids[None, None, :]) for t in state.of(a) or ()] if state.of(a) is not None else None
    column = [t.moved(t.ids[None, :, None]) for t in state.of(b) or ()] if state.of(b) is not None else None
    product = out.reshape(1, 1)
    contract(state, a[None, None], b[None, :, None], row, column, product)
    state.set(out, [t.moved(t.ids.reshape(())) for t in state.of(product) or ()])


def lifted(state: State, value: Tensor) -> list[Term] | None:
    """Return the terms of a matrix as those of a batch of one."""
    terms = state.of(value)
    return None if terms is None else [t.moved(t.ids[None]) for t in terms]


def contract(
    state: State,
    a: Tensor,
    b: Tensor,
    terms_a: list[Term] | None,
    terms_b: list[Term] | None,
    out: Tensor,
) -> None:
    """Enter what a batch of matrix products demands; a (n, i, k), b (n, k, j), out (n, i, j) or (i, j)."""
    batches, rows, inner = a.shape
    columns = b.shape[2]
    constants = [value for value, terms in ((a, terms_a), (b, terms_b)) if terms is None]
    if len(constants) == 2 or any(not bool(value.any()) for value in constants):
        return state.set(out, None)  # the first step of a recurrent layer multiplies with a state of zeros
    sides = []
    for terms, contracted, free in ((terms_a, 2, 1), (terms_b, 1, 2)):
        summed, left = [], []
        for term in terms or ():
            # A single unit cannot be seen to vary: it is what does not belong to the axis that remains.
            if term.varies(contracted) or (inner == 1 and not any(term.variation())):
                summed.append(one_row(state, term, free))
            else:
                left.append(term.moved(term.ids.select(contracted, 0)))
        sides.append((summed, left))
    (summed_a, left_a), (summed_b, left_b) = sides
    state.read([*summed_a, *summed_b])
    own = len(summed_a) == len(summed_b) == 1 and torch.equal(summed_a[0].ids, summed_b[0].ids)
    if summed_a and summed_b and not left_a and not left_b and not own:
        # The softmax over keys does not see what a common offset of the keys adds to all their scores.
        state.ledger.mark(state.ledger.offset_free, summed_b)
    outer = [t.moved(t.ids[:, :, None].expand(batches, rows, columns)) for t in left_a]
    outer += [t.moved(t.ids[:, None, :].expand(batches, rows, columns)) for t in left_b]
    for one in summed_a:
        for other in summed_b:
            state.ledger.tie(one.ids, other.ids)
    for one in left_a:
        for other in left_b:
            if one.varies(0) and other.varies(0):
                # What each batch of the one multiplies lies in that batch: values in their head.
                state.ledger.lie_in(other.ids, one.ids[:, :1].expand(other.ids.shape))
    for mine, theirs in ((summed_a, summed_b), (summed_b, summed_a)):
        if mine and not theirs:
            sum_against_nothing(state, mine)
    summed = [*summed_a, *summed_b]
    if summed:
        block = torch.arange(batches)[:, None].expand(batches, inner)
        for term in summed:
            state.ledger.sign_with(term.ids.contiguous(), block.contiguous())
        free = not any(belongs_to_parameter(state, t) for t in outer)
        kept = common_total(state, summed, batches, free)
        if kept is not None:
            outer.append(kept.moved(kept.ids[:, None, None].expand(batches, rows, columns)))
    if batches > 1:
        for term, size in ((t, rows) for t in left_a):
            state.ledger.sign_with(
                term.ids.contiguous(), torch.arange(batches)[:, None].expand(batches, size).contiguous()
            )
        for term, size in ((t, columns) for t in left_b):
            state.ledger.sign_with(
                term.ids.contiguous(), torch.arange(batches)[:, None].expand(batches, size).contiguous()
            )
    note_readings(state, summed_a, summed_b, left_a, left_b)
    shape = out.shape
    state.set(
        out, [t.moved(t.ids.reshape(shape) if t.ids.ndim != len(shape) else t.ids) for t in collected(outer)]
    )


def one_row(state: State, term: Term, free: int) -> Term:
    """Return the labels along which is summed, after demanding that they are the same in every row.

    Tokens of different origin (a class token, patches) are read by the same weight.
    """
    chosen = term.ids.select(free, 0)
    if term.varies(free):
        every = chosen.unsqueeze(free).expand(term.ids.shape)
        state.ledger.demand_terms([term, reciprocal(term.moved(every))])
        state.ledger.unite(term.ids, every)
    return term.moved(chosen)


def belongs_to_parameter(state: State, term: Term) -> bool:
    """Whether the labels of a term are a parameter's."""
    label = int(term.ids.reshape(-1)[0]) if term.ids.numel() else 0
    return state.ledger.origins[label] is not None


def sum_against_nothing(state: State, terms: list[Term]) -> None:
    """A sum over units weighted by numbers that carry no labels tells the units apart."""
    state.ledger.mark(state.ledger.fixed, terms)
    state.ledger.mark(state.ledger.unturned, terms)
    state.ledger.mark(state.ledger.nonlinear, terms)


def common_total(state: State, terms: list[Term], batches: int, free: bool) -> Term | None:
    """Demand that the terms add up to the same along the second axis; return that total, if free.

    A weight that is summed over can shift a common total to its other axis, so that it is zero without
    loss; the total of activations cannot be moved elsewhere and gets a label of its own.
    """
    if not free:
        state.ledger.demand([(t.ids, t.scale, t.sign) for t in terms])
        return None
    table = torch.stack([t.ids.expand(batches, -1) for t in terms], dim=2).reshape(batches, -1)
    _, places = torch.unique(table, dim=0, return_inverse=True)
    fresh = state.ledger.new(int(places.max()) + 1)
    if len(fresh) > 1:
        state.ledger.families.append(fresh.tolist())
    totals = fresh[places]
    wide = totals[:, None].expand(terms[0].ids.shape)
    state.ledger.demand([*((t.ids, t.scale, t.sign) for t in terms), (wide, -1.0, 1)])
    for term in terms:
        state.ledger.lie_in(term.ids, wide)
    return Term(totals)


def note_readings(
    state: State, summed_a: list[Term], summed_b: list[Term], left_a: list[Term], left_b: list[Term]
) -> None:
    """Remember which weights read which units, with which gains in between."""
    for activations, weights, left in ((summed_a, summed_b, left_b), (summed_b, summed_a, left_a)):
        if len(weights) != 1 or len(left) != 1:
            continue
        inner, outer = weights[0].ids[0].numpy(), left[0].ids[0].numpy()
        origin, out_origin = state.ledger.origins[inner[0]], state.ledger.origins[outer[0]]
        if origin is None or out_origin is None or origin.parameter != out_origin.parameter:
            continue
        gains = next((t.gains for t in activations if t.gains), ())
        if all(t.scale for t in activations):
            state.ledger.mark(state.ledger.seen, activations)
        state.ledger.readings.append(
            Reading(
                origin.parameter,
                origin.axis,
                inner.copy(),
                gains,
                out_origin.axis,
                outer.copy(),
                state.ledger.time,
            )
        )


def embedding(state: State, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Enter what a look-up in a table demands: its rows are told apart by the data."""
    weight, index = args[0], args[1]
    terms = state.of(weight)
    if terms is None or len(terms) != 2:
        return state.opaque("embedding", [args[0]], out)
    rows, columns = terms
    state.ledger.mark(state.ledger.fixed, [rows])
    state.ledger.demand_terms([replace(rows, ids=rows.ids[:, :1])])
    ids = columns.ids[:1].reshape((1,) * index.ndim + (-1,)).expand(*index.shape, -1)
    state.set(out, [columns.moved(ids)])
    state.add_source([columns])
