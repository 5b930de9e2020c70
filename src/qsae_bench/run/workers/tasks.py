"""Define what a worker is asked to do and what it returns. Picklable, and free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.registry.specs import WHOLE, Cell, Shard
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.run.stopwatch import NO_TIME, TimeSpent
from qsae_bench.run.timed_workloads import TimedResult
from qsae_bench.run.timings import TimedRounds
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import LookPlan

if TYPE_CHECKING:
    from qsae_bench.models.weights.inspection import QuantizationEffect

FIT = "fit"
"""the step that checks whether the machine can run the cell at all"""
MEASURED = "measured"
"""the step that measures it"""


@dataclass(frozen=True)
class Task:
    """Describe the work for one worker: a cell, or a shard of what one look adds to it."""

    cell: Cell
    workloads: tuple[str, ...] = ()
    """what to time: names of :data:`qsae_bench.run.timed_workloads.WORKLOADS`, in that order"""
    measures: bool = True
    """whether the cell is measured, too"""
    look: int = 0
    shard: Shard = WHOLE

    @property
    def name(self) -> str:
        """The cell's id, with shard and look where it is a shard."""
        if self.shard == WHOLE:
            return self.cell.id
        return f"{self.cell.id}, shard {self.shard.index + 1} of {self.shard.count}, look {self.look + 1}"

    @property
    def needs_reference(self) -> bool:
        """Whether its model's reference must have been measured before."""
        return self.measures and not self.cell.is_reference


@dataclass(frozen=True)
class ShardRange:
    """Hold what a shard measured of one look."""

    measurement: Measurement | None
    """None where there are fewer batches than shards"""
    plan: LookPlan
    has_more_text: bool
    """whether the corpus has text for another look"""
    quantized: QuantizationEffect | None
    """the inspection of the weights: from the first shard of the first look"""
    seconds: float
    """duration of its pass"""


@dataclass(frozen=True)
class Notes:
    """Hold what the worker's session recorded about the cell."""

    costs: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    rounds: Mapping[str, TimedRounds] = field(default_factory=dict)
    """by workload"""
    turns: Mapping[str, Estimate] = field(default_factory=dict)
    """by metric: ratios of workloads that were timed in turns"""
    corpus: CorpusRecord | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    shared_device: bool = False
    """whether other workers used the worker's device"""
    spent: TimeSpent = NO_TIME


@dataclass(frozen=True)
class TaskResult:
    """Describe how a task ended."""

    steps: Mapping[str, TimedResult | Exception | None] = field(default_factory=dict)
    """by step; those after the one that refused the cell are missing"""
    refused: QsaeError | None = None
    """why nothing more can be done with the cell"""
    measured: CellResult | None = None
    part: ShardRange | None = None
    notes: Notes = Notes()
    messages: tuple[str, ...] = ()
    """warnings that belong to no cell"""
    seconds: float = 0.0
    """time that the worker took"""
    unusable: bool = False
    """whether the worker's process must be replaced: after a GPU's fault it can't be used"""

    def plus(self, later: TaskResult) -> TaskResult:
        """Return this result with what a later task of the same cell adds; what was known first stands."""
        a, b = self.notes, later.notes
        warnings = tuple(dict.fromkeys((*a.warnings, *b.warnings)))
        notes = Notes(
            {**b.costs, **a.costs}, warnings, {**b.rounds, **a.rounds}, {**b.turns, **a.turns},
            a.corpus or b.corpus, a.environment or b.environment, a.shared_device or b.shared_device,
            a.spent.plus(b.spent),
        )  # fmt: skip
        return replace(
            later, steps={**later.steps, **self.steps}, refused=self.refused or later.refused,
            measured=self.measured or later.measured, notes=notes,
            messages=(*self.messages, *later.messages), seconds=self.seconds + later.seconds,
        )  # fmt: skip
