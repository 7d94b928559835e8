"""Training: reproducible, lawful, and clear about what it cannot do."""

import dataclasses
import math

import pytest
import torch

from symdyn_core.errors import InputError
from symdyn_neuro.history import History
from symdyn_neuro.tasks import Classification, digits
from symdyn_neuro.training import Rule, Snapshot, perceptron, train

SETTINGS = {"epochs": 2, "learning_rate": 0.2, "weight_decay": 0.05}


@pytest.fixture(scope="module")
def task() -> Classification:
    return digits(seed=0)


def run(
    task: Classification, rule: Rule = Rule.HETEROSYNAPTIC, seed: int = 0, **changes: object
) -> list[Snapshot]:
    model = perceptron([64, 12, 10], rule=rule, seed=seed)
    return list(train(model, task, seed=seed, **{**SETTINGS, **changes}))


def test_learns_and_reports_every_epoch(task):
    snapshots = run(task, epochs=4, weight_decay=0.01)
    assert [s.epoch for s in snapshots] == [0, 1, 2, 3, 4]
    assert [s.steps for s in snapshots] == [0, 44, 88, 132, 176]
    assert snapshots[-1].accuracy > 0.85 > 0.3 > snapshots[0].accuracy
    assert snapshots[-1].loss < snapshots[0].loss


def test_same_seed_same_numbers_other_seed_other_numbers(task):
    assert run(task) == run(task)
    assert run(task) != run(task, seed=1)


def test_the_law_holds_for_the_circuit_and_not_for_frozen_feedback(task):
    circuit = run(task)
    history = History(circuit, Rule.HETEROSYNAPTIC, 0.2, 0.05)
    assert [s.total_mismatch for s in circuit] == pytest.approx(history.predicted_mismatch, rel=1e-5)
    frozen = run(task, Rule.FROZEN_FEEDBACK)
    assert abs(frozen[-1].total_mismatch / history.predicted_mismatch[-1] - 1) > 0.1
    assert all(math.isnan(p) for p in History(frozen, Rule.FROZEN_FEEDBACK, 0.2, 0.05).predicted_mismatch)


def test_rules_start_from_the_same_weights():
    models = {rule: perceptron([6, 5, 4, 3], rule=rule, seed=4) for rule in Rule}
    for name in ("layer1", "layer2", "layer3"):
        weights = [getattr(model, name).weight for model in models.values()]
        assert all(torch.equal(weights[0], weight) for weight in weights)
    assert not models[Rule.FROZEN_FEEDBACK].layer2.feedback.requires_grad
    assert not hasattr(models[Rule.BACKPROP].layer2, "feedback")


def test_the_split_is_a_partition_of_the_digits(task):
    images = torch.cat([task.train_inputs, task.test_inputs])
    assert images.shape == (1797, 64)
    assert len(torch.cat([task.train_targets, task.test_targets]).bincount()) == task.classes == 10
    torch.testing.assert_close(task.train_inputs.mean(0), torch.zeros(64), atol=1e-6, rtol=0)
    assert not torch.equal(digits(seed=1).test_targets, task.test_targets)


def test_history_as_rows_and_csv(task):
    history = History(run(task, Rule.BACKPROP, epochs=1), Rule.BACKPROP, 0.2, 0.05)
    assert history.rows()[1]["mismatch"] is None
    header, *lines = history.to_csv().splitlines()
    assert header == "epoch,steps,loss,accuracy,mismatch,predicted_mismatch,alignment.layer1,alignment.layer2"
    assert [line.split(",")[:2] for line in lines] == [["0", "0"], ["1", "44"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and above 0, got 0"),
        ({"weight_decay": math.nan}, "weight_decay must be finite and at least 0, got nan"),
        ({"learning_rate": 1e300}, r"learning_rate must be at most 3.4e\+38, .* got 1e\+300"),
        ({"weight_decay": 1e300}, r"weight_decay must be at most 3.4e\+38, .* got 1e\+300"),
        ({"batch_size": 1438}, r"batch_size must be in \[1, n_samples=1437\], got 1438"),
        ({"learning_rate": 1e6}, "training diverged: the loss is .* after epoch"),
    ],
)
def test_bad_arguments(task, changes, message):
    with pytest.raises(InputError, match=message):
        run(task, **changes)


@pytest.mark.parametrize("sizes", [[], [3], [3, 0, 2]])
def test_bad_sizes(sizes):
    with pytest.raises(InputError, match=r"sizes must name|must be at least 1, got 0"):
        perceptron(sizes, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_targets": torch.zeros(3)}, r"train_targets \(n,\)"),
        ({"test_targets": torch.zeros(360)}, "test_targets must be int64"),
        ({"test_inputs": torch.full((360, 64), math.inf)}, "test_inputs must be finite"),
        ({"test_inputs": torch.zeros(360, 5)}, "same number of features, got 64 and 5"),
    ],
)
def test_bad_data(task, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(task, **changes)


@pytest.mark.parametrize("size", [0, 1797])
def test_bad_split(size):
    with pytest.raises(InputError, match=r"test_size must be in \[1, 1796\]"):
        digits(seed=0, test_size=size)
