r"""Where entropic forces take a two-layer linear net: one representation, and one sharpness.

The net $W_2W_1x$ learns $y=Vx+\varepsilon$ from single samples with the loss $\frac12\|y-W_2W_1x\|^2$. On the
solutions $W_2W_1=V$ the loss is flat, and SGD goes to where the gradients of the layers balance,

$$\mathrm{Tr}\Sigma_x\;W_2^\top\Sigma_\varepsilon W_2=\mathrm{Tr}\Sigma_\varepsilon\;W_1\Sigma_xW_1^\top.$$

This point is the noise equilibrium of
:func:`~symdyn_core.symmetry.equilibrium.linear_net_noise_equilibrium`. What it means for the representation:
the Gram matrix of the hidden layer is, up to a factor, the geometric mean of $\Sigma_x^{-1}$ and
$V^\top\Sigma_\varepsilon V$, and the geometric mean goes along with every change $\tilde x=Zx$ of the inputs.
Nets that see the same things through different instruments $Z$ end with the same hidden layer, up to rotation
and scale; nets with balanced norms do not. What it means for the sharpness: the noise is not the curvature,
so that SGD leaves the flattest solution wherever the label noise has a direction.

Source: arXiv 2505.12387, universal representation and sharpening; the two-layer proofs are derived. Depths
above two are the paper's, not checked here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_core.symmetry.equilibrium import linear_net_noise_equilibrium

Array = NDArray[np.float64]

# An eigenvalue of this size, relative to the largest, is rounding; a more negative one is not.
ROUNDING = 1e-9


def balanced_linear(
    target: ArrayLike, second_moment: ArrayLike, label_covariance: ArrayLike, *, dim: int | None = None
) -> tuple[Array, Array]:
    r"""Return the layers of a two-layer linear net where the gradients of SGD balance.

    $$W_1=c^{-1/4}S^{1/2}R^\top\Sigma_x^{-1/2},\quad W_2=c^{1/4}\Sigma_\varepsilon^{-1/2}QS^{1/2},\quad
    \Sigma_\varepsilon^{1/2}V\Sigma_x^{1/2}=QSR^\top,\quad
    c=\frac{\mathrm{Tr}\,\Sigma_\varepsilon}{\mathrm{Tr}\,\Sigma_x}$$

    $OW_1,\,W_2O^\top$ balances as well for every orthogonal $O$.

    Args:
        target: $V$, shape (d_y, d_x), of any rank.
        second_moment: $\Sigma_x=E[xx^\top]$, not centred, positive definite, shape (d_x, d_x).
        label_covariance: $\Sigma_\varepsilon$, positive definite, shape (d_y, d_y).
        dim: width of the hidden layer, at least the rank of $V$; min(d_y, d_x) by default. Hidden units
            beyond the rank are zero.

    Returns:
        $W_1$, shape (dim, d_x), and $W_2$, shape (d_y, dim).

    Raises:
        InputError: shapes that do not fit, a covariance that is not positive definite (its null directions
            feel no noise on one side, and the layers run away), or a hidden layer too narrow for $V$.

    Source: arXiv 2505.12387, gradient balance; re-derived, the same point as that of arXiv 2402.07193.

    Label noise 16 times as strong as the input: the first layer, whose gradient carries it, must be small.

    >>> first, second = balanced_linear([[4.0]], [[1.0]], [[16.0]])
    >>> first.round(12).tolist(), second.round(12).tolist()
    ([[2.0]], [[2.0]])
    >>> first, second = balanced_linear([[4.0, 0.0]], np.diag([1.0, 3.0]), [[4.0]])
    >>> (second @ first).round(12).tolist()
    [[4.0, 0.0]]
    """
    if dim is None:
        dim = min(np.atleast_2d(np.asarray(target)).shape)
    second, first = linear_net_noise_equilibrium(target, second_moment, label_covariance, dim)
    return first, second


def platonic_gram(target: ArrayLike, second_moment: ArrayLike, label_covariance: ArrayLike) -> Array:
    r"""Return the representation that SGD gives a two-layer linear net, as the matrix of its inner products.

    $$K=W_1^\top W_1=c^{-1/2}\,\Sigma_x^{-1/2}\big(\Sigma_x^{1/2}V^\top\Sigma_\varepsilon V
    \Sigma_x^{1/2}\big)^{1/2}\Sigma_x^{-1/2}$$

    The hidden layer's Gram matrix of inputs X, one per row, is $XKX^\top$. Rotations of the hidden layer are
    not in it. For inputs $\tilde x=Zx$ it is $Z^{-\top}KZ^{-1}$ up to a factor: the Gram matrix of paired
    inputs is the same for all $Z$.

    Args:
        target: $V$, shape (d_y, d_x).
        second_moment: $\Sigma_x=E[xx^\top]$, positive definite, shape (d_x, d_x).
        label_covariance: $\Sigma_\varepsilon$, positive definite, shape (d_y, d_y).

    Returns:
        $K$, shape (d_x, d_x), positive semidefinite, of the rank of $V$.

    Raises:
        InputError: see :func:`balanced_linear`.

    Source: arXiv 2505.12387, universal representation; the geometric mean is derived.

    Inputs measured in half the unit, so that their number doubles and the target halves:

    >>> platonic_gram([[2.0]], [[1.0]], [[1.0]]).round(12), platonic_gram([[1.0]], [[4.0]], [[1.0]]).round(12)
    (array([[2.]]), array([[1.]]))
    """
    first, _ = balanced_linear(target, second_moment, label_covariance)
    return np.asarray(first.T @ first)


@dataclass(frozen=True)
class SharpnessPrediction:
    r"""The solution that SGD chooses among $u=sa,\ w=b/s$, and the flattest one.

    Attributes:
        scale_entropic: $s$ where SGD comes to rest.
        scale_flattest: $s$ of least trace of the Hessian.
        trace_entropic: $\mathrm{Tr}\,\nabla^2L$ at the first,
        trace_flattest: at the second, never larger.
    """

    scale_entropic: float
    scale_flattest: float
    trace_entropic: float
    trace_flattest: float

    @property
    def excess(self) -> float:
        """How much sharper than necessary SGD's solution is, as a ratio of traces: at least 1."""
        return self.trace_entropic / self.trace_flattest


def sharpness_prediction(
    outgoing: ArrayLike, incoming: ArrayLike, second_moment: ArrayLike, label_covariance: ArrayLike
) -> SharpnessPrediction:
    r"""Return how sharp a solution SGD chooses for one linear hidden unit, and how flat one there is.

    All $u=sa,\ w=b/s$ are the same function $f=u\,w^\top x$. Where it is the regression of
    $y=ab^\top x+\varepsilon$,

    $$\mathrm{Tr}\,\nabla^2L=m\,w^\top\Sigma_xw+\|u\|^2\,\mathrm{Tr}\,\Sigma_x,\qquad
    E\|\nabla\ell\|^2=\mathrm{Tr}\,\Sigma_\varepsilon\,w^\top\Sigma_xw
    +u^\top\Sigma_\varepsilon u\,\mathrm{Tr}\,\Sigma_x$$

    for the loss $\frac12\|y-f\|^2$ of single samples with m outputs. SGD minimises the second,

    $$s_{ent}^4=\frac{\mathrm{Tr}\,\Sigma_\varepsilon\;b^\top\Sigma_xb}{a^\top\Sigma_\varepsilon a\;
    \mathrm{Tr}\,\Sigma_x},\qquad s_{flat}^4=\frac{m\;b^\top\Sigma_xb}{\|a\|^2\,\mathrm{Tr}\,\Sigma_x},$$

    which are the same point only if the noise along $a$ is the average noise: from the flattest solution SGD
    goes to a sharper one otherwise.

    Args:
        outgoing: $a$, shape (m,).
        incoming: $b$, shape (d_x,).
        second_moment: $\Sigma_x=E[xx^\top]$, positive semidefinite, shape (d_x, d_x).
        label_covariance: $\Sigma_\varepsilon$, positive semidefinite, shape (m, m).

    Raises:
        InputError: shapes that do not fit, a matrix that is not positive semidefinite, or no finite optimum:
            no input along $b$, or no label noise along $a$.

    Source: arXiv 2505.12387, sharpening and flattening; the example is derived.

    Noise along a only, one of two outputs: the average noise is half of it.

    >>> found = sharpness_prediction([1.0, 0.0], [1.0], [[1.0]], np.diag([1.0, 0.0]))
    >>> found.scale_entropic, round(found.scale_flattest**4, 12), found.trace_entropic
    (1.0, 2.0, 3.0)
    >>> round(found.trace_flattest**2, 12)
    8.0
    """
    a, b = _vector("outgoing", outgoing), _vector("incoming", incoming)
    x = _semidefinite("second_moment", second_moment, "incoming", b)
    noise = _semidefinite("label_covariance", label_covariance, "outgoing", a)
    m, of_inputs, of_noise = len(a), float(b @ x @ b), float(a @ noise @ a)
    trace_x, trace_noise, size = float(np.trace(x)), float(np.trace(noise)), float(a @ a)
    if not of_inputs > ROUNDING * float(b @ b) * trace_x:
        raise InputError(f"second_moment must have inputs along incoming, got {of_inputs:g}")
    if not of_noise > ROUNDING * size * trace_noise:
        raise InputError(
            f"label_covariance must have noise along outgoing, got {of_noise:g}: it would grow for ever"
        )
    entropic = (trace_noise * of_inputs / (of_noise * trace_x)) ** 0.25
    flattest = (m * of_inputs / (size * trace_x)) ** 0.25

    def trace(scale: float) -> float:
        return m * of_inputs / scale**2 + scale**2 * size * trace_x

    return SharpnessPrediction(entropic, flattest, trace(entropic), trace(flattest))


def _vector(name: str, values: ArrayLike) -> Array:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or not vector.size:
        raise InputError(f"{name} must be a non-empty vector, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise InputError(f"{name} must be finite, got NaN or infinite entries")
    if not vector.any():
        raise InputError(f"{name} must not be zero")
    return vector


def _semidefinite(name: str, values: ArrayLike, of: str, vector: Array) -> Array:
    matrix, size = np.asarray(values, dtype=float), len(vector)
    if matrix.shape != (size, size):
        raise InputError(f"{name} must have shape ({size}, {size}) as {of} has, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} must be finite, got NaN or infinite entries")
    scale = float(np.abs(matrix).max())
    if not np.allclose(matrix, matrix.T, rtol=0, atol=ROUNDING * scale):
        raise InputError(f"{name} must be symmetric")
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    if lowest < -ROUNDING * size * scale:
        raise InputError(f"{name} must be positive semidefinite, got the eigenvalue {lowest:g}")
    return matrix
