"""Normalisations and softmax: what they no longer see."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.contractions import common_total
from symdyn_core.symmetry.structure.ledger import squeeze
from symdyn_core.symmetry.structure.products import multiply_terms
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.sums import sum_terms


def batch_norm(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what normalisation channel by channel demands."""
    x, weight, bias = args[:3]
    training = args[5] if "no_stats" not in str(func) else True
    normalise(state, x, weight, bias, out[0], over=None, running=not training, kept=1)


def batch_norm_legit(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what normalisation channel by channel demands, in torch's other signature."""
    has_running = isinstance(args[3], Tensor)
    training = args[5] if has_running else args[3]
    normalise(state, args[0], args[1], args[2], out[0], over=None, running=not training, kept=1)


def layer_norm(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what normalisation over the last axes, mean taken away, demands."""
    x, shape, weight, bias = args[:4]
    state.ledger.mark(state.ledger.centred, state.of(x) or [])
    normalise(
        state,
        x,
        weight,
        bias,
        out[0],
        over=list(range(x.ndim - len(shape), x.ndim)),
        running=False,
        kept=None,
    )


def rms_norm(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what normalisation over the last axes demands."""
    x, shape, weight = args[:3]
    result = out[0] if isinstance(out, tuple | list) else out
    normalise(
        state,
        x,
        weight,
        None,
        result,
        over=list(range(x.ndim - len(shape), x.ndim)),
        running=False,
        kept=None,
    )


def group_norm(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter what normalisation over groups of channels demands."""
    x, weight, bias, _, _, _, groups = args[:7]
    normalise(state, x, weight, bias, out[0], over=None, running=False, kept=1, groups=groups)


def normalise(
    state: State,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    *,
    over: list[int] | None,
    running: bool,
    kept: int | None,
    groups: int | None = None,
) -> None:
    """Enter a normalisation: over the given axes, over groups of channels, or channel by channel."""
    terms = state.of(x) or []
    state.read(terms)
    if running:
        # Running statistics are constants: what they are subtracted from must not change.
        state.ledger.demand_terms(terms)
        state.ledger.mark(state.ledger.nonlinear, terms)
        state.ledger.mark(state.ledger.unturned, terms)
        terms = [replace(t, scale=0.0) for t in terms]
    elif over is not None or groups is not None:
        for term in terms:
            if over is not None:
                flat = term.ids.flatten(over[0])
            else:
                flat = term.ids.reshape(term.ids.shape[0], groups or 1, -1)
                flat = flat.reshape(-1, flat.shape[-1])
                state.ledger.mark(state.ledger.unturned, [term])
            flat = flat.reshape(-1, flat.shape[-1])
            if term.scale or term.sign:
                common_total(state, [term.moved(flat)], flat.shape[0], free=True)
        state.ledger.mark(state.ledger.squared, terms)
        terms = [replace(t, scale=0.0) for t in terms]
    else:
        for marked in (state.ledger.squared, state.ledger.unturned, state.ledger.offset_free):
            state.ledger.mark(marked, terms)
        terms = [replace(t, scale=0.0) for t in terms]
    for term in terms:
        state.ledger.norm_outputs.update(torch.unique(squeeze(term.ids)).tolist())
    normed = x.clone()
    state.set(normed, terms)
    for value, multiply in ((weight, True), (bias, False)):
        if not isinstance(value, Tensor) or state.of(value) is None:
            continue
        shape = [1] * x.ndim
        if kept is not None:
            shape[kept] = -1
        else:
            shape[x.ndim - value.ndim :] = value.shape
        shaped = value.reshape(shape)
        state.set(shaped, [t.moved(t.ids.reshape(shape)) for t in state.of(value) or ()])
        if id(value) in state.raw:
            state.raw[id(shaped)] = state.raw[id(value)]
        combine = multiply_terms if multiply else sum_terms
        result = combine(state, normed, shaped, x.shape)
        normed = x.clone()
        state.set(normed, result)
    state.set(out, state.of(normed))


def softmax(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a softmax demands: logits as they are, up to what all share."""
    terms = state.of(args[0]) or []
    state.ledger.demand_terms(terms)
    for marked in (state.ledger.nonlinear, state.ledger.unturned, state.ledger.centred):
        state.ledger.mark(marked, [t for t in terms if t.varies(args[1] % args[0].ndim)])
    state.read(terms)
    state.set(out, terms)
