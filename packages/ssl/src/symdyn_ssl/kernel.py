r"""Kernel self-supervised learning: what an infinitely wide, lazy network learns from positive pairs.

With the Gram matrix $K$ of all $2n$ views stacked, $J$ swapping the views of each pair, the matrix

$$K_\Gamma = \tfrac{1}{2n} K^{1/2} J K^{1/2}$$

has the positive eigenvalues $\gamma_j$ of the contrastive covariance in feature space. With its eigenvectors
$b_j$ the embedding learned from small initialisation is $f_j(x) = \gamma_j^{-1/2}\, b_j^\top K^{-1/2} k(x)$
up to rotation, where $k(x)$ holds the kernel between $x$ and the training views.

Source: arXiv 2303.15438 (kernel form), re-derived.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.preprocessing import KernelCenterer
from sklearn.utils.validation import check_is_fitted

from symdyn_core.errors import InputError
from symdyn_ssl.competition import CompetingSteps, competing_steps
from symdyn_ssl.pairs import as_pairs, as_samples

Array = NDArray[np.float64]

# Directions of the Gram matrix below this fraction of the largest carry no information in double precision.
_RELATIVE_CUTOFF = 1e-10


class KernelSSL(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Embedding that kernel Barlow Twins, $\|C - I\|_F^2$, learns from a small start, in closed form.

    Args:
        kernel: a name that ``sklearn.metrics.pairwise.pairwise_kernels`` knows ("linear", "rbf", "poly",
            "laplacian", ...) or a function of two samples.
        dim: width of the embedding; at most the number of positive eigenvalues.
        kernel_params: keyword arguments of the kernel, such as ``{"gamma": 0.1}``.
        center: centre the features in the kernel's space over both views.

    Attributes:
        gamma_: eigenvalues in the order of learning, shape ``(dim,)``.
        coefficients_: of the embedding on the training views, shape ``(2 n_pairs, dim)``.
        views_: the training views stacked, shape ``(2 n_pairs, n_features_in_)``.
        n_features_in_: number of features.

    Fitting costs O(n^3) time and O(n^2) memory in the number of pairs.

    >>> model = KernelSSL(kernel="linear", dim=1).fit([[2.0], [-2.0]], [[2.0], [-2.0]])
    >>> model.gamma_.round(9)
    array([4.])
    >>> abs(model.transform([[2.0]])).round(9)        # 2 / sqrt(4)
    array([[1.]])
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        dim: int = 2,
        *,
        kernel_params: dict[str, Any] | None = None,
        center: bool = True,
    ) -> None:
        self.kernel = kernel
        self.dim = dim
        self.kernel_params = kernel_params
        self.center = center

    def fit(self, x: ArrayLike, x_prime: ArrayLike) -> Self:
        """Diagonalise the contrastive kernel of the pairs.

        Args:
            x: one view, shape ``(n_pairs, n_features)``.
            x_prime: the other view of the same samples, same shape.

        Raises:
            InputError: arrays that are no pairs, an unknown kernel or parameter, a kernel that is not
                positive semi-definite on the data, or ``dim`` above the number of positive eigenvalues.
        """
        first, second = as_pairs(x, x_prime)
        n = len(first)
        self.views_ = np.vstack([first, second])
        self.n_features_in_ = self.views_.shape[1]
        self._centerer = KernelCenterer()
        gram = self._gram(self.views_)
        self._centerer.fit(gram)
        if self.center:
            gram = self._centerer.transform(gram)
        root, inverse_root = _square_roots(gram)
        swapped = np.roll(root, n, axis=0)
        values, vectors = np.linalg.eigh(root @ swapped / (2 * n))
        values, vectors = values[::-1], vectors[:, ::-1]
        positive = int((values > _RELATIVE_CUTOFF * np.abs(values).max()).sum())
        if not 1 <= self.dim <= positive:
            raise InputError(
                f"dim must be in [1, {positive}], the number of positive eigenvalues, got {self.dim}"
            )
        self.spectrum_ = values[:positive]
        self.gamma_ = values[: self.dim]
        self._basis = inverse_root @ vectors[:, :positive]
        self.coefficients_ = self._basis[:, : self.dim] / np.sqrt(self.gamma_)
        return self

    def transform(self, x: ArrayLike) -> Array:
        """Return the embedding of new samples.

        Args:
            x: shape ``(n_samples, n_features)``.

        Returns:
            Shape ``(n_samples, dim)``; on the training views its cross-view covariance is the identity.

        Raises:
            InputError: not finite, or another number of features than in fitting.
        """
        check_is_fitted(self)
        samples = as_samples("x", x)
        if samples.shape[1] != self.n_features_in_:
            raise InputError(f"x must have {self.n_features_in_} features, got {samples.shape[1]}")
        gram = self._gram(samples)
        if self.center:
            gram = self._centerer.transform(gram)
        return np.asarray(gram @ self.coefficients_)

    def competing_steps(self, z: ArrayLike, z_prime: ArrayLike) -> CompetingSteps:
        """Return the steps of an encoder whose small embeddings of the training views are given.

        Args:
            z: embeddings of ``x`` at initialisation, shape ``(n_pairs, dim)``.
            z_prime: embeddings of ``x_prime``, same shape.

        Returns:
            Times, shape ``(dim,)``, and what each step adds to the encoder, as coefficients of the kernel on
            the training views, ``(dim, 2 n_pairs)``; see :func:`symdyn_ssl.competition.competing_steps`.

        Raises:
            InputError: embeddings of another shape.
        """
        check_is_fitted(self)
        first, second = as_pairs(z, z_prime)
        expected = (len(self.views_) // 2, self.dim)
        if first.shape != expected:
            raise InputError(f"z and z_prime must have shape (n_pairs, dim)={expected}, got {first.shape}")
        embeddings = np.vstack([first, second])
        if self.center:
            embeddings = embeddings - embeddings.mean(axis=0)
        steps = competing_steps(embeddings.T @ self._basis, self.spectrum_)
        return CompetingSteps(steps.times, steps.encoder @ self._basis.T)

    def _gram(self, samples: Array) -> Array:
        try:
            gram = pairwise_kernels(samples, self.views_, metric=self.kernel, **(self.kernel_params or {}))
        except (ValueError, TypeError) as error:
            raise InputError(f"kernel {self.kernel!r} with {self.kernel_params or {}}: {error}") from error
        return np.asarray(gram, dtype=np.float64)


def _square_roots(gram: Array) -> tuple[Array, Array]:
    """Return the square root of a positive semi-definite matrix and the pseudo-inverse of the root."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    top = np.abs(values).max()
    if not np.isfinite(top) or values[0] < -1e-6 * top:
        raise InputError("the kernel must be positive semi-definite on the data")
    kept = values > _RELATIVE_CUTOFF * top
    scale, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T
