"""One invocation: each cell loaded once, measured once, freed.

Knows nothing of pytest: the plugin's fixtures call it, and so could a worker process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qsae_bench import gate, results
from qsae_bench.attributing import Attributor
from qsae_bench.errors import Crashed, OutOfMemory, QsaeError
from qsae_bench.gate import GateFailure, Gates
from qsae_bench.judging import Judge
from qsae_bench.measured import Measured
from qsae_bench.measurement import Measurement, merge
from qsae_bench.memory import is_out_of_memory, steady_heap
from qsae_bench.metrics import METRICS
from qsae_bench.progress import SILENT, Outlet, Progress, telling
from qsae_bench.registry import DEFAULTS, Registry
from qsae_bench.specs import Cell, Selection
from qsae_bench.speeds import Speeds
from qsae_bench.statistics import estimate, prefix
from qsae_bench.thresholds import Thresholds

if TYPE_CHECKING:
    from qsae_bench.bench_model import BenchModel
    from qsae_bench.corpus import Corpus
    from qsae_bench.journal import Kept
    from qsae_bench.loading import Loaded
    from qsae_bench.reference import StoredReference
    from qsae_bench.stores import Store

T = TypeVar("T")

UNQUANTIZED = (
    "the recipe left the model unquantized: no matrix of the decoder takes fewer bits or differs from the "
    "reference's; check its options and what it skips (most skip GPT-2's Conv1D, which is no nn.Linear)"
)


@dataclass(frozen=True)
class Options:
    """How a session runs, from the command line."""

    registry: Registry
    thresholds: Thresholds
    qsae_dir: Path
    command: str
    selection: Selection = DEFAULTS
    device: str = ""
    """``cpu`` or ``cuda``; '' takes a GPU where there is one"""
    splice: bool = False
    noise_floor: bool = False
    reference_store: str | None = ""
    """a folder or a URL, '' for the folder in ``qsae_dir``; None keeps references for this run only"""
    reference_store_bytes: int = 50 << 30
    say: Callable[[str], None] = print
    """where warnings go"""
    progress: Outlet = SILENT
    strict: bool = False
    """what is ``suspicious`` fails, what can't run is an error"""
    gates: Mapping[Cell, tuple[Gates, ...]] = field(default_factory=dict)
    """what the selected tests will gate: a cell runs on until these are decided"""
    history: str = ""
    """URL, '' for none"""


def from_here(path: Path) -> Path:
    """As short as a person would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def other_batch_size(batch_size: int) -> int:
    """The noise floor's: about a third, so that it differs in more than a power of two."""
    return max(1, batch_size // 3) if batch_size > 1 else 2


class Session:
    """Loads, measures and judges cells on demand, in any order; cheap in registry order."""

    def __init__(self, options: Options) -> None:
        from qsae_bench.holder import ModelHolder
        from qsae_bench.loading import default_device

        self.options = options
        self.registry = options.registry
        self.device = default_device(options.device)
        steady_heap()
        self.started = results.now()
        self.requested: list[Cell] = []
        self.measured: dict[Cell, Measured] = {}
        self.refused: dict[Cell, QsaeError] = {}
        self.restored: dict[Cell, Kept] = {}
        self.corpora: dict[str, Corpus] = {}
        self._model: BenchModel | None = None
        self.warnings: dict[Cell, list[str]] = {}
        self.holder = ModelHolder(self.device, self.record, self.warn)
        self._costs: dict[Cell, dict[str, float]] = {}
        self._parts: dict[tuple[Cell, int], Measurement] = {}
        more, rules = f"qsae-bench show {from_here(options.qsae_dir / 'latest')}", options.thresholds
        reference_of, hardware = self.registry.reference_of, lambda: self.hardware
        moved = Attributor(
            options.history, self.measured, reference_of, self.corpora, hardware, options.selection.protocol
        )
        self.judge = Judge(rules, self.measured, reference_of, options.strict, more, moved, hardware)
        self.speeds = Speeds(
            rules, reference_of, self.restored, self.record, self.warn,
            self.measured, hardware, more,
        )  # fmt: skip

    # -- loading

    def require(self, cell: Cell) -> None:
        """Raise, before anything heavy, if the cell can't run here or has already failed."""
        from qsae_bench.loading import require

        if cell not in self.requested:
            self.requested.append(cell)
        if cell in self.refused:
            raise self.refused[cell]
        self._guarded(cell, lambda: require(cell, self.device, told=bool(self.options.device)))

    def load(self, cell: Cell) -> Loaded:
        """The cell's model, loaded if it is not the one that already is."""
        if cell in self.refused:
            raise self.refused[cell]
        return self._guarded(cell, lambda: self.holder.load(cell))

    def release(self) -> None:
        """Free the loaded model, if there is one."""
        self.holder.release()

    def model(self, cell: Cell) -> BenchModel:
        """What the cell shares with the others of its model."""
        if self._model is None or self._model.spec != cell.model:
            from qsae_bench.bench_model import BenchModel

            self._model = None
            corpus = self.registry.corpus_of(cell.model, self.options.selection)
            self._model = self._guarded(
                cell,
                lambda: BenchModel(
                    cell.model, corpus, self.device, self.store, self.options.qsae_dir, self.options.say
                ),
            )
            self.corpora[cell.model.name] = self._model.corpus
        return self._model

    def shared(self, cell: Cell) -> None:
        """Tokens and SAEs: what is wrong with them shows before the model is fetched and loaded."""
        self._guarded(cell, lambda: self.model(cell).saes)

    def reference(self, cell: Cell, look: int = 0) -> StoredReference:
        """The stored reference of what a look adds of the cell's corpus, built first if there is none."""
        from qsae_bench.memory import PeakMemory

        own = self.registry.reference_of(cell)
        costs = dict(self.costs(own))
        built = False

        def load() -> Loaded:
            nonlocal built
            built = True
            return self.load(own)

        def work() -> StoredReference:
            return self.model(cell).reference(load, self.options.say, self.options.progress, look)

        with PeakMemory(self.device) as peak:
            reference = self._guarded(cell, work)
        if built and look:
            self._costs[own] = costs  # of its own turn: it was only loaded again
        elif built:
            self.record(own, "peak_memory_bytes", peak.bytes)
        return reference

    @cached_property
    def store(self) -> Store:
        """Where references are kept."""
        from qsae_bench.stores import store_at

        options = self.options
        return store_at(options.reference_store, options.qsae_dir, options.reference_store_bytes)

    # -- measuring

    def prepare(self, cell: Cell) -> None:
        """Everything that :meth:`measure` needs but that is not the cell's own cost."""
        if cell in self.refused:
            raise self.refused[cell]
        self.shared(cell)
        self.reference(cell)
        if not cell.is_reference:
            # a quantized cell is judged against a reference that is itself sane
            self._guarded(cell, lambda: self.measure(self.registry.reference_of(cell)))
            self.load(cell)

    def measure(self, cell: Cell) -> Measured:
        """The cell's measurement: taken now, or the one already taken."""
        if cell not in self.measured:
            self.prepare(cell)
            self.measured[cell] = self._guarded(cell, lambda: self._measure(cell))
            self._run_on(cell, self.options.gates.get(cell, ()))
        return self.measured[cell]

    def _run_on(self, cell: Cell, gates: Iterable[Gates]) -> None:
        """Extend the cell's corpus until its gates are decided, or nothing is left of it."""
        measured, costs = self.measured[cell], dict(self.costs(cell))
        while not measured.is_last_look and not measured.stopped and self.judge.undecided(cell, gates):
            try:
                self._guarded(cell, lambda: self._look_again(cell, measured))
            except QsaeError as error:  # what was measured stands, and decides what it can
                self.refused.pop(cell, None)
                measured.stopped = str(error)
                self.warn(cell, f"{cell.id}: judged on {measured.tokens:,} tokens, not more: {error}")
        if len(measured.looks) > 1 and "load_seconds" in costs:
            self.record(cell, "load_seconds", costs["load_seconds"])  # loading again finds warm files

    def _measure(self, cell: Cell) -> Measured:
        measurement, model = self._part(cell, 0), self.model(cell)
        quantized = None if cell.is_reference else self.holder.quantized(self.reference(cell))
        if quantized is not None:
            measurement = measurement.with_costs(quantized.values)
        planned = model.looks[0 if cell.is_reference else -1]  # what nothing gates is looked at once
        measured = Measured(
            measurement, estimate(measurement), model.looks[:1], planned,
            model.is_short, quantized=quantized, revision=model.revision,
        )  # fmt: skip
        if cell.is_reference and self.options.noise_floor:
            other = other_batch_size(model.corpus.spec.batch_size)
            measured.floor = estimate(self._pass(cell, forward=True, batch_size=other))
        self._find_broken(cell, measured)
        return measured

    def _look_again(self, cell: Cell, measured: Measured) -> None:
        """Measure what the next look adds, and append it."""
        model, look = self.model(cell), len(measured.looks)
        if model.part(look) is None:
            measured.exhausted = True
            return
        measured.measurement = merge([measured.measurement, self._part(cell, look)])
        measured.estimates = estimate(measured.measurement)
        measured.looks = model.looks[: look + 1]
        self._find_broken(cell, measured)

    def _part(self, cell: Cell, look: int) -> Measurement:
        """The cell on the sequences that a look adds."""
        return self.model(cell).undamaged(look, lambda: self._part_once(cell, look))

    def _part_once(self, cell: Cell, look: int) -> Measurement:
        """With what that took."""
        from qsae_bench.memory import PeakMemory

        reference = self.registry.reference_of(cell)
        splice = self.options.splice
        # first, because they may need the reference loaded
        self.reference(cell, look)
        other = self._reference_part(reference, look) if splice and not cell.is_reference else None
        if not cell.is_reference:
            self.load(cell)
        started = time.perf_counter()
        with PeakMemory(self.device) as peak:
            part = self._pass(cell, forward=not cell.is_reference, look=look)
        before = self.costs(cell)
        if not cell.is_reference:  # the reference's pass reads the store: its speed is not a model's
            positions = len(part.rows) * self.model(cell).corpus.spec.sequence_length
            rate = positions / (time.perf_counter() - started)
            self.record(cell, "evaluation_tokens_per_second", rate)
        if not cell.is_reference or (self.holder.loaded and self.holder.loaded.cell == cell and not look):
            known = before.get("peak_memory_bytes", 0) if cell.is_reference or look else 0
            self.record(cell, "peak_memory_bytes", max(known, peak.bytes))
        if splice:
            from qsae_bench.splicing import with_splice

            model = self.model(cell)
            corpus = model.part(look)
            assert corpus is not None
            # parts of one cell are ablated with one mean, or they would not add up
            first = prefix(self.measured[cell].measurement, len(model.corpus.ids)) if look else None
            part = with_splice(
                part, other, self.load(cell).subject, corpus, model.saes, model.compute_device, first,
                self.options.progress,
            )  # fmt: skip
        return part

    def _reference_part(self, reference: Cell, look: int) -> Measurement:
        """The reference's splice columns, which its cells' are compared with; kept for the next cell."""
        if look == 0:
            return self.measure(reference).measurement
        if (reference, look) not in self._parts:
            self._parts[reference, look] = self._part(reference, look)
        return self._parts[reference, look]

    def _pass(self, cell: Cell, forward: bool, batch_size: int | None = None, look: int = 0) -> Measurement:
        from qsae_bench.evaluation import evaluate

        model, reference = self.model(cell), self.reference(cell, look)
        corpus = model.part(look)
        assert corpus is not None
        subject = self.load(cell).subject if forward else None
        return evaluate(
            cell, corpus, reference, model.saes, model.compute_device, subject, batch_size,
            Progress(cell.id, corpus.spec.sequence_length, self.options.progress),
        )  # fmt: skip

    def _find_broken(self, cell: Cell, measured: Measured) -> None:
        if measured.quantized is not None and not measured.quantized.share:
            measured.broken = UNQUANTIZED
        elif not measured.measurement.is_finite:
            share = measured.estimates.cell["nonfinite_share"].value
            measured.broken = (
                f"non-finite values (nonfinite_share {share:.3g}): weights or activations overflowed"
            )
        elif cell.model.synthetic:
            return  # random weights have no quality to be sane or not
        elif cell.is_reference:
            measured.verdicts = gate.judge_reference(
                measured.estimates, cell.model.reference_bounds, measured.tokens
            )
            measured.broken = next((v.reason for v in measured.verdicts if v.failing), "")
        elif reason := self.measured[self.registry.reference_of(cell)].broken:
            measured.broken = f"its reference is not sane: {reason}"

    @cached_property
    def hardware(self) -> str:
        """The GPU's or CPU's name, as thresholds have it."""
        from qsae_bench.environment import environment, hardware_of

        return hardware_of(environment() | {"device": self.device})

    # -- judging and recording

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

    def failing(self, cell: Cell, gates: Gates) -> list[GateFailure]:
        """Judge a cell's gates; those that fail a test, with what to say."""
        measured = self.measure(cell)
        if cell.is_reference and measured.broken and not measured.verdicts:
            return [GateFailure("", "invalid", f"{cell.id}: INVALID: {measured.broken}")]
        if not cell.is_reference:
            self._run_on(cell, (gates,))
        found = self.judge.failing(cell, gates)
        return [GateFailure(v.metric, v.status, self.judge.message(cell, v)) for v in found]

    def _guarded(self, cell: Cell, work: Callable[[], T]) -> T:
        """Remember a refusal, so that every later test of the cell says the same at once."""
        refusal: QsaeError | None
        try:
            with telling(self.options.progress):
                return work()
        except QsaeError as error:
            refusal = error.bare()
        except Exception as error:
            refusal = None if is_out_of_memory(error) else Crashed.of(cell.id, error)
        # outside the handlers: what is raised there would keep the frames, and so the tensors, alive
        if refusal is None:
            raise self.ran_out(cell)
        if isinstance(refusal, Crashed):
            with contextlib.suppress(Exception):  # a GPU that failed fails at this too
                self.release()
        self.refused[cell] = type(refusal)(str(refusal))
        raise refusal

    def ran_out(self, cell: Cell) -> OutOfMemory:
        """Free what is loaded and remember that the cell ran out of memory."""
        from qsae_bench import plan
        from qsae_bench.machine import Machine

        self.release()
        corpus = self.registry.corpus_of(cell.model, self.options.selection)
        line = plan.shortage(cell, corpus, Machine.here(self.options.qsae_dir), self.device != "cpu")
        shortage = self.refused[cell] = OutOfMemory(line)
        return shortage

    def close(self) -> None:
        """Free what is loaded and remove what was temporary."""
        self.release()
        self._model = None
        if "store" in vars(self):  # it was used
            self.store.close()
