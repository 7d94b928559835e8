"""Functions of single entries: constants, activations, choices."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.ledger import Term
from symdyn_core.symmetry.structure.state import State
from symdyn_core.symmetry.structure.terms import close, varying

NEGLIGIBLE = 0.01  # an added constant below this fraction of what it is added to: the eps of a normalisation


def single(state: State, func: Any, args: Any, kwargs: Any, out: Any, subject: Tensor) -> None:
    """Enter what an operation on the entries of one tensor demands."""
    terms = state.of(subject) or []
    plain = func._overloadpacket.__name__.rstrip("_")
    others = [
        v for v in (*args, *kwargs.values()) if isinstance(v, Tensor | int | float) and v is not subject
    ]
    if plain in ("mul", "div") and args[0] is subject:
        times_constant(state, terms, args[1], out)
    elif plain in ("mul",):
        times_constant(state, terms, args[0], out)
    elif plain in ("add", "sub", "rsub"):
        plus_constant(state, terms, subject, others[0] if others else 0.0, out)
    elif plain in ("masked_fill", "where"):
        state.set(out, [t.moved(t.ids.expand(out.shape)) for t in terms])
    else:
        function(state, func, args, kwargs, out, subject)


def times_constant(state: State, terms: list[Term], constant: Any, out: Tensor) -> None:
    """Enter what a product with numbers demands."""
    if not bool(torch.as_tensor(constant).any()):
        return state.set(out, None)
    spread = [t.moved(t.ids.expand(out.shape)) for t in terms]
    if isinstance(constant, Tensor) and constant.numel() > 1:
        values = constant.expand(out.shape) if constant.shape != out.shape else constant
        for term in spread:
            meet_constant(state, term, values)
    state.set(out, spread)


def meet_constant(state: State, term: Term, values: Tensor) -> None:
    """Enter that labels along which a constant varies are told apart by it."""
    axes = [axis for axis, varies in enumerate(term.variation()) if varies]
    if any(not bool((values == values.narrow(axis, 0, 1)).all()) for axis in axes):
        state.ledger.sign_with(term.ids.contiguous(), values.contiguous())
        state.ledger.mark(state.ledger.fixed, [term])
        state.ledger.mark(state.ledger.unturned, [term])


def plus_constant(state: State, terms: list[Term], subject: Tensor, constant: Any, out: Tensor) -> None:
    """Enter what a sum with numbers demands."""
    spread = [t.moved(t.ids.expand(out.shape)) for t in terms]
    state.set(out, spread)
    values = torch.as_tensor(constant, dtype=torch.float64)
    finite = values[torch.isfinite(values)]
    size = float(subject.abs().mean()) if subject.numel() else 0.0
    if finite.numel() == 0 or float(finite.abs().max()) <= NEGLIGIBLE * size:
        return
    state.ledger.demand_terms(spread)
    state.ledger.mark(state.ledger.scaled, spread)
    state.ledger.mark(state.ledger.unturned, spread)
    if values.numel() > 1:
        for term in spread:
            meet_constant(state, term, values.expand(out.shape))


def function(state: State, func: Any, args: Any, kwargs: Any, out: Any, subject: Tensor) -> None:
    """Enter what a function of single entries demands, after asking it."""
    terms = state.of(subject) or []

    def run(x: Tensor) -> Tensor:
        x = x.clone()  # the operation may work in place
        replaced = [x if value is subject else value for value in args]
        result: Tensor = func(*replaced, **{k: x if v is subject else v for k, v in kwargs.items()})
        return result

    probe = Probe(run, subject)
    if not probe.linear:
        square = probe.degree == 2 and probe.parity == 0
        state.ledger.mark(state.ledger.squared if square else state.ledger.nonlinear, terms)
        if not square:
            state.ledger.mark(state.ledger.unturned, terms)
        state.read(terms)
        record_units(state, func, terms)
    if probe.degree is None:
        state.ledger.demand_terms([replace(t, sign=0) for t in terms])
    if probe.parity is None:
        state.ledger.demand_terms([replace(t, scale=0.0) for t in terms])
    degree = 1.0 if probe.degree is None else probe.degree
    parity = 1 if probe.parity is None else probe.parity
    raised = [t.raised(degree, parity) for t in terms]
    if isinstance(out, tuple | list):
        out = out[0]
    state.set(out, [t.moved(t.ids.expand(out.shape)) for t in raised])


def record_units(state: State, func: Any, terms: list[Term]) -> None:
    """Remember where units pass through a function."""
    for term in terms:
        axes = [axis for axis, varies in enumerate(term.variation()) if varies]
        if len(axes) == 1 and (term.scale or term.sign):
            labels = term.ids.movedim(axes[0], 0).reshape(term.ids.shape[axes[0]], -1)[:, 0]
            name = func._overloadpacket.__name__
            state.units.append((name, state.counts[name], labels.numpy(), axes[0]))
            return


def alike(state: State, touched: list[Tensor], out: Tensor) -> None:
    """Entries of several tensors that must transform alike, through a function such as maximum."""
    spread = [t.moved(t.ids.expand(out.shape)) for value in touched for t in state.of(value) or ()]
    state.ledger.mark(state.ledger.nonlinear, spread)
    state.ledger.mark(state.ledger.unturned, spread)
    state.ledger.demand_terms(spread)
    for term in spread[1:]:
        state.ledger.tie(spread[0].ids, term.ids)
    state.set(out, spread[:1])


def masked_fill(state: State, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Enter that entries are kept or replaced by a constant."""
    state.set(out, [t.moved(t.ids.expand(out.shape)) for t in state.of(args[0]) or ()])


def where(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter that entries are chosen."""
    branches = [value for value in args[1:] if state.of(value) is not None]
    if len(branches) == 2:
        return alike(state, branches, out)
    state.set(
        out, [t.moved(t.ids.expand(out.shape)) for t in state.of(branches[0]) or ()] if branches else None
    )


def prelu(state: State, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Enter what a ReLU with a learnt slope demands."""
    x, slope = args
    terms = state.of(x) or []
    for value in (x, slope):
        listed = state.of(value) or []
        state.ledger.mark(state.ledger.nonlinear, listed)
        state.ledger.mark(state.ledger.unturned, listed)
    state.ledger.demand_terms([replace(t, scale=0.0) for t in terms])
    state.ledger.demand_terms_each(state.of(slope) or [])
    for term in state.of(slope) or ():
        for other in terms:
            if varying(term):
                state.ledger.unite(other.ids, term.ids.expand(out.shape))
    record_units(state, func, terms)
    state.read(terms)
    state.set(out, terms)


class Probe:
    """What kind of function of single entries an operation is, found by running it.

    Attributes:
        degree: p if f(sx) = s^p f(x) for s > 0, else None.
        parity: 1 if odd, 0 if even, else None.
        linear: whether f(x + y) = f(x) + f(y).
    """

    def __init__(self, run: Callable[[Tensor], Tensor], subject: Tensor) -> None:
        def value(x: Tensor) -> Tensor:
            result = run(x)
            result = result[0] if isinstance(result, tuple | list) else result
            return result.reshape(-1)

        # Values of both signs, small and large, whatever these inputs happen to give.
        draw = torch.Generator().manual_seed(0)
        size = max(1.0, float(subject.abs().mean())) if subject.numel() else 1.0
        x = 3 * size * torch.randn(subject.shape, generator=draw, dtype=subject.dtype)
        base = value(x)
        self.degree = self._degree(base, value(2 * x), value(3 * x))
        mirrored = value(-x)
        self.parity = 1 if close(mirrored, -base) else 0 if close(mirrored, base) else None
        other = x.reshape(-1).roll(1).reshape(x.shape) if x.numel() else x
        self.linear = (
            self.degree == 1 and self.parity == 1 and close(value(x - 2 * other), base - 2 * value(other))
        )

    @staticmethod
    def _degree(base: Tensor, doubled: Tensor, tripled: Tensor) -> float | None:
        usable = torch.isfinite(base) & torch.isfinite(doubled) & torch.isfinite(tripled) & (base != 0)
        if not bool(usable.any()):
            return None
        ratio = (doubled[usable] / base[usable]).median()
        if not float(ratio) > 0:
            return None
        degree = round(2 * math.log2(float(ratio))) / 2
        fits = close(doubled, 2**degree * base) and close(tripled, 3**degree * base)
        return degree if fits else None
