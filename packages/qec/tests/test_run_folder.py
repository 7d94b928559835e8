"""A run in a folder: that it goes on where it stopped, and what it refuses."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import safetensors.torch
import torch

from symdyn_core.errors import DependencyError, InputError
from symdyn_qec.circuits import bb_memory, surface_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.run_folder import CURVE, FIGURE, STATE, Baseline, Point, draw, run_in_folder
from symdyn_qec.validation import ValidationShots, count_baseline


class Doubling:
    """A training of one number: every step doubles it, and the loss is its inverse."""

    def __init__(self, steps=6):
        self.steps, self.step, self.value = steps, 0, torch.ones(1)

    def run(self):
        while self.step < self.steps:
            self.value = 2 * self.value
            self.step += 1
            yield 1 / float(self.value)

    def state(self):
        return {"value": self.value}

    def restore(self, state, step):
        self.value, self.step = state["value"], step


class Killed(Exception):
    pass


def kill(step, loss):
    if step == 3:
        raise Killed


def go(folder, training=None, **changes):
    training = training or Doubling()
    arguments = {
        "identity": {"name": "doubling", "p": (0.1, 0.2)}, "steps": training.steps, "batch_size": 10,
        "every": 2, "noise": "p = 0.1", "test": lambda: 7 - training.step, "tested": 20,
    }  # fmt: skip
    return run_in_folder(training, training.run, folder, **(arguments | changes))


def test_a_run_goes_on_where_it_was_saved_last(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path, on_step=kill)
    assert not (tmp_path / FIGURE).exists()
    training, steps, points = Doubling(), [], []
    curve, baseline = go(
        tmp_path, training, on_step=lambda step, loss: steps.append(step), on_point=points.append
    )
    assert (steps, training.value.item(), baseline) == ([3, 4, 5, 6], 2.0**6, None)
    assert points == curve[1:]
    # The mean of the losses since the last point: 1/2 and 1/4, and so on.
    assert [(point.step, point.shots, point.loss, point.failures, point.tested) for point in curve] == [
        (2, 20, 3 / 8, 5, 20), (4, 40, 3 / 32, 3, 20), (6, 60, 3 / 128, 1, 20),
    ]  # fmt: skip
    assert curve[0].seconds < curve[1].seconds < curve[2].seconds
    assert [line.split(",")[0] for line in (tmp_path / CURVE).read_text().splitlines()] == [
        "step", "2", "4", "6",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {STATE, CURVE, FIGURE}  # nothing temporary is left
    # Nothing is left to do.
    assert go(tmp_path, on_step=kill) == (curve, None)


def test_the_last_step_is_a_point_as_well(tmp_path):
    curve, _ = go(tmp_path, Doubling(steps=5))
    assert [point.step for point in curve] == [2, 4, 5]


def test_the_baseline_is_counted_once_for_the_same_shots(tmp_path):
    counted, heard = [], []

    def count(failures):
        counted.append(failures)
        return Baseline("other", failures)

    with pytest.raises(Killed):
        go(tmp_path, on_step=kill, baseline=lambda: count(4))
    _, baseline = go(tmp_path, baseline=lambda: count(5), on_baseline=lambda *known: heard.append(known))
    assert (baseline, counted, heard) == (Baseline("other", 4), [4], [(Baseline("other", 4), 20)])
    # A finished run keeps it, but says nothing of other shots.
    assert go(tmp_path)[1] == Baseline("other", 4)
    assert go(tmp_path, tested=30)[1] is None
    assert go(tmp_path, noise="p = 0.2", baseline=lambda: count(6))[1] is None
    with pytest.raises(Killed):
        go(tmp_path / "moved", on_step=kill, baseline=lambda: count(6))
    assert go(tmp_path / "moved", noise="p = 0.2", baseline=lambda: count(7))[1] == Baseline("other", 7)
    assert counted == [4, 6, 7]


def test_a_run_of_another_identity_is_left_alone(tmp_path):
    go(tmp_path)
    state = (tmp_path / STATE).read_bytes()
    with pytest.raises(
        InputError, match="holds a run with name=doubling, not halving; give the same or another folder"
    ):
        go(tmp_path, identity={"name": "halving", "p": (0.1, 0.2)})
    with pytest.raises(InputError, match=r"with p=\[0.1, 0.2\], not \[0.1, 0.3\]"):
        go(tmp_path, identity={"name": "doubling", "p": (0.1, 0.3)})
    with pytest.raises(InputError, match="with width=None, not 3"):
        go(tmp_path, identity={"name": "doubling", "p": (0.1, 0.2), "width": 3})
    assert (tmp_path / STATE).read_bytes() == state


def test_a_damaged_state_is_refused(tmp_path):
    go(tmp_path)
    whole = (tmp_path / STATE).read_bytes()
    tensors = safetensors.torch.load(whole)
    damaged = [b"", b"nonsense", whole[:-1], safetensors.torch.save(tensors)]
    for progress in ("[]", "{", json.dumps({"identity": {}, "step": 2, "curve": [{}]})):
        damaged.append(safetensors.torch.save(tensors, metadata={"progress": progress}))
    for content in damaged:
        (tmp_path / STATE).write_bytes(content)
        with pytest.raises(InputError, match="is not the state of a training run"):
            go(tmp_path)


def test_a_folder_that_takes_no_files_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to"):
        go(tmp_path / "file", on_step=kill)


@pytest.mark.parametrize("failures", [0, 5])
def test_the_figure_shows_the_baseline(failures):
    curve = [Point(step, step * 10, 1.0, 1 / step, 20 // step, 40) for step in (2, 4, 6)]
    right = draw(curve, "p = 0.1", Baseline("other", failures)).axes[1]
    assert [text.get_text() for text in right.get_legend().get_texts()] == [f"other: {failures} of 40"]
    (line,) = (line for line in right.lines if line.get_linestyle() == "--")
    assert list(line.get_ydata()) == [failures / 40] * 2
    assert draw(curve, "p = 0.1").axes[1].get_legend() is None


def test_zero_failures_can_be_drawn(tmp_path):
    go(tmp_path, test=lambda: 0, baseline=lambda: Baseline("other", 0))
    assert ElementTree.parse(tmp_path / FIGURE).getroot().tag.endswith("svg")


def test_a_baseline_fails_as_often_as_it_does_by_itself():
    pymatching = pytest.importorskip("pymatching")
    circuit = surface_memory(3, 3, 0.02)
    cases = [ValidationShots.sample(circuit, 100, seed) for seed in (1, 2)]
    matching = pymatching.Matching(circuit.detector_error_model(decompose_errors=True))
    expected = [case.failures(matching.decode_batch(case.detectors)) for case in cases]
    heard = []
    found = count_baseline("pymatching", cases, lambda baseline, shots: heard.append((baseline, shots)))
    assert found == Baseline("pymatching", sum(expected))
    assert heard[-1] == (found, 200)
    assert (Baseline("pymatching", expected[0]), 100) in heard
    assert count_baseline("vacuous", cases).failures == sum(
        case.failures(np.zeros_like(case.observables)) for case in cases
    )


def test_baselines_that_cannot_decode_are_refused(monkeypatch):
    cases = [ValidationShots.sample(bb_memory(bivariate_bicycle("bb72"), 0.003, 1, "Z"), 4, 0)]
    with pytest.raises(InputError, match="unknown decoder 'bpost'"):
        count_baseline("bpost", cases)
    with pytest.raises(InputError, match="the validation circuit cannot be decoded by matching"):
        count_baseline("pymatching", cases)
    monkeypatch.setattr("symdyn_qec.baselines.extra.find_spec", lambda module: None)
    with pytest.raises(
        DependencyError, match=r"needs the package ldpc: pip install 'symdyn-qec\[baselines\]'"
    ):
        count_baseline("bposd", cases)
