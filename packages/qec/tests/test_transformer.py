"""The transformer: what its mask lets through, its recurrence, and the probabilities that it gives."""

import itertools

import numpy as np
import pytest
import torch

from symdyn_core.errors import InputError
from symdyn_qec.codes import CSSCode, bivariate_bicycle, toric
from symdyn_qec.networks.transformer import CodeTransformer, log_probability, sharing_qubits

PATH = sharing_qubits([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])


def network(observables=3, layers=2, seed=0, related=PATH):
    return CodeTransformer(related, observables, width=8, layers=layers, heads=2, seed=seed)


def some_checks(shots, cycles=3, tokens=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (shots, cycles, tokens), dtype=torch.uint8, generator=generator)


def all_classes(k):
    return torch.tensor(list(itertools.product((0, 1), repeat=k)), dtype=torch.uint8)


def test_the_mask_is_that_of_shared_qubits():
    code = bivariate_bicycle("bb72")
    related = sharing_qubits(code.hx, code.hz)
    supports = [set(np.flatnonzero(row)) for row in np.vstack([code.hx, code.hz])]
    for i, j in itertools.product(range(0, 72, 5), range(72)):
        assert related[i, j] == bool(supports[i] & supports[j])
    # Twelve checks of its own kind share a qubit with a check, nine of the other kind; and there is itself.
    assert (related.sum(axis=1) == 22).all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_in_every_layer_influence_goes_one_shared_qubit_further_and_no_step_more(layers):
    code = toric(4)
    related = sharing_qubits(code.hx, code.hz)
    own = network(layers=layers, related=related)
    state = torch.randn(2, len(related), 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    after = own.step(state, some_checks(2, 1, len(related))[:, 0])
    reach = np.linalg.matrix_power(related.astype(int), layers) > 0
    assert layers == 3 or not reach.all()
    for token in range(0, len(related), 5):
        (gradient,) = torch.autograd.grad(after[:, token].square().sum(), state, retain_graph=True)
        heard = (gradient != 0).any(dim=-1).all(dim=0).numpy()
        assert (heard == reach[token]).all()


def test_cycles_one_by_one_are_the_whole_sequence():
    own, checks = network(), some_checks(5, cycles=4)
    state = own.start(5)
    for t in range(4):
        state = own.step(state, checks[:, t], last=t == 3)
    assert torch.equal(state, own.encode(checks))
    # The order of the cycles matters, and that the last one is a readout.
    assert not torch.allclose(state, own.encode(checks.flip(1)))
    assert not torch.allclose(own.step(own.start(5), checks[:, 0]), own.encode(checks[:, :1]))


def test_all_classes_together_have_probability_one():
    own, checks, classes = network(observables=4), some_checks(3), all_classes(4)
    log_odds = own(checks.repeat_interleave(16, dim=0), classes.repeat(3, 1))
    total = log_probability(log_odds, classes.repeat(3, 1)).view(3, 16).exp().sum(dim=1)
    assert torch.allclose(total, torch.ones(3), atol=1e-6)


def test_log_odds_depend_on_the_observables_before_and_on_no_others():
    own, checks, classes = network(observables=4), some_checks(1).expand(16, -1, -1), all_classes(4)
    log_odds = own(checks, classes)
    for i in range(4):
        for prefix in itertools.product((0, 1), repeat=i):
            same = (classes[:, :i] == torch.tensor(prefix)).all(dim=1)
            assert (log_odds[same, i] - log_odds[same, i][0]).abs().max() < 1e-6
        if i:
            first = classes[:, i - 1].bool()
            assert (log_odds[first, i] - log_odds[~first, i]).abs().min() > 1e-4


@pytest.mark.parametrize("beam", [1, 2, 3, 16])
def test_the_answer_has_the_probability_that_evaluation_gives_it(beam):
    own, checks = network(observables=4, seed=3), some_checks(40)
    answer = own.decode(own.encode(checks), beam)
    truth = log_probability(own(checks, answer.observables), answer.observables)
    assert torch.allclose(answer.log_probability, truth, atol=1e-5)


def test_one_path_takes_the_likelier_value_each_time_and_all_paths_find_the_likeliest_class():
    own, checks, classes = network(observables=4, seed=4), some_checks(60), all_classes(4)
    # Odds that depend strongly on what came before, so that the first choice can be the wrong one.
    with torch.no_grad():
        own.head.before.mul_(3)
        own.head.odds[-1].weight.mul_(10)
    greedy = own.decode(own.encode(checks))
    log_odds = own(checks, greedy.observables)
    assert torch.equal(log_odds > 0, greedy.observables.bool())
    every = own(checks.repeat_interleave(16, dim=0), classes.repeat(60, 1))
    best, index = log_probability(every, classes.repeat(60, 1)).view(60, 16).max(dim=1)
    wide = own.decode(own.encode(checks), beam=16)
    assert torch.equal(wide.observables, classes[index])
    assert torch.allclose(wide.log_probability, best, atol=1e-5)
    # Greedy misses some of them, and a beam in between does not do worse.
    missed = [
        int((own.decode(own.encode(checks), beam).observables != classes[index]).any(dim=1).sum())
        for beam in (1, 2, 16)
    ]
    assert missed[0] > missed[1] >= missed[2] == 0


def test_weights_come_from_the_seed():
    first, again, other = (network(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["shown"], other["shown"])


def test_a_code_with_one_kind_of_checks():
    code = CSSCode(np.zeros((0, 3), dtype=np.uint8), [[1, 1, 0], [0, 1, 1]])
    assert sharing_qubits(code.hx, code.hz).shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"related": np.ones((2, 3))}, r"related must have shape \(tokens, tokens\), got \(2, 3\)"),
        ({"related": np.zeros((2, 2))}, "related must be symmetric and true on the diagonal"),
        ({"num_observables": 0}, "num_observables and layers must be at least 1, got 0 and 1"),
        ({"layers": 0}, "num_observables and layers must be at least 1, got 1 and 0"),
        ({"heads": 3}, "width must be a positive multiple of heads, got 8 and 3"),
    ],
)
def test_bad_input(changes, message):
    settings = {"related": PATH, "num_observables": 1, "width": 8, "layers": 1, "heads": 2}
    with pytest.raises(InputError, match=message):
        CodeTransformer(**{**settings, **changes})


def test_a_beam_needs_a_path():
    own = network()
    with pytest.raises(InputError, match="beam must be at least 1, got 0"):
        own.decode(own.encode(some_checks(1)), beam=0)
