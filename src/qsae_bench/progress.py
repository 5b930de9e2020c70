"""How far long work is: a line that rewrites itself on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass


def _nowhere(*lines: str) -> None:
    """Heard by nobody; a function with a name, so that what holds it can be pickled."""


@dataclass(frozen=True)
class ProgressOutput:
    """Where progress goes and how often."""

    write: Callable[[str], None]
    every_seconds: float
    """nothing is said before this much time has passed, so short work stays silent"""
    clear: Callable[[], None] = _nowhere
    """takes away what was written, where that can be taken away: the work is done"""


SILENT = ProgressOutput(_nowhere, math.inf)

_OUTLET: ContextVar[ProgressOutput] = ContextVar("outlet", default=SILENT)
_AT_WORK: list[object] = []
"""what is being waited for, the innermost last: it alone speaks"""


@contextlib.contextmanager
def progress_to(outlet: ProgressOutput) -> Iterator[None]:
    """What is worked on inside tells this outlet."""
    token = _OUTLET.set(outlet)
    try:
        yield
    finally:
        _OUTLET.reset(token)
        outlet.clear()


@contextlib.contextmanager
def progress_of(what: str, seen: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Say now and then how long the body has been at work; ``seen`` adds what there is to see of it."""
    outlet, ended, me = _OUTLET.get(), threading.Event(), object()
    if math.isinf(outlet.every_seconds):
        yield
        return
    started = time.monotonic()

    def tell() -> None:
        while not ended.wait(outlet.every_seconds):
            if _AT_WORK[-1:] == [me]:
                outlet.write(f"{what}: {time.monotonic() - started:,.0f} s{seen()}")

    thread = threading.Thread(target=tell, daemon=True)
    _AT_WORK.append(me)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _AT_WORK.remove(me)
        outlet.clear()


class TokenProgress:
    """Call it with (done, total) sequences; it says tokens done, tokens/s and the time left."""

    def __init__(self, label: str, tokens_per_sequence: int, outlet: ProgressOutput) -> None:
        self._label = label
        self._tokens = tokens_per_sequence
        self._outlet = outlet
        self._started = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total:
            self._outlet.clear()
            return
        if now - self._said < self._outlet.every_seconds:
            return
        self._said = now
        rate = done * self._tokens / (now - self._started)
        left = (total - done) * self._tokens / rate
        self._outlet.write(
            f"{self._label}: {done * self._tokens:,} of {total * self._tokens:,} tokens, "
            f"{rate:,.0f} tokens/s, {left:,.0f} s left"
        )
