import math
import os
import sys

import pytest
import sinter
import stim

from symdyn_core.errors import DependencyError, InputError
from symdyn_qec.baselines import extra
from symdyn_qec.benchmark import Experiment, benchmark, collect
from symdyn_qec.collection import default_workers
from symdyn_qec.decoder import SymdynDecoder


def coin(p, name="coin"):
    """One qubit flipped with probability p; its detector tells."""
    text = f"X_ERROR({p}) 0\nM 0\nDETECTOR rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-1]"
    return Experiment(name, stim.Circuit(text))


class Local(sinter.Decoder):
    """A decoder of a module that only this process can import."""

    __module__ = "__main__"

    def compile_decoder_for_dem(self, *, dem):
        raise NotImplementedError


def test_decoders_do_what_their_names_say():
    """Matching sees every flip and corrects it, not decoding corrects none of the many there are."""
    cases = [coin(0.9), coin(0.0, "quiet"), coin(1.0, "certain")]
    found = collect(cases, decoders=["vacuous", "pymatching"], shots=500, workers=1)
    assert [(r.circuit, r.decoder, r.shots) for r in found.results] == [
        (case.name, name, 500) for case in cases for name in ("vacuous", "pymatching")
    ]
    assert found.results[0].errors > 250
    assert [r.errors for r in found.results[1:]] == [0, 0, 0, 500, 0]
    assert all(r.seconds > 0 and r.timing is None for r in found.results)


def test_what_a_decoder_says_in_its_worker_reaches_the_caller():
    with pytest.raises(
        InputError, match="^decoding failed: no shipped checkpoint is for this model: coordinates"
    ):
        collect([coin(0.1)], ["mine"], shots=10, workers=1, custom_decoders={"mine": SymdynDecoder()})


def test_a_decoder_that_workers_cannot_import_is_refused(monkeypatch):
    """The worker would die before its first message, and sinter would wait for it."""
    monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    with pytest.raises(InputError, match=r"decoder 'mine' cannot be sent to a worker.* 'Local'"):
        collect([coin(0.1)], ["mine"], shots=10, workers=1, custom_decoders={"mine": Local()})


def test_many_processes_and_this_one_agree():
    """The same decoder on other shots: the difference is a matter of chance."""
    case, shots = Experiment.generate("surface", p=0.01, distance=3), 40_000
    many = collect([case], shots=shots, workers=1).results[0].error_rate
    here = benchmark([case], shots=shots).results[0].error_rate
    # Seven standard deviations: a failure by chance is less likely than one in 10^11.
    assert abs(many - here) < 7 * math.sqrt(2 * here / shots)


def test_baselines_work_in_workers():
    pytest.importorskip("ldpc")
    case = Experiment.generate("surface", p=0.01, distance=3, rounds=2)
    undecoded, decoded = collect([case], ["vacuous", "bposd"], shots=1000, workers=1).results
    assert decoded.errors < undecoded.errors / 2


def test_work_stops_after_enough_errors():
    found = collect([coin(0.5)], decoders=["vacuous"], shots=10_000_000, max_errors=10, workers=1)
    assert found.results[0].errors >= 10
    assert found.results[0].shots < 10_000_000


def test_counts_are_kept_and_added_to(tmp_path):
    path = tmp_path / "deep" / "counts.csv"
    first = collect([coin(0.5)], ["vacuous"], shots=300, workers=1, resume=path).results[0]
    done = []
    again = collect([coin(0.5)], ["vacuous"], shots=300, workers=1, resume=path, progress=done.append)
    assert (again.results[0].shots, again.results[0].errors) == (first.shots, first.errors)
    assert done[-1] == 1.0
    more = collect([coin(0.5)], ["vacuous"], shots=400, workers=1, resume=path).results[0]
    assert more.shots == 400
    assert first.errors <= more.errors <= first.errors + 100
    # sinter itself reads the file, and counts of other circuits in it are left alone.
    (stored,) = sinter.read_stats_from_csv_files(path)
    assert (stored.shots, stored.errors) == (400, more.errors)
    other = collect([coin(0.0, "other")], ["vacuous"], shots=10, workers=1, resume=path)
    assert [r.circuit for r in other.results] == ["other"]


def test_small_jobs_get_one_worker(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [default_workers(n) for n in (1, 100_000, 100_001, 10**9)] == [1, 1, 2, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiments": []}, "expected at least one circuit"),
        ({"decoders": []}, "expected at least one decoder"),
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
        collect(**{"experiments": [coin(0.1)], **settings})


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda module: None)
    with pytest.raises(DependencyError, match="decoder bposd needs the package ldpc"):
        collect([coin(0.1)], ["vacuous", "bposd"])


def test_a_file_that_is_not_counts_is_refused(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="notes.csv does not hold counts in sinter's format"):
        collect([coin(0.1)], resume=path)
    assert path.read_text() == "a,b\n1,2\n"
    path.write_text("")
    with pytest.raises(InputError, match="notes.csv does not hold counts in sinter's format: it is empty"):
        collect([coin(0.1)], resume=path)
