"""The audit on networks whose defects were built in by hand, and the measures it is made of."""

import copy
import io
import json
import math

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from typer.testing import CliRunner

from symdyn_core.commands.audit import audit as audit_command
from symdyn_core.dynamics.balance import layer_balance
from symdyn_core.errors import InputError
from symdyn_core.symmetry.audit import AuditReport, audit
from symdyn_core.symmetry.collapse import (
    ActivityMoments,
    duplicate_pairs,
    effective_rank,
    faded_units,
    numerical_rank,
)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8, bias=bias),
            activation(),
            nn.Linear(8, 7, bias=bias),
            activation(),
            nn.Linear(7, 4, bias=bias),
        )


def audited(model: nn.Module, samples: int = 400, **options: int) -> AuditReport:
    inputs = normal(samples, 6).to(next(model.parameters()).dtype)
    return audit(model, cross_entropy, inputs, torch.arange(samples) % 4, **options)


@pytest.fixture
def damaged() -> nn.Sequential:
    """Units of the first layer: 1 never fires, 2 has faded, 5 is three times unit 4; the rest is lopsided."""
    model = network()
    with torch.no_grad():
        first, second = model[0], model[2]
        first.bias[1] = -50.0
        second.bias += 1  # so that every unit of the second layer fires
        second.weight[:, 2] = 1e-6
        first.weight[5], first.bias[5] = 3 * first.weight[4], 3 * first.bias[4]
    return model


def test_built_in_defects_are_found_and_nothing_else(damaged: nn.Sequential) -> None:
    first, second, last = audited(damaged).layers
    assert first.dead_units == (1,)
    assert first.faded_units == (2,)
    assert first.duplicate_pairs == ((4, 5),)
    assert (second.dead_units, second.faded_units, second.duplicate_pairs) == ((), (), ())
    assert (first.rank, second.rank, last.rank) == (6, 7, 4)
    assert (last.dead_units, last.faded_units, last.duplicate_pairs) == ((), (), ())
    assert (last.activation, last.charge, last.imbalance) == ("output", None, None)


def test_defects_are_what_the_advice_speaks_of(damaged: nn.Sequential) -> None:
    advice = audited(damaged).advice
    assert advice[0].startswith("Dead units: 1 of 8 in '0' (1)")
    assert advice[1].startswith("Faded units: 1 of 8 in '0' (2)")
    assert advice[2].startswith("Copies: 1 of 8 in '0' (5 of 4)")
    assert advice[-1].startswith(
        "15 of 151 directions in parameter space and every reordering of hidden units"
    )
    assert not any("Nothing to repair" in sentence for sentence in advice)


def test_a_copy_of_another_size_is_one_only_where_the_activation_is_homogeneous() -> None:
    for activation, up_to_size, up_to_sign in [
        (nn.ReLU, True, False),
        (nn.Tanh, False, True),
        (nn.GELU, False, False),
    ]:
        model = network(activation)
        with torch.no_grad():
            for unit, factor in [(1, 1.0), (2, 3.0), (3, -1.0)]:
                model[0].weight[unit] = factor * model[0].weight[0]
                model[0].bias[unit] = factor * model[0].bias[0]
        expected = ((0, 1),) + (((0, 2),) if up_to_size else ()) + (((0, 3),) if up_to_sign else ())
        assert audited(model).layers[0].duplicate_pairs == expected


def test_charge_and_imbalance_by_hand() -> None:
    model = two_units()
    layer = audit(model, mse_loss, torch.linspace(-1, 1, 50).double()[:, None], torch.zeros(50, 1)).layers[0]
    # Unit 0: incoming (3, 0), outgoing 1; unit 1: incoming (1, 1), outgoing 2.
    assert layer.charges == pytest.approx((1 - 9, 4 - 2))
    assert layer.charge == pytest.approx(-6)
    assert layer.unit_imbalances == pytest.approx((-8 / 10, 2 / 6))
    assert layer.imbalance == pytest.approx(-6 / 16)


def test_the_charges_are_those_whose_course_the_law_of_balance_predicts() -> None:
    model, inputs, labels = network(), normal(40, 6).float(), torch.arange(40) % 4
    balance = layer_balance(model, cross_entropy, inputs, labels, incoming="0", outgoing="2")
    np.testing.assert_allclose(audited(model).layers[0].charges, balance.charges, rtol=1e-12)


def two_units() -> nn.Sequential:
    first, second = (nn.utils.skip_init(nn.Linear, *shape, dtype=torch.float64) for shape in ((1, 2), (2, 1)))
    with torch.no_grad():
        first.weight[:], first.bias[:] = torch.tensor([[3.0], [1.0]]), torch.tensor([0.0, 1.0])
        second.weight[:], second.bias[:] = torch.tensor([[1.0, 2.0]]), 0.0
    return nn.Sequential(first, nn.ReLU(), second)


@pytest.mark.parametrize("factor", [30.0, 1 / 30.0])
def test_lopsided_layers_are_named_with_the_side(factor: float) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight *= factor
        model[0].bias *= factor
        model[2].weight /= factor
    report = audited(model)
    assert math.copysign(1, report.layers[0].imbalance) == -math.copysign(1, math.log(factor))
    assert any(sentence.startswith("Lopsided weights: '0'") for sentence in report.advice)


def test_a_healthy_network_needs_nothing() -> None:
    advice = audited(network(nn.LeakyReLU)).advice
    assert len(advice) == 2
    assert advice[0].startswith("Nothing to repair")


def test_linear_layers_report_rank_and_no_copies() -> None:
    model = network(nn.Identity)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[2].weight[:] = torch.outer(torch.arange(1.0, 8), torch.ones(8))
    report = audited(model)
    first, second, _ = report.layers
    assert first.duplicate_pairs == ()
    assert second.rank == 1
    assert second.effective_rank == pytest.approx(1, abs=1e-4)
    assert len(first.charges) == 8
    assert any(
        sentence.startswith("Weight matrices below full rank: 1 of 7 in '2'") for sentence in report.advice
    )
    assert any(sentence.startswith("No nonlinearity behind '0', '2'") for sentence in report.advice)


def test_a_layer_that_is_wholly_dead_is_reported_as_such() -> None:
    model = network()
    nn.init.constant_(model[0].bias, -100.0)
    first, *_ = audited(model).layers
    assert first.dead_units == tuple(range(8))
    assert (first.faded_units, first.duplicate_pairs, first.activation_rank) == ((), (), 0)


def test_frozen_and_rejected_are_spoken_of() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    assert any(sentence.startswith("Frozen: 0.bias.") for sentence in audited(model).advice)
    with torch.random.fork_rng():
        shared = nn.Linear(6, 6)
    report = audited(nn.Sequential(shared, nn.ReLU(), shared))
    assert report.symmetries == ()
    assert "do not rely on it" in report.advice[0]
    assert report.advice[-1].startswith("No symmetry was verified")
    assert report.layers[0].charge is None


def test_results_do_not_depend_on_the_chunks() -> None:
    whole, pieces = audited(network(), chunk_size=1000), audited(network(), chunk_size=7)
    assert (
        whole.to_frame()
        .drop(columns="activation_rank")
        .equals(pieces.to_frame().drop(columns="activation_rank"))
    )
    for one, other in zip(whole.layers, pieces.layers, strict=True):
        assert one.activation_rank == pytest.approx(other.activation_rank, rel=1e-9)
    with pytest.raises(InputError, match="chunk_size must be at least 1, got 0"):
        audited(network(), chunk_size=0)


def test_the_caller_notices_nothing() -> None:
    model = network().train()
    model.register_forward_hook(lambda *_: pytest.fail("the caller's hook was called"))
    before = copy.deepcopy(model.state_dict())
    audited(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_report_as_table_as_json_and_as_page(damaged: nn.Sequential) -> None:
    report = audited(damaged)
    layers, symmetries = report.to_frame(), report.to_frame("symmetries")
    assert list(layers["layer"]) == ["0", "2", "4"]
    assert list(layers["dead_units"]) == [1, 0, 0]
    assert list(symmetries["kind"]) == ["positive rescaling", "permutation"] * 2
    assert symmetries["dimension"].sum() == report.dimension == 15
    with pytest.raises(InputError, match="rows must be 'layers' or 'symmetries', got 'units'"):
        report.to_frame("units")

    values = report.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["layers"][0]["duplicate_pairs"] == [[4, 5]]
    assert values["symmetries"][0]["parameters"] == ["0.weight", "0.bias", "2.weight"]
    assert values["advice"] == report.advice
    assert values["loss"] == report.loss

    for width in (80, 100):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(report)
        page = console.export_text()
        assert max(map(len, page.splitlines())) <= width
        for words in (
            "positive rescaling",
            "R_+^8",
            "S_7",
            "✔ verified",
            "1. Dead units",
            "6 → 8",
            "imbalance",
        ):
            assert words in page


def test_a_network_without_hidden_units_prints_too() -> None:
    with torch.random.fork_rng():
        model = nn.Linear(6, 4)
    report = audited(model)
    assert report.to_frame("symmetries").empty
    assert "Symmetries: none" in rendered(report)
    assert "without hidden units" in report.advice[0]


def rendered(report: AuditReport) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report)
    return capture.get()


# The measures.

spectra = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=8)


@given(spectra, st.floats(1e-3, 1e3))
def test_effective_rank_lies_between_one_and_the_rank_whatever_the_unit(
    values: list[float], unit: float
) -> None:
    spectrum = torch.tensor(values, dtype=torch.float64)
    rank = int((spectrum > 0).sum())
    found = effective_rank(spectrum)
    assert found == 0 if rank == 0 else 1 - 1e-9 <= found <= rank + 1e-9
    assert effective_rank(unit * spectrum) == pytest.approx(found, rel=1e-9)
    if rank:
        assert effective_rank(torch.ones(rank)) == pytest.approx(rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numerical_rank_agrees_with_numpy(dtype: torch.dtype) -> None:
    for rank in range(5):
        matrix = (normal(7, rank, seed=rank) @ normal(rank, 5, seed=rank + 9)).to(dtype)
        values = torch.linalg.svdvals(matrix.double())
        found = (
            numerical_rank(values, (7, 5), torch.finfo(dtype).eps)
            if rank
            else numerical_rank(values, (7, 5), 1e-7)
        )
        assert found == np.linalg.matrix_rank(matrix.numpy()) == rank


def naive_copies(z: Tensor, up_to_scale: bool, up_to_sign: bool) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for j in range(z.shape[1]):
        for i in range(j):
            if i in [copy for _, copy in pairs]:
                continue
            product, a, b = float(z[:, i] @ z[:, j]), float(z[:, i].norm()), float(z[:, j].norm())
            similarity = product / (a * b) if up_to_scale else 2 * product / (a * a + b * b)
            if (abs(similarity) if up_to_sign else similarity) >= 0.999:
                pairs.append((i, j))
                break
    return sorted(pairs)


@given(
    st.lists(st.sampled_from([1.0, -1.0, 2.0, 0.5]), min_size=1, max_size=8),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
)
def test_duplicate_pairs_against_a_naive_loop(factors, seed, up_to_scale, up_to_sign) -> None:
    columns = normal(30, 3, seed=seed)
    z = torch.stack([factor * columns[:, k % 3] for k, factor in enumerate(factors)], dim=1)
    found = duplicate_pairs(z.T @ z, up_to_scale=up_to_scale, up_to_sign=up_to_sign)
    assert found == naive_copies(z, up_to_scale, up_to_sign)


def test_duplicate_threshold_is_checked() -> None:
    with pytest.raises(InputError, match=r"threshold must be in \(0, 1\], got 0"):
        duplicate_pairs(torch.eye(2), threshold=0)


def test_running_moments_are_those_of_all_samples_at_once() -> None:
    before, after = normal(50, 4), 5 + normal(50, 4, seed=2)
    after[:, 3] = 0.1
    moments = ActivityMoments(4)
    for rows in torch.arange(50).split(13):
        moments.add(before[rows], after[rows])
    expected = np.cov(after.numpy().T, bias=True)
    np.testing.assert_allclose(moments.covariance, expected, atol=1e-13)
    np.testing.assert_allclose(moments.products, before.T @ before / 50, atol=1e-13)
    assert moments.constant.tolist() == [False, False, False, True]
    assert moments.spread()[3] == 0
    centred = (after - after.mean(dim=0)).numpy() / math.sqrt(50)
    values = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(moments.singular_values(), np.where(values > 1e-10, values, 0), atol=1e-12)


@given(st.lists(st.floats(1e-2, 1e2), min_size=5, max_size=5), st.integers(0, 99))
def test_fading_does_not_depend_on_the_scale_a_unit_is_written_in(factors: list[float], seed: int) -> None:
    spread, outgoing = normal(5, seed=seed).abs(), normal(5, 3, seed=seed + 1)
    outgoing[2] *= 1e-5
    scale = torch.tensor(factors, dtype=torch.float64)
    assert faded_units(spread * scale, outgoing / scale[:, None]) == faded_units(spread, outgoing) == [2]


# The command.

app = typer.Typer()
app.command()(audit_command)

TARGET = """
import torch
from torch import nn

def task():
    print("a line of the user's own")
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        return model, nn.functional.cross_entropy, torch.randn(50, 6), torch.arange(50) % 4

def convolutional():
    _, loss, inputs, targets = task()
    with torch.random.fork_rng():
        return nn.Sequential(nn.Conv1d(6, 4, 1), nn.Flatten()), loss, inputs[:, :, None], targets
"""


def test_command_audits_a_target(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TARGET)
    result = CliRunner().invoke(app, [f"{path}:task", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [finding["group"] for finding in report["symmetries"]] == ["R_+^8", "S_8"]
    assert "a line of the user's own" in result.stderr
    page = CliRunner().invoke(app, [f"{path}:task"])
    assert "What to do" in page.stdout


def test_what_the_model_prints_is_not_a_result(tmp_path) -> None:
    path = tmp_path / "[" / "loud].py"  # and a name that looks like markup, [/loud], is a name
    path.parent.mkdir()
    path.write_text(
        TARGET
        + """
def loud():
    model, loss_fn, inputs, targets = task()

    def loss(outputs, targets):
        print("a loss that speaks")
        return loss_fn(outputs, targets)

    return model, loss, inputs, targets
"""
    )
    result = CliRunner().invoke(app, [f"{path}:loud", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] > 0
    assert "a loss that speaks" in result.stderr


def test_command_trains_and_audits_the_example() -> None:
    runs = [
        CliRunner().invoke(app, ["--example", "digits", "--epochs", "3", "--json", *seed])
        for seed in ([], [], ["--seed", "1"])
    ]
    assert all(run.exit_code == 0 for run in runs), runs[0].output
    first, again, other = (json.loads(run.stdout) for run in runs)
    assert first == again
    assert other["loss"] != first["loss"]
    assert [(layer["fan_in"], layer["width"]) for layer in first["layers"]] == [(64, 64), (64, 32), (32, 10)]
    assert first["dimension"] == 96
    assert first["loss"] < 0.5  # chance is log(10) = 2.3
    assert first["samples"] == 359


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of TARGET and --example, got neither"),
        (["a.py:f", "--example", "digits"], "exactly one of TARGET and --example, got both"),
        (["a.py:f", "--epochs", "3"], "--epochs belongs to --example"),
        (["--example", "digit"], "unknown example 'digit'"),
        (["--example", "digits", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["nowhere.py:f"], "there is no file nowhere.py"),
        (["{here}:convolutional"], "not covered yet: Conv1d '0'"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(arguments: list[str], message: str, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TARGET)
    result = CliRunner().invoke(app, [word.format(here=path) for word in arguments])
    assert result.exit_code != 0
    assert result.stdout == ""
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
