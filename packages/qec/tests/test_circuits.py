import hashlib

import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import CODES, SCALABLE, error_model, memory_circuit
from symdyn_qec.codes import NAMED, BivariateBicycleCode, CSSCode, bivariate_bicycle

# Of the circuits' text, as checkpoints carry it; changed circuits would orphan them.
SHA_256 = {
    ("bb72", None, 6, "Z"): "3ed2d11e9d8696e1653e63af62f08f7657530de0c3e42a0c18b67fcd152b693e",
    ("bb72", None, 6, "X"): "7f010a6f7faa40f8a2bbeacd86feaa5efef2f1fd9152bbc80ec84eab6d7ae9db",
    ("surface", 3, 3, "Z"): "a74ee70bbaa6e5ec78b52caebc43b5433708f49b0a31ae1ae56d2ea34867ab61",
    ("surface", 5, 5, "Z"): "735e2258df24a60b4e7c88790fb76910eb8b6cb463c6b831e9a3f973cf17d815",
    ("repetition", 3, 3, "Z"): "dabb33e787ca631128423a569a8aef2a9b98d691129723d8b4c90e4790397b4a",
}


@pytest.mark.parametrize("settings", SHA_256)
def test_circuits_are_what_shipped_checkpoints_were_trained_on(settings):
    code, distance, rounds, basis = settings
    circuit = memory_circuit(code, p=0.003, distance=distance, rounds=rounds, basis=basis)
    assert hashlib.sha256(str(circuit).encode()).hexdigest() == SHA_256[settings]


@pytest.mark.parametrize("noise", ["uniform", "si1000", "biased"])
@pytest.mark.parametrize("code", [*SCALABLE, "bb72"])
def test_every_code_can_have_every_noise(code, noise):
    distance = None if code in NAMED else 3
    circuit = memory_circuit(code, p=0.001, rounds=3, distance=distance, noise=noise)
    quiet = memory_circuit(code, p=0.0, rounds=3, distance=distance).without_noise()
    assert circuit.without_noise() == quiet
    assert error_model(circuit, code).num_errors > circuit.num_detectors
    coordinates = np.array(list(circuit.get_detector_coordinates().values()))
    assert coordinates.shape[1] == {"repetition": 2}.get(code, 3 if code in CODES[:4] else 4)
    time = coordinates[:, -2 if coordinates.shape[1] == 4 else -1]
    # Stim counts the rounds of its colour code, whose detectors compare two of them, from the second.
    assert set(time) == set(range(3 if code == "color" else 4))


def test_stronger_si1000_readout_is_where_it_should_be():
    """Channels of strength 5 p are those of measurements, of strength 2 p of preparation and waiting."""
    circuit = memory_circuit("surface", p=0.001, rounds=2, distance=3, noise="si1000")
    strengths = {}
    for instruction in circuit.flattened():
        if arguments := instruction.gate_args_copy():
            strengths.setdefault(instruction.name, set()).update(arguments)
    strengths = {name: strengths[name] for name in strengths if stim.gate_data(name).is_noisy_gate}
    assert strengths == {
        "DEPOLARIZE2": {0.001},
        "DEPOLARIZE1": {0.0001, 0.002},
        "X_ERROR": {0.002},
        "MR": {0.005},
        "M": {0.005},
    }


def test_more_bias_makes_a_phase_flip_memory_worse_and_a_bit_flip_memory_better():
    steane = [[1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    fired = {}
    for basis in ("X", "Z"):
        for bias in (0.5, 100.0):
            circuit = memory_circuit(
                CSSCode(steane, steane), p=0.01, rounds=1, basis=basis, noise="biased", bias=bias
            )
            fired[basis, bias] = circuit.compile_detector_sampler(seed=1).sample(8_000).mean()
    assert fired["X", 100.0] > 1.1 * fired["X", 0.5]
    assert fired["Z", 100.0] < 0.9 * fired["Z", 0.5]


def test_a_code_object_gives_the_circuit_of_its_name():
    code = bivariate_bicycle("bb72")
    assert memory_circuit(code, p=0.001, rounds=2) == memory_circuit("bb72", p=0.001, rounds=2)
    toric = BivariateBicycleCode(3, 3, "1 + x", "1 + y")
    assert memory_circuit(toric, p=0.001, rounds=2) == memory_circuit("toric", distance=3, p=0.001, rounds=2)


def test_surface_and_repetition_codes_decode_by_matching():
    for code in ("surface", "surface-unrotated", "repetition", "toric"):
        circuit = memory_circuit(code, p=0.01, rounds=3, distance=3)
        assert len(circuit.shortest_graphlike_error()) == 3
        assert error_model(circuit, code, graphlike=True).num_detectors == circuit.num_detectors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": "surface", "p": 1.5, "distance": 3}, r"p must be in \[0, 0.75\], got 1.5"),
        ({"code": "surface", "p": float("nan"), "distance": 3}, "p must be in .*, got nan"),
        ({"code": "surface", "p": 0.1, "distance": 1}, "distance must be at least 2, got 1"),
        ({"code": "surface", "p": 0.1, "distance": 3, "rounds": 0}, "rounds must be at least 1, got 0"),
        ({"code": "surface", "p": 0.1}, "code surface needs a distance"),
        ({"code": "surface", "p": 0.1, "distance": 3, "basis": "Y"}, "basis must be X or Z, got 'Y'"),
        ({"code": "repetition", "p": 0.1, "distance": 3, "basis": "X"}, "keeps only basis Z"),
        ({"code": "surfce", "p": 0.1}, "unknown code 'surfce'; did you mean surface?"),
        ({"code": "bb72", "p": 0.1, "distance": 6}, "bb72 has a fixed distance"),
        (
            {"code": "color", "p": 0.1, "distance": 4, "rounds": 2},
            "odd distance and at least 2 rounds, got 4 and 2",
        ),
        ({"code": "color", "p": 0.1, "distance": 3}, "odd distance and at least 2 rounds, got 3 and 1"),
        (
            {"code": "color", "p": 0.1, "distance": 3, "basis": "X"},
            "the color code keeps only basis Z, got 'X'",
        ),
        ({"code": "toric", "p": 0.1}, "code toric needs a distance"),
        ({"code": "surface", "p": 0.1, "distance": 1001}, "distance must be at most 1000"),
        ({"code": CSSCode([[1, 1]], [[1, 1]]), "p": 0.1}, "code must have logical qubits to keep, got k=0"),
        ({"code": CSSCode([[1] * 4], [[1] * 4]), "p": 0.1, "distance": 2}, "given by its checks has a fixed"),
        ({"code": "bb72", "p": 0.2, "noise": "si1000"}, r"p must be in \[0, 0.15\] for si1000, .*, got 0.2"),
        (
            {"code": "bb72", "p": 0.1, "noise": "biassed"},
            "unknown noise model 'biassed'; did you mean biased",
        ),
        (
            {"code": "bb72", "p": 0.1, "noise": "biased", "bias": 0.0},
            "bias must be positive and finite, got 0.0",
        ),
        ({"code": "bb72", "p": -0.1}, "p must be in .*, got -0.1"),
        ({"code": "bb72", "p": 0.1, "rounds": 0}, "rounds must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        memory_circuit(**{"rounds": 1, **settings})
