"""Test proposed symmetries: random group elements, and the outputs must not move."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from symdyn_core.params import Inputs, Params
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.certificate import generic_point
from symdyn_core.symmetry.kinds import ScaleInvariance, Symmetry
from symdyn_core.symmetry.report import Finding

# Rounding in float64 leaves relative errors of about 1e-15 per layer; what is not a symmetry changes the
# function by a fraction of order one at generic parameters. Anything between separates them.
TOLERANCE = 1e-9
# The eps of a normalisation breaks scale invariance by about eps / variance.
APPROXIMATE = 1e-2

Sorted = tuple[list[Finding], list[Finding], list[Finding]]


def verify(
    f: Callable[[Params, Inputs], Tensor],
    params: Params,
    proposals: Sequence[Symmetry],
    inputs: Inputs,
    *,
    point: Params | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Sorted:
    r"""Return the proposals sorted into verified, approximate and rejected ones.

    All are tried at once, each with a random element; where the outputs change, the halves are tried, down to
    single proposals. Approximate ones change the outputs by at most 1e-2.

    Args:
        f: maps (params, inputs) to outputs.
        params: where the user stands.
        proposals: transformations of these parameters.
        inputs: samples on which the outputs are compared.
        point: generic parameters at which they are compared as well; drawn around ``params`` by default.
        seed: draws the elements.
        tolerance: largest change of an output, relative to the largest output, of a verified symmetry.
    """
    generator = torch_generator(seed, "symmetry", "verify")
    point = generic_point(params, generator) if point is None else point
    errors: dict[int, float] = {}
    with torch.no_grad():
        before = [(place, f(place, inputs)) for place in (point, params)]

        def error_of(chosen: Sequence[Symmetry]) -> float:
            worst = 0.0
            for place, outputs in before:
                moved: Params = place
                for symmetry in chosen:
                    moved = symmetry.act(moved, symmetry.random_element(generator))
                change = relative_change(f(moved, inputs), outputs)
                worst = max(worst, change if math.isfinite(change) else math.inf)
            return worst

        def settle(chosen: Sequence[Symmetry]) -> None:
            error = error_of(chosen)
            if error <= tolerance or len(chosen) == 1:
                errors.update({id(symmetry): error for symmetry in chosen})
                return
            settle(chosen[: len(chosen) // 2])
            settle(chosen[len(chosen) // 2 :])

        # Those that the eps of a normalisation spoils are kept apart from those that it does not touch.
        for group in (
            [s for s in proposals if isinstance(s, ScaleInvariance)],
            [s for s in proposals if not isinstance(s, ScaleInvariance)],
        ):
            if group:
                settle(group)
        findings = [Finding(s, errors[id(s)], distance_moved(s, params, generator)) for s in proposals]
    return (
        [finding for finding in findings if finding.error <= tolerance],
        [finding for finding in findings if tolerance < finding.error <= APPROXIMATE],
        [finding for finding in findings if finding.error > max(tolerance, APPROXIMATE)],
    )


def relative_change(changed: Tensor, outputs: Tensor) -> float:
    """Return the largest change of the outputs relative to the largest output.

    >>> relative_change(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
    1.0
    """
    change, scale = float((changed - outputs).abs().max()), float(outputs.abs().max())
    return change / scale if scale > 0 else (0.0 if change == 0 else math.inf)


def distance_moved(symmetry: Symmetry, params: Params, generator: torch.Generator) -> float:
    """Return how far a random element moves the parameters it touches, relative to their norm."""
    moved = symmetry.act(params, symmetry.random_element(generator))
    change = sum(float((moved[name] - params[name]).square().sum()) for name in symmetry.parameters)
    size = sum(float(params[name].square().sum()) for name in symmetry.parameters)
    return math.sqrt(change / size) if size > 0 else 0.0
