import json
import subprocess
import sys

import pytest
import sinter
import stim
from typer.testing import CliRunner

from symdyn_core.errors import DependencyError, InputError
from symdyn_qec.baselines import extra
from symdyn_qec.commands import app
from symdyn_qec.commands.many import spread

QUIET = ["--shots", "200"]


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)], env={"COLUMNS": "100"})


def rows(*arguments):
    outcome = run(*arguments, *QUIET, "--json")
    assert outcome.exit_code == 0, outcome.output
    return [json.loads(line) for line in outcome.stdout.splitlines()]


@pytest.fixture
def stim_file(tmp_path):
    path = tmp_path / "d=3,r=2.stim"
    stim.Circuit.generated(
        "repetition_code:memory", distance=3, rounds=2, after_clifford_depolarization=0.01
    ).to_file(path)
    return path


def test_a_table_of_generated_circuits():
    outcome = run("--code", "surface", "--distance", 3, 5, "--rounds", "d", "--p", 0.005, *QUIET)
    assert outcome.exit_code == 0, outcome.output
    for word in (
        "circuit",
        "95 % interval",
        "surface d=3 r=3 p=0.005",
        "surface d=5 r=5 p=0.005",
        "pymatching",
    ):
        assert word in outcome.stdout


@pytest.mark.parametrize(
    "distances",
    [
        ["--distance", 3, 5],
        ["--distance", 3, "--distance", 5],
        ["--distance=3", "--distance=5"],
        ["--distance=3", 5],
        ["--distance", 3, 5, 3],
    ],
)
def test_several_values_of_an_option(distances):
    found = rows("--code", "repetition", *distances, "--p", 0.01, "--decoders", "vacuous")
    assert [(row["distance"], row["rounds"], row["shots"]) for row in found] == [(3, 3, 200), (5, 5, 200)]


def test_all_combinations_in_order():
    found = rows(
        "--code", "repetition", "--distance", 3, "--p", 0.01, 0.02, "--decoders", "vacuous", "pymatching"
    )
    assert [(row["p"], row["decoder"]) for row in found] == [
        (0.01, "vacuous"),
        (0.01, "pymatching"),
        (0.02, "vacuous"),
        (0.02, "pymatching"),
    ]


def test_files_of_the_user(stim_file):
    for arguments in ([stim_file], ["--decoders", "pymatching", stim_file]):
        (row,) = rows(*arguments)
        assert (row["circuit"], row["distance"], row["rounds"]) == (str(stim_file), 3, 2)
    (row,) = rows(stim_file, "--rounds", 4)
    assert row["rounds"] == 4


def test_out_receives_table_and_figure(stim_file, tmp_path):
    out = tmp_path / "a" / "b"
    outcome = run(stim_file, "--out", out, *QUIET)
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in out.iterdir()) == [
        "counts.csv",
        "figure.svg",
        "latencies.svg",
        "results.csv",
    ]
    assert "d=3,r=2.stim" in (out / "results.csv").read_text()
    (stats,) = sinter.read_stats_from_csv_files(out / "counts.csv")
    assert stats.shots == 200
    for figure in ("figure.svg", "latencies.svg"):
        assert "</svg>" in (out / figure).read_text()


def test_a_page(stim_file, tmp_path):
    path = tmp_path / "deep" / "page.html"
    outcome = run(stim_file, "--html", path, *QUIET)
    assert outcome.exit_code == 0, outcome.output
    assert "For accuracy" in path.read_text()


def test_a_seed_fixes_the_shots():
    arguments = ("--code", "repetition", "--distance", 3, "--p", 0.1, "--decoders", "vacuous", "--seed")
    errors = [rows(*arguments, seed)[0]["errors"] for seed in (1, 1, 2, 3, 4, 5)]
    assert errors[0] == errors[1]
    assert len(set(errors)) > 1


def test_a_budget_of_time_ends_the_work():
    (row,) = rows("--code", "surface", "--distance", 5, "--p", 0.01, "--budget", 0.0005)
    assert 0 < row["shots"] < 200


def test_many_processes_count_only():
    (row,) = rows("--code", "repetition", "--distance", 3, "--p", 0.01, "--workers", 1)
    assert (row["shots"], row["seed"], row["single_p50"]) == (200, None, None)
    assert row["microseconds_per_shot"] > 0


def test_both_bases():
    arguments = ("--code", "bb72", "--rounds", 2, "--p", 0.001, "--decoders", "vacuous", "--basis")
    assert [rows(*arguments, basis)[0]["circuit"] for basis in "ZX"] == [
        "bb72 r=2 p=0.001",
        "bb72 X r=2 p=0.001",
    ]


def test_a_decoder_that_is_missing_is_skipped(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda module: None if module == "ldpc" else object())
    arguments = ("--code", "surface", "--distance", 3, "--p", 0.01, "--decoders")
    outcome = run(*arguments, "pymatching", "bposd", *QUIET)
    assert outcome.exit_code == 0, outcome.output
    words = " ".join(outcome.stdout.split())
    assert "needs the package ldpc: pip install 'symdyn-qec[baselines]'" in words
    alone = run(*arguments, "bposd", *QUIET)
    assert isinstance(alone.exception, DependencyError)


def test_a_checkpoint_of_the_user_is_looked_for(tmp_path):
    arguments = ("--code", "bb72", "--rounds", 2, "--p", 0.001, "--decoders", "symdyn", "--checkpoint")
    outcome = run(*arguments, tmp_path / "none", *QUIET)
    assert isinstance(outcome.exception, InputError)
    assert str(tmp_path / "none") in str(outcome.exception)


def test_counts_are_resumed(stim_file, tmp_path):
    counts = tmp_path / "counts.csv"
    first, second = (rows(stim_file, "--resume", counts) for _ in range(2))
    assert first[0]["errors"] == second[0]["errors"]
    assert counts.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--code", "surface", "--distance", "3"], "--code surface needs --p"),
        (["--code", "surface", "--p", "0.01"], "code surface needs a distance"),
        (["--code", "surface", "--distance", "3", "--p", "2"], r"p must be in \[0, 0.75\], got 2.0"),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--shots", "0"],
            "shots must be at least 1, got 0",
        ),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--decoders", "pymatchng"],
            "did you mean pymatching",
        ),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--rounds", "x"],
            "a whole number or d, got 'x'",
        ),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--out", "/proc/none"],
            "cannot write to /proc/none",
        ),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--rounds", str(10**30)],
            "rounds must be at most 1000000000, got 1000000000000000000000000000000",
        ),
        (
            ["--code", "surface", "--distance", "1001", "--p", "0.01", "--rounds", "1"],
            "distance must be at most 1000, got 1001",
        ),
        (
            ["--code", "bb72", "--rounds", "2", "--p", "0.001"],
            "bb72 r=2 p=0.001 cannot be decoded by matching",
        ),
        (["--code", "bb72", "--p", "0.001", "--basis", "Y"], "basis must be X or Z, got 'Y'"),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--budget", "0"],
            "budget must be a positive number of seconds, got 0.0",
        ),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--budget", "1", "--workers", "1"],
            "--budget and --seed are for decoding without --workers and --resume",
        ),
        (
            ["--code", "surface", "--distance", "3", "--p", "0.01", "--html", "/proc"],
            "--html must name a file, got the folder /proc",
        ),
        (["missing.stim"], "cannot read missing.stim"),
        (["missing.stim", "--code", "surface"], "not both"),
    ],
)
def test_bad_input_is_one_line_and_no_output(arguments, message):
    outcome = run(*arguments)
    assert isinstance(outcome.exception, InputError)
    assert outcome.stdout == ""
    assert "\n" not in str(outcome.exception)
    with pytest.raises(InputError, match=message):
        raise outcome.exception


def test_bad_input_leaves_earlier_results_alone(tmp_path):
    (tmp_path / "results.csv").write_text("earlier")
    run("--code", "surface", "--distance", 3, "--p", 0.01, "--shots", 0, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    assert (tmp_path / "results.csv").read_text() == "earlier"


def test_a_word_that_is_no_number_is_a_usage_error():
    assert run("--code", "surface", "--distance", "three").exit_code == 2
    assert run("--code", "surface", "--distance", 3, "--p", 0.1, "--nonsense").exit_code == 2


def test_help_explains_every_option():
    outcome = run("--help")
    assert outcome.exit_code == 0
    for option in (
        "--code",
        "--distance",
        "--rounds",
        "--p",
        "--shots",
        "--decoders",
        "--budget",
        "--seed",
        "--basis",
        "--checkpoint",
        "--workers",
        "--resume",
        "--out",
        "--html",
        "--json",
    ):
        assert option in outcome.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--d", "3", "5", "--x"], ["--d", "3", "--d", "5", "--x"]),
        (["a", "--d", "3", "b", "4"], ["a", "--d", "3", "b", "4"]),
        (["--d", "x", "3"], ["--d", "x", "--d", "3"]),
        (["--d=3", "4"], ["--d=3", "--d", "4"]),
        (["--d", "3", "--", "4"], ["--d", "3", "--", "4"]),
        (["--d"], ["--d"]),
    ],
)
def test_spreading_values_over_options(words, expected):
    assert spread(words, {"--d": str.isdigit}) == expected


def test_importing_the_commands_loads_nothing_heavy():
    heavy = {"stim", "sinter", "pymatching", "torch", "matplotlib", "scipy", "pandas"}
    program = f"import sys, symdyn_qec.commands; print(sorted({heavy} & set(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
