"""For every test: hypothesis without deadlines, and no test may change torch or NumPy behind its back."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("symdyn", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("symdyn")


@pytest.fixture(autouse=True)
def unchanged_globals() -> Iterator[None]:
    """Fail the test that leaves a global dtype, thread count or random state changed."""
    before = _globals()
    yield
    after = _globals()
    changed = [name for name, value in before.items() if name in after and after[name] != value]
    assert not changed, f"the test changed global state: {', '.join(changed)}"


def _globals() -> dict[str, Any]:
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  # the state that must not move
    state: dict[str, Any] = {"numpy random state": repr(numpy_state)}
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        state["torch default dtype"] = torch.get_default_dtype()
        state["torch threads"] = torch.get_num_threads()
        state["torch random state"] = torch.get_rng_state().numpy().tobytes()
        state["torch gradient mode"] = torch.is_grad_enabled()
    return state


COIN = '''"""How often does a biased coin show heads?

Set-up: toss a coin of known bias many times. The claim would be refuted if the fraction of heads, counted
over independent repetitions, lay outside the margin around the bias. This text is here to be long enough.
"""

import os
from dataclasses import dataclass

import numpy as np

from symdyn_core.study import Claim, Paper, Rival, Study, setting
from symdyn_core.study.plots import draw_claims


@dataclass(frozen=True)
class Config:
    bias: float = setting(0.3, valid=(0.1, 0.45), verify=(0.2,), help="probability of heads")
    tosses: int = setting(2000, valid=(100, 100_000), help="per repetition")
    mood: str = setting("calm", choices=("calm", "raising", "nan", "dying"), help="what goes wrong")


# Longer than a phone is wide.
LAW = r"\\mathbb{E}[h] = b = \\lim_{n\\to\\infty} \\frac{1}{n} \\sum_{i=1}^{n} h_i = 1 - \\mathbb{E}[1 - h]"


def measure(config, seed):
    if config.mood == "raising":
        raise RuntimeError("the coin rolled away")
    if config.mood == "dying":
        os._exit(1)
    heads = np.random.default_rng(seed).random(config.tosses) < config.bias
    return {"heads": float("nan") if config.mood == "nan" else heads.mean(), "first": heads[:5].tolist()}


STUDY = Study(
    title="A biased coin", paper=Paper("2308.06671", result="a stand-in"), version=1, config=Config,
    presets={"quick": {}, "full": {"tosses": 5000}},
    claims=[Claim("heads", formula=LAW, predict=lambda config: config.bias, margin=0.03,
                  because="finite number of tosses", rival=Rival("a fair coin", lambda config: 0.5))],
    measure=measure, draw=draw_claims,
    tools=("math.sqrt", "concurrent.futures.process.ProcessPoolExecutor"),
)
'''


@pytest.fixture
def coin_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a third-party distribution with one study, ``coin.coin``, on the path; return the path entry."""
    root = tmp_path / "site"
    package = root / "symdyn_coin"
    (package / "studies").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "studies" / "__init__.py").write_text("")
    (package / "studies" / "coin.py").write_text(COIN)
    info = root / "symdyn_coin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: symdyn-coin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[symdyn.studies]\ncoin = symdyn_coin.studies\n")
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", str(root))
    yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "symdyn_coin"]:
        del sys.modules[name]
