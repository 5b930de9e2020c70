"""Where a process's time goes, by whatever it is spent on. Pure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Spent:
    """Seconds that processes were at a cell."""

    busy: float = 0.0
    setup: float = 0.0
    """of those, for what its process shares between the model's cells: tokens and SAEs"""

    def plus(self, later: Spent) -> Spent:
        return Spent(self.busy + later.busy, self.setup + later.setup)


NOTHING = Spent()


class Stopwatch(Generic[K]):
    """Each second is the innermost key's alone: what is done for one cell in another's turn is its own."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open: list[K] = []
        self._since = 0.0
        self.seconds: dict[K, float] = {}

    @contextlib.contextmanager
    def at(self, key: K) -> Iterator[None]:
        """Spend the body's time on ``key``."""
        self._turn()
        self._open.append(key)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = self._clock()
        if self._open:
            key = self._open[-1]
            self.seconds[key] = self.seconds.get(key, 0.0) + now - self._since
        self._since = now


class CellWatch(Stopwatch[tuple[Hashable, str]]):
    """Of a session: each cell's own time, and that for what its process shares between a model's cells."""

    def own(self, cell: Hashable) -> contextlib.AbstractContextManager[None]:
        return self.at((cell, "own"))

    def setup(self, cell: Hashable) -> contextlib.AbstractContextManager[None]:
        return self.at((cell, "setup"))

    def spent(self, cell: Hashable) -> Spent:
        own, setup = (self.seconds.get((cell, kind), 0.0) for kind in ("own", "setup"))
        return Spent(own + setup, setup)

    def forget(self, cell: Hashable) -> None:
        for kind in ("own", "setup"):
            self.seconds.pop((cell, kind), None)
