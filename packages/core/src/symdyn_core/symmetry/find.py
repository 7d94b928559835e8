"""Find the symmetries of a model: propose them from its structure, then verify each one numerically.

Structure proposes, numbers decide. Every proposal is tested with random group elements on the user's own
inputs in float64, at the model's own parameters and at generic ones around them: at the model's own
parameters alone a net with zero biases or dead units has accidental symmetries that the next training step
destroys.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, Params, check_samples, from_vector, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.kinds import (
    GeneralLinear,
    Permutation,
    PositiveRescaling,
    SignFlip,
    Symmetry,
    Translation,
)
from symdyn_core.symmetry.trace import Chain, Layer, trace_chain
from symdyn_core.symmetry.units import Axis, Units

# Rounding in float64 leaves relative errors of about 1e-15 per layer; what is not a symmetry changes the
# function by a fraction of order one at generic parameters. Anything between separates them.
TOLERANCE = 1e-9
ELEMENTS = 3  # random group elements per proposal and parameter point
VERIFIED_SAMPLES = 256  # a symmetry holds for every input, so that more would only cost time


@dataclass(frozen=True)
class Finding:
    """A proposed symmetry and how well it stood the test.

    Args:
        symmetry: the transformation.
        error: largest change of the outputs over all tests, relative to the largest output.
        moved: distance that the last element moved the model's own parameters, relative to their norm.
    """

    symmetry: Symmetry
    error: float
    moved: float

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values; an error that is not a number is None."""
        symmetry = self.symmetry
        return {
            "kind": symmetry.kind,
            "layer": symmetry.layer,
            "parameters": list(symmetry.parameters),
            "group": symmetry.group,
            "dimension": symmetry.dimension,
            "error": self.error if math.isfinite(self.error) else None,
            "moved": self.moved,
        }


@dataclass(frozen=True)
class SymmetryReport:
    """The symmetries of a model.

    Args:
        found: those that were verified.
        rejected: those that its structure suggests and the numerical test refutes.
    """

    found: tuple[Finding, ...]
    rejected: tuple[Finding, ...]

    @property
    def dimension(self) -> int:
        """Dimension of the orbit of all continuous symmetries together, at a generic point.

        Never more than the sum of their dimensions; less where hidden units of consecutive linear maps
        outnumber what they connect. Of such maps either all must have a bias, or none, or only the first.
        """
        linear = [finding.symmetry for finding in self.found if isinstance(finding.symmetry, GeneralLinear)]
        others = [f.symmetry.dimension for f in self.found if not isinstance(f.symmetry, GeneralLinear)]
        translated = {translation.layer for translation in self.of_kind(Translation.kind)}
        return sum(others) + sum(_orbit_dimension(run, translated) for run in _linear_runs(linear))

    def of_kind(self, kind: str) -> tuple[Symmetry, ...]:
        """Return the verified symmetries of one kind, in the order of the layers."""
        return tuple(finding.symmetry for finding in self.found if finding.symmetry.kind == kind)


def _linear_runs(symmetries: list[GeneralLinear]) -> list[list[GeneralLinear]]:
    """Return the symmetries grouped by the product of linear maps that they belong to."""
    runs: list[list[GeneralLinear]] = []
    for symmetry in symmetries:
        if runs and runs[-1][-1].units.outgoing[0] == Axis(symmetry.units.incoming[0].parameter, 1):
            runs[-1].append(symmetry)
        else:
            runs.append([symmetry])
    return runs


def _orbit_dimension(run: list[GeneralLinear], translated: set[str]) -> int:
    r"""Return the dimension of the orbit of a product of linear maps under all its hidden layers' groups.

    With widths :math:`n_0\dots n_L` and :math:`r_{ij}=\min(n_i\dots n_j)`, the rank of the maps from i to j,
    this is :math:`\sum_{l=1}^{L-1}n_l^2-\sum_{1\le i\le j<L}(r_{ij}-r_{i-1,j})(r_{ij}-r_{i,j+1})`; the second
    sum counts the elements that move nothing. A bias that a translation can take to zero does not count; one
    that it cannot is one more input.

    Source: derived; the endomorphisms of a generic representation of the quiver 0 -> 1 -> ... -> L that
    vanish at both ends, counted interval by interval.
    """
    inputs = run[0].fan_in - (run[0].layer in translated)
    widths = [inputs, *(symmetry.units.size for symmetry in run), run[-1].fan_out]
    last = len(widths) - 1

    def rank(i: int, j: int) -> int:
        return min(widths[i : j + 1])

    intervals = [(i, j) for j in range(1, last) for i in range(1, j + 1)]
    idle = sum((rank(i, j) - rank(i - 1, j)) * (rank(i, j) - rank(i, j + 1)) for i, j in intervals)
    return sum(width * width for width in widths[1:-1]) - idle


def find_symmetries(
    model: nn.Module, inputs: Tensor, *, seed: int = 0, tolerance: float = TOLERANCE
) -> SymmetryReport:
    r"""Return the transformations of the parameters that leave the model's outputs unchanged.

    A proposal :math:`g` is kept if :math:`\max|f(g\theta,x)-f(\theta,x)|\le\epsilon\max|f(\theta,x)|` for
    random elements of its group, at the model's parameters and at generic ones.

    Args:
        model: a fully connected network: linear layers in a row with pointwise activations between them. It
            is copied, never changed; the function is that of evaluation mode.
        inputs: shape (n_samples, ...); the test uses at most 256 of them, evenly spaced.
        seed: draws the group elements and the generic parameters.
        tolerance: :math:`\epsilon`, in (0, 1).

    Raises:
        InputError: the model is not covered yet, does not run on the inputs, or is random in evaluation mode.

    Source: arXiv 2402.07193 and 2309.16932 for the kinds; re-derived.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
    ...     report = find_symmetries(model, torch.randn(16, 6))
    >>> report.dimension
    15
    >>> [symmetry.group for symmetry in report.of_kind("permutation")]
    ['S_8', 'S_7']
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance must be in (0, 1), got {tolerance}")
    check_samples("inputs", inputs)
    frozen = FrozenModel(model)
    samples = _spread(inputs, VERIFIED_SAMPLES)
    _check_deterministic(frozen, samples)
    return verify(frozen, list(propose(trace_chain(frozen))), samples, seed=seed, tolerance=tolerance)


def propose(chain: Chain) -> Iterator[Symmetry]:
    """Yield the symmetries that the activations of a chain suggest, layer by layer."""
    for layer, reader in pairwise(chain.layers):
        activation = layer.activation
        assert activation is not None  # only the last layer has none
        writers = [Axis(layer.weight, 0)] + ([Axis(layer.bias, 0)] if layer.bias else [])
        units = Units(layer.name, layer.fan_out, tuple(writers), (Axis(reader.weight, 1),))
        if activation.linear:
            yield GeneralLinear(units, layer.fan_in + bool(layer.bias), reader.fan_out)
            yield from _translations(layer, reader)
            continue
        if activation.homogeneous:
            yield PositiveRescaling(units)
        if activation.odd:
            yield SignFlip(units)
        if units.size > 1:
            yield Permutation(units)


def _translations(layer: Layer, reader: Layer) -> Iterator[Translation]:
    if layer.bias and reader.bias:
        yield Translation(layer.name, layer.fan_out, layer.bias, reader.weight, reader.bias)


def verify(
    model: FrozenModel, proposals: list[Symmetry], inputs: Tensor, *, seed: int, tolerance: float
) -> SymmetryReport:
    """Test every proposal with random group elements and sort them by the outcome."""
    generator = torch_generator(seed, "symmetry", "verify")
    points = [model.params, _generic(model.params, generator)]
    with torch.no_grad():
        outputs = [model(point, inputs) for point in points]
        findings = []
        for symmetry in proposals:
            error, moved = 0.0, 0.0
            for _ in range(ELEMENTS):
                element = symmetry.random_element(generator)
                images = [symmetry.act(point, element) for point in points]
                errors = [
                    _relative_change(model(image, inputs), output)
                    for image, output in zip(images, outputs, strict=True)
                ]
                error, moved = max(error, *errors), _distance(images[0], points[0])
            findings.append(Finding(symmetry, error, moved))
    return SymmetryReport(
        found=tuple(finding for finding in findings if finding.error <= tolerance),
        rejected=tuple(finding for finding in findings if not finding.error <= tolerance),
    )


def _generic(params: Params, generator: torch.Generator) -> dict[str, Tensor]:
    """Return parameters near the given ones without accidental zeros, equalities or dead units."""
    # As large as the parameter itself, or as a usual initialisation where it is zero.
    scales = {
        name: torch.full_like(value, float(value.square().mean().sqrt()) or value[0].numel() ** -0.5)
        for name, value in params.items()
    }
    vector = to_vector(params)
    noise = torch.randn(vector.shape, generator=generator, dtype=vector.dtype)
    return from_vector(vector + to_vector(scales) * noise, params)


def _check_deterministic(model: FrozenModel, inputs: Tensor) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first = model(model.params, inputs)
        # The model restores the random state behind itself; another draw needs another state.
        torch.rand(1)
        second = model(model.params, inputs)
    if not bool(torch.isfinite(first).all()):
        raise InputError("the model's outputs must be finite on these inputs, got NaN or infinite entries")
    if not torch.equal(first, second):
        raise InputError(
            "the model's outputs must be the same in every run of evaluation mode, got random ones"
        )


def _spread(inputs: Tensor, count: int) -> Tensor:
    """Return at most ``count`` of the samples, evenly spaced."""
    return inputs[:: max(1, -(-len(inputs) // count))]


def _relative_change(changed: Tensor, outputs: Tensor) -> float:
    change, scale = float((changed - outputs).abs().max()), float(outputs.abs().max())
    return change / scale if scale > 0 else (0.0 if change == 0 else float("inf"))


def _distance(moved: Params, params: Params) -> float:
    start = to_vector(params)
    scale = float(start.norm())
    return float((to_vector(moved) - start).norm()) / scale if scale > 0 else 0.0
