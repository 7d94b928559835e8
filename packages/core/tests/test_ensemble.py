"""Ensembles: replica by replica the same as torch.optim, whatever path, chunks and interruptions."""

import copy
import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from symdyn_core.dynamics.ensemble import simulate
from symdyn_core.dynamics.ensemble_observables import Observable
from symdyn_core.dynamics.ensemble_state import Diverged, DivergenceWarning
from symdyn_core.dynamics.minibatches import MinibatchStream
from symdyn_core.dynamics.replica_optimizers import SGD, Adam, AdamW, RMSprop
from symdyn_core.errors import InputError
from symdyn_core.random import derive_seed, torch_generator

cross_entropy, mse = nn.functional.cross_entropy, nn.functional.mse_loss
REPLICAS, BATCH, STEPS, SEED = 3, 4, 50, 5


def tensor(name, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch_generator(0, name), dtype=dtype)


def perceptron(*layers, dtype=torch.float64):
    """Return the layers as a model whose parameters are drawn from a stream."""
    model = nn.Sequential(*layers).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.data = 0.4 * tensor(name, *parameter.shape, dtype=dtype)
    return model


def linear(inputs, outputs, bias=True):
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


def small_net(dtype=torch.float64):
    return perceptron(linear(5, 6), nn.ReLU(), linear(6, 3), dtype=dtype)


INPUTS, CLASSES = tensor("inputs", 22, 5), torch.arange(22) % 3


def run(model=None, data=(INPUTS, CLASSES), loss_fn=cross_entropy, **options):
    settings_ = {
        "replicas": REPLICAS,
        "batch_size": BATCH,
        "steps": STEPS,
        "seed": SEED,
        "learning_rate": 0.1,
    }
    return simulate(model or small_net(), data, loss_fn=loss_fn, **settings_ | options)


def loop(model, data, loss_fn, make, replica, *, steps, replacement=True, rate=0.1):
    """Train one replica by torch.optim on the minibatches of its stream."""
    model = copy.deepcopy(model)
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
    stream = MinibatchStream(derive_seed(SEED, "minibatches"), len(data[0]), BATCH, replacement)
    for step, batch in enumerate(stream.indices(range(replica, replica + 1), range(steps))[0]):
        for group in optimizer.param_groups:
            group["lr"] = rate(step) if callable(rate) else rate
        optimizer.zero_grad()
        loss_fn(model(data[0][batch]), data[1][batch]).backward()
        optimizer.step()
    return dict(model.named_parameters())


def assert_equal_to_loop(
    result, model, data, loss_fn, make, tolerance, rates=None, replicas=range(REPLICAS), **options
):
    for replica in replicas:
        rate = {} if rates is None else {"rate": rates[replica]}
        expected = loop(model, data, loss_fn, make, replica, steps=result.steps, **options, **rate)
        for name, stacked in result.params.items():
            gap = (stacked[replica] - expected[name]).abs().max().item()
            assert gap <= tolerance * max(1.0, expected[name].abs().max().item()), (name, replica)


OPTIMIZERS = {
    "sgd": (SGD(), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (
        SGD(momentum=0.9, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
    ),
    "dampening": (
        SGD(momentum=0.5, dampening=0.3),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, dampening=0.3),
    ),
    "nesterov": (
        SGD(momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    "adam": (Adam(weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1)),
    "amsgrad": (
        Adam(amsgrad=True, betas=(0.5, 0.6)),
        lambda p: torch.optim.Adam(p, amsgrad=True, betas=(0.5, 0.6)),
    ),
    "adamw": (AdamW(weight_decay=0.3), lambda p: torch.optim.AdamW(p, weight_decay=0.3)),
    "rmsprop": (
        RMSprop(alpha=0.9, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, alpha=0.9, weight_decay=0.1),
    ),
    "rmsprop centered": (
        RMSprop(alpha=0.8, momentum=0.4, centered=True),
        lambda p: torch.optim.RMSprop(p, alpha=0.8, momentum=0.4, centered=True),
    ),
}


@pytest.mark.parametrize(
    ("name", "replacement"), [*((name, True) for name in OPTIMIZERS), ("momentum", False)]
)
def test_vmap_is_torch_optim_replica_by_replica(name, replacement):
    optimizer, make = OPTIMIZERS[name]
    model = small_net()
    result = run(model, optimizer=optimizer, path="vmap", replacement=replacement)
    # Division by the small root of a gradient's average amplifies rounding in the adaptive optimizers.
    tolerance = 1e-12 if isinstance(optimizer, SGD) else 1e-9
    assert_equal_to_loop(
        result,
        model,
        (INPUTS, CLASSES),
        cross_entropy,
        make,
        tolerance,
        replicas=[0, 2],
        replacement=replacement,
    )


@pytest.mark.parametrize(
    ("optimizer", "path"),
    [
        (SGD(weight_decay=0.05), "vmap"),
        (SGD(weight_decay=0.05), "mlp"),
        (SGD(momentum=0.9), "mlp"),
        (AdamW(), "auto"),
        (RMSprop(), "auto"),
    ],
)
def test_learning_rates_per_replica(optimizer, path):
    rates = torch.tensor([0.01, 0.05, 0.2], dtype=torch.float64)
    together = run(optimizer=optimizer, learning_rate=rates, path=path, steps=10)
    for replica, rate in enumerate(rates.tolist()):
        alone = run(optimizer=optimizer, learning_rate=rate, path=path, steps=10)
        for name, stacked in together.params.items():
            torch.testing.assert_close(stacked[replica], alone.params[name][replica], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", ["vmap", "mlp"])
def test_learning_rate_of_the_step(path):
    model = small_net()
    result = run(model, learning_rate=lambda step: 0.2 / (1 + step), path=path)
    assert_equal_to_loop(
        result,
        model,
        (INPUTS, CLASSES),
        cross_entropy,
        OPTIMIZERS["sgd"][1],
        1e-12,
        rates=[lambda step: 0.2 / (1 + step)] * REPLICAS,
    )


MODELS = {
    "relu": lambda dtype: small_net(dtype),
    "tanh without bias": lambda dtype: perceptron(
        linear(5, 4, bias=False), nn.Tanh(), linear(4, 3), dtype=dtype
    ),
    "deep": lambda dtype: perceptron(
        linear(5, 7),
        nn.Tanh(),
        linear(7, 4),
        nn.Identity(),
        linear(4, 4),
        nn.ReLU(),
        linear(4, 3),
        dtype=dtype,
    ),
    "one layer": lambda dtype: perceptron(linear(5, 3), dtype=dtype),
    "activation last": lambda dtype: perceptron(linear(5, 3), nn.Tanh(), dtype=dtype),
}


@pytest.mark.parametrize(
    ("model", "dtype"), [*((model, torch.float64) for model in MODELS), ("deep", torch.float32)]
)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("loss_fn", [cross_entropy, nn.MSELoss()])
def test_closed_form_is_torch_optim(model, loss_fn, optimizer, dtype):
    targets = CLASSES if loss_fn is cross_entropy else tensor("targets", 22, 3, dtype=dtype)
    data = (INPUTS.to(dtype), targets)
    net = MODELS[model](dtype)
    # In single precision rounding grows on the way, to 1e-6 in 50 steps of momentum, in torch as here.
    tolerance, steps = (1e-12, 50) if dtype == torch.float64 else (1e-6, 25)
    ours, make = OPTIMIZERS[optimizer]
    fast = run(net, data, loss_fn, optimizer=ours, steps=steps)
    assert fast.path == "mlp"
    assert_equal_to_loop(fast, net, data, loss_fn, make, tolerance, replicas=[2])


@pytest.mark.parametrize("loss_fn", [cross_entropy, mse])
def test_closed_form_is_vmap(loss_fn):
    targets = CLASSES if loss_fn is cross_entropy else INPUTS[:, :3]
    model, options = MODELS["deep"](torch.float64), {"optimizer": SGD(momentum=0.5, weight_decay=0.1)}
    one, other = (run(model, (INPUTS, targets), loss_fn, path=path, **options) for path in ("mlp", "vmap"))
    for name in one.params:
        torch.testing.assert_close(one.params[name], other.params[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("plain", "module"), [(cross_entropy, nn.CrossEntropyLoss()), (mse, nn.MSELoss())])
def test_closed_form_covers_losses_as_functions_and_as_modules(plain, module):
    data = (INPUTS, CLASSES if plain is cross_entropy else tensor("targets", 22, 3))
    one, other = (run(data=data, loss_fn=loss_fn, path="mlp") for loss_fn in (plain, module))
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["vmap", "mlp"]), st.booleans())
@settings(max_examples=6)
def test_a_replica_is_the_same_bit_for_bit_whatever_runs_beside_it(replicas, chunk_size, path, replacement):
    options = {"path": path, "replacement": replacement, "steps": 12}
    model = small_net(torch.float32)
    data = (INPUTS.float(), CLASSES)
    reference = run(model, data, replicas=9, **options)
    other = run(model, data, replicas=replicas, chunk_size=chunk_size, **options)
    for name, stacked in other.params.items():
        assert torch.equal(stacked, reference.params[name][:replicas])


def test_convolution_and_frozen_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolve = nn.utils.skip_init(nn.Conv1d, 1, 2, 3)
            self.norm = nn.BatchNorm1d(2)
            self.read = linear(6, 3)

        def forward(self, x):
            return self.read(self.norm(self.convolve(x.unsqueeze(1))).tanh().flatten(1))

    model = Net().double().eval()
    for name, parameter in model.named_parameters():
        parameter.data = 0.4 * tensor(name, *parameter.shape)
    model.read.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    result = run(model)
    assert result.path == "vmap"
    assert "read.bias" not in result.params
    assert_equal_to_loop(result, model, (INPUTS, CLASSES), cross_entropy, OPTIMIZERS["sgd"][1], 1e-12)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", ["vmap", "mlp"])
def test_runs_on_the_device_of_the_model(path, tmp_path):
    observables = {"bias": Observable(lambda params: params["0.bias"].sum(), threshold=0.4)}
    data = (INPUTS.cuda(), CLASSES.cuda())
    options = {"path": path, "observables": observables, "optimizer": SGD(momentum=0.5)}
    there = run(small_net().cuda(), data, checkpoint=tmp_path, **options)
    here = run(**options)
    again = run(small_net().cuda(), data, checkpoint=tmp_path, **options)  # from the checkpoint
    for name, stacked in there.params.items():
        assert stacked.is_cuda
        torch.testing.assert_close(stacked.cpu(), here.params[name], rtol=1e-9, atol=1e-10)
        assert torch.equal(stacked, again.params[name])
    np.testing.assert_allclose(there.statistics["bias"].mean, here.statistics["bias"].mean, rtol=1e-9)


def test_plain_function_and_starts():
    def loss(params, sample):
        x, y = sample
        return (params["w"] @ x + params["b"] - y) ** 2

    targets = tensor("line", 22)
    starts = {"w": tensor("w", REPLICAS, 5), "b": tensor("b", REPLICAS)}
    result = simulate(
        loss,
        (INPUTS, targets),
        starts=starts,
        replicas=REPLICAS,
        batch_size=BATCH,
        steps=STEPS,
        seed=SEED,
        learning_rate=0.02,
    )
    for replica in range(REPLICAS):
        model = linear(5, 1).double()
        model.weight.data, model.bias.data = (
            starts["w"][replica][None].clone(),
            starts["b"][replica][None].clone(),
        )
        expected = loop(
            model,
            (INPUTS, targets[:, None]),
            mse,
            lambda p: torch.optim.SGD(p, lr=0.02),
            replica,
            rate=0.02,
            steps=STEPS,
        )
        torch.testing.assert_close(result.params["w"][replica], expected["weight"][0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(result.params["b"][replica], expected["bias"][0], rtol=1e-12, atol=1e-13)


def parabola(params, sample):
    return (params["x"] - sample) ** 2 / 2


def position(params):
    return params["x"]


SIGNS = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def on_parabola(**options):
    settings_ = {
        "replicas": 500,
        "batch_size": 1,
        "steps": 300,
        "seed": 1,
        "learning_rate": 0.5,
        "burn_in": 50,
    }
    start = {"x": torch.zeros((), dtype=torch.float64)}
    return simulate(parabola, SIGNS, start=start, **settings_ | {"observables": {"x": position}} | options)


def test_statistics_of_the_parabola():
    statistics = on_parabola().statistics["x"]
    assert statistics.count == 500 * 250
    # theta is a sum of signs with weights 2^-k: uniform on [-1, 1], of variance eta / (2 - eta) = 1/3.
    assert abs(float(statistics.variance) - 1 / 3) < 6 * 0.3 / np.sqrt(500 * 250 / 2)
    assert abs(float(statistics.mean)) < 6 * float(statistics.standard_error)
    assert abs(float(statistics.quantile(0.25)) + 0.5) < 0.02
    assert abs(float(statistics.quantile(0.9)) - 0.8) < 0.02


def test_statistics_are_those_of_the_recorded_values():
    seen = []
    for steps in range(12, 31, 3):  # the records of one run are the ends of shorter ones
        seen.append(run(steps=steps).params["0.bias"].numpy())
    values = np.concatenate(seen)
    observables = {"bias": lambda params: params["0.bias"]}
    statistics = run(steps=30, every=3, burn_in=9, observables=observables).statistics["bias"]
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(values.T), rtol=1e-10, atol=1e-15)
    median = np.quantile(values, 0.5, axis=0, method="lower")
    assert (np.abs(statistics.quantile(0.5) - median) <= 1.0001e-3 * np.abs(median)).all()
    np.testing.assert_allclose(statistics.replica_means, np.mean(seen, axis=0), rtol=1e-12)


def test_statistics_do_not_depend_on_the_chunks():
    one, other = (on_parabola(replicas=20, steps=70, chunk_size=size).statistics["x"] for size in (20, 7))
    assert all(np.array_equal(one.state()[key], other.state()[key]) for key in one.state())


def test_survival_of_a_random_walk():
    # Steps of -1 and 1: the walk reaches 1 for the first time at step 1 with probability 1/2, at 3 with 1/8.
    walk = {"x": Observable(position, threshold=1.0)}
    statistics = simulate(
        lambda params, sample: params["x"] * sample,
        SIGNS,
        start={"x": torch.zeros((), dtype=torch.float64)},
        replicas=4000,
        batch_size=1,
        steps=6,
        burn_in=5,
        seed=0,
        learning_rate=1.0,
        observables=walk,
    ).statistics["x"]
    expected = [1, 1 / 2, 1 / 2, 3 / 8, 3 / 8, 5 / 16]
    assert np.abs(statistics.survival(range(6)) - expected).max() < 6 * 0.5 / np.sqrt(4000)
    assert set(np.unique(statistics.first_passage)) <= {-1, 1, 3, 5}


def half_explode(**options):
    rates = torch.tensor([0.5, 50.0, 0.5, 50.0], dtype=torch.float64)
    options = {"on_divergence": "record"} | options
    return on_parabola(replicas=4, learning_rate=rates, steps=150, **options)


def test_divergence_is_recorded_and_the_replica_frozen():
    result, survivors = half_explode(), on_parabola(replicas=4, steps=150)
    assert result.alive.tolist() == [True, False, True, False]
    assert result.diverged == 0.5
    # The distance grows 49-fold a step: its square passes the largest float64 after 91 steps or so.
    assert 90 <= result.diverged_at[1] <= 92
    assert torch.equal(result.params["x"][[0, 2]], survivors.params["x"][[0, 2]])
    frozen = on_parabola(
        replicas=4, learning_rate=50.0, steps=int(result.diverged_at[1]), on_divergence="record"
    )
    assert torch.equal(result.params["x"][1], frozen.params["x"][1])
    # Moments are those of the survivors alone, exactly; quantiles hold what the others did while finite.
    statistics = result.statistics["x"]
    alone = survivors.statistics["x"].replica_means[[0, 2]]
    assert statistics.count == 2 * 100
    np.testing.assert_array_equal(statistics.replica_means[[0, 2]], alone)
    np.testing.assert_allclose(statistics.mean, alone.mean(), rtol=1e-12)
    assert float(statistics.variance) < 1
    assert np.isnan(statistics.replica_means[[1, 3]]).all()
    assert float(statistics.quantile(1.0)) > 1e100


@pytest.mark.parametrize("path", ["vmap", "mlp"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_divergence_of_a_perceptron_leaves_the_others_alone(path, optimizer):
    rates = torch.tensor([0.1, 1e200, 0.1], dtype=torch.float64)
    data = (INPUTS, tensor("targets", 22, 3))
    options = {"path": path, "optimizer": OPTIMIZERS[optimizer][0], "data": data, "loss_fn": mse}
    options["on_divergence"] = "record"
    mixed, calm = run(learning_rate=rates, **options), run(learning_rate=rates.clamp(max=0.1), **options)
    assert mixed.alive.tolist() == [True, False, True]
    assert mixed.diverged_at[1] in (1, 2)
    for name, stacked in mixed.params.items():
        assert torch.equal(stacked[[0, 2]], calm.params[name][[0, 2]])


def test_divergence_raises_if_asked_to():
    with pytest.raises(Diverged, match=r"replica 1 is not finite any more after 9\d steps; 2 of 4 replicas"):
        half_explode(on_divergence="raise")


def test_divergence_warns_unless_told_otherwise():
    with pytest.warns(DivergenceWarning, match=r"after 9\d steps; 2 of 4 replicas survive"):
        half_explode(on_divergence="warn")


def test_values_that_are_not_finite_are_skipped_and_counted():
    result = on_parabola(steps=60, replicas=5, observables={"log": lambda params: params["x"].log()})
    statistics = result.statistics["log"]
    assert result.diverged == 0
    assert statistics.skipped > 0
    assert statistics.count + statistics.skipped == 5 * 10
    assert np.isfinite(statistics.mean)


def test_memory_is_flat_in_the_number_of_steps():
    # Between 1 and 3, so that the number of bins of the quantiles does not grow with the rarest values.
    observables = {"bias": Observable(lambda params: 2 + params["0.bias"].mean().tanh(), threshold=2.0)}

    def peak(steps):
        tracemalloc.start()
        run(replicas=50, steps=steps, observables=observables)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(10)
    short, long = peak(128), peak(256)
    assert long < short + 128 * 50 * 8 / 4  # a quarter of one number kept of each step and replica


RESUMED = {
    "vmap": {"optimizer": Adam(amsgrad=True), "replacement": False},
    "mlp": {"optimizer": SGD(momentum=0.9)},
}


@pytest.mark.parametrize("path", RESUMED)
def test_an_interrupted_run_goes_on_bit_for_bit(path, tmp_path):
    observables = {"bias": Observable(lambda params: params["0.bias"].sum(), threshold=0.4)}
    options = {
        "path": path,
        "observables": observables,
        "every": 2,
        "burn_in": 7,
        "steps": 90,
        **RESUMED[path],
    }

    def rate(step):
        return 0.1 / (1 + step / 50)

    def interrupted(step):
        if step == 57:
            raise KeyboardInterrupt
        return rate(step)

    whole = run(learning_rate=rate, **options)
    with pytest.raises(KeyboardInterrupt):
        run(learning_rate=interrupted, checkpoint=tmp_path, checkpoint_every=20, **options)
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 40
    resumed = run(learning_rate=rate, checkpoint=tmp_path, checkpoint_every=20, chunk_size=2, **options)
    for name in whole.params:
        assert torch.equal(whole.params[name], resumed.params[name])
    one, other = whole.statistics["bias"].state(), resumed.statistics["bias"].state()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.json", "state-000000000090.npz"]
    again = run(learning_rate=rate, checkpoint=tmp_path, **options)  # nothing left to do
    assert all(torch.equal(whole.params[name], again.params[name]) for name in whole.params)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 6}, "seed"),
        ({"batch_size": 5}, "batch_size"),
        ({"replicas": 4}, "replicas"),
        ({"replacement": False}, "replacement"),
        ({"learning_rate": 0.2}, "learning_rate"),
        ({"optimizer": SGD(weight_decay=0.1)}, "optimizer"),
        ({"path": "vmap"}, "path"),
        ({"data": (INPUTS + 1, CLASSES)}, "data"),
        ({"model": MODELS["deep"](torch.float64)}, "model"),
        ({"loss_fn": nn.CrossEntropyLoss()}, "loss_fn"),
        ({"start": {"0.bias": torch.zeros(6, dtype=torch.float64)}}, "starts"),
        ({"observables": {"b": lambda params: params["0.bias"].sum()}}, "observable b"),
        ({"every": 3}, "every"),
        ({"burn_in": 3}, "burn_in"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, field, tmp_path):
    run(checkpoint=tmp_path)
    with pytest.raises(InputError, match=f"is of another run: {field} must be"):
        run(checkpoint=tmp_path, **change)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(checkpoint=tmp_path)
    with pytest.raises(InputError, match="steps must be at least the 50 of the checkpoint"):
        run(checkpoint=tmp_path, steps=20)
    state = next(tmp_path.glob("*.npz"))
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="is damaged: state-000000000050.npz has changed"):
        run(checkpoint=tmp_path)
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        run(checkpoint=tmp_path)


def test_frame():
    frame = on_parabola(
        replicas=10, steps=60, observables={"x": position, "twice": lambda p: torch.stack([p["x"]] * 2)}
    ).to_frame()
    assert frame["observable"].tolist() == ["x", "twice", "twice"]
    assert frame["entry"].tolist() == ["", "0", "1"]
    np.testing.assert_allclose(frame["mean"], frame["mean"][0], rtol=1e-12)
    assert frame["count"].tolist() == [100] * 3


@given(st.integers(0, 50), st.integers(1, 60), st.booleans())
def test_minibatches_are_the_same_in_any_pieces(start, length, replacement):
    whole = MinibatchStream(3, 10, 3, replacement).indices(range(2, 5), range(120))
    piece = MinibatchStream(3, 10, 3, replacement).indices(range(3, 4), range(start, start + length))
    assert np.array_equal(whole[1:2, start : start + length], piece)


def test_minibatches_are_uniform_and_epochs_complete():
    drawn = MinibatchStream(0, 10, 4, True).indices(range(50), range(500))
    counts = np.bincount(drawn.ravel(), minlength=10)
    expected = drawn.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi squared of 9: passed with odds 10^-5
    epochs = MinibatchStream(0, 12, 4, False).indices(range(3), range(30)).reshape(3, 10, 12)
    assert (np.sort(epochs, axis=2) == np.arange(12)).all()
    assert len(np.unique(epochs.reshape(30, 12), axis=0)) == 30
    ragged = MinibatchStream(0, 10, 4, False).indices(range(1), range(2))
    assert len(np.unique(ragged)) == 8


DROPOUT = perceptron(linear(5, 3), nn.Dropout(0.5))
BAD = [
    ({"batch_size": 23, "replacement": False}, "at most n_samples=22 without replacement, got 23"),
    ({"batch_size": 0}, "batch_size must be at least 1 and any size, got 0"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"replicas": 0}, "replicas must be at least 1, got 0"),
    ({"every": 0}, "every must be at least 1, got 0"),
    ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
    ({"burn_in": 50}, "burn_in must be in [0, steps=50), got 50"),
    ({"path": "fast"}, "unknown path 'fast'"),
    ({"on_divergence": "ignore"}, "unknown on_divergence 'ignore'"),
    ({"optimizer": "adam"}, "optimizer must be SGD, Adam, AdamW or RMSprop, got str"),
    ({"learning_rate": -1.0}, "learning_rate must be finite and at least 0, got -1.0"),
    ({"learning_rate": "big"}, "learning_rate must be a number, got 'big'"),
    (
        {"learning_rate": lambda step: float("nan")},
        "learning_rate must be finite and at least 0 at step 0, got nan",
    ),
    ({"learning_rate": torch.ones(4)}, "learning_rate must have shape (replicas=3,), got (4,)"),
    (
        {"model": perceptron(linear(5, 3), nn.BatchNorm1d(3))},
        "layer '1', BatchNorm1d, must be in evaluation mode",
    ),
    ({"model": DROPOUT}, "layer '1', Dropout, must be in evaluation mode: it drops entries at random"),
    ({"model": 3}, "target must be a model or a function, got int"),
    ({"loss_fn": None}, "loss_fn must be callable with a model, got NoneType"),
    ({"loss_fn": nn.CrossEntropyLoss(reduction="none")}, "the loss fails on a minibatch"),
    ({"data": (INPUTS[:, :4], CLASSES)}, "the loss fails on a minibatch"),
    ({"data": (INPUTS[:5], CLASSES)}, "data must be tensors of one length, got [5, 22]"),
    ({"data": INPUTS}, "data must be (inputs, targets) with a model, got 1 tensors"),
    ({"data": (INPUTS / 0, CLASSES)}, "data[0] must be finite, got NaN or infinite entries"),
    (
        {"start": {"1.bias": torch.zeros(3)}},
        "start must name trainable parameters of the model, got '1.bias'",
    ),
    ({"start": {"0.bias": torch.zeros(3)}}, "start['0.bias'] must have shape (6,), got (3,)"),
    ({"starts": {"0.bias": torch.zeros(3, 6)}}, "starts must name the parameters"),
    ({"model": small_net(torch.float16)}, "must be a tensor of float32 or float64, got torch.float16"),
    ({"observables": {"b": 3}}, "an observable must be callable, got int"),
    ({"observables": {"b": lambda params: params["b"]}}, "observable 'b' fails: KeyError: 'b'"),
    (
        {"observables": {"b": Observable(lambda p: p["0.bias"], threshold=1.0)}},
        "must be one number, got shape (6,)",
    ),
    (
        {"path": "mlp", "loss_fn": lambda outputs, targets: outputs.square().mean()},
        "the loss must be cross_entropy",
    ),
    ({"path": "mlp", "loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, "with default settings"),
    ({"path": "mlp", "optimizer": Adam()}, "the optimizer must be SGD without dampening"),
    ({"path": "mlp", "model": perceptron(linear(5, 3), nn.GELU())}, "ReLU, Tanh and Identity, got GELU"),
    ({"path": "mlp", "model": perceptron(*[linear(5, 5)] * 2)}, "no two layers may share them"),
    ({"path": "mlp", "data": (INPUTS, CLASSES - 5)}, "the loss fails on a minibatch"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input(change, message):
    with pytest.raises(InputError) as error:
        run(**change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(momentum=1.0), "momentum must be in [0, 1), got 1.0"),
        (lambda: SGD(dampening=2.0), "dampening must be in [0, 1], got 2.0"),
        (lambda: SGD(nesterov=True), "nesterov must come with momentum > 0"),
        (lambda: Adam(betas=(0.9, 1.0)), "betas must be in [0, 1), got 1.0"),
        (lambda: Adam(eps=-1.0), "eps must be finite and at least 0, got -1.0"),
        (lambda: RMSprop(alpha=1.5), "alpha must be in [0, 1), got 1.5"),
        (lambda: MinibatchStream(-1, 2, 1, True), "seed must be in [0, 2^64), got -1"),
        (lambda: MinibatchStream(0, 0, 1, True), "n_samples must be at least 1, got 0"),
        (
            lambda: simulate(parabola, SIGNS, replicas=1, batch_size=1, steps=1, seed=0, learning_rate=1),
            "start must give",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
