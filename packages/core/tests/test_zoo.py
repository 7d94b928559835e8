"""The finder on the zoo: dimensions exactly, discrete groups, nothing false, nothing missing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from symdyn_core.symmetry.find import find_symmetries


def load_zoo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("symdyn_zoo", Path(__file__).with_name("zoo.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "CASES"):
        spec.loader.exec_module(module)
    return module


ZOO = load_zoo()
CASES = {case.name: case for case in ZOO.CASES}
# Tied to its embedding, a LLaMA's residual directions may still change places.
MORE_PERMUTATIONS = {"llama_tied": [8]}


@pytest.mark.parametrize("name", CASES)
def test_the_structure_explains_every_dimension_and_proposes_nothing_false(name: str) -> None:
    case = CASES[name]
    model, inputs = case.build()
    report = find_symmetries(model, inputs, output=case.output, method="structure", certificate=False)
    assert report.dimension == case.dimension
    assert report.rejected == report.approximate == report.uncovered == ()
    assert all(finding.error < 1e-9 for finding in report.found)
    orders = sorted(symmetry.group for symmetry in report.of_kind("permutation"))
    expected = [*case.permutations, *MORE_PERMUTATIONS.get(name, [])]
    assert orders == sorted(f"S_{size}" for size in expected)
    flips = [symmetry.group for symmetry in report.of_kind("sign flip")]
    assert all(f"Z_2^{size}" in flips for size in case.sign_flips)


# The heads of a fused projection are slices of one axis, which a search without structure cannot know.
NEEDS_SLICES = {"torch_attention"}
SMALL = [name for name, case in CASES.items() if sum(p.numel() for p in case.build()[0].parameters()) < 300]


@pytest.mark.parametrize("name", SMALL)
def test_structure_certificate_and_search_agree(name: str) -> None:
    case = CASES[name]
    model, inputs = case.build()
    report = find_symmetries(model, inputs, output=case.output, certificate=True)
    assert report.nullity is not None
    assert report.check is not None
    assert report.nullity.dimension == case.dimension
    assert (report.coverage, report.unexplained, report.check.contradicted) == (1.0, 0, 0)
    if name not in NEEDS_SLICES:
        searched = find_symmetries(model, inputs, output=case.output, method="numeric", certificate=False)
        assert searched.dimension == case.dimension
