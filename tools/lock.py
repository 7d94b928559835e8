"""Write constraints.txt: the newest versions of everything that the workspace needs, as pip resolves them.

torch is pinned first: its exact version selects the CPU build where one is offered locally.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
HEADER = "# Tested versions of everything. Written by `make lock`; do not edit.\n"


def main() -> None:
    """Resolve without installing, and write what pip would install."""
    packages = sorted(str(path.parent) for path in ROOT.glob("packages/*/pyproject.toml"))
    editable = [word for path in packages for word in ("-e", path)]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", "-", TORCH, "distributed", "-r", str(ROOT / "requirements-dev.txt"), *editable),
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].split("+")[0]
        for item in report["install"]
    }
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if not name.startswith("symdyn")]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
