import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec.automorphism import (
    Automorphism,
    compare_mechanisms,
    dem_automorphism,
    verify_equivariance,
)
from symdyn_qec.circuits import bb_memory, surface_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.mechanisms import Mechanisms, parity_rates


@pytest.fixture(scope="module")
def bb72():
    return bivariate_bicycle("bb72")


def model(circuit):
    return circuit.detector_error_model(flatten_loops=True)


def naive_mechanisms(dem):
    """Flips -> probability, instruction by instruction, with sets."""
    merged = {}
    for instruction in dem.flattened():
        if instruction.type == "error":
            flips = frozenset()
            for target in instruction.targets_copy():
                if not target.is_separator():
                    flips ^= {str(target)}
            p, q = instruction.args_copy()[0], merged.get(flips, 0.0)
            merged[flips] = p * (1 - q) + q * (1 - p)
    merged.pop(frozenset(), None)
    return {flips: p for flips, p in merged.items() if p}


def naive_comparison(dem, automorphism):
    """The definition, one mechanism after the other."""
    known = naive_mechanisms(dem)
    unmatched, difference = 0, 0.0
    for flips, probability in known.items():
        image = frozenset()
        for flip in flips:
            index = int(flip[1:])
            if flip[0] == "D":
                image ^= {f"D{automorphism.permutation[index]}"}
                image ^= {f"L{a}" for a in np.flatnonzero(automorphism.detector_term[:, index])}
            else:
                image ^= {f"L{a}" for a in np.flatnonzero(automorphism.observable_map[:, index])}
        unmatched += image not in known
        difference = max(difference, abs(probability - known.get(image, 0.0)))
    return len(known), unmatched, difference


def random_model(rng, detectors, observables, errors):
    lines = [f"detector D{detectors - 1}"]
    for _ in range(errors):
        flips = [f"D{d}" for d in rng.choice(detectors, rng.integers(0, 4), replace=False)]
        flips += [f"L{o}" for o in rng.choice(observables, rng.integers(0, 2), replace=False)]
        lines.append(f"error({rng.choice([0, 0.1, 0.2]):g}) {' '.join(flips)}")
    return stim.DetectorErrorModel("\n".join([*lines, f"logical_observable L{observables - 1}"]))


@pytest.mark.parametrize("seed", range(20))
def test_comparison_agrees_with_the_definition_on_random_models(seed):
    rng = np.random.default_rng(seed)
    dem = random_model(rng, detectors=4, observables=2, errors=40)
    map_ = Automorphism(
        rng.permutation(4),
        rng.integers(0, 2, (2, 2)).astype(np.uint8),
        rng.integers(0, 2, (2, 4)).astype(np.uint8),
    )
    found = compare_mechanisms(dem, map_)
    mechanisms, unmatched, difference = naive_comparison(dem, map_)
    assert (found.mechanisms, found.unmatched) == (mechanisms, unmatched)
    assert found.max_difference == pytest.approx(difference, abs=1e-15)


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_every_translation_is_an_exact_symmetry(bb72, basis):
    dem = model(bb_memory(bb72, p=0.003, rounds=2, basis=basis))
    mechanisms = Mechanisms.of(dem)
    for shift in bb72.shifts():
        assert verify_equivariance(mechanisms, dem_automorphism(bb72, dem, shift, basis)) == 0


@pytest.mark.parametrize("name", ["bb72", "bb90", "bb144"])
def test_translations_are_symmetries_of_long_memories_and_of_folded_models(name):
    code = bivariate_bicycle(name)
    folded = bb_memory(code, p=0.003, rounds=8).detector_error_model()
    assert verify_equivariance(folded, dem_automorphism(code, folded, (2, 1))) < 1e-15


def test_translations_are_symmetries_without_idle_noise_and_for_redundant_observables(bb72):
    frame = np.vstack([bb72.translates(seed) for seed in bb72.seed_logicals("Z")])
    dem = model(bb_memory(bb72, p=0.01, rounds=2, observables=frame, idle=False))
    assert verify_equivariance(dem, dem_automorphism(bb72, dem, (1, 2), observables=frame)) == 0


def test_without_the_detector_term_most_mechanisms_have_no_image(bb72):
    dem = model(bb_memory(bb72, p=0.003, rounds=6))
    linear = dem_automorphism(bb72, dem, (1, 0)).without_detector_term()
    found = compare_mechanisms(dem, linear)
    assert found.unmatched > found.mechanisms / 2
    with pytest.raises(InputError, match="not a symmetry of the model: .* of 16164 error mechanisms"):
        verify_equivariance(dem, linear)


def test_the_identity_has_no_detector_term(bb72):
    dem = bb_memory(bb72, p=0.003, rounds=2).detector_error_model()
    identity = dem_automorphism(bb72, dem, (0, 0))
    assert (identity.permutation == np.arange(dem.num_detectors)).all()
    assert (identity.observable_map == np.eye(12)).all()
    assert not identity.detector_term.any()


def test_noise_on_one_qubit_breaks_the_symmetry(bb72):
    circuit = bb_memory(bb72, p=0.003, rounds=2)
    uneven = stim.Circuit("X_ERROR(0.01) 5") + circuit  # before the preparation: no effect
    dem = model(uneven)
    assert verify_equivariance(dem, dem_automorphism(bb72, dem, (1, 0))) == 0

    flat = circuit.flattened()
    readout = max(index for index, gate in enumerate(flat) if gate.name == "M")
    uneven = flat[:readout] + stim.Circuit("X_ERROR(0.01) 5") + flat[readout:]
    dem = model(uneven)
    assert verify_equivariance(dem, dem_automorphism(bb72, dem, (1, 0))) == pytest.approx(0.01, rel=0.05)


def test_transformed_shots_are_the_readout_of_the_translated_logicals(bb72):
    shift = (2, 5)
    circuit = bb_memory(bb72, p=0.01, rounds=3)
    record = circuit.compile_sampler(seed=3).sample(2_000)
    converter = circuit.compile_m2d_converter(skip_reference_sample=True)
    detectors, observables = converter.convert(measurements=record, separate_observables=True)
    moved, transformed = dem_automorphism(bb72, circuit, shift).apply(detectors, observables)

    back = bb72.translate(bb72.logicals("Z"), (-shift[0], -shift[1])).astype(int)
    assert (transformed == record[:, -bb72.n :].astype(int) @ back.T % 2).all()
    coordinates = np.array([circuit.get_detector_coordinates()[d] for d in range(circuit.num_detectors)])
    for detector in (0, 50, circuit.num_detectors - 1):
        i, j, *rest = coordinates[detector]
        image = np.flatnonzero((coordinates == [(i + 2) % 6, (j + 5) % 6, *rest]).all(axis=1)).item()
        assert (moved[:, image] == detectors[:, detector]).all()


def test_translations_compose_on_shots(bb72):
    circuit = bb_memory(bb72, p=0.01, rounds=2)
    shots = circuit.compile_detector_sampler(seed=7).sample(500, separate_observables=True)
    step, turn = (dem_automorphism(bb72, circuit, shift) for shift in ((1, 0), (3, 4)))
    together = dem_automorphism(bb72, circuit, (4, 4))
    for one, other in zip(step.apply(*turn.apply(*shots)), together.apply(*shots), strict=True):
        assert (one == other).all()
    for one, other in zip(turn.apply(*step.apply(*shots)), together.apply(*shots), strict=True):
        assert (one == other).all()


def test_parity_rates_agree_with_sampling():
    circuit = surface_memory(distance=3, rounds=3, p=0.02)
    sets = np.random.default_rng(0).integers(0, 2, (5, circuit.num_detectors))
    shots = 200_000
    # Stim merges channels into independent mechanisms exactly, so both are the same distribution.
    detectors = circuit.compile_detector_sampler(seed=11).sample(shots)
    measured = (detectors.astype(int) @ sets.T % 2).mean(axis=0)
    predicted = parity_rates(circuit.detector_error_model(), sets)
    assert np.abs(measured - predicted).max() < 5 * 0.5 / np.sqrt(shots)


def test_a_model_without_mechanisms_is_symmetric():
    dem = stim.DetectorErrorModel("detector D1\nlogical_observable L0")
    swap = Automorphism(np.array([1, 0]), np.eye(1, dtype=np.uint8), np.zeros((1, 2), dtype=np.uint8))
    assert verify_equivariance(dem, swap) == 0


def test_bad_input_is_named(bb72):
    circuit = bb_memory(bb72, p=0.003, rounds=2)
    dem = circuit.detector_error_model()
    with pytest.raises(InputError, match=r"observables must have shape \(12, 72\), got \(1, 72\)"):
        dem_automorphism(bb72, dem, (1, 0), observables=bb72.logicals("Z")[:1])
    with pytest.raises(InputError, match="is not a sum of the 48 rows given"):
        dem_automorphism(bb72, dem, (1, 0), observables=bb72.logicals("X"))
    surface = surface_memory(3, 3, 0.01, "Z")
    with pytest.raises(InputError, match=r"observables must have shape \(1, 72\)"):
        dem_automorphism(bb72, surface, (1, 0))
    with pytest.raises(InputError, match=r"must have coordinates \(i, j, t, kind\)"):
        dem_automorphism(bb72, surface, (1, 0), observables=bb72.logicals("Z")[:1])
    larger = bivariate_bicycle("bb144")
    with pytest.raises(InputError, match="must lie on the torus of 6 x 6 cells"):
        dem_automorphism(bb72, bb_memory(larger, p=0.1, rounds=1), (1, 0))
    automorphism = dem_automorphism(bb72, dem, (1, 0))
    with pytest.raises(InputError, match="the map is for 144 detectors and 12 observables"):
        compare_mechanisms(surface.detector_error_model(), automorphism)
    with pytest.raises(InputError, match="expected equally many shots of 144 detectors and 12 observables"):
        automorphism.apply(np.zeros((3, 10)), np.zeros((3, 12)))
    with pytest.raises(InputError, match="of_detectors must have width 144, got 1"):
        parity_rates(dem, [[1]])
