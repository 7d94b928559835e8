"""The finder against ground truth, an independent count of flat directions, and its rivals."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, from_vector, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.find import SearchWarning, find_symmetries
from symdyn_core.symmetry.kinds import GeneralLinear, Permutation, PositiveRescaling, SignFlip, Symmetry
from symdyn_core.symmetry.report import SymmetryReport
from symdyn_core.symmetry.units import Axis, Units
from symdyn_core.symmetry.verify import verify


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def network(
    *widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True, seed: int = 0
) -> nn.Sequential:
    def make() -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
        return nn.Sequential(*layers[:-1])

    return built(make, seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summary(report: SymmetryReport) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for finding in report.found:
        kinds.setdefault(finding.symmetry.kind, []).append(finding.symmetry.group)
    return kinds


ORDERS = ["S_8", "S_7"]
TRUTH = {
    nn.ReLU: (15, {"positive rescaling": ["R_+^8", "R_+^7"], "permutation": ORDERS}),
    nn.LeakyReLU: (15, {"positive rescaling": ["R_+^8", "R_+^7"], "permutation": ORDERS}),
    nn.PReLU: (15, {"positive rescaling": ["R_+^8", "R_+^7"], "permutation": ORDERS}),
    nn.Tanh: (0, {"sign flip": ["Z_2^8", "Z_2^7"], "permutation": ORDERS}),
    nn.Softsign: (0, {"sign flip": ["Z_2^8", "Z_2^7"], "permutation": ORDERS}),
    nn.GELU: (0, {"permutation": ORDERS}),
    nn.SiLU: (0, {"permutation": ORDERS}),
    nn.Sigmoid: (0, {"permutation": ORDERS}),
    nn.Identity: (
        # 151 parameters; the affine map from 6 to 4 dimensions takes 28 of them.
        123,
        {"general linear": ["GL(8)", "GL(7)"], "translation": ["R^8", "R^7"]},
    ),
}


@pytest.mark.parametrize("activation", TRUTH)
def test_ground_truth_of_a_6_8_7_4_network(activation: type[nn.Module]) -> None:
    report = find_symmetries(network(6, 8, 7, 4, activation=activation), normal(20, 6))
    dimension, kinds = TRUTH[activation]
    assert summary(report) == kinds
    assert report.rejected == ()
    assert all(finding.error < 1e-12 for finding in report.found)
    assert all(finding.moved > 0.05 for finding in report.found)
    assert report.dimension == dimension


def flat_directions(model: nn.Module, inputs: Tensor) -> int:
    """Count the directions of parameter space along which no output changes: the Jacobian's null space."""
    frozen = FrozenModel(model)
    jacobian = torch.func.jacrev(lambda v: frozen(from_vector(v, frozen.params), inputs).flatten())(
        to_vector(frozen.params)
    )
    values = torch.linalg.svdvals(jacobian)
    assert jacobian.shape[0] > 1.1 * jacobian.shape[1]
    return jacobian.shape[1] - int((values > 1e-9 * values[0]).sum())


def with_busy_units(inputs: Tensor) -> nn.Sequential:
    """Return a ReLU network whose units all fire on some inputs only; others would add flat directions."""
    for seed in range(100):
        model = network(6, 8, 7, 4, seed=seed).double()
        values, shares = inputs, []
        for layer in model:
            values = layer(values)
            if isinstance(layer, nn.ReLU):
                shares.extend((values > 0).double().mean(dim=0).tolist())
        if all(0.1 < share < 0.9 for share in shares):
            return model
    raise AssertionError("no seed gives a network with busy units")


def test_dimension_of_a_relu_network_is_its_number_of_flat_directions() -> None:
    inputs = 4 * normal(150, 6)
    model = with_busy_units(inputs)
    assert find_symmetries(model, inputs).dimension == flat_directions(model, inputs) == 15


@pytest.mark.parametrize(
    ("widths", "activation", "bias", "expected"),
    [
        ((6, 8, 7, 4), nn.LeakyReLU, False, 15),
        ((6, 8, 7, 4), nn.Tanh, True, 0),
        ((6, 8, 7, 4), nn.GELU, True, 0),
        ((5, 4, 6), nn.Identity, True, 20),
        ((5, 4, 6), nn.Identity, False, 16),
        ((3, 5, 4), nn.Identity, False, 23),  # 25 - (5 - 3)(5 - 4)
        ((3, 5, 4, 2), nn.Identity, False, 37),
        ((2, 6, 6, 1), nn.Identity, True, 64),
        ((6, 8, 7, 4), nn.Identity, True, 123),
    ],
)
def test_dimension_is_the_number_of_flat_directions(widths, activation, bias, expected) -> None:
    model = network(*widths, activation=activation, bias=bias)
    inputs = 2 * normal(150, widths[0])
    assert find_symmetries(model, inputs).dimension == expected
    assert flat_directions(model, inputs) == expected


def tangent_dimension(model: nn.Module, report: SymmetryReport) -> int:
    """Count the directions in which the group elements near the identity move a generic point."""
    params = {name: normal(*value.shape, seed=k) for k, (name, value) in enumerate(model.named_parameters())}
    tangents = [torch.zeros(len(to_vector(params)), 1, dtype=torch.float64)]
    for symmetry in (finding.symmetry for finding in report.found if finding.symmetry.dimension):
        identity = {
            "positive rescaling": torch.ones,
            "general linear": lambda *shape, **options: torch.eye(shape[0], **options),
            "translation": torch.zeros,
        }[symmetry.kind](*symmetry.random_element(torch_generator(0)).shape, dtype=torch.float64)
        jacobian = torch.func.jacrev(lambda g, s=symmetry: to_vector(s.act(params, g)))(identity)
        tangents.append(jacobian.flatten(1))
    return int(torch.linalg.matrix_rank(torch.cat(tangents, dim=1), rtol=1e-9))


@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    activation=st.sampled_from([nn.Identity, nn.Identity, nn.Identity, nn.ReLU, nn.Tanh]),
    bias=st.sampled_from(["all", "none", "first"]),
)
def test_dimension_is_that_of_the_orbit_of_all_symmetries_together(widths, activation, bias) -> None:
    model = network(*widths, activation=activation, bias=bias != "none")
    if bias == "first":
        for layer in model[1:]:
            if isinstance(layer, nn.Linear):
                layer.bias = None
    report = find_symmetries(model, normal(10, widths[0]), method="structure", certificate=False)
    assert report.dimension == tangent_dimension(model, report)


def test_the_rank_of_a_bottleneck_moves_by_more_than_its_symmetries() -> None:
    # The first matrix may also change inside the kernel of the second, which no group action on units does.
    model, inputs = network(5, 3, 1, activation=nn.Identity, bias=False), normal(60, 5)
    report = find_symmetries(model, inputs)
    assert report.dimension == tangent_dimension(model, report) == 9
    assert flat_directions(model, inputs) == 18 - 5


def test_a_bias_on_the_first_linear_map_only_is_one_more_input() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5, bias=False)))
    inputs = normal(60, 3)
    assert (
        find_symmetries(model, inputs).dimension == flat_directions(model, inputs) == 36 - (6 - 4) * (6 - 5)
    )


@given(
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, nn.ELU]),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_found_symmetry_transforms_the_model_itself(widths, activation, bias, seed) -> None:
    model = network(*widths, activation=activation, bias=bias, seed=seed).double()
    inputs = normal(9, widths[0], seed=seed)
    outputs = model(inputs)
    report = find_symmetries(model, inputs, seed=seed, method="structure", certificate=False)
    assert report.rejected == ()
    for finding in report.found:
        element = finding.symmetry.random_element(torch_generator(seed, "another element"))
        other = copy.deepcopy(model)
        other.load_state_dict(finding.symmetry.act(dict(model.named_parameters()), element))
        torch.testing.assert_close(other(inputs), outputs, rtol=1e-10, atol=1e-10)
        assert set(finding.symmetry.parameters) <= set(dict(model.named_parameters()))


UNITS = Units("0", 8, (Axis("0.weight", 0), Axis("0.bias", 0)), (Axis("2.weight", 1),))


@pytest.mark.parametrize(
    ("activation", "rival"),
    [
        (nn.ReLU, SignFlip),
        (nn.GELU, SignFlip),
        (nn.Tanh, PositiveRescaling),
        (nn.GELU, PositiveRescaling),
        (nn.ReLU, lambda units: GeneralLinear(units, 7, 7)),
        (nn.Tanh, lambda units: GeneralLinear(units, 7, 7)),
    ],
)
def test_a_wrong_proposal_is_rejected_with_its_error(activation, rival) -> None:
    model, inputs = network(6, 8, 7, activation=activation), normal(20, 6)
    frozen = FrozenModel(model)
    found, approximate, rejected = verify(frozen, frozen.params, [rival(UNITS)], inputs)
    assert found == approximate == []
    assert rejected[0].error > 1e-2


def test_a_wrong_proposal_does_not_take_true_ones_down() -> None:
    model, inputs = network(6, 8, 7), normal(20, 6)
    frozen = FrozenModel(model)
    proposals = [PositiveRescaling(UNITS), SignFlip(UNITS), Permutation(UNITS)]
    found, _, rejected = verify(frozen, frozen.params, proposals, inputs)
    assert [finding.symmetry.kind for finding in found] == ["positive rescaling", "permutation"]
    assert [finding.symmetry.kind for finding in rejected] == ["sign flip"]


def test_accidental_symmetries_of_a_special_point_are_not_believed() -> None:
    # With zero outgoing weights, or without a unit that fires, every transformation leaves the outputs alone.
    silent, dead = network(6, 8, 7), network(6, 8, 7)
    nn.init.zeros_(silent[2].weight)
    nn.init.constant_(dead[0].bias, -100.0)
    nn.init.zeros_(dead[0].weight)
    for model in (silent, dead):
        frozen = FrozenModel(model)
        assert verify(frozen, frozen.params, [SignFlip(UNITS)], normal(20, 6))[0] == []
        assert summary(find_symmetries(model, normal(20, 6))) == {
            "positive rescaling": ["R_+^8"],
            "permutation": ["S_8"],
        }


def test_a_layer_used_twice_has_no_rescaling_of_its_own() -> None:
    shared = built(lambda: nn.Linear(5, 5))
    report = find_symmetries(nn.Sequential(shared, nn.ReLU(), shared), normal(60, 5), certificate=True)
    assert report.found == ()
    assert (report.nullity.dimension, report.coverage) == (0, 1.0)


# What the symmetries are about: charges and collapsed states.


def gradient(model: nn.Module, inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    frozen = FrozenModel(model)
    targets = normal(len(inputs), 4, seed=9)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(frozen(params, inputs), targets)

    return frozen.params, torch.func.grad(loss)({name: p.data for name, p in frozen.params.items()})


@pytest.mark.parametrize(
    ("activation", "kind"), [(nn.ReLU, "positive rescaling"), (nn.Identity, "general linear")]
)
def test_one_gradient_step_changes_the_charge_by_the_charge_of_the_gradient(activation, kind) -> None:
    # Exact and without a term of first order: that is what conservation under gradient flow means.
    model, inputs, step = network(6, 8, 7, 4, activation=activation), normal(20, 6), 0.3
    params, gradients = gradient(model, inputs)
    moved = {name: params[name] - step * gradients[name] for name in params}
    for symmetry in find_symmetries(model, inputs).of_kind(kind):
        change = symmetry.charge(moved) - symmetry.charge(params)
        torch.testing.assert_close(change, step**2 * symmetry.charge(gradients), rtol=1e-9, atol=1e-13)
        assert change.abs().max() > 1e-6


def test_discrete_symmetries_and_translations_conserve_nothing() -> None:
    for activation in (nn.Tanh, nn.Identity):
        model = network(6, 8, 7, 4, activation=activation)
        for finding in find_symmetries(model, normal(20, 6)).found:
            charge = finding.symmetry.charge(FrozenModel(model).params)
            assert (charge is None) == (finding.symmetry.kind != "general linear")


def test_the_balancing_element_takes_every_charge_to_zero() -> None:
    model = network(6, 8, 7, 4).double()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0, 0  # cannot be balanced, and must not become infinite
    frozen, inputs = FrozenModel(model), normal(20, 6)
    rescaling, _ = find_symmetries(model, inputs).of_kind("positive rescaling")
    element = rescaling.balancing_element(frozen.params)
    balanced = rescaling.act(frozen.params, element)
    charge = rescaling.charge(balanced)
    assert element[3] == 1
    assert charge[torch.arange(8) != 3].abs().max() < 1e-14
    torch.testing.assert_close(
        frozen(balanced, inputs), frozen(frozen.params, inputs), rtol=1e-12, atol=1e-14
    )


def bundle(n: int, seed: int) -> tuple[Units, dict[str, Tensor]]:
    params = {"w": normal(n, 4, seed=seed), "b": normal(n, seed=seed + 1), "v": normal(3, n, seed=seed + 2)}
    return Units("w", n, (Axis("w", 0), Axis("b", 0)), (Axis("v", 1),)), params


@given(st.integers(2, 6), st.integers(0, 1000))
def test_distances_are_to_the_nearest_state_a_reflection_leaves_in_place(n: int, seed: int) -> None:
    units, params = bundle(n, seed)
    theta = torch.cat([params["w"], params["b"][:, None], params["v"].T], dim=1)

    def projected(reflection: Tensor) -> Tensor:
        return theta - (theta + reflection @ theta) / 2

    identity = torch.eye(n, dtype=torch.float64)
    flips = [identity - 2 * torch.outer(e, e) for e in identity]
    swaps = [
        identity - torch.outer(identity[i] - identity[j], identity[i] - identity[j])
        for i in range(n)
        for j in range(i)
    ]
    least = min(float(projected(flip).norm()) for flip in flips)
    assert math.isclose(SignFlip(units).distance(params), least, rel_tol=1e-12)
    assert math.isclose(PositiveRescaling(units).distance(params), least, rel_tol=1e-12)
    closest = min(float(projected(swap).norm()) for swap in swaps)
    assert math.isclose(Permutation(units).distance(params), closest, rel_tol=1e-12)
    # Over all mirrors I - 2nn^T: no normal does better than the one the distance belongs to.
    linear = GeneralLinear(units, 5, 3)
    normals = nn.functional.normalize(normal(200, n, seed=seed), dim=1)
    sampled = min(float((normal_ @ theta).norm()) for normal_ in normals)
    assert linear.distance(params) <= sampled + 1e-12
    assert linear.distance(params) <= closest + 1e-12


def test_distances_vanish_on_collapsed_states_only() -> None:
    units, params = bundle(5, seed=3)
    symmetries: list[Symmetry] = [SignFlip(units), Permutation(units), GeneralLinear(units, 5, 3)]
    assert all(symmetry.distance(params) > 0.1 for symmetry in symmetries)
    equal = {name: value.clone() for name, value in params.items()}
    equal["w"][1], equal["b"][1], equal["v"][:, 1] = equal["w"][4], equal["b"][4], equal["v"][:, 4]
    assert [symmetry.distance(equal) < 1e-7 for symmetry in symmetries] == [False, True, True]
    zero = {name: value.clone() for name, value in params.items()}
    zero["w"][2], zero["b"][2], zero["v"][:, 2] = 0, 0, 0
    assert [symmetry.distance(zero) < 1e-7 for symmetry in symmetries] == [True, False, True]


# What is read, in whatever style it is written.


class Functional(nn.Module):
    """Functions instead of modules, a reshape by the batch size, an optional argument, bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Parameter(torch.randn(7, 8))
        self.head = nn.ModuleDict({"out": nn.Linear(7, 4)})
        self.register_buffer("mean", torch.ones(6))

    def forward(self, x: Tensor, temperature: float | None = None) -> Tensor:
        x = x.view(x.size(0), -1) - self.mean
        x = functional.dropout(functional.relu(self.first(x)), 0.5, training=self.training)
        x = torch.flatten(functional.linear(x, self.middle), 1).tanh()
        if temperature is not None:
            x = x / temperature
        return functional.log_softmax(self.head["out"](x), dim=-1)


def test_functional_style_is_read_like_modules() -> None:
    model = built(Functional)
    report = find_symmetries(model, normal(20, 3, 2))
    assert summary(report) == {
        "positive rescaling": ["R_+^8"],
        "permutation": ["S_8", "S_7"],
        "sign flip": ["Z_2^7"],
        "translation": ["R^7", "R"],  # of the logits, which the softmax does not see
    }
    assert model.training


def test_layers_may_act_on_sequences() -> None:
    report = find_symmetries(network(6, 8, 4), normal(5, 11, 6))
    assert summary(report) == {"positive rescaling": ["R_+^8"], "permutation": ["S_8"]}


def test_a_single_layer_has_no_hidden_symmetry() -> None:
    linear = built(lambda: nn.Linear(3, 2))
    assert find_symmetries(linear, normal(5, 3)) == SymmetryReport((), ())


def test_a_single_unit_cannot_be_permuted() -> None:
    assert summary(find_symmetries(network(3, 1, 2), normal(5, 3))) == {"positive rescaling": ["R_+"]}


def test_one_input_and_one_output_are_read_like_many() -> None:
    report = find_symmetries(network(1, 4, 1), normal(20, 1))
    assert summary(report) == {"positive rescaling": ["R_+^4"], "permutation": ["S_4"]}
    (rescaling,) = report.of_kind("positive rescaling")
    assert rescaling.parameters == ("0.weight", "0.bias", "2.weight")


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.layer(x))
        return self.head(hidden) if self.layer.weight.sum() < 1e9 else hidden[:, :3]


def test_a_path_that_depends_on_the_weights_is_searched_numerically_and_says_so() -> None:
    model, inputs = built(Conditional).double(), 3 * normal(80, 4)
    with pytest.warns(SearchWarning, match="its path depends on values that it computes"):
        report = find_symmetries(model, inputs)
    assert {finding.method for finding in report.found} == {"numeric"}
    assert report.dimension == 5
    assert any("searched numerically" in note for note in report.notes)
    with pytest.raises(InputError, match="cannot be read: its path depends .*use method='numeric'"):
        find_symmetries(model, inputs, method="structure")


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.cumsum(torch.relu(self.first(x)), dim=1)
        return self.third(torch.relu(self.second(middle)))


def test_what_is_not_covered_is_named_and_what_is_behind_it_is_found() -> None:
    report = find_symmetries(built(Opaque), normal(20, 4), certificate=False)
    assert report.uncovered == ("cumsum",)
    assert summary(report) == {"positive rescaling": ["R_+^6"], "permutation": ["S_6"]}
    assert any("nothing is known of cumsum" in note for note in report.notes)


def test_frozen_parameters_are_constants() -> None:
    model = network(6, 8, 7, 4)
    model[4].weight.requires_grad_(False)
    report = find_symmetries(model, normal(20, 6))
    assert summary(report) == {"positive rescaling": ["R_+^8"], "permutation": ["S_8"]}
    assert any("frozen parameters are taken as constants: 4.weight" in note for note in report.notes)


def test_dropout_is_switched_off_and_said() -> None:
    model = nn.Sequential(network(6, 8), nn.Dropout(0.5), nn.ReLU(), network(8, 4))
    report = find_symmetries(model, normal(20, 6))
    assert summary(report) == {"positive rescaling": ["R_+^8"], "permutation": ["S_8"]}
    assert "dropout was switched off" in report.notes
    assert model.training


def test_dead_and_always_on_units_are_reported_apart() -> None:
    model, inputs = with_busy_units(4 * normal(150, 6)), 4 * normal(150, 6)
    with torch.no_grad():
        model[0].bias[2], model[0].bias[5] = -1e3, 1e3
    report = find_symmetries(model, inputs, certificate=True)
    units = {found.layer: found for found in report.dead_units}["0"]
    assert (units.constant, units.linear) == ((2,), (5,))
    assert report.dimension == report.nullity.dimension == 15
    assert report.nullity.extra > 0


def test_the_answer_depends_on_the_output_map() -> None:
    model, inputs = network(6, 8, 7, 4), normal(20, 6)
    report = find_symmetries(model, inputs, output=lambda logits: logits.log_softmax(dim=-1))
    assert report.dimension == find_symmetries(model, inputs).dimension + 7 + 1


def test_several_inputs_and_outputs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            hidden = torch.relu(self.left(x) + self.right(y))
            return self.head(hidden), {"hidden": hidden.sum(dim=1)}

    report = find_symmetries(built(Pair), (normal(9, 3), normal(9, 2)), certificate=False)
    # The sum of the hidden units is an output as well: they may change places but not be rescaled.
    assert summary(report) == {"permutation": ["S_4"], "translation": ["R^4"]}


def test_a_random_model_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(self.layer(x), 0.5, training=True)

    with pytest.raises(InputError, match="the same in every run of evaluation mode, got random ones"):
        find_symmetries(built(Noisy), normal(20, 3))


def test_a_tolerance_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"tolerance must be in \(0, 1\), got 0"):
        find_symmetries(network(3, 4, 2), normal(5, 3), tolerance=0.0)


def test_a_layer_without_units_is_refused() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        model = network(3, 0, 2)
    with pytest.raises(InputError, match=r"layer '0' must have units, got '0.weight' of shape \(0, 3\)"):
        find_symmetries(model, normal(5, 3))


def test_inputs_that_cannot_be_tested_on_are_refused() -> None:
    for inputs, message in (
        (normal(5, 4), r"the model fails on inputs of shape \(5, 4\)"),
        (normal(5, 6).numpy(), "inputs must be a torch.Tensor, got ndarray"),
        (normal(0, 6), r"at least one sample, got shape \(0, 6\)"),
        (normal(5, 6) * math.nan, "inputs must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            find_symmetries(network(6, 8, 4), inputs)


def test_the_caller_notices_nothing_and_the_seed_decides_everything() -> None:
    model, inputs = network(6, 8, 4), normal(300, 6)
    before = copy.deepcopy(model.state_dict())
    first, again = (find_symmetries(model, inputs, seed=5) for _ in range(2))
    assert first == again
    assert [f.moved for f in find_symmetries(model, inputs, seed=6).found] != [f.moved for f in first.found]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
