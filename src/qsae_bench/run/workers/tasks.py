"""What a worker is asked for and what it gives back. Picklable; no torch is imported for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.registry.specs import WHOLE, Cell, Shard
from qsae_bench.results.document import CorpusRecord
from qsae_bench.run.stopwatch import NOTHING, Spent
from qsae_bench.run.timed_works import TimedResult
from qsae_bench.run.timings import TimedRounds
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import LookPlan

if TYPE_CHECKING:
    from qsae_bench.models.weights.inspection import QuantizationEffect

FIT = "fit"
"""the step that asks whether the machine can run the cell at all"""
MEASURED = "measured"
"""the step that measures it"""


@dataclass(frozen=True)
class Task:
    """One cell, or a shard of what one look adds to it, for one worker."""

    cell: Cell
    works: tuple[str, ...] = ()
    """of :data:`qsae_bench.run.timed_works.WORKS`, in that order"""
    measures: bool = True
    look: int = 0
    shard: Shard = WHOLE
    prepares: bool = False
    """only what the cells of the model share: for a worker that would wait otherwise"""

    @property
    def name(self) -> str:
        if self.shard == WHOLE:
            return self.cell.id
        return f"{self.cell.id}, shard {self.shard.index + 1} of {self.shard.count}, look {self.look + 1}"

    @property
    def waits(self) -> bool:
        """Whether its model's reference has to be there first."""
        return self.measures and not self.cell.is_reference


@dataclass(frozen=True)
class ShardRange:
    """A shard's share of a look."""

    measurement: Measurement | None
    """None where there are fewer batches than shards"""
    plan: LookPlan
    more: bool
    """the corpus has text for another look"""
    quantized: QuantizationEffect | None
    """what the recipe did to the weights: from the first shard of the first look"""
    seconds: float
    """that its pass took"""


@dataclass(frozen=True)
class Notes:
    """What the worker's session wrote down about the cell."""

    costs: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, TimedRounds] = field(default_factory=dict)
    turns: Mapping[str, Estimate] = field(default_factory=dict)
    corpus: CorpusRecord | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    """the worker's device was other workers', too"""
    spent: Spent = NOTHING


@dataclass(frozen=True)
class TaskResult:
    """How a task ended."""

    steps: Mapping[str, TimedResult | Exception | None] = field(default_factory=dict)
    """step -> what came of it; those after the one that refused the cell are missing"""
    refused: QsaeError | None = None
    """what every test of the cell meets from then on"""
    measured: CellResult | None = None
    part: ShardRange | None = None
    notes: Notes = Notes()
    said: tuple[str, ...] = ()
    """warnings that are no cell's own"""
    seconds: float = 0.0
    """that the worker was at it"""
    unusable: bool = False
    """the worker's process is of no more use: a GPU's fault stays with it"""

    def plus(self, later: TaskResult) -> TaskResult:
        """With what a later task of the same cell brought; what was known first stands."""
        a, b = self.notes, later.notes
        warnings = tuple(dict.fromkeys((*a.warnings, *b.warnings)))
        notes = Notes(
            {**b.costs, **a.costs}, warnings, {**b.timings, **a.timings}, {**b.turns, **a.turns},
            a.corpus or b.corpus, a.environment or b.environment, a.shared or b.shared,
            a.spent.plus(b.spent),
        )  # fmt: skip
        return replace(
            later, steps={**later.steps, **self.steps}, refused=self.refused or later.refused,
            measured=self.measured or later.measured, notes=notes, said=(*self.said, *later.said),
            seconds=self.seconds + later.seconds,
        )  # fmt: skip

    def warned(self, lines: Sequence[str]) -> TaskResult:
        """With warnings of the one who sent it there, first."""
        return replace(self, notes=replace(self.notes, warnings=(*lines, *self.notes.warnings)))
