import csv
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from symdyn_core.errors import InputError
from symdyn_ssl.augment import digit_pairs
from symdyn_ssl.commands import app
from symdyn_ssl.stepwise import StepwiseTheory


def call(*arguments):
    """Run a command; its exceptions pass through, as they do under ``symdyn``."""
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)


@pytest.fixture
def views(tmp_path):
    path = tmp_path / "views.npz"
    assert call("example", "digits", "--out", path, "--pairs", 100).exit_code == 0
    return path


def test_example_writes_the_pairs(views):
    with np.load(views) as archive:
        np.testing.assert_array_equal(archive["x"], digit_pairs(100, 0)[0])
        assert archive["x_prime"].shape == (100, 64)


def test_predict_prints_one_line_per_mode(views):
    result = call("predict", views, "--dim", 4, "--learning-rate", 0.03)
    assert result.exit_code == 0
    theory = StepwiseTheory.from_pairs(*digit_pairs(100, 0), 4)
    for time in theory.step_times(init_std=1e-4):
        assert f"{time:.4g}" in result.stdout


def test_predict_json_agrees_with_the_library(views):
    document = json.loads(call("predict", views, "--dim", 4, "--init-std", 1e-5, "--json").stdout)
    theory = StepwiseTheory.from_pairs(*digit_pairs(100, 0), 4)
    assert [mode["time"] for mode in document["modes"]] == pytest.approx(theory.step_times(init_std=1e-5))
    assert [mode["loss_after"] for mode in document["modes"]] == [3, 2, 1, 0]
    assert "step" not in document["modes"][0]
    assert (document["pairs"], document["features"], document["final_loss"]) == (100, 64, 0)


def test_momentum_divides_the_steps(views):
    def first_step(*options):
        text = call("predict", views, "--json", "--learning-rate", 1e-4, *options).stdout
        return json.loads(text)["modes"][0]["step"]

    # At this learning rate the flow limit holds to some parts in ten thousand.
    assert first_step() / first_step("--momentum", 0.5) == pytest.approx(2, rel=1e-3)


def test_out_writes_table_and_figure(views, tmp_path):
    assert call("predict", views, "--dim", 3, "--out", tmp_path / "new").exit_code == 0
    with open(tmp_path / "new" / "steps.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["mode"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["gamma"]) == pytest.approx(
        StepwiseTheory.from_pairs(*digit_pairs(100, 0), 3).gamma[0]
    )
    assert (tmp_path / "new" / "staircase.svg").read_text().rstrip().endswith("</svg>")


def test_images_under_other_names_are_flattened_and_the_note_says_so(tmp_path):
    x, x_prime = (view.reshape(-1, 8, 8) for view in digit_pairs(100, 0))
    np.savez(
        tmp_path / "images.npz", a=(x * 255).astype(np.uint8), b=(x_prime.clip(0) * 255).astype(np.uint8)
    )
    result = call("predict", tmp_path / "images.npz", "--x", "a", "--x-prime", "b", "--init-std", 1e-7)
    assert result.exit_code == 0
    assert "samples of shape (8, 8) were flattened to 64 features" in result.stderr


def test_notes_say_what_is_never_learned_and_what_is_unstable(views):
    result = call("predict", views, "--dim", 60, "--learning-rate", 10)
    assert "dimensions are never learned, and the loss ends at" in result.stderr
    assert "gradient descent is unstable" in result.stderr


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": np.ones((3, 2))}, [], "has no array 'x_prime'; arrays found: x"),
        ({}, [], "has no array 'x'; arrays found: none"),
        ({"x": np.ones((3, 2)), "x_prime": np.ones((4, 2))}, [], r"same shape, got \(3, 2\) and \(4, 2\)"),
        ({"x": np.eye(3), "x_prime": np.full((3, 3), np.nan)}, [], "x_prime must be finite, got 9 NaN"),
        ({"x": np.ones((1, 2)), "x_prime": np.ones((1, 2))}, [], "at least 2 pairs are needed, got 1"),
        (
            {"x": np.ones(4), "x_prime": np.ones(4)},
            [],
            r"array 'x' must have shape \(n_pairs, ...\), got \(4,\)",
        ),
        ({"x": np.eye(3), "x_prime": np.eye(3)}, ["--dim", 4], r"dim must be in \[1, n_features=3\], got 4"),
        ({"x": np.eye(3), "x_prime": np.eye(3)}, ["--init-std", 0], "init_std must be positive"),
        (
            {"x": np.eye(3), "x_prime": np.eye(3)},
            ["--init-std", 50],
            "init_std must be small for steps to exist",
        ),
        (
            {"x": np.eye(3), "x_prime": np.eye(3)},
            ["--init-std", 1e300],
            "starts at inf, above one half; try 0.[0-9]",
        ),
        (
            {"x": np.eye(3), "x_prime": np.eye(3)},
            ["--learning-rate", 1e-320],
            "learning_rate must give a finite number of steps",
        ),
        ({"x": np.eye(3), "x_prime": np.eye(3)}, ["--learning-rate", -1], "learning_rate must be positive"),
        ({"x": np.eye(3), "x_prime": np.eye(3)}, ["--momentum", 1], r"momentum must be in \[0, 1\)"),
        (
            {"x": np.array([[{}]] * 3), "x_prime": np.eye(3)},
            [],
            "cannot read array 'x': it holds pickled objects",
        ),
        ({"x": np.full((3, 1), "a"), "x_prime": np.eye(3)}, [], "same shape|real numbers"),
    ],
)
def test_bad_arrays(tmp_path, arrays, options, message):
    np.savez(tmp_path / "views.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        call("predict", tmp_path / "views.npz", *options)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path, views):
    with pytest.raises(InputError, match="no such file"):
        call("predict", tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(views.read_bytes()[:-200])
    for name in ("text", "empty", "cut"):
        with pytest.raises(InputError, match="is not an .npz file that NumPy can read"):
            call("predict", tmp_path / f"{name}.npz")
    damaged = bytearray(views.read_bytes())
    damaged[2000:2100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(InputError, match="cannot read array 'x': the file is damaged"):
        call("predict", tmp_path / "damaged.npz")
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**5)}
    with zipfile.ZipFile(tmp_path / "vast.npz", "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(InputError, match="cannot read array 'x': it does not fit into memory"):
        call("predict", tmp_path / "vast.npz")
    np.save(tmp_path / "single.npy", np.eye(3))
    with pytest.raises(InputError, match="must be an .npz file with two arrays"):
        call("predict", tmp_path / "single.npy")
    with pytest.raises(InputError, match="cannot read"):
        call("predict", tmp_path)


def test_bad_places(tmp_path, views):
    with pytest.raises(InputError, match="cannot write to"):
        call("predict", views, "--out", views)
    with pytest.raises(InputError, match=r"n_pairs must be in \[2, 1797\], got 2000"):
        call("example", "digits", "--pairs", 2000, "--out", tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"gain must be in \[0, 1\), got 1.5"):
        call("example", "digits", "--gain", 1.5, "--out", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_importing_the_commands_is_light():
    heavy = "{'torch', 'sklearn', 'matplotlib', 'scipy', 'numpy'}"
    code = f"import sys, symdyn_ssl.commands; print(*{heavy} & {{*sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""
