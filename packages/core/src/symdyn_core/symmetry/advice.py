"""From what an audit measured to what its reader should do: one rule per function, plain sentences."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from symdyn_core.symmetry.trace import IDENTITY

if TYPE_CHECKING:
    from symdyn_core.symmetry.audit import AuditReport, LayerAudit

# (9 - 1) / (9 + 1): squared norms that differ ninefold. The gradients of the two sides then differ threefold,
# as if one of them had a learning rate three times the other's.
LOPSIDED = 0.8
# Effective rank of the activations over the number of units, below which most of the width is not used.
NARROW = 0.2
_SHOWN = 5  # units named one by one
_DISCRETE = {"permutation": "reordering", "sign flip": "sign flip"}
_UNDONE_BY = {
    "positive rescaling": "balance the units",
    "general linear": "multiply consecutive linear maps out",
    "permutation": "match their order",
    "sign flip": "fix their signs",
}


def advise(report: "AuditReport") -> list[str]:
    """Return what to do, most pressing first, and last what the symmetries mean for comparisons."""
    rules = (_rejected, _dead, _faded, _copies, _low_rank, _narrow, _lopsided, _linear, _frozen)
    advice = [sentence for rule in rules for sentence in rule(report)]
    if not advice and len(report.layers) > 1:
        advice = [
            "Nothing to repair: no dead, faded or copied units, weight matrices of full rank, and incoming "
            "and outgoing weights of comparable size."
        ]
    return [*advice, _freedom(report)]


def _rejected(report: "AuditReport") -> Iterator[str]:
    for finding in report.rejected:
        symmetry = finding.symmetry
        yield (
            f"The structure of layer {symmetry.layer!r} suggests a {symmetry.kind}, but it changes the "
            f"outputs by {100 * finding.error:.2g} % of their size: do not rely on it. Weights used twice "
            "are the usual reason."
        )


def _dead(report: "AuditReport") -> Iterator[str]:
    where = [_units(layer.dead_units, layer) for layer in report.layers if layer.dead_units]
    if where:
        yield (
            f"Dead units: {'; '.join(where)}. Their activation is the same for all {report.samples:,} "
            "samples, so that each is only a bias to the next layer, and a ReLU unit that never fires "
            "receives no gradient. Remove them, or draw their weights anew and train on with a smaller "
            "learning rate."
        )


def _faded(report: "AuditReport") -> Iterator[str]:
    where = [_units(layer.faded_units, layer) for layer in report.layers if layer.faded_units]
    if where:
        yield (
            f"Faded units: {'; '.join(where)}. Each moves the next layer by less than a thousandth of what "
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
            f"Copies: {'; '.join(where)}. Their pre-activations are parallel on the data (cosine at least "
            "0.999), so that one unit can do the work of both: add the outgoing weights. Units that agree in "
            "all weights receive equal gradients and never part by themselves; perturb them if the width is "
            "wanted."
        )


def _low_rank(report: "AuditReport") -> Iterator[str]:
    where = [
        f"{layer.rank} of {layer.full_rank} in {layer.name!r}"
        for layer in report.layers
        if layer.rank < layer.full_rank
    ]
    if where:
        yield (
            f"Weight matrices below full rank: {'; '.join(where)}. Two factors of that inner width compute "
            "the same with fewer parameters; if the low rank was not intended, train with less weight decay."
        )


def _narrow(report: "AuditReport") -> Iterator[str]:
    where = [
        f"about {layer.activation_rank:.0f} in {layer.name!r} for {layer.width} units"
        for layer in report.layers[:-1]
        if layer.activation_rank < NARROW * layer.width
    ]
    if where:
        yield (f"Activations in few directions: {'; '.join(where)}. On these data a narrower layer would do.")


def _lopsided(report: "AuditReport") -> Iterator[str]:
    where = [
        f"{layer.name!r} (imbalance {layer.imbalance:+.2f})"
        for layer in report.layers
        if layer.imbalance is not None and abs(layer.imbalance) > LOPSIDED
    ]
    if where:
        yield (
            f"Lopsided weights: {'; '.join(where)}. Incoming and outgoing squared norms differ ninefold or "
            "more, and the difference is a charge that gradient flow conserves: only weight decay and "
            "gradient noise wear it off, and meanwhile the smaller side sees the larger gradients. Rescaling "
            "the units by PositiveRescaling.balancing_element removes it at once and changes no output."
        )


def _linear(report: "AuditReport") -> Iterator[str]:
    where = [repr(layer.name) for layer in report.layers if layer.activation == IDENTITY.name]
    if where:
        yield (
            f"No nonlinearity behind {', '.join(where)}: this map and the next are one linear map. Merge "
            "them, unless the bottleneck, or the preference of training for low rank, is wanted."
        )


def _frozen(report: "AuditReport") -> Iterator[str]:
    continuous = [finding.symmetry for finding in report.symmetries if finding.symmetry.dimension]
    held = [name for name in report.frozen if any(name in symmetry.parameters for symmetry in continuous)]
    if held:
        yield (
            f"Frozen: {', '.join(held)}. The symmetries that touch them are there, but training does not "
            "conserve their charges, as not all that they touch moves."
        )


def _freedom(report: "AuditReport") -> str:
    if len(report.layers) == 1:
        return "A network without hidden units has no symmetry between units: its weights mean what they say."
    free = []
    if report.dimension:
        free.append(f"{report.dimension:,} of {report.parameters:,} directions in parameter space")
    kinds = {finding.symmetry.kind for finding in report.symmetries}
    free += [f"every {words} of hidden units" for kind, words in _DISCRETE.items() if kind in kinds]
    if not free:
        return "No symmetry was verified: every change of these weights may change the function."
    undo = [step for kind, step in _UNDONE_BY.items() if kind in kinds]
    return (
        f"{_sentence_case(_listed(free))} leave the function unchanged. Before comparing trained networks by "
        f"their weights, weight norms or sharpness, undo this freedom: {_listed(undo)}."
    )


def _units(units: Sequence[int], layer: "LayerAudit") -> str:
    shown = ", ".join(map(str, units[:_SHOWN]))
    return f"{len(units)} of {layer.width} in {layer.name!r} ({shown}{_more(units)})"


def _more(items: Sequence[object]) -> str:
    return ", …" if len(items) > _SHOWN else ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
