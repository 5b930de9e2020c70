"""Write blocks as GitHub's markdown, in which whatever a name or a reason holds stays text.

A registry, a thresholds file and an exception can hold anything; none of it may end a table's cell, start
markup, load an image, or mention a user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from qsae_bench.errors import plain
from qsae_bench.report import blocks
from qsae_bench.report.blocks import Content, Link, PagePart, Row

ACTIVE = "\\|*`[]~$"
"""start or end something wherever they stand"""

EDGE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""an underscore inside a word is one; at its edge it starts emphasis"""


LINKED = re.compile(r"@|#(?=\d)|\b[gG][hH]-(?=\d)|://|\b[wW]{3}(?=\.)")
"""what GitHub links, even escaped, unless cut by a comment: users, whom it would tell, issues, addresses"""

COMMIT = re.compile(r"(?<![^\W_])(?=[0-9]*[a-f])[0-9a-f]{7,40}(?![^\W_])")
"""it links these too, where a commit begins so; six digits are too few for one, and numbers are numbers"""

COMMENT = "<!-- -->"


def escaped(text: str) -> str:
    """Escape a text so that it reads as it is, on one line, and does nothing else."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;")
    for char in ACTIVE:
        text = text.replace(char, f"\\{char}")
    text = EDGE.sub(r"\\_", text)
    text = COMMIT.sub(lambda found: COMMENT.join(re.findall(".{1,6}", found[0])), text)
    return LINKED.sub(rf"\g<0>{COMMENT}", text)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table with pipes, headed by the first row's keys, and an empty line."""
    heads = list(rows[0])
    yield f"| {' | '.join(map(escaped, heads))} |"
    yield f"| {' | '.join(['---'] * len(heads))} |"
    for row in rows:
        yield f"| {' | '.join(content(row.get(head, '')) for head in heads)} |"
    yield ""


def fenced(lines: Sequence[str]) -> Iterator[str]:
    """Yield lines as code, in a fence longer than any that they hold."""
    found = [plain(line) for line in lines]
    longest = max((len(run) for line in found for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence, *found, fence, "")


def lines(found: Iterable[blocks.Block], folder: str = "") -> Iterator[str]:
    """Yield blocks as markdown.

    Args:
        folder: where the figures' files are, as the page sees it; '' leaves only what they say.
    """
    for block in found:
        match block:
            case blocks.Heading(text, level):
                yield from (f"{'#' * level} {escaped(text)}", "")
            case blocks.Paragraph(text, lead):
                yield from ((f"**{escaped(lead)}** " if lead else "") + escaped(text), "")
            case blocks.Items(items):
                yield from (*(f"- {escaped(item)}" for item in items), "")
            case blocks.Table(rows, caption):
                if caption:
                    yield from (escaped(caption), "")
                yield from table(rows)
            case blocks.Code(text):
                yield from fenced(text)
            case blocks.Figure(name, title, _, caption):
                if folder:
                    target = quote(f"{folder}/{name}.svg")
                    yield from (f"![{escaped(title)}]({target})", "")
                yield from (f"*{escaped(title)}.* {escaped(caption)}".rstrip(), "")


def report_lines(parts: Iterable[PagePart], folder: str = "") -> Iterator[str]:
    """Yield a whole report; ``folder`` as for :func:`lines`."""
    for part in parts:
        head = (blocks.Heading(part.title, 1), blocks.Paragraph("", lead=part.banner))
        yield from lines([*head, *part.blocks], folder)
        for section in part.sections:
            yield from lines([blocks.Heading(section.title, 2), *section.blocks], folder)


def content(cell: Content) -> str:
    """Write the content of a table's cell."""
    if isinstance(cell, Link):
        return f"[{escaped(cell.text)}]({quote(cell.url, safe=':/?=&%')})"
    return escaped(str(cell))
