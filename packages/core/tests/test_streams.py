"""Random numbers for compiled loops: the generators themselves, their laws, and their independence."""

import numpy as np
import pytest
from scipy import stats

from symdyn_core.dynamics import streams

MASK = 2**64 - 1


def splitmix(seed, place):
    """SplitMix64's output number ``place``, as its authors print it."""
    z = (seed + place * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def xoshiro(state, count):
    """xoshiro256++, as its authors print it."""

    def rotated(x, k):
        return ((x << k) | (x >> (64 - k))) & MASK

    s, numbers = list(state), []
    for _ in range(count):
        numbers.append((rotated((s[0] + s[3]) & MASK, 23) + s[0]) & MASK)
        t = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotated(s[3], 45)
    return numbers


def fill(kind, *, seed=3, replicas=8, numbers=125_000, columns=1):
    out = np.empty((replicas, numbers, columns))
    states = streams.stream_states(seed, replicas, columns)
    for column in range(columns):
        getattr(streams, f"fill_{kind}")(states, column, out)
    return out


def test_the_published_sequence_of_splitmix():
    # First outputs of the reference code for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix(1234567, place) for place in range(1, 5)] == expected
    assert streams.stream_states(1234567, 1, 1)[0, 0].tolist() == expected


def test_streams_are_the_published_generator():
    states = streams.stream_states(5, 3, 2)
    place = 4 * ((1 << 40) + 2)
    assert states[2, 1].tolist() == [splitmix(5, place + word) for word in range(1, 5)]
    bits = xoshiro(states[2, 1].tolist(), 100)
    uniform, sign = (fill(kind, seed=5, replicas=3, numbers=100, columns=2) for kind in ("uniform", "sign"))
    assert uniform[2, :, 1].tolist() == [(word >> 11) / 2**53 for word in bits]
    assert sign[2, :, 1].tolist() == [1.0 if word >> 63 else -1.0 for word in bits]


def test_a_stream_goes_on_where_it_stopped():
    whole = fill("normal", replicas=2, numbers=1000)
    states, parts = streams.stream_states(3, 2, 1), np.empty((2, 1000, 1))
    for first, last in ((0, 1), (1, 700), (700, 1000)):
        part = np.empty((2, last - first, 1))
        streams.fill_normal(states, 0, part)
        parts[:, first:last] = part
    assert (whole == parts).all()


def test_normal_numbers_are_normal():
    numbers = fill("normal").ravel()
    assert stats.kstest(numbers, "norm").pvalue > 0.01
    n = numbers.size
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        assert abs((numbers**power).mean() - moment) < 4 * np.sqrt(spread / n), power


@pytest.mark.parametrize("edge", [0.27, 1.0, 3.0, streams.TAIL, 4.2])
def test_both_tails_of_normal_numbers(edge):
    # The tail beyond the last layer has a code path of its own, and so has the innermost layer.
    numbers = fill("normal", seed=8, numbers=250_000).ravel()
    for count in ((numbers > edge).sum(), (numbers < -edge).sum()):
        assert stats.binomtest(int(count), numbers.size, stats.norm.sf(edge)).pvalue > 1e-3


def test_uniform_numbers_and_signs():
    uniform, sign = fill("uniform").ravel(), fill("sign").ravel()
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert set(np.unique(sign)) == {-1.0, 1.0}
    assert abs(sign.mean()) < 4 / np.sqrt(sign.size)


@pytest.mark.parametrize("kind", ["normal", "sign"])
def test_neighbouring_streams_and_numbers_are_uncorrelated(kind):
    numbers = fill(kind, replicas=40, numbers=25_000, columns=2)
    rows = numbers.transpose(0, 2, 1).reshape(80, -1)
    limit = 4.75 / np.sqrt(rows.shape[1])  # the largest of 6400 correlations exceeds it once in 77 sets
    together = np.corrcoef(rows) - np.eye(len(rows))
    lagged = np.corrcoef(rows[:, 1:], rows[:, :-1])[: len(rows), len(rows) :]
    assert np.abs(together).max() < limit
    assert np.abs(lagged).max() < limit


def test_sizes_of_neighbouring_normal_numbers_are_uncorrelated():
    rows = fill("normal", replicas=40, numbers=25_000)[:, :, 0] ** 2
    limit = 4.5 / np.sqrt(rows.shape[1])
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < limit
    assert np.abs(np.corrcoef(rows[:, 1:], rows[:, :-1])[:40, 40:]).max() < limit


def test_epochs_visit_every_row_once_and_in_all_orders():
    data, replicas = np.arange(4.0)[:, None], 12_000
    states = streams.stream_states(1, replicas, 1)
    order, used = np.tile(np.arange(4), (replicas, 1)), np.zeros(replicas, dtype=np.int64)
    out = np.empty((replicas, 8, 1))
    streams.fill_epochs(states, order, used, 4, data, out)
    first, second = out[:, :4, 0], out[:, 4:, 0]
    for epoch in (first, second):
        assert (np.sort(epoch, axis=1) == np.arange(4)).all()
        _, counts = np.unique(epoch, axis=0, return_counts=True)
        assert len(counts) == 24
        assert stats.chisquare(counts).pvalue > 1e-3
    pairs = np.unique(np.concatenate([first[:, :2], second[:, :2]], axis=1), axis=0, return_counts=True)[1]
    assert len(pairs) == 144
    assert stats.chisquare(pairs).pvalue > 1e-3  # the second epoch does not remember the first


def test_rows_with_replacement_are_uniform():
    data, out = np.arange(7.0)[:, None], np.empty((5, 14_000, 1))
    streams.fill_rows(streams.stream_states(1, 5, 1), data, out)
    assert stats.chisquare(np.unique(out, return_counts=True)[1]).pvalue > 1e-3
