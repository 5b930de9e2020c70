"""The exceptions that carry a message written for the person at the terminal."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable
from typing import Self


class QsaeError(Exception):
    """Bad input or a broken environment: one line of what is wrong, where, and what to do."""

    details: str = ""
    """for whoever looks into it, below that line and only once"""

    def bare(self) -> Self:
        """A copy without traceback and context, whose frames hold the model."""
        copy = type(self)(str(self))
        copy.details = self.details
        return copy


class CannotRun(QsaeError):
    """This machine lacks what a cell needs (GPU, memory, token, package): the cell is skipped."""


class Invalid(QsaeError):
    """What was measured of a cell is no measurement, such as values that are not finite."""


class WorkFailed(Exception):
    """What a library raised while something was timed in a worker: the test that asked for it fails, as it
    would where the exception reached it."""


class OutOfMemory(QsaeError):
    """A cell ran out of memory: says what it needed and had. The other cells go on."""


class Crashed(QsaeError):
    """A cell failed as nobody foresaw: a library's own exception, or its process died. The others go on."""

    @classmethod
    def of(cls, cell_id: str, error: BaseException) -> Self:
        """What a library raised, in one line, and its traceback as text: the frames would hold tensors."""
        first = (str(error).strip() or "no message").splitlines()[0]
        crashed = cls(f"{cell_id}: crashed: {type(error).__name__}: {first}")
        crashed.details = "".join(traceback.format_exception(error)).rstrip()
        return crashed


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for a near miss, else the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""


BREAK = re.compile(r"\s*[^\S ]\s*")
"""white space that is not spaces alone: a newline and what is indented after it, a tab, a no-break space"""


def plain(text: str) -> str:
    """One line that any terminal prints as it reads, whatever a file or an exception had in it.

    A line break with what is around it becomes a space, and so does each character that moves the
    cursor, sets a colour or turns the direction of reading. What is plain stays as it is.
    """
    return "".join(c if c.isprintable() else " " for c in BREAK.sub(" ", text.strip("\n\r\t\v\f")))
