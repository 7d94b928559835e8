"""Training: what is learnt, that it resumes to the same bits, and what it refuses."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import bb_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.commands import app
from symdyn_qec.networks.sector import BASES, SectorNetwork, SectorView
from symdyn_qec.networks.torus import TorusNetwork
from symdyn_qec.run_folder import CURVE, FIGURE, STATE
from symdyn_qec.shipped import shipped
from symdyn_qec.training import Settings, Teacher, Training, flip_loss
from symdyn_qec.training_run import (
    CALIBRATION_STRENGTHS,
    RELIABILITY,
    calibrate,
    count_failures,
    measure_reliability,
    train,
)
from symdyn_qec.validation import Validation, ValidationShots

SMALL = Settings(rounds=2, width=4, layers=1, batch_size=16, steps=6, warmup=2)
CHECK = Validation(every=2, shots=16)


@pytest.fixture(scope="module")
def code():
    return bivariate_bicycle("bb72")


class Killed(Exception):
    pass


def stop_after(count):
    def on_step(step, loss):
        if step == count:
            raise Killed

    return on_step


def weights(folder):
    return Checkpoint.load(folder).network.state_dict()


def test_an_interrupted_run_ends_with_the_same_bits(code, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(code, SMALL, whole, validation=CHECK)
    with pytest.raises(Killed):
        train(code, SMALL, parts, validation=CHECK, on_step=stop_after(3))
    assert not (parts / "decoder.json").exists()
    curve = train(code, SMALL, parts, validation=CHECK)
    assert [point.step for point in curve] == [2, 4, 6]
    assert (parts / STATE).read_bytes() != b""
    first, second = weights(whole), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = tmp_path / "other"
    train(code, dataclasses.replace(SMALL, seed=1), other, validation=CHECK)
    assert not all(torch.equal(first[name], value) for name, value in weights(other).items())


def test_a_finished_run_stays_as_it_is_and_is_not_overwritten(code, tmp_path):
    curve = train(code, SMALL, tmp_path, validation=CHECK)
    before = weights(tmp_path)
    assert train(code, SMALL, tmp_path, validation=CHECK) == curve
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())
    rows = (tmp_path / CURVE).read_text().splitlines()
    assert rows[0] == "step,shots,seconds,loss,failures,tested"
    assert [row.split(",")[:2] for row in rows[1:]] == [["2", "32"], ["4", "64"], ["6", "96"]]
    assert (tmp_path / FIGURE).read_text().startswith("<?xml")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [CURVE, FIGURE, RELIABILITY, STATE, "decoder.json", "model.safetensors"]
    )  # nothing temporary is left
    # A run of other settings is left alone.
    state = (tmp_path / STATE).read_bytes()
    with pytest.raises(InputError, match="holds a run with steps=6, not 7; give the same or another folder"):
        train(code, dataclasses.replace(SMALL, steps=7), tmp_path, validation=CHECK)
    assert (tmp_path / STATE).read_bytes() == state
    (tmp_path / STATE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not the state of a training run"):
        train(code, SMALL, tmp_path, validation=CHECK)


def test_reliability_is_measured_on_other_shots_than_calibration_is_fitted_on(code, monkeypatch):
    seeds = []

    def derive(*parts):
        seeds.append(derive_seed(*parts))
        return seeds[-1]

    monkeypatch.setattr("symdyn_qec.training_run.derive_seed", derive)
    raw = Checkpoint.of(TorusNetwork(code, width=4, layers=1), code, SMALL.rounds, training={})
    with pytest.raises(InputError, match="call calibrate first"):
        measure_reliability(raw, SMALL.p, 64)
    bins = measure_reliability(calibrate(raw, SMALL.p, 64), SMALL.p, 64)
    assert sum(found.shots for found in bins) == len(BASES) * 64
    assert len(set(seeds)) == len(seeds) == 2 * len(BASES) * CALIBRATION_STRENGTHS


def test_a_small_network_learns_from_flips_or_from_what_a_teacher_says(code):
    settings = dataclasses.replace(SMALL, network="sector", width=8, steps=4, batch_size=32)
    plain = Training(code, settings)
    losses = list(plain.run())
    teacher = Checkpoint.of(
        TorusNetwork(code, width=16, layers=1, seed=5), code, settings.rounds, training={}
    )
    taught = Training(code, settings, teacher=teacher)
    lessons = list(taught.run())
    assert plain.step == taught.step == 4
    assert losses != lessons
    said = Teacher(teacher, code, settings.rounds, torch.device("cpu"))
    checks = [torch.ones(3, 2, settings.rounds + 1, code.l, code.m, dtype=torch.uint8)] * 2
    increments, net = said(checks)
    for number, basis in enumerate(BASES):
        found = teacher.network(checks[number])
        view = SectorView(code, basis)
        own = torch.sigmoid(found.increments[:, number])[..., view.qubits]
        torch.testing.assert_close(increments.chunk(2)[number], own, atol=1e-5, rtol=1e-4)
        own = torch.sigmoid(found.net[:, number])[..., view.qubits]
        torch.testing.assert_close(net.chunk(2)[number], own, atol=1e-5, rtol=1e-4)


def test_training_starts_from_the_weights_of_another_size(code):
    small = Checkpoint.of(TorusNetwork(code, width=8, layers=1, seed=5), code, rounds=2, training={})
    settings = dataclasses.replace(SMALL, width=8, layers=1, rounds=3)
    training = Training(bivariate_bicycle("bb108"), settings, start=small)
    for network in (training.network, training.averaged):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, small.network.state_dict()[name])
    next(iter(training.run()))
    assert training.network.code.cells == 54
    for name, value in (("network", "sector"), ("width", 6), ("layers", 2)):
        with pytest.raises(InputError, match=f"{name} must be .* to start from .* got {value}"):
            Training(code, dataclasses.replace(settings, **{name: value}), start=small)


def test_teachers_that_do_not_fit_are_refused(code):
    teacher = Checkpoint.of(TorusNetwork(code, width=4, layers=1), code, SMALL.rounds, training={})
    with pytest.raises(InputError, match="a teacher is for a network of one sector"):
        Training(code, SMALL, teacher=teacher)
    small = dataclasses.replace(SMALL, network="sector")
    with pytest.raises(InputError, match="code must have the polynomials of .* got"):
        Training(bivariate_bicycle("bb90"), small, teacher=teacher)
    pupil = dataclasses.replace(teacher, network=SectorNetwork(code, width=4, layers=1))
    with pytest.raises(InputError, match="a teacher must predict both kinds of flips"):
        Training(code, small, teacher=pupil)
    with pytest.raises(InputError, match="network must be torus or sector, got 'cube'"):
        dataclasses.replace(SMALL, network="cube")


def test_the_loss_falls_and_flips_are_learnt(code):
    settings = Settings(rounds=1, p=(0.006, 0.006), width=8, layers=1, batch_size=64, steps=90, warmup=10)
    losses = list(Training(code, dataclasses.replace(settings, learning_rate=0.01)).run())
    # By then the rates of flips are known; what follows is learnt from detectors.
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[15:25])


def test_perfect_predictions_have_no_loss_and_unlearnable_increments_do_not_count():
    flips = torch.randint(0, 2, (4, 2, 3, 5), generator=torch.Generator().manual_seed(0))
    learnable, own = torch.ones(4, 2, 3), torch.tensor([[1.0, 0.0]] * 4)
    learnable[:, 1, 0] = 0
    sure = 40.0 * (2 * flips - 1)
    net = 40.0 * (2 * (flips.sum(dim=2) % 2) - 1).float()
    loss = flip_loss(lambda checks: (sure, net), torch.empty(0), flips, learnable, own)
    assert loss < 1e-6
    for place, expected in (
        ((0, 1, 0, 0), 0.0),
        ((0, 0, 0, 0), 7 * 40 / 3 / 5 / 4),
        ((0, 1, 1, 0), 2 * 40 / 2 / 5 / 4),
    ):
        wrong = sure.clone()
        wrong[place] *= -1
        loss = flip_loss(lambda checks, wrong=wrong: (wrong, net), torch.empty(0), flips, learnable, own)
        assert float(loss) == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device(code, tmp_path):
    curve = train(code, SMALL, tmp_path, validation=CHECK, device="cuda", half_precision=True)
    assert curve[-1].step == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1 and warmup 0, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0.0"),
        ({"clip": -1.0}, "clip must be finite and > 0, got -1.0"),
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
        ({"p": (0.001, 0.9)}, r"p must be in \[0, 0.75\], got 0.9"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        Settings(**changes)


def test_from_the_command_line(tmp_path):
    pytest.importorskip("ldpc")
    command = ["train", "--out", str(tmp_path), "--rounds", "2", "--width", "4", "--layers", "1"]
    command += ["--batch-size", "16", "--steps", "2", "--validate-every", "2", "--validate-shots", "16"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "32 shots in" in result.stdout
    training = Checkpoint.load(tmp_path).training
    assert training["shots"] == 32
    failures = training["baseline"]["failures"]
    assert training["baseline"]["name"] == "bposd"
    assert f"of 32 shots fail, bposd {failures}\n" in result.stderr
    assert f", bposd {failures} ({failures / 32:.2%})" in result.stdout
    assert str(tmp_path / RELIABILITY) in result.stderr
    assert (tmp_path / RELIABILITY).read_text().startswith("<?xml")
    for bad, message in (
        (["--p", "low:high"], "--p must be a range such as 0.001:0.006, got 'low:high'"),
        (["--validate-every", "0"], "--validate-every must be at least 1, got 0"),
        (["--code", "bb7"], "unknown code 'bb7'"),
    ):
        result = CliRunner().invoke(app, [*command, *bad])
        assert message in str(result.exception)


@pytest.mark.parametrize("wanted", [True, False])
def test_without_a_comparison(tmp_path, monkeypatch, wanted):
    monkeypatch.setattr("symdyn_qec.baselines.extra.find_spec", lambda module: None)
    command = ["train", "--out", str(tmp_path), "--rounds", "2", "--width", "4", "--layers", "1"]
    command += ["--batch-size", "16", "--steps", "2", "--validate-every", "1", "--validate-shots", "16"]
    result = CliRunner().invoke(app, [*command, *([] if wanted else ["--no-compare"])])
    assert result.exit_code == 0, result.output
    said = (
        "no comparison with bposd: decoder bposd needs the package ldpc: pip install 'symdyn-qec[baselines]'"
    )
    assert result.stderr.count(said) == wanted
    assert result.stderr.count("of 32 shots fail\n") == 2
    assert Checkpoint.load(tmp_path).training["baseline"] is None


def test_validation_sees_the_weights_of_now(code):
    good = Checkpoint.load(shipped()["bb72"])
    settings = dataclasses.replace(SMALL, width=64, layers=8)
    training = Training(code, settings)
    case = [
        ValidationShots.sample(bb_memory(code, 0.003, settings.rounds, basis), 64, seed=1) for basis in BASES
    ]
    failures = count_failures(training, case, "cpu")
    assert failures() > 10
    training.averaged.load_state_dict(good.network.state_dict())
    assert failures() < 3


def test_the_command_starts_from_a_smaller_code(code, tmp_path):
    small = Checkpoint.of(TorusNetwork(code, width=4, layers=1, seed=9), code, rounds=2, training={})
    start = small.save(tmp_path / "small")
    command = ["train", "--code", "bb108", "--rounds", "1", "--start-from", str(start), "--no-compare"]
    command += [
        "--batch-size",
        "16",
        "--steps",
        "1",
        "--validate-shots",
        "16",
        "--out",
        str(tmp_path / "large"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = Checkpoint.load(tmp_path / "large")
    assert (found.code.cells, found.network.width, len(found.network.layers)) == (54, 4, 1)
    assert (found.training["start"], found.training["learning_rate"]) == ("small", 3e-4)
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "other"), "--width", "8"])
    assert "width must be 4 to start from small" in str(result.exception)
    result = CliRunner().invoke(app, ["train", "--code", "surface", "--start-from", "bb72", "--out", "x"])
    assert "--start-from is for bicycle codes, got bb72" in str(result.exception)
