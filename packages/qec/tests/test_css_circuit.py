import numpy as np
import pytest
import stim
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.circuits import check_model, error_model, memory_circuit
from symdyn_qec.codes import CSSCode
from symdyn_qec.css_circuit import css_circuit, edge_colouring

HAMMING = [[1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]


def flips(circuit, shots=64):
    """Return detector and observable parities of simulated measurements, without a reference sample."""
    record = circuit.compile_sampler(seed=5).sample(shots)
    converter = circuit.compile_m2d_converter(skip_reference_sample=True)
    return converter.convert(measurements=record, separate_observables=True)


def random_code(rng):
    """A hypergraph product of two random matrices: a CSS code of no particular structure."""
    first, second = (rng.integers(0, 2, size=rng.integers(2, 5, size=2)) for _ in range(2))
    (m1, n1), (m2, n2) = first.shape, second.shape
    eye = [np.eye(size, dtype=int) for size in (m1, n1, m2, n2)]
    hx = np.hstack([np.kron(first, eye[3]), np.kron(eye[0], second.T)])
    hz = np.hstack([np.kron(eye[1], second), np.kron(first.T, eye[2])])
    return CSSCode(hx, hz)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 12), st.integers(0, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_edges_are_coloured_properly_with_the_fewest_colours(m, n, density, seed):
    matrix = (np.random.default_rng(seed).random((m, n)) < density).astype(np.uint8)
    ticks = edge_colouring(matrix)
    assert ((ticks >= 0) == (matrix == 1)).all()
    degree = int(max(matrix.sum(axis=0).max(initial=0), matrix.sum(axis=1).max(initial=0)))
    assert ticks.max(initial=-1) == degree - 1
    for tick in range(degree):
        assert (ticks == tick).sum(axis=0).max() <= 1
        assert (ticks == tick).sum(axis=1).max() <= 1


@pytest.mark.parametrize("basis", ["X", "Z"])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_fires_without_noise_in_any_code(seed, basis):
    code, rounds = random_code(np.random.default_rng(seed)), 3
    circuit = css_circuit(code, rounds=rounds, basis=basis)
    detectors, observables = flips(circuit)
    own, other = len(code.checks(basis)), len(code.checks("Z" if basis == "X" else "X"))
    assert detectors.shape[1] == own * (rounds + 1) + other * (rounds - 1)
    assert observables.shape[1] == code.k
    assert not detectors.any()
    assert not observables.any()


@pytest.mark.parametrize("seed", range(3))
def test_the_record_holds_the_checks_of_what_was_prepared(seed):
    """Z checks of bits flipped by hand are the parities of those bits; logical operators likewise."""
    rng = np.random.default_rng(seed)
    code = random_code(rng)
    errors = rng.integers(0, 2, code.n)
    circuit = css_circuit(code, rounds=2)
    assert circuit[0].name == "R"
    circuit.insert(1, stim.Circuit("X " + " ".join(map(str, np.flatnonzero(errors)))))
    detectors, observables = flips(circuit, shots=1)
    coordinates = circuit.get_detector_coordinates()
    fired = {tuple(coordinates[detector]) for detector in np.flatnonzero(detectors[0])}
    violated = np.flatnonzero(code.hz.astype(int) @ errors % 2)
    assert fired == {(check, 0, 0, 1) for check in violated.tolist()}
    assert (observables[0] == code.logicals("Z").astype(int) @ errors % 2).all()


def test_every_qubit_has_one_gate_in_a_tick_and_cycles_are_short():
    code = random_code(np.random.default_rng(8))
    rounds, layers, used = 2, [], []
    for instruction in css_circuit(code, rounds=rounds).flattened():
        if instruction.name == "TICK":
            layers.append(used)
            used = []
        elif instruction.name in {"R", "RX", "M", "MX", "CX"}:
            used += [target.value for target in instruction.targets_copy()]
    assert all(len(set(layer)) == len(layer) for layer in layers)
    depth = sum(max(h.sum(axis=0).max(), h.sum(axis=1).max()) for h in (code.hx, code.hz))
    assert len(layers) == 1 + rounds * (depth + 2)


def test_single_faults_of_a_distance_three_code_are_detected():
    """No mechanism of the Steane code's memory flips the observable unseen, in either basis."""
    for basis in ("X", "Z"):
        circuit = memory_circuit(CSSCode(HAMMING, HAMMING), p=0.001, rounds=3, basis=basis)
        model = error_model(circuit, "steane")
        assert model.num_errors > 100
        check_model(model, "steane")


def test_a_code_without_checks_of_one_kind():
    ring = (np.eye(4, dtype=int) + np.roll(np.eye(4, dtype=int), 1, axis=1)) % 2
    code = CSSCode(np.zeros((0, 4)), ring)
    for basis, detectors in (("Z", 4 * 4), ("X", 4 * 2)):
        circuit = css_circuit(code, rounds=3, basis=basis)
        assert circuit.num_detectors == detectors
        assert not np.hstack(flips(circuit)).any()
    assert len(memory_circuit(code, p=0.01, rounds=3).shortest_graphlike_error()) == 4


def test_ticks_and_positions_can_be_given():
    code = CSSCode([[1, 1, 1, 1]], [[1, 1, 1, 1]])
    circuit = css_circuit(code, 1, x_ticks=[[3, 2, 1, 0]], positions=[[5, 6], [7.5, 8]])
    gates = [str(gate) for gate in circuit if gate.name == "CX"]
    assert gates == [f"CX 4 {q}" for q in (3, 2, 1, 0)] + [f"CX {q} 5" for q in range(4)]
    assert circuit.get_detector_coordinates() == {0: [7.5, 8, 0, 1], 1: [7.5, 8, 1, 1]}


def test_observables_can_be_chosen():
    code = CSSCode([[1, 1, 1, 1]], [[1, 1, 1, 1]])
    chosen = gf2.nullspace(code.hx)
    assert css_circuit(code, 2, observables=chosen).num_observables == 3


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"basis": "Y"}, "basis must be X or Z, got 'Y'"),
        ({"observables": [[1, 0, 0, 0]]}, "commute with every X check"),
        ({"x_ticks": [[0, 1, 2]]}, r"x_ticks must be .* shape \(1, 4\), got shape \(1, 3\)"),
        ({"z_ticks": [[0, 1, 2, -1]]}, r"z_ticks must be 0 or more for the qubits of each check"),
        ({"z_ticks": [[0, 1, 1, 2]]}, "z_ticks must use every qubit once in a tick, but not in tick 1"),
        ({"positions": [[0, 0]]}, r"positions must have shape \(2, 2\), got \(1, 2\)"),
    ],
)
def test_bad_input_is_named(given_, message):
    with pytest.raises(InputError, match=message):
        css_circuit(CSSCode([[1, 1, 1, 1]], [[1, 1, 1, 1]]), **{"rounds": 1, **given_})
