"""Dense labels: exact identities with detectors and observables, and the two traps that spoil labels only."""

import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_qec import increments as module
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.increments import IncrementSampler, fix_gauge

SHOTS = 2048


def bits(packed, width):
    return np.unpackbits(packed, axis=1, bitorder="little")[:, :width]


@pytest.fixture(scope="module")
def code():
    return bivariate_bicycle("bb72")


def sample(code, basis, p=0.003, rounds=6):
    shots = IncrementSampler(code, rounds, basis).sample(p, SHOTS, seed=3)
    circuit = bb_memory(code, p, rounds, basis)
    flips = bits(shots.flips, 2 * (rounds + 1) * code.n).reshape(-1, 2, rounds + 1, code.n)
    detectors = bits(shots.detectors, circuit.num_detectors)
    return circuit, detectors, flips, bits(shots.observables, circuit.num_observables)


@pytest.mark.parametrize("basis", ["Z", "X"])
def test_net_flips_explain_checks_and_observables_of_every_shot(code, basis):
    circuit, detectors, flips, observables = sample(code, basis)
    sector = 0 if basis == "Z" else 1
    net = flips[:, sector].sum(axis=1) % 2
    seen = np.zeros((SHOTS, code.cells), dtype=int)
    for detector, (i, j, _, kind) in circuit.get_detector_coordinates().items():
        if (kind == 1) == (basis == "Z"):
            seen[:, int(i) * code.m + int(j)] ^= detectors[:, detector]
    assert ((net @ code.checks(basis).T % 2) == seen).all()
    assert ((net @ code.logicals(basis).T % 2) == observables).all()
    assert not flips[:, 1 - sector, -1].any()  # of the sector that is not read out


def test_shots_are_those_of_the_circuit(code):
    circuit, detectors, _, observables = sample(code, "Z")
    theirs, flipped = circuit.compile_detector_sampler(seed=5).sample(20_000, separate_observables=True)
    rates, error = theirs.mean(axis=0), np.sqrt(theirs.mean(axis=0) / SHOTS)
    assert (np.abs(detectors.mean(axis=0) - rates) < 5.5 * error).all()
    assert observables.mean() == pytest.approx(flipped.mean(), rel=0.1)


def test_increments_are_stationary(code):
    rates = sample(code, "Z")[2][:, 0, :-1].mean(axis=(0, 2))
    assert rates.max() / rates.min() < 1.25  # the first holds the preparation as well


def test_without_clearing_ancillas_labels_grow_from_cycle_to_cycle(code, monkeypatch):
    monkeypatch.setattr(
        module, "SWEEPS", 0
    )  # what grows are whole stabilisers, which fixing the gauge removes
    monkeypatch.setattr(module, "CLEARED_BY", {})
    rates = sample(code, "Z")[2][:, 0, :-1].mean(axis=(0, 2))
    assert rates[-1] > 2 * rates[0]


def test_fixing_the_gauge_makes_labels_lighter_and_keeps_every_class(code):
    generator = np.random.default_rng(0)
    flips = (generator.random((code.n, 64, 8)) < 0.3).astype(np.uint8)
    packed = np.packbits(flips.reshape(code.n, -1), axis=1, bitorder="little")[None]
    fixed = packed.copy()
    fix_gauge(fixed, code.hx)
    before, after = (np.unpackbits(p[0], axis=1, bitorder="little") for p in (packed, fixed))
    assert (after.sum(axis=0) <= before.sum(axis=0)).all()
    assert after.sum() < 0.9 * before.sum()
    assert not ((code.hz @ (before ^ after)) % 2).any()
    assert not ((code.logicals("Z") @ (before ^ after)) % 2).any()


def test_seeds(code):
    sampler = IncrementSampler(code, rounds=2)
    first, again, other = (sampler.sample(0.003, 64, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first.detectors != other.detectors).any()


def test_bad_input(code):
    with pytest.raises(InputError, match="shots must be a positive multiple of 8, got 12"):
        IncrementSampler(code, rounds=2).sample(0.003, 12, seed=0)
    with pytest.raises(InputError, match="rounds must be at least 1, got 0"):
        IncrementSampler(code, rounds=0)
    with pytest.raises(InputError, match="basis must be X or Z, got 'Y'"):
        IncrementSampler(code, rounds=2, basis="Y")
    with pytest.raises(InputError, match=r"p must be in \[0, 0.75\], got 0.9"):
        IncrementSampler(code, rounds=2).sample(0.9, 8, seed=0)
    with pytest.raises(InputError, match="must all have weight 6"):
        fix_gauge(np.zeros((4, 1), np.uint8), np.ones((1, 4), np.uint8))
