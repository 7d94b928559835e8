"""Belief propagation by the min-sum rule on correlated sectors, and versions of it that vote."""

import numpy as np
import pytest
import stim
from scipy import sparse

from symdyn_core.errors import InputError
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.baselines.registry import make_decoder
from symdyn_qec.circuits import memory_circuit, repetition_memory
from symdyn_qec.correlated_sectors import CorrelatedSectors
from symdyn_qec.escalation import EscalatingDecoder
from symdyn_qec.mechanisms import Mechanisms
from symdyn_qec.min_sum import FEW_LANES, LANES, SWEEPS, MinSum
from symdyn_qec.min_sum_decoder import MinSumDecoder

BB = memory_circuit("bb72", p=0.003, rounds=6)
NOTHING = np.zeros((200, 0), np.uint8)


@pytest.fixture(scope="module")
def sectors():
    return CorrelatedSectors.of(RareErrors.of(BB.detector_error_model()))


@pytest.fixture(scope="module")
def decoder():
    return MinSumDecoder().compile_decoder_for_dem(dem=BB.detector_error_model())


@pytest.fixture(scope="module")
def shots():
    return BB.compile_detector_sampler(seed=4).sample(1500, separate_observables=True)


def test_every_error_is_the_sum_of_its_parts(sectors) -> None:
    found = Mechanisms.of(BB.detector_error_model())
    width = BB.num_detectors + 12
    expected = {}
    for detectors, observables, p in zip(
        found.detectors, found.observables, found.probabilities, strict=True
    ):
        row = np.zeros(width, np.uint8)
        row[detectors[detectors < BB.num_detectors]] = 1
        row[BB.num_detectors :] = observables
        expected[row.tobytes()] = p / (1 - p)
    parts = []
    for sector in (sectors.own, sectors.other):
        rows = np.zeros((len(sector.alone), width), np.uint8)
        rows[:, sector.detectors] = sector.checks.T.toarray()
        parts.append(rows)
    parts[0][:, BB.num_detectors :] = sectors.observables
    whole = np.concatenate([*parts, parts[0][sectors.pairs[:, 0]] ^ parts[1][sectors.pairs[:, 1]]])
    odds = np.concatenate([sectors.own.alone, sectors.other.alone, sectors.together])
    recovered = {row.tobytes(): value for row, value in zip(whole, odds, strict=True) if value}
    assert recovered.keys() == expected.keys()
    assert max(abs(recovered[row] - expected[row]) for row in expected) < 1e-15


def test_a_model_that_is_all_one_sector_has_no_other() -> None:
    model = stim.DetectorErrorModel("error(0.1) D0 L0\nerror(0.1) D0 D1\nerror(0.1) D1")
    sectors = CorrelatedSectors.of(RareErrors.of(model))
    assert sectors.own.detectors.tolist() == [0, 1]
    assert (len(sectors.other.detectors), len(sectors.other.alone), len(sectors.together)) == (0, 0, 0)
    assert sectors.other.checks.shape == (0, 0)


def test_on_a_tree_it_finds_the_likeliest_errors() -> None:
    """A chain of unequal errors: either these or all the others, whatever is likelier."""
    priors = np.random.default_rng(0).uniform(0.01, 0.4, size=9)
    chain = sparse.csr_array(np.eye(8, 9, dtype=np.uint8) + np.eye(8, 9, 1, dtype=np.uint8))
    errors = (np.random.default_rng(1).random((200, 9)) < 0.3).astype(np.uint8)
    plain = MinSum(CorrelatedSectors.single(chain, priors), scale=1.0, disturbance=0.0)
    found = plain.decode((errors @ chain.T.toarray() & 1).astype(np.uint8), NOTHING, range(1))
    cost = np.log((1 - priors) / priors)
    best = np.where((errors @ cost <= (1 - errors) @ cost)[:, None], errors, 1 - errors)
    assert (found.legs > 0).all()
    assert np.array_equal(found.errors[:, 0], best)


@pytest.mark.parametrize("also", [False, True])
def test_a_sector_hears_of_the_other(also) -> None:
    """Of D0 alone the first error is to blame; if D1 fires too, it is likelier the third with the last."""
    model = stim.DetectorErrorModel(
        """
        error(0.1) D0
        error(0.002) D0 D2 L0
        error(0.03) D0 D1 D2 L0
        error(0.0002) D1
        error(0.002) D2
        detector(0, 0, 0, 1) D0
        detector(0, 0, 0, 0) D1
        detector(0, 1, 0, 1) D2
        """
    )
    assert CorrelatedSectors.of(RareErrors.of(model)).own.detectors.tolist() == [0, 2]
    found = MinSumDecoder().compile_decoder_for_dem(dem=model).predict(np.array([[True, also, False]]))
    assert found.observables.tolist() == [[int(also)]]


def test_errors_explain_the_detectors_wherever_there_is_a_conclusion(sectors, shots) -> None:
    own, other = (shots[0][:, sector.detectors].astype(np.uint8) for sector in (sectors.own, sectors.other))
    found = MinSum(sectors, legs=3).decode(own, other, range(1))
    explained = (own == (sectors.own.checks @ found.errors[:, 0].T & 1).T).all(axis=1)
    assert np.array_equal(explained, found.legs[:, 0] > 0)
    assert 0.8 < explained.mean() < 1
    assert (found.legs.max(), SWEEPS) == (3, 3)


def test_what_the_other_sector_says_is_of_use(sectors, shots) -> None:
    """On one sector alone far fewer first versions are right."""
    own, other = (shots[0][:, sector.detectors].astype(np.uint8) for sector in (sectors.own, sectors.other))
    priors = sectors.own.alone + np.bincount(sectors.pairs[:, 0], sectors.together)
    alone = CorrelatedSectors.single(sectors.own.checks, priors / (1 + priors))
    nothing = np.zeros((len(own), 0), np.uint8)
    runs = [MinSum(sectors).decode(own, other, range(1)), MinSum(alone).decode(own, nothing, range(1))]
    wrong = [
        int(((run.errors[:, 0] @ sectors.observables & 1) != shots[1]).any(axis=1).sum()) for run in runs
    ]
    assert wrong[0] < 0.75 * wrong[1]


def test_a_shot_does_not_depend_on_its_neighbours(decoder, shots) -> None:
    some = shots[0][: 3 * LANES + FEW_LANES + 1]
    together = decoder.predict(some)
    alone = [decoder.predict(shot[None]) for shot in some]
    for name, field in together._asdict().items():
        assert np.array_equal(field, np.concatenate([getattr(found, name) for found in alone]))


def test_what_versions_agree_on_is_right_more_often(decoder, shots) -> None:
    detectors, observables = shots
    found = decoder.predict(detectors)
    wrong = (found.observables != observables).any(axis=1)
    agreed = found.confidence == 1
    assert np.array_equal(agreed, found.versions == 4)
    assert 0.93 < agreed.mean() < 0.999
    assert wrong[agreed].mean() < 0.005 < wrong[~agreed].mean()
    assert found.versions.max() <= 60
    assert ((found.versions == 60) | (found.confidence * found.versions > 3.5)).all()


def test_it_fails_far_less_often_than_ordered_statistics(decoder) -> None:
    detectors, observables = BB.compile_detector_sampler(seed=6).sample(6000, separate_observables=True)
    wrong = (decoder.predict(detectors).observables != observables).any(axis=1).sum()
    # 0.39 % are expected, and five standard deviations are left below BP-OSD's 1.7 %.
    assert wrong < 50


def test_only_undecided_shots_are_asked_about(shots) -> None:
    detectors, observables = shots
    escalating = make_decoder("min-sum+symdyn")
    assert escalating.below == 4 / 60
    found = escalating.compile_decoder_for_dem(dem=BB.detector_error_model()).predict(detectors)
    assert found.escalated.mean() < 0.02
    assert (found.observables != observables).any(axis=1).mean() < 0.015


def test_errors_that_mostly_happen_are_known_in_advance() -> None:
    model = stim.DetectorErrorModel("error(0.99) D0 L0\nerror(0.01) D0 D1\nerror(0.01) D1 L0")
    found = MinSumDecoder().compile_decoder_for_dem(dem=model).predict(np.array([[True, False]]))
    assert (found.observables.tolist(), found.confidence.tolist()) == ([[1]], [1.0])


def test_no_shots_get_no_answers() -> None:
    dem = repetition_memory(3, 2, 0.01).detector_error_model()
    found = MinSumDecoder().compile_decoder_for_dem(dem=dem).predict(np.zeros((0, 6), dtype=bool))
    assert (found.observables.shape, found.confidence.shape) == ((0, 1), (0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"legs": 0}, "legs must be at least 1, got 0"),
        ({"scale": 0.0}, r"scale must be in \(0, 1\], got 0.0"),
        ({"scale": float("nan")}, r"scale must be in \(0, 1\], got nan"),
        ({"disturbance": -1.0}, "disturbance must be finite and at least 0, got -1.0"),
        ({"priors": np.full(2, 0.1)}, r"priors must have shape \(3,\), got \(2,\)"),
        ({"priors": np.array([0.1, 0.2, 0.7])}, r"priors must be in \(0, 1/2\], got 0.1 to 0.7"),
        ({"priors": np.array([0.1, 0.2, 0.0])}, r"priors must be in \(0, 1/2\], got 0 to 0.2"),
    ],
    ids=["legs", "scale", "nan", "disturbance", "errors", "likely", "never"],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    settings = {"priors": np.full(3, 0.1)} | changes
    checks = sparse.csr_array([[1, 1, 0], [0, 1, 1]])
    with pytest.raises(InputError, match=message):
        MinSum(CorrelatedSectors.single(checks, settings.pop("priors")), **settings)


@pytest.mark.parametrize("name", ["members", "lead"])
def test_a_version_at_least_and_a_vote_ahead(name) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        MinSumDecoder(**{name: 0})


def test_a_first_decoder_knows_how_sure_it_is() -> None:
    unsure = EscalatingDecoder(make_decoder("vacuous"), make_decoder("vacuous"))
    with pytest.raises(InputError, match="must tell how sure it is"):
        unsure.compile_decoder_for_dem(dem=BB.detector_error_model())
    with pytest.raises(InputError, match="only .*min-sum.* know when to ask"):
        make_decoder("bposd+symdyn")
