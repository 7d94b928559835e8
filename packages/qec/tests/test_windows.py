"""Windows: exact where they cover everything, as good with a buffer, worse without."""

import numpy as np
import pytest
import sinter
import stim

from symdyn_core.errors import InputError
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.windows import WindowedDecoder, matching


def surface(distance, rounds, p):
    return stim.Circuit.generated(
        "surface_code:rotated_memory_z",
        distance=distance,
        rounds=rounds,
        after_clifford_depolarization=p,
        before_measure_flip_probability=p,
        after_reset_flip_probability=p,
    )


def windowed(circuit, *settings, **options):
    dem = circuit.detector_error_model(decompose_errors=True)
    return WindowedDecoder(*settings, **options).compile_decoder_for_dem(dem=dem)


def sample(circuit, shots, seed=3):
    return circuit.compile_detector_sampler(seed=seed).sample(shots, separate_observables=True)


def answers(compiled, detectors):
    packed = np.packbits(detectors, axis=1, bitorder="little")
    found = compiled.decode_shots_bit_packed(bit_packed_detection_event_data=packed)
    return np.unpackbits(found, axis=1, count=compiled.num_observables, bitorder="little")


@pytest.mark.parametrize(("commit", "buffer"), [(30, 0), (1, 40), (6, 100)])
def test_a_window_over_everything_is_matching(commit, buffer):
    import pymatching

    circuit = surface(3, 8, 0.01)
    detectors, _ = sample(circuit, 2_000)
    whole = pymatching.Matching.from_detector_error_model(circuit.detector_error_model(decompose_errors=True))
    compiled = windowed(circuit, commit, buffer)
    assert len(compiled.windows) == 1
    different = (answers(compiled, detectors) != whole.decode_batch(detectors)).any(axis=1)
    # PyMatching rounds weights to integers on a scale of its own for each graph: ties break differently.
    assert different.mean() < 0.002


def test_a_buffer_of_the_distance_is_enough_and_none_is_not():
    circuit = surface(3, 20, 0.006)
    detectors, observables = sample(circuit, 20_000)
    wrong = {
        buffer: (answers(windowed(circuit, 3, buffer), detectors) != observables).any(axis=1)
        for buffer in (0, 4, 25)
    }
    alone = int((wrong[4] & ~wrong[25]).sum()), int((wrong[25] & ~wrong[4]).sum())
    # Paired: the shots on which only one of the two fails, within five standard deviations of a tie.
    assert abs(alone[0] - alone[1]) < 5 * max(sum(alone), 1) ** 0.5
    assert wrong[0].sum() > 1.5 * wrong[25].sum()


@pytest.mark.parametrize(("commit", "buffer"), [(1, 0), (2, 3), (5, 2)])
def test_every_detector_is_explained(commit, buffer):
    circuit = surface(3, 9, 0.01)
    detectors, _ = sample(circuit, 200)
    compiled = windowed(circuit, commit, buffer)
    session = compiled.session(200)
    for number in range(compiled.num_rounds):
        session.push(detectors[:, compiled.rounds == number])
        # Whatever is final is explained; what is in a buffer is still open.
        decoded = [w for w in compiled.windows if w.stop <= session.rounds]
        assert not session.residual[:, compiled.rounds < commit * len(decoded)].any()
    assert not session.residual.any()


def test_round_by_round_is_all_at_once():
    circuit = surface(3, 10, 0.01)
    detectors, _ = sample(circuit, 50)
    compiled = windowed(circuit, 2, 3)
    together = answers(compiled, detectors)
    for shot in range(50):
        session = compiled.session()
        for number in range(compiled.num_rounds):
            final = session.push(detectors[shot : shot + 1, compiled.rounds == number])
        assert (final == together[shot]).all()


def test_what_was_final_stays_as_it_was():
    model = "error(0.1) D0 L0\nerror(0.1) D1 L0\ndetector(0) D0\ndetector(1) D1"
    compiled = WindowedDecoder(1, 0).compile_decoder_for_dem(dem=stim.DetectorErrorModel(model))
    session = compiled.session()
    first, second = session.push(np.array([[1]])), session.push(np.array([[1]]))
    assert (first.tolist(), second.tolist()) == ([[1]], [[0]])


def test_errors_that_mostly_happen_are_expected():
    model = stim.DetectorErrorModel(
        "error(0.9) D0 D1 L0\nerror(1) D1\nerror(0.1) D0\nerror(0.1) D1\ndetector(0) D0\ndetector(1) D1"
    )
    detectors, observables = (bits.astype(bool) for bits in model.compile_sampler(seed=1).sample(500)[:2])
    for buffer in (0, 1):
        compiled = WindowedDecoder(1, buffer).compile_decoder_for_dem(dem=model)
        # D0 quiet and D1 on: nothing but the certain flip, or more likely all three of the others.
        assert (answers(compiled, detectors) != observables).mean() < 0.15
        session = compiled.session(500)
        for number in range(2):
            session.push(detectors[:, compiled.rounds == number])
        assert not session.residual.any()


def test_a_decoder_of_ones_own_gets_the_parts_of_the_model():
    seen = []

    def inner(checks, priors):
        seen.append(checks.shape)
        return matching(checks, priors)

    circuit = surface(3, 8, 0.01)
    detectors, _ = sample(circuit, 300)
    compiled = windowed(circuit, 2, 2, inner=inner)
    assert (answers(compiled, detectors) == answers(windowed(circuit, 2, 2), detectors)).all()
    assert len(seen) <= len(compiled.windows)


def test_bposd_takes_errors_whole():
    pytest.importorskip("ldpc")
    circuit = surface(3, 2, 0.005)
    whole, split = (
        WindowedDecoder(2, 1, inner="bposd").compile_decoder_for_dem(
            dem=circuit.detector_error_model(decompose_errors=decompose)
        )
        for decompose in (False, True)
    )
    assert [len(window.final) for window in whole.windows] == [len(window.final) for window in split.windows]
    detectors, _ = sample(circuit, 100)
    assert (answers(whole, detectors) == answers(split, detectors)).all()


def test_long_experiments_repeat_few_windows():
    windows = windowed(surface(3, 60, 0.005), 3, 3).windows
    # Those at the ends are their own.
    assert len({id(window.decode) for window in windows}) <= 6 < len(windows) / 3


def test_bicycle_codes_in_windows_of_bposd():
    pytest.importorskip("ldpc")
    circuit = bb_memory(bivariate_bicycle("bb72"), 0.002, 4)
    detectors, observables = sample(circuit, 6)
    dem = circuit.detector_error_model()
    compiled = WindowedDecoder(2, 2, inner="bposd", time=2).compile_decoder_for_dem(dem=dem)
    assert len(compiled.windows) == 2
    assert (answers(compiled, detectors) != observables).any(axis=1).sum() <= 1


def test_sinter_takes_it():
    task = sinter.Task(circuit=surface(3, 6, 0.005), decoder="windowed")
    (stats,) = sinter.collect(
        num_workers=1, tasks=[task], max_shots=2_000, custom_decoders={"windowed": WindowedDecoder(2, 3)}
    )
    assert stats.shots >= 2_000
    assert stats.errors < 100


def test_no_shots_are_no_answers():
    compiled = windowed(surface(3, 3, 0.005), 2, 2)
    nothing = np.zeros((0, -(-compiled.num_detectors // 8)), dtype=np.uint8)
    assert compiled.decode_shots_bit_packed(bit_packed_detection_event_data=nothing).shape == (0, 1)


@pytest.mark.parametrize(("width", "kind"), [(1, np.uint8), (100, np.uint8), (2, np.bool_)])
def test_shots_of_another_width_or_type_are_refused(width, kind):
    compiled = windowed(surface(3, 2, 0.005), 2, 2)
    assert compiled.num_detectors == 16  # two bytes
    with pytest.raises(InputError, match=r"must be packed, uint8 of shape \(shots, "):
        compiled.decode_shots_bit_packed(bit_packed_detection_event_data=np.zeros((3, width), dtype=kind))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1), "commit must be at least 1 and buffer at least 0, got 0 and 1"),
        ((1, -1), "commit must be at least 1 and buffer at least 0, got 1 and -1"),
        ((1, 1, "magic"), "inner must be pymatching or bposd or a function, got 'magic'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        WindowedDecoder(*settings)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("error(0.1) D0", "detector 0 must have a coordinate number -1 that tells its round, got \\[\\]"),
        (
            "error(0.1) D0\nerror(0.1) L0\ndetector(0) D0",
            "errors must flip a detector, got error\\(0.1\\) L0",
        ),
        ("error(0.1) D0 D1 D2\n" + "\n".join(f"detector(0) D{k}" for k in range(3)), "got one of 3"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        WindowedDecoder(1, 1).compile_decoder_for_dem(dem=stim.DetectorErrorModel(model))


def test_rounds_of_another_shape_are_refused():
    compiled = windowed(surface(3, 2, 0.005), 1, 1)
    session = compiled.session(2)
    with pytest.raises(InputError, match=r"round 0 must have detectors of shape \(2, 4\), got \(2, 3\)"):
        session.push(np.zeros((2, 3), dtype=np.uint8))
    for number in range(compiled.num_rounds):
        session.push(np.zeros((2, int((compiled.rounds == number).sum())), dtype=np.uint8))
    with pytest.raises(InputError, match="the experiment has 3 rounds, and all are there"):
        session.push(np.zeros((2, 4), dtype=np.uint8))
    with pytest.raises(InputError, match="shots must be at least 1, got 0"):
        compiled.session(0)
