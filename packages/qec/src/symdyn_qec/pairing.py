"""Two decoders on the same shots: who fails where the other does not."""

from dataclasses import dataclass

from symdyn_core.errors import InputError


@dataclass(frozen=True)
class Paired:
    """Shots that exactly one of two decoders fails on.

    What both fail on, or neither, says nothing about which is better; hence a comparison on the same shots
    needs far fewer of them than two independent rates do.

    Fields:
        reference: the other decoder.
        shots: that both decoded.
        only_this, only_reference: failures of one alone.

    >>> paired = Paired("bposd", shots=1000, only_this=1, only_reference=9)
    >>> round(paired.p_value, 6)  # 2 (1 + 10) / 2 ** 10
    0.021484
    """

    reference: str
    shots: int
    only_this: int
    only_reference: int

    @property
    def p_value(self) -> float:
        """Two-sided, of the exact sign test: as unequal a split by tosses of a fair coin."""
        return sign_test(self.only_this, self.only_reference)


def sign_test(first: int, second: int) -> float:
    r"""Return how likely a fair coin is to split ``first + second`` tosses at least as unequally.

    .. math:: \min\Big(1,\; 2 \sum_{i \le \min(b, c)} \binom{b + c}{i} 2^{-(b + c)}\Big)

    Source: McNemar's test in its exact form.

    >>> sign_test(0, 0), sign_test(0, 5), sign_test(3, 4)
    (1.0, 0.0625, 1.0)
    """
    if first < 0 or second < 0:
        raise InputError(f"counts must be at least 0, got {first} and {second}")
    from scipy import stats

    return float(min(1.0, 2 * stats.binom.cdf(min(first, second), first + second, 0.5)))
