r"""What the escape law says of a user's model: outlier eigenvalues, temperature, how well it is held."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.escape import critical_effective_dimension, power_law_exponent
from symdyn_core.errors import InputError

# Eigenvalues below this fraction of the largest belong to the bulk.
BULK = 0.05

_AT_FIRST = 8  # eigenvalues asked for; doubled until the bulk is reached


@dataclass(frozen=True)
class EscapeExponent:
    r"""How strongly a minimum holds SGD, in the theory whose noise is in proportion to the loss.

    Attributes:
        outliers: eigenvalues of the Hessian above the bulk, largest first.
        complete: False if there are more outliers than were asked for.
        curvature: :math:`h^*`, their geometric mean, or the one along the given way out.
        temperature: :math:`T=\eta h^*/B`.
        power_law: :math:`\phi=1+1/T` of the stationary law :math:`L^{-\phi}`.
        critical_dimension: :math:`2\phi`; with as many outliers the minimum does not hold SGD.
    """

    outliers: tuple[float, ...]
    complete: bool
    curvature: float
    temperature: float
    power_law: float
    critical_dimension: float

    @property
    def dimension(self) -> int:
        """Effective dimension n: the number of outliers."""
        return len(self.outliers)

    @property
    def holds(self) -> bool:
        """Whether the stationary law about this minimum can be normalised."""
        return self.dimension < self.critical_dimension

    @property
    def power(self) -> float:
        r"""Power of the loss ratio by which escapes are slow, :math:`\frac1T+1-\frac n2`."""
        return self.power_law - self.dimension / 2


def escape_exponent(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    learning_rate: float,
    batch_size: int,
    way_out: Tensor | None = None,
    max_outliers: int = 64,
    seed: int = 0,
) -> EscapeExponent:
    r"""Return the escape exponent of a trained model from the outliers of its Hessian.

    Outliers are the eigenvalues of at least a twentieth of the largest one. The theory assumes the
    mean-square loss with residuals independent of the gradients; the method ``noise_to_loss_ratio`` of
    :func:`~symdyn_core.dynamics.gradient_noise.gradient_noise` tells how far that holds here.

    Args:
        model: at a minimum, or near one.
        loss_fn: ``loss_fn(outputs, targets)``, the mean over samples.
        inputs: samples.
        targets: of the samples.
        learning_rate: :math:`\eta>0`.
        batch_size: B >= 1.
        way_out: direction of the escape in the space of parameters, shape (P,), if it is known.
        max_outliers: look at no more eigenvalues than this.
        seed: of the vectors that the eigenvalues are found from.

    Raises:
        InputError: a value out of range; a model whose Hessian has no positive eigenvalue, or none among the
            ``max_outliers`` largest in size.

    Source: arXiv 2105.09557, escape rate with several outliers.

    >>> import torch
    >>> line = nn.utils.skip_init(nn.Linear, 1, 1, bias=False, dtype=torch.float64)
    >>> _ = nn.init.ones_(line.weight)
    >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> half_square = lambda output, target: (output - target).square().mean() / 2
    >>> result = escape_exponent(line, half_square, x, x, learning_rate=0.5, batch_size=2)
    >>> result.curvature, result.temperature, result.power
    (1.0, 0.25, 4.5)
    """
    power_law_exponent(1.0, learning_rate, batch_size)  # bad values are told before any work
    curvature = Curvature(model, loss_fn, inputs, targets)
    if max_outliers < 1:
        raise InputError(f"max_outliers must be >= 1, got {max_outliers}")
    most = min(max_outliers, curvature.dimension)
    wanted = min(_AT_FIRST, most)
    while True:
        values, _ = curvature.top_eigenvalues(wanted, seed=seed)
        top = float(values.max())
        # Eigenvalues come in the order of their size: negative ones among them do not end the outliers.
        complete = wanted == curvature.dimension or float(values.abs().min()) < BULK * top
        if complete or wanted == most:
            break
        wanted = min(2 * wanted, most)
    if top <= 0:
        raise InputError(
            f"not a minimum: the largest eigenvalue of the Hessian is {top:.4g}"
            if complete
            else f"not a minimum: the {most} eigenvalues of largest size are all negative, up to {top:.4g}"
        )
    outliers = sorted((float(value) for value in values if value >= BULK * top), reverse=True)
    if way_out is None:
        steepness = float(np.exp(np.log(outliers).mean()))
    else:
        if way_out.shape != (curvature.dimension,):
            raise InputError(
                f"way_out must be a vector of shape ({curvature.dimension},), got {tuple(way_out.shape)}"
            )
        unit = way_out.detach().to("cpu", torch.float64)
        if not (bool(torch.isfinite(unit).all()) and bool(unit.any())):
            raise InputError("way_out must be finite and not zero")
        unit = unit / unit.norm()
        steepness = float(unit @ curvature.matvec(unit))
        if steepness <= 0:
            raise InputError(f"the loss must curve upwards along way_out, got the curvature {steepness:.4g}")
    return EscapeExponent(
        outliers=tuple(outliers),
        complete=complete,
        curvature=steepness,
        temperature=learning_rate * steepness / batch_size,
        power_law=power_law_exponent(steepness, learning_rate, batch_size),
        critical_dimension=critical_effective_dimension(steepness, learning_rate, batch_size),
    )
