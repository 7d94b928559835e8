r"""Linear constraints that training imposes exactly at a finite strength, by a symmetry built for it.

A constraint $O^T\theta=0$ on a parameter, $O^TO=1$, $P=OO^T$. Write $\theta=(1-P)\,w+O\,(u\odot v)$: the loss
gets a mirror symmetry whose symmetric states are those that satisfy the constraint. Decay $\alpha$ on $u,v$
alone makes it

$$\ell(\theta)+\alpha\,\|O^T\theta\|_1,$$

an exact penalty: where the constrained minimum has $\|O^T\nabla\ell\|_\infty<\alpha$ the constraint holds
*exactly*, and the rest of $\theta$ is what it would be under the hard constraint, with no bias. Where the
gradient is larger, the data contradict the constraint by more than $\alpha$ pays for, and it is broken. One
scalar in front of a vector, $O\,(s\,v)$, makes it all-or-nothing: $\alpha\|O^T\theta\|_2$.

A quadratic penalty does neither: it breaks every constraint a little, and the more the data, the more. For a
constraint that has to hold whatever the data say, build it into the model instead; this one is for those that
the data may overrule. As any norm in a network it can be evaded by rescaling where the next layer is not
decayed (see :mod:`symdyn_core.symmetry.sparsity`), and only decay inside the gradient counts (no AdamW).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.symmetry.factors import (
    Factorization,
    Init,
    check_factorizable,
    check_finite,
    check_start,
    check_thresholds,
    factor_groups,
    factorized,
    select,
    weight_gradients,
)
from symdyn_core.symmetry.penalty import group_norms

_ORTHONORMAL = 1e-5  # deviation of O^T O from one that single precision explains


def dcs(
    module: nn.Module,
    name: str,
    normals: Tensor,
    *,
    alpha: float,
    group: bool = False,
    axis: int | None = None,
    init: Init = "pretrained",
    scale: float | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    r"""Write a parameter so that decaying its factors is an exact penalty on a linear constraint.

    $$\theta=(1-OO^T)\,w+O\,(u\odot v):\quad
      \min_{u,v}\tfrac\alpha2(\|u\|^2+\|v\|^2)=\alpha\|O^T\theta\|_1;\qquad
      O\,(s\,v):\quad \alpha\|O^T\theta\|_2$$

    The constraint holds at the minimum if and only if ``alpha`` is at least :func:`dcs_threshold`. The
    elementwise penalty depends on the basis of the constraint; that of a group does not.

    Args:
        module: model or layer; changed in place, its interface stays.
        name: the parameter, by its full name.
        normals: $O$ with orthonormal columns: shape (n, k), n the parameter's number of entries, flattened as
            ``reshape(-1)`` does, or the length of ``axis``. See :func:`linear_constraint`,
            :func:`equal_entries`, :func:`antisymmetric`.
        alpha: strength, > 0.
        group: whether all of $O^T\theta$ vanishes together or not at all.
        axis: contract $O$ with this axis of the parameter, once for every index of the others: $O\otimes 1$
            on the flattened parameter, without its size.
        init: ``"pretrained"`` keeps the parameter: $u=\text{scale}$, $v=O^T\theta/\text{scale}$; ``"random"``
            keeps $(1-P)\theta$ and draws $u,v$ from $N(0,\text{scale}^2)$.
        scale: magnitude of the start, > 0; by default 1 (pretrained) or 0.3 (random).
        seed: of the random start.

    Returns:
        Parameter groups of the whole module for ``torch.optim``: $u,v$ with ``weight_decay=alpha``, all
        others ($w$ too) without, so that these follow the optimizer's own default.

    Raises:
        InputError: a value out of range; no such parameter, or one that is frozen, tied or already
            parametrized; columns that do not fit or are not orthonormal; factors that would start equal.

    Source:
        arXiv:2309.16932 names the method; the form, the penalty and its threshold are re-derived.

    Two weights that the data want at 1.2 and 1.0 become equal, at their mean, without shrinking:

    >>> layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.3, -0.2]])
    >>> loss = lambda: 0.5 * (layer.weight - torch.tensor([[1.2, 1.0]])).square().sum()
    >>> optimizer = torch.optim.SGD(dcs(layer, "weight", equal_entries([0, 0]), alpha=0.5), lr=0.2)
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     loss().backward()
    ...     optimizer.step()
    >>> round(dcs_threshold(layer, loss)["weight"], 4)  # |1.2 - 1.0| / sqrt(2)
    0.1414
    >>> print(merge_dcs(layer))
    weight: 0 of 1 constraints broken
    >>> [round(value, 4) for value in layer.weight[0].tolist()]
    [1.1, 1.1]
    """
    scale = check_start(alpha, init, scale)
    weight, *others = select(module, [name])
    if others:
        names = ", ".join(each.name for each in (weight, *others))
        raise InputError(f"name must be that of one parameter, got {name!r} for {names}")
    if len(weight.holders) > 1:
        names = " and ".join(holder.name for holder in weight.holders)
        raise InputError(f"{names} are one tied parameter; untie them to constrain one")
    check_factorizable(weight)
    value = weight.value.detach()
    _check_normals(normals, value, axis)
    by = _Constraint(weight.name, alpha, normals.to(value), axis, group, scale)
    if init == "pretrained":
        by.right_inverse(value)  # refuses a trap before anything is changed
    else:
        with torch.no_grad():
            weight.value.copy_(by.project(value))
    weight.factorize(by)
    if init == "random":
        weight.draw(scale, seed, "dcs")
    return factor_groups(module)


@dataclass(frozen=True)
class ConstraintViolation:
    r"""How a constraint came out: ``broken`` of ``total``; the largest of $|O^T\theta|$ before rounding."""

    name: str
    violation: float
    broken: int
    total: int

    def __str__(self) -> str:
        largest = f", largest violation {self.violation:.3g}" if self.broken else ""
        return f"{self.name}: {self.broken} of {self.total} constraints broken{largest}"


@dataclass(frozen=True)
class ConstraintReport:
    """What :func:`merge_dcs` found, parameter by parameter."""

    parameters: tuple[ConstraintViolation, ...]

    @property
    def holds(self) -> bool:
        """Whether every constraint holds."""
        return not any(parameter.broken for parameter in self.parameters)

    def __str__(self) -> str:
        return "\n".join(map(str, self.parameters))


def merge_dcs(module: nn.Module, tau: float = 1e-3, *, floor: float = 1e-8) -> ConstraintReport:
    r"""Turn constrained parameters back into plain ones and say which constraints hold.

    A component of $O^T\theta$ (or the whole, if it is a group) that is at most ``tau`` times the parameter's
    root mean square becomes zero, up to rounding: training approaches zero exponentially and never arrives.

    Args:
        module: a module that :func:`dcs` has changed; changed back in place, with new ``Parameter`` objects.
        tau: relative threshold, in [0, 1).
        floor: absolute threshold >= 0.

    Raises:
        InputError: a threshold out of range, a parameter that is not finite, nothing to merge.

    >>> layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, 1.0]])
    >>> _ = dcs(layer, "weight", equal_entries([0, 0]), alpha=0.1)
    >>> print(merge_dcs(layer))
    weight: 1 of 1 constraints broken, largest violation 1.41
    """
    check_thresholds(tau, floor)
    found = list(factorized(module, _Constraint))
    check_finite(found)
    outcomes = []
    for weight in found:
        by, value = weight.by, weight.value.detach()
        components = by.components(value)
        sizes = by.sizes(components)
        keep = sizes > max(floor, tau * float(value.square().mean().sqrt()))
        weight.merge(by.project(value) + by.fold(torch.where(keep, components, 0.0), value))
        outcomes.append(
            ConstraintViolation(weight.name, float(sizes.max()), int(keep.sum()), int(keep.numel()))
        )
    return ConstraintReport(tuple(outcomes))


def constraint_violation(module: nn.Module) -> dict[str, float]:
    r"""Return $\|O^T\theta\|_\infty$ ($\|O^T\theta\|_2$ of a group) of each constrained parameter by name.

    Raises:
        InputError: nothing is constrained.

    >>> layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.25, -0.5]])
    >>> _ = dcs(layer, "weight", linear_constraint([[0.0, 1.0]]), alpha=0.1)
    >>> constraint_violation(layer)
    {'weight': 0.5}
    """
    return {
        weight.name: float(weight.by.sizes(weight.by.components(weight.value.detach())).max())
        for weight in factorized(module, _Constraint)
    }


def dcs_threshold(module: nn.Module, loss_fn: Callable[[], Tensor]) -> dict[str, float]:
    r"""Return the strength from which a constraint holds, for each constrained parameter by name.

    $$\|O^T\nabla\ell\|_\infty\quad\text{(elementwise)},\qquad\|O^T\nabla\ell\|_2\quad\text{(group)}$$

    taken with all constraints imposed and everything else as it is. It is the threshold where the rest is at
    its optimum under the constraint: after training with an ``alpha`` above it. Elsewhere it is a guess.

    Args:
        module: a module that :func:`dcs` has changed; left as it was.
        loss_fn: evaluates the loss without penalty, on the module as it is.

    Raises:
        InputError: nothing is constrained, or a parameter is frozen.

    Source:
        arXiv:2309.16932, re-derived: zero is a subgradient of $\ell+\alpha\|O^T\theta\|$ across the
        constraint. Where the loss is not convex it is the condition of a local minimum.

    >>> layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.25, -0.5]])
    >>> _ = dcs(layer, "weight", linear_constraint([[0.0, 1.0]]), alpha=0.1)
    >>> dcs_threshold(layer, lambda: layer.weight @ torch.tensor([2.0, -3.0]))
    {'weight': 3.0}
    """
    found = list(factorized(module, _Constraint))
    vectors = [weight.originals[-1] for weight in found]
    before = [vector.detach().clone() for vector in vectors]
    with torch.no_grad():
        for vector in vectors:
            vector.zero_()
    try:
        gradients = weight_gradients(found, loss_fn)
    finally:
        with torch.no_grad():
            for vector, value in zip(vectors, before, strict=True):
                vector.copy_(value)
    return {
        weight.name: float(weight.by.sizes(weight.by.components(gradient)).max())
        for weight, gradient in zip(found, gradients, strict=True)
    }


def linear_constraint(equations: Any) -> Tensor:
    r"""Return normals of the constraint $A\theta=0$: an orthonormal basis of the rows of $A$.

    Args:
        equations: $A$, shape (m, n), a tensor or nested lists.

    Returns:
        Shape (n, rank of A), float64.

    Raises:
        InputError: not a finite matrix, or zero.

    Equal filters under the reversal $R$ of an axis, that is $(1-R)\theta=0$:

    >>> reversal = torch.eye(4).flip(0)
    >>> linear_constraint(torch.eye(4) - reversal).shape
    torch.Size([4, 2])
    """
    matrix = torch.as_tensor(equations, dtype=torch.float64)
    if matrix.ndim != 2 or matrix.numel() == 0 or not torch.isfinite(matrix).all():
        raise InputError(f"equations must be a finite matrix (m, n), got shape {tuple(matrix.shape)}")
    _, singular, rows = torch.linalg.svd(matrix, full_matrices=False)
    # The usual numerical rank: rounding makes singular values of this size.
    rank = int((singular > max(matrix.shape) * torch.finfo(torch.float64).eps * singular[0]).sum())
    if rank == 0:
        raise InputError("equations must not all be zero")
    basis: Tensor = rows[:rank].T.contiguous()
    return basis


def equal_entries(labels: Any) -> Tensor:
    r"""Return normals of the constraint that entries with the same label are equal.

    Args:
        labels: integers, of the parameter's shape or one for each index of an axis; a label that occurs once
            leaves its entry free.

    Returns:
        Shape (number of labels, that number minus that of different ones), float64. Each class of $m$ entries
        contributes $m-1$ contrasts $(e_1+\dots+e_j-j\,e_{j+1})/\sqrt{j(j+1)}$.

    Raises:
        InputError: labels that are not integers, or all different.

    Two equal rows of three are ``equal_entries([0, 0, 1])`` with ``axis=0``; a circulant matrix is

    >>> i = torch.arange(3)
    >>> equal_entries((i[:, None] - i) % 3).shape
    torch.Size([9, 6])
    """
    flat = torch.as_tensor(labels).reshape(-1)
    if flat.is_floating_point() or flat.is_complex() or flat.dtype is torch.bool:
        raise InputError(f"labels must be integers, got {flat.dtype}")
    columns = []
    for label in sorted(set(flat.tolist())):
        members = torch.nonzero(flat == label).reshape(-1)
        for j in range(1, len(members)):
            column = torch.zeros(len(flat), dtype=torch.float64)
            column[members[:j]] = (j * (j + 1)) ** -0.5
            column[members[j]] = -j * (j * (j + 1)) ** -0.5
            columns.append(column)
    if not columns:
        raise InputError(f"labels must contain some label twice, got {len(flat)} different ones")
    return torch.stack(columns, dim=1)


def antisymmetric(size: int) -> Tensor:
    r"""Return normals of the constraint that a square matrix is antisymmetric, $W+W^T=0$.

    Args:
        size: rows of the matrix, >= 1.

    Returns:
        Shape (size², size (size + 1) / 2), float64: the basis $e_{ii}$, $(e_{ij}+e_{ji})/\sqrt2$ of the
        symmetric matrices.

    Raises:
        InputError: size below one.

    >>> antisymmetric(1).tolist()
    [[1.0]]
    >>> antisymmetric(3).shape
    torch.Size([9, 6])
    """
    if size < 1:
        raise InputError(f"size must be at least 1, got {size}")
    basis = torch.zeros(size, size, size * (size + 1) // 2, dtype=torch.float64)
    for k, (i, j) in enumerate(torch.triu_indices(size, size).T.tolist()):
        basis[i, j, k] = basis[j, i, k] = 1.0 if i == j else 0.5**0.5
    return basis.reshape(size * size, -1)


class _Constraint(Factorization):
    """The parametrization: originals are $w$, the mask and the vector."""

    normals: Tensor

    def __init__(
        self, name: str, alpha: float, normals: Tensor, axis: int | None, group: bool, scale: float
    ) -> None:
        super().__init__(name, alpha, scale)
        self.axis, self.group = axis, group
        self.register_buffer("normals", normals)

    def forward(self, free: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        self.watch(free, mask, vector)
        return free + self.fold(mask * vector - self.components(free), free)

    def right_inverse(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        components = self.components(parameter)
        mask, vector = self.split(self.sizes(components), components)
        return self.project(parameter), mask, vector

    def components(self, parameter: Tensor) -> Tensor:
        """Return O^T theta, shape (k, entries of the other axes)."""
        if self.axis is None:
            return self.normals.T @ parameter.reshape(-1, 1)
        return self.normals.T @ parameter.movedim(self.axis, 0).flatten(1)

    def fold(self, components: Tensor, like: Tensor) -> Tensor:
        """Return O times the components, of the parameter's shape."""
        product = self.normals @ components
        if self.axis is None:
            return product.reshape(like.shape)
        moved = like.movedim(self.axis, 0).shape
        return product.reshape(moved).movedim(0, self.axis)

    def project(self, parameter: Tensor) -> Tensor:
        """Return (1 - P) theta."""
        return parameter - self.fold(self.components(parameter), parameter)

    def sizes(self, components: Tensor) -> Tensor:
        """Return the norm of what vanishes as one: each component, or all."""
        if self.group:
            norm: Tensor = torch.linalg.vector_norm(components)
            return norm.reshape(1, 1)
        return group_norms(components, None)


def _check_normals(normals: Tensor, value: Tensor, axis: int | None) -> None:
    if axis is not None and not -value.ndim <= axis < value.ndim:
        raise InputError(f"axis must be in [{-value.ndim}, {value.ndim - 1}], got {axis}")
    length, what = (value.numel(), "entries") if axis is None else (value.shape[axis], f"along axis {axis}")
    if normals.ndim != 2 or normals.shape[0] != length or not 1 <= normals.shape[1] <= length:
        raise InputError(
            f"normals must have shape ({length} {what}, k), k in [1, {length}], got {tuple(normals.shape)}"
        )
    columns = normals.detach().to(torch.float64)
    deviation = (columns.T @ columns - torch.eye(columns.shape[1]).to(columns)).abs().max()
    if not deviation <= _ORTHONORMAL:  # NaN is not
        raise InputError(
            f"normals must have orthonormal columns, got O^T O that differs from 1 by {deviation:.3g}; "
            "linear_constraint(normals.T) gives an orthonormal basis of the same constraint"
        )
