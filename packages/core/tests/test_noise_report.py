"""Gradient noise of real models, and what follows from it, against brute force and against SGD itself."""

import copy
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from scipy.linalg import solve_discrete_lyapunov
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from typer.testing import CliRunner

from symdyn_core.commands.examples.transformer import GPT, next_token_loss
from symdyn_core.commands.noise import noise
from symdyn_core.dynamics.noise_measurement import noise_report
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator, torch_generator


def data(n, features=4, classes=3, seed=0):
    generator = torch_generator(seed, "data")
    inputs = torch.randn(n, features, generator=generator)
    return inputs, torch.randint(0, classes, (n,), generator=generator)


def network(*layers, seed=0):
    """A network of layers given as (kind, arguments), whose weights come from a stream of their own."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*(kind(*arguments) for kind, *arguments in layers))
    generator = torch_generator(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def brute_force(model, loss_fn, inputs, targets):
    """Gradients of single samples, one by one, shape (n, P), and the Hessian, shape (P, P)."""
    model = copy.deepcopy(model).double().eval()
    params = list(model.parameters())
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def slope(x, y, graph=False):
        loss = loss_fn(model(x), y)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=graph)])

    gradients = torch.stack([slope(inputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))])

    def hessian():
        total = slope(inputs, targets, graph=True)
        rows = [torch.autograd.grad(entry, params, retain_graph=True) for entry in total]
        return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).numpy()

    return gradients.numpy(), hessian


@pytest.fixture(scope="module")
def logistic():
    """A convex problem at its minimum: softmax regression with weight decay."""
    inputs, targets = data(40)
    model = network((nn.Linear, 4, 3))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )
    model.double()

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs.double()), targets)
        loss = loss + 0.05 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, cross_entropy, inputs.double(), targets


SGD = {"learning_rate": 0.3, "batch_size": 4, "weight_decay": 0.1}


def stationary(hessian, noise, learning_rate, momentum):
    """Covariance of the parameters from the joint recursion with the momentum buffer, as torch steps."""
    size = len(hessian)
    eye = np.eye(size)
    step = np.block(
        [[eye - learning_rate * hessian, -learning_rate * momentum * eye], [hessian, momentum * eye]]
    )
    kick = np.vstack([-learning_rate * eye, eye])
    return solve_discrete_lyapunov(step, kick @ noise @ kick.T)[:size, :size]


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("replacement", [False, True])
def test_loss_gap_and_gradient_at_rest_are_those_of_the_recursion(logistic, momentum, replacement):
    report = noise_report(*logistic, **SGD, momentum=momentum, replacement=replacement)
    gradients, hessian = brute_force(*logistic)
    curvature = hessian() + 0.1 * np.eye(15)
    sigma = np.cov(gradients.T)
    unseen = 1 / 40 if replacement else 4 / 40
    minibatch = sigma * (1 - unseen) / 4
    covariance = stationary(curvature, minibatch, 0.3, momentum)
    assert report.all_directions
    assert report.batch_trace == pytest.approx(np.trace(minibatch), rel=1e-9)
    assert report.loss_gap == pytest.approx(np.trace(curvature @ covariance) / 2, rel=1e-7)
    assert report.resting_gradient_norm**2 == pytest.approx(
        np.trace(curvature @ covariance @ curvature), rel=1e-7
    )
    assert report.edge == pytest.approx(2 * (1 + momentum) / np.linalg.eigvalsh(curvature)[-1], rel=1e-9)
    assert report.gradient_norm < 1e-4
    assert report.descent < 1e-6
    for row in report.equivalents:
        share = 1 / 40 if replacement else row.batch_size / 40
        other = stationary(curvature, sigma * (1 - share) / row.batch_size, row.learning_rate, momentum)
        assert np.trace(curvature @ other) / 2 == pytest.approx(report.loss_gap, rel=1e-6)
        assert row.linear == pytest.approx(0.3 * row.batch_size / 4)
        assert row.linear_is_stable == (row.linear < report.edge)


def test_sgd_settles_at_the_predicted_loss(logistic):
    model, _, inputs, targets = logistic
    settings = {"learning_rate": 0.15, "batch_size": 4, "weight_decay": 0.1}
    report = noise_report(*logistic, **settings, replacement=True)
    x = np.hstack([inputs.numpy(), np.ones((40, 1))])
    onehot = np.eye(3)[targets.numpy()]
    weight, bias = (p.detach().numpy() for p in model.parameters())
    best = np.hstack([weight, bias[:, None]])
    generator = numpy_generator(1, "sgd")
    theta = np.repeat(best[None], 300, axis=0)  # replicas

    def objective(values):
        scores = np.einsum("rcf,nf->rnc", values, x)
        loss = np.log(np.exp(scores).sum(axis=2)) - (scores * onehot).sum(axis=2)
        return loss.mean(axis=1) + 0.05 * np.square(values).sum(axis=(1, 2))

    gaps = []
    for step in range(600):
        batch = generator.integers(40, size=(300, 4))
        scores = np.einsum("rcf,rbf->rbc", theta, x[batch])
        chances = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
        slope = np.einsum("rbc,rbf->rcf", chances - onehot[batch], x[batch]) / 4 + 0.1 * theta
        theta = theta - 0.15 * slope
        if step >= 200 and step % 10 == 0:
            gaps.append(objective(theta).mean())
    measured = np.mean(gaps) - objective(best[None])[0]
    # Sampling is good to 2 %; what is left is the order beyond the leading one in the noise.
    assert measured == pytest.approx(report.loss_gap, rel=0.12)
    assert abs(measured / report.loss_gap - 1) < abs(2 * measured / report.loss_gap - 1)


def test_minibatch_noise_is_that_of_all_minibatches():
    inputs, targets = data(6)
    model = network((nn.Linear, 4, 3))
    gradients, _ = brute_force(model, cross_entropy, inputs, targets)
    settings = {"learning_rate": 0.1, "batch_size": 2}
    for replacement, batches in (
        (False, itertools.combinations(range(6), 2)),
        (True, itertools.product(range(6), repeat=2)),
    ):
        means = np.array([gradients[list(batch)].mean(axis=0) for batch in batches])
        report = noise_report(model, cross_entropy, inputs, targets, **settings, replacement=replacement)
        assert report.batch_trace == pytest.approx(means.var(axis=0).sum(), rel=1e-9)


def test_everything_measured_agrees_with_brute_force():
    """A net too large for all directions."""
    inputs, targets = data(24)
    model = network(
        (nn.Linear, 4, 32), (nn.Tanh,), (nn.Linear, 32, 5), (nn.Tanh,), (nn.Linear, 5, 20), (nn.Linear, 20, 3)
    )
    report = noise_report(model, cross_entropy, inputs, targets, learning_rate=0.01, batch_size=8, top=6)
    gradients, hessian = brute_force(model, cross_entropy, inputs, targets)
    sigma, mean = np.cov(gradients.T), gradients.mean(axis=0)
    curvature = hessian()
    assert report.parameters == len(sigma) > 400
    assert not report.all_directions
    assert report.trace == pytest.approx(np.trace(sigma), rel=1e-9)
    eigenvalues = np.linalg.eigvalsh(sigma)[::-1]
    np.testing.assert_allclose(report.spectrum, eigenvalues[:6], rtol=1e-9)
    assert report.effective_rank == pytest.approx(
        eigenvalues.sum() ** 2 / np.square(eigenvalues).sum(), rel=1e-9
    )
    assert report.gradient_norm == pytest.approx(np.linalg.norm(mean), rel=1e-9)
    assert report.noise_scale == pytest.approx(np.trace(sigma) / (mean @ mean), rel=1e-9)
    values, vectors = np.linalg.eigh(curvature)
    largest = np.argsort(-np.abs(values))[:6]
    order = largest[np.argsort(-values[largest])]
    np.testing.assert_allclose(report.curvatures, values[order], rtol=1e-4)
    np.testing.assert_allclose(
        report.noise_along, np.einsum("pi,pq,qi->i", vectors[:, order], sigma, vectors[:, order]), rtol=1e-3
    )
    # Curvatures of an untrained network cancel in its trace, which a few probes cannot tell.
    assert np.linalg.norm(np.delete(values, largest)) > abs(values.sum())
    assert (report.hessian_trace, report.noise_to_loss) == (None, None)
    # Layers: each its own block of the covariance.
    diagonal, start = np.diag(sigma), 0
    for layer, module in zip(report.layers, [m for m in model if isinstance(m, nn.Linear)], strict=True):
        size = sum(p.numel() for p in module.parameters())
        here = slice(start, start + size)
        assert layer.parameters == size
        assert layer.trace == pytest.approx(diagonal[here].sum(), rel=1e-9)
        assert layer.noise_to_signal == pytest.approx(layer.trace / (mean[here] @ mean[here]), rel=1e-9)
        start += size
    assert sum(layer.share for layer in report.layers) == pytest.approx(1)


def test_traces_with_the_hessian_are_estimated_beyond_the_steepest_directions():
    inputs, targets = data(60, features=40, classes=12)
    model = network((nn.Linear, 40, 12))
    report = noise_report(model, cross_entropy, inputs, targets, learning_rate=0.01, batch_size=8, top=4)
    gradients, hessian = brute_force(model, cross_entropy, inputs, targets)
    sigma, mean, curvature = np.cov(gradients.T), gradients.mean(axis=0), hessian()
    assert not report.all_directions
    assert report.hessian_trace == pytest.approx(np.trace(curvature), rel=0.1)
    critical = np.trace(curvature @ sigma) / (mean @ curvature @ mean)
    assert report.critical_batch_size == pytest.approx(critical, rel=0.15)
    assert report.noise_to_loss == pytest.approx(report.trace / (2 * report.loss * report.hessian_trace))
    resting = math.sqrt(0.01 / 2 * (1 - 8 / 60) / 8 * np.trace(curvature @ sigma))
    assert report.resting_gradient_norm == pytest.approx(resting, rel=0.1)
    # The loss gap takes the steepest directions exactly and the rest as flat: below that of all of them.
    values, vectors = np.linalg.eigh(curvature)
    steps = 0.01 * np.maximum(values, 0)
    along = np.einsum("pi,pq,qi->i", vectors, sigma, vectors)
    everything = 0.01 / 4 * (1 - 8 / 60) / 8 * (np.trace(sigma) + (along * steps / (2 - steps)).sum())
    assert everything * 0.999 < report.loss_gap < everything


def test_a_convolutional_network_with_batch_norm_and_a_sample_of_the_data():
    generator = torch_generator(0, "images")
    images = torch.randn(30, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (30,), generator=generator)
    model = network((nn.Conv2d, 1, 4, 3), (nn.BatchNorm2d, 4), (nn.ReLU,), (nn.Flatten,), (nn.Linear, 64, 3))
    gradients, _ = brute_force(model, cross_entropy, images, labels)
    report = noise_report(model, cross_entropy, images, labels, learning_rate=1e-3, batch_size=4)
    assert report.trace == pytest.approx(np.trace(np.cov(gradients.T)), rel=1e-6)
    # Over many draws of a few samples, trace and squared gradient are right on average.
    partial = [
        noise_report(
            model, cross_entropy, images, labels, learning_rate=1e-3, batch_size=4, samples=10, seed=s, top=1
        )
        for s in range(8)
    ]
    assert {(p.samples, p.given) for p in partial} == {(10, 30)}
    traces = np.array([p.trace for p in partial])
    assert traces.mean() == pytest.approx(report.trace, abs=3 * traces.std() / math.sqrt(len(traces)))
    assert partial[0].batch_trace == pytest.approx(partial[0].trace * (1 - 4 / 30) / 4)
    assert any(sentence.startswith("How exact: 10 of 30 samples") for sentence in partial[0].advice)


def test_advice_names_what_is_the_matter(logistic):
    rest = noise_report(*logistic, **SGD)
    assert any(sentence.startswith("Below balance: the squared gradient") for sentence in rest.advice)
    unstable = noise_report(*logistic, **(SGD | {"learning_rate": 50.0}))
    assert (unstable.loss_gap, unstable.equivalents) == (None, ())
    assert any(sentence.startswith("Unstable: learning rate 50") for sentence in unstable.advice)
    inputs, targets = data(24)
    fresh = noise_report(
        network((nn.Linear, 4, 3)), cross_entropy, inputs, targets, learning_rate=0.001, batch_size=12
    )
    assert any(sentence.startswith("Still descending") for sentence in fresh.advice)
    linear = [row for row in rest.equivalents if row.batch_size == 32]
    assert linear[0].linear == pytest.approx(2.4)
    assert any(sentence.startswith("Linear rule: from batches of") for sentence in rest.advice)
    # Identical samples have no noise; a loss that is linear in the parameters no curvature.
    ones = torch.ones(4, 1)
    still = noise_report(network((nn.Linear, 1, 1)), mse_loss, ones, ones, learning_rate=0.1, batch_size=2)
    assert still.trace == pytest.approx(0, abs=1e-20)
    assert still.advice[0].startswith("No noise")
    flat = noise_report(
        network((nn.Linear, 1, 1)),
        lambda out, y: (out * y).mean(),
        data(8, 1)[0],
        ones.repeat(2, 1),
        learning_rate=0.1,
        batch_size=2,
    )
    assert (flat.edge, flat.loss_gap, flat.tail_index) == (None, None, None)
    assert any(sentence.startswith("No minimum") for sentence in flat.advice)


def test_heavy_tails_are_said():
    """One weight, curvatures 2 x^2 = 0.02 and 18: at learning rate 0.2 factors of 0.996 and -2.6."""
    x = torch.tensor([[0.1]] * 9 + [[3.0]])
    y = torch.tensor([[1.0], [-1.0]] * 5)
    line = network((nn.Linear, 1, 1, False))
    report = noise_report(line, mse_loss, x, y, learning_rate=0.2, batch_size=1)
    beta = report.tail_index
    assert beta == 0.0  # E log|m| = (9 log 0.996 + log 2.6) / 10 > 0
    assert any(
        sentence.startswith("Tails:") and "no stationary law" in sentence for sentence in report.advice
    )
    report = noise_report(line, mse_loss, x, y, learning_rate=0.13, batch_size=1)
    beta = report.tail_index
    assert 0.9 * (1 - 0.0026) ** beta + 0.1 * (0.13 * 18 - 1) ** beta == pytest.approx(1, abs=1e-6)
    assert (
        noise_report(line, mse_loss, x, y, learning_rate=0.13, batch_size=1, momentum=0.5).tail_index is None
    )


def test_prints_and_stands_alone_as_html(logistic):
    report = noise_report(*logistic, **SGD)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    for words in ("noise scale", "Layer by layer", "The same loss gap", "linear rule", "What it means"):
        assert words in text
    page = report.to_html("my <model>")
    assert "my &lt;model&gt;" in page
    assert "<svg" in page
    assert 'src="http' not in page
    values = json.loads(json.dumps(report.to_dict()))
    assert values["noise_scale"] == pytest.approx(report.noise_scale)
    assert values["equivalents"][0]["learning_rate"] == report.equivalents[0].learning_rate
    assert list(report.to_frame().columns) == ["parameters", "trace", "share", "noise_to_signal"]
    flat = noise_report(*logistic, **(SGD | {"learning_rate": 50.0})).to_html()
    assert "<svg" in flat


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite and > 0, got nan"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 41}, r"batch_size must be in \[1, n_samples=40\] without replacement, got 41"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"top": 0}, "top must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(logistic, settings, message):
    with pytest.raises(InputError, match=message):
        noise_report(*logistic, **(SGD | settings))


def test_bad_models_and_data_are_named():
    inputs, targets = data(8)
    settings = {"learning_rate": 0.1, "batch_size": 2}
    model = network((nn.Linear, 4, 3))
    with pytest.raises(InputError, match="same length, got 8 and 7"):
        noise_report(model, cross_entropy, inputs, targets[:7], **settings)
    with pytest.raises(InputError, match="needs at least 2 samples, got 1"):
        noise_report(model, cross_entropy, inputs[:1], targets[:1], learning_rate=0.1, batch_size=1)
    with pytest.raises(InputError, match="mean of the losses of single samples"):
        noise_report(
            model, lambda out, y: cross_entropy(out, y, reduction="sum"), inputs, targets, **settings
        )
    with pytest.raises(InputError, match="must have parameters, got none"):
        noise_report(nn.Identity(), cross_entropy, inputs[:, :3], targets, **settings)


def test_a_transformer_against_gradients_one_by_one():
    """Token and position embeddings, attention, LayerNorm and a head, a little trained."""
    generator = torch_generator(0, "text")
    tokens = torch.randint(0, 9, (8, 13), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT(9, width=16, heads=2, context=12)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        next_token_loss(model(inputs), targets).backward()
        optimizer.step()
    report = noise_report(model, next_token_loss, inputs, targets, learning_rate=0.01, batch_size=2, top=3)
    gradients, _ = brute_force(model, next_token_loss, inputs, targets)
    centred = gradients - gradients.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centred @ centred.T / 7)[::-1]
    np.testing.assert_allclose(report.spectrum, eigenvalues[:3], rtol=1e-6)
    assert report.trace == pytest.approx(eigenvalues.sum(), rel=1e-6)
    assert report.gradient_norm == pytest.approx(np.linalg.norm(gradients.mean(axis=0)), rel=1e-6)


class TestCommand:
    def run(self, *arguments):
        app = typer.Typer()
        app.command("noise")(noise)
        return CliRunner().invoke(app, list(arguments))

    def test_an_example_in_json_and_on_a_page(self, tmp_path):
        page = tmp_path / "page.html"
        result = self.run(
            *("--example", "digits", "--epochs", "2", "--learning-rate", "0.05", "--batch-size", "8"),
            *("--samples", "60", "--top", "4", "--momentum", "0.9", "--json", "--html", str(page)),
        )
        assert result.exit_code == 0, result.output
        values = json.loads(result.stdout)
        assert (values["samples"], len(values["spectrum"]), values["tail_index"]) == (60, 4, None)
        assert values["edge"] == pytest.approx(2 * 1.9 / values["curvatures"][0])
        assert page.read_text().startswith("<!doctype html>")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "expected exactly one of TARGET and --example"),
            (["--example", "digit"], "unknown example 'digit'"),
            (["nowhere.py:build"], "there is no file nowhere.py"),
            (["--example", "digits", "--html", "."], "--html must name a file"),
            (
                ["--example", "digits", "--epochs", "1", "--momentum", "1"],
                "digits: momentum must be in [0, 1)",
            ),
        ],
    )
    def test_says_in_one_line_what_is_wrong(self, arguments, message):
        result = self.run(*arguments, "--learning-rate", "0.1", "--batch-size", "8")
        assert result.exit_code != 0
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
