"""Belief propagation by the min-sum rule, and versions of it that have to agree."""

import numpy as np
import pytest
import stim
from scipy import sparse

from symdyn_core.errors import InputError
from symdyn_qec.baselines.problem import DecodingProblem
from symdyn_qec.baselines.rare import RareErrors
from symdyn_qec.baselines.registry import make_decoder
from symdyn_qec.circuits import memory_circuit, repetition_memory
from symdyn_qec.escalation import EscalatingDecoder
from symdyn_qec.min_sum import LANES, MinSum
from symdyn_qec.min_sum_decoder import MinSumDecoder

BB = memory_circuit("bb72", p=0.003, rounds=6)


@pytest.fixture(scope="module")
def shots():
    return BB.compile_detector_sampler(seed=4).sample(1500, separate_observables=True)


def test_on_a_tree_it_finds_the_likeliest_errors() -> None:
    """A chain of unequal errors: either these or all the others, whatever is likelier."""
    priors = np.random.default_rng(0).uniform(0.01, 0.4, size=9)
    chain = sparse.csr_array(np.eye(8, 9, dtype=np.uint8) + np.eye(8, 9, 1, dtype=np.uint8))
    errors = (np.random.default_rng(1).random((200, 9)) < 0.3).astype(np.uint8)
    found = MinSum(chain, priors[None], [1.0], rounds=20).decode(
        (errors @ chain.T.toarray() & 1).astype(np.uint8)
    )
    cost = np.log((1 - priors) / priors)
    best = np.where((errors @ cost <= (1 - errors) @ cost)[:, None], errors, 1 - errors)
    assert (found.rounds > 0).all()
    assert np.array_equal(found.errors[:, 0], best)


def test_errors_explain_the_detectors_wherever_there_is_a_conclusion(shots) -> None:
    problem = DecodingProblem.of(RareErrors.of(BB.detector_error_model()), one_sector=True)
    syndromes = shots[0][:, problem.detectors].astype(np.uint8)
    found = MinSum(problem.checks, problem.priors[None], [0.9]).decode(syndromes)
    explained = (syndromes == (problem.checks @ found.errors[:, 0].T & 1).T).all(axis=1)
    assert np.array_equal(explained, found.rounds[:, 0] > 0)
    assert 0.8 < explained.mean() < 1
    assert found.rounds.max() <= 15


def test_a_shot_does_not_depend_on_its_neighbours(shots) -> None:
    decoder = MinSumDecoder().compile_decoder_for_dem(dem=BB.detector_error_model())
    some = shots[0][: 3 * LANES + 1]
    together = decoder.predict(some)
    alone = [decoder.predict(shot[None]) for shot in some]
    assert np.array_equal(together.observables, np.concatenate([found.observables for found in alone]))
    assert np.array_equal(together.confidence, np.concatenate([found.confidence for found in alone]))


def test_what_versions_agree_on_is_right_more_often(shots) -> None:
    detectors, observables = shots
    found = MinSumDecoder().compile_decoder_for_dem(dem=BB.detector_error_model()).predict(detectors)
    wrong = (found.observables != observables).any(axis=1)
    agreed = found.confidence == 1
    assert set(np.round(5 * found.confidence).astype(int)) <= set(range(6))
    assert 0.7 < agreed.mean() < 0.95
    assert wrong[agreed].mean() < 0.01 < wrong[~agreed].mean()


def test_together_with_a_network_few_shots_are_slow_and_few_fail(shots) -> None:
    detectors, observables = shots
    decoder = make_decoder("min-sum+symdyn").compile_decoder_for_dem(dem=BB.detector_error_model())
    found = decoder.predict(detectors)
    assert found.escalated.mean() < 0.3
    assert (found.observables != observables).any(axis=1).mean() < 0.02


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
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"scales": [0.0]}, r"scales must be in \(0, 1\], .* got \[0.0\]"),
        ({"scales": [float("nan")]}, r"scales must be in \(0, 1\], .* got \[nan\]"),
        ({"priors": np.full((1, 2), 0.1)}, r"priors must have shape .* = \(1, 3\), got \(1, 2\)"),
        ({"priors": np.full((2, 3), 0.1)}, r"priors must have shape .* = \(1, 3\), got \(2, 3\)"),
        ({"priors": np.array([[0.1, 0.2, 0.7]])}, r"priors must be in \(0, 1/2\], got 0.1 to 0.7"),
        ({"priors": np.array([[0.1, 0.2, 0.0]])}, r"priors must be in \(0, 1/2\], got 0 to 0.2"),
    ],
    ids=["rounds", "scale", "nan", "errors", "versions", "likely", "never"],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    settings = {
        "checks": sparse.csr_array([[1, 1, 0], [0, 1, 1]]),
        "priors": np.full((1, 3), 0.1),
        "scales": [0.9],
    }
    with pytest.raises(InputError, match=message):
        MinSum(**(settings | changes))


def test_a_version_at_least_and_a_first_decoder_that_knows_how_sure_it_is() -> None:
    with pytest.raises(InputError, match="members must be at least 1, got 0"):
        MinSumDecoder(members=0)
    unsure = EscalatingDecoder(make_decoder("vacuous"), make_decoder("vacuous"))
    with pytest.raises(InputError, match="must tell how sure it is"):
        unsure.compile_decoder_for_dem(dem=BB.detector_error_model())
    with pytest.raises(InputError, match="only .*min-sum.* know when to ask"):
        make_decoder("bposd+symdyn")
