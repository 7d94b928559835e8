"""Probabilities of all outcomes, against sampled shots."""

import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import repetition_memory, surface_memory
from symdyn_qec.exact import failure_rate, outcome_probabilities


def test_outcomes_are_as_frequent_as_they_are_likely() -> None:
    circuit = repetition_memory(3, 2, 0.05)
    likely = outcome_probabilities(circuit.detector_error_model())
    assert likely.shape == (2, 2**6)
    assert likely.sum() == pytest.approx(1)
    shots = 200_000
    detectors, observables = circuit.compile_detector_sampler(seed=3).sample(shots, separate_observables=True)
    place = (detectors << np.arange(6)).sum(axis=1) + 64 * observables[:, 0]
    counts = np.bincount(place, minlength=128).reshape(2, 64)
    common = likely * shots > 20
    deviations = ((counts - likely * shots) / np.sqrt(likely * shots))[common]
    assert common.sum() > 20
    assert (deviations**2).mean() < 2


def test_several_observables_have_a_row_each_combination() -> None:
    model = stim.DetectorErrorModel("error(0.1) D0 L0\nerror(0.2) D0 L1")
    found = outcome_probabilities(model)
    wanted = [[0.72, 0], [0, 0.08], [0, 0.18], [0.02, 0]]
    assert np.allclose(found, wanted)


def test_nobody_fails_less_often_than_who_knows_the_truth() -> None:
    truth = outcome_probabilities(surface_memory(3, 1, 0.02).detector_error_model())
    other = outcome_probabilities(surface_memory(3, 1, 0.001).detector_error_model())
    assert failure_rate(truth) <= failure_rate(truth, other) < truth[1].sum()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="at most 26 detectors and observables, got 121"):
        outcome_probabilities(surface_memory(5, 5, 0.01).detector_error_model())
    with pytest.raises(InputError, match=r"belief must have the shape \(2, 4\) of truth, got \(2, 2\)"):
        failure_rate(np.ones((2, 4)), np.ones((2, 2)))
