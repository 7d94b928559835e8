"""Every form of a layer's per-sample gradients against the gradients themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from symdyn_core.dynamics import gram
from symdyn_core.dynamics.gram import Direct, Factor, Outer, Rows, all_moments, merged
from symdyn_core.dynamics.gram_layers import factors_of


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outer(n: int, groups: int, places: int, height: int, width: int, seed: int) -> tuple[Factor, Tensor]:
    left, right = (
        normal(n, groups, places, height, seed=seed),
        normal(n, groups, places, width, seed=seed + 1),
    )
    return Outer(left, right, (width, 1)), torch.einsum("ngtp,ngtq->ngpq", left, right).flatten(1)


def rows(n: int, seed: int) -> tuple[Factor, Tensor]:
    tokens = torch.randint(6, (n, 4), generator=torch.Generator().manual_seed(seed))
    values = normal(n, 4, 3, seed=seed)
    one_hot = nn.functional.one_hot(tokens, 6).double()
    return Rows(tokens, values, 6), torch.einsum("ntv,ntq->nvq", one_hot, values).flatten(1)


def direct(n: int, seed: int) -> tuple[Factor, Tensor]:
    gradients = normal(n, 5, seed=seed)
    return Direct(gradients), gradients


FORMS: dict[str, Callable[[int, int], tuple[Factor, Tensor]]] = {
    "direct": direct,
    "rows": rows,
    "single place": lambda n, seed: outer(n, 1, 1, 4, 3, seed),
    "few places": lambda n, seed: outer(n, 1, 2, 8, 9, seed),
    "many places": lambda n, seed: outer(n, 1, 7, 4, 3, seed),
    "groups": lambda n, seed: outer(n, 3, 5, 2, 4, seed),
    "groups, one place": lambda n, seed: outer(n, 2, 1, 3, 4, seed),
    "tied": lambda n, seed: (
        merged([rows(n, seed)[0], outer(n, 1, 2, 6, 3, seed)[0]]) or Direct(torch.zeros(n, 1)),
        rows(n, seed)[1] + outer(n, 1, 2, 6, 3, seed)[1],
    ),
}


@pytest.mark.parametrize("numbers", [2**23, 40])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "BLOCK_NUMBERS", numbers)
    monkeypatch.setattr(gram, "CACHED_NUMBERS", numbers)
    monkeypatch.setattr(gram, "BLOCK_SAMPLES", 3)
    (ours, g), (theirs, h) = FORMS[form](10, 1), FORMS[form](6, 5)
    inner = torch.zeros(10, 10, dtype=torch.float64)
    for found in (ours.moments(inner), ours.moments()):
        assert torch.allclose(found[0], g.sum(dim=0))
        assert torch.allclose(found[1], g.square().sum(dim=0))
    assert torch.allclose(inner.tril(), (g @ g.T).tril())
    across = torch.ones(10, 6, dtype=torch.float64)
    ours.add_gram(theirs, across)
    assert torch.allclose(across, 1 + g @ h.T)
    vectors, weights = normal(g.shape[1], 2), normal(10, 3)
    assert torch.allclose(ours.products(vectors), g @ vectors)
    assert torch.allclose(ours.combine(weights), g.T @ weights)


def test_uses_that_do_not_go_together() -> None:
    assert merged([direct(4, 1)[0], rows(4, 1)[0]]) is None
    assert merged([outer(4, 1, 1, 2, 3, 1)[0], outer(4, 1, 1, 3, 2, 1)[0]]) is None


def test_the_bias_of_a_linear_layer_shares_its_inner_products() -> None:
    layer = nn.utils.skip_init(nn.Linear, 3, 2, dtype=torch.float64)
    x, d = normal(7, 3), normal(7, 2, seed=2)
    factors = factors_of(layer, x, d, 0, 7) or {}
    gradients = torch.cat([torch.einsum("np,nq->npq", d, x).flatten(1), d], dim=1)
    inner = torch.zeros(7, 7, dtype=torch.float64)
    moments = all_moments(factors, inner)
    assert torch.allclose(inner.tril(), (gradients @ gradients.T).tril())
    assert torch.allclose(
        torch.cat([moments["weight"][1], moments["bias"][1]]), gradients.square().sum(dim=0)
    )
