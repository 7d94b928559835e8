"""``symdyn neuro train`` as a user meets it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from symdyn_core.errors import InputError
from symdyn_neuro.commands import app


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "--epochs", "2", *arguments])


def test_json_carries_settings_and_epochs():
    result = invoke("--json", "--seed", "3", "--weight-decay", "0.02")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["rule"], found["weight_decay"], found["seed"]) == ("heterosynaptic", 0.02, 3)
    assert [row["epoch"] for row in found["epochs"]] == [0, 1, 2]
    first, last = found["epochs"][0], found["epochs"][-1]
    assert last["mismatch"] / first["mismatch"] == pytest.approx((1 - 0.2 * 0.02) ** 88, rel=1e-5)
    assert last["predicted_mismatch"] == pytest.approx(last["mismatch"], rel=1e-5)
    assert set(last["alignment"]) == {"layer1", "layer2", "layer3"}
    assert invoke("--json", "--seed", "3", "--weight-decay", "0.02").stdout == result.stdout
    assert invoke("--json", "--seed", "4", "--weight-decay", "0.02").stdout != result.stdout


def test_table_and_files(tmp_path: Path):
    result = invoke("--rule", "frozen-feedback", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "accuracy" in result.stdout
    assert [line.split()[0] for line in lines[-3:]] == ["0", "1", "2"]
    assert lines[-1].split()[-1] == "–"  # no law for frozen feedback
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["figure.svg", "history.csv"]
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["alignment.layer3"]) == pytest.approx(1.0)
    assert (tmp_path / "run" / "figure.svg").read_text().lstrip().startswith("<?xml")


def test_says_when_nothing_can_assemble():
    assert "never aligns" in invoke("--weight-decay", "0").stderr
    assert "never aligns" not in invoke("--weight-decay", "0", "--rule", "backprop").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--example", "mnist"], "unknown example 'mnist'; expected one of digits"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--learning-rate", "nan"], "learning_rate must be finite and above 0, got nan"),
        (["--learning-rate", "1e9"], "training diverged"),
        (["--weight-decay", "-1"], "weight_decay must be finite and at least 0, got -1"),
        (["--out", "/dev/null/here"], "cannot write to /dev/null/here"),
    ],
)
def test_bad_input_raises_what_the_command_line_prints(arguments, message):
    error = invoke(*arguments).exception
    assert isinstance(error, InputError), error
    assert message in str(error)


def test_unknown_rule_is_a_usage_error():
    result = invoke("--rule", "hebb")
    assert result.exit_code == 2
    assert "hebb" in result.stderr


def test_importing_the_commands_stays_light():
    heavy = "{'torch', 'matplotlib', 'sklearn', 'numpy', 'scipy'}"
    script = f"import sys, symdyn_neuro.commands; print(*{heavy} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.split() == []
