"""Describe a report, before it is HTML, markdown or lines on a terminal, and write it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsae_bench.report.figures.style import cleaned

SCHEMA = 1


@dataclass(frozen=True)
class Mark:
    """Show a verdict, or what became of a cell: with a colour and a letter where there are colours."""

    word: str
    """``fail``, ``out of memory``; '' where there is nothing to say"""
    href: str = ""
    """the anchor of what says more"""

    @property
    def bare(self) -> str:
        """Return the word without what it is about: ``pass`` of ``pass (fvu_drift only)``."""
        return self.word.partition(" (")[0]

    def __str__(self) -> str:
        return self.word


@dataclass(frozen=True)
class Link:
    """Link a text to an address."""

    text: str
    url: str

    def __str__(self) -> str:
        return self.text


Content = str | Mark | Link
"""of a table's cell"""

Row = Mapping[str, Content]


@dataclass(frozen=True)
class Heading:
    """Begin a section, or a part of it, with its heading."""

    text: str
    level: int = 3


@dataclass(frozen=True)
class Paragraph:
    """Hold a paragraph."""

    text: str
    lead: str = ""
    """bold, before it"""


@dataclass(frozen=True)
class Items:
    """Hold a list with bullets."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Hold a table whose headings are its rows' keys."""

    rows: Sequence[Row]
    caption: str = ""
    folded: bool = False
    """long: shown on request where that is possible"""


@dataclass(frozen=True)
class Code:
    """Hold lines that are shown as they are."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """Hold a drawing as a Vega-Lite specification, and what it shows in words."""

    name: str
    """of its file: letters, digits and hyphens"""
    title: str
    spec: Mapping[str, Any] = field(repr=False)
    """without configuration: that is one for all figures"""
    caption: str = ""
    """how to read it"""


Block = Heading | Paragraph | Items | Table | Code | Figure


@dataclass(frozen=True)
class Section:
    """Hold a part of a page that has an anchor."""

    name: str
    """its anchor"""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class PagePart:
    """Hold what a report says about a run, or a comparison."""

    name: str
    title: str
    tone: str
    """``pass``, ``fail``, or '' where nothing was judged"""
    banner: str
    """what came of it, in a line"""
    blocks: Sequence[Block]
    """what broke: before anything else"""
    sections: Sequence[Section]
    """why"""


KINDS = {Heading: "heading", Paragraph: "text", Items: "items", Code: "code"}
"""name in JSON of the blocks that show all their fields there"""


def json_lines(parts: Sequence[PagePart]) -> list[str]:
    """Write a report as strict JSON: ``parts[]`` {name, title, tone, banner, blocks[], sections[]}.

    Sections have name, title and blocks[]. Each block has its ``kind`` (heading, text, items, table, code,
    figure) and what belongs to it.
    """
    document = {"schema_version": SCHEMA, "parts": parts}
    return json.dumps(document, indent=1, allow_nan=False, default=_fields).split("\n")


def _fields(one: Any) -> Any:
    """Return what JSON shows of a block, a cell's content, a section or a part."""
    match one:
        case Mark():
            return one.word
        case Table():
            return {"kind": "table", "caption": one.caption, "rows": one.rows}
        case Figure():
            about = {"name": one.name, "title": one.title, "caption": one.caption}
            return {"kind": "figure", **about, "vega_lite": cleaned(one.spec)}
        case Link() | Section() | PagePart():
            return vars(one)
    return {"kind": KINDS[type(one)], **vars(one)}
