"""The equivariant network, what it reads, and the stream that it learns from."""

import numpy as np
import pytest
import torch

from symdyn_core.errors import InputError
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.increments import IncrementSampler
from symdyn_qec.layout import TorusLayout, unpacked
from symdyn_qec.networks.torus import TorusNetwork, odd_log_odds
from symdyn_qec.shot_stream import ShotStream


@pytest.fixture(scope="module")
def code():
    return bivariate_bicycle("bb90")  # a torus of 15 x 3: the directions cannot be mistaken for each other


def scrambled(network, seed=0):
    """Give every weight a random value, the corrections included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return network


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (4, 2)])
def test_translations_of_checks_translate_flips(code, shift):
    network = scrambled(TorusNetwork(code, width=6, layers=2))
    checks = torch.randint(0, 3, (2, 2, 4, 15, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved, still = network(checks.roll(shift, dims=(3, 4))), network(checks)
    cells = torch.from_numpy(code.shifted_cells(shift))
    places = torch.cat([cells, code.cells + cells])
    assert torch.allclose(moved.increments[..., places], still.increments, atol=1e-6)
    assert torch.allclose(moved.net[..., places], still.net, atol=1e-6)
    assert not torch.allclose(moved.net, still.net, atol=1e-2)


def test_a_pattern_repeated_on_a_larger_torus_gets_the_same_answer_twice():
    """A torus twice as long covers the smaller one: what is periodic cannot tell them apart."""
    small, large = bivariate_bicycle("bb72"), bivariate_bicycle("bb144")
    networks = [scrambled(TorusNetwork(code, width=6, layers=2)) for code in (small, large)]
    checks = torch.randint(0, 3, (2, 2, 4, 6, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, two = networks[0](checks), networks[1](checks.repeat(1, 1, 1, 2, 1))
    for of_small, of_large in zip(one, two, strict=True):
        halves = of_large.unflatten(-1, (2, 2, small.cells))  # left and right qubits, first and second copy
        for copy in range(2):
            torch.testing.assert_close(halves[..., copy, :], of_small.unflatten(-1, (2, small.cells)))


def test_messages_run_along_the_edges_of_the_code(code):
    """After the first update of data qubits a fired check has changed its own six qubits and no others."""
    network = scrambled(TorusNetwork(code, width=6, layers=1))
    network.layers = torch.nn.ModuleList()  # what is left is one update of the data qubits
    quiet = torch.ones(1, 2, 3, 15, 3, dtype=torch.long)
    for kind, matrix in enumerate((code.hx, code.hz)):
        fired = quiet.clone()
        fired[0, kind, 1, 7, 1] = 2
        with torch.no_grad():
            change = (network(fired).increments - network(quiet).increments)[0, 0, 1].abs()
        assert torch.nonzero(change > 1e-7).flatten().tolist() == np.flatnonzero(matrix[7 * 3 + 1]).tolist()


def test_odds_of_sums():
    odds = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    p = torch.sigmoid(odds)
    odd = torch.zeros(5, 3)
    for t in range(4):
        odd = odd * (1 - p[:, t]) + (1 - odd) * p[:, t]
    assert torch.allclose(torch.sigmoid(odd_log_odds(odds)), odd, atol=1e-6)


@pytest.mark.parametrize("basis", ["Z", "X"])
def test_the_layout_puts_detectors_where_their_coordinates_say(code, basis):
    layout = TorusLayout(code, rounds=3, basis=basis)
    circuit = bb_memory(code, p=0.003, rounds=3, basis=basis)
    generator = np.random.default_rng(0)
    fired = generator.integers(0, 2, (4, circuit.num_detectors), dtype=np.uint8)
    checks = layout.checks(torch.from_numpy(np.packbits(fired, axis=1, bitorder="little")))
    for detector, (i, j, t, kind) in circuit.get_detector_coordinates().items():
        seen = checks[:, int(kind), int(t), int(i), int(j)]
        assert (seen.numpy() == 1 + fired[:, detector]).all()
    assert int((checks[0] == 0).sum()) == 2 * 4 * 45 - circuit.num_detectors
    own = 1 if basis == "Z" else 0  # Z checks are the second kind
    assert (checks[:, own] > 0).all()
    sector = 0 if basis == "Z" else 1
    assert layout.learnable()[sector].all()
    assert layout.learnable()[1 - sector].tolist() == [False, True, True, False]


def test_bits():
    packed = torch.tensor([[0b10000001, 0b1], [0, 0b10]], dtype=torch.uint8)
    assert unpacked(packed, 10).tolist() == [[1, 0, 0, 0, 0, 0, 0, 1, 1, 0], [0] * 9 + [1]]


def collect(stream, count, workers=0):
    batches = stream.batches(workers)
    found = [next(batches) for _ in range(count)]
    return [torch.cat(field) for field in zip(*found, strict=True)]


@pytest.fixture
def settings(code):
    return {"code": code, "rounds": 2, "p": (0.001, 0.006), "batch_size": 64, "seed": 7}


def test_batches_do_not_depend_on_where_the_stream_starts_or_who_makes_them(settings):
    whole = collect(ShotStream(**settings), 6)
    assert all(
        (a == b).all() for a, b in zip(whole, collect(ShotStream(**settings), 6, workers=2), strict=True)
    )
    later = collect(ShotStream(**settings, start=4), 2)
    assert all((a[4 * 64 :] == b).all() for a, b in zip(whole, later, strict=True))
    assert (whole[0][:64] != whole[0][64:128]).any()
    assert (collect(ShotStream(**settings | {"seed": 8}), 1)[0] != whole[0][:64]).any()


def test_bases_share_every_batch_and_strengths_are_mixed(settings, code):
    detectors, flips = collect(ShotStream(**settings), 40)
    bit_flips, phase_flips = (
        unpacked(flips, 2 * 3 * code.n).reshape(40, 2, 32, 2, 3, code.n)[..., sector, 2, :]
        for sector in (0, 1)
    )
    # The readout reveals bit flips in the first half of a batch, phase flips in the second.
    assert [bool(half.any()) for half in (bit_flips[:, 0], bit_flips[:, 1])] == [True, False]
    assert [bool(half.any()) for half in (phase_flips[:, 0], phase_flips[:, 1])] == [False, True]
    weights = unpacked(detectors, 8 * detectors.shape[1]).sum(dim=1).reshape(40, 64).float()
    strong = IncrementSampler(code, 2).sample(0.006, 2048, seed=0).detectors
    at_most = np.unpackbits(strong, axis=1).sum(axis=1).mean()
    assert weights.mean() < 0.7 * at_most  # a mixture, of which 0.006 is the highest
    assert weights.std(dim=1).mean() > 1.5 * weights.mean(dim=1).std()


def test_bad_input(settings, code):
    with pytest.raises(InputError, match="width and layers must be at least 1, got 0 and 2"):
        TorusNetwork(code, width=0, layers=2)
    with pytest.raises(InputError, match="batch_size must be a multiple of 16, got 40"):
        ShotStream(**settings | {"batch_size": 40})
    with pytest.raises(
        InputError, match="p must be a range of positive strengths, lower:higher, got 0.01:0.001"
    ):
        ShotStream(**settings | {"p": (0.01, 0.001)})
