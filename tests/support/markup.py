"""A text that would be markup in many places, and markdown as GitHub renders it."""

from __future__ import annotations

from markdown_it import MarkdownIt

HOSTILE = "a|b `c` ``` **d** _e_ <script>alert(1)</script> [f](http://g) ![h](i)\n# j\r\u202ek\u200f @team ~~l~~ $m$ \\ &amp;"


def rendered(markdown: str) -> str:
    """Render CommonMark with tables, strikethrough and raw HTML."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)
