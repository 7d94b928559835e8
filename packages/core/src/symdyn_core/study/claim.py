"""A claim: one number that theory predicts and an experiment may contradict."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from symdyn_core.estimate import Estimate, Estimator, mean
from symdyn_core.study.paper import check_text

Prediction = Callable[..., float]


class Verdict(StrEnum):
    """What the measurement says of the prediction."""

    CONFIRMED = "CONFIRMED"
    INCONCLUSIVE = "INCONCLUSIVE"
    REFUTED = "REFUTED"
    ERROR = "ERROR"


def judge(estimate: Estimate, prediction: float, margin: float) -> Verdict:
    """Hold an estimate against a prediction.

    CONFIRMED: the interval lies inside ``prediction +- margin``. REFUTED: it lies wholly outside.
    INCONCLUSIVE: it straddles a border. ERROR: one of the numbers is not a number.

    >>> judge(Estimate(1.0, 0.9, 1.1, 8), prediction=1.0, margin=0.2)
    <Verdict.CONFIRMED: 'CONFIRMED'>
    >>> judge(Estimate(1.0, 0.9, 1.1, 8), prediction=2.0, margin=0.2)
    <Verdict.REFUTED: 'REFUTED'>
    """
    if not estimate.defined or not math.isfinite(prediction) or not math.isfinite(margin):
        return Verdict.ERROR
    lowest, highest = prediction - margin, prediction + margin
    if lowest <= estimate.low and estimate.high <= highest:
        return Verdict.CONFIRMED
    if estimate.high < lowest or highest < estimate.low:
        return Verdict.REFUTED
    return Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Rival:
    """A plausible wrong law, and the value it would predict. It keeps the study able to fail."""

    name: str
    predict: Prediction


@dataclass(frozen=True)
class Claim:
    """A prediction from theory, the measurement that tests it, and the wrong law that must lose.

    Args:
        name: lower_snake_case, unique within the study.
        formula: LaTeX of the law, without dollar signs.
        predict: theory's value. Called as ``predict(config)``, or as ``predict(config, seed)`` when theory
            needs the repetition's initial condition (never its outcome); measurement and prediction are
            then compared pair by pair.
        margin: how far the truth of the experiment may lie from the law, and `because` of what.
        because: the reason for the margin (finite step, finite width ...).
        rival: a plausible wrong law; same call signature as `predict`.
        measured: key of the measurement; the claim's name by default.
        estimator: from :mod:`symdyn_core.estimate`; how repetitions become one number with an interval.
        relative: whether `margin` is a fraction of the prediction's magnitude.
    """

    name: str
    formula: str
    predict: Prediction
    margin: float
    because: str
    rival: Rival
    measured: str = ""
    estimator: Estimator = mean
    relative: bool = False

    def __post_init__(self) -> None:
        check_text("claim name", self.name)
        check_text(f"formula of claim {self.name!r}", self.formula)
        check_text(f"because (the reason for the margin) of claim {self.name!r}", self.because)
        if not self.name.isidentifier():
            raise ValueError(f"a claim's name must be lower_snake_case, got {self.name!r}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin of claim {self.name!r} must be finite and >= 0, got {self.margin}")
        if self.per_repetition and self.estimator is not mean:
            raise ValueError(f"claim {self.name!r} predicts per repetition, so its estimator must be `mean`")
        if not self.measured:
            object.__setattr__(self, "measured", self.name)

    @property
    def per_repetition(self) -> bool:
        """Whether theory predicts each repetition from its seed."""
        return _needs_seed(self.predict)

    def with_rival_as_prediction(self) -> "Claim":
        """Return this claim with the wrong law in the place of the right one, to see it refuted."""
        return replace(self, predict=self.rival.predict)

    def evaluate(self, config: Any, seeds: Sequence[int], samples: Sequence[Any]) -> "ClaimResult":
        """Judge the samples, one per repetition, the seeds in the same order."""
        return ClaimResult.of(self, config, seeds, samples)


@dataclass(frozen=True)
class ClaimResult:
    """A judged claim: the row of the verdict table."""

    name: str
    predicted: float
    measured: float
    low: float
    high: float
    margin: float
    rival: float
    rival_excluded: bool
    verdict: Verdict

    @classmethod
    def of(cls, claim: Claim, config: Any, seeds: Sequence[int], samples: Sequence[Any]) -> "ClaimResult":
        """Estimate, predict and judge."""
        predicted, deviation = _compare(claim, claim.predict, config, seeds, samples)
        rival, deviation_from_rival = _compare(claim, claim.rival.predict, config, seeds, samples)
        margin = claim.margin * abs(predicted) if claim.relative else claim.margin
        return cls(
            name=claim.name,
            predicted=predicted,
            measured=predicted + deviation.value,
            low=predicted + deviation.low,
            high=predicted + deviation.high,
            margin=margin,
            rival=rival,
            rival_excluded=judge(deviation_from_rival, 0.0, margin) is Verdict.REFUTED,
            verdict=judge(deviation, 0.0, margin),
        )


def _needs_seed(predict: Prediction) -> bool:
    parameters = inspect.signature(predict).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters) > 1


def _compare(
    claim: Claim, predict: Prediction, config: Any, seeds: Sequence[int], samples: Sequence[Any]
) -> tuple[float, Estimate]:
    """Return the prediction and the estimate of measurement minus prediction."""
    if _needs_seed(predict):
        predictions = [float(predict(config, seed)) for seed in seeds]
        gaps = [float(sample) - value for sample, value in zip(samples, predictions, strict=True)]
        return math.fsum(predictions) / len(predictions), claim.estimator(gaps)
    predicted = float(predict(config))
    found = claim.estimator(samples)
    gap = Estimate(found.value - predicted, found.low - predicted, found.high - predicted, found.n)
    return predicted, gap
