"""From what an audit measured to what its reader should do: one rule per function, plain sentences."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from symdyn_core.symmetry.audit import AuditReport
    from symdyn_core.symmetry.audit_layers import LayerAudit

# (9 - 1) / (9 + 1): squared norms that differ ninefold. The gradients of the two sides then differ threefold,
# as if one of them had a learning rate three times the other's.
LOPSIDED = 0.8
# Effective rank of the activations over the number of units, below which most of the width is not used.
NARROW = 0.2
_SHOWN, _LISTED = 5, 6  # units and layers that are named one by one
_BALANCED = ("positive rescaling", "general linear")  # both sides are weights, not gains
_DISCRETE = {"permutation": "reordering", "sign flip": "sign flip"}
_UNDONE_BY = {
    "positive rescaling": "balance the units",
    "norm gain": "multiply the gains of normalisations into what reads them",
    "scale invariance": "give weights in front of a normalisation unit length",
    "general linear": "multiply consecutive linear maps out (in attention, queries with keys, values with "
    "outputs)",
    "rotation": "turn the residual stream to the axes of its variance",
    "translation": "take out the means that nothing sees",
    "permutation": "match their order",
    "sign flip": "fix their signs",
}


def advise(report: "AuditReport") -> list[str]:
    """Return what to do, most pressing first, and last what the symmetries mean for comparisons."""
    rules = (_dead, _faded, _copies, _low_rank, _traps, _narrow, _lopsided, _drifting)
    advice = [sentence for rule in rules for sentence in rule(report)]
    if not advice:
        advice = [_healthy(report)]
    later = (_linear, _scale, _approximate, _rejected, _frozen)
    advice += [sentence for rule in later for sentence in rule(report)]
    return [*advice, _freedom(report)]


def _dead(report: "AuditReport") -> Iterator[str]:
    where = [_units(layer.dead_units, layer) for layer in report.layers if layer.dead_units]
    if where:
        yield (
            f"Dead units: {_several(where)}. Their activation is the same for all {report.samples:,} "
            "samples, or all their weights are negligible, so that each is only a bias to the next layer; "
            "a ReLU unit that never fires receives no gradient. Remove them, or draw their weights anew and "
            "train on with a smaller learning rate."
        )


def _faded(report: "AuditReport") -> Iterator[str]:
    where = [_units(layer.faded_units, layer) for layer in report.layers if layer.faded_units]
    if where:
        yield (
            f"Faded units: {_several(where)}. Each moves the next layer by less than a thousandth of what "
            "the strongest unit does: it hardly fires or has hardly any weights left. Weight decay takes "
            "weak units all the way to zero, and a unit without weights does not come back. Remove them "
            "almost for free, or train with less weight decay if the width is wanted."
        )


def _copies(report: "AuditReport") -> Iterator[str]:
    where = []
    for layer in report.layers:
        if pairs := layer.duplicate_pairs:
            shown = ", ".join(f"{copy} of {original}" for original, copy in pairs[:_SHOWN])
            where.append(f"{len(pairs)} of {layer.width} in {layer.name!r} ({shown}{_more(pairs)})")
    if where:
        yield (
            f"Copies: {_several(where)}. Their pre-activations are parallel on the data (cosine at least "
            "0.999), or their weights agree, so that one unit can do the work of both: add the outgoing "
            "weights. Units that agree in all weights receive equal gradients and never part by themselves; "
            "perturb them if the width is wanted."
        )


def _low_rank(report: "AuditReport") -> Iterator[str]:
    where = [
        f"{layer.rank} of {layer.full_rank} in {layer.name!r}"
        for layer in report.layers
        if layer.rank is not None and layer.full_rank is not None and layer.rank < layer.full_rank
    ]
    if where:
        yield (
            f"Weight matrices below full rank: {_several(where)}. Two factors of that inner width compute "
            "the same with fewer parameters; if the low rank was not intended, train with less weight decay."
        )


def _traps(report: "AuditReport") -> Iterator[str]:
    """Say what the lost units have in common, and what does and does not help in the next run."""
    if not any(layer.lost_units for layer in report.layers):
        return
    yield (
        "The mechanism: zero units and equal units are left in place by a symmetry, so that gradient descent "
        f"that comes near them stays ({100 * report.lost:.2g} % of all parameters are lost to them here). "
        'For the next run, Syre(optimizer, sigma0="fan_in", scale=1) of symdyn_core.symmetry.removal makes '
        "weight decay pull toward a frozen random point instead of zero, and these states are traps no "
        "longer. It does not bring back units that the loss with its decay prefers to lose (for these, less "
        "weight decay), nor ReLU units that a large step has put out of reach of the data."
    )


def _narrow(report: "AuditReport") -> Iterator[str]:
    where = [
        f"about {layer.activation_rank:.0f} in {layer.name!r} for {layer.width} units"
        for layer in report.layers
        if layer.by_activity
        and layer.activation_rank is not None
        and layer.activation_rank < NARROW * layer.width
    ]
    if where:
        yield f"Activations in few directions: {_several(where)}. On these data a narrower layer would do."


def _lopsided(report: "AuditReport") -> Iterator[str]:
    where = [
        f"{charge.layer!r} (imbalance {charge.imbalance:+.2f})"
        for charge in report.charges
        if charge.kind in _BALANCED and charge.imbalance is not None and abs(charge.imbalance) > LOPSIDED
    ]
    if where:
        yield (
            f"Lopsided weights: {_several(where)}. Incoming and outgoing squared norms differ ninefold or "
            "more, and the difference is a charge that gradient flow conserves: only weight decay and "
            "gradient noise wear it off, and meanwhile the smaller side sees the larger gradients. "
            "rebalance_(model, loss_fn, inputs, targets) of symdyn_core.symmetry.rebalance moves the weights "
            "to where the noise would take them and changes no output."
        )


def _drifting(report: "AuditReport") -> Iterator[str]:
    """Name the layers that the noise is still moving, where training was described."""
    where = [
        f"{charge.layer!r} ({_steps(charge.relaxation_steps)})"
        for charge in report.charges
        if charge.statuses
        and charge.relaxation_steps is not None
        and 2 * charge.statuses.get("moving", 0) > len(charge.charges)
    ]
    if where and report.training is not None:
        yield (
            f"Away from the noise equilibrium: {_several(where)}. At learning rate "
            f"{report.training.learning_rate:g} and batch size {report.training.batch_size} the noise of SGD "
            "is still moving most of the charges there, and in that many steps a small distance falls by a "
            "factor e. Until then norms, sharpness and effective learning rates change although the function "
            "does not; rebalance_ makes the move at once."
        )


def _healthy(report: "AuditReport") -> str:
    """Say that nothing is to be repaired, and only of what was looked at."""
    seen = []
    if any(layer.by_activity for layer in report.layers):
        seen.append("no dead, faded or copied units")
    seen.append("weight matrices of full rank")
    if any(charge.kind in _BALANCED for charge in report.charges):
        seen.append("incoming and outgoing weights of comparable size")
    where = " in what is covered" if report.not_covered else ""
    return f"Nothing to repair{where}: {_listed(seen)}."


def _linear(report: "AuditReport") -> Iterator[str]:
    where = [repr(layer.name) for layer in report.layers if layer.activation == "linear"]
    if where:
        yield (
            f"No nonlinearity behind {_several(where, ', ')}: this map and the next are one linear map. In "
            "attention this is by design (queries with keys, values with the output), as in adapters of low "
            "rank; elsewhere merge them, unless the preference of training for low rank is wanted."
        )


def _scale(report: "AuditReport") -> Iterator[str]:
    kinds = [f for f in report.symmetries if f.symmetry.kind == "scale invariance"]
    where = list(dict.fromkeys(repr(finding.symmetry.layer) for finding in kinds))
    if where:
        yield (
            f"Scale does not matter in {_several(where, ', ')}: a normalisation follows. Weight decay does "
            "not limit what these weights can do; it only sets their size and with it the effective learning "
            "rate, learning rate over squared norm."
        )


def _approximate(report: "AuditReport") -> Iterator[str]:
    where = list(dict.fromkeys(repr(finding.symmetry.layer) for finding in report.approximate))
    if where:
        worst = max(finding.error for finding in report.approximate)
        yield (
            f"Up to the eps of a normalisation only (outputs change by {100 * worst:.2g} % or less): "
            f"{report.approximate[0].symmetry.kind} of {_several(where, ', ')}. SGD drifts along it all the "
            "same, but weights cannot be moved along it without a small change of the function."
        )


def _rejected(report: "AuditReport") -> Iterator[str]:
    where = list(dict.fromkeys(f"{f.symmetry.kind} of {f.symmetry.layer!r}" for f in report.rejected))
    if where:
        yield (
            f"Suggested by the structure but refuted on the data: {_several(where, ', ')}. Do not rely on "
            "them: a large eps, running statistics or weights used twice are the usual reasons."
        )


def _frozen(report: "AuditReport") -> Iterator[str]:
    if report.frozen and report.symmetries:
        names = ", ".join(report.frozen[:_SHOWN]) + _more(report.frozen)
        yield (
            f"Frozen: {names}. These are taken as constants: only what the other parameters can do by "
            "themselves counts as a symmetry, as training conserves no charge of weights that it holds."
        )


def _freedom(report: "AuditReport") -> str:
    free = []
    if report.dimension:
        free.append(f"{report.dimension:,} of {report.parameters:,} directions in parameter space")
    kinds = {finding.symmetry.kind for finding in report.symmetries}
    free += [f"every {words} of hidden units" for kind, words in _DISCRETE.items() if kind in kinds]
    if not free:
        if report.not_covered:
            return "No symmetry could be verified: compare functions, not weights."
        return "No symmetry was verified: every change of these weights may change the function."
    undo = [step for kind, step in _UNDONE_BY.items() if kind in kinds]
    how = (
        f"undo this freedom: {_listed(undo)}" if undo else "fix this freedom: they mean nothing by themselves"
    )
    return (
        f"{_sentence_case(_listed(free))} leave the function unchanged. Before comparing trained networks by "
        f"their weights, weight norms or sharpness, {how}."
    )


def _steps(steps: float | None) -> str:
    """Return a number of steps in words.

    >>> _steps(73850.6)
    'about 74,000 steps'
    """
    return "no time known" if steps is None else f"about {float(f'{steps:.2g}'):,.0f} steps"


def _several(where: Sequence[str], between: str = "; ") -> str:
    """Return the first few, and how many more there are."""
    more = f"{between}and {len(where) - _LISTED} more layers" if len(where) > _LISTED else ""
    return between.join(where[:_LISTED]) + more


def _units(units: Sequence[int], layer: "LayerAudit") -> str:
    shown = ", ".join(map(str, units[:_SHOWN]))
    return f"{len(units)} of {layer.width} in {layer.name!r} ({shown}{_more(units)})"


def _more(items: Sequence[object]) -> str:
    return ", …" if len(items) > _SHOWN else ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
