"""What a report says, before it is HTML, markdown, JSON, or lines on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mark:
    """A verdict, or what became of a cell: where there are colours it has one, and a letter."""

    word: str
    """``fail``, ``out of memory``; '' where there is nothing to say"""
    href: str = ""
    """the anchor of what says more"""

    def __str__(self) -> str:
        return self.word


@dataclass(frozen=True)
class Link:
    text: str
    url: str

    def __str__(self) -> str:
        return self.text


Content = str | Mark | Link
"""of a table's cell"""

Row = Mapping[str, Content]


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 3


@dataclass(frozen=True)
class Paragraph:
    text: str
    lead: str = ""
    """bold, before it"""


@dataclass(frozen=True)
class Items:
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    rows: Sequence[Row]
    caption: str = ""
    folded: bool = False
    """long: shown on request where that is possible"""


@dataclass(frozen=True)
class Code:
    lines: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A drawing, as Vega-Lite has it, and what it shows in words."""

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
    name: str
    """its anchor"""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class PagePart:
    """A run, or a comparison."""

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
