"""The state of the programme: every study with its latest verdict, and every paper still without one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from symdyn_core.errors import InputError
from symdyn_core.study.paper import bibliography
from symdyn_core.study.record import SCHEMA
from symdyn_core.study.registry import entries

NOT_RUN = "not run"
NOT_YET = "not yet"


@dataclass(frozen=True)
class Row:
    """A study, or a paper without one (``id`` is None)."""

    id: str | None
    paper: str
    package: str
    title: str
    verdict: str
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``symdyn list --json`` prints."""
        row = asdict(self)
        if self.error is None:
            del row["error"]
        return row


def catalogue(out: Path) -> list[Row]:
    """Return one row per registered study and one per paper of the bibliography without a study."""
    rows = []
    for entry in entries().values():
        verdict = "ERROR" if entry.error else latest_verdict(out, entry.id)
        rows.append(Row(entry.id, entry.arxiv, entry.package, entry.title, verdict, entry.error))
    studied = {row.paper for row in rows}
    rows += [
        Row(None, reference.arxiv, reference.package, reference.title, NOT_YET)
        for reference in bibliography().values()
        if reference.arxiv not in studied
    ]
    return rows


def latest_verdict(out: Path, study_id: str) -> str:
    """Return the verdict of the newest record on disk, or ``not run``."""
    document = latest_document(out, study_id)
    return NOT_RUN if document is None else str(document["verdict"])


def latest_document(out: Path, study_id: str) -> dict[str, Any] | None:
    """Return the newest ``record.json`` of a study, with its ``folder``.

    Raises:
        InputError: the file is not a record.
    """
    paths = sorted((out / study_id).glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            current = document["schema"] == SCHEMA and bool(document["id"] and document["verdict"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path} is not a record ({reason}); delete its folder") from error
        if current:
            return {**document, "folder": path.parent}
    return None
