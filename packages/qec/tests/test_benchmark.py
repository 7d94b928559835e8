import csv
import math

import numpy as np
import pytest
import sinter
import stim
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from symdyn_core.errors import DependencyError, InputError
from symdyn_qec import benchmark as module
from symdyn_qec.benchmark import Benchmark, Experiment, Result, benchmark, check_decoder, default_workers
from symdyn_qec.rates import block_to_per_logical, clopper_pearson

exactly = settings(derandomize=True, deadline=None, max_examples=100)


def result(**changes):
    fields = {
        "circuit": "a",
        "decoder": "pymatching",
        "distance": 3,
        "rounds": 3,
        "p": 0.01,
        "observables": 1,
        "shots": 1_000,
        "errors": 18,
        "discards": 0,
        "seconds": 0.002,
    }
    return Result(**{**fields, **changes})


def coin(p, name="coin"):
    """One qubit flipped with probability p; its detector tells."""
    text = f"X_ERROR({p}) 0\nM 0\nDETECTOR rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-1]"
    return Experiment(name, stim.Circuit(text))


@exactly
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_agree_with_scipy(counts):
    failures, shots = counts
    expected = stats.binomtest(failures, shots).proportion_ci(0.95, method="exact")
    assert clopper_pearson(failures, shots) == pytest.approx((expected.low, expected.high), abs=1e-9)


@exactly
@given(st.integers(1, 12), st.integers(1, 20), st.floats(1e-6, 0.4))
def test_conversion_inverts_the_chain_of_rounds(k, rounds, p):
    flipped = 0.0
    for _ in range(rounds):
        flipped = flipped * (1 - p) + (1 - flipped) * p
    block = 1 - math.prod([1 - flipped] * k)
    # Near saturation the inverse amplifies rounding by the inverse of what is left of the signal.
    tolerance = 1e-12 / (1 - 2 * flipped)
    assert block_to_per_logical(block, k, rounds) == pytest.approx(p, abs=tolerance)


def test_worse_than_guessing_is_guessing():
    assert block_to_per_logical(0.7, k=1, rounds=5) == 0.5
    assert block_to_per_logical(1.0, k=12, rounds=6) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clopper_pearson(3, 2), "failures must be in .*, got 3 of 2"),
        (lambda: clopper_pearson(0, 0), "shots at least 1, got 0 of 0"),
        (lambda: clopper_pearson(0, 5, confidence=1.0), r"confidence must be in \(0, 1\), got 1.0"),
        (lambda: block_to_per_logical(1.5, 1, 1), r"rate must be in \[0, 1\], got 1.5"),
        (lambda: block_to_per_logical(0.5, 0, 1), "at least 1, got 0 and 1"),
    ],
)
def test_impossible_counts_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_discarded_shots_count_as_failures():
    lenient, honest = result(errors=18), result(errors=8, discards=10)
    assert honest.error_rate == lenient.error_rate == 0.018
    assert honest.interval == lenient.interval


def test_a_row_knows_its_rates():
    row = result().to_dict()
    assert row["low"] < row["error_rate"] < row["high"]
    assert row["per_round"] == block_to_per_logical(0.018, 1, 3)
    assert row["per_round_low"] < row["per_round"] < row["per_round_high"]
    assert row["microseconds_per_shot"] == pytest.approx(2.0)
    assert result(rounds=None).per_round is None


def test_the_frame_has_one_row_per_circuit_and_decoder():
    frame = Benchmark((result(), result(decoder="vacuous", rounds=None))).to_frame()
    assert list(frame["decoder"]) == ["pymatching", "vacuous"]
    assert np.isnan(frame["per_round"][1])


def test_decoders_do_what_their_names_say():
    """Matching sees every flip and corrects it, not decoding corrects none of the many there are."""
    cases = [coin(0.9), coin(0.0, "quiet")]
    found = benchmark(cases, decoders=["vacuous", "pymatching"], shots=500, workers=1)
    assert [(r.circuit, r.decoder, r.shots) for r in found.results] == [
        ("coin", "vacuous", 500),
        ("coin", "pymatching", 500),
        ("quiet", "vacuous", 500),
        ("quiet", "pymatching", 500),
    ]
    undecoded, *others = found.results
    assert undecoded.errors > 250
    assert [r.errors for r in others] == [0, 0, 0]
    assert all(r.seconds > 0 for r in found.results)


def test_what_a_decoder_says_in_its_worker_reaches_the_caller():
    """Matching gives a certain error an infinite weight, and refuses."""
    with pytest.raises(InputError, match="^decoding failed: maximum absolute edge weight .* exceeded"):
        benchmark([coin(1.0)], shots=10, workers=1)


def test_error_rates_agree_with_decoding_by_hand():
    """The same decoder on other shots, without sinter: the difference is a matter of chance."""
    import pymatching

    case = Experiment.generate("surface", p=0.01, distance=3)
    shots = 40_000
    dem = case.circuit.detector_error_model(decompose_errors=True)
    sampler = case.circuit.compile_detector_sampler(seed=1)
    detectors, observables = sampler.sample(shots, separate_observables=True)
    predicted = pymatching.Matching.from_detector_error_model(dem).decode_batch(detectors)
    by_hand = (predicted != observables).any(axis=1).mean()
    ours = benchmark([case], shots=shots, workers=1).results[0].error_rate
    # Seven standard deviations: a failure by chance is less likely than one in 10^11.
    assert abs(ours - by_hand) < 7 * math.sqrt(2 * by_hand / shots)


def test_work_stops_after_enough_errors():
    found = benchmark([coin(0.5)], decoders=["vacuous"], shots=10_000_000, max_errors=10, workers=1)
    assert found.results[0].errors >= 10
    assert found.results[0].shots < 10_000_000


def test_counts_are_kept_and_added_to(tmp_path):
    path = tmp_path / "deep" / "counts.csv"
    first = benchmark([coin(0.5)], ["vacuous"], shots=300, workers=1, resume=path).results[0]
    done = []
    again = benchmark([coin(0.5)], ["vacuous"], shots=300, workers=1, resume=path, progress=done.append)
    assert (again.results[0].shots, again.results[0].errors) == (first.shots, first.errors)
    assert sum(done) == 300
    more = benchmark([coin(0.5)], ["vacuous"], shots=400, workers=1, resume=path).results[0]
    assert more.shots == 400
    assert first.errors <= more.errors <= first.errors + 100
    # sinter itself reads the file, and counts of other circuits in it are left alone.
    (stored,) = sinter.read_stats_from_csv_files(path)
    assert (stored.shots, stored.errors) == (400, more.errors)
    other = benchmark([coin(0.0, "other")], ["vacuous"], shots=10, workers=1, resume=path)
    assert [r.circuit for r in other.results] == ["other"]


def test_generated_experiments_say_what_they_are():
    case = Experiment.generate("surface", p=0.01, distance=5)
    assert (case.name, case.rounds) == ("surface d=5 r=5 p=0.01", 5)
    assert Experiment.generate("bb72", p=0.001, rounds=2).name == "bb72 r=2 p=0.001"
    with pytest.raises(InputError, match="code bb72 needs a number of rounds"):
        Experiment.generate("bb72", p=0.001)


@pytest.mark.parametrize(
    ("name", "rounds", "expected"),
    [
        ("d=5,r=15,p=0.002.stim", None, (5, 15, 0.002)),
        ("d=5,r=15,p=0.002.stim", 7, (5, 7, 0.002)),
        ("noise=si1000,p=1e-3,r=4.stim", None, (None, 4, 0.001)),
        ("d=five,xr=3.stim", None, (None, None, None)),
        ("memory.stim", None, (None, None, None)),
        ("d=-3,r=0,p=nan.stim", None, (None, None, None)),
    ],
)
def test_file_names_in_sinters_style_are_understood(tmp_path, name, rounds, expected):
    (tmp_path / name).write_text(str(coin(0.1).circuit))
    case = Experiment.read(tmp_path / name, rounds)
    assert (case.distance, case.rounds, case.p) == expected
    assert case.name == str(tmp_path / name)


def test_rounds_of_a_file_are_checked_before_the_work(tmp_path):
    (tmp_path / "a.stim").write_text(str(coin(0.1).circuit))
    with pytest.raises(InputError, match="rounds must be at least 1, got 0"):
        Experiment.read(tmp_path / "a.stim", rounds=0)


def test_small_jobs_get_one_worker(monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    assert [default_workers(n) for n in (1, 100_000, 100_001, 10**9)] == [1, 1, 2, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiments": []}, "expected at least one circuit"),
        ({"decoders": []}, "at least one circuit and one decoder"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"max_errors": 0}, "max_errors must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"decoders": ["pymatchin"]}, "unknown decoder 'pymatchin'; did you mean pymatching"),
        ({"experiments": [coin(0.1), coin(0.1)]}, "every circuit must be given once, got coin, coin"),
        ({"resume": "/proc/none/counts.csv"}, "cannot write to /proc/none/counts.csv"),
        ({"resume": "/proc/counts.csv"}, "cannot write to /proc/counts.csv"),
    ],
)
def test_bad_input_is_named_before_any_work(settings, message):
    with pytest.raises(InputError, match=message):
        benchmark(**{"experiments": [coin(0.1)], **settings})


def test_a_bicycle_code_is_refused_by_matching_only():
    case = Experiment.generate("bb72", p=0.001, rounds=2)
    with pytest.raises(InputError, match="cannot be decoded by matching"):
        benchmark([case], decoders=["pymatching"])
    found = benchmark([case], decoders=["vacuous"], shots=100, workers=1).results[0]
    assert found.observables == 12


def test_a_file_that_is_not_counts_is_refused(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="notes.csv does not hold counts in sinter's format"):
        benchmark([coin(0.1)], resume=path)
    assert path.read_text() == "a,b\n1,2\n"
    path.write_text("")
    with pytest.raises(InputError, match="notes.csv does not hold counts in sinter's format: it is empty"):
        benchmark([coin(0.1)], resume=path)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="fusion_blossom needs the package fusion-blossom"):
        check_decoder("fusion_blossom")
    assert check_decoder("vacuous").module is None


def test_our_decoders_are_sinters():
    assert set(module.DECODERS) <= set(sinter.BUILT_IN_DECODERS)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ([{"p": 0.01}, {"p": 0.02}], "physical error rate p"),
        ([{"distance": 3}, {"distance": 5}], "code distance"),
        ([{"p": None}, {"p": 0.01, "circuit": "b"}], ""),
    ],
)
def test_figures_choose_their_abscissa(changes, label):
    axes = Benchmark(tuple(result(**change) for change in changes)).figure().axes[0]
    assert axes.get_xlabel() == label
    assert axes.get_yscale() == "log"
    if not label:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]


def test_figures_show_an_upper_end_where_nothing_failed():
    clean = result(errors=0)
    axes = Benchmark((clean,)).figure().axes[0]
    heights = [float(y) for line in axes.lines for y in np.atleast_1d(line.get_ydata())]
    assert clean.interval[1] in heights
    assert "no failure" in axes.get_legend().get_title().get_text()


def test_the_csv_can_be_read_back():
    text = Benchmark((result(circuit="d=3, r=3"),)).to_csv()
    (row,) = csv.DictReader(text.splitlines())
    assert row["circuit"] == "d=3, r=3"
    assert float(row["error_rate"]) == 0.018
