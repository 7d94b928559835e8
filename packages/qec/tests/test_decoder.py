import dataclasses
import pickle

import numpy as np
import pytest
import sinter
import torch

from symdyn_core.errors import InputError
from symdyn_qec.automorphism import dem_automorphism
from symdyn_qec.calibration import Calibration
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory, surface_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.decoder import Prediction, SymdynDecoder
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.shipped import shipped
from symdyn_qec.sinter import decoders

# The shipped network is for six cycles; how a decoder behaves is tested with a small untrained one for two.
ROUNDS, FEW_ROUNDS = 6, 2


@pytest.fixture(scope="module")
def code():
    return bivariate_bicycle("bb72")


@pytest.fixture(scope="module")
def compiled(code):
    """The shipped decoder for both bases."""
    return {
        basis: SymdynDecoder().compile_decoder_for_dem(
            dem=bb_memory(code, 0.003, ROUNDS, basis).detector_error_model()
        )
        for basis in ("X", "Z")
    }


@pytest.fixture(scope="module")
def folder(code, tmp_path_factory):
    """The checkpoint of the small network."""
    network = TorusNetwork(code, width=4, layers=1, seed=3)
    checkpoint = Checkpoint.of(network, code, FEW_ROUNDS, training={})
    sure = dataclasses.replace(checkpoint, calibration=Calibration(offset=-3.0, doubt=1.0, weight=0.1))
    return sure.save(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def dem(code):
    return bb_memory(code, 0.003, FEW_ROUNDS).detector_error_model()


@pytest.fixture(scope="module")
def small(folder, dem):
    return SymdynDecoder(folder).compile_decoder_for_dem(dem=dem)


def shots(code, p, count, basis="Z", rounds=ROUNDS, **options):
    sampler = bb_memory(code, p, rounds, basis).compile_detector_sampler(seed=11)
    return sampler.sample(count, separate_observables=True, **options)


def failures(decoder, detectors, observables):
    return int((decoder.predict(detectors).observables != observables).any(axis=1).sum())


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_flips_explain_the_checks_and_give_the_observables(code, compiled, basis):
    detectors, observables = shots(code, 0.003, 48, basis)
    predicted = compiled[basis].predict(detectors)
    # One shot in 200 fails, where one in two would without decoding.
    assert (predicted.observables != observables).any(axis=1).sum() <= 2
    assert observables.any(axis=1).mean() > 0.5
    seen = np.zeros((48, code.cells), dtype=np.uint8)
    for detector, (i, j, _, kind) in bb_memory(code, 0.003, ROUNDS, basis).get_detector_coordinates().items():
        if kind == (basis == "Z"):
            seen[:, int(i * code.m + j)] ^= detectors[:, detector]
    assert (predicted.flips @ code.checks(basis).T % 2 == seen).all()
    assert (predicted.flips @ code.logicals(basis).T % 2 == predicted.observables).all()


@pytest.mark.verify
@pytest.mark.parametrize("basis", ["X", "Z"])
def test_few_shots_fail(code, compiled, basis):
    # At p = 0.003 BP-OSD fails in 1.5 % of shots, the network in 0.5 %; at 0.001 in fewer than one in 10,000.
    assert failures(compiled[basis], *shots(code, 0.003, 512, basis)) <= 10
    assert failures(compiled[basis], *shots(code, 0.001, 512, basis)) <= 1


def test_shots_of_the_other_basis_are_refused(code, compiled):
    detectors, _ = shots(code, 0.003, 16, "X")
    with pytest.raises(
        InputError, match="detectors must be those of a Z memory, but no errors lead to those of shot"
    ):
        compiled["Z"].predict(detectors)


def test_translated_detectors_give_translated_flips(code, compiled):
    shift = (2, 5)
    detectors, observables = shots(code, 0.003, 32)
    moved, _ = dem_automorphism(code, bb_memory(code, 0.003, ROUNDS), shift).apply(detectors, observables)
    plain, translated = compiled["Z"].predict(detectors), compiled["Z"].predict(np.asarray(moved, dtype=bool))
    # Elsewhere ties between flips of equal weight are broken by the order of the qubits.
    sure = plain.weight == 0
    assert sure.mean() > 0.8
    assert (translated.flips[sure] == code.translate(plain.flips[sure], shift)).all()
    np.testing.assert_allclose(translated.weight, plain.weight, rtol=1e-3, atol=1e-3)


def test_batches_single_shots_packed_and_unpacked_agree(code, small, folder, dem):
    detectors, _ = shots(code, 0.005, 40, rounds=FEW_ROUNDS)
    packed, _ = shots(code, 0.005, 40, rounds=FEW_ROUNDS, bit_packed=True)
    together = small.predict(packed)
    assert together.observables.dtype == together.flips.dtype == np.uint8
    singles = [small.predict_shot(shot) for shot in detectors]
    assert (type(singles[0].weight), type(singles[0].kept)) == (float, bool)
    one_by_one = Prediction(*(np.array(field) for field in zip(*singles, strict=True)))
    in_sevens = SymdynDecoder(folder, batch_size=7).compile_decoder_for_dem(dem=dem).predict(packed)
    for other in (small.predict(detectors), one_by_one, in_sevens):
        # Products of matrices of other sizes round differently, which can break ties in another way.
        np.testing.assert_allclose(other.weight, together.weight, rtol=1e-4)
        assert (other.observables != together.observables).any(axis=1).sum() <= 1


def test_no_shots_are_no_predictions(small):
    nothing = np.zeros((0, 18), dtype=np.uint8)
    assert [field.shape for field in small.predict(nothing)] == [(0, 12), (0, 72), (0,), (0,), (0,), (0,)]
    assert small.decode_shots_bit_packed(bit_packed_detection_event_data=nothing).shape == (0, 2)


def test_doubtful_shots_are_discarded_only_on_demand(code, small, folder, dem):
    packed, _ = shots(code, 0.003, 96, rounds=FEW_ROUNDS, bit_packed=True)
    found = small.predict(packed)
    kept = small.decode_shots_bit_packed(bit_packed_detection_event_data=packed)
    assert (kept.dtype, kept.shape) == (np.uint8, (96, 2))
    assert (np.unpackbits(kept, axis=1, count=12, bitorder="little") == found.observables).all()
    assert found.kept.all()
    threshold = float(np.median(found.confidence))
    decoder = SymdynDecoder(folder, postselect=threshold).compile_decoder_for_dem(dem=dem)
    answer = decoder.decode_shots_bit_packed(bit_packed_detection_event_data=packed)
    assert answer.shape == (96, 3)
    assert (answer[:, :2] == kept).all()
    assert (answer[:, 2] == (found.confidence < threshold)).all()
    assert 0 < answer[:, 2].sum() < 96


def test_sinter_agrees_with_predict(code, small, folder, dem):
    detectors, observables = shots(code, 0.003, 1_000, rounds=FEW_ROUNDS)
    found = small.predict(detectors)
    threshold = float(np.quantile(found.confidence, 0.2))
    kept = found.confidence >= threshold
    wrong = (found.observables != observables).any(axis=1) & kept
    tasks = [sinter.Task(circuit=bb_memory(code, 0.003, FEW_ROUNDS), decoder="keen")]
    keen = {"keen": SymdynDecoder(folder, postselect=threshold)}
    (stats,) = sinter.collect(num_workers=1, tasks=tasks, max_shots=1_000, custom_decoders=keen)
    assert stats.shots == 1_000
    # Two samples of equal size: five standard deviations of the difference of two counts.
    for ours, theirs in ((wrong.sum(), stats.errors), ((~kept).sum(), stats.discards)):
        assert abs(int(ours) - theirs) <= 5 * (int(ours) + theirs + 1) ** 0.5


def test_the_shell_finds_the_decoder_and_sinter_reports_our_errors(code):
    task = sinter.Task(circuit=surface_memory(3, 2, 0.003), decoder="symdyn")
    with pytest.raises(RuntimeError, match="Worker failed") as caught:
        sinter.collect(num_workers=1, tasks=[task], max_shots=8, custom_decoders=decoders())
    assert "no shipped checkpoint is for this model" in str(caught.value) + str(caught.value.__cause__)


def test_the_weights_of_a_small_code_decode_a_larger_one():
    """The gross code in 12 cycles, with weights that have seen 72 qubits and 6 cycles alone."""
    circuit = bb_memory(bivariate_bicycle("bb144"), 0.003, rounds=12)
    detectors, observables = circuit.compile_detector_sampler(seed=4).sample(64, separate_observables=True)
    dem = circuit.detector_error_model()
    found = SymdynDecoder(shipped()["bb72"]).compile_decoder_for_dem(dem=dem).predict(detectors)
    # One in two thousand fails, where belief propagation alone fails on every fourth.
    assert (found.observables != observables).any(axis=1).sum() <= 1
    assert np.isnan(found.confidence).all()
    with pytest.raises(InputError, match="postselect needs a calibrated checkpoint, and bb72 on a torus of"):
        SymdynDecoder(shipped()["bb72"], postselect=0.9).compile_decoder_for_dem(dem=dem)


def test_stronger_noise_than_in_training_is_told(code):
    dem = bb_memory(code, 0.012, ROUNDS).detector_error_model()
    with pytest.warns(UserWarning, match=r"the noise is 2 times as strong as the strongest .* \(p = 0.006\)"):
        SymdynDecoder().compile_decoder_for_dem(dem=dem)
    weaker = bb_memory(code, 0.006, ROUNDS).detector_error_model()
    SymdynDecoder().compile_decoder_for_dem(dem=weaker)  # no warning, which would be an error here


def test_decoders_travel_without_their_weights(code, small, folder, dem):
    decoder = SymdynDecoder(folder, postselect=0.9, batch_size=16)
    content = pickle.dumps(decoder)
    assert len(content) < 1_000
    copy = pickle.loads(content)  # noqa: S301 - our own bytes
    assert vars(copy) == vars(decoder)
    packed, _ = shots(code, 0.003, 16, rounds=FEW_ROUNDS, bit_packed=True)
    assert (copy.compile_decoder_for_dem(dem=dem).predict(packed).flips == small.predict(packed).flips).all()


def test_bfloat16_hardly_changes_the_weights(code, small, folder, dem):
    packed, _ = shots(code, 0.003, 64, rounds=FEW_ROUNDS, bit_packed=True)
    half = SymdynDecoder(folder, dtype="bfloat16").compile_decoder_for_dem(dem=dem).predict(packed)
    # The search may end in another answer; where it does not, weights are as exact as bfloat16.
    full = small.predict(packed)
    same = (half.flips == full.flips).all(axis=1)
    assert same.mean() > 0.5
    np.testing.assert_allclose(half.weight[same], full.weight[same], rtol=0.01)


def test_threads_are_given_back(code, folder, dem):
    before = torch.get_num_threads()
    packed, _ = shots(code, 0.003, 4, rounds=FEW_ROUNDS, bit_packed=True)
    SymdynDecoder(folder, threads=before + 1).compile_decoder_for_dem(dem=dem).predict(packed)
    assert torch.get_num_threads() == before


def test_threads_share_out_batches(code, compiled):
    dem = bb_memory(code, 0.003, ROUNDS).detector_error_model()
    packed, _ = shots(code, 0.003, 24, bit_packed=True)
    before = torch.get_num_threads()
    many = SymdynDecoder(threads=2, batch_size=8).compile_decoder_for_dem(dem=dem).predict(packed)
    assert torch.get_num_threads() == before
    one = compiled["Z"].predict(packed)
    assert (many.flips == one.flips).all()
    np.testing.assert_allclose(many.doubt, one.doubt, rtol=1e-4)


@pytest.mark.parametrize(
    ("detectors", "message"),
    [
        (np.zeros((3, 53), dtype=np.uint8), r"shape \(shots, 54\).* got uint8 of shape \(3, 53\)"),
        (np.zeros((3, 431), dtype=bool), r"bool of shape \(shots, 432\); got bool of shape \(3, 431\)"),
        (np.zeros((3, 432), dtype=np.uint8), "got uint8 of shape .*: unpacked shots must be bool"),
        (np.zeros((3, 54), dtype=bool), "got bool of shape .*: packed shots must be uint8"),
        (np.zeros((3, 432)), "got float64 of shape"),
        (np.zeros(54, dtype=np.uint8), r"got uint8 of shape \(54,\)"),
    ],
)
def test_shots_of_the_wrong_width_or_type_are_refused(compiled, detectors, message):
    with pytest.raises(InputError, match=message):
        compiled["Z"].predict(detectors)


def test_sinter_shots_must_be_packed(compiled):
    with pytest.raises(InputError, match="bit_packed_detection_event_data must be packed, uint8, got bool"):
        compiled["Z"].decode_shots_bit_packed(bit_packed_detection_event_data=np.zeros((2, 432), dtype=bool))
    with pytest.raises(InputError, match="detectors of one shot must have 1 dimension"):
        compiled["Z"].predict_shot(np.zeros((1, 54), dtype=np.uint8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"postselect": -1.0}, r"postselect must be a probability in \[0, 1\], got -1.0"),
        ({"postselect": float("nan")}, r"postselect must be a probability in \[0, 1\], got nan"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SymdynDecoder(**settings)


def test_other_circuits_and_missing_devices_are_refused(code, dem, folder):
    other = bb_memory(bivariate_bicycle("bb288"), 0.003, rounds=1).detector_error_model()
    with pytest.raises(InputError, match="observables must be 16 for the polynomials of bb72 .* got 12"):
        SymdynDecoder(shipped()["bb72"]).compile_decoder_for_dem(dem=other)
    with pytest.raises(InputError, match="device must be one that torch has here, got 'nonsense'"):
        SymdynDecoder(folder, device="nonsense").compile_decoder_for_dem(dem=dem)
