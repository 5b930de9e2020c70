"""Hand tasks to an engine: each when its reference is there, and again when its worker was lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.run.workers.tasks import Task, TaskResult

T = TypeVar("T")

ATTEMPTS = 3
"""workers that one task may lose before its cell counts as crashed"""
JOIN_SECONDS = 5.0
"""for the threads of all places together to end"""
WAIT_SECONDS = 0.5
"""interval at which a wait is interrupted, so that Ctrl-C and progress are handled"""


class WorkerLost(Exception):
    """Report that the worker or its node died, and how. Another worker may try the task."""


class TaskTimedOut(WorkerLost):
    """Report that the worker was killed because its task took too long: it would elsewhere, too."""


class Engine(Protocol):
    """Run tasks, several at a time."""

    places: int
    """how many tasks it can be given at once; a thread of the dispatcher waits for each"""
    about: str
    """for the run document, such as ``local, 2 workers, threads each: 1``"""

    @property
    def start_seconds(self) -> float:
        """Longest time until a new worker could take its first task, so far; 0 where it is not known."""

    def run(self, place: int, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        """Run a task at one of the places, and wait for its result.

        Raises:
            WorkerLost: its worker died.
        """

    def close(self) -> None:
        """Kill every worker, whatever it is doing. Tasks that run end with :class:`WorkerLost`."""


class Dispatcher:
    """Run one thread per place of the engine; :meth:`wait_for` waits for results."""

    def __init__(
        self,
        engine: Engine,
        is_ready: Callable[[Task], bool],
        reference: Callable[[Task], CellResult | QsaeError | None],
        finished: Callable[[Task, TaskResult], Iterable[Task]],
    ) -> None:
        """
        Args:
            is_ready: whether a task's reference is there.
            reference: returns what a worker gets of it.
            finished: called once per task, one at a time; returns further tasks, which run next.
        """
        self._engine, self._is_ready, self._reference = engine, is_ready, reference
        self._finished = finished
        self._waiting: list[Task] = []
        self._running: dict[int, Task] = {}
        self._last: dict[int, Task] = {}
        self._losses: dict[Task, list[str]] = {}
        self._changed, self._finishing = threading.Condition(), threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def add(self, tasks: Iterable[Task]) -> None:
        """Queue tasks, in this order among those that are ready."""
        with self._changed:
            self._waiting += tasks
            self._changed.notify_all()
        # no more threads than tasks: a cluster has room for many
        while len(self._threads) < min(self._engine.places, len(self._waiting) + len(self._running)):
            place = len(self._threads)
            self._threads.append(threading.Thread(target=self._serve, args=(place,), daemon=True))
            self._threads[-1].start()

    def wait_for(self, found: Callable[[], T | None], report: Callable[[int, int], None]) -> T:
        """Wait until ``found()`` is not None, and return it.

        ``report`` is called meanwhile with the numbers of running and of waiting tasks.
        """
        while True:
            with self._changed:
                if (it := found()) is not None:
                    return it
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(WAIT_SECONDS)
                running, waiting = len(self._running), len(self._waiting)
            report(running, waiting)  # without the lock: a terminal may be slow

    def close(self) -> None:
        """Hand out no more tasks, and kill the workers."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._engine.close()
        until = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # -- a place

    def _serve(self, place: int) -> None:
        try:
            while (task := self._next(place)) is not None:
                result, more = self._attempt(place, task), []
                if result is not None and not self._closed:
                    with self._finishing:
                        more = list(self._finished(task, result))
                with self._changed:
                    del self._running[place]
                    self._waiting[:0] = more
                    self._changed.notify_all()
        except BaseException as error:  # a bug of ours: without this, whoever waits would wait for ever
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _next(self, place: int) -> Task | None:
        with self._changed:
            while not self._closed:
                ready = [task for task in self._waiting if self._is_ready(task)]
                if not ready:
                    self._changed.wait()
                    continue
                task = nearest(ready, self._last.get(place))
                self._waiting.remove(task)
                self._running[place] = self._last[place] = task
                return task
            return None

    def _attempt(self, place: int, task: Task) -> TaskResult | None:
        """Return the task's result, or None where it was queued again."""
        losses = self._losses.setdefault(task, [])
        try:
            result = self._engine.run(place, task, self._reference(task) if task.needs_reference else None)
        except TaskTimedOut as error:
            return TaskResult(refused=Crashed(f"{task.cell.id}: crashed: {error}"))
        except WorkerLost as error:
            losses.append(str(error))
            if len(losses) < ATTEMPTS:
                with self._changed:
                    self._waiting.insert(0, task)
                return None
            why = f"its worker died {ATTEMPTS} times: {losses[-1]}"
            return TaskResult(refused=Crashed(f"{task.cell.id}: crashed: {why}"))
        except QsaeError as error:  # the cluster can't run it any more
            return TaskResult(refused=error.without_traceback())
        except Exception as error:  # what can't be pickled, for example: only this cell is affected
            return TaskResult(refused=Crashed.from_exception(task.cell.id, error))
        warnings = tuple(f"{task.name}: ran again: its worker was lost: {why}" for why in losses)
        return replace(result, notes=replace(result.notes, warnings=warnings + result.notes.warnings))


def nearest(ready: Sequence[Task], last: Task | None) -> Task:
    """Return the task that shares most with the last one of a place; the first of several.

    In this order: another shard of the same cell, whose model is loaded; a cell of the same model, whose
    tokens and SAEs are there; a reference, since others wait for it; any.
    """

    def distance(task: Task) -> int:
        if last is not None and task.cell == last.cell:
            return 0
        if last is not None and task.cell.model == last.cell.model:
            return 1
        return 2 if task.cell.is_reference and task.measures else 3

    return min(ready, key=distance)
