"""CSS codes: check matrices, logical operators, and the bivariate bicycle family with its translations.

A CSS code on n qubits is a pair of parity check matrices with ``hx @ hz.T = 0`` (mod 2); it encodes
``k = n - rank(hx) - rank(hz)`` qubits. Supports of Pauli operators are rows of bits of length n.
"""

import re
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError, unknown
from symdyn_core.random import numpy_generator
from symdyn_qec import gf2
from symdyn_qec.gf2 import BitMatrix

Basis = Literal["X", "Z"]
Shift = tuple[int, int]
Monomial = tuple[int, int]

# Random information sets tried when light logical operators are looked for: with these, the lightest found in
# each of the named codes has the weight that the literature gives as the distance.
SEARCHES = 200


def check_basis(basis: str) -> Basis:
    """Return ``basis`` if it is X or Z, else raise InputError."""
    if basis == "X":
        return "X"
    if basis == "Z":
        return "Z"
    raise InputError(f"basis must be X or Z, got {basis!r}")


class CSSCode:
    r"""A CSS code from its two parity check matrices.

    Args:
        hx: supports of the X checks, bits, shape ``(m_x, n)``; rows may be redundant.
        hz: supports of the Z checks, bits, shape ``(m_z, n)``.

    Raises:
        InputError: the matrices differ in width, or an X check anticommutes with a Z check.

    The four-qubit code [[4, 2, 2]]:

    >>> code = CSSCode(hx=[[1, 1, 1, 1]], hz=[[1, 1, 1, 1]])
    >>> code.n, code.k
    (4, 2)
    >>> code.logicals("Z").sum(axis=1).tolist()
    [2, 2]
    """

    def __init__(self, hx: ArrayLike, hz: ArrayLike) -> None:
        self.hx = _frozen(gf2.bits(hx, "hx"))
        self.hz = _frozen(gf2.bits(hz, "hz"))
        if self.hx.shape[1] != self.hz.shape[1]:
            raise InputError(f"hx and hz must be equally wide, got {self.hx.shape[1]} and {self.hz.shape[1]}")
        clashes = np.argwhere(self.hx.astype(int) @ self.hz.T % 2)
        if clashes.size:
            x, z = clashes[0]
            raise InputError(f"every X check must commute with every Z check, but X {x} and Z {z} do not")

    @property
    def n(self) -> int:
        """Number of data qubits."""
        return int(self.hx.shape[1])

    @cached_property
    def k(self) -> int:
        """Number of logical qubits, ``n - rank(hx) - rank(hz)``."""
        return self.n - gf2.rank(self.hx) - gf2.rank(self.hz)

    def checks(self, basis: Basis) -> BitMatrix:
        """Return the parity check matrix whose outcomes are products of ``basis``."""
        return self.hx if check_basis(basis) == "X" else self.hz

    def logicals(self, basis: Basis) -> BitMatrix:
        """Return k independent logical operators, as light as a random search finds them.

        They commute with all checks of the other basis and are independent modulo the checks of their own.
        Light ones make good observables: each depends on few qubits.

        Args:
            basis: "X" or "Z".

        Returns:
            Supports, bits, shape ``(k, n)``, in order of weight. The same at every call.
        """
        return self._logicals_x if check_basis(basis) == "X" else self._logicals_z

    @cached_property
    def _logicals_x(self) -> BitMatrix:
        return self._lightest_basis("X")

    @cached_property
    def _logicals_z(self) -> BitMatrix:
        return self._lightest_basis("Z")

    def _lightest_basis(self, basis: Basis) -> BitMatrix:
        candidates = self._light_logicals(basis)
        chosen = gf2.independent_rows(candidates, modulo=self.checks(basis))
        return _frozen(candidates[chosen])

    def _light_logicals(self, basis: Basis) -> BitMatrix:
        """Return distinct nontrivial logical operators, lightest first; they span all k modulo the checks.

        Information-set search: in every basis of the codewords in echelon form the rows are codewords with at
        most one one on the pivots, hence light. Many random orders of the columns give many such rows.
        """
        opposite: Basis = "Z" if basis == "X" else "X"
        codewords = gf2.nullspace(self.checks(opposite))
        # A codeword is trivial exactly when it commutes with everything that commutes with the checks.
        # In float32, exact below 2^24 and far faster to multiply than integers.
        witnesses = gf2.nullspace(self.checks(basis)).astype(np.float32)
        generator = numpy_generator(0, "light logical operators", basis)
        found = [codewords]
        for _ in range(SEARCHES):
            order = generator.permutation(self.n)
            found.append(gf2.row_reduce(codewords[:, order])[0][:, np.argsort(order)])
        distinct = np.unique(np.vstack(found), axis=0)
        nontrivial = distinct[(distinct.astype(np.float32) @ witnesses.T % 2).any(axis=1)]
        lightest_first: BitMatrix = nontrivial[np.argsort(nontrivial.sum(axis=1), kind="stable")]
        return lightest_first


class BivariateBicycleCode(CSSCode):
    r"""A code on a torus of ``l x m`` cells, two data qubits and two checks in each.

    With x and y the cyclic shifts of the two directions and A, B sums of monomials in them,

    .. math:: H_X = [A \,|\, B], \qquad H_Z = [B^T \,|\, A^T].

    The X check of cell g touches the left qubits of the cells ``g + a`` for monomials a of A and the right
    ones of ``g + b`` for b of B; the Z check the left ones of ``g - b`` and the right ones of ``g - a``.
    Cell ``(i, j)`` has index ``i * m + j``; right qubits follow the left ones. Translations of the torus map
    checks to checks.

    Args:
        l: cells in direction x, at least 1.
        m: cells in direction y, at least 1.
        a: polynomial A, like ``"x^3 + y + y^2"``; the order of its terms is the order of directions 0, 1, ...
        b: polynomial B.

    Source: Bravyi et al., arXiv 2308.07915; conventions as used for arXiv 2504.13043.

    >>> code = BivariateBicycleCode(6, 6, "x^3 + y + y^2", "y^3 + x + x^2")
    >>> code.n, code.k, int(code.logicals("Z").sum(axis=1).max())
    (72, 12, 6)
    """

    def __init__(self, l: int, m: int, a: str, b: str) -> None:  # noqa: E741 - the field's name for it
        if l < 1 or m < 1:
            raise InputError(f"l and m must be at least 1, got {l} and {m}")
        self.l, self.m = l, m
        self.a = _monomials(a, l, m)
        self.b = _monomials(b, l, m)
        left, right = self._sum_of_shifts(self.a), self._sum_of_shifts(self.b)
        super().__init__(np.hstack([left, right]), np.hstack([right.T, left.T]))

    def __repr__(self) -> str:
        return f"BivariateBicycleCode({self.l}, {self.m}, {_text(self.a)!r}, {_text(self.b)!r})"

    @property
    def cells(self) -> int:
        """Number of cells: of X checks, of Z checks, of left and of right qubits."""
        return self.l * self.m

    def shifts(self) -> Iterator[Shift]:
        """Yield every translation ``(dx, dy)`` of the torus, the identity first."""
        yield from ((i, j) for i in range(self.l) for j in range(self.m))

    def shifted_cells(self, shift: Shift) -> NDArray[np.int64]:
        """Return the index of cell ``g + shift`` for every cell g, shape ``(cells,)``.

        >>> BivariateBicycleCode(2, 3, "1 + x", "1 + y").shifted_cells((1, 0)).tolist()
        [3, 4, 5, 0, 1, 2]
        """
        rows, columns = np.divmod(np.arange(self.cells), self.m)
        return np.asarray((rows + shift[0]) % self.l * self.m + (columns + shift[1]) % self.m, dtype=np.int64)

    def translate(self, vectors: ArrayLike, shift: Shift) -> BitMatrix:
        """Return supports moved by ``shift``: the qubit at g goes to ``g + shift``, left to left.

        Args:
            vectors: bits, shape ``(a, n)``.
            shift: ``(dx, dy)``, taken modulo ``(l, m)``.

        Returns:
            Shape ``(a, n)``.
        """
        supports = gf2.bits(vectors, "vectors")
        if supports.shape[1] != self.n:
            raise InputError(f"vectors must have length n={self.n}, got {supports.shape[1]}")
        cells = self.shifted_cells(shift)
        moved = np.empty_like(supports)
        moved[:, np.concatenate([cells, self.cells + cells])] = supports
        return moved

    def translates(self, vector: ArrayLike) -> BitMatrix:
        """Return all translates of one support, in the order of :meth:`shifts`, shape ``(cells, n)``."""
        row = gf2.bits(np.atleast_2d(np.asarray(vector)), "vector")
        if row.shape != (1, self.n):
            raise InputError(f"vector must have length n={self.n}, got shape {np.shape(vector)}")
        moved = np.empty((self.cells, self.n), dtype=np.uint8)
        moved[np.arange(self.cells)[:, None], self._images] = row
        return moved

    @cached_property
    def _images(self) -> NDArray[np.int64]:
        """Where each qubit goes under each translation, shape ``(cells, n)``."""
        cells = np.stack([self.shifted_cells(shift) for shift in self.shifts()])
        return np.hstack([cells, self.cells + cells])

    def seed_logicals(self, basis: Basis) -> BitMatrix:
        """Return a few light logical operators whose translates together generate all k.

        Together their translates form a frame: redundant observables that translations merely permute.
        Greedy: the lightest operators first, among them the one whose translates add most.

        Args:
            basis: "X" or "Z".

        Returns:
            Supports, bits, shape ``(seeds, n)``.
        """
        return self._seeds_x if check_basis(basis) == "X" else self._seeds_z

    @cached_property
    def _seeds_x(self) -> BitMatrix:
        return self._seeds("X")

    @cached_property
    def _seeds_z(self) -> BitMatrix:
        return self._seeds("Z")

    def _seeds(self, basis: Basis) -> BitMatrix:
        candidates = self._light_logicals(basis)
        known, missing, seeds = self.checks(basis), self.k, []
        for weight in np.unique(candidates.sum(axis=1)):
            level = candidates[candidates.sum(axis=1) == weight]
            while missing:
                gains = [gf2.independent_rows(self.translates(seed), modulo=known).size for seed in level]
                if not max(gains):
                    break
                seeds.append(level[int(np.argmax(gains))])
                known = gf2.row_reduce(np.vstack([known, self.translates(seeds[-1])]))[0]
                missing -= max(gains)
        return _frozen(np.array(seeds, dtype=np.uint8).reshape(len(seeds), self.n))

    def _sum_of_shifts(self, monomials: tuple[Monomial, ...]) -> BitMatrix:
        total = np.zeros((self.cells, self.cells), dtype=np.uint8)
        for monomial in monomials:
            total[np.arange(self.cells), self.shifted_cells(monomial)] ^= 1
        return total


# Parameters [[n, k, d]] in the literature: 72 12 6, 90 8 10, 108 8 10, 144 12 12, 288 12 18.
NAMED = {
    "bb72": (6, 6, "x^3 + y + y^2", "y^3 + x + x^2"),
    "bb90": (15, 3, "x^9 + y + y^2", "1 + x^2 + x^7"),
    "bb108": (9, 6, "x^3 + y + y^2", "y^3 + x + x^2"),
    "bb144": (12, 6, "x^3 + y + y^2", "y^3 + x + x^2"),
    "bb288": (12, 12, "x^3 + y^2 + y^7", "y^3 + x + x^2"),
}


def bivariate_bicycle(name: str) -> BivariateBicycleCode:
    """Return a code of the published family by name: bb72, bb90, bb108, bb144, bb288.

    The same object at every call, as the search for its logical operators takes a while.

    Source: the table of codes in Bravyi et al., arXiv 2308.07915.

    >>> bivariate_bicycle("bb144").k
    12
    """
    if name not in NAMED:
        raise InputError(unknown("code", name, NAMED))
    return _named(name)


@cache
def _named(name: str) -> BivariateBicycleCode:
    return BivariateBicycleCode(*NAMED[name])


def toric(distance: int) -> BivariateBicycleCode:
    """Return the toric code on ``distance x distance`` cells: two terms in each polynomial.

    >>> code = toric(3)
    >>> code.n, code.k, code.logicals("Z").sum(axis=1).tolist()
    (18, 2, [3, 3])
    """
    return BivariateBicycleCode(distance, distance, "1 + x", "1 + y")


def _monomials(polynomial: str, l: int, m: int) -> tuple[Monomial, ...]:  # noqa: E741
    """Return the exponents ``(i, j)`` of each term x^i y^j, in order."""
    monomials = []
    for term in polynomial.split("+"):
        match = re.fullmatch(r"1|(?=.)(x(?:\^(\d+))?)?(y(?:\^(\d+))?)?", re.sub(r"[\s*]", "", term))
        if match is None:
            raise InputError(f"a polynomial must look like x^3 + y + y^2, got {polynomial!r}")
        x, i, y, j = match.groups()
        monomials.append((int(i or bool(x)) % l, int(j or bool(y)) % m))
    if len(set(monomials)) < len(monomials):
        raise InputError(f"the terms of {polynomial!r} must differ on a torus of {l} x {m} cells")
    return tuple(monomials)


def _text(monomials: tuple[Monomial, ...]) -> str:
    def power(letter: str, exponent: int) -> str:
        return {0: "", 1: letter}.get(exponent, f"{letter}^{exponent}")

    return " + ".join(power("x", i) + power("y", j) or "1" for i, j in monomials)


def _frozen(matrix: BitMatrix) -> BitMatrix:
    matrix.setflags(write=False)
    return matrix
