"""Loading what the user points at: both forms, and every way it can be wrong."""

import sys
from pathlib import Path

import pytest
import torch

from symdyn_core.commands.target import load_target
from symdyn_core.errors import TargetError

GOOD = """
import torch
from torch import nn
from dataclasses import dataclass

@dataclass
class Sizes:  # dataclasses look their module up by name
    samples: int = 5

class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.scale * x

def task():
    import neighbour
    x = torch.ones(Sizes().samples, 1)
    return Doubled(), nn.functional.mse_loss, x, neighbour.ANSWER * x
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "neighbour.py").write_text("ANSWER = 2.0\n")
    monkeypatch.chdir(tmp_path)
    # What a test imports must not be found by the next one.
    for name in ("good", "neighbour", "bad"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("text", ["good.py:task", "{folder}/good.py:task", "./good.py:task", "good:task"])
def test_file_and_module_forms(folder: Path, text: str) -> None:
    path = list(sys.path)
    target = load_target(text.format(folder=folder))
    assert sys.path == path
    assert target.inputs.shape == (5, 1)
    assert target.loss_fn(target.model(target.inputs), target.targets) == 0


def test_the_folder_of_the_file_is_on_the_path_not_the_current_one(
    folder: Path, monkeypatch, tmp_path_factory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert len(load_target(f"{folder}/good.py:task").inputs) == 5


def test_a_file_named_like_a_module_does_not_take_its_place(folder: Path) -> None:
    import json

    (folder / "json.py").write_text(GOOD)
    load_target("json.py:task")
    assert sys.modules["json"] is json


def test_what_the_target_prints_is_not_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.py").write_text("print('loading')\n" + GOOD)
    load_target("bad.py:task")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "loading\n"


def body(returned: str, before: str = "") -> str:
    head = f"import torch\nfrom torch import nn\n{before}\n"
    return f"{head}def task():\n    x = torch.ones(5, 2)\n    return {returned}\n"


FINE = "nn.Identity(), nn.functional.mse_loss, x, x"
WRONG = {
    "text": ("", "task", r"TARGET must look like file.py:function or module:function, got 'task'"),
    "name": ("", "bad.py:", r"TARGET must look like"),
    "identifier": ("", "bad.py:1task", r"TARGET must look like"),
    "file": ("", "nowhere/good.py:task", r"there is no file nowhere/good.py"),
    "module": ("", "no_such_module:task", r"does not import: ModuleNotFoundError: No module named"),
    "syntax": ("def task(:\n", "bad.py:task", r"does not import: SyntaxError: "),
    "import": ("import no_such_thing", "bad.py:task", r"does not import: ModuleNotFoundError"),
    "exit": ("raise SystemExit(3)", "bad.py:task", r"does not import: SystemExit: 3"),
    "missing": (body(FINE), "bad.py:tusk", r"bad.py has no function 'tusk'"),
    "constant": ("task = 3", "bad.py:task", r"bad.py:task must be a function, got int"),
    "arguments": (
        "def task(seed): ...",
        "bad.py:task",
        r"callable without arguments: missing a required argument",
    ),
    "raises": (body("1 / 0"), "bad.py:task", r"bad.py:task fails: ZeroDivisionError: division by zero"),
    "lines": (
        "def task():\n    raise ValueError('one\\n  two')",
        "bad.py:task",
        r"fails: ValueError: one two",
    ),
    "nothing": (
        body("None"),
        "bad.py:task",
        r"must return \(model, loss_fn, inputs, targets\), got NoneType",
    ),
    "three": (body("nn.Identity(), x, x"), "bad.py:task", r"inputs, targets\), got 3 values"),
    "no module": (
        body("abs, nn.functional.mse_loss, x, x"),
        "bad.py:task",
        r"must be a torch.nn.Module, got builtin",
    ),
    "no tensor": (
        body("nn.Identity(), nn.functional.mse_loss, [1], x"),
        "bad.py:task",
        r"inputs must be a torch.Tensor",
    ),
    "no loss": (body("nn.Identity(), None, x, x"), "bad.py:task", r"loss_fn must be callable, got NoneType"),
    "lengths": (body("nn.Identity(), nn.functional.mse_loss, x, x[:3]"), "bad.py:task", r"got 5 and 3"),
    "vector loss": (body("nn.Identity(), torch.sub, x, x"), "bad.py:task", r"one number, got shape \(5, 2\)"),
    "nan loss": (
        body("nn.Identity(), lambda o, t: o.sum() * float('nan'), x, x"),
        "bad.py:task",
        r"be finite, got nan",
    ),
    "nan model": (
        body(
            "model, nn.functional.mse_loss, x, x",
            "model = nn.Linear(2, 2)\nmodel.weight.data[0] = float('nan')",
        ),
        "bad.py:task",
        r"parameter 'weight' must be finite",
    ),
    "loss exits": (
        body("nn.Identity(), stop, x, x", "def stop(outputs, targets):\n    raise SystemExit(0)"),
        "bad.py:task",
        r"the model or the loss ends the program: SystemExit: 0",
    ),
    "model raises": (
        body("nn.Linear(3, 2), nn.functional.mse_loss, x, x"),
        "bad.py:task",
        r"the model fails on inputs",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_failure_is_one_line_and_leaves_the_path_alone(folder: Path, case: str) -> None:
    source, text, message = WRONG[case]
    (folder / "bad.py").write_text(source)
    path = list(sys.path)
    with torch.random.fork_rng(), pytest.raises(TargetError, match=message) as caught:
        load_target(text)
    assert "\n" not in str(caught.value)
    assert sys.path == path


def test_interrupting_the_target_interrupts(folder: Path) -> None:
    (folder / "bad.py").write_text("def task():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_target("bad.py:task")
