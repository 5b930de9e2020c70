"""A cell whose sequences are split over workers: its shards' outcomes, look by look, become one outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from statistics import fmean

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import mark_invalid
from qsae_bench.machine import hardware_of
from qsae_bench.metrics.measurement import Measurement, merge
from qsae_bench.registry.specs import Shard
from qsae_bench.run.stopwatch import Spent
from qsae_bench.run.timed_works import TimedResult
from qsae_bench.run.workers.tasks import MEASURED, Notes, ShardRange, Task, TaskResult

EVALUATION = "evaluation"
"""the work that no shard does alone"""


@dataclass
class ShardedCell:
    """Knows which shards are still out; decides, when a look's are all in, whether the cell goes on."""

    task: Task
    """as it was asked for: whole"""
    count: int
    undecided: Callable[[CellResult], bool]
    """whether more tokens could decide a gate of the cell"""
    timing: bool = True
    _in: dict[int, dict[int, TaskResult]] = field(default_factory=dict)
    """look -> shard -> outcome"""
    _measured: CellResult | None = None

    def tasks(self, look: int = 0) -> list[Task]:
        """The first shard's worker also takes what is timed."""
        works = tuple(work for work in self.task.works if work != EVALUATION)
        return [
            replace(
                self.task, works=works if not (k or look) else (), look=look, shard=Shard(k, self.count)
            )
            for k in range(self.count)
        ]

    def add(
        self, task: Task, outcome: TaskResult, reference: CellResult | None
    ) -> TaskResult | list[Task] | None:
        """Take in one shard: the cell's outcome, or the next look's tasks, or None while others are out."""
        here = self._in.setdefault(task.look, {})
        here[task.shard.index] = outcome
        if len(here) < self.count:
            return None
        outcomes = [here[k] for k in range(self.count)]
        for one in outcomes:
            failed = one.refused or one.steps.get(MEASURED)
            if isinstance(failed, QsaeError):
                return self._stopped(failed)
            if isinstance(failed, Exception):
                return self._stopped(Crashed.from_exception(self.task.cell.id, failed))
        parts = [one.part for one in outcomes if one.part is not None]
        if len(parts) < self.count:
            return self._stopped(Crashed(f"{self.task.cell.id}: crashed: a shard measured nothing"))
        try:
            measured = self._appended(parts)
        except QsaeError as error:
            return self._stopped(error)
        mark_invalid(self.task.cell, measured, reference)
        if measured.is_last_look or not self.undecided(measured):
            return self._ended()
        if not parts[0].more:
            measured.exhausted = True
            return self._ended()
        return self.tasks(task.look + 1)

    def _appended(self, parts: Sequence[ShardRange]) -> CellResult:
        plan, whole = parts[0].plan, joined(parts)
        if self._measured is None:
            self._measured = CellResult.begin(whole, plan, True, parts[0].quantized)
        else:
            self._measured.extend(whole, plan)
        return self._measured

    def _stopped(self, why: QsaeError) -> TaskResult:
        """What was measured before this look stands, and decides what it can."""
        if self._measured is None:
            ended = self._ended()
            return replace(ended, steps={**ended.steps, MEASURED: why}, refused=why)
        self._measured.stopped = str(why)
        cell, tokens = self.task.cell, self._measured.tokens
        line = f"{cell.id}: judged on {tokens:,} tokens, not more: {why}"
        ended = self._ended()
        return replace(ended, notes=replace(ended.notes, warnings=(*ended.notes.warnings, line)))

    def _ended(self) -> TaskResult:
        every = [here[k] for here in self._in.values() for k in sorted(here)]
        steps = {step: found for step, found in every[0].steps.items() if step != MEASURED}
        if self._measured is not None and EVALUATION in self.task.works:
            seconds = sum(one.part.seconds for one in every if one.part is not None)
            steps[EVALUATION] = TimedResult((seconds,) if self.timing else (), {"shards": self.count})
        if self._measured is not None:
            steps[MEASURED] = None
        return TaskResult(
            steps, None, self._measured, None, joined_notes(every),
            tuple(line for one in every for line in one.said), sum(one.seconds for one in every),
        )  # fmt: skip


def joined(parts: Sequence[ShardRange]) -> Measurement:
    """A look's measurement from its shards in order: rows appended, feature sums added."""
    return merge([part.measurement for part in parts if part.measurement is not None])


def joined_notes(outcomes: Sequence[TaskResult]) -> Notes:
    """Of a cell that several workers had: the first one's, the highest peak, the mean worker's speed."""
    every: list[Mapping[str, float]] = [one.notes.costs for one in outcomes]
    costs = {key: value for one in reversed(every) for key, value in one.items()}
    for key, of_all in (("peak_memory_bytes", max), ("evaluation_tokens_per_second", fmean)):
        if found := [one[key] for one in every if key in one]:
            costs[key] = of_all(found)
    warnings = tuple(dict.fromkeys(line for one in outcomes for line in one.notes.warnings))
    places = dict.fromkeys(hardware_of(one.notes.environment) for one in outcomes)
    if len(named := [place for place in places if place]) > 1:
        warnings = (
            *warnings,
            f"its shards were measured on {' and '.join(named)}: they differ by that, too",
        )
    spent = reduce(Spent.plus, (one.notes.spent for one in outcomes))
    shared = any(one.notes.shared for one in outcomes)
    return replace(outcomes[0].notes, costs=costs, warnings=warnings, spent=spent, shared=shared)
