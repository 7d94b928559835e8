r"""The law of a Markov chain's path, and of the path read backwards: exact, without listing paths.

Of a chain with states :math:`x_0\dots x_M`, :math:`P=p_0(x_0)\prod_tW_{x_tx_{t+1}}`, the reversed law is
:math:`Q([x])=P([x]^*)`, and :math:`R=\log Q/P`. Means, variances and :math:`\gamma=\langle e^{2R}\rangle` are
products of M tilted matrices, :math:`O(n^2M)`, carried along in logarithms, so that a long chain does not
overflow. The whole law of R follows by merging paths of equal R at every step: it depends on a path through
its ends and its *net* number of passages through every pair of states alone.

Source: arXiv 2202.13311, entropy production, nonstationarity and reversibility of a chain; the transfer
matrix :math:`W_{ji}^2/W_{ij}` and the merging are ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import rel_entr

from symdyn_core.dynamics.uncertainty import tanh_bound, tur_current
from symdyn_core.errors import InputError

Array = NDArray[np.float64]
Paths = NDArray[np.int64]

STOCHASTIC_TOLERANCE = 1e-9  # by which a row of probabilities may miss 1
# Listed at most: paths, and values of the log ratio before equal ones are merged.
LISTED_PATHS = 2_000_000
LISTED_KINDS = 500_000
EQUAL = 1e-11  # relative to the largest: log ratios closer than this differ by rounding


@dataclass(frozen=True)
class CurrentStatistics:
    """Mean and variance of an observable of the path."""

    mean: float
    variance: float

    @property
    def relative_uncertainty(self) -> float:
        r""":math:`\mathrm{Var}J/\langle J\rangle^2`; infinite without a mean."""
        return self.variance / self.mean**2 if self.mean else math.inf


class MarkovPaths:
    r"""The paths of a Markov chain in discrete time, with transition probabilities constant in time.

    Args:
        initial: :math:`p_0`, shape (n,), sums to 1.
        transition: :math:`W_{ij}`, probability to go **from i to j**, shape (n, n), rows sum to 1.
        steps: M >= 1.

    Raises:
        InputError: shapes that do not fit, entries not finite or negative, rows that do not sum to 1.

    Two states that forget at once, from (3/4, 1/4) to (1/2, 1/2):

    >>> chain = MarkovPaths([0.75, 0.25], [[0.5, 0.5], [0.5, 0.5]], steps=1)
    >>> round(chain.reversal_gamma(), 9)  # 3/8 + 1/8 + 1/24 + 9/8
    1.666666667
    >>> chain.current_statistics([[0, 1], [-1, 0]])
    CurrentStatistics(mean=0.25, variance=0.4375)
    """

    def __init__(self, initial: ArrayLike, transition: ArrayLike, steps: int) -> None:
        self.initial = np.array(initial, dtype=float)
        self.transition = np.array(transition, dtype=float)
        n = self.initial.size
        if self.initial.ndim != 1 or n < 1 or self.transition.shape != (n, n):
            raise InputError(
                "initial and transition must have shapes (n,) and (n, n), got "
                f"{self.initial.shape} and {self.transition.shape}"
            )
        _check_probabilities("initial", self.initial[None])
        _check_probabilities("transition", self.transition)
        if not (isinstance(steps, int | np.integer) and steps >= 1):
            raise InputError(f"steps must be a whole number >= 1, got {steps!r}")
        self.steps = int(steps)
        self.initial.setflags(write=False)
        self.transition.setflags(write=False)

    @classmethod
    def stationary(cls, transition: ArrayLike, steps: int) -> "MarkovPaths":
        """Return the chain that starts from its own stationary law, so that nothing but cycles costs.

        Raises:
            InputError: a reducible chain, which has several stationary laws or states it leaves for good.

        >>> MarkovPaths.stationary([[0.5, 0.5], [0.25, 0.75]], steps=1).initial.round(9).tolist()
        [0.333333333, 0.666666667]
        """
        n = len(np.atleast_1d(np.asarray(transition, dtype=float)))
        chain = cls(np.full(n, 1 / n), transition, steps)
        classes, label = connected_components(csr_array(chain.transition > 0), connection="strong")
        if classes > 1:
            sets = [np.flatnonzero(label == k).tolist() for k in range(classes)]
            raise InputError(
                "transition must be irreducible to have one stationary law, but states fall apart into "
                f"{', '.join(map(str, sets))}, which do not all reach each other"
            )
        # The stationary law spans the null space of (W - 1) transposed; one equation is replaced by the sum.
        equations = chain.transition.T - np.eye(n)
        equations[-1] = 1.0
        law = np.linalg.solve(equations, np.eye(n)[-1])
        return cls(law / law.sum(), chain.transition, steps)

    @property
    def n_states(self) -> int:
        """Number n of states."""
        return self.initial.size

    @property
    def laws(self) -> Array:
        """Law of the state at every time, shape (steps + 1, n)."""
        laws = [self.initial]
        for _ in range(self.steps):
            laws.append(laws[-1] @ self.transition)
        return np.array(laws)

    def entropy_production(self) -> float:
        r"""Return :math:`\langle\sigma\rangle`, in nats, over the whole path.

        :math:`\sigma=\log P([x])/P^*([x]^*)`, where the reversed process starts from the last state's law.
        It is the entropy gained by the state plus the flux times the force of every transition.

        Raises:
            InputError: a transition that occurs but not its reverse, by the pair of states.
        """
        laws = self.laws
        occupied = laws[:-1].sum(axis=0)
        self._check_reversible(occupied > 0)
        flux = occupied[:, None] * self.transition
        used = flux > 0
        force = np.log(self.transition[used] / self.transition.T[used])
        gained = _entropy(laws[-1]) - _entropy(laws[0])
        return max(0.0, float(gained + (flux[used] * force).sum()))

    def nonstationarity(self) -> float:
        r"""Return :math:`D_{KL}(P_M\|P_0)` of the last state's law from the first's; 0 if stationary.

        Raises:
            InputError: the path can end in a state in which it cannot start.
        """
        last = self.laws[-1]
        self._check_start(last > 0)
        return max(0.0, float(rel_entr(last, self.initial).sum()))

    def log_reversal_gamma(self) -> float:
        r"""Return :math:`\log\gamma`, :math:`\gamma=\langle(Q/P)^2\rangle_P`, which grows with the steps.

        Raises:
            InputError: as :meth:`entropy_production` and :meth:`nonstationarity`.
        """
        self._check_start(np.ones(self.n_states, dtype=bool))
        self._check_reversible(np.ones(self.n_states, dtype=bool))
        used = self.transition > 0
        tilted = np.zeros_like(self.transition)
        tilted[used] = self.transition.T[used] ** 2 / self.transition[used]
        vector, log_scale = self.initial**2, 0.0
        for _ in range(self.steps):
            vector = tilted @ vector
            largest = float(vector.max())
            vector, log_scale = vector / largest, log_scale + math.log(largest)
        return log_scale + math.log(float((vector / self.initial).sum()))

    def reversal_gamma(self) -> float:
        r"""Return the degree of reversibility :math:`\gamma\ge1`; infinite where float64 ends."""
        logarithm = self.log_reversal_gamma()
        return max(1.0, math.exp(logarithm)) if logarithm < math.log(np.finfo(float).max) else math.inf

    def current_statistics(self, increments: ArrayLike) -> CurrentStatistics:
        r"""Return mean and variance of :math:`J=\sum_td_{x_tx_{t+1}}`, exactly.

        Args:
            increments: d, shape (n, n). Antisymmetric ones make a current, to which the bounds apply; others
                are allowed.

        Raises:
            InputError: another shape, or entries that are not finite.
        """
        d = np.array(increments, dtype=float)
        if d.shape != self.transition.shape or not np.isfinite(d).all():
            raise InputError(f"increments must be finite and of shape {self.transition.shape}, got {d.shape}")
        # Taking the mean off at every step keeps the second moment from cancelling against the first.
        law, first, second, mean = self.initial, np.zeros(self.n_states), np.zeros(self.n_states), 0.0
        for _ in range(self.steps):
            rate = float(law @ (self.transition * d).sum(axis=1))
            step = self.transition * (d - rate)
            second = second @ self.transition + 2 * first @ step + law @ (step * (d - rate))
            first = first @ self.transition + law @ step
            law = law @ self.transition
            mean += rate
        return CurrentStatistics(mean, max(0.0, float(second.sum())))

    def least_variance(self, mean: float) -> float:
        r"""Return the least variance a current of this mean can have, by :math:`\sigma+D`."""
        return tur_current(mean, self.entropy_production(), self.nonstationarity())

    def tanh_bound(self, mean: float) -> float:
        r"""Return the least variance a current of this mean can have, by the law of R: at least as high."""
        return tanh_bound(mean, self.mean_squared_tanh())

    def mean_squared_tanh(self) -> float:
        r"""Return :math:`\langle\tanh^2(R/2)\rangle_P`; see :meth:`log_ratio_law`."""
        ratios, weights = self.log_ratio_law()
        return float(weights @ np.tanh(ratios / 2) ** 2)

    def log_ratio_law(self) -> tuple[Array, Array]:
        r"""Return the law of :math:`R=\log Q/P` under P.

        Paths with equal R and last state are carried on as one. R depends on a path through its ends and its
        net passages through every pair of states, so that there are few kinds: n of them in all without
        cycles, as with two states, and of order :math:`M^c` for a graph with c cycles.

        Returns:
            Values of R, shape (k,), and their probabilities.

        Raises:
            InputError: as :meth:`log_reversal_gamma`, or too many kinds of paths.
        """
        self._check_start(np.ones(self.n_states, dtype=bool))
        self._check_reversible(np.ones(self.n_states, dtype=bool))
        start = np.log(self.initial)
        kinds = [(-start[[i]], self.initial[[i]]) for i in range(self.n_states)]
        for _ in range(self.steps):
            arrivals = []
            for j in range(self.n_states):
                origins = np.flatnonzero(self.transition[:, j])
                forces = np.log(self.transition[j, origins] / self.transition[origins, j])
                values = [kinds[i][0] + force for i, force in zip(origins, forces, strict=True)]
                weights = [kinds[i][1] * self.transition[i, j] for i in origins]
                arrivals.append((np.concatenate(values), np.concatenate(weights)))
            if (count := sum(len(values) for values, _ in arrivals)) > LISTED_KINDS:
                raise InputError(
                    f"R must take at most {LISTED_KINDS:,} values to be listed, got {count:,} already; use "
                    "fewer steps, or sample paths"
                )
            kinds = [_merge(*arrival) for arrival in arrivals]
        ends = [(values + start[i], weights) for i, (values, weights) in enumerate(kinds)]
        listed, chances = (np.concatenate(parts) for parts in zip(*ends, strict=True))
        return _merge(listed, chances)

    def paths(self) -> tuple[Paths, Array]:
        """List every path of a small chain.

        Returns:
            States, shape (n**(steps + 1), steps + 1), and probabilities.

        Raises:
            InputError: more than two million paths.
        """
        count = self.n_states ** (self.steps + 1)
        if count > LISTED_PATHS:
            raise InputError(f"n**(steps + 1) must be at most {LISTED_PATHS:,} to list paths, got {count:,}")
        states = np.stack(np.unravel_index(np.arange(count), [self.n_states] * (self.steps + 1)), axis=1)
        return states, np.exp(self.log_probability(states))

    def log_probability(self, paths: ArrayLike) -> Array:
        """Return the log probability of given paths, shape (k,); minus infinity for impossible ones.

        Args:
            paths: states in [0, n), shape (k, steps + 1).
        """
        states = check_paths(paths, self.n_states)
        if states.shape[1] != self.steps + 1:
            raise InputError(f"paths must have steps + 1 = {self.steps + 1} states, got {states.shape[1]}")
        with np.errstate(divide="ignore"):
            initial, transition = np.log(self.initial), np.log(self.transition)
        total: Array = initial[states[:, 0]] + transition[states[:, :-1], states[:, 1:]].sum(axis=1)
        return total

    def log_ratios(self, paths: ArrayLike) -> Array:
        """Return R of given paths that can occur: log probability of the path backwards less forwards."""
        states = check_paths(paths, self.n_states)
        forwards = self.log_probability(states)
        if not np.isfinite(forwards).all():
            first = int(np.argmin(forwards))
            raise InputError(f"paths must be possible, got {states[first].tolist()} of probability 0")
        return self.log_probability(states[:, ::-1]) - forwards

    def sample(self, size: int, generator: np.random.Generator) -> Paths:
        """Draw independent paths, shape (size, steps + 1)."""
        if size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        rows = np.vstack([self.initial, self.transition])
        thresholds = np.cumsum(rows, axis=1)
        # The last state with any chance takes what rounding leaves of 1.
        last = self.n_states - 1 - np.argmax(rows[:, ::-1] > 0, axis=1)
        thresholds[np.arange(self.n_states) >= last[:, None]] = 2
        states = np.empty((size, self.steps + 1), dtype=np.int64)
        row = np.zeros(size, dtype=np.int64)
        for t in range(self.steps + 1):
            states[:, t] = (generator.random(size)[:, None] >= thresholds[row]).sum(axis=1)
            row = states[:, t] + 1
        return states

    def _check_reversible(self, states: NDArray[np.bool_]) -> None:
        """Raise unless every transition from these states has a reverse."""
        one_way = (self.transition > 0) & (self.transition.T == 0) & states[:, None]
        if one_way.any():
            i, j = np.argwhere(one_way)[0]
            raise InputError(
                f"every transition must have a reverse, got {self.transition[i, j]:.6g} from state {i} to "
                f"state {j} and 0 back: a path through it is absolutely irreversible"
            )

    def _check_start(self, reached: NDArray[np.bool_]) -> None:
        """Raise unless the chain may start in these states, in which a reversed path starts."""
        if (missing := reached & (self.initial == 0)).any():
            raise InputError(
                "initial must be > 0 wherever a path can end, since there the reversed one starts, got 0 in "
                f"state {int(np.argmax(missing))}"
            )


def check_paths(paths: ArrayLike, n_states: int | None = None) -> Paths:
    """Return paths as whole numbers, shape (k, steps + 1), or raise InputError."""
    states = np.asarray(paths)
    if states.ndim != 2 or states.shape[0] < 1 or states.shape[1] < 2:
        raise InputError(f"paths must have shape (n_paths, steps + 1) with steps >= 1, got {states.shape}")
    if not np.issubdtype(states.dtype, np.integer):
        raise InputError(f"paths must be of whole numbers, got {states.dtype}")
    low, high = int(states.min()), int(states.max())
    if low < 0 or (n_states is not None and high >= n_states):
        end = "" if n_states is None else f", n_states={n_states}"
        raise InputError(f"paths must hold states in [0{end}), got {low} to {high}")
    return states.astype(np.int64)


def _check_probabilities(what: str, rows: Array) -> None:
    if (bad := ~(np.isfinite(rows) & (rows >= 0))).any():
        raise InputError(f"{what} must hold finite probabilities >= 0, got {rows[bad][0]}")
    sums = rows.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > STOCHASTIC_TOLERANCE:
        row = f"row {worst} of " if len(rows) > 1 else ""
        raise InputError(f"{row}{what} must sum to 1, got {sums[worst]:.9g}")


def _entropy(law: Array) -> float:
    """Return the entropy of probabilities in nats; zeros count nothing."""
    return -float((law[law > 0] * np.log(law[law > 0])).sum())


def _merge(values: Array, weights: Array) -> tuple[Array, Array]:
    """Return the different values, ascending, and the total weight of each."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    fresh = np.diff(values, prepend=-np.inf) > EQUAL * max(1.0, float(np.abs(values).max()))
    totals = np.bincount(np.cumsum(fresh) - 1, weights).astype(float)
    return values[fresh], totals
