"""HTML pages that stand alone: readable offline, on a phone and on paper."""

import importlib.metadata
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from symdyn_core.plots import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_page(
    package: str,
    template: str,
    *,
    title: str,
    advice: Sequence[str],
    filters: dict[str, Callable[..., Any]],
    **values: Any,
) -> str:
    """Return a page; the same values give the same bytes.

    Args:
        package: whose folder ``templates`` holds the template; it extends ``page.html``.
        template: its file name.
        title: what the page is about.
        advice: sentences; what comes before an early colon is set in bold.
        filters: for the template, by name.
        values: for the template, by name; ``kind`` is the word in front of the title in the window's bar.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "templates"), jinja2.PackageLoader("symdyn_core", "templates")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=lambda value, form: "–" if value is None else format(value, form), **filters
    )
    return environment.get_template(template).render(
        title=title,
        advice=[lead(sentence) for sentence in advice],
        version=importlib.metadata.version("symdyn-core"),
        **values,
    )


def lead(sentence: str) -> tuple[str, str]:
    """Split a sentence behind the word that says what it is about, if it has one.

    >>> lead("Copies: 1 of 8 in '0'."), lead("Nothing.")
    (('Copies: ', "1 of 8 in '0'."), ('', 'Nothing.'))
    """
    head, colon, rest = sentence.partition(": ")
    return (head + colon, rest) if colon and len(head) <= 40 else ("", sentence)


def inline(figure: "Figure | None", name: str) -> Markup:
    """Return a figure as SVG for the middle of a page, its ids told apart from those of the other figures."""
    if figure is None:
        return Markup("")
    svg = to_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    return Markup(
        re.sub(r'(<svg [^>]*?)width="[^"]*pt"', r"\1", svg, count=1).replace(' height="', ' data-height="', 1)
    )
