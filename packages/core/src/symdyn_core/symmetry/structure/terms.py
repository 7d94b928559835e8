"""Small questions to the terms of a tensor."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure.ledger import Term, squeeze_all


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree to rounding wherever both are finite."""
    usable = torch.isfinite(a) & torch.isfinite(b)
    if not bool(usable.any()):
        return False
    scale = float(b[usable].abs().max())
    return bool(((a - b)[usable].abs() <= 1e-9 * (scale or 1.0)).all())


def places_in_memory(value: Tensor) -> Tensor:
    """Return a number for each entry, the same for entries that are one in memory."""
    once = value
    for axis in range(value.ndim):
        if value.stride(axis) == 0 and value.shape[axis] > 1:
            once = once.narrow(axis, 0, 1)
    return torch.arange(once.numel()).reshape(once.shape).expand(value.shape)


def reciprocal(term: Term) -> Term:
    """Return the term of one over the entries."""
    return replace(term, scale=-term.scale)


def telling(terms: list[Term]) -> tuple[int, int]:
    """Return how many axes are told apart, and less for labels that vary along several at once."""
    variations = [t.variation() for t in terms]
    return sum(map(any, zip(*variations, strict=True))), -max(map(sum, variations), default=0)


def confuses(term: Term, other: Term) -> bool:
    """Whether one label of the other term meets several labels of the term."""
    pairs = torch.stack([ids.reshape(-1) for ids in squeeze_all([term, other])], dim=1)
    pairs = torch.unique(pairs, dim=0)
    return len(torch.unique(pairs[:, 1])) < len(pairs)


def varying(term: Term) -> bool:
    """Whether the labels of a term differ anywhere."""
    return any(term.variation())


def first_along(ids: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the labels at the first place along each of some axes."""
    for axis in axes:
        ids = ids.narrow(axis, 0, 1)
    return ids


def collected(terms: list[Term]) -> list[Term]:
    """Return the terms with those of the same labels added up."""
    collected: list[Term] = []
    for term in terms:
        for place, other in enumerate(collected):
            if other.ids.shape == term.ids.shape and torch.equal(other.ids, term.ids):
                gains = (*other.gains, *(g for g in term.gains if g not in other.gains))
                collected[place] = Term(
                    other.ids, other.scale + term.scale, (other.sign + term.sign) % 2, gains
                )
                break
        else:
            collected.append(term)
    return collected


def tensors_in(values: Any) -> list[Tensor]:
    """Return all tensors in a nest of tuples, lists and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        return [t for value in values.values() for t in tensors_in(value)]
    if isinstance(values, tuple | list):
        return [t for value in values for t in tensors_in(value)]
    return []
