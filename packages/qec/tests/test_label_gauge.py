"""The theory of the labels' rates in closed form, and what it says when labels are spoiled."""

import numpy as np
import pytest

from symdyn_core.study.claim import Verdict
from symdyn_qec import increments
from symdyn_qec.studies import label_gauge
from symdyn_qec.studies.label_gauge import STUDY, Config, Lightest

SHOTS = 16_384
CONFIG = Config(shots=SHOTS)


def verdict(name, value):
    (claim,) = (claim for claim in STUDY.claims if claim.name == name)
    return claim.evaluate(CONFIG, [0, 1], [value, value * (1 + 1e-9)]).verdict


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_rates_of_rare_faults_in_closed_form(basis):
    # A data qubit rests in 2 of 8 ticks and meets 6 gates, whose channels flip it with 8/15 p. A fault on the
    # ancilla after gate 1 .. 6 of a check leaves 5 .. 0 flips, for two data qubits per ancilla.
    p = 1e-6
    config = Config(p=p, basis=basis)
    frames = 2 * 2 / 3 + 6 * 8 / 15 + (5 + 4 + 3 + 2 + 1) * 8 / 15 / 2
    assert label_gauge.predict_frame_rate(config) / p == pytest.approx(frames, rel=1e-4)
    # Multiplied by the check 1, 2, 3, 2, 1, 0 are left; with the data qubit of the gate 0, 1, 2, 3, 2, 1. The
    # data qubit alone is flipped by gates of this kind with 4/15 p, by those of the other kind with 8/15 p.
    both = ancilla = (1 + 2 + 3 + 2 + 1) * 4 / 15 / 2
    labels = 2 * 2 / 3 + 3 * 8 / 15 + 3 * 4 / 15 + ancilla + both
    assert label_gauge.predict_label_rate(config) / p == pytest.approx(labels, rel=1e-4)


def test_the_lightest_of_a_class_is_found_among_all_products():
    checks = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 1, 1]], dtype=np.uint8)
    sets = np.random.default_rng(0).integers(0, 2, size=(32, 7), dtype=np.uint8)
    pairs = [np.array(bits) @ checks % 2 for bits in np.ndindex(2, 2, 2) if sum(bits) < 3]
    expected = np.min([(sets ^ product.astype(np.uint8)).sum(axis=1) for product in pairs], axis=0)
    assert (Lightest(checks)(sets) == expected).all()


def test_labels_without_gauge_have_the_rate_of_frames_and_are_refuted(monkeypatch):
    monkeypatch.setattr(increments, "SWEEPS", 0)
    rates, unexplained = label_gauge.measure_labels(CONFIG, seed=1)
    assert rates[1:].mean() == pytest.approx(label_gauge.predict_frame_rate(CONFIG), rel=0.03)
    assert verdict("label_rate", rates[1:].mean()) is Verdict.REFUTED
    assert unexplained == 0


def test_labels_of_ancillas_that_are_not_cleared_grow_as_predicted_and_are_refuted(monkeypatch):
    monkeypatch.setattr(increments, "SWEEPS", 0)
    monkeypatch.setattr(increments, "CLEARED_BY", {})
    rates, unexplained = label_gauge.measure_labels(CONFIG, seed=1)
    assert rates[1:] == pytest.approx(label_gauge.predict_uncleared_rates(CONFIG), rel=0.04)
    assert verdict("growth", rates[-1] / rates[1]) is Verdict.REFUTED
    assert unexplained == 0  # which is why the trap is one


def test_a_label_that_is_wrong_in_one_qubit_is_seen(monkeypatch):
    def spoil(flips, stabilizers):
        flips[0, 0, 0] ^= 1  # of the first shot of eight

    monkeypatch.setattr(increments, "fix_gauge", spoil)
    _, unexplained = label_gauge.measure_labels(CONFIG, seed=1)
    assert verdict("unexplained", unexplained) is Verdict.REFUTED
