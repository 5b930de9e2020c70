"""Report how far long work is: a line that rewrites itself on a terminal, occasional plain lines in a
log."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass


def _discard(*lines: str) -> None:
    """Discard what is written; a named function, so that objects that hold it can be pickled."""


@dataclass(frozen=True)
class ProgressOutput:
    """Describe where progress is written, and how often."""

    write: Callable[[str], None]
    every_seconds: float
    """time between lines; nothing is written before it has passed once, so short work stays silent"""
    clear: Callable[[], None] = _discard
    """removes the last line at the end of the work, where the output is able to"""


SILENT = ProgressOutput(_discard, math.inf)

_OUTPUT: ContextVar[ProgressOutput] = ContextVar("output", default=SILENT)
_RUNNING: list[object] = []
"""work in progress, the innermost last; only that one writes"""


@contextlib.contextmanager
def progress_to(output: ProgressOutput) -> Iterator[None]:
    """Write the progress of all work in the body to ``output``."""
    token = _OUTPUT.set(output)
    try:
        yield
    finally:
        _OUTPUT.reset(token)
        output.clear()


@contextlib.contextmanager
def progress_of(what: str, details: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Write from time to time how long the body has been running.

    A line begins with ``what`` and ends with what ``details()`` returns.
    """
    output, ended, work = _OUTPUT.get(), threading.Event(), object()
    if math.isinf(output.every_seconds):
        yield
        return
    started = time.monotonic()

    def report() -> None:
        while not ended.wait(output.every_seconds):
            if _RUNNING[-1:] == [work]:
                output.write(f"{what}: {time.monotonic() - started:,.0f} s{details()}")

    thread = threading.Thread(target=report, daemon=True)
    _RUNNING.append(work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _RUNNING.remove(work)
        output.clear()


class TokenProgress:
    """Write tokens done, tokens/s and the time left, whenever called with (done, total) sequences."""

    def __init__(self, label: str, tokens_per_sequence: int, output: ProgressOutput) -> None:
        self._label = label
        self._tokens = tokens_per_sequence
        self._output = output
        self._started = self._last_written = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total:
            self._output.clear()
            return
        if now - self._last_written < self._output.every_seconds:
            return
        self._last_written = now
        rate = done * self._tokens / (now - self._started)
        left = (total - done) * self._tokens / rate
        self._output.write(
            f"{self._label}: {done * self._tokens:,} of {total * self._tokens:,} tokens, "
            f"{rate:,.0f} tokens/s, {left:,.0f} s left"
        )
