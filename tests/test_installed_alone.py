"""Each application installs by name from wheels, alone, brings only what it needs, and works."""

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DOMAIN_LIBRARIES = {"stim", "sinter", "pymatching", "skfolio", "gymnasium"}
COMMANDS = {
    "qec": "qec benchmark --code surface --distance 3 --rounds d --p 0.005 --shots 500",
    "finance": "finance simulate --agents 500 --steps 50 --out market",
    "neuro": "neuro train --example digits --epochs 1",
    "ssl": "ssl example digits --out views.npz",
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheels")
    for package in sorted((ROOT / "packages").iterdir()):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
        subprocess.run(build, cwd=package, check=True, capture_output=True)
    return target


def closure(name):
    """The distribution and all it requires here, extras aside."""
    found, todo = {}, [name]
    while todo:
        current = canonicalize_name(todo.pop())
        if current in found:
            continue
        found[current] = metadata.distribution(current)
        requirements = map(Requirement, found[current].requires or [])
        todo += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link_torch(site):
    """Let the new environment see the torch that is already on disk; unpacking it again takes a minute."""
    for distribution in closure("torch").values():
        for top in {
            file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")
        }:
            target = site / top
            if not target.exists():
                target.symlink_to(Path(distribution.locate_file(top)))


@pytest.mark.slow
@pytest.mark.parametrize("package", COMMANDS)
def test_installed_alone(package, wheels, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    link_torch(site)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    links = os.environ.get("PIP_FIND_LINKS", "")
    environment = {
        **os.environ,
        "PIP_FIND_LINKS": f"{wheels} {links}".strip(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    # Bytecode is made of what the command imports only: nearly half of the work.
    install = [
        *pip,
        "install",
        "--quiet",
        "--no-compile",
        "-c",
        str(ROOT / "constraints.txt"),
        f"symdyn-{package}",
    ]
    result = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

    listing = subprocess.run([*pip, "list", "--format", "freeze"], capture_output=True, text=True, check=True)
    installed = {canonicalize_name(line.split("==")[0]) for line in listing.stdout.split()}
    wanted = set(closure(f"symdyn-{package}"))
    assert installed <= wanted | set(closure("torch"))
    assert {name for name in installed if name.startswith("symdyn")} == {"symdyn-core", f"symdyn-{package}"}
    assert installed & DOMAIN_LIBRARIES == ({"stim", "sinter", "pymatching"} if package == "qec" else set())

    command = [str(python.with_name("symdyn")), *COMMANDS[package].split()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
