"""The certificate against ground truth, and what mimics symmetry."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.certificate import (
    Nullity,
    NullSpace,
    cross_check,
    generic_point,
    inputs_like,
    null_space,
    output_jacobian_nullity,
)


def load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"core_tests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


zoo = load("zoo")
SLOW = {"gpt", "gpt_fused", "gpt_two_blocks", "llama_two_blocks", "convnet_train", "convnet_eval"}


def duration(name: str) -> object:
    if name == "resnet":  # a minute, and the small convolutional nets cover its parts
        return pytest.mark.verify
    return pytest.mark.slow if name in SLOW else ()


def nullity_of(name: str, **options: object) -> Nullity:
    case = zoo.case(name)
    model, inputs = case.build()
    f, params = zoo.as_function(model)
    return output_jacobian_nullity(f, params, inputs, output=case.output, **options)


@pytest.mark.parametrize(
    "name",
    [pytest.param(c.name, marks=duration(c.name)) for c in zoo.CASES],
)
def test_nullity_is_the_dimension_of_all_symmetries(name: str) -> None:
    nullity = nullity_of(name)
    assert nullity.dimension == zoo.case(name).dimension
    assert nullity.extra == 0
    # Rounding lies at 1e-16; the flattest direction that counts is that of the tied LLaMA, 4e-8.
    assert nullity.generic.gap > 7
    assert nullity.drawn == 0
    assert not nullity.is_bound


def test_null_directions_change_no_output() -> None:
    model, inputs = zoo.case("linear_net").build()
    f, params = zoo.as_function(model)
    space = output_jacobian_nullity(f, params, inputs).generic
    sizes = [value.numel() for value in space.params.values()]
    for direction in space.basis:
        pieces = zip(space.params.items(), direction.split(sizes), strict=True)
        step = {name: 1e-3 * piece.reshape(value.shape) for (name, value), piece in pieces}
        there, back = ({n: space.params[n] + sign * step[n] for n in step} for sign in (1, -1))
        # The function is of second order in the weights: the central difference is exact.
        assert float((f(there, inputs) - f(back, inputs)).abs().max()) < 1e-12


def relu(widths: tuple[int, ...] = (6, 8, 4)) -> tuple[nn.Module, Tensor]:
    make = lambda: zoo.multilayer(*widths, activation=nn.ReLU)  # noqa: E731
    return zoo.build(make, zoo.normal(200, widths[0]), seed=3)


def test_dead_and_always_on_units_are_reported_apart() -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    assert output_jacobian_nullity(f, params, inputs).extra == 0
    params["0.bias"][2] = -100.0
    nullity = output_jacobian_nullity(f, params, inputs)
    assert nullity.dimension == 8
    # Dead: 6 incoming weights, a bias and 4 outgoing weights are free, one of these 11 as rescaling.
    assert nullity.extra == 10
    assert "10 more at the model's own parameters" in str(nullity)
    params["0.bias"][2] = 100.0
    # Always on, the unit is linear: GL(1) is there before, and its bias moves into the next one.
    assert output_jacobian_nullity(f, params, inputs).extra >= 1


def test_too_few_rows_are_refused() -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    with pytest.raises(InputError, match=r"at least 102 output numbers are needed for 92 parameters, got 40"):
        output_jacobian_nullity(f, params, inputs[:10], draw=False)
    pooled = lambda params, inputs: f(params, inputs).mean(dim=0)  # noqa: E731
    with pytest.raises(InputError, match="too few rows mimic symmetry"):
        output_jacobian_nullity(pooled, params, inputs)


def test_samples_are_drawn_where_the_outputs_are_too_few() -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    nullity = output_jacobian_nullity(f, params, inputs[:20])
    assert nullity.drawn > 0
    assert nullity.rows >= 1.1 * 92
    assert "samples drawn" in str(nullity)


def test_drawn_samples_are_like_the_given_ones() -> None:
    generator = torch_generator(0)
    numbers = 3 + 2 * torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    more = inputs_like(numbers, 1000, generator)
    assert more.shape == (1000, 4)
    assert float(more.mean()) == pytest.approx(3, abs=0.2)  # standard error 0.03
    assert float(more.std()) == pytest.approx(2, abs=0.2)
    ids = inputs_like(torch.tensor([[3, 7]]), 500, generator)
    assert (int(ids.min()), int(ids.max()), ids.dtype) == (3, 7, torch.int64)
    pair = inputs_like((numbers, torch.zeros(1000, 1, dtype=torch.bool)), 3, generator)
    assert [tensor.shape[0] for tensor in pair] == [3, 3]
    assert not pair[1].any()


def test_blocks_give_a_lower_bound() -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    names = [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
    nullity = output_jacobian_nullity(f, params, inputs, blocks=names)
    assert nullity.is_bound
    assert nullity.dimension == 0  # rescaling couples the two layers
    assert str(nullity).startswith("at least 0 of 92")
    tanh = zoo.build(lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4)), zoo.normal(40, 4))
    f, params = zoo.as_function(tanh[0])
    chain = output_jacobian_nullity(f, params, tanh[1], blocks=[["0.weight", "1.weight"]])
    assert (chain.dimension, chain.is_bound) == (9, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [["0.wieght"]]}, "did you mean 0.weight"),
        ({"blocks": [["0.weight"], ["0.weight"]]}, "blocks must not share parameters"),
        ({"blocks": []}, "at least one parameter"),
        ({"limit": 50}, "at most limit=50 parameters can be counted together, got 92"),
    ],
)
def test_unusable_blocks_are_refused(options: dict[str, object], message: str) -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    with pytest.raises(InputError, match=message):
        output_jacobian_nullity(f, params, inputs, **options)


def rescalings(params: dict[str, Tensor], units: range) -> list[dict[str, Tensor]]:
    """Transcribe the generators of positive rescaling."""
    tangents = []
    for unit in units:
        tangent = {name: torch.zeros_like(params[name]) for name in ("0.weight", "0.bias", "2.weight")}
        tangent["0.weight"][unit] = params["0.weight"][unit]
        tangent["0.bias"][unit] = params["0.bias"][unit]
        tangent["2.weight"][:, unit] = -params["2.weight"][:, unit]
        tangents.append(tangent)
    return tangents


def test_cross_check_tells_coverage_and_where_the_rest_lives() -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    space = output_jacobian_nullity(f, params, inputs).generic
    all_units = rescalings(dict(space.params), range(8))
    assert cross_check(space, all_units).coverage == 1
    assert cross_check(space, all_units).carriers == ()
    # The same direction twice explains nothing more.
    some = cross_check(space, [*all_units[:6], *all_units[:6]])
    assert (some.nullity, some.unexplained, some.contradicted) == (8, 2, 0)
    assert some.coverage == 0.75
    assert {name for name, _ in some.carriers} == {"0.weight", "0.bias", "2.weight"}
    assert sum(share for _, share in some.carriers) == pytest.approx(1)
    shares = [share for _, share in some.carriers]
    assert shares == sorted(shares, reverse=True)
    nothing = cross_check(space, [])
    assert (nothing.unexplained, nothing.contradicted) == (8, 0)


def test_cross_check_contradicts_what_is_no_symmetry() -> None:
    model, inputs = relu()
    f, params = zoo.as_function(model)
    space = output_jacobian_nullity(f, params, inputs).generic
    wrong = [{"2.bias": torch.ones(4, dtype=torch.float64)}]
    assert cross_check(space, [*rescalings(dict(space.params), range(8)), *wrong]).contradicted == 1
    with pytest.raises(InputError, match="names and shapes of the parameters, got 'head'"):
        cross_check(space, [{"head": torch.ones(4)}])


def test_cross_check_without_null_directions() -> None:
    space = NullSpace({"w": torch.ones(2)}, ("w",), torch.zeros(0, 2), kept=1.0, null=0.0, is_bound=False)
    assert cross_check(space, []).coverage == 1


def test_scale_of_rows_and_columns_is_not_taken_for_a_null_direction() -> None:
    generator = torch_generator(1)
    matrix = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    matrix[:, 5] = matrix[:, 0] + matrix[:, 1]
    scaled = matrix * 10.0 ** torch.tensor([0.0, -4, 0, -5, 2, 0], dtype=torch.float64)
    scaled *= 10.0 ** torch.linspace(-8, 8, 30, dtype=torch.float64)[:, None]
    basis, kept, null = null_space(scaled)
    assert len(basis) == 1
    assert kept > 1e-2
    assert null < 1e-14
    assert float((scaled @ basis[0]).abs().max() / scaled.abs().max()) < 1e-13


def test_parameters_without_any_effect_are_null() -> None:
    f = lambda params, inputs: inputs * params["w"]  # noqa: E731
    params = {"w": torch.ones(3, dtype=torch.float64), "unused": torch.ones(2, dtype=torch.float64)}
    inputs = torch.randn(9, 3, generator=torch_generator(0), dtype=torch.float64)
    assert output_jacobian_nullity(f, params, inputs).dimension == 2


def test_a_block_without_any_effect_is_null() -> None:
    model, inputs = zoo.case("attention").build()
    f, params = zoo.as_function(model)
    # Keys shifted by one vector: the derivatives cancel, up to rounding.
    space = output_jacobian_nullity(f, params, inputs, blocks=[["k_proj.bias"]]).generic
    assert (space.dimension, space.is_clear) == (8, True)


def test_outputs_that_are_not_finite_are_refused() -> None:
    f = lambda params, inputs: inputs / (params["w"] - params["w"])  # noqa: E731
    with pytest.raises(InputError, match="outputs must be finite"):
        output_jacobian_nullity(f, {"w": torch.ones(1).double()}, torch.ones(4, 1).double())


def test_generic_points_leave_zeros_and_equalities() -> None:
    point = generic_point({"b": torch.zeros(4, 9).double(), "g": torch.ones(9).double()}, torch_generator(0))
    assert all(len(value.unique()) == value.numel() for value in point.values())
    assert 0.1 < float(point["b"].std()) < 1


def test_progress_is_told() -> None:
    seen = []
    nullity = nullity_of("lora", progress=lambda done, total: seen.append((done, total)), chunk=20)
    assert seen[:3] == [(20, nullity.rows), (40, nullity.rows), (50, nullity.rows)]
