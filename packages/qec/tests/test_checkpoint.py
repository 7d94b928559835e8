import json
import shutil

import pytest
import safetensors.torch
import stim
import torch

from symdyn_core.errors import InputError
from symdyn_qec.checkpoint import SIDECAR, WEIGHTS, Checkpoint
from symdyn_qec.circuits import bb_memory, memory_circuit
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.shipped import find, load, shipped


@pytest.fixture(scope="module")
def small():
    code = bivariate_bicycle("bb72")
    return Checkpoint.of(TorusNetwork(code, width=4, layers=1, seed=3), code, rounds=2, training={"shots": 0})


@pytest.fixture
def folder(small, tmp_path):
    return small.save(tmp_path / "small")


def model(p=0.002, rounds=2, basis="Z", **options):
    return bb_memory(bivariate_bicycle("bb72"), p, rounds, basis, **options).detector_error_model()


def change(folder, *keys, to):
    """Overwrite one field of the side-car; None removes it."""
    sidecar = json.loads((folder / SIDECAR).read_text())
    *path, last = keys
    fields = sidecar
    for key in path:
        fields = fields[key]
    if to is None:
        del fields[last]
    else:
        fields[last] = to
    (folder / SIDECAR).write_text(json.dumps(sidecar))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("bfloat16", 2**-8)])
def test_what_was_saved_is_loaded(small, tmp_path, precision, tolerance):
    loaded = Checkpoint.load(small.save(tmp_path / "saved", precision))
    for name, value in small.network.state_dict().items():
        found = loaded.network.state_dict()[name]
        assert found.dtype == torch.float32
        assert ((found - value).abs() <= tolerance * value.abs()).all()
    assert repr(loaded.code) == repr(small.code)
    assert (loaded.rounds, loaded.training, loaded.versions) == (2, small.training, small.versions)
    for basis, experiment in small.experiments.items():
        assert loaded.experiments[basis].structure == experiment.structure
        assert (loaded.experiments[basis].observables == small.code.logicals(basis)).all()
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {SIDECAR, WEIGHTS}


@pytest.mark.parametrize(("p", "basis"), [(1e-4, "X"), (0.03, "Z")])
def test_any_strength_of_the_noise_matches(small, p, basis):
    assert small.basis_of(model(p=p, basis=basis)) == basis
    assert find(model(p=p, basis=basis, rounds=6)).name == "bb72"


def test_loops_and_decompositions_do_not_matter(small):
    circuit = bb_memory(bivariate_bicycle("bb72"), 0.001, 2)
    options = [{"flatten_loops": True}, {"decompose_errors": True, "ignore_decomposition_failures": True}]
    assert [small.basis_of(circuit.detector_error_model(**option)) for option in options] == ["Z", "Z"]


def test_shipped_checkpoints_say_how_they_were_trained():
    checkpoints = {name: load(folder) for name, folder in shipped().items()}
    assert set(checkpoints) == {"bb72", "bb72-fast", "bb144", "surface-d3", "surface-d5"}
    for checkpoint in checkpoints.values():
        assert checkpoint.training["shots"] > 10**4
        assert {"hardware", "seconds", "p"} <= checkpoint.training.keys()


SURFACE = memory_circuit("surface", distance=3, rounds=3, p=0.001).detector_error_model()
# Noise on idle qubits has the same effects as other noise: without it, probabilities change and nothing else.
WITHOUT_ONE = model(idle=False).flattened()[1:]
OTHER_LOGICALS = bivariate_bicycle("bb72").logicals("Z")[::-1]


@pytest.mark.parametrize(
    ("dem", "message"),
    [
        (model(rounds=3), "detectors must be 144 for the Z memory of this checkpoint, got 216"),
        (model(observables=OTHER_LOGICALS), "observables must be the logical operators of the Z memory"),
        (
            model(observables=OTHER_LOGICALS[:3]),
            "observables must be 12 for the Z memory of this checkpoint, got 3",
        ),
        (WITHOUT_ONE, "mechanisms must flip the sets of detectors that they flip for the Z memory"),
        (SURFACE, r"coordinates of detector 0 must be four whole numbers \(i, j, t, kind\), got"),
        (stim.DetectorErrorModel("error(0.1) D0 L0"), r"coordinates of detector 0 .* got \(\)"),
        (
            stim.DetectorErrorModel("error(0.1) D0 D1\ndetector(0, 0, 0, 1) D0\ndetector(0, 0, 0, 0) D1"),
            "detectors .* of one kind, .* got the kinds",
        ),
    ],
)
def test_other_models_are_refused_by_the_field_that_differs(small, dem, message):
    with pytest.raises(InputError, match=message):
        small.basis_of(dem)


def test_detectors_in_another_place_are_refused(small):
    text = str(model().flattened()).replace("detector(0, 1, 0, 1) D1\n", "detector(0, 2, 0, 1) D1\n")
    with pytest.raises(
        InputError, match=r"coordinates of detector 1 must be \(0, 1, 0, 1\) .* got \(0, 2, 0, 1\)"
    ):
        small.basis_of(stim.DetectorErrorModel(text))


def test_without_a_shipped_checkpoint_the_reason_is_told():
    with pytest.raises(
        InputError, match="no shipped checkpoint is for this model: .* observables must be 12 for the Z"
    ):
        find(model(observables=OTHER_LOGICALS[:3], rounds=6))


@pytest.mark.parametrize(("name", "rounds", "basis"), [("bb108", 3, "X"), ("bb72", 4, "Z")])
def test_weights_go_with_every_size_of_the_code(small, name, rounds, basis, tmp_path):
    code = bivariate_bicycle(name)
    dem = bb_memory(code, 0.001, rounds, basis).detector_error_model()
    adapted = small.adapted(dem)
    assert (repr(adapted.code), adapted.rounds, adapted.basis_of(dem)) == (repr(code), rounds, basis)
    assert adapted.training["transferred_from"] == {"code": repr(small.code), "rounds": 2}
    assert Checkpoint.load(adapted.save(tmp_path / "larger")).basis_of(dem) == basis
    assert find(bb_memory(code, 0.001, rounds, basis).detector_error_model()).name == (
        f"bb72 on a torus of {code.l} x {code.m} cells, {rounds} cycles"
    )


def test_the_most_similar_number_of_cycles_is_transferred():
    dem = bb_memory(bivariate_bicycle("bb72"), 0.001, 12).detector_error_model()
    assert find(dem).name == "bb144 on a torus of 6 x 6 cells, 12 cycles"


def test_the_own_size_stays_as_it_is(small):
    assert small.adapted(model()) is small


@pytest.mark.parametrize(
    ("dem", "message"),
    [
        (
            bb_memory(bivariate_bicycle("bb90"), 0.001, 2).detector_error_model(),
            "mechanisms must flip .* of this checkpoint on a torus of 15 x 3 cells, 2 cycles",
        ),
        (
            stim.DetectorErrorModel("error(0.1) D0 L0\ndetector(1000000, 1000000, 9, 1) D0"),
            "detectors must be .* for a bicycle code on a torus of 1000001 x 1000001 cells in 9 cycles, got",
        ),
        (model(rounds=3, observables=OTHER_LOGICALS), "observables must be the logical operators of the Z"),
        (SURFACE, "coordinates of detector 0 must be four whole numbers"),
        (stim.DetectorErrorModel("error(0.1) L0"), "detectors must be there to tell the size .* got none"),
    ],
)
def test_what_weights_do_not_go_with_is_refused(small, dem, message):
    with pytest.raises(InputError, match=message):
        small.adapted(dem)


def test_weights_do_not_go_with_other_polynomials(small):
    with pytest.raises(InputError, match="code must have the polynomials of .* for this checkpoint, got"):
        small.transferred(bivariate_bicycle("bb288"), 2)


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (("schema",), 1, "schema of .* must be 2, got 1"),
        (("schema",), None, "schema of .* must be 2, got None"),
        (("network", "kind"), "transformer", "network.kind of .* must be torus or sector, got 'transformer'"),
        (("network", "width"), 8, r"weights of .* must have shape .* in 'check_embedding', got \(2, 9, 4\)"),
        (("network", "layers"), 2, "weights of .* must have a tensor 'layers.1.checks"),
        (("rounds",), None, "lacks the field 'rounds'"),
        (("rounds",), 5, "experiments.X.detectors of small must be the 360 of .*, got 144"),
        (("rounds",), "two", "rounds of a checkpoint must be a whole number, got 'two'"),
        (("code", "l"), 7, "experiments.X.detectors of small must be the 168 of .*, got 144"),
        (("code", "a"), 7, "a polynomial must look like .* got '7'"),
        (("experiments", "X"), 7, "a field of the wrong kind"),
        (("training",), None, "lacks the field 'training'"),
        (("weights", "sha256"), "0", "weights.sha256 of .* must be 0 as decoder.json says"),
        (("experiments", "Z", "sha256_mechanisms"), None, "lacks the field 'sha256_mechanisms'"),
        (("experiments", "Z", "observables"), "0,72", "a field of the wrong kind: index 72"),
    ],
)
def test_side_cars_that_do_not_fit_are_refused_by_field(folder, keys, to, message):
    change(folder, *keys, to=to)
    with pytest.raises(InputError, match=message):
        Checkpoint.load(folder)


def test_weights_that_are_damaged_or_foreign_are_refused(folder, tmp_path):
    path = folder / WEIGHTS
    state = safetensors.torch.load_file(path)
    for name, bad, message in (
        ("heads.0.norm.bias", torch.full((4,), torch.nan), "must be finite, but 'heads.0.norm.bias' is not"),
        ("heads.0.norm.bias", torch.zeros(4) + 1, "weights.sha256"),
        ("surplus", torch.zeros(4), "must not have a tensor 'surplus'"),
    ):
        path.write_bytes(safetensors.torch.save({**state, name: bad}))
        with pytest.raises(InputError, match=message):
            Checkpoint.load(folder)
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is not a safetensors file"):
        Checkpoint.load(folder)
    path.unlink()
    with pytest.raises(InputError, match="checkpoint must be a folder with model.safetensors"):
        Checkpoint.load(folder)


def test_folders_without_a_checkpoint_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="checkpoint must be a folder with decoder.json"):
        Checkpoint.load(tmp_path / "nowhere")
    (folder / SIDECAR).write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Checkpoint.load(folder)
    (folder / SIDECAR).write_text("[1]")
    with pytest.raises(InputError, match="schema of"):
        Checkpoint.load(folder)


def test_a_save_that_stopped_half_way_is_noticed(small, folder, tmp_path):
    other = TorusNetwork(small.code, width=4, layers=1, seed=4)
    newer = Checkpoint.of(other, small.code, 2, {}).save(tmp_path / "newer")
    shutil.copy(newer / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(InputError, match="weights.sha256"):
        Checkpoint.load(folder)


def test_places_and_precisions_that_cannot_be_used_are_refused(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        small.save(tmp_path / "file")
    with pytest.raises(InputError, match="precision must be float32 or bfloat16, got 'int8'"):
        small.save(tmp_path, precision="int8")
