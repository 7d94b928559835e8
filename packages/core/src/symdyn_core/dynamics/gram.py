r"""Gradients of all samples for one parameter, in a form much smaller than themselves.

Backpropagation gives the gradient of sample i for a weight as a sum of outer products over the places t at
which the sample meets it, :math:`g_i=\sum_t d_{it}a_{it}^T`: a single one for a linear layer, tokens of a
sequence, positions of a convolution. What the covariance needs follows without forming the :math:`g_i`:

.. math:: g_i\cdot g_j=\sum_{tt'}(d_{it}\cdot d_{jt'})(a_{it}\cdot a_{jt'}),\qquad
          \sum_ig_i^2=(D^2)^TA^2\ \text{(single place)}.

Where the places are so many that the gradients are smaller than their inner products, a layer's gradients are
formed, few entries at a time.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

# Numbers formed at a time: 32 MiB in float32.
BLOCK_NUMBERS = 2**23
# What is formed for a few samples is used while it is in the processor's cache.
CACHED_NUMBERS = 2**18
# Inner products are symmetric: those above the diagonal are left out, but for blocks of this size.
BLOCK_SAMPLES = 64


class Factor(Protocol):
    """The gradients of n samples for one parameter of m entries."""

    def moments(self, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the sums of gradients and of their squares, shape (m,) each.

        Args:
            gram: the inner products of the gradients are added to it, shape (n, n); to its lower triangle
                at least, above it may be anything.
        """
        ...

    def add_gram(self, other: "Factor", gram: Tensor) -> None:
        """Add the inner products with other samples' gradients of the same parameter, shape (n, n')."""
        ...

    def products(self, vectors: Tensor) -> Tensor:
        """Return the inner products with vectors of shape (m, k), shape (n, k)."""
        ...

    def combine(self, weights: Tensor) -> Tensor:
        """Return sums of gradients with weights of shape (n, k), shape (m, k)."""
        ...


def _triangle(n: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks that cover the lower triangle of an n by n matrix."""
    step = max(BLOCK_SAMPLES, n // 4)
    return ((slice(start, n), slice(start, start + step)) for start in range(0, n, step))


class Direct:
    """Gradients that are kept as they are: those of biases and other small parameters.

    Args:
        gradients: shape (n, m).
        weight: the factor of the weight beside this bias, if its d are these gradients; see
            :func:`all_moments`.

    >>> Direct(torch.tensor([[1.0], [3.0]])).moments()
    (tensor([4.]), tensor([10.]))
    """

    def __init__(self, gradients: Tensor, weight: "Outer | None" = None) -> None:
        self.gradients, self.weight = gradients, weight

    def moments(self, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Factor`."""
        g = self.gradients
        if gram is not None:
            for rows, columns in _triangle(len(g)):
                gram[rows, columns].addmm_(g[rows], g[columns].T)
        return g.sum(dim=0), g.square().sum(dim=0)

    def add_gram(self, other: Factor, gram: Tensor) -> None:
        """See :class:`Factor`."""
        assert isinstance(other, Direct)
        gram += self.gradients @ other.gradients.T

    def products(self, vectors: Tensor) -> Tensor:
        """See :class:`Factor`."""
        return self.gradients @ vectors

    def combine(self, weights: Tensor) -> Tensor:
        """See :class:`Factor`."""
        return self.gradients.T @ weights


Block = tuple[slice, slice]
"""Some groups, and rows of the parameter in each of them."""
EVERYTHING: Block = (slice(None), slice(None))


class Places(Protocol):
    """What meets a weight at every place, for some of the samples: a tensor, or computed when needed."""

    def __getitem__(self, samples: slice) -> Tensor:
        """Return shape (samples, groups, T, q)."""
        ...


class Outer:
    r"""Gradients that are sums of outer products, :math:`\sum_td_{it}a_{it}^T`, for one or several groups.

    Args:
        left: what flows back, d, shape (n, groups, T, p).
        right: what went in, a, shape (n, groups, T, q).
        inner: the entries of the parameter are (groups, p, *inner) while a has (\*inner reversed) in its q;
            (q, 1) if their order is the same.

    A sample with d = (1, 2) and a = 3:

    >>> factor = Outer(torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2), torch.full((1, 1, 1, 1), 3.0), (1, 1))
    >>> factor.moments()
    (tensor([3., 6.]), tensor([ 9., 36.]))
    """

    def __init__(self, left: Tensor, right: Places, inner: tuple[int, int]) -> None:
        self.left, self.right, self.inner, self.width = left, right, inner, inner[0] * inner[1]
        self.n, self.groups, self.places, self.height = left.shape

    @property
    def _single(self) -> bool:
        return self.places == 1 and self.groups == 1 and isinstance(self.right, Tensor)

    @property
    def _by_places(self) -> bool:
        """Whether inner products of places are cheaper than those of gradients."""
        return self.places**2 * (self.height + self.width) < self.height * self.width

    def moments(self, gram: Tensor | None = None, *, with_bias: bool = False) -> tuple[Tensor, Tensor]:
        """See :class:`Factor`; ``with_bias`` adds the inner products of d itself, for a single place."""
        if self._single:
            d, a = self._flat()
            if gram is not None:
                for rows, columns in _triangle(self.n):
                    alike = a[rows] @ a[columns].T
                    # The gradient of a bias is d itself: the same as a further input that is always 1.
                    alike = alike.add_(1) if with_bias else alike
                    gram[rows, columns] += (d[rows] @ d[columns].T).mul_(alike)
            return (d.T @ a).reshape(-1), (d.square().T @ a.square()).reshape(-1)
        if gram is not None and self._by_places:
            self._add_place_products(self, gram)
            gram = None
        pieces = []
        for block in self._row_blocks(1 if gram is None else self.n):
            total = squares = torch.zeros((), dtype=self.left.dtype, device=self.left.device)
            formed = None if gram is None else self._empty(block)
            for samples in self._slices(block):
                some = self._formed(samples, block, formed)
                total, squares = total + some.sum(dim=0), squares + some.square().sum(dim=0)
            if gram is not None and formed is not None:
                for rows, columns in _triangle(self.n):
                    gram[rows, columns].addmm_(formed[rows], formed[columns].T)
            pieces.append((total, squares))
        sums, all_squares = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return self._in_order(sums), self._in_order(all_squares)

    def add_gram(self, other: Factor, gram: Tensor) -> None:
        """See :class:`Factor`."""
        assert isinstance(other, Outer)
        if self._single:
            (d, a), (d_other, a_other) = self._flat(), other._flat()
            gram += (d @ d_other.T).mul_(a @ a_other.T)
        elif self._by_places:
            self._add_place_products(other, gram)
        else:
            for block in self._row_blocks(max(self.n, other.n)):
                gram += self._all_formed(block) @ other._all_formed(block).T

    def products(self, vectors: Tensor) -> Tensor:
        """See :class:`Factor`."""
        if self._single:
            d, a = self._flat()
            weights = vectors.T.reshape(-1, self.height, self.width)
            return torch.stack([((a @ weight.T).mul_(d)).sum(dim=1) for weight in weights], dim=1)
        columns = self._in_order(vectors, back=True)
        return torch.cat(
            [self._formed(samples, EVERYTHING) @ columns for samples in self._slices(EVERYTHING)]
        )

    def combine(self, weights: Tensor) -> Tensor:
        """See :class:`Factor`."""
        if self._single:
            d, a = self._flat()
            columns = [((d * weight.unsqueeze(1)).T @ a).reshape(-1) for weight in weights.T]
            return torch.stack(columns, dim=1)
        total = torch.zeros((), dtype=self.left.dtype, device=self.left.device)
        for samples in self._slices(EVERYTHING):
            total = total + self._formed(samples, EVERYTHING).T @ weights[samples]
        return self._in_order(total)

    def _flat(self) -> tuple[Tensor, Tensor]:
        return self.left.reshape(self.n, -1), self.right[:].reshape(self.n, -1)

    def _in_order(self, entries: Tensor, *, back: bool = False) -> Tensor:
        """Return entries of shape (m, ...) in the order of the parameter, or back in that of a."""
        if 1 in self.inner:
            return entries
        outer, inner = self.inner if back else self.inner[::-1]
        return torch.unflatten(entries, 0, (-1, outer, inner)).transpose(1, 2).flatten(0, 2)

    def _row_blocks(self, samples: int) -> Iterator[Block]:
        """Yield groups and rows in them, few enough that these entries of so many samples may be formed."""
        groups = max(1, BLOCK_NUMBERS // (samples * self.height * self.width))
        height = self.height if groups > 1 else max(1, BLOCK_NUMBERS // (samples * self.width))
        for group in range(0, self.groups, groups):
            for row in range(0, self.height, height):
                yield slice(group, group + groups), slice(row, row + height)

    def _slices(self, block: Block) -> Iterator[slice]:
        """Yield samples, few at a time."""
        part = self.left[:1, block[0], :, block[1]]
        each = part.shape[1] * self.width * max(self.places, part.shape[3])
        step = max(1, CACHED_NUMBERS // each)
        return (slice(start, start + step) for start in range(0, self.n, step))

    def _formed(self, samples: slice, block: Block, all_formed: Tensor | None = None) -> Tensor:
        """Return some entries of the gradients of some samples, shape (samples, entries).

        They are written into the rows of ``all_formed`` if it is given.
        """
        left, right = self.left[samples, block[0], :, block[1]].mT, self.right[samples][:, block[0]]
        if all_formed is None:
            return torch.matmul(left, right).flatten(1)
        place = all_formed[samples]
        torch.matmul(left, right, out=place.view(len(left), left.shape[1], left.shape[2], self.width))
        return place

    def _empty(self, block: Block) -> Tensor:
        part = self.left[:, block[0], :, block[1]]
        return part.new_empty(self.n, part.shape[1] * part.shape[3] * self.width)

    def _all_formed(self, block: Block) -> Tensor:
        """Return some entries of the gradients of all samples, shape (n, entries)."""
        formed = self._empty(block)
        for samples in self._slices(block):
            self._formed(samples, block, formed)
        return formed

    def _add_place_products(self, other: "Outer", gram: Tensor) -> None:
        step = max(1, BLOCK_NUMBERS // (2 * self.places * other.n * other.places))
        right = other.right[:]
        for start in range(0, self.n, step):
            samples = slice(start, start + step)
            here = self.right[samples]
            for group in range(self.groups):
                product = _all_pairs(self.left[samples, group], other.left[:, group])
                product *= _all_pairs(here[:, group], right[:, group])
                gram[samples] += product.reshape(len(here), self.places, other.n, other.places).sum(
                    dim=(1, 3)
                )


def _all_pairs(ours: Tensor, theirs: Tensor) -> Tensor:
    return ours.reshape(-1, ours.shape[-1]) @ theirs.reshape(-1, theirs.shape[-1]).T


def all_moments(factors: dict[str, Factor], gram: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the :meth:`~Factor.moments` of several parameters, their inner products summed up in ``gram``.

    >>> d, a = torch.ones(2, 1), torch.tensor([[2.0], [3.0]])
    >>> weight = Outer(d.reshape(2, 1, 1, 1), a.reshape(2, 1, 1, 1), (1, 1))
    >>> gram = torch.zeros(2, 2)
    >>> all_moments({"bias": Direct(d, weight), "weight": weight}, gram)
    {'bias': (tensor([2.]), tensor([2.])), 'weight': (tensor([5.]), tensor([13.]))}
    >>> gram.tril()
    tensor([[ 5.,  0.],
            [ 7., 10.]])
    """
    present = {id(factor) for factor in factors.values()}
    shared = {
        id(factor.weight): name
        for name, factor in factors.items()
        if isinstance(factor, Direct) and id(factor.weight) in present
    }
    found = {}
    for name, factor in factors.items():
        if isinstance(factor, Outer):
            found[name] = factor.moments(gram, with_bias=id(factor) in shared)
        else:
            found[name] = factor.moments(None if name in shared.values() else gram)
    return found


class Rows:
    """Gradients for the rows of a table, of which a sample looks up a few.

    Args:
        tokens: row looked up at every place, shape (n, T).
        values: what flows back to it, shape (n, T, q).
        height: number of rows of the table.

    One sample that looks up row 1 twice:

    >>> Rows(torch.tensor([[1, 1]]), torch.tensor([[[2.0], [3.0]]]), 2).moments()
    (tensor([0., 5.]), tensor([ 0., 25.]))
    """

    def __init__(self, tokens: Tensor, values: Tensor, height: int) -> None:
        self.tokens, self.values, self.height = tokens, values, height
        self.n, self.width = len(tokens), values.shape[-1]
        # What a sample sends to the same row adds up before anything is squared; row by row from here on.
        keys = tokens + height * torch.arange(self.n, device=tokens.device).unsqueeze(1)
        met, places = torch.unique(keys.flatten(), return_inverse=True)
        sums = values.new_zeros(len(met), self.width).index_add_(0, places, values.flatten(0, 1))
        order = (met % height).argsort(stable=True)
        self._row, self._sample, self._sums = met[order] % height, met[order] // height, sums[order]

    def moments(self, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Factor`."""
        if gram is not None:
            self.add_gram(self, gram)
        return self._table(self._sums).reshape(-1), self._table(self._sums.square()).reshape(-1)

    def add_gram(self, other: Factor, gram: Tensor) -> None:
        """See :class:`Factor`."""
        assert isinstance(other, Rows)
        theirs = other._ranges()
        for row, (start, stop) in self._ranges().items():
            if row in theirs:
                low, high = theirs[row]
                product = self._sums[start:stop] @ other._sums[low:high].T
                # A sample meets a row once here, so no entry is written twice.
                gram[self._sample[start:stop].unsqueeze(1), other._sample[low:high]] += product

    def products(self, vectors: Tensor) -> Tensor:
        """See :class:`Factor`."""
        tables = vectors.reshape(self.height, self.width, -1)
        found = torch.einsum("mq,mqk->mk", self._sums, tables[self._row])
        return found.new_zeros(self.n, found.shape[1]).index_add_(0, self._sample, found)

    def combine(self, weights: Tensor) -> Tensor:
        """See :class:`Factor`."""
        columns = [
            self._table(self._sums * weight[self._sample].unsqueeze(1)).reshape(-1) for weight in weights.T
        ]
        return torch.stack(columns, dim=1)

    def outer(self) -> Outer:
        """Return the same as sums of outer products, with one entry of d for every row of the table."""
        left = torch.zeros(
            *self.tokens.shape, self.height, dtype=self.values.dtype, device=self.values.device
        )
        left.scatter_(2, self.tokens.unsqueeze(2), 1.0)
        return Outer(left.unsqueeze(1), self.values.unsqueeze(1), (self.width, 1))

    def _table(self, sums: Tensor) -> Tensor:
        return sums.new_zeros(self.height, self.width).index_add_(0, self._row, sums)

    def _ranges(self) -> dict[int, tuple[int, int]]:
        rows, counts = self._row.unique_consecutive(return_counts=True)
        stops = counts.cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        return dict(zip(rows.tolist(), zip(starts, stops, strict=True), strict=True))


def merged(factors: list[Factor]) -> Factor | None:
    """Return the gradients of a parameter used several times, or None if its uses do not go together.

    >>> merged([Direct(torch.ones(1, 1)), Direct(torch.ones(1, 1))]).moments()
    (tensor([2.]), tensor([4.]))
    """
    if len(factors) == 1:
        return factors[0]
    if all(isinstance(factor, Direct) for factor in factors):
        return Direct(torch.stack([f.gradients for f in factors if isinstance(f, Direct)]).sum(dim=0))
    if all(isinstance(factor, Rows) for factor in factors):
        tables = [factor for factor in factors if isinstance(factor, Rows)]
        tokens, values = (torch.cat([getattr(t, name) for t in tables], 1) for name in ("tokens", "values"))
        return Rows(tokens, values, tables[0].height)
    outer = [factor.outer() if isinstance(factor, Rows) else factor for factor in factors]
    shapes = {(f.n, f.groups, f.height, f.inner) if isinstance(f, Outer) else None for f in outer}
    if len(shapes) != 1 or None in shapes:
        return None
    found = [factor for factor in outer if isinstance(factor, Outer)]
    left = torch.cat([factor.left for factor in found], dim=2)
    return Outer(left, torch.cat([factor.right[:] for factor in found], dim=2), found[0].inner)
