"""A dask cluster gives the numbers of this machine, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = """
import subprocess, sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        command = [sys.argv[1], "run", "coin.coin", "--json", "--out", "dask"]
        command += ["--engine", "dask", "--scheduler", cluster.scheduler_address]
        sys.exit(subprocess.run(command).returncode)
"""


@pytest.mark.slow
def test_dask_and_local_agree(coin_package, tmp_path):
    symdyn = str(Path(sys.executable).with_name("symdyn"))
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    dask = subprocess.run(
        [sys.executable, str(script), symdyn], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert dask.returncode == 0, dask.stderr
    local = subprocess.run(
        [symdyn, "run", "coin.coin", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(dask.stdout)["claims"] == json.loads(local.stdout)["claims"]


def test_a_scheduler_that_does_not_answer_is_named(coin_package, tmp_path):
    symdyn = str(Path(sys.executable).with_name("symdyn"))
    command = [symdyn, "run", "coin.coin", "--engine", "dask", "--scheduler", "nonsense"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot reach a dask scheduler at nonsense")
