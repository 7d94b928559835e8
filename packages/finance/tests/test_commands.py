import json
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from symdyn_core.errors import InputError
from symdyn_finance.commands import app

SMALL = ["simulate", "--agents", "500", "--steps", "2000", "--warm-up", "600"]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def test_simulate_writes_what_it_says(tmp_path):
    result = run(*SMALL, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "Gini of wealth" in result.stdout
    market = pd.read_csv(tmp_path / "market.csv", index_col="step")
    wealth = pd.read_csv(tmp_path / "wealth.csv", index_col="agent")
    assert market.shape == (2000, 5)
    assert wealth.shape == (500, 3)
    assert wealth["cash"].sum() == pytest.approx(500)
    assert wealth["shares"].sum() == pytest.approx(500)
    assert (tmp_path / "figure.svg").read_text().lstrip().startswith("<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.svg", "market.csv", "wealth.csv"]


def test_json_follows_the_settings(tmp_path):
    result = run(*SMALL, "--json", "--out", str(tmp_path), "--cash-preference", "0.4", "--trade-rate", "0.8")
    document = json.loads(result.stdout)
    assert document["settings"]["cash_preference"] == 0.4
    observables = document["observables"]
    assert observables["turnover"]["predicted"] == pytest.approx(0.32)
    assert observables["price"]["predicted"] == pytest.approx(1.5)
    for name in ("price", "turnover", "gini", "herfindahl", "volatility"):
        assert observables[name]["measured"] == pytest.approx(observables[name]["predicted"], rel=0.12), name
    assert len(document["files"]) == 3


def test_price_is_compared_in_constant_money(tmp_path):
    result = run(*SMALL, "--json", "--out", str(tmp_path), "--mint", "0.01", "--redistribution", "0")
    price = json.loads(result.stdout)["observables"]["price"]
    assert price["predicted"] == pytest.approx(1)
    assert price["measured"] == pytest.approx(1, rel=0.02)


def test_seed_moves_the_numbers_and_nothing_else_does(tmp_path):
    tiny = ["simulate", "--agents", "50", "--steps", "60", "--json", "--out", str(tmp_path)]
    outputs = [run(*tiny, "--seed", seed).stdout for seed in ("0", "0", "1")]
    assert outputs[0] == outputs[1]
    measured = [json.loads(text)["observables"]["gini"]["measured"] for text in outputs]
    assert measured[0] != measured[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trade-rate", "2"], r"trade_rate must be in \(0, 1\], got 2.0"),
        (["--steps", "5"], r"--steps must be at least 20, got 5"),
        (["--steps", "100", "--warm-up", "95"], r"--warm-up must be in \[0, steps - 10 = 90\], got 95"),
        (["--redistribution", "0"], "wealth condenses"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    result = run("simulate", *arguments, "--out", str(tmp_path / "new"))
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert not (tmp_path / "new").exists()


def test_redistribution_too_weak_for_a_pareto_tail_still_draws(tmp_path):
    assert run("simulate", "--agents", "200", "--steps", "20", "--redistribution", "1e-300", "--out",
               str(tmp_path)).exit_code == 0  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"market.csv", "wealth.csv", "figure.svg"}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("simulate", "--agents", "10", "--steps", "20", "--out", str(tmp_path / "file"))
    assert isinstance(result.exception, InputError)


def test_commands_are_light():
    heavy = "{'numpy', 'scipy', 'pandas', 'matplotlib', 'torch'}"
    code = f"import sys, symdyn_finance.commands; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
