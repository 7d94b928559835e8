"""Errors as edges, and the two sides of a cut."""

import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import memory_circuit, surface_memory
from symdyn_qec.split_model import SplitModel


def models(p: float = 0.003) -> tuple[stim.DetectorErrorModel, stim.DetectorErrorModel]:
    circuit = surface_memory(3, 2, p)
    return circuit.detector_error_model(decompose_errors=True), circuit.detector_error_model()


def test_probabilities_are_the_same_whether_or_not_a_model_is_split() -> None:
    split, whole = models()
    reference = SplitModel.of(split)
    assert np.allclose(reference.probabilities(split, "it"), reference.probabilities(whole, "it"))


def test_edges_of_an_error_flip_what_it_flips() -> None:
    reference = SplitModel.of(models()[0])
    for error, (detectors, observables) in zip(reference.errors, reference.flips, strict=True):
        flipped: set[int] = set()
        crossed: set[int] = set()
        for edge in error:
            flipped ^= set(reference.edges[edge][0])
            crossed ^= set(reference.edges[edge][1])
        assert (tuple(sorted(flipped)), tuple(sorted(crossed))) == (detectors, observables)


def test_equal_errors_add_up_and_missing_ones_cannot_happen() -> None:
    reference = SplitModel.of(stim.DetectorErrorModel("error(0.1) D0\nerror(0.1) D0 D1\nerror(0.1) D1 L0"))
    other = stim.DetectorErrorModel("error(0.25) D0\nerror(0.25) D0\nerror(0.1) D1 L0")
    assert reference.probabilities(other, "it").tolist() == [0.375, 0, 0.1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("error(0.1) D0 D1\nerror(0.1) D1 L0\nerror(0.1) D0 D2", "detectors must be 2 for it, got 3"),
        ("error(0.1) D0 D1\nerror(0.1) D1 L1", "observables must be 1 for it, got 2"),
        ("error(0.1) D0 L0\nerror(0.1) D1 L0", "got one that flips D0 L0"),
        ("error(0.6) D0 D1\nerror(0.1) D1 L0", "at most 0.5 for it, got 0.6"),
    ],
    ids=["detectors", "observables", "errors", "likely"],
)
def test_other_models_are_refused(text: str, message: str) -> None:
    reference = SplitModel.of(stim.DetectorErrorModel("error(0.1) D0 D1\nerror(0.1) D1 L0"))
    with pytest.raises(InputError, match=message):
        reference.probabilities(stim.DetectorErrorModel(text), "it")


def test_an_edge_crosses_the_cut_if_it_flips_the_observable() -> None:
    reference = SplitModel.of(models()[0])
    sides = reference.sides()
    assert sides is not None
    for detectors, observables in reference.edges:
        if len(detectors) == 2:
            assert sides[list(detectors)].sum() % 2 == len(observables)


@pytest.mark.parametrize("code", ["toric", "color"])
def test_where_there_is_no_cut_there_are_no_sides(code: str) -> None:
    circuit = memory_circuit(code, p=0.003, rounds=2, distance=3)
    assert SplitModel.of(circuit.detector_error_model()).sides() is None
