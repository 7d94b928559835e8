"""The stability report and its command: against dense matrices, and read as a user reads them."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import mse_loss
from typer.testing import CliRunner

from symdyn_core.commands.main import app
from symdyn_core.dynamics.stability_report import stability_report
from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, from_vector, to_vector


@pytest.fixture(scope="module")
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x, y = torch.randn(24, 3), torch.randn(24, 2)
    return model, mse_loss, x, y


def dense_hessians(model, x, y):
    """The Hessian of every sample's loss, by brute force."""
    frozen = FrozenModel(model)
    at = to_vector(frozen.params)

    def loss(vector, x, y):
        return mse_loss(frozen(from_vector(vector, frozen.params), x[None]), y[None])

    return torch.stack(
        [
            torch.autograd.functional.hessian(lambda vector, a=a, b=b: loss(vector, a, b), at)
            for a, b in zip(x.double(), y.double(), strict=True)
        ]
    ).numpy()


def test_numbers_are_those_of_dense_matrices(tiny):
    model, _, x, y = tiny
    decay = 0.02
    report = stability_report(*tiny, learning_rate=0.3, batch_size=4, weight_decay=decay, steps=400)
    hessians = dense_hessians(model, x, y)
    values, vectors = np.linalg.eigh(hessians.mean(axis=0))
    leading = np.argsort(-np.abs(values))[:8]
    expected = sorted(values[leading] + decay, key=abs, reverse=True)
    np.testing.assert_allclose(report.curvatures, expected, rtol=1e-4)
    assert report.lowest_curvature == pytest.approx(values[0] + decay, abs=2e-3 * values[-1])
    assert report.limits.lowest_curvature == pytest.approx(min(expected), rel=1e-4)
    assert report.limits.full_batch == 0  # an untrained network: gradient descent leaves at any step

    # Random products of the projected Hessians of minibatches, with batches of our own.
    basis = vectors[:, leading]
    blocks = basis.T @ hessians @ basis + decay * np.eye(8)
    generator = np.random.default_rng(1)
    vector, logs = np.ones(8) / math.sqrt(8), []
    for _ in range(6000):
        batch = generator.choice(len(x), 4, replace=False)
        vector = vector - 0.3 * blocks[batch].mean(axis=0) @ vector
        size = np.linalg.norm(vector)
        logs.append(math.log(size))
        vector /= size
    exponent = np.mean(logs[600:])
    error = np.hypot(report.standard_errors[0], np.std(logs[600:]) / math.sqrt(len(logs)) * 2)
    assert report.exponents[0] == pytest.approx(exponent, abs=4 * error)


def test_a_large_step_leaves_and_a_small_one_stays(tiny):
    small = stability_report(*tiny, learning_rate=0.01, batch_size=8, weight_decay=0.05, steps=200)
    large = stability_report(*tiny, learning_rate=30.0, batch_size=8, weight_decay=0.05, steps=200)
    assert (large.verdict, large.mean_square_verdict) == ("repels", "repels")
    assert large.advice[0].startswith("Leaves: at learning rate 30 and batches of 8")
    assert small.exponents[0] < large.exponents[0]
    assert small.limits == large.limits  # where the limits are does not depend on where one is


def test_noise_holds_a_saddle_that_gradient_descent_leaves():
    # A product of two weights at zero with label +1 or -1 on x = 1: curvature -+2 along (1, 1), mean zero for
    # equal shares. With shares 9 : 7 the mean is negative there, and larger steps attract.
    model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 1, 1, bias=False) for _ in range(2)))
    for weight in model.parameters():
        nn.init.zeros_(weight)
    x = torch.ones(16, 1)
    y = torch.tensor([[1.0]] * 9 + [[-1.0]] * 7)
    report = stability_report(model, mse_loss, x, y, learning_rate=0.3, batch_size=1, steps=2000)
    assert report.type_ii
    assert report.mean_square_verdict == "repels"
    assert report.limits.full_batch == 0
    exponent = (9 * math.log(1.6) + 7 * math.log(0.4)) / 16  # along (1, 1); the other has the logs exchanged
    assert report.exponents[0] == pytest.approx(exponent, abs=4 * report.standard_errors[0] + 0.02)
    assert (report.verdict == "attracts") == (exponent < 0)
    assert any(sentence.startswith("A saddle that attracts") for sentence in report.advice)


def test_the_page_prints_in_the_terminal_and_stands_alone_as_html(tiny):
    report = stability_report(*tiny, learning_rate=0.1, batch_size=4, samples=20, steps=100)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    assert "loss" in text
    assert "20 of 24 samples" in text
    assert "mean square (L2)" in text
    page = report.to_html("my <model>")
    assert "my &lt;model&gt;" in page
    assert "<svg" in page
    assert 'src="http' not in page
    assert '<link rel="stylesheet"' not in page
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == report.verdict
    assert list(report.to_frame().columns) == ["exponent", "standard_error"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0"),
        ({"batch_size": 25}, r"batch_size must be in \[1, n_samples=24\], got 25"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"steps": 3}, "steps must be"),
    ],
)
def test_bad_input_is_named(tiny, settings, message):
    with pytest.raises(InputError, match=message):
        stability_report(*tiny, **{"learning_rate": 0.1, "batch_size": 4, **settings})


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["stability", *arguments])

    @pytest.mark.parametrize(
        ("example", "samples"),
        [
            pytest.param("digits", 24, marks=pytest.mark.slow),
            pytest.param("transformer", 4, marks=pytest.mark.verify),  # a minute
        ],
    )
    def test_an_example_in_json(self, example, samples, tmp_path):
        page = tmp_path / "page.html"
        result = self.run(
            *("--example", example, "--epochs", "1", "--learning-rate", "0.05", "--batch-size", "4"),
            *("--samples", str(samples), "--steps", "60", "--json", "--html", str(page)),
        )
        assert result.exit_code == 0, result.output
        values = json.loads(result.stdout)
        assert values["samples"] == samples
        assert values["limits"]["full_batch"] == pytest.approx(2 / values["curvatures"][0], rel=1e-3)
        assert page.read_text().startswith("<!doctype html>")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "expected exactly one of TARGET and --example"),
            (["--example", "digit"], "unknown example 'digit'"),
            (["nowhere.py:build"], "there is no file nowhere.py"),
            (["--example", "digits", "--html", "."], "--html must name a file"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(self, arguments, message):
        result = self.run(*arguments, "--learning-rate", "0.1", "--batch-size", "8")
        assert result.exit_code != 0
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
