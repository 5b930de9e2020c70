"""A worker's side: one session a process, which does task after task."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from qsae_bench.errors import Crashed, QsaeError, TimedWorkFailed
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.registry.specs import WHOLE, Cell
from qsae_bench.run.timed_works import TimedResult
from qsae_bench.run.workers.tasks import FIT, MEASURED, Notes, ShardRange, Task, TaskResult

if TYPE_CHECKING:
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions


T = TypeVar("T")


class Worker:
    """Keeps its session, and in it a model's tokens and SAEs, from one task to the next."""

    def __init__(self, options: SessionOptions) -> None:
        from qsae_bench.run.local_session import LocalSession

        self._said: list[str] = []
        self.session: LocalSession = LocalSession(replace(options, say=self._said.append))

    def do(self, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        """A task's outcome. What goes wrong with the cell is in it, and not raised.

        ``reference``: the measurement of the cell's reference, less its rows, or what refused it.
        """
        started = time.perf_counter()
        session, cell = self.session, task.cell
        self._know(task, reference)
        with session.watch.own(cell):
            steps, part = self._steps(task) if not task.prepares else (self._prepared(cell), None)
            if task.shard == WHOLE:
                session.free(cell)  # now: what it says of memory that did not come back is this cell's
        notes = self._notes(cell)
        said = tuple(line for line in self._said if line not in notes.warnings)
        self._said.clear()
        refused = session.refused.get(cell)
        outcome = TaskResult(
            steps, refused, session.measured.get(cell), part, notes, said, time.perf_counter() - started,
            unusable=isinstance(refused, Crashed) and session.device != "cpu",
        )  # fmt: skip
        if task.shard == WHOLE:
            session.forget(cell)  # its rows are the driver's now
        return outcome

    def _prepared(self, cell: Cell) -> dict[str, TimedResult | Exception | None]:
        """Tokens, SAEs and imports; what is wrong with them is said by the cells that want them."""
        from qsae_bench.models.loading import import_libraries

        self._step(cell, lambda: self.session.shared(cell))
        self._step(cell, lambda: import_libraries(cell))
        return {}

    def _steps(self, task: Task) -> tuple[dict[str, TimedResult | Exception | None], ShardRange | None]:
        session, cell, part = self.session, task.cell, None
        steps: dict[str, TimedResult | Exception | None] = {}
        steps[FIT] = self._step(cell, lambda: session.require(cell))
        for work in task.works:
            if cell not in session.refused:
                steps[work] = self._step(cell, partial(session.take, cell, work))
        if task.measures and cell not in session.refused:
            found: CellResult | ShardRange | Exception
            if task.shard == WHOLE:
                found = self._step(cell, partial(session.measure, cell))
            else:
                found = self._step(cell, lambda: session.guarded(cell, partial(self._part, task)))
            part = found if isinstance(found, ShardRange) else None
            steps[MEASURED] = found if isinstance(found, Exception) else None
        return steps, part

    def _know(self, task: Task, reference: CellResult | QsaeError | None) -> None:
        """Forget the cell, if it was tried before, and know its reference."""
        session, cell = self.session, task.cell
        session.forget(cell)
        own = session.registry.reference_of(cell)
        if isinstance(reference, QsaeError):
            session.refused[own] = reference
        elif reference is not None:
            session.measured[own] = reference

    def _step(self, cell: Cell, work: Callable[[], T]) -> T | Exception:
        """What the work gives, or what it raised, without the frames: they hold the tensors."""
        from qsae_bench.models.memory import is_out_of_memory

        try:
            return work()
        except QsaeError as error:
            return error.without_traceback()
        except Exception as error:
            failure = (
                None if is_out_of_memory(error) else TimedWorkFailed(f"{type(error).__name__}: {error}")
            )
        return failure if failure is not None else self.session.ran_out(cell)

    def _part(self, task: Task) -> ShardRange:
        session, cell = self.session, task.cell
        session.prepare(cell, task.look, task.shard)
        model = session.model(cell)
        started = time.perf_counter()
        mine = session.rows(cell, task.look, task.shard)
        measurement = session.part(cell, task.look, task.shard) if len(mine) else None
        seconds = time.perf_counter() - started
        quantized = None
        if task.look == 0 and task.shard.index == 0:
            quantized = session.holder.quantized(session.reference(cell))
        first = task.shard.index == 0  # it tells what they all would
        more = first and task.look + 1 < len(model.plan.looks) and model.part(task.look + 1) is not None
        return ShardRange(measurement, model.plan, more, quantized, seconds)

    def _notes(self, cell: Cell) -> Notes:
        session = self.session
        return Notes(
            dict(session.costs(cell)),
            tuple(session.warnings.get(cell, ())),
            dict(session.speeds.timings.get(cell, {})),
            dict(session.speeds.turns.get(cell, {})),
            session.corpora.get(cell.model.name),
            dict(session.environment),
            bool(session.beside),
            session.spent(cell),
        )


_WORKER: tuple[str, Worker] | None = None
"""of this process: the run that it is for, and the worker"""


def do(
    run: str, options: SessionOptions, task: Task, reference: CellResult | QsaeError | None
) -> TaskResult:
    """A task's outcome in a process that is a worker; its session is made with the first one of a run."""
    try:
        return begin(run, options).do(task, reference)
    except QsaeError as error:
        return TaskResult(refused=error.without_traceback())


def begin(run: str, options: SessionOptions) -> Worker:
    """The worker of a run, made the first time.

    Raises:
        QsaeError: no session can be made here: there is no GPU where one is asked for.
    """
    global _WORKER
    if _WORKER is None or _WORKER[0] != run:
        _WORKER = None
        _WORKER = run, Worker(options)
    return _WORKER[1]
