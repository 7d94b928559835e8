"""The workspace as a whole: versions in lock-step, code under test is the code in the tree."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "finance", "neuro", "qec", "ssl")


def metadata(package):
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("package", PACKAGES)
def test_one_version_for_all(package):
    version = metadata("core")["version"]
    module = importlib.import_module(f"symdyn_{package}")
    assert (metadata(package)["version"], module.__version__) == (version, version)
    if package != "core":
        assert f"symdyn-core=={version}" in metadata(package)["dependencies"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_code_under_test_is_the_code_in_the_tree(package):
    # import-linter analyses whatever is importable: an installed copy would be judged instead of the sources.
    module = importlib.import_module(f"symdyn_{package}")
    assert Path(module.__file__).is_relative_to(ROOT / "packages" / package / "src")


@pytest.mark.parametrize("package", PACKAGES)
def test_third_parties_have_a_lower_bound_here_and_an_exact_version_in_the_constraints(package):
    exact = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    extras = [r for group in metadata(package).get("optional-dependencies", {}).values() for r in group]
    for requirement in [*metadata(package)["dependencies"], *extras]:
        name = re.match(r"[\w-]+", requirement)[0]
        if not name.startswith("symdyn"):
            # An upper bound or an exact version is for what has no newer one that works.
            assert re.fullmatch(r"[\w-]+(>=|==)\d[\w.]*(,<[\d.]+)?", requirement), requirement
            assert name.lower().replace("_", "-") in exact, f"{name} is not in constraints.txt: make lock"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package):
    heavy = "('torch', 'matplotlib', 'stim')"
    code = f"import sys, symdyn_{package}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_table_of_papers_is_up_to_date():
    script = [sys.executable, str(ROOT / "tools" / "papers.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
