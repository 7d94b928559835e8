import numpy as np
import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import memory_circuit
from symdyn_qec.mechanisms import Mechanisms
from symdyn_qec.noise_models import NoiseModel, noise_model, with_noise

ROUND = stim.Circuit("""
    R 0 1
    TICK
    H 0
    TICK
    CX 0 1
    TICK
    MR 1
    DETECTOR(0, 0) rec[-1]
    TICK
    MX 0
""")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            NoiseModel.uniform(0.01),
            """
            R 0 1
            X_ERROR(0.01) 0 1
            TICK
            H 0
            DEPOLARIZE1(0.01) 0 1
            TICK
            CX 0 1
            DEPOLARIZE2(0.01) 0 1
            TICK
            MR(0.01) 1
            X_ERROR(0.01) 1
            DETECTOR(0, 0) rec[-1]
            DEPOLARIZE1(0.01) 0
            TICK
            MX(0.01) 0
            DEPOLARIZE1(0.01) 1
            """,
        ),
        (
            # Gates p and p/10, preparation 2p, measurement 5p, idle p/10, waiting 2p besides.
            NoiseModel.si1000(0.01),
            """
            R 0 1
            X_ERROR(0.02) 0 1
            TICK
            H 0
            DEPOLARIZE1(0.001) 0 1
            TICK
            CX 0 1
            DEPOLARIZE2(0.01) 0 1
            TICK
            MR(0.05) 1
            X_ERROR(0.02) 1
            DETECTOR(0, 0) rec[-1]
            DEPOLARIZE1(0.001) 0
            DEPOLARIZE1(0.02) 0
            TICK
            MX(0.05) 0
            DEPOLARIZE1(0.001) 1
            DEPOLARIZE1(0.02) 1
            """,
        ),
        (
            # eta = 1/4: r(X) = r(Y) = 2, r(Z) = 1; of sum 5, on two qubits (1 + 2 + 2 + 1)^2 - 1.
            NoiseModel.biased(0.35, bias=0.25),
            """
            R 0 1
            X_ERROR(0.35) 0 1
            TICK
            H 0
            PAULI_CHANNEL_1(0.14, 0.14, 0.07) 0 1
            TICK
            CX 0 1
            PAULI_CHANNEL_2(.02,.02,.01,.02,.04,.04,.02,.02,.04,.04,.02,.01,.02,.02,.01) 0 1
            TICK
            MR(0.35) 1
            X_ERROR(0.35) 1
            DETECTOR(0, 0) rec[-1]
            PAULI_CHANNEL_1(0.14, 0.14, 0.07) 0
            TICK
            MX(0.35) 0
            PAULI_CHANNEL_1(0.14, 0.14, 0.07) 1
            """,
        ),
        (NoiseModel(), str(ROUND)),
        (
            NoiseModel(measurement=0.25, waiting=0.125),
            """
            R 0 1
            TICK
            H 0
            TICK
            CX 0 1
            TICK
            MR(0.25) 1
            DETECTOR(0, 0) rec[-1]
            DEPOLARIZE1(0.125) 0
            TICK
            MX(0.25) 0
            DEPOLARIZE1(0.125) 1
            """,
        ),
    ],
    ids=["uniform", "si1000", "biased", "none", "only some"],
)
def test_channels_are_where_the_table_says(model, expected):
    noisy = with_noise(ROUND, model)
    assert noisy.approx_equals(stim.Circuit(expected), atol=1e-15)
    assert noisy.without_noise() == ROUND


def test_preparations_flip_against_their_basis():
    noisy = with_noise(stim.Circuit("RX 0\nRY 1\nMRX 2"), NoiseModel(preparation=0.25))
    assert noisy == stim.Circuit("RX 0\nZ_ERROR(0.25) 0\nRY 1\nX_ERROR(0.25) 1\nMRX 2\nZ_ERROR(0.25) 2")


def test_gates_of_other_kinds():
    """Inverted and joint measurements, tags, padding, and Paulis that a measurement controls."""
    circuit = stim.Circuit(
        "M !0\nMPAD 1\nTICK\nMPP X0*X1 !Z2\nMXX[pair] 3 4\nTICK\nCX rec[-1] 1 2 3\nSHIFT_COORDS(1)"
    )
    assert with_noise(circuit, NoiseModel(measurement=0.25, two_qubit=0.5, idle=0.125)) == stim.Circuit("""
        M(0.25) !0
        MPAD 1
        DEPOLARIZE1(0.125) 1 2 3 4
        TICK
        MPP(0.25) X0*X1 !Z2
        MXX[pair](0.25) 3 4
        TICK
        CX rec[-1] 1 2 3
        DEPOLARIZE2(0.5) 2 3
        SHIFT_COORDS(1)
        DEPOLARIZE1(0.125) 0 1 4
    """)


def test_a_qubit_with_a_gate_waits_for_measurements_and_preparations_of_others_too():
    for other in ("M", "R"):
        noisy = with_noise(stim.Circuit(f"H 0\n{other} 1\nTICK\nH 0"), NoiseModel(idle=0.125, waiting=0.25))
        assert noisy == stim.Circuit(f"H 0\n{other} 1\nDEPOLARIZE1(0.25) 0\nTICK\nH 0\nDEPOLARIZE1(0.125) 1")


def test_a_tick_without_operations_takes_no_time():
    circuit = stim.Circuit("R 0\nTICK\nTICK\nDETECTOR(1)\nTICK\nM 0")
    assert with_noise(circuit, NoiseModel(idle=0.1, waiting=0.1)) == circuit


def test_repeated_blocks_get_the_noise_of_their_flat_circuit():
    circuit = memory_circuit("toric", p=0.0, distance=3, rounds=4).without_noise()
    model = NoiseModel.si1000(0.001)
    assert with_noise(circuit, model).flattened() == with_noise(circuit.flattened(), model).flattened()


def test_a_repeated_block_begins_and_ends_a_tick():
    circuit = stim.Circuit("R 0 1\nREPEAT 2 {\nH 0\nTICK\nMR 0\n}\nM 1")
    assert with_noise(circuit, NoiseModel(idle=0.125)) == stim.Circuit("""
        R 0 1
        REPEAT 2 {
            H 0
            DEPOLARIZE1(0.125) 1
            TICK
            MR 0
            DEPOLARIZE1(0.125) 1
        }
        M 1
        DEPOLARIZE1(0.125) 0
    """)


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_uniform_noise_put_in_is_that_of_the_bicycle_circuits(basis):
    """Their own noise leaves out ancillas before preparation and after measurement, to no effect."""
    own = memory_circuit("bb72", p=0.003, rounds=2, basis=basis)
    put_in = with_noise(own.without_noise(), NoiseModel.uniform(0.003))
    one, other = (Mechanisms.of(c.detector_error_model(flatten_loops=True)) for c in (own, put_in))
    images = one.find(other.detectors, other.observables)
    assert np.array_equal(np.sort(images), np.arange(len(one)))
    assert np.array_equal(one.probabilities[images], other.probabilities)


@pytest.mark.parametrize("bias", [0.5, 3.0, 1e6])
def test_biased_channels_fail_as_often_as_asked_and_as_asked(bias):
    p, model = 0.25, NoiseModel(bias=bias)
    name, (*arguments,) = model.on_one(p)
    if name == "PAULI_CHANNEL_1":
        x, y, z = arguments
        assert x + y + z == pytest.approx(p)
        assert z / (x + y) == pytest.approx(bias)
        assert x == y
    name, (*arguments,) = model.on_two(p)
    if name == "PAULI_CHANNEL_2":
        assert len(arguments) == 15
        assert sum(arguments) == pytest.approx(p)
        only_z = arguments[2] + arguments[11] + arguments[14]  # IZ, ZI, ZZ
        assert only_z == pytest.approx(p * 3 / ((2 + 1 / bias) ** 2 - 1))


def test_little_bias_is_no_bias():
    """The channels go over into depolarising ones: same mechanisms, almost the same probabilities."""
    circuit = memory_circuit("surface", p=0.0, distance=3, rounds=2).without_noise()
    biased, uniform = (
        Mechanisms.of(with_noise(circuit, model).detector_error_model(approximate_disjoint_errors=True))
        for model in (NoiseModel.biased(0.001, bias=0.5001), NoiseModel.uniform(0.001))
    )
    images = uniform.find(biased.detectors, biased.observables)
    assert np.array_equal(np.sort(images), np.arange(len(uniform)))
    assert np.allclose(uniform.probabilities[images], biased.probabilities, rtol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: with_noise(stim.Circuit("X_ERROR(0.1) 0"), NoiseModel()),
            "without noise, got a noisy X_ERROR",
        ),
        (lambda: with_noise(stim.Circuit("M(0.1) 0"), NoiseModel()), "without noise, got a noisy M"),
        (
            lambda: with_noise(stim.Circuit("HERALDED_ERASE(0.1) 0"), NoiseModel()),
            "got a noisy HERALDED_ERASE",
        ),
        (lambda: with_noise(stim.Circuit("SPP X0*X1*X2"), NoiseModel()), "one or two qubits each, got SPP"),
        (lambda: NoiseModel(idle=0.8), r"idle must be in \[0, 0.75\], got 0.8"),
        (lambda: NoiseModel(measurement=float("nan")), "measurement must be in .*, got nan"),
        (lambda: NoiseModel(bias=float("inf")), "bias must be positive and finite, got inf"),
        (lambda: NoiseModel.uniform(0.8), r"p must be in \[0, 0.75\], got 0.8"),
        (lambda: NoiseModel.si1000(-1), r"p must be in \[0, 0.15\] for si1000, .* got -1"),
        (lambda: noise_model("sd6", 0.1), "unknown noise model 'sd6'"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
