"""A report as one HTML file: no network, no script needed to read it, whatever a name holds stays text.

Tables and figures stand in the page as they are. The library that makes figures interactive, and what it
draws, lie beside them compressed: a browser that can unpack them puts them in the static figures' place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import plain
from qsae_bench.report.blocks import Figure, Link, Mark, PagePart, Row
from qsae_bench.report.figures import drawing
from qsae_bench.report.figures.style import CONFIG, cleaned

if TYPE_CHECKING:
    import jinja2

LETTERS = {
    "pass": "P",
    "fail": "F",
    "inconclusive": "I",
    "suspicious": "S",
    "invalid": "X",
    "unset": "U",
    "out of memory": "M",
    "skipped": "K",
    "error": "E",
    "crashed": "C",
    "timed only": "T",
    "not run": "N",
}
"""of a cell in the matrix, so that colour is never all there is"""

NUMBER = re.compile(
    r"\(?[+−-]?\d[\d.,]*(e[+-]?\d+)?( ± [\d.,]+\)?(e[+-]\d+)?)?( \([^a-z]*( to [^a-z]*)?\))?\*?|–"
)


def page(parts: Sequence[PagePart], made: str, kept: Path | None = None) -> str:
    """The whole file.

    Args:
        made: when and with what, for its last line.
        kept: folder in which the figures' library is kept between reports.

    Raises:
        QsaeError: a figure can't be drawn.
    """
    figures = list(figures_of(parts))
    drawings = drawing.Drawings(figures)  # they are begun; meanwhile:
    library = drawing.library(kept) if figures else ""
    drawn = drawings.by_name()
    return _environment().get_template("report.html.j2").render(
        parts=parts,
        made=made,
        style=_asset("report.css"),
        script=_asset("report.js"),
        library=library,
        specifications=_specifications(figures),
        pictures={figure.name: _labelled(drawn[figure.name], figure.title) for figure in figures},
        letters={letter: word for word, letter in LETTERS.items()},
    )  # fmt: skip


def figures_of(parts: Sequence[PagePart]) -> Iterator[Figure]:
    for part in parts:
        for blocks in (part.blocks, *(section.blocks for section in part.sections)):
            yield from (block for block in blocks if isinstance(block, Figure))


def _specifications(figures: Sequence[Figure]) -> str:
    content = {"config": CONFIG, "specs": {figure.name: cleaned(figure.spec) for figure in figures}}
    return drawing.pack(json.dumps(content, allow_nan=False, separators=(",", ":")))


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    tests: dict[str, Callable[..., Any]] = {
        "a": lambda block, kind: type(block).__name__ == kind,
        "mark": lambda cell: isinstance(cell, Mark),
        "link": lambda cell: isinstance(cell, Link),
        "numeric": lambda cell: bool(NUMBER.fullmatch(str(cell))),
    }
    made.tests.update(tests)
    made.filters["clean"] = lru_cache(1 << 16)(lambda text: plain(str(text)))  # names recur in every row
    made.filters["letter"] = lambda mark: LETTERS.get(mark.word, "")
    made.filters["kind"] = lambda mark: mark.word.replace(" ", "-") if mark.word in LETTERS else "none"
    made.filters["heads"] = heads
    return made


def heads(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has, in order."""
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row)
    return list(found)


def _labelled(drawn: str, title: str) -> Any:
    """The static figure with its title; what stands in it was escaped when it was drawn."""
    import markupsafe

    label = markupsafe.escape(plain(title))
    return markupsafe.Markup(drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
