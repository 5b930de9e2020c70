"""Delegate a session's measuring to workers, and judge the results. No model is loaded here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from qsae_bench.errors import Crashed, OutOfMemory, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import Judge
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.machine import hardware_of
from qsae_bench.metrics.measurement import first_sequences
from qsae_bench.progress import progress_to
from qsae_bench.registry.specs import WHOLE, Cell
from qsae_bench.run.session import Session, SessionOptions
from qsae_bench.run.stopwatch import TimeSpent
from qsae_bench.run.timed_workloads import WORKLOADS, TimedResult
from qsae_bench.run.workers.dispatch import Dispatcher, Engine
from qsae_bench.run.workers.shards import ShardedCell
from qsae_bench.run.workers.tasks import FIT, MEASURED, Notes, Task, TaskResult

BEFORE_OTHERS = ("load", "evaluation")
"""workloads of a reference that are done before its result is there for others"""

LOCAL_ONLY = ("load", "model", "reference", "prepare", "shared", "release", "part", "loaded_model", "store")
"""attributes of a session that has its models in its own process"""


class WorkerSession(Session):
    """Queue every cell at once, and wait for each when its tests come."""

    def __init__(
        self, options: SessionOptions, engine: Engine, tasks: Sequence[Task], shards: int = 1
    ) -> None:
        """Take a task for each selected cell that is not finished, and how many workers share a cell."""
        super().__init__(options)
        self.engine = engine
        self._shards = shards
        self._selected = {task.cell: task for task in tasks}
        self._lock = threading.Lock()
        """a cell that is not open any more has its result: both change under this lock, held for moments"""
        self._open: dict[Cell, set[Task]] = {}
        """tasks that wait or run"""
        self._results: dict[Cell, TaskResult] = {}
        self._taken_over: dict[Cell, TaskResult] = {}
        self._shown: set[str] = set()
        """messages that belong to no cell"""
        self._sharded: dict[Cell, ShardedCell] = {}
        self._environment: Mapping[str, Any] = {}
        """of the first worker that answered"""
        self._last_progress = time.monotonic()
        self._done, self._done_seconds = 0, 0.0
        self._dispatcher = Dispatcher(engine, self._is_ready, self._for_worker, self._finished)
        self._started = False

    # -- what tests ask for

    def require(self, cell: Cell) -> None:
        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        self._step(cell, FIT)

    def time_workload(self, cell: Cell, name: str) -> TimedResult:
        if cell in self.refused:
            raise self.refused[cell]
        found = self._step(cell, name)
        assert isinstance(found, TimedResult)
        return found

    def measure(self, cell: Cell) -> CellResult:
        if cell not in self.measured:
            if cell in self.refused:
                raise self.refused[cell]
            self._step(cell, MEASURED)
        return self.measured[cell]

    def __getattr__(self, name: str) -> NoReturn:
        if name in LOCAL_ONLY:
            raise QsaeError(
                f"`session.{name}` is not available with --workers or --executor: models are loaded in "
                "worker processes"
            )
        raise AttributeError(name)

    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        """Do nothing: the worker ran on, since it knows the gates of every selected test."""

    def refuse_out_of_memory(self, cell: Cell) -> OutOfMemory:
        shortage = self.refused[cell] = OutOfMemory(f"{cell.id}: out of memory in the process of the tests")
        return shortage

    def free(self, cell: Cell) -> None:
        """Do nothing: the worker freed its model."""

    def close(self) -> None:
        self._dispatcher.close()

    @property
    def environment(self) -> Mapping[str, Any]:
        """Environment of the first worker that answered; of this process where none has."""
        from qsae_bench.machine import environment
        from qsae_bench.models.loading import default_device

        found = self._environment or environment() | {"device": default_device(self.options.device)}
        shards = f", {self._shards} shards a cell" if self._shards > 1 else ""
        started = self.engine.start_seconds
        more = {"worker_start_seconds": round(started, 2)} if started else {}
        return {**found, "executor": self.engine.about + shards, **more}

    def shares_device(self, cell: Cell) -> bool:
        return self._notes(cell).shared_device

    def hardware_of(self, cell: Cell) -> str:
        return hardware_of(self._notes(cell).environment) if cell in self._results else ""

    def spent(self, cell: Cell) -> TimeSpent:
        return self._notes(cell).spent

    def _notes(self, cell: Cell) -> Notes:
        return self._results.get(cell, TaskResult()).notes

    # -- results of tasks

    def _step(self, cell: Cell, step: str) -> TimedResult | None:
        """Wait for one step of a cell and return its result, or raise what it raised."""
        if not self._started:
            self._started = True
            self._queue(self._selected.values())
        with progress_to(self.options.progress):
            result = self._dispatcher.wait_for(lambda: self._with_step(cell, step), self._report_progress)
        self._take_over(self.registry.reference_of(cell))
        self._take_over(cell)
        found = result.steps.get(step, result.refused)
        if isinstance(found, Exception):
            if result.refused is not None:
                self.refused[cell] = result.refused
            raise found
        return found

    def _with_step(self, cell: Cell, step: str) -> TaskResult | None:
        """Return the cell's result once it has the step or never will; queue an unselected step."""
        with self._lock:
            result = self._results.get(cell)
            is_open = bool(self._open.get(cell))
        if result is not None and (step in result.steps or result.refused is not None):
            return result
        if not is_open:
            self._queue([Task(cell, (step,) if step in WORKLOADS else (), measures=step == MEASURED)])
        return None

    def _report_progress(self, running: int, waiting: int) -> None:
        outlet, now = self.options.progress, time.monotonic()
        if now - self._last_progress < outlet.every_seconds:
            return
        self._last_progress = now
        left = ""
        if self._done:
            each = self._done_seconds / self._done
            left = f", about {each * (running + waiting) / max(1, running):,.0f} s left"
        every = self._done + running + waiting
        outlet.write(f"{self._done} of {every} tasks done, {running} at work{left}")

    def _take_over(self, cell: Cell) -> None:
        """Copy what workers recorded about a cell into this session, once there is more of it."""
        result = self._results.get(cell)
        if result is None or self._taken_over.get(cell) is result:
            return
        self._taken_over[cell], notes = result, result.notes
        for key, value in notes.costs.items():
            self.record(cell, key, value)
        for line in (*notes.warnings, *self._other_hardware(cell)):
            if line not in self.warnings.get(cell, ()):
                self.warn(cell, line)
        for line in result.messages:
            if line not in self._shown:
                self._shown.add(line)
                self.options.on_warning(line)
        if notes.rounds:
            self.timings.rounds[cell] = dict(notes.rounds)
        if notes.turns:
            self.timings.turns[cell] = dict(notes.turns)
        if notes.corpus is not None:
            self.corpora[cell.model.name] = notes.corpus
        if result.measured is not None:
            self.measured[cell] = result.measured
        elif result.refused is not None and cell not in self._selected:
            self.refused[cell] = result.refused

    def _other_hardware(self, cell: Cell) -> list[str]:
        """Return the warning about a cell on other hardware: of a mixed cluster, or a resumed run."""
        own = self.hardware_of(cell)
        restored = [one.entry.record.hardware for one in self.restored.values()]
        other = next(filter(None, restored), hardware_of(self._environment))
        if not own or not other or own == other:
            return []
        where = f"measured on {own}, other cells of this run on {other}"
        return [f"{cell.id}: {where}: they differ by that, too"]

    # -- tasks

    def _queue(self, tasks: Iterable[Task]) -> None:
        """Give tasks to the dispatcher, with the references that they need and nobody has queued."""
        queued = {task.cell: task for task in tasks}
        for task in list(queued.values()):
            own = self.registry.reference_of(task.cell)
            if not task.needs_reference or self._reference(own) is not None:
                continue
            if own in queued:
                queued[own] = replace(queued[own], measures=True)
            elif not any(one.measures for one in self._open.get(own, ())):
                queued = {own: Task(own), **queued}
        split = [part for task in queued.values() for part in self._split(task)]
        with self._lock:
            for part in split:
                self._open[part.cell] = self._open.get(part.cell, set()) | {part}
        self._dispatcher.add(split)

    def _split(self, task: Task) -> list[Task]:
        """Split a quantized cell into shards, and what is timed of a reference from its measurement.

        A reference is measured in one pass, which writes what the others read: they don't wait for timings.
        """
        corpus = self.registry.corpus_of(task.cell.model, self.options.selection)
        sequences = -(-corpus.tokens // (corpus.sequence_length - 1))
        shards = min(self._shards, -(-sequences // corpus.batch_size))  # more would have no batch
        if task.needs_reference and shards > 1:
            split = self._sharded[task.cell] = ShardedCell(
                task, shards, partial(self._undecided, task.cell), self.options.timing
            )
            return split.tasks()
        later = tuple(name for name in task.workloads if name not in BEFORE_OTHERS)
        if task.cell.is_reference and task.measures and later and self.engine.places > 1:
            first = tuple(name for name in task.workloads if name in BEFORE_OTHERS)
            return [replace(task, workloads=first), Task(task.cell, later, measures=False)]
        return [task]

    def _undecided(self, cell: Cell, measured: CellResult) -> bool:
        own = self.registry.reference_of(cell)
        reference = self._reference(own)
        assert isinstance(reference, CellResult)
        known = {cell: measured, own: reference}
        judge = Judge(
            self.options.thresholds, known, self.registry.reference_of, self.options.strict, "",
            hardware=lambda: self.hardware,
        )  # fmt: skip
        return judge.undecided(cell, self.options.gates.get(cell, ()))

    def _is_ready(self, task: Task) -> bool:
        if task.needs_reference:
            return self._reference(self.registry.reference_of(task.cell)) is not None
        # what is timed of a reference comes after what others wait for, and finds it stored
        return task.measures or not any(one.measures for one in self._open[task.cell])

    def _reference(self, own: Cell) -> CellResult | QsaeError | None:
        """Return a reference's result of this run or of the resumed one, or its refusal; None before."""
        result = self._results.get(own, TaskResult())
        found = result.measured or self.measured.get(own) or result.refused or self.refused.get(own)
        if found is None and isinstance(failed := result.steps.get(MEASURED), Exception):
            return failed if isinstance(failed, QsaeError) else Crashed.from_exception(own.id, failed)
        return found

    def _for_worker(self, task: Task) -> CellResult | QsaeError | None:
        """Return the reference as a worker needs it: without its rows, unless they are spliced with."""
        found = self._reference(self.registry.reference_of(task.cell))
        if not isinstance(found, CellResult) or self.options.splice:
            return found
        return replace(found, measurement=first_sequences(found.measurement, 1))

    def _finished(self, task: Task, result: TaskResult) -> list[Task]:
        self._environment = self._environment or result.notes.environment
        self._done, self._done_seconds = self._done + 1, self._done_seconds + result.seconds
        found: TaskResult | list[Task] | None = result
        if task.shard != WHOLE:
            reference = self._reference(self.registry.reference_of(task.cell))
            measured = reference if isinstance(reference, CellResult) else None
            found = self._sharded[task.cell].add(task, result, measured)
        more = found if isinstance(found, list) else []
        with self._lock:
            if isinstance(found, TaskResult):
                before = self._results.get(task.cell)
                self._results[task.cell] = found if before is None else before.plus(found)
            self._open[task.cell] = (self._open[task.cell] - {task}) | set(more)
        return more
