"""The discrete law of charges against enumeration, and per-sample gradients against plain autograd."""

from itertools import combinations, pairwise, product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel
from symdyn_core.symmetry.charges import (
    ExponentialSymmetry,
    Step,
    charge_drift,
    charge_of,
)
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.gradients import GradientMoments, per_sample_gradients
from symdyn_core.symmetry.kinds import Permutation, ScaleInvariance
from symdyn_core.symmetry.units import Axis, Units


def network(*widths: int, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def data(n: int, inputs: int, outputs: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, outputs, generator=generator, dtype=torch.float64)


def gathered(model: nn.Module, x: Tensor, y: Tensor, chunk_size: int | None = None) -> dict[str, Tensor]:
    chunks = list(per_sample_gradients(model, functional.mse_loss, x, y, chunk_size=chunk_size))
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def step_of_torch(model: nn.Sequential, x: Tensor, y: Tensor, decay: float) -> dict[str, Tensor]:
    """Return the parameters after one step of torch.optim.SGD on a batch; the model stays as it was."""
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=decay)
    optimizer.zero_grad()
    torch.autograd.backward(functional.mse_loss(model(x), y))
    optimizer.step()
    moved = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.load_state_dict(kept)
    return moved


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("decay", [0.0, 0.4])
@pytest.mark.parametrize("replacement", [False, True])
def test_drift_is_the_mean_over_all_batches(
    activation: type[nn.Module], decay: float, replacement: bool
) -> None:
    x, y = data(5, 3, 2)
    model = network(3, 4, 2, activation=activation)
    params = dict(model.named_parameters())
    (symmetry, *_) = (
        finding.symmetry
        for finding in find_symmetries(model, x, certificate=False).found
        if finding.symmetry.charge(params) is not None
    )
    charge = charge_of(symmetry)
    batches = list(product(range(5), repeat=2)) if replacement else list(combinations(range(5), 2))
    with torch.no_grad():
        before = charge(params)
    changes = [
        charge(step_of_torch(model, x[list(batch)], y[list(batch)], decay)) - before for batch in batches
    ]
    drift = charge_drift(
        symmetry, gathered(model, x, y), model.state_dict(), 0.3, 2, decay, replacement=replacement
    )
    measured = torch.stack(changes).mean(dim=0)
    assert torch.allclose(drift.total, measured, rtol=0, atol=1e-13)
    # Dividing the gradient's second moment by the batch size, mean and all, is the rival.
    rival = drift.noise + drift.mean_gradient / 2 + drift.weight_decay
    assert not torch.allclose(rival, measured, rtol=0, atol=1e-3 * float(measured.abs().max()))


def test_a_full_batch_has_no_noise() -> None:
    x, y = data(6, 3, 2)
    model = network(3, 4, 2)
    symmetry = find_symmetries(model, x, certificate=False).of_kind("positive rescaling")[0]
    drift = charge_drift(symmetry, gathered(model, x, y), model.state_dict(), 0.1, 6)
    assert not drift.noise.any()
    assert drift.mean_gradient.any()


def test_noise_is_the_trace_that_the_formula_says() -> None:
    x, y = data(9, 3, 2)
    model = network(3, 4, 2)
    symmetry = find_symmetries(model, x, certificate=False).of_kind("positive rescaling")[0]
    gradients = gathered(model, x, y)
    flat = torch.cat([g.flatten(start_dim=1) for g in gradients.values()], dim=1)
    covariance = torch.cov(flat.T, correction=0)
    # Order: weight (4, 3), bias (4), weight (2, 4), bias (2).
    for unit in range(4):
        diagonal = torch.zeros(26, dtype=torch.float64)
        diagonal[unit * 3 : unit * 3 + 3] = -1
        diagonal[12 + unit] = -1
        diagonal[[16 + unit, 20 + unit]] = 1
        noise = charge_drift(symmetry, gradients, model.state_dict(), 0.1, 1, replacement=True).noise[unit]
        assert float(noise) == pytest.approx(0.01 * float(torch.trace(covariance * diagonal)), rel=1e-12)


def test_symmetry_without_charge_is_refused() -> None:
    swap = Permutation(Units("0", 2, (Axis("w", 0),), (Axis("v", 1),)))
    with pytest.raises(InputError, match="permutation of layer '0' has no charge"):
        charge_drift(swap, {"w": torch.ones(2, 2, 1), "v": torch.ones(2, 1, 2)}, {}, 0.1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number in .1, n_samples=10., got 0"),
        ({"batch_size": 11}, "got 11"),
        ({"batch_size": 0, "replacement": True}, "batch_size must be a whole number >= 1, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1"),
        ({"weight_decay": 10.0}, "learning_rate . weight_decay must be < 1, got 1"),
    ],
)
def test_step_refuses(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Step(**{"learning_rate": 0.1, "batch_size": 2, "n_samples": 10, **change})  # type: ignore[arg-type]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def normalised() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    return model.double().train()


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: network(3, 4, 2), (7, 3)), (Recurrent, (7, 5, 2)), (normalised, (7, 3))],
    ids=["mlp", "lstm", "batch norm"],
)
def test_per_sample_gradients_are_autograds(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    frozen = FrozenModel(model)
    with torch.no_grad():
        outputs = frozen(frozen.params, x)
    y = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    mode = model.training
    gradients = gathered(model, x, y, chunk_size=3)
    assert model.training is mode
    model.eval()
    for k in range(len(x)):
        model.zero_grad()
        torch.autograd.backward(functional.mse_loss(model(x[k : k + 1]), y[k : k + 1]))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(gradients[name][k], parameter.grad, rtol=1e-12, atol=1e-14)


def test_loss_must_be_the_mean_of_the_samples() -> None:
    x, y = data(4, 3, 2)
    with pytest.raises(InputError, match="must be the mean of the losses of single samples"):
        list(per_sample_gradients(network(3, 4, 2), lambda a, b: (a - b).square().sum(), x, y))


def test_failing_loss_is_named() -> None:
    x, y = data(4, 3, 5)
    with pytest.raises(InputError, match="the loss of a sample of shape"):
        list(per_sample_gradients(network(3, 4, 2), lambda a, b: ((a - b) ** 2).mean(), x, y))


def test_moments_do_not_depend_on_the_chunks() -> None:
    x, y = data(11, 3, 2)
    model = network(3, 4, 2)
    # A large mean: the difference of E[g^2] and E[g]^2 would lose ten digits.
    gradients = {name: g + 1e5 for name, g in gathered(model, x, y).items()}
    whole = GradientMoments.of([gradients], [lambda g: g["0.weight"].square()])
    pieces = [{name: g[k : k + 4] for name, g in gradients.items()} for k in (0, 4, 8)]
    parts = GradientMoments.of(pieces, [lambda g: g["0.weight"].square()])
    assert parts.n_samples == 11
    assert torch.allclose(parts.centred[0], gradients["0.weight"].var(dim=0, correction=0), rtol=1e-7)
    assert torch.allclose(whole.centred[0], parts.centred[0], rtol=1e-7)
    assert torch.allclose(whole.mean["2.bias"], parts.mean["2.bias"], rtol=1e-14)


def test_moments_refuse_what_is_not_a_sample() -> None:
    with pytest.raises(InputError, match="at least one sample, got none"):
        GradientMoments.of([], [])
    with pytest.raises(InputError, match="one length, got .1, 2."):
        GradientMoments.of([{"a": torch.ones(1), "b": torch.ones(2)}], [])
    with pytest.raises(InputError, match="gradient of 'a' must be finite"):
        GradientMoments.of([{"a": torch.tensor([torch.nan])}], [])


def change_of_outputs(model: FrozenModel, symmetry: ExponentialSymmetry, x: Tensor) -> tuple[float, float]:
    """Return the largest change of an output, and of a parameter, under a random element."""
    element = symmetry.random_element(torch.Generator().manual_seed(0))
    moved = symmetry.act(model.params, element)
    with torch.no_grad():
        change = (model(moved, x) - model(model.params, x)).abs().max()
    return float(change), max(float((moved[k] - v).abs().max()) for k, v in model.params.items())


def test_user_generator_agrees_with_the_rescaling_it_describes() -> None:
    x, y = data(12, 3, 2)
    model = network(3, 4, 2)
    frozen = FrozenModel(model)
    rescaling = find_symmetries(model, x, certificate=False).of_kind("positive rescaling")[0]
    names = ("0.weight", "0.bias", "2.weight")
    diagonal = torch.zeros(24)
    diagonal[[3, 4, 5, 13]] = 1.0
    diagonal[[17, 21]] = -1.0
    # The same group as a dense matrix must do the same.
    for generator in (diagonal, torch.diag(diagonal)):
        own = ExponentialSymmetry(generator, names)
        change, moved = change_of_outputs(frozen, own, x)
        assert change < 1e-12
        assert moved > 0.01
        assert float(own.charge(frozen.params)) == pytest.approx(-float(rescaling.charge(frozen.params)[1]))
        element = torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64)
        images = rescaling.act(frozen.params, element), own.act(frozen.params, element[1:2])
        for name in frozen.params:
            assert torch.allclose(images[0][name], images[1][name], rtol=1e-13)
        assert own.invariance_error(frozen.params, gathered(model, x, y)) < 1e-12
        assert own.distance(own.project(frozen.params)) < 1e-14
        assert sum(float(norm) * power for power, norm in own.weighted_norms(frozen.params)) == pytest.approx(
            float(own.charge(frozen.params))
        )


def test_generator_of_a_rotated_product() -> None:
    # f = (u M)(M^-1 w) x with A mixing two hidden units: e^{tA} by the matrix exponential.
    x, y = data(8, 3, 2)
    model = network(3, 2, 2, activation=nn.Identity)
    mix = torch.tensor([[0.3, 1.0], [1.0, -0.5]], dtype=torch.float64)
    blocks = [torch.kron(mix, torch.eye(3)), mix, torch.kron(torch.eye(2), -mix)]
    own = ExponentialSymmetry(torch.block_diag(*blocks), ("0.weight", "0.bias", "2.weight"))
    frozen = FrozenModel(model)
    moved = own.act(frozen.params, torch.tensor([0.5]).double().exp())
    expected = torch.linalg.matrix_exp(0.5 * mix) @ frozen.params["0.weight"]
    assert torch.allclose(moved["0.weight"], expected, rtol=1e-12)
    assert change_of_outputs(frozen, own, x)[0] < 1e-12
    assert own.invariance_error(frozen.params, gathered(model, x, y)) < 1e-12


def test_generator_of_no_symmetry_is_found_out() -> None:
    x, y = data(8, 3, 2)
    model = network(3, 4, 2, activation=nn.Tanh)
    wrong = ExponentialSymmetry(
        torch.cat([torch.ones(16), -torch.ones(8)]), ("0.weight", "0.bias", "2.weight")
    )
    assert wrong.invariance_error(model.state_dict(), gathered(model, x, y)) > 0.01
    assert change_of_outputs(FrozenModel(model), wrong, x)[0] > 0.01


@pytest.mark.parametrize(
    ("generator", "names", "message"),
    [
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), ("w",), "generator must be symmetric"),
        (torch.zeros(2), ("w",), "finite and not zero"),
        (torch.ones(2, 3), ("w",), "shape .P, P. or .P,., got .2, 3."),
        (torch.ones(2), (), "names must hold at least one"),
    ],
)
def test_bad_generators_are_refused(generator: Tensor, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExponentialSymmetry(generator, names)


def test_generator_of_another_size_is_refused_when_used() -> None:
    own = ExponentialSymmetry(torch.ones(2), ("w",))
    with pytest.raises(InputError, match="acts on 2 numbers, the parameters hold 3"):
        own.charge({"w": torch.ones(3)})
    with pytest.raises(InputError, match="no parameter 'w'"):
        own.charge({"v": torch.ones(3)})


def test_scale_invariance_only_grows() -> None:
    scale = ScaleInvariance(Units("0", 2, (Axis("w", 0),), ()))
    gradients = {"w": torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))}
    drift = charge_drift(scale, gradients, {"w": torch.ones(2, 3)}, 0.1, 4)
    assert bool((drift.noise > 0).all())
    assert bool((drift.mean_gradient >= 0).all())
