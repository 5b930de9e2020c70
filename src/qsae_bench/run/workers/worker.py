"""Run tasks in a worker process: one session per process, from task to task."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from qsae_bench.errors import Crashed, QsaeError, TimedWorkFailed
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.registry.specs import WHOLE, Cell
from qsae_bench.run.timed_workloads import TimedResult
from qsae_bench.run.workers.tasks import FIT, MEASURED, Notes, ShardRange, Task, TaskResult

if TYPE_CHECKING:
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions


T = TypeVar("T")


class Worker:
    """Keep a session, and with it a model's tokens and SAEs, from one task to the next."""

    def __init__(self, options: SessionOptions) -> None:
        from qsae_bench.run.local_session import LocalSession

        self._messages: list[str] = []
        self.session: LocalSession = LocalSession(replace(options, on_warning=self._messages.append))

    def run(self, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        """Run a task and return its result. Failures of the cell are part of the result, not raised.

        ``reference`` is the result of the cell's reference, without its rows, or what refused it.
        """
        started = time.perf_counter()
        session, cell = self.session, task.cell
        self._reset(task, reference)
        with session.stopwatch.own(cell):
            steps, part = self._steps(task)
            if task.shard == WHOLE:
                session.free(cell)  # now: a warning about memory that was not freed belongs to this cell
        notes = self._notes(cell)
        messages = tuple(line for line in self._messages if line not in notes.warnings)
        self._messages.clear()
        refused = session.refused.get(cell)
        result = TaskResult(
            steps, refused, session.measured.get(cell), part, notes, messages,
            time.perf_counter() - started,
            unusable=isinstance(refused, Crashed) and session.device != "cpu",
        )  # fmt: skip
        if task.shard == WHOLE:
            session.forget(cell)  # its rows are the driver's now
        return result

    def _steps(self, task: Task) -> tuple[dict[str, TimedResult | Exception | None], ShardRange | None]:
        session, cell, part = self.session, task.cell, None
        steps: dict[str, TimedResult | Exception | None] = {}
        steps[FIT] = self._step(cell, lambda: session.require(cell))
        for workload in task.workloads:
            if cell not in session.refused:
                steps[workload] = self._step(cell, partial(session.time_workload, cell, workload))
        if task.measures and cell not in session.refused:
            found: CellResult | ShardRange | Exception
            if task.shard == WHOLE:
                found = self._step(cell, partial(session.measure, cell))
            else:
                found = self._step(cell, lambda: session.guarded(cell, partial(self._part, task)))
            part = found if isinstance(found, ShardRange) else None
            steps[MEASURED] = found if isinstance(found, Exception) else None
        return steps, part

    def _reset(self, task: Task, reference: CellResult | QsaeError | None) -> None:
        """Forget the cell, since this may be a second attempt, and register its reference."""
        session, cell = self.session, task.cell
        session.forget(cell)
        own = session.registry.reference_of(cell)
        if isinstance(reference, QsaeError):
            session.refused[own] = reference
        elif reference is not None:
            session.measured[own] = reference

    def _step(self, cell: Cell, work: Callable[[], T]) -> T | Exception:
        """Return what ``work`` returns or raises; an exception without its frames, which hold tensors."""
        from qsae_bench.models.memory import is_out_of_memory

        try:
            return work()
        except QsaeError as error:
            return error.without_traceback()
        except Exception as error:
            if not is_out_of_memory(error):
                return TimedWorkFailed(f"{type(error).__name__}: {error}")
        return self.session.refuse_out_of_memory(cell)

    def _part(self, task: Task) -> ShardRange:
        session, cell = self.session, task.cell
        session.prepare(cell, task.look, task.shard)
        model = session.model(cell)
        started = time.perf_counter()
        rows = session.rows(cell, task.look, task.shard)
        measurement = session.part(cell, task.look, task.shard) if len(rows) else None
        seconds = time.perf_counter() - started
        quantized, has_more_text = None, False
        if task.shard.index == 0:  # it reports what is the same for all shards
            later = task.look + 1
            has_more_text = later < len(model.plan.looks) and model.part(later) is not None
            if task.look == 0:
                quantized = session.loaded_model.quantized(session.reference(cell))
        return ShardRange(measurement, model.plan, has_more_text, quantized, seconds)

    def _notes(self, cell: Cell) -> Notes:
        session = self.session
        return Notes(
            dict(session.costs(cell)),
            tuple(session.warnings.get(cell, ())),
            dict(session.timings.rounds.get(cell, {})),
            dict(session.timings.turns.get(cell, {})),
            session.corpora.get(cell.model.name),
            dict(session.environment),
            session.shares_device(cell),
            session.spent(cell),
        )


_WORKER: tuple[str, Worker] | None = None
"""of this process: the run that it belongs to, and the worker"""


def run_task(
    run: str, options: SessionOptions, task: Task, reference: CellResult | QsaeError | None
) -> TaskResult:
    """Run a task in this worker process; its session is made for the first task of a run."""
    try:
        return worker_of(run, options).run(task, reference)
    except QsaeError as error:
        return TaskResult(refused=error.without_traceback())


def worker_of(run: str, options: SessionOptions) -> Worker:
    """Return this process's worker for a run, made on the first call.

    Raises:
        QsaeError: no session can be made here, such as without a GPU where one is asked for.
    """
    global _WORKER
    if _WORKER is None or _WORKER[0] != run:
        _WORKER = None
        _WORKER = run, Worker(options)
    return _WORKER[1]
