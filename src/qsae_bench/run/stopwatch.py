"""Attribute a process's time to what it was spent on. Pure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from qsae_bench.registry.specs import Cell


@dataclass(frozen=True)
class TimeSpent:
    """Hold the seconds that processes spent on a cell."""

    busy_seconds: float = 0.0
    setup_seconds: float = 0.0
    """part of ``busy_seconds``: for the model's tokens and SAEs, shared by its cells"""

    def plus(self, other: TimeSpent) -> TimeSpent:
        """Return the sum of both."""
        return TimeSpent(self.busy_seconds + other.busy_seconds, self.setup_seconds + other.setup_seconds)


NO_TIME = TimeSpent()


class Stopwatch:
    """Count each second for the innermost key only: what one cell does for another is the other's."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open: list[Hashable] = []
        self._since = 0.0
        self.seconds: dict[Hashable, float] = {}

    @contextlib.contextmanager
    def at(self, key: Hashable) -> Iterator[None]:
        """Count the time of the body for ``key``."""
        self._count()
        self._open.append(key)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = self._clock()
        if self._open:
            key = self._open[-1]
            self.seconds[key] = self.seconds.get(key, 0.0) + now - self._since
        self._since = now

    def own(self, cell: Cell) -> contextlib.AbstractContextManager[None]:
        """Count the time of the body for the cell itself."""
        return self.at((cell, "own"))

    def setup(self, cell: Cell) -> contextlib.AbstractContextManager[None]:
        """Count the time of the body as setup, which is shared by a model's cells."""
        return self.at((cell, "setup"))

    def spent(self, cell: Cell) -> TimeSpent:
        """Return the time counted for the cell so far."""
        own, setup = (self.seconds.get((cell, kind), 0.0) for kind in ("own", "setup"))
        return TimeSpent(own + setup, setup)

    def forget(self, cell: Cell) -> None:
        """Start the cell's count anew."""
        for kind in ("own", "setup"):
            self.seconds.pop((cell, kind), None)
