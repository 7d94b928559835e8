r"""From how much a shot leaves in doubt to the probability that its answer is right.

A network's log odds are marginal: each qubit's flip by itself. Two sums over them say how far an answer may
be trusted. The *weight* is the cost of the qubits that had to differ from what the network suggests. The
*doubt*,

.. math:: \sum_q \log(1 + e^{-|l_q|}),

is the negative log probability of the suggestion itself, were the qubits independent. They are not, so that
the two are scaled, as temperatures scale a classifier's logits, on shots whose answers are known:

.. math:: \log\frac{P(\text{wrong})}{P(\text{right})}
    = a + b \log(\text{doubt} + \text{weight}) + c\,\text{weight} .

Source: temperature and Platt scaling; the choice of the two sums is ours.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_qec.rates import clopper_pearson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Of the slopes; with hundreds of failures it does nothing, with none it keeps them finite.
RIDGE = 0.01

# No shot is so clear that its logarithm may run away.
LEAST_DOUBT = 1e-9


@dataclass(frozen=True)
class Calibration:
    """How doubt and weight become a confidence.

    Fields:
        offset: a.
        doubt: b, at least 0.
        weight: c, at least 0.

    >>> Calibration(offset=-2.0, doubt=1.0, weight=0.0).confidence([1.0], [0.0]).round(6).tolist()
    [0.880797]
    """

    offset: float
    doubt: float
    weight: float

    @classmethod
    def fit(cls, doubt: ArrayLike, weight: ArrayLike, wrong: ArrayLike) -> "Calibration":
        """Return the most likely calibration.

        Half a wrong and half a right shot of average doubt are added, so that no confidence is a certainty.

        Args:
            doubt: shape ``(shots,)``.
            weight: likewise.
            wrong: whether the answer was wrong, likewise.

        Raises:
            InputError: no shots, or arrays of different lengths.
        """
        from scipy.optimize import minimize

        features, truth = _features(doubt, weight), np.asarray(wrong, dtype=float)
        if not len(truth) or len(features) != len(truth):
            raise InputError(
                f"expected as many doubts and weights as answers, at least one, "
                f"got {len(features)} and {len(truth)}"
            )
        mean = features.mean(axis=0)
        features = np.concatenate([features, [mean, mean]])
        truth, counts = np.append(truth, [0.0, 1.0]), np.append(np.ones(len(truth)), [0.5, 0.5])

        def loss(parameters: Floats) -> tuple[float, Floats]:
            logits = parameters[0] + features @ parameters[1:]
            value = float((counts * (np.logaddexp(0, logits) - truth * logits)).sum())
            slope = counts * (_probability(logits) - truth)
            gradient = np.append(slope.sum(), slope @ features + 2 * RIDGE * parameters[1:])
            return value + RIDGE * float((parameters[1:] ** 2).sum()), gradient

        # More doubt never makes an answer more likely to be right.
        bounds = [(None, None), (0.0, None), (0.0, None)]
        found = minimize(loss, [-3.0, 1.0, 0.1], jac=True, bounds=bounds, method="L-BFGS-B").x
        return cls(*(float(value) for value in found))

    @classmethod
    def from_json(cls, fields: Any) -> "Calibration":
        """Return what :meth:`to_json` wrote.

        Raises:
            InputError: fields missing or not finite.
        """
        names = ("offset", "doubt", "weight")
        found = [fields.get(name) if isinstance(fields, Mapping) else None for name in names]
        values = [float(value) for value in found if isinstance(value, int | float) and np.isfinite(value)]
        if len(values) < len(names):
            raise InputError(f"calibration must have the finite numbers {', '.join(names)}, got {fields!r}")
        return cls(*values)

    def to_json(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)

    def confidence(self, doubt: ArrayLike, weight: ArrayLike) -> Floats:
        """Return the probability that each answer is right, shape ``(shots,)``."""
        logits = self.offset + _features(doubt, weight) @ [self.doubt, self.weight]
        return 1 - _probability(logits)


@dataclass(frozen=True)
class Bin:
    """Shots of about the same confidence.

    Fields:
        expected: mean confidence.
        shots: how many.
        right: of them.
    """

    expected: float
    shots: int
    right: int

    @property
    def wrong_interval(self) -> tuple[float, float]:
        """95 % interval of the probability of a wrong answer."""
        return clopper_pearson(self.shots - self.right, self.shots)


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> list[Bin]:
    """Sort shots into bins of the same expected number of wrong answers.

    Most shots are clear: with bins of equally many shots all failures would be in one.

    Args:
        confidence: in [0, 1], shape ``(shots,)``; of any decoder.
        right: whether the answers are, likewise.
        bins: at least 1; fewer where shots are few.

    Raises:
        InputError: no shots, other shapes or values.

    >>> bins = reliability([0.9] * 10 + [0.75] * 4, [True] * 9 + [False] * 2 + [True] * 3, bins=2)
    >>> [(round(found.expected, 3), found.shots, found.right) for found in bins]
    [(0.75, 4, 3), (0.9, 10, 9)]
    """
    expected, truth = np.asarray(confidence, dtype=float), np.asarray(right, dtype=bool)
    if expected.ndim != 1 or expected.shape != truth.shape or not len(expected) or bins < 1:
        raise InputError(
            f"expected confidences and answers of the same shots, and bins >= 1, "
            f"got shapes {expected.shape} and {truth.shape}, and {bins} bins"
        )
    if not ((expected >= 0) & (expected <= 1)).all():
        raise InputError("confidence must be in [0, 1]")
    order = np.argsort(expected, kind="stable")
    mass = np.cumsum(1 - expected[order])
    mass = mass[
        np.searchsorted(expected[order], expected[order], side="right") - 1
    ]  # the same for equal ones
    place = np.minimum((mass / max(mass[-1], LEAST_DOUBT) * bins * (1 - 1e-12)).astype(int), bins - 1)
    return [
        Bin(float(expected[part].mean()), len(part), int(truth[part].sum()))
        for part in (order[place == number] for number in range(bins))
        if len(part)
    ]


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> float:
    """Return the mean distance between confidence and the share of right answers, over the shots of all bins.

    Args:
        confidence: as for :func:`reliability`.
        right: likewise.
        bins: likewise.
    """
    found = reliability(confidence, right, bins)
    return sum(abs(b.expected * b.shots - b.right) for b in found) / sum(b.shots for b in found)


def draw_reliability(bins: list[Bin]) -> "Figure":
    """Draw the share of wrong answers against the expected one, with 95 % intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from symdyn_core.plots import MEASUREMENT, STYLE, THEORY

    expected = np.array([1 - found.expected for found in bins])
    measured = np.array([1 - found.right / found.shots for found in bins])
    low, high = np.array([found.wrong_interval for found in bins]).T
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axes = figure.subplots()
        ends = np.array([expected.min() / 2, min(1.0, expected.max() * 2)])
        axes.plot(ends, ends, color=THEORY, label="as stated")
        floor = ends[0] / 4
        axes.errorbar(
            expected,
            np.maximum(measured, floor),
            [np.maximum(measured, floor) - np.maximum(low, floor), high - np.maximum(measured, floor)],
            fmt="o",
            ms=4,
            color=MEASUREMENT,
            label="measured, 95 %",
        )
        axes.set(
            xscale="log", yscale="log", xlabel="stated probability of failure", ylabel="share of failures"
        )
        axes.legend(frameon=False)
    return figure


def _features(doubt: ArrayLike, weight: ArrayLike) -> Floats:
    total, cost = np.asarray(doubt, dtype=float), np.asarray(weight, dtype=float)
    return np.stack([np.log(np.maximum(total + cost, LEAST_DOUBT)), cost], axis=-1)


def _probability(logits: Floats) -> Floats:
    from scipy.special import expit

    found: Floats = expit(logits)
    return found
