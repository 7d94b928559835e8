"""What the noise of a gradient means for training, in sentences."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from symdyn_core.dynamics.tails import explain_tail

if TYPE_CHECKING:
    from symdyn_core.dynamics.noise_report import NoiseReport

DESCENDING = 4.0  # times the squared gradient at rest: below it one point cannot tell
CLOSE = 0.05  # relative: learning rates this close are one
TAIL = 4.0  # index below which not even the variance can be estimated well
CONCENTRATED = 2.0  # share of the noise over share of the parameters


def advise(report: "NoiseReport") -> Iterator[str]:
    """Yield what the report means, most important first."""
    yield _noise(report)
    yield from _rest(report)
    yield from _gap(report)
    yield from _batch(report)
    yield from _equivalents(report)
    if report.tail_index is not None and report.tail_index <= TAIL:
        yield (
            f"Tails: along the steepest direction the linear theory has {explain_tail(report.tail_index)}. "
            "Where gradients are bounded the tail is cut off far out."
        )
    yield from _where(report)
    if report.samples < report.given:
        yield (
            f"How exact: {report.samples:,} of {report.given:,} samples were looked at, drawn at random. "
            "Traces are unbiased; the largest eigenvalues come out a little too large."
        )


def _noise(report: "NoiseReport") -> str:
    noise = math.sqrt(report.batch_trace)
    if report.batch_trace == 0:
        return "No noise: every batch has the same gradient here."
    if report.gradient_norm == 0:
        return (
            f"Noise: batches of {report.batch_size} have gradients of size {noise:.3g} around a mean of zero."
        )
    ratio = noise / report.gradient_norm
    return (
        f"Noise: the gradient of a batch of {report.batch_size} is off by {noise:.3g}, {ratio:.2g} times the "
        f"size {report.gradient_norm:.3g} of the mean gradient."
    )


def _rest(report: "NoiseReport") -> Iterator[str]:
    descent = report.descent
    if descent is None:
        return
    if descent > DESCENDING:
        yield (
            f"Still descending: the squared gradient is {descent:.3g} times what noise would keep up at rest."
            " The loss gap and the learning rates below are for where training will settle, and the noise "
            "there may be another."
        )
    elif descent < 1 / DESCENDING:
        yield (
            f"Below balance: the squared gradient is {descent:.2g} times what noise keeps up at rest with "
            "these settings. SGD with them leaves this point for a higher loss."
        )
    else:
        yield (
            f"Near balance: the squared gradient is {descent:.2g} times what noise keeps up at rest with "
            "these settings, as at a point that has settled. Flat directions may still be on their way."
        )


def _gap(report: "NoiseReport") -> Iterator[str]:
    if report.edge is None:
        yield "No minimum: the loss curves upwards in no direction looked at, and nothing is stationary."
    elif report.learning_rate >= report.edge:
        yield (
            f"Unstable: learning rate {report.learning_rate:g} is beyond 2 (1 + momentum) / curvature = "
            f"{report.edge:.3g} of these data, where the mean leaves along the steepest direction. There is "
            "no stationary loss gap. `symdyn stability` looks closer."
        )
    elif report.loss_gap is not None:
        yield (
            f"Loss gap: with these settings SGD settles {report.loss_gap:.3g} above the minimum on average"
            + (
                f", {100 * report.loss_gap / report.loss:.3g} % of the present loss."
                if report.loss > 0
                else "."
            )
        )
        if 0 < report.loss < report.loss_gap:
            yield (
                "Too large to be true: the predicted gap exceeds the loss itself. The noise is that of this "
                "point and changes on such a way; the number says no more than that these settings are rough."
            )
    if report.curvatures[-1] < -CLOSE * abs(report.curvatures[0]):
        yield (
            f"Not a minimum: curvature is as low as {report.curvatures[-1]:.3g}. Along such directions the "
            "loss still falls; they count as flat in the gap."
        )


def _batch(report: "NoiseReport") -> Iterator[str]:
    if not math.isfinite(report.noise_scale):
        yield "Batch size: the mean gradient cannot be told from zero on these samples; any batch is noise."
        return
    if report.noise_scale == 0:
        return
    scale = f"the noise scale is {report.noise_scale:.3g}"
    if report.critical_batch_size is not None:
        scale += f" ({report.critical_batch_size:.3g} weighted by curvature)"
    if report.batch_size < report.noise_scale / 2:
        yield (
            f"Batch size: {scale}. Far below it, twice the batch at twice the learning rate takes about half "
            "the steps."
        )
    else:
        yield f"Batch size: {scale}; batches much larger than that hardly save steps."


def _equivalents(report: "NoiseReport") -> Iterator[str]:
    others = [row for row in report.equivalents if row.batch_size != report.batch_size]
    if not others:
        return
    nearest = min(
        others, key=lambda row: (abs(math.log(row.batch_size / report.batch_size / 2)), row.batch_size)
    )
    yield (
        f"Same noise: batches of {nearest.batch_size} at learning rate {nearest.learning_rate:.3g} have the "
        f"same loss gap. The linear rule says {nearest.linear:.3g}."
    )
    off = [row for row in others if abs(row.linear / row.learning_rate - 1) > CLOSE]
    larger = [row for row in off if row.batch_size > report.batch_size]
    if larger:
        row = min(larger, key=lambda row: row.batch_size)
        how = "too large" if row.linear > row.learning_rate else "too small"
        yield (
            f"Linear rule: from batches of {row.batch_size} on its learning rate, {row.linear:.3g}, is {how} "
            f"by {100 * abs(row.linear / row.learning_rate - 1):.2g} % or more."
        )
    unstable = [row for row in others if not row.linear_is_stable]
    if unstable:
        yield (
            f"Edge: at batches of {unstable[0].batch_size} the linear rule's {unstable[0].linear:.3g} passes "
            f"the edge of stability, {report.edge:.3g}."
        )


def _where(report: "NoiseReport") -> Iterator[str]:
    if report.trace == 0:
        return
    count = len(report.curvatures)
    if count < report.parameters:
        yield (
            f"Where: {count} of {report.parameters:,} directions, those of largest curvature, carry "
            f"{100 * report.share_along_curvature:.2g} % of the noise; it is as spread out as "
            f"{report.effective_rank:.2g} equal directions."
        )
    loud = [
        layer
        for layer in report.layers
        if layer.share > 1 / len(report.layers)
        and layer.share > CONCENTRATED * layer.parameters / report.parameters
    ]
    if loud and len(report.layers) > 1:
        layer = max(loud, key=lambda layer: layer.share)
        yield (
            f"Loudest layer: {layer.name!r} has {100 * layer.share:.2g} % of the noise and "
            f"{100 * layer.parameters / report.parameters:.2g} % of the parameters."
        )
