"""The study of the contributor's guide is complete and conforms, literally."""

import re
from pathlib import Path

from symdyn_core.study.registry import entries, load
from symdyn_core.testing import check_confirmed, check_study

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def test_a_study_in_fifteen_minutes(coin_package):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (coin_package / "symdyn_coin" / "studies" / "step_size.py").write_text(code)
    study = load(entries()["coin.step_size"])
    check_study(study)
    for overrides in study.verification():
        check_confirmed(study, seed=1, overrides=overrides)
