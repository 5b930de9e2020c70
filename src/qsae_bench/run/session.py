"""Define the base class of sessions: the state of every cell, wherever it is measured.

It is independent of pytest, and loads no model.
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
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.run.accepted import AcceptedComparison
from qsae_bench.run.attributor import Attributor
from qsae_bench.run.stopwatch import TimeSpent
from qsae_bench.run.timed_workloads import TimedResult
from qsae_bench.run.timings import Timings

if TYPE_CHECKING:
    from qsae_bench.results.journal import StoredCell


@dataclass(frozen=True)
class SessionOptions:
    """Hold the options of a session, from the command line."""

    registry: Registry
    thresholds: Thresholds
    qsae_dir: Path
    command: str
    selection: Selection = DEFAULT_SELECTION
    device: str = ""
    """``cpu`` or ``cuda``; '' uses a GPU where there is one"""
    splice: bool = False
    """also measure with the SAEs spliced in"""
    noise_floor: bool = False
    """also measure references at another batch size"""
    reference_store: str | None = ""
    """a folder or a URL, '' for the folder in ``qsae_dir``; None stores references for this run only"""
    reference_store_bytes: int = 50 << 30
    on_warning: Callable[[str], None] = print
    """called with every warning, a line"""
    progress: ProgressOutput = SILENT
    strict: bool = False
    """``suspicious`` and ``worse than accepted`` fail, a provisional bound is none, and what can't run is
    an error"""
    accepted: str = ""
    """``warn`` or ``fail``: what a cell does that is worse than in its last accepted run; '' as ``strict``
    says"""
    gates: Mapping[Cell, tuple[GatedMetric, ...]] = field(default_factory=dict)
    """gates of the selected tests: a cell runs on until they are decided"""
    collected_gates: Mapping[Cell, tuple[GatedMetric, ...]] = field(default_factory=dict)
    """gates of all tests, selected or not"""
    history: str = ""
    """URL, '' for none"""
    timing: bool = True
    """False where pytest-benchmark is switched off: nothing is timed"""
    timing_flags: tuple[str, ...] = ()
    """flags of every timing: what else this run does on the device"""


def relative_to_here(path: Path) -> Path:
    """Return the path relative to the working directory where it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class Session(ABC):
    """Define what tests can ask of a session.

    ``require``, ``time_workload`` and ``measure`` raise the error that refused a cell.
    """

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
        self.against_accepted = AcceptedComparison(self)
        """compares a cell with the last accepted run of it"""
        self.latest = relative_to_here(options.qsae_dir / "latest")
        """where the run will be found once it is written"""
        self.details_command = f"qsae-bench show {self.latest}"
        """shows more of the run"""
        self.judge = Judge(
            options.thresholds, self.measured, self.registry.reference_of, options.strict,
            self.details_command, Attributor(self), lambda: self.hardware,
        )  # fmt: skip
        self.timings = Timings(self)

    @abstractmethod
    def require(self, cell: Cell) -> None:
        """Raise, before anything heavy, if the cell can't run or has already failed."""

    @abstractmethod
    def time_workload(self, cell: Cell, name: str) -> TimedResult:
        """Time one of :data:`qsae_bench.run.timed_workloads.WORKLOADS`."""

    @abstractmethod
    def measure(self, cell: Cell) -> CellResult:
        """Return the cell's result; measure the cell first, unless that was done."""

    @abstractmethod
    def run_on(self, cell: Cell, gates: Iterable[GatedMetric]) -> None:
        """Measure more of a cell's corpus until its gates are decided, or the corpus ends."""

    @abstractmethod
    def refuse_out_of_memory(self, cell: Cell) -> OutOfMemory:
        """Free the loaded model, refuse the cell from now on, and return the refusal."""

    @abstractmethod
    def free(self, cell: Cell) -> None:
        """Free the cell's model if it is loaded here: the cell is finished."""

    @abstractmethod
    def close(self) -> None:
        """Free the model and remove temporary files."""

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, Any]:
        """Hardware, versions and device of the process that measures, for the run document"""

    @abstractmethod
    def shares_device(self, cell: Cell) -> bool:
        """Return whether other workers of the run used the device that the cell was measured on."""

    @abstractmethod
    def hardware_of(self, cell: Cell) -> str:
        """Return the name of the GPU or CPU that the cell was measured on; '' where it is not known."""

    @abstractmethod
    def spent(self, cell: Cell) -> TimeSpent:
        """Return the time spent on the cell so far."""

    @property
    def hardware(self) -> str:
        """Name of the GPU or CPU, as thresholds have it"""
        from qsae_bench.machine import hardware_of

        return hardware_of(self.environment)

    def record(self, cell: Cell, key: str, value: float) -> None:
        """Record one cost of a cell for the run document, whether the cell gets measured or not."""
        assert METRICS[key].formula is None, key
        self._costs.setdefault(cell, {})[key] = float(value)

    def warn(self, cell: Cell, line: str) -> None:
        """Show a warning about a cell, and record it for the run document."""
        self.warnings.setdefault(cell, []).append(line)
        self.options.on_warning(line)

    def costs(self, cell: Cell) -> Mapping[str, float]:
        """Return the cell's recorded costs, by metric."""
        return self._costs.get(cell, {})

    def judge_gate(self, cell: Cell, gate: GatedMetric) -> GateFailure | None:
        """Judge a gate of a cell; return the failure with its message, or None if nothing fails.

        What makes a whole cell invalid is explained once, by the first of its gates; the others name the
        reason in a line.
        """
        measured = self.measure(cell)
        if cell.is_reference and measured.invalid_reason and not measured.verdicts:
            return GateFailure(gate.metric, "invalid", f"{cell.id}: INVALID: {measured.invalid_reason}")
        if not cell.is_reference and gate.metric:
            self.run_on(cell, (gate,))
        verdict = self.judge.verdict(cell, gate)
        if verdict is None or not self.judge.fails(verdict):
            return None
        message = self.judge.message(cell, verdict)
        if measured.invalid_reason and not cell.is_reference:
            if cell in self._explained:
                message = _first_line(cell, verdict, measured.invalid_reason)
            self._explained.add(cell)
        return GateFailure(verdict.metric, verdict.status, message)


def _first_line(cell: Cell, verdict: Verdict, reason: str) -> str:
    where = cell.id if verdict.layer is None else f"{cell.id} layer {verdict.layer}"
    return f"{where}: {verdict.metric} INVALID: {reason}"
