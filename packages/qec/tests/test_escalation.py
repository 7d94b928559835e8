"""Two decoders as one: the second answers where the first is not sure, and nowhere else."""

import dataclasses
import pickle

import numpy as np
import pytest
import sinter

from symdyn_core.errors import InputError
from symdyn_qec.baselines.registry import decoder_info, make_decoder
from symdyn_qec.calibration import Calibration
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.decoder import SymdynDecoder
from symdyn_qec.escalation import EscalatingDecoder
from symdyn_qec.networks.torus import TorusNetwork

ROUNDS = 2
CODE = bivariate_bicycle("bb72")


class Known(sinter.Decoder):
    """Answers with a fixed pattern, and may discard."""

    def __init__(self, *last):
        self.last, self.seen = last, []

    def compile_decoder_for_dem(self, *, dem):
        return self

    def decode_shots_bit_packed(self, *, bit_packed_detection_event_data):
        self.seen.append(bit_packed_detection_event_data)
        return np.tile(
            np.array([0x0F, 0x0A, *self.last], np.uint8), (len(bit_packed_detection_event_data), 1)
        )


@pytest.fixture(scope="module")
def circuit():
    return bb_memory(CODE, 0.003, ROUNDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    network = TorusNetwork(CODE, width=4, layers=1, seed=3)
    checkpoint = dataclasses.replace(
        Checkpoint.of(network, CODE, ROUNDS, training={}), calibration=Calibration(-3.0, 1.0, 0.1)
    )
    return checkpoint.save(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("packed", [True, False])
def test_the_second_decoder_answers_for_doubtful_shots_only(circuit, folder, packed):
    shots = circuit.compile_detector_sampler(seed=1).sample(64, bit_packed=packed)
    dem, first, second = circuit.detector_error_model(), SymdynDecoder(folder), Known()
    alone = first.compile_decoder_for_dem(dem=dem).predict(shots)
    below = float(np.median(alone.confidence))
    found = EscalatingDecoder(first, second, below).compile_decoder_for_dem(dem=dem).predict(shots)
    doubtful = alone.confidence < below
    assert 0 < doubtful.sum() < 64
    assert (found.escalated == doubtful).all()
    assert (found.observables[~doubtful] == alone.observables[~doubtful]).all()
    assert (found.observables[doubtful] == [1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1]).all()
    (seen,) = second.seen
    expected = shots if packed else np.packbits(shots, axis=1, bitorder="little")
    assert (seen == expected[doubtful]).all()
    assert not found.discarded.any()


@pytest.mark.parametrize(("below", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_are_one_decoder_alone(circuit, folder, below, share):
    compiled = EscalatingDecoder(SymdynDecoder(folder), Known(), below).compile_decoder_for_dem(
        dem=circuit.detector_error_model()
    )
    found = compiled.predict(circuit.compile_detector_sampler(seed=1).sample(16))
    assert found.escalated.mean() == share


def test_what_the_second_discards_is_discarded(circuit, folder):
    shots = circuit.compile_detector_sampler(seed=1).sample(8, bit_packed=True)
    decoder = EscalatingDecoder(SymdynDecoder(folder), Known(1), 1.0)
    compiled = decoder.compile_decoder_for_dem(dem=circuit.detector_error_model())
    assert compiled.decode_shots_bit_packed(bit_packed_detection_event_data=shots)[:, 2].all()
    kept = EscalatingDecoder(SymdynDecoder(folder), Known(0), 1.0)
    compiled = kept.compile_decoder_for_dem(dem=circuit.detector_error_model())
    assert compiled.decode_shots_bit_packed(bit_packed_detection_event_data=shots).shape == (8, 2)


def test_it_travels(folder):
    decoder = EscalatingDecoder(SymdynDecoder(folder), make_decoder("vacuous"), 0.7)
    copy = pickle.loads(pickle.dumps(decoder))  # noqa: S301 - our own bytes
    assert (copy.below, vars(copy.first)) == (0.7, vars(decoder.first))


def test_names_with_a_plus():
    info = decoder_info("symdyn-fast+tesseract")
    assert info.module == "tesseract_decoder"
    assert "not sure enough" in info.settings
    assert isinstance(make_decoder("symdyn-fast+symdyn"), EscalatingDecoder)
    with pytest.raises(InputError, match="only symdyn, symdyn-fast, .* know when to ask another decoder"):
        decoder_info("pymatching+symdyn")
    with pytest.raises(InputError, match="unknown decoder 'tesserac'"):
        decoder_info("symdyn+tesserac")


def test_what_cannot_escalate_is_refused(circuit, folder, tmp_path):
    for below in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=rf"below must be a probability in \[0, 1\], got {below}"):
            EscalatingDecoder(SymdynDecoder(folder), Known(), below)
    with pytest.raises(InputError, match="the first decoder must keep every shot"):
        EscalatingDecoder(SymdynDecoder(folder, postselect=0.5), Known())
    plain = Checkpoint.of(TorusNetwork(CODE, width=4, layers=1), CODE, ROUNDS, training={}).save(tmp_path)
    dem = circuit.detector_error_model()
    with pytest.raises(InputError, match="escalation needs a calibrated checkpoint"):
        EscalatingDecoder(SymdynDecoder(plain), Known()).compile_decoder_for_dem(dem=dem)
    with pytest.raises(InputError, match="postselect needs a calibrated checkpoint"):
        SymdynDecoder(plain, postselect=0.5).compile_decoder_for_dem(dem=dem)
    shots = circuit.compile_detector_sampler(seed=1).sample(4)
    assert np.isnan(SymdynDecoder(plain).compile_decoder_for_dem(dem=dem).predict(shots).confidence).all()
