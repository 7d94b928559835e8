"""What is left of networks whose defects were built in by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.symmetry.collapse import equal_units, weak_units
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.matrices import weight_matrices
from symdyn_core.symmetry.remaining import remaining_symmetry, symmetry_report


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(activation: type[nn.Module], seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 4)]
        return nn.Sequential(*layers).double()


def set_unit(
    model: nn.Sequential, layer: int, unit: int, like: int, incoming: float, outgoing: float
) -> None:
    """Make a unit a multiple of another, on either side."""
    writer, reader = model[layer], model[layer + 2]
    with torch.no_grad():
        writer.weight[unit] = incoming * writer.weight[like]
        writer.bias[unit] = incoming * writer.bias[like]
        reader.weight[:, unit] = outgoing * reader.weight[:, like]


class TestUnits:
    def test_a_generic_network_has_lost_nothing(self) -> None:
        state = remaining_symmetry(network(nn.ReLU), normal(32, 6))
        assert [(s.layer, s.distinct, s.dead, s.clusters) for s in state.units] == [
            ("0", 8, (), ()),
            ("2", 7, (), ()),
        ]
        assert state.lost == 0
        assert state.effective_parameters == state.parameters == 151

    def test_equal_units_count_once_in_both_layers_they_touch(self) -> None:
        model = network(nn.GELU)
        set_unit(model, 0, 3, like=1, incoming=1, outgoing=1)
        set_unit(model, 0, 6, like=1, incoming=1, outgoing=1)
        set_unit(model, 2, 5, like=0, incoming=1, outgoing=1)
        state = remaining_symmetry(model, normal(32, 6))
        assert [s.clusters for s in state.units] == [((1, 3, 6),), ((0, 5),)]
        assert state.clusters == 6 + 6
        # The network 6-6-6-4 that does the same has 7*6 + 7*6 + 7*4 parameters.
        assert state.effective_parameters == pytest.approx(112)

    def test_dead_units(self) -> None:
        model = network(nn.Tanh)
        set_unit(model, 0, 2, like=2, incoming=1e-3, outgoing=1e-3)
        set_unit(model, 0, 4, like=4, incoming=0, outgoing=0)
        state = remaining_symmetry(model, normal(32, 6))
        assert state.units[0].dead == (2, 4)
        assert state.effective_parameters == pytest.approx(7 * 6 + 7 * 7 + 8 * 4)  # 6-6-7-4

    @pytest.mark.parametrize(
        ("activation", "incoming", "outgoing", "equal"),
        [
            (nn.ReLU, 3.0, 1 / 3, True),
            (nn.ReLU, -3.0, -1 / 3, False),
            (nn.ReLU, 3.0, 3.0, False),
            (nn.Tanh, -1.0, -1.0, True),
            (nn.Tanh, 3.0, 1 / 3, False),
            (nn.GELU, -1.0, -1.0, False),
            (nn.GELU, 1.01, 1.01, True),
        ],
    )
    def test_equal_up_to_what_the_layer_does_not_see(
        self, activation: type[nn.Module], incoming: float, outgoing: float, equal: bool
    ) -> None:
        model = network(activation)
        set_unit(model, 0, 5, like=1, incoming=incoming, outgoing=outgoing)
        state = remaining_symmetry(model, normal(32, 6))
        # Three times both weights is nine times the function: after balancing the norms still differ.
        assert state.units[0].clusters == (((1, 5),) if equal else ())

    def test_a_rescalable_unit_that_lost_one_side_is_dead_whatever_the_other(self) -> None:
        model = network(nn.ReLU)
        set_unit(model, 0, 5, like=5, incoming=0, outgoing=100)
        assert remaining_symmetry(model, normal(32, 6)).units[0].dead == (5,)

    @settings(deadline=None, max_examples=10)
    @given(st.sampled_from([1e-6, 0.1, 1.0, 1e5]), st.integers(0, 5))
    def test_thresholds_are_relative(self, unit: float, seed: int) -> None:
        rows = normal(10, 6, seed=seed)
        rows[3], rows[7] = rows[1] * 1.02, rows[1] * 0.001
        assert weak_units(unit * rows, 0.05) == [7]
        assert equal_units(unit * rows, 0.05) == [[1, 3]]

    def test_mostly_dead_layers_are_judged_by_their_live_units(self) -> None:
        rows = torch.cat([normal(4, 6), torch.zeros(3, 6, dtype=torch.float64), 1e-4 * normal(1, 6)])
        assert weak_units(rows, 0.05) == [4, 5, 6, 7]

    def test_all_zero_weights(self) -> None:
        model = network(nn.Tanh)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        frame = symmetry_report(model)
        assert frame["rank"].tolist() == [0, 0, 0]
        assert frame["dead_units"].tolist() == [8, 7, 4]
        assert remaining_symmetry(model).lost == 1.0

    def test_no_units_and_no_parameters(self) -> None:
        assert weak_units(torch.zeros(0, 3), 0.05) == []
        assert equal_units(torch.zeros(0, 3), 0.05) == []
        state = remaining_symmetry(nn.ReLU())
        assert (state.parameters, state.lost, len(state.to_frame())) == (0, 0.0, 0)


class TestDirections:
    def linear(self, rank: int) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 7, bias=False)).double()
        basis = torch.linalg.qr(normal(6, 6))[0][:, :rank]
        with torch.no_grad():
            model[0].weight.copy_(basis @ (basis.T @ model[0].weight))
            model[1].weight.copy_(model[1].weight @ basis @ basis.T)
        return model

    @pytest.mark.parametrize("rank", [0, 2, 6])
    def test_residual_rotation_and_capacity(self, rank: int) -> None:
        state = remaining_symmetry(self.linear(rank), normal(16, 8))
        assert (state.rank, state.directions[0].residual_rotation) == (rank, 6 - rank)
        assert state.effective_parameters == pytest.approx(rank * (8 + 7))
        frame = symmetry_report(self.linear(rank), normal(16, 8)).set_index("layer")
        assert frame.loc["0", "live_directions"] == rank
        assert frame.loc["1", "lost"] == pytest.approx(1 - rank / 6)

    def test_a_common_factor_does_not_hide_a_direction(self) -> None:
        model = self.linear(2)
        with torch.no_grad():
            model[0].weight *= 1e4
            model[1].weight /= 1e4
        assert remaining_symmetry(model, normal(16, 8)).rank == 2


class TestAnyModule:
    def test_matrices_of_all_kinds_of_layer(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts = {
                "conv": nn.Conv2d(3, 8, 5),
                "grouped": nn.Conv2d(8, 4, 3, groups=2),
                "transposed": nn.ConvTranspose1d(4, 6, 3),
                "tokens": nn.Embedding(11, 4),
                "attention": nn.MultiheadAttention(8, 2),
                "memory": nn.LSTM(3, 5),
                "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
                "norm": nn.LayerNorm(4),
            }
            model = nn.ModuleDict(parts)
        shapes = {weight.layer: weight.shape for weight in weight_matrices(model)}
        assert shapes == {
            "conv": (8, 75),
            "grouped": (4, 36),
            "transposed": (6, 12),
            "tokens": (11, 4),
            "attention.q": (8, 8),
            "attention.k": (8, 8),
            "attention.v": (8, 8),
            "attention.out_proj": (8, 8),
            "memory.weight_ih_l0": (20, 3),
            "memory.weight_hh_l0": (20, 5),
            "normed": (5, 4),
        }
        frame = symmetry_report(model).set_index("layer")
        assert frame["rank"].tolist() == frame["full_rank"].tolist()
        assert frame.loc["grouped", "full_rank"] == 4
        assert (frame["lost"] == 0).all()
        assert frame.loc["normed", "parameters"] == 5 + 20 + 5

    def test_channels_of_a_convolution(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Conv2d(3, 8, 3)
        with torch.no_grad():
            model.weight[4], model.bias[4] = model.weight[2], model.bias[2]
            model.weight[6], model.bias[6] = 0, 0
        state = remaining_symmetry(model)
        assert (state.units[0].dead, state.units[0].clusters) == ((6,), ((2, 4),))
        assert state.effective_parameters == pytest.approx(28 * 6)

    def test_tied_weights_are_told_once(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
        model["head"].weight = model["embed"].weight
        assert [weight.layer for weight in weight_matrices(model)] == ["embed"]
        assert remaining_symmetry(model).parameters == 36

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_low_precision(self, dtype: torch.dtype) -> None:
        model = network(nn.ReLU)
        set_unit(model, 0, 5, like=1, incoming=1, outgoing=1)
        with torch.no_grad():
            model[2].weight.copy_(normal(7, 2) @ normal(2, 8, seed=2))
        model[2].weight.data[:, 5] = model[2].weight.data[:, 1]
        model = model.to(dtype)
        frame = symmetry_report(model, normal(32, 6)).set_index("layer")
        assert frame.loc["0", "duplicate_units"] == 1
        assert frame.loc["2", "rank"] == 2
        assert next(model.parameters()).dtype == dtype


def test_symmetries_found_once_serve_for_all_of_training() -> None:
    model, inputs = network(nn.Tanh), normal(32, 6)
    symmetries = find_symmetries(model, inputs)
    set_unit(model, 0, 3, like=1, incoming=-1, outgoing=-1)
    assert remaining_symmetry(model, symmetries=symmetries) == remaining_symmetry(model, inputs)
    assert remaining_symmetry(model, symmetries=symmetries).clusters == 14


def test_model_is_not_touched() -> None:
    model = network(nn.ReLU).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    remaining_symmetry(model, normal(32, 6))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"tolerance must be in \(0, 1\), got 1"):
        remaining_symmetry(network(nn.ReLU), tolerance=1)
    symmetries = find_symmetries(network(nn.ReLU), normal(32, 6))
    with pytest.raises(InputError, match="symmetries must be those of this model, got one of '2.weight'"):
        remaining_symmetry(network(nn.ReLU)[:1], symmetries=symmetries)
