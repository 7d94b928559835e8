"""Audit a trained network: its symmetries, what they conserve, what has collapsed, and what to do."""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.params import LossFunction, evaluate_loss, flat_outputs, frozen_copy
from symdyn_core.symmetry.activity import Activity, watch_activity
from symdyn_core.symmetry.advice import advise
from symdyn_core.symmetry.audit_charges import COLUMNS as CHARGE_COLUMNS
from symdyn_core.symmetry.audit_charges import ChargeAudit, audit_charges
from symdyn_core.symmetry.audit_layers import COLUMNS as LAYER_COLUMNS
from symdyn_core.symmetry.audit_layers import LayerAudit, audit_layers
from symdyn_core.symmetry.find import SearchWarning, find_symmetries
from symdyn_core.symmetry.kinds import GeneralLinear
from symdyn_core.symmetry.page import render
from symdyn_core.symmetry.rebalance import EquilibriumReport, equilibrium_report
from symdyn_core.symmetry.report import Finding, SymmetryReport
from symdyn_core.symmetry.structure.forward import Untraceable, plain_operations

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType

SOLVED_PARAMETERS = 20_000


@dataclass(frozen=True)
class Training:
    """How the network is trained, as far as its noise equilibrium depends on it.

    Args:
        learning_rate: of SGD without momentum.
        batch_size: of SGD.
        weight_decay: as ``torch.optim.SGD`` takes it.
    """

    learning_rate: float
    batch_size: int
    weight_decay: float


@dataclass(frozen=True)
class AuditReport:
    """Symmetries, charges and collapse of a network; prints as a page in a terminal or notebook.

    Args:
        model: class name of the network.
        parameters: number of its parameters.
        frozen: names of those that do not train.
        samples: number of samples that activations were measured on.
        loss: on these samples, in evaluation mode.
        training: how it is trained, if that was said.
        layers: one entry per weight matrix, and per set of units that none of them stands for.
        charges: one entry per group of symmetries that conserve a charge.
        found: the symmetries.
        lost: fraction of the parameters whose work could be done by the others.
        not_covered: what the audit does not speak of, and why.
    """

    model: str
    parameters: int
    frozen: tuple[str, ...]
    samples: int
    loss: float
    training: Training | None
    layers: tuple[LayerAudit, ...]
    charges: tuple[ChargeAudit, ...]
    found: SymmetryReport
    lost: float
    not_covered: tuple[str, ...]

    @property
    def symmetries(self) -> tuple[Finding, ...]:
        """Symmetries that were verified on the data."""
        return self.found.found

    @property
    def approximate(self) -> tuple[Finding, ...]:
        """Symmetries that hold up to the eps of a normalisation."""
        return self.found.approximate

    @property
    def rejected(self) -> tuple[Finding, ...]:
        """Symmetries that the structure suggests and the numbers refute."""
        return self.found.rejected

    @property
    def dimension(self) -> int:
        """Number of directions in parameter space along which the function does not change."""
        return self.found.dimension

    @property
    def advice(self) -> list[str]:
        """What to do, most pressing first, one plain sentence or a few for each finding."""
        return advise(self)

    def to_frame(self, rows: str = "layers") -> "pd.DataFrame":
        """Return a table with one row per layer, per charge, or per symmetry.

        Args:
            rows: ``layers``, ``charges`` or ``symmetries``.

        Raises:
            InputError: another word.
        """
        import pandas as pd

        if rows not in ("layers", "charges", "symmetries"):
            raise InputError(f"rows must be 'layers', 'charges' or 'symmetries', got {rows!r}")
        if rows == "symmetries":
            return self.found.to_frame()
        if rows == "charges":
            return pd.DataFrame([charge.to_row() for charge in self.charges], columns=CHARGE_COLUMNS)
        return pd.DataFrame([layer.to_row() for layer in self.layers], columns=LAYER_COLUMNS)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = {
            "model": self.model,
            "parameters": self.parameters,
            "frozen": list(self.frozen),
            "samples": self.samples,
            "loss": self.loss,
            "training": asdict(self.training) if self.training else None,
            "dimension": self.dimension,
            "lost": self.lost,
            "layers": [layer.to_dict() for layer in self.layers],
            "charges": [charge.to_dict() for charge in self.charges],
            "symmetries": [finding.to_dict() for finding in self.symmetries],
            "approximate": [finding.to_dict() for finding in self.approximate],
            "rejected": [finding.to_dict() for finding in self.rejected],
            "completeness": self.found.completeness(),
            "coverage": self.found.coverage,
            "notes": list(self.found.notes),
            "not_covered": list(self.not_covered),
            "advice": self.advice,
        }
        loaded: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
        return loaded

    def to_html(self, title: str | None = None) -> str:
        """Return the audit as one HTML page with its figures, readable offline, on a phone and on paper.

        Args:
            title: what was audited; by default the class of the model.
        """
        from symdyn_core.symmetry.audit_html import page

        return page(self, title)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        yield from render(self)


def audit(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    chunk_size: int = 1024,
) -> AuditReport:
    """Return the symmetries of a network, what they conserve, and how far its layers have collapsed.

    Args:
        model: any module; it is copied, never changed, and its units are judged in evaluation mode.
        loss_fn: maps (outputs, targets) to one number.
        inputs: shape (n_samples, ...); held-out data, a few hundred samples or more.
        targets: shape (n_samples, ...).
        learning_rate: of SGD; with it and `batch_size` the audit says where the noise takes each charge.
        batch_size: of SGD, in [1, n_samples].
        weight_decay: as ``torch.optim.SGD`` takes it; used with the two before.
        seed: draws the group elements that verify the symmetries.
        chunk_size: samples per forward pass, at least 1; the results do not depend on it.

    Raises:
        InputError: the data do not fit, the loss is not one finite number, or a value is out of range. A
            model of which not everything can be said is no error: see ``not_covered`` of the report.

    Source: charges and noise equilibrium from arXiv 2402.07193, collapsed states from arXiv 2309.16932;
    re-derived.

    >>> import torch
    >>> with torch.random.fork_rng():
    ...     model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(20, 2)
    ...     report = audit(model, nn.functional.mse_loss, x, x[:, :1])
    >>> [(finding.symmetry.kind, finding.symmetry.group) for finding in report.symmetries]
    [('positive rescaling', 'R_+^3'), ('permutation', 'S_3')]
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
    training = _training(learning_rate, batch_size, weight_decay, inputs)
    loss = _loss(model, loss_fn, inputs, targets)
    not_covered: list[str] = []
    found = _symmetries(model, inputs, seed, not_covered)
    activity = _activity(model, inputs, chunk_size, not_covered)
    equilibrium = None
    if training is not None:
        equilibrium = _equilibrium(model, (loss_fn, inputs, targets), training, found, not_covered)
    layers, lost = audit_layers(model, found, activity)
    return AuditReport(
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        frozen=tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
        samples=len(inputs),
        loss=loss,
        training=training,
        layers=layers,
        charges=audit_charges(model, found, equilibrium),
        found=found,
        lost=lost,
        not_covered=tuple(not_covered),
    )


def _training(
    learning_rate: float | None, batch_size: int | None, weight_decay: float, inputs: Tensor
) -> Training | None:
    """Return the settings of training, checked before the work that needs them."""
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay must be at least 0, got {weight_decay}")
    if learning_rate is None and batch_size is None:
        if weight_decay:
            raise InputError("weight_decay belongs to learning_rate and batch_size, got neither")
        return None
    if learning_rate is None or batch_size is None:
        raise InputError(
            f"learning_rate and batch_size belong together, got {learning_rate} and {batch_size}"
        )
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be positive, got {learning_rate}")
    if isinstance(inputs, Tensor) and inputs.ndim and not 1 <= batch_size <= len(inputs):
        raise InputError(f"batch_size must be in [1, n_samples={len(inputs)}], got {batch_size}")
    return Training(learning_rate, batch_size, weight_decay)


def _loss(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, targets: Tensor) -> float:
    """Return the loss; of a model with several outputs, on all of them as it returns them."""
    frozen_copy(model)  # complains of what is no module
    outputs: list[Any] = []
    return evaluate_loss(
        _AllOutputs(model, lambda out: outputs.append(out)),
        lambda _, wanted: loss_fn(outputs[-1], wanted),
        inputs,
        targets,
    )


class _AllOutputs(nn.Module):
    """A model that shows its outputs, however many they are, before it returns them as one tensor."""

    def __init__(self, model: nn.Module, show: Callable[[Any], None]) -> None:
        super().__init__()
        self.model, self.show = model, show

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.model(inputs)
        self.show(outputs)
        return flat_outputs(outputs)


def _symmetries(model: nn.Module, inputs: Tensor, seed: int, not_covered: list[str]) -> SymmetryReport:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SearchWarning)  # a note of the report says the same
            found = find_symmetries(model, inputs, seed=seed)
    except InputError as error:
        not_covered.append(f"symmetries and charges: {error}")
        return SymmetryReport(found=(), rejected=())
    # Notes that start so are the reasons; the others describe what was done.
    not_covered += [
        f"symmetries: {note}"
        for note in found.notes
        if note.startswith(("the forward", "too large", "nothing"))
    ]
    return found


def _activity(model: nn.Module, inputs: Tensor, chunk_size: int, not_covered: list[str]) -> Activity:
    try:
        return watch_activity(model, inputs, chunk_size)
    except (InputError, Untraceable) as reason:
        not_covered.append(f"activations, dead units and copies on the data: {reason}")
        return Activity((), {})


def _equilibrium(
    model: nn.Module,
    data: tuple[LossFunction, Tensor, Tensor],
    training: Training,
    found: SymmetryReport,
    not_covered: list[str],
) -> EquilibriumReport | None:
    small = sum(parameter.numel() for parameter in model.parameters()) <= SOLVED_PARAMETERS
    matrices = [finding for finding in found.found if isinstance(finding.symmetry, GeneralLinear)]
    if matrices and not small:
        layers = ", ".join(dict.fromkeys(finding.symmetry.layer for finding in matrices))
        not_covered.append(
            f"noise equilibrium of the general linear symmetries ({layers}): each step towards it is a pass "
            f"over the data, which is done up to {SOLVED_PARAMETERS:,} parameters"
        )
        found = replace(found, found=tuple(finding for finding in found.found if finding not in matrices))
    try:
        with plain_operations():  # fused attention gives no gradient for each sample
            equilibrium = equilibrium_report(model, *data, **asdict(training), report=found)
    except InputError as error:
        not_covered.append(f"noise equilibrium: {error}")
        return None
    if equilibrium.rows and equilibrium.frozen:
        names = ", ".join(equilibrium.frozen[:3]) + (", …" if len(equilibrium.frozen) > 3 else "")
        not_covered.append(
            f"noise equilibrium as it is in training with {names}: these were seen in evaluation mode, where "
            "samples do not interact and nothing is dropped"
        )
    return equilibrium
