"""Where numbers come from: the code, the library versions and the machine."""

import hashlib
import importlib.util
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

# The framework shows numbers, it does not make them: a change there keeps records valid.
NOT_MEASURING = ("study", "commands", "studies", "testing.py", "plots.py")


@cache
def code_digest(module: str) -> str:
    """Return the SHA-256 of the sources that may determine what a study measures.

    These are the study's own file, and the library code of its distribution and of symdyn-core. A verdict
    must never be shown for code that no longer exists.
    """
    digest = hashlib.sha256(Path(_origin(module)).read_bytes())
    for package in sorted({module.split(".")[0], "symdyn_core"}):
        root = Path(_origin(package)).parent
        for path in sorted(root.rglob("*.py")):
            if path.relative_to(root).parts[0] not in NOT_MEASURING:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, the symdyn distributions and the libraries that do the arithmetic."""
    names = ["numpy", "scipy", "torch", "stim", "pymatching", "scikit-learn"]
    names += [f"symdyn-{name}" for name in ("core", "finance", "neuro", "qec", "ssl")]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return operating system and processor, in words."""
    return f"{platform.system()} {platform.machine()}"


def _origin(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source file for module {module!r}")
    return spec.origin
