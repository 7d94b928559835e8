"""The study framework: claims, verdicts, records, runner, gallery. It knows no theory."""

from symdyn_core.study.claim import Claim, ClaimResult, Rival, Verdict, judge
from symdyn_core.study.paper import Paper
from symdyn_core.study.record import Record
from symdyn_core.study.spec import Study, setting

__all__ = ["Claim", "ClaimResult", "Paper", "Record", "Rival", "Study", "Verdict", "judge", "setting"]
