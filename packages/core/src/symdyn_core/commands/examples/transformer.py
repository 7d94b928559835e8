"""A character-level GPT that reads the manual that Python carries with it, the text behind ``help()``."""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from symdyn_core.commands.examples import Progress
from symdyn_core.commands.examples.training import initialized, split, train
from symdyn_core.commands.target import Target
from symdyn_core.random import torch_generator

CONTEXT = 64  # characters
JUDGED = 128  # held-out pieces that come with the network: 8192 predictions


class Attention(nn.Module):
    """Causal multi-head self-attention.

    Args:
        width: of the residual stream.
        heads: divides ``width``; head h owns the h-th slice of the rows of query, key and value and of the
            columns of output.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, length, width) to the same shape."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(-2))
        return output


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each behind a LayerNorm and beside a shortcut.

    Args:
        width: of the residual stream; the perceptron is four times as wide.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, length, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        x = x + self.down(gelu(self.up(self.norm2(x))))
        return x


class GPT(nn.Module):
    """A pre-LN decoder-only transformer with learned positions.

    Args:
        vocabulary: number of tokens.
        width: of the residual stream.
        heads: of each attention.
        layers: number of blocks.
        context: longest input.
    """

    def __init__(
        self, vocabulary: int, *, width: int = 64, heads: int = 4, layers: int = 2, context: int = CONTEXT
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (n, length) to logits of the next token (n, length, vocabulary)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.token(tokens) + self.position(positions))
        logits: Tensor = self.head(self.norm(x))
        return logits


def manual() -> str:
    """Return the text of Python's ``help()`` topics, every paragraph once.

    The topics quote each other at length; what was read in training must not come back in the test.
    """
    paragraphs = (text.strip("\n") for name in sorted(topics) for text in topics[name].split("\n\n"))
    return "\n\n".join(dict.fromkeys(paragraphs))


def windows(text: str, length: int) -> tuple[Tensor, int]:
    """Cut a text into pieces that do not overlap.

    Args:
        text: any text; what is left at its end is dropped.
        length: characters of a piece.

    Returns:
        Indices into the sorted alphabet of the text, shape (pieces, length), and the size of the alphabet.

    >>> windows("banana", 3)
    (tensor([[1, 0, 2],
            [0, 2, 0]]), 3)
    """
    index = {character: k for k, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([index[character] for character in text])
    return tokens[: len(tokens) // length * length].reshape(-1, length), len(index)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross entropy, in nats a token.

    Args:
        logits: shape (n, length, vocabulary).
        tokens: that came next, shape (n, length).

    >>> round(next_token_loss(torch.zeros(1, 2, 8), torch.tensor([[3, 5]])).item(), 4)  # log 8
    2.0794
    """
    return cross_entropy(logits.flatten(0, 1), tokens.flatten())


def build(seed: int, epochs: int, on_epoch: Progress) -> Target:
    """Train a two-layer GPT to predict the next character by AdamW; hold out a fifth, return part of it."""
    pieces, vocabulary = windows(manual(), CONTEXT + 1)
    generator = torch_generator(seed, "example", "transformer")
    training, held_out = split(len(pieces), generator)
    model = initialized(
        lambda: GPT(vocabulary), lambda weight: nn.init.normal_(weight, std=0.08, generator=generator)
    )
    train(
        model,
        next_token_loss,
        torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1),
        pieces[training, :-1],
        pieces[training, 1:],
        epochs=epochs,
        batch_size=32,
        generator=generator,
        on_epoch=on_epoch,
        cosine=True,
    )
    sample = pieces[held_out[:JUDGED]]
    return Target(model, next_token_loss, sample[:, :-1], sample[:, 1:])
