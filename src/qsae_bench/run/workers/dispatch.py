"""Tasks on an engine: each is handed out when it is ready, and again when its worker is lost.

A worker for which nothing is ready yet prepares for what is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.run.workers.engine import Engine, Lost, Overdue
from qsae_bench.run.workers.tasks import Task, TaskResult

T = TypeVar("T")


class Named(Protocol):
    """A cell, as far as its turn depends on it."""

    @property
    def is_reference(self) -> bool: ...
    @property
    def model(self) -> object: ...


class Queued(Protocol):
    """A task, as far as its turn depends on it."""

    @property
    def cell(self) -> Named: ...
    @property
    def measures(self) -> bool: ...


Q = TypeVar("Q", bound=Queued)

ATTEMPTS = 3
"""workers that one task may kill before that is its cell's failure"""
CLOSE_SECONDS = 5.0
"""for all places together to notice the end"""
POLL_SECONDS = 0.5
"""how often one who waits looks up, to hear Ctrl-C and to tell how far the run is"""


class Dispatcher:
    """One thread a place of the engine; whoever waits for an outcome does so in :meth:`until`."""

    def __init__(
        self,
        engine: Engine,
        ready: Callable[[Task], bool],
        reference: Callable[[Task], CellResult | QsaeError | None],
        finished: Callable[[Task, TaskResult], Iterable[Task]],
    ) -> None:
        """
        Args:
            ready: whether a task's reference is there.
            reference: what a worker is given of it.
            finished: hears of each task once, one at a time, and may have more to do.
        """
        self._engine, self._ready, self._reference, self._finished = engine, ready, reference, finished
        self._waiting: list[Task] = []
        self._running: dict[int, Task] = {}
        self._last: dict[int, Task] = {}
        self._lost: dict[Task, list[str]] = {}
        self._changed, self._finishing = threading.Condition(), threading.Lock()
        self._closed = False
        self._fault: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def add(self, tasks: Iterable[Task]) -> None:
        """Queue tasks, in this order among those that are ready."""
        with self._changed:
            self._waiting += tasks
            self._changed.notify_all()
        # not more of them than there is to do: a cluster has room for many
        while len(self._threads) < min(self._engine.places, len(self._waiting) + len(self._running)):
            place = len(self._threads)
            self._threads.append(threading.Thread(target=self._serve, args=(place,), daemon=True))
            self._threads[-1].start()

    def until(self, found: Callable[[], T | None], tell: Callable[[int, int], None]) -> T:
        """Wait for ``found()`` to be something; ``tell`` hears how many tasks run and wait meanwhile."""
        while True:
            with self._changed:
                if (it := found()) is not None:
                    return it
                if self._fault is not None:
                    raise self._fault
                self._changed.wait(POLL_SECONDS)
                running, waiting = len(self._running), len(self._waiting)
            tell(running, waiting)  # a terminal may be slow: nobody waits for it

    def close(self) -> None:
        """Hand out nothing more, and end the workers."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._engine.close()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # -- a place

    def _serve(self, place: int) -> None:
        try:
            while (task := self._next(place)) is not None:
                outcome, more = self._attempt(place, task), []
                if outcome is not None and not self._closed:
                    with self._finishing:
                        more = list(self._finished(task, outcome))
                with self._changed:
                    del self._running[place]
                    self._waiting[:0] = more
                    self._changed.notify_all()
        except BaseException as error:  # a fault of ours: whoever waits would wait for ever
            with self._changed:
                self._fault = error
                self._changed.notify_all()

    def _next(self, place: int) -> Task | None:
        with self._changed:
            while not self._closed:
                ready = [task for task in self._waiting if self._ready(task)]
                if ready:
                    task = chosen(ready, self._last.get(place))
                    self._waiting.remove(task)
                elif (first := self._to_prepare(place)) is not None:
                    task = Task(first.cell, measures=False, prepares=True)
                else:
                    self._changed.wait()
                    continue
                self._running[place] = self._last[place] = task
                return task
            return None

    def _to_prepare(self, place: int) -> Task | None:
        if not self._engine.keeps:
            return None
        return to_prepare(self._waiting, self._last.get(place), list(self._last.values()))

    def _attempt(self, place: int, task: Task) -> TaskResult | None:
        """The task's outcome, or None where it is to be tried again."""
        lost = self._lost.setdefault(task, [])
        try:
            outcome = self._engine.run(place, task, self._reference(task) if task.waits else None)
        except Lost as error:
            if task.prepares:
                return None  # its next task finds the worker anew
            if isinstance(error, Overdue):
                return TaskResult(refused=Crashed(f"{task.cell.id}: crashed: {error}"))
            lost.append(str(error))
            if len(lost) < ATTEMPTS:
                with self._changed:
                    self._waiting.insert(0, task)
                return None
            why = f"its worker died {ATTEMPTS} times: {lost[-1]}"
            return TaskResult(refused=Crashed(f"{task.cell.id}: crashed: {why}"))
        except QsaeError as error:  # the cluster can't do it any more
            return TaskResult(refused=error.without_traceback())
        except Exception as error:  # what can't be sent, for example: that cell's alone
            return TaskResult(refused=Crashed.from_exception(task.cell.id, error))
        return outcome.warned([f"{task.name}: ran again: its worker was lost: {why}" for why in lost])


def to_prepare(waiting: Sequence[Q], last: Q | None, lasts: Sequence[Q]) -> Q | None:
    """What a place prepares for while nothing is ready: the model that the fewest places have had last.

    Nothing where the place has had one of the waiting models itself. ``lasts``: of all places.
    """
    first: list[Q] = []
    for task in waiting:
        if all(task.cell.model != other.cell.model for other in first):
            first.append(task)
    if last is not None and any(task.cell.model == last.cell.model for task in first):
        return None
    return min(
        first, key=lambda task: sum(one.cell.model == task.cell.model for one in lasts), default=None
    )


def chosen(ready: Sequence[Q], last: Q | None) -> Q:
    """The nearest to what the place had last: cell, model, a reference, any; the first of those.

    A place keeps to a model whose tokens and SAEs it has; one that leaves its model, or has had none, takes
    a reference if one is left, since others wait for it.
    """

    def far(task: Q) -> int:
        if last is not None and task.cell == last.cell:
            return 0
        if last is not None and task.cell.model == last.cell.model:
            return 1
        return 2 if task.cell.is_reference and task.measures else 3

    return min(ready, key=far)
