"""The audit on networks whose defects were built in by hand, and the measures it is made of."""

import copy
import html
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from typer.testing import CliRunner

from symdyn_core.commands.audit import audit as audit_command
from symdyn_core.dynamics.balance import layer_balance
from symdyn_core.errors import InputError
from symdyn_core.symmetry.audit import AuditReport, audit
from symdyn_core.symmetry.audit_figures import draw_map
from symdyn_core.symmetry.collapse import (
    ActivityMoments,
    duplicate_pairs,
    effective_rank,
    faded_units,
    numerical_rank,
)
from symdyn_core.symmetry.rebalance import equilibrium_report


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


def audited(model: nn.Module, samples: int = 400, **options: float) -> AuditReport:
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
    assert (last.activation, last.charge, last.imbalance) == (None, None, None)
    assert first.activation == "ReLU"


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
    layer = audit(model, mse_loss, normal(50, 2), torch.zeros(50, 1)).layers[0]
    # Unit 0: incoming (3, 0) and bias 0, outgoing 1; unit 1: (0.6, 0.8) and bias 1, outgoing 2.
    assert layer.charges == pytest.approx((1 - 9, 4 - 2))
    assert layer.charge == pytest.approx(-6)
    assert layer.unit_imbalances == pytest.approx((-8 / 10, 2 / 6))
    assert layer.imbalance == pytest.approx(-6 / 16)


def test_the_charges_are_those_whose_course_the_law_of_balance_predicts() -> None:
    model, inputs, labels = network(), normal(40, 6).float(), torch.arange(40) % 4
    balance = layer_balance(model, cross_entropy, inputs, labels, incoming="0", outgoing="2")
    np.testing.assert_allclose(audited(model).layers[0].charges, balance.charges, rtol=1e-12)


def two_units() -> nn.Sequential:
    first, second = (nn.utils.skip_init(nn.Linear, *shape, dtype=torch.float64) for shape in ((2, 2), (2, 1)))
    with torch.no_grad():
        first.weight[:], first.bias[:] = torch.tensor([[3.0, 0.0], [0.6, 0.8]]), torch.tensor([0.0, 1.0])
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
    assert any("rebalance_(model, loss_fn, inputs, targets)" in sentence for sentence in report.advice)


def test_a_healthy_network_needs_nothing() -> None:
    advice = audited(network(nn.LeakyReLU)).advice
    assert len(advice) == 2
    assert advice[0].startswith("Nothing to repair: no dead, faded or copied units")


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


def test_frozen_parameters_are_spoken_of() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    assert any(sentence.startswith("Frozen: 0.bias.") for sentence in audited(model).advice)


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
    assert list(report.to_frame("charges")["layer"]) == ["0", "2"]
    assert symmetries["dimension"].sum() == report.dimension == 15
    with pytest.raises(InputError, match="rows must be 'layers', 'charges' or 'symmetries', got 'units'"):
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
            "eff.",
        ):
            assert words in page


def test_a_network_without_hidden_units_prints_too() -> None:
    with torch.random.fork_rng():
        model = nn.Linear(6, 4)
    report = audited(model)
    assert report.to_frame("symmetries").empty
    assert report.to_frame("charges").empty
    assert "Symmetries: none" in rendered(report)
    assert report.advice[-1].startswith("No symmetry was verified")


def rendered(report: AuditReport) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report)
    return capture.get()


# Models of other kinds.


def recurrent() -> nn.Module:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    with torch.random.fork_rng():
        return Classifier()


def audited_on(model: nn.Module, *shape: int, **options: float) -> AuditReport:
    return audit(model, cross_entropy, normal(40, *shape).float(), torch.arange(40) % 4, **options)


def test_gates_of_a_recurrent_layer_are_told_apart() -> None:
    model = recurrent()
    with torch.no_grad():
        model.rnn.weight_ih_l0[2], model.rnn.weight_hh_l0[2], model.rnn.bias_ih_l0[2] = 0, 0, 1
    layers = {layer.name: layer for layer in audited_on(model, 6, 3).layers}
    gates = [f"rnn.weight_hh_l0[{k}:{k + 5}]" for k in (0, 5, 10, 15)]
    assert list(layers) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", *gates, "rnn.cell_l0", "head"]
    functions = [layers[name].activation for name in (*gates, "rnn.cell_l0")]
    assert functions == ["sigmoid", "sigmoid", "tanh", "sigmoid", "tanh"]
    assert layers[gates[0]].dead_units == (2,)  # a gate that nothing moves
    assert all(not layers[name].dead_units for name in (*gates[1:], "rnn.cell_l0"))
    assert layers["rnn.weight_hh_l0"].dead_units == ()


def test_two_functions_in_a_row_are_two_sets_of_units() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Mish(), nn.Linear(5, 4))
    names = [(layer.name, layer.kind, layer.activation) for layer in audited_on(model, 6).layers]
    assert names == [("0", "Linear", "softplus"), ("0[0:5]", "units", "mish"), ("3", "Linear", None)]


def test_torchs_own_encoder_with_fused_attention() -> None:
    with torch.random.fork_rng():
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(block, nn.Flatten(), nn.Linear(40, 4))
    report = audited_on(model, 5, 8)
    layers = {layer.name: layer for layer in report.layers}
    assert layers["0.linear1"].activation == "ReLU"
    assert {"0.self_attn.q", "0.self_attn.k", "0.self_attn.v", "0.self_attn.out_proj"} <= set(layers)
    charges = {(charge.kind, charge.layer): charge for charge in report.charges}
    assert charges["general linear", "0.self_attn"].group == "GL(4) × 4"  # two heads, twice
    assert len(charges["general linear", "0.self_attn"].charges) == 16
    assert report.not_covered == ()


def test_units_behind_batch_normalisation_are_named_by_their_convolution() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 4)
        )
    with torch.no_grad():
        model[1].weight[4], model[1].bias[4] = 0, 0.5
        # Twice another one is a copy behind a ReLU; its negative, whatever the sign of the gain, is not.
        for unit, factor in ((1, 2.0), (2, -1.0)):
            model[0].weight[unit], model[0].bias[unit] = (
                factor * model[0].weight[0],
                factor * model[0].bias[0],
            )
    for training in (True, False):
        report = audited_on(model.train(training), 2, 4, 4, learning_rate=0.1, batch_size=8)
        convolution = report.layers[0]
        assert (convolution.name, convolution.fan_in, convolution.activation) == ("0", 18, "ReLU")
        assert (convolution.dead_units, convolution.duplicate_pairs) == ((4,), ((0, 1),))
        assert any("BatchNorm2d 1" in reason for reason in report.not_covered)
        scale = [charge for charge in report.charges if charge.kind == "scale invariance"]
        assert len(scale) == training  # by running statistics the scale of the convolution counts


def test_what_cannot_be_traced_is_said_and_the_matrices_are_audited_all_the_same() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 1500), nn.Linear(1500, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.second(hidden.relu() if hidden.sum() > 0 else hidden)

    with torch.random.fork_rng():
        model = Branching()
    with torch.no_grad():
        model.second.weight[3] = model.second.weight[2]
    report = audited_on(model, 6)
    assert report.symmetries == ()
    assert [(layer.name, layer.rank, layer.activation) for layer in report.layers] == [
        ("first", 6, None),
        ("second", 3, None),
    ]
    for words in ("symmetries: the forward pass cannot be read", "too large", "dead units and copies on"):
        assert any(words in reason for reason in report.not_covered), words
    page = rendered(report)
    assert "Not covered" in page
    assert "3 of 4 in 'second'" in page
    assert "compare functions" in report.advice[-1]


def test_a_model_that_is_random_in_evaluation_mode() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(nn.functional.dropout(self.first(x).relu(), 0.5, training=True))

    with torch.random.fork_rng():
        report = audited_on(Noisy(), 6)
    assert "the same in every run" in report.not_covered[0]
    assert report.layers[0].activation == "ReLU"


def test_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.stem(x).relu()
            return {"one": self.one(hidden), "two": self.two(hidden)}

    with torch.random.fork_rng():
        model = Two()
    inputs, targets = normal(40, 6).float(), torch.arange(40) % 4

    def loss(outputs: dict[str, Tensor], wanted: Tensor) -> Tensor:
        return cross_entropy(outputs["one"], wanted) + outputs["two"].square().mean()

    report = audit(model, loss, inputs, targets, learning_rate=0.1, batch_size=8)
    assert report.loss == pytest.approx(loss(model(inputs), targets).item())
    assert [(finding.symmetry.kind, finding.symmetry.group) for finding in report.symmetries] == [
        ("positive rescaling", "R_+^8"),
        ("permutation", "S_8"),
    ]
    assert any("noise equilibrium" in reason for reason in report.not_covered)


def test_an_adapter_of_low_rank_over_a_frozen_base() -> None:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(6, 4).requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    with torch.random.fork_rng():
        report = audited_on(Adapter(), 6)
    assert [finding.symmetry.group for finding in report.symmetries] == ["GL(2)"]
    assert report.frozen == ("base.weight", "base.bias")
    assert any(sentence.startswith("Frozen: base.weight, base.bias.") for sentence in report.advice)
    assert next(layer for layer in report.layers if layer.name == "down").activation == "linear"


# The noise equilibrium, and the page.


def test_equilibria_are_those_of_the_equilibrium_report() -> None:
    model, inputs, targets = network(), normal(60, 6).float(), torch.arange(60) % 4
    settings = {"learning_rate": 0.1, "batch_size": 10, "weight_decay": 0.01}
    report = audit(model, cross_entropy, inputs, targets, **settings)
    rows = equilibrium_report(model, cross_entropy, inputs, targets, **settings).rows
    for charge in report.charges:
        own = [row for row in rows if row.layer == charge.layer]
        assert charge.charges == pytest.approx([row.charge for row in own])
        assert charge.equilibria == tuple(row.equilibrium_charge for row in own)
        assert charge.to_row()["equilibrium"] == pytest.approx(sum(row.equilibrium_charge for row in own))
        assert charge.relaxation_steps == pytest.approx(np.median([row.relaxation_steps for row in own]))
    assert "steps" in rendered(report)
    assert audited(model).charges[0].equilibria is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.1}, "learning_rate and batch_size belong together, got 0.1 and None"),
        ({"weight_decay": 0.1}, "weight_decay belongs to learning_rate and batch_size"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"learning_rate": 0.0, "batch_size": 4}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": 0.1, "batch_size": 401}, r"batch_size must be in \[1, n_samples=400\], got 401"),
    ],
)
def test_settings_of_training_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        audited(network(), **settings)


def test_the_page_stands_alone_and_shows_what_was_found(damaged: nn.Sequential) -> None:
    report = audited(damaged)
    page = report.to_html("a <tame> network")
    assert page == report.to_html("a <tame> network")
    assert "<h1>a &lt;tame&gt; network</h1>" in page
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert not [
        url for url in re.findall(r'(?:src|href)="([^"]*)"', page) if not url.startswith(("#", "data:"))
    ]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    text = html.unescape(re.sub("<[^>]*>", "", page))
    assert all(sentence in text for sentence in report.advice)


def test_figures_of_no_hidden_unit_and_of_thousands() -> None:
    with torch.random.fork_rng():
        small = audited(nn.Linear(6, 4))
    assert small.to_html().count("<svg") == 2  # no charges
    (layer,) = small.layers
    for units in (1, 1100, 40_000):
        strengths = tuple(k / units for k in range(1, units + 1))
        wide = replace(layer, strengths=strengths, dead_units=(0,), duplicate_pairs=((0, units - 1),))
        assert draw_map(replace(small, layers=(wide,))) is not None


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
"""


def test_command_audits_a_target(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TARGET)
    result = CliRunner().invoke(app, [f"{path}:task", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [finding["group"] for finding in report["symmetries"]] == ["R_+^8", "S_8"]
    assert "a line of the user's own" in result.stderr
    place = tmp_path / "pages" / "audit.html"
    page = CliRunner().invoke(app, [f"{path}:task", "--html", str(place)])
    assert "What to do" in page.stdout
    assert f"wrote {place}" in page.stderr
    assert "<svg" in place.read_text()


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
        (["{here}:task", "--learning-rate", "0.1"], "--learning-rate and --batch-size belong together"),
        (["{here}:task", "--weight-decay", "0.1"], "--weight-decay belongs to --learning-rate"),
        (["{here}:task", "--html", "."], "--html must name a file, got the folder ."),
        (
            ["{here}:task", "--learning-rate", "0.1", "--batch-size", "51"],
            "batch_size must be in [1, n_samples=50], got 51",
        ),
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


class ResidualBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.slow
def test_a_residual_net_that_strong_decay_has_collapsed_is_told_the_mechanism() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)

    def mechanisms(weight_decay: float) -> list[str]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(ResidualBlock(64, 32), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay)
        for _ in range(1000):
            batch = torch.randint(1400, (128,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        advice = audit(model, cross_entropy, x[1400:], y[1400:]).advice
        return [sentence for sentence in advice if sentence.startswith("The mechanism")]

    (sentence,) = mechanisms(weight_decay=0.05)
    assert "left in place by a symmetry" in sentence
    assert "Syre(" in sentence
