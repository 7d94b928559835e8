"""The common equilibrium of all symmetries of a model: one convex minimum over its orbit.

What leaves one layer enters the next, so that symmetries share weights. They are solved in turn until none
moves; the sum of noise and squared norm falls with every move. Rescalings need the variance of each weight's
gradient only, which is known after every move; a general linear group needs the data again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, LossFunction, Params, from_vector, to_vector
from symdyn_core.symmetry.charges import ExponentialSymmetry
from symdyn_core.symmetry.equilibrium import (
    SymmetryNoise,
    bundle_norms,
    bundle_powers,
    noise_forms,
    symmetry_noise,
)
from symdyn_core.symmetry.gradients import GradientMoments, per_sample_gradients
from symdyn_core.symmetry.kinds import GeneralLinear, PositiveRescaling, Symmetry

# Symmetries that share weights are solved in turn; each round is one pass over the data.
ROUNDS = 200
SWEEPS = 5000  # over the rescalings, which need no data; a sweep costs as much as reading the weights
CONVERGED = 1e-7  # of the logarithm of every factor: below what moves the charge's sixth digit


@dataclass
class End:
    """Where the search along an orbit ended: the parameters, and each symmetry's element that led there.

    ``left`` are the units without a finite equilibrium; ``[]`` is a whole general linear group, None nothing.
    """

    params: dict[str, Tensor]
    elements: list[Tensor]
    left: list[list[int] | None]


class Orbit:
    """All parameters that the charged symmetries of a model lead to."""

    def __init__(
        self,
        frozen: FrozenModel,
        loss_fn: LossFunction,
        inputs: Tensor,
        targets: Tensor,
        symmetries: Sequence[Symmetry],
    ) -> None:
        self.frozen, self.loss_fn, self.inputs, self.targets = frozen, loss_fn, inputs, targets
        charged = [
            isinstance(symmetry, PositiveRescaling | GeneralLinear | ExponentialSymmetry)
            and symmetry.charge(frozen.params) is not None
            for symmetry in symmetries
        ]
        self.symmetries = [s for s, has in zip(symmetries, charged, strict=True) if has]
        self.skipped = [name_of(s) for s, has in zip(symmetries, charged, strict=True) if not has]

    def moments(self, params: Params) -> GradientMoments:
        """Return the moments of the per-sample gradients: what the symmetries need, and each variance."""
        gradients = per_sample_gradients(self.frozen, self.loss_fn, self.inputs, self.targets, params=params)
        return GradientMoments.of(
            gradients, [*noise_forms(self.symmetries), lambda gradient: to_vector(gradient).square()]
        )

    def noises(self, moments: GradientMoments, params: Params) -> list[SymmetryNoise]:
        """Return the noise of each symmetry."""
        return symmetry_noise(self.symmetries, moments, params)

    def total_noise(self, params: Params) -> float:
        """Return the trace of the covariance of the per-sample gradient."""
        return float(self.moments(params).centred[-1].sum())

    def solve(self, noise_factor: float, decay_factor: float) -> End:
        """Return the minimum of noise and squared norm over the orbit."""
        end = End(
            dict(self.frozen.params),
            [_identity(symmetry, self.frozen.params) for symmetry in self.symmetries],
            [None] * len(self.symmetries),
        )
        diagonal = [k for k, s in enumerate(self.symmetries) if isinstance(s, PositiveRescaling)]
        others = [k for k in range(len(self.symmetries)) if k not in diagonal]
        # Only the entrywise noise of rescalings is known after a move without another pass over the data.
        coupled = any(
            set(self.symmetries[k].parameters) & set(self.symmetries[j].parameters)
            for k in others
            for j in range(len(self.symmetries))
            if j != k
        )
        for _ in range(ROUNDS):
            moved = self._rescale(end, diagonal, noise_factor, decay_factor) if diagonal else 0.0
            for place, k in enumerate(others):
                if coupled or place == 0:
                    moments = self.moments(end.params)
                noise = self.noises(moments, end.params)[k]
                moved = max(moved, self._move(end, k, noise.factors(noise_factor, decay_factor)))
            if not coupled or moved < CONVERGED:
                return end
        raise InputError(f"the equilibrium was not reached in {ROUNDS} passes over the data")

    def _rescale(self, end: End, places: list[int], noise_factor: float, decay_factor: float) -> float:
        """Balance all rescalings, in turn until none moves; return the first sweep's largest log factor."""
        variance = self.moments(end.params).centred[-1] if noise_factor else None
        deviation = from_vector(variance.sqrt(), end.params) if variance is not None else None
        first = 0.0
        for sweep in range(SWEEPS):
            moved = 0.0
            for k in places:
                symmetry = self.symmetries[k]
                assert isinstance(symmetry, PositiveRescaling)
                norms = bundle_norms(symmetry)(end.params)
                felt = bundle_norms(symmetry)(deviation) if deviation is not None else torch.zeros_like(norms)
                noise = SymmetryNoise(bundle_powers(symmetry, end.params), felt, norms, felt[0])
                factors = noise.factors(noise_factor, decay_factor)
                assert factors is not None
                if _reaches_itself(symmetry):
                    factors = factors.sqrt()  # its units share weights: a full step for each would overshoot
                moved = max(moved, self._move(end, k, factors))
                if deviation is not None:
                    deviation = symmetry.act(deviation, 1 / _finite_factors(factors))
            first = first if sweep else moved
            if moved < CONVERGED:
                return first
        raise InputError(
            f"the rescalings did not come to rest in {SWEEPS} sweeps; several units may run away together"
        )

    def _move(self, end: End, k: int, element: Tensor | None) -> float:
        """Apply an element as far as it is finite; return the logarithm of its largest factor."""
        if element is None:
            end.left[k] = []
            return 0.0
        symmetry = self.symmetries[k]
        if element.ndim == 2:
            end.elements[k] = element @ end.elements[k]
        else:
            fixed = ~(torch.isfinite(element) & (element > 0))
            end.left[k] = fixed.nonzero().flatten().tolist() or None
            element = _finite_factors(element)
            end.elements[k] = element * end.elements[k]
        end.params = symmetry.act(end.params, element)
        return length(element)


def _identity(symmetry: Symmetry, params: Params) -> Tensor:
    size = bundle_norms(symmetry)(params).shape[-1]
    is_matrix = isinstance(symmetry, GeneralLinear)
    return torch.eye(size, dtype=torch.float64) if is_matrix else torch.ones(size, dtype=torch.float64)


def _finite_factors(factors: Tensor) -> Tensor:
    return torch.where(torch.isfinite(factors) & (factors > 0), factors, 1.0)


def _reaches_itself(symmetry: PositiveRescaling) -> bool:
    """Whether units may share a weight, as those of a recurrent layer do."""
    return len(symmetry.parameters) < len(symmetry.units.axes)


def length(element: Tensor) -> float:
    """Return the logarithm of an element's largest factor or singular value, up or down."""
    values = torch.linalg.svdvals(element) if element.ndim == 2 else element
    return float(values.log().abs().max())


def name_of(symmetry: Symmetry) -> str:
    """Return how a report calls a symmetry."""
    return f"{symmetry.kind} of {symmetry.layer}"
