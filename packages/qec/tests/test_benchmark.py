import csv
import io
import re
import threading
import time

import numpy as np
import pytest
import sinter
import stim

from symdyn_core.errors import DependencyError, InputError
from symdyn_qec.baselines import extra
from symdyn_qec.benchmark import Benchmark, Experiment, Result, benchmark
from symdyn_qec.benchmark_page import findings, notes, render
from symdyn_qec.comparison import shot_blocks
from symdyn_qec.custom import load_decoders
from symdyn_qec.entrant import SINGLE_SHOTS
from symdyn_qec.pairing import Paired
from symdyn_qec.timing import Timing


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


TIMING = Timing(construction=0.1, batch=2e-6, latencies=(1e-6, 3e-6, 5e-6), cores=1.0)


def coin(p=0.5, name="coin", detected=True):
    """One qubit flipped with probability p; its detector tells."""
    text = f"X_ERROR({p}) 0\nM 0\nDETECTOR rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-1]"
    return Experiment(name, stim.Circuit(text))


class Fake(sinter.Decoder, sinter.CompiledDecoder):
    """Predicts what its detectors say, up to what it is told; keeps the shots it was given."""

    def __init__(self, predict=lambda shots: shots, seconds=0.0):
        self.predict, self.seconds, self.seen = predict, seconds, []

    def compile_decoder_for_dem(self, *, dem):
        self.seen = []
        return self

    def decode_shots_bit_packed(self, *, bit_packed_detection_event_data):
        self.seen.append(bit_packed_detection_event_data.copy())
        burn(self.seconds * len(bit_packed_detection_event_data))
        return self.predict(bit_packed_detection_event_data)


def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def run(decoders, case=None, **settings):
    """Compare decoders of our own and return their rows; the first seen shots are those of the warm-up."""
    found = benchmark([case or coin()], list(decoders), custom_decoders=decoders, **settings)
    return found.results


def test_decoders_do_what_their_names_say():
    """Matching sees every flip and corrects it, not decoding corrects none of the many there are."""
    cases = [coin(0.9), coin(0.0, "quiet"), coin(1.0, "certain")]
    found = benchmark(cases, decoders=["vacuous", "pymatching"], shots=500)
    assert [(r.circuit, r.decoder, r.shots) for r in found.results] == [
        (case.name, name, 500) for case in cases for name in ("vacuous", "pymatching")
    ]
    assert found.results[0].errors > 250
    assert [r.errors for r in found.results[1:]] == [0, 0, 0, 500, 0]


def test_counts_are_those_of_decoding_by_hand():
    """The same shots decoded without us, and who fails where the other does not."""
    import pymatching

    case = Experiment.generate("surface", p=0.01, distance=3)
    shots = 5_000
    blocks = [block for block, _ in zip(shot_blocks(case, seed=3), range(5), strict=False)]
    detectors, observables = (np.concatenate(field)[:shots] for field in zip(*blocks, strict=True))
    wrong = []
    for correlated in (False, True):
        matching = pymatching.Matching.from_detector_error_model(
            case.circuit.detector_error_model(decompose_errors=True), enable_correlations=correlated
        )
        predicted = matching.decode_batch(
            detectors, bit_packed_shots=True, bit_packed_predictions=True, enable_correlations=correlated
        )
        wrong.append((predicted != observables).any(axis=1))
    first, second = benchmark([case], ["pymatching", "pymatching-correlated"], shots=shots, seed=3).results
    assert (first.errors, second.errors) == (wrong[0].sum(), wrong[1].sum())
    assert second.paired == Paired(
        "pymatching", shots, int((wrong[1] & ~wrong[0]).sum()), int((wrong[0] & ~wrong[1]).sum())
    )
    assert second.paired.only_reference > 0
    assert first.paired is None


def test_all_decoders_see_the_first_shots_of_one_stream():
    fast, slow = Fake(), Fake(seconds=0.001)
    rows = run({"fast": fast, "slow": slow}, shots=3_000, budget=0.2, seed=1)
    assert rows[0].shots == 3_000
    # 200 of them take as long as is allowed; a decoder may be a turn late, not ten.
    assert 100 <= rows[1].shots < 500
    seen = [
        np.concatenate(decoder.seen)[-row.shots :] for decoder, row in zip((fast, slow), rows, strict=True)
    ]
    assert (seen[1] == seen[0][: rows[1].shots]).all()
    assert rows[1].paired.shots == rows[1].shots
    again = Fake()
    run({"again": again}, shots=3_000, seed=1)
    assert (np.concatenate(again.seen)[-3_000:] == seen[0]).all()
    run({"again": again}, shots=3_000, seed=2)
    assert not (np.concatenate(again.seen)[-3_000:] == seen[0]).all()


def test_pairs_end_with_the_first_decoder():
    rows = run({"slow": Fake(seconds=0.001), "fast": Fake(lambda shots: shots ^ 1)}, shots=2_500, budget=0.1)
    slow, fast = rows
    assert fast.shots == fast.errors == 2_500
    assert fast.paired == Paired("slow", slow.shots, slow.shots, 0)
    assert slow.shots < 1_000


def test_work_stops_after_enough_errors():
    (row,) = run({"wrong": Fake(lambda shots: shots ^ 1)}, max_errors=10)
    assert row.shots == row.errors == 10


def test_discards_are_failures():
    def hesitate(shots):
        return np.hstack([shots ^ 1, shots])  # always wrong, discarded where the detector fires

    (row,) = run({"careful": Fake(hesitate)}, shots=1_500)
    assert 0 < row.discards < 1_500
    assert row.errors == 1_500 - row.discards
    assert row.error_rate == 1.0


def test_bits_beyond_the_observables_mean_nothing():
    (row,) = run({"noisy": Fake(lambda shots: shots | 0b1010_1010)}, shots=300)
    assert row.errors == 0


@pytest.mark.parametrize(
    "answer",
    [lambda shots: shots[:, :0], lambda shots: shots[:-1], lambda shots: shots.astype(bool)],
)
def test_answers_of_the_wrong_form_are_refused(answer):
    with pytest.raises(InputError, match="decoder odd must return packed observables, uint8 of shape"):
        run({"odd": Fake(answer)}, shots=10)


def test_making_ready_is_timed_apart():
    class Lazy(Fake):
        def compile_decoder_for_dem(self, *, dem):
            burn(0.05)
            self.ready = False
            return super().compile_decoder_for_dem(dem=dem)

        def decode_shots_bit_packed(self, *, bit_packed_detection_event_data):
            burn(0 if self.ready else 0.05)
            self.ready = True
            return super().decode_shots_bit_packed(
                bit_packed_detection_event_data=bit_packed_detection_event_data
            )

    (row,) = run({"lazy": Lazy()}, shots=1_500)
    assert 0.1 <= row.timing.construction < 1
    assert row.timing.max < 0.05
    assert row.seconds < 0.05


def test_single_shots_and_batches_are_timed_apart():
    (row,) = run({"slow": Fake(seconds=2e-5)}, shots=3_000)
    assert len(row.timing.latencies) == SINGLE_SHOTS
    assert 2e-5 <= row.timing.p50 <= row.timing.p99 <= row.timing.max
    # The overhead of a call is that of one shot there, and of many here.
    assert 2e-5 <= row.timing.batch < row.timing.mean
    assert row.seconds_per_shot == row.timing.batch
    (few,) = run({"few": Fake()}, shots=10)
    assert few.timing.batch is None
    assert few.seconds_per_shot == few.seconds / 10


def test_decoders_with_threads_are_found_out():
    class Threaded(Fake):
        def decode_shots_bit_packed(self, *, bit_packed_detection_event_data):
            helper = threading.Thread(target=burn, args=[0.004])
            helper.start()
            helper.join()
            burn(0.001)
            return bit_packed_detection_event_data

    (row,) = run({"many": Threaded()}, shots=5)
    assert row.timing.cores > 2
    (note,) = notes(Benchmark((row,)))
    assert note.startswith("many on coin used ")
    assert notes(Benchmark(tuple(run({"one": Fake(seconds=1e-3)}, shots=20)))) == []


def test_progress_goes_from_nothing_to_all():
    parts = []
    benchmark(
        [coin(), coin(0.1, "other")],
        ["a", "b"],
        shots=2_000,
        custom_decoders={"a": Fake(), "b": Fake()},
        progress=parts.append,
    )
    assert parts == sorted(parts)
    assert 0 < parts[0] < 0.01
    assert parts[-1] == 1.0


def test_a_decoder_that_cannot_work_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda module: None if module == "ldpc" else object())
    case = Experiment.generate("bb72", p=0.001, rounds=2)
    found = benchmark([case], ["pymatching", "vacuous", "bposd"], shots=200)
    matching, vacuous, bposd = found.results
    assert (matching.shots, vacuous.shots, bposd.shots) == (0, 200, 0)
    assert "bb72 r=2 p=0.001 cannot be decoded by matching" in matching.skipped
    assert "decoder bposd needs the package ldpc: pip install 'symdyn-qec[baselines]'" in bposd.skipped
    assert vacuous.paired is None  # the first decoder is not there to be compared with
    row = bposd.to_dict()
    assert row["error_rate"] is row["low"] is row["per_round"] is row["microseconds_per_shot"] is None
    assert vacuous.observables == 12


def test_no_decoder_at_all_is_an_error(monkeypatch):
    case = Experiment.generate("bb72", p=0.001, rounds=2)
    with pytest.raises(InputError, match="bb72 r=2 p=0.001 cannot be decoded by matching"):
        benchmark([case], decoders=["pymatching"])
    monkeypatch.setattr(extra, "find_spec", lambda module: None)
    with pytest.raises(DependencyError, match="decoder bposd needs the package ldpc: pip install"):
        benchmark([case], decoders=["bposd"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiments": []}, "expected at least one circuit"),
        ({"decoders": []}, "expected at least one decoder"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"budget": 0}, "budget must be a positive number of seconds, got 0"),
        ({"budget": float("nan")}, "budget must be a positive number of seconds, got nan"),
        ({"max_errors": 0}, "max_errors must be at least 1, got 0"),
        ({"decoders": ["pymatchin"]}, "unknown decoder 'pymatchin'; did you mean pymatching"),
        ({"experiments": [coin(0.1), coin(0.1)]}, "every circuit must be given once, got coin, coin"),
    ],
)
def test_bad_input_is_named_before_any_work(settings, message):
    with pytest.raises(InputError, match=message):
        benchmark(**{"experiments": [coin(0.1)], **settings})


def test_generated_experiments_say_what_they_are():
    case = Experiment.generate("surface", p=0.01, distance=5)
    assert (case.name, case.distance, case.rounds) == ("surface d=5 r=5 p=0.01", 5, 5)
    case = Experiment.generate("bb72", p=0.001, basis="X")
    assert (case.name, case.distance, case.rounds) == ("bb72 X r=6 p=0.001", 6, 6)
    assert Experiment.generate("bb72", p=0.001, rounds=2).name == "bb72 r=2 p=0.001"


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


def test_discarded_shots_count_as_failures():
    lenient, honest = result(errors=18), result(errors=8, discards=10)
    assert honest.error_rate == lenient.error_rate == 0.018
    assert honest.interval == lenient.interval


def test_a_row_knows_its_rates():
    row = result().to_dict()
    assert row["low"] < row["error_rate"] < row["high"]
    assert row["per_round_low"] < row["per_round"] < row["per_round_high"]
    assert row["microseconds_per_shot"] == pytest.approx(2.0)
    assert result(rounds=None).per_round is None


def test_the_csv_can_be_read_back():
    rows = (result(circuit="d=3, r=3"), result(decoder="vacuous", shots=0, errors=0, skipped="no"))
    first, second = csv.DictReader(Benchmark(rows).to_csv().splitlines())
    assert (first["circuit"], float(first["error_rate"])) == ("d=3, r=3", 0.018)
    assert (second["decoder"], second["error_rate"], second["skipped"]) == ("vacuous", "", "no")


def test_sinter_reads_the_counts(tmp_path):
    case = Experiment.generate("repetition", p=0.1, distance=3)
    found = benchmark([case], ["vacuous", "pymatching"], shots=300, seed=4)
    (tmp_path / "counts.csv").write_text(found.to_sinter_csv())
    stored = {stats.decoder: stats for stats in sinter.read_stats_from_csv_files(tmp_path / "counts.csv")}
    for row in found.results:
        stats = stored[row.decoder]
        assert (stats.shots, stats.errors, stats.discards) == (300, row.errors, 0)
        assert stats.json_metadata == {"name": case.name, "d": 3, "r": 3, "p": 0.1, "seed": 4}
        assert stats.strong_id == case.task(row.decoder, row.decoder == "pymatching", seed=4).strong_id()
    assert len({stats.strong_id for stats in stored.values()}) == 2


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


def bands(figure):
    return [
        patch for patch in figure.axes[0].collections if type(patch).__name__ == "FillBetweenPolyCollection"
    ]


def test_intervals_are_bands_along_a_line():
    rows = (result(p=0.01), result(p=0.02, errors=100))
    (band,) = bands(Benchmark(rows).figure())
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(rows[0].interval[0])
    assert heights.max() == pytest.approx(rows[1].interval[1])
    assert bands(Benchmark((result(),)).figure()) == []
    clean = Benchmark((*rows, result(p=0.005, errors=0)))
    assert bands(clean.figure())[0].get_paths()[0].vertices[:, 0].min() == 0.01


def test_figures_show_an_upper_end_where_nothing_failed():
    clean = result(errors=0)
    figure = Benchmark((clean,)).figure()
    (axes,) = figure.axes
    heights = [float(y) for line in axes.lines for y in np.atleast_1d(line.get_ydata())]
    assert clean.interval[1] in heights
    assert "no failure" in figure.legends[0].get_title().get_text()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["pymatching"]


def test_latencies_are_drawn_as_shares_of_shots():
    rows = (result(timing=TIMING), result(decoder="tesseract", timing=TIMING), result(circuit="b"))
    figure = Benchmark(rows).latency_figure()
    (axes,) = figure.axes
    assert [patch.get_data().values.sum() for patch in axes.patches] == pytest.approx([1.0, 1.0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pymatching", "tesseract"]
    assert Benchmark((result(),)).latency_figure() is None


COMPARED = Benchmark(
    (
        result(circuit="<a>", decoder="bposd", timing=TIMING, seed=0),
        result(
            circuit="<a>",
            decoder="symdyn",
            errors=3,
            seed=0,
            timing=TIMING,
            paired=Paired("bposd", 1000, 1, 16),
        ),
        result(circuit="<a>", decoder="tesseract", shots=0, errors=0, seed=0, skipped="pip install 'it'"),
    )
)


def test_findings_say_what_to_use_and_what_is_open():
    text = "\n".join(findings(COMPARED))
    assert "For accuracy: symdyn on <a>, which failed on 3 of 1,000 shots at 2 µs each." in text
    assert "symdyn against bposd: better; of 1,000 shots that both decoded 1 failed" in text
    assert "p = 0.00027" in text
    assert "Decode more shots: symdyn failed on fewer than 10" in text
    assert "Skipped tesseract on <a>: pip install 'it'" in text
    equal = Benchmark((result(), result(decoder="b", paired=Paired("pymatching", 1000, 3, 3))))
    assert "b against pymatching: no difference seen" in "\n".join(findings(equal))


def test_the_page_stands_alone_and_is_reproducible():
    page = COMPARED.page()
    assert page == COMPARED.page()
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert page.count("<svg") == 2
    assert not re.search(r'<script|<link rel="style|src="|@import|url\(http', page)
    for word in ("OSD-CS of order 7", "1 : 16", "0.00027", "skipped", "from seed 0"):
        assert word in page


def test_the_terminal_shows_counts_times_and_notes():
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    for part in render(COMPARED):
        console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for word in ("0.018", "1 : 16", "5 µs", "skipped tesseract on <a>: pip install 'it'"):
        assert word in text


def test_decoders_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_decoders.py").write_text(
        "import sinter\n"
        "def mine():\n    return {'mine': sinter.BUILT_IN_DECODERS['vacuous']}\n"
        "def broken():\n    return {'mine': 3}\n"
    )
    found = load_decoders("own_decoders:mine")
    assert benchmark([coin(0.0)], ["mine"], shots=10, custom_decoders=found).results[0].errors == 0
    from symdyn_core.errors import TargetError

    for reference, message in (
        ("own_decoders:broken", "must return a dict of sinter decoders by name, got {'mine': 3}"),
        ("own_decoders:absent", "has no attribute 'absent'"),
        ("absent_module:f", "No module named 'absent_module'"),
    ):
        with pytest.raises(TargetError, match=message):
            load_decoders(reference)
    with pytest.raises(InputError, match="must be module:function, got 'nothing'"):
        load_decoders("nothing")
