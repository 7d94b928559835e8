"""Which studies exist: every module of every package that declares the entry point ``symdyn.studies``.

Adding a study is dropping one file. Listing reads each file's heading (title and paper) without running it,
so that ``symdyn list`` never imports torch.
"""

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from symdyn_core.errors import InputError, unknown
from symdyn_core.study.spec import Study

GROUP = "symdyn.studies"


@dataclass(frozen=True)
class Entry:
    """A study as listed; ``error`` says why it cannot be used, if so."""

    id: str
    package: str
    module: str
    title: str = ""
    arxiv: str = ""
    error: str | None = None


def entries() -> dict[str, Entry]:
    """Return every registered study by id, broken packages as one entry with a reason."""
    found: dict[str, Entry] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name != "core", point.name)):
        for entry in _entries_of(point):
            found[entry.id] = entry
    return found


def select(ids: list[str]) -> list[Entry]:
    """Return the entries with these ids, or all of them; a package's name stands for all its studies.

    Raises:
        InputError: an id that does not exist, with the nearest ones that do.
    """
    known = entries()
    if not ids:
        return list(known.values())
    chosen: dict[str, Entry] = {}
    for name in ids:
        matches = [entry for entry in known.values() if name in (entry.id, entry.package)]
        if not matches:
            raise InputError(unknown("study", name, known))
        chosen.update((entry.id, entry) for entry in matches)
    return list(chosen.values())


def load(entry: Entry) -> Study:
    """Import a study.

    Raises:
        ImportError: the module, or something that it needs, cannot be imported.
        TypeError: the module does not define ``STUDY``.
    """
    if entry.error is not None:
        raise ImportError(entry.error)
    study = getattr(importlib.import_module(entry.module), "STUDY", None)
    if not isinstance(study, Study):
        raise TypeError(f"{entry.module} must define STUDY, a symdyn_core.study.Study; got {study!r}")
    return study


def _entries_of(point: EntryPoint) -> list[Entry]:
    try:
        spec = importlib.util.find_spec(point.value)
    except Exception as error:  # noqa: BLE001  # one broken package must not hide the others: its reason is shown
        return [Entry(point.name, point.name, point.value, error=_reason(error))]
    if spec is None or not spec.submodule_search_locations:
        return [
            Entry(point.name, point.name, point.value, error=f"{point.value} is not an importable package")
        ]
    files = [
        path for place in spec.submodule_search_locations for path in sorted(Path(place).glob("[!_]*.py"))
    ]
    return [_read_heading(point, path) for path in files]


def _read_heading(point: EntryPoint, path: Path) -> Entry:
    entry_id, module = f"{point.name}.{path.stem}", f"{point.value}.{path.stem}"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        call = next(
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and _assigns_study(node)
            if isinstance(node.value, ast.Call)
        )
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        title, paper = ast.literal_eval(words["title"]), words["paper"]
        if not isinstance(paper, ast.Call):
            raise ValueError("paper must be written as Paper(...)")
        arxiv = next((k.value for k in paper.keywords if k.arg == "arxiv"), None) or paper.args[0]
        return Entry(entry_id, point.name, module, title, ast.literal_eval(arxiv))
    except StopIteration:
        return Entry(entry_id, point.name, module, error=f"{path.name} does not define STUDY = Study(...)")
    except (SyntaxError, ValueError, KeyError, IndexError) as error:
        reason = f"title and paper of STUDY in {path.name} must be literal: {_reason(error)}"
        return Entry(entry_id, point.name, module, error=reason)


def _assigns_study(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id == "STUDY" for target in targets)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
