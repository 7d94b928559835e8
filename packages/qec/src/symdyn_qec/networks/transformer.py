r"""A transformer over the stabilisers of a code, recurrent in time, whose output is autoregressive.

Every stabiliser is a token. Cycle by cycle what the checks show is embedded, added to the state carried over
from the last cycle, and sent through the same layers of attention. Attention is masked by the code: a token
hears only stabilisers that share a data qubit with its own. The probability of a class of logical errors is

.. math:: p(\ell \mid s) = \prod_{i=1}^{k} p(\ell_i \mid \ell_{<i}, s),

which gives all :math:`2^k` classes a probability with only k outputs.

Source: arXiv 2504.13043, as far as its abstract and later accounts of it tell: tokens, recurrence, a mask
from the code, autoregressive output, cross-entropy against true observables. All else is our choice: the mask
by shared data qubits, the carry scaled by :math:`1/\sqrt 2` (after AlphaQubit, Nature 635, 834, 2024), layers
normalised before attention, one learned query for each observable in place of pooling, and a gated recurrent
unit along the observables.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed

# What a check can show in a cycle.
CHECK_STATES = ("absent", "quiet", "fired")

# Widening inside the dense part of a layer, as usual.
DENSE = 4


class Answer(NamedTuple):
    """The likeliest class found.

    Fields:
        observables: bits, shape ``(shots, k)``.
        log_probability: natural, that the network gives this class, shape ``(shots,)``.
    """

    observables: Tensor
    log_probability: Tensor


class CodeTransformer(nn.Module):
    """Predicts the observables of a memory experiment from what its checks show, cycle by cycle.

    Args:
        related: which tokens may hear each other, symmetric and true on the diagonal, shape
            ``(tokens, tokens)``; see :func:`sharing_qubits`.
        num_observables: k, at least 1.
        width: features per token, a multiple of ``heads``.
        layers: of attention in every cycle, at least 1.
        heads: of attention, at least 1.
        seed: of the weights to start from.

    Raises:
        InputError: a value out of range.

    Any number of cycles:

    >>> network = CodeTransformer(sharing_qubits([[1, 1, 0], [0, 1, 1]]), 1, width=8, layers=1, heads=2)
    >>> quiet = torch.ones(5, 4, 2, dtype=torch.uint8)  # 5 shots, 4 cycles, 2 checks
    >>> answer = network.decode(network.encode(quiet))
    >>> tuple(answer.observables.shape), bool((answer.log_probability < 0).all())
    ((5, 1), True)
    """

    related: Tensor

    def __init__(
        self, related: ArrayLike, num_observables: int, width: int, layers: int, heads: int, seed: int = 0
    ) -> None:
        super().__init__()
        mask = torch.from_numpy(np.array(related, dtype=bool))
        if mask.ndim != 2 or not len(mask) or mask.shape[0] != mask.shape[1]:
            raise InputError(f"related must have shape (tokens, tokens), got {tuple(mask.shape)}")
        if not (torch.equal(mask, mask.T) and mask.diagonal().all()):
            raise InputError("related must be symmetric and true on the diagonal, got one that is not")
        if num_observables < 1 or layers < 1:
            raise InputError(
                f"num_observables and layers must be at least 1, got {num_observables} and {layers}"
            )
        check_heads(width, heads)
        self.num_observables, self.width, self.num_heads = num_observables, width, heads
        self.register_buffer("related", mask, persistent=False)
        # Torch's layers draw from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights"))
            self.shown = nn.Parameter(torch.randn(len(CHECK_STATES), width))
            self.token = nn.Parameter(torch.randn(len(mask), width))
            self.readout = nn.Parameter(torch.randn(width))
            self.layers = nn.ModuleList(MaskedLayer(width, heads) for _ in range(layers))
            self.head = SequentialHead(num_observables, width, heads)

    def forward(self, checks: Tensor, observables: Tensor) -> Tensor:
        """Return the log odds of each observable, given the true ones before it.

        Args:
            checks: as for :meth:`encode`.
            observables: bits, shape ``(shots, k)``.

        Returns:
            Shape ``(shots, k)``.
        """
        log_odds: Tensor = self.head(self.encode(checks), observables)
        return log_odds

    def encode(self, checks: Tensor) -> Tensor:
        """Return the state after all cycles, shape ``(shots, tokens, width)``.

        Args:
            checks: 0 absent, 1 quiet, 2 fired; whole numbers, shape ``(shots, cycles, tokens)``, the last
                cycle being that of the readout.
        """
        state = self.start(len(checks))
        *cycles, readout = checks.unbind(dim=1)
        for shown in cycles:
            state = self.step(state, shown)
        return self.step(state, readout, last=True)

    def start(self, shots: int) -> Tensor:
        """Return the state before the first cycle, shape ``(shots, tokens, width)``."""
        return self.token.new_zeros(shots, *self.token.shape)

    def step(self, state: Tensor, shown: Tensor, last: bool = False) -> Tensor:
        """Return the state after one more cycle.

        Args:
            state: before it, shape ``(shots, tokens, width)``.
            shown: what the checks show, as for :meth:`encode`, shape ``(shots, tokens)``.
            last: whether these checks come from the readout of the data qubits.
        """
        # A product with a one-hot vector: the gradient of a look-up in a tiny table is slow.
        new = F.one_hot(shown.long(), len(CHECK_STATES)).to(self.shown.dtype) @ self.shown + self.token
        # Two independent terms: scaled, their sum is as large as either.
        state = (state + new + self.readout if last else state + new) * 0.5**0.5
        for layer in self.layers:
            state = layer(state, self.related)
        return state

    def decode(self, state: Tensor, beam: int = 1) -> Answer:
        """Return the likeliest class found, observable after observable.

        Args:
            state: after the last cycle, shape ``(shots, tokens, width)``.
            beam: classes followed at a time, at least 1. One takes the likelier value of each observable;
                more find the likeliest class more often, and ``2**k`` always do.

        Raises:
            InputError: a beam below 1.
        """
        if beam < 1:
            raise InputError(f"beam must be at least 1, got {beam}")
        return self.head.search(state, beam)


class MaskedLayer(nn.Module):
    """Attention among related tokens, then a dense part, each normalised before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.dense_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.Linear(width, DENSE * width), nn.GELU(), nn.Linear(DENSE * width, width)
        )

    def forward(self, tokens: Tensor, related: Tensor) -> Tensor:
        """Return the tokens after the layer.

        Args:
            tokens: shape ``(shots, tokens, width)``.
            related: true where a token (row) may hear another (column).
        """
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.project(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=related)
        tokens = tokens + self.merge(heard.transpose(1, 2).flatten(2))
        moved: Tensor = tokens + self.dense(self.dense_norm(tokens))
        return moved


class SequentialHead(nn.Module):
    """Probability of each observable, given those before it and the state of all tokens."""

    def __init__(self, num_observables: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(num_observables, width))
        self.listen = nn.Linear(width, 2 * width)
        # What came before: nothing, a zero, a one.
        self.before = nn.Parameter(torch.randn(3, width))
        self.unit = nn.GRU(width, width, batch_first=True)
        self.odds = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, state: Tensor, observables: Tensor) -> Tensor:
        """Return log odds with the true observables as what came before, shape ``(shots, k)``."""
        pooled = self._pool(state)
        before = F.pad(observables[:, :-1].long() + 1, (1, 0))
        hidden, _ = self.unit(pooled + self._embed(before))
        return self._odds(hidden, pooled)

    def search(self, state: Tensor, beam: int) -> Answer:
        """Return the likeliest class among those that a beam search comes upon."""
        pooled = self._pool(state)
        shots, k, width = pooled.shape
        bits = torch.zeros(shots, 1, 0, dtype=torch.long, device=state.device)
        score = torch.zeros(shots, 1, device=state.device)
        memory = pooled.new_zeros(shots, 1, width)
        for i in range(k):
            paths = bits.shape[1]
            before = bits[..., -1] + 1 if i else bits.new_zeros(shots, paths)
            here = pooled[:, None, i].expand(-1, paths, -1)
            fed = (here + self._embed(before)).reshape(-1, 1, width)
            hidden, after = self.unit(fed, memory.reshape(1, -1, width).contiguous())
            log_odds = self._odds(hidden.view(shots, paths, width), here)
            both = torch.cat([score + F.logsigmoid(-log_odds), score + F.logsigmoid(log_odds)], dim=1)
            score, place = both.topk(min(beam, 2 * paths), dim=1)
            parent = (place % paths).unsqueeze(-1)
            memory = after.view(shots, paths, width).gather(1, parent.expand(-1, -1, width))
            kept = bits.gather(1, parent.expand(-1, -1, i))
            bits = torch.cat([kept, (place // paths).unsqueeze(-1)], dim=-1)
        return Answer(bits[:, 0].to(torch.uint8), score[:, 0])

    def _pool(self, state: Tensor) -> Tensor:
        """Return what the tokens tell of each observable, shape ``(shots, k, width)``."""
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.listen(self.norm(state)).chunk(2, dim=-1)
        )
        query = self.query.to(key.dtype).view(len(self.query), self.heads, -1).transpose(0, 1)
        pooled = F.scaled_dot_product_attention(query.expand(len(state), -1, -1, -1), key, value)
        # The unit and what follows are small, and sums of log probabilities deserve float32.
        return pooled.transpose(1, 2).flatten(2).float()

    def _embed(self, before: Tensor) -> Tensor:
        return F.one_hot(before, len(self.before)).to(self.before.dtype) @ self.before

    def _odds(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        odds: Tensor = self.odds(torch.cat([hidden, pooled], dim=-1)).squeeze(-1)
        return odds.float()


def log_probability(log_odds: Tensor, observables: Tensor) -> Tensor:
    """Return the log probability of a class from the log odds of its observables, shape ``(shots,)``.

    Args:
        log_odds: of each observable given those before it in this class, shape ``(shots, k)``.
        observables: the class, bits, shape ``(shots, k)``.

    Two fair coins:

    >>> round(log_probability(torch.zeros(1, 2), torch.tensor([[0, 1]])).exp().item(), 6)
    0.25
    """
    truth = observables.to(log_odds.dtype)
    return -F.binary_cross_entropy_with_logits(log_odds, truth, reduction="none").sum(dim=-1)


def sharing_qubits(*checks: ArrayLike) -> np.ndarray:
    """Return which stabilisers share a data qubit, or are the same.

    Args:
        checks: supports, bits, each of shape ``(stabilisers, n)``; tokens come in this order.

    Returns:
        Symmetric, ``bool``, shape ``(tokens, tokens)``.

    >>> sharing_qubits([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]).astype(int).tolist()
    [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """
    supports = np.vstack([np.asarray(kind, dtype=np.int64) for kind in checks])
    related: np.ndarray = (supports @ supports.T > 0) | np.eye(len(supports), dtype=bool)
    return related


def check_heads(width: int, heads: int) -> None:
    """Raise InputError unless a width can be split among some heads of attention."""
    if heads < 1 or width < 1 or width % heads:
        raise InputError(f"width must be a positive multiple of heads, got {width} and {heads}")
