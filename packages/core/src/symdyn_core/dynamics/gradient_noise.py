r"""The noise of minibatch gradients of a model: the covariance of the gradient of one sample, measured.

.. math:: \Sigma=\frac1{n-1}\sum_i(g_i-\bar g)(g_i-\bar g)^T,\qquad g_i=\nabla_\theta\ell_i(\theta).

One forward and one backward pass over the samples give, layer by layer, what the :math:`g_i` are made of;
trace, diagonal, spectrum and products with vectors follow from inner products, without forming n gradients of
P entries. The covariance of the mean gradient of a minibatch is :math:`\Sigma` times
:meth:`GradientNoise.batch_covariance_factor`.

Source: arXiv 2102.05375 for the noise of SGD; arXiv 1812.06162 for the simple noise scale; the inner products
of layers are derived here, in :mod:`symdyn_core.dynamics.gram`.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symdyn_core import estimate
from symdyn_core.dynamics import population as finite
from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.gram import Factor, all_moments
from symdyn_core.dynamics.gram_samples import SampleGradients
from symdyn_core.dynamics.lyapunov import counted
from symdyn_core.errors import InputError
from symdyn_core.estimate import Estimate
from symdyn_core.params import FrozenModel, LossFunction, to_vector
from symdyn_core.random import torch_generator

# Up to so many samples their inner products are held: 128 MiB. Beyond, the spectrum comes from an iteration.
GRAM_SAMPLES = 4096
# Beyond so many samples a few eigenvalues are cheaper by iteration than all of them.
DENSE_SAMPLES = 600
DENSE_PARAMETERS = 1024  # a covariance of so many parameters may be formed
ALIGNED_DIRECTIONS = 10  # of the Hessian, that are taken out of the estimate of the alignment


class GradientNoise:
    r"""Covariance :math:`\Sigma` of the gradient of one sample; made by :func:`gradient_noise`.

    Tensors are in the dtype and on the device of the model; vectors are in the order of ``params.to_vector``.

    Attributes:
        n_samples: n, the samples looked at.
        population: N, the samples that batches are drawn from; infinite if always fresh.
        dimension: number P of parameters.
        loss: mean loss of the samples.
        mean: gradient :math:`\bar g` of the mean loss by parameter name.
        diagonal: diagonal of :math:`\Sigma` by parameter name, in the parameter's shape.
        blocks: trace of :math:`\Sigma` within each parameter, by name.
        formed: parameters for which no layer's rule held, so that per-sample gradients had to be formed.
    """

    def __init__(self, samples: SampleGradients, population: float, *, progress: bool = False) -> None:
        self.n_samples = samples.n_samples
        self.population = population
        self.dimension = sum(value.numel() for value in samples.params.values())
        self.formed = tuple(samples.formed)
        self._samples = samples
        # Where the covariance is the smaller matrix, it is formed instead of the inner products.
        self._by_parameters = self.dimension <= min(self.n_samples, DENSE_PARAMETERS)
        self._gram: Tensor | None = None
        self._measure(progress)

    def _measure(self, progress: bool) -> None:
        params, n = self._samples.params, self.n_samples
        first = next(iter(params.values()))
        # With one chunk the inner products cost least while its gradients are at hand.
        held = len(self._samples.chunks) == 1 and n <= GRAM_SAMPLES and not self._by_parameters
        gram = first.new_zeros(n, n) if held else None
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        loss = 0.0
        for index in counted(len(self._samples.chunks), "gradient noise", progress):
            chunk = self._samples.chunks[index]
            mean_loss, factors = self._samples.factors(index)
            loss += mean_loss * (chunk.stop - chunk.start) / n
            for name, found in all_moments(factors, gram).items():
                if name in sums:
                    for total, more in zip(sums[name], found, strict=True):
                        total += more
                else:
                    sums[name] = found
        self.loss = loss
        self.mean: dict[str, Tensor] = {}
        self.diagonal: dict[str, Tensor] = {}
        self.blocks: dict[str, float] = {}
        for name, value in params.items():
            mean, squares = sums[name] if name in sums else value.detach().new_zeros(2, value.numel())
            mean.div_(n)
            # Rounding may leave the difference of two equal squares below zero.
            diagonal = squares.addcmul_(mean, mean, value=-n).div_(n - 1).clamp_(min=0)
            self.mean[name], self.diagonal[name] = mean.view(value.shape), diagonal.view(value.shape)
            self.blocks[name] = float(diagonal.sum(dtype=torch.float64))
            if not math.isfinite(self.blocks[name]):
                raise InputError(f"the gradient of {name!r} must be finite, got NaN or infinite entries")
        if gram is not None:
            self._gram = _centred(gram.tril().add_(gram.tril(-1).T))

    @property
    def trace(self) -> float:
        r""":math:`\operatorname{tr}\Sigma`, the mean square by which a sample's gradient is off the mean."""
        return sum(self.blocks.values())

    @property
    def noise_scale(self) -> float:
        r""":math:`\operatorname{tr}\Sigma/|g|^2`: the batch size at which noise equals signal.

        With the bias of :math:`|\bar g|^2` taken out where the population is larger than the samples looked
        at; infinite where the gradient then cannot be told from zero.
        """
        measured = float(sum(mean.square().sum(dtype=torch.float64) for mean in self.mean.values()))
        squared = finite.squared_mean(measured, self.trace, self.n_samples, self.population)
        return self.trace / squared if squared > 0 else math.inf

    @property
    def effective_rank(self) -> float:
        r""":math:`(\sum\lambda)^2/\sum\lambda^2`: how many equal eigenvalues would be as spread out."""
        size = self._frobenius()
        return (self.trace / size) ** 2 if size > 0 else 0.0

    def batch_covariance_factor(self, batch_size: int, replacement: bool = False) -> float:
        r"""Return by what to multiply :math:`\Sigma` for the mean gradient of a batch of the population.

        Args:
            batch_size: in [1, population] unless drawn with replacement.
            replacement: whether a sample may come twice in a batch.

        Raises:
            InputError: a batch size out of range.
        """
        return finite.batch_covariance_factor(batch_size, self.population, replacement=replacement)

    def matvec(self, vectors: Tensor) -> Tensor:
        r"""Return :math:`\Sigma v` for one vector or several, in two passes over what is kept of the samples.

        Args:
            vectors: shape (P,) or (P, k).

        Returns:
            The same shape, in the model's dtype.

        Raises:
            InputError: another shape.
        """
        columns = self._columns(vectors)
        product: Tensor = torch.zeros_like(columns)
        along_mean = to_vector(self.mean) @ columns
        for factors in self._chunks():
            # Deviations along v; as their weights add up to zero the gradients need no centring of their own.
            product += self._combine(factors, self._products(factors, columns) - along_mean)
        return (product / (self.n_samples - 1)).reshape(vectors.shape)

    def along(self, directions: Tensor) -> Tensor:
        r"""Return :math:`v^T\Sigma v` for every column of ``directions``.

        Args:
            directions: shape (P, k), or (P,) for one.

        Returns:
            Shape (k,), float64.
        """
        columns = self._columns(directions)
        products = torch.cat([self._products(factors, columns) for factors in self._chunks()]).double()
        spread: Tensor = products.var(dim=0)
        return spread

    def combinations(self, weights: Tensor) -> Tensor:
        r"""Return :math:`\sum_iz_i(g_i-\bar g)/\sqrt{n-1}` for every column z of ``weights``.

        With random signs for z these are random vectors with the covariance :math:`\Sigma`.

        Args:
            weights: shape (n, k).

        Returns:
            Shape (P, k), in the model's dtype.

        Raises:
            InputError: another shape.
        """
        if weights.ndim != 2 or len(weights) != self.n_samples:
            raise InputError(
                f"weights must have shape (n_samples={self.n_samples}, k), got {tuple(weights.shape)}"
            )
        like = next(iter(self.mean.values()))
        weights = weights.to(like.device, torch.float64)
        weights = (weights - weights.mean(dim=0)).to(like.dtype)
        total = like.new_zeros(self.dimension, weights.shape[1])
        for chunk, factors in zip(self._samples.chunks, self._chunks(), strict=True):
            total += self._combine(factors, weights[chunk])
        return total / math.sqrt(self.n_samples - 1)

    def eigenvalues(self, k: int) -> Tensor:
        r"""Return the k largest eigenvalues of :math:`\Sigma`, largest first, float64.

        Args:
            k: in [1, min(n - 1, P)].

        Raises:
            InputError: k out of range.
        """
        return self._eigen(k, vectors=False)[0]

    def spectrum(self, k: int) -> tuple[Tensor, Tensor]:
        r"""Return the k largest eigenvalues of :math:`\Sigma`, largest first, and their eigenvectors.

        Args:
            k: in [1, rank of :math:`\Sigma`], the rank being at most min(n - 1, P).

        Returns:
            Values of shape (k,), float64, and vectors of shape (P, k), orthonormal, in the model's dtype.

        Raises:
            InputError: k out of range.
        """
        values, found = self._eigen(k, vectors=True)
        like = next(iter(self.mean.values()))
        resolved = int((values > values[0] * 10 * torch.finfo(like.dtype).eps).sum())
        if resolved < k:
            raise InputError(
                f"k must be in [1, rank={resolved}] for eigenvectors, got {k}: the noise has no others"
            )
        if self._by_parameters:
            return values, found.to(like.dtype)
        # Orthonormal but for rounding, which counts for the smallest of many; QR keeps the leading ones.
        basis, triangle = torch.linalg.qr(self.combinations(found))
        return values, basis * triangle.diagonal().sign()

    def alignment(self, curvature: Curvature, *, seed: int = 0, probes: int = 30) -> Estimate:
        r"""Return the cosine between noise and curvature as matrices, 1 if :math:`\Sigma\propto H`.

        .. math:: \frac{\operatorname{tr}(\Sigma H)}{\|\Sigma\|_F\|H\|_F}\in[-1,1].

        The part along the dominant eigenvectors of H is exact, that of the rest estimated by random signs.
        Two unrelated matrices of the same rank r in P dimensions have about r/P.

        Args:
            curvature: the Hessian of the same model and loss, on these or other samples.
            seed: of the probes.
            probes: products with the Hessian for each of numerator and denominator, at least 2.

        Raises:
            InputError: a Hessian of another model, too few probes, or noise or curvature that is zero.
        """
        self._check_curvature(curvature)
        if probes < 2:
            raise InputError(f"probes must be at least 2, got {probes}")
        if self.dimension <= 2 * ALIGNED_DIRECTIONS:
            values, directions = torch.linalg.eigh(curvature.dense())
        else:
            values, directions = curvature.top_eigenvalues(ALIGNED_DIRECTIONS, seed)
        shared = values @ self.along(directions).cpu()
        squared = values.square().sum()
        generator = torch_generator(seed, "gradient noise", "alignment")

        def rest(vectors: Tensor) -> Tensor:
            left: Tensor = vectors - directions @ (directions.T @ vectors)
            return left

        drawn = rest(self.combinations(_signs(self.n_samples, probes, generator)).double().cpu())
        isotropic = rest(_signs(self.dimension, probes, generator))
        products = (drawn * curvature.matvec(drawn)).sum(dim=0) + shared
        squares = curvature.matvec(isotropic).square().sum(dim=0) + squared
        scale = self._frobenius() * float(squares.mean()) ** 0.5
        if not scale > 0:
            raise InputError("alignment needs noise and curvature that are not zero")
        # To first order in what the probes of the denominator differ by.
        ratios = (products - products.mean() * (squares / squares.mean() - 1) / 2) / scale
        return estimate.mean(ratios.tolist())

    def noise_to_loss_ratio(self, curvature: Curvature, *, seed: int = 0, probes: int = 30) -> Estimate:
        r"""Return :math:`\operatorname{tr}\Sigma/(2L\operatorname{tr}H)`: 1 if noise follows from the loss.

        For squared errors :math:`\ell=\frac12r^2` with residuals independent of the model's gradients the
        noise at a minimum is :math:`2L_0H_0`
        (:func:`symdyn_core.dynamics.noise_from_loss.approximate_noise_covariance`); this says how far the
        model at hand is from it.

        Args:
            curvature: the Hessian of the same model and loss on the same samples.
            seed: of the estimate of its trace.
            probes: products with the Hessian, at least 6.

        Raises:
            InputError: a Hessian of another model, or a loss or trace of the Hessian that is not positive, or
                not within the interval of its estimate.
        """
        self._check_curvature(curvature)
        bend = curvature.trace(seed, probes)
        if not (self.loss > 0 and bend.low > 0):
            raise InputError(
                f"noise_to_loss_ratio needs a positive loss and trace of the Hessian, got {self.loss:.4g} "
                f"and {bend.value:.4g} ({bend.low:.4g} to {bend.high:.4g})"
            )
        value, low, high = (self.trace / (2 * self.loss * of) for of in (bend.value, bend.high, bend.low))
        return Estimate(value, low, high, bend.n)

    def _check_curvature(self, curvature: Curvature) -> None:
        shapes = {name: tuple(value.shape) for name, value in curvature.params.items()}
        ours = {name: tuple(value.shape) for name, value in self.mean.items()}
        if shapes != ours:
            raise InputError(
                f"curvature must be that of the same model with {self.dimension} parameters, got one with "
                f"{curvature.dimension} of other names or shapes"
            )

    def _chunks(self) -> Iterator[dict[str, Factor]]:
        return (self._samples.factors(index)[1] for index in range(len(self._samples.chunks)))

    def _products(self, factors: dict[str, Factor], columns: Tensor) -> Tensor:
        """Return the inner products of the chunk's gradients with columns of shape (P, k)."""
        pieces = dict(
            zip(self.mean, torch.split(columns, [value.numel() for value in self.mean.values()]), strict=True)
        )
        return torch.stack([factor.products(pieces[name]) for name, factor in factors.items()]).sum(dim=0)

    def _combine(self, factors: dict[str, Factor], weights: Tensor) -> Tensor:
        """Return weighted sums of the chunk's gradients, shape (P, k)."""
        pieces = [
            factors[name].combine(weights)
            if name in factors
            else value.new_zeros(value.numel(), weights.shape[1])
            for name, value in self.mean.items()
        ]
        return torch.cat(pieces)

    def _centred_gram(self) -> Tensor:
        r"""Return the inner products of the centred gradients, shape (n, n), float64."""
        if self._gram is None:
            gram = self._zeros(self.n_samples, self.n_samples)
            for rows, columns, block in self._gram_blocks():
                gram[rows, columns] = block
                gram[columns, rows] = block.T
            self._gram = _centred(gram)
        return self._gram

    def _gram_blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the inner products of the gradients of two chunks, once for every pair of chunks."""
        chunks = self._samples.chunks
        for i, rows in enumerate(chunks):
            ours = self._samples.factors(i)[1]
            for j, columns in enumerate(chunks[i:], start=i):
                block = self._zeros(rows.stop - rows.start, columns.stop - columns.start)
                theirs = ours if i == j else self._samples.factors(j)[1]
                for name, factor in ours.items():
                    if name in theirs:  # the loss of a chunk may not depend on every parameter
                        factor.add_gram(theirs[name], block)
                yield rows, columns, block

    def _frobenius(self) -> float:
        r"""Return the root of the sum of all squared entries of :math:`\Sigma`."""
        if self._by_parameters:
            return math.sqrt(float(self._covariance().square().sum()))
        if self.n_samples <= GRAM_SAMPLES:
            return math.sqrt(float(self._centred_gram().square().sum())) / (self.n_samples - 1)
        mean = to_vector(self.mean).unsqueeze(1)
        along = torch.cat([self._products(factors, mean) for factors in self._chunks()]).double()
        offset = along - along.mean() / 2
        total = 0.0
        for rows, columns, block in self._gram_blocks():
            block -= offset[rows] + offset[columns].T
            total += float(block.square().sum()) * (1 if rows == columns else 2)
        return math.sqrt(total) / (self.n_samples - 1)

    def _covariance(self) -> Tensor:
        r"""Return :math:`\Sigma` itself, shape (P, P), float64; for small models."""
        like = next(iter(self.mean.values()))
        matrix = self.matvec(torch.eye(self.dimension, dtype=like.dtype, device=like.device)).double()
        return (matrix + matrix.T) / 2

    def _eigen(self, k: int, *, vectors: bool) -> tuple[Tensor, Tensor]:
        """Return the largest eigenvalues and, if asked for, what makes up the eigenvectors.

        These are the eigenvectors themselves where the covariance is the smaller matrix, shape (P, k), and
        the weights of the samples in them otherwise, shape (n, k).
        """
        n, most = self.n_samples, min(self.n_samples - 1, self.dimension)
        if not 1 <= k <= most:
            raise InputError(f"k must be in [1, min(n_samples - 1, n_parameters)={most}], got {k}")
        if not self._by_parameters and (n > GRAM_SAMPLES or (n > DENSE_SAMPLES and 4 * k < n)):
            values, found = self._iterated(k)
        else:
            matrix = self._covariance() if self._by_parameters else self._centred_gram() / (n - 1)
            values, found = torch.linalg.eigh(matrix) if vectors else (torch.linalg.eigvalsh(matrix), matrix)
        return values.flip(0)[:k].clamp(min=0), found.flip(1)[:, :k]

    def _iterated(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k largest eigenvalues, ascending, and the weights of the samples, by iteration."""
        from scipy.sparse.linalg import LinearOperator, eigsh

        n = self.n_samples
        gram = self._centred_gram().cpu().numpy() if n <= GRAM_SAMPLES else None

        def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            if gram is not None:
                dense: NDArray[np.float64] = gram @ vector / (n - 1)
                return dense
            direction = self.combinations(torch.as_tensor(vector).reshape(-1, 1))
            found = torch.cat([self._products(factors, direction) for factors in self._chunks()])
            found = found.reshape(-1).double() - found.double().mean()
            matrix_free: NDArray[np.float64] = found.cpu().numpy() / math.sqrt(n - 1)
            return matrix_free

        operator = LinearOperator((n, n), matvec=product, dtype="float64")
        start = torch.randn(n, generator=torch_generator(0, "gradient noise", "lanczos"), dtype=torch.float64)
        tolerance = 10 * torch.finfo(next(iter(self.mean.values())).dtype).eps
        values, weights = eigsh(
            operator, k, which="LA", v0=start.numpy(), ncv=min(n, max(2 * k + 1, 30)), tol=tolerance
        )
        device = next(iter(self.mean.values())).device
        return torch.as_tensor(values.copy(), device=device), torch.as_tensor(weights.copy(), device=device)

    def _columns(self, vectors: Tensor) -> Tensor:
        if vectors.ndim not in (1, 2) or len(vectors) != self.dimension:
            raise InputError(
                f"vectors must have shape (P,) or (P, k) with P={self.dimension}, got {tuple(vectors.shape)}"
            )
        like = next(iter(self.mean.values()))
        columns = vectors.detach().to(like.device, like.dtype)
        return columns if columns.ndim == 2 else columns.unsqueeze(1)

    def _zeros(self, *shape: int) -> Tensor:
        device = next(iter(self._samples.params.values())).device
        return torch.zeros(shape, dtype=torch.float64, device=device)


def gradient_noise(
    model: FrozenModel | nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk_size: int | None = None,
    population: float | None = None,
    progress: bool = False,
) -> GradientNoise:
    r"""Measure the covariance of the gradient of one sample at a model's parameters.

    In evaluation mode, in the model's own dtype and on its device. Layers with a rule of their own (linear,
    also on sequences, convolutions, embeddings, normalisation; a weight tied between them) cost little more
    than a training step; the gradients of all other parameters are formed by ``torch.func``, some samples at
    a time.

    Args:
        model: copied, never changed; its forward pass must treat the samples of a batch independently.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n, ...), n at least 2.
        targets: shape (n, ...).
        chunk_size: samples at a time; by default as many as fit into 128 MiB of float32.
        population: number N of samples that batches are drawn from, n of which are looked at; n by default,
            ``math.inf`` for an endless supply.
        progress: whether to show a bar, on a terminal.

    Raises:
        InputError: fewer than two samples, a population smaller than them, data that do not fit together, a
            model or loss that fails, a loss that is not the mean over samples, samples that are coupled
            (batch normalisation in training mode), or a gradient that is not finite.

    Two samples with slopes 2 and 8:

    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    >>> _ = nn.init.ones_(line.weight)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> noise = gradient_noise(line, nn.functional.mse_loss, x, y)
    >>> noise.mean["weight"].item(), noise.trace, noise.noise_scale
    (5.0, 18.0, 0.72)
    >>> noise.batch_covariance_factor(1), noise.batch_covariance_factor(2)
    (0.5, 0.0)
    """
    samples = SampleGradients(model, loss_fn, inputs, targets, chunk_size=chunk_size)
    of_all = samples.n_samples if population is None else population
    finite.check_population(of_all, samples.n_samples)
    return GradientNoise(samples, of_all, progress=progress)


def _centred(gram: Tensor) -> Tensor:
    gram = gram.double()
    means = gram.mean(dim=0)
    return gram.sub_(means - means.mean() / 2).sub_((means - means.mean() / 2).unsqueeze(1))


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, columns), generator=generator).to(torch.float64) * 2 - 1
