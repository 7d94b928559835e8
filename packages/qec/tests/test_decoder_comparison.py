"""What the comparison says of decoders that are not better."""

import numpy as np
import pytest

from symdyn_core.study.claim import Verdict
from symdyn_qec.baselines.registry import make_decoder
from symdyn_qec.experiment import Experiment
from symdyn_qec.studies import decoder_comparison
from symdyn_qec.studies.decoder_comparison import STUDY, Config

CLAIMS = {claim.name: claim for claim in STUDY.claims}


def verdict(name, *samples):
    return CLAIMS[name].evaluate(Config(), range(len(samples)), samples).verdict


def test_coins_are_refuted():
    generator = np.random.default_rng(0)
    tosses = [generator.permutation(np.arange(24) % 2).tolist() for _ in range(4)]
    assert verdict("one_sided", *tosses) is Verdict.REFUTED
    assert verdict("one_sided", [0] * 20 + [1] * 2, [0] * 20 + [1] * 2) is Verdict.CONFIRMED


@pytest.mark.parametrize("name", ["one_sided_of_min_sum", "one_sided_on_larger_code"])
def test_as_good_as_the_other_is_refuted(name):
    assert verdict(name, [0, 1] * 30, [1, 0] * 30) is Verdict.REFUTED
    assert verdict(name, [0] * 30 + [1] * 3, [0] * 30 + [1] * 3) is Verdict.CONFIRMED


def test_worse_than_relay_is_refuted():
    assert verdict("one_sided_against_relay", [1] * 40 + [0] * 10, [1] * 40 + [0] * 10) is Verdict.REFUTED
    assert verdict("one_sided_against_relay", [1] * 10 + [0] * 20, [1] * 10 + [0] * 20) is Verdict.CONFIRMED


def test_bposd_against_itself_is_refuted(monkeypatch):
    pytest.importorskip("ldpc")
    case = Experiment.generate("bb72", p=0.006)
    bposd = make_decoder("bposd").compile_decoder_for_dem(dem=case.model())
    names = {
        "trained": ("symdyn", "min-sum", "bposd"),
        "larger": ("symdyn", "bposd"),
        "short": ("min-sum", "relay-bp-5"),
    }
    twice = {
        name: decoder_comparison.Contest(case, dict.fromkeys(decoders, bposd))
        for name, decoders in names.items()
    }
    monkeypatch.setattr(decoder_comparison, "contests", lambda p, basis: twice)
    found = decoder_comparison.measure(Config(p=0.006, shots=32, relay_shots=32), seed=1)
    assert sum(found["failures_trained_symdyn"]) == sum(found["failures_trained_bposd"]) > 3
    assert found["one_sided"] == found["one_sided_against_relay"] == []
    assert verdict("rescued", found["rescued"]) is Verdict.REFUTED
