"""Free energies of the two classes of a shot, against all errors that there could have been."""

import numpy as np
import pytest
import stim
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_qec.baselines.registry import make_decoder
from symdyn_qec.circuits import memory_circuit, repetition_memory, surface_memory
from symdyn_qec.class_decoder import ClassDecoder
from symdyn_qec.class_matching import ClassMatching
from symdyn_qec.mechanisms import Mechanisms
from symdyn_qec.split_model import SplitModel


def exact(dem: stim.DetectorErrorModel) -> NDArray[np.float64]:
    """Return the probability of every observable with every set of detectors, by adding errors one by one."""
    found, n = Mechanisms.of(dem), dem.num_detectors
    likely, outcome = np.zeros(2 ** (n + 1)), np.arange(2 ** (n + 1))
    likely[0] = 1
    for detectors, observables, p in zip(
        found.detectors, found.observables, found.probabilities, strict=True
    ):
        flips = sum(1 << int(index) for index in detectors if index < n) | int(observables[0]) << n
        likely = (1 - p) * likely + p * likely[outcome ^ flips]
    return likely.reshape(2, -1)


CASES = {
    "repetition": repetition_memory(5, 2, 0.02),
    "surface": surface_memory(3, 2, 0.01),
    "surface X": surface_memory(3, 2, 0.01, "X"),
    "unrotated": memory_circuit("surface-unrotated", p=0.02, rounds=1, distance=3),
}


@pytest.mark.parametrize("name", CASES)
def test_decisions_are_those_of_maximum_likelihood(name: str) -> None:
    circuit = CASES[name]
    likely = exact(circuit.detector_error_model())
    detectors, _ = circuit.compile_detector_sampler(seed=3).sample(20_000, separate_observables=True)
    number = (detectors.astype(np.int64) << np.arange(circuit.num_detectors)).sum(axis=1)
    each = likely[:, number] / likely[:, number].sum(axis=0)
    dem = circuit.detector_error_model(decompose_errors=True)
    found = ClassDecoder().compile_decoder_for_dem(dem=dem).predict(detectors)
    # By the exact probabilities of the shots, not by what happened to flip: far less noise.
    failing = np.where(found.observables[:, 0] == 1, each[0], each[1]).mean()
    assert failing <= 1.02 * each.min(axis=0).mean()
    correlated = make_decoder("pymatching-correlated").compile_decoder_for_dem(dem=dem)
    packed = np.packbits(detectors, axis=1, bitorder="little")
    guess = correlated.decode_shots_bit_packed(bit_packed_detection_event_data=packed)[:, 0] & 1
    assert failing <= np.where(guess == 1, each[0], each[1]).mean()


def test_free_energies_differ_by_the_exact_log_odds() -> None:
    circuit = surface_memory(3, 1, 0.01)
    likely = exact(circuit.detector_error_model())
    dem = circuit.detector_error_model(decompose_errors=True)
    split = SplitModel.of(dem)
    every = np.arange(2**circuit.num_detectors)
    shots = (every[:, None] >> np.arange(circuit.num_detectors) & 1).astype(np.uint8)
    shots = shots[np.argsort(-likely.sum(axis=0))[:100]]
    number = (shots.astype(np.int64) << np.arange(circuit.num_detectors)).sum(axis=1)
    energies = ClassMatching(split, split.probabilities(dem, "it")).candidates(shots).energies
    difference = energies[:, 1] - energies[:, 0]
    wanted = np.log(likely[0, number] / likely[1, number])
    # Where both classes are near; in others explanations beyond the margin are not looked for.
    near = np.abs(wanted) < 4
    assert near.sum() > 10
    error = np.abs(difference - wanted)[near]
    assert error.mean() < 0.1
    assert error.max() < 0.5


def test_edges_are_as_likely_as_the_errors_that_use_them() -> None:
    dem = stim.DetectorErrorModel("error(0.1) D0\nerror(0.2) D0 D1\nerror(0.1) D1 L0")
    split = SplitModel.of(dem)
    found = ClassMatching(split, split.probabilities(dem, "it")).candidates(np.array([[0, 1]], np.uint8))
    # Either the last error alone; or the first two.
    assert split.edges == (((0,), ()), ((0, 1), ()), ((1,), (0,)))
    assert found.edges[0].round(6).tolist() == [[1, 1, 0], [0, 0, 1]]


def test_shots_do_not_depend_on_their_neighbours() -> None:
    circuit = CASES["surface"]
    dem = circuit.detector_error_model(decompose_errors=True)
    decoder = ClassDecoder().compile_decoder_for_dem(dem=dem)
    detectors = circuit.compile_detector_sampler(seed=3).sample(50)
    together = decoder.predict(detectors)
    alone = [decoder.predict(shot[None]) for shot in detectors]
    assert np.array_equal(together.log_odds, np.concatenate([found.log_odds for found in alone]))
    assert np.array_equal(together.observables, np.concatenate([found.observables for found in alone]))


def test_postselected_shots_fail_less_often() -> None:
    circuit = CASES["surface"]
    dem = circuit.detector_error_model(decompose_errors=True)
    decoder = ClassDecoder(postselect=0.95).compile_decoder_for_dem(dem=dem)
    detectors, observables = circuit.compile_detector_sampler(seed=3).sample(5000, separate_observables=True)
    found = decoder.predict(detectors)
    wrong = (found.observables != observables).any(axis=1)
    assert wrong[found.kept].mean() < wrong.mean() / 3
    packed = np.packbits(detectors, axis=1, bitorder="little")
    answer = decoder.decode_shots_bit_packed(bit_packed_detection_event_data=packed)
    assert np.array_equal(answer[:, 1] == 0, found.kept)


def test_circuits_without_a_cut_and_settings_out_of_range_are_refused() -> None:
    torus = memory_circuit("toric", p=0.003, rounds=2, distance=3)
    with pytest.raises(InputError, match="one observable and a boundary"):
        ClassDecoder().compile_decoder_for_dem(dem=torus.detector_error_model())
    with pytest.raises(InputError, match="members must be at least 2, got 1"):
        ClassDecoder(members=1)
    with pytest.raises(InputError, match="postselect must be a probability"):
        ClassDecoder(postselect=1.5)
