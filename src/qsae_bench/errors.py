"""The two exceptions that carry a message written for the person at the terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QsaeError(Exception):
    """Bad input or a broken environment: one line of what is wrong, where, and what to do."""


class CannotRun(QsaeError):
    """This machine lacks what a cell needs (GPU, memory, token, package): the cell is skipped."""


class OutOfMemory(QsaeError):
    """A cell ran out of memory: says what it needed and had. The other cells go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for a near miss, else the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""
