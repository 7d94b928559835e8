"""The numerical search against ground truth; what it finds must act and conserve as it says."""

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from symdyn_core.errors import InputError
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.certificate import cross_check, output_jacobian_nullity
from symdyn_core.symmetry.numeric import NumericSearch, NumericSymmetry, flow, search
from symdyn_core.symmetry.vector_fields import (
    Cross,
    Mix,
    Pair,
    Place,
    Scale,
    Shift,
    VectorField,
    diagonal_family,
    linear_family,
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


def attention_pairs(
    prefix: str, heads: int, size: int, *, out: str = "out_proj", fused: str = ""
) -> list[Pair]:
    """Return the query-key and value-output pairs of each head."""

    def rows(which: int, head: int) -> tuple[Place, ...]:
        start = head * size + (which * heads * size if fused else 0)
        name = fused or prefix + ("q_proj.", "k_proj.", "v_proj.")[which]
        return tuple(Place(name + kind, 0, start, start + size) for kind in ("weight", "bias"))

    pairs = []
    for head in range(heads):
        columns = Place(f"{prefix}{out}.weight", 1, head * size, (head + 1) * size)
        pairs += [Pair(rows(0, head), rows(1, head)), Pair(rows(2, head), (columns,))]
    return pairs


def grouped_pairs(prefix: str, heads: int, kv_heads: int, size: int) -> list[Pair]:
    """Return the pairs of attention in which several query heads share a key and a value head."""

    def place(name: str, axis: int, head: int) -> Place:
        return Place(f"{prefix}{name}_proj.weight", axis, head * size, (head + 1) * size)

    pairs = []
    for group in range(kv_heads):
        members = range(group * heads // kv_heads, (group + 1) * heads // kv_heads)
        pairs.append(Pair(tuple(place("q", 0, h) for h in members), (place("k", 0, group),)))
        pairs.append(Pair((place("v", 0, group),), tuple(place("o", 1, h) for h in members)))
    return pairs


def in_proj_pairs() -> list[Pair]:
    """Return the pairs of nn.MultiheadAttention(8, 2)."""

    def rows(which: int, head: int) -> tuple[Place, ...]:
        start = 8 * which + 4 * head
        return tuple(Place(f"attn.in_proj_{kind}", 0, start, start + 4) for kind in ("weight", "bias"))

    outs = [Place("attn.out_proj.weight", 1, 4 * head, 4 * head + 4) for head in range(2)]
    return [pair for h in range(2) for pair in (Pair(rows(0, h), rows(1, h)), Pair(rows(2, h), (outs[h],)))]


def renamed(pairs: list[Pair], old: str, new: str) -> list[Pair]:
    swap = lambda places: tuple(  # noqa: E731
        Place(p.parameter.replace(old, new), p.axis, p.start, p.stop) for p in places
    )
    return [Pair(swap(pair.writers), swap(pair.readers)) for pair in pairs]


HIDDEN = [Pair((Place("0.weight", 0, 0, 4), Place("0.bias", 0, 0, 4)), (Place("2.weight", 1, 0, 4),))]
RANK = [Pair((Place("A", 0, 0, 3),), (Place("B", 1, 0, 3),))]
HEAD = [Pair((Place("2.weight", 0, 0, 3), Place("2.bias", 0, 0, 3)), ())]
BLOCK = "layers.0.self_attn."
# Dimension of what lies in the family. All of it, but for the rotation of the residual stream (21 of a GPT,
# 28 of a LLaMA without tied head, rational in the norm gains) and the mean-free readers of LayerNorm (39).
EXPECTED: dict[str, tuple[int, list[Pair]]] = {
    "softmax_regression": (7, []),
    "softmax_regression_logits": (0, []),
    "mlp_relu": (15, []),
    "mlp_relu_log_probabilities": (23, []),
    "mlp_tanh": (0, []),
    "mlp_gelu": (0, []),
    "linear_net": (20, HIDDEN),
    "lora": (9, RANK),
    "convnet_train": (27, []),
    "convnet_eval": (27, []),
    "resnet": (56, []),
    "lstm": (20, []),
    "gru": (10, []),
    "attention": (80, attention_pairs("", 2, 4)),
    "torch_attention": (80, in_proj_pairs()),
    "gpt": (233 - 39 - 21, attention_pairs("h.0.attn.", 2, 4)),
    "gpt_fused": (233 - 39 - 21, attention_pairs("h.0.attn.", 2, 4, out="c_proj", fused="h.0.attn.c_attn.")),
    "llama": (83 - 28, grouped_pairs(BLOCK, 2, 1, 4)),
    "llama_tied": (47, grouped_pairs(BLOCK, 2, 1, 4)),
    "llama_two_blocks": (
        113 - 28,
        [
            *grouped_pairs(BLOCK, 4, 2, 2),
            *renamed(grouped_pairs(BLOCK, 4, 2, 2), "layers.0", "layers.1"),
        ],
    ),
    "layer_norm": (16, []),
    "ssl_encoder": (12, HEAD),
}
SLOW = {"gpt", "gpt_fused", "llama_two_blocks", "convnet_train", "convnet_eval", "attention"}


def duration(name: str) -> object:
    if name == "resnet":  # a minute, and the small convolutional nets cover its parts
        return pytest.mark.verify
    return pytest.mark.slow if name in SLOW else ()


def searched(name: str, family: str = "diagonal", **options: object) -> NumericSearch:
    case = zoo.case(name)
    model, inputs = case.build()
    f, params = zoo.as_function(model)
    return search(f, params, inputs, output=case.output, family=family, **options)


@pytest.mark.parametrize("name", [pytest.param(name, marks=duration(name)) for name in EXPECTED])
def test_the_orbit_has_the_dimension_of_all_symmetries_in_the_family(name: str) -> None:
    dimension, pairs = EXPECTED[name]
    found = searched(name, pairs=pairs)
    assert found.dimension == dimension
    assert found.rejected == ()
    assert max(found.errors, default=0.0) < 1e-9
    assert found.kept / max(found.null, 1e-16) > 1e7
    assert found.gradients <= 1.3 * found.unknowns + 10


def test_without_symmetry_the_null_fields_are_all_ineffective() -> None:
    found = searched("mlp_tanh")
    # For each of three matrices: rows and columns may be scaled, or shifted, against each other.
    assert (found.null_fields, found.dimension, found.symmetries) == (6, 0, ())
    assert "0 dimensions" in str(found)


def test_mixing_every_axis_finds_the_same_without_hints() -> None:
    found = searched("linear_net", family="auto")
    assert found.unknowns == sum(field.size for field in linear_family(parameters_of("linear_net")))
    assert found.dimension == 20
    assert [symmetry.group for symmetry in found.symmetries] == ["exp(R^16)", "exp(R^4)"]


def parameters_of(name: str) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in zoo.case(name).build()[0].named_parameters()}


def test_imposed_pairs_need_one_matrix() -> None:
    wrong_head = Pair(
        (Place("q_proj.weight", 0, 0, 4), Place("q_proj.bias", 0, 0, 4)),
        (Place("k_proj.weight", 0, 4, 8), Place("k_proj.bias", 0, 4, 8)),
        imposed=True,
    )
    right = [Pair(pair.writers, pair.readers, imposed=True) for pair in attention_pairs("", 2, 4)]
    found = searched("attention", family="pairs", pairs=[*right, wrong_head])
    assert found.unknowns == 5 * 16
    alone = searched("attention", family="pairs", pairs=[wrong_head])
    assert (alone.dimension, alone.null_fields) == (0, 0)
    # Every field is a symmetry, and every equation rounding.
    whole = searched("attention", family="pairs", pairs=right[:1])
    assert (whole.dimension, whole.kept) == (16, math.inf)
    assert [symmetry.dimension for symmetry in found.symmetries] == [16] * 4
    assert all(len(symmetry.fields) == 1 for symmetry in found.symmetries)


def test_output_and_reading() -> None:
    found = searched("mlp_relu")
    assert str(found).splitlines() == [
        f"15 dimensions of continuous symmetry among 139 unknowns ({found.gradients} gradients)",
        "  exp(R^8)  scales 0.weight[0:8], scales 0.bias[0:8], scales 2.weight[:, 0:8]",
        "  exp(R^7)  scales 2.weight[0:7], scales 2.bias[0:7], scales 4.weight[:, 0:7]",
    ]
    assert [symmetry.layer for symmetry in found.symmetries] == ["0", "2"]


def test_positive_rescaling_is_found_unit_by_unit() -> None:
    first = searched("mlp_relu").symmetries[0]
    params = parameters_of("mlp_relu")
    for generator in first.generators():
        velocity = generator(params)
        (unit,) = torch.nonzero(velocity["0.bias"])[:, 0].tolist()
        rate = velocity["0.bias"][unit] / params["0.bias"][unit]
        for name, axis, sign in (("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, -1)):
            expected = torch.zeros_like(params[name])
            expected.select(axis, unit).copy_(sign * rate * params[name].select(axis, unit))
            assert torch.allclose(velocity[name], expected, atol=1e-9)


def test_charges_are_those_of_the_law_of_balance_and_gradient_flow_conserves_them() -> None:
    case = zoo.case("mlp_relu")
    model, inputs = case.build()
    f, params = zoo.as_function(model)
    for symmetry in search(f, params, inputs, family="diagonal").symmetries:
        charges = symmetry.charge(params)
        assert charges is not None
        assert charges.shape == (symmetry.dimension,)
        moving = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        loss = f(moving, inputs).square().mean()
        gradients = dict(zip(moving, torch.autograd.grad(loss, list(moving.values())), strict=True))
        # Gradient flow changes the charge at a rate of -2 g . A theta, which polarisation gives exactly.
        there, back = ({n: params[n] + sign * gradients[n] for n in params} for sign in (1, -1))
        rate = (symmetry.charge(there) - symmetry.charge(back)) / 2
        scale = sum(float((gradients[name] * params[name]).abs().sum()) for name in params)
        assert float(rate.abs().max()) < 1e-10 * scale
        # One step of SGD adds the charge of the gradient, times the squared learning rate.
        step = {name: params[name] - 0.1 * gradients[name] for name in params}
        gain = symmetry.charge(step) - charges
        assert torch.allclose(gain, 0.01 * symmetry.charge(gradients), atol=1e-10 * scale)


def test_only_symmetric_fields_have_charges() -> None:
    found = searched("linear_net", pairs=HIDDEN)
    mixing, translation = found.symmetries
    charges = mixing.charge(parameters_of("linear_net"))
    assert charges is not None
    assert len(charges) == 10  # symmetric 4 x 4 matrices
    assert translation.charge(parameters_of("linear_net")) is None


def test_act_is_a_flow() -> None:
    params = parameters_of("linear_net")
    for symmetry in searched("linear_net", pairs=HIDDEN).symmetries:
        element = symmetry.random_element(torch_generator(3))
        halves = symmetry.act(symmetry.act(params, element / 2), element / 2)
        whole = symmetry.act(params, element)
        home = symmetry.act(whole, -element)
        assert set(whole) == set(params)
        for name in params:
            assert torch.allclose(halves[name], whole[name], atol=1e-12)
            assert torch.allclose(home[name], params[name], atol=1e-12)
        moved = math.sqrt(sum(float((whole[n] - params[n]).square().sum()) for n in params))
        assert moved > 0.1


def test_flow_is_the_matrix_exponential() -> None:
    generator = torch_generator(5)
    params = {
        "b": torch.randn(3, generator=generator, dtype=torch.float64),
        "w": torch.randn(3, 2, generator=generator, dtype=torch.float64),
    }
    bias, weight = Place("b", 0, 0, 3), Place("w", 0, 0, 3)
    fields: tuple[VectorField, ...] = (Mix((weight,)), Cross(bias, weight, 2), Scale(bias), Shift(bias))
    coefficients = torch.randn(9 + 2 + 3 + 3, generator=generator, dtype=torch.float64)
    C, c, s, v = coefficients.split([9, 2, 3, 3])
    # One matrix for (w, b, 1): w' = C w, b' = w c + s b + v.
    matrix = torch.zeros(10, 10, dtype=torch.float64)
    for column in range(2):
        here = slice(3 * column, 3 * column + 3)
        matrix[here, here] = C.reshape(3, 3)
        matrix[6:9, here] = c[column] * torch.eye(3, dtype=torch.float64)
    matrix[6:9, 6:9] = torch.diag(s)
    matrix[6:9, 9] = v
    state = torch.cat([params["w"].T.reshape(-1), params["b"], torch.ones(1, dtype=torch.float64)])
    expected = torch.linalg.matrix_exp(matrix) @ state
    result = flow(fields, coefficients, params)
    assert torch.allclose(result["w"], expected[:6].reshape(2, 3).T, rtol=1e-12)
    assert torch.allclose(result["b"], expected[6:9], rtol=1e-12)


def test_project_goes_to_the_nearest_state_left_in_place() -> None:
    first = searched("mlp_relu").symmetries[0]
    params = parameters_of("mlp_relu")
    norms = [
        math.sqrt(
            float(params["0.weight"][i].square().sum() + params["0.bias"][i] ** 2)
            + float(params["2.weight"][:, i].square().sum())
        )
        for i in range(8)
    ]
    assert first.distance(params) == pytest.approx(min(norms), rel=1e-6)
    projected = first.project(params)
    weakest = norms.index(min(norms))
    assert float(projected["0.weight"][weakest].abs().max()) < 1e-6
    assert torch.equal(projected["4.weight"], params["4.weight"])


def test_a_shift_leaves_nothing_in_place() -> None:
    symmetry = next(s for s in searched("layer_norm").symmetries if s.parameters == ("0.bias",))
    with pytest.raises(InputError, match="numeric"):
        symmetry.project(parameters_of("layer_norm"))


def test_search_and_certificate_agree() -> None:
    case = zoo.case("layer_norm")
    model, inputs = case.build()
    f, params = zoo.as_function(model)
    space = output_jacobian_nullity(f, params, inputs).generic
    symmetries = search(f, params, inputs, family="diagonal").symmetries
    tangents = [generator(space.params) for symmetry in symmetries for generator in symmetry.generators()]
    check = cross_check(space, tangents)
    assert (check.coverage, check.contradicted) == (1.0, 0)
    without_gain = [t for t in tangents if "1.weight" not in t]
    rest = cross_check(space, without_gain)
    assert (rest.unexplained, rest.carriers[0][0] in {"1.weight", "1.bias", "3.weight"}) == (8, True)


def test_a_dead_unit_is_no_symmetry() -> None:
    make = lambda: zoo.multilayer(6, 8, 4, activation=nn.ReLU)  # noqa: E731
    model, inputs = zoo.build(make, zoo.normal(200, 6), seed=3)
    f, params = zoo.as_function(model)
    params["0.bias"][2] = -100.0
    assert search(f, params, inputs, family="diagonal").dimension == 8


def test_models_that_write_to_buffers_are_searched_one_row_at_a_time() -> None:
    # BatchNorm that records its statistics cannot be vectorised.
    model, inputs = zoo.build(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, eps=zoo.NO_EPS), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
        ),
        zoo.normal(60, 1, 3, 3),
        training=True,
    )
    f = lambda params, inputs: torch.func.functional_call(model, params, (inputs,))  # noqa: E731
    params = {name: value.detach() for name, value in model.named_parameters()}
    assert output_jacobian_nullity(f, params, inputs).dimension == 6
    # For each channel: scale and bias of the convolution; gain and bias of the norm against the reader.
    assert search(f, params, inputs, family="diagonal").dimension == 6


def test_several_inputs() -> None:
    f = lambda params, inputs: (inputs[0] * params["w"]) @ (params["v"] * inputs[1]).T  # noqa: E731
    params = {"w": torch.ones(1, dtype=torch.float64), "v": torch.ones(1, dtype=torch.float64)}
    generator = torch_generator(0)
    inputs = tuple(torch.randn(9, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert search(f, params, inputs).dimension == 1
    assert output_jacobian_nullity(f, params, inputs).dimension == 1


def test_seeds_change_the_draws_and_not_the_answer() -> None:
    kept = set()
    for seed in range(4):
        found = searched("layer_norm", seed=seed)
        assert found.dimension == 16
        kept.add(found.kept)
    assert len(kept) == 4
    assert searched("layer_norm", seed=1).kept in kept


def test_scalars_and_progress() -> None:
    params = {"a": torch.tensor(2.0).double(), "w": torch.ones(2).double()}
    x = torch.randn(9, 2, generator=torch_generator(0), dtype=torch.float64)
    seen: list[tuple[int, int]] = []
    found = search(
        lambda p, x: p["a"] * (x @ p["w"]), params, x, progress=lambda *done: seen.append(done), chunk=8
    )
    assert found.dimension == 1
    assert seen[-1] == (found.gradients, found.gradients)
    assert found.symmetries[0].describe().startswith("scales")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "quadratic"}, "family must be one of auto, diagonal, linear, pairs, got 'quadratic'"),
        ({"family": "pairs"}, "at least one unknown"),
        ({"pairs": [Pair((Place("0.wieght", 0, 0, 2),), ())]}, "did you mean 0.weight"),
        ({"pairs": [Pair((Place("0.weight", 0, 0, 99),), ())]}, r"0.weight\[0:99\] must lie in a parameter"),
    ],
)
def test_unusable_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        searched("layer_norm", **{"family": "diagonal", **options})


def test_places_of_a_pair_have_one_length() -> None:
    with pytest.raises(InputError, match=r"one positive length, got \[2, 3\]"):
        Pair((Place("a", 0, 0, 2),), (Place("b", 0, 0, 3),))


def test_overlapping_pairs_are_scaled_once() -> None:
    params = {"w": torch.ones(6, 2).double()}
    pair = Pair((Place("w", 0, 1, 3),), (Place("w", 0, 2, 4),))
    scales = [field.place for field in diagonal_family(params, [pair]) if isinstance(field, Scale)]
    assert [(place.axis, place.start, place.stop) for place in scales] == [(0, 0, 1), (0, 4, 6), (1, 0, 2)]


def test_reading_is_the_product_of_gradient_and_tangent() -> None:
    generator = torch_generator(2)
    shapes = {"w": (4, 3), "b": (4,), "g": (4,), "t": (2, 3, 2), "a": ()}
    params, gradients = (
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
        for _ in range(2)
    )
    imposed = Pair((Place("w", 0, 1, 3),), (Place("t", 0, 0, 2),), imposed=True)
    fields = [*diagonal_family(params, [imposed]), *linear_family(params)]
    assert {type(field).__name__ for field in fields} == {"Mix", "Scale", "Shift", "Cross", "Follow"}
    for field in fields:
        read = field.read(gradients, params)
        assert read.shape == (field.size,)
        for k, unit in itertools.islice(enumerate(torch.eye(field.size, dtype=torch.float64)), 20):
            tangents = field.tangents(params, unit)
            product = sum(
                float((gradients[place.parameter] * tangent).sum())
                for place, tangent in zip(field.places, tangents, strict=True)
            )
            assert product == pytest.approx(float(read[k]), abs=1e-12)


def test_elements_move_parameters_visibly_and_safely() -> None:
    for symmetry in searched("attention", pairs=attention_pairs("", 2, 4)).symmetries:
        assert isinstance(symmetry, NumericSymmetry)
        element = symmetry.random_element(torch_generator(0))
        assert element.shape == (symmetry.dimension,)
        assert 0.1 < float((element @ symmetry.coefficients).abs().max()) <= 0.5 + 1e-9
