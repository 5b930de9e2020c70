"""A report as markdown and as JSON: the same parts, tables and words as the page's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from qsae_bench.report import markdown
from qsae_bench.report.blocks import (
    Block,
    Code,
    Content,
    Figure,
    Heading,
    Items,
    Link,
    PagePart,
    Paragraph,
    Table,
)
from qsae_bench.report.figures.style import cleaned

SCHEMA = 1


def markdown_lines(parts: Sequence[PagePart], folder: str = "") -> Iterator[str]:
    """``folder``: where the figures' files are, as the page sees it; '' leaves them out."""
    for part in parts:
        yield from markdown.lines(
            [Heading(part.title, 1), Paragraph("", lead=part.banner), *part.blocks], folder
        )
        for section in part.sections:
            yield from markdown.lines([Heading(section.title, 2), *section.blocks], folder)


def json_lines(parts: Sequence[PagePart]) -> list[str]:
    """Strict JSON: ``parts[]`` {name, title, tone, banner, blocks[], sections[] {name, title, blocks[]}}.

    Each block has its ``kind`` (heading, text, items, table, code, figure) and what belongs to it.
    """
    document = {"schema_version": SCHEMA, "parts": [_part(part) for part in parts]}
    return json.dumps(document, indent=1, allow_nan=False).split("\n")


def _part(part: PagePart) -> dict[str, Any]:
    return {
        "name": part.name, "title": part.title, "tone": part.tone, "banner": part.banner,
        "blocks": [_block(block) for block in part.blocks],
        "sections": [
            {"name": one.name, "title": one.title, "blocks": [_block(block) for block in one.blocks]}
            for one in part.sections
        ],
    }  # fmt: skip


def _block(block: Block) -> dict[str, Any]:
    match block:
        case Heading(text, level):
            return {"kind": "heading", "text": text, "level": level}
        case Paragraph(text, lead):
            return {"kind": "text", "text": text, "lead": lead}
        case Items(lines):
            return {"kind": "items", "lines": list(lines)}
        case Table(rows, caption):
            found = [{head: _content(cell) for head, cell in row.items()} for row in rows]
            return {"kind": "table", "caption": caption, "rows": found}
        case Code(lines):
            return {"kind": "code", "lines": list(lines)}
        case Figure(name, title, spec, caption):
            about = {"name": name, "title": title, "caption": caption}
            return {"kind": "figure", **about, "vega_lite": cleaned(spec)}


def _content(cell: Content) -> str | dict[str, str]:
    return {"text": cell.text, "url": cell.url} if isinstance(cell, Link) else str(cell)
