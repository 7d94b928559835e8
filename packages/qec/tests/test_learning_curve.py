"""What the study of the learning curve measures, on networks that have not learnt anything."""

import numpy as np
import pytest
import torch

from symdyn_core.study.claim import Verdict
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.studies import learning_curve
from symdyn_qec.studies.learning_curve import STUDY, Config

CONFIG = Config(rounds=3)


@pytest.fixture(scope="module")
def code():
    return bivariate_bicycle("bb72")


@pytest.fixture(scope="module")
def test():
    return learning_curve.FreshShots(CONFIG, seed=1)


def verdict(name, values):
    (claim,) = (claim for claim in STUDY.claims if claim.name == name)
    return claim.evaluate(CONFIG, range(len(values)), values).verdict


def test_translated_shots_get_translated_odds_unless_checks_are_scattered(code, test):
    network = learning_curve.begin(CONFIG, seed=1).averaged
    assert learning_curve.measure_change(code, network, test, seed=1) < 1e-5
    learning_curve.scatter(network, torch.from_numpy(np.random.default_rng(0).permutation(code.cells)))
    change = learning_curve.measure_change(code, network, test, seed=1)
    assert change == pytest.approx(2**0.5, rel=0.25)
    assert verdict("change", [change, change + 1e-6]) is Verdict.REFUTED


def test_a_network_that_has_learnt_nothing_is_refuted(test):
    failures = [test.failures(test.odds(learning_curve.begin(CONFIG, seed).averaged)) for seed in range(4)]
    alone = test.failures_alone()
    assert verdict("against_alone", [rate / alone for rate in failures]) is Verdict.REFUTED


def test_odds_that_know_the_flips_decode_every_shot(test):
    flips = test._search.decode(np.full((len(test.syndromes), 72), -1, dtype=np.float32), test.syndromes)[0]
    assert ((flips @ bivariate_bicycle("bb72").hz.T % 2) == test.syndromes).all()
    test_of_own = learning_curve.FreshShots(CONFIG, seed=1)
    test_of_own.observables = flips @ bivariate_bicycle("bb72").logicals("Z").T % 2
    odds = np.where(flips, 3.0, -3.0).astype(np.float32)
    assert test_of_own.failures(odds) == 0
    assert test_of_own.failures_as_suggested(odds) == 0
    nobody = np.full_like(odds, -1)
    assert test_of_own.failures_as_suggested(nobody) == test_of_own.observables.any(axis=1).mean() > 0


def test_the_curve_ends_with_all_shots():
    assert learning_curve.points(Config(shots=384)) == [48, 96, 192, 384]
