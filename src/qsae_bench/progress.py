"""How far a long pass is: a line that rewrites itself on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlet:
    """Where progress goes and how often."""

    write: Callable[[str], None]
    every_seconds: float
    """nothing is said before this much time has passed, so a short pass stays silent"""


SILENT = Outlet(lambda line: None, float("inf"))


class Progress:
    """Call it with (done, total) sequences; it says tokens done, tokens/s and the time left."""

    def __init__(self, label: str, tokens_per_sequence: int, outlet: Outlet) -> None:
        self._label = label
        self._tokens = tokens_per_sequence
        self._outlet = outlet
        self._started = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said < self._outlet.every_seconds:
            return
        self._said = now
        rate = done * self._tokens / (now - self._started)
        left = (total - done) * self._tokens / rate
        self._outlet.write(
            f"{self._label}: {done * self._tokens:,} of {total * self._tokens:,} tokens, "
            f"{rate:,.0f} tokens/s, {left:,.0f} s left"
        )
