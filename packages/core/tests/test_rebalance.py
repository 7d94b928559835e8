"""Real models: moved to their equilibrium with the same function, and the drift that SGD then shows."""

import copy
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from symdyn_core.errors import InputError
from symdyn_core.params import FrozenModel, to_vector
from symdyn_core.random import torch_generator
from symdyn_core.symmetry.charges import ExponentialSymmetry, charge_of
from symdyn_core.symmetry.equilibrium import commuting_noise_equilibrium, noise_balance
from symdyn_core.symmetry.find import find_symmetries
from symdyn_core.symmetry.gradients import per_sample_gradients
from symdyn_core.symmetry.kinds import PositiveRescaling, ScaleInvariance
from symdyn_core.symmetry.rebalance import equilibrium_report, rebalance_
from symdyn_core.symmetry.report import Finding, SymmetryReport
from symdyn_core.symmetry.units import Axis, Units


def network(
    *widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True, seed: int = 0
) -> nn.Sequential:
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def data(n: int, inputs: int, outputs: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator)
    return x, torch.randn(n, outputs, generator=generator)


def gathered(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    chunks = list(per_sample_gradients(model, functional.mse_loss, x, y))
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_relu_network_reaches_its_noise_equilibrium(dtype: torch.dtype) -> None:
    x, y = (tensor.to(dtype) for tensor in data(60, 5, 3))
    model = network(5, 7, 6, 3).to(dtype).train()
    before, start = model(x).detach(), copy.deepcopy(model)
    done = rebalance_(model, functional.mse_loss, x, y)
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert done.output_change < 100 * torch.finfo(dtype).eps
    assert torch.allclose(model(x), before, rtol=1e-4 if dtype is torch.float32 else 1e-12, atol=1e-6)
    assert done.moved > 0.05
    assert done.noise[1] < 0.97 * done.noise[0]
    gradients, before_gradients = gathered(model, x, y), gathered(start, x, y)
    for symmetry in find_symmetries(model, x, certificate=False).of_kind("positive rescaling"):
        assert float(noise_balance(symmetry, gradients).abs().max()) < 1e-5
        assert float(noise_balance(symmetry, before_gradients).abs().max()) > 0.05


def test_joint_equilibrium_is_that_of_the_commuting_family() -> None:
    x, y = (tensor.double() for tensor in data(40, 4, 2))
    model = network(4, 3, 3, 2).double()
    variances = {name: g.var(dim=0, correction=0) for name, g in gathered(model, x, y).items()}
    # The six generators written out entry by entry, in the order of the flattened parameters.
    exponents = []
    for incoming, bias, outgoing in (("0.weight", "0.bias", "2.weight"), ("2.weight", "2.bias", "4.weight")):
        for unit in range(3):
            rows = {name: torch.zeros_like(value) for name, value in variances.items()}
            rows[incoming][unit] += 1
            rows[bias][unit] += 1
            rows[outgoing][:, unit] -= 1
            exponents.append(to_vector(rows).numpy())
    expected = np.exp(commuting_noise_equilibrium(np.stack(exponents), to_vector(variances).numpy()))
    report = equilibrium_report(model, functional.mse_loss, x, y, learning_rate=0.1, batch_size=4)
    assert [row.noise_factor for row in report.rows] == pytest.approx(expected, rel=1e-5)


def test_norm_balance() -> None:
    x, y = data(30, 5, 3)
    model = network(5, 7, 6, 3)
    done = rebalance_(model, functional.mse_loss, x, y, to="norm")
    params = FrozenModel(model).params
    for symmetry in find_symmetries(model, x, certificate=False).of_kind("positive rescaling"):
        charge = symmetry.charge(params)
        assert charge is not None
        assert float(charge.abs().max()) < 1e-5
    assert done.squared_norm[1] < done.squared_norm[0]


def test_linear_layers_reach_their_equilibrium_together() -> None:
    x, y = (tensor.double() for tensor in data(60, 4, 4))
    model = network(4, 3, 3, 4, activation=nn.Identity, bias=False).double()
    start = gathered(model, x, y)
    done = rebalance_(model, functional.mse_loss, x, y)
    symmetries = find_symmetries(model, x, certificate=False).of_kind("general linear")
    assert done.symmetries == len(symmetries) == 2
    assert done.noise[1] < done.noise[0]
    for symmetry in symmetries:
        assert float(noise_balance(symmetry, start)) > 0.05
        assert float(noise_balance(symmetry, gathered(model, x, y))) < 1e-6


def test_wrong_symmetry_leaves_the_model_as_it_was() -> None:
    x, y = data(20, 5, 3)
    model = network(5, 7, 3, activation=nn.Tanh)
    before = copy.deepcopy(model.state_dict())
    wrong = ExponentialSymmetry(torch.cat([torch.ones(35), -torch.ones(21)]), ("0.weight", "2.weight"))
    with pytest.raises(InputError, match="must leave the outputs unchanged"):
        rebalance_(model, functional.mse_loss, x, y, symmetries=[wrong])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_dtype_too_coarse_for_the_move_restores_the_model() -> None:
    x, y = (tensor.half() for tensor in data(20, 5, 2))
    model = network(5, 1, 2, bias=False).half()
    with torch.no_grad():
        model[0].weight.abs_()
        model[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
    before = copy.deepcopy(model.state_dict())

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        # The unit writes where hardly any gradient comes from: balance divides its incoming weights by 1e6.
        return functional.mse_loss(outputs * outputs.new_tensor([1e-12, 1.0]), labels)

    with pytest.raises(InputError, match="in torch.float16 the outputs would change by .*the model is as"):
        rebalance_(model, loss, x, y)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert rebalance_(model.double(), loss, x.double(), y.double()).output_change < 1e-12


def test_nothing_to_balance_is_said() -> None:
    x, y = data(20, 5, 3)
    model = network(5, 7, 3, activation=nn.GELU)
    with pytest.raises(InputError, match="no symmetry with a charge"):
        rebalance_(model, functional.mse_loss, x, y)
    report = equilibrium_report(model, functional.mse_loss, x, y, learning_rate=0.1, batch_size=4)
    assert report.rows == ()
    assert report.skipped == ("permutation of 0",)
    with pytest.raises(InputError, match="to must be 'noise' or 'norm', got 'flat'"):
        rebalance_(model, functional.mse_loss, x, y, to="flat")


def test_report_of_a_network_with_a_dead_and_a_mute_unit() -> None:
    x, y = data(50, 5, 3)
    model = network(5, 6, 3)
    with torch.no_grad():
        model[0].bias[1] = -1e3  # dead: no gradient at all
        model[2].weight[:, 2] = 0.0  # mute: only its outgoing weights feel noise
    settings = {"learning_rate": 0.1, "batch_size": 5}
    report = equilibrium_report(model, functional.mse_loss, x, y, **settings)  # type: ignore[arg-type]
    status = [row.status for row in report.rows]
    assert status[1] == "no noise"
    assert status[2] == "runs away"
    assert {status[k] for k in (0, 3, 4, 5)} <= {"moving", "at equilibrium"}
    assert report.rows[1].equilibrium_charge is None
    assert "permutation of 0" in report.skipped
    table = report.to_pandas()
    assert len(table) == 6
    assert table["drift"].to_numpy() == pytest.approx([row.drift for row in report.rows])
    for row in (report.rows[k] for k in (0, 3, 4, 5)):
        assert row.noise_charge is not None
        assert row.relaxation_steps is not None
        # The noise drives the charge towards its equilibrium.
        assert math.copysign(1, row.noise_charge - row.charge) == math.copysign(1, row.drift_noise)
        assert row.relaxation_steps > 1
    rebalance_(model, functional.mse_loss, x, y)
    again = equilibrium_report(model, functional.mse_loss, x, y, **settings)  # type: ignore[arg-type]
    assert {again.rows[k].status for k in (0, 3, 4, 5)} == {"at equilibrium"}
    # Weight decay gives the dead unit somewhere to go; the mute one it pulls to zero as the noise does.
    decayed = equilibrium_report(model, functional.mse_loss, x, y, weight_decay=0.01, **settings)  # type: ignore[arg-type]
    assert decayed.rows[1].status == "moving"
    assert decayed.rows[2].status == "runs away"


def test_full_batches_have_no_noise_to_move_anything() -> None:
    x, y = data(10, 5, 3)
    model = nn.Sequential(*network(5, 6, 3), nn.Dropout(0.5))
    report = equilibrium_report(model, functional.mse_loss, x, y, learning_rate=0.1, batch_size=10)
    assert report.frozen == ("Dropout 3",)
    assert {row.status for row in report.rows} == {"no noise"}
    assert {row.drift_noise for row in report.rows} == {0.0}
    assert {row.relaxation_steps for row in report.rows} == {None}
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]["layer"] == "0"


def test_wide_linear_layer_runs_away() -> None:
    x, y = data(30, 3, 2)
    model = network(3, 6, 2, activation=nn.Identity, bias=False)
    (row,) = equilibrium_report(model, functional.mse_loss, x, y, learning_rate=0.1, batch_size=5).rows
    assert (row.unit, row.status, row.equilibrium_charge) == (None, "runs away", None)
    done = rebalance_(model, functional.mse_loss, x, y)
    assert done.untouched == ("general linear of 0",)
    assert done.moved == 0.0


class Normalised(nn.Module):
    """A linear layer whose outputs are normalised over the features: the weight's scale is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(h / h.norm(dim=1, keepdim=True))  # type: ignore[no-any-return]


def test_report_of_scale_invariant_weights() -> None:
    x, y = data(50, 5, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Normalised()
    scale = ScaleInvariance(Units("first", 1, (Axis("first.weight", 0, index=(0, 1, 2, 3)),), ()))
    known = SymmetryReport(found=(Finding(scale, 0.0, 1.0),), rejected=())
    settings = {"learning_rate": 0.1, "batch_size": 5, "report": known}
    (row,) = equilibrium_report(model, functional.mse_loss, x, y, **settings).rows  # type: ignore[arg-type]
    assert row.status == "runs away"
    assert row.noise_balance == 1.0
    assert row.drift_noise > 0
    (row,) = equilibrium_report(model, functional.mse_loss, x, y, weight_decay=1e-3, **settings).rows  # type: ignore[arg-type]
    covariance = gathered(model, x, y)["first.weight"].var(dim=0, correction=0)
    trace = float(covariance.sum()) * row.charge
    share = (50 - 5) / (50 - 1)
    assert row.equilibrium_charge is not None
    assert row.equilibrium_charge**2 == pytest.approx(0.1 / 5 * share * trace / (2e-3), rel=1e-3)
    # Twice the decay's own rate from each of the two sides.
    assert row.relaxation_steps == pytest.approx(1 / (4 * 0.1 * 1e-3), rel=1e-3)
    # Without anything to hold against it there is nothing to move to.
    done = rebalance_(model, functional.mse_loss, x, y, symmetries=[scale])
    assert done.moved == 0.0
    assert done.untouched == ("scale invariance of first, units [0]",)


def test_relu_recurrence_shares_its_weights_with_itself() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(2, 4, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent().double()
    writers = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")
    units = Units(
        "rnn",
        4,
        tuple(Axis(name, 0) for name in writers),
        (Axis("rnn.weight_hh_l0", 1), Axis("head.weight", 1)),
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    rescaling = PositiveRescaling(units)
    done = rebalance_(model, functional.mse_loss, x, y, symmetries=[rescaling])
    assert done.output_change < 1e-13
    assert float(noise_balance(rescaling, gathered(model, x, y)).abs().max()) < 1e-5


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small ReLU network trained on digits by SGD, and its data."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float64), torch.tensor(labels)
    model = network(64, 12, 10).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch_generator(0, "digits", "training")
    for _ in range(600):
        train(model, optimizer, x, y, 32, generator)
    return model, x, y


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    batch = torch.randperm(len(x), generator=generator)[:batch_size]
    optimizer.zero_grad()
    torch.autograd.backward(functional.cross_entropy(model(x[batch]), y[batch]))
    optimizer.step()


def test_digits_charges_drift_as_predicted(digits: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    # 120 runs of 20 steps from one trained network. The prediction is for the first step; over so few steps
    # the state hardly moves, and what it does move by is allowed for below.
    model, x, y = digits
    steps, runs, decay = 20, 120, 1e-3
    rescaling = find_symmetries(model, x[:50], certificate=False).of_kind("positive rescaling")[0]
    charge = charge_of(rescaling)
    report = equilibrium_report(
        model, functional.cross_entropy, x, y, learning_rate=0.05, batch_size=8, weight_decay=decay
    )
    predicted = steps * torch.tensor([row.drift for row in report.rows], dtype=torch.float64)
    start = charge(model.state_dict())
    changes = []
    generator = torch_generator(0, "digits", "runs")
    for _ in range(runs):
        run = copy.deepcopy(model)
        optimizer = torch.optim.SGD(run.parameters(), lr=0.05, weight_decay=decay)
        for _ in range(steps):
            train(run, optimizer, x, y, 8, generator)
        changes.append(charge(run.state_dict()) - start)
    changes_ = torch.stack(changes)
    measured, error = changes_.mean(dim=0), changes_.std(dim=0) / math.sqrt(runs)
    clear = predicted.abs() > 5 * error
    assert int(clear.sum()) >= 6
    assert torch.equal(measured.sign()[clear], predicted.sign()[clear])
    # Chance would have the signs right with probability 2^-6 at most; the size must be right as well.
    gaps = (measured - predicted) / (error + 0.05 * predicted.abs())
    assert float(gaps.square().sum()) < stats.chi2.ppf(0.9999, len(gaps))
    # The rival, a drift without the noise, is far off.
    quiet = steps * torch.tensor([r.drift_mean_gradient + r.drift_weight_decay for r in report.rows])
    rival = (measured - quiet) / (error + 0.05 * quiet.abs())
    assert float(rival.square().sum()) > 3 * stats.chi2.ppf(0.9999, len(gaps))


def test_digits_rebalanced_network_classifies_the_same(digits: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, x, y = copy.deepcopy(digits[0]).float(), digits[1].float(), digits[2]
    before = model(x).argmax(dim=1)
    done = rebalance_(model, functional.cross_entropy, x, y)
    assert done.noise[1] < done.noise[0]
    assert torch.equal(model(x).argmax(dim=1), before)
    report = equilibrium_report(model, functional.cross_entropy, x, y, learning_rate=0.05, batch_size=8)
    felt = [row for row in report.rows if row.status != "no noise"]
    assert max(abs(row.noise_balance) for row in felt) < 1e-4
