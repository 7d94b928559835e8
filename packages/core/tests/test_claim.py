import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symdyn_core.estimate import UNDEFINED, Estimate, proportion
from symdyn_core.study import Claim, ClaimResult, Rival, Verdict, judge

finite = st.floats(-1e6, 1e6)
widths = st.floats(0, 1e6)


@given(finite, widths, finite, st.floats(1e-3, 1e6))
def test_exactly_one_of_three_verdicts_holds(centre, width, prediction, margin):
    estimate = Estimate(centre, centre - width, centre + width, 8)
    inside = prediction - margin <= estimate.low and estimate.high <= prediction + margin
    outside = estimate.high < prediction - margin or estimate.low > prediction + margin
    verdict = judge(estimate, prediction, margin)
    assert (verdict is Verdict.CONFIRMED) == inside
    assert (verdict is Verdict.REFUTED) == outside
    assert not (inside and outside)


@given(finite, widths, finite, st.floats(1e-3, 1e3), st.floats(0, 1e3))
def test_a_wider_margin_never_turns_confirmed_into_refuted(centre, width, prediction, margin, more):
    estimate = Estimate(centre, centre - width, centre + width, 8)
    order = [Verdict.REFUTED, Verdict.INCONCLUSIVE, Verdict.CONFIRMED]
    narrow, wide = judge(estimate, prediction, margin), judge(estimate, prediction, margin + more)
    assert order.index(wide) >= order.index(narrow)


@given(finite, widths, finite, st.floats(0, 1e3))
def test_more_repetitions_cannot_swap_the_extremes(centre, width, prediction, margin):
    wide = judge(Estimate(centre, centre - width, centre + width, 8), prediction, margin)
    narrow = judge(Estimate(centre, centre - width / 2, centre + width / 2, 32), prediction, margin)
    assert {wide, narrow} != {Verdict.CONFIRMED, Verdict.REFUTED}


@pytest.mark.parametrize(
    ("estimate", "prediction"),
    [(UNDEFINED, 1.0), (Estimate(1, 0, 2, 8), math.nan), (Estimate(1, 0, 2, 8), math.inf)],
)
def test_what_is_not_a_number_is_an_error(estimate, prediction):
    assert judge(estimate, prediction, 1.0) is Verdict.ERROR


def test_one_repetition_is_inconclusive():
    result = ClaimResult.of(claim(), None, [1], [2.0])
    assert result.verdict is Verdict.INCONCLUSIVE
    assert not result.rival_excluded


def test_an_exact_claim_has_margin_zero():
    exact = claim(predict=lambda config: 12.0, margin=0.0)
    assert ClaimResult.of(exact, None, [1, 2], [12, 12]).verdict is Verdict.CONFIRMED
    assert ClaimResult.of(exact, None, [1, 2], [12, 13]).verdict is not Verdict.CONFIRMED


def test_predictions_per_repetition_are_compared_pair_by_pair():
    paired = claim(
        predict=lambda config, seed: 10.0 * seed, rival=lambda config, seed: 20.0 * seed, margin=1.0
    )
    result = ClaimResult.of(paired, None, [1, 2, 3], [10.1, 20.0, 29.9])
    assert result.predicted == 20.0
    assert result.verdict is Verdict.CONFIRMED
    assert result.rival_excluded is False  # the rival's gaps scatter too much to say
    assert ClaimResult.of(paired, None, [1, 2, 3], [10.1, 10.0, 9.9]).verdict is not Verdict.CONFIRMED


def test_a_default_argument_is_not_a_seed():
    assert not claim(predict=lambda config, factor=2.0: factor).per_repetition


def test_a_relative_margin_scales_with_the_prediction():
    relative = claim(predict=lambda config: 100.0, margin=0.1, relative=True)
    assert ClaimResult.of(relative, None, [1, 2], [95.0, 96.0]).margin == pytest.approx(10.0)


def test_the_rival_in_the_place_of_theory_is_refuted():
    wrong = claim().with_rival_as_prediction()
    assert ClaimResult.of(wrong, None, [1, 2, 3], [2.0, 2.01, 1.99]).verdict is Verdict.REFUTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "two words"}, "lower_snake_case"),
        ({"margin": -1.0}, "finite and >= 0, got -1"),
        ({"margin": math.inf}, "finite and >= 0"),
        ({"because": " "}, "reason for the margin"),
        ({"predict": lambda config, seed: 1.0, "estimator": proportion}, "estimator must be `mean`"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        claim(**change)


def claim(rival=lambda config: 3.0, **change):
    fields = {
        "name": "speed",
        "formula": "v = 2",
        "predict": lambda config: 2.0,
        "margin": 0.2,
        "because": "finite step",
        "rival": Rival("three", rival),
    }
    return Claim(**{**fields, **change})
