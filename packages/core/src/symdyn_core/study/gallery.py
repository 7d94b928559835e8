"""The gallery: static pages from the records, readable offline, on a phone and on paper."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from latex2mathml.converter import convert as to_mathml
from markdown_it import MarkdownIt
from markupsafe import Markup
from mdit_py_plugins.dollarmath import dollarmath_plugin

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically
from symdyn_core.study.catalogue import NOT_YET, Row, catalogue, latest_document

SYMBOL = {"CONFIRMED": "✔", "INCONCLUSIVE": "◌", "REFUTED": "✘", "ERROR": "!", "UNFINISHED": "…"}


def write_gallery(out: Path) -> Path:
    """Write ``index.html`` and ``<study id>.html`` into the folder of the records; return the index.

    Raises:
        InputError: there is no record in the folder, or it cannot be written to.
    """
    pages = []
    rows = catalogue(out)
    for row in rows:
        document = latest_document(out, row.id) if row.id else None
        if document is not None and "study" in document:
            pages.append(_page(document))
    if not pages:
        raise InputError(f"no records in {out}; run `symdyn run` first")
    environment = _environment()
    for page in pages:
        html = environment.get_template("study.html").render(page=page)
        write_atomically(out / page["file"], html)
    html = environment.get_template("index.html").render(
        pages=pages,
        broken=[row for row in rows if row.error],
        missing=[row for row in rows if row.verdict == NOT_YET],
        tally=_tally(pages, rows),
    )
    return write_atomically(out / "index.html", html)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("symdyn_core.study", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["margin"] = lambda value: format(value, ".2g")
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    environment.filters["math"] = _math
    environment.globals["symbol"] = SYMBOL
    return environment


def _page(document: Mapping[str, Any]) -> dict[str, Any]:
    words = {claim["name"]: claim for claim in document["study"]["claims"]}
    claims = [{**claim, **_strip(claim), "words": words[claim["name"]]} for claim in document["claims"]]
    figure = document["folder"] / "figure.svg"
    picture = figure.relative_to(document["folder"].parent.parent).as_posix() if figure.exists() else ""
    return {
        **document,
        "file": f"{document['id']}.html",
        "claims": claims,
        "text": _markdown(document["study"]["text"]),
        "picture": picture,
        "figure": _inline(figure.read_text(encoding="utf-8")) if figure.exists() else "",
        "command": _command(document),
    }


def _command(document: Mapping[str, Any]) -> str:
    words = [f"symdyn run {document['id']} --preset {document['preset']} --seed {document['seed']}"]
    preset = document["study"]["presets"][document["preset"]]
    changed = {name: value for name, value in document["config"].items() if value != preset[name]}
    words += [f"--set {name}={value}" for name, value in changed.items()]
    return " ".join([*words, f"--repetitions {document['repetitions']}"])


def _strip(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Place prediction, interval and rival on a strip from 0 to 100, the margin being 15 wide."""

    def place(value: float | None) -> float | None:
        if value is None:
            return None
        distance = float(value - claim["predicted"])
        scale = float(claim["margin"] or max(abs((claim["rival"] or 0) - claim["predicted"]) / 2, 1e-12))
        return round(min(max(50 + 15 * distance / scale, 2), 98), 2)

    places = {key: place(claim[key]) for key in ("low", "measured", "high", "rival")}
    band = 15 if claim["margin"] else 1
    return {"strip": {**places, "band": band}}


def _tally(pages: list[dict[str, Any]], rows: list[Row]) -> dict[str, int]:
    verdicts = [page["verdict"] for page in pages]
    return {
        "studies": len(pages),
        "confirmed": verdicts.count("CONFIRMED"),
        "claims": sum(len(page["claims"]) for page in pages),
        "papers": len({row.paper for row in rows}),
        "covered": len({page["paper"] for page in pages}),
    }


def _markdown(text: str) -> str:
    markdown = MarkdownIt("commonmark", {"html": False}).use(dollarmath_plugin, renderer=_dollar_math)
    return str(markdown.render(text))


def _dollar_math(latex: str, options: Mapping[str, Any]) -> str:
    return _mathml(latex, "block" if options["display_mode"] else "inline")


def _math(latex: str) -> Markup:
    return Markup(_mathml(latex, "inline"))


def _mathml(latex: str, display: str) -> str:
    # The converter sets function names tight against their argument: "log p" would read "logp".
    thin = '<mspace width="0.17em"/>'
    return re.sub(
        r"<mi>(?:log|ln|exp|sin|cos|arctan)</mi>", rf"{thin}\g<0>{thin}", to_mathml(latex, display=display)
    )


def _inline(svg: str) -> str:
    return svg[svg.index("<svg") :]


def _number(value: float | None) -> str:
    return "–" if value is None else format(value, ".4g")
