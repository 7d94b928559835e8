r"""Where gradient noise lets the charge of a symmetry rest.

Along the orbit $\theta_\lambda=e^{\lambda A}\theta$ the covariance of the per-sample gradient is
$e^{-\lambda A}\Sigma e^{-\lambda A}$, and the drift of the charge vanishes where
$\mathrm{Tr}[\Sigma(\theta_\lambda)A]=0$. This is the stationarity of the **convex** function

$$J(\lambda)=\mathrm{Tr}\,\Sigma(\theta_\lambda)=\mathrm{Tr}[e^{-2\lambda A}\Sigma]:$$

SGD moves along an orbit of equal loss to its unique point of least gradient noise, wherever it starts. With
weight decay the drift vanishes at the minimum of
$a\,\mathrm{Tr}\,\Sigma(\theta_\lambda)+c\|\theta_\lambda\|^2$, which is convex too; $a$ and $c$ are
``noise_factor`` and ``decay_factor`` of :class:`~symdyn_core.symmetry.charges.Step`.

Source: arXiv 2402.07193, noise equilibrium; the role of decay and the closed form for the general linear
group are derived.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import Params
from symdyn_core.symmetry.charges import ExponentialSymmetry, charge_of
from symdyn_core.symmetry.gradients import GradientMoments, Quadratic
from symdyn_core.symmetry.kinds import GeneralLinear, PositiveRescaling, Symmetry

Array = NDArray[np.float64]

# Noise below this fraction of the largest is what rounding leaves of zero.
ROUNDING = 1e-13
BISECTIONS = 200  # ends by itself where float64 has no number between the bounds
NEWTON_STEPS = 200


class Term(NamedTuple):
    r"""One term $k\,e^{2q\lambda}$ of what a charge minimises along its orbit."""

    power: float
    coefficients: Tensor


def orbit_minimum(terms: Sequence[Term]) -> Tensor:
    r"""Return the $\lambda$ that minimises $\sum_jk_je^{2q_j\lambda}$, for many orbits at once.

    Its root in $\lambda$ is that of $h=\log\sum_{q>0}qke^{2q\lambda}-\log\sum_{q<0}|q|ke^{2q\lambda}$, whose
    slope lies between two known positive numbers: that brackets the root, and bisection finds it.

    Args:
        terms: exponents $q_j$ and coefficients $k_j\ge0$, all of one shape.

    Returns:
        Same shape. Infinite where all terms push one way, NaN where there are none.

    Equal terms with k = 16 behind and k = 1 in front meet at $e^{4\lambda}=16$:

    >>> orbit_minimum([Term(1.0, torch.tensor([1.0])), Term(-1.0, torch.tensor([16.0]))]).exp()
    tensor([2.])
    """
    up = [term for term in terms if term.power > 0]
    down = [term for term in terms if term.power < 0]
    like = next(iter(terms)).coefficients
    rising, falling = _log_slopes(up, like), _log_slopes(down, like)
    zero = torch.zeros_like(like)
    has_up, has_down = rising(zero) > -math.inf, falling(zero) > -math.inf
    found = torch.where(has_up, -math.inf, torch.where(has_down, math.inf, math.nan)).to(like.dtype)
    both = has_up & has_down
    if not bool(both.any()):
        return found

    def gap(at: Tensor) -> Tensor:
        return torch.where(both, rising(at) - falling(at), 0.0)

    start = gap(zero)
    gentle = 2 * (min(t.power for t in up) + min(-t.power for t in down))
    steep = 2 * (max(t.power for t in up) + max(-t.power for t in down))
    ends = torch.stack([-start / gentle, -start / steep])
    low, high = ends.min(dim=0).values, ends.max(dim=0).values
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if bool(((middle <= low) | (middle >= high)).all()):
            break
        above = gap(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(both, (low + high) / 2, found)


def _log_slopes(terms: list[Term], like: Tensor) -> Any:
    if not terms:
        return lambda at: torch.full_like(like, -math.inf)
    powers = torch.tensor([term.power for term in terms], dtype=like.dtype)
    logs = torch.stack([(abs(term.power) * term.coefficients).log() for term in terms])
    shape = (len(terms), *[1] * like.ndim)
    return lambda at: torch.logsumexp(logs + 2 * powers.reshape(shape) * at, dim=0)


def noise_equilibrium(generator: ArrayLike, noise_covariance: ArrayLike) -> float:
    r"""Return the $\lambda$ for which $e^{\lambda A}\theta$ is the noise equilibrium of its orbit.

    $$\mathrm{Tr}[e^{-2\lambda A}A\,\Sigma]=\sum_i\Lambda_is_ie^{-2\lambda\Lambda_i}=0,\qquad
    A=Q\Lambda Q^\top,\ s_i=(Q^\top\Sigma Q)_{ii}$$

    Args:
        generator: $A$, symmetric, shape (P, P), or its diagonal, shape (P,).
        noise_covariance: $\Sigma$ at $\theta$, positive semidefinite, shape (P, P).

    Returns:
        $\lambda$; plus or minus infinity where the noise pushes one way only, so that SGD never comes to
        rest; NaN where there is no noise along the orbit.

    Raises:
        InputError: shapes that do not fit, a matrix that is not symmetric, or entries that are not finite.

    Source: arXiv 2402.07193, noise equilibrium; re-derived.

    Rescaling w up and v down, with 16 times the noise on w: w must be doubled.

    >>> round(float(np.exp(noise_equilibrium([1.0, -1.0], np.diag([16.0, 1.0])))), 12)
    2.0
    >>> noise_equilibrium([1.0, 1.0], np.eye(2))
    inf
    """
    powers, noise = _spectrum("generator", generator, noise_covariance)
    terms = [Term(-float(p), torch.tensor(s)) for p, s in zip(powers, noise, strict=True) if p != 0]
    if not terms:
        raise InputError("generator must not be zero")
    return float(orbit_minimum(terms))


def _spectrum(name: str, generator: ArrayLike, noise_covariance: ArrayLike) -> tuple[Array, Array]:
    """Return the eigenvalues of the generator and the noise along each eigenvector."""
    matrix = _finite(name, generator)
    covariance = _symmetric("noise_covariance", noise_covariance)
    if matrix.ndim == 1:
        powers, basis = matrix, np.eye(len(matrix))
    else:
        powers, basis = np.linalg.eigh(_symmetric(name, matrix))
    if len(powers) != len(covariance):
        raise InputError(
            f"{name} and noise_covariance must have one size, got {len(powers)} and {len(covariance)}"
        )
    noise = np.einsum("ij,ik,kj->j", basis, covariance, basis)
    return _cleaned(powers), _cleaned(noise, positive=True)


def commuting_noise_equilibrium(exponents: ArrayLike, noise: ArrayLike) -> Array:
    r"""Return the noise equilibrium of several commuting symmetries together.

    Minimises the convex function $J(\lambda)=\sum_is_ie^{-2\lambda\cdot\Lambda_i}$ by Newton's method on its
    logarithm.

    Args:
        exponents: $\Lambda$, shape (k, P): the eigenvalues of the k generators in their common eigenbasis.
        noise: $s_i\ge0$, the variance of the gradient along each eigenvector, shape (P,).

    Returns:
        $\lambda$, shape (k,); where directions of $\lambda$ change nothing, the shortest one.

    Raises:
        InputError: shapes that do not fit, negative noise, or no equilibrium at finite distance; the message
            names the direction in which SGD runs away.

    Source: arXiv 2402.07193; re-derived.

    Two rescalings that share the second of three weights:

    >>> point = commuting_noise_equilibrium([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], [1.0, 1.0, 64.0])
    >>> np.exp(point).round(6).tolist()
    [0.5, 0.25]
    """
    powers, weights = np.atleast_2d(_finite("exponents", exponents)), _finite("noise", noise)
    if powers.ndim != 2 or weights.shape != powers.shape[1:]:
        raise InputError(f"exponents must have shape (k, P={weights.size}), got {powers.shape}")
    if (weights < 0).any():
        raise InputError(f"noise must be >= 0, got {weights.min()}")
    felt = _cleaned(weights, positive=True) > 0
    powers, logs = powers[:, felt], np.log(weights[felt])
    if not felt.any():
        return np.zeros(len(powers))
    _check_bounded(powers)
    point = np.zeros(len(powers))
    value, shares = _log_sum_exp(logs)
    for _ in range(NEWTON_STEPS):
        mean = powers @ shares
        centred = powers - mean[:, None]
        # Gradient -2 mean and Hessian 4 Cov of log J.
        step = np.linalg.lstsq(2 * (centred * shares) @ centred.T, mean, rcond=1e-12)[0]
        decrease, length = float(2 * mean @ step), 1.0
        while True:
            trial, trial_shares = _log_sum_exp(logs - 2 * (point + length * step) @ powers)
            # The last digits of log J cannot decrease any more.
            if trial <= value - 1e-4 * length * decrease + 1e-15 * max(1.0, abs(value)) or length < 1e-12:
                break
            length /= 2
        point, value, shares = point + length * step, trial, trial_shares
        if np.abs(length * step).max() <= 1e-13 * max(1.0, np.abs(point).max()):
            break
    return point


def _check_bounded(powers: Array) -> None:
    """Refuse a family that has a direction in which no noise grows and some falls."""
    from scipy.optimize import linprog

    limits = np.concatenate([powers.T, -powers.T])
    bounds = np.concatenate([np.ones(powers.shape[1]), np.zeros(powers.shape[1])])
    answer = linprog(-powers.sum(axis=1), A_ub=limits, b_ub=bounds, bounds=(None, None), method="highs")
    if answer.status != 0:
        raise InputError(f"the equilibrium cannot be bounded: {answer.message}")
    if -answer.fun > 1e-9:
        direction = (np.round(answer.x / np.abs(answer.x).max(), 3) + 0.0).tolist()
        raise InputError(f"no equilibrium at finite distance: SGD runs away along {direction}")


def _log_sum_exp(logs: Array) -> tuple[float, Array]:
    """Return the logarithm of the sum of exponentials and the share of each."""
    top = float(logs.max())
    weights = np.exp(logs - top)
    total = float(weights.sum())
    return top + math.log(total), weights / total


def general_linear_noise_equilibrium(incoming_noise: Tensor, outgoing_noise: Tensor) -> Tensor | None:
    r"""Return the symmetric positive M that takes two consecutive linear maps to their noise equilibrium.

    Under $W\to MW,\ U\to UM^{-1}$ the noise of the gradients becomes $M^{-T}\Gamma_{in}M^{-1}$ and
    $M\Gamma_{out}M^\top$; they agree at $P=M^\top M$ with $P\,\Gamma_{out}P=\Gamma_{in}$, the minimum of
    $\mathrm{Tr}[P^{-1}\Gamma_{in}]+\mathrm{Tr}[P\,\Gamma_{out}]$:

    $$P=\Gamma_{out}^{-1/2}\big(\Gamma_{out}^{1/2}\Gamma_{in}\Gamma_{out}^{1/2}\big)^{1/2}\Gamma_{out}^{-1/2}.$$

    A rotation of the units on top of it changes nothing. SGD comes to rest here up to one effect: where the
    noise makes the fluctuations of $UW$ circulate it turns the units steadily, which shifts the balance a
    little (by 0.7 % in the study ``core.noise_equilibrium``).

    Args:
        incoming_noise: $\Gamma_{in}=\sum\mathrm{Cov}$ of the columns of the gradient of the incoming weights,
            shape (units, units); for $f=UWx$ it is $U^\top\langle GG^\top\rangle_cU$.
        outgoing_noise: $\Gamma_{out}$, the same of the outgoing weights, one row per unit; for $f=UWx$ it is
            $W\langle G^\top G\rangle_cW^\top$.

    Returns:
        M, shape (units, units), or None where one of the two is singular: some direction of the units then
        feels noise on one side only, and SGD shrinks it for ever.

    Source: arXiv 2402.07193, double rotation; the closed form is derived (the geometric mean of
    $\Gamma_{out}^{-1}$ and $\Gamma_{in}$).

    >>> general_linear_noise_equilibrium(16 * torch.eye(2), torch.eye(2))
    tensor([[2., 0.],
            [0., 2.]])
    """
    if _singular(incoming_noise) or _singular(outgoing_noise):
        return None
    values, basis = torch.linalg.eigh(outgoing_noise)
    root, inverse = _power(values, basis, 0.5), _power(values, basis, -0.5)
    inner = _root(root @ incoming_noise @ root)
    return _root(inverse @ inner @ inverse)


def _singular(matrix: Tensor) -> bool:
    values = torch.linalg.eigvalsh(matrix)
    return not bool(values[0] > ROUNDING * len(matrix) * values[-1])


def _power(values: Tensor, basis: Tensor, exponent: float) -> Tensor:
    return (basis * values**exponent) @ basis.T


def _root(matrix: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(_even(matrix))
    return _power(values, basis, 0.5)


def _even(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def linear_net_noise_equilibrium(
    target: ArrayLike, second_moment: ArrayLike, label_covariance: ArrayLike, dim: int
) -> tuple[Array, Array]:
    r"""Return the weights at which SGD leaves a two-layer linear net that has learnt its task.

    For $\ell=\|UWx-y\|^2$ (or any multiple of it), $y=Vx+\varepsilon$ and $UW=V$,

    $$\frac{W\Sigma_xW^\top}{\mathrm{Tr}\,\Sigma_x}=
    \frac{U^\top\Sigma_\varepsilon U}{\mathrm{Tr}\,\Sigma_\varepsilon},\qquad
    U=r\,\Sigma_\varepsilon^{-1/2}L\sqrt S,\quad W=r^{-1}\sqrt S\,R^\top\Sigma_x^{-1/2}$$

    with the singular values $\Sigma_\varepsilon^{1/2}V\Sigma_x^{1/2}=LSR^\top$ and
    $r=(\mathrm{Tr}\,\Sigma_\varepsilon/\mathrm{Tr}\,\Sigma_x)^{1/4}$. $UO,\,O^\top W$ is one as well for any
    orthogonal $O$; $UU^\top$ and $W^\top W$ are unique.

    Args:
        target: $V$, shape (d_y, d_x).
        second_moment: $\Sigma_x=E[xx^\top]$, not centred, positive definite, shape (d_x, d_x).
        label_covariance: $\Sigma_\varepsilon$, positive definite, shape (d_y, d_y); $\varepsilon$ independent
            of $x$.
        dim: width of the hidden layer, at least the rank of $V$.

    Returns:
        $U$, shape (d_y, dim), and $W$, shape (dim, d_x); hidden units beyond the rank of $V$ are zero.

    Raises:
        InputError: shapes that do not fit, a covariance that is not positive definite, or a hidden layer too
            narrow for $V$.

    Source: arXiv 2402.07193, two-layer linear net; re-derived.

    >>> u, w = linear_net_noise_equilibrium([[4.0]], [[1.0]], [[16.0]], dim=1)
    >>> (u @ w).round(12).tolist(), u.round(12).tolist(), w.round(12).tolist()
    ([[4.0]], [[2.0]], [[2.0]])
    """
    matrix = _finite("target", target)
    if matrix.ndim != 2:
        raise InputError(f"target must have shape (d_y, d_x), got {matrix.shape}")
    rows, columns = matrix.shape
    roots = []
    for name, given, size in (
        ("label_covariance", label_covariance, rows),
        ("second_moment", second_moment, columns),
    ):
        covariance = _symmetric(name, given)
        if len(covariance) != size:
            raise InputError(f"{name} must have shape ({size}, {size}), got {covariance.shape}")
        values, basis = np.linalg.eigh(covariance)
        if not values[0] > ROUNDING * values[-1]:
            raise InputError(f"{name} must be positive definite, got the eigenvalue {values[0]:g}")
        roots.append(((basis * np.sqrt(values)) @ basis.T, (basis / np.sqrt(values)) @ basis.T, values.sum()))
    (noise_root, noise_inverse, noise_trace), (input_root, input_inverse, input_trace) = roots
    left, singular, right = np.linalg.svd(noise_root @ matrix @ input_root, full_matrices=False)
    rank = int((singular > ROUNDING * singular[0]).sum())
    if dim != int(dim) or dim < rank:
        raise InputError(f"dim must be a whole number >= {rank}, the rank of target, got {dim}")
    scale = (noise_trace / input_trace) ** 0.25
    u, w = np.zeros((rows, dim)), np.zeros((dim, columns))
    u[:, :rank] = scale * noise_inverse @ (left * np.sqrt(singular))[:, :rank]
    w[:rank] = (np.sqrt(singular)[:, None] * right)[:rank] @ input_inverse / scale
    return u, w


@dataclass(frozen=True)
class SymmetryNoise:
    r"""The gradient noise that one symmetry feels and the weights that it moves: all that its charge needs.

    An element $s$ multiplies the weights of bundle $j$ by $s^{p_j}$ and divides their gradients by it. For a
    general linear group the bundles are the incoming ($p=1$) and the outgoing weights ($p=-1$) and the norms
    are matrices.

    Args:
        powers: $p_j$ of each bundle.
        noise: $n_j$, the squared norm of each bundle's gradient without its mean, averaged over the samples;
            shape (bundles, units) or (2, units, units).
        norms: $\|w_j\|^2$ of the weights, same shape.
        of_charge: $\mathrm{Tr}[\Sigma A]$, the charge of the gradient without its mean, averaged.
    """

    powers: tuple[float, ...]
    noise: Tensor
    norms: Tensor
    of_charge: Tensor

    @property
    def is_matrix(self) -> bool:
        """Whether the symmetry is a general linear group."""
        return self.noise.ndim == 3

    @property
    def balance(self) -> Tensor:
        """See :func:`noise_balance`."""
        if self.is_matrix:
            total = torch.diagonal(self.noise, dim1=1, dim2=2).sum()
            imbalance = torch.linalg.eigvalsh(_even(self.of_charge)).abs().sum()
        else:
            total = self._weighted([abs(power) for power in self.powers], self.noise)
            imbalance = self.of_charge
        return torch.where(total > 0, imbalance / total, 0.0).clamp(-1, 1)

    def factors(self, noise_factor: float, decay_factor: float) -> Tensor | None:
        """Return the element that takes the parameters to where noise and decay balance.

        Args:
            noise_factor: weight of the noise, as in :class:`~symdyn_core.symmetry.charges.Step`.
            decay_factor: weight of the squared norms.

        Returns:
            The factors, shape (units,): zero or infinite where they run away, NaN where nothing pushes; or
            the matrix M, None where it runs away.
        """
        noise, norms = noise_factor * self.noise, decay_factor * self.norms
        if self.is_matrix:
            return general_linear_noise_equilibrium(noise[0] + norms[1], noise[1] + norms[0])
        push = [Term(-power, row) for power, row in zip(self.powers, noise, strict=True)]
        pull = [Term(power, row) for power, row in zip(self.powers, norms, strict=True)]
        return orbit_minimum([*push, *pull]).exp()

    def relaxation_rate(self, noise_factor: float, decay_factor: float) -> Tensor:
        r"""Return the rate per step at which a small displacement along the orbit dies out.

        Call it at the equilibrium. As the charge changes by $-2\sum_jp_j^2\|w_j\|^2$ and its drift by
        $2\sum_jp_j^2(an_j+c\|w_j\|^2)$ for a unit of $\log s$, the rate is

        $$a\,\frac{\sum_jp_j^2n_j}{\sum_jp_j^2\|w_j\|^2}+c .$$

        For a general linear group it is that of the slowest symmetric direction: twice the least eigenvalue
        of $a\Gamma_{out}+cWW^\top$ relative to $WW^\top+VV^\top$. The other parameters are taken to stay,
        and so is the rotation of the units that charges do not see.
        """
        if self.is_matrix:
            values, basis = torch.linalg.eigh(_even(self.norms.sum(dim=0)))
            inverse = _power(values, basis, -0.5)
            drift = noise_factor * self.noise[1] + decay_factor * self.norms[0]
            relative: Tensor = torch.linalg.eigvalsh(_even(inverse @ drift @ inverse))
            return 2 * relative[0]
        squares = [power * power for power in self.powers]
        ratio = self._weighted(squares, self.noise) / self._weighted(squares, self.norms)
        return noise_factor * ratio + decay_factor

    @staticmethod
    def _weighted(factors: list[float], rows: Tensor) -> Tensor:
        weighted: Tensor = torch.tensor(factors, dtype=rows.dtype) @ rows
        return weighted


def bundle_norms(symmetry: Symmetry) -> Quadratic:
    """Return the squared norms of the bundles that a symmetry scales, as :class:`SymmetryNoise` stacks them.

    Raises:
        InputError: the symmetry has no charge, or one of a kind that is not covered.
    """
    if isinstance(symmetry, GeneralLinear):
        linear = symmetry

        def matrices(params: Params) -> Tensor:
            rows = linear.incoming_weights(params), linear.outgoing_weights(params)
            return torch.stack([matrix @ matrix.T for matrix in rows])

        return matrices
    if isinstance(symmetry, PositiveRescaling | ExponentialSymmetry):
        scaling = symmetry
        return lambda params: torch.stack([norms for _, norms in scaling.weighted_norms(params)])
    raise InputError(f"{symmetry.kind} of layer {symmetry.layer!r} has no noise equilibrium")


def bundle_powers(symmetry: Symmetry, params: Params) -> tuple[float, ...]:
    """Return the power of each bundle of :func:`bundle_norms`."""
    if isinstance(symmetry, PositiveRescaling | ExponentialSymmetry):
        return tuple(power for power, _ in symmetry.weighted_norms(params))
    return (1.0, -1.0)


def symmetry_noise(
    symmetries: Sequence[Symmetry], moments: GradientMoments, params: Params
) -> list[SymmetryNoise]:
    """Return the noise of each symmetry from moments accumulated with the forms of :func:`noise_forms`."""
    found = []
    for place, symmetry in enumerate(symmetries):
        norms = bundle_norms(symmetry)
        noise, of_charge = moments.centred[2 * place], moments.centred[2 * place + 1]
        # Equal samples leave differences of the size of rounding.
        real = noise.abs() > ROUNDING**2 * norms(moments.mean).abs()
        found.append(
            SymmetryNoise(
                bundle_powers(symmetry, params), torch.where(real, noise, 0.0), norms(params), of_charge
            )
        )
    return found


def noise_forms(symmetries: Sequence[Symmetry]) -> list[Quadratic]:
    """Return the quadratic forms of a sample's gradient that :func:`symmetry_noise` needs."""
    return [form for symmetry in symmetries for form in (bundle_norms(symmetry), charge_of(symmetry))]


def noise_balance(symmetry: Symmetry, per_sample_gradients: Params) -> Tensor:
    r"""Return how far the gradient noise is from balance, $\mathrm{Tr}[\Sigma A]/\mathrm{Tr}[\Sigma|A|]$.

    In [-1, 1] and 0 at the noise equilibrium; its sign is that of the drift of the charge. A general linear
    group has a matrix of charges and $\|\Gamma_{out}-\Gamma_{in}\|_*/\mathrm{Tr}[\Gamma_{out}+\Gamma_{in}]$
    instead, in [0, 1].

    Args:
        symmetry: a positive rescaling, scale invariance, general linear or exponential symmetry.
        per_sample_gradients: by parameter name, each of shape (n_samples, *parameter shape).

    Returns:
        Shape (units,), or () for a general linear group; 0 where there is no noise at all.

    Raises:
        InputError: the symmetry has no charge.

    Source: arXiv 2402.07193; the normalisation is ours.

    Gradients (2, 1) and (-2, -1) of one unit's incoming and outgoing weight:

    >>> from symdyn_core.symmetry.units import Axis, Units
    >>> rescaling = PositiveRescaling(Units("0", 1, (Axis("w", 0),), (Axis("v", 1),)))
    >>> gradients = {"w": torch.tensor([[[2.0]], [[-2.0]]]), "v": torch.tensor([[[1.0]], [[-1.0]]])}
    >>> noise_balance(rescaling, gradients)
    tensor([-0.6000])
    """
    moments = GradientMoments.of([per_sample_gradients], noise_forms([symmetry]))
    return symmetry_noise([symmetry], moments, moments.mean)[0].balance


def _finite(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=float)
    if array.size == 0 or array.ndim not in (1, 2):
        raise InputError(f"{name} must be a non-empty vector or matrix, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, got NaN or infinite entries")
    return array


def _symmetric(name: str, values: ArrayLike) -> Array:
    matrix = _finite(name, values)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1]:
        raise InputError(f"{name} must be a square matrix, got shape {matrix.shape}")
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-9 * np.abs(matrix).max()):
        raise InputError(f"{name} must be symmetric")
    return (matrix + matrix.T) / 2


def _cleaned(values: Array, *, positive: bool = False) -> Array:
    """Return the values with those of rounding size set to zero."""
    kept = values if positive else np.abs(values)
    return np.where(kept > ROUNDING * len(values) * np.abs(values).max(), values, 0.0)
