import itertools

import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec import discovery
from symdyn_qec.automorphism import Automorphism, compare_mechanisms, dem_automorphism, verify_equivariance
from symdyn_qec.circuits import bb_memory, memory_circuit
from symdyn_qec.codes import CSSCode, bivariate_bicycle
from symdyn_qec.css_circuit import css_circuit
from symdyn_qec.discovery import (
    complete_permutation,
    discover_automorphisms,
    discover_symmetries,
    discover_translations,
)
from symdyn_qec.mechanisms import Mechanisms
from symdyn_qec.noise_models import NoiseModel, with_noise
from symdyn_qec.refinement import permutations


def without_coordinates(dem):
    """Return the same mechanisms, their detectors renumbered at random, and nothing else of the model."""
    relabelling = np.random.default_rng(1).permutation(dem.num_detectors)
    renamed = stim.DetectorErrorModel(f"detector D{dem.num_detectors - 1}")
    for instruction in dem.flattened():
        if instruction.type == "error":
            targets = [
                stim.target_relative_detector_id(relabelling[t.val]) if t.is_relative_detector_id() else t
                for t in instruction.targets_copy()
            ]
            renamed.append("error", instruction.args_copy(), targets)
    return renamed


def ring_memory(size, p, rounds):
    """A repetition code on a ring, every check touching its left qubit first."""
    right = np.roll(np.eye(size, dtype=int), 1, axis=1)
    ticks = np.where(right, 1, np.where(np.eye(size), 0, -1))
    code = CSSCode(np.zeros((0, size)), np.eye(size, dtype=int) + right)
    return with_noise(css_circuit(code, rounds, z_ticks=ticks), NoiseModel.uniform(p))


@pytest.mark.parametrize(("basis", "noise"), [("Z", "uniform"), ("X", "si1000")])
def test_all_translations_of_a_bicycle_code_are_found_from_its_model(basis, noise):
    dem = memory_circuit("bb72", p=0.003, rounds=2, basis=basis, noise=noise).detector_error_model()
    group = discover_symmetries(dem)
    assert len(group) == 36
    assert group.free
    assert set(group.shifts) == {(i, j, 0, 0) for i in range(6) for j in range(6)}
    assert group.shifts[0] == (0, 0, 0, 0)
    # One orbit for each kind of check and each time: 0, 1, 2 in the basis, 1 in the other one.
    assert np.bincount(group.orbits()).tolist() == [36] * 4


def test_what_is_found_is_what_is_known_of_the_code():
    """The same permutations, and observable maps that agree on everything that can happen."""
    code = bivariate_bicycle("bb72")
    circuit = bb_memory(code, p=0.003, rounds=2)
    dem = circuit.detector_error_model()
    shots = circuit.compile_detector_sampler(seed=2).sample(200, separate_observables=True)
    group = discover_translations(dem)
    for shift, symmetry in list(zip(group.shifts, group.automorphisms, strict=True))[::7]:
        assert verify_equivariance(dem, symmetry) <= 1e-12
        known = dem_automorphism(code, dem, (int(shift[0]), int(shift[1])))
        for ours, theirs in zip(symmetry.apply(*shots), known.apply(*shots), strict=True):
            assert (ours == theirs).all()


def test_coordinates_are_not_needed():
    dem = memory_circuit("bb72", p=0.003, rounds=2).detector_error_model()
    anonymous = without_coordinates(dem)
    group = discover_symmetries(anonymous)
    assert len(group) == 36
    assert group.free
    assert group.shifts == ()
    assert (group.automorphisms[0].permutation == np.arange(dem.num_detectors)).all()
    assert verify_equivariance(anonymous, group.automorphisms[17]) <= 1e-12


def test_equations_may_come_in_blocks(monkeypatch):
    dem = memory_circuit("toric", distance=3, p=0.01, rounds=2).detector_error_model()
    together = discover_translations(dem)
    monkeypatch.setattr(discovery, "BLOCK", 7)
    assert discover_translations(dem).shifts == together.shifts


@pytest.mark.parametrize("size", [4, 5])
def test_a_ring_turns(size):
    dem = ring_memory(size, p=0.01, rounds=3).detector_error_model()
    group = discover_translations(dem)
    assert [shift[0] for shift in group.shifts] == list(range(size))
    assert all(shift[1:] == (0, 0, 0) for shift in group.shifts)
    # Mechanisms alone also show the inversion of space and time together, which no shift of coordinates is.
    assert len(discover_automorphisms(without_coordinates(dem))) == 2 * size


@pytest.mark.parametrize("code", ["surface", "surface-unrotated", "repetition"])
def test_codes_with_a_boundary_have_no_symmetry(code):
    dem = memory_circuit(code, distance=3, p=0.01, rounds=3).detector_error_model()
    for group in (discover_translations(dem), discover_automorphisms(without_coordinates(dem))):
        assert len(group) == 1
        assert (group.automorphisms[0].permutation == np.arange(dem.num_detectors)).all()
        assert not group.automorphisms[0].detector_term.any()


def test_uneven_noise_leaves_fewer_translations():
    """Noise on every other row of checks is invariant under shifts by two rows only."""
    circuit = memory_circuit("toric", distance=4, p=0.01, rounds=2).flattened()
    ancillas = [qubit for qubit in range(48, 64) if (qubit - 48) // 4 % 2 == 0]
    last = max(
        index for index, gate in enumerate(circuit) if gate.name == "M" and gate.targets_copy()[0].value > 31
    )
    circuit.insert(last, stim.Circuit("X_ERROR(0.02) " + " ".join(map(str, ancillas))))
    group = discover_symmetries(circuit.detector_error_model())
    assert {shift[:2] for shift in group.shifts} == {(i, j) for i in (0, 2) for j in range(4)}


def test_a_tolerance_admits_what_is_nearly_symmetric():
    nearly = stim.DetectorErrorModel(
        "error(0.1) D0\nerror(0.1001) D1\nerror(0.2) D0 D1 L0\ndetector(0) D0\ndetector(1) D1"
    )
    assert len(discover_translations(nearly)) == 1
    assert len(discover_translations(nearly, tolerance=1e-3)) == 2
    assert len(discover_automorphisms(nearly)) == 1
    assert len(discover_automorphisms(nearly, tolerance=1e-3)) == 2


def naive_automorphisms(dem):
    """All permutations of the detectors for which some M and C carry the mechanisms along, by trying."""
    d, k, found = dem.num_detectors, dem.num_observables, set()
    for order in itertools.permutations(range(d)):
        for bits in itertools.product((0, 1), repeat=k * (k + d)):
            maps = np.array(bits, dtype=np.uint8).reshape(k, k + d)
            result = compare_mechanisms(dem, Automorphism(np.array(order), maps[:, :k], maps[:, k:]))
            if not result.unmatched and result.max_difference < 1e-12:
                found.add(order)
                break
    return found


@pytest.mark.parametrize("seed", range(6))
def test_small_models_have_the_symmetries_that_trying_everything_finds(seed):
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    chosen = [pairs[index] for index in rng.choice(6, rng.integers(3, 6), replace=False)]
    lines = [f"error(0.1) D{a} D{b}" + " L0" * int(rng.integers(2)) for a, b in chosen]
    lines += [f"error(0.2) D{d}" for d in range(4) if rng.integers(2)]
    dem = stim.DetectorErrorModel("\n".join([*lines, "detector D3", "logical_observable L0"]))
    touched = {d for pair in chosen for d in pair} == set(range(4))
    found = {tuple(s.permutation.tolist()) for s in discover_automorphisms(dem).automorphisms}
    naive = naive_automorphisms(dem)
    assert found == naive if touched else found <= naive


def test_many_equal_detectors_end_the_search():
    coins = stim.DetectorErrorModel("\n".join(f"error(0.1) D{d}" for d in range(8)))
    with pytest.raises(InputError, match="within limit=1000 tries; .* many detectors look alike"):
        discover_automorphisms(coins, limit=1000)


def test_relabellings_come_with_the_identity():
    dem = memory_circuit("repetition", distance=3, p=0.01, rounds=2).detector_error_model()
    assert any(
        (images == np.arange(dem.num_detectors)).all()
        for images in permutations(Mechanisms.of(dem), tolerance=1e-12, limit=100)
    )


def test_a_model_without_mechanisms():
    empty = stim.DetectorErrorModel("detector(0) D0\ndetector(1) D1\nlogical_observable L0")
    assert len(discover_translations(empty)) == 2
    assert len(discover_automorphisms(empty)) == 1  # what nothing flips stays in its place


def test_errors_with_the_same_detectors_do_not_disturb():
    """D0 happens alone and with L0: their probabilities tell which goes where."""
    lines = ["error(0.1) D0", "error(0.2) D0 L0", "error(0.1) D1", "error(0.2) D1 L0", "error(0.3) D0 D1"]
    swap = complete_permutation(stim.DetectorErrorModel("\n".join(lines)), [1, 0])
    assert swap.apply([[1, 0], [0, 1]], [[0], [1]])[0].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detector(0) D0\ndetector D1", r"equally many coordinates, .* got \[0, 1\]"),
        ("detector(0) D0\ndetector(1, 2) D1", r"equally many coordinates, .* got \[1, 2\]"),
        ("detector(0) D0\ndetector(1) D1\ndetector(2.5) D2", "multiples of their smallest distance"),
        ("detector(0) D0\ndetector(0) D1", "two of the 2 detectors have the same coordinates"),
        ("detector D1", r"without them use discover_automorphisms, got \[0\]"),
    ],
)
def test_bad_coordinates_are_named(text, message):
    with pytest.raises(InputError, match=message):
        discover_translations(stim.DetectorErrorModel(text))


def test_bad_permutations_are_named():
    model = stim.DetectorErrorModel("error(0.1) D0\nerror(0.2) D1")
    with pytest.raises(InputError, match="permutation must hold 0 .. 1 once each"):
        complete_permutation(model, [0, 0])
    with pytest.raises(InputError, match="carry every error mechanism to one of equal probability"):
        complete_permutation(model, [1, 0])
