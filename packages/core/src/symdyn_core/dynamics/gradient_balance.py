r"""Are the gradients of symmetric partners in balance? Where SGD is stationary they must be.

If every per-sample loss is invariant under $\theta\to e^{\lambda A}\theta$, $A=A^\top$, one step of SGD
changes $\theta^\top A\theta$ by $\eta^2\hat g^\top A\hat g$ exactly, so that stationarity asks for

$$E[\hat g^\top A\hat g]=0,$$

expectation over minibatches and over the stationary law of $\theta$: the incoming and the outgoing weights of
a ReLU unit receive gradients of equal mean square, whatever their own norms. For two linear layers in a row,
$W_1\to MW_1,\ W_2\to W_2M^{-1}$, it is an equality of matrices,
$E[\hat g_1\hat g_1^\top]=E[\hat g_2^\top\hat g_2]$. With the weight decay $\gamma$ of torch.optim.SGD

$$\eta\,E[\hat g^\top A\hat g]=(2\gamma-\eta\gamma^2)\,E[\theta^\top A\theta].$$

This is :class:`~symdyn_core.symmetry.charges.Step` at rest. The gradient here is not centred: at the end of
training, where the mean gradient is small against the noise, the balance is the noise equilibrium that
:func:`~symdyn_core.symmetry.rebalance.rebalance_` takes a model to. Rotations and permutations have no charge
and stay unbroken.

Source: arXiv 2505.12387, gradient balance; the identity with decay is exact at any step, re-derived.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError, unknown
from symdyn_core.params import FrozenModel, Inputs, LossFunction, Params, check_data, to_float64
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.charges import ExponentialSymmetry, Step
from symdyn_core.symmetry.equilibrium import bundle_norms, bundle_powers
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.gradients import per_sample_gradients
from symdyn_core.symmetry.kinds import GeneralLinear, PositiveRescaling, ScaleInvariance, Symmetry

if TYPE_CHECKING:
    import pandas as pd

Names = str | Sequence[str]
Pair = Symmetry | tuple[Names, Names]
"""A symmetry, or the names of the parameters that it multiplies by s and of those that it divides by s."""

# A symmetry leaves each loss as it is to rounding; a transformation that is none changes it by its own size.
INVARIANT, TESTED_SAMPLES = 1e-9, 16
AT_A_TIME = 256  # samples, for the mean gradient


@dataclass(frozen=True)
class BalanceRow:
    r"""The gradients of one symmetric pair, or of one unit of it.

    Attributes:
        kind: of the symmetry.
        layer: qualified name of the layer whose units are transformed.
        unit: number of the unit; None for the pair as a whole, all its units together.
        incoming: $E\|\hat g_1\|^2$ of the weights that the symmetry multiplies, biases included,
        outgoing: $E\|\hat g_2\|^2$ of those that it divides; both weighted by their powers where not all 1.
        ratio: incoming over outgoing, 1 in balance without weight decay.
        ratio_error: its standard error.
        force: $\eta\,E[\hat g^\top A\hat g]$, learning rate times incoming minus outgoing, the left side of
            the identity; None without a learning rate.
        force_error: its standard error.
        decay: $(2\gamma-\eta\gamma^2)\,\theta^\top A\theta$, the right side, from the squared norms of the
            incoming minus those of the outgoing weights.
        matrix_gap: for a linear pair, the Frobenius norm of what the matrix identity is off by, relative to
            the mean norm of the two matrices of gradients; else None.
        matrix_gap_error: its size if the identity held and only sampling made the gap.
    """

    kind: str
    layer: str
    unit: int | None
    incoming: float
    outgoing: float
    ratio: float
    ratio_error: float
    force: float | None
    force_error: float | None
    decay: float | None
    matrix_gap: float | None = None
    matrix_gap_error: float | None = None


@dataclass(frozen=True)
class BalanceReport:
    """The balance of a model's gradients.

    Attributes:
        pairs: one row per symmetric pair.
        units: one row per unit of the pairs that have a symmetry for each unit.
    """

    pairs: tuple[BalanceRow, ...]
    units: tuple[BalanceRow, ...]

    def to_frame(self, *, units: bool = False) -> "pd.DataFrame":
        """Return a table of the pairs, or of their units."""
        import pandas as pd

        rows = self.units if units else self.pairs
        return pd.DataFrame([asdict(row) for row in rows], columns=list(BalanceRow.__dataclass_fields__))


def find_scale_pairs(model: nn.Module, inputs: Inputs, *, seed: int = 0) -> tuple[Symmetry, ...]:
    """Return the symmetries that multiply some weights and divide others: those with a gradient balance.

    Positive rescalings (ReLU units, value and output projections, gains and their readers) and the general
    linear groups between linear maps, as :func:`~symdyn_core.symmetry.find.find_symmetries` verifies them in
    evaluation mode. A scale invariance has no partner; with weight decay it has an identity all the same, for
    which it can be given to :func:`gradient_balance`.

    Args:
        model: copied, never changed.
        inputs: shape (n_samples, ...), or a tuple of such tensors.
        seed: draws the group elements that verify the symmetries.

    Raises:
        InputError: see :func:`~symdyn_core.symmetry.find.find_symmetries`.

    >>> with torch.random.fork_rng():
    ...     model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 3))
    >>> [(pair.kind, pair.layer) for pair in find_scale_pairs(model, torch.eye(3))]
    [('positive rescaling', '0'), ('general linear', '2')]
    """
    report = find_symmetries(model, inputs, statistics="running", certificate=False, seed=seed)
    found = (finding.symmetry for finding in report.found)
    return tuple(
        symmetry
        for symmetry in found
        if isinstance(symmetry, PositiveRescaling | GeneralLinear | ExponentialSymmetry)
        and not isinstance(symmetry, ScaleInvariance)
    )


def gradient_balance(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    pairs: Sequence[Pair] | None = None,
    *,
    weight_decay: float = 0.0,
    learning_rate: float | None = None,
    batch_size: int = 1,
    replacement: bool = False,
    seed: int = 0,
) -> BalanceReport:
    r"""Return how the minibatch gradients of symmetric partners compare, with standard errors.

    $$E\|\hat g\|^2=\|\nabla L\|^2+\tfrac fS\,\mathrm{Tr}\,\Sigma$$

    over all minibatches, without drawing any. The identities hold on average over a stationary run. A
    snapshot differs from them by what $\theta$ fluctuates: average incoming, outgoing, force and decay over
    several, then divide. Before stationarity the squared norm of the incoming minus that of the outgoing
    weights changes by ``learning_rate * (force - decay)`` in the next step, on average.

    Standard errors take the samples as independent draws: they say how far other data of the same size would
    give other numbers. The data themselves are averaged over exactly.

    Args:
        model: copied, never changed; seen in float64 and evaluation mode.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...).
        targets: shape (n_samples, ...).
        pairs: symmetries, or pairs of parameter names, such as ``(("0.weight", "0.bias"), "2.weight")``; by
            default those of :func:`find_scale_pairs`.
        weight_decay: $\gamma\ge0$ as torch.optim.SGD takes it: the loss gains $\frac\gamma2\|\theta\|^2$.
        learning_rate: $\eta$ of SGD without momentum; needed with weight decay, and for the forces.
        batch_size: $S$, in [1, n_samples] unless drawn with replacement.
        replacement: whether batches are drawn with replacement, or afresh from an endless supply of which the
            data are a sample.
        seed: draws the group elements that verify the symmetries.

    Raises:
        InputError: the model has no symmetric pair or not the one given, weight decay without a learning
            rate, a value out of range, or gradients that are not finite.

    Source: arXiv 2505.12387, gradient balance; re-derived.

    The loss (v w x)^2 at w = 1, v = 2, x = 1 has the gradients 8 for w and 4 for v.

    >>> layers = [nn.utils.skip_init(nn.Linear, 1, 1, bias=False) for _ in range(2)]
    >>> model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    >>> _ = nn.init.constant_(model[0].weight, 1.0), nn.init.constant_(model[2].weight, 2.0)
    >>> x = torch.ones(2, 1)
    >>> report = gradient_balance(model, nn.functional.mse_loss, x, 0 * x, [("0.weight", "2.weight")])
    >>> report.pairs[0].incoming, report.pairs[0].outgoing, report.pairs[0].ratio
    (64.0, 16.0, 4.0)
    """
    check_data(inputs, targets)
    if weight_decay and learning_rate is None:
        raise InputError(f"learning_rate must be given with weight_decay, got weight_decay={weight_decay}")
    rate = 1.0 if learning_rate is None else learning_rate
    step = Step(rate, batch_size, len(inputs), weight_decay, replacement)
    frozen = FrozenModel(model)
    if pairs is None:
        found = find_scale_pairs(model, inputs, seed=seed)
    else:
        found = tuple(_symmetry(pair, frozen.params) for pair in pairs)
        fixed = {name for name, value in model.named_parameters() if not value.requires_grad}
        for symmetry in found:
            if held := fixed.intersection(symmetry.parameters):
                raise InputError(
                    f"both sides of a pair must be trained, got {min(held)!r} without requires_grad"
                )
            _check_invariant(symmetry, frozen, loss_fn, inputs, targets, seed)
    if not found:
        raise InputError("the model must have a pair of weights with a scale symmetry between them, got none")
    mean = _mean_gradient(frozen, loss_fn, inputs, targets)
    accounts = [_Account(symmetry, frozen.params, mean, step) for symmetry in found]
    for chunk in per_sample_gradients(frozen, loss_fn, inputs, targets):
        deviations = {name: gradient - mean[name] for name, gradient in chunk.items()}
        for account in accounts:
            account.add(chunk, deviations)
    rows = [account.rows(with_force=learning_rate is not None) for account in accounts]
    return BalanceReport(tuple(pair for pair, _ in rows), tuple(unit for _, units in rows for unit in units))


def _symmetry(pair: Pair, params: Params) -> Symmetry:
    if not isinstance(pair, Symmetry):
        if isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"a pair must be a symmetry or two groups of parameter names, got {pair!r}")
        multiplied, divided = ((side,) if isinstance(side, str) else tuple(side) for side in pair)
        names = (*multiplied, *divided)
        for name in names:
            if name not in params:
                raise InputError(unknown("parameter", str(name), params))
        if not multiplied or not divided or len(set(names)) < len(names):
            raise InputError(f"a pair must name each parameter once, with some on both sides, got {pair!r}")
        signs = [torch.full_like(params[name], 1.0 if name in multiplied else -1.0) for name in names]
        return ExponentialSymmetry(torch.cat([sign.reshape(-1) for sign in signs]), names)
    for name in pair.parameters:
        if name not in params:
            raise InputError(unknown("parameter", name, params, where=f" of the {pair.kind} given"))
    bundle_norms(pair)  # refuses the kinds that conserve nothing
    return pair


def _check_invariant(
    symmetry: Symmetry,
    frozen: FrozenModel,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    seed: int,
) -> None:
    moved = symmetry.act(frozen.params, symmetry.random_element(torch_generator(seed, "gradient balance")))
    labels = to_float64(targets)
    for k in range(min(TESTED_SAMPLES, len(inputs))):
        before, after = (
            float(loss_fn(frozen(params, inputs[k : k + 1]), labels[k : k + 1]))
            for params in (frozen.params, moved)
        )
        if not abs(after - before) <= INVARIANT * max(abs(before), abs(after)):
            raise InputError(
                f"the {symmetry.kind} of {symmetry.layer!r} must leave the loss of every sample unchanged, "
                f"got {before:g} and {after:g} for sample {k}"
            )


def _mean_gradient(
    frozen: FrozenModel, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss, which costs little beside those of the samples."""
    labels, mean = to_float64(targets), {name: torch.zeros_like(at) for name, at in frozen.params.items()}
    for start in range(0, len(inputs), AT_A_TIME):
        x, y = inputs[start : start + AT_A_TIME], labels[start : start + AT_A_TIME]
        gradient = torch.func.grad(lambda params, x=x, y=y: loss_fn(frozen(params, x), y).reshape(()))
        share = len(x) / len(inputs)
        mean = {name: mean[name] + share * value for name, value in gradient(frozen.params).items()}
    if not all(bool(torch.isfinite(value).all()) for value in mean.values()):
        raise InputError("the gradient of the loss must be finite, got NaN or infinite entries")
    return mean


class _Account:
    """What one symmetry's gradients add up to.

    The squares of a gradient are two rows: of the weights that the symmetry multiplies, and of those that it
    divides; each of shape (units,), or (units, units) for a general linear group.
    """

    def __init__(self, symmetry: Symmetry, params: Params, mean: Params, step: Step) -> None:
        self.symmetry, self.step = symmetry, step
        self.is_matrix = isinstance(symmetry, GeneralLinear)
        self._norms = bundle_norms(symmetry)
        powers = torch.tensor(bundle_powers(symmetry, params), dtype=torch.float64)
        self._weights = torch.stack([powers.clamp(min=0), (-powers).clamp(min=0)])
        # The share of the noise in a batch, without the learning rate.
        self._share = step.noise_factor / step.learning_rate**2
        self._of_mean, self._of_params = self.squares(mean), self.squares(params)
        self._count, self._noise = 0, torch.zeros_like(self._of_mean)
        units = self._units(self._of_mean)
        self._sum, self._products = torch.zeros_like(units), torch.zeros(2, 2, units.shape[1]).to(units)
        self._total_products = torch.zeros(2, 2).to(units)
        self._gap, self._gap_square = torch.zeros_like(self._of_mean[0]), torch.zeros(()).to(units)

    def squares(self, gradient: Params) -> Tensor:
        """Return the two rows for one gradient."""
        sides: Tensor = torch.tensordot(self._weights, self._norms(gradient), dims=1)
        return sides

    @property
    def expected(self) -> Tensor:
        """The mean squares of a minibatch's gradient."""
        return self._of_mean + self._share * self._noise / self._count

    def add(self, gradients: Params, deviations: Params) -> None:
        """Add the noise of some samples, and what each contributes to the sampling error.

        That is the derivative of the expected squares with respect to the weight of the sample, its influence
        function, here up to a constant: twice the product of the mean gradient with its deviation, and its
        noise.
        """
        of_samples, noise = (torch.func.vmap(self.squares)(given) for given in (gradients, deviations))
        influence = of_samples - noise - self._of_mean + self._share * noise
        units = torch.func.vmap(self._units)(influence)
        total, gap = units.sum(dim=2), influence[:, 0] - influence[:, 1]
        self._count += len(noise)
        self._noise = self._noise + noise.sum(dim=0)
        self._sum = self._sum + units.sum(dim=0)
        self._products = self._products + torch.einsum("nau,nbu->abu", units, units)
        self._total_products = self._total_products + total.T @ total
        self._gap, self._gap_square = self._gap + gap.sum(dim=0), self._gap_square + gap.square().sum()

    def rows(self, *, with_force: bool) -> tuple[BalanceRow, list[BalanceRow]]:
        """Return the row of the pair and those of its units."""
        expected, norms = self._units(self.expected), self._units(self._of_params)
        total = self._covariance(self._total_products, self._sum.sum(dim=1))
        whole = self._row(None, expected.sum(dim=1), total, norms.sum(dim=1), with_force)
        if self.is_matrix or expected.shape[1] == 1:
            return whole, []
        return whole, [
            self._row(
                unit,
                expected[:, unit],
                self._covariance(self._products[:, :, unit], self._sum[:, unit]),
                norms[:, unit],
                with_force,
            )
            for unit in range(expected.shape[1])
        ]

    def _covariance(self, products: Tensor, sums: Tensor) -> Tensor:
        """Return the covariance of the two expected squares, as other data would scatter them."""
        mean = sums / self._count
        return (products / self._count - torch.outer(mean, mean)) / self._count

    def _units(self, squares: Tensor) -> Tensor:
        """Return the rows unit by unit; only the trace of a matrix is a number of the pair."""
        if not self.is_matrix:
            return squares
        return torch.diagonal(squares, dim1=1, dim2=2).sum(dim=1, keepdim=True)

    def _row(
        self, unit: int | None, expected: Tensor, covariance: Tensor, norms: Tensor, with_force: bool
    ) -> BalanceRow:
        rate = self.step.learning_rate
        incoming, outgoing = expected
        ratio = incoming / outgoing
        of_ratio = torch.stack([1 / outgoing, -ratio / outgoing])
        difference = torch.tensor([1.0, -1.0], dtype=torch.float64)
        gap, gap_error = self._matrix_gap() if self.is_matrix else (None, None)
        return BalanceRow(
            kind=self.symmetry.kind,
            layer=self.symmetry.layer,
            unit=unit,
            incoming=float(incoming),
            outgoing=float(outgoing),
            ratio=float(ratio),
            ratio_error=_error(of_ratio, covariance),
            force=rate * float(difference @ expected) if with_force else None,
            force_error=rate * _error(difference, covariance) if with_force else None,
            decay=self.step.decay_factor / rate * float(difference @ norms) if with_force else None,
            matrix_gap=gap,
            matrix_gap_error=gap_error,
        )

    def _matrix_gap(self) -> tuple[float, float]:
        incoming, outgoing = self.expected
        difference = self._of_params[0] - self._of_params[1]
        decay = self.step.decay_factor / self.step.learning_rate**2 * difference
        size = float(incoming.norm() + outgoing.norm()) / 2
        if size == 0:
            return math.nan, math.nan
        scatter = float(self._gap_square) / self._count - float((self._gap / self._count).square().sum())
        error = math.sqrt(max(scatter, 0.0) / self._count)
        return float((incoming - outgoing - decay).norm()) / size, error / size


def _error(slope: Tensor, covariance: Tensor) -> float:
    """Return the standard error of a function of the two expectations, to first order."""
    return float((slope @ covariance @ slope).clamp(min=0).sqrt())
