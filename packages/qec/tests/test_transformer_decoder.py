"""The transformer as a decoder: from a folder, by sinter, and what it refuses."""

import json
import math
import pickle

import numpy as np
import pytest
import sinter
import torch

from symdyn_core.errors import InputError
from symdyn_qec.checkpoint import SCHEMA
from symdyn_qec.circuits import memory_circuit
from symdyn_qec.codes import CSSCode
from symdyn_qec.networks.transformer import log_probability
from symdyn_qec.transformer_checkpoint import TransformerCheckpoint
from symdyn_qec.transformer_decoder import TransformerDecoder
from symdyn_qec.transformer_training import TransformerSettings, TransformerTraining

FOUR = CSSCode([[1, 1, 1, 1]], [[1, 1, 1, 1]])
SETTINGS = TransformerSettings(rounds=3, width=8, layers=1, heads=2, batch_size=16, steps=4, warmup=1)
CIRCUIT = memory_circuit(FOUR, p=0.02, rounds=3)
DEM = CIRCUIT.detector_error_model()


@pytest.fixture(scope="module")
def trained():
    training = TransformerTraining(FOUR, SETTINGS)
    assert len(list(training.run())) == 4
    return training.averaged


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("transformer")
    return TransformerCheckpoint.of(trained, FOUR, SETTINGS, {"shots": 64}).save(place)


@pytest.fixture(scope="module")
def shots():
    return CIRCUIT.compile_detector_sampler(seed=3).sample(150)


def packed(bits):
    return np.packbits(bits, axis=1, bitorder="little")


def test_a_checkpoint_comes_back_with_the_same_weights_code_and_layout(folder, trained):
    loaded = TransformerCheckpoint.load(folder)
    state = loaded.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert (loaded.code.hx == FOUR.hx).all()
    assert (loaded.code.hz == FOUR.hz).all()
    assert (loaded.experiment.observables == FOUR.logicals("Z")).all()
    assert loaded.training == {"shots": 64}
    assert (loaded.rounds, loaded.basis) == (3, "Z")
    loaded.check(memory_circuit(FOUR, p=0.001, rounds=3).detector_error_model())


def test_answers_are_those_of_the_network_however_shots_are_given(folder, shots):
    decoder = TransformerDecoder(folder, batch_size=40).compile_decoder_for_dem(dem=DEM)
    found = decoder.predict(shots)
    assert np.array_equal(found.observables, decoder.predict(packed(shots)).observables)
    by_sinter = decoder.decode_shots_bit_packed(bit_packed_detection_event_data=packed(shots))
    assert np.array_equal(by_sinter, packed(found.observables))
    checkpoint = TransformerCheckpoint.load(folder)
    checks = checkpoint.layout.checks(torch.from_numpy(packed(shots)))
    bits = torch.from_numpy(found.observables)
    with torch.inference_mode():
        expected = log_probability(checkpoint.network(checks, bits), bits)
    assert np.allclose(found.log_probability, expected, atol=1e-5)
    # Four classes: every beam of four or more finds the likeliest.
    wide = TransformerDecoder(folder, beam=4).compile_decoder_for_dem(dem=DEM).predict(shots)
    assert (wide.log_probability >= found.log_probability - 1e-6).all()
    assert decoder.predict(shots[:0]).observables.shape == (0, 2)


def test_doubtful_shots_are_discarded_and_no_others(folder, shots):
    sure = TransformerDecoder(folder).compile_decoder_for_dem(dem=DEM).predict(shots)
    threshold = float(np.exp(np.median(sure.log_probability)))
    decoder = TransformerDecoder(folder, postselect=threshold).compile_decoder_for_dem(dem=DEM)
    found = decoder.decode_shots_bit_packed(bit_packed_detection_event_data=packed(shots))
    assert np.array_equal(found[:, :1], packed(sure.observables))
    assert np.array_equal(found[:, 1], np.exp(sure.log_probability) < threshold)
    assert 0 < found[:, 1].sum() < 150


def test_sinter_collects_with_it(tmp_path):
    checks = np.array([[1, 1, 0], [0, 1, 1]], dtype=np.uint8)
    code = CSSCode(np.zeros((0, 3), dtype=np.uint8), checks)
    training = TransformerTraining(code, SETTINGS)
    folder = TransformerCheckpoint.of(training.network, code, SETTINGS, {}).save(tmp_path)
    decoder = pickle.loads(pickle.dumps(TransformerDecoder(folder, beam=2)))  # noqa: S301 - ours
    task = sinter.Task(circuit=memory_circuit(code, p=0.02, rounds=3), decoder="transformer")
    (stats,) = sinter.collect(
        num_workers=1, tasks=[task], max_shots=300, custom_decoders={"transformer": decoder}
    )
    assert stats.shots == 300
    assert 0 < stats.errors < 300


def changed(folder, target, **fields):
    sidecar = json.loads((folder / "decoder.json").read_text())
    for path, value in fields.items():
        *parents, name = path.split("__")
        place = sidecar
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[name]
        else:
            place[name] = value
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (target / "decoder.json").write_text(json.dumps(sidecar))
    return target


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 99}, f"schema of .* must be {SCHEMA}, got 99"),
        ({"network__kind": "torus"}, "network.kind of .* must be transformer, got 'torus'"),
        ({"network": 3}, "network.kind of .* must be transformer, got 3"),
        ({"network__width": 16}, "weights of .* must have shape"),
        ({"network__heads": "two"}, "heads of a checkpoint must be a whole number, got 'two'"),
        ({"network__layers": 2}, "weights of .* must have a tensor 'layers.1"),
        ({"rounds": 4}, "experiments.Z.detectors of .* must be the 8 of the code in 4 rounds, got 6"),
        ({"basis": "X"}, "lacks the field 'X'"),
        ({"tokens": None}, "lacks the field 'tokens'"),
        ({"tokens": "0,0,0"}, "positions must be those of 2 checks, got 1"),
        ({"code__hx": "0,1,2,9"}, "has a field of the wrong kind"),
        ({"code__hz": "0,1,2"}, "every X check must commute with every Z check"),
        ({"weights__sha256": "0" * 64}, "weights.sha256 of .* must be 0{64} as decoder.json says"),
        ({"weights": 3}, "has a field of the wrong kind"),
    ],
)
def test_damaged_checkpoints_are_refused(folder, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        TransformerCheckpoint.load(changed(folder, tmp_path, **fields))


def test_files_that_are_no_checkpoint(folder, tmp_path):
    with pytest.raises(InputError, match="checkpoint must be a folder with decoder.json"):
        TransformerDecoder(tmp_path).compile_decoder_for_dem(dem=DEM)
    place = changed(folder, tmp_path)
    (place / "decoder.json").write_text("[")
    with pytest.raises(InputError, match="is not JSON"):
        TransformerCheckpoint.load(place)
    (place / "decoder.json").write_text("[]")
    with pytest.raises(InputError, match=f"schema of .* must be {SCHEMA}, got None"):
        TransformerCheckpoint.load(place)


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (
            memory_circuit(FOUR, p=0.01, rounds=4),
            "detectors must be 6 for the Z memory of transformer0, got 8",
        ),
        (memory_circuit(FOUR, p=0.01, rounds=3, basis="X"), "coordinates of detector 0 must be"),
    ],
)
def test_another_circuit_is_refused(folder, circuit, message):
    with pytest.raises(InputError, match=message):
        TransformerDecoder(folder).compile_decoder_for_dem(dem=circuit.detector_error_model())


@pytest.mark.parametrize(
    ("detectors", "seen"),
    [
        (np.zeros((3, 2), dtype=np.uint8), r"got uint8 of shape \(3, 2\)"),
        (np.zeros((3, 7), dtype=bool), r"got bool of shape \(3, 7\)"),
        (np.zeros((3, 1), dtype=bool), r"got bool of shape \(3, 1\)"),
        (np.zeros((3, 1)), r"got float64 of shape \(3, 1\)"),
        (np.zeros(1, dtype=np.uint8), r"got uint8 of shape \(1,\)"),
    ],
)
def test_shots_of_another_kind_are_refused(folder, detectors, seen):
    decoder = TransformerDecoder(folder).compile_decoder_for_dem(dem=DEM)
    with pytest.raises(InputError, match=rf"packed, uint8 of shape \(shots, 1\), or bool .*; {seen}"):
        decoder.predict(detectors)


def test_sinter_gives_packed_shots(folder):
    decoder = TransformerDecoder(folder).compile_decoder_for_dem(dem=DEM)
    with pytest.raises(InputError, match="bit_packed_detection_event_data must be packed, uint8, got bool"):
        decoder.decode_shots_bit_packed(bit_packed_detection_event_data=np.zeros((3, 6), dtype=bool))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"postselect": 1.5}, r"postselect must be a probability in \[0, 1\], got 1.5"),
        ({"postselect": math.nan}, r"postselect must be a probability in \[0, 1\], got nan"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        TransformerDecoder("anywhere", **settings)


def test_an_unknown_device(folder):
    with pytest.raises(InputError, match="device must be one that torch has here, got 'nowhere'"):
        TransformerDecoder(folder, device="nowhere").compile_decoder_for_dem(dem=DEM)


def test_bad_precision(folder, tmp_path):
    with pytest.raises(InputError, match="precision must be float32 or bfloat16, got 'int8'"):
        TransformerCheckpoint.load(folder).save(tmp_path, "int8")
