r"""Does a market rule respect the symmetries of an economy? Works on any simulator, not only on ours.

The rule is a function ``step(cash, shares, generator) -> (cash, shares, price, ...)``; what a simulator
returns beyond the three is ignored. It is run from a state and from transformed states with the same random
numbers, and what comes out must be the transformed result:

==  =============  =======================================================================================
S1  currency unit  $m \to a m$ gives $m' \to a m'$, $p \to a p$
S2  share split    $s \to b s$ gives $s' \to b s'$, $p \to p/b$
S3  duality        exchanging cash and shares, buyer and seller, exchanges the results and gives $p \to 1/p$
S4  equal agents   permuting the agents permutes the expected results
S5  closure        total cash and total shares stay
==  =============  =======================================================================================

S3 needs the rule with buyer and seller exchanged, which only its author can give. S4 cannot be seen on one
set of random numbers, which belong to places in an array: expectations over many are compared, by Welch's t.

Source: symmetries of a market in the spirit of arXiv:2206.06802; the tests are ours.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed, numpy_generator

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
StepFunction = Callable[[Array, Array, np.random.Generator], Any]

# Two factors that rounding does not touch and one that it does; whole numbers, so that rules that trade whole
# shares can be tested too.
FACTORS = (2.0, 3.0, 1024.0)
# Welch's t of a fair rule exceeds 6 about once in 1e8; a hundred agents are compared.
LARGEST_T = 6.0


@dataclass(frozen=True)
class SymmetryCheck:
    """One symmetry of one rule.

    Args:
        name: ``S1 currency unit`` and so on.
        violation: largest relative deviation from the symmetric result (S4: largest |t| over the agents).
        tolerance: what rounding (S4: chance) explains.
        holds: None where it could not be tested.
    """

    name: str
    violation: float
    tolerance: float
    holds: bool | None


@dataclass(frozen=True)
class SymmetryReport:
    """The checks of one rule; prints as a table."""

    checks: tuple[SymmetryCheck, ...]

    @property
    def holds(self) -> bool:
        """Whether no tested symmetry is violated."""
        return all(check.holds is not False for check in self.checks)

    @property
    def violated(self) -> list[str]:
        """Names of the symmetries that the rule breaks."""
        return [check.name for check in self.checks if check.holds is False]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per symmetry."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self.checks]).set_index("name")

    def __str__(self) -> str:
        words = {True: "holds", False: "VIOLATED", None: "not tested"}
        return "\n".join(
            f"{check.name:<18} {words[check.holds]:<10}"
            + ("" if check.holds is None else f" {check.violation:8.1e} (tolerance {check.tolerance:.0e})")
            for check in self.checks
        )


def check_symmetries(
    step_fn: StepFunction,
    *,
    dual: StepFunction | None = None,
    cash: ArrayLike | None = None,
    shares: ArrayLike | None = None,
    tolerance: float = 1e-9,
    repetitions: int = 200,
    seed: int = 0,
) -> SymmetryReport:
    """Test a market rule against the symmetries S1-S5.

    Args:
        step_fn: ``step(cash, shares, generator) -> (cash, shares, price, ...)``. It must take all randomness
            from the generator and leave its arguments alone.
        dual: the same rule with buyers and sellers exchanged, for S3; without it S3 is not tested.
        cash: state to test at, (n_agents,); 32 random unequal positive fortunes by default.
        shares: likewise; bring your own where the rule needs whole shares.
        tolerance: relative deviation that rounding may cause.
        repetitions: runs per side of the comparison of expectations in S4, at least 2.
        seed: of the default state and of the random numbers that the rule is given.

    Raises:
        InputError: the rule returns something else, changes its arguments, or is not reproducible.

    A fee that leaves the economy, and is charged in absolute money, breaks closure and the currency unit:

    >>> from symdyn_finance.market import Economy
    >>> economy = Economy(trade_rate=0.5, cash_preference=0.5, redistribution=0.01, income_risk=0.1)
    >>> def with_fee(cash, shares, generator):
    ...     cash, shares, price, _ = economy.step(cash, shares, generator)
    ...     return cash * 0.99 - 0.001, shares, price
    >>> print(check_symmetries(economy.step))
    S1 currency unit   holds ...
    S2 share split     holds ...
    S3 duality         not tested
    S4 equal agents    holds ...
    S5 closure         holds ...
    >>> check_symmetries(with_fee).violated
    ['S1 currency unit', 'S5 closure']
    """
    if repetitions < 2:
        raise InputError(f"repetitions must be at least 2, got {repetitions}")
    state = numpy_generator(seed, "check_symmetries", "state")
    m = np.exp(state.standard_normal(32)) if cash is None else np.array(cash, dtype=float)
    s = np.exp(state.standard_normal(m.size)) if shares is None else np.array(shares, dtype=float)
    if m.ndim != 1 or m.shape != s.shape:
        raise InputError(f"cash and shares must be lists of one length, got shapes {m.shape} and {s.shape}")
    if not (m.sum() > 0 and s.sum() > 0):
        raise InputError(f"cash and shares must have positive totals, got {m.sum():g} and {s.sum():g}")

    numbers = derive_seed(seed, "check_symmetries", "step")
    after_m, after_s, price = _run(step_fn, m, s, numbers)
    if _deviation(_run(step_fn, m, s, numbers), (after_m, after_s, price)) > 0:
        raise InputError(
            "step_fn must draw all random numbers from the generator: two runs with one seed differ"
        )

    def exact(name: str, violation: float) -> SymmetryCheck:
        return SymmetryCheck(name, violation, tolerance, violation <= tolerance)

    currency = max(
        _deviation(_run(step_fn, a * m, s, numbers), (a * after_m, after_s, a * price)) for a in FACTORS
    )
    split = max(
        _deviation(_run(step_fn, m, b * s, numbers), (after_m, b * after_s, price / b)) for b in FACTORS
    )
    if dual is None:
        duality = SymmetryCheck("S3 duality", math.nan, tolerance, None)
    else:
        inverse = 1 / price if price != 0 else math.inf
        duality = exact("S3 duality", _deviation(_run(dual, s, m, numbers), (after_s, after_m, inverse)))
    t = _permutation_t(step_fn, m, s, repetitions, seed)
    closure = max(abs(after_m.sum() / m.sum() - 1), abs(after_s.sum() / s.sum() - 1))
    return SymmetryReport(
        (
            exact("S1 currency unit", currency),
            exact("S2 share split", split),
            duality,
            SymmetryCheck("S4 equal agents", t, LARGEST_T, t <= LARGEST_T),
            exact("S5 closure", float(closure)),
        )
    )


def _run(step_fn: StepFunction, cash: Array, shares: Array, seed: int) -> tuple[Array, Array, float]:
    """Run the rule once on copies and return what it must return, checked."""
    given = cash.copy(), shares.copy()
    result = step_fn(*given, np.random.default_rng(seed))
    if not (np.array_equal(given[0], cash) and np.array_equal(given[1], shares)):
        raise InputError("step_fn must return new arrays, but it changed the cash or shares it was given")
    try:
        new_cash, new_shares, price = (np.asarray(value, dtype=float) for value in tuple(result)[:3])
    except (TypeError, ValueError) as error:
        raise InputError(f"step_fn must return (cash, shares, price, ...), got {result!r}") from error
    if new_cash.shape != cash.shape or new_shares.shape != shares.shape or price.size != 1:
        raise InputError(
            f"step_fn must return cash and shares of shape {cash.shape} and one price, got shapes "
            f"{new_cash.shape}, {new_shares.shape}, {price.shape}"
        )
    return new_cash, new_shares, float(price.reshape(()))


def _deviation(found: tuple[Array, Array, float], expected: tuple[Array, Array, float]) -> float:
    """Return the largest relative deviation; infinite where one is a number and the other is not."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        x, y = (np.atleast_1d(np.asarray(value, dtype=float)) for value in (a, b))
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return math.inf
        finite = np.isfinite(y)
        if finite.any():
            scale = np.abs(y[finite]).max()
            gap = np.abs(x[finite] - y[finite]).max()
            worst = max(worst, float(gap / scale) if scale > 0 else float(gap > 0))
    return worst


def _permutation_t(step_fn: StepFunction, cash: Array, shares: Array, repetitions: int, seed: int) -> float:
    """Return the largest |t| between expected holdings and those of the permuted agents, put back."""
    order = numpy_generator(seed, "check_symmetries", "permutation").permutation(cash.size)
    back = np.argsort(order)
    plain, permuted = [], []
    for k in range(repetitions):
        m, s, _ = _run(step_fn, cash, shares, derive_seed(seed, "check_symmetries", "plain", k))
        plain.append(np.concatenate([m, s]))
        m, s, _ = _run(
            step_fn, cash[order], shares[order], derive_seed(seed, "check_symmetries", "permuted", k)
        )
        permuted.append(np.concatenate([m[back], s[back]]))
    x, y = np.array(plain), np.array(permuted)
    error = np.sqrt((x.var(axis=0, ddof=1) + y.var(axis=0, ddof=1)) / repetitions)
    # A rule without randomness has no variance: what rounding explains counts as one standard error.
    floor = 1e-12 * max(np.abs(x).max(), np.abs(y).max())
    return float((np.abs(x.mean(axis=0) - y.mean(axis=0)) / np.maximum(error, max(floor, 1e-300))).max())
