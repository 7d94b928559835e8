"""The course of a training run beside its prediction: as rows, as a file, as a picture."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from symdyn_neuro.assembly import predict_mismatch
from symdyn_neuro.rules import Rule
from symdyn_neuro.training import Snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class History:
    """Snapshots of one run of :func:`symdyn_neuro.training.train`, and what produced them.

    Args:
        snapshots: in order, the untrained model first.
        rule: the rule that the model learns by.
        learning_rate: of SGD, constant.
        weight_decay: of SGD.
    """

    snapshots: Sequence[Snapshot]
    rule: Rule
    learning_rate: float
    weight_decay: float

    @property
    def predicted_mismatch(self) -> list[float]:
        """Theory's total mismatch at each snapshot; NaN under a rule that has no law for it."""
        if self.rule is not Rule.HETEROSYNAPTIC:
            return [math.nan] * len(self.snapshots)
        curve = predict_mismatch(
            self.snapshots[0].total_mismatch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            steps=self.snapshots[-1].steps,
        )
        return [float(curve[snapshot.steps]) for snapshot in self.snapshots]

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping per snapshot, ready for JSON: what is undefined is None."""
        return [
            {
                "epoch": snapshot.epoch,
                "steps": snapshot.steps,
                "loss": snapshot.loss,
                "accuracy": snapshot.accuracy,
                "alignment": {layer: _defined(cosine) for layer, cosine in snapshot.alignment.items()},
                "mismatch": _defined(snapshot.total_mismatch),
                "predicted_mismatch": _defined(predicted),
            }
            for snapshot, predicted in zip(self.snapshots, self.predicted_mismatch, strict=True)
        ]

    def to_csv(self) -> str:
        """Return the rows as CSV, one column ``alignment.<layer>`` per layer, empty where undefined."""
        flat = []
        for row in self.rows():
            alignment = {f"alignment.{layer}": cosine for layer, cosine in row.pop("alignment").items()}
            flat.append({**row, **alignment})
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return stream.getvalue()

    def figure(self) -> "Figure":
        """Draw accuracy, alignment of each layer, and mismatch with its law, against optimiser steps."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from symdyn_core.plots import MEASUREMENT, STYLE, THEORY

        steps = [snapshot.steps for snapshot in self.snapshots]
        layers = list(self.snapshots[0].alignment)
        has_feedback = bool(self.snapshots[0].mismatch)
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 8.0 if has_feedback else 5.6), layout="constrained")
            panels = figure.subplots(3 if has_feedback else 2, 1, sharex=True)
            panels[0].plot(steps, [s.accuracy for s in self.snapshots], "o-", color=MEASUREMENT, ms=4, lw=1)
            panels[0].set_ylabel("test accuracy")
            panels[0].set_title(f"{self.rule} learning")
            for layer, marker in zip(layers, "osD^v<>pX*" * len(layers), strict=False):
                cosines = [s.alignment[layer] for s in self.snapshots]
                panels[1].plot(steps, cosines, marker=marker, ms=4, lw=1, label=layer)
            panels[1].set_ylabel("cosine(update, −gradient)")
            panels[1].legend()
            if has_feedback:
                mismatch = [s.total_mismatch for s in self.snapshots]
                panels[2].plot(steps, mismatch, "o", color=MEASUREMENT, ms=4, label="measured")
                if self.rule is Rule.HETEROSYNAPTIC:
                    law = r"theory: $(1-\eta\gamma)^t$"
                    panels[2].plot(steps, self.predicted_mismatch, color=THEORY, zorder=1.5, label=law)
                panels[2].set_yscale("log")
                panels[2].set_ylabel(r"mismatch $\|B-W\|$")
                panels[2].legend()
            panels[-1].set_xlabel("SGD steps $t$")
        return figure


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
