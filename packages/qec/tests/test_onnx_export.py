"""ONNX files give torch's numbers, and say how to read them out."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from symdyn_core.errors import InputError
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.commands import app
from symdyn_qec.decoder import SymdynDecoder
from symdyn_qec.networks.sector import SectorNetwork
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.onnx_export import export_onnx
from symdyn_qec.osd import OrderedStatistics

CODE, ROUNDS = bivariate_bicycle("bb72"), 2


def checkpoint(kind):
    network = kind(CODE, width=4, layers=1, seed=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
    return Checkpoint.of(network, CODE, ROUNDS, training={})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "basis", "batch"),
    [(TorusNetwork, "X", None), (SectorNetwork, "Z", None), (SectorNetwork, "X", 24)],
)
def test_the_runtime_and_the_read_out_give_the_decoders_answers(kind, basis, batch, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    trained = checkpoint(kind)
    path = export_onnx(trained, tmp_path / "net.onnx", basis, batch)
    circuit = bb_memory(CODE, 0.005, ROUNDS, basis)
    shots = circuit.compile_detector_sampler(seed=5).sample(24)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (odds,) = session.run(None, {"detectors": shots.astype(np.float32)})
    readout = json.loads((tmp_path / "net.onnx.json").read_text())
    syndromes = np.stack([shots[:, cycle].sum(axis=1) % 2 for cycle in readout["syndromes"]], axis=1)
    flips, _ = OrderedStatistics(readout["checks"], 10).decode(odds, syndromes)
    folder = trained.save(tmp_path / "checkpoint")
    decoder = SymdynDecoder(folder).compile_decoder_for_dem(dem=circuit.detector_error_model())
    expected = decoder.predict(shots)
    assert (flips == expected.flips).all()
    assert (flips @ np.transpose(readout["logicals"]) % 2 == expected.observables).all()
    doubt = np.log1p(np.exp(-np.abs(odds.astype(float)))).sum(axis=1)
    np.testing.assert_allclose(doubt, expected.doubt, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 0}, "batch must be at least 1, got 0"), ({"basis": "Y"}, "basis must be")],
)
def test_what_cannot_be_exported_is_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_onnx(checkpoint(TorusNetwork), tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_the_command_wants_a_file_and_a_checkpoint(tmp_path):
    for arguments, message in (
        (["bb72", "--out", str(tmp_path / "net")], "--out must end in .onnx"),
        (["bb73", "--out", str(tmp_path / "net.onnx")], "checkpoint must be a folder with decoder.json"),
    ):
        result = CliRunner().invoke(app, ["export", *arguments])
        assert message in str(result.exception)
