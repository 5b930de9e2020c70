"""What a session knows of its cells, wherever they were measured: measurements, costs, refusals, verdicts.

Knows nothing of pytest, and loads no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import OutOfMemory, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import Judge
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import GatedMetric, GateFailure, Verdict
from qsae_bench.metrics import METRICS
from qsae_bench.progress import SILENT, ProgressOutput
from qsae_bench.registry.entries import DEFAULT_SELECTION, Registry
from qsae_bench.registry.specs import Cell, Selection
from qsae_bench.results import document as results
from qsae_bench.results.document import CorpusRecord
from qsae_bench.run.attributor import Attributor
from qsae_bench.run.stopwatch import Spent
from qsae_bench.run.timed_works import TimedResult
from qsae_bench.run.timings import Timings

if TYPE_CHECKING:
    from qsae_bench.results.journal import StoredCell


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs, from the command line."""

    registry: Registry
    thresholds: Thresholds
    qsae_dir: Path
    command: str
    selection: Selection = DEFAULT_SELECTION
    device: str = ""
    """``cpu`` or ``cuda``; '' takes a GPU where there is one"""
    splice: bool = False
    noise_floor: bool = False
    reference_store: str | None = ""
    """a folder or a URL, '' for the folder in ``qsae_dir``; None keeps references for this run only"""
    reference_store_bytes: int = 50 << 30
    say: Callable[[str], None] = print
    """where warnings go"""
    progress: ProgressOutput = SILENT
    strict: bool = False
    """what is ``suspicious`` fails, what can't run is an error"""
    gates: Mapping[Cell, tuple[GatedMetric, ...]] = field(default_factory=dict)
    """what the selected tests will gate: a cell runs on until these are decided"""
    history: str = ""
    """URL, '' for none"""
    timing: bool = True
    """False where pytest-benchmark is switched off: nothing is timed"""
    beside: tuple[str, ...] = ()
    """flags of every timing: what else runs on the device by this run's own doing"""


def from_here(path: Path) -> Path:
    """As short as a person would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class Session(ABC):
    """What tests ask of a session. ``require``, ``take`` and ``measure`` raise what refused a cell."""

    def __init__(self, options: SessionOptions) -> None:
        self.options, self.registry = options, options.registry
        self.started = results.now()
        self.requested: list[Cell] = []
        self.measured: dict[Cell, CellResult] = {}
        self.refused: dict[Cell, QsaeError] = {}
        self.restored: dict[Cell, StoredCell] = {}
        self.corpora: dict[str, CorpusRecord] = {}
        """by model: another tokenizer makes other sequences"""
        self.warnings: dict[Cell, list[str]] = {}
        self._costs: dict[Cell, dict[str, float]] = {}
        self._explained: set[Cell] = set()
        more, rules = f"qsae-bench show {from_here(options.qsae_dir / 'latest')}", options.thresholds
        reference_of, hardware = self.registry.reference_of, lambda: self.hardware
        moved = Attributor(
            options.history, self.measured, reference_of, self.corpora, hardware, options.selection.protocol
        )
        self.judge = Judge(rules, self.measured, reference_of, options.strict, more, moved, hardware)
        self.speeds = Timings(
            rules, reference_of, self.restored, self.record, self.warn,
            self.measured, hardware, more,
        )  # fmt: skip

    @abstractmethod
    def require(self, cell: Cell) -> None:
        """Raise, before anything heavy, if the cell can't run or has already failed."""

    @abstractmethod
    def take(self, cell: Cell, work: str) -> TimedResult:
        """Time one of :data:`qsae_bench.run.timed_works.WORKS`."""

    @abstractmethod
    def measure(self, cell: Cell) -> CellResult:
        """The cell's measurement: taken now, or the one already taken."""

    @abstractmethod
    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        """Extend a measured cell's corpus until its gates are decided, or nothing is left of it."""

    @abstractmethod
    def ran_out(self, cell: Cell) -> OutOfMemory:
        """Free what is loaded and remember that the cell ran out of memory."""

    @abstractmethod
    def free(self, cell: Cell) -> None:
        """Free the cell's model, if it is loaded here: nothing more will be done with it."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held and remove what was temporary."""

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, Any]:
        """Hardware, versions and device of the process that measures, for the run document."""

    @abstractmethod
    def shares_device(self, cell: Cell) -> bool:
        """Whether other workers of the run used the device that the cell was measured on."""

    @abstractmethod
    def hardware_of(self, cell: Cell) -> str:
        """The GPU's or CPU's name that the cell was measured on; '' where that is not known."""

    @abstractmethod
    def spent(self, cell: Cell) -> Spent:
        """What the cell took so far."""

    @property
    def hardware(self) -> str:
        """The GPU's or CPU's name, as thresholds have it."""
        from qsae_bench.machine import hardware_of

        return hardware_of(self.environment)

    def record(self, cell: Cell, key: str, value: float) -> None:
        """Keep one cost of a cell; measured or not, it goes into the run document."""
        assert METRICS[key].formula is None, key
        self._costs.setdefault(cell, {})[key] = float(value)

    def warn(self, cell: Cell, line: str) -> None:
        """Say what went on with a cell that is no verdict, and keep it for the run document."""
        self.warnings.setdefault(cell, []).append(line)
        self.options.say(line)

    def costs(self, cell: Cell) -> Mapping[str, float]:
        return self._costs.get(cell, {})

    def judge_gate(self, cell: Cell, gate: GatedMetric) -> GateFailure | None:
        """Judge a gate of a cell; return the failure with its message, or None if nothing fails.

        What makes a whole cell invalid is explained once, by the first of its gates; the others name the
        reason in a line.
        """
        measured = self.measure(cell)
        if cell.is_reference and measured.broken and not measured.verdicts:
            return GateFailure(gate.metric, "invalid", f"{cell.id}: INVALID: {measured.broken}")
        if not cell.is_reference and gate.metric:
            self.run_on(cell, (gate,))
        verdict = self.judge.verdict(cell, gate)
        if verdict is None or not self.judge.fails(verdict):
            return None
        message = self.judge.message(cell, verdict)
        if measured.broken and not cell.is_reference:
            if cell in self._explained:
                message = _first_line(cell, verdict, measured.broken)
            self._explained.add(cell)
        return GateFailure(verdict.metric, verdict.status, message)


def _first_line(cell: Cell, verdict: Verdict, reason: str) -> str:
    where = cell.id if verdict.layer is None else f"{cell.id} layer {verdict.layer}"
    return f"{where}: {verdict.metric} INVALID: {reason}"
