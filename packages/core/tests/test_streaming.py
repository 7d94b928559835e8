"""Statistics of streams: the same as of the whole sample, whatever the batches and their order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symdyn_core.dynamics.streaming import QuantileSketch, StreamingMoments, kaplan_meier
from symdyn_core.errors import InputError


def stream(seed: int, n: int, k: int) -> np.ndarray:
    """Numbers of many magnitudes and both signs, some of them zero."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((n, k)) * np.exp(3 * random.standard_normal((n, k)))
    values[random.random((n, k)) < 0.1] = 0.0
    return values


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5), st.floats(0, 0.9))
def test_moments_are_those_of_the_sample(seed, records, streams, missing):
    random = np.random.default_rng(seed)
    values = stream(seed, records * streams, 3).reshape(records, streams, 3)
    kept = random.random((records, streams)) >= missing
    chosen = random.random(streams) < 0.7
    full, diagonal = StreamingMoments(streams, 3), StreamingMoments(streams, 3, full=False)
    for row, there in zip(values, kept, strict=True):
        full.update(row, there)
        diagonal.update(row, there)
    sample = values[kept & chosen]
    count, mean, covariance = full.pooled(chosen)
    assert count == len(sample)
    scale = np.abs(values).max()
    if count > 1:
        np.testing.assert_allclose(mean, sample.mean(axis=0), rtol=1e-10, atol=1e-12 * scale)
        np.testing.assert_allclose(covariance, np.cov(sample.T), rtol=1e-10, atol=1e-12 * scale**2)
        variance = sample.var(axis=0, ddof=1)
        np.testing.assert_allclose(diagonal.pooled(chosen)[2], variance, rtol=1e-10, atol=1e-12 * scale**2)
    for place, there in enumerate(kept.T):
        if there.any():
            expected = values[there, place].mean(axis=0)
            np.testing.assert_allclose(full.means[place], expected, rtol=1e-10, atol=1e-12 * scale)
        else:
            assert np.isnan(full.means[place]).all()


def test_a_stream_that_overflows_can_be_left_out():
    moments = StreamingMoments(2, 1)
    for number in (1.0, 1e200, 2.0, -1e308):
        moments.update(np.array([[number], [min(abs(number), 3.0)]]))
    assert not np.isfinite(moments.pooled(np.array([True, True]))[2]).all()
    assert moments.pooled(np.array([False, True]))[0] == 4
    assert moments.pooled(np.array([False, True]))[1].item() == 2.25


def test_moments_do_not_cancel():
    values = 1e9 + np.random.default_rng(0).standard_normal((1000, 1))
    moments = StreamingMoments(10, 1)
    for piece in np.split(values, 100):
        moments.update(piece)
    naive = (values**2).mean() - values.mean() ** 2
    assert abs(moments.pooled(np.full(10, True))[2].item() - values.var(ddof=1)) < 1e-6
    assert abs(naive - values.var()) > 1  # the rival formula


@given(st.integers(0, 10**6), st.integers(1, 300), st.floats(0, 1), st.sampled_from([1e-3, 0.01, 0.2]))
def test_quantiles_are_within_their_stated_error(seed, n, level, accuracy):
    values = stream(seed, n, 2)
    sketch = QuantileSketch(2, accuracy)
    for piece in np.array_split(values, 3):
        sketch.update(piece)
    exact = np.quantile(values, level, axis=0, method="lower")
    # Rounding may move level * (n - 1) across an integer: either neighbour is the quantile then.
    position = level * (n - 1)
    ordered = np.sort(values, axis=0)
    near = ordered[max(0, round(position) - 1) : round(position) + 2]
    tolerance = accuracy * (1 + 1e-9)
    found = sketch.quantile(level)
    if abs(position - round(position)) > 1e-9:
        assert (np.abs(found - exact) <= tolerance * np.abs(exact)).all()
    else:
        assert (np.abs(found - near) <= tolerance * np.abs(near)).any(axis=0).all()


def test_the_sketch_does_not_depend_on_the_order():
    values = stream(1, 500, 2)
    forward, backward = QuantileSketch(2), QuantileSketch(2)
    for row in values:
        forward.update(row[None])
    backward.update(values[::-1])
    first, second = forward.state(), backward.state()
    assert all((first[key] == second[key]).all() for key in first)


def test_the_sketch_stays_as_large_as_its_range():
    random = np.random.default_rng(0)
    sketch = QuantileSketch(1)
    sketch.update(np.array([[1e-3], [1e3]]))
    size = sketch.state()["bins"].size
    for _ in range(200):
        sketch.update(random.uniform(1e-3, 1e3, (1000, 1)))
    assert sketch.state()["bins"].size == size
    assert size <= 2 * (np.log(1e6) / np.log(1.001 / 0.999) + 2)


def test_nothing_seen_is_nan():
    count, mean, covariance = StreamingMoments(1, 2).pooled(np.array([True]))
    assert count == 0
    assert np.isnan(mean).all()
    assert np.isnan(covariance).all()
    assert np.isnan(QuantileSketch(2).quantile(0.5)).all()


def test_survival_without_censoring_is_the_fraction():
    passed = np.array([3, -1, 0, 7, 3])
    steps = np.arange(10)
    plain = [np.mean((passed < 0) | (passed > step)) for step in steps]
    np.testing.assert_allclose(kaplan_meier(passed, np.full(5, -1), steps), plain, rtol=1e-12)


def test_survival_corrects_for_those_who_left():
    random = np.random.default_rng(0)
    death, leave = random.geometric(0.02, 20_000), random.geometric(0.03, 20_000)
    seen = death <= leave
    curve = kaplan_meier(np.where(seen, death, -1), np.where(seen, -1, leave), 30)
    truth = 0.98**30
    assert abs(curve - truth) < 0.02  # five standard errors
    assert abs(np.mean(~seen | (death > 30)) - truth) > 0.05  # counting those who left as survivors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamingMoments(1, 0), "streams and size must be at least 1, got 1 and 0"),
        (lambda: QuantileSketch(0), "size must be at least 1, got 0"),
        (lambda: QuantileSketch(1, accuracy=1.0), "accuracy must be in (0, 1), got 1.0"),
        (lambda: QuantileSketch(1, smallest=0.0), "smallest must be finite and above 0, got 0.0"),
        (lambda: QuantileSketch(1).quantile(1.5), "level must be in [0, 1], got 1.5"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message
