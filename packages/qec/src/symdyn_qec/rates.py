"""Logical error rates: intervals from counts, and conversion from whole shots to rounds."""

from symdyn_core.errors import InputError


def clopper_pearson(failures: int, shots: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact binomial interval of a failure probability.

    It contains the truth with at least the stated confidence, however few failures there are.

    Args:
        failures: in [0, shots].
        shots: at least 1.
        confidence: in (0, 1).

    No failure in 100 shots bounds the rate by ``1 - 0.025 ** (1 / 100)``:

    >>> [round(bound, 6) for bound in clopper_pearson(0, 100)]
    [0.0, 0.036217]
    """
    if shots < 1 or not 0 <= failures <= shots:
        raise InputError(f"failures must be in [0, shots] and shots at least 1, got {failures} of {shots}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be in (0, 1), got {confidence}")
    from scipy import stats

    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, failures, shots - failures + 1) if failures else 0.0
    high = stats.beta.ppf(1 - tail, failures + 1, shots - failures) if failures < shots else 1.0
    return float(low), float(high)


def block_to_per_logical(rate: float, k: int, rounds: int) -> float:
    r"""Return the error rate per logical qubit and round behind a rate per shot.

    .. math:: P_L = \tfrac12 \Big[1 - \big(2 (1 - P)^{1/k} - 1\big)^{1/R}\Big]

    A shot fails if any of k logical qubits is wrong at the end. The qubits are taken as independent, and each
    as flipped with the same small probability in each of R rounds. Where more shots fail than random guessing
    explains there is no such rate, and the answer is that of guessing, 1/2.

    Args:
        rate: failures per shot P, in [0, 1].
        k: logical observables, at least 1.
        rounds: R, at least 1.

    Source: derived; the convention of arXiv 2604.08358.

    Two rounds that flip one qubit with probability 0.1 each fail in 2 * 0.1 * 0.9 of the shots:

    >>> round(block_to_per_logical(0.18, k=1, rounds=2), 12)
    0.1
    """
    if not 0 <= rate <= 1:
        raise InputError(f"rate must be in [0, 1], got {rate}")
    if k < 1 or rounds < 1:
        raise InputError(f"k and rounds must be at least 1, got {k} and {rounds}")
    kept: float = 2 * (1 - rate) ** (1 / k) - 1
    return float(0.5 * (1 - max(kept, 0.0) ** (1 / rounds)))
