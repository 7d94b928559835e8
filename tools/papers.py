"""Write docs/papers.md from the registered studies, or check that it is up to date (``--check``).

The verdicts are those of the records in out/ at the time of writing; the check leaves them out, as a clone
has no records.
"""

import re
import sys
from pathlib import Path

from symdyn_core.study.catalogue import NOT_YET, catalogue
from symdyn_core.study.paper import bibliography
from symdyn_core.study.registry import entries, load

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "papers.md"
HEAD = """# Papers, tools, studies

Written by `make papers`; do not edit. Verdicts are those of the quick presets when the page was written.

| paper | package | tools | study | verdict |
|---|---|---|---|---|
"""


def main() -> int:
    """Write or check the table; return the exit status."""
    text = table()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        print(f"wrote {TARGET.relative_to(ROOT)}")
        return 0
    if TARGET.exists() and without_verdicts(TARGET.read_text(encoding="utf-8")) == without_verdicts(text):
        return 0
    print(f"{TARGET.relative_to(ROOT)} is out of date: run `make papers`")
    return 1


def table() -> str:
    """Return the page: one row per paper, its studies joined."""
    rows = catalogue(ROOT / "out")
    lines = []
    for paper in bibliography().values():
        mine = [row for row in rows if row.paper == paper.arxiv]
        studies = [row for row in mine if row.id]
        tools = [tool for row in studies for tool in load(entries()[row.id]).tools if row.id]
        cells = [
            f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}) {paper.title}",
            paper.package,
            "<br>".join(f"`{tool}`" for tool in dict.fromkeys(tools)) or NOT_YET,
            "<br>".join(f"`{row.id}`" for row in studies) or NOT_YET,
            "<br>".join(row.verdict for row in mine),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def without_verdicts(text: str) -> str:
    """Drop the last column."""
    return re.sub(r"[^|]*\|$", "|", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
