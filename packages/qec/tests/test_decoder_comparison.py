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


def test_bposd_against_itself_is_refuted(monkeypatch):
    pytest.importorskip("ldpc")
    case = Experiment.generate("bb72", p=0.006)
    bposd = make_decoder("bposd").compile_decoder_for_dem(dem=case.model())
    twice = {"symdyn": bposd, "bposd": bposd}
    monkeypatch.setattr(decoder_comparison, "_ready", lambda p, basis: (case, twice))
    found = decoder_comparison.measure(Config(p=0.006, shots=32), seed=1)
    assert sum(found["failures"]) == sum(found["failures_of_bposd"]) > 3
    assert found["one_sided"] == []
    assert verdict("rescued", found["rescued"]) is Verdict.REFUTED
