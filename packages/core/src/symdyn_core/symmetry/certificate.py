r"""How many symmetries does a model have at all? The certificate that a list of them is complete.

Every continuous symmetry moves the parameters along a direction that changes no output: a null direction of
the Jacobian of the outputs. The dimension of that null space at a generic point, the nullity, bounds what any
finder can find, whatever the form of the symmetry, and a list of symmetries whose tangent vectors span the
null space is complete.

Two things mimic symmetry. With fewer output numbers than parameters every direction of the rest is null:
enough rows are demanded. Dead and always-on units, and weights that are still zero, add null directions at
the model's own parameters: the count is taken at generic parameters, and what the own ones add is reported
apart.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from symdyn_core.errors import InputError, unknown
from symdyn_core.params import Inputs, Params, check_samples
from symdyn_core.random import torch_generator

Function = Callable[[Params, Inputs], Tensor]
OutputMap = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

LEAST_ROWS = 1.1  # output numbers demanded for each parameter
# Rows taken for each parameter; where the outputs are many more, they are random combinations of outputs.
_ROWS = 1.2
_MANY = 1.4
# Relative singular values: a direction below the first may be null; rounding lives near the second.
_POSSIBLE, _ROUNDING = 1e-8, 1e-16
_ROUNDED_ROW = 1e-12  # length of a row, derivative times parameters over outputs, that is rounding
CLEAR_GAP = 3.0  # decades between the last direction that counts and the first that does not
# An angle between a unit vector and a space that should hold it; rounding is amplified by 1 / kept at most.
_OUTSIDE = 1e-6
# What torch raises where it cannot vectorise. If the function itself is at fault, the loop raises again.
NOT_VECTORISED = (RuntimeError, ValueError, TypeError, NotImplementedError)


@dataclass(frozen=True)
class NullSpace:
    """Directions along which no output changes, at one point of parameter space.

    Args:
        params: the point.
        names: the parameters whose directions were counted; all others were held fixed.
        basis: orthonormal rows, shape (dimension, entries of the counted parameters), in the order of
            ``names``.
        kept: smallest relative singular value that counts as a change of the outputs; infinite if none does.
        null: largest one that does not; 0.0 where all count.
        is_bound: whether directions may be missing, because parameters were held fixed.
    """

    params: Mapping[str, Tensor]
    names: tuple[str, ...]
    basis: Tensor
    kept: float
    null: float
    is_bound: bool

    @property
    def dimension(self) -> int:
        """Number of independent directions."""
        return len(self.basis)

    @property
    def gap(self) -> float:
        """Decades between the smallest singular value that counts and the largest that does not."""
        return math.log10(max(self.kept, _ROUNDING) / max(self.null, _ROUNDING))

    @property
    def is_clear(self) -> bool:
        """Whether the gap leaves no doubt about the dimension."""
        return self.gap >= CLEAR_GAP


@dataclass(frozen=True)
class Nullity:
    """How many directions of parameter space leave all outputs unchanged.

    Args:
        generic: the null space at generic parameters: symmetries.
        own: the null space at the model's own parameters.
        rows: output numbers, or random combinations of them, differentiated for the largest block.
        drawn: samples that had to be drawn beyond the given ones to have enough rows.
    """

    generic: NullSpace
    own: NullSpace
    rows: int
    drawn: int

    @property
    def dimension(self) -> int:
        """Number of null directions at generic parameters."""
        return self.generic.dimension

    @property
    def extra(self) -> int:
        """Null directions at the model's own parameters alone: dead or always-on units, weights at zero."""
        return self.own.dimension - self.generic.dimension

    @property
    def is_bound(self) -> bool:
        """Whether the dimension is only a lower bound.

        Counted block by block, a symmetry that moves parameters of several blocks at once is not seen.
        """
        return self.generic.is_bound

    def __str__(self) -> str:
        relation = "at least" if self.is_bound else "exactly"
        text = f"{relation} {self.dimension} of {self.generic.basis.shape[1]} directions change no output"
        text += f" ({self.rows} rows"
        text += f", {self.drawn} samples drawn beyond the given ones" if self.drawn else ""
        text += f", gap of {self.generic.gap:.1f} decades" if self.dimension else ""
        text += ")" if self.generic.is_clear else "; the gap is too narrow to be sure)"
        return text + (f"; {self.extra} more at the model's own parameters" if self.extra else "")


@dataclass(frozen=True)
class CrossCheck:
    """The tangent vectors of symmetries against a null space.

    Args:
        nullity: dimension of the null space.
        unexplained: null directions outside the span of the tangent vectors.
        contradicted: directions of that span which do change the outputs; None where the null space is only a
            bound, so that it cannot tell.
        carriers: share of each parameter in the unexplained directions, largest first; they add up to 1.
    """

    nullity: int
    unexplained: int
    contradicted: int | None
    carriers: tuple[tuple[str, float], ...]

    @property
    def coverage(self) -> float:
        """Explained share of the null directions; 1 where there are none."""
        return 1 - self.unexplained / self.nullity if self.nullity else 1.0


def output_jacobian_nullity(
    f: Function,
    params: Params,
    inputs: Inputs,
    *,
    output: OutputMap | None = None,
    blocks: Sequence[Sequence[str]] | None = None,
    draw: bool = True,
    seed: int = 0,
    limit: int = 3000,
    chunk: int = 32,
    progress: Progress | None = None,
) -> Nullity:
    r"""Count the directions :math:`v` with :math:`Jv=0`, J the Jacobian of all outputs by all parameters.

    At each of two or three points: between 1.1 and 1.4 backward passes for each of P parameters, vectorised,
    and a singular value decomposition in :math:`O(P^3)` time and about :math:`1.4P^2` numbers of memory. A
    special point (dead units, zero biases) can only have more null directions than a generic one, never
    fewer; the smallest count seen is therefore the generic one. The third point is drawn only where the
    model's own and the second one disagree.

    Args:
        f: maps (params, inputs) to outputs of any shape, differentiable by autograd.
        params: the model's own parameters by name, float64.
        inputs: shape (n_samples, ...), or a tuple of such tensors. Directions are null for these inputs.
        output: map applied to the outputs, under which invariance is asked; None: the outputs themselves.
            The outputs should be generic numbers: those that repeat each other are counted as rows but bring
            nothing, as in a Gram matrix.
        blocks: parameter names to count together with all others held fixed; the result is then a lower
            bound.
        draw: whether samples may be drawn like the given ones where the outputs are too few: normal numbers
            of the same mean and spread, integers in the same range.
        seed: draws generic parameters, inputs and combinations of outputs.
        limit: most parameters of a block.
        chunk: rows differentiated at a time.
        progress: called with (rows done, rows in all) for each block at each point.

    Raises:
        InputError: too few outputs for the parameters, a block too large or with unknown names, outputs that
            are not finite.

    Source: the orbit of a symmetry (arXiv 2402.07193) lies in a level set of f; the tangent space of the
    generic level set is the null space. Re-derived.

    >>> params = {"w": torch.eye(2, dtype=torch.float64), "v": torch.ones(1, 2, dtype=torch.float64)}
    >>> x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> nullity = output_jacobian_nullity(lambda p, x: x @ p["w"].T @ p["v"].T, params, x)
    >>> nullity.dimension  # six parameters, and the product of the two maps has two entries
    4
    """
    for tensor in inputs if isinstance(inputs, tuple) else (inputs,):
        check_samples("inputs", tensor)
    groups = _blocks(params, blocks, limit)
    generator = torch_generator(seed, "certificate")
    inputs, drawn = _enough_inputs(f, params, inputs, output, groups, generator, draw=draw)

    def outputs(point: Params) -> Tensor:
        result = f(point, inputs)
        return (result if output is None else output(result)).reshape(-1)

    def null_space_at(point: Params) -> NullSpace:
        spaces = [
            null_space(_jacobian(outputs, point, group, generator, chunk, progress), floor=_ROUNDED_ROW)
            for group in groups
        ]
        names = tuple(name for group in groups for name in group)
        basis: Tensor = torch.block_diag(*(basis for basis, _, _ in spaces))  # type: ignore[no-untyped-call]
        kept, null = min(kept for _, kept, _ in spaces), max(null for _, _, null in spaces)
        return NullSpace(
            point, names, basis, kept, null, is_bound=len(names) < len(params) or len(groups) > 1
        )

    own = null_space_at(dict(params))
    generic = [null_space_at(generic_point(params, generator))]
    if generic[0].dimension != own.dimension:
        generic.append(null_space_at(generic_point(params, generator)))
    # Ties go to the generic points, where no weight is zero by accident.
    least = min([*generic, own], key=lambda space: space.dimension)
    largest = max(_size(params, group) for group in groups)
    return Nullity(least, own, _row_count(outputs(params).numel(), largest), drawn)


def cross_check(space: NullSpace, tangents: Sequence[Params]) -> CrossCheck:
    r"""Compare the directions in which symmetries move the parameters with all null directions.

    Args:
        space: the null space, at the point where the tangents were taken.
        tangents: :math:`A_k\theta` for every generator of every symmetry, by parameter name; parameters left
            out do not move.

    Raises:
        InputError: a tangent of an unknown parameter or of another shape.

    >>> point = {"w": torch.ones(1, dtype=torch.float64), "v": torch.ones(1, dtype=torch.float64)}
    >>> line = torch.tensor([[1.0, -1.0]], dtype=torch.float64) / 2**0.5  # f = w v
    >>> space = NullSpace(point, ("w", "v"), line, kept=1.0, null=0.0, is_bound=False)
    >>> cross_check(space, [{"w": point["w"], "v": -point["v"]}]).coverage
    1.0
    >>> cross_check(space, [{"w": point["w"]}]).contradicted
    1
    """
    for tangent in tangents:
        for name, value in tangent.items():
            if name not in space.params or value.shape != space.params[name].shape:
                raise InputError(f"tangents must have the names and shapes of the parameters, got {name!r}")
    names = [name for name in space.params if name in space.names or any(name in t for t in tangents)]
    columns = {name: space.params[name] for name in names}
    sizes = [space.params[name].numel() for name in space.names]
    pieces = dict(zip(space.names, torch.split(space.basis, sizes, dim=1), strict=True))
    nothing = {name: space.basis.new_zeros(space.dimension, value.numel()) for name, value in columns.items()}
    null = torch.cat([pieces.get(name, nothing[name]) for name in names], dim=1)
    moves = torch.zeros(len(tangents), null.shape[1], dtype=null.dtype)
    for row, tangent in zip(moves, tangents, strict=True):
        entries = [tangent.get(name, torch.zeros_like(columns[name])).reshape(-1) for name in names]
        row.copy_(torch.cat(entries))
    moves = _orthonormal(moves)
    missed = _orthonormal(null - (null @ moves.T) @ moves, unit=False)
    wrong = None if space.is_bound else len(_orthonormal(moves - (moves @ null.T) @ null, unit=False))
    return CrossCheck(space.dimension, len(missed), wrong, _carriers(missed, columns))


def generic_points(params: Params, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random parameters of the same size as the given ones, stacked ``count`` times.

    The entries of a parameter are normal about its median, with the spread of its absolute values, or that of
    a usual initialisation where it is zero. Medians, and no memory of single entries: a unit that a large
    bias has killed is alive here, so that it is not taken for a symmetry.
    """
    points = {}
    for name, value in params.items():
        fan_in = value[0].numel() if value.ndim else 1
        entries = value.detach().reshape(-1)
        # 1.48 times the median of |x| is the spread of normal numbers; of sparse weights it may be zero.
        spread = 1.48 * float(entries.abs().median()) or float(entries.square().mean().sqrt()) or fan_in**-0.5
        noise = torch.randn((count, *value.shape), generator=generator, dtype=value.dtype)
        points[name] = entries.median() + spread * noise
    return points


def generic_point(params: Params, generator: torch.Generator) -> dict[str, Tensor]:
    """Return one of :func:`generic_points`."""
    return {name: value[0] for name, value in generic_points(params, 1, generator).items()}


@overload
def inputs_like(inputs: Tensor, samples: int, generator: torch.Generator) -> Tensor: ...
@overload
def inputs_like(
    inputs: tuple[Tensor, ...], samples: int, generator: torch.Generator
) -> tuple[Tensor, ...]: ...
def inputs_like(inputs: Inputs, samples: int, generator: torch.Generator) -> Inputs:
    """Return new inputs: normal numbers of the same mean and spread, or integers in the same range."""
    if isinstance(inputs, tuple):
        return tuple(inputs_like(tensor, samples, generator) for tensor in inputs)
    shape = (samples, *inputs.shape[1:])
    if inputs.is_floating_point():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs.dtype)
        return inputs.mean() + (inputs.std() if inputs.numel() > 1 else 1.0) * noise
    if inputs.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < inputs.double().mean()
    return torch.randint(int(inputs.min()), int(inputs.max()) + 1, shape, generator=generator).to(
        inputs.dtype
    )


def null_space(matrix: Tensor, *, floor: float = 0.0) -> tuple[Tensor, float, float]:
    r"""Return the directions that a matrix maps to zero, and how clearly it does.

    Rows and columns are brought to unit length first, so that neither a parameter of small scale nor a row
    with small gradients passes for a null direction; columns of pure rounding are left as they are. The cut
    is made at the widest gap between relative singular values below 1e-8.

    Args:
        matrix: shape (rows, columns).
        floor: length below which a row is nothing but rounding.

    Returns:
        Orthonormal rows of shape (dimension, columns); the smallest relative singular value kept; the largest
        one cut off (0.0 where none is).

    >>> basis, kept, null = null_space(torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64))
    >>> basis.abs().tolist(), kept, null
    ([[0.0, 1.0]], 1.0, 0.0)
    """
    lengths = matrix.norm(dim=1)
    matrix = matrix[lengths > floor] / lengths[lengths > floor, None]
    if len(matrix) == 0:
        return torch.eye(matrix.shape[1], dtype=matrix.dtype), math.inf, 0.0
    scales = matrix.norm(dim=0)
    scales = torch.where(scales > 1e-10 * scales.max(), scales, torch.ones_like(scales))
    # Q of the tall matrix is not needed. The Gram matrix would be cheaper still, but it squares the singular
    # values: 1e-8 beside rounding at 1e-16 is a clear gap, 1e-16 beside 1e-16 is none.
    triangle = torch.linalg.qr(matrix / scales, mode="r").R
    _, values, directions = torch.linalg.svd(triangle, full_matrices=True)
    values = torch.cat([values, values.new_zeros(matrix.shape[1] - len(values))]) / values[0]
    clipped = values.clamp(min=_ROUNDING)
    ratios = torch.where(clipped[1:] < _POSSIBLE, clipped[:-1] / clipped[1:], torch.zeros_like(clipped[1:]))
    cut = int(ratios.argmax()) + 1 if len(ratios) and float(ratios.max()) > 0 else len(values)
    basis = directions[cut:] / scales
    basis = torch.linalg.qr(basis.T).Q.T if len(basis) else basis
    return basis, float(values[cut - 1]), float(values[cut]) if cut < len(values) else 0.0


@contextmanager
def vectorising() -> Iterator[None]:
    """Silence torch where it runs a kernel row by row inside ``vmap``; our loop would do no better."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _blocks(
    params: Params, blocks: Sequence[Sequence[str]] | None, limit: int
) -> tuple[tuple[str, ...], ...]:
    groups = (tuple(params),) if blocks is None else tuple(tuple(block) for block in blocks)
    names = [name for group in groups for name in group]
    if not names:
        raise InputError("params must hold at least one parameter in one block, got none")
    if missing := [name for name in names if name not in params]:
        raise InputError(unknown("parameter", missing[0], params))
    if len(set(names)) < len(names):
        raise InputError("blocks must not share parameters")
    largest = max(_size(params, group) for group in groups)
    if largest > limit:
        raise InputError(
            f"at most limit={limit} parameters can be counted together, got {largest}; "
            "pass blocks of parameter names, which gives a lower bound"
        )
    return groups


def _enough_inputs(
    f: Function,
    params: Params,
    inputs: Inputs,
    output: OutputMap | None,
    groups: tuple[tuple[str, ...], ...],
    generator: torch.Generator,
    *,
    draw: bool,
) -> tuple[Inputs, int]:
    """Return inputs whose outputs are enough rows, and the number of samples drawn for that."""

    def rows(samples: Inputs) -> int:
        with torch.no_grad():
            result = f(params, samples)
            result = result if output is None else output(result)
        if not bool(torch.isfinite(result).all()):
            raise InputError("the outputs must be finite on these inputs, got NaN or infinite entries")
        return result.numel()

    columns = max(_size(params, group) for group in groups)
    available, drawn = rows(inputs), 0
    given = len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
    if available < LEAST_ROWS * columns and draw:
        drawn = math.ceil((_ROWS * columns / available - 1) * given)
        if isinstance(inputs, tuple):
            more = inputs_like(inputs, drawn, generator)
            inputs = tuple(torch.cat(both) for both in zip(inputs, more, strict=True))
        else:
            inputs = torch.cat([inputs, inputs_like(inputs, drawn, generator)])
        available = rows(inputs)
    if available < LEAST_ROWS * columns:
        raise InputError(
            f"at least {math.ceil(LEAST_ROWS * columns)} output numbers are needed for {columns} parameters, "
            f"got {available} from {given + drawn} samples: too few rows mimic symmetry"
        )
    return inputs, drawn


def _row_count(outputs: int, columns: int) -> int:
    return outputs if outputs <= _MANY * columns else math.ceil(_ROWS * columns) + 10


def _size(params: Params, names: Iterable[str]) -> int:
    return sum(params[name].numel() for name in names)


def _jacobian(
    outputs: Callable[[Params], Tensor],
    point: Params,
    names: tuple[str, ...],
    generator: torch.Generator,
    chunk: int,
    progress: Progress | None,
) -> Tensor:
    """Return the derivatives of outputs, or of random combinations of them, by the named parameters.

    They are divided by the size of outputs over that of parameters: a row of length 1e-12 is rounding then.
    """
    # Plain autograd runs whatever trains; torch.func refuses models that write to buffers, as BatchNorm does.
    part = {name: point[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        result = outputs({**point, **part})
    rows = _row_count(result.numel(), _size(point, names))
    vectorised, pieces = True, []
    for start in range(0, rows, chunk):
        count = min(chunk, rows - start)
        if rows == result.numel():
            combinations = result.new_zeros(count, rows)
            combinations[:, start : start + count].fill_diagonal_(1.0)
        else:
            combinations = torch.randn(count, result.numel(), generator=generator, dtype=result.dtype)
        if vectorised:
            try:
                pieces.append(_backward(result, part, combinations))
            except NOT_VECTORISED:
                vectorised = False
        if not vectorised:
            pieces += [_backward(result, part, combination) for combination in combinations]
        if progress is not None:
            progress(start + count, rows)
    scale = float(result.detach().norm()) / max(
        math.sqrt(sum(float(value.detach().square().sum()) for value in part.values())), 1.0
    )
    return torch.cat(pieces) / (scale or 1.0)


def _backward(result: Tensor, params: Params, combinations: Tensor) -> Tensor:
    """Return the derivatives of one combination of outputs, or of a stack of them, one row each."""
    stacked = combinations.ndim > 1
    with vectorising():
        gradients = torch.autograd.grad(
            result,
            list(params.values()),
            combinations,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=stacked,
        )
    count = len(combinations) if stacked else 1
    rows = [
        value.new_zeros(count, value.numel()) if gradient is None else gradient.reshape(count, -1)
        for gradient, value in zip(gradients, params.values(), strict=True)
    ]
    return torch.cat(rows, dim=1)


def _orthonormal(rows: Tensor, *, unit: bool = True) -> Tensor:
    """Return an orthonormal basis of the span of rows; ``unit``: their lengths do not matter."""
    if unit:
        lengths = rows.norm(dim=1)
        rows = rows[lengths > 0] / lengths[lengths > 0, None]
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    basis: Tensor = directions[values > _OUTSIDE]
    return basis


def _carriers(rows: Tensor, params: Params) -> tuple[tuple[str, float], ...]:
    """Return the share of each parameter in the squared length of rows."""
    if len(rows) == 0:
        return ()
    sizes = [value.numel() for value in params.values()]
    shares = [float(piece.sum()) / len(rows) for piece in torch.split(rows.square().sum(dim=0), sizes)]
    ranked = sorted(zip(params, shares, strict=True), key=lambda item: -item[1])
    return tuple((name, share) for name, share in ranked if share > _OUTSIDE)
