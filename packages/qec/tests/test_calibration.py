"""Confidence: fitted where the truth is known, stated as it is, and never made up."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_qec.calibration import (
    Calibration,
    draw_reliability,
    expected_calibration_error,
    reliability,
)


def made_up(calibration, shots, seed=0):
    """Shots whose answers are wrong with the probability that a calibration states."""
    generator = numpy_generator(seed, "shots")
    doubt = generator.exponential(2.0, shots)
    weight = np.where(generator.random(shots) < 0.7, 0.0, generator.exponential(3.0, shots))
    wrong = generator.random(shots) > calibration.confidence(doubt, weight)
    return doubt, weight, wrong


def test_the_true_calibration_is_found():
    truth = Calibration(offset=-3.0, doubt=1.5, weight=0.4)
    found = Calibration.fit(*made_up(truth, 60_000))
    # Standard errors, from the information matrix of so many shots, are 0.03, 0.03 and 0.01.
    assert found.offset == pytest.approx(truth.offset, abs=0.15)
    assert found.doubt == pytest.approx(truth.doubt, abs=0.15)
    assert found.weight == pytest.approx(truth.weight, abs=0.05)


def test_a_wrong_temperature_is_seen():
    truth = Calibration(offset=-3.0, doubt=1.5, weight=0.4)
    doubt, weight, wrong = made_up(truth, 20_000)
    right = ~wrong
    for rival in (Calibration(-1.5, 0.75, 0.2), Calibration(-3.0, 0.0, 0.4), Calibration(-5.0, 1.5, 0.4)):
        error = expected_calibration_error(rival.confidence(doubt, weight), right)
        assert error > 5 * expected_calibration_error(truth.confidence(doubt, weight), right)
    outside = sum(
        not low <= 1 - found.expected <= high
        for found in reliability(truth.confidence(doubt, weight), right)
        for low, high in [found.wrong_interval]
    )
    assert outside <= 2  # of ten intervals that each hold the truth 19 times in 20


@pytest.mark.parametrize("wrong", [False, True])
def test_equal_answers_give_no_certainty(wrong):
    found = Calibration.fit([0.1, 1.0, 2.0], [0.0, 0.0, 3.0], [wrong] * 3)
    confidence = found.confidence([0.0, 0.5, 50.0], [0.0, 1.0, 40.0])
    assert ((confidence > 0) & (confidence < 1)).all()


@settings(deadline=None, max_examples=30)
@given(doubts=st.lists(st.floats(0, 20), min_size=2, max_size=8), weight=st.floats(0, 20))
def test_more_doubt_is_never_more_confidence(doubts, weight):
    calibration = Calibration(-4.0, 1.2, 0.3)
    ordered = np.sort(doubts)
    assert (np.diff(calibration.confidence(ordered, np.full(len(ordered), weight))) <= 0).all()
    assert calibration.confidence([1.0], [weight])[0] <= calibration.confidence([1.0], [0.0])[0]


def test_bins_hold_all_shots_and_about_equal_shares_of_the_expected_failures():
    doubt, weight, wrong = made_up(Calibration(-3.0, 1.5, 0.4), 5_000)
    confidence = Calibration(-3.0, 1.5, 0.4).confidence(doubt, weight)
    bins = reliability(confidence, ~wrong, bins=5)
    assert sum(found.shots for found in bins) == 5_000
    assert sum(found.right for found in bins) == (~wrong).sum()
    shares = [found.shots * (1 - found.expected) for found in bins]
    assert max(shares) - min(shares) < 1.5
    assert [found.expected for found in bins] == sorted(found.expected for found in bins)


def test_the_error_is_the_mean_distance():
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == 0
    assert expected_calibration_error([1.0] * 4, [True, True, True, False]) == 0.25


def test_json_there_and_back():
    calibration = Calibration(-4.0, 1.25, 0.5)
    assert Calibration.from_json(calibration.to_json()) == calibration
    for fields in ({"offset": 1.0, "doubt": 2.0}, {**calibration.to_json(), "weight": math.nan}, [1, 2, 3]):
        with pytest.raises(
            InputError, match="calibration must have the finite numbers offset, doubt, weight"
        ):
            Calibration.from_json(fields)


@pytest.mark.parametrize(
    ("confidence", "right", "bins", "message"),
    [
        ([], [], 1, r"got shapes \(0,\)"),
        ([0.5], [True, False], 1, r"got shapes \(1,\) and \(2,\)"),
        ([0.5], [True], 0, "0 bins"),
        ([1.5], [True], 1, r"confidence must be in \[0, 1\]"),
        ([math.nan], [True], 1, r"confidence must be in \[0, 1\]"),
    ],
)
def test_what_makes_no_sense_is_refused(confidence, right, bins, message):
    with pytest.raises(InputError, match=message):
        reliability(confidence, right, bins)


@pytest.mark.parametrize(("doubt", "wrong"), [([], []), ([1.0], [True, False])])
def test_a_fit_needs_shots_and_their_answers(doubt, wrong):
    with pytest.raises(InputError, match="expected as many doubts and weights as answers"):
        Calibration.fit(doubt, doubt, wrong)


def test_the_figure_shows_every_bin():
    bins = reliability([0.9] * 10 + [0.5] * 4, [True] * 10 + [False] * 3 + [True])
    (axes,) = draw_reliability(bins).axes
    points = axes.containers[0].lines[0].get_xdata()
    np.testing.assert_allclose(points, [1 - found.expected for found in bins])
