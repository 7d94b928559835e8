"""Find the symmetries of a model: propose them from one forward pass, then verify each one numerically.

Structure proposes, numbers decide. Every proposal is tested with random group elements on the user's own
inputs in float64, at the model's own parameters and at generic ones around them: at the model's own
parameters alone a net with zero biases or dead units has accidental symmetries that the next training step
destroys.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import (
    FrozenModel,
    Inputs,
    Params,
    check_samples,
    from_vector,
    statistics_layers,
    to_float64,
    to_vector,
)
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.certificate import Nullity, cross_check, generic_point, output_jacobian_nullity
from symdyn_core.symmetry.dead import DeadUnits, dead_units
from symdyn_core.symmetry.kinds import Symmetry
from symdyn_core.symmetry.numeric import search
from symdyn_core.symmetry.report import Finding, SymmetryReport
from symdyn_core.symmetry.structure.forward import Trace, Untraceable, trace
from symdyn_core.symmetry.structure.propose import layer_name, propose
from symdyn_core.symmetry.structure.running import carried_over, fold, fold_running_statistics
from symdyn_core.symmetry.verify import TOLERANCE, distance_moved, verify

Method = Literal["auto", "structure", "numeric"]
Statistics = Literal["batch", "running"]
OutputMap = Callable[[Tensor], Tensor]

VERIFIED_SAMPLES = 64  # a symmetry holds for every input, so that more would only cost time
COUNTED_SAMPLES = 512  # too few inputs leave directions flat that are none
_TRACED_SAMPLES, _TRACED_BATCH = 2, 4
CERTIFIED_PARAMETERS = 400  # up to this size the certificate takes seconds
CERTIFIED_BLOCK = 3000
# The numeric search takes a gradient and a row of a singular value decomposition for each unknown.
SEARCHED_UNKNOWNS, COMPLETED_UNKNOWNS = 4000, 600


class SearchWarning(UserWarning):
    """The structure of a model could not be read, or not completely."""


def find_symmetries(
    model: nn.Module,
    inputs: Inputs,
    *,
    output: OutputMap | None = None,
    method: Method = "auto",
    statistics: Statistics | None = None,
    certificate: bool | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> SymmetryReport:
    r"""Return the transformations of the parameters that leave the model's outputs unchanged.

    A proposal :math:`g` is kept if :math:`\max|f(g\theta,x)-f(\theta,x)|\le\epsilon\max|f(\theta,x)|` for
    random elements of its group, at the model's parameters and at generic ones.

    Args:
        model: any module. It is copied, never changed, and run in float64 on the CPU, with dropout off.
        inputs: a tensor of shape (n_samples, ...), or a tuple of tensors that the model is called with. At
            most 64 samples are used, evenly spaced.
        output: map of the model's outputs under which invariance is asked, such as ``log_softmax``; None for
            the outputs themselves. Of several outputs all must stay unchanged.
        method: ``"structure"`` reads the forward pass; ``"numeric"`` searches without looking at it, at a
            cost that grows with the third power of the sum of all axis lengths; ``"auto"`` reads and falls
            back to the search, with a :class:`SearchWarning`, where the forward pass cannot be read.
        statistics: whether batch normalisation uses those of the ``"batch"`` or the ``"running"`` ones; by
            default what the mode of the model says. With those of the batch, verification holds for the
            batch of all samples used.
        certificate: whether to count all flat directions, which tells whether the list is complete; by
            default up to 400 parameters. Beyond 3000 it is counted block by block and is a bound.
        seed: draws the group elements and the generic parameters.
        tolerance: :math:`\epsilon`, in (0, 1).

    Raises:
        InputError: the model does not run on the inputs, is random in evaluation mode, or its outputs or
            parameters are not finite.

    Source: arXiv 2402.07193 and 2309.16932 for the kinds; re-derived.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
    ...     report = find_symmetries(model, torch.randn(64, 6))
    >>> report.dimension  # one rescaling for each hidden unit
    15
    >>> [symmetry.group for symmetry in report.of_kind("permutation")]
    ['S_8', 'S_7']
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance must be in (0, 1), got {tolerance}")
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if statistics is not None and statistics not in get_args(Statistics):
        raise InputError(f"statistics must be one of {', '.join(get_args(Statistics))}, got {statistics!r}")
    for tensor in inputs if isinstance(inputs, tuple) else (inputs,):
        check_samples("inputs", tensor)
    batch = _batch_statistics(model, statistics)
    frozen = FrozenModel(model, batch_statistics=batch, any_output=True)
    _check_sizes(frozen)
    samples = to_float64(_spread(inputs, VERIFIED_SAMPLES))
    _check_deterministic(frozen, samples)
    subject = _Search(frozen, _trainable(model, frozen), samples, output or _identity, seed)
    many = to_float64(_spread(inputs, COUNTED_SAMPLES))
    notes = list(_notes(model, batch))
    proposals: Sequence[Symmetry] = ()
    traced: Trace | None = None
    dead: tuple[DeadUnits, ...] = ()
    if method != "numeric":
        try:
            traced, proposals, dead = subject.read()
        except Untraceable as reason:
            if method == "structure":
                raise InputError(
                    f"the forward pass cannot be read: {reason}; use method='numeric'"
                ) from reason
            notes.append(f"the forward pass cannot be read ({reason}); searched numerically")
            warnings.warn(notes[-1], SearchWarning, stacklevel=2)
    found, approximate, rejected = verify(
        subject, subject.params, proposals, samples, point=subject.point, seed=seed, tolerance=tolerance
    )
    if traced is not None and traced.uncovered:
        notes.append("nothing is known of " + ", ".join(sorted(traced.uncovered)) + ": not covered behind it")
    counted = sum(value.numel() for value in subject.params.values()) <= CERTIFIED_PARAMETERS
    nullity = subject.nullity(many) if (counted if certificate is None else certificate) else None
    check = cross_check(nullity.generic, subject.tangents(found, nullity.generic.params)) if nullity else None
    incomplete = check is not None and check.unexplained > 0 and subject.unknowns <= COMPLETED_UNKNOWNS
    if method == "numeric" or (method == "auto" and (traced is None or incomplete)):
        if subject.unknowns > SEARCHED_UNKNOWNS:
            notes.append(f"too large for the numeric search: {subject.unknowns:,} unknowns")
        else:
            found += subject.numeric(found)
            if nullity is not None:
                check = cross_check(nullity.generic, subject.tangents(found, nullity.generic.params))
    return SymmetryReport(
        found=tuple(found),
        approximate=tuple(approximate),
        rejected=tuple(rejected),
        point=subject.point,
        nullity=nullity,
        check=check,
        dead_units=dead,
        uncovered=tuple(sorted(traced.uncovered)) if traced is not None else (),
        notes=tuple(notes),
    )


class _Search:
    """One model on one set of samples, at one generic point around its parameters."""

    def __init__(
        self, model: FrozenModel, params: Params, samples: Inputs, output: OutputMap, seed: int
    ) -> None:
        self.model, self.params, self.samples, self.output = model, params, samples, output
        self.seed = seed
        self.point = generic_point(params, torch_generator(seed, "symmetry", "point"))

    def __call__(self, params: Params, inputs: Inputs) -> Tensor:
        """Return the outputs in question."""
        return self.output(self.model(params, inputs))

    def read(self) -> tuple[Trace, list[Symmetry], tuple[DeadUnits, ...]]:
        """Return a forward pass, the symmetries it suggests, and the units that are dead on the samples.

        Raises:
            Untraceable: the forward pass cannot be read.
        """
        folded = copy.deepcopy(self.model)
        folds = fold_running_statistics(folded)
        count = (
            _TRACED_BATCH
            if any(norm.training for norm in statistics_layers(folded.module))
            else _TRACED_SAMPLES
        )
        few = _spread(self.samples, count)
        try:
            self.model(self.params, few)
        except InputError:  # some models take no other number of samples
            few = self.samples
        point = fold(self.point, folds)
        traced = trace(folded, point, few, self.output)
        dead = dead_units(folded, fold(self.params, folds), traced, self.samples)
        return traced, [carried_over(symmetry, folds) for symmetry in propose(traced, point)], dead

    def tangents(self, found: Sequence[Finding], point: Params) -> list[dict[str, Tensor]]:
        """Return the velocities of all generators at a point."""
        return [generator(point) for finding in found for generator in finding.symmetry.generators()]

    @property
    def unknowns(self) -> int:
        """Number of unknowns of the numeric search, about."""
        return sum(2 * sum(value.shape) for value in self.params.values())

    def numeric(self, found: Sequence[Finding]) -> list[Finding]:
        """Return what a search that does not look at the structure adds to the symmetries found."""
        result = search(self.model, self.params, self.samples, output=self.output, seed=self.seed)
        generator = torch_generator(self.seed, "symmetry", "numeric")
        span = _span(self.tangents(found, self.point), self.point)
        added = []
        for symmetry, error in zip(result.symmetries, result.errors, strict=True):
            finding = Finding(symmetry, error, distance_moved(symmetry, self.params, generator), "numeric")
            wider = _span([*span, *self.tangents([finding], self.point)], self.point)
            if len(wider) > len(span):
                added.append(finding)
                span = wider
        return added

    def nullity(self, inputs: Inputs) -> Nullity:
        """Count all flat directions; in blocks of whole parameters where they are many."""
        blocks = None
        if sum(value.numel() for value in self.params.values()) > CERTIFIED_BLOCK:
            blocks = _blocks(self.params)
        return output_jacobian_nullity(
            self.model, self.params, inputs, output=self.output, blocks=blocks, seed=self.seed
        )


def _span(tangents: Sequence[Params], point: Params) -> list[dict[str, Tensor]]:
    """Return an orthonormal basis of the space that velocities span."""
    if not tangents:
        return []
    zeros = {name: torch.zeros_like(value) for name, value in point.items()}
    rows = torch.stack([to_vector({**zeros, **tangent}) for tangent in tangents])
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    return [from_vector(row, point) for row in basis[values > 1e-8 * values[0]]]


def _identity(outputs: Tensor) -> Tensor:
    return outputs


def _trainable(model: nn.Module, frozen: FrozenModel) -> dict[str, Tensor]:
    """Return the parameters that train, in float64; all of them where none does."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: frozen.params[name] for name in names or frozen.params}


def _batch_statistics(model: nn.Module, statistics: Statistics | None) -> bool:
    if statistics is not None or not isinstance(model, nn.Module):
        return statistics == "batch"
    return any(norm.training for norm in statistics_layers(model))


def _notes(model: nn.Module, batch: bool) -> Iterator[str]:
    if statistics_layers(model):
        yield f"batch normalisation by the {'statistics of the batch' if batch else 'running statistics'}"
    if model.training and any(
        isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()
    ):
        yield "dropout was switched off"
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if fixed and len(fixed) < sum(1 for _ in model.named_parameters()):
        named = ", ".join(fixed[:3]) + (", ..." if len(fixed) > 3 else "")
        yield f"frozen parameters are taken as constants: {named}"


def _blocks(params: Params) -> list[list[str]]:
    """Return parameters gathered into blocks small enough to be counted; larger ones are left out."""
    blocks: list[list[str]] = [[]]
    size = 0
    for name, value in params.items():
        if value.numel() > CERTIFIED_BLOCK:
            continue
        if size + value.numel() > CERTIFIED_BLOCK and blocks[-1]:
            blocks.append([])
            size = 0
        blocks[-1].append(name)
        size += value.numel()
    return [block for block in blocks if block]


def _check_sizes(model: FrozenModel) -> None:
    for name, value in model.params.items():
        if value.numel() == 0:
            layer = layer_name(name)
            raise InputError(f"layer {layer!r} must have units, got {name!r} of shape {tuple(value.shape)}")


def _check_deterministic(model: FrozenModel, inputs: Inputs) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first = model(model.params, inputs)
        # The model restores the random state behind itself; another draw needs another state.
        torch.rand(1)
        second = model(model.params, inputs)
    if not bool(torch.isfinite(first).all()):
        raise InputError("the model's outputs must be finite on these inputs, got NaN or infinite entries")
    if not torch.equal(first, second):
        raise InputError(
            "the model's outputs must be the same in every run of evaluation mode, got random ones"
        )


@overload
def _spread(inputs: Tensor, count: int) -> Tensor: ...
@overload
def _spread(inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]: ...
def _spread(inputs: Inputs, count: int) -> Inputs:
    """Return at most ``count`` of the samples, evenly spaced."""
    if isinstance(inputs, tuple):
        return tuple(_spread(tensor, count) for tensor in inputs)
    return inputs[:: max(1, -(-len(inputs) // count))]
