import pytest
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import memory_circuit, surface_memory
from symdyn_qec.reading import check_model, error_model, read_circuit, read_dem, undetectable_errors


def test_without_noise_there_are_no_error_mechanisms():
    assert error_model(surface_memory(3, 3, 0.0), "example").num_errors == 0


def test_bicycle_circuits_do_not_decode_by_matching():
    circuit = memory_circuit("bb72", p=0.001, rounds=2)
    assert error_model(circuit, "bb72").num_errors > 0
    with pytest.raises(InputError, match="bb72 cannot be decoded by matching: .* more than two detectors"):
        error_model(circuit, "bb72", graphlike=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("M 0\nFOO 1", r"is not a Stim circuit: Gate not found: 'FOO'"),
        ("CX 0", r"is not a Stim circuit: .*even number of targets"),
        ("M 0\nOBSERVABLE_INCLUDE(0) rec[-1]", "has no detectors"),
        ("M 0\nDETECTOR rec[-1]", "has no observables"),
        ("", "has no detectors"),
        (
            "H 0\nM 0 1\nDETECTOR rec[-2]\nOBSERVABLE_INCLUDE(0) rec[-1]",
            "cannot be decoded: The circuit contains non-deterministic detectors",
        ),
        (
            "R 1\nH 0\nM 0 1\nDETECTOR rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-2]",
            "cannot be decoded: The circuit contains non-deterministic observables",
        ),
    ],
)
def test_bad_files_get_one_line_with_their_name(tmp_path, text, message):
    path = tmp_path / "bad.stim"
    path.write_text(text)
    with pytest.raises(InputError, match=f"bad.stim {message}") as error:
        read_circuit(path)
    assert "\n" not in str(error.value)


def test_files_that_are_not_text_or_not_there(tmp_path):
    (tmp_path / "binary.stim").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="binary.stim is not a Stim circuit: it is not text"):
        read_circuit(tmp_path / "binary.stim")
    with pytest.raises(InputError, match="cannot read .*missing.stim: No such file"):
        read_circuit(tmp_path / "missing.stim")
    with pytest.raises(InputError, match="cannot read .*: Is a directory"):
        read_circuit(tmp_path)


def test_a_file_gives_back_its_circuit(tmp_path):
    circuit = surface_memory(3, 2, 0.01)
    circuit.to_file(tmp_path / "good.stim")
    assert read_circuit(tmp_path / "good.stim") == circuit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H 0\nM 0\nDETECTOR rec[-1]", "The circuit contains non-deterministic detectors"),
        ("M 0\nDETECTOR rec[-5]", "Referred to a measurement result before the beginning of time"),
    ],
)
def test_circuits_that_cannot_be_analysed_are_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=f"^mine has no detector error model: {message}$"):
        error_model(stim.Circuit(text), "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("error(0.1) D0 L0\nfoo", "is not a detector error model: Unrecognized instruction name: foo"),
        ("error(1.5) D0 L0", "is not a detector error model: .* must be a probability"),
        ("error(0.1) L0", "has no detectors; a model needs detectors and observables"),
        ("error(0.1) D0", "has no observables; a model needs detectors and observables"),
        ("", "has no detectors"),
        (
            "error(0.1) D0 L0\nerror(0.01) L0\nrepeat 3 {\nerror(0.01) D1 L0 D1\n}",
            "must have no errors that flip observables and no detector, .*, got 4, 0.04 a shot",
        ),
        ("error(0.6) D0 L0", "must have errors of probability at most 0.5, got 0.6"),
        ("repeat 2 {\nerror(0.7) D0\nshift_detectors 1\n}\nerror(0.1) D0 L0", "must have .* got 0.7"),
    ],
)
def test_bad_models_get_one_line_with_their_name(tmp_path, text, message):
    path = tmp_path / "bad.dem"
    path.write_text(text)
    with pytest.raises(InputError, match=f"bad.dem {message}") as error:
        read_dem(path)
    assert "\n" not in str(error.value)


def test_model_files_that_are_not_text_or_not_there(tmp_path):
    (tmp_path / "binary.dem").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="binary.dem is not a detector error model: it is not text"):
        read_dem(tmp_path / "binary.dem")
    with pytest.raises(InputError, match="cannot read .*missing.dem: No such file"):
        read_dem(tmp_path / "missing.dem")


def test_a_file_gives_back_its_model(tmp_path):
    model = memory_circuit("toric", distance=3, p=0.003, rounds=4).detector_error_model()
    model.to_file(tmp_path / "good.dem")
    assert read_dem(tmp_path / "good.dem") == model


def test_undetectable_errors_can_be_allowed_and_counted(tmp_path):
    path = tmp_path / "floor.dem"
    path.write_text("error(0.1) D0 L0\nerror(0.25) L0\nerror(0) L0\nerror(0.125)")
    with pytest.raises(InputError, match="got 1, 0.25 a shot"):
        read_dem(path)
    model = read_dem(path, allow_undetectable=True)
    assert undetectable_errors(model) == (1, 0.25)


def test_models_of_circuits_are_checked_where_that_is_asked_for():
    text = "R 0 1\nX_ERROR(0.1) 0\nX_ERROR({}) 1\nM 0 1\nDETECTOR rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-{}]"
    unseen = error_model(stim.Circuit(text.format(0.1, 2)), "mine")
    with pytest.raises(InputError, match="^mine must have no errors that flip observables and no detector"):
        check_model(unseen, "mine")
    check_model(unseen, "mine", allow_undetectable=True)
    likely = error_model(stim.Circuit(text.format(0.6, 1)), "mine")
    with pytest.raises(InputError, match="^mine must have errors of probability at most 0.5, got 0.6"):
        check_model(likely, "mine")
