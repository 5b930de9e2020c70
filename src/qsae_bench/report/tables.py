"""Lay out tables and sentences for a terminal: within 100 columns, and without anything that it acts on.

A table that is too wide first loses the room beside its headings; then its widest texts are wrapped, names
in them shortened in the middle; then it is split, its first columns repeated. Numbers and metrics' names
stay whole.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self, TextIO

from tabulate import MIN_PADDING, tabulate

from qsae_bench.errors import plain
from qsae_bench.metrics import METRICS

WIDTH = 100

STATUS_COLOURS = {
    "pass": "green", "fail": "red", "invalid": "red", "unset": "red", "inconclusive": "yellow",
    "worse than accepted": "yellow", "suspicious": "yellow",
}  # fmt: skip
"""verdict -> colour; the word stands there too"""

CODES = {"red": 31, "green": 32, "yellow": 33}

JUDGED = ("verdict", "now")
"""headings of the columns that hold a verdict"""

GAP = 2
FIRST, OTHER = 16, 32
"""least width of a long word in a table's first columns, and in the others: a table is rather split"""
ROOMY = 40
"""widest column of a table that is split; a first column has half of it"""

NUMERIC_CELL = re.compile(r"[-+–±≤≥()%.,:/*!\d\se]{1,40}")
"""matches a cell that is a number with its interval"""

FILLER = "\ue000"
"""stands behind a character that is two columns wide while widths are counted; no cleaned text has it"""

ELLIPSIS, INDENT = "…", "  "


class Line(str):
    """Hold a line of a table, and the colour of its pieces."""

    pieces: tuple[tuple[str, str], ...]
    """each piece with its colour, '' for none"""

    def __new__(cls, *pieces: tuple[str, str]) -> Self:
        """Join the pieces."""
        line = super().__new__(cls, "".join(text for text, _ in pieces))
        line.pieces = pieces
        return line


def pieces(line: str) -> Iterator[tuple[str, str]]:
    """Yield what a line consists of, cleaned, each piece with its colour, '' for none."""
    found = line.pieces if isinstance(line, Line) else ((line, ""),)
    return ((plain(text), colour) for text, colour in found)


def painted(lines: Iterable[str], stream: TextIO, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines as the stream takes them: in colour only where pytest would colour them."""
    colours = _in_colour(stream, environment)
    for line in lines:
        yield "".join(
            f"\x1b[{CODES[colour]}m{text}\x1b[0m" if colour and colours else text
            for text, colour in pieces(line)
        )


def _in_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    asked = environment.get("PY_COLORS", "")
    if asked in ("0", "1"):
        return asked == "1"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environment.get("TERM") != "dumb"


def wrapped(text: str) -> list[str]:
    """Break a sentence into lines."""
    return [line.replace(FILLER, "") for line in _lines(_filled(text), WIDTH, INDENT)]


def _lines(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap a text at spaces, and in a word only where it takes more than a line."""
    most = max(width - len(indent), 2)
    text = re.sub(r"\S+", lambda word: " ".join(_parted(word[0], most)), text)
    return textwrap.wrap(text, max(width, 1), subsequent_indent=indent, break_on_hyphens=False)


def _parted(word: str, width: int) -> Iterator[str]:
    while len(word) > width:
        cut = width - (word[width] == FILLER)
        yield word[:cut]
        word = word[cut:]
    yield word


def table(rows: Iterable[Mapping[str, object]]) -> list[Line]:
    """Return the rows under their keys; nothing where there is no row."""
    found = list(rows)
    heads = list(dict.fromkeys(key for row in found for key in row))
    columns = [
        [_filled(head), *(_filled("" if (c := row.get(head)) is None else str(c)) for row in found)]
        for head in heads
    ]
    lines: list[Line] = []
    for part in _parts(columns) if columns else ():
        lines += [Line()] if lines else []
        lines += _drawn([columns[index] for index in part], _keys(columns))
    return lines


def _keys(columns: Sequence[Sequence[str]]) -> int:
    """Count the columns that say what a row is about: the first, and a layer's."""
    heads = [column[0] for column in columns]
    return heads.index("layer") + 1 if "layer" in heads[1:3] else 1


def _filled(text: str) -> str:
    """Clean a text and make it as long as it is wide."""
    return "".join(
        c + FILLER if unicodedata.east_asian_width(c) in "WF" else c for c in plain(text)
    ).strip()


def _parts(columns: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """Yield the columns that go into each table; the first ones, up to a layer, go into all."""
    keys = _keys(columns)
    least = _leasts(columns, keys)
    if _total(least) <= WIDTH:
        yield list(range(len(columns)))
        return
    room = [
        max(fewest, min(_natural(column), ROOMY // 2 if index < keys else ROOMY))
        for index, (fewest, column) in enumerate(zip(least, columns, strict=True))
    ]
    part = names = list(range(keys))
    for index in range(keys, len(columns)):
        if part != names and _total(room[i] for i in (*part, index)) > WIDTH:
            yield part
            part = names
        part = [*part, index]
    yield part


def _drawn(columns: Sequence[Sequence[str]], keys: int) -> Iterator[Line]:
    """Yield one table, whose first ``keys`` columns are names."""
    roomy = [max(_natural(column), len(column[0]) + MIN_PADDING) for column in columns]
    if _total(roomy) <= WIDTH:
        heads = [column[0] for column in columns]
        text = tabulate(list(zip(*(c[1:] for c in columns), strict=True)), heads, disable_numparse=True)
        yield from _coloured(text.splitlines(), heads, roomy)
        return
    widths = _fitting(columns, keys)
    fitted = [list(_fitted(column, width)) for column, width in zip(columns, widths, strict=True)]
    widths = [max(_natural(cell.split("\n")) for cell in column) for column in fitted]
    tall = max(column[0].count("\n") + 1 for column in fitted)
    text = tabulate(list(zip(*fitted, strict=True)), tablefmt="plain", disable_numparse=True)
    lines = text.splitlines()
    lines.insert(tall, (" " * GAP).join("-" * width for width in widths))
    yield from _coloured(lines, [column[0] for column in fitted], widths)


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * (len(found) - 1)


def _natural(column: Iterable[str]) -> int:
    return max(map(len, column), default=0)


def _leasts(columns: Sequence[Sequence[str]], keys: int) -> list[int]:
    """Return how narrow each column may become."""
    return [_least(column, FIRST if index < keys else OTHER) for index, column in enumerate(columns)]


def _least(column: Iterable[str], most: int) -> int:
    words = [word for cell in column for word in _words(cell)]
    return max((len(word) if _whole(word) else min(len(word), most) for word in words), default=0)


def _words(cell: str) -> list[str]:
    """Return what is not parted: a number stays with its interval."""
    return [cell] if NUMERIC_CELL.fullmatch(cell) else cell.split()


def _whole(word: str) -> bool:
    return word in METRICS or NUMERIC_CELL.fullmatch(word) is not None


def _fitting(columns: Sequence[Sequence[str]], keys: int) -> list[int]:
    """Return widths that fit: the widest column gives first."""
    widths = [min(_natural(column), WIDTH) for column in columns]
    least = _leasts(columns, keys)
    while _total(widths) > WIDTH:
        spare = [index for index in range(len(widths)) if widths[index] > least[index]]
        if not spare:
            break
        widths[max(spare, key=widths.__getitem__)] -= 1
    return widths


def _fitted(column: Sequence[str], width: int) -> Iterator[str]:
    """Yield each cell in lines of that width; names are shortened if that leaves them different."""
    names = {word for cell in column for word in _words(cell) if len(word) > width and not _whole(word)}
    short = {name: _shortened(name, width) for name in names}
    different = len(set(short.values())) == len(short)
    for cell in column:
        if NUMERIC_CELL.fullmatch(cell):
            yield cell
            continue
        words = (short.get(word, word) if different else word for word in cell.split())
        yield "\n".join(_lines(" ".join(words), width))


def _shortened(word: str, width: int) -> str:
    head, tail = width // 2, len(word) - (width - 1) // 2
    head -= word[head] == FILLER
    return f"{word[:head]}{ELLIPSIS}{word[tail + (word[tail] == FILLER) :]}"


def _coloured(lines: Iterable[str], heads: Sequence[str], widths: Sequence[int]) -> Iterator[Line]:
    """Yield lines whose verdicts know their colour."""
    starts = [sum(widths[:i]) + GAP * i for i, head in enumerate(heads) if head in JUDGED]
    for text in lines:
        parts, done = [], 0
        for start in starts:
            word = text[start:].partition(" ")[0]
            if word in STATUS_COLOURS:
                parts += [(text[done:start], ""), (word, STATUS_COLOURS[word])]
                done = start + len(word)
        parts.append((text[done:], ""))
        yield Line(*((part.replace(FILLER, ""), colour) for part, colour in parts if part))
