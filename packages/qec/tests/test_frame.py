import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_qec import gf2
from symdyn_qec.automorphism import dem_automorphism, readout_map
from symdyn_qec.bicycle_circuit import torus_circuit
from symdyn_qec.circuits import bb_memory, memory_circuit
from symdyn_qec.codes import bivariate_bicycle, toric
from symdyn_qec.frame import equivariant_frame
from symdyn_qec.noise_models import NoiseModel, with_noise


@pytest.fixture(scope="module")
def bb72():
    return bivariate_bicycle("bb72")


def measured(circuit, shots=2_000):
    """Return readout of the data, detectors and observables of noisy shots."""
    record = circuit.compile_sampler(seed=3).sample(shots)
    converter = circuit.compile_m2d_converter(skip_reference_sample=True)
    return record, *converter.convert(measurements=record, separate_observables=True)


@pytest.mark.parametrize(("basis", "name", "size"), [("Z", "bb72", 3 * 36), ("X", "toric", 2 * 9)])
def test_frame_bits_are_the_readout_of_the_frame(basis, name, size):
    code = toric(3) if name == "toric" else bivariate_bicycle(name)
    circuit = memory_circuit(code, p=0.01, rounds=3, basis=basis)
    record, detectors, observables = measured(circuit)
    frame = equivariant_frame(code, circuit, basis)
    assert len(frame) == size
    bits = frame.bits(detectors, observables)
    assert (bits == record[:, -code.n :].astype(int) @ frame.supports.T % 2).all()
    assert 0.02 < bits.mean() < 0.5
    assert (frame.observables(detectors, bits) == observables).all()


def test_without_the_detector_term_frame_bits_are_wrong(bb72):
    circuit = bb_memory(bb72, p=0.01, rounds=3)
    record, detectors, observables = measured(circuit)
    frame = equivariant_frame(bb72, circuit)
    linear = frame.bits(np.zeros_like(detectors), observables)
    assert (linear != record[:, -bb72.n :].astype(int) @ frame.supports.T % 2).mean() > 0.1


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (4, 5)])
def test_translations_permute_the_frame(bb72, shift):
    circuit = bb_memory(bb72, p=0.01, rounds=2)
    _, detectors, observables = measured(circuit, shots=200)
    frame = equivariant_frame(bb72, circuit)
    moved_shots = dem_automorphism(bb72, circuit, shift).apply(detectors, observables)
    moved = np.empty((200, len(frame)), dtype=np.uint8)
    moved[:, frame.permutation(shift)] = frame.bits(detectors, observables)
    assert (frame.bits(*moved_shots) == moved).all()


def test_observables_may_be_redundant_and_codes_other_ones():
    code = toric(3)
    logicals = code.logicals("Z")
    redundant = np.vstack([logicals, logicals.sum(axis=0, keepdims=True) % 2])
    circuit = with_noise(torus_circuit(code, rounds=2, observables=redundant), NoiseModel.uniform(0.02))
    _, detectors, observables = measured(circuit)
    frame = equivariant_frame(code, circuit, observables=redundant)
    assert (frame.observables(detectors, frame.bits(detectors, observables)) == observables).all()


def test_a_frame_generates_all_logical_operators(bb72):
    frame = equivariant_frame(bb72, bb_memory(bb72, p=0.01, rounds=1))
    assert gf2.rank(np.vstack([bb72.hz, frame.supports])) == gf2.rank(bb72.hz) + bb72.k


def test_any_logical_operator_can_be_read_from_a_shot(bb72):
    circuit = bb_memory(bb72, p=0.01, rounds=2)
    record, detectors, observables = measured(circuit, shots=300)
    supports = np.random.default_rng(0).integers(0, 2, (5, 12)) @ bb72.logicals("Z") % 2 ^ bb72.hz[:5]
    parities = readout_map(bb72, circuit, supports).apply(detectors, observables)
    assert (parities == record[:, -bb72.n :].astype(int) @ supports.T % 2).all()


def test_bad_input_is_named(bb72):
    circuit = bb_memory(bb72, p=0.01, rounds=1)
    with pytest.raises(InputError, match="the translates of 1 seeds do not generate all observables"):
        equivariant_frame(bb72, circuit, seeds=bb72.seed_logicals("Z")[:1])
    with pytest.raises(InputError, match="vector 0 is not a sum of the 48 rows given"):
        equivariant_frame(bb72, circuit, seeds=bb72.logicals("X")[:1])
    with pytest.raises(
        InputError, match=r"seeds must be one or more operators on n=72 qubits, got shape \(1, 3\)"
    ):
        equivariant_frame(bb72, circuit, seeds=[[1, 1, 0]])
    with pytest.raises(InputError, match=r"observables must have shape \(12, 72\), got \(1, 72\)"):
        equivariant_frame(bb72, circuit, observables=bb72.logicals("Z")[:1])
    frame = equivariant_frame(bb72, circuit)
    with pytest.raises(InputError, match="expected equally many shots of 72 detectors and 108 observables"):
        frame.observables(np.zeros((1, 72)), np.zeros((1, 12)))
