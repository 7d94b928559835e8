r"""The Hessian of a loss, matrix-free: products with vectors, extreme eigenvalues, trace.

:math:`Hv=\nabla_\theta(\nabla_\theta L\cdot v)` costs about two gradients and no more memory than one, so the
curvature of a model of any size can be looked at without ever forming its matrix. The same for a minibatch,
whose Hessian :math:`\hat H` is what multiplies a small deviation in one step of SGD.

The extreme eigenvalues come from Lanczos iteration with implicit restarts (ARPACK); the trace from
Hutchinson's estimator after the dominant directions are taken out exactly.

Source: B. Pearlmutter, Neural Computation 6 (1994), the product; R. Meyer et al., arXiv 2010.09649 (Hutch++),
the trace; arXiv 2303.13093 for its use in stability.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from symdyn_core.errors import InputError
from symdyn_core.estimate import Estimate, mean
from symdyn_core.mean_loss import check_mean_loss
from symdyn_core.params import (
    FrozenModel,
    LossFunction,
    Params,
    check_data,
    from_vector,
    to_float64,
    to_vector,
)
from symdyn_core.random import torch_generator

# Below this the matrix itself is cheaper than an iteration.
DENSE_DIMENSION = 64
# What is computed at once; the rest waits, so that memory stays bounded.
SAMPLES_AT_ONCE = 256
VECTORS_AT_ONCE = 64  # of a small model; those of a large one are faster one by one
LARGE = 10_000  # parameters
CHECK_SAMPLES = 8  # of the check of the loss, at most


class Curvature:
    r"""The Hessian :math:`H=\nabla^2_\theta L` of a mean loss at a model's parameters, in float64.

    Args:
        model: any module; copied, in evaluation mode, never changed.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        params: where the Hessian is taken, by name; the model's own parameters by default.
        chunk_size: samples at a time; all at once if left out.

    Attributes:
        dimension: number P of parameters; vectors are in the order of ``params.to_vector``.
        n_samples: number of samples the loss is the mean of.

    Raises:
        InputError: data that do not fit together, a model or loss that fails, a loss that is not one finite
            number, not the mean over samples, independent of the parameters, or without second derivative.

    The loss :math:`(wx)^2` at x = 3 has the curvature 18:

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.ones_(line.weight)
    >>> hessian = Curvature(line, nn.functional.mse_loss, torch.full((1, 1), 3.0), torch.zeros(1, 1))
    >>> hessian.dimension, hessian.matvec(torch.ones(1)).tolist(), hessian.lowest_eigenvalue()
    (1, [18.0], 18.0)
    """

    def __init__(
        self,
        model: FrozenModel | nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        targets: Tensor,
        *,
        params: Params | None = None,
        chunk_size: int | None = None,
    ) -> None:
        check_data(inputs, targets)
        if not callable(loss_fn):
            raise InputError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        self._frozen = model if isinstance(model, FrozenModel) else FrozenModel(model)
        self._loss_fn = loss_fn
        self._inputs, self._targets = to_float64(inputs), to_float64(targets)
        self._chunk_size = chunk_size
        own = self._frozen.params if params is None else params
        self._params = {name: value.detach().to(torch.float64) for name, value in own.items()}
        self._slopes: list[tuple[float, Tensor, Tensor]] | None = None
        if not self._params:
            raise InputError("the model must have parameters, got none")
        self._check_mean()
        self._check_differentiable()

    @property
    def dimension(self) -> int:
        """Number P of parameters."""
        return sum(value.numel() for value in self._params.values())

    @property
    def n_samples(self) -> int:
        """Number of samples the loss is the mean of."""
        return len(self._inputs)

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters at which the Hessian is taken, by name, float64."""
        return dict(self._params)

    def on(self, indices: Tensor) -> "Curvature":
        """Return the Hessian of the mean loss of some of the samples; model and data are shared.

        Args:
            indices: whole numbers in [0, n_samples), shape (batch_size,); a sample may come twice.

        Raises:
            InputError: no index, not whole numbers, or out of range.
        """
        indices = torch.as_tensor(indices)
        kind, shape = indices.dtype, tuple(indices.shape)
        if len(shape) != 1 or shape == (0,) or kind.is_floating_point or kind is torch.bool:
            raise InputError(f"indices must be a vector of whole numbers, got {kind} of shape {shape}")
        low, high = int(indices.min()), int(indices.max())
        if not 0 <= low <= high < self.n_samples:
            raise InputError(f"indices must be in [0, n_samples={self.n_samples}), got {low} to {high}")
        batch = copy.copy(self)
        batch._inputs, batch._targets = self._inputs[indices], self._targets[indices]
        batch._slopes = None
        return batch

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss, shape (P,)."""
        total = torch.zeros(self.dimension, dtype=torch.float64)
        for weight, slope, _ in self._gradients():
            total += weight * slope.detach()
        return total

    def matvec(self, vectors: Tensor) -> Tensor:
        """Return the product of the Hessian with one vector or with several at once.

        The gradient is kept with its graph after the first call, so that the next ones cost half.

        Args:
            vectors: shape (P,) or (P, k).

        Returns:
            The same shape, float64.

        Raises:
            InputError: another shape, or a loss without second derivative.
        """
        columns = self._columns(vectors)
        total = torch.zeros_like(columns)
        for weight, slope, point in self._gradients():
            if not slope.requires_grad:  # linear in the parameters
                continue
            total += weight * _second_derivative(slope, point, columns)
        return total.T.reshape(vectors.shape) if vectors.ndim == 2 else total.reshape(-1)

    def gauss_newton_matvec(self, vectors: Tensor) -> Tensor:
        r"""Return the product with the Gauss-Newton matrix :math:`J^T(\nabla^2_f\ell)J`.

        It is the part of the Hessian that is positive semi-definite for a convex loss, and all of it where
        the model is linear in its parameters.

        Args:
            vectors: shape (P,) or (P, k).

        Raises:
            InputError: another shape, or a model or loss that cannot be differentiated in this way.
        """
        columns = self._columns(vectors)
        total = torch.zeros_like(columns)
        for weight, inputs, targets in self._chunks():
            point = to_vector(self._params).requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):
                outputs = self._frozen(from_vector(point, self._params), inputs)
            values = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._loss_at(values, targets), values, create_graph=True)
            if not slope.requires_grad:
                continue
            # u -> J^T u is linear; the derivative of (J^T u) v by u is J v.
            dummy = torch.zeros_like(outputs, requires_grad=True)
            (pulled,) = torch.autograd.grad(outputs, point, dummy, create_graph=True)
            tangents = _second_derivative(pulled, dummy, columns)
            curved = torch.cat([_second_derivative(slope, values, row.unsqueeze(0)) for row in tangents])
            total += weight * _second_derivative(outputs, point, curved)
        return total.T.reshape(vectors.shape) if vectors.ndim == 2 else total.reshape(-1)

    def sample_blocks(self, directions: Tensor) -> Tensor:
        r"""Return the Hessian of every sample along some directions, :math:`O^TH_iO`.

        What the stability of SGD along these directions depends on: any minibatch's Hessian is a mean of
        them.

        Args:
            directions: shape (P, d), or (P,) for one; O is an orthonormal basis of their span, they
                themselves if orthonormal.

        Returns:
            Shape (n_samples, d, d), symmetric.

        Raises:
            InputError: directions of another shape, or not linearly independent.
        """
        basis = orthonormal_directions(directions, self._frozen)
        size = basis.shape[1]

        def loss(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
            moved = from_vector(to_vector(self._params) + basis @ z, self._params)
            outputs = torch.func.functional_call(self._frozen.module, moved, (x.unsqueeze(0),))
            return self._loss_fn(outputs, y.unsqueeze(0)).reshape(())

        of_sample = torch.func.jacrev(torch.func.jacrev(loss))
        origin = torch.zeros(size, dtype=torch.float64)
        pieces = []
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            chunks = (torch.split(data, SAMPLES_AT_ONCE) for data in (self._inputs, self._targets))
            for x, y in zip(*chunks, strict=True):
                try:
                    piece = torch.func.vmap(of_sample, in_dims=(None, 0, 0))(origin, x, y)
                except RuntimeError:  # not every operation has a batching rule
                    piece = torch.stack([of_sample(origin, *pair) for pair in zip(x, y, strict=True)])
                pieces.append(piece.detach())
        blocks = torch.cat(pieces)
        return (blocks + blocks.mT) / 2

    def dense(self) -> Tensor:
        """Return the whole matrix, shape (P, P), symmetric; for small models."""
        matrix = self.matvec(torch.eye(self.dimension, dtype=torch.float64))
        return (matrix + matrix.T) / 2

    def top_eigenvalues(self, k: int = 1, seed: int = 0, *, tolerance: float = 1e-8) -> tuple[Tensor, Tensor]:
        """Return the k eigenvalues of largest magnitude, largest first, and their eigenvectors.

        Args:
            k: in [1, P].
            seed: of the vector the iteration starts from.
            tolerance: relative accuracy of the eigenvalues.

        Returns:
            Values of shape (k,) and vectors of shape (P, k), orthonormal.

        Raises:
            InputError: k out of range, or a loss without second derivative.
        """
        values, vectors = self._extreme(k, "LM", seed, tolerance)
        order = torch.argsort(values.abs(), descending=True)
        return values[order], vectors[:, order]

    def lowest_eigenvalue(self, seed: int = 0, *, tolerance: float = 1e-8) -> float:
        """Return the smallest eigenvalue: negative at a saddle or a maximum."""
        return float(self._extreme(1, "SA", seed, tolerance)[0])

    def lowest_eigenvectors(
        self, k: int = 1, seed: int = 0, *, tolerance: float = 1e-8
    ) -> tuple[Tensor, Tensor]:
        """Return the k smallest eigenvalues, smallest first, and their eigenvectors: the ways down.

        Args:
            k: in [1, P].
            seed: of the vector the iteration starts from.
            tolerance: relative accuracy of the eigenvalues.

        Returns:
            Values of shape (k,) and vectors of shape (P, k), orthonormal.
        """
        values, vectors = self._extreme(k, "SA", seed, tolerance)
        order = torch.argsort(values)
        return values[order], vectors[:, order]

    def highest_eigenvalue(self, seed: int = 0, *, tolerance: float = 1e-8) -> float:
        """Return the largest eigenvalue, the sharpness of a minimum."""
        return float(self._extreme(1, "LA", seed, tolerance)[0])

    def trace(self, seed: int = 0, probes: int = 30, confidence: float = 0.95) -> Estimate:
        r"""Estimate the sum of the eigenvalues, with an interval.

        A third of the probes find a subspace Q in which the trace is taken exactly; the rest estimate what is
        left, :math:`\operatorname{tr}(I-QQ^T)H(I-QQ^T)`, by random signs (Hutch++). Exact for P <= probes.

        Args:
            seed: of the probes.
            probes: products with the Hessian, at least 6.
            confidence: of the interval.

        Raises:
            InputError: fewer than 6 probes, or a loss without second derivative.
        """
        if probes < 6:
            raise InputError(f"probes must be at least 6, got {probes}")
        if self.dimension <= probes:
            value = float(self.dense().trace())
            return Estimate(value, value, value, self.dimension)
        generator = torch_generator(seed, "curvature", "trace")
        third = probes // 3
        sketch = _signs(self.dimension, third, generator)
        basis = torch.linalg.qr(self.matvec(sketch))[0]
        inside = float((basis * self.matvec(basis)).sum())
        rest = _signs(self.dimension, probes - 2 * third, generator)
        rest -= basis @ (basis.T @ rest)
        outside = mean((rest * self.matvec(rest)).sum(dim=0).tolist(), confidence)
        return Estimate(inside + outside.value, inside + outside.low, inside + outside.high, probes)

    def _extreme(self, k: int, which: str, seed: int, tolerance: float) -> tuple[Tensor, Tensor]:
        if not 1 <= k <= self.dimension:
            raise InputError(f"k must be in [1, n_parameters={self.dimension}], got {k}")
        if self.dimension <= max(DENSE_DIMENSION, 2 * k):
            values, vectors = torch.linalg.eigh(self.dense())
            rank = {"LM": -values.abs(), "SA": values, "LA": -values}[which]
            chosen = torch.argsort(rank)[:k]
            return values[chosen], vectors[:, chosen]
        from scipy.sparse.linalg import LinearOperator, eigsh

        size = self.dimension

        def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            column: NDArray[np.float64] = self.matvec(torch.as_tensor(vector).reshape(-1)).numpy()
            return column

        operator = LinearOperator((size, size), matvec=product, dtype="float64")
        start = torch.randn(size, generator=torch_generator(seed, "curvature", "lanczos")).to(torch.float64)
        found, directions = eigsh(
            operator, k, which=which, v0=start.numpy(), tol=tolerance, ncv=min(size, max(2 * k + 1, 30))
        )
        return torch.as_tensor(found.copy()), torch.as_tensor(directions.copy())

    def _columns(self, vectors: Tensor) -> Tensor:
        """Return the vectors as rows in float64."""
        if vectors.ndim not in (1, 2) or len(vectors) != self.dimension:
            raise InputError(
                f"vectors must have shape (P,) or (P, k) with P={self.dimension}, got {tuple(vectors.shape)}"
            )
        rows = vectors.T if vectors.ndim == 2 else vectors.unsqueeze(0)
        return rows.detach().to(dtype=torch.float64, device="cpu").contiguous()

    def _chunks(self) -> list[tuple[float, Tensor, Tensor]]:
        size = self._chunk_size or self.n_samples
        pairs = zip(torch.split(self._inputs, size), torch.split(self._targets, size), strict=True)
        return [(len(x) / self.n_samples, x, y) for x, y in pairs]

    def _gradients(self) -> list[tuple[float, Tensor, Tensor]]:
        """Return weight, gradient with its graph, and the point it belongs to, of each chunk."""
        if self._slopes is not None:
            return self._slopes
        found = []
        for weight, inputs, targets in self._chunks():
            point = to_vector(self._params).requires_grad_()
            loss = self._loss(from_vector(point, self._params), inputs, targets)
            (slope,) = torch.autograd.grad(loss, point, create_graph=True)
            found.append((weight, slope, point))
        if len(found) == 1:  # several graphs would be the memory that the chunks are there to save
            self._slopes = found
        return found

    def _loss(self, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self._frozen(params, inputs)
        return self._loss_at(outputs, targets)

    def _loss_at(self, outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            loss = torch.as_tensor(self._loss_fn(outputs, targets))
        except Exception as error:
            shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
            raise InputError(f"the loss fails on {shapes}: {_one_line(error)}") from error
        if loss.numel() != 1:
            raise InputError(f"the loss must be one number, got shape {tuple(loss.shape)}")
        if not bool(torch.isfinite(loss)):
            raise InputError(f"the loss must be finite, got {float(loss)}")
        return loss.reshape(())

    def _check_mean(self) -> None:
        inputs, targets = self._inputs[:CHECK_SAMPLES], self._targets[:CHECK_SAMPLES]
        with torch.no_grad():
            together = float(self._loss(self._params, inputs, targets))
            pairs = zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True)
            single = [float(self._loss(self._params, x, y)) for x, y in pairs]
        check_mean_loss(together, single)

    def _check_differentiable(self) -> None:
        inputs, targets = self._inputs[:CHECK_SAMPLES], self._targets[:CHECK_SAMPLES]
        point, scale = to_vector(self._params).requires_grad_(), torch.ones((), requires_grad=True)
        loss = self._loss(from_vector(point, self._params), inputs, targets)
        if not loss.requires_grad:
            raise InputError("the loss must depend on the parameters through differentiable operations")
        # The factor makes every slope depend on something, so that an operation that can be differentiated
        # only once shows itself. Without it autograd would take its slope for a constant, silently.
        (slope,) = torch.autograd.grad(scale * loss, point, create_graph=True)
        nodes, seen = [slope.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            if node.name().endswith("::Error"):
                raise InputError("the loss has no second derivative: some operation has only a first one")
            seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)


def orthonormal_directions(directions: Tensor, frozen: FrozenModel) -> Tensor:
    """Return an orthonormal basis of the span of directions in a model's parameter space, shape (P, d).

    Raises:
        InputError: another shape than (P, d) or (P,), not finite, or not linearly independent.
    """
    size = sum(value.numel() for value in frozen.params.values())
    columns = directions.unsqueeze(1) if directions.ndim == 1 else directions
    if columns.ndim != 2 or len(columns) != size or not 1 <= columns.shape[1] <= size:
        raise InputError(
            f"directions must have shape (P, d) with P={size} and d in [1, P], got {tuple(directions.shape)}"
        )
    if not bool(torch.isfinite(columns).all()):
        raise InputError("directions must be finite, got NaN or infinite entries")
    columns = columns.detach().to(dtype=torch.float64, device="cpu")
    lengths = columns.norm(dim=0)
    basis, triangle = torch.linalg.qr(columns / torch.where(lengths > 0, lengths, 1.0))
    if not bool((triangle.diagonal().abs() > 1e-10).all()):
        raise InputError("directions must be linearly independent")
    return columns if _is_orthonormal(columns) else basis


def _is_orthonormal(columns: Tensor) -> bool:
    identity = torch.eye(columns.shape[1], dtype=columns.dtype)
    return torch.allclose(columns.T @ columns, identity, atol=1e-10)


def _second_derivative(slope: Tensor, point: Tensor, rows: Tensor) -> Tensor:
    """Return the products of every row with the derivative of a slope, many at once where possible."""
    at_once = VECTORS_AT_ONCE if point.numel() < LARGE else 1
    pieces = [_batched_derivative(slope, point, some) for some in torch.split(rows, at_once)]
    return torch.cat(pieces)


def _batched_derivative(slope: Tensor, point: Tensor, rows: Tensor) -> Tensor:
    options = {"retain_graph": True, "materialize_grads": True}
    if len(rows) > 1:
        try:
            products: Tensor = torch.autograd.grad(slope, point, rows, is_grads_batched=True, **options)[0]
            return products
        except RuntimeError:
            pass  # not every operation has a batching rule; one by one they may have a derivative
    try:
        return torch.stack([torch.autograd.grad(slope, point, row, **options)[0] for row in rows])
    except RuntimeError as error:
        raise InputError(f"the loss has no second derivative: {_one_line(error)}") from error


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, columns), generator=generator).to(torch.float64) * 2 - 1


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
