"""What a forward pass demands of the transformations of its weights, written down index by index.

Every index of every axis of every parameter gets a number, its *label*. A rescaling gives each label an
exponent, as dimensional analysis gives each quantity a unit of measure; a sign flip gives it a sign; and
labels that always meet are one unit seen from several weights. :mod:`.rules` walks through the operations and
enters what each demands; :mod:`.solve` finds all rescalings and signs that meet the demands.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symdyn_core.params import Params
from symdyn_core.random import numpy_generator
from symdyn_core.symmetry.structure.exponents import Exponents

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Term:
    """One label for each entry of a tensor, and how the entry transforms with it.

    Args:
        ids: labels, of the tensor's shape; 0 for none.
        scale: power of the label's factor that multiplies the entry.
        sign: power of the label's sign, modulo 2.
        gains: parameters that have multiplied the entry along these labels.
    """

    ids: Tensor
    scale: float = 1.0
    sign: int = 1
    gains: tuple[str, ...] = ()

    def moved(self, ids: Tensor) -> "Term":
        """Return the term with labels moved as the entries were."""
        return replace(self, ids=ids)

    def raised(self, degree: float, parity: int) -> "Term":
        """Return the term of a power of the entries."""
        return replace(self, scale=self.scale * degree, sign=self.sign * parity % 2)

    def varies(self, axis: int) -> bool:
        """Whether the labels differ along an axis."""
        if self.ids.shape[axis] < 2 or self.ids.stride(axis) == 0:
            return False
        return not bool((self.ids == self.ids.narrow(axis, 0, 1)).all())

    def variation(self) -> tuple[bool, ...]:
        """Return for each axis whether the labels differ along it."""
        return tuple(self.varies(axis) for axis in range(self.ids.ndim))


@dataclass(frozen=True)
class Origin:
    """Where a label comes from: one index along one axis of a parameter."""

    parameter: str
    axis: int
    position: int


@dataclass(frozen=True)
class Relation:
    """Powers of labels whose product must not change, one in each row.

    Args:
        ids: shape (rows, terms).
        scales: shape (terms,).
        signs: shape (terms,).
    """

    ids: Labels
    scales: tuple[float, ...]
    signs: tuple[int, ...]

    def rows(self, *, signs: bool = False) -> Iterator[list[tuple[int, float]]]:
        """Yield every row as labels with their powers."""
        powers: Sequence[float] = self.signs if signs else self.scales
        exact = [float(power) for power in powers]
        places = [k for k, power in enumerate(exact) if power]
        if places:
            chosen = [exact[k] for k in places]
            for labels in self.ids[:, places].tolist():
                yield list(zip(labels, chosen, strict=True))


@dataclass(frozen=True)
class Reading:
    """A weight that is multiplied with activations and summed over.

    Args:
        parameter: the weight.
        axis: along which it is summed.
        labels: of that axis.
        gains: those that the activations have passed.
        out_axis: the axis that remains.
        out_labels: of that axis.
        time: number of the operation.
    """

    parameter: str
    axis: int
    labels: Labels
    gains: tuple[str, ...]
    out_axis: int
    out_labels: Labels
    time: int


@dataclass(frozen=True)
class Source:
    """A parameter that is added to activations, the same for every sample.

    Args:
        parameter: the bias, shift or embedding.
        axis: along the units.
        labels: of that axis.
        gains: those that the activations had passed.
        time: number of the operation.
    """

    parameter: str
    axis: int
    labels: Labels
    gains: tuple[str, ...]
    time: int


class Forest:
    """Sets of labels that are merged pair by pair, each label with a weight relative to its root."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, label: int) -> int:
        """Return the representative of a label's set."""
        parent = self._parent
        while (above := parent.get(label, label)) != label:
            parent[label] = label = parent.get(above, above)
        return label

    def merge(self, a: int, b: int) -> None:
        """Join the sets of two labels."""
        a, b = self.root(a), self.root(b)
        if a != b:
            self._parent[max(a, b)] = min(a, b)


@dataclass
class Ledger:
    """Labels of all parameters and everything the operations demand of them."""

    origins: list[Origin | None] = field(default_factory=lambda: [None])
    relations: list[Relation] = field(default_factory=list)
    exponents: Exponents = field(default_factory=Exponents)
    """What follows from the relations entered so far."""
    parities: Exponents = field(default_factory=lambda: Exponents(2))
    """The same for signs."""
    pending: list[list[tuple[int, float]]] = field(default_factory=list)
    """Relations between three labels or more."""
    pending_signs: list[list[tuple[int, float]]] = field(default_factory=list)
    """The same for signs."""
    identity: Forest = field(default_factory=Forest)
    added: Forest = field(default_factory=Forest)
    """Labels that are added up as they are."""
    parents: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Blocks (heads, groups) that a label lies in."""
    nonlinear: set[int] = field(default_factory=set)
    """Labels of units that pass through something that mixes no units but is not linear."""
    squared: set[int] = field(default_factory=set)
    """Labels of units of which a sum of squares is taken."""
    scaled: set[int] = field(default_factory=set)
    """Labels of units that are multiplied one by one with a gain, or summed over as they are."""
    centred: set[int] = field(default_factory=set)
    """Labels of units whose mean is taken."""
    seen: set[int] = field(default_factory=set)
    """Labels of units that weights read as they are, not normalised."""
    carried: set[str] = field(default_factory=set)
    """Gains behind which activations are added to others, as in a residual stream behind its norm."""
    gated: set[int] = field(default_factory=set)
    """Labels of units that are multiplied one by one with other activations."""
    offset_free: set[int] = field(default_factory=set)
    """Labels of units of which an offset may not be seen."""
    fixed: set[int] = field(default_factory=set)
    """Labels that cannot change places with others: inputs, outputs, positions."""
    unturned: set[int] = field(default_factory=set)
    """Labels that cannot be rotated into each other."""
    planes: set[tuple[int, int]] = field(default_factory=set)
    """Pairs of labels that a constant rotation mixes."""
    families: list[list[int]] = field(default_factory=list)
    """Labels of blocks (heads, groups) that play the same part."""
    readings: list[Reading] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    norm_outputs: set[int] = field(default_factory=set)
    """Labels behind a normalisation, where a gain may follow."""
    gains: set[str] = field(default_factory=set)
    leaves: dict[str, dict[int, Labels]] = field(default_factory=dict)
    """Labels of every parameter, axis by axis."""
    time: int = 0
    read_times: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._random = numpy_generator(0, "ledger")
        self._signatures = np.zeros(1, dtype=np.uint64)

    def new(self, count: int) -> Tensor:
        """Return labels of quantities that are no parameter."""
        start = len(self.origins)
        self.origins.extend([None] * count)
        return torch.arange(start, start + count)

    def leaf(self, name: str, value: Tensor) -> list[Term]:
        """Return the terms of a parameter: one label for each index of each axis.

        Axes of length one count in matrices and convolutions, where they are a single unit; elsewhere they
        are there for broadcasting.
        """
        single = value.ndim if value.ndim <= 2 else 2 if value.ndim >= 4 else 0
        axes = [axis for axis, size in enumerate(value.shape) if size > 1 or axis < single]
        self.leaves[name] = {}
        terms = []
        for axis in axes:
            ids = self.new(value.shape[axis])
            for position, label in enumerate(ids.tolist()):
                self.origins[label] = Origin(name, axis, position)
            self.leaves[name][axis] = ids.numpy()
            shape = [-1 if k == axis else 1 for k in range(value.ndim)]
            terms.append(Term(ids.reshape(shape).expand(value.shape)))
        if value.ndim == 0:
            ids = self.new(1)
            self.origins[int(ids)] = Origin(name, 0, 0)
            self.leaves[name][0] = ids.numpy()
            terms.append(Term(ids.reshape(())))
        return terms

    def demand(self, terms: Sequence[tuple[Tensor, float, int]]) -> None:
        """Enter that the product of these powers must not change, entry by entry."""
        if not terms:
            return
        ids = np.stack([ids.reshape(-1).numpy() for ids, _, _ in terms], axis=1)
        rows = np.unique(ids, axis=0)
        relation = Relation(rows, tuple(scale for _, scale, _ in terms), tuple(sign for _, _, sign in terms))
        self.relations.append(relation)
        for solver, pending, signs in (
            (self.exponents, self.pending, False),
            (self.parities, self.pending_signs, True),
        ):
            for row in relation.rows(signs=signs):
                reduced = solver.reduce(row)
                if reduced and not solver.enter(reduced):
                    pending.append(list(reduced.items()))

    def demand_terms(self, terms: Iterable[Term]) -> None:
        """Enter that entries with these terms must not change their size or sign."""
        listed = [term for term in terms if term.scale or term.sign]
        if listed:
            self.demand(
                [(reduced, t.scale, t.sign) for t, reduced in zip(listed, squeeze_all(listed), strict=True)]
            )

    def demand_terms_each(self, terms: Iterable[Term]) -> None:
        """Enter for each term alone that entries with it must not change."""
        for term in terms:
            self.demand_terms([term])

    def unite(self, a: Tensor, b: Tensor, *, plain: bool = False) -> None:
        """Enter that labels are the same unit; plain if nothing else multiplies the summands."""
        pairs = np.unique(np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()], axis=1), axis=0)
        for first, second in pairs[(pairs != 0).all(axis=1)].tolist():
            self.identity.merge(first, second)
            if plain:
                self.added.merge(first, second)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Enter that labels meet, entry by entry: as the same unit, or as a unit and the block it lies in."""
        pairs = np.unique(np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()], axis=1), axis=0)
        for first, second in pairs[(pairs != 0).all(axis=1)].tolist():
            if self.origins[first] is None:
                self.parents[second].add(first)
            elif self.origins[second] is None:
                self.parents[first].add(second)
            else:
                self.identity.merge(first, second)

    def lie_in(self, children: Tensor, blocks: Tensor) -> None:
        """Enter that labels lie in blocks, entry by entry; one label may lie in several."""
        pairs = np.unique(
            np.stack([children.reshape(-1).numpy(), blocks.reshape(-1).numpy()], axis=1), axis=0
        )
        for child, block in pairs.tolist():
            if child and block:
                self.parents[child].add(block)

    def mark(self, marked: set[int], terms: Iterable[Term]) -> None:
        """Add the labels of terms to a set."""
        for term in terms:
            marked.update(np.unique(squeeze(term.ids).numpy()).tolist())
        marked.discard(0)

    def sign_with(self, ids: Tensor, keys: Tensor) -> None:
        """Enter which keys each label meets; labels that meet the same ones act alike.

        Args:
            ids: labels, any shape.
            keys: what each entry is multiplied with, numbers of the same shape.
        """
        flat, key = ids.reshape(-1).numpy(), keys.reshape(-1).numpy()
        _, places = np.unique(key, return_inverse=True)
        draws = self._random.integers(1, 2**63, size=places.max(initial=0) + 1, dtype=np.uint64)
        if len(self._signatures) < len(self.origins):
            grown = np.zeros(2 * len(self.origins), dtype=np.uint64)
            grown[: len(self._signatures)] = self._signatures
            self._signatures = grown
        np.add.at(self._signatures, flat, draws[places])

    def signature(self, label: int) -> int:
        """Return a number that two labels share if they have met the same keys."""
        return int(self._signatures[label]) if label < len(self._signatures) else 0


def squeeze(ids: Tensor) -> Tensor:
    """Return the labels with axes along which they are repeated in memory cut to length one."""
    for axis in range(ids.ndim):
        if ids.stride(axis) == 0 and ids.shape[axis] > 1:
            ids = ids.narrow(axis, 0, 1)
    return ids


def squeeze_all(terms: Sequence[Term]) -> list[Tensor]:
    """Return the labels of terms of one shape, cut along axes where all of them are repeated."""
    ids = [term.ids for term in terms]
    for axis in range(ids[0].ndim):
        if all(i.stride(axis) == 0 for i in ids) and ids[0].shape[axis] > 1:
            ids = [i.narrow(axis, 0, 1) for i in ids]
    return ids


def label_leaves(ledger: Ledger, params: Params) -> dict[str, list[Term]]:
    """Return the terms of every parameter."""
    return {name: ledger.leaf(name, value) for name, value in params.items()}
