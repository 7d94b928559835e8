"""From what a monitor measured to what its user should know at once: one rule per function.

An alarm is about a change during training. It names the layer, says what was measured and what to do, and
fires once per layer and cause.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from symdyn_core.symmetry.snapshot import LayerState

# Part of its largest value that a rank may lose: a rank that wavers by less is that of a layer that learns.
RANK_LOSS = 0.2
# (9 - 1) / (9 + 1): squared norms that differ ninefold; the audit's limit.
LOPSIDED = 0.8


@dataclass(frozen=True)
class Alarm:
    """Something that a training run has begun to lose.

    Args:
        step: at which it was seen.
        layer: qualified name; that of the parameter where its numbers are not finite.
        what: the cause in a word or two; with the layer it names the alarm.
        reason: what was measured.
        remedy: what to do.
    """

    step: int
    layer: str
    what: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"step {self.step}, layer {self.layer}: {self.reason}. {self.remedy}"


class Watch:
    """The extremes of what was seen so far, and the alarms that leaving them has raised."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        self._most: dict[str, dict[str, float]] = {}
        self._least: dict[str, dict[str, float]] = {}

    def look(self, step: int, layers: list[LayerState], not_finite: list[str]) -> tuple[Alarm, ...]:
        """Return the alarms that are new with this state."""
        told = {(alarm.layer, alarm.what) for alarm in self.alarms}
        causes = [(name, *_not_finite()) for name in not_finite]
        for state in layers:
            numbers = state.numbers()
            most, least = self._most.setdefault(state.layer, {}), self._least.setdefault(state.layer, {})
            for name, value in numbers.items():
                if math.isfinite(value):
                    most[name] = max(most.get(name, value), value)
                    least[name] = min(least.get(name, value), value)
            for rule in (_rank, _dead, _duplicates, _imbalance):
                causes += [(state.layer, *cause) for cause in rule(numbers, most, least)]
        new = []
        for layer, what, reason, remedy in causes:
            if (layer, what) not in told:
                told.add((layer, what))
                new.append(Alarm(step, layer, what, reason, remedy))
        self.alarms += new
        return tuple(new)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers and texts."""
        return {"alarms": [asdict(alarm) for alarm in self.alarms], "most": self._most, "least": self._least}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self._most = {layer: dict(values) for layer, values in state["most"].items()}
        self._least = {layer: dict(values) for layer, values in state["least"].items()}


Cause = tuple[str, str, str]
"""What, reason, remedy."""
Numbers = dict[str, float]


def _not_finite() -> Cause:
    return (
        "not finite",
        "NaN or infinite weights",
        "Go back to the last checkpoint before this step and train on with a smaller learning rate, clipped "
        "gradients or a wider floating-point type.",
    )


def _rank(now: Numbers, most: Numbers, least: Numbers) -> Iterator[Cause]:
    for name in ("rank", "effective_rank", "live_directions"):
        words = name.replace("_", " ")
        if name in now and now[name] < (1 - RANK_LOSS) * most[name]:
            yield (
                words,
                f"{words} {now[name]:.4g}, down from {most[name]:.4g}",
                "Weight decay and gradient noise pull towards lower rank, and gradient descent does not lead "
                "back. If the width is wanted: less weight decay, smaller learning rate, larger batch. If "
                "not: two factors of the lower width do the same with fewer parameters.",
            )


def _dead(now: Numbers, most: Numbers, least: Numbers) -> Iterator[Cause]:
    if now.get("dead_units", 0) > least.get("dead_units", 0):
        died = now["dead_units"] - least["dead_units"]
        yield (
            "dead units",
            f"{died:.0f} of {now['units']:.0f} units have lost their weights",
            "A unit without weights receives next to no gradient and does not come back. Use less weight "
            "decay or a smaller learning rate from the last checkpoint on, draw the weights of these units "
            "anew, or remove them.",
        )


def _duplicates(now: Numbers, most: Numbers, least: Numbers) -> Iterator[Cause]:
    if now.get("duplicate_units", 0) > least.get("duplicate_units", 0):
        new = now["duplicate_units"] - least["duplicate_units"]
        yield (
            "duplicate units",
            f"{new:.0f} of {now['units']:.0f} units have become copies of others",
            "Equal units receive equal gradients and never part by themselves. Perturb them if the width is "
            "wanted, or break the symmetry for the whole run; otherwise merge each group into one unit and "
            "add the outgoing weights.",
        )


def _imbalance(now: Numbers, most: Numbers, least: Numbers) -> Iterator[Cause]:
    imbalance = now.get("imbalance", 0.0)
    # A layer in front of a few outputs starts out lopsided: no event of training, and the audit tells of it.
    been_within = min(most.get("imbalance", 0.0), LOPSIDED) >= max(least.get("imbalance", 0.0), -LOPSIDED)
    if abs(imbalance) > LOPSIDED and been_within:
        larger, smaller = ("incoming", "outgoing") if imbalance < 0 else ("outgoing", "incoming")
        yield (
            "imbalance",
            f"imbalance {imbalance:+.2f}: the {larger} weights have {_ratio(imbalance)} times the squared "
            f"norm of the {smaller} ones",
            "Gradient flow conserves the difference, and the smaller side sees the larger gradients. "
            "Rescaling the units (symdyn_core.symmetry.rebalance) removes it at once and changes no output; "
            "weight decay wears it off.",
        )


def _ratio(imbalance: float) -> str:
    part = abs(imbalance)
    return f"{(1 + part) / (1 - part):.3g}" if part < 1 else "infinitely many"
