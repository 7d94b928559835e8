r"""Take a real model to its noise equilibrium, or say where SGD will take it.

Every continuous symmetry of a model leaves its function unchanged and yet is moved by the noise of SGD,
towards the one point of its orbit where the noise is balanced (:mod:`symdyn_core.symmetry.equilibrium`). The
symmetries share weights, what leaves one layer enters the next, so that their equilibria are solved together,
one symmetry at a time until none moves: the sum of noise and decay falls with every move.

The model is seen in evaluation mode, where samples do not interact. The noise is that of the given data at
the given weights; training that still changes the function changes it too.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, LossFunction, Params, check_data, frozen_copy, run, to_vector
from symdyn_core.symmetry.charges import ChargeDrift, Step, charge_of
from symdyn_core.symmetry.equilibrium import SymmetryNoise
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.kinds import Symmetry
from symdyn_core.symmetry.orbit import End, Orbit, length, name_of
from symdyn_core.symmetry.report import SymmetryReport

if TYPE_CHECKING:
    import pandas as pd

AT_EQUILIBRIUM = 0.05  # within five per cent of the factor that leads there
# Float64 leaves 1e-15 per layer; a transformation that is no symmetry changes the function by its own size.
EXACT = 1e-9
# In the model's own dtype every weight is rounded once; a network of usual depth adds up a few hundred.
ROUNDINGS = 1000


@dataclass(frozen=True)
class EquilibriumRow:
    """One unit of one symmetry, or a whole general linear group.

    Attributes:
        kind: of the symmetry.
        layer: qualified name of the layer whose units are transformed.
        unit: number of the unit; None for a general linear group, whose charges are summed (the trace).
        charge: now; for a ReLU unit the squared norm of its outgoing minus that of its incoming weights.
        noise_balance: of the gradient noise now, in [-1, 1], for a general linear group in [0, 1]; 0 is the
            noise equilibrium.
        drift_noise: expected change of the charge in the next step of SGD that comes from noise,
        drift_mean_gradient: from the mean gradient,
        drift_weight_decay: from weight decay.
        noise_factor: what the noise alone would multiply the unit's incoming weights by, in the end.
        noise_charge: the charge there.
        factor: the same for noise and decay together; None for a general linear group.
        equilibrium_charge: the charge there.
        distance: logarithm of the largest factor on the way there.
        relaxation_steps: steps of SGD in which a small displacement from there falls by a factor e; for a
            general linear group those of its slowest symmetric direction, an estimate.
        status: ``at equilibrium``, ``moving``, ``runs away`` (no equilibrium at finite distance) or
            ``no noise`` (nothing moves the charge but the mean gradient).
    """

    kind: str
    layer: str
    unit: int | None
    charge: float
    noise_balance: float
    drift_noise: float
    drift_mean_gradient: float
    drift_weight_decay: float
    noise_factor: float | None
    noise_charge: float | None
    factor: float | None
    equilibrium_charge: float | None
    distance: float | None
    relaxation_steps: float | None
    status: str

    @property
    def drift(self) -> float:
        """Expected change of the charge in the next step."""
        return self.drift_noise + self.drift_mean_gradient + self.drift_weight_decay


@dataclass(frozen=True)
class EquilibriumReport:
    """Where the charges of a model stand and where SGD takes them.

    Attributes:
        rows: one per unit and symmetry, in the order of the layers.
        skipped: symmetries that conserve no charge or none that is covered here, as "kind of layer".
        frozen: modules that behave otherwise in training, seen here in evaluation mode: where samples
            interact, as in batch normalisation, the noise of training is another.
    """

    rows: tuple[EquilibriumRow, ...]
    skipped: tuple[str, ...]
    frozen: tuple[str, ...]

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a table, the total drift beside its terms."""
        import pandas as pd

        return pd.DataFrame([asdict(row) | {"drift": row.drift} for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "skipped": list(self.skipped),
            "frozen": list(self.frozen),
        }


@dataclass(frozen=True)
class Rebalanced:
    """What :func:`rebalance_` did.

    Attributes:
        symmetries: how many symmetries were balanced.
        moved: distance in parameter space, relative to the norm of the parameters.
        output_change: largest change of an output on the inputs, relative to the largest output, in the
            model's own dtype.
        noise: trace of the covariance of the per-sample gradient before and after.
        squared_norm: of the parameters, before and after.
        untouched: symmetries and units left alone because no finite point of their orbit is balanced.
    """

    symmetries: int
    moved: float
    output_change: float
    noise: tuple[float, float]
    squared_norm: tuple[float, float]
    untouched: tuple[str, ...]


def rebalance_(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    to: str = "noise",
    symmetries: Sequence[Symmetry] | None = None,
    seed: int = 0,
) -> Rebalanced:
    r"""Move a model, in place, along its symmetries to where SGD would take it; its function does not change.

    ``to="noise"`` minimises the trace of the covariance of the per-sample gradient over the orbit, the noise
    equilibrium; ``to="norm"`` minimises $\|\theta\|^2$, where gradient flow with weight decay ends.

    The state of an optimizer (momentum, second moments) does not move along: start a fresh one.

    Args:
        model: keeps dtype, device and training mode; only parameters change.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...); the data whose noise counts.
        targets: shape (n_samples, ...).
        to: ``noise`` or ``norm``.
        symmetries: those to use; by default all with a charge that :func:`find_symmetries` finds.
        seed: draws the group elements that verify the symmetries.

    Raises:
        InputError: an unknown goal, no symmetry with a charge, or outputs that would change by more than
            rounding (the model is left as it was).

    Source: arXiv 2402.07193; the joint solution is derived.

    >>> layers = [nn.utils.skip_init(nn.Linear, 1, 1, bias=False, dtype=torch.float64) for _ in range(2)]
    >>> model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    >>> _ = nn.init.constant_(model[0].weight, 4.0), nn.init.constant_(model[2].weight, 1.0)
    >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> done = rebalance_(model, nn.functional.mse_loss, x, torch.zeros_like(x), to="norm")
    >>> round(model[0].weight.item(), 9), round(model[2].weight.item(), 9), done.squared_norm
    (2.0, 2.0, (17.0, 8.0...))
    """
    if to not in ("noise", "norm"):
        raise InputError(f"to must be 'noise' or 'norm', got {to!r}")
    check_data(inputs, targets)
    if symmetries is None:
        found = find_symmetries(model, inputs, statistics="running", certificate=False, seed=seed)
        symmetries = [finding.symmetry for finding in found.found]
    orbit = Orbit(FrozenModel(model), loss_fn, inputs, targets, symmetries)
    if not orbit.symmetries:
        raise InputError("the model has no symmetry with a charge, so that there is nothing to balance")
    noise_factor, decay_factor = (1.0, 0.0) if to == "noise" else (0.0, 1.0)
    end = orbit.solve(noise_factor, decay_factor)
    start = orbit.frozen.params
    with torch.no_grad():
        change = _relative_change(orbit.frozen(end.params, inputs), orbit.frozen(start, inputs))
    if not change <= EXACT:
        raise InputError(
            f"the symmetries must leave the outputs unchanged, got a relative change of {change}"
        )
    output_change = _write(model, end.params, inputs)
    moved = (to_vector(end.params) - to_vector(start)).norm() / to_vector(start).norm()
    return Rebalanced(
        symmetries=len(orbit.symmetries),
        moved=float(moved),
        output_change=output_change,
        noise=(orbit.total_noise(start), orbit.total_noise(end.params)),
        squared_norm=(float(to_vector(start).square().sum()), float(to_vector(end.params).square().sum())),
        untouched=tuple(
            name_of(symmetry) + (f", units {left}" if left else "")
            for symmetry, left in zip(orbit.symmetries, end.left, strict=True)
            if left is not None
        ),
    )


def equilibrium_report(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    weight_decay: float = 0.0,
    replacement: bool = False,
    report: SymmetryReport | None = None,
    seed: int = 0,
) -> EquilibriumReport:
    r"""Say for every symmetry of a model where its charge stands, where SGD takes it and how long that takes.

    Equilibria are those of noise and decay at the present function: the mean gradient, which dies out as
    training converges, counts in the drift of the next step but not in where the charge ends.

    Args:
        model: copied, never changed; seen in evaluation mode.
        loss_fn: maps (outputs, targets) to one number, the mean over the samples.
        inputs: shape (n_samples, ...); the training data, or a fair sample of it.
        targets: shape (n_samples, ...).
        learning_rate: of SGD without momentum.
        batch_size: of SGD.
        weight_decay: $\lambda$ as torch.optim.SGD takes it: the loss gains $\frac\lambda2\|\theta\|^2$.
        replacement: whether batches are drawn with replacement, or the data are a sample of many more.
        report: the symmetries, if they have been found already.
        seed: draws the group elements that verify the symmetries.

    Raises:
        InputError: the model is not covered, or a value is out of range.

    Source: arXiv 2402.07193; the joint equilibrium, the decay and the relaxation time are derived.
    """
    check_data(inputs, targets)
    step = Step(learning_rate, batch_size, len(inputs), weight_decay, replacement)
    found = report or find_symmetries(model, inputs, statistics="running", certificate=False, seed=seed)
    # What only the eps of a normalisation spoils drifts like a symmetry.
    symmetries = [finding.symmetry for finding in (*found.found, *found.approximate)]
    orbit = Orbit(FrozenModel(model), loss_fn, inputs, targets, symmetries)
    skipped, frozen = tuple(orbit.skipped), _frozen_modules(model)
    if not orbit.symmetries:
        return EquilibriumReport((), skipped, frozen)
    start = orbit.frozen.params
    moments = orbit.moments(start)
    only_noise = orbit.solve(1.0, 0.0)
    end = orbit.solve(step.noise_factor, step.decay_factor) if step.decay_factor else only_noise
    at_end = orbit.noises(orbit.moments(end.params), end.params)
    rows: list[EquilibriumRow] = []
    for place, (symmetry, noise) in enumerate(
        zip(orbit.symmetries, orbit.noises(moments, start), strict=True)
    ):
        charge = charge_of(symmetry)
        drift = step.drift(noise.of_charge, charge(moments.mean), charge(start))
        rate = torch.zeros(())
        if not (noise.is_matrix and end.left[place] is not None):
            rate = at_end[place].relaxation_rate(step.noise_factor, step.decay_factor)
        rows += _rows(symmetry, start, drift, noise, (only_noise, end), rate, place)
    return EquilibriumReport(tuple(rows), skipped, frozen)


def _frozen_modules(model: nn.Module) -> tuple[str, ...]:
    kinds = nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
    return tuple(
        f"{type(module).__name__} {name}"
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    )


def _rows(
    symmetry: Symmetry,
    params: Params,
    drift: ChargeDrift,
    noise: SymmetryNoise,
    ends: tuple[End, End],
    rate: Tensor,
    place: int,
) -> list[EquilibriumRow]:
    """Return the rows of one symmetry: one per unit, or one for a general linear group."""
    charges = [charge_of(symmetry)(at) for at in (params, ends[0].params, ends[1].params)]
    terms = [drift.noise, drift.mean_gradient, drift.weight_decay]
    if noise.is_matrix:
        charges, terms = ([torch.trace(value).reshape(1) for value in values] for values in (charges, terms))
    balance, units = noise.balance.reshape(-1), charges[0].numel()
    rates = rate.expand(units)
    rows = []
    for unit in range(units):
        reached = [
            end.left[place] is None or (not noise.is_matrix and unit not in _left(end, place)) for end in ends
        ]
        silent = not bool((noise.noise if noise.is_matrix else noise.noise[:, unit]).any())
        elements = [end.elements[place] for end in ends]
        lengths = [length(e if noise.is_matrix else e[unit : unit + 1]) for e in elements]
        factors = [
            None if noise.is_matrix or not ok else float(e[unit])
            for e, ok in zip(elements, reached, strict=True)
        ]
        pushed = reached[1] and bool(rates[unit] > 0)
        status = "moving" if lengths[1] > AT_EQUILIBRIUM else "at equilibrium"
        if not pushed:
            status = "no noise" if silent or reached[1] else "runs away"
        rows.append(
            EquilibriumRow(
                kind=symmetry.kind,
                layer=symmetry.layer,
                unit=None if noise.is_matrix else unit,
                charge=float(charges[0][unit]),
                noise_balance=float(balance[unit]),
                drift_noise=float(terms[0][unit]),
                drift_mean_gradient=float(terms[1][unit]),
                drift_weight_decay=float(terms[2][unit]),
                noise_factor=factors[0],
                noise_charge=float(charges[1][unit]) if reached[0] else None,
                factor=factors[1],
                equilibrium_charge=float(charges[2][unit]) if reached[1] else None,
                distance=lengths[1] if reached[1] else None,
                relaxation_steps=float(1 / rates[unit]) if pushed else None,
                status=status,
            )
        )
    return rows


def _left(end: End, place: int) -> list[int]:
    return end.left[place] or []


def _write(model: nn.Module, params: Params, inputs: Tensor) -> float:
    """Write the parameters into the model; return the change of its outputs, or restore it and raise."""
    own = dict(model.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in own.items()}
    with torch.no_grad():
        before = run(frozen_copy(model), inputs)
        limit = ROUNDINGS * torch.finfo(before.dtype).eps
        try:
            for name, parameter in own.items():
                parameter.copy_(params[name])
            change = _relative_change(_outputs(model, inputs), before)
            if not change <= limit:
                raise InputError(
                    f"in {before.dtype} the outputs would change by {change:.2g} of the largest, expected at "
                    f"most {limit:.2g}; the model is as it was"
                )
        except BaseException:
            for name, parameter in own.items():
                parameter.copy_(kept[name])
            raise
    return change


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs, NaN where the weights are not finite in the model's own dtype."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        return torch.full((), math.nan)
    return run(frozen_copy(model), inputs)


def _relative_change(changed: Tensor, outputs: Tensor) -> float:
    change, scale = float((changed - outputs).abs().max()), float(outputs.abs().max())
    return change / scale if scale > 0 else change
