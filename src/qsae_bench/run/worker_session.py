"""A session whose cells are measured by workers. It judges and keeps the books; no model is loaded here."""

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
from qsae_bench.run.stopwatch import Spent
from qsae_bench.run.timed_works import WORKS, TimedResult
from qsae_bench.run.workers.dispatch import Dispatcher
from qsae_bench.run.workers.engine import Engine
from qsae_bench.run.workers.shards import ShardedCell
from qsae_bench.run.workers.tasks import FIT, MEASURED, Task, TaskResult

BEFORE = ("load", "evaluation")
"""works that are done before a reference is there for others"""

MODELS_OWN = ("load", "model", "reference", "prepare", "shared", "release", "part", "holder", "store")
"""of a session that has its models in its own process"""


class WorkerSession(Session):
    """Asks for every cell at once, and waits for each when its tests come."""

    def __init__(
        self, options: SessionOptions, engine: Engine, tasks: Sequence[Task], shards: int = 1
    ) -> None:
        """``tasks``: one a selected cell that is not yet finished; references of others are added."""
        super().__init__(options)
        self.engine = engine
        self._shards = shards
        self._asked = {task.cell: task for task in tasks}
        self._settling = threading.Lock()
        """a cell that is no longer open has its outcome: held for moments, and by nobody who waits"""
        self._open: dict[Cell, set[Task]] = {}
        """that are waiting or at work"""
        self._outcomes: dict[Cell, TaskResult] = {}
        self._taken_over: dict[Cell, TaskResult] = {}
        self._said: set[str] = set()
        self._said_early: tuple[str, ...] = ()
        """by workers that prepared for a cell"""
        self._sharded: dict[Cell, ShardedCell] = {}
        self._place: Mapping[str, Any] = {}
        """the environment of the first worker that answered"""
        self._told = time.monotonic()
        self._done, self._done_seconds = 0, 0.0
        self._dispatcher = Dispatcher(engine, self._is_ready, self._given, self._finish)
        self._begun = False

    # -- what tests ask for

    def require(self, cell: Cell) -> None:
        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        self._step(cell, FIT)

    def take(self, cell: Cell, work: str) -> TimedResult:
        if cell in self.refused:
            raise self.refused[cell]
        found = self._step(cell, work)
        assert isinstance(found, TimedResult)
        return found

    def measure(self, cell: Cell) -> CellResult:
        if cell not in self.measured:
            if cell in self.refused:
                raise self.refused[cell]
            self._step(cell, MEASURED)
        return self.measured[cell]

    def __getattr__(self, name: str) -> NoReturn:
        if name in MODELS_OWN:
            raise QsaeError(
                f"session.{name}: its models are in workers: a test that wants one runs without --workers "
                "and --executor"
            )
        raise AttributeError(name)

    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        """Done where the cell was measured: the gates of every selected test are known there."""

    def ran_out(self, cell: Cell) -> OutOfMemory:
        shortage = self.refused[cell] = OutOfMemory(f"{cell.id}: out of memory in the process of the tests")
        return shortage

    def free(self, cell: Cell) -> None:
        """Its worker has."""

    @property
    def _own_device(self) -> str:
        from qsae_bench.models.loading import default_device

        return default_device(self.options.device)

    def close(self) -> None:
        self._dispatcher.close()

    @property
    def environment(self) -> Mapping[str, Any]:
        """The first worker's; this process's own where none has answered."""
        from qsae_bench.machine import environment

        here = self._place or environment() | {"device": self._own_device}
        shards = f", {self._shards} shards a cell" if self._shards > 1 else ""
        started = self.engine.start_seconds
        more = {"worker_start_seconds": round(started, 2)} if started else {}
        return {**here, "executor": self.engine.about + shards, **more}

    def shares_device(self, cell: Cell) -> bool:
        return self._outcomes.get(cell, TaskResult()).notes.shared

    def hardware_of(self, cell: Cell) -> str:
        outcome = self._outcomes.get(cell)
        return hardware_of(outcome.notes.environment) if outcome is not None else ""

    def spent(self, cell: Cell) -> Spent:
        return self._outcomes.get(cell, TaskResult()).notes.spent

    # -- the books

    def _step(self, cell: Cell, step: str) -> TimedResult | None:
        """What came of one step of a cell, waited for; raises what it raised."""
        if not self._begun:
            self._begun = True
            self._ask(self._asked.values())
        with progress_to(self.options.progress):
            outcome = self._dispatcher.until(lambda: self._having(cell, step), self._tell)
        self._take_over(self.registry.reference_of(cell))
        self._take_over(cell)
        found = outcome.steps.get(step, outcome.refused)
        if isinstance(found, Exception):
            if outcome.refused is not None:
                self.refused[cell] = outcome.refused
            raise found
        return found

    def _having(self, cell: Cell, step: str) -> TaskResult | None:
        """The cell's outcome, once it has the step or never will; asks for what no marker had announced."""
        with self._settling:
            outcome = self._outcomes.get(cell)
            is_open = bool(self._open.get(cell))
        if outcome is not None and (step in outcome.steps or outcome.refused is not None):
            return outcome
        if not is_open:
            self._ask([Task(cell, (step,) if step in WORKS else (), measures=step == MEASURED)])
        return None

    def _tell(self, running: int, waiting: int) -> None:
        outlet, now = self.options.progress, time.monotonic()
        if now - self._told >= outlet.every_seconds:
            self._told = now
            each = self._done_seconds / self._done if self._done else 0.0
            left = (
                f", about {each * (running + waiting) / max(1, running):,.0f} s left" if self._done else ""
            )
            every = self._done + running + waiting
            outlet.write(f"{self._done} of {every} tasks done, {running} at work{left}")

    def _take_over(self, cell: Cell) -> None:
        """Write down what workers' sessions had written down, once more of it is there."""
        outcome = self._outcomes.get(cell)
        if outcome is None or self._taken_over.get(cell) is outcome:
            return
        self._taken_over[cell], notes = outcome, outcome.notes
        for key, value in notes.costs.items():
            self.record(cell, key, value)
        for line in notes.warnings:
            if line not in self.warnings.get(cell, ()):
                self.warn(cell, line)
        self._compare_hardware(cell)
        for line in (*self._said_early, *outcome.said):
            if line not in self._said:
                self._said.add(line)
                self.options.say(line)
        if notes.timings:
            self.speeds.timings[cell] = dict(notes.timings)
        if notes.turns:
            self.speeds.turns[cell] = dict(notes.turns)
        if notes.corpus is not None:
            self.corpora[cell.model.name] = notes.corpus
        if outcome.measured is not None:
            self.measured[cell] = outcome.measured
        elif outcome.refused is not None and cell not in self._asked:
            self.refused[cell] = outcome.refused

    def _compare_hardware(self, cell: Cell) -> None:
        """A cluster may have CPUs of several kinds, and a resumed run may have another cluster."""
        here, kept = self.hardware_of(cell), [one.entry.record.hardware for one in self.restored.values()]
        other = next(filter(None, kept), hardware_of(self._place))
        said = (
            f"{cell.id}: measured on {here}, other cells of this run on {other}: they differ by that, too"
        )
        if here and other and here != other and said not in self.warnings.get(cell, ()):
            self.warn(cell, said)

    # -- what the dispatcher asks for

    def _ask(self, tasks: Iterable[Task]) -> None:
        """Hand tasks to the dispatcher, with the references that they wait for and nobody has asked for."""
        asked = {task.cell: task for task in tasks}
        for task in list(asked.values()):
            own = self.registry.reference_of(task.cell)
            if not task.waits or self._reference(own) is not None:
                continue
            if own in asked:
                asked[own] = replace(asked[own], measures=True)
            elif not any(one.measures for one in self._open.get(own, ())):
                asked = {own: Task(own), **asked}
        split = [part for task in asked.values() for part in self._split(task)]
        with self._settling:
            for part in split:
                self._open[part.cell] = self._open.get(part.cell, set()) | {part}
        self._dispatcher.add(split)

    def _split(self, task: Task) -> list[Task]:
        """A quantized cell's shards; a reference is one pass, which leaves what the others read, and then
        what is timed of it: they don't wait for that."""
        corpus = self.registry.corpus_of(task.cell.model, self.options.selection)
        sequences = -(-corpus.tokens // (corpus.sequence_length - 1))
        shards = min(self._shards, -(-sequences // corpus.batch_size))  # more would have nothing to do
        if task.waits and shards > 1:
            split = self._sharded[task.cell] = ShardedCell(
                task, shards, partial(self._undecided, task.cell), self.options.timing
            )
            return split.tasks()
        later = tuple(work for work in task.works if work not in BEFORE)
        if task.cell.is_reference and task.measures and later and self.engine.places > 1:
            first = tuple(work for work in task.works if work in BEFORE)
            return [replace(task, works=first), Task(task.cell, later, measures=False)]
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
        if task.waits:
            return self._reference(self.registry.reference_of(task.cell)) is not None
        # what is timed of a reference comes after what others wait for, and finds it stored
        return task.measures or not any(one.measures for one in self._open[task.cell])

    def _reference(self, own: Cell) -> CellResult | QsaeError | None:
        """By a worker of this run, or of the one that is resumed; what refused it; None while it is out."""
        outcome = self._outcomes.get(own, TaskResult())
        found = outcome.measured or self.measured.get(own) or outcome.refused or self.refused.get(own)
        if found is None and isinstance(failed := outcome.steps.get(MEASURED), Exception):
            return failed if isinstance(failed, QsaeError) else Crashed.from_exception(own.id, failed)
        return found

    def _given(self, task: Task) -> CellResult | QsaeError | None:
        """The reference as a worker needs it: without its rows, unless those are spliced with."""
        found = self._reference(self.registry.reference_of(task.cell))
        if not isinstance(found, CellResult) or self.options.splice:
            return found
        return replace(found, measurement=first_sequences(found.measurement, 1))

    def _finish(self, task: Task, outcome: TaskResult) -> list[Task]:
        self._place = self._place or outcome.notes.environment
        self._said_early += outcome.said if task.prepares else ()
        if task.prepares:
            return []
        self._done, self._done_seconds = self._done + 1, self._done_seconds + outcome.seconds
        found: TaskResult | list[Task] | None = outcome
        if task.shard != WHOLE:
            reference = self._reference(self.registry.reference_of(task.cell))
            known = reference if isinstance(reference, CellResult) else None
            found = self._sharded[task.cell].add(task, outcome, known)
        more = found if isinstance(found, list) else []
        with self._settling:
            if isinstance(found, TaskResult):
                known_before = self._outcomes.get(task.cell)
                self._outcomes[task.cell] = found if known_before is None else known_before.plus(found)
            self._open[task.cell] = (self._open[task.cell] - {task}) | set(more)
        return more
