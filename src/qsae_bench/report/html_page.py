"""Render a report as one HTML file that needs no network and no script, and in which names stay text.

Tables and figures stand in the page as they are. The library that makes the figures interactive and their
specifications lie beside them, compressed: a browser that can unpack them replaces the static figures.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, plain
from qsae_bench.report.blocks import Figure, PagePart
from qsae_bench.report.figures import drawing
from qsae_bench.report.figures.style import CONFIG, cleaned

if TYPE_CHECKING:
    import jinja2

LETTERS = {
    "pass": "P", "fail": "F", "inconclusive": "I", "worse than accepted": "W", "suspicious": "S",
    "invalid": "X", "unset": "U",
    "out of memory": "M", "skipped": "K", "error": "E", "crashed": "C", "timed only": "T", "not run": "N",
}  # fmt: skip
"""letter of each word in the matrix, so that colour is never the only difference"""

NUMBER = re.compile(
    r"\(?[+−-]?\d[\d.,]*(e[+-]?\d+)?( ± [\d.,]+\)?(e[+-]\d+)?)?( \([^a-z]*( to [^a-z]*)?\))?\*?|–"
)
"""text of a table cell that is right-aligned"""


def html_page(parts: Sequence[PagePart], origin: str, cache_folder: Path | None = None) -> str:
    """Render the whole file. A figure that can't be drawn is replaced by the reason.

    Args:
        origin: what made the page and when, for its last line.
        cache_folder: where the figures' library is stored between reports; None stores it nowhere.
    """
    pictures: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for figure in figures_of(parts):
        try:
            pictures[figure.name] = _labelled(drawing.svg(figure), figure.title)
        except QsaeError as error:
            problems[figure.name] = str(error)
    library = ""
    if pictures:
        with contextlib.suppress(ValueError):  # without it, figures are static
            library = drawing.library(cache_folder)
    specs = {f.name: cleaned(f.spec) for f in figures_of(parts) if f.name in pictures}
    content = {"config": CONFIG, "specs": specs}
    return _environment().get_template("report.html.j2").render(
        parts=parts, origin=origin, style=_asset("report.css"), script=_asset("report.js"), library=library,
        specifications=drawing.pack(json.dumps(content, allow_nan=False, separators=(",", ":"))),
        pictures=pictures, problems=problems,
        letters={letter: word for word, letter in LETTERS.items()},
    )  # fmt: skip


def figures_of(parts: Sequence[PagePart]) -> Iterator[Figure]:
    """Yield every figure of a report, in order."""
    for part in parts:
        for blocks in (part.blocks, *(section.blocks for section in part.sections)):
            yield from (block for block in blocks if isinstance(block, Figure))


@cache
def _asset(name: str) -> str:
    return resources.files("qsae_bench.report").joinpath("html", name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.tests["a"] = lambda one, kind: type(one).__name__ == kind
    environment.tests["numeric"] = lambda cell: bool(NUMBER.fullmatch(str(cell)))
    # cached, because names recur in every row
    environment.filters["clean"] = lru_cache(1 << 16)(lambda text: plain(str(text)))
    environment.filters["letter"] = lambda mark: LETTERS.get(mark.bare, "")
    kinds = {word: word.replace(" ", "-") for word in LETTERS}
    environment.filters["kind"] = lambda mark: kinds.get(mark.bare, "none")
    environment.filters["columns"] = lambda rows: dict.fromkeys(head for row in rows for head in row)
    return environment


def _labelled(svg: str, title: str) -> Any:
    """Give a drawing its title for screen readers; vl-convert has escaped what stands inside it."""
    import markupsafe

    label = markupsafe.escape(plain(title))
    return markupsafe.Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
