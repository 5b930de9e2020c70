"""A session whose cells are measured by workers. It judges and keeps the books; no model is loaded here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsae_bench.books import Books, Options
from qsae_bench.dispatch import Dispatcher
from qsae_bench.engines import Engine
from qsae_bench.errors import OutOfMemory, QsaeError
from qsae_bench.gate import Gates
from qsae_bench.judging import Judge
from qsae_bench.measured import Measured
from qsae_bench.progress import telling
from qsae_bench.sharding import ShardedCell
from qsae_bench.specs import WHOLE, Cell
from qsae_bench.statistics import prefix
from qsae_bench.tasks import FIT, MEASURED, Outcome, Task
from qsae_bench.works import Taken, asked_of


class FarSession(Books):
    """Asks for every cell at once, and waits for each when its tests come."""

    def __init__(self, options: Options, engine: Engine, tasks: Sequence[Task], shards: int = 1) -> None:
        """``tasks``: one a selected cell that is not yet finished; references of others are added."""
        super().__init__(options)
        self.engine = engine
        self._shards = shards
        self._asked = {task.cell: task for task in tasks}
        self._asked_by_tests = set(self._asked)
        self._outcomes: dict[Cell, Outcome] = {}
        self._taken_over: set[Cell] = set()
        self._said: set[str] = set()
        self._sharded: dict[Cell, ShardedCell] = {}
        self._place: Mapping[str, Any] = {}
        """the environment of the first worker that answered"""
        self._told = time.monotonic()
        self._dispatcher = Dispatcher(engine, self._is_ready, self._given, self._finish)
        self._begun = False

    # -- what tests ask for

    def require(self, cell: Cell) -> None:
        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        self._step(cell, FIT)

    def take(self, cell: Cell, work: str) -> Taken:
        if cell in self.refused:
            raise self.refused[cell]
        found = self._step(cell, work)
        assert isinstance(found, Taken)
        return found

    def measure(self, cell: Cell) -> Measured:
        if cell not in self.measured:
            if cell in self.refused:
                raise self.refused[cell]
            self._step(cell, MEASURED)
        return self.measured[cell]

    def run_on(self, cell: Cell, gates: Iterable[Gates]) -> None:
        """Done where the cell was measured: the gates of every selected test are known there."""

    def ran_out(self, cell: Cell) -> OutOfMemory:
        shortage = self.refused[cell] = OutOfMemory(f"{cell.id}: out of memory in the process of the tests")
        return shortage

    def free(self, cell: Cell) -> None:
        """Its worker has."""

    def close(self) -> None:
        self._dispatcher.close()

    @property
    def environment(self) -> Mapping[str, Any]:
        """The first worker's; this process's own where none has answered."""
        from qsae_bench.environment import environment

        here = self._place or environment() | {"device": "cpu"}
        return {**here, "executor": self.engine.about, "beside": "; ".join(self.engine.beside)}

    # -- the books

    def _step(self, cell: Cell, step: str) -> Taken | None:
        """What came of one step of a cell, waited for; raises what it raised."""
        with telling(self.options.progress):
            outcome = self._outcome(cell, step)
        self._take_over(self.registry.reference_of(cell))
        self._take_over(cell)
        found = outcome.steps.get(step, outcome.refused)
        if isinstance(found, QsaeError):
            if outcome.refused is not None:
                self.refused[cell] = outcome.refused
            raise found
        return found

    def _outcome(self, cell: Cell, step: str) -> Outcome:
        if not self._begun:
            self._begun = True
            self._dispatcher.add(self._every_task())
        known = self._outcomes.get(cell)
        missing = known is not None and step not in known.steps and known.refused is None
        if cell not in self._asked or missing:  # a test that says by no marker what it will ask for
            self._outcomes.pop(cell, None)
            self._taken_over.discard(cell)
            works = asked_of(cell, (step,))
            self._asked[cell] = Task(cell, works, measures=not works)
            self._dispatcher.add(self._split(self._asked[cell]))
        return self._dispatcher.until(lambda: self._outcomes.get(cell), self._tell)

    def _tell(self, running: int, waiting: int) -> None:
        outlet, now = self.options.progress, time.monotonic()
        if now - self._told >= outlet.every_seconds:
            self._told = now
            outlet.write(f"{len(self._outcomes)} cells done, {running} at work, {waiting} waiting")

    def _take_over(self, cell: Cell) -> None:
        """Write down, once, what a worker's session had written down."""
        if cell in self._taken_over or cell not in self._outcomes:
            return
        self._taken_over.add(cell)
        outcome, notes = self._outcomes[cell], self._outcomes[cell].notes
        for key, value in notes.costs.items():
            self.record(cell, key, value)
        for line in notes.warnings:
            self.warn(cell, line)
        for line in outcome.said:
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
        elif outcome.refused is not None and cell not in self._asked_by_tests:
            self.refused[cell] = outcome.refused

    # -- what the dispatcher asks for

    def _every_task(self) -> list[Task]:
        """With the references that others wait for and nobody has asked for."""
        for task in list(self._asked.values()):
            own = self.registry.reference_of(task.cell)
            if not task.waits or own in self.measured or own in self.refused:
                continue
            if own in self._asked:
                self._asked[own] = replace(self._asked[own], measures=True)
            else:
                self._asked = {own: Task(own), **self._asked}
        return [part for task in self._asked.values() for part in self._split(task)]

    def _split(self, task: Task) -> list[Task]:
        """A quantized cell's shards; a reference is one pass, which leaves what the others read."""
        if self._shards == 1 or not task.waits:
            return [task]
        self._sharded[task.cell] = ShardedCell(
            task, self._shards, lambda measured: self._undecided(task.cell, measured), self.options.timing
        )
        return self._sharded[task.cell].tasks()

    def _undecided(self, cell: Cell, measured: Measured) -> bool:
        own = self.registry.reference_of(cell)
        reference = self._reference(own)
        assert isinstance(reference, Measured)
        known = {cell: measured, own: reference}
        judge = Judge(
            self.options.thresholds, known, self.registry.reference_of, self.options.strict, "",
            hardware=lambda: self.hardware,
        )  # fmt: skip
        return judge.undecided(cell, self.options.gates.get(cell, ()))

    def _is_ready(self, task: Task) -> bool:
        return not task.waits or self._reference(self.registry.reference_of(task.cell)) is not None

    def _reference(self, own: Cell) -> Measured | QsaeError | None:
        """By a worker of this run, or of the one that is resumed."""
        outcome = self._outcomes.get(own)
        if outcome is not None:
            return outcome.measured or outcome.refused
        return self.measured.get(own) or self.refused.get(own)

    def _given(self, task: Task) -> Measured | QsaeError | None:
        """The reference as a worker needs it: without its rows, unless those are spliced with."""
        found = self._reference(self.registry.reference_of(task.cell))
        if not isinstance(found, Measured) or self.options.splice:
            return found
        return replace(found, measurement=prefix(found.measurement, 1))

    def _finish(self, task: Task, outcome: Outcome) -> list[Task]:
        self._place = self._place or outcome.notes.environment
        found: Outcome | list[Task] | None = outcome
        if task.shard != WHOLE:
            reference = self._reference(self.registry.reference_of(task.cell))
            known = reference if isinstance(reference, Measured) else None
            found = self._sharded[task.cell].add(task, outcome, known)
        if isinstance(found, Outcome):
            self._outcomes[task.cell] = found
        return found if isinstance(found, list) else []
