"""Define the exceptions whose messages are written for the person at the terminal, and helpers for
messages."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable
from typing import Self


class QsaeError(Exception):
    """Report bad input or a broken environment in one line: what is wrong, where, and what to do."""

    details: str = ""
    """more lines for whoever investigates, printed below the message, once"""

    def without_traceback(self) -> Self:
        """Return a copy without traceback and context, whose frames would keep the model in memory."""
        copy = type(self)(str(self))
        copy.details = self.details
        return copy


class CannotRun(QsaeError):
    """Report that this machine lacks what a cell needs (GPU, memory, token, package): it is skipped."""


class Invalid(QsaeError):
    """Report that a cell's results are not usable, for example because values are not finite."""


class TimedWorkFailed(Exception):
    """Report that a library raised an exception while a worker timed something.

    Only the test that asked for it fails.
    """


class OutOfMemory(QsaeError):
    """Report that a cell ran out of memory, and how much it needed and had.

    Other cells are still measured.
    """


class Crashed(QsaeError):
    """Report that a cell failed unexpectedly: a library raised, or its process died.

    Other cells are still measured.
    """

    @classmethod
    def from_exception(cls, cell_id: str, error: BaseException) -> Self:
        """Return the exception as one line, with the traceback as text, because its frames would hold
        tensors."""
        crashed = cls(f"{cell_id}: crashed: {type(error).__name__}: {first_line(error, 'no message')}")
        crashed.details = "".join(traceback.format_exception(error)).rstrip()
        return crashed


def first_line(error: BaseException, if_empty: str = "") -> str:
    """Return the first line of an exception's message; for an empty one ``if_empty`` or its class."""
    return (str(error).strip() or if_empty or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for a near miss, else the list of known names, else ''."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""


BREAK = re.compile(r"\s*[^\S ]\s*")
"""white space other than plain spaces: a line break with the indentation after it, a tab, a no-break
space"""


def plain(text: str) -> str:
    """Return the text as one line that is safe to print on any terminal.

    A line break with the white space around it becomes a space, and so does each character that moves the
    cursor, sets a colour or changes the reading direction. Everything else is unchanged.
    """
    return "".join(c if c.isprintable() else " " for c in BREAK.sub(" ", text.strip("\n\r\t\v\f")))
