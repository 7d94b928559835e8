"""The command line as a user meets it: a process, its output, its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SYMDYN = Path(sys.executable).with_name("symdyn")
PACKAGES = ("core", "finance", "neuro", "qec", "ssl")


def symdyn(*arguments, cwd, timeout=120):
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "140"}
    command = [str(SYMDYN), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=cwd, check=False
    )


@pytest.fixture
def cli(coin_package, tmp_path):
    def call(*arguments):
        return symdyn(*arguments, cwd=tmp_path)

    return call


def test_help_names_every_command_and_application(cli):
    result = cli("--help")
    assert result.returncode == 0
    for word in ("list", "show", "run", "gallery", "cite", "audit", *PACKAGES[1:]):
        assert word in result.stdout


def test_every_command_has_help(cli):
    for command in ("list", "show", "run", "gallery", "cite", "audit", *PACKAGES[1:]):
        result = cli(command, "--help")
        assert result.returncode == 0, command
        assert "Usage: symdyn" in result.stdout


def test_listing_does_not_import_torch(tmp_path):
    code = (
        "import sys; from symdyn_core.commands import main; sys.argv = ['symdyn', 'list', '--json']\n"
        "try: main.main()\nexcept SystemExit as stop: assert not stop.code\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert result.stderr.strip() == "False False"
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len({row["paper"] for row in rows}) == 28
    assert {row["package"] for row in rows if row["id"]} == set(PACKAGES)
    assert all(set(row) == {"id", "paper", "package", "title", "verdict"} for row in rows)


def test_run_prints_the_contract_and_remembers(cli):
    first = cli("run", "coin.coin", "--json", "--seed", "5")
    assert first.returncode == 0, first.stderr
    row = json.loads(first.stdout)
    assert set(row) == {
        *("id", "paper", "package", "preset", "config", "seed", "repetitions"),
        *("claims", "verdict", "seconds", "record"),
    }
    assert set(row["claims"][0]) == {
        *("name", "predicted", "measured", "low", "high", "margin", "rival", "rival_excluded", "verdict")
    }
    assert (row["seed"], row["repetitions"], row["verdict"]) == (5, 8, "CONFIRMED")
    again = json.loads(cli("run", "coin.coin", "--json", "--seed", "5").stdout)
    assert again == row  # a cache hit, to the millisecond
    other = json.loads(cli("run", "coin.coin", "--json", "--seed", "6").stdout)
    assert other["claims"][0]["measured"] != row["claims"][0]["measured"]


def test_the_prediction_follows_the_setting(cli):
    row = json.loads(cli("run", "coin.coin", "--json", "--set", "bias=0.2").stdout)
    assert (row["claims"][0]["predicted"], row["verdict"]) == (0.2, "CONFIRMED")


def test_numbers_do_not_depend_on_the_number_of_processes(cli):
    rows = [
        json.loads(cli("run", "coin.coin", "--json", "--jobs", jobs, "--out", f"out{jobs}").stdout)
        for jobs in (1, 2)
    ]
    assert rows[0]["claims"] == rows[1]["claims"]


def test_a_failing_study_is_one_row_and_the_exit_status_says_so(cli, coin_package):
    broken = coin_package / "symdyn_coin" / "studies" / "broken.py"
    broken.write_text(
        (coin_package / "symdyn_coin" / "studies" / "coin.py").read_text() + "\nimport nothing_there\n"
    )
    result = cli("run", "coin")
    assert result.returncode == 1
    assert "No module named 'nothing_there'" in result.stdout
    assert "CONFIRMED" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    raising = cli("run", "coin.coin", "--set", "mood=raising")
    assert (raising.returncode, "the coin rolled away" in raising.stdout) == (1, True)
    assert "Traceback" in cli("run", "coin.coin", "--set", "mood=raising", "--force", "--debug").stderr


def test_the_death_of_a_worker_is_one_line(cli):
    result = cli("run", "coin.coin", "--set", "mood=dying", "--jobs", "2")
    assert result.returncode == 2
    assert result.stderr.startswith("error: a worker process died")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "coin.coyn"], "error: unknown study 'coin.coyn'; did you mean coin.coin"),
        (
            ["run", "coin.coin", "--set", "bais=1"],
            "error: unknown setting 'bais' of coin.coin; did you mean bias?",
        ),
        (["run", "coin.coin", "--set", "bias"], "error: --set expects NAME=VALUE, got 'bias'"),
        (["run", "coin.coin", "--set", "bias=9"], "error: coin.coin: bias must be in [0.1, 0.45], got 9"),
        (["run", "coin.coin", "--set", "bias=x"], "error: coin.coin: bias must be a number, got 'x'"),
        (["run", "--set", "bias=0.2"], "error: --set needs exactly one study ID, got"),
        (
            ["run", "coin.coin", "--preset", "slow"],
            "error: coin.coin has no preset 'slow'; expected one of quick, full",
        ),
        (
            ["run", "coin.coin", "--set", "bias=0.2", "--set", "bias=0.3"],
            "error: --set gives bias twice: 0.2",
        ),
        (["run", "coin.coin", "--repetitions", "0"], "error: --repetitions must be in [1, 10000], got 0"),
        (["run", "coin.coin", "--jobs", "0"], "error: jobs must be positive, or -1 for one per core, got 0"),
        (
            ["run", "coin.coin", "--engine", "dask"],
            "error: the dask engine, and only it, needs --scheduler ADDRESS",
        ),
        (["run", "coin.coin", "--out", "/dev/null/x"], "error: cannot write to /dev/null/x: Not a directory"),
        (["run", "coin.coin", "--seed", "one"], "error: Invalid value for '--seed'"),
        (["runn"], "error: No such command 'runn'"),
        (["show", "nothing"], "error: unknown study 'nothing'"),
        (["gallery", "--out", "empty"], "error: no records in empty; run `symdyn run` first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_status_2(cli, arguments, message):
    result = cli(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert len(result.stderr.strip().splitlines()) == 1


def test_messages_are_printed_as_they_are(cli):
    assert cli("audit", "missing.py:ok").stderr.startswith("error: missing.py")
    assert ":ok" in cli("audit", "missing.py:ok").stderr
    assert "[b]:ok:" in cli("gallery", "--out", "[b]:ok:").stderr


def test_bad_input_leaves_nothing_behind(cli, tmp_path):
    cli("run", "coin.coin", "--set", "bias=9", "--out", "results/here")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("group", [[], ["qec"], ["ssl"]], ids=str)
def test_a_bare_command_prints_its_help_and_nothing_else(cli, group):
    result = cli(*group)
    assert "Usage: symdyn" in result.stdout + result.stderr
    assert "error:" not in result.stderr


def test_a_full_disk_is_one_line(coin_package, tmp_path):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [str(SYMDYN), "list"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
    assert (result.returncode, result.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_show_and_cite(cli):
    text = cli("show", "coin.coin").stdout
    for word in (
        "A biased coin",
        "How often does a biased coin show heads?",
        "finite number of tosses",
        "0.1 … 0.45",
    ):
        assert word in text
    assert cli("cite", "coin.coin").stdout.startswith("@article{ziyin2023law")
    assert "Noise Equilibrium" in cli("cite", "2402.07193").stdout


def test_an_interrupted_run_keeps_what_is_finished(coin_package, tmp_path):
    slow = coin_package / "symdyn_coin" / "studies" / "slow.py"
    code = (coin_package / "symdyn_coin" / "studies" / "coin.py").read_text()
    slow.write_text(
        code.replace(
            "def measure(config, seed):", "def measure(config, seed):\n    import time; time.sleep(1)"
        )
    )
    command = [str(SYMDYN), "run", "coin.slow", "--jobs", "1", "--repetitions", "30"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A script's background job inherits an ignored Ctrl-C; a user's terminal does not ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/coin.slow/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what is finished is kept, the same command continues from there" in stderr
    assert "Traceback" not in stderr
    (samples,) = tmp_path.glob("out/coin.slow/*/samples.csv")
    finished = {line.split(",")[0] for line in samples.read_text().splitlines()[1:]}
    assert finished
    result = symdyn("run", "coin.slow", "--repetitions", len(finished), "--json", cwd=tmp_path)
    row = json.loads(result.stdout)
    assert row["repetitions"] == len(finished)
    assert row["seconds"] < 1.5 * len(finished)  # nothing was measured twice
