r"""Mirrors: reflections of the parameters that leave the loss unchanged, and the states they leave in place.

A reflection :math:`R=I-2OO^T`, with orthonormal columns O, has the fixed states :math:`O^T\theta=0`. If it
leaves the loss of every sample unchanged, then on these states no sample's gradient points out of them and
the Hessian does not mix the two sides: gradient descent that starts there stays there, whatever the noise.
Such a state has lost what the symmetry tells apart: two equal units, a unit without weights, a lower rank.

Momentum and weight decay change nothing in this. Adam and AdamW are trapped by a mirror that permutes
coordinates or flips their signs, as a swap of units and a sign flip do; a generic rotation mixes coordinates,
which Adam scales one by one, and does not trap it.

Source: arXiv 2309.16932 (stationarity, Hessian) and 2502.05300 (symmetry-breaking distance); re-derived.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import Params, from_vector, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.kinds import GeneralLinear, Permutation, Rotation, SignFlip, Symmetry

# Orthonormality and orthogonality hold to rounding in float32 or are off by a number of order one.
ROUNDING = 1e-5
PROBES = 4  # random directions in which the Hessian is compared with its mirror image


@dataclass(frozen=True, eq=False)
class Mirror:
    r"""A linear, orthogonal reflection :math:`R=R^{-1}` of the parameters.

    Args:
        reflection: maps parameters to their mirror image; what it does not touch it passes on.
        parameters: names of those that it touches.

    The normal (0.6, -0.8) reflects (5, 0) to (1.4, 4.8):

    >>> mirror = Mirror.from_normals({"w": torch.tensor([[0.6], [-0.8]], dtype=torch.float64)})
    >>> theta = {"w": torch.tensor([5.0, 0.0], dtype=torch.float64)}
    >>> mirror.reflect(theta)["w"].round(decimals=9).tolist(), round(mirror.distance(theta), 9)
    ([1.4, 4.8], 3.0)
    """

    reflection: Callable[[Params], Mapping[str, Tensor]]
    parameters: tuple[str, ...]

    @classmethod
    def from_normals(cls, normals: Mapping[str, Tensor]) -> "Mirror":
        r"""Return the mirror of explicit normal vectors O.

        Args:
            normals: for each parameter touched, its rows of O, shape (\*shape of the parameter, k).

        Raises:
            InputError: nothing given, numbers of columns that differ, or columns that are not orthonormal.
        """
        columns = {tensor.shape[-1] if tensor.ndim else 0 for tensor in normals.values()}
        if len(columns) != 1 or 0 in columns:
            raise InputError(
                f"normals must hold the same number k >= 1 of columns for each parameter, got {columns}"
            )
        basis = torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in normals.values()])
        error = float((basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)).abs().max())
        if not error <= ROUNDING:
            raise InputError(f"normals must have orthonormal columns, got O^T O off by {error:.3g}")

        def reflection(params: Params) -> dict[str, Tensor]:
            touched = _select(params, tuple(normals))
            vector = to_vector(touched)
            onto = basis.to(vector.dtype)
            return {**params, **from_vector(vector - 2 * onto @ (onto.T @ vector), touched)}

        return cls(reflection, tuple(normals))

    def reflect(self, params: Params) -> dict[str, Tensor]:
        r"""Return :math:`(I-2OO^T)\theta`.

        Raises:
            InputError: a parameter that the mirror touches is missing.
        """
        _select(params, self.parameters)
        return dict(self.reflection(params))

    def project(self, params: Params) -> dict[str, Tensor]:
        r"""Return the nearest state that the mirror leaves in place, :math:`(I-OO^T)\theta`."""
        image = self.reflect(params)
        return {**params, **{name: (params[name] + image[name]) / 2 for name in self.parameters}}

    def normal_part(self, params: Params) -> dict[str, Tensor]:
        r"""Return :math:`OO^T\theta` of the parameters touched."""
        image = self.reflect(params)
        return {name: (params[name] - image[name]) / 2 for name in self.parameters}

    def distance(self, params: Params) -> float:
        r"""Return :math:`\|O^T\theta\|`, the distance to the nearest fixed state."""
        return float(to_vector(self.normal_part(params)).norm())

    def normal_basis(self, params: Params) -> "NormalBasis":
        """Return an orthonormal basis O of the directions that change sign, float64.

        Built from the images of the coordinates that the mirror moves, of which a swap or a sign flip moves
        only those of the units concerned.

        Args:
            params: give names and shapes; their values do not matter.
        """
        like = {
            name: torch.zeros_like(value, dtype=torch.float64)
            for name, value in _select(params, self.parameters).items()
        }
        generator = torch_generator(0, "mirror", "coordinates")
        size = sum(value.numel() for value in like.values())
        probe = torch.randn(size, generator=generator, dtype=torch.float64)
        moved = self._normal_vector(probe, like).abs() > 1e-12  # rounding of those that stay
        positions = torch.nonzero(moved).flatten()
        columns = []
        for position in positions.tolist():
            coordinate = torch.zeros(size, dtype=torch.float64)
            coordinate[position] = 1.0
            columns.append(self._normal_vector(coordinate, like)[positions])
        projector = torch.stack(columns, dim=1) if columns else torch.zeros(0, 0, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(projector)  # eigenvalues 0 and 1
        return NormalBasis(vectors[:, values > 0.5], positions, like)

    def _normal_vector(self, vector: Tensor, like: Params) -> Tensor:
        return to_vector(self.normal_part(from_vector(vector, like)))


@dataclass(frozen=True, eq=False)
class NormalBasis:
    """An orthonormal basis of the directions normal to a mirror.

    Args:
        vectors: shape (coordinates that move, k).
        positions: of these coordinates in the vector of the parameters touched.
        like: the parameters touched; names and shapes.
    """

    vectors: Tensor
    positions: Tensor
    like: Params

    @property
    def dimension(self) -> int:
        """Number k of normal directions."""
        return self.vectors.shape[1]

    def embed(self, coordinates: Tensor) -> dict[str, Tensor]:
        """Return O z, by parameter touched, for coordinates z of shape (k,)."""
        size = sum(value.numel() for value in self.like.values())
        vector = torch.zeros(size, dtype=torch.float64)
        return from_vector(vector.index_add(0, self.positions, self.vectors @ coordinates), self.like)

    def coordinates(self, params: Params) -> Tensor:
        """Return the coordinates of the parameters, shape (k,)."""
        vector = to_vector(_select(params, tuple(self.like))).to(torch.float64)
        return self.vectors.T @ vector[self.positions]


def permutation_mirror(symmetry: Symmetry, i: int, j: int) -> Mirror:
    """Return the mirror that swaps the units i and j of a layer; equal units are its fixed states.

    Args:
        symmetry: the permutations of the layer, from :func:`~symdyn_core.symmetry.find.find_symmetries`.
        i: a unit.
        j: another unit.

    Raises:
        InputError: another kind of symmetry, or units that are not two of the layer's.

    >>> from symdyn_core.symmetry.units import Axis, Units
    >>> units = Units("0", 2, (Axis("w", 0),), (Axis("v", 1),))
    >>> swap = permutation_mirror(Permutation(units), 0, 1)
    >>> swap.project({"w": torch.tensor([[1.0], [3.0]]), "v": torch.tensor([[0.0, 4.0]])})
    {'w': tensor([[2.],
            [2.]]), 'v': tensor([[2., 2.]])}
    """
    size = _size(symmetry, Permutation)
    if i == j:
        raise InputError(f"i and j must be two units, got {i} twice")
    order = torch.arange(size)
    order[_unit(i, size)], order[_unit(j, size)] = j, i
    return _mirror(symmetry, order)


def sign_mirror(symmetry: Symmetry, i: int) -> Mirror:
    """Return the mirror that flips the sign of all weights of unit i; a unit without weights is fixed.

    Args:
        symmetry: the sign flips of the layer, from :func:`~symdyn_core.symmetry.find.find_symmetries`.
        i: a unit.

    Raises:
        InputError: another kind of symmetry, or no unit of the layer.
    """
    size = _size(symmetry, SignFlip)
    signs = torch.ones(size, dtype=torch.float64)
    signs[_unit(i, size)] = -1.0
    return _mirror(symmetry, signs)


def rotation_mirror(symmetry: Symmetry | str, direction: Tensor, *, axis: int = 0) -> Mirror:
    r"""Return the mirror of a direction n between units, :math:`W\to(I-2nn^T)W`; its fixed states lack n.

    Args:
        symmetry: general linear maps or rotations of a layer's units, of which every reflection is one; or
            the name of a parameter whose rows are reflected by themselves.
        direction: n, shape (units,); of any length but zero.
        axis: for a named parameter, the axis along which its units lie.

    Raises:
        InputError: another kind of symmetry, one that acts through the gain of a normalisation (not linear in
            the parameters), or a direction that is zero, of the wrong length or not among those turned.

    >>> mirror = rotation_mirror("w", torch.tensor([1.0, 1.0]))
    >>> mirror.project({"w": torch.tensor([[3.0], [1.0]])})["w"].round(decimals=6).tolist()
    [[1.0], [-1.0]]
    """
    n = torch.as_tensor(direction).to(torch.float64)
    if n.ndim != 1 or not bool(torch.isfinite(n).all()) or not float(n.norm()) > 0:
        raise InputError(f"direction must be a finite vector that is not zero, got {direction}")
    n = n / n.norm()
    if not isinstance(symmetry, str):
        _check_direction(symmetry, n)
        return _mirror(symmetry, torch.eye(len(n), dtype=torch.float64) - 2 * torch.outer(n, n))
    name = symmetry

    def reflection(params: Params) -> dict[str, Tensor]:
        rows = params[name].movedim(axis, 0)
        if rows.shape[0] != len(n):
            shape = tuple(params[name].shape)
            raise InputError(f"axis {axis} of {name!r} must have {len(n)} entries, got shape {shape}")
        unit = n.to(rows.dtype)
        along = torch.tensordot(unit, rows, dims=1)
        return {**params, name: (rows - 2 * torch.tensordot(unit, along, dims=0)).movedim(0, axis)}

    return Mirror(reflection, (name,))


@dataclass(frozen=True)
class MirrorCheck:
    """How well a mirror stands the test on a loss; the first three are zero up to rounding if it holds.

    Args:
        invariance: change of the loss under reflection.
        normal_gradient: norm of the gradient across the mirror, at the projected parameters.
        commutator: largest norm of (PH - HP)v over random unit vectors v, at the projected parameters.
        gradient: norm of the whole gradient before projection: what `normal_gradient` is to be compared with.
        curvature: largest norm of Hv over the same v: what `commutator` is to be compared with.
    """

    invariance: float
    normal_gradient: float
    commutator: float
    gradient: float
    curvature: float


def check_mirror(loss_fn: Callable[[Params], Tensor], theta: Params, mirror: Mirror) -> MirrorCheck:
    r"""Test whether a reflection is a mirror symmetry of a loss, and what that says of its fixed states.

    Where :math:`\ell(R\theta)=\ell(\theta)` for all parameters, at :math:`R\theta=\theta` the gradient obeys
    :math:`O^T\nabla\ell=0` and the Hessian commutes with :math:`P=OO^T`.

    Args:
        loss_fn: maps parameters by name to the loss, twice differentiable at the projected parameters.
        theta: parameters at which the loss is compared with its mirror image; generic ones.
        mirror: the reflection.

    Raises:
        InputError: the loss is not one number, or a parameter is missing.

    Source: arXiv 2309.16932, theorem on mirror symmetries (stationarity, Hessian); re-derived.

    >>> even = Mirror.from_normals({"w": torch.tensor([[1.0], [0.0]], dtype=torch.float64)})
    >>> theta = {"w": torch.tensor([2.0, 1.0], dtype=torch.float64)}
    >>> check_mirror(lambda p: (p["w"][0] ** 2 - p["w"][1]) ** 2, theta, even).normal_gradient
    0.0
    """
    theta = {name: value.detach() for name, value in theta.items()}

    def loss(vector: Tensor) -> Tensor:
        value = loss_fn(from_vector(vector, theta))
        if value.numel() != 1:
            raise InputError(f"the loss must be one number, got shape {tuple(value.shape)}")
        return value.reshape(())

    def across(vector: Tensor) -> Tensor:
        changed = mirror.normal_part(from_vector(vector, theta))
        return to_vector({name: changed.get(name, torch.zeros_like(value)) for name, value in theta.items()})

    start = to_vector(theta)
    invariance = float((loss(to_vector(mirror.reflect(theta))) - loss(start)).abs())
    slope = _gradient(loss, start)
    fixed = to_vector(mirror.project(theta))
    gradient = _gradient(loss, fixed)
    generator = torch_generator(0, "mirror", "probes")
    commutator, curvature = 0.0, 0.0
    for _ in range(PROBES):
        probe = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start.dtype)
        probe = probe / probe.norm()
        image = _hessian_vector(loss, fixed, probe)
        crossed = across(image) - _hessian_vector(loss, fixed, across(probe))
        commutator = max(commutator, float(crossed.norm()))
        curvature = max(curvature, float(image.norm()))
    return MirrorCheck(invariance, float(across(gradient).norm()), commutator, float(slope.norm()), curvature)


@dataclass(frozen=True)
class SplitHessian:
    """The Hessian in a basis of symmetric and of broken directions.

    Args:
        symmetric: block along the symmetric states, shape (d_s, d_s).
        broken: block out of them, shape (d_b, d_b); a negative eigenvalue makes the symmetric state a saddle
            that any perturbation leaves, at the rate of that eigenvalue.
        cross: what mixes the two, shape (d_s, d_b); zero at a symmetric state.
    """

    symmetric: Tensor
    broken: Tensor
    cross: Tensor


@dataclass(frozen=True, eq=False)
class GroupProjector:
    r"""The orthogonal projector :math:`P_G` on the states that a group of orthogonal maps leaves in place.

    Args:
        average: maps parameters to the mean of their images under the group.

    Source: arXiv 2502.05300; the symmetry-breaking distance :math:`\Delta_G` is named there, its formula
    :math:`\|(I-P_G)\theta\|` is derived.

    >>> cycle = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    >>> rotations = GroupProjector.from_matrices([cycle])
    >>> theta = {"w": torch.tensor([3.0, 0.0, 0.0])}
    >>> rotations.project(theta)["w"].round(decimals=6).tolist(), round(rotations.delta(theta), 6)
    ([1.0, 1.0, 1.0], 2.44949)
    """

    average: Callable[[Params], Mapping[str, Tensor]]

    @classmethod
    def from_matrices(cls, matrices: Sequence[Tensor]) -> "GroupProjector":
        """Return the projector of the group that these orthogonal matrices generate.

        Args:
            matrices: each of shape (d, d), acting on all parameters as one vector, in the order of the
                mapping. Generators are enough; the average over the group is the projector on what all of
                them leave in place.

        Raises:
            InputError: none given, shapes that differ, or a matrix that is not orthogonal: a group like the
                rescalings is not compact and has no average.
        """
        shapes = {tuple(matrix.shape) for matrix in matrices}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != shape[1]:
            raise InputError("matrices must be one or more square ones of one shape")
        stack = torch.stack([matrix.to(torch.float64) for matrix in matrices])
        identity = torch.eye(shape[0], dtype=torch.float64)
        error = float((stack @ stack.mT - identity).abs().max())
        if not error <= ROUNDING:
            raise InputError(f"matrices must be orthogonal, got g g^T off by {error:.3g}")
        # What every generator leaves in place is the null space of the sum of (g - 1)^T (g - 1).
        moved = ((stack - identity).mT @ (stack - identity)).sum(dim=0)
        values, vectors = torch.linalg.eigh(moved)
        fixed = vectors[:, values < ROUNDING]

        def average(params: Params) -> dict[str, Tensor]:
            vector = to_vector(params)
            if vector.shape != (shape[0],):
                raise InputError(f"parameters must have {shape[0]} entries in all, got {len(vector)}")
            basis = fixed.to(vector.dtype)
            return from_vector(basis @ (basis.T @ vector), params)

        return cls(average)

    @classmethod
    def swap(cls, symmetry: Symmetry, i: int, j: int) -> "GroupProjector":
        """Return the projector on states where two units are equal; see :func:`permutation_mirror`."""
        return cls(permutation_mirror(symmetry, i, j).project)

    @classmethod
    def sign(cls, symmetry: Symmetry, i: int) -> "GroupProjector":
        """Return the projector on states where a unit has no weights; see :func:`sign_mirror`."""
        return cls(sign_mirror(symmetry, i).project)

    def project(self, params: Params) -> dict[str, Tensor]:
        """Return the nearest symmetric state."""
        return dict(self.average(params))

    def delta(self, params: Params) -> float:
        r"""Return the symmetry-breaking distance :math:`\Delta_G=\|(I-P_G)\theta\|`."""
        return float((to_vector(params) - to_vector(self.project(params))).norm())

    def split_hessian(self, hessian: Tensor, like: Params) -> SplitHessian:
        """Return the blocks of a Hessian along the symmetric states and out of them.

        Args:
            hessian: shape (d, d), all parameters as one vector, in the order of `like`.
            like: parameters; names, order and shapes.

        Raises:
            InputError: the Hessian has another shape.
        """
        size = len(to_vector(like))
        if hessian.shape != (size, size):
            raise InputError(f"hessian must have shape ({size}, {size}), got {tuple(hessian.shape)}")
        identity = torch.eye(size, dtype=hessian.dtype)
        projector = torch.stack([to_vector(self.project(from_vector(row, like))) for row in identity])
        values, vectors = torch.linalg.eigh((projector + projector.T) / 2)  # eigenvalues 0 and 1
        symmetric, broken = vectors[:, values > 0.5], vectors[:, values <= 0.5]
        return SplitHessian(
            symmetric.T @ hessian @ symmetric, broken.T @ hessian @ broken, symmetric.T @ hessian @ broken
        )


def _mirror(symmetry: Symmetry, element: Tensor) -> Mirror:
    def reflection(params: Params) -> dict[str, Tensor]:
        dtype = params[symmetry.parameters[0]].dtype
        return symmetry.act(params, element.to(dtype) if element.is_floating_point() else element)

    return Mirror(reflection, symmetry.parameters)


def _select(params: Params, names: tuple[str, ...]) -> dict[str, Tensor]:
    missing = [name for name in names if name not in params]
    if missing:
        raise InputError(f"the mirror touches {missing[0]!r}, which is not among {', '.join(params)}")
    return {name: params[name] for name in names}


def _size(symmetry: Symmetry, kind: type[Permutation] | type[SignFlip]) -> int:
    if not isinstance(symmetry, kind):
        raise InputError(f"symmetry must be a {kind.kind}, got {getattr(symmetry, 'kind', symmetry)}")
    return symmetry.units.size


def _check_direction(symmetry: Symmetry, n: Tensor) -> None:
    if not isinstance(symmetry, GeneralLinear | Rotation):
        raise InputError(f"symmetry must be general linear or a rotation, got {symmetry.kind}")
    if len(n) != symmetry.units.size:
        raise InputError(f"direction must have {symmetry.units.size} entries, one per unit, got {len(n)}")
    if isinstance(symmetry, Rotation):
        if any(place.gain is not None for place in symmetry.units.axes):
            raise InputError(f"the rotation of {symmetry.layer!r} must not act through a gain; fold it first")
        if symmetry.fixes_ones and not float(n.sum().abs()) <= ROUNDING * len(n):
            raise InputError(f"direction must be orthogonal to (1, ..., 1), got sum {float(n.sum()):.3g}")


def _unit(unit: int, size: int) -> int:
    if not 0 <= unit < size:
        raise InputError(f"a unit must be in [0, {size}), got {unit}")
    return unit


def _gradient(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    return cast(Tensor, torch.func.grad(loss)(point))


def _hessian_vector(loss: Callable[[Tensor], Tensor], point: Tensor, vector: Tensor) -> Tensor:
    return _gradient(lambda at: torch.dot(_gradient(loss, at), vector), point)
