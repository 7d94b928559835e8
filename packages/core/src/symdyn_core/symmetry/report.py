"""What the search for symmetries found, what it refuted, and how complete it is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from symdyn_core.params import Params
from symdyn_core.symmetry.certificate import CrossCheck, Nullity
from symdyn_core.symmetry.dead import DeadUnits
from symdyn_core.symmetry.kinds import Symmetry

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType

# Velocities of many parameters are reduced to this many random combinations for each generator before their
# rank is taken; each parameter goes into several, so that no two of them are lost in one.
_COMBINATIONS, _SLACK, _BUCKETS = 4, 40, 3
# Above this many numbers, generators times parameters, the dimension is the sum over the symmetries.
_COUNTED = 2_000_000_000
_GENERATORS = 2500


@dataclass(frozen=True)
class Finding:
    """A proposed symmetry and how well it stood the test.

    Args:
        symmetry: the transformation.
        error: largest change of the outputs over all tests, relative to the largest output. Symmetries that
            were verified together share the error of all of them at once.
        moved: distance that an element moved the parameters it touches, relative to their norm.
        method: ``structure`` if read off the forward pass, ``numeric`` if found by the search.
    """

    symmetry: Symmetry
    error: float
    moved: float
    method: str = "structure"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values; an error that is not a number is None."""
        symmetry = self.symmetry
        return {
            "kind": symmetry.kind,
            "layer": symmetry.layer,
            "parameters": list(symmetry.parameters),
            "group": symmetry.group,
            "dimension": symmetry.dimension,
            "error": self.error if math.isfinite(self.error) else None,
            "moved": self.moved,
            "method": self.method,
        }


@dataclass(frozen=True)
class SymmetryReport:
    """The symmetries of a model; prints as a table in a terminal or notebook.

    Args:
        found: those that were verified.
        rejected: those that its structure suggests and the numerical test refutes.
        approximate: those that hold up to the eps of a normalisation.
        point: the generic parameters at which dimensions are counted.
        nullity: count of all flat directions, if it was asked for.
        check: how many of them the symmetries found explain.
        dead_units: units that are the same for every sample, layer by layer; each adds flat directions of the
            data, not of the architecture.
        uncovered: operations of which nothing is known; symmetries behind them may be missing.
        notes: what else a reader should know.
    """

    found: tuple[Finding, ...]
    rejected: tuple[Finding, ...]
    approximate: tuple[Finding, ...] = ()
    point: Params = field(default_factory=dict, repr=False, compare=False)
    nullity: Nullity | None = field(default=None, repr=False, compare=False)
    check: CrossCheck | None = field(default=None, repr=False, compare=False)
    dead_units: tuple[DeadUnits, ...] = ()
    uncovered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def dimension(self) -> int:
        """Dimension of the orbit of all continuous symmetries together, at a generic point.

        Never more than the sum of their dimensions; less where two of them move along the same direction. For
        very large models it is the sum.
        """
        total = sum(finding.symmetry.dimension for finding in self.found)
        size = sum(value.numel() for value in self.point.values())
        if total == 0 or total > _GENERATORS or total * size > _COUNTED:
            return total
        return self._rank()

    @property
    def coverage(self) -> float | None:
        """Share of all flat directions that the symmetries found explain; None if not counted."""
        return None if self.check is None else self.check.coverage

    @property
    def unexplained(self) -> int | None:
        """Number of flat directions that no symmetry found explains; None if not counted."""
        return None if self.check is None else self.check.unexplained

    def of_kind(self, kind: str) -> tuple[Symmetry, ...]:
        """Return the verified symmetries of one kind, in the order of the parameters."""
        return tuple(finding.symmetry for finding in self.found if finding.symmetry.kind == kind)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row for each symmetry, verified ones first."""
        import pandas as pd

        rows = [
            finding.to_dict() | {"status": status}
            for status, findings in (
                ("verified", self.found),
                ("approximate", self.approximate),
                ("rejected", self.rejected),
            )
            for finding in findings
        ]
        columns = [*Finding.__dataclass_fields__, "kind"]
        columns = ["kind", "layer", "parameters", "group", "dimension", "error", "moved", "method", "status"]
        return pd.DataFrame(rows, columns=columns)

    def completeness(self) -> str:
        """Return in one sentence how complete the list is."""
        if self.check is None or self.nullity is None:
            return "Completeness was not counted; certificate=True does."
        relation = "at least " if self.nullity.is_bound else ""
        explained = self.check.nullity - self.check.unexplained
        text = f"{explained} of {relation}{self.check.nullity} flat directions explained"
        if self.check.unexplained:
            carriers = ", ".join(f"{name} ({share:.0%})" for name, share in self.check.carriers[:3])
            text += f"; the other {self.check.unexplained} lie in {carriers}"
        return text + "."

    def _rank(self) -> int:
        """Return the rank of all generators' velocities; of many parameters, from random combinations."""
        count = sum(finding.symmetry.dimension for finding in self.found)
        names = {name for finding in self.found for name in finding.symmetry.parameters}
        sizes = {name: value.numel() for name, value in self.point.items() if name in names}
        width, total = _COMBINATIONS * count + _SLACK, sum(sizes.values())
        generator = torch.Generator().manual_seed(0)
        places, start = {}, 0
        for name, size in sizes.items():
            if total <= width:
                places[name] = (
                    torch.arange(start, start + size)[None],
                    torch.ones(1, size, dtype=torch.float64),
                )
                start += size
            else:
                shape = (_BUCKETS, size)
                weights = torch.randn(shape, generator=generator, dtype=torch.float64)
                places[name] = (torch.randint(width, shape, generator=generator), weights)
        rows = []
        for finding in self.found:
            for velocity in (vector(self.point) for vector in finding.symmetry.generators()):
                row = torch.zeros(min(width, total), dtype=torch.float64)
                for name, value in velocity.items():
                    buckets, weights = places[name]
                    row.index_add_(0, buckets.reshape(-1), (weights * value.reshape(-1)).reshape(-1))
                rows.append(row)
        matrix = torch.stack(rows)
        norms = matrix.norm(dim=1, keepdim=True)
        values = torch.linalg.svdvals(matrix / torch.where(norms > 0, norms, torch.ones_like(norms)))
        return int((values > values[0] * 1e-9).sum())

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from symdyn_core.symmetry.tables import symmetry_tables

        yield from symmetry_tables(self)
