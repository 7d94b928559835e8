"""The papers behind the studies: what is known of them, and how to cite them."""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


def check_text(what: str, text: object) -> None:
    """Raise ValueError unless ``text`` is a non-empty string."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} must be a non-empty text, got {text!r}")


@dataclass(frozen=True)
class Paper:
    """A paper and the result of it that a study tests.

    Title, authors, year and venue are looked up in the programme's bibliography and need to be given only for
    a paper outside it.
    """

    arxiv: str
    result: str
    title: str = ""
    authors: str = ""
    year: int = 0
    venue: str = ""

    def __post_init__(self) -> None:
        check_text("result (what of the paper is tested)", self.result)
        if not re.fullmatch(r"\d{4}\.\d{4,5}", self.arxiv):
            raise ValueError(f"arxiv must look like 2308.06671, got {self.arxiv!r}")
        known = bibliography().get(self.arxiv)
        for field in ("title", "authors", "year", "venue"):
            if not getattr(self, field) and known is not None:
                object.__setattr__(self, field, getattr(known, field))
        check_text(f"title of {self.arxiv}", self.title)
        check_text(f"authors of {self.arxiv}", self.authors)

    @property
    def url(self) -> str:
        """Where to read it."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def bibtex(self) -> str:
        """Return the BibTeX entry."""
        return bibtex(self.arxiv, self.title, self.authors, self.year, self.venue)


@dataclass(frozen=True)
class Reference:
    """One entry of the bibliography; ``package`` is the distribution the paper belongs to."""

    arxiv: str
    package: str
    title: str
    authors: str
    year: int
    venue: str


@cache
def bibliography() -> dict[str, Reference]:
    """Return the papers of the programme, by arXiv id, in the order of the packages."""
    text = files("symdyn_core.study").joinpath("bibliography.json").read_text(encoding="utf-8")
    return {entry["arxiv"]: Reference(**entry) for entry in json.loads(text)}


def bibtex(arxiv: str, title: str, authors: str, year: int, venue: str) -> str:
    """Return a BibTeX entry; authors are given as ``A. One, B. Two``.

    >>> print(bibtex("2308.06671", "Law of Balance", "Liu Ziyin, Hongchao Li", 2023, ""))
    @article{ziyin2023law,
      title         = {{Law of Balance}},
      author        = {Liu Ziyin and Hongchao Li},
      year          = {2023},
      eprint        = {2308.06671},
      archivePrefix = {arXiv},
    }
    """
    family = authors.split(",")[0].split()[-1].lower()
    first_word = next(w for w in re.findall(r"\w+", title.lower()) if w not in {"a", "an", "the", "on"})
    fields = {
        "title": f"{{{title}}}",
        "author": authors.replace(", ", " and "),
        "year": str(year),
        "journal": venue,
        "eprint": arxiv,
        "archivePrefix": "arXiv",
    }
    lines = [f"  {key:<13} = {{{value}}}," for key, value in fields.items() if value]
    return "\n".join([f"@article{{{family}{year}{first_word},", *lines, "}"])
