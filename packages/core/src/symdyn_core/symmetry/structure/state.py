"""What is known of every tensor of a forward pass while it goes on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from symdyn_core.params import Params
from symdyn_core.symmetry.structure.ledger import Labels, Ledger, Source, Term, label_leaves, squeeze
from symdyn_core.symmetry.structure.terms import tensors_in


class DataDependent(Exception):
    """The forward pass asked for a number that depends on the parameters: its path may change with them."""

    passes_through = True  # not a failure of the model


class State:
    """Which terms belong to which tensor while a forward pass goes on, and the ledger they are entered in.

    Attributes:
        ledger: the demands so far.
        raw: names of the parameters that tensors are, moved at most, by ``id``.
        units: where units pass through functions: name, occurrence, labels, axis.
        uncovered: operations without a rule, with how often they occurred.
        used: parameters in the order of their first use.
    """

    def __init__(self, params: Params) -> None:
        self.ledger = Ledger()
        self.terms: dict[int, list[Term]] = {}
        self._kept: list[Tensor] = []  # an id must not be used again while its terms are looked up
        self.raw: dict[int, str] = {}  # tensors that are a parameter, moved at most
        self.counts: Counter[str] = Counter()
        self.units: list[tuple[str, int, Labels, int]] = []
        self.uncovered: dict[str, int] = {}
        self.used: dict[str, None] = {}  # in the order of their first use
        for (name, terms), value in zip(
            label_leaves(self.ledger, params).items(), params.values(), strict=True
        ):
            self.set(value, terms)
            self.raw[id(value)] = name

    def set(self, tensor: Any, terms: list[Term] | None) -> None:
        """Attach terms to a tensor; None for a tensor that does not depend on the parameters."""
        if not isinstance(tensor, Tensor):
            return
        self._kept.append(tensor)
        if terms is None:
            self.terms.pop(id(tensor), None)
        else:
            self.terms[id(tensor)] = terms

    def of(self, value: Any) -> list[Term] | None:
        """Return the terms of a tensor, None if it does not depend on the parameters."""
        return self.terms.get(id(value)) if isinstance(value, Tensor) else None

    def remembered(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor that is about to be overwritten, with its terms."""
        copy = tensor.clone()
        self.set(copy, self.of(tensor))
        if id(tensor) in self.raw:
            self.raw[id(copy)] = self.raw.pop(id(tensor))
        return copy

    def gain(self, value: Tensor) -> str | None:
        """Return the parameter that a factor is, if it has one entry for each unit."""
        return self.raw.get(id(value)) if len(self.of(value) or ()) == 1 else None

    def opaque(self, name: str, touched: Sequence[Tensor], out: Any) -> None:
        """Let nothing through, and say so."""
        self.uncovered[name] = self.uncovered.get(name, 0) + 1
        for value in touched:
            self.give_up(self.of(value) or [])
        for result in tensors_in(out):
            self.set(result, [])

    def give_up(self, terms: list[Term]) -> None:
        """Let nothing be done to units of which nothing is known."""
        for term in terms:
            self.ledger.demand_terms([term])
        for marked in (self.ledger.fixed, self.ledger.nonlinear, self.ledger.unturned):
            self.ledger.mark(marked, terms)

    def read(self, terms: Sequence[Term]) -> None:
        """Remember when units are acted upon."""
        for term in terms:
            for label in torch.unique(squeeze(term.ids)).tolist():
                times = self.ledger.read_times[label]
                if not times or times[-1] != self.ledger.time:
                    times.append(self.ledger.time)

    def add_source(self, terms: list[Term]) -> None:
        """Remember a parameter that is added to activations."""
        for term in terms:
            labels = torch.unique(squeeze(term.ids))
            labels = labels[labels != 0]
            if not len(labels):
                continue
            origin = self.ledger.origins[int(labels[0])]
            if origin is not None:
                self.ledger.sources.append(
                    Source(origin.parameter, origin.axis, labels.numpy(), term.gains, self.ledger.time)
                )
