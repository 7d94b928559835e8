r"""How much of a layer training has given up: rank, dead units, units that copy each other.

Each is a state that some symmetry of the layer leaves in place, so that gradient descent alone does not leave
it (arXiv 2309.16932): a zero unit (rescaling, sign flip), equal units (permutation), a lower rank (linear
maps).
"""

import math

import torch
from torch import Tensor

from symdyn_core.errors import InputError

# A unit that moves the next layer by less than this fraction of what the strongest unit does has faded.
FADED = 1e-3
# Units whose pre-activations have at least this cosine are copies: together they do what one of them does, up
# to an error of sqrt(1 - 0.999^2) = 4 %.
COPY_COSINE = 0.999


def effective_rank(singular_values: Tensor) -> float:
    r"""Return the number of directions that carry the spectrum, :math:`\exp(-\sum_i p_i\log p_i)`.

    :math:`p_i=\sigma_i/\sum_j\sigma_j`. Between 1 and the rank; equal to the rank if all are equal; 0 for
    zero.

    Args:
        singular_values: shape (k,), not negative.

    Source: O. Roy and M. Vetterli, "The effective rank", EUSIPCO 2007.

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    total = float(singular_values.sum())
    if total == 0:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return math.exp(-float((shares * shares.log()).sum()))


def numerical_rank(singular_values: Tensor, shape: tuple[int, int], epsilon: float) -> int:
    r"""Return how many singular values exceed :math:`\sigma_{\max}\,\epsilon\max(m,n)`.

    Args:
        singular_values: of a matrix of shape (m, n).
        shape: (m, n).
        epsilon: relative precision of the numbers that the matrix was made of: ``torch.finfo(dtype).eps``.

    >>> numerical_rank(torch.tensor([1.0, 1e-3, 1e-9]), (3, 3), epsilon=1e-7)
    2
    """
    if singular_values.numel() == 0:
        return 0
    return int((singular_values > singular_values.max() * epsilon * max(shape)).sum())


def duplicate_pairs(
    products: Tensor, *, up_to_scale: bool = False, up_to_sign: bool = False, threshold: float = COPY_COSINE
) -> list[tuple[int, int]]:
    r"""Return ``(i, j)`` for every unit j that copies an earlier unit i; each j appears once.

    The similarity of two units is :math:`2\langle z_i,z_j\rangle/(\|z_i\|^2+\|z_j\|^2)`, which is 1 only for
    equal ones; up to scale it is the cosine; up to sign its absolute value is taken.

    Args:
        products: :math:`\langle z_i,z_j\rangle` of the units' pre-activations over the data, shape (n, n).
        up_to_scale: whether a positive factor between two units counts as equal (rescaling symmetry).
        up_to_sign: whether a sign does (sign-flip symmetry).
        threshold: similarity from which on a unit is a copy, in (0, 1].

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    >>> duplicate_pairs(z @ z.T), duplicate_pairs(z @ z.T, up_to_scale=True)
    ([], [(0, 2)])
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must be in (0, 1], got {threshold}")
    squares = products.diagonal()
    if up_to_scale:
        sizes = torch.sqrt(torch.outer(squares, squares))
    else:
        sizes = (squares[:, None] + squares[None, :]) / 2
    similarity = torch.where(sizes > 0, products / sizes, torch.zeros_like(products))
    similar = (similarity.abs() if up_to_sign else similarity) >= threshold - 1e-12  # rounding of equal units
    copies: dict[int, int] = {}
    for unit in range(len(products)):
        if unit not in copies:
            later = torch.nonzero(similar[unit, unit + 1 :]).flatten() + unit + 1
            for follower in later.tolist():
                copies.setdefault(follower, unit)
    return sorted((original, follower) for follower, original in copies.items())


def weak_units(rows: Tensor, tolerance: float) -> list[int]:
    r"""Return the units whose weights are at most a fraction of what the layer's stronger units have.

    Measured against the median norm of the stronger half, so that a layer may be mostly dead.

    Args:
        rows: all weights of each unit, shape (n, k).
        tolerance: the fraction.

    >>> weak_units(torch.tensor([[3.0], [0.0], [0.1], [-4.0]]), 0.05)
    [1, 2]
    """
    if not len(rows):
        return []
    norms = rows.norm(dim=1)
    stronger = norms.sort(descending=True).values[: max(1, len(norms) // 2)]
    return [int(unit) for unit in torch.nonzero(norms <= tolerance * stronger.median()).flatten()]


def equal_units(rows: Tensor, tolerance: float, *, up_to_sign: bool = False) -> list[list[int]]:
    r"""Return the groups of two or more units whose weights agree.

    Two units belong together if :math:`\|T_i-T_j\|\le\epsilon\max(\|T_i\|,\|T_j\|)`, or if a third belongs to
    both (single linkage).

    Args:
        rows: all weights of each unit, shape (n, k).
        tolerance: :math:`\epsilon`.
        up_to_sign: whether a unit may be the negative of another (sign-flip symmetry).

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.01, 0.0], [0.0, -1.0]])
    >>> equal_units(rows, 0.05), equal_units(rows, 0.05, up_to_sign=True)
    ([[0, 2]], [[0, 2], [1, 3]])
    """
    if len(rows) < 2:
        return []
    # In float64 the expansion of the square loses what is far below any tolerance of use.
    products = rows @ rows.T
    squares = products.diagonal()
    overlaps = products.abs() if up_to_sign else products
    gaps = squares[:, None] + squares[None, :] - 2 * overlaps
    linked = gaps <= tolerance**2 * torch.maximum(squares[:, None], squares[None, :])
    from scipy.sparse.csgraph import connected_components

    labels = connected_components(linked.numpy(), directed=False)[1]
    groups: dict[int, list[int]] = {}
    for unit, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(unit)
    return [group for group in groups.values() if len(group) > 1]


class ActivityMoments:
    """Running moments of a layer's units over the data; memory does not grow with the number of samples.

    Args:
        units: number of units.
    """

    def __init__(self, units: int) -> None:
        self.count = 0
        self._products = torch.zeros(units, units, dtype=torch.float64)
        self._sum = torch.zeros(units, dtype=torch.float64)
        self._squares = torch.zeros(units, units, dtype=torch.float64)
        self._least = torch.full((units,), math.inf, dtype=torch.float64)
        self._most = torch.full((units,), -math.inf, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add pre-activations and activations, each of shape (samples, units)."""
        self.count += len(before)
        self._products += before.T @ before
        self._sum += after.sum(dim=0)
        self._squares += after.T @ after
        self._least = torch.minimum(self._least, after.amin(dim=0))
        self._most = torch.maximum(self._most, after.amax(dim=0))

    @property
    def products(self) -> Tensor:
        """Mean products of the pre-activations, not centred, shape (units, units)."""
        return self._products / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance of the activations, shape (units, units)."""
        mean = self._sum / self.count
        covariance = self._squares / self.count - torch.outer(mean, mean)
        if not bool(torch.isfinite(covariance).all()):
            largest = float(torch.maximum(self._least.abs(), self._most.abs()).max())
            raise InputError(f"activations must have squares that fit a float64, got {largest:.3g}")
        return covariance

    @property
    def constant(self) -> Tensor:
        """Which units have the same activation for every sample, shape (units,)."""
        return self._least == self._most

    def spread(self) -> Tensor:
        """Return the standard deviation of every unit's activation, shape (units,); exactly 0 if constant."""
        deviation = self.covariance.diagonal().clamp(min=0).sqrt()
        return torch.where(self.constant, torch.zeros_like(deviation), deviation)

    def singular_values(self) -> Tensor:
        """Return the singular values of the centred activations over sqrt(samples), descending."""
        values = torch.linalg.eigvalsh(self.covariance).flip(0)
        # Below this the subtraction of the mean leaves only rounding.
        floor = 1e-14 * self._squares.diagonal().sum() / self.count
        return torch.where(values > floor, values, torch.zeros_like(values)).sqrt()


def faded_units(spread: Tensor, outgoing: Tensor) -> list[int]:
    r"""Return the units that vary, but move the next layer by under a thousandth of what the strongest does.

    A unit moves the next layer by :math:`\mathrm{std}(a_i)\,\|w^{out}_i\|`, whatever the scale it is written
    in.

    Args:
        spread: standard deviation of the activations, shape (n,).
        outgoing: weights that read from the units, shape (n, k).

    >>> faded_units(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([[1.0], [1.0], [1e-4]]))
    [2]
    """
    effect = spread * outgoing.norm(dim=1)
    weak = (spread > 0) & (effect < FADED * effect.max())
    return [int(unit) for unit in torch.nonzero(weak).flatten()]
