"""Write constraints.txt: the newest versions of everything that the workspace needs, as pip resolves them.

torch is pinned first: its exact version selects the CPU build where one is offered locally.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
HEADER = "# Tested versions of everything. Written by `make lock`; do not edit.\n"


def main() -> None:
    """Resolve without installing, and write what pip would install."""
    packages = sorted(str(path.parent) for path in ROOT.glob("packages/*/pyproject.toml"))
    # With every extra: what a benchmark or an engine needs is pinned like the rest.
    editable = [word for path in packages for word in ("-e", f"{path}{extras(path)}")]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", "-", TORCH, "-r", str(ROOT / "requirements-dev.txt"), *editable),
    ]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].split("+")[0]
        for item in report["install"]
    }
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if not name.startswith("symdyn")]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(lines)} packages")


def extras(package: str) -> str:
    """Return a package's optional dependency groups as pip wants them: ``[dask,bench]``, or nothing."""
    project = tomllib.loads(Path(package, "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = ",".join(project.get("optional-dependencies", {}))
    return f"[{groups}]" if groups else ""


if __name__ == "__main__":
    main()
