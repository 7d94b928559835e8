"""Convolutions: contractions over channels, the same at every position."""

from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.contractions import common_total, sum_against_nothing
from symdyn_core.symmetry.structure.ledger import Reading, Term
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.sums import sum_terms
from symdyn_core.symmetry.structure.terms import varying


def convolution(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a convolution demands."""
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    terms_x, terms_w = state.of(x), state.of(weight)
    if transposed or terms_w is None or any(sum(t.variation()) > 1 for t in terms_w):
        return state.opaque("convolution", [v for v in (x, weight, bias) if state.of(v) is not None], out)
    # Positions inside the kernel are told apart by the data.
    kernel = [t for t in terms_w if any(t.variation()[2:])]
    state.ledger.demand_terms_each(kernel)
    state.ledger.mark(state.ledger.fixed, kernel)
    rows, columns = ([t for t in terms_w if t.varies(axis)] for axis in (0, 1))
    for term in terms_w:
        if not varying(term):  # a single channel: a factor of the outputs, or one that others can absorb
            origin = state.ledger.origins[int(term.ids.reshape(-1)[0])]
            if origin is not None and origin.axis == 0:
                rows.append(term)
            else:
                state.ledger.demand_terms([term])
    out_labels = line_labels(rows, 0, weight)
    in_labels = line_labels(columns, 1, weight)
    size = weight.shape[1]
    inner = in_labels[None, :].expand(groups, size)
    summed = [Term(inner)] if columns else []
    channels = []
    for term in terms_x or ():
        variation = term.variation()
        if any(varies for axis, varies in enumerate(variation) if axis != 1):
            state.give_up([term])
            continue
        if variation[1] or (groups == 1 and x.shape[1] == 1):
            labels = term.ids.movedim(1, 0).reshape(x.shape[1], -1)[:, 0].reshape(groups, size)
            channels.append(term.moved(labels))
    state.read(channels)
    if not channels:
        sum_against_nothing(state, summed)
    for term in channels:
        if columns:
            state.ledger.tie(term.ids, inner)
    summed += channels
    block = torch.arange(groups)[:, None].expand(groups, size).contiguous()
    for term in summed:
        state.ledger.sign_with(term.ids.contiguous(), block)
    kept = common_total(state, summed, groups, free=groups > 1 or not rows) if summed else None
    shape = (1, -1) + (1,) * (x.ndim - 2)
    terms = [Term(out_labels.reshape(shape).expand(out.shape))] if rows else []
    if kept is not None:
        per_channel = kept.ids.repeat_interleave(weight.shape[0] // groups)
        if rows:
            state.ledger.tie(per_channel, out_labels)
        terms.append(kept.moved(per_channel.reshape(shape).expand(out.shape)))
    elif id(weight) in state.raw and rows and columns:
        gains = next((t.gains for t in channels if t.gains), ())
        state.ledger.readings.append(
            Reading(
                state.raw[id(weight)],
                1,
                in_labels.numpy().copy(),
                gains,
                0,
                out_labels.numpy().copy(),
                state.ledger.time,
            )
        )
    state.set(out, terms)
    if isinstance(bias, Tensor) and state.of(bias) is not None:
        shaped = bias.reshape(shape)
        state.set(shaped, [t.moved(t.ids.reshape(shape)) for t in state.of(bias) or ()])
        if id(bias) in state.raw:
            state.raw[id(shaped)] = state.raw[id(bias)]
        state.set(out, sum_terms(state, out, shaped, out.shape))


def line_labels(terms: list[Term], axis: int, weight: Tensor) -> Tensor:
    """Return the labels along one axis of a weight, zeros where there are none."""
    if not terms:
        return torch.zeros(weight.shape[axis], dtype=torch.long)
    return terms[0].ids.movedim(axis, 0).reshape(weight.shape[axis], -1)[:, 0]
