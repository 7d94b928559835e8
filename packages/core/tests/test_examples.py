"""Networks to audit: reproducible, on real data, and trained to where the audit has something to read."""

import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch

from symdyn_core.commands.examples import EXAMPLES, transformer
from symdyn_core.commands.examples.transformer import (
    CONTEXT,
    GPT,
    manual,
    next_token_loss,
    windows,
)
from symdyn_core.commands.target import Target
from symdyn_core.params import evaluate_loss
from symdyn_core.study.runner import single_threaded


def train(name: str, epochs: int, seed: int = 0) -> tuple[Target, list[float]]:
    """Train an example and return it with the training loss of each epoch."""
    losses: list[float] = []
    with single_threaded():
        return EXAMPLES[name].build(seed, epochs, losses.append), losses


def first_pages() -> str:
    """Return a text that is read in a second."""
    return manual()[:20_000]


def accuracy(target: Target) -> float:
    """Return the fraction of held-out samples whose largest output is the right one."""
    with torch.no_grad():
        return float((target.model(target.inputs).argmax(-1) == target.targets).double().mean())


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"fashion"}))  # its data may be absent: test_fashion
def test_the_seed_decides_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the global random state stays as it is, the fixture for every test checks."""
    monkeypatch.setattr(transformer, "manual", first_pages)
    target, losses = train(name, epochs=1)
    again, same = train(name, epochs=1)
    other, _ = train(name, epochs=1, seed=1)
    weights, same_weights, other_weights = (
        torch.cat([p.detach().flatten() for p in t.model.parameters()]) for t in (target, again, other)
    )
    assert len(losses) == 1
    assert losses == same
    assert torch.equal(weights, same_weights)
    assert not torch.equal(weights, other_weights)
    assert torch.equal(target.inputs, again.inputs)
    assert not torch.equal(target.inputs, other.inputs)
    assert not target.model.training
    assert math.isfinite(evaluate_loss(target.model, target.loss_fn, target.inputs, target.targets))


@pytest.mark.parametrize("name", ["digits", "resnet"])
def test_digits_are_read(name: str) -> None:
    """A third of the usual epochs suffices for 95 % of images never seen."""
    target, losses = train(name, epochs=EXAMPLES[name].epochs // 3)
    assert losses[-1] < losses[0]
    assert accuracy(target) >= 0.95


@pytest.mark.slow
def test_the_transformer_reads_more_than_one_character_back() -> None:
    """Its loss on text never seen undercuts the best that any table of pairs of characters could reach."""
    target, _ = train("transformer", epochs=2)
    text = manual()
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    total = len(text) - 1
    bigram_entropy = -sum(n / total * math.log(n / firsts[pair[0]]) for pair, n in pairs.items())
    loss = evaluate_loss(target.model, target.loss_fn, target.inputs, target.targets)
    assert loss < bigram_entropy - 0.25


def test_the_transformer_does_not_see_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanging a character changes no output before it, and some output from it on."""
    monkeypatch.setattr(transformer, "manual", first_pages)
    target, _ = train("transformer", epochs=1)
    tokens = target.inputs[:4].clone()
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 7
    with torch.no_grad():
        difference = (target.model(tokens) - target.model(changed)).abs().amax(dim=(0, 2))
    assert difference[:40].max() == 0
    assert difference[40:].min() > 0


def test_attention_of_equal_values_is_their_mean() -> None:
    """With query and key at zero, a head averages over what came before: computed by hand."""
    with torch.random.fork_rng(devices=[]):
        layer = transformer.Attention(8, 2)
        x = torch.randn(1, 5, 8)
    with torch.no_grad():
        layer.query.weight.zero_()
        layer.query.bias.zero_()
        means = torch.stack([x[0, : t + 1].mean(dim=0) for t in range(5)])
        expected = layer.output(layer.value(means))
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-6)  # float32 rounding


def test_no_paragraph_of_the_manual_comes_twice() -> None:
    paragraphs = [paragraph for paragraph in manual().split("\n\n") if paragraph]
    assert len(paragraphs) == len(set(paragraphs))
    assert len(manual()) > 200_000  # 376,000 with Python 3.11


def test_windows_hold_the_text_in_order() -> None:
    text = "to be or not to be"
    pieces, size = windows(text, 4)
    alphabet = sorted(set(text))
    assert size == len(alphabet)
    assert "".join(alphabet[k] for k in pieces.flatten().tolist()) == text[:16]


def test_an_untrained_gpt_accepts_shorter_inputs_and_no_longer_ones() -> None:
    with torch.random.fork_rng(devices=[]):
        model = GPT(11)
    assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 11)
    with pytest.raises(IndexError):
        model(torch.zeros(2, CONTEXT + 1, dtype=torch.long))


def test_the_loss_averages_over_samples_and_positions() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])  # chances (1/2, 1/2), (1/4, 3/4)
    expected = -(math.log(1 / 2) + math.log(3 / 4)) / 2
    assert next_token_loss(logits, torch.tensor([[0, 1]])).item() == pytest.approx(expected, rel=1e-6)


def test_naming_the_examples_does_not_import_torch() -> None:
    code = (
        "import sys, symdyn_core.commands.examples; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
