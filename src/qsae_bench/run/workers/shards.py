"""Split a cell's sequences over workers, and join the results, look by look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from statistics import fmean

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import mark_invalid
from qsae_bench.machine import hardware_of
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Merge
from qsae_bench.metrics.measurement import merge
from qsae_bench.registry.specs import Shard
from qsae_bench.run.stopwatch import TimeSpent
from qsae_bench.run.timed_workloads import TimedResult
from qsae_bench.run.workers.tasks import MEASURED, Notes, ShardRange, Task, TaskResult

EVALUATION = "evaluation"
"""the workload that no shard does alone"""


@dataclass
class ShardedCell:
    """Collect the shards of a cell; decide after each look whether there is another."""

    task: Task
    """the task for the whole cell"""
    count: int
    undecided: Callable[[CellResult], bool]
    """whether more tokens could decide a gate of the cell"""
    timing: bool = True
    _results: dict[int, dict[int, TaskResult]] = field(default_factory=dict)
    """by look and shard"""
    _measured: CellResult | None = None

    def tasks(self, look: int = 0) -> list[Task]:
        """Return the tasks of a look. The first shard of the first look also does what is timed."""
        timed = tuple(name for name in self.task.workloads if name != EVALUATION)
        task = replace(self.task, workloads=(), look=look)
        tasks = [replace(task, shard=Shard(k, self.count)) for k in range(self.count)]
        return tasks if look else [replace(tasks[0], workloads=timed), *tasks[1:]]

    def add(
        self, task: Task, result: TaskResult, reference: CellResult | None
    ) -> TaskResult | list[Task] | None:
        """Add one shard's result.

        Returns:
            The cell's result, or the tasks of the next look; None while shards of this look are missing.
        """
        of_look = self._results.setdefault(task.look, {})
        of_look[task.shard.index] = result
        if len(of_look) < self.count:
            return None
        try:
            parts = [self._part(of_look[k]) for k in range(self.count)]
            measured = self._append(parts)
        except QsaeError as error:
            return self._stop(error.with_traceback(None))
        mark_invalid(self.task.cell, measured, reference)
        if not measured.is_last_look and self.undecided(measured):
            if parts[0].has_more_text:
                return self.tasks(task.look + 1)
            measured.exhausted = True
        return self._finish()

    def _part(self, result: TaskResult) -> ShardRange:
        failed = result.refused or result.steps.get(MEASURED)
        if isinstance(failed, QsaeError):
            raise failed
        if isinstance(failed, Exception):
            raise Crashed.from_exception(self.task.cell.id, failed)
        if result.part is None:
            raise Crashed(f"{self.task.cell.id}: crashed: a shard measured nothing")
        return result.part

    def _append(self, parts: Sequence[ShardRange]) -> CellResult:
        """Add a look to the cell's result: rows appended in the shards' order, feature sums added."""
        plan, whole = parts[0].plan, merge([p.measurement for p in parts if p.measurement is not None])
        if self._measured is None:
            self._measured = CellResult.begin(whole, plan, True, parts[0].quantized)
        else:
            self._measured.extend(whole, plan)
        return self._measured

    def _stop(self, why: QsaeError) -> TaskResult:
        """End with what was measured before this look: it stands, and decides what it can."""
        if self._measured is None:
            result = self._finish()
            return replace(result, steps={**result.steps, MEASURED: why}, refused=why)
        self._measured.stop_reason = str(why)
        cell, tokens = self.task.cell, self._measured.tokens
        line = f"{cell.id}: judged on {tokens:,} tokens, not more: {why}"
        result = self._finish()
        return replace(result, notes=replace(result.notes, warnings=(*result.notes.warnings, line)))

    def _finish(self) -> TaskResult:
        every = [of_look[k] for of_look in self._results.values() for k in sorted(of_look)]
        steps = {step: found for step, found in every[0].steps.items() if step != MEASURED}
        if self._measured is not None and EVALUATION in self.task.workloads:
            seconds = sum(one.part.seconds for one in every if one.part is not None)
            steps[EVALUATION] = TimedResult((seconds,) if self.timing else (), {"shards": self.count})
        if self._measured is not None:
            steps[MEASURED] = None
        return TaskResult(
            steps, None, self._measured, None, merge_notes(every),
            tuple(line for one in every for line in one.messages), sum(one.seconds for one in every),
        )  # fmt: skip


MERGES: Mapping[Merge, Callable[[Sequence[float]], float]] = {
    "first": lambda values: values[0], "highest": max, "mean": fmean,
}  # fmt: skip


def merge_notes(results: Sequence[TaskResult]) -> Notes:
    """Merge the notes of a cell's workers, each cost as its metric declares."""
    known: dict[str, list[float]] = {}
    for one in results:
        for key, value in one.notes.costs.items():
            known.setdefault(key, []).append(value)
    costs = {key: MERGES[METRICS[key].over_shards](values) for key, values in known.items()}
    warnings = tuple(dict.fromkeys(line for one in results for line in one.notes.warnings))
    hardware = [name for one in results if (name := hardware_of(one.notes.environment))]
    if len(named := list(dict.fromkeys(hardware))) > 1:
        line = f"its shards were measured on {' and '.join(named)}: they differ by that, too"
        warnings = (*warnings, line)
    spent = reduce(TimeSpent.plus, (one.notes.spent for one in results))
    shared_device = any(one.notes.shared_device for one in results)
    return replace(
        results[0].notes, costs=costs, warnings=warnings, spent=spent, shared_device=shared_device
    )
