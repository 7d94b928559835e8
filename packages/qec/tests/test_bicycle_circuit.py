import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec import bicycle_circuit
from symdyn_qec.bicycle_circuit import bb_memory, torus_circuit
from symdyn_qec.codes import BivariateBicycleCode, bivariate_bicycle, toric
from symdyn_qec.noise_models import NoiseModel, with_noise


@pytest.fixture(scope="module")
def bb72():
    return bivariate_bicycle("bb72")


def flips(circuit, shots=64):
    """Return detector and observable parities of simulated measurements, without a reference sample."""
    record = circuit.compile_sampler(seed=5).sample(shots)
    converter = circuit.compile_m2d_converter(skip_reference_sample=True)
    return converter.convert(measurements=record, separate_observables=True)


@pytest.mark.parametrize("basis", ["X", "Z"])
@pytest.mark.parametrize(("name", "rounds"), [("bb72", 1), ("bb72", 6), ("bb90", 2), ("bb144", 12)])
def test_nothing_fires_without_noise(name, rounds, basis):
    code = bivariate_bicycle(name)
    circuit = bb_memory(code, p=0.0, rounds=rounds, basis=basis)
    detectors, observables = flips(circuit)
    assert detectors.shape[1] == code.cells * (rounds + 1) + code.cells * (rounds - 1)
    assert observables.shape[1] == code.k
    assert not detectors.any()
    assert not observables.any()


def test_another_order_of_the_gates_makes_detectors_random(bb72, monkeypatch):
    monkeypatch.setattr(bicycle_circuit, "X_SCHEDULE", (None, 0, 1, 2, 3, 4, 5))
    detectors, _ = flips(bb_memory(bb72, p=0.0, rounds=3), shots=512)
    assert np.abs(detectors.mean() - 0.5) < 0.02


# Counted with an independent implementation of the same cycle and noise.
@pytest.mark.parametrize(("name", "rounds", "mechanisms"), [("bb72", 6, 16_164), ("bb144", 12, 67_752)])
def test_error_mechanisms_are_as_many_as_elsewhere(name, rounds, mechanisms):
    circuit = bb_memory(bivariate_bicycle(name), p=0.001, rounds=rounds)
    assert circuit.detector_error_model(flatten_loops=True).num_errors == mechanisms


def test_a_cycle_has_eight_ticks_and_every_qubit_one_gate_in_each(bb72):
    rounds = 3
    gates = {"R", "RX", "M", "MX", "CX"}
    layers, used = [], []
    for instruction in bb_memory(bb72, p=0.001, rounds=rounds).flattened():
        if instruction.name == "TICK":
            layers.append(used)
            used = []
        elif instruction.name in gates:
            used += [target.value for target in instruction.targets_copy()]
    assert len(layers) == 1 + 8 * rounds
    assert all(len(set(layer)) == len(layer) for layer in layers)
    assert bb_memory(bb72, p=0.001, rounds=rounds).flattened().num_ticks == 1 + 8 * rounds


def test_every_location_is_noisy(bb72):
    """Sum of the strengths of all channels, location by location, in a memory of two cycles."""
    p, cells, rounds = 0.001, 36, 2
    expected = {
        "DEPOLARIZE2": 2 * 6 * cells * rounds,  # pairs
        "DEPOLARIZE1": (cells + cells + 2 * cells) * rounds,  # first and last tick with gates, and the last
        "X_ERROR": 2 * cells + cells * (1 + rounds),  # data, Z ancillas
        "Z_ERROR": cells * rounds,  # X ancillas
    }
    found = dict.fromkeys(expected, 0)
    for instruction in bb_memory(bb72, p=p, rounds=rounds).flattened():
        if instruction.name in found:
            assert instruction.gate_args_copy() == [p]
            size = 2 if instruction.name == "DEPOLARIZE2" else 1
            found[instruction.name] += len(instruction.targets_copy()) // size
        elif instruction.name in ("M", "MX"):
            assert instruction.gate_args_copy() == [p]
    assert found == expected


def test_idle_noise_can_be_left_out(bb72):
    names = {instruction.name for instruction in bb_memory(bb72, 0.001, 1, idle=False).flattened()}
    assert "DEPOLARIZE1" not in names


def inserted_after_preparation(circuit, pauli, qubits):
    """Return the circuit with an operator applied between preparation and the first cycle."""
    flat, changed, waiting = circuit.flattened(), stim.Circuit(), True
    for instruction in flat:
        changed.append(instruction)
        if instruction.name == "TICK" and waiting:
            changed.append(pauli, qubits)
            waiting = False
    return changed


def test_a_logical_x_is_seen_by_no_detector_and_flips_its_partners(bb72):
    circuit = bb_memory(bb72, p=0.0, rounds=2)
    pairing = bb72.logicals("X").astype(int) @ bb72.logicals("Z").T % 2
    for logical, partners in zip(bb72.logicals("X"), pairing, strict=True):
        detectors, observables = flips(
            inserted_after_preparation(circuit, "X", np.flatnonzero(logical).tolist()), shots=1
        )
        assert not detectors.any()
        assert observables[0].astype(int).tolist() == partners.tolist()


def test_one_flipped_data_qubit_fires_its_checks_at_their_coordinates(bb72):
    circuit = bb_memory(bb72, p=0.0, rounds=2)
    qubit = 40
    detectors, _ = flips(inserted_after_preparation(circuit, "X", [qubit]), shots=1)
    coordinates = circuit.get_detector_coordinates()
    fired = {tuple(coordinates[detector]) for detector in np.flatnonzero(detectors[0])}
    checks = np.flatnonzero(bb72.hz[:, qubit])
    assert fired == {(check // 6, check % 6, 0, 1) for check in checks.tolist()}


def test_observables_can_be_chosen(bb72):
    frame = np.vstack([bb72.translates(seed) for seed in bb72.seed_logicals("Z")])
    circuit = bb_memory(bb72, p=0.0, rounds=2, observables=frame)
    assert circuit.num_observables == 108
    assert not flips(circuit)[1].any()


def test_a_code_that_the_cycle_does_not_fit_is_refused():
    with pytest.raises(InputError, match="three terms in each polynomial"):
        bb_memory(BivariateBicycleCode(3, 3, "1 + x", "1 + y"), p=0.1, rounds=1)


def test_observables_must_commute_with_the_checks(bb72):
    with pytest.raises(InputError, match="commute with every X check"):
        bb_memory(bb72, p=0.1, rounds=1, observables=np.eye(72, dtype=int)[:1])


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_codes_with_any_number_of_terms_have_a_circuit(basis):
    for code in (toric(4), BivariateBicycleCode(3, 4, "1 + x + y", "1 + y")):
        detectors, observables = flips(torus_circuit(code, rounds=3, basis=basis))
        assert detectors.shape[1] == code.cells * (4 + 2)
        assert not detectors.any()
        assert not observables.any()


def test_a_toric_memory_keeps_the_distance_of_its_code():
    """Faults that spread along a check do so across the logical operators, not along them."""
    for distance in (3, 4):
        circuit = with_noise(torus_circuit(toric(distance), rounds=distance), NoiseModel.uniform(0.001))
        assert len(circuit.shortest_graphlike_error()) == distance
