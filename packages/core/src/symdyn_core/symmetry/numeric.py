r"""Find the continuous symmetries of any differentiable model without looking at its structure.

A vector field :math:`\dot\theta=\sum_kc_kA_k\theta` is a symmetry if it changes no output:
:math:`g\cdot\sum_kc_kA_k\theta=0` for the gradient g of every combination of outputs, at all parameters. One
backward pass, with its own random combination, parameters and inputs, gives one such equation for all
coefficients at once; as many equations as unknowns, and some more, leave the symmetries as their null space.
The left-hand sides are the rates of the Noether charges :math:`\theta^TA_k\theta/2` under gradient flow.

What acts on the parameters in another way than the family of :mod:`.vector_fields` is not seen, as the
rotation of a residual stream behind normalisation gains; :mod:`.certificate` tells how much that is. No null
space sees permutations and sign flips.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import Inputs, Params, from_vector, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.certificate import (
    NOT_VECTORISED,
    Function,
    OutputMap,
    Progress,
    generic_point,
    generic_points,
    null_space,
    vectorising,
)
from symdyn_core.symmetry.kinds import Generator, Symmetry, nothing_in_place
from symdyn_core.symmetry.vector_fields import (
    Mix,
    Pair,
    VectorField,
    diagonal_family,
    linear_family,
    pair_family,
)
from symdyn_core.symmetry.verify import relative_change

FAMILIES = ("auto", "diagonal", "linear", "pairs")
LINEAR_UNKNOWNS = 1000  # most unknowns for which "auto" mixes every axis
# Equations for each unknown, and on top; random equations more than the unknowns keep the null space exact.
_EQUATIONS, _ON_TOP = 1.15, 10
# A field that moves the parameters by less than this share of their root mean square is no motion. The
# threshold is absolute: where no null field is effective, a relative one would keep rounding.
_INEFFECTIVE = 1e-8
_ROUNDING = 1e-12  # share of gradient and parameters below which the rate of a charge is zero
_ZERO = 1e-6  # relative size below which a number made of null-space entries is zero; their errors are 1e-10
_PARALLEL = 1 - 1e-9  # cosine above which two columns are the same direction
_TERMS = 20  # of the Taylor series of an exponential whose argument has norm at most one: error 1/20! = 4e-19
_SAMPLE = 1500  # least number of parameter entries looked at for a sparse basis


@dataclass(frozen=True)
class NumericSymmetry(Symmetry):
    r"""Vector fields that leave the outputs unchanged, found by number alone.

    An element is a vector e of coefficients: the parameters flow along :math:`\sum_ke_kA_k` for unit time.

    Args:
        fields: what moves.
        coefficients: shape (dimension, unknowns of all fields).

    >>> from symdyn_core.symmetry.vector_fields import Place, Scale
    >>> fields = (Scale(Place("w", 0, 0, 1)), Scale(Place("v", 1, 0, 1)))
    >>> symmetry = NumericSymmetry(fields, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    >>> params = {"w": torch.tensor([[3.0]]).double(), "v": torch.tensor([[2.0]]).double()}
    >>> moved = symmetry.act(params, torch.tensor([math.log(2)], dtype=torch.float64))
    >>> round(moved["w"].item(), 12), round(moved["v"].item(), 12)
    (6.0, 1.0)
    >>> symmetry.charge(params).tolist()  # 9 - 4
    [5.0]
    >>> print(symmetry.describe())
    scales w[0:1], scales v[:, 0:1]
    """

    kind = "numeric"

    fields: tuple[VectorField, ...]
    coefficients: Tensor

    @property
    def layer(self) -> str:
        """Qualified name of the module of the first parameter touched."""
        return self.parameters[0].rpartition(".")[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters touched, each once."""
        return tuple(dict.fromkeys(place.parameter for field in self.fields for place in field.places))

    @property
    def group(self) -> str:
        """What is known: the dimension of the orbit."""
        return f"exp(R^{self.dimension})"

    @property
    def dimension(self) -> int:
        """Number of independent vector fields."""
        return len(self.coefficients)

    def describe(self) -> str:
        """Return what the vector fields do to which axes."""
        pieces = self._pieces(self.coefficients)
        return ", ".join(field.describe(piece) for field, piece in zip(self.fields, pieces, strict=True))

    def random_element(self, generator: torch.Generator) -> Tensor:
        """Return normal coefficients, of norm about one half in all fields together."""
        element = torch.randn(self.dimension, generator=generator, dtype=torch.float64)
        return element / max(1.0, 2 * float((element @ self.coefficients).abs().max()))

    def act(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Return the parameters after unit time of the flow; those not touched are passed on."""
        return {**params, **flow(self.fields, element @ self.coefficients, params)}

    def generators(self) -> Iterator[Generator]:
        """Yield each vector field."""
        for row in self.coefficients:
            yield partial(_velocity, self.fields, row)

    def charge(self, params: Params) -> Tensor | None:
        r"""Return :math:`\theta^TA\theta` for the symmetric ones of the linear fields; None without any.

        Source: arXiv 2402.07193; a field that is not that of a symmetric matrix, or that shifts a parameter,
        conserves nothing quadratic.
        """
        asymmetry = [
            f.asymmetry(c) for f, c in zip(self.fields, self._pieces(self.coefficients), strict=True)
        ]
        # Rows whose combination with these weights is symmetric.
        weights = _left_null_space(torch.cat(asymmetry, dim=1))
        if len(weights) == 0:
            return None
        charges = []
        for row in weights @ self.coefficients:
            velocity = _velocity(self.fields, row, params)
            charges.append(sum((params[name] * value).sum() for name, value in velocity.items()))
        return torch.stack([torch.as_tensor(charge) for charge in charges])

    def project(self, params: Params) -> dict[str, Tensor]:
        r"""Return the nearest state that one of the vector fields leaves in place, :math:`A\theta+s=0`.

        Raises:
            InputError: every field moves every state, as a shift does.
        """
        nearest, distance = None, math.inf
        for row in self.coefficients:
            state = _fixed_state(self.fields, row, params)
            if state is None:
                continue
            away = float(to_vector({name: state[name] - params[name] for name in state}).norm())
            if away < distance:
                nearest, distance = state, away
        if nearest is None:
            raise nothing_in_place(self.kind)
        return {**params, **nearest}

    def _pieces(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        return torch.split(coefficients, [field.size for field in self.fields], dim=-1)


@dataclass(frozen=True)
class NumericSearch:
    """What the search found.

    Args:
        symmetries: vector fields that no equation contradicts and that the finite test confirmed; fields that
            move the same axes are one symmetry.
        errors: relative change of the outputs under a finite element of each.
        rejected: symmetries whose finite test failed, with their errors; empty unless the gap is unclear or
            the model is not differentiable.
        unknowns: number of coefficients, K.
        null_fields: dimension of the null space, with those that move nothing.
        kept: smallest relative singular value of the equations that counts.
        null: largest one that does not.
        gradients: backward passes.
    """

    symmetries: tuple[NumericSymmetry, ...]
    errors: tuple[float, ...]
    rejected: tuple[tuple[NumericSymmetry, float], ...]
    unknowns: int
    null_fields: int
    kept: float
    null: float
    gradients: int

    @property
    def dimension(self) -> int:
        """Dimension of the orbit of all symmetries together."""
        return sum(symmetry.dimension for symmetry in self.symmetries)

    def __str__(self) -> str:
        lines = [
            f"{self.dimension} dimensions of continuous symmetry among {self.unknowns} unknowns "
            f"({self.gradients} gradients)"
        ]
        width = max((len(symmetry.group) for symmetry in self.symmetries), default=0)
        lines += [f"  {s.group:<{width}}  {s.describe()}" for s in self.symmetries]
        return "\n".join(lines)


def search(
    f: Function,
    params: Params,
    inputs: Inputs,
    *,
    output: OutputMap | None = None,
    pairs: Sequence[Pair] = (),
    family: str = "auto",
    samples: int = 8,
    seed: int = 0,
    tolerance: float = 1e-7,
    chunk: int = 32,
    progress: Progress | None = None,
) -> NumericSearch:
    r"""Return every symmetry of a family of vector fields, whatever the architecture.

    :math:`1.15K+10` backward passes on a few samples for K unknowns, vectorised, and one singular value
    decomposition: :math:`O(K^3)` time and :math:`1.15K^2` numbers of memory.

    Args:
        f: maps (params, inputs) to outputs of any shape; deterministic and differentiable.
        params: parameters by name, float64. Symmetries are sought that hold for all parameters: equations are
            taken at random points around these.
        inputs: shape (n_samples, ...), or a tuple of such tensors. Invariance is asked on these inputs.
        output: map applied to the outputs, under which invariance is asked; None: the outputs themselves.
        pairs: places that a change of basis may mix.
        family: ``"diagonal"``: scales and shifts along all axes, crosses, and the mixes of ``pairs``;
            ``"linear"``: mixes of all axes instead of scales and pairs; ``"pairs"``: mixes of pairs alone;
            ``"auto"``: linear up to 1000 unknowns, else diagonal.
        samples: inputs used in one equation, drawn from the given ones.
        seed: draws combinations of outputs, parameters, samples and finite elements.
        tolerance: largest relative change of an output under a finite element.
        chunk: equations taken at a time.
        progress: called with (equations done, equations in all).

    Raises:
        InputError: unknown family, pairs that do not fit, no unknowns, or outputs that are not finite.

    Source: charges of arXiv 2402.07193; the null space of their rates, re-derived.

    >>> params = {"w": torch.ones(2, 3, dtype=torch.float64), "v": torch.ones(1, 2, dtype=torch.float64)}
    >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> print(search(lambda p, x: (x @ p["w"].T).relu() @ p["v"].T, params, x, family="diagonal"))
    2 dimensions of continuous symmetry among 16 unknowns (29 gradients)
      exp(R^2)  scales w[0:2], scales v[:, 0:2]
    """
    fields = _family(params, pairs, family)
    generator = torch_generator(seed, "symmetry", "search")
    matrix = _equations(f, params, inputs, output, fields, samples, generator, chunk, progress)
    basis, kept, null = null_space(matrix, floor=_ROUNDING)
    point = generic_point(params, generator)
    found, rejected = [], []
    for symmetry in _decompose(fields, basis, point):
        error = _finite_error(f, symmetry, inputs, output, [point, dict(params)], generator)
        if error <= tolerance:
            found.append((symmetry, error))
        else:
            rejected.append((symmetry, error))
    return NumericSearch(
        symmetries=tuple(symmetry for symmetry, _ in found),
        errors=tuple(error for _, error in found),
        rejected=tuple(rejected),
        unknowns=matrix.shape[1],
        null_fields=len(basis),
        kept=kept,
        null=null,
        gradients=len(matrix),
    )


def flow(fields: Sequence[VectorField], coefficients: Tensor, params: Params) -> dict[str, Tensor]:
    r"""Return the touched parameters after unit time of :math:`\dot\theta=A\theta+s`.

    The Taylor series of the exponential, in steps short enough for it to be exact to rounding.

    Args:
        fields: the vector fields.
        coefficients: shape (unknowns of all fields,).
        params: where the flow starts.
    """
    pieces = torch.split(coefficients, [field.size for field in fields])
    # The norm of a linear field is at most that of its coefficients; the constant part needs no small steps.
    linear = (piece for field, piece in zip(fields, pieces, strict=True) if not field.constant)
    steps = max(1, math.ceil(sum(float(piece.norm()) for piece in linear)))
    state = dict(params)
    touched = dict.fromkeys(place.parameter for field in fields for place in field.places)
    for _ in range(steps):
        # Only the first term sees the constant part of the field.
        term = _velocity(fields, coefficients / steps, state)
        total = {name: state[name] + term[name] for name in touched}
        nothing = {name: torch.zeros_like(value) for name, value in state.items()}
        for order in range(2, _TERMS + 1):
            term = _velocity(fields, coefficients / (steps * order), {**nothing, **term}, constant=False)
            total = {name: total[name] + term[name] for name in touched}
        state |= total
    return {name: state[name] for name in touched}


def _velocity(
    fields: Sequence[VectorField], coefficients: Tensor, params: Params, *, constant: bool = True
) -> dict[str, Tensor]:
    """Return how each touched parameter moves; without the constant part, the linear map alone."""
    velocity: dict[str, Tensor] = {}
    pieces = torch.split(coefficients, [field.size for field in fields])
    for field, piece in zip(fields, pieces, strict=True):
        weight = piece if constant or not field.constant else torch.zeros_like(piece)
        for place, tangent in zip(field.places, field.tangents(params, weight), strict=True):
            name = place.parameter
            velocity[name] = velocity[name] + tangent if name in velocity else tangent
    return velocity


def _fixed_state(
    fields: Sequence[VectorField], coefficients: Tensor, params: Params
) -> dict[str, Tensor] | None:
    """Return the nearest state that a vector field leaves in place, or None."""
    params = {name: value.detach() for name, value in params.items()}
    here = _velocity(fields, coefficients, params)
    start = {name: params[name] for name in here}
    nothing = {name: torch.zeros_like(value) for name, value in params.items()}

    def along(vector: Tensor) -> Tensor:
        # The linear part; parameters that the field reads but does not move stay as they are.
        step = {**nothing, **from_vector(vector, start)}
        return to_vector(_velocity(fields, coefficients, step, constant=False))

    vector = to_vector(start)
    transpose: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(along, vector)[1]
    operator = LinearOperator(
        (len(vector), len(vector)),
        dtype=np.float64,
        matvec=lambda v: along(torch.from_numpy(v).reshape(-1)).numpy(),
        rmatvec=lambda v: transpose(torch.from_numpy(v).reshape(-1))[0].numpy(),
    )
    step = torch.from_numpy(lsmr(operator, -to_vector(here).numpy(), atol=1e-13, btol=1e-13)[0])
    state = from_vector(vector + step, start)
    moves = float(to_vector(_velocity(fields, coefficients, {**params, **state})).norm())
    scale = float(coefficients.norm()) * max(float(vector.norm()), 1.0)
    return state if moves <= _ZERO * scale else None


def _family(params: Params, pairs: Sequence[Pair], family: str) -> tuple[VectorField, ...]:
    if family not in FAMILIES:
        raise InputError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if family == "auto":
        linear = linear_family(params)
        return (
            linear
            if sum(field.size for field in linear) <= LINEAR_UNKNOWNS
            else diagonal_family(params, pairs)
        )
    if family == "linear":
        return linear_family(params)
    fields = pair_family(params, pairs) if family == "pairs" else diagonal_family(params, pairs)
    if not fields:
        raise InputError("the family must have at least one unknown, got no parameters or no pairs")
    return fields


def _equations(
    f: Function,
    params: Params,
    inputs: Inputs,
    output: OutputMap | None,
    fields: Sequence[VectorField],
    samples: int,
    generator: torch.Generator,
    chunk: int,
    progress: Progress | None,
) -> Tensor:
    """Return one equation a row: the rate of every Noether charge under a random gradient."""
    used = {place.parameter for field in fields for place in field.places}
    one = _select(inputs, samples, generator)
    with torch.no_grad():
        size = _outputs(f, params, one, output).numel()

    def combined(moving: Params, fixed: Params, batch: Inputs, combination: Tensor) -> Tensor:
        return combination @ _outputs(f, {**fixed, **moving}, batch, output)

    def equation(point: Params, batch: Inputs, combination: Tensor) -> Tensor:
        moving = {name: value for name, value in point.items() if name in used}
        return _equation(fields, torch.func.grad(combined)(moving, point, batch, combination), point)

    def equation_by_autograd(point: Params, batch: Inputs, combination: Tensor) -> Tensor:
        # Plain autograd runs whatever trains; torch.func refuses models that write to buffers.
        moving = {name: point[name].clone().requires_grad_() for name in point if name in used}
        with torch.enable_grad():
            value = combined(moving, point, batch, combination)
        gradients = torch.autograd.grad(
            value, list(moving.values()), allow_unused=True, materialize_grads=True
        )
        return _equation(fields, dict(zip(moving, gradients, strict=True)), point)

    rows = math.ceil(_EQUATIONS * sum(field.size for field in fields)) + _ON_TOP
    vectorised, pieces = True, []
    for start in range(0, rows, chunk):
        count = min(chunk, rows - start)
        points = generic_points(params, count, generator)
        batches = [_select(inputs, samples, generator) for _ in range(count)]
        combinations = torch.randn(count, size, generator=generator, dtype=torch.float64)
        if vectorised:
            try:
                with vectorising():
                    pieces.append(torch.func.vmap(equation)(points, _stack(batches), combinations))
            except NOT_VECTORISED:
                vectorised = False
        if not vectorised:
            pieces += [
                equation_by_autograd({name: value[k] for name, value in points.items()}, batch, u)[None]
                for k, (batch, u) in enumerate(zip(batches, combinations, strict=True))
            ]
        if progress is not None:
            progress(start + count, rows)
    matrix = torch.cat(pieces).detach()
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(
            "outputs and gradients must be finite at random parameters, got NaN or infinite ones"
        )
    return matrix


def _equation(fields: Sequence[VectorField], gradients: Params, point: Params) -> Tensor:
    """Return the rates of all charges as shares of the gradient's norm times that of the parameters.

    A share of 1e-16 is rounding, also where every coefficient has one: then all fields are symmetries.
    """
    norms = [to_vector({name: values[name] for name in gradients}).norm() for values in (gradients, point)]
    rates = torch.cat([field.read(gradients, point) for field in fields])
    shares: Tensor = rates / (norms[0] * norms[1]).clamp(min=torch.finfo(rates.dtype).tiny)
    return shares


def _outputs(f: Function, params: Params, inputs: Inputs, output: OutputMap | None) -> Tensor:
    result = f(params, inputs)
    return (result if output is None else output(result)).reshape(-1)


def _select(inputs: Inputs, samples: int, generator: torch.Generator) -> Inputs:
    """Return some of the samples, in random order."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    chosen = torch.randperm(len(tensors[0]), generator=generator)[:samples]
    picked = tuple(tensor[chosen] for tensor in tensors)
    return picked if isinstance(inputs, tuple) else picked[0]


def _stack(batches: Sequence[Inputs]) -> Inputs:
    if isinstance(batches[0], tuple):
        return tuple(torch.stack(tensors) for tensors in zip(*batches, strict=True))
    return torch.stack([batch for batch in batches if isinstance(batch, Tensor)])


def _finite_error(
    f: Function,
    symmetry: NumericSymmetry,
    inputs: Inputs,
    output: OutputMap | None,
    points: Sequence[Params],
    generator: torch.Generator,
) -> float:
    """Return the largest change of an output under a finite element, over the largest output."""
    error = 0.0
    element = symmetry.random_element(generator)
    with torch.no_grad():
        for point in points:
            before = _outputs(f, point, inputs, output)
            after = _outputs(f, symmetry.act(point, element), inputs, output)
            error = max(error, relative_change(after, before))
    return error


def _decompose(fields: Sequence[VectorField], basis: Tensor, point: Params) -> Iterator[NumericSymmetry]:
    """Yield the null fields as symmetries that use few vector fields each, without those that move nothing.

    Among several ways to write the same motion (all rows or all columns of a matrix times a factor) the one
    with the fewest kinds of field is taken, and shifts before scales before mixes. The generators of a
    symmetry are chosen sparse: a direction in which many parameter entries move is one of them.
    """
    if len(basis) == 0:
        return
    sizes = [field.size for field in fields]
    tangents = torch.func.vmap(lambda row: to_vector(_velocity(fields, row, point)))(basis)
    left, moved, directions = torch.linalg.svd(tangents, full_matrices=False)
    scale = float(to_vector(point).square().mean().sqrt())
    rank = int((moved > _INEFFECTIVE * scale).sum())
    # The same motions in orthonormal coordinates: a field with coordinates m has tangent m @ directions.
    motions = left[:, :rank] * moved[:rank]
    coefficients = torch.split(basis, sizes, dim=1)
    found = basis.new_zeros(0, rank)
    while len(found) < rank:
        spent = _left_null_space(_beyond(motions, found))
        allowed = torch.eye(len(basis), dtype=basis.dtype)
        for number in _dispensable_first(fields, coefficients, spent):
            fewer = _left_null_space(allowed @ coefficients[number]) @ allowed
            if float(_beyond(fewer @ motions, found).norm()) > _ZERO:
                allowed = fewer
        new = _beyond(allowed @ motions, found)
        weights, values, _ = torch.linalg.svd(new, full_matrices=False)
        chosen = weights[:, values > _ZERO * values[0]].T @ allowed
        found = torch.linalg.qr(torch.cat([found, chosen @ motions]).T).Q.T
        yield _symmetry(fields, chosen @ basis, chosen @ motions @ directions[:rank])


def _dispensable_first(
    fields: Sequence[VectorField], coefficients: Sequence[Tensor], spent: Tensor
) -> list[int]:
    """Return the numbers of fields in the order in which we try to do without them.

    First those without which most new motions remain, so that a symmetry is found whole; among equals mixes
    before scales before shifts, and short axes before long ones.

    Args:
        fields: all fields.
        coefficients: of each field in the null fields, shape (null fields, size).
        spent: the null fields that bring no new motion, shape (anything, null fields).
    """

    def rank(number: int) -> tuple[int, bool, bool, int, int]:
        field, own = fields[number], coefficients[number]
        # The motions lost without this field are those of its rank that no spent field accounts for.
        lost = _rank(own) - _rank(spent @ own)
        return lost, field.constant, not isinstance(field, Mix), field.size, -number

    return sorted(range(len(fields)), key=rank)


def _symmetry(fields: Sequence[VectorField], coefficients: Tensor, tangents: Tensor) -> NumericSymmetry:
    """Return the symmetry of these generators, in a sparse basis and without fields that it does not use."""
    mixing = torch.linalg.inv(tangents[:, _pivots(tangents)])
    sparse = mixing @ coefficients
    sparse = sparse / sparse.abs().max(dim=1, keepdim=True).values
    sparse = torch.where(sparse.abs() > _ZERO, sparse, torch.zeros_like(sparse))
    pieces = torch.split(sparse, [field.size for field in fields], dim=1)
    used = [(field, piece) for field, piece in zip(fields, pieces, strict=True) if bool((piece != 0).any())]
    return NumericSymmetry(tuple(field for field, _ in used), torch.cat([piece for _, piece in used], dim=1))


def _pivots(tangents: Tensor) -> list[int]:
    """Return independent columns, first those whose direction many other columns share.

    Columns are the parameter entries. Where a generator is alone in moving some of them, they share a
    direction, and with one of them as pivot the other generators leave it out.
    """
    lengths = tangents.norm(dim=0)
    columns = torch.nonzero(lengths > _ZERO * lengths.max())[:, 0]
    sample = min(max(_SAMPLE, 4 * len(tangents)), len(columns))
    columns = columns[torch.linspace(0, len(columns) - 1, sample, dtype=torch.float64).round().long()]
    units = tangents[:, columns] / lengths[columns]
    alike = (units.T @ units).abs() > _PARALLEL
    # Of each class its first column, and how many there are.
    first = alike.to(torch.uint8).argmax(dim=0) == torch.arange(len(columns))
    counts = alike.sum(dim=0)
    order = sorted(torch.nonzero(first)[:, 0].tolist(), key=lambda k: (-int(counts[k]), k))
    for threshold in (1e-2, 1e-5):
        chosen: list[int] = []
        span = torch.zeros_like(tangents[:, : len(tangents)]).T
        for k in order:
            rest = units[:, k] - (span @ units[:, k]) @ span
            if float(rest.norm()) > threshold:
                span[len(chosen)] = rest / rest.norm()
                chosen.append(int(columns[k]))
            if len(chosen) == len(tangents):
                return chosen
    raise AssertionError("the tangents of a symmetry are independent")


def _left_null_space(matrix: Tensor) -> Tensor:
    """Return orthonormal rows w with w @ matrix = 0, for a matrix with entries of order one."""
    if matrix.shape[1] == 0:
        return torch.eye(len(matrix), dtype=matrix.dtype)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=True)
    rows: Tensor = left[:, int((values > _ZERO).sum()) :].T
    return rows


def _rank(matrix: Tensor) -> int:
    return int((torch.linalg.svdvals(matrix) > _ZERO).sum())


def _beyond(rows: Tensor, span: Tensor) -> Tensor:
    """Return what is left of rows outside the span of orthonormal rows."""
    return rows - (rows @ span.T) @ span
