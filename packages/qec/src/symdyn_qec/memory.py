"""What all memory experiments have in common: how long and noisy they can be, what they may observe."""

import numpy as np
from numpy.typing import ArrayLike

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.codes import Basis, CSSCode, check_basis
from symdyn_qec.gf2 import BitMatrix

# Far beyond what can be sampled, and small enough for Stim's counters.
MAX_ROUNDS = 10**9

# Beyond 3/4 a depolarising channel is no longer a mixture of Pauli errors.
MAX_P = 0.75


def check_noise(p: float) -> None:
    """Raise InputError unless p is a strength that every channel of the circuits can have."""
    if not 0 <= p <= MAX_P:
        raise InputError(f"p must be in [0, {MAX_P}], got {p}")


def check_rounds(rounds: int) -> None:
    """Raise InputError unless there is at least one round, and no more than a circuit can count."""
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    if rounds > MAX_ROUNDS:
        raise InputError(f"rounds must be at most {MAX_ROUNDS}, got {rounds}")


def opposite(basis: Basis) -> Basis:
    """Return the other basis.

    >>> opposite("X")
    'Z'
    """
    return "Z" if basis == "X" else "X"


def observed(code: CSSCode, basis: Basis, observables: ArrayLike | None) -> BitMatrix:
    """Return the supports of a memory's observables: those given, or the code's own light logical operators.

    Args:
        code: the code.
        basis: "X" or "Z".
        observables: supports, bits, shape ``(o, n)``, or None.

    Raises:
        InputError: one of them is not a logical operator of the code.
    """
    check_basis(basis)
    supports = code.logicals(basis) if observables is None else gf2.bits(observables, "observables")
    other = opposite(basis)
    if supports.shape[1] != code.n or (supports.astype(np.int64) @ code.checks(other).T % 2).any():
        raise InputError(
            f"observables must be {basis} operators on n={code.n} qubits that commute with every "
            f"{other} check, got an array of shape {supports.shape}"
        )
    return supports
