import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symdyn_core.errors import InputError
from symdyn_core.study import Record, Verdict
from symdyn_core.study.catalogue import catalogue
from symdyn_core.study.gallery import write_gallery
from symdyn_core.study.record import from_csv, plain, to_csv
from symdyn_core.study.registry import entries, load, select
from symdyn_core.study.runner import Engine, run, run_repetition
from symdyn_core.testing import check_rivals, check_study

values = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False)
measurements = st.dictionaries(
    st.sampled_from("abc"),
    values | st.lists(values, min_size=1) | st.lists(st.lists(values, min_size=1), min_size=1),
    min_size=1,
)


@pytest.fixture
def coin(coin_package):
    return load(entries()["coin.coin"])


# --- settings ---------------------------------------------------------------------------------------------


def test_settings_from_the_command_line_take_the_type_of_the_setting(coin):
    config = coin.configure("quick", {"bias": "0.25", "tosses": "1e3"})
    assert (config.bias, config.tosses) == (0.25, 1000)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bais": 0.2}, "unknown setting 'bais' of coin.coin; did you mean bias?"),
        ({"bias": "much"}, "coin.coin: bias must be a number, got 'much'"),
        ({"bias": 0.9}, r"coin.coin: bias must be in \[0.1, 0.45\], got 0.9"),
        ({"bias": "nan"}, "coin.coin: bias must be finite, got nan"),
        ({"tosses": "100.5"}, "coin.coin: tosses must be a whole number, got '100.5'"),
        ({"mood": "sad"}, "coin.coin: mood must be one of calm, raising, nan, dying, got 'sad'"),
    ],
)
def test_bad_settings_say_what_was_expected(coin, overrides, message):
    with pytest.raises(InputError, match=message):
        coin.configure("quick", overrides)


def test_unknown_preset(coin):
    with pytest.raises(InputError, match="no preset 'slow'; expected one of quick, full"):
        coin.configure("slow")


# --- registry ---------------------------------------------------------------------------------------------


def test_headings_are_read_without_importing(coin_package, monkeypatch):
    import sys

    entry = entries()["coin.coin"]
    assert (entry.title, entry.arxiv, entry.error) == ("A biased coin", "2308.06671", None)
    assert "symdyn_coin.studies.coin" not in sys.modules


def test_unknown_study_suggests_the_nearest(coin_package):
    with pytest.raises(InputError, match="unknown study 'coin.coyn'; did you mean coin.coin"):
        select(["coin.coyn"])


def test_a_package_stands_for_its_studies(coin_package):
    assert [entry.id for entry in select(["coin"])] == ["coin.coin"]


def test_a_package_that_does_not_import_is_one_row_with_its_reason(coin_package):
    (coin_package / "symdyn_coin" / "__init__.py").write_text("import no_such_library")
    row = next(row for row in catalogue(Path("nowhere")) if row.package == "coin")
    assert (row.verdict, row.error) == ("ERROR", "ModuleNotFoundError: No module named 'no_such_library'")


def test_a_file_without_a_study_is_one_row_with_its_reason(coin_package):
    (coin_package / "symdyn_coin" / "studies" / "empty.py").write_text("")
    assert entries()["coin.empty"].error == "empty.py does not define STUDY = Study(...)"
    assert entries()["coin.coin"].error is None


def test_every_paper_has_a_row():
    rows = catalogue(Path("nowhere"))
    assert len({row.paper for row in rows}) == 28
    assert all(row.verdict == "not yet" for row in rows if row.id is None)


# --- records ----------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 50), measurements, max_size=5))
def test_samples_survive_the_file_number_for_number(samples):
    back = from_csv(to_csv(samples))
    assert back == samples
    assert json.dumps(back, sort_keys=True) == json.dumps(samples, sort_keys=True)  # int and float kept apart


def test_measurements_are_made_of_numbers():
    assert plain({"a": np.float64(1.5), "b": np.arange(2), "c": np.bool_(True)}) == {
        "a": 1.5,
        "b": [0, 1],
        "c": 1,
    }
    with pytest.raises(TypeError, match="must be a number or nested lists of numbers, got str"):
        plain({"a": "one"})


def test_identity_depends_on_all_that_matters_and_nothing_else(coin):
    base = Record(coin, "quick", coin.configure("quick"), 0)
    assert dataclasses.replace(base, preset="other name").identity == base.identity
    others = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, config=coin.configure("quick", {"bias": 0.2})),
        dataclasses.replace(base, study=dataclasses.replace(coin, version=2)),
    ]
    assert len({record.identity for record in (base, *others)}) == 4


def test_more_repetitions_add_to_what_is_there(coin, tmp_path):
    first = completed(coin, tmp_path, repetitions=3)
    calls = []
    resumed = Record(coin, "quick", coin.configure("quick"), 0).resumed(tmp_path)
    (more,) = run(
        [resumed], [5], out=tmp_path, engine=Engine(jobs=1), on_repetition=lambda *a: calls.append(a)
    )
    assert len(calls) == 2
    assert {k: more.samples[k] for k in range(3)} == first.samples
    assert more.samples == completed(coin, tmp_path / "fresh", repetitions=5).samples


def test_a_record_of_other_code_is_measured_again(coin, tmp_path):
    record = completed(coin, tmp_path, repetitions=2)
    path = record.folder(tmp_path) / "record.json"
    path.write_text(path.read_text().replace('"code": "', '"code": "0'))
    assert Record(coin, "quick", record.config, 0).resumed(tmp_path).samples == {}


def test_a_damaged_record_is_named(coin, tmp_path):
    record = completed(coin, tmp_path, repetitions=2)
    for name in ("samples.csv", "record.json"):
        (record.folder(tmp_path) / name).write_text("{")
        with pytest.raises(InputError, match="cannot be read .* delete the folder or pass --force"):
            Record(coin, "quick", record.config, 0).resumed(tmp_path)


def test_nothing_half_written_is_left_behind(coin, tmp_path):
    record = completed(coin, tmp_path, repetitions=2)
    assert sorted(p.name for p in record.folder(tmp_path).iterdir()) == ["record.json", "samples.csv"]


# --- runner -----------------------------------------------------------------------------------------------


def test_a_study_that_raises_is_an_error_and_the_others_still_run(coin, tmp_path):
    bad = Record(coin, "quick", coin.configure("quick", {"mood": "raising"}), 0)
    good = Record(coin, "quick", coin.configure("quick"), 0)
    bad, good = run([bad, good], [2, 8], out=tmp_path, engine=Engine(jobs=1))
    assert (bad.verdict, bad.error) == (Verdict.ERROR, "repetition 0: RuntimeError: the coin rolled away")
    assert good.verdict is Verdict.CONFIRMED


def test_nan_is_an_error(coin, tmp_path):
    record = Record(coin, "quick", coin.configure("quick", {"mood": "nan"}), 0)
    (record,) = run([record], [3], engine=Engine(jobs=1))
    assert record.verdict is Verdict.ERROR


def test_a_repetition_ends_at_its_time_limit():
    start = time.perf_counter()
    outcome = run_repetition(lambda config, seed: time.sleep(30), None, 0, 0.2)
    assert outcome.error == "TimeoutError: one repetition took longer than its limit of 0.2 s"
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cluster"}, "engine must be local or dask, got 'cluster'"),
        ({"jobs": 0}, "jobs must be positive, or -1 for one per core, got 0"),
        ({"name": "dask"}, "needs --scheduler ADDRESS"),
        ({"scheduler": "tcp://here:1"}, "needs --scheduler ADDRESS"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Engine(**arguments)


# --- conformance ------------------------------------------------------------------------------------------


def test_a_sound_study_passes_conformance(coin):
    assert check_study(coin).verdict is Verdict.CONFIRMED


def test_conformance_catches_a_study_that_cannot_fail(coin):
    claim = dataclasses.replace(coin.claims[0], margin=0.4)
    toothless = dataclasses.replace(coin, claims=[claim])
    with pytest.raises(AssertionError, match="the rival"):
        check_study(toothless)


def test_conformance_catches_a_study_that_ignores_its_seed(coin):
    frozen = dataclasses.replace(coin, measure=constant)
    with pytest.raises(AssertionError):
        check_study(frozen)


def constant(config, seed):
    return {"heads": 0.3}


constant.__module__ = "symdyn_coin.studies.coin"


def test_conformance_catches_a_wrong_prediction(coin):
    claim = coin.claims[0].with_rival_as_prediction()
    with pytest.raises(AssertionError, match="REFUTED"):
        check_study(dataclasses.replace(coin, claims=[claim]))


def test_rivals_are_judged_as_predictions(coin):
    record = completed(coin, None, repetitions=8)
    check_rivals(record)


# --- gallery ----------------------------------------------------------------------------------------------


def test_the_gallery_tells_everything_and_escapes_it(coin, tmp_path):
    titled = dataclasses.replace(coin, title="Heads < tails & <script>")
    completed(titled, tmp_path, repetitions=8).save(tmp_path)
    index = write_gallery(tmp_path).read_text()
    page = (tmp_path / "coin.coin.html").read_text()
    assert "<script" not in index + page
    assert "Heads &lt; tails &amp; &lt;script&gt;" in index
    assert "✔ CONFIRMED" in index
    assert "<math" in page
    assert "finite number of tosses" in page
    assert "@article{ziyin2023law" in page
    assert "http://" not in index.replace("http://www.w3.org", "")


def test_the_gallery_names_a_study_that_cannot_be_loaded(coin, coin_package, tmp_path):
    completed(coin, tmp_path, repetitions=8).save(tmp_path)
    (coin_package / "symdyn_coin" / "studies" / "empty.py").write_text("")
    assert "empty.py does not define STUDY" in write_gallery(tmp_path).read_text()


def test_a_file_that_is_not_a_record_is_named(coin, tmp_path):
    (tmp_path / "coin.coin" / "x").mkdir(parents=True)
    for text in ("[]", "{", '{"schema": 1}', "\0"):
        (tmp_path / "coin.coin" / "x" / "record.json").write_text(text)
        with pytest.raises(InputError, match="record.json is not a record"):
            write_gallery(tmp_path)


def test_a_gallery_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="no records in .*; run `symdyn run` first"):
        write_gallery(tmp_path)


def completed(study, out, repetitions):
    record = Record(study, "quick", study.configure("quick"), 0)
    (record,) = run([record], [repetitions], out=out, engine=Engine(jobs=1))
    return record
