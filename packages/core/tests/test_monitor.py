"""The monitor against the charges, ranks and counts that other parts compute, and against defects put in."""

import csv
import json
import logging
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from symdyn_core.errors import DependencyError, InputError
from symdyn_core.params import FrozenModel
from symdyn_core.symmetry import callbacks, monitor, snapshot
from symdyn_core.symmetry.kinds import (
    GeneralLinear,
    Permutation,
    PositiveRescaling,
    ScaleInvariance,
    SignFlip,
    Symmetry,
)
from symdyn_core.symmetry.matrices import weight_matrices
from symdyn_core.symmetry.monitor import SymmetryMonitor
from symdyn_core.symmetry.remaining import remaining_symmetry
from symdyn_core.symmetry.report import Finding, SymmetryReport
from symdyn_core.symmetry.units import Axis, Units


def network(activation: type[nn.Module] = nn.ReLU, width: int = 12, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 4)
        )


def symmetries_of(model: nn.Sequential, *kinds: Any) -> SymmetryReport:
    """The symmetries of a chain written down by hand: the monitor is tested, not the search."""
    width = model[0].out_features
    found = []
    for layer, reader in (("0", "2"), ("2", "4")):
        writers = (Axis(f"{layer}.weight", 0), Axis(f"{layer}.bias", 0))
        units = Units(layer, width, writers, (Axis(f"{reader}.weight", 1),))
        fans = (model[int(layer)].in_features + 1, model[int(reader)].out_features)
        found += [kind(units, *fans) if kind is GeneralLinear else kind(units) for kind in kinds]
    return SymmetryReport(tuple(Finding(symmetry, 0.0, 1.0) for symmetry in found), ())


def watch(model: nn.Sequential, *kinds: Any, **options: Any) -> SymmetryMonitor:
    return SymmetryMonitor(
        model, symmetries=symmetries_of(model, *(kinds or (PositiveRescaling, Permutation))), **options
    )


def copy_unit(model: nn.Sequential, unit: int, copy: int, scale: float = 1.0) -> None:
    with torch.no_grad():
        model[0].weight[copy] = scale * model[0].weight[unit]
        model[0].bias[copy] = scale * model[0].bias[unit]
        model[2].weight[:, copy] = model[2].weight[:, unit] / scale


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, *, idle: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(torch.randn(32, 6, generator=generator).to(next(model.parameters()).dtype))
        (0.0 * outputs.sum() if idle else outputs.square().mean()).backward()
        optimizer.step()


# -- when --------------------------------------------------------------------------------------------------


def test_checks_come_every_so_many_steps_from_any_start() -> None:
    watched = watch(network(), every=20)
    assert [step for step in range(7, 65) if watched.update(step)] == [7, 20, 40, 60]
    assert watched.update(300) is not None  # steps may be left out
    assert watched.update(300) is None
    with pytest.raises(InputError, match="step must not go back, got 299 after 300"):
        watched.update(299)


def test_a_loss_is_read_only_when_a_check_is_due() -> None:
    class Loud:
        def __float__(self) -> float:
            raise AssertionError

    watched = watch(network(), every=10)
    first = watched.update(0, torch.tensor(2.5, requires_grad=True))
    assert first is not None
    assert first.loss == 2.5
    for step in range(1, 10):
        watched.update(step, Loud())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"every": 2.5}, "every must be a whole number >= 1, got 2.5"),
        ({"tolerance": 1.0}, "tolerance must be in (0, 1), got 1.0"),
        ({"rank_budget": 0}, "rank_budget must be in (0, 1] or None, got 0"),
        ({"learning_rate": 0.1}, "learning_rate and weight_decay must be given together"),
        ({"learning_rate": -0.1, "weight_decay": 0.0}, "learning_rate must be finite and >= 0, got -0.1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        watch(network(), **options)
    assert message in str(caught.value)


def test_the_model_is_only_read() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    SymmetryMonitor(model, torch.eye(6)).update(0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


# -- charges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PositiveRescaling, GeneralLinear, ScaleInvariance])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_charges_are_those_of_the_symmetry(kind: type[Symmetry], dtype: torch.dtype) -> None:
    model = network(width=200).to(dtype)
    report = symmetries_of(model, kind)
    frozen = FrozenModel(model).params
    first = SymmetryMonitor(model, symmetries=report).update(0)
    assert first is not None
    layers = {state.layer: state for state in first.layers}
    for symmetry in report.of_kind(kind.kind):
        charge = symmetry.charge(frozen)
        assert charge is not None
        total = float(charge.trace() if charge.ndim == 2 else charge.sum())
        incoming, outgoing = symmetry.units.squared_norms(frozen)  # type: ignore[attr-defined]
        norm = float(incoming.sum() + outgoing.sum())
        state = layers[symmetry.layer]
        # Sums of squares in the precision of the weights.
        assert state.charge == pytest.approx(total, abs=10 * torch.finfo(dtype).eps * norm)
        if kind is not ScaleInvariance:
            assert state.imbalance == pytest.approx(total / norm, abs=10 * torch.finfo(dtype).eps)


def test_two_charges_of_one_layer_have_a_row_each() -> None:
    model = network()
    report = symmetries_of(model, PositiveRescaling, ScaleInvariance)
    first = SymmetryMonitor(model, symmetries=report).update(0)
    assert first is not None
    kinds = {state.layer: state.kind for state in first.layers if state.kind}
    assert kinds["2"] == "positive rescaling"
    assert kinds["2 (scale invariance)"] == "scale invariance"


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    weights = [value for name, value in model.named_parameters() if name.endswith("weight")]
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    return {
        "SGD": torch.optim.SGD(groups, lr=0.05),
        "AdamW": torch.optim.AdamW(groups, lr=0.05),
        "decoupled Adam": torch.optim.Adam(groups, lr=0.05, decoupled_weight_decay=True),
    }


@pytest.mark.parametrize("name", ["SGD", "AdamW", "decoupled Adam"])
def test_without_a_gradient_the_charge_changes_by_decay_alone(name: str) -> None:
    model = network().double()
    optimizer = optimizers(model)[name]
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    watched = watch(model, optimizer=optimizer, every=5)
    watched.update(0)
    for step in range(1, 6):
        steps(model, optimizer, 1, idle=True)
        watched.update(step)
        schedule.step()
    second = watched.snapshots[-1]
    for state in second.layers[:2]:
        assert state.charge_change == pytest.approx(state.decay_change, rel=1e-9)
        assert abs(state.charge_change or 0.0) > 0.001


def test_fixed_rates_stand_in_for_an_optimizer() -> None:
    model = network().double()
    watched = watch(model, learning_rate=0.1, weight_decay=0.5, every=1)
    first = watched.update(0)
    second = watched.update(1)
    assert first is not None
    assert second is not None
    assert second.layers[0].charge_change == 0
    assert first.layers[0].charge is not None
    assert second.layers[0].decay_change == pytest.approx(first.layers[0].charge * (0.95**2 - 1))


def test_momentum_lengthens_the_step_of_decay() -> None:
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.5, weight_decay=0.1)
    watched = watch(model, optimizer=optimizer, every=60)
    steps(model, optimizer, 20, idle=True)  # until the momentum has settled
    watched.update(20)
    steps(model, optimizer, 40, idle=True)
    second = watched.update(60)
    assert second is not None
    # The settled decay is that of learning rate 0.01 up to its second order, learning_rate * decay = 1e-3.
    assert second.layers[0].charge_change == pytest.approx(second.layers[0].decay_change, rel=0.005)
    assert second.layers[0].decay_change == pytest.approx(
        -0.08 * (watched.snapshots[0].layers[0].charge or 0), rel=0.05
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_decay_through_a_preconditioner_has_no_factor(decay: float) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=decay)
    watched = watch(model, optimizer=optimizer, every=1)
    watched.update(0)
    second = watched.update(1)
    assert second is not None
    assert second.layers[0].decay_change == (None if decay else 0.0)


# -- units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 12, 300])
@pytest.mark.parametrize("signs", [False, True])
def test_dead_and_equal_units_are_those_of_the_full_count(width: int, signs: bool) -> None:
    model = network(nn.Tanh if signs else nn.ReLU, width)
    kinds = (SignFlip, Permutation) if signs else (PositiveRescaling, Permutation)
    scale = -1.0 if signs else 3.0
    copy_unit(model, 0, 1, scale)
    copy_unit(model, 0, 5, scale)
    copy_unit(model, 2, 3)
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7], model[2].weight[:, 7] = 0, 0, 0
        model[0].weight[3] *= 1.001  # a copy need not be exact
        if not signs:
            model[2].weight[:, 6] = 0  # nothing reads it: dead whatever it receives
    report = symmetries_of(model, *kinds)
    first = SymmetryMonitor(model, symmetries=report).update(0)
    assert first is not None
    expected = {state.layer: state for state in remaining_symmetry(model, symmetries=report).units}
    for state in first.layers[:2]:
        count = expected[state.layer]
        assert state.units == width
        assert state.dead_units == len(count.dead)
        assert state.duplicate_units == count.units - len(count.dead) - count.distinct
    assert first.layers[0].dead_units == (1 if signs else 2)
    assert first.layers[0].duplicate_units == 3
    assert first.layers[0].weakest == first.layers[0].distance == 0


@pytest.mark.parametrize("width", [8, 40, 300])
def test_distance_is_that_of_the_nearest_reflection(width: int) -> None:
    model = network(nn.Tanh, width).double()
    copy_unit(model, 0, 1)
    with torch.no_grad():
        model[0].bias[1] += 0.01
        model[2].weight *= 3  # the second layer's nearest state is that of a pair that nobody put there
    report = symmetries_of(model, Permutation)
    frozen = FrozenModel(model).params
    first = SymmetryMonitor(model, symmetries=report).update(0)
    assert first is not None
    assert first.layers[0].distance == pytest.approx(0.01 / math.sqrt(2), rel=1e-9)
    for symmetry, state in zip(report.of_kind("permutation"), first.layers, strict=False):
        least_norm = float(symmetry.units.all_weights(frozen).norm(dim=1).min())  # type: ignore[attr-defined]
        exact = min(symmetry.distance(frozen), least_norm)
        # The pairs that are compared exactly are the nearest in projection: at worst a little further apart.
        assert exact * (1 - 1e-12) <= state.distance <= 1.25 * exact  # type: ignore[operator]


def test_a_layer_of_nothing_but_copies_is_one_unit() -> None:
    model = network(width=300)
    with torch.no_grad():
        for value in (model[0].weight, model[0].bias, model[2].weight.T):
            value[:] = value[:1].clone()
            value[150:] *= 2
    first = watch(model, Permutation).update(0)
    assert first is not None
    assert first.layers[0].duplicate_units == 298  # two kinds of unit


def test_blocks_of_units_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(width=300)
    for unit in range(0, 200, 20):
        copy_unit(model, unit, unit + 97, scale=2.0)
    whole = watch(model).update(0)
    monkeypatch.setattr(snapshot, "BLOCK", 64)
    assert whole is not None
    parted = watch(model).update(0)
    assert parted is not None
    for state, expected in zip(parted.layers, whole.layers, strict=True):
        assert state.duplicate_units == expected.duplicate_units
        # More candidates for the nearest pair: never further apart.
        assert state.distance is None or state.distance <= expected.distance  # type: ignore[operator]
    assert whole.layers[0].duplicate_units == 10


def test_scales_in_front_of_a_norm_do_not_hide_copies() -> None:
    model = network()
    copy_unit(model, 0, 1)
    with torch.no_grad():
        model[0].weight[1] *= 5
        model[0].bias[1] *= 5
    report = symmetries_of(model, Permutation)
    scale = ScaleInvariance(Units("0", 12, (Axis("0.weight", 0), Axis("0.bias", 0)), ()))
    with_scale = SymmetryReport((*report.found, Finding(scale, 0.0, 1.0)), ())
    counts = [SymmetryMonitor(model, symmetries=each).update(0) for each in (report, with_scale)]
    assert [count.layers[0].duplicate_units for count in counts if count] == [0, 1]


# -- ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
def test_ranks_are_those_of_the_singular_values(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 7, generator=generator, dtype=torch.float64) for size in shape)
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(left @ right.T)
    result = snapshot.spectrum(next(weight_matrices(layer)))
    values = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert result.rank == 7
    assert result.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_ranks_of_grouped_convolutions_add_up() -> None:
    with torch.random.fork_rng():
        layer = nn.Conv2d(8, 8, 3, groups=4)
    first = SymmetryMonitor(nn.Sequential(layer)).update(0)
    assert first is not None
    assert (first.layers[0].rank, first.layers[0].full_rank) == (8, 8)


def test_directions_between_linear_maps_are_counted() -> None:
    model = network(nn.Identity)
    with torch.no_grad():
        keep = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0][:, :5]
        model[0].weight.copy_(keep @ keep.T @ model[0].weight)
        model[0].bias.copy_(keep @ keep.T @ model[0].bias)
        model[2].weight.copy_(model[2].weight @ keep @ keep.T)
    report = symmetries_of(model, GeneralLinear)
    first = SymmetryMonitor(model, symmetries=report).update(0)
    assert first is not None
    expected = {state.layer: state.rank for state in remaining_symmetry(model, symmetries=report).directions}
    assert {state.layer: state.live_directions for state in first.layers if state.width} == expected
    assert expected["0"] == 5


def test_wide_matrices_take_turns_within_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])

    def slow(matrix: Any) -> snapshot.Spectrum:
        clock[0] += 1.0 if min(matrix.shape) > monitor.NARROW else 0.0
        return snapshot.Spectrum(1, 1.0)

    monkeypatch.setattr(monitor, "spectrum", slow)
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(130, 130), nn.Linear(130, 130), nn.Linear(130, 4))
    watched = SymmetryMonitor(model, every=1, rank_budget=0.02)
    seen = []
    for step in range(300):
        state = watched.update(step)
        assert state is not None
        seen.append([layer.rank is not None for layer in state.layers])
        clock[0] += 1.0  # of training
    counts = np.array(seen)
    assert counts[0].all()
    assert counts[:, 2].all()
    # 2 % of 300 s of training, after a first check that is not counted; in turns.
    assert counts[1:, 0].sum() + counts[1:, 1].sum() == 6
    assert abs(int(counts[:, 0].sum()) - int(counts[:, 1].sum())) <= 1
    everything = SymmetryMonitor(model, every=1, rank_budget=None)
    assert all(layer.rank for step in range(3) for layer in everything.update(step).layers)  # type: ignore[union-attr]


# -- alarms ------------------------------------------------------------------------------------------------


def damage(model: nn.Sequential, what: str) -> None:
    with torch.no_grad():
        if what == "dead units":
            model[0].weight[3], model[0].bias[3], model[2].weight[:, 3] = 0, 0, 0
        elif what == "duplicate units":
            copy_unit(model, 0, 4, scale=2.0)
        elif what == "rank":
            left, values, right = torch.linalg.svd(model[2].weight, full_matrices=False)
            model[2].weight.copy_(left[:, :9] @ (values[:9, None] * right[:9]))
        elif what == "effective rank":
            left, values, right = torch.linalg.svd(model[2].weight, full_matrices=False)
            model[2].weight.copy_(left @ (values[:, None] ** 4 * right))
        elif what == "imbalance":
            model[0].weight *= 10
        elif what == "not finite":
            model[2].weight[0, 0] = math.nan


@pytest.mark.parametrize(
    ("what", "layer"),
    [
        ("dead units", "0"),
        ("duplicate units", "0"),
        ("rank", "2"),
        ("effective rank", "2"),
        ("imbalance", "0"),
        ("not finite", "2.weight"),
    ],
)
def test_each_alarm_fires_once_with_reason_and_remedy(
    what: str, layer: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    watched = watch(model, every=10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with caplog.at_level(logging.WARNING, logger="symdyn"):
        watched.update(0)
        assert not watched.alarms
        damage(model, what)
        for step in (10, 20):
            watched.update(step)
    assert [(alarm.step, alarm.layer) for alarm in watched.alarms if alarm.what == what] == [(10, layer)]
    alarm = next(alarm for alarm in watched.alarms if alarm.what == what)
    assert alarm.reason
    assert alarm.remedy.endswith(".")
    assert alarm in watched.snapshots[1].alarms
    assert not watched.snapshots[2].alarms
    assert [record.message for record in caplog.records] == [str(alarm) for alarm in watched.alarms]
    assert capsys.readouterr() == ("", "")


def test_a_healthy_run_raises_no_alarm() -> None:
    model = network(width=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = watch(model, every=10, optimizer=optimizer)
    for step in range(25):
        steps(model, optimizer, 1)
        watched.update(step)
    assert watched.alarms == []


def test_numbers_that_are_not_finite_stay_in_their_layers() -> None:
    model = network()
    watched = watch(model, every=1)
    watched.update(0)
    damage(model, "not finite")
    second = watched.update(1)
    assert second is not None
    by_layer = {state.layer: state for state in second.layers}
    assert by_layer["0"].charge is None  # reads from the matrix
    assert by_layer["2"].rank is None
    assert by_layer["0"].rank == 6
    assert by_layer["4"].rank == 4
    third = watched.update(2)
    assert third is not None
    assert third.layers[0].charge_change is None


def test_what_was_lopsided_from_the_start_is_no_event() -> None:
    model = network()
    damage(model, "imbalance")
    watched = watch(model, every=1)
    watched.update(0)
    assert watched.alarms == []


# -- models ------------------------------------------------------------------------------------------------


def test_a_model_is_found_inside_its_wrappers() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    for wrapped in (nn.DataParallel(model), compiled, nn.DataParallel(compiled)):
        first = watch_wrapped(wrapped, model)
        assert [state.layer for state in first.layers] == ["0", "2", "4"]


def watch_wrapped(wrapped: nn.Module, model: nn.Sequential) -> monitor.Snapshot:
    report = symmetries_of(model, PositiveRescaling, Permutation)
    first = SymmetryMonitor(wrapped, symmetries=report).update(0)
    assert first is not None
    return first


def test_the_search_finds_what_the_tests_write_down() -> None:
    model = network()
    found = SymmetryMonitor(model, torch.randn(16, 6, generator=torch.Generator().manual_seed(0))).update(0)
    by_hand = watch(model).update(0)
    assert found is not None
    assert by_hand is not None
    for state, expected in zip(found.layers, by_hand.layers, strict=True):
        assert state.numbers() == pytest.approx(expected.numbers(), rel=1e-5)


def test_a_model_that_cannot_be_read_is_watched_for_ranks(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with caplog.at_level(logging.WARNING, logger="symdyn"):
        watched = SymmetryMonitor(model, torch.ones(2, 5), every=1)  # the model takes 6
        first, second = watched.update(0), watched.update(1)
    assert first is not None
    assert second is not None
    assert first.layers[0].rank == second.layers[0].rank == 6
    assert first.layers[0].charge is None
    assert len(caplog.records) == 1
    assert "only the ranks" in caplog.text


def test_a_changed_model_is_refused() -> None:
    model = network()
    watched = watch(model, every=1)
    watched.update(0)
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())
    assert watched.update(1) is not None  # another tensor of the same shape is the same parameter
    model[4] = nn.Linear(12, 5, device="meta").to_empty(device="cpu")
    with pytest.raises(InputError, match=r"parameter '4.weight' had shape \(4, 12\) .* now has \(5, 12\)"):
        watched.update(2)
    del model[4]
    with pytest.raises(InputError, match="'4.weight' .* now is gone"):
        watched.update(3)


def test_parameters_elsewhere_and_symmetries_of_others_are_refused() -> None:
    with pytest.raises(InputError, match="got one on the meta device"):
        SymmetryMonitor(nn.Linear(2, 2, device="meta"))
    with pytest.raises(InputError, match="not initialised yet"):
        SymmetryMonitor(nn.LazyLinear(2))
    with pytest.raises(InputError, match="symmetries must be those of this model, got one of '2.weight'"):
        SymmetryMonitor(network()[:1], symmetries=symmetries_of(network(), Permutation))
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got str"):
        SymmetryMonitor("model")  # type: ignore[arg-type]


def test_half_precision_and_autocast_are_measured_as_they_are() -> None:
    model = network(width=64)
    exact = watch(model).update(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = watch(model).update(0)
    assert exact == cast
    half = watch(model.to(torch.bfloat16)).update(0)
    assert exact is not None
    assert half is not None
    # bfloat16 has eight bits: 0.4 %.
    assert half.layers[0].charge == pytest.approx(exact.layers[0].charge, rel=0.02)


# -- tables, files, states ---------------------------------------------------------------------------------


def run(model: nn.Sequential, watched: SymmetryMonitor, begin: int, end: int) -> None:
    for step in range(begin, end):
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(0.99)
        watched.update(step, loss=1.0 / (step + 1))


def test_table_and_file_say_the_same(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "log" / "run.csv"
    watched = watch(model, every=5, path=path)
    run(model, watched, 0, 23)
    frame = watched.to_frame()
    assert len(frame) == 5 * 3
    assert frame["step"].unique().tolist() == [0, 5, 10, 15, 20]
    assert frame.columns.tolist() == list(monitor.COLUMNS)
    assert path.read_bytes() == watched.write_csv(tmp_path / "copy.csv").read_bytes()
    back = pd.read_csv(path, dtype={"layer": str})
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    with path.open() as stream:
        assert len(list(csv.reader(stream))) == 16


def test_an_old_file_is_replaced_and_a_lost_one_written_again(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("old\n")
    model = network()
    watched = watch(model, every=1, path=path)
    assert path.read_text() == "old\n"
    watched.update(0)
    path.unlink()
    watched.update(1)
    assert path.read_bytes() == watched.write_csv(tmp_path / "copy.csv").read_bytes()


def test_a_path_without_a_place_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        watch(network(), path=tmp_path / "file" / "run.csv")


@pytest.mark.parametrize("through", ["json", "torch", "pickle"])
def test_a_resumed_run_is_an_uninterrupted_one(through: str, tmp_path: Path) -> None:
    whole_model, parted_model = network(), network()
    options: dict[str, Any] = {"every": 5, "learning_rate": 0.01, "weight_decay": 1.0, "rank_budget": None}
    whole = watch(whole_model, **options)
    run(whole_model, whole, 0, 30)
    first = watch(parted_model, **options)
    run(parted_model, first, 0, 13)
    damage(parted_model, "dead units")
    damage(whole_model, "dead units")
    if through == "pickle":
        second = pickle.loads(pickle.dumps(first))  # noqa: S301
        parted_model = second._model
    else:
        second = watch(parted_model, **options, path=tmp_path / "run.csv")
        if through == "json":
            state = json.loads(json.dumps(first.state_dict()))
        else:
            torch.save(first.state_dict(), tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
        second.load_state_dict(state)
    run(parted_model, second, 13, 30)
    run(whole_model, whole, 30, 43)
    run(parted_model, second, 30, 43)
    frames = [each.to_frame().query("step < 13 or step > 30") for each in (whole, second)]
    assert [state.step for state in second.snapshots] == list(range(0, 43, 5))
    pd.testing.assert_frame_equal(frames[0].iloc[:9], frames[1].iloc[:9])
    assert [alarm.what for alarm in second.alarms] == [alarm.what for alarm in whole.alarms] == ["dead units"]


def test_a_state_of_another_model_is_refused() -> None:
    watched = watch(network())
    watched.update(0)
    other = SymmetryMonitor(network())
    with pytest.raises(InputError, match="state must be that of a monitor with charges of"):
        other.load_state_dict(watched.state_dict())


# -- figure ------------------------------------------------------------------------------------------------


def test_figure_shows_what_was_measured_and_the_alarms() -> None:
    model = network()
    watched = watch(model, every=5)
    with pytest.raises(InputError, match="nothing has been measured yet"):
        watched.figure()
    run(model, watched, 0, 10)
    damage(model, "dead units")
    run(model, watched, 10, 20)
    figure = watched.figure()
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert len(labels) == 4
    first = figure.axes[0].get_lines()
    assert first[0].get_xdata().tolist() == [0, 5, 10, 15]
    assert first[0].get_ydata()[0] == watched.snapshots[0].layers[0].imbalance
    assert "step 10, layer 0: 1 of 12 units have lost their weights" in figure.axes[-1].get_xlabel()
    only_ranks = SymmetryMonitor(model)
    only_ranks.update(0)
    assert len(only_ranks.figure().axes) == 1


# -- adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "make", "name", "extra"),
    [
        (
            "lightning.pytorch.callbacks",
            callbacks.lightning_callback,
            "LightningSymmetryCallback",
            "lightning",
        ),
        ("transformers", callbacks.trainer_callback, "TrainerSymmetryCallback", "transformers"),
    ],
)
def test_a_missing_library_names_its_extra(
    module: str, make: Any, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks._lightning_class.cache_clear()
    callbacks._trainer_class.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"symdyn-core\[{extra}\]"):
        make(watch(network()))
    with pytest.raises(DependencyError):
        getattr(callbacks, name)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = callbacks.Nonsense


@pytest.mark.filterwarnings("default")
def test_lightning_trains_with_the_callback(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(epochs: int, checkpoint: str | None) -> tuple[Any, SymmetryMonitor]:
        module = Module()
        watched = SymmetryMonitor(module.net, torch.eye(6), every=4)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[callbacks.LightningSymmetryCallback(watched)],
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        data = torch.utils.data.TensorDataset(torch.randn(80, 6, generator=torch.Generator().manual_seed(0)))
        loader = torch.utils.data.DataLoader(data, batch_size=8)
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return trainer, watched

    with torch.random.fork_rng():
        trainer, watched = fit(1, None)
        assert [state.step for state in watched.snapshots] == [1, 4, 8]
        assert all(state.loss is not None for state in watched.snapshots)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        _, resumed = fit(2, str(tmp_path / "model.ckpt"))
        assert [state.step for state in resumed.snapshots] == [1, 4, 8, 12, 16, 20]


@pytest.mark.filterwarnings("default")
def test_the_hugging_face_trainer_trains_with_the_callback(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": self.net(x).square().mean()}

    def train(steps: int, checkpoint: str | None) -> SymmetryMonitor:
        model = Model()
        watched = SymmetryMonitor(model.net, torch.eye(6), every=4)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            save_steps=5,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        data = [{"x": row} for row in torch.randn(80, 6, generator=torch.Generator().manual_seed(0))]
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            callbacks=[callbacks.TrainerSymmetryCallback(watched)],
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return watched

    numpy_state = np.random.get_state()  # noqa: NPY002  # the trainer seeds it
    with torch.random.fork_rng():
        watched = train(10, None)
        assert [state.step for state in watched.snapshots] == [1, 4, 8]
        assert watched.snapshots[-1].loss is not None
        resumed = train(18, str(tmp_path / "checkpoint-10"))
        assert [state.step for state in resumed.snapshots] == [1, 4, 8, 12, 16]
    np.random.set_state(numpy_state)  # noqa: NPY002
