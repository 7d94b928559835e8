"""Conformance checks: what every study must satisfy, for tests inside and outside this repository.

A package's whole test of its studies (needs pytest)::

    from symdyn_core.testing import StudyConformance

    class TestStudies(StudyConformance):
        package = "qec"
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import pytest

from symdyn_core.study.claim import ClaimResult, Verdict
from symdyn_core.study.plots import render
from symdyn_core.study.record import Record, from_csv, repetition_seed, to_csv
from symdyn_core.study.registry import load, select
from symdyn_core.study.runner import run_repetition
from symdyn_core.study.spec import PRESETS, Study

MASTER_SEED = 0
FRESH_SEEDS = (1, 2, 3)


class StudyConformance:
    """The tests of every study of the distribution ``package``.

    The conformance test always runs; the fresh seeds and the values over which each study says that it holds
    carry the mark ``verify``.
    """

    package: str

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give each test its studies; called by pytest."""
        found = studies(self.package)
        if "overrides" in metafunc.fixturenames:
            cases = [(study, overrides) for study in found for overrides in study.verification()]
            names = [f"{study.id} {_one_line(overrides)}" for study, overrides in cases]
            metafunc.parametrize(("study", "overrides"), cases, ids=names)
        elif "study" in metafunc.fixturenames:
            metafunc.parametrize("study", found, ids=lambda study: study.id)

    @pytest.mark.slow
    def test_study_conforms(self, study: Study) -> None:
        """The study is complete, reproducible, CONFIRMED, and would notice a wrong law."""
        check_study(study)

    @pytest.mark.verify
    @pytest.mark.parametrize("seed", FRESH_SEEDS)
    def test_study_holds_on_fresh_seeds(self, study: Study, seed: int) -> None:
        """Nothing was tuned to one seed."""
        check_confirmed(study, seed=seed)

    @pytest.mark.verify
    def test_study_holds_over_its_settings(self, study: Study, overrides: dict[str, Any]) -> None:
        """The prediction follows the configuration."""
        check_confirmed(study, seed=FRESH_SEEDS[0], overrides=overrides)


def studies(package: str) -> list[Study]:
    """Return the registered studies of one distribution."""
    return [load(entry) for entry in select([package])]


def check_study(study: Study, *, seed: int = MASTER_SEED) -> Record:
    """Check one study from its metadata to its power to fail; return the record of its quick preset.

    Raises:
        AssertionError: naming what does not hold.
    """
    check_metadata(study)
    record = check_confirmed(study, seed=seed)
    check_determinism(study, record)
    check_round_trip(record)
    check_rivals(record)
    assert render(record).lstrip().startswith("<?xml"), f"{study.id}: draw() did not give a figure"
    return record


def check_metadata(study: Study) -> None:
    """Check that the study says what it is, what would refute it and which tools it stands for."""
    assert len(study.text) > 200, f"{study.id}: the module's docstring is the gallery's text; it is too short"
    assert "refut" in study.text.lower(), (
        f"{study.id}: the docstring does not say what would refute the claim"
    )
    assert study.paper.title, f"{study.id}: no title for paper {study.paper.arxiv}"
    assert study.tools, f"{study.id}: names no tool that a practitioner can call"
    for tool in study.tools:
        module, _, name = tool.rpartition(".")
        assert hasattr(importlib.import_module(module), name), f"{study.id}: tool {tool} does not exist"
    for field in dataclasses.fields(study.config):
        assert field.metadata.get("help"), f"{study.id}: setting {field.name} has no help text"
    for preset in PRESETS:
        study.configure(preset)
    assert study.verification(), f"{study.id}: no setting lists values to verify besides the default"
    for overrides in study.verification():
        study.configure("quick", overrides)


def check_confirmed(study: Study, *, seed: int, overrides: Mapping[str, Any] | None = None) -> Record:
    """Check that every claim of the quick preset is CONFIRMED at this seed and excludes its rival.

    At overridden settings, where both laws may agree, only the verdict is checked.
    """
    record = measure(study, seed=seed, overrides=overrides)
    for result in record.results:
        assert result.verdict is Verdict.CONFIRMED, f"{study.id} {overrides or ''} seed {seed}: {result}"
        assert overrides or result.rival_excluded, f"{study.id}: the rival is not excluded: {result}"
    return record


def check_determinism(study: Study, record: Record) -> None:
    """Check that the same seed gives identical numbers and another seed gives others."""
    again = measure(study, seed=record.seed, repetitions=1, config=record.config)
    assert again.samples[0] == record.samples[0], f"{study.id}: the same seed gave other numbers"
    assert record.samples[1] != record.samples[0], f"{study.id}: another seed gave the same numbers"


def check_round_trip(record: Record) -> None:
    """Check that samples survive the file format number for number."""
    assert from_csv(to_csv(record.samples)) == record.samples, (
        f"{record.study.id}: samples.csv loses something"
    )


def check_rivals(record: Record) -> None:
    """Check that no claim is confirmed when the rival's prediction takes the place of theory's."""
    seeds = [repetition_seed(record.seed, record.study.id, k) for k in record.repetitions]
    for claim in record.study.claims:
        wrong = claim.with_rival_as_prediction()
        result = ClaimResult.of(wrong, record.config, seeds, record.values(claim.measured))
        assert result.verdict is Verdict.REFUTED, (
            f"{record.study.id}: the rival {claim.rival.name!r}: {result}"
        )


def _one_line(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in overrides.items())


def measure(
    study: Study,
    *,
    seed: int,
    overrides: Mapping[str, Any] | None = None,
    repetitions: int | None = None,
    config: Any = None,
) -> Record:
    """Run a study's quick preset in this process; failures are raised, not recorded."""
    config = config or study.configure("quick", overrides)
    record = Record(study, "quick", config, seed)
    for k in range(repetitions or study.repetitions):
        outcome = run_repetition(study.measure, config, repetition_seed(seed, study.id, k), study.time_limit)
        assert outcome.measurements is not None, f"{study.id}, repetition {k}:\n{outcome.trace}"
        record = record.with_sample(k, outcome.measurements, outcome.seconds)
    return record
