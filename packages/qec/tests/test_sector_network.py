"""The network of one sector: symmetric under translations and under the duality of X and Z."""

import pytest
import torch

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.networks.sector import SectorNetwork, SectorView, Tables, hear

CODE = bivariate_bicycle("bb72")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_checks(shots, cycles=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (shots, 2, cycles, CODE.l, CODE.m), dtype=torch.uint8, generator=generator)


def test_translations_act_on_outputs_as_on_inputs():
    network, checks = SectorNetwork(CODE, width=8, layers=2), some_checks(3)
    basis = torch.tensor([0, 1, 0])
    increments, net = network(checks, basis)
    moved, moved_net = network(checks.roll((2, 5), dims=(3, 4)), basis)
    for before, after in ((increments, moved), (net, moved_net)):
        cells = before.unflatten(-1, (2, CODE.l, CODE.m)).roll((2, 5), dims=(-2, -1))
        assert torch.equal(cells.flatten(-3), after)


def test_the_views_of_both_bases_have_the_same_checks():
    """Supports of the sector's checks and of the hints, seen through the view, are those of a Z memory."""
    for ours, kind in ((0, "Z"), (1, "X")):
        view = SectorView(CODE, "X")
        order = view.checks(torch.arange(2 * CODE.cells).view(1, 2, 1, CODE.l, CODE.m))[0, ours].flatten()
        both = torch.from_numpy(gf2.bits(CODE.checks("X"))), torch.from_numpy(gf2.bits(CODE.checks("Z")))
        seen = torch.cat(both)[order][:, view.qubits]
        assert torch.equal(seen, torch.from_numpy(gf2.bits(CODE.checks(kind))))


def test_flips_there_and_back():
    for basis, sector in (("Z", 0), ("X", 1)):
        view, flips = SectorView(CODE, basis), random(2, 2, 4, CODE.n)
        assert torch.equal(view.back(view.flips(flips)), flips[:, sector])


def test_what_is_out_of_reach_is_not_heard():
    """With one layer a flip's log odds depend on checks two cycles away, not on those further off."""
    network, checks = SectorNetwork(CODE, width=16, layers=1), some_checks(1, cycles=9)
    changed = checks.clone()
    changed[:, :, 0] = (checks[:, :, 0] + 1) % 3
    before, after = (network(c, torch.zeros(1))[0] for c in (checks, changed))
    different = (before != after).any(dim=-1)[0]
    assert different[:4].all()
    assert not different[4:].any()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_gradients_are_those_of_gathering_and_multiplying(kind):
    tables = Tables(CODE, shots=2, cycles=3, device=torch.device("cpu"))
    rows = 2 * 3 * CODE.cells
    for edges, sources in ((tables.left, 2), (tables.own, 3), (tables.hints[1], 1)):
        leaves = [random(rows, 16, seed=k).to(kind).requires_grad_() for k in range(sources)]
        mix = random(edges.heard.shape[1] * 16, 32, seed=9).to(kind).requires_grad_()
        weights = random(rows, 32, seed=10).to(kind)
        plain = torch.cat([*leaves, torch.zeros(1, 16, dtype=kind)])[edges.heard.long()].flatten(1) @ mix
        expected = torch.autograd.grad((plain * weights).sum(), [mix, *leaves])
        found = torch.autograd.grad((hear(mix, edges, *leaves) * weights).sum(), [mix, *leaves])
        for a, b in zip(found, expected, strict=True):
            # Single precision: the gradient of the matrix sums over 216 rows.
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 if kind == torch.float32 else 1e-10)


@pytest.mark.parametrize(("width", "layers"), [(0, 1), (4, 0)])
def test_sizes_are_checked(width, layers):
    with pytest.raises(InputError, match=f"width and layers must be at least 1, got {width} and {layers}"):
        SectorNetwork(CODE, width, layers)
